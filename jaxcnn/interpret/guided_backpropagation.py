"""Guided backpropagation, of any network with ReLUs: its program is read, and evaluated with other ones in their place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn, Literal

from jaxcnn import parallel
from jaxcnn.augment import normalize
from jaxcnn.cpu.rewriting import Replacement, count_matches, rewrite
from jaxcnn.interpret._arguments import logits, prepare_arguments, run_in_batches
from jaxcnn.recipe import ArgumentError
from jaxcnn.state import State


def guided_backprop(
    model: nn.Module,
    state: State,
    images: np.ndarray,
    classes: np.ndarray | None = None,
    *,
    batch: int | None = None,
) -> np.ndarray:
    """Guided gradients, float32 [n, h, w, c], of the class's logit by the normalised image (Springenberg et al. 2014).

    At each ReLU the gradient goes on only where both it and the ReLU's input are positive (arXiv:1412.6806, figure 1): what
    would make a unit smaller is not shown. The patterns come out sharp, but say little of which class they speak for (Adebayo
    et al. 2018, arXiv:1810.03292).

    Any network does, as it is: a ReLU is a maximum of something and the number 0, such as in `jax.nn.relu` and `relu6`.

    Args:
      model: a network with a ReLU.
      state: as `train` yields it.
      images: uint8 [n, h, w, c].
      classes: int [n], the classes asked about; None asks for what is predicted.
      batch: images at a time; None is as many as `asking.PIXELS` allows.

    Raises:
      ArgumentError: for a network without ReLU; for classes as in `gradcam`.
      DataError: for other images.

    Example:
      >>> from jaxcnn import Recipe, create_model, load_dataset, create_optimizer
      >>> from jaxcnn.state import init_state
      >>> data, model, recipe = load_dataset("digits"), create_model("convnet", 10), Recipe(dataset="digits", model="convnet")
      >>> guided_backprop(model, init_state(model, create_optimizer(recipe), recipe, data), data.test.images[:3]).shape
      (3, 8, 8, 1)
    """
    labels = prepare_arguments(model, state, images, classes, batch)
    inputs = jax.ShapeDtypeStruct((1, *images.shape[1:]), "float32")
    program = jax.make_jaxpr(lambda state, x: logits(model, state, x))(state, inputs)
    if not relus(program):
        name = type(model).__name__
        raise ArgumentError(f"{name} has no ReLU to guide a gradient at; use integrated_gradients, which needs none")
    found = run_in_batches(_slopes(model), state, images, np.arange(len(images)), batch, labels)
    return np.concatenate([slopes for _, slopes in found])


@parallel.cached_program
def _slopes(model):
    def one(state, image, label):
        def logit(inputs):
            return guided(lambda x: logits(model, state, x[None]))(inputs)[0, label]

        return jax.grad(logit)(normalize(image, state.normalizer))

    return jax.jit(jax.vmap(one, (None, 0, 0)))


def guided(function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """`function`, from one array to one array, with the same values but the gradient of every ReLU in it guided.

    Example:
      >>> x = jnp.array([-1.0, 2.0, 3.0])
      >>> out = lambda x: (jnp.array([1.0, 1.0, -1.0]) * jax.nn.relu(x)).sum()
      >>> jax.grad(out)(x).tolist(), jax.grad(guided(out))(x).tolist()
      ([0.0, 1.0, -1.0], [0.0, 1.0, 0.0])
    """

    return rewrite(function, _rule)


@jax.custom_vjp
def _relu(x: jax.Array) -> jax.Array:
    return jnp.maximum(x, 0)


def _forward(x):
    return _relu(x), x


def _backward(x, slope):
    return (jnp.where((x > 0) & (slope > 0), slope, 0),)


_relu.defvjp(_forward, _backward)


def relus(program: Any) -> int:
    """How many are written in a program, those in functions within it included.

    Example:
      >>> relus(jax.make_jaxpr(lambda x: jax.nn.relu(x) + jnp.tanh(x))(1.0))
      1
    """
    return count_matches(program, _rule)


def _rule(eqn: JaxprEqn) -> Replacement | None:
    """In a ReLU's place, the one with the other gradient, of what it is applied to.

    The 0 must be written in the operation itself: softplus hands its 0 to a function that has a maximum of any two numbers.
    """
    if eqn.primitive.name != "max":
        return None
    zero = [isinstance(v, Literal) and np.ndim(v.val) == 0 and v.val == 0 for v in eqn.invars]
    return Replacement(lambda *values: _relu(values[zero.index(False)])) if sum(zero) == 1 else None
