"""What each stage makes of a picture: its feature maps, as grids."""

from __future__ import annotations

import numpy as np

from experiments.inspect_run.seen import Picture, Section, Seen
from jaxcnn.interpret.activations import feature_maps
from jaxcnn.plots.mosaic import Strip, mosaic, to_rgb

CHANNELS, PICTURES = 10, 2
"""Maps shown of each stage, and pictures shown if the user gives none."""
BRIGHT = 0.99
"""The quantile of a stage's responses that has the brightest colour: a few places at the border are far above all others."""
TEXT = (
    "What the stages hand on, for one picture: a row for each stage, and in it the channels whose maps are brightest on "
    "average for this picture, from the left. A place of a map stands for some pixels, and those of later stages for more: "
    "that is why they look coarse."
)
READ = (
    "Colours go from the least response of the stage (dark) to its 99th percentile (yellow), so that maps of one row can be "
    "compared, and rows cannot."
)


def section(seen: Seen) -> Section | None:
    """Maps of the user's picture, or of the first ones of different classes; None for a network without maps."""
    if not seen.stages:
        return None
    if seen.own is not None:
        chosen, names, files = seen.own[None], ["your picture"], ["features-own"]
    else:
        first = np.sort(np.unique(seen.labels, return_index=True)[1])[:PICTURES]
        chosen, names = seen.images[first], [f"image {i} ({seen.classes[seen.labels[i]]})" for i in first]
        files = [f"features-{i}" for i in first]
    maps = feature_maps(seen.run.model, seen.run.last, chosen, seen.stages)
    pictures = [
        pictured(file, name, image, {stage: found[i] for stage, found in maps.items()})
        for i, (file, name, image) in enumerate(zip(files, names, chosen, strict=True))
    ]
    return Section("Feature maps", TEXT, pictures=pictures)


def pictured(file: str, name: str, image: np.ndarray, maps: dict[str, np.ndarray]) -> Picture:
    """The figure for one image: itself, and of each stage [h', w', k] the brightest maps."""
    strips = [Strip([to_rgb(image)], "image")]
    strips += [strip(stage, found) for stage, found in maps.items()]
    figure = mosaic(strips, title=f"Feature maps of {name}", side=0.85)
    silent = ", ".join(f"{np.count_nonzero(found.max((0, 1)) <= 0)} of {found.shape[2]}" for found in maps.values())
    alt = f"Feature maps of {name}, the {CHANNELS} brightest of each of {len(maps)} stages: {', '.join(maps)}."
    return Picture(file, figure, alt, f"{READ} Channels that are 0 or below everywhere, by stage: {silent}.")


def strip(stage: str, maps: np.ndarray) -> Strip:
    """The brightest maps of a stage."""
    h, w, k = maps.shape
    first = np.argsort(-maps.mean((0, 1)), kind="stable")[:CHANNELS]
    limits = float(maps.min()), float(np.quantile(maps, BRIGHT))
    captions = [f"channel {i}" for i in first]
    return Strip([maps[..., i] for i in first], f"{stage}\n{h}x{w}x{k}", captions, limits=limits)
