"""What each layer of a network answers, and how large its gradient is: layer by layer, without a list of names.

Everything here runs operation by operation: each is compiled once for each shape, and the network as a whole never. On two CPU
cores the gradient of a network of 110 layers so takes 3 s, where compiling it takes 28 s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from jaxcnn import metrics
from jaxcnn.augment import normalize
from jaxcnn.data import Split, verify_images, verify_split
from jaxcnn.evaluation import outputs_and_targets
from jaxcnn.recipe import check_choice
from jaxcnn.state import State, eval_state, image_shape_of

T = TypeVar("T")


def responses(
    model: nn.Module, variables: Mapping[str, Any], inputs: jax.Array, *, train: bool = False
) -> dict[str, jax.Array]:
    """The response of every layer, in the order in which the network computes them: [b, ..., units] by name.

    A layer is a module with a `kernel` of its own: a convolution or a dense layer. Its response is the output of the BN that
    takes its output as it is, and its own output where there is no such BN; nonlinearity and addition come later (He et al.
    2015, arXiv:1512.03385, section 4.2, "Analysis of Layer Responses"). A layer called a second time is "name#2".

    Args:
      model: the network.
      variables: {"params": ...} and its other collections.
      inputs: float32 [b, h, w, c], normalised.
      train: BN takes the moments of `inputs` (and dropout drops) instead of the moving averages.

    Example:
      >>> from jaxcnn import create_model
      >>> model, x = create_model("mlp", 10, hidden=(32, 16)), np.ones((1, 8, 8, 1), np.float32)
      >>> {name: y.shape for name, y in responses(model, model.init(jax.random.key(0), x), x).items()}
      {'hidden1': (1, 32), 'hidden2': (1, 16), 'head': (1, 10)}
    """
    return _run(model, variables, inputs, train)[1]


def _run(model, variables, inputs, train) -> tuple[Any, dict[str, Any]]:
    """The network's output and its responses."""
    seen: dict[str, Any] = {}

    def note(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        out, module = call(*args, **kwargs), context.module
        if context.method_name != "__call__":
            return out
        if module.has_variable("params", "kernel"):
            seen[_name(module, seen)] = out
        elif module.has_variable("batch_stats", "mean"):
            seen.update({name: out for name, response in seen.items() if args and response is args[0]})
        return out

    with nn.intercept_methods(note):
        if not train:
            return model.apply(variables, inputs, train=False), seen
        mutable, rngs = [name for name in variables if name != "params"], {"dropout": jax.random.PRNGKey(0)}
        return model.apply(variables, inputs, train=True, mutable=mutable, rngs=rngs)[0], seen


def _name(module, seen):
    name = "/".join(module.path) or type(module).__name__
    calls = sum(other.partition("#")[0] == name for other in seen)
    return f"{name}#{calls + 1}" if calls else name


def map_responses(
    measure: Callable[[np.ndarray], T], model: nn.Module, state: State, images: np.ndarray, *, train: bool = False
) -> dict[str, T]:
    """`measure` of every layer's response to all images at once, float32 [n, ..., units], by name in the network's order.

    Args:
      measure: any function of an array, such as `effective_rank`.
      model: the network.
      state: as `train` yields it.
      images: uint8 [n, h, w, c], not augmented.
      train: as in `responses`; all n images are then one batch for BN.

    Raises:
      DataError: for other images.

    Example:
      >>> from jaxcnn import Recipe, create_model, load_dataset, create_optimizer
      >>> from jaxcnn.state import init_state
      >>> data = load_dataset("digits")
      >>> model = create_model("plain8", 10, width=4)
      >>> recipe = Recipe(dataset="digits", model="plain8")
      >>> state = init_state(model, create_optimizer(recipe), recipe, data)
      >>> shapes = map_responses(np.shape, model, state, data.test.images[:5])
      >>> shapes["stem"], shapes["stage3_block1/conv2"], shapes["head"]
      ((5, 8, 8, 4), (5, 2, 2, 16), (5, 10))
    """
    verify_images("images", images, image_shape_of(model, state))
    state = state if train else eval_state(state)
    seen = responses(
        model, {"params": state.params, **state.model_state}, normalize(images, state.normalizer), train=train
    )
    return {name: measure(np.asarray(response, np.float32)) for name, response in seen.items()}


def response_std(
    model: nn.Module, state: State, images: np.ndarray, *, train: bool = False, batch: int = 500
) -> dict[str, float]:
    """The standard deviation of each layer's response, over all images, places and units together (figure 7 of the paper).

    Sums over batches are divided once, so that `batch` changes memory alone; but in training mode BN takes the moments of each
    batch of consecutive images, of which the last may be smaller. Arguments and errors as in `map_responses`.

    Example:
      >>> from jaxcnn import Recipe, create_model, load_dataset, create_optimizer
      >>> from jaxcnn.state import init_state
      >>> data = load_dataset("digits")
      >>> model = create_model("plain8", 10, width=4)
      >>> recipe = Recipe(dataset="digits", model="plain8")
      >>> state = init_state(model, create_optimizer(recipe), recipe, data)
      >>> std = response_std(model, state, data.test.images[:100], train=True)
      >>> bool(abs(std["stage3_block1/conv2"] - 1) < 1e-3)  # BN makes it so
      True
    """
    verify_images("images", images, image_shape_of(model, state))
    total: dict[str, np.ndarray] = {}
    for first in range(0, len(images), batch):
        found = map_responses(_moments, model, state, images[first : first + batch], train=train)
        total = {name: sums + total.get(name, 0.0) for name, sums in found.items()}
    return {name: _deviation(*sums) for name, sums in total.items()}


def _moments(response: np.ndarray) -> np.ndarray:
    """Number, sum and sum of squares, in float64."""
    y = response.astype(np.float64)
    return np.array([y.size, y.sum(), np.square(y).sum()])


def _deviation(n, total, squares) -> float:
    return float(np.sqrt(np.maximum(squares / n - (total / n) ** 2, 0.0)))


def gradient_norms(
    model: nn.Module,
    state: State,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    train: bool = True,
    loss: str = "cross-entropy",
) -> dict[str, float]:
    """The Euclidean norm of the gradient of the mean loss by each layer's kernel, by name in the network's order.

    All images are one batch. The decay's part of the gradient is left out. What is not finite stays so.

    Args:
      model: the network.
      state: as `train` yields it; the parameters that the optimiser moves are meant.
      images: uint8 [n, h, w, c], not augmented.
      labels: int32 [n], or masks [n, h, w].
      train: True, as the optimiser sees it: BN normalises by the moments of `images`, through which the gradient goes too.
        False: by the moving averages, which are constants.
      loss: a name in `jaxcnn.metrics.LOSSES`.

    Raises:
      ArgumentError, DataError: for an unknown loss, or arrays of another shape or type.

    Example:
      >>> from jaxcnn import Recipe, create_model, load_dataset, create_optimizer
      >>> from jaxcnn.state import init_state
      >>> data, model, recipe = load_dataset("digits"), create_model("mlp", 10), Recipe(dataset="digits", model="mlp")
      >>> state = init_state(model, create_optimizer(recipe), recipe, data)
      >>> list(gradient_norms(model, state, data.train.images[:64], data.train.labels[:64]))
      ['hidden1', 'hidden2', 'head']
    """
    check_choice("loss", loss, metrics.LOSSES)
    verify_split("images", Split(images, labels), getattr(model, "classes", None), image_shape_of(model, state))
    inputs, target, order = normalize(images, state.normalizer), jnp.asarray(labels), []

    def mean(params):
        outputs, seen = _run(model, {"params": params, **state.model_state}, inputs, train)
        order.extend(seen)
        return metrics.LOSSES[loss](*outputs_and_targets(outputs, inputs, target, loss)).mean()

    norms = kernel_norms(jax.grad(mean)(state.params))
    return {name: norms[name] for name in order if name in norms}


def kernel_norms(params: Any) -> dict[str, float]:
    """The Euclidean norm of each layer's kernel, by the names of `responses`; or of its gradient, given a tree of these.

    Example:
      >>> kernel_norms({"block": {"conv": {"kernel": np.float32([3, 4]), "bias": np.float32([9])}}})
      {'block/conv': 5.0}
    """
    flat = {path[:-1]: leaf for path, leaf in flatten_dict(params).items() if path[-1] == "kernel"}
    return {"/".join(path): float(np.linalg.norm(np.asarray(leaf, np.float64).ravel())) for path, leaf in flat.items()}
