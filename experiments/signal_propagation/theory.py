"""Theory of signals without BN before training.

It assumes wide layers, He's initialization, and zeros around the maps.
"""

from __future__ import annotations

import itertools

import numpy as np

GROWTH = float(np.sqrt(np.pi / (np.pi - 1)))
"""Growth of the gradient's norm per layer towards the first: 1.21.

It holds with BN over large batches, ReLU and no shortcuts (Yang et al. 2019, arXiv:1902.08129,
whose factor pi / (pi - 1) is that of its square).
"""


def mean_squares(
    inputs: np.ndarray, depth: int, residual: bool, samples: int = 1000, seed: int = 0
) -> np.ndarray:
    """Return the mean square of every convolution's response without BN.

    Kernels are N(0, 2 / fan_in), without biases. Over units, a response then has mean 0. At each
    place its mean square is 2 / 9 of the sum, over its window, of those below (He et al. 2015,
    arXiv:1502.01852, eq. 8). Places outside the map count as zeros.

    ReLU halves the mean square. A plain network therefore keeps it, except for the zeros, and the
    values are exact in the mean over kernels. A residual block adds a response to its input, and
    cuts off what is negative in the sum. The distribution of that sum is sampled in `samples`
    units at each place. Except for the zeros, the mean square grows 2.40-fold at every block.

    Args:
      inputs: float [n, h, w, c], normalized.
      depth: 6 n + 2.
      residual: whether there are shortcuts "A".
      samples: number of units that are sampled at each place.
      seed: of the samples.

    Returns:
      float64 [depth - 1], first layer first.

    Example:
      >>> ones = np.ones((1, 8, 8, 1))
      >>> plain, residual = (mean_squares(ones, 20, residual) for residual in (False, True))
      >>> len(plain), round(plain[0] * 9 * 64 / 2), bool(residual[6] > 4 * plain[6])
      (19, 484, True)
    """
    rng = np.random.default_rng(seed)
    # The stem's, [n, h, w].
    response = 2 * window_mean(np.square(np.asarray(inputs, np.float64)).mean(-1))
    squares = [response]
    x = _relu_samples(response, rng, samples)
    for stage, block in itertools.product(range(3), range((depth - 2) // 6)):
        stride = 2 if stage and not block else 1
        first_response = 2 * window_mean(np.square(x).mean(0))[:, ::stride, ::stride]
        second_response = window_mean(first_response)
        x = x[:, :, ::stride, ::stride]
        if stride == 2:
            # Half of the units are new, and shortcut "A" fills them with zeros.
            x[::2] = 0
        squares += [first_response, second_response]
        noise = np.sqrt(second_response) * rng.standard_normal((samples, *second_response.shape))
        x = np.maximum(x + noise, 0) if residual else _relu_samples(second_response, rng, samples)
    return np.array([maps.mean() for maps in squares])


def window_mean(squares: np.ndarray) -> np.ndarray:
    """Return the mean over each place's 3x3 window, zeros outside.

    Args:
      squares: float [n, h, w].

    Returns:
      float [n, h, w].

    Example:
      >>> window_mean(np.ones((1, 2, 2))).tolist() == np.full((1, 2, 2), 4 / 9).tolist()
      True
    """
    _, h, w = squares.shape
    padded = np.pad(squares, ((0, 0), (1, 1), (1, 1)))
    return np.mean([padded[:, i : i + h, j : j + w] for i, j in np.ndindex(3, 3)], axis=0)


def _relu_samples(response: np.ndarray, rng: np.random.Generator, samples: int) -> np.ndarray:
    """Return the ReLU of samples of N(0, response), [samples, n, h, w].

    They are scaled so that their mean square is exactly half of the response.
    """
    x = np.maximum(rng.standard_normal((samples, *response.shape)), 0)
    x = x / np.sqrt(2 * np.square(x).mean(0))
    return x * np.sqrt(response)
