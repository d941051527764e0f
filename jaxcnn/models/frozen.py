"""Frozen stages of a network: their BN works as in test while the rest is trained."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn

from jaxcnn.models.layers import BatchNorm


@contextlib.contextmanager
def norms_held(holds: Callable[[str], bool]) -> Iterator[None]:
    """Within it, `BatchNorm`s under a top-level module whose name `holds` normalise by their moving averages, and keep them.

    A frozen stage trained on few pictures would otherwise answer by the batch in training and by other averages in test.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxcnn.models import build
      >>> model, images = build("resnet8", 10), jnp.ones((4, 8, 8, 3))
      >>> variables = model.init(jax.random.key(0), images)
      >>> with norms_held(lambda name: name.startswith("stem")):
      ...     _, new = model.apply(variables, images, train=True, mutable=["batch_stats"])
      >>> moved = {name: bool((part["mean"] != 0).any()) for name, part in new["batch_stats"].items() if "mean" in part}
      >>> moved
      {'stem_norm': False}
    """

    def interceptor(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        norm = isinstance(context.module, BatchNorm) and context.method_name == "__call__"
        if norm and holds(context.module.path[0]):
            return call(args[0], train=False)
        return call(*args, **kwargs)

    with nn.intercept_methods(interceptor):
        yield
