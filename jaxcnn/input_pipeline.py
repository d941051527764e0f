"""How examples reach a step: a data set in memory is moved to the devices whole, one on disk is streamed batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.data import Split
from jaxcnn.parallel import Strategy

T = TypeVar("T")


class InputPipeline(NamedTuple):
    """A split as a strategy's folds take it."""

    split: Split | None
    """The whole split on the devices, or None where it is streamed."""
    chunks: Callable[[np.ndarray], Iterator[Any]]
    """int32 [steps, batch] -> what one call of a fold takes, again and again."""


def input_pipeline(split: Split, strategy: Strategy) -> InputPipeline:
    """The split for `strategy`: streamed if its images are an array on disk (`np.memmap`), else moved to the devices now.

    Of streamed images a thread reads the next piece while the devices work on one; the bits of a run are the same either way.

    Example:
      >>> from jaxcnn import strategy, load_dataset
      >>> test = load_dataset("digits").test
      >>> fixed, pieces = input_pipeline(test, strategy("jit", devices=1))
      >>> index = next(pieces(np.arange(32, dtype=np.int32)[None]))
      >>> np.asarray(gather_batch(fixed, index[0])[2]).tolist() == test.labels[:32].tolist()
      True
    """
    if not isinstance(split.images, np.memmap):
        return InputPipeline(strategy.replicate(split), strategy.chunks)

    def read(index: np.ndarray) -> Any:
        return index, Split(split.images[index], split.labels[index])

    size = split.images[:1].nbytes
    return InputPipeline(None, lambda order: prefetch(read, strategy.chunks(order, size)))


def gather_batch(split: Split | None, index: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(numbers int32 [b], images uint8 [b, h, w, c], labels [b, ...]) of a step, from what a feed gave it."""
    if split is None:
        return index[0], index[1].images, index[1].labels
    return index, jnp.asarray(split.images)[index], jnp.asarray(split.labels)[index]


def prefetch(make: Callable[[T], Any], items: Iterable[T]) -> Iterator[Any]:
    """`map(make, items)`, with the next one made in a thread while the last is in use.

    Example:
      >>> list(prefetch(abs, [-1, 2]))
      [1, 2]
    """
    with ThreadPoolExecutor(1, "jaxcnn-feed") as pool:
        coming = None
        for item in items:
            last, coming = coming, pool.submit(make, item)
            if last is not None:
                yield last.result()
        if coming is not None:
            yield coming.result()
