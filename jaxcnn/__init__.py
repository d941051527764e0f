"""jaxcnn: a functional CNN research library in JAX."""

from jaxcnn.checkpoint import CheckpointError as CheckpointError
from jaxcnn.checkpoint import Checkpoints as Checkpoints
from jaxcnn.data import DATASETS as DATASETS
from jaxcnn.data import DataError as DataError
from jaxcnn.data import Dataset as Dataset
from jaxcnn.data import Split as Split
from jaxcnn.data import hold_out as hold_out
from jaxcnn.data import load as load
from jaxcnn.evaluate import evaluate as evaluate
from jaxcnn.evaluate import precise as precise
from jaxcnn.evaluate import predict as predict
from jaxcnn.log import RunLog as RunLog
from jaxcnn.log import read_rows as read_rows
from jaxcnn.metrics import Sums as Sums
from jaxcnn.models import MODELS as MODELS
from jaxcnn.models import build as build
from jaxcnn.models import parameters as parameters
from jaxcnn.optim import OPTIMIZERS as OPTIMIZERS
from jaxcnn.optim import optimizer as optimizer
from jaxcnn.parallel import driver as driver
from jaxcnn.recipe import Recipe as Recipe
from jaxcnn.recipe import RecipeError as RecipeError
from jaxcnn.state import State as State
from jaxcnn.state import start as start
from jaxcnn.train import fit as fit
from jaxcnn.train import make_step as make_step
