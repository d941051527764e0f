"""Checks of arguments.

Each check returns the value. Or it raises an error of one line: the value, what was expected, and
what to write instead.
"""

from __future__ import annotations

import difflib
import inspect
import math
import operator
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class ArgumentError(ValueError):
    """An invalid setting or argument.

    The message is one line, and says what to write instead.
    """


_MAX_NAME_BYTES, _MAX_PATH_BYTES = 255, 4095
"""Bytes of a name and of a path on Linux.

macOS allows less for a path, and raises its own error.
"""


def format_value(value: Any, max_length: int = 80) -> str:
    """Format a value on one line for a message; cut long text.

    Example:
        >>> format_value([0] * 1000, 12)
        '[0, 0, 0, 0,...'
    """
    try:
        text = " ".join(repr(value).split())
    # Numbers of thousands of digits, or lists nested a thousand times.
    except Exception as error:
        text = f"a {type(value).__name__} that cannot be written ({type(error).__name__})"
    return text if len(text) <= max_length else text[:max_length] + "..."


def format_array(value: Any) -> str:
    """Format an array as its dtype and shape for a message, traced or not.

    Other values are formatted as `format_value` does.

    Example:
        >>> format_array(np.zeros((2, 3), np.float32)), format_array([1])
        ('an array float32 (2, 3)', '[1]')
    """
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"an array {value.dtype} {value.shape}"
    return format_value(value)


def is_integer(value: Any) -> bool:
    """Check if a value is one of Python's or NumPy's integers; bools are none.

    Example:
        >>> is_integer(np.int64(3)), is_integer(True), is_integer(3.0)
        (True, False, False)
    """
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_real(dtype: Any) -> bool:
    """Check if a dtype is of real numbers: integers or floats, also JAX's own, such as bfloat16.

    Example:
        >>> is_real(jnp.bfloat16), is_real(bool), is_real(np.dtype("timedelta64[s]"))
        (True, False, False)
    """
    is_number = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    # NumPy counts time spans to the integers.
    return bool(is_number) and not jnp.issubdtype(dtype, np.timedelta64)


def check_choice(name: str, value: str, choices: Iterable[str]) -> str:
    """Return `value`, which must be one of `choices`.

    Raises:
        ArgumentError: it is not. The message has the nearest choice.
    """
    choices = sorted(choices)
    if isinstance(value, str) and value in choices:
        return value
    text = format_value(value).strip("'")
    nearest = [choice for choice in choices if choice.lower() == text.lower()]
    nearest = nearest or difflib.get_close_matches(text, choices, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise ArgumentError(
        f"{name} is {format_value(value)}; expected one of {', '.join(choices)}{hint}"
    )


def check_integer(
    name: str, value: Any, low: int = 1, high: int | None = None, *, example: Any = None
) -> int:
    """Return `value` as an int.

    NumPy's integers are allowed, but neither bools nor floats.

    Args:
        name: of the argument.
        value: its value.
        low: lower bound, allowed.
        high: upper bound, allowed; None is no bound.
        example: a valid value, for the message; `low` by default.

    Raises:
        ArgumentError: `value` is anything else.

    Example:
        >>> check_integer("batch_size", 2.0)
        Traceback (most recent call last):
        jaxcnn.arguments.ArgumentError: batch_size is 2.0; expected a whole number of ...
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if (
        number is None
        or isinstance(value, (bool, np.bool_))
        or number < low
        or (high is not None and number > high)
    ):
        bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise ArgumentError(
            f"{name} is {format_value(value)}; expected a whole number {bounds}. "
            f"Write {name}={low if example is None else example}."
        )
    return number


def check_boolean(name: str, value: Any) -> bool:
    """Return `value`, which must be True or False.

    Raises:
        ArgumentError: it is anything else.
    """
    if not isinstance(value, bool):
        raise ArgumentError(f"{name} is {format_value(value)}; expected True or False")
    return value


def check_positive(name: str, value: Any, *, example: Any) -> float:
    """Return `value` as a float.

    Args:
        name: of the argument.
        value: its value.
        example: a valid value, for the message.

    Raises:
        ArgumentError: `value` is not a finite number above 0.
    """
    is_real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(
        value, bool
    )
    if not is_real or not value > 0 or not _is_finite(value):
        raise ArgumentError(
            f"{name} is {format_value(value)}; expected a finite number above 0. Write "
            f"{name}={example}."
        )
    return float(value)


def _is_finite(value):
    try:
        return math.isfinite(value)
    # An integer beyond the range of float64.
    except OverflowError:
        return False


def check_share(name: str, value: Any, example: float) -> float:
    """Return a number in 0..1 as a float.

    Raises:
        ArgumentError: `value` is anything else.
    """
    is_number = isinstance(value, (int, float, np.floating)) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= 1:
        raise ArgumentError(
            f"{name} is {format_value(value)}; expected a number in 0..1. Write {name}={example}."
        )
    return float(value)


def check_path(
    name: str,
    value: Any,
    error_type: type[ValueError] = ArgumentError,
    *,
    example: str | None = None,
) -> Path:
    """Return `value` as a Path.

    Args:
        name: of the argument.
        value: a text or a path.
        error_type: type of the error to raise.
        example: Python code of a valid value, for the message.

    Raises:
        error_type: `value` is neither a text nor a path, or is empty, too long or not encodable, or
            contains a NUL.

    Example:
        >>> check_path("folder", 3)
        Traceback (most recent call last):
        jaxcnn.arguments.ArgumentError: folder is 3; expected a path. Write folder='runs/r20'.
    """
    text = value if isinstance(value, str) else ""
    if isinstance(value, os.PathLike):
        fs_path = os.fspath(value)
        text = fs_path if isinstance(fs_path, str) else ""
    advice = f"Write {name}={example or repr('runs/r20')}."
    if not text or "\0" in text:
        raise error_type(f"{name} is {format_value(value)}; expected a path. {advice}")
    try:
        path_bytes = len(os.fsencode(text))
        name_bytes = max((len(os.fsencode(part)) for part in Path(text).parts), default=0)
    except UnicodeError:
        raise error_type(
            f"{name} is {format_value(value)}; expected a path that this system can write. {advice}"
        ) from None
    if path_bytes > _MAX_PATH_BYTES or name_bytes > _MAX_NAME_BYTES:
        raise error_type(
            f"{name} is {format_value(value)}; expected names of at most {_MAX_NAME_BYTES} bytes, "
            f"{_MAX_PATH_BYTES} in all. {advice}"
        )
    return Path(text)


def is_iterator(value: Any) -> bool:
    """Check if `value` is an iterator.

    JAX's tree functions warn of iterators. With this function as `is_leaf` they treat them as
    leaves, which are then an error.

    Example:
        >>> is_iterator(iter([1])), is_iterator([1])
        (True, False)
    """
    return isinstance(value, Iterator)


def check_image_shape(shape: Any) -> tuple[int, int, int]:
    """Return the shape (height, width, channels) of an image.

    Raises:
        ArgumentError: `shape` is not a tuple or list of three integers above 0, or an image would
            have 2**31 values or more.

    Example:
        >>> check_image_shape([32, 32, 3])
        (32, 32, 3)
    """
    sizes = tuple(shape) if isinstance(shape, (tuple, list)) else ()
    valid = [
        isinstance(size, (int, np.integer)) and not isinstance(size, bool) and 1 <= size < 2**31
        for size in sizes
    ]
    if len(sizes) != 3 or not all(valid) or math.prod(map(int, sizes)) >= 2**31:
        raise ArgumentError(
            f"shape is {format_value(shape)}; expected the height, width and channels of an image. "
            "Write (32, 32, 3)."
        )
    height, width, channels = map(int, sizes)
    return height, width, channels


def check_image_size(image_shape: Any) -> tuple[int, int]:
    """Return the height and width of images, in pixels.

    Raises:
        ArgumentError: `image_shape` is not a tuple or list of two integers above 0.

    Example:
        >>> check_image_size([32, 48])
        (32, 48)
    """
    if not isinstance(image_shape, (tuple, list)) or len(image_shape) != 2:
        raise ArgumentError(
            f"image_shape is {format_value(image_shape)}; expected height and width in pixels. "
            "Write image_shape=images.shape[1:3]."
        )
    height, width = (check_integer("image_shape", side, example="(64, 64)") for side in image_shape)
    return height, width


def check_callable(name: str, value: Any, example: str, num_args: int | None = None) -> Any:
    """Return `value`, which must be callable and hashable.

    Compiled programs are cached by the function, so it must be hashable.

    Args:
        name: of the argument.
        value: its value.
        example: Python code of a valid value, for the message.
        num_args: with how many arguments it is called. None does not check it.

    Raises:
        ArgumentError: `value` cannot be called or hashed, or takes another number of arguments.
    """
    try:
        hash(value)
    except TypeError:
        valid = False
    else:
        valid = callable(value)
    if not valid:
        raise ArgumentError(
            f"{name} is {format_value(value)}; expected a function. Write {name}={example}."
        )
    if num_args is not None and not accepts(value, num_args):
        plural = "s" * (num_args != 1)
        raise ArgumentError(
            f"{name} is {format_value(value)}, which cannot be called with {num_args} "
            f"argument{plural}; expected a function of {num_args}. Write {name}={example}."
        )
    return value


def accepts(function: Any, num_args: int) -> bool:
    """Check if a function can be called with so many positional arguments."""
    try:
        inspect.signature(function).bind(*[None] * num_args)
    except TypeError:
        return False
    except ValueError:
        pass  # Some functions of C have no signature.
    return True


def check_mapping(name: str, value: Any, example: str) -> dict[str, Any]:
    """Return `value` as a dict.

    Args:
        name: of the argument.
        value: its value.
        example: Python code of a valid value, for the message.

    Raises:
        ArgumentError: `value` does not map names to values.

    Example:
        >>> check_mapping("facts", None, "{'seed': 0}")
        Traceback (most recent call last):
        jaxcnn.arguments.ArgumentError: facts is None; expected values by name. ...
    """
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ArgumentError(
            f"{name} is {format_value(value)}; expected values by name. Write {name}={example}."
        )
    return dict(value)


def check_random_key(name: str, key: Any) -> Any:
    """Return one of JAX's random keys, typed or raw.

    Raises:
        ArgumentError: `key` is anything else.

    Example:
        >>> import jax
        >>> check_random_key("key", jax.random.PRNGKey(0)).shape
        (2,)
    """
    dtype = getattr(key, "dtype", None)
    if isinstance(key, (jax.Array, np.ndarray)) and dtype is not None:
        if jnp.issubdtype(dtype, jax.dtypes.prng_key) and key.shape == ():
            return key
        if dtype == np.uint32 and key.ndim == 1 and key.shape[0] in (2, 4):
            return key
    raise ArgumentError(
        f"{name} is {format_value(key)}; expected one random key. Write {name}=jax.random.key(0)."
    )
