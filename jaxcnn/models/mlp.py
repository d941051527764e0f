"""The multilayer perceptron, and the activations of small networks with the initialisation that each was derived for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.models.initializers import initializer
from jaxcnn.models.layers import stage
from jaxcnn.recipe import check_choice


@jax.custom_jvp
def step(x: jax.Array) -> jax.Array:
    """Heaviside's step, elementwise: 1 above 0, else 0: the unit of McCulloch and Pitts 1943 and of Rosenblatt 1958.

    Its derivative is 0 wherever there is one, so nothing would be learnt below it. A surrogate stands in its place: 1 where
    |x| <= 1, as of a straight line there, and 0 beyond. That is the straight-through estimator of Bengio, Leonard and Courville
    2013 (arXiv:1308.3432, section 4), which passes every gradient, with the cut of Hubara et al. 2016 (arXiv:1602.02830,
    eq. 4): without it units drift away from their threshold, and two hidden layers do worse on MNIST than none. It is no
    gradient of the loss.

    Example:
      >>> x = jnp.array([-2.0, 0.0, 0.5, 3.0])
      >>> step(x).tolist(), jax.grad(lambda x: step(x).sum())(x).tolist()
      ([0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0])
    """
    return (x > 0).astype(x.dtype)


@step.defjvp
def _straight_through(primals, tangents):
    (x,), (tangent,) = primals, tangents
    return step(x), jnp.where(jnp.abs(x) <= 1, tangent, 0)


ACTIVATIONS: dict[str, tuple[Callable[[jax.Array], jax.Array], str]] = {
    "step": (step, "lecun"),
    "tanh": (jnp.tanh, "lecun"),
    "sigmoid": (nn.sigmoid, "lecun"),
    "relu": (nn.relu, "he"),
}
"""name -> elementwise function, and the name in `initializers.INITS` of the kernels before it.

Sigmoids take N(0, 1/fan_in) (LeCun et al. 1998, "Efficient BackProp", section 4.6), which keeps a sum of standardised
inputs at variance 1; ReLU halves the second moment and takes N(0, 2/fan_in) (He et al. 2015, arXiv:1502.01852, eq. 10). A
step's output does not depend on the size of the sum before it, but its surrogate gradient does: it wants sums of about 1, which
N(0, 1/fan_in) gives.
"""


def activation(name: str) -> tuple[Callable[[jax.Array], jax.Array], str]:
    """The function called `name` and its initialiser's name; ArgumentError names the nearest one.

    Example:
      >>> activation("relu")[1]
      'he'
    """
    return ACTIVATIONS[check_choice("activation", name, ACTIVATIONS)]


class MLP(nn.Module):
    """Dense layers on the flattened image (Rumelhart, Hinton and Williams 1986); without `hidden`, softmax regression.

    On images of 28x28x1, with 10 classes, the default has 55,050 parameters: fan_in + 1 for each unit.

    `build("perceptron", 10)` is the one without `hidden`. It decides as a layer of Rosenblatt's perceptrons does ("The
    perceptron", Psychological Review 65, 1958): by the greatest of the classes' linear sums, for two classes a `step` of their
    difference. It is not trained as his: his rule adds the image to the weights of the right class, and takes it from those of
    the wrong one, after a mistake alone; here the cross-entropy of the softmax falls by gradient descent, after every image.

    Attributes:
      classes: the number of logits.
      hidden: units of each hidden layer, first to last; a list becomes a tuple. () is the linear classifier, `perceptron`.
      activation: a name in `ACTIVATIONS`, after every hidden layer.
      kernel_init: a name in `initializers.INITS`; None is the activation's own, for the layer of logits as well.
      dtype: of activations; parameters and the layer of logits are float32.
      axis: the mapped axis that splits the batch, set by the strategies; no layer here looks past one example.

    Raises:
      ArgumentError: when called, for an unknown `activation` or `kernel_init`.

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
        self.hidden = tuple(self.hidden)  # JSON has lists only, and a module is a key of `train`'s cache
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
