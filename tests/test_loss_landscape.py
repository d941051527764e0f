"""Loss surfaces: directions filter by filter, losses against closed forms, planes of paths against NumPy's SVD."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxcnn as jc
from jaxcnn.augment import normalize
from jaxcnn.loss_landscape import cosine_similarity, evaluate_along, pca_plane, random_direction

ALONE = jc.strategy("jit", 1)


def started(name, **options):
    """A network, its state at the start, and 40 images."""
    data, tx = jc.load_dataset("digits"), jc.create_optimizer(jc.OptimizerConfig())
    model = jc.create_model(name, 10, **options)
    split = jc.Split(data.train.images[:40], data.train.labels[:40])
    return model, jc.init_state(model, tx, jc.TrainConfig(), data), split


@pytest.fixture(scope="module")
def plain():
    return started("plain8", width=4)


@pytest.fixture(scope="module")
def linear():
    """Logits x W + b: the squared loss is a quadratic of the parameters."""
    return started("mlp", hidden=[])


def ways(state, n=2):
    return [random_direction(jax.random.key(i), state.params) for i in range(n)]


def test_every_filter_of_a_direction_is_as_long_as_the_networks(plain):
    _, state, _ = plain
    (way,) = ways(state, 1)
    flat = jax.tree_util.tree_leaves_with_path(state.params)
    kinds = set()
    for (path, weights), moved in zip(flat, jax.tree.leaves(way), strict=True):
        assert (moved.shape, moved.dtype) == (weights.shape, np.float32)
        kinds.add(path[-1].key)
        if path[-1].key != "kernel":  # BN's scale and shift, and the head's bias
            assert not moved.any(), path
            continue
        for i in range(weights.shape[-1]):
            length = np.linalg.norm(np.float64(weights[..., i]).ravel())
            assert np.linalg.norm(np.float64(moved[..., i]).ravel()) == pytest.approx(
                length, rel=1e-6
            )
        assert abs(cosine_similarity(moved, weights)) < 5 / math.sqrt(weights.size)
    assert kinds == {"kernel", "bias", "scale"}


def test_directions_are_the_keys_own_and_nearly_orthogonal(plain):
    _, state, _ = plain
    one, other = ways(state)
    again = random_direction(jax.random.key(0), state.params)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, one, again)))
    d = ravel_pytree(one)[0].size
    assert 0 < abs(cosine_similarity(one, other)) < 4 / math.sqrt(d)
    assert cosine_similarity(one, one) == pytest.approx(1)


def test_within_a_filter_a_direction_is_gaussian():
    """Kurtosis 3, and as much along one axis as along another; a filter of zeros does not move."""
    weights = np.ones((50, 40, 3), np.float32)
    weights[..., 2] = 0
    way = random_direction(jax.random.key(3), {"kernel": weights})["kernel"].astype(np.float64)
    assert not way[..., 2].any()
    assert (way[..., 0] ** 4).mean() / (way[..., 0] ** 2).mean() ** 2 == pytest.approx(3, abs=0.5)
    assert abs(way[..., 0].mean()) < 0.1
    assert abs(np.corrcoef(way[..., 0].ravel(), way[..., 1].ravel())[0, 1]) < 0.1


def closed_form(state, split, moves):
    """The squared loss and the error of the linear network at parameters that are moved, in float64."""
    inputs = np.float64(normalize(split.images, state.normalizer)).reshape(len(split.labels), -1)
    params = jax.tree.map(np.float64, state.params)
    for step, way in moves:
        params = jax.tree.map(lambda w, d, a=step: w + a * np.float64(d), params, way)
    logits = inputs @ params["head"]["kernel"] + params["head"]["bias"]
    loss = 0.5 * ((logits - np.eye(10)[split.labels]) ** 2).sum(1).mean()
    return loss, 100 * (logits.argmax(1) != split.labels).mean()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "devices"), [("jit", 1), ("jit", 8), ("pmap", 8)])
def test_a_linear_networks_loss_is_the_quadratic_that_it_is(linear, kind, devices):
    model, state, split = linear
    pair, x, y = ways(state), [-2.0, 0.25, 3.0], [-1.0, 0.5]
    how = {
        "strategy": jc.strategy(kind, devices),
        "loss": "squared",
        "batch_size": 16,
    }  # 40 images: the last batch is not full
    plane, line = (
        evaluate_along(model, state, split, pair, [x, y], **how),
        evaluate_along(model, state, split, pair[1:], [y], **how),
    )
    assert plane.loss.shape == plane.error_percent.shape == (3, 2)
    assert (plane.done, line.done) == (6, 2)
    for i, a in enumerate(x):
        for j, b in enumerate(y):
            expected = closed_form(state, split, zip((a, b), pair, strict=True))
            assert (plane.loss[i, j], plane.error_percent[i, j]) == pytest.approx(
                expected, rel=2e-5
            )
    for j, b in enumerate(y):
        assert (line.loss[j], line.error_percent[j]) == pytest.approx(
            closed_form(state, split, [(b, pair[1])]), rel=2e-5
        )


@pytest.mark.slow
def test_the_centre_is_what_evaluate_says(plain):
    model, state, split = plain
    sums = jc.evaluate(model, state, split, strategy=ALONE)
    plane = evaluate_along(model, state, split, ways(state), [[0.0], [0.0, 0.5]], strategy=ALONE)
    assert (plane.loss[0, 0], plane.error_percent[0, 0]) == (sums.mean_loss, sums.error_percent)
    assert plane.loss[0, 1] != sums.mean_loss


@pytest.mark.slow
def test_with_the_images_statistics_a_scaled_kernel_changes_nothing(plain):
    """BN divides a layer's scale away (Ioffe & Szegedy 2015, section 3.3), but not by averages that stay behind."""
    model, state, split = plain
    own = jax.tree.map(np.zeros_like, state.params)
    own["stage1_block1"]["conv1"]["kernel"] = state.params["stage1_block1"]["conv1"]["kernel"]
    steps = [[0.0, 3.0]]
    still = evaluate_along(model, state, split, [own], steps, statistics="images", strategy=ALONE)
    moves = evaluate_along(model, state, split, [own], steps, strategy=ALONE)
    inputs = normalize(jnp.asarray(split.images), state.normalizer)
    variables = {"params": state.params, **state.model_state}
    logits = np.asarray(
        model.apply(variables, inputs, train=True, mutable=["batch_stats"])[0], np.float64
    )
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), split.labels]
    assert still.loss[0] == pytest.approx(losses.mean(), rel=1e-5)
    assert still.loss[1] == pytest.approx(still.loss[0], rel=5e-4)
    assert abs(moves.loss[1] / moves.loss[0] - 1) > 0.01  # the logits of a start are small
    many = evaluate_along(
        model, state, split, [own], steps, statistics="images", strategy=jc.strategy("jit", 8)
    )
    np.testing.assert_allclose(many.loss, still.loss, rtol=1e-4)


def test_it_goes_on_where_it_was_stopped(linear):
    model, state, split = linear
    asked, seen = [], []

    def stop():
        asked.append(None)
        return len(asked) == 2

    args = (model, state, split, ways(state), [[-1.0, 1.0], [0.0, 2.0]])
    whole = evaluate_along(*args, strategy=ALONE)
    part = evaluate_along(
        *args, strategy=ALONE, should_stop=stop, watch=lambda values: seen.append(values.done)
    )
    assert (part.done, seen) == (2, [1, 2])
    assert np.isnan(part.loss[1]).all()
    rest = evaluate_along(*args, strategy=ALONE, resume=part)
    assert np.isnan(part.loss[1]).all()  # what was given is left alone
    np.testing.assert_array_equal(rest.loss, whole.loss)
    np.testing.assert_array_equal(rest.error_percent, whole.error_percent)
    assert rest.done == whole.done == 4


def test_what_is_not_finite_is_kept(linear):
    model, state, split = linear
    far = evaluate_along(
        model, state, split, ways(state, 1), [[0.0, 1e38]], strategy=ALONE, loss="squared"
    )
    assert np.isfinite(far.loss[0])
    assert not np.isfinite(far.loss[1])


def path_of(state, rows: Any):
    """States whose parameters are the rows, float [t, d]."""
    unravel: Any = ravel_pytree(state.params)[1]
    return [state._replace(params=unravel(np.asarray(row, np.float32))) for row in rows]


def test_the_plane_of_a_path_is_that_of_the_svd(linear):
    _, state, _ = linear
    rng = np.random.default_rng(0)
    rows = np.cumsum(rng.normal(size=(7, ravel_pytree(state.params)[0].size)), 0).astype(np.float32)
    plane = pca_plane(path_of(state, rows))
    moved = np.float64(rows) - np.float64(rows[-1])
    _, singular, vectors = np.linalg.svd(moved - moved.mean(0), full_matrices=False)
    np.testing.assert_allclose(plane.explained, (singular**2 / (singular**2).sum())[:2], rtol=1e-10)
    found = np.array([ravel_pytree(way)[0] for way in plane.directions], np.float64)
    np.testing.assert_allclose(abs(np.sum(found * vectors[:2], 1)), 1, atol=1e-6)
    np.testing.assert_allclose(found @ found.T, np.eye(2), atol=1e-6)
    np.testing.assert_allclose(plane.path, moved @ found.T, atol=1e-4)
    assert (plane.path[-1] == 0).all()
    assert (plane.path[0] > 0).all()


def test_a_path_in_a_plane_is_found_again(linear):
    _, state, _ = linear
    d = ravel_pytree(state.params)[0].size
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.normal(size=(d, 2)))[0].T
    at = np.array([[5.0, 1.0], [3.0, -1.0], [1.0, -0.5], [0.2, 0.3], [0.0, 0.0]])
    plane = pca_plane(path_of(state, rng.normal(size=d) + at @ basis))
    assert plane.explained.sum() == pytest.approx(1, abs=1e-9)
    distances = np.linalg.norm(plane.path[:, None] - plane.path, axis=-1)
    np.testing.assert_allclose(distances, np.linalg.norm(at[:, None] - at, axis=-1), atol=1e-5)
    found = np.array([ravel_pytree(way)[0] for way in plane.directions], np.float64)
    np.testing.assert_allclose(np.linalg.norm(found @ basis.T, axis=1), 1, atol=1e-6)


LINE = [[0.0, 1.0]]
STRAIGHT = (np.float32(8), np.float32(2), np.float32(0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m, s, x, w: evaluate_along(m, s, x, [], []),
            "there are 0 directions; expected one",
        ),
        (lambda m, s, x, w: evaluate_along(m, s, x, w * 2, LINE), "there are 4 directions"),
        (
            lambda m, s, x, w: evaluate_along(m, s, x, [{"head": 1}], LINE),
            r"directions\[0\] is not like the parameters",
        ),
        (
            lambda m, s, x, w: evaluate_along(m, s, x, w, LINE),
            "steps has shapes .* for each of 2 directions",
        ),
        (lambda m, s, x, w: evaluate_along(m, s, x, w[:1], [[]]), "steps has shapes"),
        (
            lambda m, s, x, w: evaluate_along(m, s, x, w[:1], [[0.0, math.nan]]),
            "expected a list of finite numbers",
        ),
        (
            lambda m, s, x, w: evaluate_along(m, s, x, w[:1], LINE, statistics="batch"),
            "statistics is 'batch'",
        ),
        (lambda m, s, x, w: evaluate_along(m, s, x, w[:1], LINE, loss="l2"), "loss is 'l2'"),
        (
            lambda m, s, x, w: evaluate_along(
                m, s, jc.Split(x.images[:0], x.labels[:0]), w[:1], LINE
            ),
            "split",
        ),
        (
            lambda m, s, x, w: evaluate_along(
                m,
                s,
                x,
                w[:1],
                LINE,
                resume=evaluate_along(
                    m, s, x, w[:1], [[0.0]], should_stop=lambda: True, strategy=ALONE
                ),
            ),
            r"resume has shape \(1,\)",
        ),
        (
            lambda m, s, x, w: evaluate_along(
                m, s, jc.Split(x.images[:9], x.labels[:9]), w[:1], LINE, statistics="images"
            ),
            r"len\(images\) is 9",
        ),
        (
            lambda m, s, x, w: random_direction(jax.random.key(0), {"bias": np.ones(3)}),
            "params holds no kernel",
        ),
        (lambda m, s, x, w: pca_plane([s, s]), "there are 2 states; expected at least three"),
        (lambda m, s, x, w: pca_plane([s, s, s]), "the states lie on one line"),
        (
            lambda m, s, x, w: pca_plane(
                [s._replace(params=jax.tree.map(i.__add__, s.params)) for i in STRAIGHT]
            ),
            "the states lie on one line",
        ),
    ],
)
def test_errors_are_one_line_with_the_mend(linear, call, message):
    model, state, split = linear
    with pytest.raises((jc.ArgumentError, jc.DataError), match=message) as caught:
        call(model, state, split, ways(state))
    assert "\n" not in str(caught.value)
