"""Figures of filters and layers: convolution, pooling, upsampling and normalization."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.filters import ops
from jaxcnn import plots

SMALL_IMAGE = np.array(
    [[1, 1, 2, 8, 9], [1, 1, 2, 9, 8], [1, 2, 7, 9, 9], [2, 1, 8, 9, 8], [1, 2, 9, 8, 9]],
    np.float32,
)
"""Image with an edge for Sobel's filter.

It is dark on the left and bright on the right.
"""
NUMBER_STYLE: dict[str, Any] = {"fmt": ".0f", "cmap": "Blues", "limits": (0, 22)}
"""Style of tiles with positive numbers."""
SIGNED_STYLE: dict[str, Any] = {"fmt": ".0f", "cmap": "RdBu_r", "limits": (-60, 60)}
"""Style of tiles with signed numbers."""
SIZES = ((1, 0), (1, 1), (2, 0), (2, 1))
"""Stride and padding of the drawn windows of 3 on 5 pixels."""
MAP = np.array([[1, 3, 0, 2], [5, 2, 1, 9], [4, 4, 7, 0], [0, 8, 6, 3]], np.float32)
"""Map that is pooled in numbers."""
POOLING_STYLE: dict[str, Any] = {"fmt": "g", "cmap": "Blues", "limits": (0, 16)}
"""Style of tiles with numbers that are pooled."""
SHRINK_FACTOR = 8
"""Factor by which the photograph is pooled."""
NUM_CHANNELS, LOUD_CHANNELS = 24, {5: 30.0, 6: 12.0, 16: 18.0}
"""Number of channels of the normalized pixel, and its loud channels.

The others have a value of 3.
"""


def kernel_tile(kernel: np.ndarray, title: str, **kwargs: Any) -> plots.Tile:
    """Return a tile with the kernel's numbers.

    Fractions are shown as numerators of their common denominator.
    """
    smallest = np.abs(kernel[kernel != 0]).min()
    values = kernel / smallest if smallest < 1 else kernel
    suffix = f" / {round(1 / smallest)}" if smallest < 1 else ""
    greatest = float(np.abs(values).max())
    return plots.Tile(
        values,
        title + suffix,
        fmt=".0f",
        cmap="RdBu_r",
        limits=(-1.6 * greatest, 1.6 * greatest),
        **kwargs,
    )


def filtered_image(name: str, image: jax.Array) -> np.ndarray:
    """Return a filtered image [h, w, 3] for display, in 0..1.

    For filters whose numbers add up to 0, only the brightness is filtered. There 0 is gray, and
    positive values are brighter.
    """
    kernel = ops.FILTERS[name]
    if abs(float(kernel.sum())) > 1e-3:
        return np.asarray(ops.apply_filter(image, kernel)).clip(0, 1)
    # Luminance (ITU-R BT.709).
    gray = image @ jnp.array([0.2126, 0.7152, 0.0722])
    edges = np.asarray(ops.apply_filter(gray[..., None], kernel))[..., 0]
    edges = 0.5 + 0.5 * edges / np.quantile(np.abs(edges), 0.995)
    return np.repeat(edges[..., None], 3, -1).clip(0, 1)


def filters_figure(image: jax.Array) -> Any:
    """Return each filter above its result on the middle of the photograph."""
    third = len(image) // 3
    # 3 pixels are too few to be seen in the whole photograph.
    middle = image[third : 2 * third, third : 2 * third]
    rows = []
    for names in (list(ops.FILTERS)[:4], list(ops.FILTERS)[4:]):
        rows.append([kernel_tile(ops.FILTERS[name], name) for name in names])
        rows.append([plots.Tile(filtered_image(name, middle)) for name in names])
    return plots.tiles(
        rows, title="3x3 filters and the images that they make", heights=[0.95, 1.9, 0.95, 1.9]
    )


def convolve(image: np.ndarray, *kernels: np.ndarray) -> np.ndarray:
    """Return the convolution of an image with 3x3 kernels.

    Args:
      image: [h, w].
      kernels: each [3, 3].

    Returns:
      [h - 2, w - 2, kernels].
    """
    stacked = np.stack(kernels, -1)[:, :, None]
    return np.asarray(ops.convolution(jnp.asarray(image)[..., None], jnp.asarray(stacked)))


def steps_figure(image: jax.Array) -> Any:
    """Return three of the positions of the kernel."""
    kernel = ops.FILTERS["Sobel x"]
    output = convolve(SMALL_IMAGE, kernel)[..., 0]
    rows = []
    for y, x in ((0, 0), (0, 1), (2, 2)):
        patch = SMALL_IMAGE[y : y + 3, x : x + 3]
        partial = np.where(np.arange(9).reshape(3, 3) <= 3 * y + x, output, np.nan)
        is_first = not rows
        row = [
            plots.Tile(
                SMALL_IMAGE, "image" * is_first, frames=[plots.Frame(y, x, 3, 3)], **NUMBER_STYLE
            ),
            "→",
            plots.Tile(patch, "patch" * is_first, **NUMBER_STYLE),
            "×",
            kernel_tile(kernel, "kernel" * is_first),
            "=",
            plots.Tile(patch * kernel, "products" * is_first, **SIGNED_STYLE),
            f"sum = {output[y, x]:\u2007>2.0f}  →",
            plots.Tile(
                partial, "output" * is_first, frames=[plots.Frame(y, x, 1, 1)], **SIGNED_STYLE
            ),
        ]
        rows.append(row)
    return plots.tiles(
        rows, title="Convolution: a patch times the kernel, summed, is one number", heights=1.75
    )


def product_figure(image: jax.Array) -> Any:
    """Return the patches as rows of a matrix, times kernels as columns."""
    kernels = [ops.FILTERS[name] for name in ("Sobel x", "Laplacian")]
    matrix = np.asarray(ops.patches(jnp.asarray(SMALL_IMAGE)[..., None], (3, 3))).reshape(9, 9)
    columns = np.stack([kernel.ravel() for kernel in kernels], -1)  # [9, 2]
    output = convolve(SMALL_IMAGE, *kernels)
    colors = plots.COLORS[1], plots.COLORS[2]
    image_frames = [plots.Frame(0, 0, 3, 3, colors[0]), plots.Frame(2, 2, 3, 3, colors[1])]
    row = [
        plots.Tile(SMALL_IMAGE, "image", frames=image_frames, share=0.6, **NUMBER_STYLE),
        "→",
        plots.Tile(
            matrix,
            "every patch is a row",
            frames=[plots.Frame(0, 0, 1, 9, colors[0]), plots.Frame(8, 0, 1, 9, colors[1])],
            **NUMBER_STYLE,
        ),
        "×",
        plots.Tile(columns, "kernels", fmt=".0f", cmap="RdBu_r", limits=(-6, 6)),
        "=",
        plots.Tile(
            output.reshape(9, 2),
            "product",
            frames=[plots.Frame(0, 0, 1, 2, colors[0]), plots.Frame(8, 0, 1, 2, colors[1])],
            **SIGNED_STYLE,
        ),
        "→",
        *(plots.Tile(output[..., i], f"map {i + 1}", share=0.4, **SIGNED_STYLE) for i in range(2)),
    ]
    return plots.tiles([row], title="Convolution as one matrix product (im2col)", heights=3.8)


def sizes_figure(image: jax.Array) -> Any:
    """Return the windows of 3 on 5 pixels, by stride and padding.

    Each panel has the first window, its neighbor and the last, and their number.
    """
    cells = []
    for stride, padding in SIZES:
        count = ops.output_size(5, 3, stride, padding)
        padded = np.pad(SMALL_IMAGE, padding)
        kernel = jnp.asarray(ops.FILTERS["box blur"])[..., None, None]
        output = np.asarray(
            ops.convolution(jnp.asarray(SMALL_IMAGE)[..., None], kernel, stride, padding)
        )[..., 0]
        last = stride * (count - 1)
        blue, orange, green = plots.COLORS[0], plots.COLORS[1], plots.COLORS[2]
        frames = [
            plots.Frame(0, 0, 3, 3, orange),
            plots.Frame(0, stride, 3, 3, blue, 0.12),
            plots.Frame(last, last, 3, 3, green),
        ]
        output_frames = [
            plots.Frame(0, 0, 1, 1, orange),
            plots.Frame(0, 1, 1, 1, blue),
            plots.Frame(count - 1, count - 1, 1, 1, green),
        ]
        formula = f"⌊(5 + 2·{padding} − 3) / {stride}⌋ + 1 = {count}"
        input_tile = plots.Tile(
            padded,
            f"stride {stride}, padding {padding}",
            frames=frames,
            margin=padding,
            **NUMBER_STYLE,
        )
        output_tile = plots.Tile(
            output,
            f"{count} × {count}",
            note=formula,
            fmt=".1f",
            cmap="Blues",
            limits=(0, 22),
            frames=output_frames,
        )
        cells.append([input_tile, "→", output_tile])
    rows = [[*cells[0], " ", *cells[1]], [*cells[2], " ", *cells[3]]]
    return plots.tiles(
        rows,
        title="Windows of 3 on 5 pixels (box blur): the first, its neighbor and the last",
        heights=2.5,
    )


def pooling_figure(image: jax.Array) -> Any:
    """Return maximum and mean pooling, in numbers and on the photograph.

    The numbers are pooled by 2x2 squares, the photograph by 8x8.
    """
    small = jnp.asarray(MAP)[..., None]
    pooled = {"maximum": ops.max_pool(small, 2), "mean": ops.average_pool(small, 2)}
    squares = [(0, 0), (0, 2), (2, 0), (2, 2)]
    frames = [
        plots.Frame(*corner, 2, 2, color)
        for corner, color in zip(squares, plots.COLORS, strict=False)
    ]
    output_frames = [
        plots.Frame(corner[0] // 2, corner[1] // 2, 1, 1, color)
        for corner, color in zip(squares, plots.COLORS, strict=False)
    ]
    top_row = [plots.Tile(MAP, "map", frames=frames, **POOLING_STYLE)]
    top_row += [
        plots.Tile(
            np.asarray(output)[..., 0], f"{name} of 2 × 2", frames=output_frames, **POOLING_STYLE
        )
        for name, output in pooled.items()
    ]
    bottom_row = [plots.Tile(np.asarray(image), "photograph")]
    for name, pool in (("maximum", ops.max_pool), ("mean", ops.average_pool)):
        bottom_row.append(
            plots.Tile(
                np.asarray(pool(image, SHRINK_FACTOR)),
                f"{name} of {SHRINK_FACTOR} × {SHRINK_FACTOR}",
            )
        )
    return plots.tiles(
        [top_row, bottom_row],
        title="Pooling: the maximum or the mean of each square",
        heights=[1.6, 2.3],
    )


def uniform_kernel(window: int) -> jax.Array:
    """Return a kernel [window, window, 1, 1] of equal numbers.

    At stride 2 it keeps the mean brightness.
    """
    return jnp.full((window, window, 1, 1), 4 / window**2)


def transposed_upsample(image: jax.Array, window: int, padding: int) -> jax.Array:
    """Return an image [h, w, c] of about twice the size.

    Each channel goes through a transposed convolution.
    """

    def upsample_channel(channel: jax.Array) -> jax.Array:
        kernel = uniform_kernel(window)
        return ops.transposed_convolution(channel[..., None], kernel, 2, padding)[..., 0]

    return jax.vmap(upsample_channel, -1, -1)(image)


def upsampling_figure(image: jax.Array) -> Any:
    """Return upsampled photographs, and how windows cover each pixel."""
    ones, counts = jnp.ones((3, 3, 1)), []
    for window, padding in ((2, 0), (3, 0), (4, 1)):
        counts_map = ops.transposed_convolution(ones, jnp.ones((window, window, 1, 1)), 2, padding)
        title = f"transposed, window {window}, stride 2"
        counts.append(
            plots.Tile(
                np.asarray(counts_map)[..., 0],
                title,
                "products added in each pixel",
                fmt="g",
                cmap="Blues",
                limits=(0, 8),
            )
        )
    quarter = len(image) // 4
    small = ops.average_pool(image[quarter : 3 * quarter, quarter : 3 * quarter], 4)
    methods = {
        "nearest": lambda x: ops.nearest(x, 2),
        "bilinear": lambda x: ops.bilinear(x, 2),
        "transposed, window 2": lambda x: transposed_upsample(x, 2, 0),
        "transposed, window 3": lambda x: transposed_upsample(x, 3, 0),
        "transposed, window 4": lambda x: transposed_upsample(x, 4, 1),
    }
    results = jax.jit(
        lambda pixels: {name: method(method(pixels)) for name, method in methods.items()}
    )(small)
    tiles = [plots.Tile(np.asarray(results[name]), f"{name}, twice") for name in methods]
    rows = [[plots.Tile(np.asarray(small), "small photograph"), *tiles[:2]], counts, tiles[2:]]
    title = "Upsampling: windows that overlap unevenly make a checkerboard"
    return plots.tiles(rows, title=title, heights=[2.0, 2.1, 2.0])


def lrn_figure(image: jax.Array) -> Any:
    """Return the channels of one pixel before and after normalization.

    A second panel has a larger alpha than AlexNet's, to make the effect visible.
    """
    inputs = np.full(NUM_CHANNELS, 3.0, np.float32)
    inputs[list(LOUD_CHANNELS)] = list(LOUD_CHANNELS.values())
    channels = list(range(1, NUM_CHANNELS + 1))
    panels = []
    for title, alpha in (("AlexNet's alpha, 0.0001", 1e-4), ("larger alpha, 0.01", 1e-2)):
        normalized = ops.local_response_norm(jnp.asarray(inputs)[None, None], alpha=alpha)
        outputs = np.asarray(normalized)[0, 0]
        quiet = ops.local_response_norm(jnp.full((1, 1, NUM_CHANNELS), 3.0), alpha=alpha)
        quiet_output = np.asarray(quiet)[0, 0, NUM_CHANNELS // 2]
        lines = [
            plots.Line(channels, inputs / 3, label="before", color="0.6", marker="o"),
            plots.Line(
                channels, outputs / quiet_output, label="after", color=plots.COLORS[1], marker="o"
            ),
        ]
        panels.append(
            plots.Panel(title, lines, (), "channel", "response / quiet channel's", ylim=(0, 10.5))
        )
    return plots.panels(
        panels,
        title="Local response normalization: a large response lowers its neighbors",
        size=(4.8, 3.1),
    )
