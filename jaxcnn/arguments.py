"""Checks of arguments: each returns the value, or raises one line: what was given, what was expected, what to write."""

from __future__ import annotations

import difflib
import math
import operator
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class RecipeError(ValueError):
    """A setting or an argument that cannot be used; the message is one line and says what to write instead."""


_MAX_NAME_BYTES, _MAX_PATH_BYTES = 255, 4095
"""Bytes that a name and a path can have on Linux; macOS takes less of a path and says so itself."""


def shown(value: Any, most: int = 80) -> str:
    """A value as a message shows it: on one line, and cut where it is long.

    Example:
      >>> shown([0] * 1000, 12)
      '[0, 0, 0, 0,...'
    """
    try:
        text = " ".join(repr(value).split())
    except Exception as error:  # numbers of thousands of digits, a list in itself a thousand times
        text = f"a {type(value).__name__} that cannot be written ({type(error).__name__})"
    return text if len(text) <= most else text[:most] + "..."


def one_of(what: str, value: str, choices: Iterable[str]) -> str:
    """`value`, or a RecipeError that names the nearest of `choices`."""
    choices = sorted(choices)
    if isinstance(value, str) and value in choices:
        return value
    near = difflib.get_close_matches(shown(value).strip("'"), choices, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise RecipeError(f"{what} is {shown(value)}; expected one of {', '.join(choices)}{hint}")


def whole_number(name: str, value: Any, low: int = 1, high: int | None = None, *, write: Any = None) -> int:
    """Return `value` as an int; also NumPy's integers, but neither bools nor floats.

    Args:
      name: of the argument.
      value: what was given.
      low, high: the bounds, both allowed.
      write: an example of a good value; `low` by default.

    Raises:
      RecipeError: for anything else.

    Example:
      >>> whole_number("batch", 2.0)
      Traceback (most recent call last):
      jaxcnn.arguments.RecipeError: batch is 2.0; expected a whole number of at least 1. Write batch=1.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, (bool, np.bool_)) or number < low or (high is not None and number > high):
        bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise RecipeError(
            f"{name} is {shown(value)}; expected a whole number {bounds}. Write {name}={low if write is None else write}."
        )
    return number


def positive(name: str, value: Any, *, write: Any) -> float:
    """Return `value` as a float; RecipeError unless it is a finite number above 0."""
    real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not real or not value > 0 or not _finite(value):
        raise RecipeError(f"{name} is {shown(value)}; expected a finite number above 0. Write {name}={write}.")
    return float(value)


def _finite(value):
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond float64
        return False


def path_of(name: str, value: Any, kind: type[ValueError] = RecipeError, *, write: str | None = None) -> Path:
    """Return `value` as a Path.

    Raises:
      kind: for what is neither a text nor a path, and for an empty text or one that no file system takes.

    Example:
      >>> path_of("folder", 3)
      Traceback (most recent call last):
      jaxcnn.arguments.RecipeError: folder is 3; expected a path. Write folder='runs/r20'.
    """
    text = value if isinstance(value, str) else ""
    if isinstance(value, os.PathLike):
        given = os.fspath(value)
        text = given if isinstance(given, str) else ""
    example = f"Write {name}={write or repr('runs/r20')}."
    if not text or "\0" in text:
        raise kind(f"{name} is {shown(value)}; expected a path. {example}")
    try:
        size, largest = len(os.fsencode(text)), max((len(os.fsencode(part)) for part in Path(text).parts), default=0)
    except UnicodeError:
        raise kind(f"{name} is {shown(value)}; expected a path that this system can write. {example}") from None
    if size > _MAX_PATH_BYTES or largest > _MAX_NAME_BYTES:
        raise kind(
            f"{name} is {shown(value)}; expected names of at most {_MAX_NAME_BYTES} bytes, {_MAX_PATH_BYTES} in all. {example}"
        )
    return Path(text)


def is_iterator(value: Any) -> bool:
    """Whether `value` is an iterator, which JAX's tree functions warn of: they are to take it as a leaf, which is refused.

    Example:
      >>> is_iterator(iter([1])), is_iterator([1])
      (True, False)
    """
    return isinstance(value, Iterator)


def image_shape(shape: Any) -> tuple[int, int, int]:
    """Return the shape (height, width, channels) of an image; RecipeError for anything but three integers above 0.

    Example:
      >>> image_shape([32, 32, 3])
      (32, 32, 3)
    """
    sizes = tuple(shape) if isinstance(shape, (tuple, list)) else ()
    good = [isinstance(size, (int, np.integer)) and not isinstance(size, bool) and 1 <= size < 2**31 for size in sizes]
    if len(sizes) != 3 or not all(good) or math.prod(map(int, sizes)) >= 2**31:
        raise RecipeError(
            f"shape is {shown(shape)}; expected the height, width and channels of an image. Write (32, 32, 3)."
        )
    height, width, channels = map(int, sizes)
    return height, width, channels


def function(name: str, value: Any, write: str) -> Any:
    """Return `value`; RecipeError unless it can be called and hashed, as programs are remembered by their function."""
    try:
        hash(value)
    except TypeError:
        good = False
    else:
        good = callable(value)
    if not good:
        raise RecipeError(f"{name} is {shown(value)}; expected a function. Write {name}={write}.")
    return value


def mapping(name: str, value: Any, write: str) -> dict[str, Any]:
    """Return `value` as a dict; RecipeError unless it maps names to values.

    Example:
      >>> mapping("facts", None, "{'seed': 0}")
      Traceback (most recent call last):
      jaxcnn.arguments.RecipeError: facts is None; expected values by name. Write facts={'seed': 0}.
    """
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise RecipeError(f"{name} is {shown(value)}; expected values by name. Write {name}={write}.")
    return dict(value)


def random_key(name: str, key: Any) -> Any:
    """Return one of JAX's random keys, old or new; RecipeError for anything else.

    Example:
      >>> import jax
      >>> random_key("key", jax.random.PRNGKey(0)).shape
      (2,)
    """
    dtype = getattr(key, "dtype", None)
    if isinstance(key, (jax.Array, np.ndarray)) and dtype is not None:
        if jnp.issubdtype(dtype, jax.dtypes.prng_key) and key.shape == ():
            return key
        if dtype == np.uint32 and key.ndim == 1 and key.shape[0] in (2, 4):
            return key
    raise RecipeError(f"{name} is {shown(key)}; expected one random key. Write {name}=jax.random.key(0).")
