"""Optimisers as a table: name -> how optax makes it from a Recipe and a rate, its grid of rates, what it needs, its paper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from optax import contrib

from jaxcnn.optim.adapters import lookahead, noise, only, prodigy
from jaxcnn.optim.stages import frozen_stages, in_stage
from jaxcnn.recipe import Recipe


class OptimizerSpec(NamedTuple):
    """An optimiser by name."""

    make: Callable[..., optax.GradientTransformation]
    """`make(recipe, rate, **recipe.method)`; the rate is a float32 [] array, traced."""
    grid: tuple[float, ...]
    """Five rates to tune over, half a decade apart."""
    source: str
    needs: tuple[str, ...] = ()
    """What it asks for beside the gradient: "value" (the loss), "key" (randomness), "gradient" (a second one on the same batch)
    or "test parameters" (it is judged at others than it trains at)."""
    decays: bool = False
    """Whether it applies `recipe.decay` itself (decoupled from the gradient, or inside the method). Otherwise decay is L2:
    `decay * w` joins the gradient before the method sees it."""


def _noisy(recipe, rate, *, eta=0.01, gamma=0.55):
    # Its own stream of the seed: the noise joins the averaged gradient, the same on every device.
    key = jax.random.fold_in(jax.random.PRNGKey(recipe.seed), NOISE)
    return optax.chain(noise(eta, gamma, key), optax.sgd(rate))


NOISE = 0x4E
"""Folded into the seed's key for the noise; `jaxcnn.state` numbers its streams from 0."""


def _clipped(recipe, rate, *, norm=1.0):
    return optax.chain(optax.clip_by_global_norm(norm), optax.sgd(rate, recipe.momentum))


def _caffe(recipe, rate):
    return optax.chain(optax.scale_by_learning_rate(rate), optax.trace(recipe.momentum))


def _sam(recipe, rate, *, rho=0.05):
    outer = optax.chain(l2(recipe), optax.sgd(rate, recipe.momentum))
    # Not contrib.normalize, which makes a gradient of 0 into NaN.
    climb = optax.chain(optax.normalize_by_update_norm(eps=1e-12), optax.sgd(rho))
    return only(contrib.sam(outer, climb, opaque_mode=True), "grad_fn")


def _muon(recipe, rate, *, beta=0.95):
    # consistent_rms makes an orthogonalised step as large as AdamW's, so that one rate serves both (arXiv:2502.16982, 2.2).
    return contrib.muon(
        rate,
        beta=beta,
        weight_decay=recipe.decay,
        weight_decay_mask=lambda params: decay_mask(params, recipe.decay_on),
        adam_weight_decay=recipe.decay if recipe.decay_on == "all" else 0.0,
        muon_weight_dimension_numbers=_matrices,
        consistent_rms=0.2,
    )


def _matrices(params):
    """Every kernel is a matrix from its window and input channels to its output channels; the rest is left to Adam."""

    def numbers(path, leaf):
        if path[-1].key != "kernel":
            return None
        return contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(numbers, params)


def _masked(recipe):
    return {"weight_decay": recipe.decay, "mask": lambda params: decay_mask(params, recipe.decay_on)}


def _lars(recipe, rate, *, trust=0.02):
    decays: Any = lambda params: decay_mask(params, recipe.decay_on)  # noqa: E731
    return optax.lars(rate, recipe.decay, decays, trust, trust_ratio_mask=decays, momentum=recipe.momentum)


def _prodigy(recipe, rate, *, d0=1e-6):
    return prodigy(rate, d0, recipe.decay, lambda params: decay_mask(params, recipe.decay_on))


def _schedule_free(recipe, rate, *, b1=0.9):
    return contrib.schedule_free(optax.sgd(rate), rate, b1=b1)


TINY, SMALL, MIDDLE = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2), (3e-4, 1e-3, 3e-3, 1e-2, 3e-2), (1e-3, 3e-3, 0.01, 0.03, 0.1)
LARGE, PLAIN, BOUND = (0.003, 0.01, 0.03, 0.1, 0.3), (0.01, 0.03, 0.1, 0.3, 1.0), (0.03, 0.1, 0.3, 1.0, 3.0)

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
"""name -> method. "momentum" and "caffe" differ after every change of the rate: the second still carries steps of the old one.
"""


def l2(recipe: Recipe) -> optax.GradientTransformation:
    """`decay * w` added to the gradient of the leaves that decay, frozen ones never."""
    still = frozen_stages(recipe.stage_rates)

    def decays(params: Any) -> Any:
        mask = decay_mask(params, recipe.decay_on)
        if not still:
            return mask
        moves = {name: not any(in_stage(name, stage) for stage in still) for name in mask}
        return {name: jax.tree.map(lambda on, name=name: on and moves[name], part) for name, part in mask.items()}

    return optax.add_decayed_weights(recipe.decay, decays)


def decay_mask(params: Any, on: str) -> Any:
    """Which leaves of `params` decay: "convs" ([h, w, i, o] kernels), "kernels" (dense ones too) or "all".

    Returns a tree of booleans like `params`.
    """

    def decays(path, leaf):
        kernel = path[-1].key == "kernel"
        return {"convs": kernel and leaf.ndim == 4, "kernels": kernel, "all": True}[on]

    return jax.tree_util.tree_map_with_path(decays, params)
