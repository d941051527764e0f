"""PSPNet and DeepLabv3+: published counts, NumPy in float64, dilation, auxiliary head, and mistakes.

torchvision's DeepLabv3 has the pyramid and the backbone of DeepLabv3+, without its decoder. Its
weights state 42,004,074 parameters (torchvision/models/segmentation/deeplabv3.py) and 178.722
billion multiply-adds at 520x520 pixels (its documentation), auxiliary head included.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_models_small import close, double, drawn, images, np_norm, refused, run, shapes

import jaxcnn as jc
from jaxcnn import cpu
from jaxcnn.config import ArgumentError
from jaxcnn.cpu.convolution import rule
from jaxcnn.cpu.rewriting import count_matches
from jaxcnn.models import count_parameters, create_model, model_call
from jaxcnn.models.deeplab import DeepLabV3Plus
from jaxcnn.models.layers import adaptive_average, conv, resize_bilinear
from jaxcnn.models.pspnet import PSPNet
from jaxcnn.models.segmentation import parse_backbone

SMALL = {"backbone": "resnet8", "output_stride": 2, "width": 4}
PSPNET = SMALL | {"pools": [1, 2, 3, 6]}
DEEPLAB = SMALL | {"rates": [2, 3, 9]}
CASES = [("pspnet", PSPNET), ("deeplabv3plus", DEEPLAB)]


# Layers, as explicit sums.


def np_conv(x, kernel, stride=1, dilation=1):
    """A sum over the weights of a square kernel, of maps that are moved and padded by zeros."""
    _, h, w, _ = x.shape
    size = len(kernel)
    border = (size - 1) * dilation // 2
    padded = np.pad(x, ((0, 0), (border, border), (border, border), (0, 0)))
    total = 0.0
    for i, j in np.ndindex(size, size):
        y, x0 = i * dilation, j * dilation
        total = total + padded[:, y : y + h, x0 : x0 + w] @ kernel[i, j]
    return np.asarray(total)[:, ::stride, ::stride]


def np_pool(x, size):
    """PyTorch's adaptive average pooling, window by window."""
    _, h, w, _ = x.shape
    rows = [(i * h // size, math.ceil((i + 1) * h / size)) for i in range(size)]
    columns = [(i * w // size, math.ceil((i + 1) * w / size)) for i in range(size)]
    return np.stack(
        [np.stack([x[:, a:b, c:d].mean((1, 2)) for c, d in columns], 1) for a, b in rows], 1
    )


def np_resize(x, height, width):
    """Bilinear interpolation pixel by pixel: centers of half pixels, borders continued."""
    b, h, w, c = x.shape
    result = np.zeros((b, height, width, c))
    for i, j in np.ndindex(height, width):
        y = min(max((i + 0.5) * h / height - 0.5, 0), h - 1)
        z = min(max((j + 0.5) * w / width - 0.5, 0), w - 1)
        for row in {int(y), min(int(y) + 1, h - 1)}:
            for column in {int(z), min(int(z) + 1, w - 1)}:
                share = (1 - abs(y - row)) * (1 - abs(z - column))
                result[:, i, j] += share * x[:, row, column]
    return result


@pytest.mark.parametrize(("h", "w"), [(6, 12), (16, 11), (7, 3), (1, 2), (65, 64)])
@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_adaptive_windows_are_those_of_pytorch_also_where_they_do_not_divide_the_map(h, w, size):
    x = images((h, w, 2))
    close(adaptive_average(jnp.asarray(x), size), np_pool(x.astype(np.float64), size), 1e-6)


@pytest.mark.parametrize(
    ("before", "after"), [((2, 3), (7, 9)), ((1, 1), (4, 5)), ((6, 6), (16, 11)), ((8, 9), (3, 9))]
)
def test_bilinear_maps_are_interpolated_between_the_centers_of_half_pixels(before, after):
    x = images((*before, 2))
    close(resize_bilinear(jnp.asarray(x), *after), np_resize(x.astype(np.float64), *after), 1e-6)


def test_upsampling_leaves_a_ramp_where_it_is():
    """At factor 4 a map's pixel i has its center at 4 i + 1.5 of the result, not at 4 i."""
    ramp = jnp.arange(5.0).reshape(1, 5, 1, 1)
    result = np.asarray(resize_bilinear(ramp, 20, 1)).ravel()
    inside = slice(2, 18)
    np.testing.assert_allclose(result[inside], (np.arange(20) - 1.5)[inside] / 4, atol=1e-6)
    np.testing.assert_array_equal(result[:2], 0)
    np.testing.assert_array_equal(result[18:], 4)


@pytest.mark.parametrize("rate", [1, 2, 3, 5])
def test_a_delta_spreads_to_nine_pixels_that_are_the_rate_apart(rate):
    delta = np.zeros((1, 13, 15, 1), np.float32)
    delta[0, 6, 7] = 1
    layer = conv(1, 3, kernel_init="he", dtype="float32", dilation=rate)
    kernel = np.arange(1, 10, dtype=np.float32).reshape(3, 3, 1, 1)
    y = np.asarray(layer.apply({"params": {"kernel": kernel}}, delta))[0, ..., 0]
    expected = np.zeros((13, 15))
    for i, j in np.ndindex(3, 3):
        # A convolution here is a correlation, so a delta has the kernel turned round.
        expected[6 - (i - 1) * rate, 7 - (j - 1) * rate] = kernel[i, j, 0, 0]
    np.testing.assert_array_equal(y, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "rate"),
    [((3, 16, 16, 8), 3), ((4, 9, 11, 6), 2), ((2, 8, 8, 16), 9), ((3, 5, 7, 1), 2)],
)
@pytest.mark.parametrize("rewritten", [False, True])
def test_atrous_convolutions_and_their_gradients_are_explicit_sums(shape, rate, rewritten):
    """Also in the program that is rewritten for CPUs, and where the kernel reaches beyond the map."""
    if rewritten and not cpu.available():
        pytest.skip("oneDNN cannot be called here")
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=shape), rng.normal(size=(3, 3, shape[-1], 5))
    slope = rng.normal(size=(*shape[:3], 5))
    layer = conv(5, 3, kernel_init="he", dtype="float32", dilation=rate)

    def program(x, kernel, slope):
        y, back = jax.vjp(lambda x, k: layer.apply({"params": {"kernel": k}}, x), x, kernel)
        return y, *back(slope)

    arrays = [jnp.asarray(array, jnp.float32) for array in (x, kernel, slope)]
    # Of the three convolutions, the gradient of the kernel is left to XLA.
    assert count_matches(jax.make_jaxpr(program)(*arrays), rule) == 1 + (shape[-1] > 1)
    with cpu.without_persistent_cache():
        y, x_slope, kernel_slope = jax.jit(cpu.optimized(program) if rewritten else program)(
            *arrays
        )
    close(y, np_conv(x, kernel, dilation=rate))
    turned = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
    close(x_slope, np_conv(slope, turned, dilation=rate))
    padded = np.pad(x, ((0, 0), (rate, rate), (rate, rate), (0, 0)))
    _, h, w, _ = shape
    for i, j in np.ndindex(3, 3):
        part = padded[:, i * rate : i * rate + h, j * rate : j * rate + w]
        expected = np.einsum("bhwc,bhwf->cf", part, slope)
        np.testing.assert_allclose(
            kernel_slope[i, j], expected, rtol=0, atol=1e-5 * abs(kernel_slope).max()
        )


# Whole networks in float64.


class NumPy:
    """The layers of a network with given variables."""

    def __init__(self, variables, train):
        self.params, self.stats = (double(variables[kind]) for kind in ("params", "batch_stats"))
        self.train = train

    def norm(self, x, *path):
        params, stats = self.params, self.stats
        for key in path:
            params, stats = params[key], stats[key]
        return np_norm(x, params, stats, self.train)

    def layer(self, x, name, dilation=1):
        x = np_conv(x, self.params[name]["kernel"], dilation=dilation)
        return np.maximum(self.norm(x, f"{name}_norm"), 0)

    def head(self, x, shape, head):
        return np_resize(x @ head["kernel"][0, 0] + head["bias"], *shape)

    def stages(self, x):
        """ResNet-8 of CIFAR with output stride 2: the last stage is dilated by 2 after its first
        convolution."""
        maps = []
        x = self.layer(x, "stem")
        for number, (stride, dilation) in enumerate([(1, 1), (2, 1), (1, 2)], 1):
            name = f"stage{number}_block1"
            block = self.params[name]
            y = np_conv(x, block["conv1"]["kernel"], stride)
            y = np.maximum(self.norm(y, name, "norm1"), 0)
            y = np_conv(y, block["conv2"]["kernel"], dilation=dilation)
            y = self.norm(y, name, "norm2")
            x = x[:, ::stride, ::stride]
            x = np.pad(x, ((0, 0),) * 3 + ((0, y.shape[-1] - x.shape[-1]),))
            x = np.maximum(x + y, 0)
            maps.append(x)
        return maps


def np_pspnet(variables, x, train):
    """The logits of the network and of its auxiliary head."""
    net, shape = NumPy(variables, train), x.shape[1:3]
    *_, before, x = net.stages(x)
    levels = [x]
    for size in PSPNET["pools"]:
        levels.append(np_resize(net.layer(np_pool(x, size), f"pyramid_pool{size}"), *x.shape[1:3]))
    x = net.layer(np.concatenate(levels, -1), "fusion")
    aux = net.params["aux_head"]
    y = np_conv(before, aux["conv"]["kernel"])
    y = np.maximum(net.norm(y, "aux_head", "conv_norm"), 0)
    return net.head(x, shape, net.params["head"]), net.head(y, shape, aux["head"])


def np_deeplab(variables, x, train):
    net, shape = NumPy(variables, train), x.shape[1:3]
    low, *_, x = net.stages(x)
    branches = [net.layer(x, "aspp_conv")]
    for number, rate in enumerate(DEEPLAB["rates"], 1):
        branches.append(net.layer(x, f"aspp_atrous{number}", rate))
    mean = net.layer(x.mean((1, 2), keepdims=True), "aspp_pool")
    branches.append(np.broadcast_to(mean, branches[0].shape))
    x = net.layer(np.concatenate(branches, -1), "aspp_project")
    low = net.layer(low, "decoder_low")
    x = np.concatenate([np_resize(x, *low.shape[1:3]), low], -1)
    for name in ("decoder_conv1", "decoder_conv2"):
        x = net.layer(x, name)
    return net.head(x, shape, net.params["head"])


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("rewritten", [False, True])
def test_networks_are_what_numpy_computes(train, rewritten):
    """On maps of 7x10 pixels, which neither 2, 3 nor 6 windows divide, and of odd images."""
    if rewritten and not cpu.available():
        pytest.skip("oneDNN cannot be called here")
    shape = (13, 20, 3)
    x = images(shape, batch=4)
    for name, options in CASES:
        model = create_model(name, 3, **options)
        variables = drawn(model, shape)

        def program(variables, x, model=model):
            return model.apply(variables, x, train=train, mutable=["batch_stats", "aux"])

        with cpu.without_persistent_cache():
            program = cpu.optimized(program) if rewritten else program
            logits, new = jax.jit(program)(variables, x)
        # Where the average of few values is subtracted from them, more digits cancel.
        tolerance = 1e-4 if train else 1e-5
        if name == "deeplabv3plus":
            assert "aux" not in new
            close(logits, np_deeplab(variables, x.astype(np.float64), train), tolerance)
            continue
        expected, expected_aux = np_pspnet(variables, x.astype(np.float64), train)
        close(logits, expected, tolerance)
        assert ("aux" in new) == train
        if train:
            (aux,) = new["aux"]["aux_head"]["logits"]
            close(aux, expected_aux, tolerance)


# Dilation in place of strides.


@pytest.mark.slow
@pytest.mark.quick_compilation
@pytest.mark.parametrize(
    ("backbone", "strides"),
    [
        ("resnet18", (32, 16, 4)),
        ("resnet50", (32, 8)),
        ("resnet50-v1.5", (32, 8)),
        ("resnet14", (4, 1)),
    ],
)
def test_a_dilated_backbone_has_the_maps_of_the_strided_one_at_every_nth_pixel(backbone, strides):
    """With the same parameters, at sizes that are no multiples, up to the borders."""
    shape = (45, 70, 3)
    x, last = images(shape, batch=2), f"stage{len(parse_backbone(backbone).blocks)}"
    first, *others = [
        create_model("deeplabv3plus", 2, backbone=backbone, output_stride=stride, width=2)
        for stride in strides
    ]
    variables = drawn(first, shape)
    _, expected = run(first, variables, x, stages=True)
    for model in others:
        assert shapes(model, shape) == shapes(first, shape)
        _, stages = run(model, variables, x, stages=True)
        step = strides[0] // model.output_stride
        maps = stages[last]
        assert maps.shape[1:3] == tuple(-(-side // model.output_stride) for side in shape[:2])
        close(maps[:, ::step, ::step], expected[last], 1e-5)
        # The other pixels are no copies.
        assert abs(maps[:, 1::step] - maps[:, ::step][:, : maps[:, 1::step].shape[1]]).max() > 1e-3


# Counts.


def resnet50_count(num_classes=0):
    """Table 1 of He et al. 2015, without the dense layer: 25,557,032 with that of 1000 classes."""
    count, channels = 49 * 3 * 64 + 2 * 64, 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            count += channels * width + 9 * width**2 + 4 * width**2 + 2 * 6 * width
            count += (channels * 4 * width + 2 * 4 * width) * (block == 0)
            channels = 4 * width
    return count


def test_parameters_of_the_papers_sizes():
    """Layer by layer, as in hszhao/semseg's model/pspnet.py but for the stem, and torchvision's."""
    backbone = resnet50_count()
    assert backbone + 2048 * 1000 + 1000 == 25_557_032
    unit = lambda size, fan_in, filters: size**2 * fan_in * filters + 2 * filters  # noqa: E731
    pyramid = 4 * unit(1, 2048, 512) + unit(3, 4096, 512) + 512 * 21 + 21
    aux = unit(3, 1024, 256) + 256 * 21 + 21
    shape = (473, 473, 3)
    assert count_parameters(create_model("pspnet", 21, aux=False), shape) == backbone + pyramid
    assert count_parameters(create_model("pspnet", 21), shape) == backbone + pyramid + aux
    assert (backbone + pyramid, backbone + pyramid + aux) == (46_592_597, 48_957_802)
    decoder = unit(1, 256, 48) + unit(3, 304, 256)
    for backbone_name in ("resnet50", "resnet50-v1.5"):
        model = create_model("deeplabv3plus", 21, backbone=backbone_name)
        # torchvision's head has one 3x3 convolution of 256 to 256 channels, the second here.
        count = count_parameters(model, shape)
        assert count - decoder + aux == 42_004_074
        assert count == 40_352_181


def test_multiply_adds_are_those_of_published_implementations():
    """torchvision: 178.722 G. VainF/DeepLabV3Plus-Pytorch: 62.7 G, with one 3x3 in the decoder.

    The latter's counter also counts two operations for each value of BN.
    """
    options = {"backbone": "resnet50-v1.5", "output_stride": 8, "rates": [12, 24, 36]}
    rows = jc.summary(create_model("deeplabv3plus", 21, **options), (520, 520, 3)).rows
    shared = sum(row.macs for row in rows if not row.name.startswith(("decoder", "head")))
    heads = 65**2 * (9 * 256 * 256 + 256 * 21) + 65**2 * (9 * 1024 * 256 + 256 * 21)
    assert round((shared + heads) / 1e9, 3) == 178.722
    model = create_model("deeplabv3plus", 21, backbone="resnet50-v1.5")
    table = jc.summary(model, (513, 513, 3))
    norms = sum(2 * math.prod(row.shape) for row in table.rows if row.kind == "BatchNorm")
    second = next(row.macs for row in table.rows if row.name == "decoder_conv2")
    assert second == 129**2 * 9 * 256 * 256
    assert (table.macs - second + norms) / 1e9 == pytest.approx(62.7, rel=0.005)


def test_the_summary_names_the_parts():
    rows = {row.name: row for row in jc.summary(create_model("deeplabv3plus", 2), (64, 64, 3)).rows}
    assert [rows[f"aspp_atrous{i}"].kind for i in (1, 2, 3)] == [
        f"Conv 3x3, dilation {rate}" for rate in (6, 12, 18)
    ]
    assert rows["decoder_low"].shape == (16, 16, 48)
    assert rows["aspp_project"].shape == (4, 4, 256)
    rows = {row.name: row for row in jc.summary(create_model("pspnet", 2), (64, 64, 3)).rows}
    assert [rows[f"pyramid_pool{i}"].shape for i in (1, 2, 3, 6)] == [
        (i, i, 512) for i in (1, 2, 3, 6)
    ]
    assert rows["fusion"].shape == (8, 8, 512)
    assert rows["aux_head"].kind == "not used in test mode"


# Shapes, stages and modes.


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("size", [(32, 32), (33, 17), (5, 6), (1, 1)])
def test_logits_have_the_size_of_any_image(name, options, size):
    model, x = create_model(name, 3, **options), jax.ShapeDtypeStruct((2, *size, 3), "float32")
    logits, _ = jax.eval_shape(partial(model.apply, stages=True), shapes(model, (*size, 3)), x)
    assert (logits.shape, logits.dtype) == ((2, *size, 3), jnp.float32)


@pytest.mark.parametrize("name", ["pspnet", "deeplabv3plus"])
def test_the_default_is_the_papers_at_any_width(name):
    model = create_model(name, num_classes=3, width=8)
    x = jax.ShapeDtypeStruct((2, 70, 97, 3), "float32")
    variables = shapes(model, (70, 97, 3))
    logits, stages = jax.eval_shape(partial(model.apply, stages=True), variables, x)
    assert logits.shape == (2, 70, 97, 3)
    side = 8 if name == "pspnet" else 16
    assert stages["stage4"].shape == (2, -(-70 // side), -(-97 // side), 256)
    for key in variables["params"]:
        owners = [stage for stage in stages if key == stage or key.startswith(stage + "_")]
        assert key in ("head", "aux_head") or len(owners) == 1, key


@pytest.mark.slow
@pytest.mark.quick_compilation
@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_network_split_over_devices_is_the_same(name, options):
    shape = (6, 8, 1)
    model, x = create_model(name, 2, **options), images(shape, batch=4)
    variables = drawn(model, shape)
    alone, _ = run(model, variables, x, train=True, mutable=["batch_stats"])
    mapped = model.clone(axis_name="batch")
    share = jax.pmap(
        lambda x: mapped.apply(variables, x, train=True, mutable=["batch_stats"])[0],
        "batch",
        devices=jax.devices()[:2],
    )
    close(np.asarray(share(x.reshape(2, 2, *shape))).reshape(alone.shape), np.asarray(alone), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), CASES)
def test_bfloat16_rounds_activations_and_nothing_else(name, options):
    shape = (8, 12, 3)
    whole, half = (
        create_model(name, 2, dtype=dtype, **options) for dtype in ("float32", "bfloat16")
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes(half, shape))} == {jnp.dtype("float32")}
    variables, x = drawn(whole, shape), images(shape)
    (exact, _), (rounded, stages) = (
        run(model, variables, x, stages=True) for model in (whole, half)
    )
    assert rounded.dtype == jnp.float32
    assert {maps.dtype for maps in stages.values()} == {jnp.dtype("bfloat16")}
    # A dozen layers of at most four roundings to 8 bits, each at most 2^-9 of the value.
    error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert 2**-14 < error < 12 * 4 * 2**-9


# The auxiliary head.


@pytest.mark.quick_compilation
def test_the_auxiliary_head_trains_the_stages_before_the_last_and_itself():
    model: Any = create_model("pspnet", 2, **PSPNET)
    shape = (8, 8, 3)
    variables, x = drawn(model, shape), jnp.asarray(images(shape))

    @jax.jit
    def slope(params):
        def loss(params):
            everything = {"params": params, "batch_stats": variables["batch_stats"]}
            _, new = model.apply(everything, x, train=True, mutable=["batch_stats", "aux"])
            (logits,) = new["aux"]["aux_head"]["logits"]
            return jnp.square(logits).mean()

        return jax.grad(loss)(params)

    sizes = {
        name: sum(float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(tree))
        for name, tree in slope(variables["params"]).items()
    }
    trained = {name for name, size in sizes.items() if size > 1e-6}
    expected = {"stem", "stem_norm", "stage1_block1", "stage2_block1", "aux_head"}
    assert trained == expected
    without = create_model("pspnet", 2, **PSPNET, aux=False)
    assert "aux_head" not in shapes(without, shape)["params"]
    _, new = jax.eval_shape(
        partial(without.apply, train=True, mutable=["batch_stats", "aux"]),
        shapes(without, shape),
        x,
    )
    assert "aux" not in new


@pytest.mark.slow
def test_training_adds_the_auxiliary_loss_with_the_papers_weight():
    """One step of gradient descent, against the gradient of the sum. Other networks have 0.3."""
    model: Any = create_model("pspnet", 2, **PSPNET)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 8, 8, 3)).astype(np.uint8)
    masks = rng.integers(0, 2, (8, 8, 8)).astype(np.int32)
    split = jc.Split(pixels, masks)
    statistics = np.zeros((8, 8, 3), np.float32), np.ones(3, np.float32)
    data = jc.Dataset("noise", split, split.take(slice(0)), split, ("a", "b"), *statistics)
    config = jc.TrainConfig(
        num_steps=1,
        batch_size=8,
        eval_every=1,
        subtract_mean="none",
        divide_std=False,
    )
    tx = optax.sgd(1.0)
    begin = jc.init_state(model, tx, config, data)
    before = jax.tree.map(np.asarray, begin.params)
    stats = jax.tree.map(np.asarray, begin.model_state)
    state, _ = next(jc.train(model, tx, data, config, strategy=jc.strategy("jit", 1)))
    images_ = jnp.asarray(pixels, jnp.float32) / 255

    def loss(params):
        outputs, new = model.apply(
            {"params": params, **stats}, images_, train=True, mutable=["batch_stats", "aux"]
        )
        (aux,) = new["aux"]["aux_head"]["logits"]
        main, other = (
            optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(masks)).mean()
            for logits in (outputs, aux)
        )
        return main + 0.4 * other

    expected = jax.jit(jax.grad(loss))(before)
    steps = jax.tree.map(lambda old, new: old - np.asarray(new), before, state.params)
    scale = math.sqrt(sum(float(jnp.square(leaf).sum()) for leaf in jax.tree.leaves(expected)))
    for got, want in zip(jax.tree.leaves(steps), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * scale)


# Options.


@pytest.mark.parametrize(
    ("name", "options", "hint"),
    [
        ("pspnet", {"backbone": "resnet51"}, "backbone is 'resnet51'; expected a residual network"),
        ("pspnet", {"backbone": "resnet18-v1.5"}, "write resnet50 for photographs, or resnet8"),
        ("pspnet", {"backbone": 50}, "backbone is 50"),
        ("pspnet", {"pools": []}, "pools is []; expected a list of different whole numbers"),
        ("pspnet", {"pools": [2, 2]}, "write [1, 2, 3, 6]"),
        ("pspnet", {"output_stride": 6}, "output_stride is 6; expected 1, 2, 4, 8, 16 or 32"),
        ("pspnet", {"aux_weight": 0}, "aux_weight is 0; expected a finite number above 0"),
        ("pspnet", {"rates": [6]}, "option of pspnet is 'rates'"),
        ("deeplabv3plus", {"rates": 6}, "rates is 6; expected a list of different whole numbers"),
        ("deeplabv3plus", {"rates": [0]}, "write [6, 12, 18]"),
        ("deeplabv3plus", {"aux": True}, "option of deeplabv3plus is 'aux'"),
        ("deeplabv3", {}, "write deeplabv3plus"),
    ],
)
def test_invalid_options_are_refused_in_one_line(name, options, hint):
    assert hint in refused(name, **options)


@pytest.mark.parametrize(
    ("network", "options", "says"),
    [
        (PSPNet, {"output_stride": 3}, "output_stride is 3; expected 1, 2, 4, 8, 16 or 32: write"),
        (PSPNet, {"output_stride": "2"}, "output_stride is '2'; expected"),
        (PSPNet, {"output_stride": True}, "output_stride is True; expected"),
        (PSPNet, {"pools": ()}, "pools is (); expected a list of different whole numbers"),
        (PSPNet, {"pools": (0,)}, "pools is (0,); expected"),
        (PSPNet, {"pools": (2, 2)}, "write [1, 2, 3, 6]"),
        (PSPNet, {"pools": (2.0,)}, "pools is (2.0,); expected"),
        (DeepLabV3Plus, {"output_stride": 12}, "output_stride is 12; expected"),
        (DeepLabV3Plus, {"output_stride": 0}, "output_stride is 0; expected"),
        (DeepLabV3Plus, {"rates": (0,)}, "rates is (0,); expected a list of different whole"),
        (DeepLabV3Plus, {"rates": ()}, "write [6, 12, 18]"),
        (DeepLabV3Plus, {"rates": 6}, "rates is 6; expected"),
    ],
)
def test_a_network_called_directly_refuses_invalid_options_while_tracing(network, options, says):
    model = network(2, **SMALL | options)
    with pytest.raises(ArgumentError) as error:
        shapes(model, (16, 16, 3))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize(("network", "fields"), [(PSPNet, {}), (DeepLabV3Plus, {"rates": (1, 2)})])
def test_the_output_stride_is_the_images_size_in_sizes_of_the_last_map(network, fields, stride):
    model = network(2, backbone="resnet8", width=2, output_stride=np.int64(stride), **fields)
    image = jax.ShapeDtypeStruct((1, 16, 24, 3), "float32")
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    _, stages = jax.eval_shape(lambda v, x: model.apply(v, x, stages=True), variables, image)
    assert stages["stage3"].shape[1:3] == (16 // stride, 24 // stride)


def test_an_output_stride_below_the_stems_is_refused():
    with pytest.raises(ArgumentError, match="output_stride is 2; expected at least 4, the stride"):
        shapes(create_model("pspnet", 2, output_stride=2), (32, 32, 3))


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_network_is_recorded_by_its_name_and_options(name, options):
    model = create_model(name, 4, **options)
    called, kwargs = model_call(model) or ("", {})
    assert called == name
    assert create_model(called, 4, **kwargs) == model
    assert hash(model) == hash(create_model(name, 4, **options))


def test_backbones_are_those_of_the_zoo():
    assert parse_backbone("resnet101-v1.5") == ((3, 4, 23, 3), True, True, False)
    assert parse_backbone("cifar-resnet50") == ((8, 8, 8), False, False, True)
    assert parse_backbone("resnet34") == ((3, 4, 6, 3), False, False, False)
