"""A classifier as files: its weights, with all that is needed to use them in the header, and the names of its classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.special import softmax

import jaxcnn as jc
from jaxcnn import metrics, weights
from jaxcnn.augment import Normalizer
from jaxcnn.data.image_io import check_sizes
from jaxcnn.data.types import printable
from jaxcnn.recipe import format_value
from jaxcnn.run_log import write_text
from jaxcnn.state import eval_state

FILE, CLASSES = "weights.safetensors", "classes.json"
PIXELS = 64 * 224 * 224
"""Of all pictures in a batch."""


class Saved(NamedTuple):
    """A classifier that `predict` can be asked with."""

    model: Any
    state: jc.State
    name: str
    classes: tuple[str, ...]
    size: int
    resize: int


def save(
    out: Path, recipe: jc.Recipe, model: Any, state: jc.State, classes: Sequence[str], size: int, resize: int
) -> None:
    """Write OUT/weights.safetensors and OUT/classes.json."""
    state = eval_state(state)
    facts = {"options": recipe.options, "classes": list(classes), "size": size, "resize": resize}
    facts |= {
        "mean": np.asarray(state.normalizer.mean)[0, 0].tolist(),
        "std": np.asarray(state.normalizer.std).tolist(),
    }
    header = {"network": recipe.model} | {name: json.dumps(value) for name, value in facts.items()}
    weights.export_weights(model, {"params": state.params, **state.model_state}, out / FILE, header)
    write_text(out / CLASSES, json.dumps(list(classes), indent=2, ensure_ascii=False) + "\n")


def read(out: Path) -> Saved:
    """The classifier that `save` wrote to `out`; ArgumentError where there is none."""
    path = out / FILE
    if not path.is_file():
        raise jc.ArgumentError(f"{out} holds no {FILE}; write --run with the folder of a finished finetune, its --out")
    header = weights.read_metadata(path)
    try:
        facts = {name: json.loads(header[name]) for name in ("options", "classes", "size", "resize", "mean", "std")}
        name, classes = header["network"], named(facts["classes"])
        size, resize = check_sizes(facts["size"], facts["resize"])
        mean, std = (constants(key, facts[key]) for key in ("mean", "std"))
        norm = Normalizer(np.broadcast_to(mean, (size, size, 3)), std)  # type: ignore[arg-type]  # of NumPy
        model = jc.create_model(name, len(classes), **facts["options"])
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        what = printable(" ".join(str(error).split())[:200])
        raise jc.ArgumentError(
            f"{path} was not written by experiments.finetune ({what}); write --run with its --out"
        ) from None
    variables = dict(weights.load_weights(model, path, (size, size, 3)))
    params = variables.pop("params")
    key = np.zeros(2, np.uint32)
    state = jc.State(np.int32(0), params, variables, (), key, norm, metrics.zeros())
    return Saved(model, state, name, classes, size, resize)


def named(classes: Any) -> tuple[str, ...]:
    """Names of classes from a file's header; ValueError for what is none, or would tell a terminal what to do."""
    if not isinstance(classes, list) or len(classes) < 2 or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"classes is {format_value(classes)}; expected a list of two names or more")
    if bad := [name for name in classes if not name.isprintable()]:
        raise ValueError(f"a class is called {format_value(bad[0])}, which cannot be printed")
    if len(set(classes)) < len(classes):
        raise ValueError("two classes have one name")
    return tuple(classes)


def constants(what: str, values: Any) -> np.ndarray:
    """Mean or standard deviation of three channels from a file's header, float32 [3]; ValueError for what is none."""
    found = np.array(values, np.float32)
    if found.shape != (3,) or not np.isfinite(found).all() or (what == "std" and not (found > 0).all()):
        expected = "positive numbers" if what == "std" else "numbers"
        raise ValueError(f"{what} is {format_value(values)}; expected three finite {expected}")
    return found


def probabilities(saved: Saved, images: np.ndarray) -> np.ndarray:
    """The softmax of the logits, float64 [n, classes], of uint8 images [n, size, size, 3]; ArgumentError for nan."""
    batch = max(1, min(64, PIXELS // saved.size**2))
    logits = jc.predict(saved.model, saved.state, images, batch=batch).astype(np.float64)
    if not np.isfinite(logits).all():
        raise jc.ArgumentError(
            f"the classifier ({saved.name}) gives nan or infinity: its training diverged, or its file is damaged; train it anew"
        )
    return softmax(logits, axis=1)


def heat(saved: Saved, images: np.ndarray, classes: np.ndarray) -> np.ndarray | None:
    """Grad-CAM of `classes` at image size, float32 [n, h, w]; None for a network that has no maps to look at."""
    from jaxcnn.interpret import gradcam

    try:
        return np.asarray(gradcam(saved.model, saved.state, images, classes))
    except jc.ArgumentError:
        return None
