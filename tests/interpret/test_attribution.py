"""Methods that say where a network looks: against NumPy in float64, against theory, and against what is known to decide."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn as jc
from jaxcnn.data.types import assemble
from jaxcnn.interpret._arguments import default_batch_size, run_in_batches
from jaxcnn.interpret.attribution import (
    ATTRIBUTION_METHODS,
    attribution,
    integrated_gradients,
    occlusion,
)
from jaxcnn.interpret.gradcam import gradcam, gradcam_plus_plus
from jaxcnn.interpret.guided_backprop import count_relus, guided_backprop, with_guided_relus
from jaxcnn.models.layers import pool_2x2, stage
from jaxcnn.state import init_state

RNG = np.random.default_rng(0)
SHAPE = (8, 6, 2)


class Small(nn.Module):
    """Two convolutions with ReLU, max pooling between them, and a dense layer on the flattened maps."""

    num_classes: int = 3
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train=False, stages=False):
        seen: dict[str, jax.Array] = {}
        x = stage(self, seen, "maps1", nn.relu(nn.Conv(3, (3, 3), name="conv1")(x)))
        x = pool_2x2(x, jnp.max)
        x = stage(self, seen, "maps2", nn.relu(nn.Conv(4, (3, 3), name="conv2")(x)))
        logits = nn.Dense(self.num_classes, name="head")(x.reshape(len(x), -1))
        return (logits, seen) if stages else logits


CONFIG = jc.TrainConfig()


def starting(model, images, labels, names, config=CONFIG):
    split = jc.Split(images, labels)
    data = assemble("own", split, split, images.shape[1:], names)
    tx = jc.create_optimizer(jc.OptimizerConfig(milestones=()))
    return data, tx, init_state(model, tx, config, data)


@pytest.fixture(scope="module")
def run():
    model, images = Small(), RNG.integers(0, 256, (5, *SHAPE), dtype=np.uint8)
    *_, state = starting(model, images, np.arange(5, dtype=np.int32) % 3, ("a", "b", "c"))
    biases = {
        name: part | {"bias": RNG.normal(0, 0.3, part["bias"].shape)}
        for name, part in state.params.items()
    }
    biases["head"] |= {"kernel": 4 * biases["head"]["kernel"]}
    return model, state._replace(params=jax.tree.map(np.float32, biases)), images


CLASSES = np.array([2, 0, 1, 1, 0])

# The network by hand, for one image in float64: [h, w, c].


def shifted(x, dy, dx):
    """x[i + dy, j + dx] at [i, j], 0 outside."""
    return np.pad(x, ((1, 1), (1, 1), (0, 0)))[
        1 + dy : 1 + dy + len(x), 1 + dx : 1 + dx + x.shape[1]
    ]


TAPS = [(i, j) for i in range(3) for j in range(3)]


def conv(x, part):
    return (
        np.sum([shifted(x, i - 1, j - 1) @ part["kernel"][i, j] for i, j in TAPS], 0) + part["bias"]
    )


def conv_back(slopes, part):
    return np.sum([shifted(slopes, 1 - i, 1 - j) @ part["kernel"][i, j].T for i, j in TAPS], 0)


def blocks(x):
    """[h, w, c] -> [h / 2, w / 2, 4, c]."""
    h, w, c = x.shape
    return x.reshape(h // 2, 2, w // 2, 2, c).swapaxes(1, 2).reshape(h // 2, w // 2, 4, c)


def unblocked(x):
    h, w, _, c = x.shape
    return x.reshape(h, w, 2, 2, c).swapaxes(1, 2).reshape(2 * h, 2 * w, c)


def forward(params, x):
    before1 = conv(x, params["conv1"])
    maps1 = np.maximum(before1, 0)
    before2 = conv(blocks(maps1).max(2), params["conv2"])
    maps2 = np.maximum(before2, 0)
    return (
        before1,
        maps1,
        before2,
        maps2,
        maps2.ravel() @ params["head"]["kernel"] + params["head"]["bias"],
    )


def backward(params, x, label, guide=False):
    """The slopes of a logit with respect to the image and both stages."""
    before1, maps1, before2, maps2, _ = forward(params, x)
    after2 = params["head"]["kernel"][:, label].reshape(maps2.shape)
    pooled = conv_back(
        np.where((before2 > 0) & ((after2 > 0) | (not guide)), after2, 0), params["conv2"]
    )
    parts = blocks(maps1)
    winner = (
        parts.argmax(2, keepdims=True) == np.arange(4)[:, None]
    )  # the first of equal ones, as in PyTorch
    after1 = unblocked(winner * pooled[:, :, None])
    inputs = conv_back(
        np.where((before1 > 0) & ((after1 > 0) | (not guide)), after1, 0), params["conv1"]
    )
    return inputs, after1, after2


def by_hand(state, images):
    """Parameters and normalised images, float64."""
    return jax.tree.map(np.float64, state.params), images / 255 - np.asarray(
        state.normalizer.mean, np.float64
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", [gradcam, gradcam_plus_plus])
def test_grad_cams_are_their_papers_equations(run, method):
    """At a stage of the image's size, so that nothing is enlarged; Y = exp(S), its derivatives as in equations 16 to 18."""
    model, state, images = run
    params, inputs = by_hand(state, images)
    expected = []
    for x, label in zip(inputs, CLASSES, strict=True):
        _, maps, _, _, logits = forward(params, x)
        slopes, top = backward(params, x, label)[1], np.exp(logits[label])
        if method is gradcam:
            weights = slopes.mean((0, 1))
        else:
            below = 2 * top * slopes**2 + maps.sum((0, 1)) * top * slopes**3
            alpha = np.divide(top * slopes**2, below, out=np.zeros_like(below), where=below != 0)
            weights = (alpha * np.maximum(top * slopes, 0)).sum((0, 1))
        found = np.maximum(maps @ weights, 0)
        expected.append(found / max(found.max(), 1e-30))
    got = method(model, state, images, CLASSES, "maps1", batch_size=2)
    assert max(map(np.max, expected)) == 1
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
    assert got.dtype == np.float32


def test_guided_gradients_are_those_written_by_hand(run):
    model, state, images = run
    params, inputs = by_hand(state, images)
    expected = [
        backward(params, x, label, guide=True)[0] for x, label in zip(inputs, CLASSES, strict=True)
    ]
    plain = [backward(params, x, label)[0] for x, label in zip(inputs, CLASSES, strict=True)]
    assert not np.allclose(expected, plain, atol=1e-2)
    got = guided_backprop(model, state, images, CLASSES, batch_size=2)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
    assert got.dtype == np.float32


def test_integrated_gradients_are_the_papers_sum(run):
    model, state, images = run
    baseline = RNG.uniform(0, 255, SHAPE)
    params, inputs = by_hand(state, images)
    first = np.asarray(by_hand(state, baseline)[1])
    expected = []
    for x, label in zip(inputs, CLASSES, strict=True):
        line = [backward(params, first + (k + 0.5) / 7 * (x - first), label)[0] for k in range(7)]
        expected.append((x - first) * np.mean(line, 0))
    got = integrated_gradients(model, state, images, CLASSES, baseline, num_steps=7, batch_size=4)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
    assert got.dtype == np.float32


def test_occlusion_is_the_mean_fall_under_the_squares_over_a_pixel(run):
    model, state, images = run
    params, inputs = by_hand(state, images)
    h, w, _ = SHAPE
    expected = np.zeros((len(images), h, w))
    for n, (x, label) in enumerate(zip(inputs, CLASSES, strict=True)):
        whole, falls = forward(params, x)[-1][label], [[[] for _ in range(w)] for _ in range(h)]
        for top in range(-2, h, 2):
            for left in range(-2, w, 2):
                covered, rows, columns = (
                    x.copy(),
                    slice(max(top, 0), top + 4),
                    slice(max(left, 0), left + 4),
                )
                covered[rows, columns] = (
                    np.array([30, 200]) / 255
                    - np.asarray(state.normalizer.mean, np.float64)[rows, columns]
                )
                fall = whole - forward(params, covered)[-1][label]
                for row in falls[rows]:
                    for cell in row[columns]:
                        cell.append(fall)
        assert {len(cell) for row in falls for cell in row} == {4}
        expected[n] = [[np.mean(cell) for cell in row] for row in falls]
    got = occlusion(model, state, images, CLASSES, size=4, stride=2, fill=[30, 200], batch_size=7)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
    assert got.dtype == np.float32


@pytest.mark.slow
def test_integrated_gradients_add_up_to_the_rise_of_the_logit(run):
    """Proposition 1. ReLUs bend the line: the gradient jumps along it, and the rule errs by a share of a step at each jump."""
    model, state, images = run
    rows = np.arange(len(images))
    rise = (
        jc.predict(model, state, images)[rows, CLASSES]
        - jc.predict(model, state, 0 * images)[rows, CLASSES]
    )
    few, many = (
        integrated_gradients(model, state, images, CLASSES, num_steps=steps, batch_size=640).sum(
            (1, 2, 3)
        )
        - rise
        for steps in (4, 1024)
    )
    assert np.abs(rise).max() > 0.5
    assert np.abs(many).max() < 1e-3
    assert np.abs(few).max() > 10 * np.abs(many).max()


@pytest.mark.slow
def test_of_a_linear_network_one_step_gives_the_weights_times_the_difference():
    """And it is exact: the gradient is the same everywhere. Occlusion by single pixels then says the same, for grey images."""
    model, images = (
        jc.create_model("perceptron", 3),
        RNG.integers(0, 256, (2, 3, 4, 1), dtype=np.uint8),
    )
    *_, state = starting(model, images, np.array([0, 1], np.int32), ("a", "b", "c"))
    weights = state.params["head"]["kernel"][:, [2, 0]].T.reshape(2, 3, 4, 1)
    expected = weights * images / np.float32(255)
    got = integrated_gradients(model, state, images, np.array([2, 0]), num_steps=1)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)
    falls = occlusion(model, state, images, np.array([2, 0]), size=1, fill=0)
    np.testing.assert_allclose(falls, expected[..., 0], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_what_only_speaks_against_a_class_has_no_guided_gradient(run):
    """Negative weights of the head alone: the gradient is not 0, the guided one is, and Grad-CAM++'s heat too."""
    model, state, images = run
    head = {"kernel": -np.abs(state.params["head"]["kernel"]), "bias": state.params["head"]["bias"]}
    against = state._replace(params=state.params | {"head": head})
    assert (
        np.abs(backward(*(by_hand(against, images)[0], by_hand(against, images)[1][0], 0))[0]).max()
        > 0.1
    )
    for method in ("guided_backprop", "gradcam_plus_plus"):
        np.testing.assert_array_equal(attribution(method, model, against, images), 0)


def test_a_guided_gradient_is_the_gradient_where_nothing_is_negative():
    """With weights of one sign no slope is negative; and the values are those of the function itself, whatever is in it."""
    w = jnp.abs(jnp.asarray(RNG.normal(size=(6, 6)), jnp.float32))
    x = jnp.asarray(RNG.normal(size=6), jnp.float32)

    def deep(sign, x):
        return (
            sign * jax.nn.relu(jnp.dot(w, jnp.maximum(0, jnp.dot(w, x)))).sum()
            + jax.nn.softplus(x).sum()
        )

    def both(sign):
        other = with_guided_relus(partial(deep, sign))
        return jax.jit(lambda x: [jax.value_and_grad(f)(x) for f in (partial(deep, sign), other)])(
            x
        )

    (value, slopes), (same, found) = both(1.0)
    assert value == same
    np.testing.assert_allclose(found, slopes, rtol=1e-6)
    assert np.abs(found).max() > 1
    np.testing.assert_allclose(
        both(-1.0)[1][1], jax.nn.sigmoid(x), rtol=1e-6
    )  # of the softplus alone


def in_a_scan(x):
    return jax.lax.scan(lambda c, k: (jax.nn.relu(c * k), None), x, jnp.array([1.0, 2.0]))[0]


def perhaps(x):
    return jax.lax.cond(x.sum() > 0, lambda x: 2 * jax.nn.relu(x), jnp.tanh, x)


RELUS = {
    "relu6": jax.nn.relu6,
    "checkpoint": jax.checkpoint(jax.nn.relu),
    "scan": in_a_scan,
    "cond": perhaps,
}


@pytest.mark.parametrize("name", RELUS)
def test_relus_are_found_wherever_they_are(name):
    """Inside functions with their own derivative, recomputed ones, loops and branches."""
    weights, x = jnp.array([1.0, 1.0, -1.0]), jnp.array([-1.0, 2.0, 3.0])
    times = 2.0 if name in ("scan", "cond") else 1.0

    def out(x):
        return jnp.dot(weights, RELUS[name](x))

    assert count_relus(jax.make_jaxpr(out)(x)) == 1
    plain, found = jax.jit(lambda x: (jax.grad(out)(x), jax.grad(with_guided_relus(out))(x)))(x)
    assert plain.tolist() == [0.0, times, -times]
    assert found.tolist() == [0.0, times, 0.0]


@pytest.mark.parametrize(
    "function", [jax.nn.softplus, jax.nn.gelu, jax.nn.leaky_relu, jnp.tanh, jnp.sqrt]
)
def test_what_is_no_relu_keeps_its_derivative(function):
    x = jnp.array([0.3, 0.7])

    def out(x):
        return -function(x).sum()

    assert not count_relus(jax.make_jaxpr(out)(x))
    slopes = jax.jit(lambda x: [jax.grad(f)(x) for f in (out, with_guided_relus(out))])(x)
    np.testing.assert_array_equal(*slopes)


# Does the heat follow what decides? Images are noise of two values; a patch of the same two values,
# at a random place, holds
# stripes or a chessboard, and nothing else tells the classes apart.

SIDE, PATCH = 16, 6
ROWS, COLUMNS = np.indices((PATCH, PATCH))
TEXTURES = [ROWS % 2, COLUMNS % 2, (ROWS + COLUMNS) % 2]
DARK, BRIGHT = np.uint8(40), np.uint8(210)


class Eyes(nn.Module):
    """Two convolutions and the mean over places, which leaves the class to the maps and not to where in them it is."""

    num_classes: int = 3
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train=False, stages=False):
        seen: dict[str, jax.Array] = {}
        for name in ("conv1", "conv2"):
            x = stage(self, seen, name, nn.relu(nn.Conv(8, (3, 3), name=name)(x)))
        logits = nn.Dense(self.num_classes, name="head")(x.mean((1, 2)))
        return (logits, seen) if stages else logits


def pasted(n, seed, halves=1):
    """Images, the classes of their patches [n, halves], and where those are, bool [n, halves, h, w]; each in its own half."""
    rng = np.random.default_rng(seed)
    images = rng.choice([DARK, BRIGHT], (n, SIDE, SIDE, 1))
    labels = np.array([rng.permutation(3)[:halves] for _ in range(n)], np.int32)
    inside = np.zeros((n, halves, SIDE, SIDE), bool)
    for image, classes, masks in zip(images, labels, inside, strict=True):
        for half, (label, mask) in enumerate(zip(classes, masks, strict=True)):
            top = rng.integers(0, SIDE - PATCH + 1)
            left = half * SIDE // halves + rng.integers(0, SIDE // halves - PATCH + 1)
            place = slice(top, top + PATCH), slice(left, left + PATCH)
            image[(*place, 0)], mask[place] = np.where(TEXTURES[label], BRIGHT, DARK), True
    return images, labels, inside


@pytest.fixture(scope="module")
def eyes():
    """The network, its state before and after training, and images that it has not seen, all of which it gets right."""
    model, (images, labels, _) = Eyes(), pasted(600, 1)
    names = ("rows", "columns", "chess")
    config = jc.TrainConfig(num_steps=150, batch_size=50, eval_every=150)
    data, tx, first = starting(model, images, labels[:, 0], names, config)
    state, _ = list(jc.train(model, tx, data, config, strategy=jc.strategy("jit", 1)))[-1]
    unseen, classes, inside = pasted(60, 2)
    assert (jc.predict(model, state, unseen).argmax(1) == classes[:, 0]).mean() > 0.97
    return model, first, state, unseen, classes[:, 0], inside[:, 0]


# The median share of the heat inside the patch, which has 0.14 of the area. In ten measurements
# (five seeds of data and of the
# network, 150 and 300 steps) the lowest were 0.54, 0.38, 0.26, 0.30 and 0.55, the highest 0.67,
# 0.60, 0.37, 0.57 and 0.62;
# before training they were 0.02 to 0.19. What is asked for is just below the lowest.
SHARE = {
    "gradcam": 0.5,
    "gradcam_plus_plus": 0.35,
    "guided_backprop": 0.24,
    "integrated_gradients": 0.27,
    "occlusion": 0.5,
}
UNTRAINED = 0.21
OPTIONS: dict[str, Any] = {
    "integrated_gradients": {"num_steps": 16},
    "occlusion": {"size": 4, "stride": 2},
}


@pytest.mark.quick_compilation
@pytest.mark.slow
@pytest.mark.parametrize("method", ATTRIBUTION_METHODS)
def test_heat_lies_on_the_patch_that_decides_and_only_after_training(eyes, method):
    model, first, state, images, labels, inside = eyes

    def share(state):
        found = attribution(method, model, state, images, labels, **OPTIONS.get(method, {}))
        return np.divide(
            (found * inside).sum((1, 2)),
            found.sum((1, 2)),
            where=found.any((1, 2)),
            out=np.zeros(60),
        )

    after, before = share(state), share(first)
    assert np.median(after) > SHARE[method]
    assert (after > PATCH**2 / SIDE**2).mean() > 0.95
    assert np.median(before) < UNTRAINED


@pytest.mark.parametrize("method", ATTRIBUTION_METHODS)
def test_of_two_patches_heat_lies_on_that_of_the_class_asked_about(eyes, method):
    """Measured: on all 60 images, with each method, more lies on the right patch."""
    model, _, state, *_ = eyes
    images, labels, inside = pasted(60, 3, halves=2)
    for half in (0, 1):
        found = attribution(
            method, model, state, images, labels[:, half], **OPTIONS.get(method, {})
        )
        on = (found[:, None] * inside).sum((2, 3))
        assert (on[:, half] > on[:, 1 - half]).mean() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("method", ATTRIBUTION_METHODS)
def test_none_asks_for_the_predicted_class(run, method):
    model, state, images = run
    predicted = jc.predict(model, state, images).argmax(1)
    found = attribution(method, model, state, images)
    np.testing.assert_array_equal(found, attribution(method, model, state, images, predicted))
    assert found.shape == (5, 8, 6)
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found.max() == 1


@pytest.mark.parametrize("method", ATTRIBUTION_METHODS)
@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ([0, 1, 2, 3, 0], "0 to 3; expected 0 to 2"),
        ([0, -1, 0, 0, 0], "-1 to 0; expected 0 to 2"),
        ([0, 1], "expected one class for each of the 5 images"),
        ([0.5] * 5, "float64; expected integers"),
    ],
)
def test_classes_that_there_are_not_are_refused(run, method, classes, said):
    model, state, images = run
    with pytest.raises(jc.ArgumentError, match=said):
        ATTRIBUTION_METHODS[method](model, state, images, np.array(classes))


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("grad_cam", {}, "did you mean 'gradcam'"),
        (
            "occlusion",
            {"num_steps": 3},
            "option of occlusion is 'num_steps'; expected one of batch_size, fill, normalizer, size, stride",
        ),
        ("occlusion", {"size": 7}, "size is 7; expected a whole number from 1 to 6"),
        ("occlusion", {"size": 2, "stride": 3}, "stride is 3; expected a whole number from 1 to 2"),
        (
            "occlusion",
            {"fill": [1, 2, 3]},
            "expected one number in 0..255, or one for each channel",
        ),
        (
            "integrated_gradients",
            {"num_steps": 0},
            "num_steps is 0; expected a whole number of at least 1",
        ),
        (
            "integrated_gradients",
            {"baseline": np.zeros((8, 8, 2))},
            "expected that of one image, .8, 6, 2.",
        ),
        (
            "integrated_gradients",
            {"baseline": "black"},
            r"baseline is 'black'; .* Write baseline=np.full\(\(8, 6, 2\), 128\)\.$",
        ),
        ("integrated_gradients", {"baseline": [[1], [2, 3]]}, r"baseline is \[\[1\], \[2, 3\]\]; "),
        ("integrated_gradients", {"classes": [[1], [2, 3]]}, r"classes is \[\[1\], \[2, 3\]\]; "),
        ("guided_backprop", {"batch_size": 2.5}, "batch_size is 2.5; expected a whole number"),
        ("gradcam_plus_plus", {"stage": "maps3"}, "expected one of maps1, maps2"),
    ],
)
def test_other_mistakes_are_named(run, method, options, said):
    model, state, images = run
    with pytest.raises(jc.ArgumentError, match=said) as error:
        attribution(method, model, state, images, **options)
    assert "\n" not in str(error.value)


class Masks(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Conv(3, (1, 1))(x)


@pytest.mark.slow
def test_networks_and_images_of_another_kind_are_refused(run):
    model, state, images = run
    for method in ATTRIBUTION_METHODS.values():
        with pytest.raises(jc.DataError, match="uint8"):
            method(model, state, images.astype(np.float32))
    two = (
        RNG.integers(0, 256, (2, 4, 4, 1), dtype=np.uint8),
        np.array([0, 1], np.int32),
        ("a", "b", "c"),
    )
    tanh, masks = jc.create_model("mlp", 3), Masks()
    with pytest.raises(jc.ArgumentError, match=r"MLP has no ReLU .* use integrated_gradients"):
        guided_backprop(tanh, starting(tanh, *two)[-1], two[0], two[1])
    with pytest.raises(jc.ArgumentError, match="MLP has no stage whose output is maps"):
        gradcam_plus_plus(tanh, starting(tanh, *two)[-1], two[0], two[1])
    with pytest.raises(jc.ArgumentError, match=r"Masks gives \(4, 4, 3\) for an image, no logits"):
        integrated_gradients(masks, starting(masks, *two)[-1], two[0])


def test_a_batch_is_as_large_as_the_images_allow(run):
    _, state, images = run
    sizes = [default_batch_size(np.empty((1, side, side, 3))) for side in (8, 32, 224, 1000)]
    assert sizes == [100, 100, 2, 1]
    seen = []

    def program(given, images, numbers):
        seen.append((len(images), given.opt_state))
        return images.astype(np.float64).sum((1, 2, 3)) + numbers

    which, numbers = np.array([4, 0, 0, 2, 1]), np.arange(5.0)
    found = np.concatenate(
        [part for _, part in run_in_batches(program, state, images, which, 2, numbers)]
    )
    np.testing.assert_array_equal(found, images[which].sum((1, 2, 3)) + numbers)
    assert seen == [(2, ())] * 3
