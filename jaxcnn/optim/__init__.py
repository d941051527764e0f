"""Optimisers and schedules by name, and `create_optimizer`, which makes one optax transformation from a Recipe."""

from jaxcnn.optim.adapters import as_transformation as as_transformation
from jaxcnn.optim.adapters import eval_params as eval_params
from jaxcnn.optim.methods import OPTIMIZERS as OPTIMIZERS
from jaxcnn.optim.methods import OptimizerSpec as OptimizerSpec
from jaxcnn.optim.methods import decay_mask as decay_mask
from jaxcnn.optim.optimizer import create_optimizer as create_optimizer
from jaxcnn.optim.rate import RateState as RateState
from jaxcnn.optim.rate import current_learning_rate as current_learning_rate
from jaxcnn.optim.rate import scale_by_scheduled_rate as scale_by_scheduled_rate
from jaxcnn.optim.schedules import SCHEDULES as SCHEDULES
from jaxcnn.optim.stages import frozen_stages as frozen_stages
from jaxcnn.optim.stages import in_stage as in_stage
from jaxcnn.optim.stages import stop_gradients as stop_gradients
