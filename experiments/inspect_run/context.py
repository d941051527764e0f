"""Options, the run that they select, and the sections of its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from scipy.special import softmax

import jaxcnn as jc
from experiments._common import FigureOptions
from experiments.finetune.images import reload_images
from jaxcnn import cli, runs
from jaxcnn.config import check_choice
from jaxcnn.data import load_images
from jaxcnn.data.image_io import to_gray
from jaxcnn.interpret import stage_shapes
from jaxcnn.models import IMAGE_NETWORKS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = ("about", "curves", "errors", "filters", "features", "channels", "heat")
"""Parts in the order of the page, as in `__main__.SECTIONS`."""
RUN = Path("runs/depth/resnet20-seed0")
"""Default run."""
FILE = "index.html"
"""Name of the page's file."""
IMAGES = 500
"""Number of images that are evaluated unless `--images` is given."""


@dataclass(frozen=True)
class Options(FigureOptions):
    """Every setting of the page."""

    preset: Literal["look"] = "look"
    run: Path = RUN
    """Folder of one run, with config.json and checkpoints."""
    images: int | None = None
    """Images to evaluate, the first ones; None is 500, or all of fewer."""
    image: Path | None = None
    """Image of your own to classify too (JPEG, PNG, WebP, GIF, BMP, TIFF); None is no other."""
    stages: tuple[str, ...] = ()
    """Stages of the network whose maps are shown; none is all."""
    parts: tuple[str, ...] = PARTS
    """Sections of the page."""
    data_dir: Path | None = None
    out: Path | None = None
    """Folder for the page; None is runs/look/<study>-<run>."""


def check(options: Options) -> None:
    """Check the options by themselves.

    Raises:
      ArgumentError: an option is invalid.
    """
    if options.images is not None and options.image is not None:
        raise jc.ArgumentError(
            "--images and --image exclude each other: write --image for your own image, or "
            "--images 500"
        )
    if options.images is not None and options.images < 1:
        raise jc.ArgumentError(
            f"images is {options.images}; expected at least 1: write --images 500"
        )
    if not options.parts:
        raise jc.ArgumentError(f"parts is empty; write --parts with some of {' '.join(PARTS)}")
    for part in options.parts:
        check_choice("part", part, PARTS)
    _check_folder(output_folder(options))
    if options.run == RUN and not RUN.exists():
        raise jc.ArgumentError(
            f"{RUN} is not there: make it with python -m experiments.depth (2.5 minutes), or write "
            "--run with a run's folder"
        )


def _check_folder(out: Path) -> None:
    """Check that the folder can hold the page.

    Raises:
      ArgumentError: it cannot be made, or holds tables of another script.
    """
    cli.check_output_folder(out)
    names = [name for name in ("config.json", "table.csv") if (out / name).exists()]
    if names and not (out / FILE).exists():
        raise jc.ArgumentError(
            f"{out} has the {names[0]} of something else; write --out with a folder of its own"
        )


def output_folder(options: Options) -> Path:
    """Return where the page is written.

    Example:
      >>> output_folder(Options(run=Path("runs/mnist/lenet5-seed0"))).as_posix()
      'runs/look/mnist-lenet5-seed0'
    """
    run = options.run.resolve()
    return options.out or Path("runs/look", f"{run.parent.name}-{run.name}".lstrip("-"))


class RunContext(NamedTuple):
    """Trained run, its evaluated images and its predictions."""

    run: runs.TrainedModel
    images: np.ndarray
    """Evaluated images, uint8 [n, h, w, c].

    They are the first n of the split that the config reports, test or validation.
    """
    labels: np.ndarray
    """True classes, int32 [n]."""
    probabilities: np.ndarray
    """Softmax of the logits, float64 [n, num_classes]."""
    stages: tuple[str, ...]
    """Requested stages whose maps [h', w', k] have several places.

    They are in the network's order.
    """
    user_image: np.ndarray | None
    """User's image, uint8 [h, w, c], at the network's size, or None."""

    @property
    def predictions(self) -> np.ndarray:
        """Return the most probable class of each image, int64 [n]."""
        return self.probabilities.argmax(1)

    @property
    def is_correct(self) -> np.ndarray:
        """Return where the prediction is the label, bool [n]."""
        return self.predictions == self.labels

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes."""
        return self.run.data.classes


class PageFigure(NamedTuple):
    """Figure of the page."""

    name: str
    """Name of its file, without .png: lower case with dashes."""
    figure: Figure
    alt: str
    """Alternative text for a reader who cannot see the figure."""
    caption: str = ""
    """Plain text below it: how to read it, what it shows."""


class Section(NamedTuple):
    """Section of the page."""

    title: str
    text: str = ""
    """Plain paragraphs, separated by a blank line."""
    table: Sequence[Mapping[str, Any]] = ()
    """Rows, as `tables.compact_markdown` takes them."""
    figures: Sequence[PageFigure] = ()


def load_context(options: Options) -> RunContext:
    """Load the run and predict its first images.

    Raises:
      ArgumentError: an option does not fit the run.
      DataError: the data or the user's image cannot be read.
      CheckpointError: no checkpoint can be restored.
    """
    data, model = _open_data_and_model(options)
    config = jc.ExperimentConfig.load(options.run)
    split = getattr(data, config.train.eval_split)
    count = _image_count(options.images, len(split.labels), config.train.eval_split)
    shape = split.images.shape[1:]
    stages = choose_stages(model, shape, options.stages)
    user_image = None if options.image is None else load_user_image(options.image, shape)
    # Checkpoints are read last, so that every mistake in the options is reported at once.
    run = runs.load_trained_model(options.run, data=data)
    images, labels = np.asarray(split.images[:count]), np.asarray(split.labels[:count])
    return RunContext(run, images, labels, probabilities(run, images), stages, user_image)


def _open_data_and_model(options: Options) -> tuple[jc.Dataset, Any]:
    """Return the data and the model of a classifier's run.

    Checkpoints are not read yet.
    """
    if not (options.run / "config.json").is_file():
        # Raises an error that describes what the folder holds instead.
        runs.load_trained_model(options.run)
    config = jc.ExperimentConfig.load(options.run)
    if config.loss == "reconstruction" or jc.MODELS.get(config.model) in IMAGE_NETWORKS:
        problem = f"{options.run} holds {config.model!r}, which does not sort images into classes"
        raise jc.ArgumentError(
            f"{problem}; write --run with a classifier's run, such as runs/depth/resnet20-seed0"
        )
    if config.dataset == "folder":
        data = reload_images(options.run)
    else:
        data = jc.load_dataset(config.dataset, options.data_dir, validation=config.num_validation)
    return data, runs.model_and_optimizer(config, data.num_classes)[0]


def _image_count(requested: int | None, available: int, split: str) -> int:
    """Return how many images to evaluate."""
    if requested is not None and requested > available:
        raise jc.ArgumentError(
            f"images is {requested}, but the {split} split has {available}: write --images "
            f"{available}"
        )
    return min(IMAGES, available) if requested is None else requested


def choose_stages(
    model: Any, shape: tuple[int, ...], requested: tuple[str, ...]
) -> tuple[str, ...]:
    """Return the stages to show, in the network's order.

    Args:
      model: a flax module.
      shape: (h, w, c) of an image.
      requested: names of stages; empty means all.

    Returns:
      Names of stages whose maps have more than one place.

    Raises:
      ArgumentError: the model has no such stage.
    """
    names = [
        stage
        for stage, size in stage_shapes(model, shape).items()
        if len(size) == 3 and size[0] * size[1] > 1
    ]
    if requested and not names:
        raise jc.ArgumentError(
            f"stages is {' '.join(requested)}, but {type(model).__name__} keeps no maps: leave it "
            "out"
        )
    for name in requested:
        check_choice("stage", name, names)
    return tuple(stage for stage in names if not requested or stage in requested)


def load_user_image(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read an image file as uint8 of `shape`, [h, w, c].

    The shorter side is resized and the middle cut out. For a network of one channel the image is
    turned gray by luminance.

    Raises:
      DataError: the file is not an image.
      ArgumentError: inputs of the network are not squares of one or three channels.
    """
    height, width, channels = shape
    if height != width or channels not in (1, 3):
        raise jc.ArgumentError(
            f"the network sees {shape}; --image is for squares of 1 or 3 channels: leave it out"
        )
    (pixels,) = load_images([path], height, height)
    if channels == 3:
        return pixels
    return to_gray(pixels)


def probabilities(run: runs.TrainedModel, images: np.ndarray) -> np.ndarray:
    """Return the softmax of the newest state's logits, float64 [n, num_classes].

    Raises:
      ArgumentError: a logit is not finite.
    """
    logits = jc.predict(run.model, run.last, images).astype(np.float64)
    if not np.isfinite(logits).all():
        raise jc.ArgumentError(
            f"the network in {run.folder} gives nan or infinity, for its training diverged: train "
            "it again"
        )
    return softmax(logits, axis=1)
