"""A loss of two parameters, the path on it, and how much of both a picture shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Limits = tuple[tuple[float, float], tuple[float, float]]


class Surface(NamedTuple):
    """A loss of two parameters and a path on it.

    Example:
      >>> bowl = Surface("GD", lambda w: (w**2).sum(-1), np.array([[1.0, 1.0], [0.5, 0.5]]), "$w_1$", "$w_2$")
      >>> float(bowl.loss(bowl.path)[1])
      0.5
    """

    title: str
    loss: Callable[[np.ndarray], np.ndarray]
    """float64 [n, 2] -> [n]. What is not finite counts as the greatest."""
    path: np.ndarray | Sequence[Sequence[float]]
    """[t, 2], the parameters step by step; it ends at the first row that is not finite."""
    xlabel: str
    ylabel: str
    note: str = ""
    """One line in small letters below the title."""
    minimum: tuple[float, float] | None = None
    window: Limits | None = None
    """((x0, x1), (y0, y1)) that the picture keeps within; None lets it hold all of the path."""


def walked(surface: Surface) -> np.ndarray:
    """The path as float64 [t, 2], all of it finite.

    Raises:
      ValueError: for a path of another shape, or whose start is not finite.

    Example:
      >>> walked(Surface("", np.sum, [[0, 0], [1, 2], [float("nan"), 3], [0, 0]], "", "")).tolist()
      [[0.0, 0.0], [1.0, 2.0]]
    """
    path = np.asarray(surface.path, np.float64)
    if path.ndim != 2 or path.shape[1] != 2 or not len(path) or not np.isfinite(path[0]).all():
        raise ValueError(f"the path of {surface.title!r} has shape {path.shape}; expected [t, 2] from a finite start")
    finite = np.isfinite(path).all(1)
    return path if finite.all() else path[: int(finite.argmin())]


def limits(surface: Surface, path: np.ndarray) -> Limits:
    """The box of the path [t, 2] and the minimum and a little more, cut to the window.

    Example:
      >>> bowl = Surface("", lambda w: (w**2).sum(-1), [[0, 0], [10, 999]], "", "", window=((-1, 20), (-1, 20)))
      >>> limits(bowl, np.array(bowl.path))
      ((-1.0, 11.0), (-1.0, 20.0))
    """
    held = path if surface.minimum is None else np.concatenate([path, [surface.minimum]])
    low, high = held.min(0), held.max(0)
    more = np.where(high > low, 0.1 * (high - low), 1.0)
    low, high = low - more, high + more
    if surface.window is not None:
        least, most = np.transpose(np.asarray(surface.window, np.float64))
        low, high = np.clip(low, least, most), np.clip(high, least, most)
        low, high = np.where(high > low, low, least), np.where(high > low, high, most)  # all of the path is outside
    (x0, y0), (x1, y1) = low.tolist(), high.tolist()
    return (x0, x1), (y0, y1)


def within(path: np.ndarray, box: Limits) -> np.ndarray:
    """Which points [t, 2] are in the box: bool [t]."""
    low, high = np.transpose(np.asarray(box, np.float64))
    return ((path >= low) & (path <= high)).all(1)


def leaves(path: np.ndarray, box: Limits) -> np.ndarray | None:
    """Where the path [t, 2] last crosses the edge of the box on its way out: [2]; None where it ends within, or never was.

    Example:
      >>> leaves(np.array([[0.0, 0.0], [4.0, 2.0]]), ((-1, 1), (-1, 1)))
      array([1. , 0.5])
    """
    low, high = np.transpose(np.asarray(box, np.float64))
    inside = within(path, box)
    if inside[-1] or not inside.any():
        return None
    last = int(np.flatnonzero(inside)[-1])
    start, step = path[last], path[last + 1] - path[last]
    moved = step != 0
    edge = np.where(step > 0, high, low)
    return np.clip(start + step * ((edge - start)[moved] / step[moved]).min(), low, high)
