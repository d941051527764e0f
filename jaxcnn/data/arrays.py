"""Data sets from a user's own arrays."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxcnn.arguments import check_integer, format_value
from jaxcnn.data.checking import class_names_error, verify_dataset, verify_images
from jaxcnn.data.types import (
    DataError,
    Dataset,
    Split,
    channel_statistics,
    label_arrays,
    map_labels,
    short,
)

log = logging.getLogger("jaxcnn.data")

_CHUNK = 1024
"""Images that are converted at a time."""


def dataset(
    train: Any,
    test: Any = None,
    validation: Any = None,
    num_classes: int | None = None,
    *,
    classes: Sequence[str] | None = None,
    name: str = "arrays",
) -> Dataset:
    """Return a data set of a user's own arrays.

    What is unambiguous is converted, and one warning names all conversions. Anything else is an
    error of one line. Arrays may be NumPy's or JAX's, memory maps or nested lists.

    Images are [n, h, w] or [n, h, w, c]:

    - uint8, which stay as they are. A memory map stays on disk, and is streamed.
    - bool: False is black, True is white.
    - Other integers: whole numbers 0..255. uint16 with larger ones is 0..65535, divided by 257.
    - Floats: 0..1, rounded to 8 bits; or whole numbers 0..255.

    Labels become one of these:

    - int32 [n], from integers or bools of any size, from a column [n, 1], from one-hot rows [n, k],
      or from text, whose sorted values are the class names.
    - Masks int32 [n, h, w], from integers or bools. Each pixel has a class. Masks in which some
      have none (255 or -1, say) are targets of another loss: write `{"mask": masks}`.
    - Targets of other losses: floats, several labels of an image, [n, k], or a dict or tuple of
      arrays. They keep their shapes, in at most 32 bits, and have no classes unless `num_classes`
      or `classes` is there. With one of these, floats [n] that are all whole are classes: write a
      column [n, 1] for targets.

    Args:
      train: a pair (images, labels), or a `Split`.
      test: the same, or None for none. Then evaluate on "validation".
      validation: the same, or None for none.
      num_classes: the number of classes; None is one more than the largest training label.
      classes: names of the classes, in the order of the labels. Text labels are among them. None is
        "0", "1", ..., or the sorted text labels.
      name: of the data set, which records have.

    Returns:
      The data set, with mean and standard deviation of the training images.

    Raises:
      DataError: an array cannot be read in exactly one way. Such as images with NaN or of several
        shapes, or labels that are out of range or of another number than the images.
      ArgumentError: `num_classes` is no number of classes.

    Example:
      >>> images = np.arange(4 * 8 * 8).reshape(4, 8, 8) % 256
      >>> data = dataset((images, ["cat", "dog", "dog", "cat"]), (images, ["dog"] * 4))
      >>> data.train.images.shape, data.train.images.dtype, data.classes
      ((4, 8, 8, 1), dtype('uint8'), ('cat', 'dog'))
      >>> data.train.labels.tolist(), data.test.labels.tolist()
      ([0, 1, 1, 0], [1, 1, 1, 1])

      A loss of masks in which 255 marks pixels without a class:

      >>> import jax.numpy as jnp, optax
      >>> def of_known_pixels(outputs, batch):
      ...     mask = batch.labels["mask"]
      ...     is_known = mask != 255
      ...     classes = jnp.where(is_known, mask, 0)
      ...     losses = optax.softmax_cross_entropy_with_integer_labels(outputs, classes)
      ...     return jnp.where(is_known, losses, 0), {}
      >>> masks = np.where(images < 9, 255, images % 3)
      >>> data = dataset((images, {"mask": masks}), num_classes=3)
      >>> data.train.labels["mask"].shape, data.num_classes
      ((4, 8, 8), 3)
    """
    if num_classes is not None:
        num_classes = check_integer("num_classes", num_classes, 2, example=10)
    names = _check_classes(classes, num_classes)
    parts = {
        part: _pair(part, value)
        for part, value in (("train", train), ("test", test), ("validation", validation))
        if value is not None or part == "train"
    }
    raw_images = {part: _to_array(f"{part} images", pair[0]) for part, pair in parts.items()}
    raw_labels = {part: _to_labels(f"{part} labels", pair[1]) for part, pair in parts.items()}
    for part, images in raw_images.items():
        _check_counts(part, images, raw_labels[part])
    changes: list[str] = []
    images = _convert_images(raw_images, changes)
    labels, names = _convert_labels(
        raw_labels, {part: array.shape[:3] for part, array in images.items()},
        num_classes, names, changes,
    )  # fmt: skip
    empty = Split(
        np.zeros((0, *images["train"].shape[1:]), np.uint8),
        map_labels(lambda array: np.zeros((0, *array.shape[1:]), array.dtype), labels["train"]),
    )
    splits = {part: Split(images[part], labels[part]) for part in images}
    for part, split in splits.items():
        verify_images(f"{part} images", split.images, images["train"].shape[1:])
    mean, std = channel_statistics(images["train"])
    data = Dataset(
        name, splits["train"], splits.get("validation", empty), splits.get("test", empty),
        names, mean, std,
    )  # fmt: skip
    verify_dataset(data)
    if changes:
        log.warning("dataset %s: %s", short(name), "; ".join(dict.fromkeys(changes)))
    return data


def _check_classes(classes: Any, num_classes: int | None) -> tuple[str, ...] | None:
    """Return the names of the classes, or None.

    Raises:
      DataError: they are no different names, or not `num_classes`.
    """
    if classes is None:
        return None
    is_sequence = isinstance(classes, (tuple, list)) and len(classes) > 1
    if not is_sequence or not all(isinstance(item, str) for item in classes):
        raise class_names_error(classes, "leave out classes")
    if len(set(classes)) < len(classes):
        twice = next(item for item in classes if classes.count(item) > 1)
        raise DataError(f"classes has {format_value(twice)} twice; expected different names")
    if num_classes not in (None, len(classes)):
        raise DataError(
            f"classes has {len(classes)} names and num_classes is {num_classes}; expected as many: "
            f"name all {num_classes} classes, or leave out num_classes"
        )
    return tuple(map(str, classes))


# ---------------------------------------------------------------- parts


def _pair(part: str, value: Any) -> tuple[Any, Any]:
    """Return images and labels of a part."""
    expected = f"expected a pair (images, labels): write {part}="
    kind = type(value)
    origin = f"{kind.__module__}.{kind.__name__}"
    if isinstance(value, Dataset):
        raise DataError(f"{part} is a Dataset; {expected}data.{part}")
    if isinstance(value, (Split, tuple, list)):
        if len(value) == 2:
            return value[0], value[1]
        raise DataError(f"{part} is a {kind.__name__} of {len(value)}; {expected}(images, labels)")
    if isinstance(value, Mapping):
        keys = [str(key) for key in value]
        if any(key in ("train", "test", "validation") for key in keys):
            raise DataError(
                f"{part} is a {kind.__name__} of {_list(keys)}; {expected}"
                f"(data[{part!r}]['image'], data[{part!r}]['label']) with the names of its columns"
            )
        image, label = _columns(keys)
        raise DataError(
            f"{part} is a {kind.__name__} of {_list(keys)}; {expected}"
            f"(data[{image!r}], data[{label!r}])"
        )
    if hasattr(value, "column_names"):
        image, label = _columns([str(column) for column in value.column_names])
        raise DataError(
            f"{part} is a {origin}; {expected}(np.stack([np.asarray(image) for image in "
            f"data[{image!r}]]), data[{label!r}])"
        )
    if hasattr(value, "as_numpy_iterator"):
        raise DataError(
            f"{part} is a {origin}; {expected}tuple(map(np.stack, "
            "zip(*data.unbatch().as_numpy_iterator()))), without unbatch() if it has no batches"
        )
    if not _is_array(value) and hasattr(value, "__getitem__") and hasattr(value, "__len__"):
        raise DataError(f"{part} is a {origin}; {expected}tuple(map(np.stack, zip(*data)))")
    raise DataError(f"{part} is {format_value(value)}; {expected}(images, labels)")


def _columns(keys: Sequence[str]) -> tuple[str, str]:
    """Return the likely names of images and labels among keys."""

    def first(choices: tuple[str, ...], default: str) -> str:
        return next((key for choice in choices for key in keys if choice in key.lower()), default)

    return first(("image", "img", "pixel", "x"), "image"), first(("label", "class", "y"), "label")


def _list(keys: Sequence[str]) -> str:
    return short(", ".join(keys), 60) or "nothing"


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _to_array(name: str, value: Any) -> np.ndarray:
    """Return an array as NumPy's.

    Raises:
      DataError: it is no array, or its entries have several shapes.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise DataError(f"{name} are a masked array; expected all entries: write images.filled(0)")
    if isinstance(value, np.ndarray):
        array = value
    else:
        is_readable = isinstance(value, (list, tuple)) or hasattr(value, "__array__")
        if not is_readable or isinstance(value, str):
            raise DataError(
                f"{name} are {format_value(value)}; expected an array: write np.asarray(...)"
            )
        try:
            array = np.asarray(value)
        # Entries of several shapes, or an array on another device.
        except Exception as error:
            raise DataError(
                f"{name} cannot be one array ({short(' '.join(str(error).split()), 120)}); "
                "expected entries of one shape: resize or crop them, and write np.stack(...)"
            ) from None
    # The kind of bfloat16 is none of NumPy's.
    if array.dtype.name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        return array.astype(np.float32)
    return array


def _to_labels(name: str, value: Any) -> Any:
    """Return labels as an array, or a dict or tuple of them."""
    if value is None:
        raise DataError(
            f"{name} are None; expected an entry for each image: write (images, "
            "np.zeros(len(images), np.float32)) for a loss that uses none"
        )
    is_tree = isinstance(value, dict) or (
        isinstance(value, tuple) and not all(map(_is_scalar, value))
    )
    if is_tree:
        return map_labels(lambda leaf: _to_array(f"{name} part", leaf), value)
    array = _to_array(name, value)
    if array.dtype == object and all(isinstance(item, (str, bytes)) for item in array.ravel()):
        array = np.array([_text(item) for item in array.ravel()]).reshape(array.shape)
    if array.dtype.kind == "S":
        array = np.array([_text(item) for item in array.ravel()]).reshape(array.shape)
    return array


def _is_scalar(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return False
    return isinstance(value, (str, bytes, bool, int, float, np.generic)) or np.shape(value) == ()


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _check_counts(part: str, images: np.ndarray, labels: Any) -> None:
    """Check that a part has images and an entry of the labels for each."""
    if not images.ndim or not len(images):
        raise DataError(
            f"{part} images are none at all; expected at least one: leave {part} out if there are "
            "none"
        )
    for path, array in label_arrays(labels):
        count = len(array) if array.ndim else 0
        if count != len(images):
            raise DataError(
                f"{part} has {len(images)} images and {count} {path}; expected as many of both: "
                "write images and labels in one order"
            )


# ---------------------------------------------------------------- images


class _Range(NamedTuple):
    """Range of the pixels of all parts of one dtype."""

    low: float
    high: float
    is_whole: bool
    """Whether all are whole numbers."""


def _convert_images(raw: dict[str, np.ndarray], changes: list[str]) -> dict[str, np.ndarray]:
    """Return images uint8 [n, h, w, c]; append what was converted to `changes`."""
    arrays = {}
    for part, array in raw.items():
        name = f"{part} images"
        if array.dtype.kind not in "uifb":
            raise DataError(
                f"{name} are {array.dtype}; expected numbers, uint8 [n, h, w, c]: make all of one "
                "shape, then np.stack them"
            )
        # The last axis of a gray image is seldom as short as channels are.
        if array.ndim == 3 and array.shape[-1] not in (1, 3):
            changes.append("images [n, h, w] got an axis of one channel")
            array = array[..., None]
        # The layout is checked as that of bytes.
        verify_images(name, np.broadcast_to(np.uint8(0), array.shape))
        arrays[part] = array
    shapes = {part: array.shape[1:] for part, array in arrays.items()}
    for part, shape in shapes.items():
        if shape != shapes["train"]:
            raise DataError(
                f"{part} images have shape {shape}; expected {shapes['train']}, as the train "
                "images: resize or crop them to that"
            )
    # A dark part does not say by itself how its numbers are meant.
    kinds = {part: np.dtype(array.dtype).newbyteorder("=") for part, array in arrays.items()}
    groups: dict[Any, list[str]] = {}
    for part, dtype in kinds.items():
        groups.setdefault(dtype.kind if dtype.kind == "f" else dtype, []).append(part)
    converted = {}
    for group in groups.values():
        if kinds[group[0]] == np.uint8:
            converted |= {part: arrays[part] for part in group}
            continue
        ranges = [_pixel_range(part, arrays[part]) for part in group]
        _check_one_scale(dict(zip(group, ranges, strict=True)))
        total = _Range(
            min(each.low for each in ranges), max(each.high for each in ranges),
            all(each.is_whole for each in ranges),
        )  # fmt: skip
        scale, description = _conversion(group[0], kinds[group[0]], total)
        changes.append(f"images {kinds[group[0]]} became uint8 ({description})")
        converted |= {part: _scale(arrays[part], scale) for part in group}
    return {part: converted[part] for part in arrays}


def _check_one_scale(ranges: dict[str, _Range]) -> None:
    """Check that no part has fractions up to 1 where another has larger numbers."""
    large = next((part for part, each in ranges.items() if each.high > 1), None)
    for part, each in ranges.items():
        if large is not None and each.high <= 1 and not each.is_whole:
            raise DataError(
                f"{part} images are in {each.low:.5g}..{each.high:.5g} and {large} images in "
                f"{ranges[large].low:.5g}..{ranges[large].high:.5g}; expected one scale in all "
                f"parts: write {large} images / 255"
            )


def _pixel_range(part: str, images: np.ndarray) -> _Range:
    """Return the range of the pixels, read a chunk at a time.

    Raises:
      DataError: some are not finite, or negative.
    """
    low, high, is_whole = math.inf, -math.inf, True
    for start in range(0, len(images), _CHUNK):
        chunk = images[start : start + _CHUNK]
        if chunk.dtype.kind == "f" and not np.isfinite(chunk).all():
            index = start + next(i for i, image in enumerate(chunk) if not np.isfinite(image).all())
            raise DataError(
                f"{part} images have NaN or infinite pixels, the first in image {index}; expected "
                "finite numbers: fix that image, or leave it out"
            )
        low, high = min(low, float(chunk.min())), max(high, float(chunk.max()))
        is_whole = is_whole and (chunk.dtype.kind != "f" or bool((chunk == np.floor(chunk)).all()))
    if low < 0:
        raise DataError(
            f"{part} images are {images.dtype} in {low:.5g}..{high:.5g}; expected no negative "
            "pixels: give them as they were before they were normalized"
        )
    return _Range(low, high, is_whole)


def _conversion(part: str, dtype: np.dtype, pixels: _Range) -> tuple[float, str]:
    """Return the factor to 0..255, and its description.

    Raises:
      DataError: the pixels can be read in several ways.
    """
    if dtype.kind == "b":
        return 255, "True is 255"
    if dtype.kind == "f" and pixels.high <= 1:
        return 255, "0..1 times 255, rounded to 8 bits"
    actual = f"{part} images are {dtype} in {pixels.low:.5g}..{pixels.high:.5g}"
    if pixels.high <= 1:
        raise DataError(
            f"{actual}, which may mean 0..1 or 0..255; expected one of them: write images * 255 or "
            "images.astype(np.uint8)"
        )
    if pixels.is_whole and pixels.high <= 255:
        return 1, f"whole numbers of 0..255, the largest of which is {pixels.high:.5g}"
    if dtype == np.uint16 and pixels.high >= 1 << 14:
        return 1 / 257, "0..65535 divided by 257, rounded to 8 bits"
    if dtype == np.uint16:
        raise DataError(
            f"{actual}, which may be of a camera of {int(pixels.high).bit_length()} bits; expected "
            "0..65535 or 0..255: write (images / images.max()).astype(np.float32), or your scale"
        )
    raise DataError(
        f"{actual}; expected uint8, floats in 0..1, or whole numbers in 0..255: scale them to 0..1"
    )


def _scale(images: np.ndarray, factor: float) -> np.ndarray:
    """Return images times a factor, rounded to uint8."""
    result = np.empty(images.shape, np.uint8)
    for start in range(0, len(images), _CHUNK):
        chunk = images[start : start + _CHUNK]
        if factor == 1:
            result[start : start + _CHUNK] = chunk.astype(np.uint8)
        else:
            scaled = chunk.astype(np.float64 if chunk.dtype == np.float64 else np.float32)
            result[start : start + _CHUNK] = np.rint(scaled * scaled.dtype.type(factor))
    return result


# ---------------------------------------------------------------- labels


def _convert_labels(
    raw: dict[str, Any],
    shapes: dict[str, tuple[int, ...]],
    num_classes: int | None,
    names: tuple[str, ...] | None,
    changes: list[str],
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return labels of all parts in one form, and the names of the classes."""
    count = len(names) if names else num_classes
    if any(not isinstance(labels, np.ndarray) for labels in raw.values()):
        return _convert_targets(raw, changes), names or _numbered(count or 0)
    dtypes = {part: labels.dtype for part, labels in raw.items()}
    if any(dtype.kind not in "uifbU" for dtype in dtypes.values()):
        part = next(part for part, dtype in dtypes.items() if dtype.kind not in "uifbU")
        raise DataError(
            f"{part} labels are {dtypes[part]}; expected integers, text, or float targets: write "
            "np.asarray(labels, np.int32)"
        )
    ndims = {labels.ndim for labels in raw.values()}
    kinds = {"text" if dtype.kind == "U" else "numbers" for dtype in dtypes.values()}
    if len(kinds) > 1 or len(ndims) > 1:
        forms = ", ".join(
            f"{labels.dtype} {labels.shape} in {part}" for part, labels in raw.items()
        )
        raise DataError(f"labels are {forms}; expected one form in all parts: write the same")
    raw = _squeeze(raw, shapes, changes)
    if kinds == {"text"}:
        return _convert_text(raw, names, count, changes)
    is_float = any(labels.dtype.kind == "f" for labels in raw.values())
    ndim = raw["train"].ndim
    if ndim == 2:
        if _are_one_hot(raw):
            return _convert_one_hot(raw, count, names, changes)
        return _convert_targets(raw, changes), names or _numbered(count or 0)
    if is_float and not (count is not None and all(map(_is_whole, raw.values()))):
        if ndim > 2 and _is_whole(raw["train"][:8]):
            changes.append(_explain_targets(raw, shapes))
        return _convert_targets(raw, changes), names or _numbered(count or 0)
    if ndim > 1 and not _are_masks(raw, shapes):
        changes.append(_explain_targets(raw, shapes))
        return _convert_targets(raw, changes), names or _numbered(count or 0)
    return _convert_classes(raw, count, names, changes)


def _explain_targets(raw: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]]) -> str:
    labels, shape = raw["train"], shapes["train"]
    return (
        f"labels {labels.dtype} {labels.shape} became targets of a loss of your own, as masks of "
        f"classes are integers {shape}"
    )


def _squeeze(
    raw: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]], changes: list[str]
) -> dict[str, np.ndarray]:
    """Return columns [n, 1] as [n], and masks [n, h, w, 1] as [n, h, w]."""
    is_column = all(labels.ndim == 2 and labels.shape[1] == 1 for labels in raw.values())
    has_channel = all(labels.shape == (*shapes[part], 1) for part, labels in raw.items())
    is_float = any(labels.dtype.kind == "f" for labels in raw.values())
    # A column of floats is a target of one number.
    if not (is_column and not is_float) and not has_channel:
        return raw
    form = "[n, h, w, 1] became [n, h, w]" if has_channel else "[n, 1] became [n]"
    changes.append(f"labels {form}")
    return {part: labels[..., 0] for part, labels in raw.items()}


def _are_masks(raw: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]]) -> bool:
    return all(labels.shape == shapes[part] for part, labels in raw.items())


def _is_whole(labels: np.ndarray) -> bool:
    is_float = labels.dtype.kind == "f"
    return not is_float or bool((np.isfinite(labels) & (labels == np.floor(labels))).all())


def _are_one_hot(raw: dict[str, np.ndarray]) -> bool:
    """Return whether every row of every part has a single 1, and zeros."""
    widths = {labels.shape[1] for labels in raw.values()}
    return widths != {1} and len(widths) == 1 and all(
        bool((((labels == 0) | (labels == 1)).all(1) & ((labels == 1).sum(1) == 1)).all())
        for labels in raw.values()
    )  # fmt: skip


def _convert_one_hot(raw, count, names, changes) -> tuple[dict[str, Any], tuple[str, ...]]:
    width = raw["train"].shape[1]
    if count not in (None, width):
        raise DataError(
            f"labels are one-hot rows of {width}, and there are {count} classes; expected as many: "
            f"write num_classes={width}"
        )
    changes.append(f"one-hot labels [n, {width}] became classes int32 [n]")
    labels = {part: array.argmax(1).astype(np.int32) for part, array in raw.items()}
    return labels, names or _numbered(width)


def _convert_text(raw, names, count, changes) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return text labels as numbers of their sorted names."""
    if raw["train"].ndim != 1:
        raise DataError(
            f"train labels are text of shape {raw['train'].shape}; expected (n,), one name for "
            "each image"
        )
    known = names or tuple(map(str, np.unique(raw["train"])))
    if names is None and count not in (None, len(known)):
        raise DataError(
            f"train labels have {len(known)} names and num_classes is {count}; expected as many: "
            "write classes=('cat', 'dog', ...) with all names, or integers [n, m] that are padded "
            "with -1 for sequences"
        )
    numbers = {item: number for number, item in enumerate(known)}
    labels = {}
    for part, array in raw.items():
        values, inverse = np.unique(array, return_inverse=True)
        if unknown := [str(item) for item in values if str(item) not in numbers]:
            where = "classes" if names else "the train labels"
            raise DataError(
                f"{part} labels have {format_value(unknown[0], 60)}, which {where} lack; expected "
                f"one of {short(', '.join(known), 120)}: write classes=(...) with all names"
            )
        lookup = np.array([numbers[str(item)] for item in values], np.int32)
        labels[part] = lookup[inverse.reshape(-1)]
    changes.append(f"text labels became int32, in the order of the {len(known)} class names")
    return labels, known


def _convert_classes(raw, count, names, changes) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return numbers of classes as int32."""
    low = {part: int(labels.min()) for part, labels in raw.items()}
    high = {part: int(labels.max()) for part, labels in raw.items()}
    for part, labels in raw.items():
        _check_void_pixels(part, labels, count)
        if low[part] < 0:
            raise DataError(
                f"{part} labels span {low[part]}..{high[part]}; expected 0 and above: number the "
                "classes from 0, and leave out images without a class"
            )
    if count is None:
        if low["train"] > 0:
            raise DataError(
                f"train labels span {low['train']}..{high['train']}, and none is 0; expected "
                f"numbers from 0: write labels - {low['train']}, or "
                f"num_classes={high['train'] + 1} if class 0 has no image"
            )
        count = high["train"] + 1
        num_values = raw["train"].size
        if count > max(2, num_values):
            raise DataError(
                f"train labels go up to {count - 1}, more than the {num_values} labels; expected "
                "numbers of classes without gaps: write np.unique(labels, return_inverse=True)[1], "
                f"or num_classes={count}"
            )
        if count == 256 and raw["train"].ndim == 3 and len(np.unique(raw["train"])) == 2:
            raise DataError(
                "train labels are masks of 0 and 255; expected numbers of classes: "
                "write masks // 255"
            )
    for part in raw:
        if high[part] >= count:
            one_based = low[part] == 1 and high[part] == count
            fix = f"num_classes={max(high.values()) + 1}"
            if one_based:
                fix = "labels - 1"
            elif names:
                fix = f"classes=(...) with {max(high.values()) + 1} names"
            raise DataError(
                f"{part} labels span {low[part]}..{high[part]}; expected 0..{count - 1}, for there "
                f"are {count} classes: write {fix}"
            )
    for dtype in {labels.dtype for labels in raw.values()} - {np.dtype(np.int32)}:
        changes.append(f"labels {dtype} became int32")
    labels = {part: np.asarray(array).astype(np.int32, copy=False) for part, array in raw.items()}
    return labels, names or _numbered(max(count, 2))


def _check_void_pixels(part: str, labels: np.ndarray, count: int | None) -> None:
    """Check that masks have no -1 or 255 for pixels without a class.

    Without a number of classes, 255 would be a class of 256.

    Raises:
      DataError: they have.
    """
    if labels.ndim != 3 or not (labels.min() < 0 or labels.max() == 255):
        return
    values = np.unique(labels)
    # Where 256 classes are asked for, 255 is one of them.
    voids = (-1, 255) if count is None or count < 256 else (-1,)
    void = next((value for value in voids if value in values), None)
    classes = values[(values >= 0) & (values != void)]
    # 0 and 255 alone are two classes. Of other masks without a gap below 255, it may be the last.
    is_void = len(classes) > 1 and classes[-1] < (254 if count is None else count)
    if void is None or not is_void:
        return
    raise DataError(
        f"{part} labels are masks of classes {classes[0]}..{classes[-1]} with {void} for pixels "
        "without one; expected a class for each pixel: write (images, {'mask': masks}) and a loss "
        f"of your own that leaves out {void}, as in jaxcnn.dataset's docstring"
    )


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


def _convert_targets(raw: dict[str, Any], changes: list[str]) -> dict[str, Any]:
    """Return targets of other losses in at most 32 bits."""

    def narrow(array: np.ndarray) -> np.ndarray:
        kind, native = array.dtype.kind, array.dtype.newbyteorder("=")
        if kind in "iu" and array.dtype.itemsize > 4:
            if array.size and (array.min() < -(2**31) or array.max() >= 2**31):
                raise DataError(
                    f"labels are {array.dtype} up to {array.max()}; expected numbers of at most 32 "
                    "bits: number them from 0"
                )
            changes.append(f"targets {array.dtype} became int32")
            return array.astype(np.int32)
        if kind == "f" and array.dtype.itemsize > 4:
            changes.append(f"targets {array.dtype} became float32")
            return array.astype(np.float32)
        return array.astype(native, copy=False)

    return {part: map_labels(narrow, labels) for part, labels in raw.items()}
