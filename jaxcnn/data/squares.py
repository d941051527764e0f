"""One picture of any kind as a square of RGB: upright, on white, resized and cut as published networks expect."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
PIXELS = 89_478_485
"""The largest picture that is decoded, 268 MB as RGB; Pillow warns above the same number."""
_TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
"""EXIF's orientation (CIPA DC-008, section 4.6.4) -> PIL's Image.Transpose that sets the picture upright."""


def square(data: bytes, size: int, resize: int) -> np.ndarray:
    """The bytes of a file as uint8 [size, size, 3], as `jaxcnn.data.picture` says; ValueError or Pillow's own errors."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _bounded(image.size)  # told by the header alone
            return np.asarray(_cut(_upright(rgb(image), image), size, resize))
    except Image.DecompressionBombError:
        raise ValueError(f"more than {PIXELS:,} pixels") from None


def _bounded(size: tuple[int, int], what: str = "it has") -> None:
    if size[0] * size[1] > PIXELS:
        raise ValueError(f"{what} {size[0]} x {size[1]} pixels, more than {PIXELS:,}")


def _upright(pixels: Image.Image, image: Image.Image) -> Image.Image:
    """`pixels` turned as the tags of `image` say."""
    from PIL import Image

    try:
        turn = _TURNS.get(image.getexif().get(0x0112, 1))
    except Exception:  # the tags are damaged, which says nothing of the pixels
        turn = None
    return pixels if turn is None else pixels.transpose(Image.Transpose(turn))


def rgb(image: Image.Image) -> Image.Image:
    """A picture of any of Pillow's modes as RGB; ValueError for those whose range is not known (32 bits, LAB)."""
    from PIL import Image, ImageChops

    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        levels = (np.asarray(image).astype(np.uint32) + 128) // 257  # 65535 = 255 * 257; Pillow would clip at 255
        return Image.fromarray(levels.astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F", "LAB"):
        raise ValueError(f"its pixels are of Pillow's mode {image.mode}; save it with 8 or 16 bits")
    if image.mode == "CMYK" and image.format in ("JPEG", "MPO") and "adobe" not in image.info:
        image = ImageChops.invert(image)  # Adobe writes ink inverted, and Pillow takes every CMYK JPEG for Adobe's
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


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
