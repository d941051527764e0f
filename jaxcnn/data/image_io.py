"""Image files of any kind as uint8 squares of RGB.

Images are set upright, put on white, resized and center-cropped, as published networks expect.
All files that cannot be read are listed in one error.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxcnn.arguments import check_choice, format_value
from jaxcnn.data.types import DataError, Scale, one_line, printable, short

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats that are read, by their names in Pillow."""
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Suffixes of files in these formats, in lower case."""
UNSUPPORTED_SUFFIXES = (
    *(".heic", ".heif", ".avif", ".jxl", ".jp2", ".dng"),
    *(".cr2", ".cr3", ".nef", ".arw", ".psd", ".svg"),
)
"""Suffixes of images that are not read. A folder with such a file is an error, so that no image is
lost unnoticed."""
MAX_PIXELS = 89_478_485
"""The largest image that is decoded, 268 MB as RGB. Pillow warns above the same number."""
_TRANSPOSES = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
"""EXIF orientation (CIPA DC-008, section 4.6.4) -> PIL's Image.Transpose that sets it upright."""

INTERPOLATIONS = ("bilinear", "bicubic")
"""Filters that images are resized with. Both have antialiasing."""

_MAX_FILE_BYTES = 1 << 29
"""The largest file that is read."""
_LARGE_FILE = 1 << 25
"""Bytes of a file above which no two are in memory at once."""
_BATCH = 512
"""Files that are submitted to the threads at a time."""

_MEMORY = 2 << 30
"""Bytes that all images being decoded may take together; a single image may take more."""
_SMALL = 1 << 23
"""Bytes below which an image is not counted."""
_STRIP = 1 << 22
"""Pixels that are converted at a time, where a conversion needs copies."""
_BITS = 14
"""16-bit images that use no more bits are probably of a camera or scanner of 8 to 14 bits."""

log = logging.getLogger("jaxcnn.data")


class ImageError(DataError):
    """Files that are not images.

    The message has their number and the first names.

    Attributes:
        broken: all files, as (name, reason).
    """

    def __init__(self, broken: Sequence[tuple[str, str]], fix: str = "fix or delete what is named"):
        self.broken, self._fix = tuple(broken), fix
        hint = " (the error's .broken has all)" if len(self.broken) > 3 else ""
        super().__init__(f"{format_broken(self.broken)}{hint}: {fix}")

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception is pickled with its message, which is not what this one is made of.
        return type(self), (self.broken, self._fix)


def format_broken(broken: Sequence[tuple[str, str]], limit: int = 3) -> str:
    """Format the number and first names of files that are not images.

    Args:
        broken: (name, reason) of each file.
        limit: the number of files that are named.

    Example:
        >>> format_broken([("a.jpg", "empty"), ("b.png", "empty")], limit=1)
        '2 files are not images that can be read: a.jpg (empty), and 1 more'
    """
    count = "1 file is not an image" if len(broken) == 1 else f"{len(broken)} files are not images"
    first = ", ".join(
        f"{short(printable(name), 200)} ({printable(reason)})" for name, reason in broken[:limit]
    )
    return f"{count} that can be read: {first}" + (
        f", and {len(broken) - limit} more" if len(broken) > limit else ""
    )


def unsupported_reason(name: str) -> str | None:
    """Return why an image of this filename is not read, or None."""
    suffix = os.path.splitext(name)[1].lower()
    return (
        f"{suffix[1:]} is not read here; convert it to JPEG"
        if suffix in UNSUPPORTED_SUFFIXES
        else None
    )


def load_image(
    path: str | os.PathLike[str],
    size: int = 224,
    resize: int | None = None,
    *,
    interpolation: str = "bilinear",
) -> np.ndarray:
    """Load an image as published networks are tested on it.

    The shorter side is resized, then the center is cropped. JPEG, PNG, WebP, GIF, BMP and TIFF are
    recognized by their bytes, not by their names. Only the first frame is read. The EXIF tag sets
    the image upright. Gray, palette and CMYK become RGB, and transparent pixels lie on white.
    16-bit levels are divided by 257. If all of them are below 16384, as from a 12-bit camera, a
    warning follows. Color profiles are ignored.

    Args:
        path: of the file.
        size: side of the square, in pixels.
        resize: length of the shorter side. None is size * 256 / 224, as in torchvision and timm
            (224 of 256 pixels). `resize=size` crops nothing from a square.
        interpolation: "bilinear" or "bicubic", both with antialiasing. Each published network was
            tested with one of them.

    Returns:
        uint8 [size, size, 3].

    Raises:
        ImageError: the file is not an image, is cut short, or has more than 89,478,485 pixels. The
            number of pixels is checked before the image is decoded.

    Example:
        >>> from pathlib import Path
        >>> import sklearn.datasets
        >>> photograph = Path(sklearn.datasets.__file__).parent / "images" / "china.jpg"
        >>> load_image(photograph, size=64).shape
        (64, 64, 3)

    References:
        https://docs.pytorch.org/vision/stable/models.html (its presets: Resize, then CenterCrop).
    """
    return load_images([path], size, resize, interpolation=interpolation)[0]


def load_images(
    paths: Sequence[str | os.PathLike[str]],
    size: int = 224,
    resize: int | None = None,
    *,
    interpolation: str = "bilinear",
) -> np.ndarray:
    """Load several images as `load_image` does.

    Args:
        paths: of n files.
        size: side of the square, in pixels.
        resize: length of the shorter side.
        interpolation: "bilinear" or "bicubic".

    Returns:
        uint8 [n, size, size, 3].

    Raises:
        ImageError: some files cannot be read; the error lists all of them.
    """
    scale = check_sizes(size, resize, interpolation)
    images = np.empty((len(paths), size, size, 3), np.uint8)
    _, broken, dark = decode(list(map(Path, paths)), images, scale)
    if broken:
        raise ImageError([(str(paths[index]), reason) for index, reason in sorted(broken.items())])
    if dark:
        log.warning(
            "%s",
            darkness_warning([(str(paths[index]), level) for index, level in sorted(dark.items())]),
        )
    return images


def resize_image(
    image: np.ndarray,
    size: int = 224,
    resize: int | None = None,
    *,
    interpolation: str = "bilinear",
) -> np.ndarray:
    """Resize and crop an array as `load_image` does with the image of a file.

    Args:
        image: uint8 [h, w, c] of 1, 3 or 4 channels, or [h, w]. The fourth channel is opacity.
        size: side of the square, in pixels.
        resize: length of the shorter side before the center is cropped; None is size * 256 / 224.
        interpolation: "bilinear" or "bicubic".

    Returns:
        uint8 [size, size, 3].

    Raises:
        DataError: it is another array, has too many pixels, or a size is invalid.

    Example:
        >>> resize_image(np.zeros((30, 40), np.uint8), size=8).shape
        (8, 8, 3)
    """
    from PIL import Image

    scale = check_sizes(size, resize, interpolation)
    # Of JAX's arrays too, of which random keys cannot be converted.
    dtype, shape = getattr(image, "dtype", type(image).__name__), getattr(image, "shape", ())
    is_image = len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4))
    if dtype != np.uint8 or not is_image or 0 in shape:
        raise DataError(
            f"an image is {dtype} {list(shape)}; expected uint8 [h, w, c] of 1, 3 "
            "or 4 channels, in 0..255: write np.uint8(255 * image) for floats in 0..1"
        )
    array = np.asarray(image)
    if shape[2:] == (1,):
        array = array[..., 0]
    try:
        _check_num_pixels((array.shape[1], array.shape[0]))
        return np.asarray(_resize_and_crop(rgb(Image.fromarray(array)), scale))
    except ValueError as error:
        raise DataError(f"an image cannot be resized: {error}; make it smaller") from None


LUMINANCE = np.array([0.2126, 0.7152, 0.0722])
"""Weights of red, green and blue (ITU-R BT.709)."""


def to_gray(images: np.ndarray) -> np.ndarray:
    """Return the luminance of RGB images.

    Args:
        images: uint8 [..., 3].

    Returns:
        uint8 [..., 1].

    Example:
        >>> to_gray(np.array([[0, 255, 0], [7, 7, 7]], np.uint8)).ravel().tolist()
        [182, 7]
    """
    return np.round(images @ LUMINANCE)[..., None].astype(np.uint8)


def darkness_warning(dark: Sequence[tuple[str, int]]) -> str:
    """Return a warning about 16-bit images that come out nearly black.

    Such images use only the lower part of their levels.

    Args:
        dark: names and highest levels.

    Example:
        >>> darkness_warning([("x.png", 4095)])  # doctest: +ELLIPSIS
        '1 image of 16 bits with no level above 4095 of 65535, x.png: nearly black as...'
    """
    highest = max(level for _, level in dark)
    bits, n = max(8, highest.bit_length()), len(dark)
    first = ("" if n == 1 else "the first ") + short(printable(dark[0][0]), 200)
    return (
        f"{n} image{'s' * (n > 1)} of 16 bits with no level above {highest} of 65535, {first}: "
        f"nearly black as read here; if the levels have {bits} bits, "
        f"multiply them by {1 << (16 - bits)} and save the file{'s' * (n > 1)} again"
    )


def check_sizes(size: Any, resize: Any, interpolation: Any = "bilinear") -> Scale:
    """Return the `Scale`, with the default of `resize` filled in.

    Raises:
        ArgumentError: there is no such interpolation.
        DataError: a size is not an integer in its range, or `resize` is smaller than `size`.
    """
    if type(size) is not int or not 1 <= size <= 4096:
        raise DataError(
            f"size is {format_value(size)}; expected a whole number of pixels in 1..4096: write "
            "size=224"
        )
    resize = round(size * 256 / 224) if resize is None else resize
    if type(resize) is not int or not size <= resize <= 8192:
        problem = (
            f"resize is {format_value(resize)}, the shorter side before size={size} is cut out"
        )
        raise DataError(
            f"{problem}; expected a whole number in {size}..8192: write resize={size} to cut out "
            "nothing"
        )
    return Scale(size, resize, check_choice("interpolation", interpolation, INTERPOLATIONS))


def decode(
    paths: Sequence[Path],
    images: np.ndarray,
    scale: Scale,
    on_progress: Callable[[int], Any] = lambda n: None,
) -> tuple[list[str], dict[int, str], dict[int, int]]:
    """Decode image files into the rows of `images`, with several threads.

    Args:
        paths: n files.
        images: uint8 [n, size, size, 3], which may lie on disk. It is filled.
        scale: how they are resized and cropped.
        on_progress: called with the number of files finished since the last call.

    Returns:
        digests: SHA-256 of each file, "" where it could not be read.
        broken: index of each file that is not an image -> reason.
        dark: index of each 16-bit image that uses 14 bits or fewer -> highest level.
    """
    digests, broken, dark = [""] * len(paths), {}, {}
    large_file_lock = threading.Lock()

    def decode_one(index: int) -> None:
        try:
            status = paths[index].stat()
            with large_file_lock if status.st_size > _LARGE_FILE else nullcontext():
                data = _read_bytes(paths[index], status)
                digests[index] = hashlib.sha256(data).hexdigest()
                images[index] = decode_square(
                    data, scale, lambda highest: dark.update({index: highest})
                )
        # Pillow raises errors of many types for invalid bytes.
        except Exception as error:
            broken[index] = _reason(error)

    with (
        _without_pillow_warnings(),
        ThreadPoolExecutor(min(32, os.cpu_count() or 1), "jaxcnn-images") as pool,
    ):
        # In batches, since the futures of a million files take a gigabyte.
        for start in range(0, len(paths), _BATCH):
            for _ in pool.map(decode_one, range(start, min(start + _BATCH, len(paths)))):
                on_progress(1)
    return digests, broken, dark


@contextmanager
def _without_pillow_warnings() -> Iterator[None]:
    """Ignore Pillow's warnings of unknown tags and large images.

    Images that are too large are an error here anyway.
    """
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


def _read_bytes(path: Path, status: os.stat_result) -> bytes:
    # Reading a pipe or a device may never end.
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("a folder" if stat.S_ISDIR(status.st_mode) else "no plain file")
    if not status.st_size:
        raise ValueError("empty")
    if status.st_size > _MAX_FILE_BYTES:
        raise ValueError(f"{status.st_size / 1e6:.0f} MB, more than {_MAX_FILE_BYTES / 1e6:.0f}")
    return path.read_bytes()


# Decoding of one image.


class Budget:
    """A number of bytes that threads share.

    A thread that would exceed it waits, unless no other thread holds any.

    Args:
        total: bytes.

    Example:
        >>> budget = Budget(10)
        >>> with budget.reserve(100):
        ...     budget.used
        100
        >>> budget.used
        0
    """

    def __init__(self, total: int):
        self.total, self.used = total, 0
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Hold `size` bytes inside the `with` statement.

        A thread must hold only one reservation at a time.
        """
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


def decode_square(
    data: bytes, scale: Scale, on_dark: Callable[[int], object] = lambda highest: None
) -> np.ndarray:
    """Decode the bytes of an image file as `load_image` describes.

    Args:
        data: content of the file.
        scale: how it is resized and cropped.
        on_dark: called with the highest level of a 16-bit image that uses 14 bits or fewer.

    Returns:
        uint8 [size, size, 3].

    Raises:
        ValueError: the image is too large, or its mode is not supported. Pillow raises errors of
            its own.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            # The size is in the header, so that nothing is decoded before this check.
            _check_num_pixels(image.size)
            num_bytes = len(data) + _decoding_bytes(image, scale.resize)
            with _BUDGET.reserve(num_bytes) if num_bytes > _SMALL else nullcontext():
                pixels = rgb(image, on_dark)
                transpose = _upright_transpose(image)
                if pixels is not image:
                    # Frees the original pixels, which are no longer needed.
                    image.close()
                return np.asarray(
                    _resize_and_crop(
                        pixels if transpose is None else pixels.transpose(transpose), scale
                    )
                )
    except Image.DecompressionBombError:
        raise ValueError(f"more than {MAX_PIXELS:,} pixels") from None


def _check_num_pixels(size: tuple[int, int], subject: str = "it has") -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"{subject} {size[0]} x {size[1]} pixels, more than {MAX_PIXELS:,}")


def _decoding_bytes(image: Image.Image, resize: int) -> int:
    """Return the bytes that decoding takes.

    These are two copies of the image at Pillow's 4 bytes a pixel, and the resized image.
    """
    width, height = image.size
    resized = resize * resize * max(width, height) // max(1, min(width, height))
    return 8 * width * height + 4 * resized


def _upright_transpose(image: Image.Image) -> Image.Transpose | None:
    """Return the transpose that EXIF tags require, or None."""
    from PIL import Image

    try:
        transpose = _TRANSPOSES.get(image.getexif().get(0x0112, 1))
    # Damaged tags say nothing about the pixels.
    except Exception:
        transpose = None
    return None if transpose is None else Image.Transpose(transpose)


def rgb(image: Image.Image, on_dark: Callable[[int], object] = lambda highest: None) -> Image.Image:
    """Convert an image of any of Pillow's modes to RGB.

    Conversions that need copies are made in strips. So a large image is in memory at most twice.

    Args:
        image: any image.
        on_dark: as in `decode_square`.

    Raises:
        ValueError: the range of the mode is not known (32 bits, LAB).
    """
    from PIL import Image

    gray16 = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    if image.mode in ("I", "F", "LAB") and not gray16:
        raise ValueError(f"its pixels are of Pillow's mode {image.mode}; save it with 8 or 16 bits")
    color16 = not gray16 and any(";16" in str(tile[-1]) for tile in getattr(image, "tile", ()))
    image.load()
    if image.mode == "RGB" and "transparency" not in image.info:
        converted, highest = image, 0
    else:
        rows = max(1, _STRIP // image.width)
        if rows >= image.height:
            converted, highest = _strip_to_rgb(image, image, gray16)
        else:
            converted, highest = Image.new("RGB", image.size), 0
            for top in range(0, image.height, rows):
                strip = image.crop((0, top, image.width, min(top + rows, image.height)))
                part, level = _strip_to_rgb(strip, image, gray16)
                converted.paste(part, (0, top))
                highest = max(highest, level)
    if color16:
        # Pillow stores only the upper 8 bits of these.
        bands = np.reshape(image.getextrema(), (-1, 2))[: 1 if image.mode in ("L", "LA") else 3]
        highest = 257 * int(bands[:, 1].max())
    if 0 < highest < 1 << _BITS:
        on_dark(highest)
    return converted


def _strip_to_rgb(strip: Image.Image, whole: Image.Image, gray16: bool) -> tuple[Image.Image, int]:
    """Convert a strip of an image to RGB; return its highest level.

    The level is 0 unless the image has 16 bits of gray.
    """
    from PIL import Image, ImageChops

    if gray16:
        levels = np.asarray(strip).astype(np.uint32)
        # 65535 = 255 * 257. Pillow's own conversion would clip at 255.
        scaled = (levels + 128) // 257
        return Image.fromarray(scaled.astype(np.uint8)).convert("RGB"), int(levels.max())
    if strip.mode == "CMYK" and whole.format in ("JPEG", "MPO") and "adobe" not in whole.info:
        # Adobe stores inverted ink. Pillow treats every CMYK JPEG as one of Adobe's.
        strip = ImageChops.invert(strip)
    if strip.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in strip.info:
        strip = strip.convert("RGBA")
        white = Image.new("RGBA", strip.size, "white")
        return Image.alpha_composite(white, strip).convert("RGB"), 0
    return strip.convert("RGB"), 0


def _resize_and_crop(image: Image.Image, scale: Scale) -> Image.Image:
    """Apply torchvision's Resize(resize) and CenterCrop(size), with the same rounding."""
    from PIL import Image

    size, resize, interpolation = scale
    width, height = image.size
    short_side = min(width, height)
    new_size = (resize * width // short_side, resize * height // short_side)
    _check_num_pixels(new_size, f"resized to {resize} on the shorter side it has")
    if new_size != image.size:
        image = image.resize(new_size, Image.Resampling[interpolation.upper()])
    left, top = (round((side - size) / 2) for side in new_size)
    return image.crop((left, top, left + size, top + size))
