"""Networks for photographs: published counts and shapes, layers and networks in NumPy and SciPy, and what the papers state."""

import math
from functools import partial
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.ndimage import uniform_filter1d
from scipy.signal import correlate
from test_models import close, drawn, images, np_conv, one_line, run

from jaxcnn.config import ArgumentError
from jaxcnn.models import GoogLeNet, PreActResNet, ResNet, count_parameters, create_model, googlenet
from jaxcnn.models.googlenet import AuxiliaryHead, Inception, _imagenet_to_half
from jaxcnn.models.initializers import initializer
from jaxcnn.models.layers import (
    Dropout,
    adaptive_average,
    average_pool,
    conv,
    local_response_norm,
    max_pool,
    pool_2x2,
)
from jaxcnn.models.norm import BatchNorm
from jaxcnn.models.resnet import Block, Bottleneck, PreActBlock

RESNETS = {18: 11_689_512, 34: 21_797_672, 50: 25_557_032, 101: 44_549_160, 152: 60_192_808}
COUNTS = {f"resnet{depth}": count for depth, count in RESNETS.items()}
COUNTS |= {f"resnet{depth}-v1.5": RESNETS[depth] for depth in (50, 101, 152)}
COUNTS |= {
    "alexnet": 61_100_840,
    "alexnet-groups": 60_965_224,
    "googlenet": 6_998_552,
    "googlenet-bn": 6_624_904,
}
# A copy with published weights (pytorchcv 0.0.67) normalises once more, 64 channels, before the
# first block.
PREACT = {18: 11_687_848, 34: 21_796_008, 50: 25_549_480, 101: 44_541_608, 152: 60_185_256}
COUNTS |= {f"preresnet{depth}": count - 2 * 64 for depth, count in PREACT.items()}
# Depths 18 and 34 change their shape three times, by a 1x1 convolution and a BN each.
PROJECTIONS = sum(c * 2 * c + 2 * 2 * c for c in (64, 128, 256))
COUNTS |= {f"plain{depth}": RESNETS[depth] - PROJECTIONS for depth in (18, 34)}
CIFAR_COUNTS = {20: 269_722, 110: 1_727_962, 164: 1_703_258, 1001: 10_327_706}
NAMES = [
    "resnet18",
    "resnet50",
    "resnet50-v1.5",
    "preresnet34",
    "preresnet50",
    "alexnet",
    "googlenet",
    "googlenet-bn",
]
EXACT: Any = {"kernel_init": "he", "dtype": jnp.float32}
CONV, NORM = partial(conv, **EXACT), BatchNorm


def abstract(model, shape=(224, 224, 3), batch=1):
    return jax.eval_shape(
        model.init, jax.random.key(0), jax.ShapeDtypeStruct((batch, *shape), "float32")
    )


def shapes(name, side, **options):
    """The shapes of a network's stages; nothing is computed."""
    model, x = create_model(name, 7, **options), jax.ShapeDtypeStruct((2, side, side, 3), "float32")
    (logits, seen), _ = jax.eval_shape(
        partial(model.init_with_output, stages=True), jax.random.key(0), x
    )
    assert logits.shape == (2, 7)
    return {key: maps.shape[1:] for key, maps in seen.items()}


def weights(module, x):
    """Random variables, none negative, of a module called with an input and `train`."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, False))
    return dict(
        jax.tree.map(lambda leaf: np.abs(images(leaf.shape, 1)[0]) / math.sqrt(leaf.size), shapes)
    )


def relu(x):
    return np.maximum(x, 0)


def double(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


# Counts: paper.md section 3, that is the papers' tables as PyTorch's networks have them.


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_parameters_are_the_published(name, count):
    assert count_parameters(create_model(name, 1000), (224, 224, 3)) == count


@pytest.mark.parametrize(
    ("name", "count"), [("googlenet", 13_378_280), ("googlenet-bn", 13_004_888)]
)
def test_auxiliary_heads_have_the_published_parameters(name, count):
    assert count_parameters(create_model(name, 1000, aux=True), (224, 224, 3)) == count


@pytest.mark.parametrize("depth", [20, 164])
def test_preactivation_for_cifar_has_the_published_parameters(depth):
    assert (
        count_parameters(create_model(f"cifar-preresnet{depth}", 10), (32, 32, 3))
        == CIFAR_COUNTS[depth]
    )


@pytest.mark.parametrize(("depth", "small"), [(110, (8, 14)), (1001, (29, 47))])
def test_deep_preactivation_for_cifar_has_the_published_parameters(depth, small):
    a, b = (
        count_parameters(create_model(f"cifar-preresnet{depth}", 10), (32, 32, 3))
        for depth in small
    )
    assert a + (b - a) * (depth - small[0]) // (small[1] - small[0]) == CIFAR_COUNTS[depth]
    model = create_model(f"cifar-preresnet{depth}", 10)
    assert isinstance(model, PreActResNet)
    assert (model.blocks, model.shortcut) == (
        ((18,) * 3, "A") if depth == 110 else ((111,) * 3, "B")
    )


@pytest.mark.parametrize(
    "name", ["resnet18", "plain34", "resnet50", "preresnet34", "preresnet50", "resnet101-v1.5"]
)
def test_depth_counts_convolutions_and_the_dense_layer_but_no_projections(name):
    paths = jax.tree_util.tree_leaves_with_path(abstract(create_model(name, 10))["params"])
    kernels = [path for path, leaf in paths if leaf.ndim > 1 and path[-2].key != "project"]
    assert len(kernels) == int("".join(filter(str.isdigit, name.split("-")[0])))


# Names.


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet18-v1.5", "write resnet"),
        ("googlenet-v1", "write googlenet"),
        ("alexnet-group", "write alexnet-groups"),
        (
            "preresnet21",
            "depth is 21; expected 6 n + 2 or 9 n + 2 for a whole n >= 1: write 20 or 26",
        ),
        ("cifar-preresnet2", "write 8 or 14"),
        ("cifar-resnet34", "depth is 34; expected 6 n + 2"),
    ],
)
def test_what_no_network_is_called_is_refused_with_the_nearest(name, hint):
    with pytest.raises(ArgumentError) as error:
        create_model(name, 10)
    assert hint in one_line(error)


@pytest.mark.parametrize(
    ("name", "options", "hint"),
    [
        ("plain34", {"shortcut": "A"}, "option of plain34 is 'shortcut'"),
        ("resnet50", {"stride_in_3x3": True}, "option of resnet50 is 'stride_in_3x3'"),
        ("googlenet", {"aux": "yes"}, "aux is 'yes'; expected True or False"),
        ("resnet18", {"aux": True}, "option of resnet18 is 'aux'"),
        ("alexnet", {"dropout": 1.0}, "dropout is 1.0"),
        ("preresnet18", {"shortcut": "C"}, "expected one of A, B"),
    ],
)
def test_options_that_a_network_has_not_are_refused(name, options, hint):
    with pytest.raises(ArgumentError) as error:
        create_model(name, 10, **options)
    assert hint in one_line(error)


# Shapes.


def ceiled(side, times):
    """`side` halved so many times, up."""
    return math.ceil(side / 2**times)


@pytest.mark.slow
@pytest.mark.parametrize("side", [28, 32, 64, 224])
@pytest.mark.parametrize(
    ("name", "widening"), [("resnet18", 1), ("resnet50", 4), ("preresnet50", 4), ("plain34", 1)]
)
def test_residual_networks_halve_five_times(name, widening, side):
    expected = {"stem": (ceiled(side, 1),) * 2 + (64,), "pool": (512 * widening,)}
    for stage in (1, 2, 3, 4):
        expected[f"stage{stage}"] = (ceiled(side, stage + 1),) * 2 + (32 * 2**stage * widening,)
    if "pre" in name:
        expected["norm"] = expected["stage4"]
    assert shapes(name, side) == expected


@pytest.mark.parametrize(("depth", "channels"), [(20, (16, 32, 64)), (164, (64, 128, 256))])
def test_preactivation_for_cifar_halves_twice(depth, channels):
    expected = {f"stage{i + 1}": (32 >> i, 32 >> i, c) for i, c in enumerate(channels)}
    expected |= {"stem": (32, 32, 16), "norm": expected["stage3"], "pool": (channels[2],)}
    assert shapes(f"cifar-preresnet{depth}", 32) == expected


@pytest.mark.slow
@pytest.mark.parametrize("side", [32, 64, 224])
@pytest.mark.parametrize("name", ["googlenet", "googlenet-bn"])
def test_googlenet_has_the_maps_of_its_table_1(name, side):
    third, fourth = {"a": 256, "b": 480}, {"a": 512, "b": 512, "c": 512, "d": 528, "e": 832}
    expected = {"conv1": (2, 64), "conv2": (4, 64), "conv3": (4, 192)}
    expected |= {f"inception3{part}": (8, filters) for part, filters in third.items()}
    expected |= {f"inception4{part}": (16, filters) for part, filters in fourth.items()}
    expected |= {"inception5a": (32, 832), "inception5b": (32, 1024)}
    maps = {key: (side // less,) * 2 + (filters,) for key, (less, filters) in expected.items()}
    assert shapes(name, side) == maps | {"pool": (1024,)}


@pytest.mark.parametrize(
    ("name", "side", "maps"),
    [
        ("alexnet", 63, (15, 7, 3)),
        ("alexnet", 64, (15, 7, 3)),
        ("alexnet", 224, (55, 27, 13)),
        ("alexnet-groups", 224, (55, 27, 13)),
        ("alexnet-groups", 227, (55, 27, 13)),
    ],
)
def test_alexnet_has_the_maps_of_its_figure_2(name, side, maps):
    filters = (96, 256, 384, 384, 256) if "groups" in name else (64, 192, 384, 256, 256)
    sides = (*maps, maps[2], maps[2])
    expected = {
        f"conv{i}": (side, side, c)
        for i, (side, c) in enumerate(zip(sides, filters, strict=True), 1)
    }
    assert shapes(name, side) == expected | {"dense1": (4096,), "dense2": (4096,)}


@pytest.mark.parametrize("side", [32, 50, 64])
def test_the_large_vgg_takes_small_images(side):
    found = shapes("vgg11", side)
    assert [found[f"stage{i + 1}"][0] for i in range(5)] == [side >> i for i in range(5)]
    assert count_parameters(create_model("vgg11", 1000), (side, side, 3)) == 132_863_336


@pytest.mark.parametrize(
    ("name", "options", "shape", "hint"),
    [
        ("alexnet", {}, (62, 64, 3), "images of 62x64 pixels; expected at least 63x63"),
        (
            "alexnet-groups",
            {},
            (200, 200, 3),
            "images of 200x200 pixels; expected 224x224 or 227x227",
        ),
        ("googlenet", {}, (32, 31, 3), "images of 32x31 pixels; expected at least 32x32"),
        ("googlenet", {"aux": True}, (78, 78, 3), "write aux=False, or images of at least 79x79"),
    ],
)
def test_images_that_are_too_small_are_refused(name, options, shape, hint):
    with pytest.raises(ArgumentError) as error:
        abstract(create_model(name, 10, **options), shape)
    assert hint in one_line(error)


@pytest.mark.parametrize(("name", "side"), [("googlenet", 79), ("googlenet-bn", 32)])
def test_auxiliary_heads_take_images_from_their_least_size_on(name, side):
    assert "aux1" in abstract(create_model(name, 10, aux=True), (side, side, 3))["params"]


# Pooling and normalisation, from their definitions.


def starts(side, size, stride, padding, ceil):
    """Where windows begin: the next one is added while the last does not reach the border, if it begins in the image."""
    found = [-padding]
    while found[-1] + stride + size <= side + padding:
        found.append(found[-1] + stride)
    if ceil and found[-1] + size < side + padding and found[-1] + stride < side:
        found.append(found[-1] + stride)
    return found


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize(
    ("size", "stride", "padding"),
    [(3, 2, 1), (3, 2, 0), (2, 2, 0), (3, 1, 1), (2, 3, 1), (2, 2, 1)],
)
def test_max_pooling_takes_the_maximum_of_the_pixels_in_each_window(size, stride, padding, ceil):
    for h, w in ((7, 8), (9, 6)):
        x = -1 - np.abs(images((h, w, 2)))  # a border of zeros would win
        rows, columns = (
            [slice(max(0, a), a + size) for a in starts(n, size, stride, padding, ceil)]
            for n in (h, w)
        )
        expected = np.stack(
            [np.stack([x[:, i, j].max((1, 2)) for j in columns], 1) for i in rows], 1
        )
        np.testing.assert_array_equal(
            max_pool(jnp.asarray(x), size, stride, padding, ceil), expected
        )


@pytest.mark.parametrize(
    ("h", "w", "size"), [(7, 13, 6), (12, 6, 6), (1, 2, 7), (14, 10, 4), (5, 3, 1)]
)
def test_adaptive_averages_cover_the_pixels_that_their_share_touches(h, w, size):
    def shares(side):
        touched = [
            [(j + 1) * size > i * side and j * size < (i + 1) * side for j in range(side)]
            for i in range(size)
        ]
        return np.array(touched) / np.sum(touched, 1, keepdims=True)

    x = images((h, w, 3))
    close(
        adaptive_average(jnp.asarray(x), size),
        np.einsum("ih,jw,bhwc->bijc", shares(h), shares(w), x),
    )


def test_average_pooling_keeps_to_the_windows_that_fit():
    x = images((9, 6, 3))
    expected = [[x[:, i : i + 3, j : j + 3].mean((1, 2)) for j in (0, 2)] for i in (0, 2, 4, 6)]
    close(average_pool(jnp.asarray(x), 3, 2), np.moveaxis(np.array(expected), 2, 0))


@pytest.mark.parametrize("constants", [{}, {"size": 3, "k": 1.0, "alpha": 0.5, "beta": 0.6}])
def test_local_response_norm_divides_by_the_neighbouring_channels(constants):
    x = 30 * images((2, 3, 9))
    size, k, alpha, beta = (
        constants | {"size": 5, "k": 2, "alpha": 1e-4, "beta": 0.75} | constants
    ).values()
    total = size * uniform_filter1d(np.square(x.astype(np.float64)), size, axis=-1, mode="constant")
    close(local_response_norm(jnp.asarray(x), **constants), x / (k + alpha * total) ** beta)
    assert local_response_norm(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("size", "stride", "padding", "groups"), [(3, 1, None, 2), (5, 2, 2, 1), (3, 2, 0, 3)]
)
def test_a_convolution_correlates_each_group_of_channels(size, stride, padding, groups):
    layer = conv(6, size, stride, groups=groups, padding=padding, bias=True, **EXACT)
    x, around = images((7, 8, 6), batch=2), (size - 1) // 2 if padding is None else padding
    params = double(drawn(layer, x.shape[1:])["params"])
    # In float64 as the kernels: given two dtypes, SciPy casts memory that nobody wrote, and NumPy
    # warns of what may lie in it.
    wide, share = (
        np.pad(np.float64(x), ((0, 0), (around, around), (around, around), (0, 0))),
        6 // groups,
    )
    expected = np.zeros((2, *np.array(wide.shape[1:3]) - size + 1, 6))
    for filter_ in range(6):
        first = filter_ // share * share
        for image in range(2):
            seen, kernel = wide[image, ..., first : first + share], params["kernel"][..., filter_]
            expected[image, ..., filter_] = (
                correlate(seen, kernel, "valid")[..., 0] + params["bias"][filter_]
            )
    close(
        layer.apply({"params": jax.tree.map(jnp.float32, params)}, x),
        expected[:, ::stride, ::stride],
    )


def test_halving_drops_an_odd_last_line():
    x = jnp.asarray(images((5, 7, 2)))
    np.testing.assert_array_equal(pool_2x2(x, jnp.max), max_pool(x, 2, 2))


# Whole networks, in NumPy and in float64.


def np_norm(x, p, s, train, epsilon=1e-5):
    mean, var = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if train else (s["mean"], s["var"])
    return (x - mean) / np.sqrt(var + epsilon) * p["scale"] + p["bias"]


def np_pool(x, size, stride, padding, ceil):
    rows, columns = (
        [slice(max(0, a), a + size) for a in starts(n, size, stride, padding, ceil)]
        for n in x.shape[1:3]
    )
    return np.stack([np.stack([x[:, i, j].max((1, 2)) for j in columns], 1) for i in rows], 1)


def np_shortcut(x, y, p, s, stride, kind, train):
    if kind is None or x.shape == y.shape:
        return x if kind else 0
    if kind == "A":
        return np.concatenate(
            [x[:, ::stride, ::stride], np.zeros((*y.shape[:3], y.shape[3] - x.shape[3]))], -1
        )
    x = np_conv(x, p["project"]["kernel"], stride, 0)
    return np_norm(x, p["project_norm"], s["project_norm"], train) if "project_norm" in p else x


def np_block(x, p, s, stride, kind, late, train):
    """Convolutions and BN, ReLU between; the addition; ReLU. `late`: the second convolution has the stride."""
    layers, y = 3 if "conv3" in p else 2, x
    for layer in range(1, layers + 1):
        kernel = p[f"conv{layer}"]["kernel"]
        step = stride if layer == (2 if late else 1) else 1
        y = np_conv(relu(y) if layer > 1 else y, kernel, step, len(kernel) // 2)
        y = np_norm(y, p[f"norm{layer}"], s[f"norm{layer}"], train)
    return relu(y + np_shortcut(x, y, p, s, stride, kind, train))


def np_preblock(x, p, s, stride, kind, first, train):
    """BN, ReLU, convolution, each time; the addition. The first block of a stage adds what its first ReLU gives."""
    layers = 3 if "conv3" in p else 2
    y = relu(np_norm(x, p["norm1"], s["norm1"], train)) if "norm1" in p else x
    x = y if first else x
    for layer in range(1, layers + 1):
        kernel = p[f"conv{layer}"]["kernel"]
        y = relu(np_norm(y, p[f"norm{layer}"], s[f"norm{layer}"], train)) if layer > 1 else y
        y = np_conv(y, kernel, stride if layer == 1 else 1, len(kernel) // 2)
    return y + np_shortcut(x, y, p, s, stride, kind, train)


def np_resnet(model, variables, x, train):
    params, stats = double(variables["params"]), double(variables["batch_stats"])
    pre, large = isinstance(model, PreActResNet), not getattr(model, "small", False)
    kind = model.shortcut if getattr(model, "residual", True) else None
    x = np_conv(x, params["stem"]["kernel"], 2 if large else 1, 3 if large else 1)
    x = relu(np_norm(x, params["stem_norm"], stats["stem_norm"], train))
    x = np_pool(x, 3, 2, 1, False) if large else x
    for stage, blocks in enumerate(model.blocks, 1):
        for block in range(1, blocks + 1):
            p, s = (tree[f"stage{stage}_block{block}"] for tree in (params, stats))
            stride = 2 if stage > 1 and block == 1 else 1
            late = getattr(model, "stride_in_3x3", False)
            x = (
                np_preblock(x, p, s, stride, kind, block == 1, train)
                if pre
                else np_block(x, p, s, stride, kind, late, train)
            )
    x = relu(np_norm(x, params["norm"], stats["norm"], train)) if pre else x
    return np.mean(x, (1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "options", "train"),
    [
        (ResNet, {}, True),
        (ResNet, {"residual": False}, False),
        (ResNet, {"bottleneck": True}, False),
        (ResNet, {"bottleneck": True, "stride_in_3x3": True, "shortcut": "A"}, False),
        (PreActResNet, {"bottleneck": True}, False),
        (PreActResNet, {"small": True, "shortcut": "A"}, True),
    ],
)
def test_residual_networks_are_what_numpy_computes(network, options, train):
    model, x = network((2, 2), 5, width=2, **options), images((13, 16, 3))
    variables = drawn(model, x.shape[1:])
    logits, _ = run(model, variables, x, train=train, mutable=["batch_stats"] if train else [])
    close(logits, np_resnet(model, variables, x, train), 1e-5)


def np_unit(x, params, stats, name, stride=1):
    kernel = params[name]["kernel"]
    y = np_conv(x, kernel, stride, len(kernel) // 2) + params[name].get("bias", 0)
    return relu(
        np_norm(y, params[f"{name}_norm"], stats[f"{name}_norm"], False, 1e-3) if stats else y
    )


def np_inception(x, params, stats):
    unit = lambda x, name: np_unit(x, params, stats, name)  # noqa: E731
    twice = [unit(unit(x, f"branch{i}_reduce"), f"branch{i}") for i in (2, 3)]
    return np.concatenate(
        [unit(x, "branch1"), *twice, unit(np_pool(x, 3, 1, 1, False), "branch4")], -1
    )


@pytest.mark.parametrize("norm", [False, True])
def test_an_inception_module_is_four_branches_of_which_the_third_is_5x5_and_with_bn_3x3(norm):
    make = CONV, partial(BatchNorm, epsilon=1e-3) if norm else None
    module, x = Inception((2, 3, 4, 1, 2, 3), make), jnp.asarray(images((5, 6, 3)))
    variables = weights(module, x)
    params, stats = double(variables["params"]), double(variables.get("batch_stats", {}))
    assert params["branch3"]["kernel"].shape == ((3, 3, 1, 2) if norm else (5, 5, 1, 2))
    close(
        jax.jit(module.apply, static_argnums=2)(variables, x, False),
        np_inception(x, params, stats),
        1e-5,
    )


def np_lrn(x):
    return x / (2 + 1e-4 * 5 * uniform_filter1d(np.square(x), 5, axis=-1, mode="constant")) ** 0.75


def test_googlenet_as_printed_is_what_numpy_computes(monkeypatch):
    few = {f"inception{part}": (2, 3, 4, 1, 2, 3) for part in ("3a", "4a", "5a")}
    monkeypatch.setattr(googlenet, "TABLE", few)
    model, x = GoogLeNet(3), images((32, 48, 3), batch=2)
    variables = drawn(model, x.shape[1:])
    params = double(variables["params"])
    pool = lambda y: np_pool(y, 3, 2, 0, True)  # noqa: E731
    y = np_lrn(pool(np_unit(x, params, {}, "conv1", 2)))
    y = pool(np_lrn(np_unit(np_unit(y, params, {}, "conv2"), params, {}, "conv3")))
    for name in few:
        y = np_inception(y if name == "inception3a" else pool(y), params[name], {})
    expected = y.mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]
    close(run(model, variables, x), expected, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "side"), [("alexnet", 63), ("alexnet-groups", 224)])
def test_alexnets_are_what_numpy_computes_up_to_the_first_dense_layer(name, side):
    model, x, towers = (
        create_model(name, 2),
        images((side, side, 3), batch=1),
        name == "alexnet-groups",
    )
    rng, shapes = np.random.default_rng(0), abstract(model, (side, side, 3))["params"]
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    for key, layer in params.items():  # of the dense layers' 54 million weights, 8 units'
        part = (
            layer["kernel"][..., :8]
            if "dense1" in key
            else layer["kernel"]
            if "conv" in key
            else np.zeros(0)
        )
        part[...] = rng.normal(size=part.shape) / math.sqrt(max(1, np.prod(part.shape[:-1])))
        layer["bias"][...] = rng.normal(size=layer["bias"].shape)
    _, seen = run(model, {"params": params}, x, stages=True)
    y = np.pad(x, ((0, 0), (2, 1 if towers else 2), (2, 1 if towers else 2), (0, 0)))
    for number, groups in enumerate((1, 2, 1, 2, 2) if towers else (1,) * 5, 1):
        layer, stride, pad = (
            params[f"conv{number}"],
            4 if number == 1 else 1,
            {1: 0, 2: 2}.get(number, 1),
        )
        halves = zip(np.split(y, groups, -1), np.split(layer["kernel"], groups, -1), strict=True)
        y = relu(
            np.concatenate([np_conv(part, kernel, stride, pad) for part, kernel in halves], -1)
            + layer["bias"]
        )
        close(seen[f"conv{number}"], y, 1e-5)
        y = np_lrn(y) if towers and number < 3 else y
        y = np_pool(y, 3, 2, 0, False) if number in (1, 2, 5) else y
    y = (
        np.repeat(np.repeat(y, 6, 1), 6, 2) if len(y[0]) == 1 else y
    )  # pixels of 1x1 maps repeated 6x6 times
    close(
        seen["dense1"][:, :8],
        relu(y.reshape(1, -1) @ params["dense1"]["kernel"][:, :8] + params["dense1"]["bias"][:8]),
        1e-5,
    )


@pytest.mark.slow
@pytest.mark.parametrize("norm", [False, True])
def test_auxiliary_heads_average_5x5_windows_and_with_bn_4x4_shares(norm):
    make, dense = (
        (CONV, partial(BatchNorm, epsilon=1e-3) if norm else None),
        partial(nn.Dense, kernel_init=initializer("he")),
    )
    head, x = AuxiliaryHead(make, dense, 3, None), images((14, 14, 2))
    variables = weights(head, x)
    params, stats = double(variables["params"]), double(variables.get("batch_stats", {}))
    _, new = head.apply(variables, x, False, mutable=["aux"])
    edges = [(0, 4), (3, 7), (7, 11), (10, 14)] if norm else [(i, i + 5) for i in (0, 3, 6, 9)]
    y = np.stack(
        [np.stack([x[:, a:b, c:d].mean((1, 2)) for c, d in edges], 1) for a, b in edges], 1
    )
    y = relu(
        np_unit(y, params, stats, "conv").reshape(3, -1) @ params["dense"]["kernel"]
        + params["dense"]["bias"]
    )
    close(new["aux"]["logits"][0], y @ params["head"]["kernel"] + params["head"]["bias"], 1e-5)


# What the papers state.


@pytest.mark.slow
@pytest.mark.parametrize("late", [False, True])
def test_a_halving_bottleneck_of_v1_never_sees_three_pixels_in_four_and_that_of_v1_5_sees_all(late):
    block, x = Bottleneck(2, 2, "A", CONV, NORM, late), jnp.ones((1, 6, 6, 4))
    variables = weights(block, x)  # none negative: every ReLU lets its input pass
    seen = jax.jit(jax.grad(lambda x: jnp.sum(block.apply(variables, x, False))))(x).sum((0, 3)) > 0  # pyright: ignore
    expected = np.zeros((6, 6), bool)
    expected[::2, ::2] = True
    np.testing.assert_array_equal(seen, True if late else expected)


def test_v1_and_v1_5_have_the_same_parameters():
    assert abstract(create_model("resnet50", 10)) == abstract(create_model("resnet50-v1.5", 10))


def silent(tree, kind="conv"):
    """Variables whose last layer of a kind gives 0."""
    last = max(key for key in tree["params"] if key.startswith(kind))
    return tree | {
        "params": tree["params"] | {last: jax.tree.map(jnp.zeros_like, tree["params"][last])}
    }


@pytest.mark.parametrize("bottleneck", [False, True])
def test_a_preactivated_block_that_computes_nothing_is_the_identity_for_negative_numbers_and_gradients_too(
    bottleneck,
):
    channels = 8 if bottleneck else 2
    block = PreActBlock(2, 1, bottleneck, False, False, "B", CONV, NORM)
    x = jnp.asarray(images((4, 4, channels), batch=2))
    variables = silent(weights(block, x))
    y, pulled = jax.jit(
        lambda x: jax.jvp(lambda x: block.apply(variables, x, False), (x,), (x**2,))
    )(x)
    assert x.min() < 0
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(pulled, x**2)


def test_a_block_of_2015_that_computes_nothing_loses_negative_numbers():
    x = jnp.asarray(images((4, 4, 2), batch=2))
    block = Block(2, 1, "B", CONV, NORM)
    variables = silent(weights(block, x), "norm")
    np.testing.assert_array_equal(jax.jit(lambda x: block.apply(variables, x, False))(x), relu(x))


def heads(name, train, **options):
    """What a network of 5 classes sows in "aux", as shapes, and the collections of its variables."""
    model, x = create_model(name, 5, **options), jax.ShapeDtypeStruct((2, 96, 96, 3), "float32")
    variables = abstract(model, (96, 96, 3))
    apply = partial(
        model.apply,
        train=train,
        mutable=["aux", "batch_stats"],
        rngs={"dropout": jax.random.key(0)},
    )
    _, new = jax.eval_shape(apply, variables, x)
    return jax.tree.leaves(new.get("aux", {})), variables


@pytest.mark.slow
@pytest.mark.parametrize("name", ["googlenet", "googlenet-bn"])
def test_auxiliary_heads_speak_in_training_only(name):
    sown, variables = heads(name, True, aux=True)
    assert [(leaf.shape, leaf.dtype) for leaf in sown] == [((2, 5), jnp.float32)] * 2
    assert set(variables) == {"params"} | ({"batch_stats"} if "bn" in name else set())
    assert {"aux1", "aux2"} < set(variables["params"])
    assert heads(name, False, aux=True)[0] == []
    silent, without = heads(name, True)
    assert silent == []
    assert not {"aux1", "aux2"} & set(without["params"])


def called(model, x, **options):
    """The modules in the order in which a network calls them; nothing is computed."""
    modules = []

    def note(call, args, kwargs, context):
        modules.extend([context.module] if context.method_name == "__call__" else [])
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(
            partial(model.init, **options),
            {"params": jax.random.key(0), "dropout": jax.random.key(0)},
            x,
        )
    return modules


@pytest.mark.parametrize(
    ("name", "side", "first"), [("alexnet", 63, "Dropout"), ("alexnet-groups", 224, "dense")]
)
def test_alexnet_of_2012_drops_what_hidden_layers_give_and_the_one_tower_what_they_get(
    name, side, first
):
    model, x = create_model(name, 2), jax.ShapeDtypeStruct((1, side, side, 3), "float32")
    order = [str(module.name).strip("_012") for module in called(model, x, train=True)][
        6:
    ]  # after itself and conv5
    assert order == [first, "Dropout" if first == "dense" else "dense"] * 2 + ["head"]
    with pytest.raises(flax.errors.InvalidRngError):
        jax.eval_shape(partial(model.apply, train=True), abstract(model, (side, side, 3)), x)


@pytest.mark.slow
def test_transform_input_turns_imagenets_normalisation_into_halves():
    bytes_ = np.array([0, 0.25, 1]).reshape(1, 1, 3, 1) * np.ones((1, 1, 1, 3))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    close(_imagenet_to_half(jnp.asarray((bytes_ - mean) / std, jnp.float32)), 2 * bytes_ - 1)
    plain, turned = (create_model("googlenet-bn", 2, transform_input=on) for on in (False, True))
    text = [
        str(jax.make_jaxpr(m.apply)(abstract(m, (32, 32, 3)), jnp.zeros((1, 32, 32, 3))))
        for m in (plain, turned)
    ]
    assert text[1].count(" mul ") == text[0].count(" mul ") + 1


# Options reach every layer.


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_options_reach_every_layer(name):
    options: dict[str, Any] = {"dtype": "bfloat16", "kernel_init": "lecun"}
    options |= (
        {}
        if "bn" not in name and name[:3] != "res" and name[:3] != "pre"
        else {"bn_group": 2, "bn_momentum": 0.5}
    )
    model, x = (
        create_model(name, 10, **options).clone(axis_name="batch"),
        jax.ShapeDtypeStruct((2, 224, 224, 3), "float32"),
    )
    layers = called(model, x)
    (logits, seen), variables = jax.eval_shape(
        partial(model.init_with_output, stages=True), jax.random.key(0), x
    )
    assert logits.dtype == jnp.float32
    assert {maps.dtype for key, maps in seen.items() if key != "pool"} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    norms = [layer for layer in layers if isinstance(layer, BatchNorm)]
    epsilon = 1e-3 if name == "googlenet-bn" else 1e-5
    assert {(n.group, n.momentum, n.epsilon, n.axis_name) for n in norms} <= {
        (2, 0.5, epsilon, "batch")
    }
    assert {layer.axis_name for layer in layers if isinstance(layer, Dropout)} <= {"batch"}
    weighted = [layer for layer in layers if isinstance(layer, (nn.Conv, nn.Dense))]
    assert {layer.kernel_init for layer in weighted} == {initializer("lecun")}


@pytest.mark.slow
def test_a_small_residual_network_learns_its_batch():
    model, x = ResNet((1,), 3, bottleneck=True, width=4), images((16, 16, 3), batch=6)
    labels = jnp.arange(6) % 3

    @jax.jit
    def step(variables):
        def loss(params):
            variables_ = variables | {"params": params}
            logits, new = model.apply(variables_, x, train=True, mutable=["batch_stats"])
            return optax.losses.softmax_cross_entropy_with_integer_labels(
                logits, labels
            ).mean(), new

        (value, new), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        return value, {
            "params": jax.tree.map(lambda p, g: p - 0.05 * g, variables["params"], grads)
        } | dict(new)

    variables, losses = dict(drawn(model, x.shape[1:])), []
    for _ in range(5):
        before = variables
        value, variables = step(variables)
        losses.append(float(value))
    assert losses[-1] < losses[0]
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, variables)
    assert all(jax.tree.leaves(moved["batch_stats"]))
    assert all(
        layer["kernel"] for layer in moved["params"]["stage1_block1"].values() if "kernel" in layer
    )
