"""One picture of any kind as a square of RGB: upright, on white, resized and cut as published networks expect."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
PIXELS = 89_478_485
"""The largest picture that is decoded, 268 MB as RGB; Pillow warns above the same number."""
_TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
"""EXIF's orientation (CIPA DC-008, section 4.6.4) -> PIL's Image.Transpose that sets the picture upright."""


_MEMORY = 2 << 30
"""Bytes that all pictures which are being decoded may take at once; a single one may take more."""
_SMALL = 1 << 23
"""Bytes below which a picture is not counted."""
_STRIP = 1 << 22
"""Pixels that are converted at a time, where a conversion needs copies."""
_BITS = 14
"""16-bit pictures whose levels need no more bits than this are probably of a camera or scanner of 8 to 14 bits."""


class Budget:
    """A number of bytes that threads share: who would exceed it waits, unless nobody else has any.

    Example:
      >>> budget = Budget(10)
      >>> with budget.of(100):
      ...     budget.used
      100
      >>> budget.used
      0
    """

    def __init__(self, total: int):
        self.total, self.used = total, 0
        self._changed = threading.Condition()

    @contextmanager
    def of(self, size: int) -> Iterator[None]:
        """Hold `size` bytes of it inside the `with` statement; a thread must hold one part at a time only."""
        with self._changed:
            self._changed.wait_for(lambda: not self.used or self.used + size <= self.total)
            self.used += size
        try:
            yield
        finally:
            with self._changed:
                self.used -= size
                self._changed.notify_all()


_BUDGET = Budget(_MEMORY)


def square(data: bytes, size: int, resize: int, dark: Callable[[int], object] = lambda highest: None) -> np.ndarray:
    """The bytes of a file as uint8 [size, size, 3], as `jaxcnn.data.picture` says; ValueError or Pillow's own errors.

    `dark` is called with the highest level of a 16-bit picture that uses 14 bits or fewer.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _bounded(image.size)  # told by the header alone
            needed = len(data) + _needed(image, resize)
            with _BUDGET.of(needed) if needed > _SMALL else nullcontext():
                pixels = rgb(image, dark)
                turn = _turn(image)
                if pixels is not image:
                    image.close()  # its pixels are no longer needed
                return np.asarray(_cut(pixels if turn is None else pixels.transpose(turn), size, resize))
    except Image.DecompressionBombError:
        raise ValueError(f"more than {PIXELS:,} pixels") from None


def _bounded(size: tuple[int, int], what: str = "it has") -> None:
    if size[0] * size[1] > PIXELS:
        raise ValueError(f"{what} {size[0]} x {size[1]} pixels, more than {PIXELS:,}")


def _needed(image: Image.Image, resize: int) -> int:
    """Bytes that decoding takes: the picture as Pillow keeps it, twice, of 4 bytes a pixel, and what is resized."""
    width, height = image.size
    resized = resize * resize * max(width, height) // max(1, min(width, height))
    return 8 * width * height + 4 * resized


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What the tags of `image` say to set it upright."""
    from PIL import Image

    try:
        turn = _TURNS.get(image.getexif().get(0x0112, 1))
    except Exception:  # the tags are damaged, which says nothing of the pixels
        turn = None
    return None if turn is None else Image.Transpose(turn)


def rgb(image: Image.Image, dark: Callable[[int], object] = lambda highest: None) -> Image.Image:
    """A picture of any of Pillow's modes as RGB; ValueError for those whose range is not known (32 bits, LAB).

    Conversions that need copies are made in strips, so that a large picture is in memory twice at most.
    """
    from PIL import Image

    grey16 = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    if image.mode in ("I", "F", "LAB") and not grey16:
        raise ValueError(f"its pixels are of Pillow's mode {image.mode}; save it with 8 or 16 bits")
    colour16 = not grey16 and any(";16" in str(tile[-1]) for tile in getattr(image, "tile", ()))
    image.load()
    if image.mode == "RGB" and "transparency" not in image.info:
        converted, highest = image, 0
    else:
        rows = max(1, _STRIP // image.width)
        if rows >= image.height:
            converted, highest = _rgb(image, image, grey16)
        else:
            converted, highest = Image.new("RGB", image.size), 0
            for top in range(0, image.height, rows):
                strip = image.crop((0, top, image.width, min(top + rows, image.height)))
                part, level = _rgb(strip, image, grey16)
                converted.paste(part, (0, top))
                highest = max(highest, level)
    if colour16:  # of which Pillow keeps the upper 8 bits
        bands = np.reshape(image.getextrema(), (-1, 2))[: 1 if image.mode in ("L", "LA") else 3]
        highest = 257 * int(bands[:, 1].max())
    if 0 < highest < 1 << _BITS:
        dark(highest)
    return converted


def _rgb(part: Image.Image, whole: Image.Image, grey16: bool) -> tuple[Image.Image, int]:
    """A strip of a picture as RGB, and its highest level if it has 16 bits of grey, else 0."""
    from PIL import Image, ImageChops

    if grey16:
        levels = np.asarray(part).astype(np.uint32)
        scaled = (levels + 128) // 257  # 65535 = 255 * 257; Pillow would clip at 255
        return Image.fromarray(scaled.astype(np.uint8)).convert("RGB"), int(levels.max())
    if part.mode == "CMYK" and whole.format in ("JPEG", "MPO") and "adobe" not in whole.info:
        part = ImageChops.invert(part)  # Adobe writes ink inverted, and Pillow takes every CMYK JPEG for Adobe's
    if part.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in part.info:
        part = part.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", part.size, "white"), part).convert("RGB"), 0
    return part.convert("RGB"), 0


def _cut(image: Image.Image, size: int, resize: int) -> Image.Image:
    """Torchvision's Resize(resize) and CenterCrop(size), rounding included."""
    from PIL import Image

    width, height = image.size
    short_side = min(width, height)
    new = (resize * width // short_side, resize * height // short_side)
    _bounded(new, f"resized to {resize} on the shorter side it has")
    if new != image.size:
        image = image.resize(new, Image.Resampling.BILINEAR)
    left, top = (round((side - size) / 2) for side in new)
    return image.crop((left, top, left + size, top + size))
