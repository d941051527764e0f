"""Images of a fine-tuned run, and sample folders to try it on."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import jaxcnn as jc
from experiments.finetune.options import Options, input_size, reported_split, selects_best
from jaxcnn.data import image_folder_with_paths
from jaxcnn.data.image_folder import find_split_folders
from jaxcnn.run_log import read_json, write_text

IMAGES_FILE, START_FILE = "images.json", "start.json"
_LOAD_OPTIONS = ("size", "resize", "validation", "test", "seed", "skip_broken", "memory")
_LOAD_OPTIONS += ("interpolation",)
"""Options that decide which images are read, and how."""


def load_images(root: Path, options: Options) -> tuple[jc.Dataset, dict[str, tuple[str, ...]]]:
    """Return the images in `root` and their names, by part."""
    return image_folder_with_paths(root, **_load_settings(options))


def _load_settings(options: Options) -> dict[str, Any]:
    settings: dict[str, Any] = {name: getattr(options, name) for name in _LOAD_OPTIONS}
    return settings | {
        "size": input_size(options),
        "interpolation": options.interpolation or "bilinear",
    }


def describe_images(root: Path, data: jc.Dataset, options: Options) -> str:
    """Return one line that says which images are used for what, and what was split off."""
    folders = find_split_folders(root.expanduser().resolve())
    source = f"{folders['train'].name if 'train' in folders else root.name}/"
    selects = selects_best(options, data)
    uses = []
    if selects:
        uses.append("chooses the epoch")
    if reported_split(data) == "validation":
        uses.append("is reported")
    parts = [f"train: {len(data.train.labels)} images ({source})"]
    for split, use in (("validation", " and ".join(uses) or "is not used"), ("test", "")):
        if count := len(getattr(data, split).labels):
            own = f"{folders[split].name}/" if split in folders else f"split off from {source}"
            parts.append(f"{split}: {count} ({own})" + (f", {use}" if use else ""))
        else:
            parts.append(f"{split}: none")
    saved = "" if selects else "; the last epoch is saved"
    return "; ".join(parts) + saved


def record_images(root: Path, options: Options) -> None:
    """Write OUT/images.json, by which `reload_images` finds the images."""
    settings = _load_settings(options)
    write_text(
        options.out / IMAGES_FILE,
        json.dumps({"images": str(root.expanduser().resolve())} | settings, indent=2) + "\n",
    )


def reload_images(run: Path) -> jc.Dataset:
    """Return the images that the run in OUT/run was trained on.

    Raises:
      ArgumentError: OUT does not name them, or they have changed.
      DataError: they cannot be read.
    """
    out = run.resolve().parent
    if not (out / IMAGES_FILE).is_file():
        raise jc.ArgumentError(
            f"{run} was trained on a folder of images, and {out} has no {IMAGES_FILE} that says "
            "which; expected --run OUT/run of experiments.finetune: run its command again with "
            "--plot-only, which writes it"
        )
    # Versions without the option had one interpolation.
    settings: dict[str, Any] = {"interpolation": "bilinear"} | dict(read_json(out / IMAGES_FILE))
    try:
        root, kwargs = Path(settings["images"]), {name: settings[name] for name in _LOAD_OPTIONS}
    except (KeyError, TypeError) as error:
        raise jc.ArgumentError(
            f"{out / IMAGES_FILE} was not written by experiments.finetune ({error!r:.80})"
        ) from None
    data, _ = image_folder_with_paths(root, **kwargs)
    previous = read_json(out / START_FILE).get("images") if (out / START_FILE).is_file() else None
    if previous is not None and previous != data_digest(data):
        raise jc.ArgumentError(
            f"the images in {root} are not those of {run} any more; put back those that it was "
            "trained on"
        )
    return data


def data_digest(data: jc.Dataset) -> str:
    """Return the sha256 of the class names, labels and mean image.

    Other images have another one.
    """
    hasher = hashlib.sha256(json.dumps(data.classes).encode())
    for split in (data.train, data.validation, data.test):
        hasher.update(split.labels.tobytes())
    # The mean image stands for the pixels, which may be on disk only.
    hasher.update(data.mean.tobytes())
    return hasher.hexdigest()


SIDE, STRIDE = 48, 16
"""Side of a photograph's patches, and their stride, in pixels."""
CIFAR_COUNTS = 200, 50
"""Images of each class to train and to test on."""


def write_photographs(root: Path) -> None:
    """Write patches of three photographs, for training and for the test.

    Training patches are from the left 60%, test patches from the rest. No pixel is in both. The
    photographs are scikit-learn's china.jpg and flower.jpg (CC BY 2.0) and matplotlib's
    grace_hopper.jpg (public domain).
    """

    def patches() -> Iterator[tuple[str, np.ndarray]]:
        for name, image in _load_photographs().items():
            height, width, _ = image.shape
            split_column = round(0.6 * width)
            for part, left, right in (("train", 0, split_column), ("test", split_column, width)):
                # Patches of the test do not overlap each other either.
                stride = STRIDE if part == "train" else SIDE
                for y in range(0, height - SIDE + 1, stride):
                    for x in range(left, right - SIDE + 1, stride):
                        yield (
                            f"{part}/{name}/{y:03d}-{x:03d}.png",
                            image[y : y + SIDE, x : x + SIDE],
                        )

    _write_images(root, patches())


def _load_photographs() -> dict[str, np.ndarray]:
    from matplotlib.cbook import get_sample_data
    from PIL import Image
    from sklearn.datasets import load_sample_images

    samples = load_sample_images()
    images = {
        Path(name).stem: image
        for name, image in zip(samples.filenames, samples.images, strict=True)
    }
    hopper = Path(str(get_sample_data("grace_hopper.jpg", asfileobj=False)))
    with Image.open(hopper) as image:
        images["hopper"] = np.asarray(image.convert("RGB"))
    return images


def write_cifar10(root: Path, data_dir: Path | None = None) -> None:
    """Write the first images of each class of CIFAR-10.

    `train` and `test` have `CIFAR_COUNTS` of each, as PNG of 32 pixels.
    """
    data = jc.load_dataset("cifar10", data_dir)

    def files() -> Iterator[tuple[str, np.ndarray]]:
        for part, n in zip(("train", "test"), CIFAR_COUNTS, strict=True):
            split = getattr(data, part)
            for label, name in enumerate(data.classes):
                for index in np.flatnonzero(split.labels == label)[:n]:
                    yield f"{part}/{name}/{index:05d}.png", split.images[index]

    _write_images(root, files())


def _write_images(root: Path, files: Iterator[tuple[str, np.ndarray]]) -> None:
    """Write PNG files, all or none."""
    from PIL import Image

    if root.is_dir():
        return
    part_folder = root.with_name(f"{root.name}.part")
    shutil.rmtree(part_folder, ignore_errors=True)
    for name, image in files:
        (part_folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(part_folder / name)
    part_folder.rename(root)
