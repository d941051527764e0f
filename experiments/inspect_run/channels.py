"""What excites the channels of each stage: by ascent, and among training images; from edges to textures to parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.inspect_run.seen import Picture, Section, Seen
from jaxcnn.interpret.activations import TopActivations, map_shapes, top_activations
from jaxcnn.interpret.feature_visualization import maximize_activation
from jaxcnn.interpret.receptive_field import ReceptiveField, receptive_fields, receptive_patch
from jaxcnn.interpret.summary import summary
from jaxcnn.plots.mosaic import Strip, mosaic, to_rgb

CHANNELS, STAGES = 8, 5
"""Channels of a stage, and stages, that are shown."""
IMAGES, STEPS = 500, 64
"""Training images asked, and steps of the ascent, for networks that are small enough for both."""
BUDGET = 4e11
"""Multiply-adds that the ascent may take, some 10 seconds on two cores; larger networks get fewer steps and images."""
RANKS = ("1st", "2nd", "3rd", "4th")
TEXT = (
    "Two answers to what a channel looks for. By ascent: from random noise, the image is changed step by step so that the "
    "channel's mean response over its map rises, and kept smooth (activation maximisation). From data: of {images} training "
    "images those with the greatest response anywhere, cut to what that place of the map sees (its receptive field).\n\n"
    "Deeper stages see more of the image, so that what they look for can be larger. In networks trained for long on "
    "photographs others have found edges and colours first, then textures, then parts of things (Zeiler and Fergus 2013; Olah "
    "et al. 2017). Channels are not picked: they are the first {channels} of each stage that any of the training images wakes. "
    "The ascent takes {steps} steps."
)
READ = (
    "Above what the ascent arrives at, below what excites the same channel most among training images, the strongest first. "
    "{field}"
)


def section(seen: Seen) -> Section | None:
    """The ascent's images of all stages in one figure, and for each stage beside the patches; None without maps."""
    if not seen.stages:
        return None
    run, shape = seen.run, seen.images.shape[1:]
    stages = chosen(seen.stages, map_shapes(run.model, shape))
    macs = max(summary(run.model, shape).macs, 1)
    images = np.asarray(run.data.train.images[: int(np.clip(BUDGET / (8 * macs), 50, IMAGES))])
    found = top_activations(run.model, run.last, images, min(len(RANKS), len(images)), stages)
    few = {stage: awake(found[stage], 2 if macs > 1e9 else CHANNELS) for stage in stages}
    steps = int(np.clip(BUDGET / (3 * macs * sum(map(len, few.values()))), 16, STEPS))
    made = maximize_activation(run.model, run.last, few, steps=steps)
    fields = receptive_fields(run.model, shape)
    pictures = [hierarchy(few, made)]
    pictures += [pictured(stage, few[stage], made[stage], found[stage], fields[stage], images) for stage in stages]
    text = TEXT.format(images=len(images), channels=max(map(len, few.values())), steps=steps)
    return Section("What channels look for", text, table(fields, stages, shape), pictures)


def chosen(stages: tuple[str, ...], maps: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The stages asked for; if that is all, those whose maps have one place too, and evenly spaced ones of many.

    Example:
      >>> check_strategy(("c1", "c3"), {"c1": (28, 28, 6), "c3": (10, 10, 16), "c5": (1, 1, 120)})
      ['c1', 'c3', 'c5']
    """
    wide = [stage for stage, (h, w, _) in maps.items() if h * w > 1]
    names = list(maps) if list(stages) == wide else list(stages)
    if len(names) <= STAGES:
        return names
    return [names[i] for i in np.linspace(0, len(names) - 1, STAGES).round().astype(int)]


def awake(found: TopActivations, count: int) -> list[int]:
    """The first channels that some image wakes; the first at all where none does."""
    live = np.flatnonzero(found.responses[:, 0] > 0)
    return [int(i) for i in (live if len(live) else np.arange(len(found.responses)))[:count]]


def table(fields: Mapping[str, ReceptiveField], stages: list[str], shape: tuple[int, ...]) -> list[dict[str, Any]]:
    """How much each stage sees."""
    rows = []
    for stage in stages:
        (h, w), (down, right) = fields[stage].size, fields[stage].stride
        seen = min(h, shape[0]) * min(w, shape[1]) / (shape[0] * shape[1])
        row = {"stage": stage, "a place sees (pixels)": f"{h}x{w}", "next place (pixels)": f"{down}x{right}"}
        rows.append(row | {"of the image, at most": f"{100 * seen:.0f}%"})
    return rows


def hierarchy(few: Mapping[str, list[int]], made: Mapping[str, np.ndarray]) -> Picture:
    """A row of the ascent's images for each stage."""
    strips = [
        Strip([to_rgb(image) for image in made[stage]], stage, [f"channel {i}" for i in some])
        for stage, some in few.items()
    ]
    alt = f"Images found by ascent that excite channels of {', '.join(few)}, one row for each stage."
    text = "An even grey is a channel that no random start could wake."
    return Picture("channels", mosaic(strips, title="What channels look for, stage by stage", side=0.95), alt, text)


def pictured(
    stage: str, some: list[int], made: np.ndarray, found: TopActivations, field: ReceptiveField, images: np.ndarray
) -> Picture:
    """One stage: the ascent's images over the patches that excite the same channels most."""
    (h, w), (high, wide) = field.size, images.shape[1:3]
    whole = h >= high and w >= wide
    ringed = whole and bool(found.places.any())  # not where the map has one place
    strips = [Strip([to_rgb(image) for image in made], "by ascent")]
    for rank in range(found.images.shape[1]):
        at = [(int(y), int(x)) for y, x in found.places[some, rank]]
        cuts = [receptive_patch(images[i], field, place) for i, place in zip(found.images[some, rank], at, strict=True)]
        marks = [middle(field, place, (high, wide)) for place in at] if ringed else ()
        strips.append(Strip([to_rgb(cut) for cut in cuts], f"data, {RANKS[rank]}", marks=marks))
    heads = [f"channel {i}" for i in some]
    figure = mosaic(strips, heads=heads, title=f"What excites channels of {stage}", side=0.95)
    seen = f"A place of {stage} sees {h}x{w} pixels"
    shown = ", as much as the image or more: all of it is shown" + ", with a ring in the middle of that." * ringed
    seen += shown.rstrip(".") + "." if whole else "; the ascent fills an image. What lies outside the image is grey."
    alt = f"For {len(some)} channels of {stage}: an image found by ascent, and the {len(strips) - 1} best training patches."
    return Picture(f"channels-{stage.replace('_', '-')}", figure, alt, READ.format(field=seen))


def middle(field: ReceptiveField, place: tuple[int, int], size: tuple[int, ...]) -> tuple[float, float]:
    """The middle of what a place sees, as a row and column within the image."""
    y, x = (
        min(max(corner + (own - 1) / 2, 0.0), side - 1.0)
        for corner, own, side in zip(field.corner(place), field.size, size, strict=True)
    )
    return y, x
