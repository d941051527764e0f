"""The pictures of a fine-tuned run, opened again as the run saw them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import jaxcnn as jc
from experiments.finetune.options import Options
from jaxcnn.data import image_folder_with_paths
from jaxcnn.run_log import read_json, write_text

IMAGES, START = "images.json", "start.json"
_HOW = ("size", "resize", "validation", "test", "seed", "skip_broken", "memory")


def opened(root: Path, options: Options) -> tuple[jc.Dataset, dict[str, tuple[str, ...]]]:
    """The pictures in `root` and their names, by part."""
    return image_folder_with_paths(root, **{name: getattr(options, name) for name in _HOW})


def remember(root: Path, options: Options) -> None:
    """Write OUT/images.json, by which `reopened` finds the pictures."""
    about: dict[str, Any] = {name: getattr(options, name) for name in _HOW}
    write_text(options.out / IMAGES, json.dumps({"images": str(root.expanduser().resolve())} | about, indent=2) + "\n")


def reopened(run: Path) -> jc.Dataset:
    """The pictures that the run in OUT/run was trained on.

    Raises:
      ArgumentError: OUT does not say which they were, or they have changed.
      DataError: they cannot be read.
    """
    out = run.resolve().parent
    if not (out / IMAGES).is_file():
        raise jc.ArgumentError(
            f"{run} was trained on a folder of pictures, and {out} has no {IMAGES} that says which; expected --run OUT/run of "
            "experiments.finetune: run its command again with --plot-only, which writes it"
        )
    about = dict(read_json(out / IMAGES))
    try:
        root, how = Path(about["images"]), {name: about[name] for name in _HOW}
    except (KeyError, TypeError) as error:
        raise jc.ArgumentError(f"{out / IMAGES} was not written by experiments.finetune ({error!r:.80})") from None
    data, _ = image_folder_with_paths(root, **how)
    before = read_json(out / START).get("pictures") if (out / START).is_file() else None
    if before is not None and before != digest(data):
        raise jc.ArgumentError(
            f"the pictures in {root} are not those of {run} any more; put back those that it was trained on"
        )
    return data


def digest(data: jc.Dataset) -> str:
    """Of the class names, labels and mean image, by which other pictures are told apart."""
    found = hashlib.sha256(json.dumps(data.classes).encode())
    for split in (data.train, data.validation, data.test):
        found.update(split.labels.tobytes())
    found.update(data.mean.tobytes())
    return found.hexdigest()
