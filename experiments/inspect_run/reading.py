"""A run's folder and some options as what the parts of the page are given; mistakes come before anything is compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

import jaxcnn as jc
from experiments.finetune.opening import reopened
from experiments.inspect_run.options import Options
from experiments.inspect_run.seen import Seen
from jaxcnn import runs
from jaxcnn.data import load_images
from jaxcnn.interpret import stage_shapes
from jaxcnn.recipe import check_choice

IMAGES = 500
"""How many are judged unless it is said."""
LUMINANCE = np.array([0.2126, 0.7152, 0.0722])
"""Of red, green and blue (ITU-R BT.709)."""


def see(options: Options) -> Seen:
    """The run, read and asked about the images; ArgumentError, DataError or CheckpointError for what cannot be."""
    data, model = opened(options)
    recipe = jc.Recipe.load(options.run)
    split = getattr(data, recipe.report)
    n = number(options.images, len(split.labels), recipe.report)
    shape = split.images.shape[1:]
    shown = chosen(model, shape, options.stages)
    mine = None if options.image is None else picture(options.image, shape)
    run = runs.load_trained_model(options.run, data=data)
    images, labels = np.asarray(split.images[:n]), np.asarray(split.labels[:n])
    return Seen(run, images, labels, probabilities(run, images), shown, mine)


def opened(options: Options) -> tuple[jc.Dataset, Any]:
    """The data and the model of a run, if that is a classifier's; its checkpoints are not read yet."""
    if not (options.run / "config.json").is_file():
        runs.load_trained_model(options.run)  # which tells what is there instead
    recipe = jc.Recipe.load(options.run)
    if recipe.loss == "reconstruction" or recipe.model in ("autoencoder", "unet"):
        found = f"{options.run} holds {recipe.model!r}, which does not sort images into classes"
        raise jc.ArgumentError(f"{found}; write --run with a classifier's run, such as runs/depth/resnet20-seed0")
    if recipe.dataset == "folder":
        data = reopened(options.run)
    else:
        data = jc.load_dataset(recipe.dataset, options.data_dir, validation=recipe.validation)
    return data, runs.model_and_optimizer(recipe, len(data.classes))[0]


def number(asked: int | None, there: int, split: str) -> int:
    """How many images to judge."""
    if asked is not None and asked > there:
        raise jc.ArgumentError(f"images is {asked}, but the {split} split has {there}: write --images {there}")
    return min(IMAGES, there) if asked is None else asked


def chosen(model: Any, shape: tuple[int, ...], asked: tuple[str, ...]) -> tuple[str, ...]:
    """The stages with maps of more than one place, or those asked for among them, in the network's order."""
    maps = [name for name, found in stage_shapes(model, shape).items() if len(found) == 3 and found[0] * found[1] > 1]
    if asked and not maps:
        raise jc.ArgumentError(f"stages is {' '.join(asked)}, but {type(model).__name__} keeps no maps: leave it out")
    for stage in asked:
        check_choice("stage", stage, maps)
    return tuple(name for name in maps if not asked or name in asked)


def picture(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The picture as uint8 of `shape`, [h, w, c]: resized, the middle cut out, grey if the network sees grey.

    Raises:
      DataError: it is no picture.
      ArgumentError: for inputs that are no squares of one or three channels.
    """
    height, width, channels = shape
    if height != width or channels not in (1, 3):
        raise jc.ArgumentError(f"the network sees {shape}; --image is for squares of 1 or 3 channels: leave it out")
    (found,) = load_images([path], height, height)
    if channels == 3:
        return found
    return np.round(found @ LUMINANCE)[..., None].astype(np.uint8)


def probabilities(run: runs.TrainedModel, images: np.ndarray) -> np.ndarray:
    """The softmax of the newest state's logits, float64 [n, classes]; ArgumentError if they are no numbers."""
    logits = jc.predict(run.model, run.last, images).astype(np.float64)
    if not np.isfinite(logits).all():
        raise jc.ArgumentError(
            f"the network in {run.folder} gives nan or infinity, for its training diverged: train it anew"
        )
    return softmax(logits, axis=1)
