"""Optimizers as a table, and `create_optimizer`, which makes one from a config.

The table has, for each name, optax's constructor from an `OptimizerConfig` and a rate, a grid of
rates, needs and paper. `create_optimizer` combines the method, decay, schedule and warm-up into one
optax transformation.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import jax
import optax
from optax import contrib

from jaxcnn.arguments import check_integer
from jaxcnn.config import (
    ArgumentError,
    OptimizerConfig,
    check_choice,
    format_value,
    override,
    verify_config,
)
from jaxcnn.optim import schedules
from jaxcnn.optim.transforms import (
    add_noise,
    lookahead,
    prodigy,
    scale_by_scheduled_rate,
    scale_by_stage,
    select_extra_args,
    with_ema,
)


class OptimizerSpec(NamedTuple):
    """Optimizer of the table.

    Attributes:
      make: constructor, called as `make(config, rate, **config.optimizer_kwargs)`. The rate is a
        float32 [] array, traced. With need of a "key", the seed follows the rate.
      grid: five rates to tune over, half a decade apart.
      source: paper, and the form where there are several.
      needs: needs next to the gradient. They are "value" (the loss), "key" (randomness), "gradient"
        (a second one on the same batch) or "test parameters" (it is evaluated at other parameters
        than it trains at).
      decays: True if it applies `weight_decay` itself. It does so decoupled from the gradient or
        inside the method. Otherwise decay is L2: `weight_decay * w` is added to the gradient before
        the method.
    """

    make: Callable[..., optax.GradientTransformation]
    grid: tuple[float, ...]
    source: str
    needs: tuple[str, ...] = ()
    decays: bool = False


NOISE = 0x4E
"""Number folded into the seed's key for the noise.

`jaxcnn.state` numbers its streams from 0.
"""


def _noisy(config, rate, seed, *, eta=0.01, gamma=0.55):
    # A stream of its own: the noise joins the averaged gradient, the same on every device.
    key = jax.random.fold_in(jax.random.PRNGKey(seed), NOISE)
    return optax.chain(add_noise(eta, gamma, key), optax.sgd(rate))


def _clipped(config, rate, *, norm=1.0):
    return optax.chain(optax.clip_by_global_norm(norm), optax.sgd(rate, config.momentum))


def _caffe(config, rate):
    return optax.chain(optax.scale_by_learning_rate(rate), optax.trace(config.momentum))


def _sam(config, rate, *, rho=0.05):
    descent = optax.chain(l2_decay(config), optax.sgd(rate, config.momentum))
    # Not contrib.normalize, which makes a gradient of 0 into NaN.
    ascent = optax.chain(optax.normalize_by_update_norm(eps=1e-12), optax.sgd(rho))
    return select_extra_args(contrib.sam(descent, ascent, opaque_mode=True), "grad_fn")


def _muon(config, rate, *, beta=0.95):
    # consistent_rms makes an orthogonalized step as large as AdamW's, so that one rate serves both
    # (arXiv:2502.16982, 2.2).
    return contrib.muon(
        rate,
        beta=beta,
        weight_decay=config.weight_decay,
        weight_decay_mask=lambda params: decay_mask(params, config.decay_mask),
        adam_weight_decay=config.weight_decay if config.decay_mask == "all" else 0.0,
        muon_weight_dimension_numbers=_matrix_dimensions,
        consistent_rms=0.2,
    )


def _matrix_dimensions(params):
    """Return Muon's dimension numbers of every kernel, and None for other leaves.

    A kernel is a matrix from its window and input channels to its output channels. The other leaves
    are left to Adam.
    """

    def dimensions(path, leaf):
        if path[-1].key != "kernel":
            return None
        return contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(dimensions, params)


def _masked(config):
    return {
        "weight_decay": config.weight_decay,
        "mask": lambda params: decay_mask(params, config.decay_mask),
    }


def _lars(config, rate, *, trust=0.02):
    mask: Any = lambda params: decay_mask(params, config.decay_mask)  # noqa: E731
    return optax.lars(
        rate, config.weight_decay, mask, trust, trust_ratio_mask=mask, momentum=config.momentum
    )


def _prodigy(config, rate, *, d0=1e-6):
    return prodigy(
        rate, d0, config.weight_decay, lambda params: decay_mask(params, config.decay_mask)
    )


def _schedule_free(config, rate, *, b1=0.9):
    return contrib.schedule_free(optax.sgd(rate), rate, b1=b1)


# Grids of rates
TINY = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
SMALL = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
MIDDLE = (1e-3, 3e-3, 0.01, 0.03, 0.1)
LARGE = (0.003, 0.01, 0.03, 0.1, 0.3)
PLAIN = (0.01, 0.03, 0.1, 0.3, 1.0)
BOUND = (0.03, 0.1, 0.3, 1.0, 3.0)

OPTIMIZERS: dict[str, OptimizerSpec] = {
    "sgd": OptimizerSpec(lambda config, rate: optax.sgd(rate), PLAIN, "Robbins and Monro 1951"),
    "momentum": OptimizerSpec(
        lambda config, rate: optax.sgd(rate, config.momentum),
        LARGE,
        "Polyak 1964; PyTorch's and optax's form",
    ),
    "caffe": OptimizerSpec(_caffe, LARGE, "Polyak 1964; Caffe's form: v = m v + lr g, w -= v"),
    "nesterov": OptimizerSpec(
        lambda config, rate: optax.sgd(rate, config.momentum, nesterov=True),
        LARGE,
        "Sutskever et al. 2013",
    ),
    "noisy": OptimizerSpec(_noisy, PLAIN, "Neelakantan et al. 2015, arXiv:1511.06807", ("key",)),
    "sign": OptimizerSpec(
        lambda config, rate: optax.sign_sgd(rate), SMALL, "Bernstein et al. 2018, arXiv:1802.04434"
    ),
    "polyak": OptimizerSpec(
        lambda config, rate, *, f_min=0.0: optax.polyak_sgd(rate, f_min=f_min),
        BOUND,
        "Loizou et al. 2021, arXiv:2002.10542; the rate is the largest step",
        ("value",),
    ),
    "clipped": OptimizerSpec(
        _clipped, PLAIN, "Pascanu et al. 2013, arXiv:1211.5063; momentum after the clip"
    ),
    "adagrad": OptimizerSpec(lambda config, rate: optax.adagrad(rate), PLAIN, "Duchi et al. 2011"),
    "rmsprop": OptimizerSpec(
        lambda config, rate, *, decay=0.9: optax.rmsprop(rate, decay),
        SMALL,
        "Tieleman and Hinton 2012",
    ),
    "adam": OptimizerSpec(
        lambda config, rate, *, b1=0.9, b2=0.999: optax.adam(rate, b1, b2),
        MIDDLE,
        "Kingma and Ba 2015, arXiv:1412.6980",
    ),
    "adamw": OptimizerSpec(
        lambda config, rate, *, b1=0.9, b2=0.999: optax.adamw(rate, b1, b2, **_masked(config)),
        MIDDLE,
        "Loshchilov and Hutter 2019, arXiv:1711.05101",
        decays=True,
    ),
    "nadam": OptimizerSpec(
        lambda config, rate, *, b1=0.9, b2=0.999: optax.nadam(rate, b1, b2), MIDDLE, "Dozat 2016"
    ),
    "amsgrad": OptimizerSpec(
        lambda config, rate, *, b1=0.9, b2=0.999: optax.amsgrad(rate, b1, b2),
        MIDDLE,
        "Reddi et al. 2018, arXiv:1904.09237",
    ),
    "radam": OptimizerSpec(
        lambda config, rate, *, b1=0.9, b2=0.999: optax.radam(rate, b1, b2),
        MIDDLE,
        "Liu et al. 2020, arXiv:1908.03265",
    ),
    "lion": OptimizerSpec(
        lambda config, rate, *, b1=0.9, b2=0.99: optax.lion(rate, b1, b2, **_masked(config)),
        TINY,
        "Chen et al. 2023, arXiv:2302.06675",
        decays=True,
    ),
    "lars": OptimizerSpec(
        _lars, BOUND, "You et al. 2017, arXiv:1708.03888; trust 0.02", decays=True
    ),
    "lamb": OptimizerSpec(
        lambda config, rate, *, b1=0.9, b2=0.999: optax.lamb(rate, b1, b2, **_masked(config)),
        MIDDLE,
        "You et al. 2020, arXiv:1904.00962",
        decays=True,
    ),
    "sam": OptimizerSpec(
        _sam,
        LARGE,
        "Foret et al. 2021, arXiv:2010.01412; around momentum",
        ("gradient",),
        decays=True,
    ),
    "lookahead": OptimizerSpec(
        lambda config, rate, *, period=5, share=0.5: lookahead(
            optax.sgd(rate, config.momentum), period, share
        ),
        LARGE,
        "Zhang et al. 2019, arXiv:1907.08610; around momentum",
        ("test parameters",),
    ),
    "schedule-free": OptimizerSpec(
        _schedule_free,
        BOUND,
        "Defazio et al. 2024, arXiv:2405.15682; around SGD",
        ("test parameters",),
    ),
    "prodigy": OptimizerSpec(
        _prodigy,
        (0.1, 0.3, 1.0, 3.0, 10.0),
        "Mishchenko and Defazio 2024, arXiv:2306.06101; the rate multiplies its own",
        decays=True,
    ),
    "muon": OptimizerSpec(
        _muon, MIDDLE, "Jordan et al. 2024; Liu et al. 2025, arXiv:2502.16982", decays=True
    ),
}
"""Optimizers: name -> `OptimizerSpec`.

"momentum" and "caffe" differ after every change of the rate: the second still carries steps of the
old one.
"""


def l2_decay(config: OptimizerConfig) -> optax.GradientTransformation:
    """Return a transformation that adds `weight_decay * w` to the gradient.

    It acts on the leaves that decay.
    """
    return optax.add_decayed_weights(
        config.weight_decay, lambda params: decay_mask(params, config.decay_mask)
    )


def decay_mask(params: Any, on: str) -> Any:
    """Return the leaves of `params` that decay, as a tree of booleans.

    Args:
      params: parameters of a network.
      on: "convs" ([h, w, i, o] kernels), "kernels" (dense ones too) or "all".
    """

    def decays(path, leaf):
        kernel = path[-1].key == "kernel"
        return {"convs": kernel and leaf.ndim == 4, "kernels": kernel, "all": True}[on]

    return jax.tree_util.tree_map_with_path(decays, params)


# From a config

_SHARED_RATE = 0.1
_CONFIGS: WeakKeyDictionary[Any, tuple[OptimizerConfig, dict[str, int]]] = WeakKeyDictionary()
"""`init` of an optimizer -> the arguments of `create_optimizer` that it depends on."""


def create_optimizer(
    config: OptimizerConfig, num_steps: int | None = None, *, seed: int = 0
) -> optax.GradientTransformationExtraArgs:
    """Return an optimizer as one optax transformation.

    It adds L2 decay to the gradient, applies the method, and sets the rate by schedule and warm-up.
    With `ema_decay`, a moving average of the parameters is evaluated (`with_ema`).
    Configs that differ only in the rate, or in the seed, have the same `update`, so a sweep over
    them compiles once.

    Args:
      config: the optimizer's numbers.
      num_steps: length of the run. The schedules "step" and "constant" do not need it.
      seed: of the noise of "noisy".

    Raises:
      ArgumentError: for a name not in `OPTIMIZERS` or `SCHEDULES` (the message has the nearest), an
        option that the method lacks, or a schedule that needs `num_steps` and lacks it.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = create_optimizer(OptimizerConfig("sgd", learning_rate=0.5, weight_decay=0.0))
      >>> params = {"kernel": jnp.ones(())}
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> float(updates["kernel"])
      -0.5
    """
    spec = check_optimizer(config)
    check_choice("schedule", config.schedule, schedules.SCHEDULES)
    needs_length = config.schedule not in schedules.NEED_NO_LENGTH
    if not needs_length:
        num_steps = 1
    elif num_steps is None:
        raise ArgumentError(
            f"the schedule {config.schedule!r} depends on the length of the run, which is missing; "
            "expected the number of steps. Use create_optimizer(config, num_steps=1000)."
        )
    else:
        num_steps = check_integer("num_steps", num_steps, example=1000)
    # The rate is state, and the seed enters `init` only: the cached update does without them.
    shared = override(config, learning_rate=_SHARED_RATE)
    if config.schedule != "step":
        shared = override(shared, milestones=())
    update = _cached_update(shared.to_json(), num_steps)
    init = _transformation(config, num_steps, seed).init
    arguments = {"num_steps": num_steps} if needs_length else {}
    _CONFIGS[init] = config, arguments | ({"seed": seed} if "key" in spec.needs else {})
    return optax.GradientTransformationExtraArgs(init, update)


def config_of(tx: Any) -> tuple[OptimizerConfig, dict[str, int]] | None:
    """Return the config of `tx`, and the other arguments of `create_optimizer` that matter.

    It is None for a transformation that `create_optimizer` did not make.
    """
    return _CONFIGS.get(tx.init)


@lru_cache(maxsize=256)
def _cached_update(text, num_steps):
    return _transformation(OptimizerConfig.from_json(text), num_steps, seed=0).update


def _transformation(config, num_steps, seed):
    spec = check_optimizer(config)

    def method(rate: jax.Array) -> optax.GradientTransformation:
        seeds = (seed,) if "key" in spec.needs else ()
        tx = spec.make(config, rate, *seeds, **config.optimizer_kwargs)
        return tx if spec.decays else optax.chain(l2_decay(config), tx)

    tx = scale_by_scheduled_rate(
        method,
        config.learning_rate,
        schedules.SCHEDULES[config.schedule](config, num_steps),
        warmup_lr=config.warmup_lr,
        warmup_error=config.warmup_error,
        plateau=schedules.plateau(config, num_steps),
    )
    tx = scale_by_stage(tx, config.lr_multipliers)
    return with_ema(tx, config.ema_decay) if config.ema_decay else tx


def optimizer_options(name: str) -> dict[str, Any]:
    """Return the options in `optimizer_kwargs` of the optimizer `name`, with defaults.

    Example:
      >>> optimizer_options("adam")
      {'b1': 0.9, 'b2': 0.999}
    """
    parameters = inspect.signature(OPTIMIZERS[name].make).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def check_optimizer(config: OptimizerConfig) -> OptimizerSpec:
    """Check the config's optimizer and its options, and return its spec.

    Raises:
      ArgumentError: for a name or an option that does not exist, or a value out of bounds.
    """
    verify_config(config, OptimizerConfig)
    options = optimizer_options(check_choice("optimizer", config.name, OPTIMIZERS))
    averages = "test parameters" in OPTIMIZERS[config.name].needs
    if averages and set(config.lr_multipliers.values()) - {1}:
        raise ArgumentError(
            f"lr_multipliers is {format_value(config.lr_multipliers)}; {config.name} averages its "
            "steps, so expected one rate for all. Use the optimizer 'momentum', say."
        )
    for name, value in config.optimizer_kwargs.items():
        if not options:
            raise ArgumentError(
                f"optimizer_kwargs of {config.name} has {format_value(name)}; "
                "expected none, since it has no numbers of its own. Use optimizer_kwargs={}."
            )
        check_choice(f"optimizer_kwargs of {config.name}", name, options)
        is_valid, expected = _bounds(config.name, name, options[name])
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not is_valid(value):
            raise ArgumentError(
                f"{name} in optimizer_kwargs is {format_value(value)}; expected {expected}: "
                f"write {options[name]}"
            )
    if config.ema_decay and "test parameters" in OPTIMIZERS[config.name].needs:
        raise ArgumentError(
            f"ema_decay is {config.ema_decay}, but {config.name} is evaluated at parameters of its "
            "own; expected 0 or another optimizer. Write ema_decay=0.0."
        )
    return OPTIMIZERS[config.name]


def _bounds(method, name, default):
    """Return a check of an option, and the expected value in words.

    Beyond these bounds methods divide by 0 or never act.
    """
    if isinstance(default, int):
        return (
            lambda value: isinstance(value, int) and value >= 1,
            "a whole number of at least 1",
        )
    # Its average is recovered by dividing by b1.
    if (method, name) == ("schedule-free", "b1"):
        return lambda value: 0 < value < 1, "a number above 0 and below 1"
    if name in ("b1", "b2", "beta", "decay"):
        return lambda value: 0 <= value < 1, "a number of at least 0 and below 1"
    if name in ("norm", "share", "d0"):
        return lambda value: value > 0, "a number above 0"
    return lambda value: value >= 0, "a number of at least 0"
