"""Batch normalization seen from outside: frozen stages keep their moving averages, and moments of a batch are read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax

from jaxcnn.models.layers import BatchNorm

NORMS = (BatchNorm, nn.BatchNorm)
Path = tuple[str, ...]


@contextlib.contextmanager
def norms_held(holds: Callable[[str], bool], found: set[Path] | None = None) -> Iterator[None]:
    """Within it, the BN of every top-level module whose name `holds` normalises by its moving averages, and keeps them.

    A frozen stage trained on few pictures would otherwise answer by the batch in training and by other averages in test.
    Both our `BatchNorm` and flax's are meant; `found` gets the paths of those that were held.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxcnn.models import create_model
      >>> model, images = create_model("resnet8", 10), jnp.ones((4, 8, 8, 3))
      >>> variables = model.init(jax.random.key(0), images)
      >>> with norms_held(lambda name: name.startswith("stem")):
      ...     _, new = model.apply(variables, images, train=True, mutable=["batch_stats"])
      >>> moved = {name: bool((part["mean"] != 0).any()) for name, part in new["batch_stats"].items() if "mean" in part}
      >>> moved
      {'stem_norm': False}
    """

    def held(norm: Any, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if not holds(norm.path[0]):
            return call(*args, **kwargs)
        if isinstance(norm, BatchNorm):
            return call(args[0] if args else kwargs["x"], train=False)
        given = dict(zip(("x", "use_running_average"), args, strict=False)) | kwargs | {"use_running_average": True}
        with _changed(norm, use_running_average=None):  # flax refuses the mode as a field and as an argument at once
            return call(**given)

    with _norms(held, found, holds):
        yield


@contextlib.contextmanager
def batch_moments(found: set[Path] | None = None) -> Iterator[None]:
    """Within it, the new moving averages of every BN are the moments of the batch; `found` gets the paths of the BNs."""

    def read(norm: Any, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        with _changed(norm, momentum=0.0):
            return call(*args, **kwargs)

    with _norms(read, found, lambda _: True):
        yield


@contextlib.contextmanager
def _norms(act: Callable[..., Any], found: set[Path] | None, holds: Callable[[str], bool]) -> Iterator[None]:
    def interceptor(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        norm = context.module
        if not isinstance(norm, NORMS) or context.method_name != "__call__" or not norm.path:
            return call(*args, **kwargs)
        if found is not None and holds(norm.path[0]):
            found.add(norm.path)
        return act(norm, call, args, kwargs)

    with nn.intercept_methods(interceptor):
        yield


@contextlib.contextmanager
def _changed(module: nn.Module, **fields: Any) -> Iterator[None]:
    before = {name: getattr(module, name) for name in fields}
    for name, value in fields.items():
        object.__setattr__(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            object.__setattr__(module, name, value)


def other_statistics(stats: Mapping[str, Any], norms: set[Path], holds: Callable[[str], bool]) -> str | None:
    """Return the first leaf of `stats` under a module that `holds` and outside the BNs at `norms`, or None.

    Example:
      >>> other_statistics({"batch_stats": {"stem": {"bn": {"mean": 0}, "seen": 1}}}, {("stem", "bn")}, lambda _: True)
      'batch_stats.stem.seen'
    """
    for path, _ in jax.tree_util.tree_leaves_with_path(dict(stats)):
        names = tuple(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)
        if len(names) > 1 and holds(names[1]) and not any(names[1 : 1 + len(norm)] == norm for norm in norms):
            return ".".join(names)
    return None
