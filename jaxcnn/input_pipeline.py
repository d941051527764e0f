"""Transport of examples to the devices.

A data set in memory is moved to the devices whole. One on disk is streamed batch by batch.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.data import Split
from jaxcnn.parallel import Strategy

T = TypeVar("T")


class Paired(NamedTuple):
    """Examples of a step, each with another one that augmentation mixes it with.

    Attributes:
      own: the row of a chunk, as `gather_batch` takes it.
      partner: the same for the partners, in the order of `own`.
    """

    own: Any
    partner: Any


class InputPipeline(NamedTuple):
    """A split in the form that a strategy's compiled steps take.

    They are those of `Strategy.compile_steps`.

    Attributes:
      split: the whole split on the devices, or None if it is streamed.
      chunks: function that splits an order, int32 [steps, batch], into chunks. A chunk is the order
        of one call of the compiled steps. If the split is streamed, its examples come with it.
    """

    split: Split | None
    chunks: Callable[[np.ndarray], Iterator[Any]]


def input_pipeline(split: Split, strategy: Strategy) -> InputPipeline:
    """Return the pipeline of a split for `strategy`.

    A split whose images are an array on disk (`np.memmap`) is streamed. A thread reads the next
    chunk while the devices work on the last one (see `read_ahead`). Any other split is moved to the
    devices now. The bits of a run are the same either way.

    Args:
      split: images and labels.
      strategy: devices.

    Example:
      >>> from jaxcnn import strategy, load_dataset
      >>> test = load_dataset("digits").test
      >>> on_device, chunks = input_pipeline(test, strategy("jit", devices=1))
      >>> index = next(chunks(np.arange(32, dtype=np.int32)[None]))
      >>> labels = gather_batch(on_device, index[0])[2]
      >>> np.asarray(labels).tolist() == test.labels[:32].tolist()
      True
    """
    if not isinstance(split.images, np.memmap):
        return InputPipeline(strategy.replicate(split), strategy.chunks)

    def read(index: np.ndarray) -> Any:
        read_ahead(split.images, index)
        return index, split.take(index)

    bytes_per_image = split.images[:1].nbytes
    return InputPipeline(
        None, lambda order: prefetch(read, strategy.chunks(order, bytes_per_image))
    )


def read_ahead(images: np.ndarray, index: np.ndarray) -> None:
    """Ask the system to read some images of an array on disk, and return at once.

    The system then reads many of them at the same time. Without that, NumPy waits for each image
    before it asks for the next one, and random images arrive at a fraction of the disk's speed
    (`experiments/results/benchmark/README.md` has numbers).

    It does nothing where the system has no `madvise`, where the rows of the array are not
    contiguous, or where the array is not on disk.

    Args:
      images: [n, ...], an `np.memmap` or a view of one.
      index: int [...], rows of `images`.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryFile() as file:
      ...     images = np.memmap(file, np.uint8, "w+", shape=(100, 8, 8, 3))
      >>> read_ahead(images, np.array([3, 77]))
    """
    base: Any = images
    while base is not None and not isinstance(base, mmap.mmap):
        base = getattr(base, "base", None)
    can_advise = hasattr(mmap.mmap, "madvise") and hasattr(mmap, "MADV_WILLNEED")
    if base is None or not can_advise or not len(images) or not images[:1].flags.c_contiguous:
        return
    # Of the first image, from the start of the mapped file.
    first = images.ctypes.data - np.frombuffer(base, np.uint8).ctypes.data
    size = images[:1].nbytes
    # It is advice. Where the system refuses it, the images are read without.
    with contextlib.suppress(OSError, ValueError):
        for row in (np.ravel(index) % len(images)).tolist():
            start = first + row * images.strides[0]
            page = start - start % mmap.PAGESIZE
            base.madvise(mmap.MADV_WILLNEED, page, start + size - page)


def pair(index: Any) -> Paired:
    """Return a chunk with the partner of each example, the one before it in the batch.

    It is the same on any devices, because the order is of the whole batch. The first example has
    the last one as its partner.

    Args:
      index: int32 [steps, batch], or a tree of arrays [steps, batch, ...], on the host.

    Example:
      >>> pair(np.array([[3, 5, 4]])).partner.tolist()
      [[4, 3, 5]]
    """
    return Paired(index, jax.tree.map(lambda array: np.roll(array, 1, axis=1), index))


def paired(pipeline: InputPipeline) -> InputPipeline:
    """Return a pipeline whose chunks have a partner for each example, as `pair` gives them."""
    return pipeline._replace(chunks=lambda order: map(pair, pipeline.chunks(order)))


def gather_batch(split: Split | None, index: Any) -> tuple[jax.Array, jax.Array, Any]:
    """Return the examples of a step.

    Args:
      split: that of the `InputPipeline`.
      index: the row of a chunk: int32 [b], or with None for `split` the pair of it and its
        examples.

    Returns:
      Numbers int32 [b], images uint8 [b, h, w, c], and labels [b, ...] or a tree of them.
    """
    if split is None:
        return index[0], index[1].images, index[1].labels
    images, labels = jax.tree.map(lambda array: jnp.asarray(array)[index], split)
    return index, images, labels


def prefetch(make: Callable[[T], Any], items: Iterable[T]) -> Iterator[Any]:
    """Yield `make(item)` for each of the items.

    A thread makes the next one while the last is in use.

    Example:
      >>> list(prefetch(abs, [-1, 2]))
      [1, 2]
    """
    with ThreadPoolExecutor(1, "jaxcnn-feed") as pool:
        future = None
        for item in items:
            previous, future = future, pool.submit(make, item)
            if previous is not None:
                yield previous.result()
        if future is not None:
            yield future.result()
