"""Attribution: where the network looks, by method and by stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.finetune.results import worst_mistakes
from experiments.inspect_run.context import PageFigure, RunContext, Section, probabilities
from jaxcnn import ArgumentError, plots
from jaxcnn.interpret import stage_shapes
from jaxcnn.interpret.attribution import ATTRIBUTION_METHODS, attribution
from jaxcnn.interpret.receptive_field import receptive_fields
from jaxcnn.plots import Tile

NUM_CORRECT, NUM_WRONG, NUM_CLASSES = 3, 4, 3
"""Correct and wrong predictions to show, and classes of the user's image."""
ROW_HEIGHT, MAX_STAGES = 1.5, 5
"""Height of an image in inches; most stages to show."""
BAR_LABEL = "attribution (share of the maximum)"
METHOD_NAMES = {
    "gradcam": "Grad-CAM",
    "gradcam_plus_plus": "Grad-CAM++",
    "guided_backprop": "guided gradient",
    "integrated_gradients": "integrated gradients",
    "occlusion": "occlusion",
}
METHOD_TEXTS = {
    "gradcam": "Grad-CAM weighs the maps of {stage} by their mean slope, and so tells of regions.",
    "gradcam_plus_plus": (
        "Grad-CAM++ weighs them by where they rise, which finds the whole of an object, and "
        "several."
    ),
    "guided_backprop": (
        "The guided gradient has the edges that excite what the class is made of. It is sharp, but "
        "says little of which class: patterns that only look alike show up as well."
    ),
    "integrated_gradients": (
        "Integrated gradients share out the rise of the class's logit from a black image among the "
        "pixels, so that black ones have none; those that speak against the class are left dark."
    ),
    "occlusion": (
        "Occlusion covers each place with a square of the mean color: bright is where the class's "
        "logit falls most. It alone looks at the network from outside."
    ),
}
CAPTION = (
    "Colors go from nothing (dark) to the greatest value of each image (yellow), and cannot be "
    "compared between images. Grad-CAM and occlusion lie over a gray copy of the image."
)
TRUE_CLASS = "Grad-CAM, true class"
"""Key and title of the heat for the true class."""
Heats = dict[str, np.ndarray]
"""Heat, float [n, h, w], by method or `TRUE_CLASS`."""


class ImageGroup(NamedTuple):
    """Images of one figure, and the classes to attribute."""

    name: str
    title: str
    images: np.ndarray
    """uint8 [n, h, w, c]."""
    classes: np.ndarray
    """int [n]: the class to attribute."""
    labels: np.ndarray
    """int [n]: the true class, or `classes` where it is unknown."""
    notes: Sequence[str]


def attribution_section(context: RunContext) -> Section | None:
    """Return attribution of some predictions, and stage by stage.

    The predictions are correct ones and the most confident mistakes, or that of the user's image.
    """
    if context.user_image is not None:
        groups = [_user_group(context)]
    else:
        groups = [_correct_group(context), _wrong_group(context)]
        groups = [group for group in groups if len(group.images)]
    # All groups go through at once, so that each method is compiled once.
    images, classes, labels = (
        np.concatenate(arrays)
        for arrays in zip(
            *((group.images, group.classes, group.labels) for group in groups), strict=True
        )
    )
    heats, missing = _all_heats(context, images, classes, labels)
    ends = np.cumsum([0] + [len(group.images) for group in groups])
    figures = [
        _group_figure(
            group, {method: arrays[a:b] for method, arrays in heats.items()}, context.classes
        )
        for group, a, b in zip(groups, ends[:-1], ends[1:], strict=True)
    ]
    if len(context.stages) > 1:
        figures.append(_stages_figure(context, images, classes, groups[0].notes[0]))
    meanings = " ".join(
        text.format(stage="".join(context.stages[-1:]))
        for method, text in METHOD_TEXTS.items()
        if method in heats
    )
    question = (
        "the predicted class" if context.user_image is None else "each of the most probable classes"
    )
    text = [
        f"How much each place of an image contributes to {question}, by "
        f"{len(METHOD_TEXTS.keys() & heats)} methods.",
        meanings,
    ]
    return Section(
        "Where the network looks",
        "\n\n".join([*text, *_misalignment_note(context), *missing]),
        figures=figures,
    )


def _misalignment_note(context: RunContext) -> list[str]:
    """Return a sentence if Grad-CAM's heat is shifted from what causes it.

    Its maps fill the image; the receptive fields of their places may not.
    """
    if not context.stages:
        return []
    name, shape = context.stages[-1], context.images.shape[1:]
    field = receptive_fields(context.run.model, shape)[name]
    map_shape = stage_shapes(context.run.model, shape)[name]
    # Distance of the receptive field's center from where the place's heat is drawn.
    offset = max(
        abs(
            field.start[i]
            + (field.size[i] - 1) / 2
            + place * field.stride[i]
            - (place + 0.5) * shape[i] / map_shape[i]
            + 0.5
        )
        for i in (0, 1)
        for place in (0, map_shape[i] - 1)
    )
    if offset <= 2:
        return []
    return [
        "Grad-CAM's maps are enlarged to the whole image, as in its paper. This network pads "
        f"little: the outer places of {name} look at what lies up to {offset:.1f} pixels aside of "
        "where their heat stands."
    ]


def _correct_group(context: RunContext) -> ImageGroup:
    """Return the first correct predictions of different classes."""
    correct = np.flatnonzero(context.is_correct)
    indices = correct[
        np.sort(np.unique(context.labels[correct], return_index=True)[1])[:NUM_CORRECT]
    ]
    notes = [f"image {i}\n{_class_text(context, i, context.labels)}" for i in map(int, indices)]
    title = "Attribution of the predicted class, for correct predictions"
    return ImageGroup(
        "heat-right",
        title,
        context.images[indices],
        context.labels[indices],
        context.labels[indices],
        notes,
    )


def _wrong_group(context: RunContext) -> ImageGroup:
    """Return the most confident mistakes."""
    indices = worst_mistakes(context.labels, context.probabilities, NUM_WRONG, max_per_pair=2)
    notes = [
        f"image {i}\n"
        f"predicted {_class_text(context, i, context.predictions)}\n"
        f"true {_class_text(context, i, context.labels)}"
        for i in map(int, indices)
    ]
    title = "Attribution of the predicted class, for the most confident mistakes"
    return ImageGroup(
        "heat-wrong",
        title,
        context.images[indices],
        context.predictions[indices],
        context.labels[indices],
        notes,
    )


def _user_group(context: RunContext) -> ImageGroup:
    """Return the user's image with its most probable classes."""
    image = np.asarray(context.user_image)
    (class_probabilities,) = probabilities(context.run, image[None])
    classes = np.argsort(-class_probabilities, kind="stable")[:NUM_CLASSES]
    notes = [
        f"for {context.classes[label]}, {100 * class_probabilities[label]:.0f}%"
        for label in classes
    ]
    title = "Your image: attribution of each of the most probable classes"
    return ImageGroup(
        "heat-own", title, np.repeat(image[None], len(classes), 0), classes, classes, notes
    )


def _class_text(context: RunContext, i: int, labels: np.ndarray) -> str:
    """Return the class of image i, and its probability."""
    return f"{context.classes[labels[i]]}, {100 * context.probabilities[i, labels[i]]:.0f}%"


def _all_heats(
    context: RunContext, images: np.ndarray, classes: np.ndarray, labels: np.ndarray
) -> tuple[Heats, list[str]]:
    """Return the heat of every method that the network allows.

    Grad-CAM is taken at the last requested stage. All images go through at once, so each method
    is compiled once.

    Returns:
      Heats by method, and a sentence for each reason that others are left out.
    """
    heats, missing = {}, {}
    for method in ATTRIBUTION_METHODS:
        try:
            heats[method] = _heat(context, method, images, classes)
        except ArgumentError as error:
            missing.setdefault(str(error), []).append(METHOD_NAMES[method])
    if "gradcam" in heats and (labels != classes).any():
        heats[TRUE_CLASS] = _heat(context, "gradcam", images, labels)
    return heats, [
        f"Left out: {' and '.join(names)}, for {reason}." for reason, names in missing.items()
    ]


def _heat(
    context: RunContext, method: str, images: np.ndarray, classes: np.ndarray, stage: int = -1
) -> np.ndarray:
    """Return the heat of one method."""
    options: dict[str, Any] = (
        {"stage": context.stages[stage]} if "cam" in method and context.stages else {}
    )
    return attribution(method, context.run.model, context.run.last, images, classes, **options)


def _group_figure(group: ImageGroup, heats: Heats, names: Sequence[str]) -> PageFigure:
    """Return a row for each image: its note, then its heats."""
    visible_heats = {
        name: heat
        for name, heat in heats.items()
        if name != TRUE_CLASS or (group.labels != group.classes).any()
    }
    rows = []
    for i, (image, note) in enumerate(zip(group.images, group.notes, strict=True)):
        titles = {name: METHOD_NAMES.get(name, name) if i == 0 else "" for name in visible_heats}
        cells = [_tile(name, image, heat[i], titles[name]) for name, heat in visible_heats.items()]
        rows.append(
            [Tile(_to_three_channels(image) / 255, "image" if i == 0 else "", note), *cells]
        )
    pairs = [
        (names[int(predicted)], names[int(label)])
        for predicted, label in zip(group.classes, group.labels, strict=True)
    ]
    pairs_text = ", ".join(
        predicted if predicted == label else f"{label} taken for {predicted}"
        for predicted, label in pairs
    )
    column_names = ["the image", *(METHOD_NAMES.get(name, name) for name in visible_heats)]
    alt = f"{group.title}. Rows: {pairs_text}. Columns: {', '.join(column_names)}."
    remark = (
        " The last column asks about the true class instead." if TRUE_CLASS in visible_heats else ""
    )
    return PageFigure(
        group.name,
        plots.tiles(rows, title=group.title, heights=ROW_HEIGHT, bar=BAR_LABEL),
        alt,
        CAPTION + remark,
    )


def _stages_figure(
    context: RunContext, images: np.ndarray, classes: np.ndarray, note: str
) -> PageFigure:
    """Return Grad-CAM of the first image at some of the stages.

    The first and the last stage are among them.
    """
    indices = np.unique(np.linspace(0, len(context.stages) - 1, MAX_STAGES).round().astype(int))
    names = [context.stages[stage] for stage in indices]
    heats = [_heat(context, "gradcam", images, classes, stage)[0] for stage in indices]
    cells = [
        _tile("gradcam", images[0], heat, name) for name, heat in zip(names, heats, strict=True)
    ]
    title = "Grad-CAM stage by stage"
    figure = plots.tiles(
        [[Tile(_to_three_channels(images[0]) / 255, "image", note), *cells]],
        title=title,
        heights=ROW_HEIGHT,
        bar=BAR_LABEL,
    )
    alt = f"{title}: {note}. From the left: the image, {', '.join(names)}."
    text = (
        "A stage near the image has many places, each of which sees little of it; near the end "
        f"places are few and see much. {CAPTION}"
    )
    return PageFigure("heat-stages", figure, alt, text)


def _tile(method: str, image: np.ndarray, heat: np.ndarray, title: str) -> Tile:
    """Return the tile of a heat; that of regions overlays the image."""
    if method in ("guided_backprop", "integrated_gradients"):
        return Tile(heat, title, cmap="inferno", limits=(0, 1))
    return Tile(plots.overlay(_to_three_channels(image), heat) / 255, title)


def _to_three_channels(image: np.ndarray) -> np.ndarray:
    """Return uint8 [h, w, 1 or 3] as [h, w, 3]."""
    return np.broadcast_to(image, (*image.shape[:2], 3))
