"""What theory says of signals without BN before training: wide layers, He's initialisation, zeros around the maps."""

from __future__ import annotations

import itertools

import numpy as np

GROWTH = float(np.sqrt(np.pi / (np.pi - 1)))
"""By this much the gradient's norm grows from layer to layer towards the first, with BN over large batches, ReLU and no
shortcuts: 1.21 (Yang et al. 2019, arXiv:1902.08129, whose factor pi / (pi - 1) is that of its square)."""


def mean_squares(inputs: np.ndarray, depth: int, residual: bool, samples: int = 1000, seed: int = 0) -> np.ndarray:
    """The mean square of every convolution's response without BN, float64 [depth - 1], first layer first.

    With kernels N(0, 2 / fan_in) and no biases a response has, over units, the mean 0 and at each place the mean square 2 / 9
    of the sum over its window of those below (He et al. 2015, arXiv:1502.01852, eq. 8), zeros where it leaves the map.
    ReLU halves that, so a plain network keeps it but for the zeros; the values below are exact in the mean over kernels. A
    residual block adds a response to what it was computed from, and cuts what is negative off the sum, whose distribution is
    followed in `samples` units at each place: but for the zeros, the mean square grows 2.40-fold at every block.

    Args:
      inputs: float [n, h, w, c], normalised.
      depth: 6 n + 2.
      residual: with shortcuts "A".

    Example:
      >>> one = np.ones((1, 8, 8, 1))
      >>> plain, residual = (mean_squares(one, 20, residual) for residual in (False, True))
      >>> len(plain), round(plain[0] * 9 * 64 / 2), bool(residual[6] > 4 * plain[6])
      (19, 484, True)
    """
    rng = np.random.default_rng(seed)
    response = 2 * window(np.square(np.asarray(inputs, np.float64)).mean(-1))  # [n, h, w], of the stem
    found = [response]
    x = _units(response, rng, samples)
    for stage, block in itertools.product(range(3), range((depth - 2) // 6)):
        step = 2 if stage and not block else 1
        first = 2 * window(np.square(x).mean(0))[:, ::step, ::step]
        second = window(first)
        x = x[:, :, ::step, ::step]
        if step == 2:
            x[::2] = 0  # shortcut "A": half of the units are new
        found += [first, second]
        noise = np.sqrt(second) * rng.standard_normal((samples, *second.shape))
        x = np.maximum(x + noise, 0) if residual else _units(second, rng, samples)
    return np.array([maps.mean() for maps in found])


def window(squares: np.ndarray) -> np.ndarray:
    """The mean over each place's window of 3x3 places, zeros outside: [n, h, w] -> the same shape.

    Example:
      >>> window(np.ones((1, 2, 2))).tolist() == np.full((1, 2, 2), 4 / 9).tolist()
      True
    """
    _, h, w = squares.shape
    around = np.pad(squares, ((0, 0), (1, 1), (1, 1)))
    return np.mean([around[:, i : i + h, j : j + w] for i, j in np.ndindex(3, 3)], axis=0)


def _units(response: np.ndarray, rng: np.random.Generator, samples: int) -> np.ndarray:
    """ReLU of samples of N(0, response), [samples, n, h, w], scaled so that their mean square is exactly half of it."""
    x = np.maximum(rng.standard_normal((samples, *response.shape)), 0)
    x = x / np.sqrt(2 * np.square(x).mean(0))
    return x * np.sqrt(response)
