"""Rewritten programs against the same ones as JAX compiles them, and against SciPy."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from scipy.signal import correlate

from jaxcnn import (
    AugmentConfig,
    OptimizerConfig,
    TrainConfig,
    cpu,
    create_model,
    create_optimizer,
    evaluate,
    load_dataset,
    parallel,
    train,
)
from jaxcnn.cpu import onednn, pooling
from jaxcnn.cpu.convolution import rule
from jaxcnn.cpu.onednn import Geometry, proven
from jaxcnn.cpu.rewriting import Replacement, count_matches, materialize, rewrite
from jaxcnn.parallel import MIN_REWRITE_VALUES, strategy

NHWC = ("NHWC", "HWIO", "NHWC")
SHAPES = [
    # images [b, h, w, c], kernel [kh, kw, c, f], stride, padding, kernel dilation
    ((32, 8, 8, 16), (3, 3, 16, 16), (1, 1), "SAME", (1, 1)),
    ((64, 9, 7, 3), (3, 3, 3, 16), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    ((5, 8, 8, 16), (3, 3, 16, 32), (2, 2), ((1, 1), (1, 1)), (1, 1)),
    ((4, 9, 11, 64), (3, 3, 64, 70), (2, 2), ((1, 1), (1, 1)), (1, 1)),
    ((3, 28, 28, 1), (5, 5, 1, 6), (1, 1), "VALID", (1, 1)),
    ((2, 5, 5, 16), (5, 5, 16, 120), (1, 1), "VALID", (1, 1)),
    ((2, 23, 20, 3), (7, 7, 3, 8), (2, 2), ((3, 3), (3, 3)), (1, 1)),
    ((2, 8, 8, 24), (1, 1, 24, 12), (1, 1), "VALID", (1, 1)),
    ((2, 8, 8, 24), (1, 1, 24, 12), (2, 2), "VALID", (1, 1)),
    ((2, 2, 2, 128), (3, 3, 128, 130), (1, 1), "SAME", (1, 1)),
    ((2, 12, 10, 8), (3, 2, 8, 5), (2, 1), ((2, 0), (1, 3)), (1, 1)),
    ((2, 12, 10, 8), (3, 2, 8, 5), (1, 1), ((2, 0), (1, 3)), (1, 2)),
    ((2, 9, 9, 9), (11, 11, 9, 7), (4, 4), ((2, 2), (2, 2)), (1, 1)),
    (
        (50, 32, 32, 8),
        (3, 3, 8, 24),
        (1, 1),
        "SAME",
        (1, 1),
    ),  # 50 images: too many for one part of the weight gradient
]
needed = pytest.mark.skipif(not cpu.available(), reason="oneDNN cannot be called here")


@pytest.fixture(autouse=True)
def unkept():
    with cpu.without_persistent_cache():
        yield


def drawn(shape, seed):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def convolution(stride, padding, dilation):
    return lambda x, kernel: lax.conv_general_dilated(
        x, kernel, stride, padding, rhs_dilation=dilation, dimension_numbers=NHWC
    )


def gradients(function):
    """Of a function of images and a kernel: its value, its gradient by each for a random slope, and by the slope again."""

    def run(x, kernel):
        y, back = jax.vjp(function, x, kernel)
        return y, back(jnp.asarray(drawn(y.shape, 5), y.dtype))

    return run


def close(got, expected, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


@pytest.mark.slow
@needed
@pytest.mark.parametrize(("images", "kernel", "stride", "padding", "dilation"), SHAPES)
def test_convolutions_and_their_gradients_are_those_of_jax(
    images, kernel, stride, padding, dilation
):
    run, given = (
        gradients(convolution(stride, padding, dilation)),
        (drawn(images, 1), drawn(kernel, 2)),
    )
    one_place = jax.eval_shape(convolution(stride, padding, dilation), *given).shape[1:3] == (1, 1)
    left = images[-1] < 6 or dilation != (1, 1) or one_place  # JAX's weight gradient stays
    assert count_matches(jax.make_jaxpr(run)(*given), rule) == 3 - left
    close(jax.jit(cpu.optimized(run))(*given), jax.jit(run)(*given))


@needed
@pytest.mark.parametrize("dtype", onednn.DTYPES)
def test_the_answer_is_the_same_while_a_program_is_traced(dtype):
    """In training the first to ask is the trace of the first step. It crashed for bfloat16."""
    answers = []

    def program(x):
        answers.append(onednn.available.__wrapped__(dtype))
        return x + 1

    jax.jit(program)(jnp.zeros(3))
    jax.eval_shape(jax.vmap(jax.grad(lambda x: program(x))), jnp.zeros(3))
    assert answers == [onednn.available(dtype)] * 2


@pytest.mark.skipif(not cpu.available("bfloat16"), reason="oneDNN has no bfloat16 on this CPU")
def test_convolutions_of_bfloat16_are_those_of_float32_within_its_eight_bits():
    run, given = (
        gradients(convolution((1, 1), "SAME", (1, 1))),
        (drawn((4, 8, 8, 16), 1), drawn((3, 3, 16, 16), 2)),
    )
    given = [jnp.asarray(x, jnp.bfloat16) for x in given]
    program = jax.jit(cpu.optimized(lambda x, kernel: run(x, kernel)[0]))
    got, expected = program(*given), run(*(x.astype(jnp.float32) for x in given))[0]
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.float32(got), expected, rtol=2**-8, atol=2**-8 * np.abs(expected).max()
    )


@needed
def test_a_convolution_is_that_of_scipy():
    x, kernel = drawn((2, 9, 8, 5), 1), drawn((3, 3, 5, 4), 2)
    got = jax.jit(cpu.optimized(convolution((2, 2), "VALID", (1, 1))))(x, kernel)
    for image in range(2):
        for f in range(4):
            full = correlate(np.float64(x[image]), np.float64(kernel[..., f]), "valid")[::2, ::2, 0]
            np.testing.assert_allclose(got[image, ..., f], full, atol=1e-5)


ODD = [
    # images, kernel, stride, padding, dtype: oneDNN read beyond the image, or the rewriting raised
    # an error
    ((2, 7, 4, 1), (1, 5, 1, 8), (1, 5), "SAME", "float32"),
    ((128, 16, 2, 1), (3, 3, 1, 8), (1, 2), "SAME", "float32"),
    ((3, 9, 3, 1), (3, 3, 1, 8), (1, 3), "VALID", "float32"),
    ((5, 7, 1, 6), (4, 5, 6, 5), (1, 2), ((-1, 0), (7, -1)), "float32"),
    ((5, 7, 1, 6), (4, 5, 6, 5), (1, 2), ((-1, 0), (7, -1)), "bfloat16"),
]


@pytest.mark.slow
@needed
@pytest.mark.parametrize(("images", "kernel", "stride", "padding", "dtype"), ODD)
def test_images_narrower_than_the_kernel_are_left_to_xla(images, kernel, stride, padding, dtype):
    function = convolution(stride, padding, (1, 1))
    given = jnp.asarray(drawn(images, 1), dtype), jnp.asarray(drawn(kernel, 2), dtype)
    assert count_matches(jax.make_jaxpr(function)(*given), rule) == 0
    run = gradients(function)
    close(
        *(
            jax.tree.map(lambda x: x.astype(jnp.float32), jax.jit(program)(*given))
            for program in (cpu.optimized(run), run)
        )
    )


@needed
def test_padding_that_leaves_nothing_of_an_image_is_left_to_xla():
    def run(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (2, 5), ((2, -1), (0, 9)), lhs_dilation=(3, 1), dimension_numbers=NHWC
        )

    given = drawn((64, 1, 3, 5), 1), drawn((1, 1, 5, 16), 2)
    close(jax.jit(cpu.optimized(gradients(run)))(*given), jax.jit(gradients(run))(*given))


@pytest.mark.slow
@needed
def test_training_on_narrow_images_of_one_channel_is_that_of_jax():
    class Small(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(8, (3, 3), strides=(1, 2))(x))
            return nn.Dense(2)(x.reshape(len(x), -1))

    model, images = Small(), drawn((128, 16, 2, 1), 1)
    labels = (images.sum((1, 2, 3)) > 0).astype(np.int32)

    def loss(params):
        logits: Any = model.apply(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def steps(params):
        def step(params, _):
            value, slope = jax.value_and_grad(loss)(params)
            return jax.tree.map(lambda p, g: p - 0.5 * g, params, slope), value

        return lax.scan(step, params, length=8)

    params = model.init(jax.random.key(0), images)
    (got, losses), (expected, plain) = jax.jit(cpu.optimized(steps))(params), jax.jit(steps)(params)
    close((got, losses), (expected, plain))
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(1, (9, 9), (3, 3), ((1, 1), (1, 1)), (1, 2)),  # one channel: no strides
        Geometry(1, (9, 9), (3, 3), ((2, 2), (2, 2)), (1, 1), (2, 2)),  # no dilation
        Geometry(1, (9, 6), (3, 3), ((1, 1), (0, 0))),  # no result of four pixels
        Geometry(1, (9, 9), (1, 3), ((0, 0), (1, 1))),  # no kernel one pixel high
        Geometry(
            16, (9, 2), (1, 1), ((0, 0), (0, 0)), (1, 2)
        ),  # a 1x1 kernel, strides and a result one pixel wide
        Geometry(1, (9, 2), (3, 3), ((1, 1), (1, 1))),  # no image smaller than the kernel
        Geometry(
            3, (9, 3), (3, 3), ((1, 1), (0, 0)), (1, 2)
        ),  # few channels, strides and a result one pixel wide
        Geometry(16, (9, 9), (2, 2), ((0, 0), (0, 0)), (3, 3)),  # strides larger than the kernel
        Geometry(16, (9, 9), (3, 3), ((1, 1), (1, 1)), (2, 2), (2, 2)),  # strides and dilation
        Geometry(16, (9, 9), (3, 3), ((3, 0), (1, 1))),  # padding as wide as the kernel
        Geometry(16, (9, 9), (3, 3), ((-1, 0), (1, 1))),  # negative padding
        Geometry(16, (2, 9), (3, 3), ((0, 0), (1, 1))),  # an empty result
    ],
)
def test_geometries_that_are_not_proven_are_left_alone(geometry):
    assert not proven(geometry)


@pytest.mark.slow
@needed
@pytest.mark.parametrize("wrong", ["value", "error", "unsteady"])
def test_a_cpu_that_computes_one_geometry_wrongly_is_not_trusted(monkeypatch, wrong):
    convolve, calls = onednn.convolution, []

    def other(x, kernel, *args, **kwargs):
        calls.append(x.shape)
        y = convolve(x, kernel, *args, **kwargs)
        if len(calls) < len(onednn.PROBES):
            return y
        if wrong == "error":
            raise RuntimeError("no such convolution")
        return y.at[0, 0, 0, 0].add(1) if wrong == "value" else y * jnp.nan

    monkeypatch.setattr(onednn, "convolution", other)
    assert not onednn.available.__wrapped__()
    assert len(calls) == len(onednn.PROBES)


def test_bfloat16_needs_a_cpu_with_its_instructions(monkeypatch, tmp_path):
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    with_it, without = tmp_path / "with", tmp_path / "without"
    with_it.write_text("processor : 0\nflags : fpu avx2 " + " ".join(onednn.BFLOAT16) + "\n")
    without.write_text("processor : 0\nflags : fpu avx2 avx512f\n")
    read = onednn._has_bfloat16
    assert [read(str(path)) for path in (with_it, without, tmp_path / "missing")] == [
        True,
        False,
        False,
    ]
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert not read(str(with_it))
    monkeypatch.setattr(onednn, "_has_bfloat16", lambda: False)
    assert not onednn.available.__wrapped__("bfloat16")


@needed
def test_one_image_that_is_left_over_is_no_part_of_its_own():
    run, given = (
        gradients(convolution((1, 1), "SAME", (1, 1))),
        (drawn((33, 32, 32, 8), 1), drawn((3, 3, 8, 24), 2)),
    )
    program = str(jax.make_jaxpr(cpu.optimized(run))(*given))
    assert "f32[1,64,128,16]" in program
    assert "f32[1,64,128,17]" in program
    close(jax.jit(cpu.optimized(run))(*given), jax.jit(run)(*given))


POOLS = [
    # images, window, strides, padding
    ((2, 14, 14, 5), (3, 3), (2, 2), ((1, 1), (1, 1))),
    ((2, 9, 8, 3), (3, 3), (1, 1), ((1, 1), (1, 1))),
    ((3, 11, 13, 2), (3, 3), (2, 2), ((0, 0), (0, 0))),
    ((2, 10, 9, 3), (2, 3), (3, 1), ((0, 1), (2, 0))),
    ((1, 12, 12, 2), (2, 2), (4, 3), ((0, 0), (0, 0))),
]


def pooled(window, strides, padding):
    edges = ((0, 0), *padding, (0, 0))
    return lambda x: lax.reduce_window(
        x, -jnp.inf, lax.max, (1, *window, 1), (1, *strides, 1), edges
    )


@pytest.mark.slow
@pytest.mark.parametrize(("images", "window", "strides", "padding"), POOLS)
def test_gradients_of_max_pooling_are_those_of_jax_to_the_bit(images, window, strides, padding):
    x = (
        np.round(2 * np.maximum(drawn(images, 1), 0)) / 2
    )  # zeros and other ties, as after ReLU in few bits
    function = pooled(window, strides, padding)
    slope = drawn(jax.eval_shape(function, x).shape, 2)

    def gradient(x, slope):
        return jax.vjp(function, x)[1](slope)[0]

    assert count_matches(jax.make_jaxpr(gradient)(x, slope), pooling.rule) == 1
    got = jax.jit(cpu.optimized(gradient))(x, slope)
    np.testing.assert_array_equal(got, jax.jit(gradient)(x, slope))
    assert np.abs(got).sum() > 0


@pytest.mark.slow
@pytest.mark.parametrize("value", [-np.inf, np.nan])
def test_padding_counts_as_lowest_in_max_pooling_as_in_jax(value):
    """With -inf or NaN in every pixel the gradient of some windows goes to their padding, and is lost: so it is in JAX."""
    x = np.full((1, 5, 5, 1), value, np.float32)
    function = pooled((3, 3), (2, 2), ((1, 1), (1, 1)))
    slope = drawn((1, 3, 3, 1), 2)
    gradient = lambda x: jax.vjp(function, x)[1](slope)[0]  # noqa: E731
    assert count_matches(jax.make_jaxpr(gradient)(x), pooling.rule) == 1
    got = jax.jit(cpu.optimized(gradient))(x)
    np.testing.assert_array_equal(got, jax.jit(gradient)(x))
    assert np.count_nonzero(got) in (4, 9)


def test_poolings_across_images_wide_or_empty_ones_are_left_alone():
    def gradient(shape, window, strides, padding=((0, 0),) * 4):
        function = lambda x: lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padding).sum()  # noqa: E731
        return count_matches(jax.make_jaxpr(jax.grad(function))(jnp.ones(shape)), pooling.rule)

    images = (2, 12, 12, 4)
    assert gradient(images, (1, 3, 3, 1), (1, 2, 2, 1)) == 1
    assert gradient(images, (1, 3, 3, 1), (2, 2, 2, 1)) == 0
    assert gradient(images, (1, 3, 3, 1), (1, 2, 2, 2)) == 0
    assert gradient(images, (1, 9, 9, 1), (1, 1, 1, 1)) == 0
    assert gradient((0, 12, 12, 4), (1, 3, 3, 1), (1, 2, 2, 1)) == 0
    assert gradient(images, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (-1, 0), (0, 0), (0, 0))) == 0


def test_gradients_of_other_poolings_are_left_alone():
    x = drawn((2, 8, 8, 4), 1)

    def across(x):
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 1, 3), (1, 1, 1, 1), "SAME").sum()

    def least(x):
        return lax.reduce_window(x, jnp.inf, lax.min, (1, 3, 3, 1), (1, 2, 2, 1), "SAME").sum()

    def low(x):
        return (
            pooled((3, 3), (2, 2), ((1, 1), (1, 1)))(x.astype(jnp.bfloat16))
            .astype(jnp.float32)
            .sum()
        )

    for function in (across, least, low):
        assert count_matches(jax.make_jaxpr(jax.grad(function))(x), pooling.rule) == 0


@needed
def test_in_a_loop_weight_gradients_of_few_channels_are_replaced_too():
    x, kernels = drawn((4, 8, 8, 3), 1), drawn((2, 3, 3, 3, 8), 2)
    gradient = jax.grad(lambda kernel: convolution((1, 1), "SAME", (1, 1))(x, kernel).sum())

    def scanned(kernels):
        return lax.scan(
            lambda total, kernel: (total + gradient(kernel), None),
            jnp.zeros_like(kernels[0]),
            kernels,
        )[0]

    def left(function, *args):
        return str(jax.make_jaxpr(cpu.optimized(function))(*args)).count("conv_general_dilated")

    assert left(gradient, kernels[0]) == 1  # JAX's, the faster there
    assert left(scanned, kernels) == 0
    close(jax.jit(cpu.optimized(scanned))(kernels), scanned(kernels))


@pytest.mark.slow
@needed
@pytest.mark.parametrize("around", ["jit", "scan", "cond", "checkpoint", "vmap"])
def test_convolutions_within_other_operations_are_found(around):
    one, kernel = convolution((1, 1), "SAME", (1, 1)), drawn((3, 3, 4, 4), 1)
    loops = {
        "jit": lambda x: jax.jit(one)(x, kernel),
        "scan": lambda x: lax.scan(
            lambda x, k: (one(x, k), k.sum()), x, jnp.stack([kernel, 2 * kernel])
        ),
        "cond": lambda x: lax.cond(x.sum() > 0, lambda x: one(x, kernel), jnp.negative, x),
        "checkpoint": lambda x: jax.checkpoint(one)(x, kernel),
        "vmap": lambda x: jax.vmap(lambda image: one(image[None], kernel))(x),
    }
    run = jax.grad(lambda x: sum((each**2).sum() for each in jax.tree.leaves(loops[around](x))))
    x = drawn((3, 6, 6, 4), 2)
    assert count_matches(jax.make_jaxpr(run)(x), rule) >= (around != "vmap")
    close(jax.jit(cpu.optimized(run))(x), jax.jit(run)(x))


@needed
def test_the_same_program_gives_the_same_bits():
    run, given = (
        gradients(convolution((1, 1), "SAME", (1, 1))),
        (drawn((64, 16, 16, 16), 1), drawn((3, 3, 16, 16), 2)),
    )
    first, second = (jax.jit(cpu.optimized(run))(*given) for _ in range(2))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


def test_other_convolutions_are_left_alone():
    grouped = lambda x, k: lax.conv_general_dilated(  # noqa: E731
        x, k, (1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=2
    )

    def line(x, k):
        return lax.conv_general_dilated(x, k, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))

    for run, x, k in ((grouped, (2, 4, 4, 4), (3, 3, 2, 4)), (line, (2, 4, 4), (3, 4, 4))):
        assert count_matches(jax.make_jaxpr(run)(drawn(x, 1), drawn(k, 2)), rule) == 0
    whole = jax.make_jaxpr(convolution((1, 1), "SAME", (1, 1)))(
        jnp.ones((1, 4, 4, 2), "int8"), jnp.ones((3, 3, 2, 2), "int8")
    )
    assert count_matches(whole, rule) == 0


@pytest.mark.slow
def test_what_is_settled_is_not_computed_again():
    """Of ten sums, each of the one before, all of which are results: 55 additions of arrays unless each is kept."""

    def sums(keep):
        def run(x):
            outs = [x]
            for _ in range(10):
                outs.append(keep(jnp.maximum(outs[-1] + x, 0)))
            return [out.sum() for out in outs], [out.T for out in outs]

        return jax.jit(run).lower(jnp.ones((64, 64))).compile()

    kept, computed = sums(materialize), sums(lambda x: x)
    flops = [program.cost_analysis()["flops"] for program in (kept, computed)]  # pyright: ignore[reportOptionalSubscript]
    assert flops[0] < 0.6 * flops[1]
    ones = jnp.ones((64, 64))
    close(kept(ones), computed(ones))


def test_replaced_gives_back_trees_and_keeps_constants():
    shift = jnp.arange(3.0)
    run = rewrite(
        lambda tree: {"a": jnp.sin(tree["x"]) + shift, "b": (tree["y"],)},
        lambda eqn: Replacement(jnp.cos) if eqn.primitive.name == "sin" else None,
    )
    got = run({"x": jnp.zeros(3), "y": jnp.ones(2)})
    np.testing.assert_array_equal(got["a"], [1, 2, 3])
    np.testing.assert_array_equal(got["b"][0], [1, 1])


@pytest.mark.parametrize(
    ("name", "value"),
    [(onednn.PLAIN, "1"), ("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=")],
)
def test_a_user_who_wants_it_otherwise_is_asked_for_nothing(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert not onednn.available.__wrapped__()


def test_an_unknown_jaxlib_is_not_trusted(monkeypatch):
    monkeypatch.setattr(onednn, "version", lambda name: "9.9.9")
    assert not onednn.available.__wrapped__()


@needed
def test_only_long_runs_on_one_cpu_are_tuned():
    assert strategy("jit", devices=1).should_rewrite_for_cpu(MIN_REWRITE_VALUES)
    assert not strategy("jit", devices=1).should_rewrite_for_cpu(MIN_REWRITE_VALUES - 1)
    assert not strategy("jit", devices=2).should_rewrite_for_cpu(MIN_REWRITE_VALUES)
    assert not strategy("pmap", devices=1).should_rewrite_for_cpu(MIN_REWRITE_VALUES)


@pytest.mark.slow
@needed
def test_a_tuned_run_is_the_plain_one_up_to_rounding(monkeypatch):
    config = TrainConfig(
        num_steps=6, eval_every=3, batch_size=32, augment=AugmentConfig(padding=1, flip=True)
    )
    data, model, tx = (
        load_dataset("digits"),
        create_model("resnet8", 10),
        create_optimizer(OptimizerConfig(learning_rate=0.01)),
    )
    runs = []
    for long in (MIN_REWRITE_VALUES, 0):
        monkeypatch.setattr(parallel, "MIN_REWRITE_VALUES", long)
        runs.append(list(train(model, tx, data, config, strategy=strategy("jit", devices=1))))
        assert evaluate(
            model, runs[-1][-1][0], data.test, strategy=strategy("jit", devices=1)
        ).num_examples == len(data.test.labels)
    for (plain, before), (state, row) in zip(*runs, strict=True):
        close(state.params, plain.params, 1e-3)
        assert row["train_loss"] == pytest.approx(before["train_loss"], rel=1e-4)
        assert row["eval_loss"] == pytest.approx(before["eval_loss"], rel=1e-3)
    different = [
        (a != b).any()
        for a, b in zip(*(jax.tree.leaves(run[-1][0].params) for run in runs), strict=True)
    ]
    assert any(different)  # else nothing was tuned


@pytest.mark.quick_compilation
@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet8", "preresnet8"])
def test_blocks_that_are_computed_again_give_the_same_numbers(name):
    images = drawn((4, 16, 16, 3), 1)
    variables = jax.jit(create_model(name, 10, width=4).init)(jax.random.key(0), images)

    def run(remat):
        model = create_model(name, 10, width=4, remat=remat)
        shapes = jax.eval_shape(model.init, jax.random.key(0), images)
        assert jax.tree.structure(shapes) == jax.tree.structure(variables)

        def loss(params):
            given = {**variables, "params": params}
            logits, new = model.apply(given, images, train=True, mutable=["batch_stats"])
            return jnp.square(logits).sum(), new

        return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

    close(run(True), run(False), 1e-4)


@pytest.mark.slow
@needed
def test_blocks_that_are_computed_again_need_less_memory():
    images = drawn((32, 16, 16, 3), 1)
    taken = []
    for remat in (False, True):
        model = create_model("resnet14", 10, width=4, remat=remat)
        variables = jax.eval_shape(model.init, jax.random.key(0), images)

        def loss(variables, model=model):
            return jnp.square(
                model.apply(variables, images, train=True, mutable=["batch_stats"])[0]
            ).sum()

        program = jax.jit(cpu.optimized(jax.grad(loss)), compiler_options=cpu.OPTIONS)
        plan: Any = program.lower(variables).compile().memory_analysis()
        taken.append(plan.temp_size_in_bytes)
    assert taken[1] < 0.6 * taken[0]


@pytest.mark.parametrize("backend", ["jit", "pmap"])
def test_gradients_of_wide_padding_are_right_in_short_runs_too(backend):
    """With padding as wide as the kernel or wider, gradients by images have negative padding (wrong in jaxlib 0.10.2)."""
    rng = np.random.default_rng(0)
    x, kernel = (
        rng.normal(size=shape).astype(np.float32) for shape in [(2, 8, 4, 8), (3, 2, 8, 16)]
    )
    slope = rng.normal(size=(2, 12, 6, 16)).astype(np.float32)

    def step(images, fixed, index):
        kernel, slope = fixed
        layout, padding = ("NHWC", "HWIO", "NHWC"), ((3, 3), (3, 0))
        run = partial(
            lax.conv_general_dilated,
            rhs=kernel,
            window_strides=(1, 1),
            padding=padding,
            dimension_numbers=layout,
        )
        return jax.vjp(run, images)[1](slope)[0]

    one = strategy(backend, devices=1)
    order = np.zeros((1, 1), np.int32)
    carry, fixed = one.replicate(x), one.replicate((kernel, slope))
    got = one.compile_steps(step)(carry, fixed, order)
    expected = np.zeros((2, 14, 7, 8))
    for i, j in np.ndindex(3, 2):
        expected[:, i : i + 12, j : j + 6] += slope.astype(np.float64) @ kernel[i, j].T
    np.testing.assert_allclose(
        np.reshape(jax.device_get(got), x.shape), expected[:, 3:11, 3:7], rtol=0, atol=1e-4
    )
