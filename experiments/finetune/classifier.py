"""Classifier as files: weights with a header, and names of classes.

The header has all that is needed to use the weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.special import softmax

import jaxcnn as jc
from jaxcnn import weights
from jaxcnn.augment import Normalizer
from jaxcnn.config import format_value
from jaxcnn.data.image_io import check_sizes
from jaxcnn.data.types import printable
from jaxcnn.run_log import write_text
from jaxcnn.state import eval_state

WEIGHTS_FILE, CLASSES_FILE = "weights.safetensors", "classes.json"
BATCH_PIXELS = 64 * 224 * 224
"""Most pixels of all images in a batch."""


class Classifier(NamedTuple):
    """Trained classifier with its preprocessing.

    Attributes:
      model: a flax module.
      state: its state in test mode.
      name: of the model, in `jaxcnn.MODELS`.
      classes: names of classes.
      size: side of its input, in pixels.
      resize: length of an image's shorter side before the middle is cut out.
      interpolation: of that resizing.
    """

    model: Any
    state: jc.State
    name: str
    classes: tuple[str, ...]
    size: int
    resize: int
    interpolation: str = "bilinear"


def save_classifier(
    out: Path,
    config: jc.ExperimentConfig,
    model: Any,
    state: jc.State,
    classes: Sequence[str],
    size: int,
    resize: int,
    interpolation: str = "bilinear",
) -> None:
    """Write OUT/weights.safetensors and OUT/classes.json."""
    state = eval_state(state)
    facts = {
        "options": config.model_kwargs,
        "classes": list(classes),
        "size": size,
        "resize": resize,
        "interpolation": interpolation,
    }
    facts |= {
        "mean": np.asarray(state.normalizer.mean)[0, 0].tolist(),
        "std": np.asarray(state.normalizer.std).tolist(),
    }
    header = {"network": config.model} | {name: json.dumps(value) for name, value in facts.items()}
    weights.export_weights(
        model, {"params": state.params, **state.model_state}, out / WEIGHTS_FILE, header
    )
    write_text(out / CLASSES_FILE, json.dumps(list(classes), indent=2, ensure_ascii=False) + "\n")


def load_classifier(out: Path) -> Classifier:
    """Return the classifier that `save_classifier` wrote to `out`.

    Raises:
      ArgumentError: there is none.
    """
    path = out / WEIGHTS_FILE
    if not path.is_file():
        raise jc.ArgumentError(
            f"{out} holds no {WEIGHTS_FILE}; write --run with the folder of a finished finetune, "
            "its --out"
        )
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
        normalizer = Normalizer(np.broadcast_to(mean, (size, size, 3)), std)  # type: ignore[arg-type]  # of NumPy
        model = jc.create_model(name, len(classes), **facts["options"])
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        problem = printable(" ".join(str(error).split())[:200])
        raise jc.ArgumentError(
            f"{path} was not written by experiments.finetune ({problem}); write --run with its "
            "--out"
        ) from None
    variables = weights.load_weights(model, path, (size, size, 3))
    state = jc.inference_state(variables, normalizer)
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
      values: of three channels.

    Returns:
      float32 [3].

    Raises:
      ValueError: they are invalid.
    """
    array = np.array(values, np.float32)
    if (
        array.shape != (3,)
        or not np.isfinite(array).all()
        or (name == "std" and not (array > 0).all())
    ):
        expected = "positive numbers" if name == "std" else "numbers"
        raise ValueError(f"{name} is {format_value(values)}; expected three finite {expected}")
    return array


def probabilities(classifier: Classifier, images: np.ndarray) -> np.ndarray:
    """Return the softmax of the logits, float64 [n, num_classes].

    Args:
      classifier: from `load_classifier`.
      images: uint8 [n, size, size, 3].

    Raises:
      ArgumentError: a logit is not finite.
    """
    batch = max(1, min(64, BATCH_PIXELS // classifier.size**2))
    logits = jc.predict(classifier.model, classifier.state, images, batch_size=batch).astype(
        np.float64
    )
    if not np.isfinite(logits).all():
        raise jc.ArgumentError(
            f"the classifier ({classifier.name}) gives nan or infinity: its training diverged, or "
            "its file is damaged; train it again"
        )
    return softmax(logits, axis=1)


def gradcam_heat(
    classifier: Classifier, images: np.ndarray, classes: np.ndarray
) -> np.ndarray | None:
    """Return Grad-CAM of `classes` at image size, float32 [n, h, w].

    It is None for a network without maps.
    """
    from jaxcnn.interpret import gradcam

    try:
        return np.asarray(gradcam(classifier.model, classifier.state, images, classes))
    except jc.ArgumentError:
        return None
