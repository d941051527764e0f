"""Interpretation of a network: most functions take a model, its state and images.

They take any flax.linen module. Layers are named by their paths, such as "stage1_block1/conv1".
The library's models also have names for their stages, such as "stage1".

- Why this class: `attribution` takes the name of a method (`ATTRIBUTION_METHODS`). The methods are
  functions too: `gradcam`, `gradcam_plus_plus`, `guided_backprop`, `integrated_gradients`,
  `occlusion`.
- What a layer sees: `feature_maps`, `first_kernels`, `top_activations` (`TopActivations`),
  `maximize_activation`, and `receptive_patch`, the part of an image in a `ReceptiveField`.
- Signals through the layers: `responses` (of variables), `response_std`, `gradient_norms`,
  `effective_ranks`, `kernel_norms` (of parameters). `map_responses` applies a function of one
  layer's features, such as `effective_rank` or `similarity`, to every layer.
- Structure, of a model and an image's shape: `summary` (`ModelSummary`, `LayerSummary`),
  `stage_shapes`, `receptive_fields`.

Example:
  >>> import jaxcnn as jc
  >>> from jaxcnn import interpret
  >>> data, model = jc.load_dataset("digits"), jc.create_model("convnet", 10, width=4)
  >>> tx = jc.create_optimizer(jc.OptimizerConfig())
  >>> state = jc.init_state(model, tx, jc.TrainConfig(), data)
  >>> images = data.test.images[:4]
  >>> interpret.attribution("integrated_gradients", model, state, images).shape
  (4, 8, 8)
  >>> {name: maps.shape for name, maps in interpret.feature_maps(model, state, images).items()}
  {'conv1': (4, 8, 8, 4), 'conv2': (4, 4, 4, 8)}
  >>> interpret.receptive_fields(model, images.shape[1:])["conv2"]
  ReceptiveField(size=(8, 8), stride=(2, 2), start=(-3, -3))
  >>> list(interpret.response_std(model, state, images))
  ['conv1', 'conv2', 'dense', 'head']
  >>> liked = interpret.maximize_activation(model, state, {"conv2": [0, 1]}, num_steps=2)
  >>> liked["conv2"].shape
  (2, 8, 8, 1)
"""

from jaxcnn.interpret._outputs import stage_shapes as stage_shapes
from jaxcnn.interpret.activations import TopActivations as TopActivations
from jaxcnn.interpret.activations import feature_maps as feature_maps
from jaxcnn.interpret.activations import first_kernels as first_kernels
from jaxcnn.interpret.activations import top_activations as top_activations
from jaxcnn.interpret.attribution import ATTRIBUTION_METHODS as ATTRIBUTION_METHODS
from jaxcnn.interpret.attribution import attribution as attribution
from jaxcnn.interpret.attribution import integrated_gradients as integrated_gradients
from jaxcnn.interpret.attribution import occlusion as occlusion
from jaxcnn.interpret.feature_visualization import maximize_activation as maximize_activation
from jaxcnn.interpret.gradcam import gradcam as gradcam
from jaxcnn.interpret.gradcam import gradcam_plus_plus as gradcam_plus_plus
from jaxcnn.interpret.guided_backprop import guided_backprop as guided_backprop
from jaxcnn.interpret.receptive_field import ReceptiveField as ReceptiveField
from jaxcnn.interpret.receptive_field import receptive_fields as receptive_fields
from jaxcnn.interpret.receptive_field import receptive_patch as receptive_patch
from jaxcnn.interpret.signal_propagation import effective_rank as effective_rank
from jaxcnn.interpret.signal_propagation import effective_ranks as effective_ranks
from jaxcnn.interpret.signal_propagation import gradient_norms as gradient_norms
from jaxcnn.interpret.signal_propagation import kernel_norms as kernel_norms
from jaxcnn.interpret.signal_propagation import map_responses as map_responses
from jaxcnn.interpret.signal_propagation import response_std as response_std
from jaxcnn.interpret.signal_propagation import responses as responses
from jaxcnn.interpret.signal_propagation import similarity as similarity
from jaxcnn.interpret.summary import LayerSummary as LayerSummary
from jaxcnn.interpret.summary import ModelSummary as ModelSummary
from jaxcnn.interpret.summary import summary as summary
