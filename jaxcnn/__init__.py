"""jaxcnn: a functional CNN research library in JAX."""

from jaxcnn.evaluate import evaluate as evaluate
from jaxcnn.evaluate import precise as precise
from jaxcnn.evaluate import predict as predict
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
