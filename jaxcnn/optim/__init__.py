"""Optimizers and schedules by name, and `create_optimizer`.

`create_optimizer` makes one optax transformation from an `OptimizerConfig`. `jaxcnn.train` and
`jaxcnn.make_train_step` take any other one too, also one of your own. Rows have the learning rate
of the last step if the optimizer's state holds it, as with `create_optimizer` and
`optax.inject_hyperparams`. Otherwise it is None, also where groups of parameters have optimizers
with different rates. With `lr_multipliers` it is the rate that they multiply.

- By name: `create_optimizer`, `OPTIMIZERS` (`OptimizerSpec`), `SCHEDULES`. `config_of` returns the
  config and the arguments that an optimizer was made with.
- Around any optimizer: `with_ema`, `scale_by_scheduled_rate` (`RateState`), `as_transformation`.
- Of a state: `current_learning_rate`, `eval_params`, `eval_leaves`.
- Parts of the parameters: `decay_mask`, `trainable_params`. Names of stages: `in_stage` tests one,
  and `check_stages` checks several.

Example:
  >>> import jax, jaxcnn as jc, optax
  >>> from jaxcnn.optim import create_optimizer, with_ema
  >>> from optax import contrib
  >>> Config, inject = jc.OptimizerConfig, optax.inject_hyperparams
  >>> sgd, partition = inject(optax.sgd), optax.partition
  >>> def kernels(params):  # The leaves that decay.
  ...     return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
  >>> def labels(params):  # A label for each layer.
  ...     return {name: "head" if name == "head" else "rest" for name in params}
  >>> cosine = optax.cosine_decay_schedule(0.1, 4)

| task | optimizer | rate in rows |
|---|---|---|
| by name | `create_optimizer(Config("adam", 0.01))` | 0.01 |
| gradient accumulation | `optax.MultiSteps(inject(optax.adam)(0.01), 2)` | 0.01 |
| clipping | `optax.chain(optax.clip_by_global_norm(1.0), sgd(0.1))` | 0.1 |
| average of the parameters | `create_optimizer(Config("adam", 0.01, ema_decay=0.9))` | 0.01 |
| the same around any optimizer | `with_ema(optax.adam(0.01), decay=0.9)` | None |
| and of accumulated steps | `optax.MultiSteps(with_ema(sgd(0.1)), 2)` | 0.1 |
| rates by layer | `create_optimizer(Config("sgd", 0.1, lr_multipliers={"head": 0.5}))` | 0.1 |
| methods by layer | `partition({"head": sgd(0.1), "rest": optax.adam(0.01)}, labels)` | None |
| freezing | `partition({"head": sgd(0.1), "rest": optax.set_to_zero()}, labels)` | 0.1 |
| decay of kernels | `create_optimizer(Config("adamw", 0.01, decay_mask="kernels"))` | 0.01 |
| decay by a mask | `inject(optax.adamw, static_args="mask")(0.01, mask=kernels)` | 0.01 |
| a schedule by name | `create_optimizer(Config("sgd", 0.1, schedule="cosine"), 4)` | 0.01464466 |
| a schedule inside | `sgd(cosine)` | 0.01464466 |
| a schedule that optax does not record | `optax.sgd(cosine)` | None |
| a rate that falls on a plateau | `optax.chain(sgd(0.1), contrib.reduce_on_plateau())` | 0.1 |
| a line search | `optax.lbfgs()` | None |
| SAM | `create_optimizer(Config("sam", 0.1))` | 0.1 |
| SAM of two methods | `contrib.sam(optax.sgd(0.1), optax.sgd(0.05), opaque_mode=True)` | None |
| no schedule | `contrib.schedule_free(optax.sgd(0.1), 0.1)` | None |
| no rate | `contrib.prodigy()` | None |
| steps that are not finite | `optax.apply_if_finite(inject(optax.adam)(0.01), 3)` | 0.01 |

`TrainConfig(freeze=("hidden1",))` freezes layers and the running statistics of their BN, with any
optimizer. `sam` without `opaque_mode` is evaluated at the unperturbed parameters. Transformations
that need other arguments than `make_train_step` passes, or gradients of single examples, are
refused.
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
