"""Where a network looks, by any of the methods, in one form that can be shown: one number in 0..1 for each pixel."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import numpy as np

from jaxcnn.interpret.gradcam import gradcam, gradcam_plus_plus
from jaxcnn.interpret.guided_backpropagation import guided_backprop
from jaxcnn.interpret.occlusion import occlusion
from jaxcnn.interpret.path_gradients import integrated_gradients
from jaxcnn.recipe import check_choice
from jaxcnn.state import State

ATTRIBUTION_METHODS: dict[str, Callable[..., np.ndarray]] = {
    "gradcam": gradcam,
    "gradcam_plus": gradcam_plus_plus,
    "guided_backprop": guided_backprop,
    "integrated_gradients": integrated_gradients,
    "occlusion": occlusion,
}
"""name -> (model, state, images, classes, options) -> float32 [n, h, w] or, of each value of the image, [n, h, w, c]."""


def attribution(
    method: str,
    model: nn.Module,
    state: State,
    images: np.ndarray,
    classes: np.ndarray | None = None,
    **options: Any,
) -> np.ndarray:
    """How much each pixel speaks for a class, float32 [n, h, w]; the largest of each image is 1, or all are 0.

    What is taken of a method's result is what speaks for the class: of Grad-CAM, Grad-CAM++ and occlusion the positive part;
    of integrated gradients that of the sum over channels, which is the pixel's share; of a guided gradient, whose sign says
    only whether to brighten or to darken, the largest size among the channels (Simonyan et al. 2013, arXiv:1312.6034,
    section 3.1).

    Args:
      method: a name in `ATTRIBUTION_METHODS`.
      model, state, images, classes: as in `gradcam`.
      options: the method's own, such as `stage`, `steps` or `size`.

    Raises:
      ArgumentError: for an unknown method, or an option that the method lacks; and those of the method.
      DataError: for other images.

    Example:
      >>> from jaxcnn import Recipe, create_model, load_dataset, create_optimizer
      >>> from jaxcnn.state import init_state
      >>> data, model, recipe = load_dataset("digits"), create_model("convnet", 10), Recipe(dataset="digits", model="convnet")
      >>> state = init_state(model, create_optimizer(recipe), recipe, data)
      >>> found = attribution("integrated_gradients", model, state, data.test.images[:3], steps=8)
      >>> found.shape, found.max((1, 2)).tolist()
      ((3, 8, 8), [1.0, 1.0, 1.0])
    """
    function = ATTRIBUTION_METHODS[check_choice("method", method, ATTRIBUTION_METHODS)]
    known = list(inspect.signature(function).parameters)[4:]  # after model, state, images, classes
    for name in options:
        check_choice(f"option of {method}", name, known)
    found = function(model, state, images, classes, **options)
    if found.ndim == 4:
        found = np.abs(found).max(-1) if method == "guided_backprop" else found.sum(-1)
    return scale_to_unit(found)


def scale_to_unit(found: np.ndarray) -> np.ndarray:
    """The positive part of [n, h, w], each image's divided by its largest value; 0 where there is none.

    Example:
      >>> scale_to_unit(np.float32([[[-1, 4], [2, 0]], [[-1, -1], [-1, -1]]])).tolist()
      [[[0.0, 1.0], [0.5, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]
    """
    positive = np.maximum(found, 0)
    most = positive.max((1, 2), keepdims=True)
    return np.divide(positive, most, out=np.zeros_like(positive), where=most > 0)
