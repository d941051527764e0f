"""Images that excite channels, by ascent and from training data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.inspect_run.context import PageFigure, RunContext, Section
from jaxcnn.interpret.activations import TopActivations, map_shapes, top_activations
from jaxcnn.interpret.feature_visualization import maximize_activation
from jaxcnn.interpret.receptive_field import ReceptiveField, receptive_fields, receptive_patch
from jaxcnn.interpret.summary import summary
from jaxcnn.plots.image_grid import Strip, mosaic, to_rgb

CHANNELS_PER_STAGE, MAX_STAGES = 8, 5
"""Number of channels of a stage, and of stages, that are shown."""
MAX_IMAGES, MAX_STEPS = 500, 64
"""Most training images and steps of the ascent."""
MAX_MULTIPLY_ADDS = 4e11
"""Multiply-adds of the ascent, some 10 seconds on two cores.

Larger networks get fewer steps and images.
"""
RANK_LABELS = ("1st", "2nd", "3rd", "4th")
TEXT = (
    "Two answers to what a channel looks for. By ascent: from random noise, the image is changed "
    "step by step so that the channel's mean response over its map rises, and kept smooth "
    "(activation maximisation). From data: of {images} training images those with the greatest "
    "response anywhere, cut to what that place of the map sees (its receptive field).\n\n"
    "Deeper stages see more of the image, so that what they look for can be larger. In networks "
    "trained for long on photographs others have found edges and colors first, then textures, "
    "then parts of things (Zeiler and Fergus 2013; Olah et al. 2017). Channels are not picked: "
    "they are the first {channels} of each stage that any of the training images wakes. The ascent "
    "takes {steps} steps."
)
CAPTION = (
    "Above what the ascent arrives at, below what excites the same channel most among training "
    "images, the strongest first. {field}"
)


def channels_section(context: RunContext) -> Section | None:
    """Return images that excite the channels of each stage.

    One figure has the ascent's images of all stages. Another for each stage has them next to
    patches of training images. A network without maps has no such section.
    """
    if not context.stages:
        return None
    run, shape = context.run, context.images.shape[1:]
    stages = select_stages(context.stages, map_shapes(run.model, shape))
    # A model may have no layer with multiply-adds.
    macs = max(summary(run.model, shape).macs, 1)
    # An eighth of the budget is for images, one forward pass each.
    images = np.asarray(
        run.data.train.images[: int(np.clip(MAX_MULTIPLY_ADDS / (8 * macs), 50, MAX_IMAGES))]
    )
    top_images = top_activations(
        run.model, run.last, images, min(len(RANK_LABELS), len(images)), stages
    )
    channels = {
        stage: active_channels(top_images[stage], 2 if macs > 1e9 else CHANNELS_PER_STAGE)
        for stage in stages
    }
    # A step of the ascent is a forward and a backward pass, about three forward passes.
    steps = int(
        np.clip(MAX_MULTIPLY_ADDS / (3 * macs * sum(map(len, channels.values()))), 16, MAX_STEPS)
    )
    ascent = maximize_activation(run.model, run.last, channels, num_steps=steps)
    fields = receptive_fields(run.model, shape)
    figures = [_overview_figure(channels, ascent)]
    figures += [
        _stage_figure(
            stage, channels[stage], ascent[stage], top_images[stage], fields[stage], images
        )
        for stage in stages
    ]
    text = TEXT.format(images=len(images), channels=max(map(len, channels.values())), steps=steps)
    return Section("What channels look for", text, _field_table(fields, stages, shape), figures)


def select_stages(stages: tuple[str, ...], maps: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return the stages to show, at most `MAX_STAGES`.

    These are the requested stages. If all stages with wide maps are requested, those whose maps
    have one place are added, and evenly spaced ones of many are chosen.

    Example:
      >>> select_stages(("c1", "c3"), {"c1": (28, 28, 6), "c3": (10, 10, 16), "c5": (1, 1, 120)})
      ['c1', 'c3', 'c5']
    """
    wide = [stage for stage, (h, w, _) in maps.items() if h * w > 1]
    names = list(maps) if list(stages) == wide else list(stages)
    if len(names) <= MAX_STAGES:
        return names
    return [names[i] for i in np.linspace(0, len(names) - 1, MAX_STAGES).round().astype(int)]


def active_channels(activations: TopActivations, count: int) -> list[int]:
    """Return the first channels that some image activates.

    Where there is none, these are the first channels.
    """
    active = np.flatnonzero(activations.responses[:, 0] > 0)
    return [
        int(i) for i in (active if len(active) else np.arange(len(activations.responses)))[:count]
    ]


def _field_table(
    fields: Mapping[str, ReceptiveField], stages: list[str], shape: tuple[int, ...]
) -> list[dict[str, Any]]:
    """Return how many pixels a place of each stage sees."""
    rows = []
    for stage in stages:
        (h, w), (stride_y, stride_x) = fields[stage].size, fields[stage].stride
        share = min(h, shape[0]) * min(w, shape[1]) / (shape[0] * shape[1])
        row = {
            "stage": stage,
            "a place sees (pixels)": f"{h}x{w}",
            "next place (pixels)": f"{stride_y}x{stride_x}",
        }
        rows.append(row | {"of the image, at most": f"{100 * share:.0f}%"})
    return rows


def _overview_figure(
    channels: Mapping[str, list[int]], ascent: Mapping[str, np.ndarray]
) -> PageFigure:
    """Return a row of the ascent's images for each stage."""
    strips = [
        Strip([to_rgb(image) for image in ascent[stage]], stage, [f"channel {i}" for i in indices])
        for stage, indices in channels.items()
    ]
    alt = (
        f"Images found by ascent that excite channels of {', '.join(channels)}, one row for each "
        "stage."
    )
    caption = "An even gray is a channel that no random start could activate."
    return PageFigure(
        "channels",
        mosaic(strips, title="Images that excite channels, by stage", side=0.95),
        alt,
        caption,
    )


def _stage_figure(
    stage: str,
    channels: list[int],
    ascent: np.ndarray,
    top_images: TopActivations,
    field: ReceptiveField,
    images: np.ndarray,
) -> PageFigure:
    """Return the ascent's images of a stage above the most exciting patches."""
    (h, w), (height, width) = field.size, images.shape[1:3]
    # A field larger than the image shows all of it, so a ring marks the place instead.
    shows_image = h >= height and w >= width
    # A map of one place needs no ring.
    has_rings = shows_image and bool(top_images.places.any())
    strips = [Strip([to_rgb(image) for image in ascent], "gradient\nascent")]
    for rank in range(top_images.images.shape[1]):
        positions = [(int(y), int(x)) for y, x in top_images.places[channels, rank]]
        patches = [
            receptive_patch(images[i], field, place)
            for i, place in zip(top_images.images[channels, rank], positions, strict=True)
        ]
        marks = (
            [_field_center(field, place, (height, width)) for place in positions]
            if has_rings
            else ()
        )
        strips.append(
            Strip(
                [to_rgb(patch) for patch in patches],
                f"training data, {RANK_LABELS[rank]}",
                marks=marks,
            )
        )
    titles = [f"channel {i}" for i in channels]
    figure = mosaic(
        strips, heads=titles, title=f"Images that excite channels of {stage} most", side=0.95
    )
    field_text = f"A place of {stage} sees {h}x{w} pixels"
    remark = (
        ", as much as the image or more: all of it is shown"
        + ", with a ring in the middle of that." * has_rings
    )
    field_text += (
        remark.rstrip(".") + "."
        if shows_image
        else "; the ascent fills an image. What lies outside the image is gray."
    )
    alt = (
        f"For {len(channels)} channels of {stage}: an image found by ascent, and the "
        f"{len(strips) - 1} best training patches."
    )
    return PageFigure(
        f"channels-{stage.replace('_', '-')}", figure, alt, CAPTION.format(field=field_text)
    )


def _field_center(
    field: ReceptiveField, position: tuple[int, int], size: tuple[int, ...]
) -> tuple[float, float]:
    """Return the middle of a place's receptive field, within the image.

    It is a row and a column, in pixels.
    """
    y, x = (
        min(max(corner + (length - 1) / 2, 0.0), side - 1.0)
        for corner, length, side in zip(field.corner(position), field.size, size, strict=True)
    )
    return y, x
