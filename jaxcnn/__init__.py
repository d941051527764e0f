"""Functional library for research on convolutional networks, in JAX.

State is arrays, functions are arguments, and the training loop is the caller's. `__version__` is
that of the installed package, "unknown" without an installation.

- Data: `load_dataset`, `image_folder`, `dataset` (arrays), `Dataset`, `Split`, `hold_out`,
  `subset`, `DATASETS`, `DataError`.
- Models: `create_model`, `list_models`, `MODELS`, `count_parameters`, `summary`, `select_output`.
  Detectors are in `jaxcnn.models.ssd`, `.yolo` and `.faster_rcnn`.
- Weights: `create_pretrained`, `load_weights`, `export_weights`, `with_variables`, `Preprocessing`,
  `WeightsError`.
- Configs: `TrainConfig`, `OptimizerConfig`, `AugmentConfig`, `ExperimentConfig`, `override`,
  `ArgumentError`.
- Training: `train`, `make_train_step`, `init_state`, `State`, `strategy` (devices), `lr_finder`,
  `create_optimizer`, `with_ema`, `OPTIMIZERS`, `SCHEDULES`, `create_loss`, `LOSSES`, `augment`.
- Records: `RunLog`, `read_metrics`, `Checkpoints`, `CheckpointError`.
- Evaluation: `evaluate`, `predict`, `load_classifier`, `Metrics`, `loss_fn`,
  `recompute_batch_stats`.
- Analysis: `gradcam` (more in `jaxcnn.interpret`), `eigenvalues`, `sharpness`, `noise_scale`.
  Others are in `jaxcnn.metrics`, `jaxcnn.boxes`, `jaxcnn.keypoints`, `jaxcnn.loss_landscape` and
  `jaxcnn.plots`.
- Studies: `jaxcnn.runs` trains, sweeps and reads runs. `jaxcnn.search` searches hyperparameters.

Example:
  >>> import jaxcnn as jc
  >>> data = jc.load_dataset("digits")
  >>> model = jc.create_model("mlp", data.num_classes)
  >>> tx = jc.create_optimizer(jc.OptimizerConfig("momentum", learning_rate=0.1))
  >>> for state, metrics in jc.train(model, tx, data, jc.TrainConfig(num_steps=2)):
  ...     print(metrics["step"], metrics["eval_split"])
  2 test
  >>> jc.predict(model, state, data.test.images[:8]).shape
  (8, 10)
"""

from importlib import metadata as _metadata

from jaxcnn import augment as augment
from jaxcnn.checkpoint import CheckpointError as CheckpointError
from jaxcnn.checkpoint import Checkpoints as Checkpoints
from jaxcnn.classifier import load_classifier as load_classifier
from jaxcnn.config import ArgumentError as ArgumentError
from jaxcnn.config import AugmentConfig as AugmentConfig
from jaxcnn.config import ExperimentConfig as ExperimentConfig
from jaxcnn.config import OptimizerConfig as OptimizerConfig
from jaxcnn.config import TrainConfig as TrainConfig
from jaxcnn.config import override as override
from jaxcnn.curvature import eigenvalues as eigenvalues
from jaxcnn.curvature import noise_scale as noise_scale
from jaxcnn.curvature import sharpness as sharpness
from jaxcnn.data import DATASETS as DATASETS
from jaxcnn.data import DataError as DataError
from jaxcnn.data import Dataset as Dataset
from jaxcnn.data import Split as Split
from jaxcnn.data import dataset as dataset
from jaxcnn.data import hold_out as hold_out
from jaxcnn.data import image_folder as image_folder
from jaxcnn.data import load_dataset as load_dataset
from jaxcnn.data import subset as subset
from jaxcnn.evaluation import evaluate as evaluate
from jaxcnn.evaluation import loss_fn as loss_fn
from jaxcnn.evaluation import predict as predict
from jaxcnn.evaluation import recompute_batch_stats as recompute_batch_stats
from jaxcnn.interpret import gradcam as gradcam
from jaxcnn.interpret import summary as summary
from jaxcnn.learning_rate_finder import lr_finder as lr_finder
from jaxcnn.losses import LOSSES as LOSSES
from jaxcnn.losses import create_loss as create_loss
from jaxcnn.metrics import Metrics as Metrics
from jaxcnn.models import MODELS as MODELS
from jaxcnn.models import count_parameters as count_parameters
from jaxcnn.models import create_model as create_model
from jaxcnn.models import list_models as list_models
from jaxcnn.models import select_output as select_output
from jaxcnn.optim import OPTIMIZERS as OPTIMIZERS
from jaxcnn.optim import SCHEDULES as SCHEDULES
from jaxcnn.optim import create_optimizer as create_optimizer
from jaxcnn.optim import with_ema as with_ema
from jaxcnn.parallel import strategy as strategy
from jaxcnn.run_log import RunLog as RunLog
from jaxcnn.run_log import read_metrics as read_metrics
from jaxcnn.state import State as State
from jaxcnn.state import init_state as init_state
from jaxcnn.state import with_variables as with_variables
from jaxcnn.training import make_train_step as make_train_step
from jaxcnn.training import train as train
from jaxcnn.weights import Preprocessing as Preprocessing
from jaxcnn.weights import WeightsError as WeightsError
from jaxcnn.weights import create_pretrained as create_pretrained
from jaxcnn.weights import export_weights as export_weights
from jaxcnn.weights import load_weights as load_weights

try:
    __version__ = _metadata.version("jaxcnn")
# The source is used without an installation.
except _metadata.PackageNotFoundError:
    __version__ = "unknown"
