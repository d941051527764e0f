"""Guided backpropagation, for any network with ReLUs.

The network's program is traced, and evaluated with ReLUs whose gradient is guided.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn, Literal

from jaxcnn import cpu, parallel
from jaxcnn.augment import Normalizer, normalize
from jaxcnn.config import ArgumentError
from jaxcnn.cpu import Replacement, count_matches, rewrite
from jaxcnn.data import Dataset
from jaxcnn.interpret._arguments import logits, prepare_arguments, run_in_batches
from jaxcnn.state import State, Variables, as_state


def guided_backprop(
    model: nn.Module,
    state: State | Variables,
    images: np.ndarray,
    classes: np.ndarray | None = None,
    *,
    batch_size: int | None = None,
    normalizer: Normalizer | Dataset | None = None,
) -> np.ndarray:
    """Return guided gradients of a class's logit, float32 [n, h, w, c].

    Guided backpropagation (Springenberg et al. 2014, arXiv:1412.6806, figure 1). The gradient is by
    the normalized image. At each ReLU it passes only where both it and the ReLU's input are
    positive. Whatever would make a unit smaller is not shown. The patterns come out sharp, but
    depend little on the class (Adebayo et al. 2018, arXiv:1810.03292).

    Any network works without changes. A ReLU is a maximum of a value and the number 0, as in
    `jax.nn.relu` and `relu6`.

    Args:
      model: a network with a ReLU.
      state: as `train` yields it, or variables, as `load_weights` returns them.
      images: uint8 [n, h, w, c].
      classes: int [n], the classes to explain; None takes the predicted ones.
      batch_size: images at a time; None is as many as `_arguments.PIXELS_PER_BATCH` allows.
      normalizer: constants of normalization for variables, as in `jaxcnn.state.as_state`. A State
        has its own.

    Raises:
      ArgumentError: the network has no ReLU, or the classes are invalid (see `gradcam`).
      DataError: `images` do not have the shape or dtype that the state is for.

    Example:
      >>> import optax
      >>> from jaxcnn import TrainConfig, create_model, load_dataset
      >>> from jaxcnn.state import init_state
      >>> data, model = load_dataset("digits"), create_model("convnet", 10)
      >>> tx, config = optax.sgd(0.1), TrainConfig()
      >>> state = init_state(model, tx, config, data)
      >>> guided_backprop(model, state, data.test.images[:3]).shape
      (3, 8, 8, 1)
    """
    state = as_state(model, state, normalizer, images)
    labels = prepare_arguments(model, state, images, classes, batch_size)
    inputs = jax.ShapeDtypeStruct((1, *images.shape[1:]), "float32")
    program = jax.make_jaxpr(lambda state, x: logits(model, state, x))(state, inputs)
    if not count_relus(program):
        name = type(model).__name__
        raise ArgumentError(
            f"{name} has no ReLU to guide a gradient at; use integrated_gradients, which needs none"
        )
    image_index = np.arange(len(images))
    parts = run_in_batches(_guided_gradients(model), state, images, image_index, batch_size, labels)
    return np.concatenate([part for _, part in parts])


@parallel.cached_program
def _guided_gradients(model):
    def guided_gradient(state, image, label):
        def logit(inputs):
            return with_guided_relus(lambda x: logits(model, state, x[None]))(inputs)[0, label]

        return jax.grad(logit)(normalize(image, state.normalizer))

    return jax.jit(cpu.crop_negative_padding(jax.vmap(guided_gradient, (None, 0, 0))))


def with_guided_relus(
    function: Callable[[jax.Array], jax.Array],
) -> Callable[[jax.Array], jax.Array]:
    """Return `function` with the gradient of every ReLU in it guided.

    The function is from one array to one array, and its values do not change.

    Example:
      >>> x = jnp.array([-1.0, 2.0, 3.0])
      >>> out = lambda x: (jnp.array([1.0, 1.0, -1.0]) * jax.nn.relu(x)).sum()
      >>> jax.grad(out)(x).tolist(), jax.grad(with_guided_relus(out))(x).tolist()
      ([0.0, 1.0, -1.0], [0.0, 1.0, 0.0])
    """
    return rewrite(function, _rule)


@jax.custom_vjp
def _relu(x: jax.Array) -> jax.Array:
    return jnp.maximum(x, 0)


def _forward(x):
    return _relu(x), x


def _backward(x, gradient):
    return (jnp.where((x > 0) & (gradient > 0), gradient, 0),)


_relu.defvjp(_forward, _backward)


def count_relus(program: Any) -> int:
    """Return the number of ReLUs in a program, functions within it included.

    Example:
      >>> count_relus(jax.make_jaxpr(lambda x: jax.nn.relu(x) + jnp.tanh(x))(1.0))
      1
    """
    return count_matches(program, _rule)


def _rule(eqn: JaxprEqn) -> Replacement | None:
    """Return the guided ReLU for a ReLU, else None.

    The 0 must be written in the operation itself. Softplus passes its 0 to a function that has a
    maximum of any two numbers, which is no ReLU.
    """
    if eqn.primitive.name != "max":
        return None
    is_zero = [isinstance(v, Literal) and np.ndim(v.val) == 0 and v.val == 0 for v in eqn.invars]
    if sum(is_zero) != 1:
        return None
    return Replacement(lambda *values: _relu(values[is_zero.index(False)]))
