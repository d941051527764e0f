"""Connectionist temporal classification (CTC): sequences from frames of logits.

`jaxcnn.losses.CTCLoss` trains such logits, and the decoders here read them. The best path is fast.
The most probable sequence is another one where several of its paths add up to more. Prefix beam
search approximates it.

Example:
  Two frames whose best path is blank twice, with a probability of 0.36. The paths of "0" have 0.64.

  >>> logits = jnp.log(jnp.array([[[0.4, 0.6], [0.4, 0.6]]]))  # class 0, then the blank
  >>> greedy_decode(logits).tolist()
  [[-1, -1]]
  >>> beams = beam_decode(logits, width=2)
  >>> beams.labels[0].tolist(), jnp.exp(beams.log_probs[0]).round(2).tolist()
  ([[0, -1], [-1, -1]], [0.6399999856948853, 0.35999998450279236])
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcnn.arguments import ArgumentError, check_integer, format_array

PADDING = -1
"""Number after the last class of a sequence."""


def frames_needed(labels: Any) -> Any:
    """Return the least number of frames that sequences need under CTC.

    It is the number of classes, and one more for each that equals the one before it, because a
    blank has to separate them.

    Args:
      labels: integers [..., m], padded with -1; of NumPy or JAX.

    Raises:
      ArgumentError: they are anything else.

    Example:
      >>> frames_needed(jnp.array([[3, 3, 1, -1], [-1, -1, -1, -1]])).tolist()
      [4, 0]
    """
    if not _is_integer(labels) or not labels.ndim:
        raise ArgumentError(
            f"labels is {format_array(labels)}; expected integers [..., m], padded with -1. "
            "Write labels=np.array([[3, 1, -1]])."
        )
    is_class = labels >= 0
    is_repeated = (labels[..., 1:] == labels[..., :-1]) & is_class[..., 1:]
    return is_class.sum(-1) + is_repeated.sum(-1)


def collapse_path(path: Any, blank: int) -> jax.Array:
    """Return the sequences of paths: repetitions are merged, then blanks removed.

    It is the map B of Graves et al. 2006, section 3.1.

    Args:
      path: integers [b, t], an output for each frame.
      blank: the output that is the blank.

    Returns:
      int32 [b, t]: the classes, then -1.

    Raises:
      ArgumentError: an argument is invalid.

    Example:
      >>> collapse_path(jnp.array([[9, 1, 1, 9, 1, 2, 2]]), 9).tolist()
      [[1, 1, 2, -1, -1, -1, -1]]
    """
    if not _is_integer(path) or path.ndim != 2:
        fix = "path[None] for one example" if _is_integer(path) else "path=logits.argmax(-1)"
        raise ArgumentError(
            f"path is {format_array(path)}; expected integers [b, t], an output for each frame. "
            f"Write {fix}."
        )
    blank = check_integer("blank", blank, 0)
    path = jnp.asarray(path).astype(jnp.int32)
    is_first = jnp.pad(path[:, 1:] != path[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    is_emitted = is_first & (path != blank)
    # A stable sort brings the emitted classes to the front, in their order.
    order = jnp.argsort(~is_emitted, axis=1, stable=True)
    return jnp.take_along_axis(jnp.where(is_emitted, path, PADDING), order, axis=1)


class Beams(NamedTuple):
    """Sequences that `beam_decode` returns, the most probable first.

    Attributes:
      labels: int32 [b, width, max_length]: classes, then -1. Where there are fewer sequences than
        `width`, the others are -1 alone.
      log_probs: float32 [b, width], in nats; -inf where there are fewer sequences. It is the
        logarithm of the sum over those paths of the sequence whose prefixes were kept.
    """

    labels: jax.Array
    log_probs: jax.Array


def greedy_decode(logits: Any, *, blank: int = -1) -> jax.Array:
    """Return the sequences of the best paths.

    The best path has the most probable output at each frame. Its repetitions are merged, then its
    blanks removed.

    Args:
      logits: floats [b, t, k + 1] of t frames; probabilities or their logarithms do too.
      blank: the output that is the blank; -1 is the last.

    Returns:
      int32 [b, t]: the classes, then -1.

    Raises:
      ArgumentError: an argument is invalid.

    References:
      Graves et al. 2006, "Connectionist temporal classification", section 3.2, "best path
      decoding".

    Example:
      >>> path = jnp.array([[2, 0, 0, 2, 0, 1]])
      >>> greedy_decode(jax.nn.one_hot(path, 3)).tolist()
      [[0, 0, 1, -1, -1, -1]]
    """
    logits, blank = _check_logits(logits, blank)
    return _best_path(logits, blank)


@partial(jax.jit, static_argnums=1)
def _best_path(logits: jax.Array, blank: int) -> jax.Array:
    return collapse_path(logits.argmax(-1), blank)


def beam_decode(
    logits: Any, *, width: int = 8, blank: int = -1, max_length: int | None = None
) -> Beams:
    """Return the most probable sequences that a prefix beam search finds.

    After each frame the `width` most probable prefixes are kept. A prefix has two probabilities: of
    its paths that end in a blank, and of those that end in its last class. Only a blank lets the
    same class follow as another one. All paths of a prefix are summed. A prefix that is dropped and
    found again starts without its earlier paths. No language model takes part.

    A logit of -inf is an output that is never read. Where a frame has nan, +inf or -inf alone, the
    log-probabilities of that example are nan and its classes -1.

    Args:
      logits: floats [b, t, k + 1] of t frames, or logarithms of probabilities.
      width: prefixes that are kept.
      blank: the output that is the blank; -1 is the last.
      max_length: most classes of a sequence. None is t. Less is faster.

    Returns:
      `Beams` with a first axis of b.

    Raises:
      ArgumentError: an argument is invalid.

    References:
      Graves et al. 2006, section 3.2, "prefix search decoding"; Hannun et al. 2014, "First-pass
      large vocabulary continuous speech recognition using bi-directional recurrent DNNs"
      (arXiv:1408.2873), algorithm 1 without its language model.

    Example:
      >>> logits = jnp.log(jnp.array([[[0.5, 0.3, 0.2]]]))
      >>> beams = beam_decode(logits, width=3)
      >>> beams.labels[0, :, 0].tolist(), jnp.exp(beams.log_probs[0]).round(3).tolist()
      ([0, 1, -1], [0.5, 0.30000001192092896, 0.20000000298023224])
    """
    logits, blank = _check_logits(logits, blank)
    width = check_integer("width", width, 1, _MAX_WIDTH, example=8)
    if max_length is None:
        max_length = logits.shape[1]
    max_length = min(check_integer("max_length", max_length, example=8), logits.shape[1])
    return _beam_search(logits, blank, width, max_length)


_MAX_WIDTH = 4096
"""Most prefixes, since each is compared with each."""


class _Prefixes(NamedTuple):
    """Prefixes of one example after a frame."""

    labels: jax.Array
    """int32 [w, m], padded with -1."""
    length: jax.Array
    """int32 [w]."""
    blank: jax.Array
    """float32 [w]: log-probability of the paths that end in a blank."""
    other: jax.Array
    """float32 [w]: log-probability of the paths that end in the last class."""


@partial(jax.jit, static_argnums=(1, 2, 3))
def _beam_search(logits: jax.Array, blank: int, width: int, max_length: int) -> Beams:
    log_probs = jax.nn.log_softmax(logits)
    # Without the blank, outputs after it are one less.
    classes = jnp.delete(log_probs, blank, axis=-1)
    search = partial(_search_one, blank=blank, width=width, max_length=max_length)
    beams = jax.vmap(search)(classes, log_probs[..., blank])
    # What a comparison with nan does to the search is no result.
    is_valid = (jnp.isfinite(logits.max(-1)) & ~jnp.isnan(logits).any(-1)).all(-1)
    return Beams(
        jnp.where(is_valid[:, None, None], beams.labels, PADDING),
        jnp.where(is_valid[:, None], beams.log_probs, jnp.nan),
    )


def _search_one(
    classes: jax.Array, blanks: jax.Array, *, blank: int, width: int, max_length: int
) -> Beams:
    """Return the `Beams` of one example.

    Args:
      classes: float32 [t, k], log-probabilities of the classes.
      blanks: float32 [t], those of the blank.
      blank: the output that is the blank.
      width: as in `beam_decode`.
      max_length: likewise.
    """
    k = classes.shape[1]
    impossible = jnp.full(width, -jnp.inf, jnp.float32)
    first = _Prefixes(
        jnp.full((width, max_length), PADDING, jnp.int32),
        jnp.zeros(width, jnp.int32),
        impossible.at[0].set(0.0),
        impossible,
    )

    def step(prefixes: _Prefixes, frame: tuple[jax.Array, jax.Array]) -> tuple[_Prefixes, None]:
        log_classes, log_blank = frame
        labels, length, ends_blank, ends_other = prefixes
        total = jnp.logaddexp(ends_blank, ends_other)
        last = _last_class(labels, length)
        # A path that ends in the last class stays at the same prefix when it repeats it.
        of_last = jnp.where(length > 0, log_classes[jnp.maximum(last, 0)], -jnp.inf)
        stay_blank, stay_other = total + log_blank, ends_other + of_last
        # [w, k]: each prefix, with one more class.
        is_repeat = last[:, None] == jnp.arange(k, dtype=jnp.int32)[None]
        longer = jnp.where(is_repeat, ends_blank[:, None], total[:, None]) + log_classes[None]
        longer = jnp.where((length < max_length)[:, None], longer, -jnp.inf)
        # [i, j]: prefix i and one more class are prefix j, which is kept already.
        parents = _are_parents(labels, length) & (total > -jnp.inf)[None]
        into = jnp.where(parents, longer[:, jnp.maximum(last, 0)], -jnp.inf)
        stay_other = jnp.logaddexp(stay_other, jax.nn.logsumexp(into, axis=0))
        is_kept = (parents[:, :, None] & is_repeat[None]).any(1)
        longer = jnp.where(is_kept, -jnp.inf, longer)
        # The prefixes as they are, then those with one more class.
        none = jnp.full(width * k, -jnp.inf, jnp.float32)
        all_blank = jnp.concatenate([stay_blank, none])
        all_other = jnp.concatenate([stay_other, longer.reshape(-1)])
        _, index = jax.lax.top_k(jnp.logaddexp(all_blank, all_other), width)
        is_longer = index >= width
        source = jnp.where(is_longer, (index - width) // k, index)
        added = jnp.where(is_longer, (index - width) % k, PADDING)
        labels, length = labels[source], length[source]
        is_end = jnp.arange(max_length, dtype=jnp.int32)[None] == length[:, None]
        labels = jnp.where(is_end & is_longer[:, None], added[:, None], labels)
        length = length + is_longer.astype(jnp.int32)
        return _Prefixes(labels, length, all_blank[index], all_other[index]), None

    found, _ = jax.lax.scan(step, first, (classes, blanks))
    total = jnp.logaddexp(found.blank, found.other)
    # Numbers of outputs again.
    labels = found.labels + (found.labels >= blank).astype(jnp.int32)
    return Beams(jnp.where((total > -jnp.inf)[:, None], labels, PADDING), total)


def _last_class(labels: jax.Array, length: jax.Array) -> jax.Array:
    """Return the last class of each prefix, int32 [w]; -1 for an empty one."""
    column = jnp.maximum(length - 1, 0)[:, None]
    last = jnp.take_along_axis(labels, column, axis=1)[:, 0]
    return jnp.where(length > 0, last, PADDING)


def _are_parents(labels: jax.Array, length: jax.Array) -> jax.Array:
    """Return where prefix i is prefix j without its last class, bool [w, w]."""
    columns = jnp.arange(labels.shape[1], dtype=jnp.int32)
    is_last = columns[None] == (length - 1)[:, None]
    shorter = jnp.where(is_last, PADDING, labels)
    is_equal = (labels[:, None] == shorter[None]).all(-1)
    return is_equal & (length[:, None] + 1 == length[None])


def _is_integer(value: Any) -> bool:
    """Return whether a value is an array of integers, traced or not."""
    return hasattr(value, "ndim") and jnp.issubdtype(value.dtype, jnp.integer)


def _check_logits(logits: Any, blank: Any) -> tuple[jax.Array, int]:
    """Return logits as float32, and the number of the blank.

    Raises:
      ArgumentError: they are no [b, t, k + 1], or there is no such output.
    """
    shape, dtype = getattr(logits, "shape", ()), getattr(logits, "dtype", None)
    is_real = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
    if not is_real or len(shape) != 3 or 0 in shape or shape[2] < 2:
        raise ArgumentError(
            f"logits is {format_array(logits)}; expected floating numbers [b, t, k + 1] with "
            "k > 0. Write logits[None] for one example."
        )
    blank = check_integer("blank", blank, -1, shape[2] - 1)
    return jnp.asarray(logits).astype(jnp.float32), blank % shape[2]
