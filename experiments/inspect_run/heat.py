"""Where the network looks: for predictions that are right and wrong, by every method that it allows, and stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.finetune.results import worst
from experiments.inspect_run.reading import probabilities
from experiments.inspect_run.seen import Picture, Section, Seen
from jaxcnn import ArgumentError, plots
from jaxcnn.interpret import stage_shapes
from jaxcnn.interpret.attribution import ATTRIBUTION_METHODS, attribution
from jaxcnn.interpret.receptive_field import receptive_fields
from jaxcnn.plots import Tile

RIGHT, WRONG, OWN = 3, 4, 3
"""Pictures that are classified rightly and wrongly; classes that the user's own picture is asked about."""
HIGH, STAGES = 1.5, 5
"""Inches of a picture; stages shown at most."""
NAMES = {
    "gradcam": "Grad-CAM",
    "gradcam_plus": "Grad-CAM++",
    "guided_backprop": "guided gradient",
    "integrated_gradients": "integrated gradients",
    "occlusion": "occlusion",
}
MEANINGS = {
    "gradcam": "Grad-CAM weighs the maps of {stage} by their mean slope, and so tells of regions.",
    "gradcam_plus": "Grad-CAM++ weighs them by where they rise, which finds the whole of an object, and several.",
    "guided_backprop": "The guided gradient has the edges that excite what the class is made of. It is sharp, but says little "
    "of which class: patterns that only look alike show up as well.",
    "integrated_gradients": "Integrated gradients share out the rise of the class's logit from a black image among the pixels, "
    "so that black ones have none; those that speak against the class are left dark.",
    "occlusion": "Occlusion covers each place with a square of the mean colour: bright is where the class's logit falls most. "
    "It alone looks at the network from outside.",
}
READ = (
    "Colours go from nothing (dark) to the greatest value of each picture (yellow), and cannot be compared between pictures. "
    "Grad-CAM and occlusion lie over a grey copy of the image."
)
TRUE = "Grad-CAM, true class"
Heats = dict[str, np.ndarray]
"""method, or `TRUE` -> heat [n, h, w]."""


class Rows(NamedTuple):
    """What one figure asks."""

    name: str
    title: str
    images: np.ndarray
    """uint8 [n, h, w, c]."""
    classes: np.ndarray
    """int [n]: asked about."""
    labels: np.ndarray
    """int [n]: the true ones; what is asked about, where that is not known or the same."""
    notes: Sequence[str]


def section(seen: Seen) -> Section | None:
    """Heat for some right predictions, for the wrong ones that the network was surest of, and stage by stage."""
    parts = [own(seen)] if seen.own is not None else [part for part in (right(seen), wrong(seen)) if len(part.images)]
    images, classes, labels = (
        np.concatenate(found) for found in zip(*((p.images, p.classes, p.labels) for p in parts), strict=True)
    )
    heats, missing = looked(seen, images, classes, labels)
    ends = np.cumsum([0] + [len(part.images) for part in parts])
    pictures = [
        pictured(part, {name: found[a:b] for name, found in heats.items()}, seen.classes)
        for part, a, b in zip(parts, ends[:-1], ends[1:], strict=True)
    ]
    if len(seen.stages) > 1:
        pictures.append(staged(seen, images, classes, parts[0].notes[0]))
    words = " ".join(text.format(stage="".join(seen.stages[-1:])) for name, text in MEANINGS.items() if name in heats)
    asked = "the class that the network said" if seen.own is None else "each of the classes that it holds likeliest"
    text = [f"How much each place of a picture speaks for {asked}, by {len(MEANINGS.keys() & heats)} methods.", words]
    return Section("Where the network looks", "\n\n".join([*text, *aside(seen), *missing]), pictures=pictures)


def aside(seen: Seen) -> list[str]:
    """A sentence if Grad-CAM's heat stands aside of what it is about: its maps fill the image, their fields may not."""
    if not seen.stages:
        return []
    name, shape = seen.stages[-1], seen.images.shape[1:]
    field, places = receptive_fields(seen.run.model, shape)[name], stage_shapes(seen.run.model, shape)[name]
    off = max(
        abs(
            field.start[i]
            + (field.size[i] - 1) / 2
            + last * field.stride[i]
            - (last + 0.5) * shape[i] / places[i]
            + 0.5
        )
        for i in (0, 1)
        for last in (0, places[i] - 1)
    )
    if off <= 2:
        return []
    return [
        "Grad-CAM's maps are enlarged to the whole image, as in its paper. This network pads little: the outer places of "
        f"{name} look at what lies up to {off:.1f} pixels aside of where their heat stands."
    ]


def right(seen: Seen) -> Rows:
    """The first right predictions of different classes."""
    places = np.flatnonzero(seen.right)
    first = places[np.sort(np.unique(seen.labels[places], return_index=True)[1])[:RIGHT]]
    notes = [f"image {i}\n{named(seen, i, seen.labels)}" for i in map(int, first)]
    title = "Right predictions: what speaks for the class"
    return Rows("heat-right", title, seen.images[first], seen.labels[first], seen.labels[first], notes)


def wrong(seen: Seen) -> Rows:
    """The mistakes that the network was surest of."""
    first = worst(seen.labels, seen.shares, WRONG, alike=2)
    notes = [f"image {i}\nsaid {named(seen, i, seen.said)}\nis {named(seen, i, seen.labels)}" for i in map(int, first)]
    title = "The surest mistakes: what speaks for the class that was said"
    return Rows("heat-wrong", title, seen.images[first], seen.said[first], seen.labels[first], notes)


def own(seen: Seen) -> Rows:
    """The user's own picture, asked about the likeliest classes."""
    image = np.asarray(seen.own)
    (shares,) = probabilities(seen.run, image[None])
    classes = np.argsort(-shares, kind="stable")[:OWN]
    notes = [f"for {seen.classes[c]}, {100 * shares[c]:.0f}%" for c in classes]
    title = "Your picture: what speaks for each of the likeliest classes"
    return Rows("heat-own", title, np.repeat(image[None], len(classes), 0), classes, classes, notes)


def named(seen: Seen, i: int, labels: np.ndarray) -> str:
    """The class of image i, and how probable the network holds it."""
    return f"{seen.classes[labels[i]]}, {100 * seen.shares[i, labels[i]]:.0f}%"


def looked(seen: Seen, images: np.ndarray, classes: np.ndarray, labels: np.ndarray) -> tuple[Heats, list[str]]:
    """The heat of every method that this network allows, and a sentence for each reason that others are left out.

    Grad-CAM's are at the last of the stages asked for. All images go through at once, so that each method is compiled once.
    """
    found, missing = {}, {}
    for method in ATTRIBUTION_METHODS:
        try:
            found[method] = heated(seen, method, images, classes)
        except ArgumentError as error:
            missing.setdefault(str(error), []).append(NAMES[method])
    if "gradcam" in found and (labels != classes).any():
        found[TRUE] = heated(seen, "gradcam", images, labels)
    return found, [f"Left out: {' and '.join(names)}, for {why}." for why, names in missing.items()]


def heated(seen: Seen, method: str, images: np.ndarray, classes: np.ndarray, stage: int = -1) -> np.ndarray:
    """The heat of one method."""
    options: dict[str, Any] = {"stage": seen.stages[stage]} if "cam" in method and seen.stages else {}
    return attribution(method, seen.run.model, seen.run.last, images, classes, **options)


def pictured(part: Rows, heats: Heats, names: Sequence[str]) -> Picture:
    """The figure: a row for each image with what is said of it, then its heat by every method."""
    kept = {name: found for name, found in heats.items() if name != TRUE or (part.labels != part.classes).any()}
    rows = []
    for i, (image, note) in enumerate(zip(part.images, part.notes, strict=True)):
        titles = {name: NAMES.get(name, name) if i == 0 else "" for name in kept}
        cells = [tile(name, image, found[i], titles[name]) for name, found in kept.items()]
        rows.append([Tile(coloured(image) / 255, "image" if i == 0 else "", note), *cells])
    both = [(names[int(said)], names[int(true)]) for said, true in zip(part.classes, part.labels, strict=True)]
    pairs = ", ".join(said if said == true else f"{true} taken for {said}" for said, true in both)
    columns = ["the image", *(NAMES.get(name, name) for name in kept)]
    alt = f"{part.title}. Rows: {pairs}. Columns: {', '.join(columns)}."
    last = " The last column asks about the true class instead." if TRUE in kept else ""
    return Picture(part.name, plots.tiles(rows, title=part.title, heights=HIGH), alt, READ + last)


def staged(seen: Seen, images: np.ndarray, classes: np.ndarray, note: str) -> Picture:
    """Grad-CAM of the first of the images at some of the stages, the first and the last among them."""
    chosen = np.unique(np.linspace(0, len(seen.stages) - 1, STAGES).round().astype(int))
    names = [seen.stages[at] for at in chosen]
    heats = [heated(seen, "gradcam", images, classes, at)[0] for at in chosen]
    cells = [tile("gradcam", images[0], found, name) for name, found in zip(names, heats, strict=True)]
    title = "Grad-CAM stage by stage"
    figure = plots.tiles([[Tile(coloured(images[0]) / 255, "image", note), *cells]], title=title, heights=HIGH)
    alt = f"{title}: {note}. From the left: the image, {', '.join(names)}."
    text = (
        "A stage near the image has many places, each of which sees little of it; near the end places are few and see much. "
        f"{READ}"
    )
    return Picture("heat-stages", figure, alt, text)


def tile(method: str, image: np.ndarray, found: np.ndarray, title: str) -> Tile:
    """Heat of regions over the image, that of single pixels alone."""
    if method in ("guided_backprop", "integrated_gradients"):
        return Tile(found, title, cmap="inferno", limits=(0, 1))
    return Tile(plots.overlay(coloured(image), found) / 255, title)


def coloured(image: np.ndarray) -> np.ndarray:
    """uint8 [h, w, 1 or 3] -> [h, w, 3]."""
    return np.broadcast_to(image, (*image.shape[:2], 3))
