"""Optimizers and schedules by name, and `create_optimizer`.

`create_optimizer` makes one optax transformation from an `OptimizerConfig`.
"""

from jaxcnn.optim.optimizers import OPTIMIZERS as OPTIMIZERS
from jaxcnn.optim.optimizers import OptimizerSpec as OptimizerSpec
from jaxcnn.optim.optimizers import config_of as config_of
from jaxcnn.optim.optimizers import create_optimizer as create_optimizer
from jaxcnn.optim.optimizers import decay_mask as decay_mask
from jaxcnn.optim.schedules import SCHEDULES as SCHEDULES
from jaxcnn.optim.transforms import RateState as RateState
from jaxcnn.optim.transforms import as_transformation as as_transformation
from jaxcnn.optim.transforms import check_stages as check_stages
from jaxcnn.optim.transforms import current_learning_rate as current_learning_rate
from jaxcnn.optim.transforms import eval_leaves as eval_leaves
from jaxcnn.optim.transforms import eval_params as eval_params
from jaxcnn.optim.transforms import in_stage as in_stage
from jaxcnn.optim.transforms import scale_by_scheduled_rate as scale_by_scheduled_rate
from jaxcnn.optim.transforms import trainable_params as trainable_params
from jaxcnn.optim.transforms import with_ema as with_ema
