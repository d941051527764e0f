"""Folders of pictures for trying it out: squares of three photographs, and CIFAR-10 as files."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import jaxcnn as jc

SIDE, STRIDE = 48, 16
"""Of a square of a photograph, and from one square to the next, in pixels."""
CIFAR = 200, 50
"""Pictures of each class to train and to test on."""


def photographs(root: Path) -> None:
    """Squares of three photographs, `train` from the left 60% and `test` from what is right of that; no pixel is in both.

    They are scikit-learn's china.jpg and flower.jpg (CC BY 2.0) and matplotlib's grace_hopper.jpg (public domain).
    """

    def squares() -> Iterator[tuple[str, np.ndarray]]:
        for name, image in _shipped().items():
            height, width, _ = image.shape
            cut = round(0.6 * width)
            for part, first, last in (("train", 0, cut), ("test", cut, width)):
                step = STRIDE if part == "train" else SIDE  # the test's squares do not overlap each other either
                for y in range(0, height - SIDE + 1, step):
                    for x in range(first, last - SIDE + 1, step):
                        yield f"{part}/{name}/{y:03d}-{x:03d}.png", image[y : y + SIDE, x : x + SIDE]

    _write(root, squares())


def _shipped() -> dict[str, np.ndarray]:
    from matplotlib.cbook import get_sample_data
    from PIL import Image
    from sklearn.datasets import load_sample_images

    shown = load_sample_images()
    found = {Path(name).stem: image for name, image in zip(shown.filenames, shown.images, strict=True)}
    hopper = Path(str(get_sample_data("grace_hopper.jpg", asfileobj=False)))
    with Image.open(hopper) as image:
        found["hopper"] = np.asarray(image.convert("RGB"))
    return found


def cifar10(root: Path, data_dir: Path | None = None) -> None:
    """The first `CIFAR` pictures of each class of CIFAR-10, as PNG of 32 pixels in `train` and `test`."""
    data = jc.load_dataset("cifar10", data_dir)

    def files() -> Iterator[tuple[str, np.ndarray]]:
        for part, n in zip(("train", "test"), CIFAR, strict=True):
            split = getattr(data, part)
            for label, name in enumerate(data.classes):
                for at in np.flatnonzero(split.labels == label)[:n]:
                    yield f"{part}/{name}/{at:05d}.png", split.images[at]

    _write(root, files())


def _write(root: Path, files: Iterator[tuple[str, np.ndarray]]) -> None:
    """Write PNG files, all or none."""
    from PIL import Image

    if root.is_dir():
        return
    part = root.with_name(f"{root.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    for name, image in files:
        (part / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(part / name)
    part.rename(root)
