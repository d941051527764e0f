"""Pictures as people have them, from phones, scanners and the web, as uint8 squares; what is broken is listed all at once."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.arguments import format_value
from jaxcnn.data.image_decoding import FORMATS, square
from jaxcnn.data.types import DataError, one_line, printable, short

_BYTES = 1 << 29
_LARGE = 1 << 25
"""Bytes of a file above which no two are in memory at once."""
_BATCH = 512

log = logging.getLogger("jaxcnn.data")


class ImageError(DataError):
    """Files that are no pictures; the message counts them and names the first, `broken` has all, as (name, reason)."""

    def __init__(self, broken: Sequence[tuple[str, str]], mend: str = "mend or delete what is named"):
        self.broken = tuple(broken)
        more = " (the error's .broken has all)" if len(self.broken) > 3 else ""
        super().__init__(f"{counted(self.broken)}{more}: {mend}")


def counted(broken: Sequence[tuple[str, str]], most: int = 3) -> str:
    """How many files are no pictures, and the first of them.

    Example:
      >>> counted([("a.jpg", "empty"), ("b.png", "empty")], most=1)
      '2 files are no pictures that can be read: a.jpg (empty), and 1 more'
    """
    files = "1 file is no picture" if len(broken) == 1 else f"{len(broken)} files are no pictures"
    shown = ", ".join(f"{short(printable(name), 200)} ({printable(reason)})" for name, reason in broken[:most])
    return f"{files} that can be read: {shown}" + (f", and {len(broken) - most} more" if len(broken) > most else "")


def load_image(path: str | os.PathLike[str], size: int = 224, resize: int | None = None) -> np.ndarray:
    """One picture as published networks are tested on it: the shorter side resized, then the middle cut out.

    JPEG, PNG, WebP, GIF, BMP and TIFF, told by their bytes and not by their names, of which the first frame counts. It is
    turned upright by its EXIF tag; grey, palette and CMYK become RGB, what is transparent lies on white, and 16-bit levels
    are divided by 257, with a warning where all of them are below 16384 (12 bits of a camera). Colour profiles are passed over.

    Args:
      path: of the file.
      size: the side of the square, in pixels.
      resize: what the shorter side becomes, bilinear with antialiasing; None is size * 256 / 224, as torchvision and timm
        do (224 of 256 pixels). `resize=size` cuts nothing from a square.

    Returns:
      uint8 [size, size, 3].

    Raises:
      PictureError: it is no picture, is cut short, or has more than 89,478,485 pixels, which is asked before it is decoded.

    Example:
      >>> from pathlib import Path
      >>> import sklearn.datasets
      >>> photograph = Path(sklearn.datasets.__file__).parent / "images" / "china.jpg"
      >>> load_image(photograph, size=64).shape
      (64, 64, 3)

    References:
      https://docs.pytorch.org/vision/stable/models.html (its presets: Resize, then CenterCrop).
    """
    return load_images([path], size, resize)[0]


def load_images(paths: Sequence[str | os.PathLike[str]], size: int = 224, resize: int | None = None) -> np.ndarray:
    """Several of them, uint8 [n, size, size, 3]; a PictureError names all that cannot be read."""
    out = np.empty((len(paths), size, size, 3), np.uint8)
    _, broken, dark = decode(list(map(Path, paths)), out, sides(size, resize))
    if broken:
        raise ImageError([(str(paths[at]), reason) for at, reason in sorted(broken.items())])
    if dark:
        log.warning("%s", darkness([(str(paths[at]), highest) for at, highest in sorted(dark.items())]))
    return out


def darkness(dark: Sequence[tuple[str, int]]) -> str:
    """Say which 16-bit pictures use so few of their levels that they come out nearly black.

    Args:
      dark: names and highest levels.

    Example:
      >>> darkness([("x.png", 4095)])  # doctest: +ELLIPSIS
      '1 picture of 16 bits with no level above 4095 of 65535, x.png: nearly black as read here; if the levels have 12 bits...'
    """
    highest = max(level for _, level in dark)
    bits, n = max(8, highest.bit_length()), len(dark)
    first = ("" if n == 1 else "the first ") + short(printable(dark[0][0]), 200)
    return (
        f"{n} picture{'s' * (n > 1)} of 16 bits with no level above {highest} of 65535, {first}: nearly black as read here; "
        f"if the levels have {bits} bits, multiply them by {1 << (16 - bits)} and save the file{'s' * (n > 1)} again"
    )


def sides(size: Any, resize: Any) -> tuple[int, int]:
    """(size, resize) with the default filled in; DataError unless both are whole numbers and resize is no smaller."""
    if type(size) is not int or not 1 <= size <= 4096:
        raise DataError(f"size is {format_value(size)}; expected a whole number of pixels in 1..4096: write size=224")
    resize = round(size * 256 / 224) if resize is None else resize
    if type(resize) is not int or not size <= resize <= 8192:
        found = f"resize is {format_value(resize)}, the shorter side before size={size} is cut out"
        raise DataError(f"{found}; expected a whole number in {size}..8192: write resize={size} to cut out nothing")
    return size, resize


def decode(
    paths: Sequence[Path], out: np.ndarray, scale: tuple[int, int], watch: Callable[[int], Any] = lambda n: None
) -> tuple[list[str], dict[int, str], dict[int, int]]:
    """Decode pictures into the rows of `out` by a pool of threads.

    Args:
      paths: n files.
      out: uint8 [n, size, size, 3], which may lie on disk.
      scale: (size, resize).
      watch: called with the number of pictures done since it was last called.

    Returns:
      Each file's SHA-256 ("" where it could not be read); by their index, the reasons of those that are no pictures; and the
      highest levels of 16-bit pictures that use 14 bits or fewer.
    """
    digests, broken, dark = [""] * len(paths), {}, {}
    alone = threading.Lock()

    def one(at: int) -> None:
        try:
            found = paths[at].stat()
            with alone if found.st_size > _LARGE else nullcontext():
                data = _bytes(paths[at], found)
                digests[at] = hashlib.sha256(data).hexdigest()
                out[at] = square(data, *scale, lambda highest: dark.update({at: highest}))
        except Exception as error:  # whatever Pillow raises for bytes that it does not like
            broken[at] = _reason(error)

    with _quiet(), ThreadPoolExecutor(min(32, os.cpu_count() or 1), "jaxcnn-pictures") as pool:
        for first in range(0, len(paths), _BATCH):  # not all at once: a future each of a million files is a gigabyte
            for _ in pool.map(one, range(first, min(first + _BATCH, len(paths)))):
                watch(1)
    return digests, broken, dark


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Pillow's warnings, of strange tags and of sizes that are refused here anyway."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _reason(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return f"none of {', '.join(FORMATS)}"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return one_line(error, 120)


def _bytes(path: Path, found: os.stat_result) -> bytes:
    if not stat.S_ISREG(found.st_mode):  # a pipe or a device may never end
        raise ValueError("a folder" if stat.S_ISDIR(found.st_mode) else "no plain file")
    if not found.st_size:
        raise ValueError("empty")
    if found.st_size > _BYTES:
        raise ValueError(f"{found.st_size / 1e6:.0f} MB, more than {_BYTES / 1e6:.0f}")
    return path.read_bytes()
