"""The multilayer perceptron, and the activations of small networks with the initialisation that each was derived for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.models.layers import initializer, stage
from jaxcnn.recipe import one_of

ACTIVATIONS: dict[str, tuple[Callable[[jax.Array], jax.Array], str]] = {
    "tanh": (jnp.tanh, "lecun"),
    "sigmoid": (nn.sigmoid, "lecun"),
    "relu": (nn.relu, "he"),
}
"""name -> elementwise function, and the name in `layers.INITS` of the kernels before it.

Sigmoids take N(0, 1/fan_in) (LeCun et al. 1998, "Efficient BackProp", section 4.6), which keeps a sum of standardised
inputs at variance 1; ReLU halves the second moment and takes N(0, 2/fan_in) (He et al. 2015, arXiv:1502.01852, eq. 10).
"""


def activation(name: str) -> tuple[Callable[[jax.Array], jax.Array], str]:
    """The function called `name` and its initialiser's name; RecipeError names the nearest one.

    Example:
      >>> activation("relu")[1]
      'he'
    """
    return ACTIVATIONS[one_of("activation", name, ACTIVATIONS)]


class MLP(nn.Module):
    """Dense layers on the flattened image (Rumelhart, Hinton and Williams 1986); without `hidden`, softmax regression.

    On images of 28x28x1, with 10 classes, the default has 55,050 parameters: fan_in + 1 for each unit.

    Attributes:
      classes: the number of logits.
      hidden: units of each hidden layer, first to last; a list becomes a tuple. () is the linear classifier.
      activation: a name in `ACTIVATIONS`, after every hidden layer.
      kernel_init: a name in `layers.INITS`; None is the activation's own, for the layer of logits as well.
      dtype: of activations; parameters and the layer of logits are float32.
      axis: the mapped axis that splits the batch, set by the drivers; no layer here looks past one example.

    Raises:
      RecipeError: when called, for an unknown `activation` or `kernel_init`.

    Example:
      >>> variables = MLP(classes=10).init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
      >>> sum(p.size for p in jax.tree.leaves(variables["params"]))
      55050
    """

    classes: int
    hidden: Sequence[int] = (64, 64)
    activation: str = "tanh"
    kernel_init: str | None = None
    dtype: Any = jnp.float32
    axis: str | None = None

    def __post_init__(self):
        self.hidden = tuple(self.hidden)  # JSON has lists only, and a module is a key of `fit`'s cache
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, stages: bool = False) -> Any:
        """float32 [b, h, w, c] -> float32 logits [b, classes]; with `stages`, also a dict of outputs."""
        act, own = activation(self.activation)
        init = initializer(self.kernel_init or own)
        x, seen = x.reshape(len(x), -1).astype(self.dtype), {}
        for layer, units in enumerate(self.hidden, 1):
            name = f"hidden{layer}"
            x = stage(self, seen, name, act(nn.Dense(units, dtype=self.dtype, kernel_init=init, name=name)(x)))
        logits = nn.Dense(self.classes, kernel_init=init, name="head")(x.astype(jnp.float32))
        return (logits, seen) if stages else logits
