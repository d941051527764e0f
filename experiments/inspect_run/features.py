"""First filters, and feature maps of each stage, as grids."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.inspect_run.context import PageFigure, RunContext, Section
from jaxcnn.config import ArgumentError
from jaxcnn.interpret.activations import feature_maps, first_kernels
from jaxcnn.plots.image_grid import Strip, mosaic, to_rgb

MAPS_PER_STAGE, NUM_IMAGES = 10, 2
"""Maps of each stage, and test images without a user's image."""
BRIGHT_QUANTILE = 0.99
"""Quantile of a stage's responses that has the brightest color.

A few places at the border are far above all others.
"""
MAPS_TEXT = (
    "What the stages hand on, for one image: a row for each stage, and in it the channels whose "
    "maps are brightest on average for this image, from the left. A place of a map stands for "
    "some pixels, and those of later stages for more: that is why they look coarse."
)
MAPS_CAPTION = (
    "Colours go from the least response of the stage (dark) to its 99th percentile (yellow), so "
    "that maps of one row can be compared, and rows cannot."
)


def feature_maps_section(context: RunContext) -> Section | None:
    """Return the feature maps of the user's image, or of test images.

    The test images are the first ones of different classes. A network without maps has none.
    """
    if not context.stages:
        return None
    if context.user_image is not None:
        images, names, files = context.user_image[None], ["your image"], ["features-own"]
    else:
        indices = np.sort(np.unique(context.labels, return_index=True)[1])[:NUM_IMAGES]
        images = context.images[indices]
        names = [f"image {i} ({context.classes[context.labels[i]]})" for i in indices]
        files = [f"features-{i}" for i in indices]
    maps = feature_maps(context.run.model, context.run.last, images, context.stages)
    figures = [
        _maps_figure(
            file, name, image, {stage: stage_maps[i] for stage, stage_maps in maps.items()}
        )
        for i, (file, name, image) in enumerate(zip(files, names, images, strict=True))
    ]
    return Section("Feature maps", MAPS_TEXT, figures=figures)


def _maps_figure(
    file: str, name: str, image: np.ndarray, maps: dict[str, np.ndarray]
) -> PageFigure:
    """Return one image, and the brightest maps of each stage.

    Args:
      file: name of the figure.
      name: of the image, for the title.
      image: uint8 [h, w, c].
      maps: stage -> float [h', w', k].
    """
    strips = [Strip([to_rgb(image)], "image")]
    strips += [_maps_strip(stage, stage_maps) for stage, stage_maps in maps.items()]
    figure = mosaic(strips, title=f"Feature maps of {name}", side=0.85)
    inactive = ", ".join(
        f"{np.count_nonzero(stage_maps.max((0, 1)) <= 0)} of {stage_maps.shape[2]}"
        for stage_maps in maps.values()
    )
    alt = (
        f"Feature maps of {name}, the {MAPS_PER_STAGE} brightest of each of {len(maps)} stages: "
        f"{', '.join(maps)}."
    )
    return PageFigure(
        file,
        figure,
        alt,
        f"{MAPS_CAPTION} Channels that are 0 or below everywhere, by stage: {inactive}.",
    )


def _maps_strip(stage: str, maps: np.ndarray) -> Strip:
    """Return the brightest maps of a stage, [h, w, k]."""
    h, w, k = maps.shape
    brightest = np.argsort(-maps.mean((0, 1)), kind="stable")[:MAPS_PER_STAGE]
    limits = float(maps.min()), float(np.quantile(maps, BRIGHT_QUANTILE))
    captions = [f"channel {i}" for i in brightest]
    return Strip(
        [maps[..., i] for i in brightest], f"{stage}\n{h}x{w}x{k}", captions, limits=limits
    )


FILTER_COLUMNS, MAX_FILTERS = 8, 64
"""Filters in a row, and most filters shown.

A row has twice as many where there are over 32 filters.
"""
LOW_FREQUENCY = 0.25
"""Greatest low frequency, in cycles per pixel.

The highest along an axis is 0.5.
"""
FILTERS_CAPTION = (
    "Above at the start, below after training, the same filters one under the other. {colors} "
    "Each filter is scaled by its own greatest weight: compare shapes, and sizes in the table."
)


def first_filters_section(context: RunContext) -> Section | None:
    """Return the first filters before and after training.

    A network without a convolution that sees the image has none.
    """
    try:
        initial, final = (
            first_kernels(context.run.model, state)
            for state in (context.run.first, context.run.last)
        )
    except ArgumentError:
        return None
    (h, w, c, k), steps = final.shape, int(context.run.last.step)
    text = (
        f"The first convolution has {k} filters of {h}x{w} pixels and {c} channel{'s' * (c > 1)}. "
        f"{_change_text(initial, final)}"
    )
    rows = [
        {"filters": "at the start", **filter_statistics(initial)},
        {"filters": f"at step {steps:,}", **filter_statistics(final)},
    ]
    color_key = (
        "Gray is 0, and each color the weights of that color."
        if c == 3
        else ("" if c == 1 else "Of the channels the mean is drawn. ")
        + "White is 0, red above, blue below."
    )
    alt = (
        f"{min(k, MAX_FILTERS)} filters of {h}x{w} pixels at the start and after training. "
        f"{_change_text(initial, final)}"
    )
    figure = _filters_figure(initial, final)
    return Section(
        "First filters",
        text,
        rows,
        [
            PageFigure(
                "filters",
                figure,
                alt,
                FILTERS_CAPTION.format(colors=color_key) + _truncation_note(k),
            )
        ],
    )


def _change_text(initial: np.ndarray, final: np.ndarray) -> str:
    """Return how far training has moved the filters, in words."""
    similarity = filter_similarity(initial, final)
    return (
        "Training has moved them: the correlation of a filter with its own start is "
        f"{np.median(similarity):.2f} at the median, from {similarity.min():.2f} to "
        f"{similarity.max():.2f} (1 is unchanged, 0 nothing left of it)."
    )


def filter_similarity(initial: np.ndarray, final: np.ndarray) -> np.ndarray:
    """Return the cosine of each filter with its start, [k].

    Args:
      initial: kernels at the start, [h, w, c, k].
      final: trained kernels, of the same shape.

    Returns:
      float64 [k]; 0 where one of the two filters is 0.
    """
    start, end = (
        kernels.reshape(-1, kernels.shape[-1]).astype(np.float64) for kernels in (initial, final)
    )
    norms = np.linalg.norm(start, axis=0) * np.linalg.norm(end, axis=0)
    return (start * end).sum(0) / np.where(norms > 0, norms, 1)


def filter_statistics(kernels: np.ndarray) -> dict[str, Any]:
    """Return norms of filters, and shares of low frequency and gray.

    Shares are of all squared weights. Only filters of three colors have a share of gray.
    """
    norms = np.linalg.norm(kernels.reshape(-1, kernels.shape[-1]), axis=0)
    row = {
        "norm, median": f"{np.median(norms):.3g}",
        "norm, least to greatest": f"{norms.min():.2g} to {norms.max():.2g}",
        f"energy up to {LOW_FREQUENCY} cycles/pixel": f"{100 * low_frequency_share(kernels):.0f}%",
    }
    total = np.square(kernels).sum()
    gray = kernels.shape[2] * np.square(kernels.mean(2)).sum() / total if total else 0.0
    return row | ({"energy that is grey": f"{100 * gray:.0f}%"} if kernels.shape[2] == 3 else {})


def low_frequency_share(kernels: np.ndarray, points: int = 64) -> float:
    """Return the share of energy at frequencies up to `LOW_FREQUENCY`.

    White noise has pi/16, about 0.20.

    Args:
      kernels: filters, [h, w, c, k].
      points: of the Fourier transform along each axis.

    Example:
      >>> noise = np.random.default_rng(0).normal(size=(3, 3, 3, 1000))
      >>> checked = noise, np.ones((7, 7, 1, 1))
      >>> [round(low_frequency_share(kernels), 2) for kernels in checked]
      [0.19, 0.92]
    """
    # Zero padding to `points` interpolates the spectrum.
    power = np.square(np.abs(np.fft.fft2(kernels, (points, points), axes=(0, 1)))).sum((2, 3))
    freq = np.fft.fftfreq(points)
    return float(
        power[np.hypot(freq[:, None], freq[None]) <= LOW_FREQUENCY].sum()
        / max(power.sum(), np.finfo(float).tiny)
    )


def _truncation_note(k: int) -> str:
    """Return a sentence if not all filters are drawn."""
    return f" The first {MAX_FILTERS} of {k} are drawn." if k > MAX_FILTERS else ""


def _filters_figure(initial: np.ndarray, final: np.ndarray) -> Any:
    """Return rows in pairs, the filters before training above those after."""
    count = min(final.shape[-1], MAX_FILTERS)
    columns = FILTER_COLUMNS if count <= 32 else 2 * FILTER_COLUMNS
    strips = []
    for start in range(0, count, columns):
        indices = range(start, min(start + columns, count))
        suffix = f" {start}-{indices[-1]}" if count > columns else ""
        strips += [
            _filters_strip(kernels, indices, label + suffix)
            for kernels, label in ((initial, "before"), (final, "after"))
        ]
    return mosaic(
        strips,
        side=0.95 if columns == FILTER_COLUMNS else 0.55,
        gap=0.07,
        title="First filters before and after training",
    )


def _filters_strip(kernels: np.ndarray, indices: range, label: str) -> Strip:
    """Return some filters, each scaled by its own greatest weight."""
    # A filter of zeros would otherwise be divided by 0.
    scaled = [kernels[..., i] / max(float(np.abs(kernels[..., i]).max()), 1e-12) for i in indices]
    if kernels.shape[2] == 3:
        # Weights of 0 become gray.
        return Strip([0.5 + 0.5 * kernel for kernel in scaled], label)
    return Strip([kernel.mean(2) for kernel in scaled], label, cmap="RdBu_r", limits=(-1.0, 1.0))
