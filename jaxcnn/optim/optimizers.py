"""Optimizers as a table, and `create_optimizer`, which makes one from a Recipe.

The table has, for each name, optax's constructor from a Recipe and a rate, a grid of rates, needs
and paper. `create_optimizer` combines the method, decay, schedule and warm-up into one optax
transformation.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import optax
from optax import contrib

from jaxcnn.optim import schedules
from jaxcnn.optim.transforms import (
    add_noise,
    frozen_stages,
    in_stage,
    lookahead,
    prodigy,
    scale_by_scheduled_rate,
    scale_by_stage,
    select_extra_args,
)
from jaxcnn.recipe import ArgumentError, Recipe, check_choice, format_value, verify_recipe


class OptimizerSpec(NamedTuple):
    """Optimizer of the table."""

    make: Callable[..., optax.GradientTransformation]
    """Constructor, called as `make(recipe, rate, **recipe.method)`.

    The rate is a float32 [] array, traced.
    """
    grid: tuple[float, ...]
    """Five rates to tune over, half a decade apart."""
    source: str
    """Paper, and the form where there are several."""
    needs: tuple[str, ...] = ()
    """Needs next to the gradient.

    They are "value" (the loss), "key" (randomness), "gradient" (a second one on the same batch) or
    "test parameters" (it is evaluated at other parameters than it trains at).
    """
    decays: bool = False
    """True if it applies `recipe.decay` itself.

    It does so decoupled from the gradient or inside the method. Otherwise decay is L2: `decay * w`
    is added to the gradient before the method.
    """


NOISE = 0x4E
"""Number folded into the seed's key for the noise.

`jaxcnn.state` numbers its streams from 0.
"""


def _noisy(recipe, rate, *, eta=0.01, gamma=0.55):
    # A stream of its own: the noise joins the averaged gradient, the same on every device.
    key = jax.random.fold_in(jax.random.PRNGKey(recipe.seed), NOISE)
    return optax.chain(add_noise(eta, gamma, key), optax.sgd(rate))


def _clipped(recipe, rate, *, norm=1.0):
    return optax.chain(optax.clip_by_global_norm(norm), optax.sgd(rate, recipe.momentum))


def _caffe(recipe, rate):
    return optax.chain(optax.scale_by_learning_rate(rate), optax.trace(recipe.momentum))


def _sam(recipe, rate, *, rho=0.05):
    descent = optax.chain(l2_decay(recipe), optax.sgd(rate, recipe.momentum))
    # Not contrib.normalize, which makes a gradient of 0 into NaN.
    ascent = optax.chain(optax.normalize_by_update_norm(eps=1e-12), optax.sgd(rho))
    return select_extra_args(contrib.sam(descent, ascent, opaque_mode=True), "grad_fn")


def _muon(recipe, rate, *, beta=0.95):
    # consistent_rms makes an orthogonalized step as large as AdamW's, so that one rate serves both
    # (arXiv:2502.16982, 2.2).
    return contrib.muon(
        rate,
        beta=beta,
        weight_decay=recipe.decay,
        weight_decay_mask=lambda params: decay_mask(params, recipe.decay_on),
        adam_weight_decay=recipe.decay if recipe.decay_on == "all" else 0.0,
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


def _masked(recipe):
    return {
        "weight_decay": recipe.decay,
        "mask": lambda params: decay_mask(params, recipe.decay_on),
    }


def _lars(recipe, rate, *, trust=0.02):
    mask: Any = lambda params: decay_mask(params, recipe.decay_on)  # noqa: E731
    return optax.lars(
        rate, recipe.decay, mask, trust, trust_ratio_mask=mask, momentum=recipe.momentum
    )


def _prodigy(recipe, rate, *, d0=1e-6):
    return prodigy(rate, d0, recipe.decay, lambda params: decay_mask(params, recipe.decay_on))


def _schedule_free(recipe, rate, *, b1=0.9):
    return contrib.schedule_free(optax.sgd(rate), rate, b1=b1)


# Grids of rates
TINY = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
SMALL = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
MIDDLE = (1e-3, 3e-3, 0.01, 0.03, 0.1)
LARGE = (0.003, 0.01, 0.03, 0.1, 0.3)
PLAIN = (0.01, 0.03, 0.1, 0.3, 1.0)
BOUND = (0.03, 0.1, 0.3, 1.0, 3.0)

# fmt: off
OPTIMIZERS: dict[str, OptimizerSpec] = {
    "sgd": OptimizerSpec(lambda r, rate: optax.sgd(rate), PLAIN, "Robbins and Monro 1951"),
    "momentum": OptimizerSpec(lambda r, rate: optax.sgd(rate, r.momentum), LARGE, "Polyak 1964; PyTorch's and optax's form"),
    "caffe": OptimizerSpec(_caffe, LARGE, "Polyak 1964; Caffe's form: v = m v + lr g, w -= v"),
    "nesterov": OptimizerSpec(lambda r, rate: optax.sgd(rate, r.momentum, nesterov=True), LARGE, "Sutskever et al. 2013"),
    "noisy": OptimizerSpec(_noisy, PLAIN, "Neelakantan et al. 2015, arXiv:1511.06807", ("key",)),
    "sign": OptimizerSpec(lambda r, rate: optax.sign_sgd(rate), SMALL, "Bernstein et al. 2018, arXiv:1802.04434"),
    "polyak": OptimizerSpec(lambda r, rate, *, f_min=0.0: optax.polyak_sgd(rate, f_min=f_min), BOUND,
                     "Loizou et al. 2021, arXiv:2002.10542; the rate is the largest step", ("value",)),
    "clipped": OptimizerSpec(_clipped, PLAIN, "Pascanu et al. 2013, arXiv:1211.5063; momentum after the clip"),
    "adagrad": OptimizerSpec(lambda r, rate: optax.adagrad(rate), PLAIN, "Duchi et al. 2011"),
    "rmsprop": OptimizerSpec(lambda r, rate, *, decay=0.9: optax.rmsprop(rate, decay), SMALL, "Tieleman and Hinton 2012"),
    "adam": OptimizerSpec(lambda r, rate, *, b1=0.9, b2=0.999: optax.adam(rate, b1, b2), MIDDLE,
                   "Kingma and Ba 2015, arXiv:1412.6980"),
    "adamw": OptimizerSpec(lambda r, rate, *, b1=0.9, b2=0.999: optax.adamw(rate, b1, b2, **_masked(r)), MIDDLE,
                    "Loshchilov and Hutter 2019, arXiv:1711.05101", decays=True),
    "nadam": OptimizerSpec(lambda r, rate, *, b1=0.9, b2=0.999: optax.nadam(rate, b1, b2), MIDDLE, "Dozat 2016"),
    "amsgrad": OptimizerSpec(lambda r, rate, *, b1=0.9, b2=0.999: optax.amsgrad(rate, b1, b2), MIDDLE,
                      "Reddi et al. 2018, arXiv:1904.09237"),
    "radam": OptimizerSpec(lambda r, rate, *, b1=0.9, b2=0.999: optax.radam(rate, b1, b2), MIDDLE,
                    "Liu et al. 2020, arXiv:1908.03265"),
    "lion": OptimizerSpec(lambda r, rate, *, b1=0.9, b2=0.99: optax.lion(rate, b1, b2, **_masked(r)), TINY,
                   "Chen et al. 2023, arXiv:2302.06675", decays=True),
    "lars": OptimizerSpec(_lars, BOUND, "You et al. 2017, arXiv:1708.03888; trust 0.02", decays=True),
    "lamb": OptimizerSpec(lambda r, rate, *, b1=0.9, b2=0.999: optax.lamb(rate, b1, b2, **_masked(r)), MIDDLE,
                   "You et al. 2020, arXiv:1904.00962", decays=True),
    "sam": OptimizerSpec(_sam, LARGE, "Foret et al. 2021, arXiv:2010.01412; around momentum", ("gradient",), decays=True),
    "lookahead": OptimizerSpec(lambda r, rate, *, period=5, share=0.5: lookahead(optax.sgd(rate, r.momentum), period, share),
                        LARGE, "Zhang et al. 2019, arXiv:1907.08610; around momentum", ("test parameters",)),
    "schedule-free": OptimizerSpec(_schedule_free, BOUND, "Defazio et al. 2024, arXiv:2405.15682; around SGD",
                            ("test parameters",)),
    "prodigy": OptimizerSpec(_prodigy, (0.1, 0.3, 1.0, 3.0, 10.0),
                      "Mishchenko and Defazio 2024, arXiv:2306.06101; the rate multiplies its own", decays=True),
    "muon": OptimizerSpec(_muon, MIDDLE, "Jordan et al. 2024; Liu et al. 2025, arXiv:2502.16982", decays=True),
}
# fmt: on
"""Optimizers: name -> `OptimizerSpec`.

"momentum" and "caffe" differ after every change of the rate: the second still carries steps of the
old one.
"""


def l2_decay(recipe: Recipe) -> optax.GradientTransformation:
    """Return a transformation that adds `decay * w` to the gradient.

    It acts on the leaves that decay, and never on frozen ones.
    """
    frozen = frozen_stages(recipe.optimizer.lr_multipliers)

    def decays(params: Any) -> Any:
        mask = decay_mask(params, recipe.optimizer.decay_mask)
        if not frozen:
            return mask
        moves = {name: not any(in_stage(name, stage) for stage in frozen) for name in mask}
        return {
            name: jax.tree.map(lambda on, name=name: on and moves[name], subtree)
            for name, subtree in mask.items()
        }

    return optax.add_decayed_weights(recipe.optimizer.weight_decay, decays)


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


# From a Recipe

_FIELDS = (
    "optimizer",
    "method",
    "momentum",
    "decay",
    "decay_on",
    "schedule",
    "factor",
    "warmup_lr",
    "warmup_error",
    "stage_rates",
)
"""Fields of a Recipe that every update depends on."""
_SCHEDULE_FIELDS = {"step": ("drops",), "constant": ()}
"""Further fields by schedule; schedules that are not listed depend on `steps`."""


def create_optimizer(recipe: Recipe) -> optax.GradientTransformationExtraArgs:
    """Return the recipe's optimizer as one optax transformation.

    It adds L2 decay to the gradient, applies the method, and sets the rate by schedule and warm-up.
    Recipes that differ in the rate or the seed only have the same `update`, so a sweep over them
    compiles once.

    Raises:
      ArgumentError: for a name not in `OPTIMIZERS` or `SCHEDULES` (the message has the nearest), or
        an option that the method lacks.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = create_optimizer(Recipe(optimizer="sgd", lr=0.5, decay=0.0))
      >>> params = {"kernel": jnp.ones(())}
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> float(updates["kernel"])
      -0.5
    """
    check_optimizer(recipe)
    check_choice("schedule", recipe.optimizer.schedule, schedules.SCHEDULES)
    names = (*_FIELDS, *_SCHEDULE_FIELDS.get(recipe.optimizer.schedule, ("steps",)))
    # The rate is state, and the seed enters `init` only: the cached update does without them.
    fields: dict[str, Any] = {"drops": ()} | {name: getattr(recipe, name) for name in names}
    update = _cached_update(Recipe(**fields).to_json())
    return optax.GradientTransformationExtraArgs(_transformation(recipe).init, update)


@lru_cache(maxsize=256)
def _cached_update(text):
    return _transformation(Recipe.from_json(text)).update


def _transformation(recipe):
    spec = check_optimizer(recipe)

    def method(rate: jax.Array) -> optax.GradientTransformation:
        tx = spec.make(recipe, rate, **recipe.method)
        return tx if spec.decays else optax.chain(l2_decay(recipe), tx)

    tx = scale_by_scheduled_rate(
        method,
        recipe.lr,
        schedules.SCHEDULES[recipe.schedule](recipe),
        warmup_lr=recipe.warmup_lr,
        warmup_error=recipe.warmup_error,
        plateau=schedules.plateau(recipe),
    )
    return scale_by_stage(tx, recipe.stage_rates)


def optimizer_options(name: str) -> dict[str, Any]:
    """Return the options of `recipe.method` for the optimizer `name`, with defaults.

    Example:
      >>> optimizer_options("adam")
      {'b1': 0.9, 'b2': 0.999}
    """
    parameters = inspect.signature(OPTIMIZERS[name].make).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def check_optimizer(recipe: Recipe) -> OptimizerSpec:
    """Check the recipe's optimizer and its options, and return its spec.

    Raises:
      ArgumentError: for a name or an option that does not exist, or a value out of bounds.
    """
    verify_recipe(recipe)
    options = optimizer_options(check_choice("optimizer", recipe.optimizer.name, OPTIMIZERS))
    averages = "test parameters" in OPTIMIZERS[recipe.optimizer.name].needs
    if averages and set(recipe.optimizer.lr_multipliers.values()) - {0, 1}:
        raise ArgumentError(
            f"stage_rates is {format_value(recipe.optimizer.lr_multipliers)}; {recipe.optimizer.name} averages its "
            "steps and takes rates of 0 and 1 only: write optimizer='momentum', say"
        )
    for name, value in recipe.optimizer.optimizer_kwargs.items():
        if not options:
            raise ArgumentError(
                f"method of {recipe.optimizer.name} is {format_value(name)}; it has no numbers of its own: write method={{}}"
            )
        check_choice(f"method of {recipe.optimizer.name}", name, options)
        is_valid, expected = _bounds(recipe.optimizer.name, name, options[name])
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not is_valid(value):
            raise ArgumentError(
                f"method {name} is {format_value(value)}; expected {expected}: write {options[name]}"
            )
    return OPTIMIZERS[recipe.optimizer.name]


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
