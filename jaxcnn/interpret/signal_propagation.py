"""Signal propagation: responses, gradients and effective ranks, layer by layer.

No list of layer names is needed. Everything here runs operation by operation. Each operation is
compiled once for each shape, for all calls, and the network as a whole never. Only what a network
itself puts into `nn.jit` is compiled in each call. On two CPU cores the gradient of a network of
110 layers takes 3 s this way, where compiling it takes 28 s.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from jaxcnn.arguments import check_integer
from jaxcnn.augment import Normalizer, normalize
from jaxcnn.config import ArgumentError, format_value
from jaxcnn.data import Dataset, Split, verify_images, verify_split
from jaxcnn.losses import Batch, Loss, as_loss, compute_loss, has_class_labels
from jaxcnn.models.calling import call, verify_model
from jaxcnn.state import State, Variables, as_state, eval_state, image_shape_of

T = TypeVar("T")

# ---------------------------------------------------------------- responses


def responses(
    model: nn.Module, variables: Mapping[str, Any], inputs: jax.Array, *, train: bool = False
) -> dict[str, jax.Array]:
    """Return the response of every layer, [b, ..., units] by name.

    A layer is a module with a `kernel` of its own, which is a convolution or a dense layer. Its
    response is the output of the BN that directly takes its output. Without such a BN it is the
    layer's own output. Nonlinearity and addition come later (He et al. 2015, arXiv:1512.03385,
    section 4.2, "Analysis of Layer Responses"). The second call of a layer has the name "name#2".
    A kernel of the network itself has the name of its class.

    Args:
      model: any network, with or without a flag for training.
      variables: {"params": ...} and its other collections.
      inputs: float32 [b, h, w, c], normalized.
      train: BN takes the moments of `inputs` instead of the moving averages, and dropout is active.

    Returns:
      The responses, in the order in which the network computes them.

    Raises:
      ArgumentError: the variables are no dictionary of collections or of another model, or test
        mode draws random numbers.

    Example:
      >>> from jaxcnn import create_model
      >>> model, x = create_model("mlp", 10, hidden=(32, 16)), np.ones((1, 8, 8, 1), np.float32)
      >>> variables = model.init(jax.random.key(0), x)
      >>> {name: y.shape for name, y in responses(model, variables, x).items()}
      {'hidden1': (1, 32), 'hidden2': (1, 16), 'head': (1, 10)}
    """
    verify_model(model)
    if not isinstance(variables, Mapping):
        raise ArgumentError(
            f"variables are of type {type(variables).__name__}; expected a dictionary of "
            'collections. Write {"params": state.params, **state.model_state}.'
        )
    return _run(model, variables, inputs, train)[1]


def _run(model, variables, inputs, train) -> tuple[Any, dict[str, Any]]:
    """Return the network's output and its responses."""
    # In `nn.jit` or `nn.remat` a response is a value of an inner trace. The module stores it.
    # `nn.jit` keeps a program for each set of mutable collections. With a name of its own for each
    # call, its modules are called again, while all else has the programs of earlier calls.
    collection = f"{_RESPONSES}_{next(_numbers)}"
    recorded: dict[str, Any] = {}
    stored: dict[str, tuple[tuple[str, ...], int]] = {}
    counts: Counter[tuple[str, ...]] = Counter()

    def store(module: nn.Module, out: Any) -> tuple[tuple[str, ...], int]:
        module.sow(collection, "outputs", out)
        counts[module.path] += 1
        return module.path, counts[module.path] - 1

    def record(
        run_method: Callable[..., Any],
        args: Any,
        kwargs: Any,
        context: nn.module.InterceptorContext,
    ) -> Any:
        out, module = run_method(*args, **kwargs), context.module
        if context.method_name != "__call__":
            return out
        if module.has_variable("params", "kernel"):
            name = _call_name(module, recorded)
            recorded[name], stored[name] = out, store(module, out)
        elif module.has_variable("batch_stats", "mean"):
            # BN replaces the response that it takes as its input.
            replaced = {
                name: out for name, response in recorded.items() if args and response is args[0]
            }
            if replaced:
                recorded.update(replaced)
                stored.update(dict.fromkeys(replaced, store(module, out)))
        return out

    with nn.intercept_methods(record):
        mutable = [name for name in variables if name != "params"] if train else []
        key = jax.random.PRNGKey(0) if train else None
        output, collections = call(
            model, variables, inputs, train=train, mutable=[*mutable, collection], key=key
        )
    named = {}
    for name, (path, count) in stored.items():
        node: Any = collections.get(collection, {})
        for part in (*path, "outputs"):
            node = node.get(part, {})
        # `nn.scan` and `nn.vmap` hand out no other collections than their own.
        if isinstance(node, tuple) and len(node) > count:
            named[name] = node[count]
    return output, named


_RESPONSES = "jaxcnn_responses"
"""Start of the name of the collection in which modules store their responses."""
_numbers = itertools.count()


def _call_name(module, recorded):
    """Return the module's path, with the number of a repeated call."""
    name = "/".join(module.path) or type(module).__name__
    calls = sum(key.partition("#")[0] == name for key in recorded)
    return f"{name}#{calls + 1}" if calls else name


def map_responses(
    measure: Callable[[np.ndarray], T],
    model: nn.Module,
    state: State | Variables,
    images: np.ndarray,
    *,
    train: bool = False,
    normalizer: Normalizer | Dataset | None = None,
) -> dict[str, T]:
    """Return `measure` of every layer's response to all images together.

    Args:
      measure: any function of a float32 array [n, ..., units], such as `effective_rank`.
      model: the network.
      state: as `train` yields it, or variables, as `load_weights` returns them.
      images: uint8 [n, h, w, c], not augmented.
      train: as in `responses`; all n images are then one batch for BN.
      normalizer: constants of normalization for variables, as in `jaxcnn.state.as_state`. A State
        has its own.

    Returns:
      The results by name, in the network's order.

    Raises:
      ArgumentError: `measure` is no function, or an error of `responses`.
      DataError: `images` do not have the shape or dtype that the state is for.

    Example:
      >>> import optax
      >>> from jaxcnn import TrainConfig, create_model, load_dataset
      >>> from jaxcnn.state import init_state
      >>> data = load_dataset("digits")
      >>> model = create_model("convnet", 10, width=4)
      >>> tx, config = optax.sgd(0.1), TrainConfig()
      >>> state = init_state(model, tx, config, data)
      >>> shapes = map_responses(np.shape, model, state, data.test.images[:5])
      >>> shapes["conv1"], shapes["conv2"], shapes["head"]
      ((5, 8, 8, 4), (5, 4, 4, 8), (5, 10))
    """
    _check_measure(measure)
    state = as_state(model, state, normalizer, images)
    verify_images("images", images, image_shape_of(model, state))
    state = state if train else eval_state(state)
    variables = {"params": state.params, **state.model_state}
    by_layer = responses(model, variables, normalize(images, state.normalizer), train=train)
    return {name: measure(np.asarray(response, np.float32)) for name, response in by_layer.items()}


def _check_measure(measure: Any) -> None:
    if not callable(measure):
        raise ArgumentError(
            f"measure is {format_value(measure)}; expected a function of an array. "
            "Write measure=np.std."
        )


def response_std(
    model: nn.Module,
    state: State | Variables,
    images: np.ndarray,
    *,
    train: bool = False,
    batch_size: int = 500,
    normalizer: Normalizer | Dataset | None = None,
) -> dict[str, float]:
    """Return the standard deviation of each layer's response.

    It is over all images, positions and units together (He et al. 2015, arXiv:1512.03385, figure
    7). Sums over batches are divided once. In test mode `batch_size` changes only memory. In
    training mode BN takes the moments of each batch of consecutive images, of which the last may be
    smaller. Arguments and errors are those of `map_responses`.

    Raises:
      ArgumentError: `batch_size` is not a whole number above 0.

    Example:
      >>> import optax
      >>> from jaxcnn import TrainConfig, create_model, load_dataset
      >>> from jaxcnn.state import init_state
      >>> data = load_dataset("digits")
      >>> model = create_model("plain8", 10, width=4)
      >>> tx, config = optax.sgd(0.1), TrainConfig()
      >>> state = init_state(model, tx, config, data)
      >>> std = response_std(model, state, data.test.images[:100], train=True)
      >>> bool(abs(std["stage3_block1/conv2"] - 1) < 1e-3)  # BN makes it so
      True
    """
    batch_size = check_integer("batch_size", batch_size, example=500)
    state = as_state(model, state, normalizer, images)
    verify_images("images", images, image_shape_of(model, state))
    total: dict[str, np.ndarray] = {}
    for first in range(0, len(images), batch_size):
        chunk = images[first : first + batch_size]
        moments = map_responses(_moments, model, state, chunk, train=train)
        total = {name: sums + total.get(name, 0.0) for name, sums in moments.items()}
    return {name: _std(*sums) for name, sums in total.items()}


def _moments(response: np.ndarray) -> np.ndarray:
    """Return the count, the sum and the sum of squares, in float64."""
    y = response.astype(np.float64)
    return np.array([y.size, y.sum(), np.square(y).sum()])


def _std(n, total, squares) -> float:
    return float(np.sqrt(np.maximum(squares / n - (total / n) ** 2, 0.0)))


# ---------------------------------------------------------------- gradients


def gradient_norms(
    model: nn.Module,
    state: State | Variables,
    images: np.ndarray,
    labels: Any,
    *,
    train: bool = True,
    loss: str | Loss = "cross-entropy",
    normalizer: Normalizer | Dataset | None = None,
) -> dict[str, float]:
    """Return the Euclidean norm of the mean loss's gradient by each kernel.

    All images are one batch. The gradient of weight decay is left out. Values that are not finite
    are returned as they are.

    Args:
      model: the network.
      state: as `train` yields it, or variables. The parameters are those that the optimizer steps,
        not averages.
      images: uint8 [n, h, w, c], not augmented.
      labels: int32 [n], or masks [n, h, w], or what another loss compares with.
      train: True is the optimizer's gradient. BN normalizes by the moments of `images`, through
        which the gradient passes. False normalizes by the moving averages, which are constants.
      loss: a name in `jaxcnn.LOSSES`, or a function.
      normalizer: constants of normalization for variables, as in `jaxcnn.state.as_state`. A State
        has its own.

    Returns:
      The norms by layer, in the network's order and by the names of `responses`.

    Raises:
      ArgumentError: the loss is unknown.
      DataError: an array has another shape or dtype.

    Example:
      >>> import optax
      >>> from jaxcnn import TrainConfig, create_model, load_dataset
      >>> from jaxcnn.state import init_state
      >>> data, model = load_dataset("digits"), create_model("mlp", 10)
      >>> tx, config = optax.sgd(0.1), TrainConfig()
      >>> state = init_state(model, tx, config, data)
      >>> list(gradient_norms(model, state, data.train.images[:64], data.train.labels[:64]))
      ['hidden1', 'hidden2', 'head']
    """
    function = as_loss(loss)
    is_classifier = has_class_labels(function)
    num_classes = getattr(model, "num_classes", None) if is_classifier else None
    state = as_state(model, state, normalizer, images)
    shape = image_shape_of(model, state)
    verify_split("images", Split(images, labels), num_classes, shape, are_classes=is_classifier)
    inputs = normalize(images, state.normalizer)
    batch, order = Batch(inputs, jax.tree.map(jnp.asarray, labels)), []

    def mean_loss(params):
        variables = {"params": params, **state.model_state}
        outputs, by_layer = _run(model, variables, inputs, train)
        order.extend(by_layer)
        return compute_loss(function, outputs, batch)[0].mean()

    norms = kernel_norms(jax.grad(mean_loss)(state.params), model)
    # The model within nn.remat or nn.jit is called by the name of another class.
    own_kernel = [type(model).__name__] if "kernel" in state.params else []
    return {name: norms[name] for name in [*order, *own_kernel] if name in norms}


def kernel_norms(params: Any, model: nn.Module | None = None) -> dict[str, float]:
    """Return the Euclidean norm of each layer's kernel.

    The names are those of `responses`. A tree of gradients gives the norms of the kernels'
    gradients.

    Args:
      params: the tree of parameters.
      model: the network. It names a kernel that belongs to no submodule, which is the network's
        own. Without it such a kernel has the name "".

    Raises:
      ArgumentError: `params` is no dictionary.

    Example:
      >>> params = {"conv": {"kernel": np.float32([3, 4]), "bias": np.float32([9])}}
      >>> kernel_norms({"block": params})
      {'block/conv': 5.0}
    """
    if not isinstance(params, Mapping):
        raise ArgumentError(
            f"params are of type {type(params).__name__}; expected a dictionary of parameters. "
            "Write kernel_norms(state.params)."
        )
    leaves = flatten_dict(params).items()
    kernels = {path[:-1]: leaf for path, leaf in leaves if path[-1] == "kernel"}
    root = "" if model is None else type(model).__name__
    return {
        "/".join(path) or root: float(np.linalg.norm(np.asarray(leaf, np.float64).ravel()))
        for path, leaf in kernels.items()
    }


# ---------------------------------------------------------------- effective rank


def effective_rank(features: np.ndarray) -> float:
    """Return the effective rank of a matrix of features.

    It is exp of the entropy (nats) of the singular values, after division by their sum (Roy and
    Vetterli 2007, "The effective rank", EUSIPCO, definition 1). It is k where k singular values are
    equal and the others 0, and at most min(n, d). The features are not centered, as in Daneshmand
    et al. 2020 (arXiv:2003.01652). Where all images have the same features, it is 1.

    Args:
      features: [n, ...], of n images; the other axes are flattened to length d. The rank is
        computed in float64 from the smaller Gram matrix, so that singular values below 1e-8 of the
        largest are noise.

    Returns:
      A number of at least 1; nan where the features are all 0 or not finite.

    Example:
      >>> round(effective_rank(np.diag([2.0, 2.0, 2.0, 0.0])), 6)
      3.0
      >>> round(effective_rank(np.ones((5, 9))), 6)
      1.0
    """
    matrix = _matrix(features)
    scale = np.abs(matrix).max(initial=0.0)
    if not 0 < scale < np.inf:
        return float("nan")
    # Without this the squares of very large or small numbers would overflow or vanish.
    matrix = matrix / scale
    gram = matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix
    squares = np.linalg.eigvalsh(gram)
    values = np.sqrt(np.maximum(squares, 0.0))
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def similarity(features: np.ndarray) -> float:
    """Return the mean cosine between the features of two different images.

    At 1 all features have the same direction. Layers above can then distinguish images only by the
    length of their features. The result is nan where the features of an image are all 0 or not
    finite.

    Args:
      features: [n, ...] with n > 1.

    Example:
      >>> round(similarity(np.ones((3, 4, 4))), 6), round(similarity(np.eye(3)), 6)
      (1.0, 0.0)
    """
    matrix = _matrix(features)
    with np.errstate(all="ignore"):
        # Without this division the squares of very small numbers would be 0.
        largest = np.abs(matrix).max(1, keepdims=True)
        unit = matrix / largest
        unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    n = len(unit)
    return float((np.square(unit.sum(0)).sum() - n) / (n * (n - 1)))


def _matrix(features: np.ndarray) -> np.ndarray:
    return np.asarray(features, np.float64).reshape(len(features), -1)


def effective_ranks(
    model: nn.Module,
    state: State | Variables,
    images: np.ndarray,
    *,
    train: bool = False,
    normalizer: Normalizer | Dataset | None = None,
) -> dict[str, float]:
    """Return the effective rank of each layer's response to the images.

    It is at most n, the number of images. Layers are in the network's order. Arguments and errors
    are those of `map_responses`.

    Example:
      >>> import optax
      >>> from jaxcnn import TrainConfig, create_model, load_dataset
      >>> from jaxcnn.state import init_state
      >>> data = load_dataset("digits")
      >>> model = create_model("convnet", 10, width=4)
      >>> tx, config = optax.sgd(0.1), TrainConfig()
      >>> state = init_state(model, tx, config, data)
      >>> ranks = effective_ranks(model, state, data.test.images[:20], train=True)
      >>> all(1 <= rank <= 20 for rank in ranks.values())
      True
    """
    return map_responses(effective_rank, model, state, images, train=train, normalizer=normalizer)
