"""In how many directions a network's features still tell images apart."""

from __future__ import annotations

import flax.linen as nn
import numpy as np

from jaxcnn.interpret.signal_propagation import map_responses
from jaxcnn.state import State


def effective_rank(features: np.ndarray) -> float:
    """The effective rank of a matrix: exp of the entropy (nats) of its singular values, divided by their sum.

    It is k where k singular values are equal and the others 0, and at most min(n, d) (Roy and Vetterli 2007, "The effective
    rank", EUSIPCO, definition 1). The features are not centred, as in Daneshmand et al. 2020 (arXiv:2003.01652): where all
    images have the same ones, it is 1.

    Args:
      features: [n, ...], of n images; the other axes are one of length d. Computed in float64 from the smaller Gram matrix,
        so that singular values below 1e-8 of the largest are noise.

    Returns:
      A number from 1 up; nan where the features are all 0 or not finite.

    Example:
      >>> round(effective_rank(np.diag([2.0, 2.0, 2.0, 0.0])), 6), round(effective_rank(np.ones((5, 9))), 6)
      (3.0, 1.0)
    """
    matrix = _matrix(features)
    scale = np.abs(matrix).max(initial=0.0)
    if not 0 < scale < np.inf:
        return float("nan")
    matrix = matrix / scale
    gram = matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix
    squares = np.linalg.eigvalsh(gram)
    values = np.sqrt(np.maximum(squares, 0.0))
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def similarity(features: np.ndarray) -> float:
    """The mean cosine of the angle between the features of two different images, [n, ...] with n > 1.

    1: all point the same way, and no layer above can tell the images apart but by their length. nan where features of an image
    are all 0 or not finite.

    Example:
      >>> round(similarity(np.ones((3, 4, 4))), 6), round(similarity(np.eye(3)), 6)
      (1.0, 0.0)
    """
    matrix = _matrix(features)
    with np.errstate(all="ignore"):
        largest = np.abs(matrix).max(1, keepdims=True)  # squares of very small numbers would be 0
        unit = matrix / largest
        unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    n = len(unit)
    return float((np.square(unit.sum(0)).sum() - n) / (n * (n - 1)))


def _matrix(features: np.ndarray) -> np.ndarray:
    return np.asarray(features, np.float64).reshape(len(features), -1)


def effective_ranks(model: nn.Module, state: State, images: np.ndarray, *, train: bool = False) -> dict[str, float]:
    """The effective rank of each layer's response to the images, by name in the network's order.

    At most n, the number of images. Arguments and errors are those of `map_responses`.

    Example:
      >>> from jaxcnn import Recipe, create_model, load_dataset, create_optimizer
      >>> from jaxcnn.state import init_state
      >>> data = load_dataset("digits")
      >>> model = create_model("plain8", 10, width=4)
      >>> recipe = Recipe(dataset="digits", model="plain8")
      >>> state = init_state(model, create_optimizer(recipe), recipe, data)
      >>> ranks = effective_ranks(model, state, data.test.images[:20], train=True)
      >>> all(1 <= rank <= 20 for rank in ranks.values())
      True
    """
    return map_responses(effective_rank, model, state, images, train=train)
