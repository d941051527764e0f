"""The small networks against their counts by hand, NumPy, SciPy's correlation and the variances of their initialisers."""

import math
from itertools import pairwise
from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax import softmax_cross_entropy_with_integer_labels as cross_entropy
from scipy.signal import correlate2d
from scripts import train_config

import jaxcnn as jc
from jaxcnn.config import ArgumentError
from jaxcnn.models import MLP, ConvNet, count_parameters, create_model
from jaxcnn.models.lenet import output_codes
from jaxcnn.models.mlp import heaviside

DIGITS, MNIST, CIFAR = (8, 8, 1), (28, 28, 1), (32, 32, 3)
SHAPES = [DIGITS, MNIST, CIFAR]
NP = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}
NP["step"] = lambda x: np.heaviside(x, 0)
POOL = {"max": np.max, "average": np.mean}


def images(shape, batch=3, seed=1):
    return np.random.default_rng(seed).normal(size=(batch, *shape)).astype(np.float32)


def shapes(model, shape):
    return jax.eval_shape(
        model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), "float32")
    )


def drawn(model, shape, seed=0):
    """Variables with nothing special about them: every bias, gain and moving average is random."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        x = rng.normal(size=leaf.shape) / math.sqrt(math.prod(leaf.shape[:-1]))
        return jnp.asarray(0.5 + np.abs(x) if path[-1].key == "var" else x, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes(model, shape))


def run(model, variables, x, **options):
    return jax.jit(lambda v, x: model.apply(v, x, **options))(variables, x)


def double(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def close(got, want, tolerance=1e-5):
    """Equal up to `tolerance` of the largest value."""
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())


def dense(x, layer):
    return x @ layer["kernel"] + layer["bias"]


def refused(name, **options):
    with pytest.raises(ArgumentError) as error:
        create_model(name, 10, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# Counts and shapes.


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("hidden", [[], [5], [64, 64], [7, 3, 9]])
def test_an_mlp_has_one_more_parameter_than_inputs_for_each_unit(shape, hidden):
    sizes = [math.prod(shape), *hidden, 10]
    expected = sum((fan_in + 1) * units for fan_in, units in pairwise(sizes))
    assert count_parameters(create_model("mlp", 10, hidden=hidden), shape) == expected


@pytest.mark.parametrize("shape", [*SHAPES, (4, 12, 2)])
@pytest.mark.parametrize(("width", "hidden"), [(8, 32), (3, 5)])
@pytest.mark.parametrize("norm", [False, True])
def test_a_convnet_has_its_kernels_and_one_bias_or_a_gain_and_an_offset_for_each_filter(
    shape, width, hidden, norm
):
    h, w, c = shape
    kernels = 9 * c * width + 9 * width * 2 * width
    each = 2 if norm else 1
    tail = (h // 4 * (w // 4) * 2 * width + 1) * hidden + (hidden + 1) * 10
    model = create_model("convnet", 10, width=width, hidden=hidden, batch_norm=norm)
    assert count_parameters(model, shape) == kernels + each * 3 * width + tail


@pytest.mark.parametrize(
    ("shape", "convolutions"), [(DIGITS, 1), (CIFAR, 1), (DIGITS, 3), ((24, 16, 2), 3)]
)
def test_a_convnet_has_as_many_convolutions_as_asked_for_and_each_has_twice_the_filters(
    shape, convolutions
):
    h, w, c = shape
    filters = [c, *(5 * 2**i for i in range(convolutions))]
    kernels = sum((9 * fan_in + 1) * out for fan_in, out in pairwise(filters))
    pixels = (h >> convolutions) * (w >> convolutions)
    expected = kernels + (pixels * filters[-1] + 1) * 32 + 33 * 10
    assert (
        count_parameters(create_model("convnet", 10, width=5, convolutions=convolutions), shape)
        == expected
    )
    if convolutions == 1:
        assert create_model("cnn", 10, width=5) == create_model(
            "convnet", 10, width=5, convolutions=1
        )


@pytest.mark.parametrize("shape", [MNIST, (32, 32, 1)])
def test_lenet_as_printed_has_60000_parameters(shape):
    """The paper's own counts, layer by layer (section II.B)."""
    model = create_model("lenet5-1998", 10)
    params = shapes(model, shape)["params"]
    counts = {name: sum(p.size for p in jax.tree.leaves(layer)) for name, layer in params.items()}
    assert counts == {"c1": 156, "s2": 12, "c3": 1516, "s4": 32, "c5": 48120, "f6": 10164}
    assert count_parameters(model, shape) == 60_000


@pytest.mark.parametrize("shape", SHAPES)
def test_stages_have_these_names_and_shapes(shape):
    x = jax.ShapeDtypeStruct((2, *shape), "float32")
    h = shape[0]
    expected = {
        "mlp": {"hidden1": (2, 6), "hidden2": (2, 4)},
        "perceptron": {},
        "cnn": {"conv1": (2, h, h, 8), "dense": (2, 32)},
        "convnet": {"conv1": (2, h, h, 8), "conv2": (2, h // 2, h // 2, 16), "dense": (2, 32)},
    }
    if shape == MNIST:
        maps = {
            "c1": (28, 28, 6),
            "s2": (14, 14, 6),
            "c3": (10, 10, 16),
            "s4": (5, 5, 16),
            "c5": (1, 1, 120),
        }
        expected["lenet5-1998"] = {name: (2, *size) for name, size in maps.items()} | {
            "f6": (2, 84)
        }
    for name, stages in expected.items():
        model = create_model(name, 7, **({"hidden": [6, 4]} if name == "mlp" else {}))
        both = lambda v, x, m=model: (m.apply(v, x), m.apply(v, x, stages=True))  # noqa: E731
        logits, (same, seen) = jax.eval_shape(both, shapes(model, shape), x)
        assert logits.shape == same.shape == (2, 7)
        assert {key: maps.shape for key, maps in seen.items()} == stages


# What the layers compute, in float64.


@pytest.mark.parametrize("shape", SHAPES)
def test_the_perceptron_is_an_mlp_without_hidden_layers_and_linear(shape):
    model, x = create_model("perceptron", 10), images(shape)
    assert model == create_model("mlp", 10, hidden=[])
    variables = drawn(model, shape)
    assert list(variables["params"]) == ["head"]
    weights, bias = (double(variables["params"]["head"])[key] for key in ("kernel", "bias"))
    flat = x.reshape(3, -1).astype(np.float64)
    # Each partial sum of x·w is rounded to 2^-24 of itself; as a random walk these errors have at
    # most this standard deviation.
    rounding = 2**-24 * np.linalg.norm(flat, axis=1)[:, None] * np.linalg.norm(weights, axis=0)
    error = run(model, variables, x) - (flat @ weights + bias)
    assert np.all(np.abs(error) <= 5 * rounding + 1e-6)


@pytest.mark.parametrize("activation", NP)
def test_an_mlp_is_what_numpy_computes(activation):
    model, x = create_model("mlp", 10, hidden=[20, 30, 10], activation=activation), images(DIGITS)
    variables = drawn(model, DIGITS)
    params, y = double(variables["params"]), x.reshape(3, -1).astype(np.float64)
    logits, seen = run(model, variables, x, stages=True)
    for name in ("hidden1", "hidden2", "hidden3"):
        y = NP[activation](dense(y, params[name]))
        close(seen[name], y)
    close(logits, dense(y, params["head"]))


@pytest.mark.slow
def test_rosenblatts_rule_is_descent_on_the_perceptrons_mistakes():
    """What the docstring tells apart: +image, -image after a mistake alone; and the softmax's share, after every image."""
    model: Any = create_model("perceptron", 3)
    x = images(DIGITS, batch=1)
    variables = drawn(model, DIGITS)
    ranks = np.argsort(run(model, variables, x)[0])
    for label in (ranks[-1], ranks[0]):  # right, and wrong

        def mistake(v, label=label):
            logits = model.apply(v, x)[0]
            return logits.max() - logits[label]

        def softmax(v, label=label):
            return cross_entropy(model.apply(v, x), jnp.array([label])).sum()

        rule, descent = (
            -np.asarray(jax.grad(f)(variables)["params"]["head"]["kernel"])
            for f in (mistake, softmax)
        )
        image, expected = x.reshape(-1), np.zeros_like(rule)
        expected[:, label] += image
        expected[:, ranks[-1]] -= image
        np.testing.assert_array_equal(rule, expected)
        assert np.any(rule) == (label != ranks[-1])
        assert np.any(descent)


@pytest.mark.slow
def test_a_step_is_heavisides_and_lets_the_gradient_straight_through_near_its_threshold():
    """Before one step: the gradients by the chain rule in NumPy, the step's derivative put as 1 or, far from 0, as 0."""
    x = jnp.array([-2.0, -1.0, -1e-30, 0.0, 1e-30, 1.0, 5.0])
    np.testing.assert_array_equal(heaviside(x), [0, 0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(jax.grad(lambda x: heaviside(x).sum())(x), [0, 1, 1, 1, 1, 1, 0])
    assert heaviside(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    model: Any = create_model("mlp", 10, hidden=[6], activation="step")
    x = images(DIGITS)
    variables, labels = drawn(model, DIGITS), np.array([1, 0, 7])
    grads = jax.grad(lambda v: cross_entropy(model.apply(v, x), jnp.asarray(labels)).sum())(
        variables
    )["params"]
    params, flat = double(variables["params"]), x.reshape(3, -1).astype(np.float64)
    sums = dense(flat, params["hidden1"])
    on, near = (sums > 0).astype(np.float64), np.abs(sums) <= 1
    assert 0 < near.sum() < near.size
    odds = np.exp(dense(on, params["head"]))
    errors = odds / odds.sum(-1, keepdims=True) - np.eye(10)[labels]
    close(grads["head"]["kernel"], on.T @ errors)
    below = near * (errors @ params["head"]["kernel"].T)
    close(grads["hidden1"]["kernel"], flat.T @ below)
    close(grads["hidden1"]["bias"], below.sum(0))


def np_convolved(x, kernel):
    """Zeros around, and SciPy's correlation of every plane with every kernel's plane."""

    def planes(image, k):
        return sum(correlate2d(image[..., i], k[..., i], "same") for i in range(k.shape[-1]))

    return np.stack(
        [
            np.stack([planes(image, kernel[..., f]) for f in range(kernel.shape[-1])], -1)
            for image in x
        ]
    )


def np_norm(x, params, stats, train):
    mean, var = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if train else (stats["mean"], stats["var"])
    return (x - mean) / np.sqrt(var + 1e-5) * params["scale"] + params["bias"]


def np_convnet(variables, x, act, pool, train):
    params, stats = (double(variables.get(kind, {})) for kind in ("params", "batch_stats"))
    for name in (f"conv{i}" for i in (1, 2, 3) if f"conv{i}" in params):
        x = np_convolved(x, params[name]["kernel"])
        x = (
            np_norm(x, params[f"{name}_norm"], stats[f"{name}_norm"], train)
            if stats
            else x + params[name]["bias"]
        )
        x = pool([act(x)[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], axis=0)
    return dense(act(dense(x.reshape(len(x), -1), params["dense"])), params["head"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "pooling", "norm", "train", "shape", "convolutions"),
    [
        ("relu", "max", False, True, CIFAR, 2),
        ("tanh", "average", False, False, MNIST, 2),
        ("tanh", "max", True, True, DIGITS, 2),
        ("relu", "average", True, False, (8, 12, 2), 2),
        ("relu", "max", False, False, (10, 6, 1), 1),
    ],
)
def test_a_convnet_is_what_scipy_computes(activation, pooling, norm, train, shape, convolutions):
    options = {
        "activation": activation,
        "pooling": pooling,
        "batch_norm": norm,
        "convolutions": convolutions,
    }
    model, x = create_model("convnet", 5, width=3, hidden=7, **options), images(shape)
    variables = drawn(model, shape)
    assert ("batch_stats" in variables) == norm
    logits, _ = run(model, variables, x, train=train, mutable=["batch_stats"])
    close(logits, np_convnet(variables, x.astype(np.float64), NP[activation], POOL[pooling], train))


def test_bn_of_a_convnet_takes_its_group_and_its_momentum():
    """Two groups of two are two batches of two; the moving average goes a quarter of the way."""
    model = create_model("convnet", 5, width=3, batch_norm=True, bn_group=2, bn_momentum=0.75)
    variables, x = drawn(model, DIGITS), images(DIGITS, batch=4)
    whole, kept = run(model, variables, x, train=True, mutable=["batch_stats"])
    halves = [
        run(model, variables, part, train=True, mutable=["batch_stats"])[0]
        for part in (x[:2], x[2:])
    ]
    close(whole, np.concatenate(halves))
    first = np_convolved(x.astype(np.float64), double(variables["params"]["conv1"]["kernel"])).mean(
        (0, 1, 2)
    )
    old = double(variables["batch_stats"]["conv1_norm"]["mean"])
    close(kept["batch_stats"]["conv1_norm"]["mean"], 0.75 * old + 0.25 * first)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"batch_norm": True, "dropout": 0.4}, {"batch_norm": True, "bn_group": 4}]
)
def test_a_convnet_split_over_devices_is_the_same(options):
    model = create_model("convnet", 5, width=3, **options)
    variables, x, rngs = (
        drawn(model, DIGITS),
        images(DIGITS, batch=8),
        {"dropout": jax.random.key(3)},
    )
    alone, _ = run(model, variables, x, train=True, mutable=["batch_stats"], rngs=rngs)
    mapped = model.clone(axis_name="batch")
    share = jax.pmap(
        lambda x: mapped.apply(variables, x, train=True, mutable=["batch_stats"], rngs=rngs)[0],
        "batch",
        devices=jax.devices()[:2],
    )
    close(np.asarray(share(x.reshape(2, 4, *DIGITS))).reshape(8, 5), np.asarray(alone))


# LeNet-5 as printed, in float64 and by the paper's words.

# Table I as it stands there: a row for each map of S2, a column for each map of C3.
C3 = """
x...xxx..xxxx.xx
xx...xxx..xxxx.x
xxx...xxx..x.xxx
.xxx..xxxx..x.xx
..xxx..xxxx.xx.x
...xxx..xxxx.xxx
"""


def squashed(x):
    return 1.7159 * np.tanh(2 * x / 3)


def np_valid(x, kernel):
    """[b, h, w, c] with [5, 5, c, k], no padding."""
    return np.stack([correlate2d(plane, kernel, "valid") for plane in x])


def np_subsampled(x, layer):
    four = sum(x[:, i::2, j::2] for i in (0, 1) for j in (0, 1))
    return squashed(layer["gain"] * four + layer["bias"])


def np_lenet1998(params, x):
    x = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))[..., 0]
    c1 = np.stack(
        [
            np_valid(x, params["c1"]["kernel"][:, :, 0, k]) + params["c1"]["bias"][k]
            for k in range(6)
        ],
        -1,
    )
    s2 = np_subsampled(squashed(c1), params["s2"])
    planes = iter(
        np.moveaxis(params["c3"]["kernel"][:, :, 0], -1, 0)
    )  # in the order of C3's maps, then of S2's
    table = np.array([list(line) for line in C3.split()]) == "x"
    c3 = [
        sum(np_valid(s2[..., i], next(planes)) for i in np.flatnonzero(column))
        for column in table.T
    ]
    assert next(planes, None) is None
    s4 = np_subsampled(squashed(np.stack(c3, -1) + params["c3"]["bias"]), params["s4"])
    c5 = squashed(np.einsum("bhwc,hwck->bk", s4, params["c5"]["kernel"]) + params["c5"]["bias"])
    return squashed(dense(c5, params["f6"]))


@pytest.fixture(scope="module")
def printed():
    """The network, variables, images, and what it says of them."""
    model, x = create_model("lenet5-1998", 10), images(MNIST)
    variables = drawn(model, MNIST)
    return model, variables, x, *run(model, variables, x, stages=True)


def test_lenet_as_printed_is_what_numpy_computes(printed):
    _, variables, x, logits, seen = printed
    f6 = np_lenet1998(double(variables["params"]), x.astype(np.float64))
    close(seen["f6"], f6)
    close(logits, -np.square(f6[:, None] - output_codes(10)[None]).sum(-1))


def test_its_greatest_logit_is_the_nearest_code_and_its_loss_the_papers_equation_9(printed):
    *_, logits, seen = printed
    distances = np.square(double(seen["f6"])[:, None] - output_codes(10)[None]).sum(-1)
    np.testing.assert_array_equal(logits.argmax(-1), distances.argmin(-1))
    # Equation 9 with j so great that e^-j is nothing
    labels = np.array([3, 1, 4])
    expected = distances[range(3), labels] + np.log(np.exp(-(distances - 60)).sum(-1)) - 60
    np.testing.assert_allclose(cross_entropy(logits, jnp.asarray(labels)), expected, atol=1e-4)


def test_codes_are_fixed_signs_and_differ():
    for classes in (2, 10, 11, 100):
        centres = output_codes(classes)
        assert (centres.shape, centres.dtype) == ((classes, 84), np.dtype("float32"))
        assert set(np.unique(centres)) == {-1, 1}
        apart = (centres[:, None] != centres[None]).sum(-1)[~np.eye(classes, dtype=bool)]
        assert apart.min() >= 15
        np.testing.assert_array_equal(centres, output_codes(classes))
    np.testing.assert_array_equal(output_codes(3), output_codes(10)[:3])
    ring = (output_codes(10)[0] > 0).reshape(
        12, 7
    )  # a nought: nothing inside it, something all around
    assert ring.any(0).all()
    assert ring.any(1).all()
    assert not ring[3:9, 2:5].any()


@pytest.mark.slow
def test_weights_start_within_the_papers_bounds():
    model = create_model("lenet5-1998", 10)
    # Compiled as one program, of which the forward pass, being unused, is no part: a tenth of the
    # time.
    params = jax.tree.map(
        np.asarray,
        jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, *MNIST))))()["params"],
    )
    for name, fan_in in {"c1": 25, "c5": 400, "f6": 120}.items():
        bound, weights = 2.4 / fan_in, np.abs(params[name]["kernel"])
        assert 0.95 * bound < weights.max() <= bound
        assert weights.mean() == pytest.approx(bound / 2, rel=4 / math.sqrt(3 * weights.size))
    planes = np.abs(
        params["c3"]["kernel"][:, :, 0]
    )  # maps of C3 see 3, 4 or 6 maps, and units 25 pixels of each
    for first, last, maps in ((0, 18, 3), (18, 54, 4), (54, 60, 6)):
        assert 0.9 * 2.4 / (25 * maps) < planes[..., first:last].max() <= 2.4 / (25 * maps)
    assert np.abs(params["s4"]["gain"]).max() <= 0.6
    assert len(np.unique(params["s4"]["gain"])) == 16
    assert not any(np.any(layer["bias"]) for layer in params.values())


# Initialisers.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "layer", "variance"),
    [
        ("mlp", {}, "hidden1", 1 / 784),
        ("mlp", {"activation": "sigmoid"}, "hidden2", 1 / 400),
        ("mlp", {"activation": "relu"}, "hidden1", 2 / 784),
        ("mlp", {"activation": "relu"}, "head", 2 / 300),
        ("mlp", {"hidden": []}, "head", 1 / 784),
        ("mlp", {"activation": "step"}, "hidden2", 1 / 400),
        ("mlp", {"kernel_init": "glorot_uniform"}, "hidden2", 2 / (400 + 300)),
        ("convnet", {}, "conv2", 2 / (9 * 32)),
        ("convnet", {}, "dense", 2 / (49 * 64)),
        ("convnet", {"activation": "tanh"}, "conv2", 1 / (9 * 32)),
        ("convnet", {"activation": "tanh"}, "dense", 1 / (49 * 64)),
        ("convnet", {"kernel_init": "lecun"}, "conv2", 1 / (9 * 32)),
    ],
)
def test_kernels_have_the_variance_that_suits_the_activation_and_biases_are_zero(
    name, options, layer, variance
):
    sizes = {"hidden": [400, 300]} if name == "mlp" else {"width": 32}
    model = create_model(name, 10, **(sizes | options))
    params = model.lazy_init(jax.random.key(0), jax.ShapeDtypeStruct((1, *MNIST), "float32"))[
        "params"
    ]
    weights, bias = (np.asarray(params[layer][key]) for key in ("kernel", "bias"))
    assert weights.std() / math.sqrt(variance) == pytest.approx(
        1, abs=4 / math.sqrt(2 * weights.size)
    )
    assert abs(weights.mean()) < 4 * math.sqrt(variance / weights.size)
    assert not np.any(bias)


# Dropout.


def test_dropout_silences_dense_units_in_training_alone():
    options = {"hidden": 300, "activation": "tanh"}  # of tanh's outputs none is 0
    plain, drops = (
        create_model("convnet", 10, **options),
        create_model("convnet", 10, dropout=0.25, **options),
    )
    variables, x = drawn(plain, DIGITS), images(DIGITS, batch=16)
    (logits, seen), (same, _) = (run(model, variables, x, stages=True) for model in (plain, drops))
    np.testing.assert_array_equal(same, logits)
    logits, dropped = run(
        drops, variables, x, train=True, stages=True, rngs={"dropout": jax.random.key(0)}
    )
    kept = np.asarray(dropped["dense"]) != 0
    close(dropped["dense"], np.where(kept, np.asarray(seen["dense"]) / 0.75, 0), 1e-6)
    assert kept.mean() == pytest.approx(0.75, abs=4 * math.sqrt(0.25 * 0.75 / kept.size))
    assert len(np.unique(kept, axis=0)) == 16  # each example has a mask of its own
    close(logits, dense(np.asarray(dropped["dense"]), double(variables["params"]["head"])))


def test_only_dropout_asks_for_a_stream_of_randomness():
    x = jax.ShapeDtypeStruct((1, *DIGITS), "float32")
    for model in (create_model("mlp", 10), create_model("convnet", 10)):
        train = jax.eval_shape(
            lambda v, x, m=model: m.apply(v, x, train=True), shapes(model, DIGITS), x
        )
        assert train.shape == (1, 10)
    model = create_model("convnet", 10, dropout=0.5)
    with pytest.raises(flax.errors.InvalidRngError):
        jax.eval_shape(lambda v, x: model.apply(v, x, train=True), shapes(model, DIGITS), x)


# bfloat16.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"), [("mlp", {}), ("convnet", {"batch_norm": True, "activation": "tanh"})]
)
def test_bfloat16_rounds_activations_and_nothing_else(name, options):
    whole, half = (
        create_model(name, 10, **options),
        create_model(name, 10, dtype="bfloat16", **options),
    )
    variables, x = drawn(whole, DIGITS), images(DIGITS)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes(half, DIGITS))} == {jnp.dtype("float32")}
    (exact, _), (rounded, seen) = (run(model, variables, x, stages=True) for model in (whole, half))
    assert rounded.dtype == jnp.float32
    assert {maps.dtype for maps in seen.values()} == {jnp.dtype("bfloat16")}
    # Three layers of at most four roundings to 8 bits, each at most 2^-9 of the value, all in one
    # direction.
    error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert 2**-14 < error < 3 * 4 * 2**-9


# Options.


@pytest.mark.parametrize(
    ("name", "options", "hint"),
    [
        ("mlp", {"activation": "tahn"}, "did you mean 'tanh'?"),
        (
            "mlp",
            {"activation": "gelu"},
            "activation is 'gelu'; expected one of relu, sigmoid, step, tanh",
        ),
        (
            "mlp",
            {"hidden": 32},
            "hidden is 32; expected a list of whole numbers of at least 1: write [64, 64]",
        ),
        ("mlp", {"hidden": "32"}, "hidden is '32'"),
        ("mlp", {"hidden": [32, 0]}, "hidden is [32, 0]"),
        ("mlp", {"hidden": [32.0]}, "hidden is [32.0]"),
        ("mlp", {"hidden": [True]}, "hidden is [True]"),
        ("mlp", {"width": 8}, "expected one of activation, dtype, hidden, kernel_init"),
        ("mpl", {}, "write mlp"),
        ("convnet", {"activation": "rleu"}, "did you mean 'relu'?"),
        ("convnet", {"hidden": [32]}, "hidden is [32]; expected a whole number of at least 1"),
        ("convnet", {"hidden": 0}, "hidden is 0"),
        ("convnet", {"width": 0}, "width is 0"),
        ("convnet", {"convolutions": 0}, "convolutions is 0"),
        (
            "lenet5-1998",
            {"kernel_init": "he"},
            "option of lenet5-1998 is 'kernel_init'; expected one of dtype",
        ),
        ("lenet-1998", {}, "write lenet5-1998"),
        ("perceptrons", {}, "write perceptron"),
        ("convnet", {"pooling": "mean"}, "pooling is 'mean'; expected one of average, max"),
        ("convnet", {"batch_norm": 1}, "batch_norm is 1; expected True or False"),
        ("convnet", {"dropout": 1}, "dropout is 1; expected at least 0 and below 1: write 0.5"),
        ("convnet", {"dropout": "0.5"}, "dropout is '0.5'"),
        (
            "convnet",
            {"bn_momentum": 1.0},
            "bn_momentum is 1.0; expected at least 0 and below 1: write 0.9",
        ),
        ("convnets", {}, "write convnet"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(name, options, hint):
    assert hint in refused(name, **options)


@pytest.mark.parametrize(
    "model", [MLP(10, activation="gelu"), ConvNet(10, activation="gelu"), ConvNet(10, pooling="no")]
)
def test_a_name_that_build_never_saw_is_refused_before_anything_is_computed(model):
    with pytest.raises(ArgumentError, match=r" is '\w+'; expected one of "):
        shapes(model, DIGITS)


@pytest.mark.parametrize("shape", [(30, 30, 1), (7, 8, 1), (8, 6, 1), (2, 2, 1), (0, 4, 1)])
def test_a_convnet_refuses_sizes_that_it_cannot_halve_twice(shape):
    with pytest.raises(ArgumentError) as error:
        shapes(create_model("convnet", 10), shape)
    assert (
        f"images of {shape[0]}x{shape[1]} pixels, which it halves twice; expected multiples of 4"
        in str(error.value)
    )
    assert "\n" not in str(error.value)
    if shape == (30, 30, 1):
        shapes(create_model("cnn", 10), shape)
        with pytest.raises(ArgumentError, match="which it halves 3 times; expected multiples of 8"):
            shapes(create_model("convnet", 10, convolutions=3), shape)


def test_a_list_from_json_makes_a_module_that_can_be_a_key():
    models = create_model("mlp", 10, hidden=[32]), MLP(10, hidden=[32]), MLP(10, hidden=(32,))
    assert {model.hidden for model in models} == {(32,)}
    assert len(set(models)) == 1
    assert hash(create_model("convnet", 10, dropout=0.5)) == hash(ConvNet(10, dropout=0.5))


# Training.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mlp", {"hidden": [32]}),
        ("mlp", {"hidden": [32, 32], "activation": "step"}),
        ("perceptron", {}),
        ("convnet", {"dropout": 0.2, "batch_norm": True}),
    ],
)
def test_thirty_steps_on_the_digits_lower_the_loss(name, options):
    config = jc.ExperimentConfig(
        dataset="digits",
        model=name,
        model_kwargs=options,
        optimizer=jc.OptimizerConfig(milestones=()),
        train=jc.TrainConfig(num_steps=30, eval_every=15, batch_size=64),
    )
    config = jc.ExperimentConfig.from_json(config.to_json())
    model = create_model(config.model, 10, **config.model_kwargs)
    strategy = jc.strategy("jit", devices=1)
    rows: list = [
        row
        for _, row in train_config(
            model,
            config,
            jc.load_dataset("digits"),
            strategy=strategy,
        )
    ]
    assert [row["step"] for row in rows] == [15, 30]
    assert rows[1]["train_loss"] < rows[0]["train_loss"]
    assert rows[1]["eval_loss"] < math.log(10) / 2  # log 10 is what guessing costs


@pytest.mark.parametrize("name", ["timm/ResNet-18", "owner/resnet_18"])
def test_a_name_of_a_hub_has_the_network_itself_as_its_one_suggestion(name):
    with pytest.raises(jc.ArgumentError, match=r"; write resnet18$"):
        jc.create_model(name, 10)


@pytest.mark.parametrize("name", ["inception", "mobilenetv2"])
def test_a_name_like_no_other_has_the_whole_list(name):
    with pytest.raises(jc.ArgumentError, match=r"; write one of alexnet, .*vgg19"):
        jc.create_model(name, 10)
