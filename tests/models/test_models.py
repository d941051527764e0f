"""Networks against the papers' counts, against NumPy, and against what theory says of shortcuts, initialisers and dropout."""

import hashlib
import math
from importlib import metadata
from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import jaxcnn
from jaxcnn.config import ArgumentError
from jaxcnn.models import MODELS, CifarResNet, ResNet, count_parameters, create_model
from jaxcnn.models.initializers import INITS
from jaxcnn.models.layers import Dropout, conv3x3, pool_2x2
from jaxcnn.models.lenet import scaled_tanh
from jaxcnn.models.resnet import zero_pad_shortcut
from jaxcnn.models.vgg import LAYERS

CIFAR, MNIST, IMAGENET = (32, 32, 3), (32, 32, 1), (224, 224, 3)
DEPTHS = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962}
VGGS = {
    "vgg11": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "vgg11-bn": 132_868_840,
    "vgg13-bn": 133_053_736,
    "vgg16-bn": 138_365_992,
    "vgg19-bn": 143_678_248,
}
TINY = {"plain8": {"width": 2}, "resnet8": {"width": 2}, "lenet5": {}, "lenet5-relu": {}}


def size(name):
    return MNIST if name.startswith("lenet") else CIFAR


def abstract(model, shape, batch=1):
    """The shapes of the variables; nothing is computed."""
    return jax.eval_shape(
        model.init, jax.random.key(0), jax.ShapeDtypeStruct((batch, *shape), "float32")
    )


def drawn(model, shape, seed=0):
    """Variables with nothing special about them: every bias, scale and moving average is random."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        x = rng.normal(size=leaf.shape) / math.sqrt(math.prod(leaf.shape[:-1]))
        return jnp.asarray(0.5 + np.abs(x) if path[-1].key == "var" else x, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract(model, shape))


def images(shape, batch=3, seed=1):
    return np.random.default_rng(seed).normal(size=(batch, *shape)).astype(np.float32)


def run(model, variables, x, **options):
    return jax.jit(lambda v, x: model.apply(v, x, **options))(variables, x)


def close(got, want, tolerance=1e-6):
    """Equal up to `tolerance` of the largest value."""
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


# Counts: paper.md section 3, that is He et al. table 6, LeCun et al. section II.B and torchvision's
# VGGs.


@pytest.mark.slow
@pytest.mark.parametrize("family", ["plain", "resnet"])
@pytest.mark.parametrize(("depth", "count"), DEPTHS.items())
def test_plain_and_residual_networks_have_the_published_parameters(family, depth, count):
    assert count_parameters(create_model(f"{family}{depth}", 10), CIFAR) == count


@pytest.mark.parametrize("family", ["plain", "resnet"])
def test_depth_1202_has_the_published_parameters(family):
    eight, fourteen = (
        count_parameters(create_model(f"{family}{depth}", 10), CIFAR) for depth in (8, 14)
    )
    assert (
        eight + (fourteen - eight) * (1202 - 8) // 6 == 19_421_274
    )  # six more layers cost the same at any depth
    model = MODELS[f"{family}1202"](num_classes=10)
    assert (model.blocks, model.residual) == (200, family == "resnet")


@pytest.mark.slow
@pytest.mark.parametrize("depth", DEPTHS)
def test_option_b_adds_2752_parameters_at_any_depth(depth):
    a, b = (
        count_parameters(create_model(f"resnet{depth}", 10, shortcut=kind), CIFAR) for kind in "AB"
    )
    assert b - a == 2_752


@pytest.mark.parametrize("name", ["lenet5", "lenet5-relu"])
@pytest.mark.parametrize("shape", [MNIST, (28, 28, 1)])
def test_lenet_has_61706_parameters(name, shape):
    assert count_parameters(create_model(name, 10), shape) == 61_706


@pytest.mark.parametrize(("name", "count"), VGGS.items())
def test_vgg_has_the_published_parameters(name, count):
    assert count_parameters(create_model(name, 1000), IMAGENET) == count


@pytest.mark.parametrize("name", VGGS)
def test_small_vgg_has_the_same_convolutions_and_one_dense_layer(name):
    dense = (7 * 7 * 512 + 1) * 4096 + 4097 * 4096 + 4097 * 1000
    assert count_parameters(create_model(f"{name}-32", 10), CIFAR) == VGGS[name] - dense + 513 * 10


@pytest.mark.parametrize(
    ("name", "shape", "depth"),
    [
        ("plain20", CIFAR, 20),
        ("resnet44", CIFAR, 44),
        ("cifar-resnet50", CIFAR, 50),
        ("lenet5", MNIST, 5),
    ]
    + [(f"vgg{depth}", IMAGENET, depth) for depth in LAYERS],
)
def test_depth_counts_convolutions_and_dense_layers(name, shape, depth):
    assert (
        sum(leaf.ndim > 1 for leaf in jax.tree.leaves(abstract(create_model(name, 10), shape)))
        == depth
    )


def test_plain_and_residual_networks_have_the_same_tree():
    assert abstract(create_model("plain20", 10), CIFAR) == abstract(
        create_model("resnet20", 10), CIFAR
    )


def test_no_convolution_of_the_cifar_networks_has_a_bias():
    params = abstract(create_model("resnet14", 10, shortcut="B"), CIFAR)["params"]
    paths = [[key.key for key in path] for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    convolutions = [path for path in paths if path[-2] in ("stem", "conv1", "conv2", "project")]
    assert len(convolutions) == 1 + 12 + 2
    assert {path[-1] for path in convolutions} == {"kernel"}


# What goes wrong by hand: one line that says what to write.


@pytest.mark.parametrize("depth", [1, 2, 9, 19, 21, 33, 57, 100])
def test_a_depth_that_is_not_6n_plus_2_names_its_neighbours(depth):
    with pytest.raises(ArgumentError) as error:
        create_model(f"resnet{depth}", 10)
    below = max(8, 6 * ((depth - 2) // 6) + 2)
    assert one_line(error).endswith(
        f"depth is {depth}; expected 6 n + 2 for a whole n >= 1: write {below} or {below + 6}"
    )


@pytest.mark.parametrize(
    ("name", "options", "hint"),
    [
        ("lenet", {}, "write lenet5"),
        ("vgg15", {}, "vgg16"),
        ("vgg16bn", {}, "vgg16-bn"),
        ("resnet", {}, "resnet"),
        ("Faster R-CNN", {}, "Write jaxcnn.models.faster_rcnn.FasterRCNN(num_classes)."),
        ("yolo", {}, "Write jaxcnn.models.yolo.YOLO(num_classes)."),
        ("zzzz", {}, "one of alexnet, alexnet-groups, autoencoder"),
        ("", {}, "one of alexnet"),
        ("ResNet20", {}, "write resnet20"),
        ("resnet20", {"widht": 8}, "did you mean 'width'?"),
        ("resnet20", {"shortcuts": "A"}, "did you mean 'shortcut'?"),
        ("lenet5", {"width": 8}, "expected one of dtype, kernel_init"),
        ("vgg16", {"size": 32}, "option of vgg16 is 'size'"),
        ("plain20", {"residual": True}, "option of plain20 is 'residual'"),
        ("resnet20", {"width": 0}, "width is 0; expected a whole number of at least 1"),
        ("resnet20", {"width": 8.0}, "width is 8.0"),
        ("resnet20", {"bn_group": -1}, "bn_group is -1"),
        ("resnet20", {"dtype": "float16"}, "bfloat16"),
    ],
)
def test_what_is_unknown_is_refused_with_the_nearest_in_one_line(name, options, hint):
    with pytest.raises(ArgumentError) as error:
        create_model(name, 10, **options)
    assert hint in one_line(error)


@pytest.mark.parametrize("classes", [0, -3, 10.0, True, "10"])
def test_classes_are_a_whole_number_of_at_least_one(classes):
    with pytest.raises(ArgumentError) as error:
        create_model("resnet20", classes)
    assert one_line(error).startswith(f"num_classes is {classes!r}")


@pytest.mark.parametrize("depth", [50, 152])
def test_a_depth_of_two_papers_is_the_imagenet_network_and_with_a_prefix_the_cifar_one(depth):
    assert isinstance(create_model(f"resnet{depth}", 10), ResNet)
    found = create_model(f"cifar-resnet{depth}", 10)
    assert isinstance(found, CifarResNet)
    assert (found.blocks, found.residual) == ((depth - 2) // 6, True)


@pytest.mark.parametrize(
    ("name", "options", "hint"),
    [
        ("resnet8", {"kernel_init": "hee"}, "did you mean 'he'?"),
        ("resnet8", {"shortcut": "C"}, "expected one of A, B"),
    ],
)
def test_an_impossible_option_value_is_one_line_before_anything_is_computed(name, options, hint):
    with pytest.raises(ArgumentError) as error:
        abstract(create_model(name, 10, **options), CIFAR)
    assert hint in one_line(error)


@pytest.mark.parametrize(
    ("name", "shape", "hint"),
    [
        ("lenet5", (30, 30, 1), "images of 30x30 pixels; expected 28x28 or 32x32"),
        ("lenet5", (28, 32, 1), "images of 28x32 pixels"),
        ("vgg16", (32, 31, 3), "size 224 got images of 32x31 pixels"),
        ("vgg16-bn-32", IMAGENET, "size 32 got images of 224x224 pixels"),
        ("vgg11-32", (32, 30, 3), "images of 32x30 pixels"),
    ],
)
def test_images_of_another_size_are_refused_in_one_line(name, shape, hint):
    with pytest.raises(ArgumentError) as error:
        abstract(create_model(name, 10), shape)
    assert hint in one_line(error)


# Shapes.


@pytest.mark.parametrize(
    ("name", "shape", "stages"),
    [
        (
            "resnet20",
            CIFAR,
            {
                "stem": (32, 32, 16),
                "stage1": (32, 32, 16),
                "stage2": (16, 16, 32),
                "stage3": (8, 8, 64),
                "pool": (64,),
            },
        ),
        (
            "plain14",
            (9, 7, 1),
            {
                "stem": (9, 7, 16),
                "stage1": (9, 7, 16),
                "stage2": (5, 4, 32),
                "stage3": (3, 2, 64),
                "pool": (64,),
            },
        ),
        ("lenet5", MNIST, {"c1": (28, 28, 6), "c3": (10, 10, 16), "c5": (1, 1, 120), "f6": (84,)}),
        (
            "vgg16",
            IMAGENET,
            {f"stage{i + 1}": (224 >> i, 224 >> i, min(64 << i, 512)) for i in range(5)}
            | {"dense1": (4096,), "dense2": (4096,)},
        ),
        (
            "vgg19-bn-32",
            CIFAR,
            {f"stage{i + 1}": (32 >> i, 32 >> i, min(64 << i, 512)) for i in range(5)},
        ),
    ],
)
def test_stages_have_these_names_and_shapes(name, shape, stages):
    model = create_model(name, 7)
    x = jax.ShapeDtypeStruct((2, *shape), "float32")
    logits, seen = jax.eval_shape(
        lambda v, x: model.apply(v, x, stages=True), abstract(model, shape), x
    )
    assert logits.shape == (2, 7)
    assert {key: maps.shape for key, maps in seen.items()} == {
        key: (2, *maps) for key, maps in stages.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), TINY.items())
def test_logits_are_the_same_with_and_without_stages(name, options):
    model, x = create_model(name, 10, **options), images(size(name))
    variables = drawn(model, size(name))
    close(run(model, variables, x, stages=True)[0], run(model, variables, x))


# NumPy's word for what the layers compute, in float64.


def np_conv(x, kernel, stride=1, pad=1):
    """Sum over kernel positions of shifted images: torch's convention, windows centred on 0, stride, 2 stride..."""
    x, (kh, kw) = (
        np.pad(np.asarray(x, np.float64), ((0, 0), (pad, pad), (pad, pad), (0, 0))),
        kernel.shape[:2],
    )
    h, w = x.shape[1] - kh + 1, x.shape[2] - kw + 1
    kernel = np.asarray(kernel, np.float64)
    return sum(
        x[:, i : i + h : stride, j : j + w : stride] @ kernel[i, j]
        for i in range(kh)
        for j in range(kw)
    )


def np_norm(x, params, stats, train):
    mean, var = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if train else (stats["mean"], stats["var"])
    return (x - mean) / np.sqrt(var + 1e-5) * params["scale"] + params["bias"]


def np_pool(x, reduce):
    return reduce([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], axis=0)


def np_cifar(variables, x, blocks, shortcut, train):
    """conv-BN-ReLU, then conv-BN-ReLU-conv-BN-(+ shortcut)-ReLU blocks, then the mean over pixels and a dense layer."""
    params, stats = (
        jax.tree.map(np.asarray, variables[kind]) for kind in ("params", "batch_stats")
    )
    relu = lambda y: np.maximum(y, 0)  # noqa: E731
    x = relu(
        np_norm(
            np_conv(x, params["stem"]["kernel"]), params["stem_norm"], stats["stem_norm"], train
        )
    )
    for stage in (1, 2, 3):
        for block in range(1, blocks + 1):
            p, s = params[f"stage{stage}_block{block}"], stats[f"stage{stage}_block{block}"]
            stride = 2 if stage > 1 and block == 1 else 1
            y = relu(
                np_norm(np_conv(x, p["conv1"]["kernel"], stride), p["norm1"], s["norm1"], train)
            )
            y = np_norm(np_conv(y, p["conv2"]["kernel"]), p["norm2"], s["norm2"], train)
            if shortcut == "B" and stride == 2:
                y += np_norm(
                    np_conv(x, p["project"]["kernel"], 2, pad=0),
                    p["project_norm"],
                    s["project_norm"],
                    train,
                )
            elif shortcut:
                y[..., : x.shape[-1]] += x[:, ::stride, ::stride]
            x = relu(y)
    return x.mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]


@pytest.mark.slow
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("shortcut", [None, "A", "B"])
def test_cifar_networks_are_what_numpy_computes(shortcut, train):
    options = {"shortcut": shortcut} if shortcut else {}
    model, x = (
        create_model("resnet14" if shortcut else "plain14", 5, width=2, **options),
        images((8, 8, 3)),
    )
    variables = drawn(model, x.shape[1:])
    mutable = ["batch_stats"] if train else []
    logits, _ = run(model, variables, x, train=train, mutable=mutable)
    close(logits, np_cifar(variables, x, 2, shortcut, train), 1e-5)


@pytest.mark.parametrize(
    ("name", "act", "pool"),
    [
        ("lenet5", lambda x: 1.7159 * np.tanh(2 * x / 3), np.mean),
        ("lenet5-relu", lambda x: np.maximum(x, 0), np.max),
    ],
)
def test_lenet_of_1998_squashes_and_averages_and_todays_rectifies_and_takes_the_maximum(
    name, act, pool
):
    model, x = create_model(name, 10), images((28, 28, 1))
    variables = drawn(model, x.shape[1:])
    params = jax.tree.map(np.asarray, variables["params"])
    y = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
    for layer in ("c1", "c3", "c5"):
        y = act(np_conv(y, params[layer]["kernel"], pad=0) + params[layer]["bias"])
        y = y if layer == "c5" else np_pool(y, pool)
    y = act(y.reshape(len(y), 120) @ params["f6"]["kernel"] + params["f6"]["bias"])
    close(run(model, variables, x), y @ params["head"]["kernel"] + params["head"]["bias"], 1e-5)


def test_scaled_tanh_maps_one_to_one():
    np.testing.assert_allclose(
        scaled_tanh(jnp.array([1.0, -1.0, 0.0])), [1, -1, 0], atol=1e-4
    )  # 1.7159 has 5 digits


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg11-32", "vgg11-bn-32"])
def test_vgg_is_convolutions_with_bias_and_max_pooling(name):
    model, x = create_model(name, 10), images(CIFAR, batch=1)
    variables = drawn(model, CIFAR)
    params, stats = (
        jax.tree.map(np.asarray, variables.get(kind, {})) for kind in ("params", "batch_stats")
    )
    y = x
    for stage, layers in enumerate(LAYERS[11], 1):
        for layer in range(1, layers + 1):
            key = f"stage{stage}_conv{layer}"
            y = np_conv(y, params[key]["kernel"]) + params[key]["bias"]
            y = (
                np_norm(y, params[f"{key}_norm"], stats[f"{key}_norm"], False)
                if "bn" in name
                else y
            )
            y = np.maximum(y, 0)
        y = np_pool(y, np.max)
    logits, seen = run(model, variables, x, stages=True)
    close(np_pool(seen["stage5"], np.max), y, 1e-5)
    close(logits, y[:, 0, 0] @ params["head"]["kernel"] + params["head"]["bias"], 1e-5)


@pytest.mark.parametrize("reduce", [jnp.max, jnp.mean])
def test_halved_pools_disjoint_squares(reduce):
    x = images((6, 4, 3))
    expected = np_pool(np.float64(x), getattr(np, reduce.__name__))
    rounding = (
        0 if reduce is jnp.max else 3 * 2.0**-24 * np.abs(x).max()
    )  # three additions, in any order
    np.testing.assert_allclose(pool_2x2(jnp.asarray(x), reduce), expected, rtol=0, atol=rounding)


# Shortcuts and strides.


@pytest.mark.parametrize("side", [8, 7])
def test_a_stride_2_convolution_centres_on_pixels_0_2_4(side):
    x = images((side, side, 3))
    middle = jnp.zeros((3, 3, 3, 3)).at[1, 1].set(jnp.eye(3))
    conv = conv3x3(3, 2, kernel_init="he", dtype=jnp.float32)
    np.testing.assert_array_equal(conv.apply({"params": {"kernel": middle}}, x), x[:, ::2, ::2])


@pytest.mark.parametrize("side", [8, 7])
def test_shortcut_a_picks_every_other_pixel_and_fills_channels_with_zeros(side):
    x, half = images((side, side, 3)), math.ceil(side / 2)
    got = zero_pad_shortcut(jnp.asarray(x), (3, half, half, 6))
    np.testing.assert_array_equal(got[..., :3], x[:, ::2, ::2])
    np.testing.assert_array_equal(got[..., 3:], np.zeros((3, half, half, 3)))


def test_shortcut_a_is_not_average_pooling():
    checks = jnp.asarray(np.indices((4, 4)).sum(0) % 2, jnp.float32).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(
        zero_pad_shortcut(checks, (1, 2, 2, 1)), np.zeros((1, 2, 2, 1))
    )  # averages would be 1/2


@pytest.mark.parametrize("name", ["plain14", "resnet14"])
def test_blocks_whose_second_norm_is_zero_pass_a_residual_networks_input_and_stop_a_plain_ones(
    name,
):
    model, x = create_model(name, 10, width=4), images((8, 8, 3))
    variables = drawn(model, x.shape[1:])
    for key, block in variables["params"].items():
        if "block" in key:
            block["norm2"] = jax.tree.map(jnp.zeros_like, block["norm2"])
    logits, seen = run(model, variables, x, stages=True)
    stem = np.asarray(seen["stem"])
    assert stem.max() > 0
    passed = stem if name == "resnet14" else np.zeros_like(stem)
    np.testing.assert_array_equal(seen["stage1"], passed)
    for stage, step in (("stage2", 2), ("stage3", 4)):
        np.testing.assert_array_equal(seen[stage][..., :4], passed[:, ::step, ::step])
        assert not np.any(seen[stage][..., 4:])
    if name == "plain14":
        np.testing.assert_array_equal(logits, jnp.tile(variables["params"]["head"]["bias"], (3, 1)))


# Initialisers. N = 36,864 weights of one 3x3x64x64 kernel: a standard deviation is known to
# 1/sqrt(2 N) of itself.

KERNEL = (3, 3, 64, 64)
FAR = (
    2 / 0.87962566103423978
)  # where JAX cuts its truncated normal, in standard deviations of the result


def standard(name, shape=KERNEL, fan=9 * 64):
    """Weights in units of He's standard deviation, sqrt(2 / fan)."""
    return np.asarray(INITS[name](jax.random.key(0), shape, jnp.float32)) / math.sqrt(2 / fan)


@pytest.mark.parametrize(
    ("name", "fan_of", "expected"),
    [
        ("he", "in", 1),
        ("he_truncated", "in", 1),
        ("he_fan_out", "out", 1),
        ("lecun", "in", math.sqrt(1 / 2)),
        ("glorot_uniform", "avg", math.sqrt(1 / 2)),
    ],
)
def test_kernels_have_the_standard_deviation_of_their_name(name, fan_of, expected):
    shape = (3, 3, 32, 128)
    weights = standard(name, shape, 9 * {"in": 32, "out": 128, "avg": 80}[fan_of])
    assert weights.std() / expected == pytest.approx(1, abs=4 / math.sqrt(2 * weights.size))
    assert abs(weights.mean()) < 4 * expected / math.sqrt(weights.size)


def jaxs(ours: Any) -> Any:
    """JAX's own initialiser of the same name, which draws numbers of the shape."""
    return jax.nn.initializers.variance_scaling(ours.scale, ours.mode, ours.distribution)


def close_to_the_last_bits(got, want):
    """Equal but for the last two bits: JAX 0.12 rounds a normal draw differently in programs of different lengths."""
    np.testing.assert_array_max_ulp(np.asarray(got), np.asarray(want), maxulp=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", INITS)
@pytest.mark.parametrize("shape", [(3, 10), (3, 3, 64, 65)])
def test_kernels_are_those_of_jax(name, shape):
    """Outside `jit` they are the beginnings of draws of 2^14, 2^16, ... numbers."""
    ours, key = INITS[name], jax.random.PRNGKey(3)
    close_to_the_last_bits(ours(key, shape), jaxs(ours)(key, shape))
    np.testing.assert_array_equal(ours(key, shape), ours(key, shape))


@pytest.mark.slow
@pytest.mark.parametrize("length", [1 << 14, 1 << 16, 1 << 18])
def test_random_bits_of_a_shorter_draw_begin_a_longer_one(length):
    """To the bit, on every version of JAX: this is what `VarianceScaling` relies on."""
    bits = jax.random.bits(jax.random.key(3), (length,))
    for size in 1, 30, 4000, length - 1:
        np.testing.assert_array_equal(jax.random.bits(jax.random.key(3), (size,)), bits[:size])


@pytest.mark.slow
def test_random_choices_are_the_same_on_every_version_of_jax():
    """The orders of examples and what augmentation draws; the digests are those of JAX 0.10.2 and 0.12.0.1."""
    from jaxcnn.training import epoch_order

    key = jax.random.PRNGKey(3)
    drawn = {
        "b69a365f0a1d": jax.random.bits(key, (100_000,)),
        "b9683256be2f": epoch_order(key, 0, 50, 128, 1437),
        "11b9f7edc8b3": jax.random.uniform(key, (100_000,)),
        "028705d40663": jax.random.bernoulli(key, 0.5, (10_000,)),
        "ac7a88ae00d8": jax.random.randint(key, (10_000,), 0, 9),
    }
    for digest, values in drawn.items():
        assert hashlib.sha256(np.asarray(values).tobytes()).hexdigest()[:12] == digest


@pytest.mark.slow
def test_kernels_of_other_keys_and_dtypes_and_within_jit_are_jaxs():
    ours, plain, shape = INITS["he"], jaxs(INITS["he"]), (3, 3, 3, 16)
    for key in jax.random.key(5), jax.random.key(7, impl="rbg"):
        close_to_the_last_bits(ours(key, shape), plain(key, shape))
        np.testing.assert_array_equal(
            *(jax.jit(init, static_argnums=1)(key, shape) for init in (ours, plain))
        )
    low = ours(jax.random.key(5), shape, jnp.bfloat16)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_array_equal(low, plain(jax.random.key(5), shape, jnp.bfloat16))


@pytest.mark.slow
def test_two_programs_draw_all_kernels_of_a_deep_network():
    from jaxcnn.models import initializers

    drawn: Any = initializers._draw
    drawn.clear_cache()
    image = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    kernels = create_model("resnet110", 10).lazy_init(jax.random.key(0), image, train=False)[
        "params"
    ]
    assert len({leaf.shape for leaf in jax.tree.leaves(kernels) if leaf.ndim > 1}) == 7
    assert drawn._cache_size() == 2


def test_he_is_not_truncated():
    weights = np.abs(standard("he"))
    share, n = math.erfc(math.sqrt(2)), weights.size  # 4.55% beyond two standard deviations
    assert np.mean(weights > 2) == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / n))
    assert weights.max() > 3.5  # of 36,864 normal numbers, 17 are expected past here


def test_he_truncated_ends_where_jax_cuts():
    assert FAR * 0.99 < np.abs(standard("he_truncated")).max() <= FAR * (1 + 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "layer", "variance", "far"),
    [
        ("plain8", {}, "stage3_block1.conv2", 2 / 576, True),
        ("resnet8", {"kernel_init": "he_truncated"}, "stage3_block1.conv2", 2 / 576, False),
        ("resnet8", {"width": 64, "shortcut": "B"}, "stage3_block1.project", 2 / 128, True),
        ("plain8", {"width": 512}, "stem", 2 / 27, True),
        ("resnet8", {"width": 256}, "head", 2 / 1024, True),
        ("vgg11-32", {}, "stage2_conv1", 2 / 576, True),
        ("lenet5", {}, "c5", 1 / 400, True),
        ("lenet5-relu", {}, "c5", 2 / 400, True),
    ],
)
def test_the_networks_draw_their_kernels_by_he_and_fan_in_unless_told_otherwise(
    name, options, layer, variance, far
):
    model = create_model(name, 10, **options)

    @jax.jit  # XLA drops all that the one kernel does not need
    def kernel(key):
        found = model.init(key, jnp.zeros((1, *size(name))))["params"]
        for part in layer.split("."):
            found = found[part]
        return found["kernel"]

    weights = np.asarray(kernel(jax.random.key(0))) / math.sqrt(variance)
    assert weights.std() == pytest.approx(1, abs=4 / math.sqrt(2 * weights.size))
    assert (np.abs(weights).max() > FAR * (1 + 1e-6)) == far


# bfloat16.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"), [(n, o) for n, o in TINY.items() if not n.startswith("vgg")]
)
def test_bfloat16_rounds_activations_and_nothing_else(name, options):
    model, x = create_model(name, 10, **options), images(size(name), batch=4)
    half = create_model(name, 10, dtype="bfloat16", **options)
    variables = drawn(model, size(name))
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract(half, size(name)))} == {
        jnp.dtype("float32")
    }
    (whole, _), (rounded, seen) = (run(m, variables, x, stages=True) for m in (model, half))
    assert rounded.dtype == jnp.float32
    assert {maps.dtype for key, maps in seen.items() if key != "pool"} == {jnp.dtype("bfloat16")}
    if "pool" in seen:
        close(
            seen["pool"], np.asarray(seen["stage3"], np.float32).mean((1, 2))
        )  # summed in float32
    # A layer rounds its weights, its sum, a gain and an offset to 8 bits, each an error of at most
    # 2^-9 of the value;
    # eight layers of four such errors that all add up would move the logits by 1/16 of their size.
    error = np.linalg.norm(rounded - whole) / np.linalg.norm(whole)
    assert 2**-14 < error < 8 * 4 * 2**-9


# Dropout.


@pytest.mark.parametrize("rate", [0.25, 0.5])
def test_dropout_keeps_its_share_and_scales_it_up(rate):
    x = jnp.ones((64, 500))
    y = np.asarray(Dropout(rate).apply({}, x, True, rngs={"dropout": jax.random.key(0)}))
    np.testing.assert_allclose(np.unique(y), [0, 1 / (1 - rate)], rtol=1e-6)
    assert np.mean(y > 0) == pytest.approx(1 - rate, abs=4 * math.sqrt(rate * (1 - rate) / x.size))
    assert len(np.unique(y, axis=0)) == 64  # every example has its own mask


@pytest.mark.parametrize(("rate", "train"), [(0.5, False), (0.0, True)])
def test_dropout_is_the_identity_at_test_and_at_rate_zero(rate, train):
    x = images((7,))
    np.testing.assert_array_equal(Dropout(rate).apply({}, x, train), x)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 8])
def test_dropout_masks_do_not_depend_on_the_layout(devices):
    x, rngs = jnp.ones((16, 5, 3)), {"dropout": jax.random.key(3)}
    alone = Dropout(0.5).apply({}, x, True, rngs=rngs)
    share = jax.pmap(
        lambda x: Dropout(0.5, "batch").apply({}, x, True, rngs=rngs),
        "batch",
        devices=jax.devices()[:devices],
    )
    np.testing.assert_array_equal(share(x.reshape(devices, -1, 5, 3)).reshape(x.shape), alone)


@pytest.mark.parametrize(("name", "drops"), [("vgg11", True), ("vgg11-32", False)])
def test_only_the_large_vgg_drops_out(name, drops):
    model = create_model(name, 10)
    shape = IMAGENET if drops else CIFAR
    x = jax.ShapeDtypeStruct((1, *shape), "float32")
    train = lambda v, x: model.apply(v, x, train=True)  # noqa: E731
    if drops:
        with pytest.raises(flax.errors.InvalidRngError):
            jax.eval_shape(train, abstract(model, shape), x)
    else:
        assert jax.eval_shape(train, abstract(model, shape), x).shape == (1, 10)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain8", "resnet8"])
def test_without_bn_it_is_the_network_whose_bn_only_shifts(name):
    whole, bare = (create_model(name, 10, width=4, batch_norm=on) for on in (True, False))
    variables, x = drawn(whole, CIFAR), images(CIFAR)
    mine, theirs = {}, {}
    for path, leaf in flatten_dict(variables["params"]).items():
        layer, kind = path[:-1], path[-1]
        if kind == "scale":
            theirs[path] = np.full_like(leaf, math.sqrt(1 + 1e-5))  # against BN's epsilon
        else:
            theirs[path] = leaf
            conv = "stem" if layer == ("stem_norm",) else layer[-1].replace("norm", "conv")
            mine[(*layer[:-1], conv, kind)] = leaf
    fresh = {
        "batch_stats": jax.tree_util.tree_map_with_path(
            lambda at, x: jnp.full_like(x, at[-1].key == "var"), variables["batch_stats"]
        )
    }
    logits = run(whole, {"params": unflatten_dict(theirs), **fresh}, x)
    np.testing.assert_allclose(
        run(bare, {"params": unflatten_dict(mine)}, x), logits, rtol=1e-5, atol=1e-5
    )


def test_without_bn_depth_20_has_its_parameters_but_the_scales():
    assert (
        count_parameters(create_model("resnet20", 10, batch_norm=False), CIFAR)
        == DEPTHS[20] - 7 * 16 - 6 * 32 - 6 * 64
    )


def test_networks_are_listed_by_a_pattern():
    names = jaxcnn.list_models()
    assert names == sorted(MODELS)
    assert jaxcnn.list_models("resnet*") == [n for n in names if n.startswith("resnet")]
    assert jaxcnn.list_models("*v1.5") == ["resnet101-v1.5", "resnet152-v1.5", "resnet50-v1.5"]
    assert jaxcnn.list_models("ResNet*") == jaxcnn.list_models("resnet") == []
    with pytest.raises(jaxcnn.ArgumentError, match=r"pattern is 3; expected a text\. Write"):
        jaxcnn.list_models(3)  # type: ignore[arg-type]


def test_the_version_is_that_of_the_installed_package():
    assert jaxcnn.__version__ == metadata.version("jaxcnn")
