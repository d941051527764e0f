"""Trained classifiers: one file or a run's folder becomes a function from images to classes.

`load_classifier` opens the file that `save_classifier` wrote, or the folder of a run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcnn import weights
from jaxcnn._util import format_lines, leaf_shapes, tree_size
from jaxcnn.arguments import check_path, format_value
from jaxcnn.augment import Normalizer
from jaxcnn.checkpoint import Checkpoints
from jaxcnn.checkpoint._variables import variables_of
from jaxcnn.config import ArgumentError, ExperimentConfig, TrainConfig
from jaxcnn.data import DATASETS, resize_image
from jaxcnn.data.image_io import (
    ImageError,
    check_sizes,
    darkness_warning,
    decode,
    log,
    to_gray,
)
from jaxcnn.data.types import DataError, Scale, printable, shorten_names
from jaxcnn.evaluation import predict
from jaxcnn.losses import CLASS_LOSSES, LOSSES
from jaxcnn.models import IMAGE_NETWORKS, MODELS, create_model
from jaxcnn.models.calling import call, variable_shapes, verify_model
from jaxcnn.records import CLASSES_FILE, SCALE_FILE, missing_run_message, write_classes
from jaxcnn.run_log import read_json
from jaxcnn.state import State, as_state, eval_state

WEIGHTS_FILE = "weights.safetensors"
BATCH_PIXELS = 64 * 224 * 224
"""Most pixels of all images in a batch."""
_CHUNK_PIXELS = 512 * 224 * 224
"""Most pixels of all images that are decoded at once."""
Images = str | os.PathLike[str] | np.ndarray | Sequence[Any]
"""One or several images: files, or arrays."""


class FilePredictions(NamedTuple):
    """Predictions for image files, of which some may be unreadable.

    Attributes:
      probabilities: float64 [n, num_classes], for the n files that are images.
      paths: these n files.
      broken: the other files, each with the reason.
    """

    probabilities: np.ndarray
    paths: tuple[Path, ...]
    broken: tuple[tuple[str, str], ...]


@dataclass(frozen=True, eq=False, repr=False)
class Classifier:
    """Trained classifier with its preprocessing.

    Attributes:
      model: a flax module.
      state: its state in test mode, at the parameters that are evaluated.
      name: of the model, such as one in `jaxcnn.MODELS`.
      classes: names of classes, in the order of the model's outputs.
      size: side of its square input, in pixels.
      resize: length of an image's shorter side before the middle is cut out.
      interpolation: of that resizing, "bilinear" or "bicubic".
    """

    model: Any
    state: State
    name: str
    classes: tuple[str, ...]
    size: int
    resize: int
    interpolation: str = "bilinear"

    @property
    def variables(self) -> dict[str, Any]:
        """`{"params": ..., "batch_stats": ...}` of the model, as NumPy arrays."""
        return {"params": self.state.params, **self.state.model_state}

    @property
    def _scale(self) -> Scale:
        return Scale(self.size, self.resize, self.interpolation)

    @property
    def mean(self) -> np.ndarray:
        """What is subtracted from images in 0..1, float32 [size, size, c]."""
        return np.asarray(self.state.normalizer.mean)

    @property
    def std(self) -> np.ndarray:
        """What they are then divided by, float32 [c]."""
        return np.asarray(self.state.normalizer.std)

    def __repr__(self) -> str:
        channels = self.mean.shape[-1]
        num_params = tree_size(self.state.params)
        cut = "" if self.resize == self.size else f", the middle of {self.resize}"
        lines = {
            "model": f"{self.name}, {num_params:,} parameters, step {int(self.state.step)}",
            "classes": f"{len(self.classes)}: {shorten_names(self.classes)}",
            "images": f"{self.size} x {self.size} x {channels}{cut}",
            "mean": " ".join(f"{value:.4g}" for value in self.mean.mean((0, 1))),
            "std": " ".join(f"{value:.4g}" for value in self.std),
        }
        return format_lines("Classifier", lines)

    def predict(self, images: Images) -> tuple[np.ndarray, tuple[str, ...]]:
        """Return the probabilities of the classes, and the likeliest class of each image.

        Files and arrays are preprocessed alike: an array is what a file holds.

        Args:
          images: the path of a file, or uint8 [h, w, c] or [h, w] of any size. Or several of them:
            a list, or an array [n, h, w, c].

        Returns:
          Probabilities float64 [n, num_classes], the softmax of the logits, and n names.

        Raises:
          ImageError: files are not images; the error lists all of them.
          DataError: the arrays are no images.
          ArgumentError: there are no images, or a logit is not finite.
        """
        items = _as_list(images)
        if all(map(_is_path, items)):
            result = self.predict_files(items)
            if result.broken:
                raise ImageError(result.broken)
            probabilities = result.probabilities
        else:
            probabilities = np.concatenate(
                [self.probabilities(self.preprocess(chunk)) for chunk in self._chunks(items)]
            )
        return probabilities, tuple(self.classes[label] for label in probabilities.argmax(1))

    def predict_files(self, paths: Sequence[str | os.PathLike[str]]) -> FilePredictions:
        """Return predictions for those files that are images, and the names of the others.

        Only some hundred images are in memory at once.

        Raises:
          ArgumentError: a logit is not finite.
        """
        files = [Path(path) for path in paths]
        probabilities, readable = [np.zeros((0, len(self.classes)))], []
        broken: list[tuple[str, str]] = []
        dark: list[tuple[str, int]] = []
        for chunk in self._chunks(files):
            images = np.empty((len(chunk), self.size, self.size, 3), np.uint8)
            _, problems, levels = decode(chunk, images, self._scale)
            good = [i for i in range(len(chunk)) if i not in problems]
            broken += [(str(chunk[i]), problems[i]) for i in sorted(problems)]
            dark += [(str(chunk[i]), levels[i]) for i in sorted(levels)]
            if good:
                probabilities.append(self.probabilities(self._with_channels(images[good])))
            readable += [chunk[i] for i in good]
        if dark:
            log.warning("%s", darkness_warning(dark))
        return FilePredictions(np.concatenate(probabilities), tuple(readable), tuple(broken))

    def preprocess(self, images: Images) -> np.ndarray:
        """Return images as the model's inputs before normalization, uint8 [n, size, size, c].

        Arguments and errors are those of `predict`. The shorter side is resized to `resize`, and
        the middle cut out. For a network of one channel, colors become their luminance.
        """
        items = _as_list(images)
        squares = np.empty((len(items), self.size, self.size, 3), np.uint8)
        files = {i: Path(item) for i, item in enumerate(items) if _is_path(item)}
        if files:
            decoded = np.empty((len(files), *squares.shape[1:]), np.uint8)
            paths = list(files.values())
            _, broken, dark = decode(paths, decoded, self._scale)
            if broken:
                raise ImageError([(str(paths[i]), broken[i]) for i in sorted(broken)])
            if dark:
                log.warning(
                    "%s", darkness_warning([(str(paths[i]), dark[i]) for i in sorted(dark)])
                )
            squares[list(files)] = decoded
        for i, item in enumerate(items):
            if i not in files:
                try:
                    squares[i] = resize_image(
                        item, self.size, self.resize, interpolation=self.interpolation
                    )
                except DataError as error:
                    raise DataError(f"images[{i}]: {error}") from None
        return self._with_channels(squares)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Return the softmax of the logits, float64 [n, num_classes].

        Args:
          images: uint8 [n, size, size, c], as `preprocess` returns them.

        Raises:
          DataError: they are other arrays.
          ArgumentError: a logit is not finite.
        """
        batch = max(1, min(64, BATCH_PIXELS // self.size**2))
        logits = predict(self.model, self.state, images, batch_size=batch).astype(np.float64)
        if not np.isfinite(logits).all():
            raise ArgumentError(
                f"the classifier ({self.name}) gives nan or infinity: its training diverged, or "
                "its file is damaged; train it again"
            )
        # Here because it takes a tenth of the time of `import jaxcnn`.
        from scipy.special import softmax

        return softmax(logits, axis=1)

    def _with_channels(self, squares: np.ndarray) -> np.ndarray:
        return squares if self.mean.shape[-1] == 3 else to_gray(squares)

    def _chunks(self, items: Sequence[Any]) -> Iterator[list[Any]]:
        # Whole batches, so that a chunk's logits are those of all images together.
        size = min(1024, max(64, _CHUNK_PIXELS // self.size**2 // 64 * 64))
        for start in range(0, len(items), size):
            yield list(items[start : start + size])


def _is_path(item: Any) -> bool:
    return isinstance(item, (str, os.PathLike))


def _as_list(images: Any) -> list[Any]:
    """Return one or several images as a list of them.

    Raises:
      ArgumentError: it is neither, or there are none.
    """
    example = "Write predict(['new.jpg'])."
    if _is_path(images):
        return [images]
    if isinstance(images, (np.ndarray, jax.Array)):
        if images.ndim not in (2, 3, 4):
            raise ArgumentError(
                f"images have shape {images.shape}; expected [h, w, c] or [n, h, w, c]. {example}"
            )
        images = [images] if images.ndim < 4 else list(np.asarray(images))
    if not isinstance(images, (list, tuple)):
        raise ArgumentError(
            f"images are {format_value(images)}; expected paths or uint8 arrays. {example}"
        )
    if not images:
        raise ArgumentError(f"images are none at all; expected at least one. {example}")
    for image in images:
        if not _is_path(image) and not isinstance(image, (np.ndarray, jax.Array)):
            raise ArgumentError(
                f"an image is {format_value(image)}; expected a path or a uint8 array. {example}"
            )
    return list(images)


# ---------------------------------------------------------------- the file


def save_classifier(
    folder: str | Path,
    config: ExperimentConfig,
    model: Any,
    state: State,
    classes: Sequence[str],
    size: int,
    resize: int,
    interpolation: str = "bilinear",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write `folder`/weights.safetensors and classes.json.

    The first is enough for `load_classifier`: its header has the model, the classes and the
    constants of the images.

    Args:
      folder: that exists.
      config: its `model` and `model_kwargs` make the model again.
      model: that `create_model` made of them.
      state: whose parameters are written, those that are evaluated.
      classes: names, in the order of the outputs.
      size: side of the input, in pixels.
      resize: length of an image's shorter side before the middle is cut out.
      interpolation: of that resizing, "bilinear" or "bicubic".
      metadata: more texts for the header.

    Raises:
      ArgumentError: the state subtracts a mean image, which the header has no room for.
      WeightsError: the file cannot be written.
    """
    state, folder = eval_state(state), Path(folder)
    mean = np.asarray(state.normalizer.mean)
    if mean.shape[:2] != (size, size) or mean.shape[2] not in (1, 3) or np.ptp(mean, (0, 1)).any():
        raise ArgumentError(
            f"the state's mean image is {list(mean.shape)}, or not one color; expected [{size}, "
            f"{size}, c] with one number a channel. Train with subtract_mean='channel' or "
            "'imagenet'"
        )
    facts = {
        "options": config.model_kwargs,
        "classes": list(classes),
        "size": size,
        "resize": resize,
        "interpolation": interpolation,
        "mean": mean[0, 0].tolist(),
        "std": np.asarray(state.normalizer.std).tolist(),
        "step": int(state.step),
    }
    header = {"network": config.model} | {name: json.dumps(value) for name, value in facts.items()}
    if taken := sorted(header.keys() & (metadata or {}).keys()):
        raise ArgumentError(
            f"metadata has {taken[0]}, which the classifier writes itself; expected another name. "
            f"Leave out {taken[0]}."
        )
    weights.export_weights(
        model,
        {"params": state.params, **state.model_state},
        folder / WEIGHTS_FILE,
        header | dict(metadata or {}),
    )
    write_classes(folder, classes)


def load_classifier(
    folder: str | Path,
    *,
    step: int | str | None = None,
    model: Any = None,
    classes: Sequence[str] | None = None,
    resize: int | None = None,
    interpolation: str | None = None,
) -> Classifier:
    """Open a trained classifier; neither its data nor its script is needed.

    Args:
      folder: where `experiments.finetune` (or `save_classifier`) wrote weights.safetensors. Or the
        folder of a run of `train(..., run_dir=)` or `runs.run`, with config.json and checkpoints,
        in which nothing trains now.
      step: of a run's states, as in `Checkpoints.variables`: "best", "last" or a number. None is
        the last, whose figures are those of `result.json`. "best" is chosen by the run's
        `eval_split`; where that is the test split, the error there is too good.
      model: of a run whose model is not the library's.
      classes: names of classes. None is those of the data set, or of the run's classes.json.
      resize: length of an image's shorter side before the middle is cut out. None is what
        `image_folder` was given, which the run's resize.json has. It is the size itself for data
        sets by name and for arrays of the user's own.
      interpolation: of that resizing, "bilinear" or "bicubic". None is likewise that of
        resize.json, or else bilinear.

    Raises:
      ArgumentError: the folder holds no classifier. Or its model or classes are not the library's,
        and missing here. Or an argument does not fit the folder.
      CheckpointError: there is no such step, it is damaged, or another process trains there.

    Example:
      >>> import tempfile, jaxcnn as jc
      >>> data, folder = jc.load_dataset("digits"), tempfile.mkdtemp()
      >>> model, tx = jc.create_model("mlp", 10), jc.create_optimizer(jc.OptimizerConfig())
      >>> for state, row in jc.train(model, tx, data, jc.TrainConfig(60), run_dir=folder):
      ...     pass
      >>> classifier = jc.load_classifier(folder)
      >>> probabilities, names = classifier.predict(data.test.images[:8])
      >>> probabilities.shape, len(names), classifier.classes[:3]
      ((8, 10), 8, ('0', '1', '2'))
    """
    path = check_path("folder", folder)
    if (path / WEIGHTS_FILE).is_file():
        arguments = {"step": step, "model": model, "classes": classes}
        arguments |= {"resize": resize, "interpolation": interpolation}
        if extra := [name for name, value in arguments.items() if value is not None]:
            raise ArgumentError(
                f"{path} holds a saved classifier, {WEIGHTS_FILE}, which has its own {extra[0]}; "
                f"expected the folder alone. Leave out {extra[0]}"
            )
        return _read_file(path / WEIGHTS_FILE)
    if (path / "config.json").is_file() and (path / "checkpoints").is_dir():
        return _read_run(path, step, model, classes, resize, interpolation)
    raise ArgumentError(_missing_text(path))


def _missing_text(path: Path) -> str:
    """Return the error for a folder without a classifier."""
    expected = (
        "write the folder of a finished finetune, or of a run, with config.json and checkpoints"
    )
    try:
        if not path.exists():
            return f"{path} is not there; {expected}"
        names = [file.parent for file in path.glob(f"*/{WEIGHTS_FILE}")]
        runs = [file.parent.parent for file in path.glob("*/checkpoints/lock")]
        names += filter(_may_be_classifier, runs)
    except OSError:
        names = []
    return missing_run_message(path, "classifier", names) or (
        f"{path} holds no {WEIGHTS_FILE}; {expected}"
    )


def _may_be_classifier(folder: Path) -> bool:
    """Return whether a run's config can be that of a classifier, of any model."""
    try:
        config = ExperimentConfig.load(folder)
    except ArgumentError:
        return False
    if not _may_sort_images(config.loss):
        return False
    try:
        model = create_model(config.model, 2, **config.model_kwargs)
    except (ArgumentError, TypeError):
        return True  # a module of the user's own
    return not isinstance(model, IMAGE_NETWORKS)


def _may_sort_images(loss: str) -> bool:
    """Return whether a recorded loss is one of class labels, or of the user's own."""
    return loss in CLASS_LOSSES or not (loss in LOSSES or loss.startswith("jaxcnn."))


def _read_file(path: Path) -> Classifier:
    """Return the classifier that `save_classifier` wrote.

    Raises:
      ArgumentError: the header is not what it writes.
    """
    # The file may come from anybody, so every value of the header is checked.
    header = weights.read_metadata(path)
    try:
        facts = {
            name: json.loads(header[name])
            for name in ("options", "classes", "size", "resize", "mean", "std")
        }
        name, classes = header["network"], check_class_names(facts["classes"])
        # Versions without the option had one interpolation.
        interpolation = json.loads(header.get("interpolation", '"bilinear"'))
        size, resize, interpolation = check_sizes(facts["size"], facts["resize"], interpolation)
        mean, std = (check_constants(key, facts[key]) for key in ("mean", "std"))
        if mean.shape != std.shape:
            raise ValueError(f"mean has {len(mean)} numbers and std {len(std)}; expected as many")
        # Files of earlier versions do not have it.
        step = json.loads(header.get("step", "0"))
        if type(step) is not int or not 0 <= step < 2**31:
            raise ValueError(f"step is {format_value(step)}; expected a whole number")
        normalizer = Normalizer(np.broadcast_to(mean, (size, size, len(mean))), std)  # type: ignore[arg-type]  # of NumPy
        model = create_model(name, len(classes), **facts["options"])
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        problem = printable(" ".join(str(error).split())[:200])
        raise ArgumentError(
            f"{path} was not written by experiments.finetune ({problem}); write the folder of "
            "one that was"
        ) from None
    variables = dict(weights.load_weights(model, path, (size, size, len(mean))))
    state = as_state(model, variables, normalizer)._replace(step=np.int32(step))
    return Classifier(model, state, name, classes, size, resize, interpolation)


def check_class_names(classes: Any) -> tuple[str, ...]:
    """Return the names of classes in a file's header.

    Raises:
      ValueError: they are no names, or hold control characters for a terminal.
    """
    if (
        not isinstance(classes, list)
        or len(classes) < 2
        or not all(isinstance(name, str) for name in classes)
    ):
        raise ValueError(
            f"classes is {format_value(classes)}; expected a list of two names or more"
        )
    if invalid := [name for name in classes if not name.isprintable()]:
        raise ValueError(f"a class is called {format_value(invalid[0])}, which cannot be printed")
    if len(set(classes)) < len(classes):
        raise ValueError("two classes have one name")
    return tuple(classes)


def check_constants(name: str, values: Any) -> np.ndarray:
    """Return the mean or standard deviation in a file's header.

    Args:
      name: `mean` or `std`.
      values: of three channels, or of one.

    Returns:
      float32 [3] or [1].

    Raises:
      ValueError: they are invalid.
    """
    array = np.array(values, np.float32)
    if (
        array.shape not in ((1,), (3,))
        or not np.isfinite(array).all()
        or (name == "std" and not (array > 0).all())
    ):
        expected = "positive numbers" if name == "std" else "numbers"
        raise ValueError(
            f"{name} is {format_value(values)}; expected three finite {expected}, or one"
        )
    return array


# ---------------------------------------------------------------- a run


def _read_run(
    folder: Path,
    step: int | str | None,
    model: Any,
    classes: Sequence[str] | None,
    resize: int | None,
    interpolation: str | None,
) -> Classifier:
    """Return the classifier of a run with checkpoints.

    Raises:
      ArgumentError: it cannot be opened with these arguments.
      CheckpointError: the step cannot be read.
    """
    config = ExperimentConfig.load(folder)
    if not _may_sort_images(config.loss):
        raise ArgumentError(
            f"{folder} was trained with the loss {config.loss!r}, which does not sort images into "
            f"classes; expected one of {', '.join(CLASS_LOSSES)}. {_predict_advice(folder, config)}"
        )
    names = _class_names(folder, config, classes)
    if model is None:
        model = _library_model(folder, config, len(names))
        name = config.model
    else:
        verify_model(model)
        name = type(model).__name__
    with Checkpoints(folder / "checkpoints") as checkpoints:
        leaves = checkpoints.leaves("last" if step is None else step)
    normalizer = _normalizer(folder, leaves)
    height, width, channels = normalizer.mean.shape
    if height != width or channels not in (1, 3):
        raise ArgumentError(
            f"{folder} was trained on images of {height} x {width} x {channels}; expected squares "
            f"of 1 or 3 channels. {_predict_advice(folder, config)}"
        )
    scale = _run_scale(folder, config, height, resize, interpolation)
    variables = variables_of(leaves)
    advice = _predict_advice(folder, config)
    _check_model(folder, model, variables, normalizer.mean.shape, len(names), advice)
    state = as_state(model, variables, normalizer)._replace(step=np.int32(leaves[".step"]))
    return Classifier(model, state, name, names, *scale)


def _predict_advice(folder: Path, config: ExperimentConfig) -> str:
    """Return the code that predicts with a run that is no classifier."""
    subtract, divide = config.train.subtract_mean, config.train.divide_std
    default, normalizer = TrainConfig(), "data"
    # A checkpoint's variables have no constants of images, which those of the run have to be.
    if (subtract, divide) != (default.subtract_mean, default.divide_std):
        normalizer = (
            "jaxcnn.augment.make_normalizer(data.mean, data.std, "
            f"subtract={subtract!r}, divide={divide!r})"
        )
    return (
        f"Write with jaxcnn.Checkpoints({str(folder / 'checkpoints')!r}) as saved: variables = "
        "saved.variables('last'), and then jaxcnn.predict(model, variables, images, "
        f"normalizer={normalizer})"
    )


def _run_scale(
    folder: Path,
    config: ExperimentConfig,
    size: int,
    resize: int | None,
    interpolation: str | None,
) -> Scale:
    """Return the resizing of a run's images: as written here, as recorded, or the default.

    Raises:
      ArgumentError: it is invalid, or recorded for images of another size.
      DataError: a size is invalid.
    """
    # `image_folder` cuts out the middle. Arrays of the user's own are trained on as they are.
    default = check_sizes(size, None if config.dataset == "folder" else size)
    # Runs of earlier versions do not have the file.
    if (folder / SCALE_FILE).is_file() and (resize is None or interpolation is None):
        recorded = read_json(folder / SCALE_FILE)
        try:
            default = check_sizes(*(recorded[name] for name in Scale._fields))
            if default.size != size:
                raise ValueError(f"size is {default.size}, and the run's images have {size}")
        except (KeyError, TypeError, ValueError) as error:
            raise ArgumentError(
                f"{folder / SCALE_FILE} is not what a run writes "
                f"({printable(' '.join(str(error).split())[:160])}); expected the run's own file. "
                f"Write load_classifier(folder, resize={size}, interpolation='bilinear')"
            ) from None
    return check_sizes(
        size,
        default.resize if resize is None else resize,
        default.interpolation if interpolation is None else interpolation,
    )


def _class_names(
    folder: Path, config: ExperimentConfig, classes: Sequence[str] | None
) -> tuple[str, ...]:
    """Return the names of a run's classes."""
    if classes is None:
        if config.dataset in DATASETS:
            return DATASETS[config.dataset].classes
        if config.dataset == "folder" and (folder.parent / WEIGHTS_FILE).is_file():
            raise ArgumentError(
                f"{folder} is the run of a fine-tuned classifier, whose file is in "
                f"{folder.parent}; write load_classifier({str(folder.parent)!r})"
            )
        if not (folder / CLASSES_FILE).is_file():
            raise ArgumentError(
                f"{folder} was trained on {config.dataset!r}, data of your own, and has no "
                f"{CLASSES_FILE}; write load_classifier(folder, classes=data.classes)"
            )
        classes = read_json(folder / CLASSES_FILE, list)
    try:
        is_sequence = isinstance(classes, (list, tuple))
        return check_class_names(list(classes) if is_sequence else classes)
    except ValueError as error:
        raise ArgumentError(f"{error}: write classes=data.classes") from None


def _library_model(folder: Path, config: ExperimentConfig, num_classes: int) -> Any:
    """Return the model that a run's config names."""
    try:
        return create_model(config.model, num_classes, **config.model_kwargs)
    except (ArgumentError, TypeError) as error:
        # The record of a module of the user's own is the path of its class.
        is_own = "." in config.model and config.model not in MODELS
        problem = "" if is_own else f" ({printable(' '.join(str(error).split())[:160])})"
        name = format_value(config.model)
        raise ArgumentError(
            f"{folder} was trained with the model {name}, which is not the library's{problem}; "
            "write load_classifier(folder, model=...) with that module"
        ) from None


def _normalizer(folder: Path, leaves: Mapping[str, Any]) -> Normalizer:
    """Return the constants of images in a checkpoint."""
    mean, std = (leaves.get(f".normalizer.{name}") for name in ("mean", "std"))
    is_valid = (
        isinstance(mean, np.ndarray)
        and isinstance(std, np.ndarray)
        and mean.ndim == 3
        and std.shape == mean.shape[2:]
        and mean.dtype.kind == std.dtype.kind == "f"
        and bool(np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all())
    )
    if not is_valid or ".step" not in leaves:
        raise ArgumentError(
            f"{folder} holds states without the constants of its images; expected those of "
            "jaxcnn.train. Write the folder of one of its runs"
        )
    return Normalizer(mean, std)  # pyright: ignore[reportArgumentType]


def _check_model(
    folder: Path,
    model: Any,
    variables: dict[str, Any],
    shape: tuple[int, ...],
    num_classes: int,
    advice: str,
) -> None:
    """Check that variables are of a model, and that it gives a number for each class.

    Nothing is computed. `advice` is what to write for a model of other outputs.

    Raises:
      ArgumentError: they are not, or it does not.
    """
    image = jax.ShapeDtypeStruct((2, *shape), np.float32)
    expected, saved = (leaf_shapes(tree) for tree in (variable_shapes(model, image), variables))
    paths = sorted(expected.keys() | saved.keys())
    if misfits := [path for path in paths if expected.get(path) != saved.get(path)]:
        path = misfits[0]
        raise ArgumentError(
            f"{folder} holds the variables of another model than {type(model).__name__}: "
            f"{len(misfits)} differ, such as {path}, which is {saved.get(path, 'missing')} there "
            f"and {expected.get(path, 'none')} in a model of {num_classes} classes; write the "
            "model and the classes that were trained"
        )
    outputs: Any = jax.eval_shape(lambda v, x: call(model, v, x, train=False), variables, image)
    outputs_shape = getattr(outputs, "shape", None)
    if outputs_shape != (2, num_classes):
        per_image = type(outputs).__name__ if outputs_shape is None else list(outputs_shape[1:])
        is_classifier = outputs_shape is not None and len(outputs_shape) == 2
        raise ArgumentError(
            f"the model in {folder} gives {per_image} for an image; expected [{num_classes}], a "
            f"number for each of {num_classes} classes. "
            + ("Write classes= with as many names" if is_classifier else advice)
        )
