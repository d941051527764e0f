"""Loss landscape: a loss on lines and planes in parameter space.

The lines and planes are around a network, or along its training. Li et al. 2018, "Visualizing the
Loss Landscape of Neural Nets" (arXiv:1712.09913).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from jaxcnn import metrics, parallel
from jaxcnn.augment import Normalizer, normalize
from jaxcnn.config import ArgumentError, check_choice
from jaxcnn.data import Dataset, Split, verify_split
from jaxcnn.evaluation import make_eval_step, metrics_of, resolve_batch_size
from jaxcnn.input_pipeline import gather_batch, input_pipeline
from jaxcnn.losses import Batch, Loss, as_loss, compute_loss, has_class_labels
from jaxcnn.state import State, Variables, as_state, eval_state

# ---------------------------------------------------------------- random directions


def random_direction(key: jax.Array, params: Any) -> Any:
    """Return a Gaussian direction, normalized by filter.

    The normalization makes networks comparable (Li et al. 2018, arXiv:1712.09913, section 4). Each
    filter of the direction d has the norm of that filter of `params`: d_ij |w_ij| / |d_ij|. A
    filter holds the weights of one output channel of a convolution, or of one unit of a dense
    layer. The last axis counts them. Leaves of one axis or none (biases, and BN's scale and shift)
    are 0, as in the authors' code (`--xignore biasbn`). Two directions are drawn independently, and
    are not made orthogonal; see `cosine_similarity`.

    Args:
      key: random key; the same key gives the same direction.
      params: a tree of float32, kernels [..., out].

    Returns:
      A tree like `params`, float32, on the host. One step along it changes every filter by its own
      norm.

    Raises:
      ArgumentError: no leaf has two axes or more.

    Example:
      >>> params = {"kernel": np.float32([[3, 0], [4, 1]]), "bias": np.float32([1, 1])}
      >>> step = random_direction(jax.random.key(0), params)
      >>> np.linalg.norm(step["kernel"], axis=0).round(5).tolist(), step["bias"].tolist()
      ([5.0, 1.0], [0.0, 0.0])
    """
    leaves, tree = jax.tree.flatten(params)
    sizes = [np.size(leaf) if np.ndim(leaf) > 1 else 0 for leaf in leaves]
    if not any(sizes):
        raise ArgumentError(
            "params holds no kernel; expected at least one array [..., out] of two axes or more"
        )
    # One draw for all leaves needs one compilation, not one for every shape.
    noise = np.asarray(jax.random.normal(key, (sum(sizes),), "float32"), np.float64)
    parts = np.split(noise, np.cumsum(sizes)[:-1])
    return tree.unflatten(
        [_scale_filters(part, np.asarray(leaf)) for part, leaf in zip(parts, leaves, strict=True)]
    )


def _scale_filters(noise: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return noise in the shape of the weights, with their filters' norms.

    It is 0 everywhere for an empty `noise`.
    """
    if not noise.size:
        return np.zeros(weights.shape, np.float32)
    noise, axes = noise.reshape(weights.shape), tuple(range(weights.ndim - 1))
    weight_norms, noise_norms = (
        np.sqrt(np.square(array, dtype=np.float64).sum(axes)) for array in (weights, noise)
    )
    return (noise * (weight_norms / noise_norms)).astype(np.float32)


def cosine_similarity(a: Any, b: Any) -> float:
    """Return the cosine of the angle between two trees, as vectors.

    Both have one shape.

    Its size is about 1 / sqrt(d) for random trees with d entries, which are nearly orthogonal (the
    paper's section 4).

    Example:
      >>> cosine_similarity({"w": np.float32([3, 4])}, {"w": np.float32([0, 2])})
      0.8
    """
    return _dot(a, b) / math.sqrt(_dot(a, a) * _dot(b, b))


def _dot(a, b) -> float:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return math.fsum(float(np.vdot(np.float64(x), np.float64(y))) for x, y in pairs)


# ---------------------------------------------------------------- plane of a training path

MIN_VARIANCE_SHARE = 1e-12
"""Share of the variance below which a component is rounding."""


class PCAPlane(NamedTuple):
    """Two directions through the last state, and the path in their plane.

    Attributes:
      directions: trees like the parameters, float32, of length 1 and orthogonal. The coordinates of
        the start are not negative.
      explained: share of the path's variance along each direction, float64 [2].
      path: states in the plane, float64 [t, 2]; the last is at (0, 0). The unit is the Euclidean
        distance.
    """

    directions: tuple[Any, Any]
    explained: np.ndarray
    path: np.ndarray


def pca_plane(states: Sequence[State]) -> PCAPlane:
    """Return the first two principal components of theta_i - theta_n.

    This is section 7.2 of Li et al. 2018 (arXiv:1712.09913). All parameters count, BN's scales and
    shifts too, but not BN's moving averages. A loss in this plane uses the averages of one state,
    or none (see `evaluate_along`, `statistics`). The differences are centered first, as in the
    authors' code. The components are computed from the t x t inner products.

    Args:
      states: at least three, of one network; the last of them is the plane's origin.

    Raises:
      ArgumentError: there are fewer states, or all lie on one line or on one point, and there is no
        plane.

    Example:
      >>> import optax
      >>> from jaxcnn import TrainConfig, create_model, load_dataset
      >>> from jaxcnn.state import init_state
      >>> tx, config, data = optax.sgd(0.1), TrainConfig(), load_dataset("digits")
      >>> state = init_state(create_model("mlp", 10), tx, config, data)
      >>> def moved(x, y):
      ...     kernel = state.params["head"]["kernel"].copy()
      ...     kernel[0, :2] += np.float32([x, y])
      ...     params = {**state.params, "head": {**state.params["head"], "kernel": kernel}}
      ...     return state._replace(params=params)
      >>> plane = pca_plane([moved(4, 0), moved(2, 1), moved(1, 0), state])
      >>> float(plane.explained.sum().round(6))
      1.0
      >>> float(np.hypot(*plane.path[0]).round(4))
      4.0
    """
    if len(states) < 3:
        raise ArgumentError(
            f"there are {len(states)} states; expected at least three, of which two steps make a "
            "plane"
        )
    trees = [jax.tree.leaves(eval_state(state).params) for state in states]
    differences = [_differences(leaves) for leaves in zip(*trees, strict=True)]
    # [t, t], which is all that is needed of millions of parameters.
    inner = np.sum([part @ part.T for part in differences], axis=0)
    t = len(states)
    center = np.eye(t) - 1 / t
    variances, vectors = np.linalg.eigh(center @ inner @ center)
    variances, vectors = variances[:-3:-1], vectors[:, :-3:-1]
    total = np.trace(center @ inner @ center)
    if not variances[1] > MIN_VARIANCE_SHARE * total:
        raise ArgumentError(
            "the states lie on one line; expected a path that turns: give more of them"
        )
    # [t, 2], the directions as sums of differences.
    mix = center @ vectors / np.sqrt(variances)
    mix *= np.where((inner @ mix)[0] < 0, -1, 1)
    tree = jax.tree.structure(states[-1].params)
    directions = [
        tree.unflatten(
            [
                (part.T @ mix[:, i]).reshape(leaf.shape).astype(np.float32)
                for part, leaf in zip(differences, trees[-1], strict=True)
            ]
        )
        for i in range(2)
    ]
    return PCAPlane((directions[0], directions[1]), variances / total, inner @ mix)


def _differences(leaves: Sequence[np.ndarray]) -> np.ndarray:
    """Return a leaf of every state minus the last, float64 [t, size]."""
    stacked = np.stack([np.asarray(leaf, np.float64).ravel() for leaf in leaves])
    return stacked - stacked[-1]


# ---------------------------------------------------------------- loss on a line or a plane

STATISTICS = ("moving", "images")
"""Statistics by which BN normalizes.

They are the moving averages of the state, or the moments of the images themselves at every point.
"""


class LandscapeValues(NamedTuple):
    """Loss and error on a line or a plane.

    Points that are not measured yet are nan.

    Attributes:
      loss: mean loss of an image, float64 [m] or [m, m']. It is in nats for the cross-entropy. It
        may be inf or nan far from the network.
      error_percent: percent classified incorrectly, float64 of the same shape. It is NaN for a loss
        that counts no errors.
      done: number of points measured; the last axis varies fastest.
    """

    loss: np.ndarray
    error_percent: np.ndarray
    done: int


def evaluate_along(
    model: nn.Module,
    state: State | Variables,
    split: Split,
    directions: Sequence[Any],
    steps: Sequence[Sequence[float] | np.ndarray],
    *,
    statistics: str = "moving",
    batch_size: int | None = None,
    strategy: parallel.Strategy | None = None,
    loss: str | Loss = "cross-entropy",
    normalizer: Normalizer | Dataset | None = None,
    resume: LandscapeValues | None = None,
    watch: Callable[[LandscapeValues], Any] = lambda values: None,
    should_stop: Callable[[], Any] = lambda: False,
) -> LandscapeValues:
    """Evaluate the loss along one direction or two from the parameters.

    The points are the parameters plus every combination of multiples of the directions. The network
    is in test mode, with the program of `evaluate`. At 0 steps the numbers are those of `evaluate`.
    All points share one compiled program, and only one set of parameters is in memory at a time.

    Args:
      model: as in `evaluate`.
      state: the center, or its variables. The parameters that are moved are those of
        `jaxcnn.state.eval_state`.
      split: as in `evaluate`.
      directions: one tree or two, like the parameters.
      steps: multiples of each direction, [m] or [m] and [m'].
      statistics: "moving" is BN by the state's moving averages, which do not move with the
        parameters. The authors' code does this. "images" is training mode on all of the split as
        one batch, whatever `batch_size` is. BN then follows the parameters far from the state, but
        differs from test mode, and dropout is active.
      batch_size: as in `evaluate`.
      strategy: as in `evaluate`.
      loss: as in `evaluate`.
      normalizer: as in `evaluate`.
      resume: result of an earlier call with the same arguments that was stopped; it is continued.
      watch: called after every point with the values so far. It must not keep the arrays, which
        change.
      should_stop: called after every point. Once it returns true, the values so far are returned,
        with their number in `done`.

    Raises:
      ArgumentError: as in `evaluate`; directions differ from the parameters in shape, or steps are
        not one list of finite numbers for each direction.
      DataError: as in `evaluate`.

    Example:
      >>> import optax
      >>> from jaxcnn import TrainConfig, create_model, load_dataset
      >>> from jaxcnn.loss_landscape import random_direction
      >>> from jaxcnn.state import init_state
      >>> data, model = load_dataset("digits"), create_model("mlp", 10)
      >>> tx, config = optax.sgd(0.1), TrainConfig()
      >>> state = init_state(model, tx, config, data)
      >>> direction = random_direction(jax.random.key(0), state.params)
      >>> evaluate_along(model, state, data.test, [direction], [[-1, 0, 1]]).loss.shape
      (3,)
    """
    strategy = parallel.check_strategy(strategy)
    state = eval_state(as_state(model, state, normalizer, getattr(split, "images", None)))
    check_choice("statistics", statistics, STATISTICS)
    loss = as_loss(loss)
    _check_directions(state.params, directions)
    multiples = _check_steps(directions, steps)
    is_classifier = has_class_labels(loss)
    num_classes = getattr(model, "num_classes", None) if is_classifier else None
    shape = np.shape(state.normalizer.mean)
    verify_split("split", split, num_classes, shape, are_classes=is_classifier)
    values = _initial_values(resume, tuple(map(len, multiples)))
    batch = None
    if statistics == "moving":
        batch = resolve_batch_size(split.images, batch_size, model, state)
    dtypes = metrics_of(model, state, split, loss)
    measure = _make_measure(model, split, strategy, loss, dtypes, batch)
    center, replicated = strategy.replicate(
        (state._replace(opt_state=(), metrics=()), tuple(directions))
    )
    for index in itertools.islice(np.ndindex(values.loss.shape), values.done, None):
        coefficients = np.array(
            [part[i] for part, i in zip(multiples, index, strict=True)], np.float32
        )
        params = _move(center.params, replicated, coefficients)
        sums = measure(center._replace(params=params))
        means = sums.means()
        values.loss[index], values.error_percent[index] = means["loss"], means.get("error", np.nan)
        values = values._replace(done=values.done + 1)
        watch(values)
        if should_stop():
            break
    return values


@jax.jit
def _move(params, directions, coefficients):
    for i, direction in enumerate(directions):
        params = jax.tree.map(lambda w, d, a=coefficients[i]: w + a * d, params, direction)
    return params


def _make_measure(
    model, split, strategy, loss, dtypes, batch_size
) -> Callable[[Any], metrics.Metrics]:
    """Return a function of a state that sums metrics of the split.

    The state is on the devices.

    None for `batch_size` is training mode, with all images in one batch.
    """
    n, pipeline = len(split.images), input_pipeline(split, strategy)
    if batch_size is not None:
        rewrite_for_cpu = strategy.should_rewrite_for_cpu(split.images.size)
        eval_step = make_eval_step(model, strategy, loss, dtypes, rewrite_for_cpu)
        return lambda state: eval_step(state, pipeline, n, batch_size)
    strategy.check(n, "len(images)")
    program = _single_batch_program(model, strategy, loss)
    order = np.arange(n, dtype=np.int32)[None]

    def measure(state):
        (chunk,) = pipeline.chunks(order)
        zeros = strategy.replicate(metrics.zeros(dtypes))
        return strategy.fetch(program(zeros, (state, pipeline.split), chunk))

    return measure


@parallel.cached_program
def _single_batch_program(model, strategy, loss):
    # BN takes the moments of all images, also where several devices share them.
    settings = {"axis_name": strategy.axis_name, "bn_group": 0}
    global_model = model.clone(
        **{name: value for name, value in settings.items() if hasattr(model, name)}
    )

    def step(sums, fixed, index):
        state, split = fixed
        numbers, images, labels = gather_batch(split, index)
        inputs = normalize(images, state.normalizer)
        rngs = {"dropout": jax.random.PRNGKey(0)}
        variables = {"params": state.params, **state.model_state}
        outputs, _ = global_model.apply(
            variables, inputs, train=True, mutable=list(state.model_state), rngs=rngs
        )
        losses, values = compute_loss(loss, outputs, Batch(inputs, labels))
        new = metrics.count(losses, values, numbers >= 0)
        return metrics.add(
            sums, jax.lax.psum(new, strategy.axis_name) if strategy.axis_name else new
        )

    return strategy.compile_steps(step)


def _check_directions(params: Any, directions: Sequence[Any]) -> None:
    if len(directions) not in (1, 2):
        raise ArgumentError(
            f"there are {len(directions)} directions; expected one (a line) or two (a plane)"
        )
    shapes = jax.tree.map(np.shape, params, is_leaf=lambda x: hasattr(x, "shape"))
    for i, direction in enumerate(directions):
        if jax.tree.map(np.shape, direction, is_leaf=lambda x: hasattr(x, "shape")) != shapes:
            raise ArgumentError(
                f"directions[{i}] is not like the parameters; write random_direction(key, "
                "state.params)"
            )


def _check_steps(directions, steps) -> list[np.ndarray]:
    arrays = [np.asarray(part, np.float64) for part in steps]
    shapes = [array.shape for array in arrays]
    if len(arrays) != len(directions) or not all(
        array.ndim == 1 and array.size and np.isfinite(array).all() for array in arrays
    ):
        raise ArgumentError(
            f"steps has shapes {shapes}; expected a list of finite numbers for each of "
            f"{len(directions)} directions"
        )
    return arrays


def _initial_values(resume: LandscapeValues | None, shape: tuple[int, ...]) -> LandscapeValues:
    if resume is None:
        return LandscapeValues(np.full(shape, np.nan), np.full(shape, np.nan), 0)
    if resume.loss.shape != shape:
        raise ArgumentError(
            f"resume has shape {resume.loss.shape} and steps ask for {shape}; give what the same "
            "steps left"
        )
    # The arrays are written to, so those of the caller are copied.
    return resume._replace(loss=resume.loss.copy(), error_percent=resume.error_percent.copy())
