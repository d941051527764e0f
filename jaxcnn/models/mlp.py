"""Multilayer perceptron, and the activations of small networks.

Each activation has the name of the initialization that was derived for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.config import check_choice
from jaxcnn.models.initializers import initializer
from jaxcnn.models.layers import stage


@jax.custom_jvp
def heaviside(x: jax.Array) -> jax.Array:
    """Return Heaviside's step, 1 above 0, else 0, elementwise.

    It is the unit of McCulloch and Pitts 1943 and of Rosenblatt 1958. Its derivative is 0 wherever
    it exists, so layers below it would not be trained. A surrogate replaces the derivative: 1
    where |x| <= 1, the slope of a straight line there, and 0 beyond. The surrogate is the
    straight-through estimator of Bengio, Leonard and Courville 2013 (arXiv:1308.3432, section 4)
    with the cut of Hubara et al. 2016 (arXiv:1602.02830, eq. 4). The former passes every gradient.
    Without the cut, units drift away from their threshold, and two hidden layers do worse on MNIST
    than none. The surrogate is not a gradient of the loss.

    Example:
      >>> x = jnp.array([-2.0, 0.0, 0.5, 3.0])
      >>> heaviside(x).tolist(), jax.grad(lambda x: heaviside(x).sum())(x).tolist()
      ([0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0])
    """
    return (x > 0).astype(x.dtype)


@heaviside.defjvp
def _straight_through(primals, tangents):
    (x,), (tangent,) = primals, tangents
    return heaviside(x), jnp.where(jnp.abs(x) <= 1, tangent, 0)


ACTIVATIONS: dict[str, tuple[Callable[[jax.Array], jax.Array], str]] = {
    "step": (heaviside, "lecun"),
    "tanh": (jnp.tanh, "lecun"),
    "sigmoid": (nn.sigmoid, "lecun"),
    "relu": (nn.relu, "he"),
}
"""Activations by name.

Each is an elementwise function and the initializer of the kernels before it, a name in
`initializers.INITS`. Sigmoids take N(0, 1/fan_in) (LeCun et al. 1998, "Efficient BackProp", section
4.6), which keeps a sum of standardized inputs at variance 1. ReLU halves the second moment and
takes N(0, 2/fan_in) (He et al. 2015, arXiv:1502.01852, eq. 10). A step's output does not depend on
the size of the sum before it, but its surrogate gradient does. It needs sums of about 1, which N(0,
1/fan_in) gives.
"""


def activation(name: str) -> tuple[Callable[[jax.Array], jax.Array], str]:
    """Return the activation called `name` and the name of its initializer.

    Raises:
      ArgumentError: for an unknown name; the message has the nearest one.

    Example:
      >>> activation("relu")[1]
      'he'
    """
    return ACTIVATIONS[check_choice("activation", name, ACTIVATIONS)]


class MLP(nn.Module):
    """Dense layers on the flattened image (Rumelhart, Hinton and Williams 1986).

    Without `hidden` it is softmax regression. On images of 28x28x1, with 10 classes, the default
    has 55,050 parameters: fan_in + 1 for each unit.

    `create_model("perceptron", 10)` is the one without `hidden`. It decides as a layer of
    Rosenblatt's perceptrons does ("The perceptron", Psychological Review 65, 1958), by the greatest
    of the classes' linear sums. For two classes that is `heaviside` of their difference. The
    training differs. Rosenblatt's rule acts after a mistake only: it adds the image to the weights
    of the right class, and subtracts it from those of the wrong one. Here the cross-entropy of the
    softmax falls by gradient descent, after every image.

    Attributes:
      num_classes: number of logits.
      hidden: units of each hidden layer, first to last; a list becomes a tuple. () is the linear
        classifier, `perceptron`.
      activation: a name in `ACTIVATIONS`, after every hidden layer.
      kernel_init: a name in `initializers.INITS`; None is the activation's own, for the layer of
        logits as well.
      dtype: of activations; parameters and the layer of logits are float32.
      axis_name: the mapped axis that splits the batch, set by the strategies. No layer here looks
        past one example.

    Raises:
      ArgumentError: when called, for an unknown `activation` or `kernel_init`.

    Example:
      >>> model, image = MLP(num_classes=10), jnp.zeros((1, 28, 28, 1))
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), image)
      >>> sum(p.size for p in jax.tree.leaves(variables["params"]))
      55050
    """

    num_classes: int
    hidden: Sequence[int] = (64, 64)
    activation: str = "tanh"
    kernel_init: str | None = None
    dtype: Any = jnp.float32
    axis_name: str | None = None

    def __post_init__(self):
        # JSON has lists only, and a module is a key of `train`'s cache.
        self.hidden = tuple(self.hidden)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, stages: bool = False) -> Any:
        """Map float32 [b, h, w, c] to float32 logits [b, num_classes].

        With `stages`, return a dict of outputs too.
        """
        act, default_init = activation(self.activation)
        init = initializer(self.kernel_init or default_init)
        x, outputs = x.reshape(len(x), -1).astype(self.dtype), {}
        for layer, units in enumerate(self.hidden, 1):
            name = f"hidden{layer}"
            dense = nn.Dense(units, dtype=self.dtype, kernel_init=init, name=name)
            x = stage(self, outputs, name, act(dense(x)))
        logits = nn.Dense(self.num_classes, kernel_init=init, name="head")(x.astype(jnp.float32))
        return (logits, outputs) if stages else logits
