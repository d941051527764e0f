"""The error of this room, and what a torch file says of a tensor before any of its numbers are read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np


class WeightsError(ValueError):
    """A file of weights that cannot be read, written, or used for a network; one line.

    Attributes:
      missing: keys of the network that the file lacks.
      unexpected: keys of the file that the network lacks.
      misshapen: keys of both, with other shapes; all three in full, where the line names the first of many.
    """

    def __init__(
        self,
        message: str,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        misshapen: Sequence[str] = (),
    ):
        super().__init__(message)
        self.missing, self.unexpected, self.misshapen = tuple(missing), tuple(unexpected), tuple(misshapen)


DTYPES = {
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": np.dtype(jnp.bfloat16),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
}
"""What the elements of a torch storage are, by the name of its type."""


class Storage(NamedTuple):
    """A run of numbers in a torch file; `size` and `first` (which is not 0 for a view of another storage) in elements."""

    key: str
    dtype: np.dtype
    size: int
    first: int = 0


class Tensor(NamedTuple):
    """Where a tensor lies in its storage; `offset` and `stride` in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def tensor(storage: object, offset: object, shape: object, stride: object) -> Tensor:
    """A tensor that lies within its storage, whatever the file says; ValueError for any other.

    Example:
      >>> tensor(Storage("0", DTYPES["torch.FloatStorage"], 6), 0, (2, 3), (1, 2)).stride
      (1, 2)
    """
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    start, shape, stride = _sizes((offset,)), _sizes(shape), _sizes(stride)
    last = start[0] + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) if all(shape) else 0
    count = math.prod(shape)
    if last >= max(storage.size, 1) or count > storage.size:
        raise ValueError(f"a tensor of {count:.3g} elements that does not fit into its storage of {storage.size}")
    return Tensor(storage, start[0], shape, stride)


def _sizes(value: object) -> tuple[int, ...]:
    """`value`, if it is a tuple of at most eight whole numbers from 0 up; none can be larger than a file."""
    if not isinstance(value, tuple) or len(value) > 8 or not all(type(n) is int and 0 <= n < 2**63 for n in value):
        raise ValueError("a tensor whose offset, sizes or strides are no whole numbers from 0 up")
    return value
