"""Networks whose output is an image, autoencoder and U-Net: counts by hand, SciPy's correlation, what each pixel can see."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_models_small import (
    close,
    dense,
    double,
    drawn,
    images,
    np_convolved,
    np_norm,
    refused,
    run,
    shapes,
)

import jaxcnn as jc
from jaxcnn.config import ArgumentError
from jaxcnn.models import count_parameters, create_model
from jaxcnn.models.autoencoder import UPSAMPLINGS, upsample_nearest, upsampling_layer

AUTOENCODER = {"width": 3, "code": 4}
UNET = {"width": 2, "depth": 2}


# Counts and shapes.


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3), (4, 12, 2)])
@pytest.mark.parametrize("up", UPSAMPLINGS)
def test_an_autoencoder_has_these_parameters_and_gives_an_image_of_the_same_shape(shape, up):
    h, w, c = shape
    model, maps = create_model("autoencoder", 10, width=6, code=5, up=up), h // 4 * (w // 4) * 12
    side = 9 if up == "upsample" else 4
    layers = [
        (9 * c, 6),
        (9 * 6, 12),
        (maps, 5),
        (5, maps),
        (side * 12, 6),
        (side * 6, 6),
        (9 * 6, c),
    ]
    assert count_parameters(model, shape) == sum((fan_in + 1) * units for fan_in, units in layers)
    x = jax.ShapeDtypeStruct((2, *shape), "float32")
    image, seen = jax.eval_shape(
        lambda v, x: model.apply(v, x, stages=True), shapes(model, shape), x
    )
    assert (image.shape, image.dtype) == ((2, *shape), jnp.float32)
    assert {name: maps.shape[1:] for name, maps in seen.items()} == {
        "conv1": (h // 2, w // 2, 6),
        "conv2": (h // 4, w // 4, 12),
        "code": (5,),
        "decode": (h // 4, w // 4, 12),
        "up1": (h // 2, w // 2, 6),
        "up2": (h, w, 6),
    }


def unet_count(width, depth, classes, channels, up, norm):
    """Figure 1, level by level."""
    each = 2 if norm else 1  # BN's gain and offset, or a bias

    def level(fan_in, filters):
        return (9 * fan_in + each) * filters + (9 * filters + each) * filters

    filters = [width * 2**i for i in range(depth + 1)]
    down = sum(
        level(fan_in, out) for fan_in, out in zip([channels, *filters], filters, strict=False)
    )
    side = 4 if up == "transpose" else 9
    ups = sum((side * 2 * out + 1) * out + level(2 * out, out) for out in filters[:-1])
    return down + ups + (width + 1) * classes


@pytest.mark.slow
@pytest.mark.parametrize("up", UPSAMPLINGS)
@pytest.mark.parametrize(
    ("shape", "options"), [((64, 64, 1), {}), ((8, 24, 3), {"width": 6, "depth": 3})]
)
def test_a_unet_has_these_parameters_and_logits_for_every_pixel(shape, options, up):
    for norm in (False, True):
        model = create_model("unet", 2, up=up, batch_norm=norm, **options)
        expected = unet_count(
            options.get("width", 64), options.get("depth", 4), 2, shape[-1], up, norm
        )
        assert count_parameters(model, shape) == expected
        if not options and up == "transpose" and not norm:
            assert expected == 31_030_658
    logits = jax.eval_shape(
        model.apply, shapes(model, shape), jax.ShapeDtypeStruct((3, *shape), "float32")
    )
    assert (logits.shape, logits.dtype) == ((3, *shape[:2], 2), jnp.float32)


@pytest.mark.parametrize(
    "name", ["perceptron", "mlp", "cnn", "convnet", "lenet5-1998", "autoencoder", "unet"]
)
def test_parameters_are_named_after_the_stage_they_belong_to(name):
    model, shape = create_model(name, 10), (32, 32, 1)
    variables, x = shapes(model, shape), jax.ShapeDtypeStruct((1, *shape), "float32")
    _, seen = jax.eval_shape(lambda v, x: model.apply(v, x, stages=True), variables, x)
    for key in variables["params"]:
        assert (
            key == "head" or sum(key == name or key.startswith(name + "_") for name in seen) == 1
        ), key


# What the layers compute, in float64.


def test_nearest_doubles_every_pixel():
    x = images((3, 5, 2))
    np.testing.assert_array_equal(upsample_nearest(jnp.asarray(x)), x.repeat(2, 1).repeat(2, 2))


def np_doubled(x, layer):
    if len(layer["kernel"]) == 3:
        return np_convolved(x.repeat(2, 1).repeat(2, 2), layer["kernel"]) + layer["bias"]
    b, h, w, _ = x.shape
    y = np.zeros((b, 2 * h, 2 * w, layer["kernel"].shape[-1]))
    for i, j in np.ndindex(2, 2):  # every pixel is a square of 2x2, flipped as flax does
        y[:, i::2, j::2] = x @ layer["kernel"][1 - i, 1 - j]
    return y + layer["bias"]


@pytest.mark.parametrize("up", UPSAMPLINGS)
def test_a_doubling_keeps_the_variance_with_the_initialiser_named_for_it(up):
    """Inputs of second moment 1, N(0, 2/fan_in): 2. For the transposed convolution fan_in is one pixel's channels."""
    layer, x = (
        upsampling_layer(256, up, kernel_init="he", dtype=jnp.float32, name="up"),
        images((6, 6, 128)),
    )
    flax = layer if up == "transpose" else layer.__closure__[0].cell_contents
    variables = flax.init(jax.random.key(0), jnp.asarray(x))
    fan_in = 128 if up == "transpose" else 9 * 128
    kernel = np.asarray(variables["params"]["kernel"])
    assert kernel.var() == pytest.approx(2 / fan_in, rel=4 * math.sqrt(2 / kernel.size))


def np_autoencoder(params, x):
    for name in ("conv1", "conv2"):
        x = np.maximum(
            np_convolved(x, params[name]["kernel"])[:, ::2, ::2] + params[name]["bias"], 0
        )
    shape = x.shape
    x = dense(x.reshape(len(x), -1), params["code"])
    x = np.maximum(dense(x, params["decode"]), 0).reshape(shape)
    for name in ("up1", "up2"):
        x = np.maximum(np_doubled(x, params[name]), 0)
    return np_convolved(x, params["head"]["kernel"]) + params["head"]["bias"]


@pytest.mark.slow
@pytest.mark.parametrize("up", UPSAMPLINGS)
def test_an_autoencoder_is_what_scipy_computes(up):
    shape = (12, 8, 2)
    model, x = create_model("autoencoder", 5, up=up, **AUTOENCODER), images(shape)
    variables = drawn(model, shape)
    close(
        run(model, variables, x), np_autoencoder(double(variables["params"]), x.astype(np.float64))
    )


def np_unet(variables, x, depth, train):
    params, stats = (double(variables.get(kind, {})) for kind in ("params", "batch_stats"))

    def level(x, name):
        for key in (f"{name}_conv1", f"{name}_conv2"):
            x = np_convolved(x, params[key]["kernel"])
            norm = f"{key}_norm"
            x = np_norm(x, params[norm], stats[norm], train) if stats else x + params[key]["bias"]
            x = np.maximum(x, 0)
        return x

    skips = []
    for i in range(1, depth + 1):
        skips.append(level(x, f"down{i}"))
        x = np.max([skips[-1][:, a::2, b::2] for a in (0, 1) for b in (0, 1)], axis=0)
    x = level(x, "bottom")
    for i in range(depth, 0, -1):
        x = np.concatenate([skips[i - 1], np_doubled(x, params[f"up{i}_double"])], -1)
        x = level(x, f"up{i}")
    return x @ params["head"]["kernel"][0, 0] + params["head"]["bias"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("up", "norm", "train"), [("transpose", False, True), ("upsample", True, True)]
)
def test_a_unet_is_what_scipy_computes(up, norm, train):
    shape = (12, 8, 2)
    model, x = create_model("unet", 3, up=up, batch_norm=norm, **UNET), images(shape)
    variables = drawn(model, shape)
    logits, _ = run(model, variables, x, train=train, mutable=["batch_stats"])
    close(logits, np_unet(variables, x.astype(np.float64), 2, train))


# What a pixel can see.


def jacobian(model, variables, x):
    """[outputs, inputs] of the one image x."""
    inputs = jax.jit(jax.jacrev(lambda x: model.apply(variables, x[None]).reshape(-1)))(
        jnp.asarray(x)
    )
    return np.asarray(inputs, np.float64).reshape(len(inputs), -1)


def test_an_autoencoder_lets_through_as_many_directions_as_its_code_has_numbers():
    shape = (8, 8, 1)
    model = create_model("autoencoder", 2, width=8, code=3, activation="tanh")
    matrix = jacobian(model, drawn(model, shape), images(shape, batch=1)[0])
    singular = np.linalg.svd(matrix, compute_uv=False)
    assert singular[2] > 1e-4 * singular[0]
    assert singular[3] < 1e-6 * singular[0]


@pytest.mark.slow
def test_a_unet_sees_far_through_its_bottom_and_sharply_through_its_skips():
    """Without the way through the bottom a logit sees the 9x9 pixels of four 3x3 convolutions, with it more."""
    shape = (16, 16, 1)
    model = create_model("unet", 2, width=4, depth=1)
    variables, x = drawn(model, shape), images(shape, batch=1)[0]

    def seen(kept):
        """Rows and columns of pixels that the logits of pixel (8, 8) depend on, with a part of the channels joined."""
        params = dict(variables["params"])
        kernel = params["up1_conv1"]["kernel"]  # [3, 3, 4 from the skip and 4 from below, 4]
        params["up1_conv1"] = params["up1_conv1"] | {
            "kernel": jnp.zeros_like(kernel).at[:, :, kept].set(kernel[:, :, kept])
        }
        matrix = jacobian(model, {"params": params}, x).reshape(16, 16, 2, 16, 16)[8, 8]
        return [np.flatnonzero(np.abs(matrix).sum((0, axis))) for axis in (2, 1)]

    for axis in seen(slice(0, 4)):
        assert (axis.min(), axis.max()) == (4, 12)
    for kept in (slice(4, 8), slice(0, 8)):
        for axis in seen(kept):
            assert axis.min() < 4
            assert axis.max() > 12


@pytest.mark.slow
def test_a_unet_split_over_devices_is_the_same():
    shape = (4, 4, 1)
    model = create_model("unet", 2, width=2, depth=1, batch_norm=True)
    variables, x = drawn(model, shape), images(shape, batch=4)
    alone, _ = run(model, variables, x, train=True, mutable=["batch_stats"])
    mapped = model.clone(axis_name="batch")
    share = jax.pmap(
        lambda x: mapped.apply(variables, x, train=True, mutable=["batch_stats"])[0],
        "batch",
        devices=jax.devices()[:2],
    )
    close(np.asarray(share(x.reshape(2, 2, *shape))).reshape(alone.shape), np.asarray(alone))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"), [("autoencoder", AUTOENCODER), ("unet", UNET | {"batch_norm": True})]
)
def test_bfloat16_rounds_activations_and_nothing_else(name, options):
    shape = (8, 8, 1)
    whole, half = (
        create_model(name, 2, **options),
        create_model(name, 2, dtype="bfloat16", **options),
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes(half, shape))} == {jnp.dtype("float32")}
    variables, x = drawn(whole, shape), images(shape)
    (exact, _), (rounded, seen) = (run(model, variables, x, stages=True) for model in (whole, half))
    assert rounded.dtype == jnp.float32
    assert {maps.dtype for maps in seen.values()} == {jnp.dtype("bfloat16")}
    # Some ten layers of at most four roundings to 8 bits, each at most 2^-9 of the value, all in
    # one direction.
    error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert 2**-14 < error < 10 * 4 * 2**-9


# Options.


@pytest.mark.parametrize(
    ("name", "options", "hint"),
    [
        ("autoencoder", {"up": "transposed"}, "did you mean 'transpose'?"),
        ("autoencoder", {"code": 0}, "code is 0; expected a whole number of at least 1"),
        (
            "autoencoder",
            {"depth": 2},
            "expected one of activation, code, dtype, kernel_init, name, up, width",
        ),
        ("unet", {"depth": 0}, "depth is 0"),
        ("unet", {"up": "nearest"}, "up is 'nearest'; expected one of transpose, upsample"),
        ("u-net", {}, "write unet"),
        ("autoencodr", {}, "write autoencoder"),
        ("vgg16", {"depth": 11}, "option of vgg16 is 'depth'"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(name, options, hint):
    assert hint in refused(name, **options)


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        (
            "autoencoder",
            (30, 28, 1),
            "Autoencoder got images of 30x28 pixels, which it halves twice; expected multiples of "
            "4",
        ),
        (
            "unet",
            (28, 28, 1),
            "U-Net got images of 28x28 pixels, which it halves 4 times; expected multiples of 16",
        ),
    ],
)
def test_sizes_that_cannot_be_halved_are_refused(name, shape, says):
    with pytest.raises(ArgumentError, match=says):
        shapes(create_model(name, 2), shape)


# Training.


def trained(model, x, loss, steps, rate):
    """The loss at the start and after steps of Adam, plain."""
    start = drawn(model, x.shape[1:])["params"]  # quicker than to compile `init`
    params = jax.tree.map(
        lambda leaf: math.sqrt(2) * leaf if leaf.ndim > 1 else jnp.zeros_like(leaf), start
    )
    tx = optax.adam(rate)

    @jax.jit
    def step(params, opt):
        value, grads = jax.value_and_grad(lambda p: loss(model.apply({"params": p}, x)))(params)
        with jax.numpy_dtype_promotion("standard"):
            updates, opt = tx.update(grads, opt)
        return optax.apply_updates(params, updates), opt, value

    opt, losses = tx.init(params), []
    for _ in range(steps):
        params, opt, value = step(params, opt)
        losses.append(float(value))
    return losses[0], losses[-1]


@pytest.mark.slow
def test_a_unet_learns_to_find_squares_in_noise():
    rng = np.random.default_rng(0)
    masks = np.zeros((16, 16, 16), np.int32)
    for mask, (row, column) in zip(masks, rng.integers(0, 10, (16, 2)), strict=True):
        mask[row : row + 6, column : column + 6] = 1
    x = (2 * masks + rng.normal(size=masks.shape)).astype(np.float32)[..., None]

    def loss(logits):
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(masks)).mean()

    _, last = trained(create_model("unet", 2, width=8, depth=1), jnp.asarray(x), loss, 60, 0.01)
    share = masks.mean()
    assert last < 0.4 * -(
        share * math.log(share) + (1 - share) * math.log(1 - share)
    )  # of knowing the share alone


@pytest.mark.slow
def test_an_autoencoder_learns_more_of_the_digits_than_their_mean():
    data = jc.load_dataset("digits")
    x = data.train.images[:256].astype(np.float32) / 255
    x = jnp.asarray(x - x.mean(0))
    _, last = trained(
        create_model("autoencoder", 10, code=8),
        x,
        lambda image: jnp.square(image - x).mean(),
        60,
        0.003,
    )
    assert last < 0.6 * float(jnp.square(x).mean())
