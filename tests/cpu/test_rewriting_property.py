"""Rewritten programs of random geometries against the same programs as JAX compiles them.

`pytest tests/cpu/test_rewriting_property.py --cases 20000` tries more of them.
"""

import itertools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from random_cases import tried

from jaxcnn import cpu
from jaxcnn.cpu import convolution, pooling
from jaxcnn.cpu.rewriting import count_matches, rewrite

TOGETHER = 6
"""Geometries in one example: they are compiled as one program, which takes most of the time."""
QUICK: Any = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_disable_hlo_passes": "algsimp",
}
"""Compiler options: LLVM takes less time, and XLA leaves out a pass that ends the process for some plain convolutions, such as
the gradient of [54, 1, 12, 4] with a kernel of 2x2, stride 2 and padding 1 (jaxlib 0.10.2, 0.12.0). The sums stay the same."""
WORK = 2**18
"""Most multiply-adds of a convolution."""
needed = pytest.mark.skipif(not cpu.available(), reason="oneDNN cannot be called here")


@pytest.fixture(autouse=True)
def unkept():
    with cpu.without_persistent_cache():
        yield


class Case(NamedTuple):
    """A convolution, and how it is used."""

    images: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    spread: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    dtype: str
    form: str


FORMS = ("jit", "jit", "jit", "scan", "vmap", "remat", "second", "jvp")


def case_of_convolution(random):
    """A case whose result is not empty, of at most `WORK` multiply-adds; three of four are of the usual kinds."""
    pick, between = random.choice, random.randint
    usual, square = random.random() < 0.75, between(1, 7)
    axes, channels = [], [pick([1, 1, 2, 3, 4, 5, 8, 16, 17, 33, 64]) for _ in range(2)]
    for _ in range(2):
        n, k = between(1, pick([12, 40])), square if usual else between(1, 7)
        step = pick([1, 1, 1, min(2, k), min(3, k), k]) if usual else between(1, 6)
        spread = pick([1] * 9 + [2] if usual else [1, 1, 2, 3])
        apart = 1 if usual else pick([1, 1, 2, 3])
        reach, whole = (k - 1) * apart + 1, (n - 1) * spread + 1
        if usual:
            sides = pick([(0, 0), (k // 2, k // 2), (k // 2, (k - 1) // 2), (k - 1, k - 1)])
        else:
            sides = between(-3, 9), between(-3, 9)
        lacking = max(reach - whole - sum(sides), 0)  # for one window
        sides = sides[0], sides[1] + lacking
        axes.append((n, k, step, spread, apart, sides, (whole + sum(sides) - reach) // step + 1))
    groups = pick([1] * 9 + [2])
    work = int(np.prod([*(out * k for _, k, *_, out in axes), *channels]))
    batch = min(between(1, 40), max(WORK // work, 1))
    while batch * work > WORK and max(channels) > 1:
        work = work // max(channels) * (max(channels) // 2)
        channels[channels.index(max(channels))] //= 2
    sizes, kernel, strides, spread, apart, padding, _ = zip(*axes, strict=True)
    images, kernel = (
        (batch, *sizes, channels[0] * groups),
        (*kernel, channels[0], channels[1] * groups),
    )
    dtype = pick(["float32"] * 4 + ["bfloat16"])
    return Case(images, kernel, strides, padding, spread, apart, groups, dtype, pick(FORMS))


def convolved(case):
    """A convolution. Of dilated images the kernel has no gradient: XLA ends the process for some, and none is rewritten."""

    def run(x, kernel):
        kernel = kernel if case.spread == (1, 1) else lax.stop_gradient(kernel)
        return lax.conv_general_dilated(
            x,
            kernel,
            case.strides,
            case.padding,
            case.spread,
            case.dilation,
            ("NHWC", "HWIO", "NHWC"),
            case.groups,
        )

    return run


def formed(case):
    """A function of images, a kernel and other images and kernels, of which all results are compared."""
    f = convolved(case)

    def gradients(x, kernel, function=f):
        y, back = jax.vjp(function, x, kernel)
        return y, back(y)

    def scanned(x, kernel, dx, dkernel):
        # All results are stacked. In their sum two of them may cancel, and the rounding of bfloat16 is
        # then large next to what is left.
        def step(count, kernel):
            return count + 1, gradients(x, kernel)

        return lax.scan(step, jnp.int32(0), jnp.stack([kernel, dkernel]))[1]

    def second(x, kernel, dx, dkernel):
        return jax.jvp(lambda x, kernel: gradients(x, kernel)[1], (x, kernel), (dx, dkernel))

    forms = {
        "jit": lambda x, kernel, dx, dkernel: gradients(x, kernel),
        "scan": scanned,
        "vmap": lambda x, kernel, dx, dkernel: jax.vmap(gradients, (0, None))(
            jnp.stack([x, dx]), kernel
        ),
        "remat": lambda x, kernel, dx, dkernel: gradients(
            x, kernel, jax.checkpoint(lambda x, k: f(jnp.tanh(x), k))
        ),
        "second": second,
        "jvp": lambda x, kernel, dx, dkernel: jax.jvp(f, (x, kernel), (dx, dkernel)),
    }
    return forms[case.form]


def drawn(case, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (case.images, case.kernel, case.images, case.kernel)
    return [rng.normal(size=shape).astype(jnp.dtype(case.dtype)) for shape in shapes]


def same(got, expected, case):
    """Equal up to rounding: to 1e-5 of the largest number for float32, to its eight bits for bfloat16."""
    tolerance = 1e-5 if case.dtype == "float32" else 2**-6
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        assert a.dtype == case.dtype
        a, b = np.asarray(a).astype(np.float64), np.asarray(b).astype(np.float64)
        np.testing.assert_allclose(
            a, b, rtol=0, atol=tolerance * np.abs(b).max(initial=0), err_msg=str(case)
        )


def compared(some):
    """Compare the cases' rewritten programs with JAX's; of bfloat16, with those of the same numbers in float32.

    In JAX's, negative padding is a crop, since jaxlib 0.10 reads beyond the image (`test_convolutions_of_random_padding`).
    """
    given = [drawn(case) for case in some]
    some_runs = [formed(case) for case in some]
    changed = []
    for run, args in zip(some_runs, given, strict=True):
        changed.append(
            count_matches(jax.make_jaxpr(run)(*args), partial(convolution.rule, min_channels=1)) > 0
        )  # else it is the same
    rows = [
        row
        for row, kept in zip(zip(some, some_runs, given, strict=True), changed, strict=True)
        if kept
    ]
    if not rows:
        return 0
    some, some_runs, given = zip(*rows, strict=True)
    runs = lambda given: [run(*args) for run, args in zip(some_runs, given, strict=True)]  # noqa: E731
    got = jax.jit(cpu.optimized(runs), compiler_options=cpu.OPTIONS | QUICK)(given)
    expected = jax.jit(cpu.crop_negative_padding(runs), compiler_options=QUICK)(
        [[x.astype(np.float32) for x in args] for args in given]
    )
    for case, a, b in zip(some, got, expected, strict=True):
        same(a, b, case)
    return len(rows)


@needed
def test_random_convolutions_are_those_of_jax(cases):
    count, rewritten = cases(300), []
    tried(lambda some: rewritten.append(compared(some)), case_of_convolution, count, TOGETHER)
    print(f"{sum(rewritten)} of {TOGETHER * len(rewritten)} programs were rewritten")
    assert sum(rewritten) > count / 5


def case_of_padding(random):
    """(images, kernel, options) of a convolution whose padding is negative somewhere, and whose result is not empty."""
    pick, between = random.choice, random.randint
    groups = pick([1, 1, 1, 2])
    while True:
        sizes, window = [[between(1, most) for _ in range(2)] for most in (14, 3)]
        strides, padding = (
            [between(1, 3) for _ in range(2)],
            [(between(-4, 3), between(-4, 3)) for _ in range(2)],
        )
        spread, dilation = [[pick([1, 1, 2]) for _ in range(2)] for _ in range(2)]
        axes = zip(sizes, spread, padding, window, dilation, strict=True)
        fits = all(
            (n - 1) * gap + sum(sides) >= (k - 1) * apart for n, gap, sides, k, apart in axes
        )
        if fits and min(map(min, padding)) < 0:
            break
    images, kernel = (
        (between(1, 3), *sizes, groups * pick([1, 2, 4, 8])),
        (*window, groups * pick([1, 2, 8])),
    )
    options = {
        "window_strides": strides,
        "padding": padding,
        "lhs_dilation": spread,
        "rhs_dilation": dilation,
    }
    return (
        images,
        (*window, images[3] // groups, kernel[2]),
        options | {"feature_group_count": groups},
    )


def summed(
    x, kernel, shape, window_strides, padding, lhs_dilation, rhs_dilation, feature_group_count
):
    """The same convolution in NumPy, in float64: each result the sum over its window of an image amid endless zeros."""
    b, h, w, c = x.shape
    endless = np.zeros((b, 120, 120, c))
    endless[
        :,
        40 : 40 + h * lhs_dilation[0] : lhs_dilation[0],
        40 : 40 + w * lhs_dilation[1] : lhs_dilation[1],
    ] = x
    total = np.zeros(shape)
    for place, window in itertools.product(np.ndindex(*shape[1:3]), np.ndindex(*kernel.shape[:2])):
        axes = zip(place, window_strides, window, rhs_dilation, padding, strict=True)
        i, j = (40 + p * stride + k * apart - before for p, stride, k, apart, (before, _) in axes)
        pixels, weights = (
            np.split(endless[:, i, j], feature_group_count, 1),
            np.split(kernel[window], feature_group_count, 1),
        )
        total[:, place[0], place[1]] += np.concatenate(
            [a @ b for a, b in zip(pixels, weights, strict=True)], 1
        )
    return total


def test_convolutions_of_random_padding(cases):
    """Left to XLA of jaxlib 0.10.2, some are of memory beyond the image: up to 1e37, another number each time."""

    def compare(some):
        drawn = [
            [np.random.default_rng(0).normal(size=shape).astype(np.float32) for shape in case[:2]]
            for case in some
        ]
        layout = ("NHWC", "HWIO", "NHWC")

        def run(drawn):
            return [
                lax.conv_general_dilated(x, kernel, **case[2], dimension_numbers=layout)
                for (x, kernel), case in zip(drawn, some, strict=True)
            ]

        cropped = rewrite(run, convolution.crop_rule)  # on every jaxlib
        assert count_matches(jax.make_jaxpr(run)(drawn), convolution.crop_rule)
        assert not count_matches(jax.make_jaxpr(cropped)(drawn), convolution.crop_rule)
        got = jax.jit(cropped, compiler_options=QUICK)(drawn)
        for case, (x, kernel), result in zip(some, drawn, got, strict=True):
            expected = summed(x, kernel, result.shape, **case[2])
            np.testing.assert_allclose(
                result,
                expected,
                rtol=0,
                atol=1e-5 * (1 + np.abs(expected).max()),
                err_msg=str(case),
            )

    tried(compare, case_of_padding, cases(120), together=12)


def case_of_pooling(random):
    """(images, window, strides, padding, kind of pixels) of a maximum."""
    axes = []
    for _ in range(2):
        n, k = random.randint(1, 14), random.randint(1, random.choice([2, 3, 4]))
        sides = (
            random.randint(0, k),
            random.randint(0, k),
        )  # JAX's own gradient has no negative padding
        sides = sides[0], sides[1] + max(k - n - sum(sides), 0)
        axes.append((n, k, random.randint(1, 4), sides))
    sizes, window, strides, padding = zip(*axes, strict=True)
    batch, channels = random.choice([0, 1, 2, 2, 2, 3]), random.randint(1, 5)
    pixels = random.choice(["normal", "integers", "infinite", "lowest", "nan"])
    return (batch, *sizes, channels), window, strides, padding, pixels


def pixels_of(shape, kind):
    """Pixels with many equal ones ("integers"), infinities of both signs, only -inf, or NaN among them."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=shape).astype(np.float32)
    if kind == "normal":
        return x
    x = np.round(x)
    if kind == "infinite":
        return np.where(x > 0.5, np.inf, np.where(x < -0.5, -np.inf, x)).astype(np.float32)
    if kind == "lowest":
        return np.full(shape, -np.inf, np.float32)
    return np.where(rng.random(shape) < 0.3, np.nan, x).astype(np.float32) if kind == "nan" else x


def pooled(images, window, strides, padding, pixels):
    """Of one case: a gradient of images and slopes, and both."""
    edges = ((0, 0), *padding, (0, 0))

    def function(x):
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, *strides, 1), edges)

    x = pixels_of(images, pixels)
    slope = (
        np.random.default_rng(2).normal(size=jax.eval_shape(function, x).shape).astype(np.float32)
    )
    return lambda x, slope: jax.vjp(function, x)[1](slope)[0], (x, slope)


@pytest.mark.slow
def test_gradients_of_random_max_poolings_are_those_of_jax_to_the_bit(cases):
    count, rewritten = cases(36), []

    def compare(some):
        runs, given = zip(*(pooled(*case) for case in some), strict=True)
        rewritten.extend(
            count_matches(jax.make_jaxpr(run)(*args), pooling.rule)
            for run, args in zip(runs, given, strict=True)
        )
        every = lambda given: [run(*args) for run, args in zip(runs, given, strict=True)]  # noqa: E731
        got, expected = (
            jax.jit(run, compiler_options=QUICK)(given) for run in (cpu.optimized(every), every)
        )
        for case, a, b in zip(some, got, expected, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=str(case))

    tried(compare, case_of_pooling, count, TOGETHER)
    assert sum(rewritten) > count / 4
