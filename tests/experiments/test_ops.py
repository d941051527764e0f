"""The layers written out, each against the library's: values, and gradients with respect to image and kernel, to 1e-6."""

import doctest
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy import ndimage

from experiments.filters import ops
from jaxcnn.models.layers import local_response_norm as layer

LAYOUT = ("NHWC", "HWIO", "NHWC")


def normal(*shape, seed=0):
    """Of length about 1, so that an absolute bound means something."""
    return np.random.default_rng([seed, *shape]).normal(0, 1, shape).astype(np.float32)


def equal(functions, *arguments):
    """Values of all functions and, for the same random weights of these, their gradients are those of the last."""

    @jax.jit
    def values(*arguments):
        made = [jax.vjp(function, *arguments) for function in functions]
        weights = jnp.asarray(normal(*made[-1][0].shape, seed=1))
        return [(out, *back(weights)) for out, back in made]

    *found, expected = jax.tree.map(np.asarray, values(*arguments))
    for a, b in ((a, b) for one in found for a, b in zip(one, expected, strict=True)):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * max(1.0, np.abs(b).max()))


def pads(image, window, stride, padding):
    return [
        ops.padding_widths(size, side, stride, padding)
        for size, side in zip(image.shape, window, strict=False)
    ]


def library_convolution(stride, padding):
    def convolve(image, kernel):
        around = pads(image, kernel.shape[:2], stride, padding)
        return lax.conv_general_dilated(
            image[None], kernel, (stride, stride), around, dimension_numbers=LAYOUT
        )[0]

    return convolve


CONVOLUTIONS = [  # height, width, channels, filters, kernel's height and width, stride, padding
    (4, 5, 1, 1, 3, 3, 1, 0),
    (8, 7, 3, 4, 3, 3, 2, 1),
    (6, 6, 2, 2, 3, 3, 2, "same"),
    (9, 6, 4, 2, 5, 5, 1, "same"),
    (7, 7, 3, 5, 1, 1, 2, "valid"),
    (10, 9, 2, 1, 4, 2, 3, (0, 2)),
    (6, 6, 3, 2, 6, 6, 1, 0),
]


@pytest.mark.slow
@pytest.mark.parametrize(("h", "w", "c", "f", "high", "wide", "stride", "padding"), CONVOLUTIONS)
def test_convolution_is_the_librarys(h, w, c, f, high, wide, stride, padding):
    image, kernel = normal(h, w, c), normal(high, wide, c, f)
    ways = [
        lambda i, k: ops.convolution(i, k, stride, padding),
        library_convolution(stride, padding),
    ]
    if h * w * f < 100:  # each number by loops is an operation to compile
        ways.insert(0, lambda i, k: ops.convolution_by_loops(i, k, stride, padding))
    equal(ways, image, kernel)


def test_vmap_makes_a_batch():
    images, kernel = normal(4, 6, 6, 3), normal(3, 3, 3, 2)
    batched = jax.vmap(lambda image, kernel: ops.convolution(image, kernel, padding=1), (0, None))
    library = lambda i, k: lax.conv_general_dilated(i, k, (1, 1), "SAME", dimension_numbers=LAYOUT)  # noqa: E731
    equal([batched, library], images, kernel)


def test_patches_are_the_windows_row_by_row():
    image = normal(6, 5, 2)
    found = jax.jit(lambda i: ops.patches(i, (3, 2), stride=2, padding=1))(image)
    around = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    for y, x in np.ndindex(3, 3):
        np.testing.assert_array_equal(found[y, x], around[2 * y : 2 * y + 3, 2 * x : 2 * x + 2])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "window", "stride", "padding"),
    [(4, 3, 2, 0), (4, 4, 2, 1), (5, 3, 1, 1), (3, 5, 3, 2)],
)
def test_transposed_convolution_is_the_gradient_of_convolution_and_the_librarys(
    size, window, stride, padding
):
    image, kernel = (
        normal(size, size + 1, 3),
        normal(window, window, 2, 3),
    )  # 3 filters become 2 channels
    shape = tuple(ops.transposed_size(n, window, stride, padding) for n in image.shape[:2])

    def gradient(image, kernel):
        _, back = jax.vjp(
            lambda x: ops.convolution(x, kernel, stride, padding), jnp.zeros((*shape, 2))
        )
        return back(image)[0]

    def library(image, kernel):
        cut = [(window - 1 - padding,) * 2] * 2
        strides = (stride, stride)
        return lax.conv_transpose(
            image[None], kernel, strides, cut, dimension_numbers=LAYOUT, transpose_kernel=True
        )[0]

    equal(
        [lambda i, k: ops.transposed_convolution(i, k, stride, padding), gradient, library],
        image,
        kernel,
    )


POOLS = [(6, 6, 3, 2, None, 0), (7, 8, 2, 3, 2, 1), (9, 9, 1, 3, 2, "same"), (8, 5, 2, 3, 1, 1)]


@pytest.mark.slow
@pytest.mark.parametrize(("h", "w", "c", "window", "stride", "padding"), POOLS)
@pytest.mark.parametrize("kind", ["max", "average"])
def test_pooling_is_the_librarys(kind, h, w, c, window, stride, padding):
    image, shape, step = normal(h, w, c), (window, window), stride or window
    ours, theirs = {"max": (ops.max_pool, nn.max_pool), "average": (ops.average_pool, sums)}[kind]
    around = pads(image, shape, step, padding)
    library = lambda i: theirs(i[None], shape, (step, step), around)[0]  # noqa: E731
    equal([lambda i: ours(i, window, stride, padding), library], image)


def sums(image, shape, strides, around):
    """flax's avg_pool, whose division by a NumPy integer strict promotion does not let pass."""
    return nn.pooling.pool(image, 0.0, lax.add, shape, strides, around) / (shape[0] * shape[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("channels", "numbers"),
    [(7, {}), (3, {}), (6, {"size": 3, "k": 1.0, "alpha": 0.5, "beta": 0.5})],
)
def test_local_response_norm_is_the_networks_and_the_papers_formula(channels, numbers):
    image = 10 * normal(3, 4, channels)
    equal(
        [lambda i: ops.local_response_norm(i, **numbers), lambda i: layer(i[None], **numbers)[0]],
        image,
    )
    size, k, alpha, beta = numbers.values() if numbers else (5, 2.0, 1e-4, 0.75)
    found = jax.jit(lambda i: ops.local_response_norm(i, **numbers))(image)
    for i in range(channels):
        low, high = max(0, i - size // 2), min(channels - 1, i + size // 2)  # of the paper's sum
        total = sum(image[..., j].astype(np.float64) ** 2 for j in range(low, high + 1))
        np.testing.assert_allclose(
            found[..., i], image[..., i] / (k + alpha * total) ** beta, rtol=1e-5
        )


@pytest.mark.slow
@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("method", ["nearest", "bilinear"])
def test_upsampling_is_the_librarys(method, factor):
    image = normal(4, 5, 2)
    shape = (4 * factor, 5 * factor, 2)
    equal(
        [lambda i: getattr(ops, method)(i, factor), lambda i: jax.image.resize(i, shape, method)],
        image,
    )


def test_bilinear_of_a_slope_is_a_slope_but_at_the_edges():
    slope = np.arange(6.0, dtype=np.float32)[None, :, None].repeat(2, 0)
    found = np.asarray(jax.jit(ops.bilinear, static_argnums=1)(slope, 2))
    np.testing.assert_allclose(np.diff(found[0, 1:-1, 0]), 0.5, atol=1e-6)


def test_sizes_are_those_of_the_windows_that_fit():
    for size, window, stride, padding in itertools.product(
        range(1, 12), (1, 2, 3, 5), (1, 2, 3), (0, 1, 2, (0, 1))
    ):
        before, after = ops.padding_widths(size, window, stride, padding)
        starts = range(0, size + before + after - window + 1, stride)
        if len(starts):
            assert ops.output_size(size, window, stride, padding) == len(starts)
        else:
            with pytest.raises(ValueError, match="does not fit"):
                ops.output_size(size, window, stride, padding)


def test_same_and_valid_are_the_librarys():
    for size, window, stride in itertools.product(range(1, 16), (1, 2, 3, 4, 7), (1, 2, 3)):
        (expected,) = lax.padtype_to_pads((size,), (window,), (stride,), "SAME")
        assert ops.padding_widths(size, window, stride, "same") == expected
        assert ops.output_size(size, window, stride, "same") == -(-size // stride)
        assert ops.padding_widths(size, window, stride, "valid") == (0, 0)


def test_a_transposed_convolution_makes_the_smallest_size_that_is_convolved_back():
    for size, window, stride, padding in itertools.product((1, 2, 5), (2, 3, 4), (1, 2, 3), (0, 1)):
        made = ops.transposed_size(size, window, stride, padding)
        if made > 0 and 2 * padding < window:
            assert ops.output_size(made, window, stride, padding) == size
            assert (
                made == 1
                or made + 2 * padding == window
                or ops.output_size(made - 1, window, stride, padding) < size
            )


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: ops.output_size(4, 5), "a window of 5 does not fit into 4 pixels"),
        (lambda: ops.output_size(4, 3, 0), "stride 0; expected whole numbers of at least 1"),
        (
            lambda: ops.padding_widths(4, 3, 1, "smae"),
            "padding is 'smae'; expected 'same', 'valid'",
        ),
        (lambda: ops.padding_widths(4, 3, 1, -1), "padding is -1"),
        (
            lambda: ops.convolution(jnp.ones((4, 4, 1)), jnp.ones((3, 3, 2, 1))),
            "kernel is .* expected .*h, w, c",
        ),
        (
            lambda: ops.convolution_by_loops(jnp.ones((4, 4)), jnp.ones((3, 3, 1, 1))),
            "expected .*h, w, c",
        ),
        (
            lambda: ops.transposed_convolution(jnp.ones((4, 4, 2)), jnp.ones((3, 3, 2, 1))),
            "expected .*filters",
        ),
    ],
)
def test_mistakes_are_one_line(call, says):
    with pytest.raises(ValueError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_filters_are_scipys_correlation_channel_by_channel_and_what_they_are_called():
    image, apply = normal(6, 7, 2), jax.jit(ops.apply_filter)
    found = {name: np.asarray(apply(image, kernel)) for name, kernel in ops.FILTERS.items()}
    for name, kernel in ops.FILTERS.items():
        expected = np.stack(
            [ndimage.correlate(image[..., c], kernel, mode="nearest") for c in range(2)], -1
        )
        np.testing.assert_allclose(found[name], expected, atol=1e-5)
    one, first = image[..., 0], {name: out[..., 0] for name, out in found.items()}
    np.testing.assert_array_equal(first["identity"], one)
    np.testing.assert_allclose(first["Sobel x"], ndimage.sobel(one, 1, mode="nearest"), atol=1e-5)
    np.testing.assert_allclose(first["Sobel y"], ndimage.sobel(one, 0, mode="nearest"), atol=1e-5)
    np.testing.assert_allclose(first["Laplacian"], ndimage.laplace(one, mode="nearest"), atol=1e-5)
    np.testing.assert_allclose(first["sharpen"], one - first["Laplacian"], atol=1e-5)
    np.testing.assert_allclose(
        first["box blur"], ndimage.uniform_filter(one, 3, mode="nearest"), atol=1e-5
    )
    assert ops.FILTERS["Gaussian blur"].sum() == ops.FILTERS["emboss"].sum() == 1


@pytest.mark.slow
def test_examples_run():
    assert doctest.testmod(ops).failed == 0
