"""Published weights: safetensors files, and files of `torch.save` without PyTorch.

`load_weights` returns the variables of a network from a file, and `export_weights` writes a file.
`create_pretrained` returns the network of a repository on the Hugging Face Hub, with its weights
and preprocessing. Nothing in a file is
executed.

- Files: `read_weights`, `read_metadata`.
- The hub: `fetch_weights`, `network_name`, `load_preprocessing`.
- Types: `Pretrained`, `Preprocessing`, `WeightsError`.
"""

from jaxcnn.weights._errors import WeightsError as WeightsError
from jaxcnn.weights.export import export_weights as export_weights
from jaxcnn.weights.files import read_metadata as read_metadata
from jaxcnn.weights.files import read_weights as read_weights
from jaxcnn.weights.hub import fetch_weights as fetch_weights
from jaxcnn.weights.hub import network_name as network_name
from jaxcnn.weights.load import load_weights as load_weights
from jaxcnn.weights.pretrained import Preprocessing as Preprocessing
from jaxcnn.weights.pretrained import Pretrained as Pretrained
from jaxcnn.weights.pretrained import create_pretrained as create_pretrained
from jaxcnn.weights.pretrained import load_preprocessing as load_preprocessing
