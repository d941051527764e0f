"""Optimisers and schedules by name, and `optimizer`, which makes one optax transformation from a Recipe."""

from jaxcnn.optim.adapters import test_params as test_params
from jaxcnn.optim.adapters import transformation as transformation
from jaxcnn.optim.methods import OPTIMIZERS as OPTIMIZERS
from jaxcnn.optim.methods import Method as Method
from jaxcnn.optim.methods import decay_mask as decay_mask
from jaxcnn.optim.optimizer import optimizer as optimizer
from jaxcnn.optim.rate import RateState as RateState
from jaxcnn.optim.rate import at_rate as at_rate
from jaxcnn.optim.rate import rate_of as rate_of
from jaxcnn.optim.schedules import SCHEDULES as SCHEDULES
from jaxcnn.optim.stages import belongs as belongs
from jaxcnn.optim.stages import frozen as frozen
from jaxcnn.optim.stages import held as held
