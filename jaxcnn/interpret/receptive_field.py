"""The receptive field of a stage: which pixels of the image one place of its maps sees."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np

from jaxcnn.interpret._outputs import outputs
from jaxcnn.interpret._receptive_field_rules import Reach, along
from jaxcnn.models.calling import variable_shapes
from jaxcnn.recipe import ArgumentError


class ReceptiveField(NamedTuple):
    """Place (i, j) of a stage sees rows start[0] + i stride[0] to that + size[0] - 1, and columns likewise."""

    size: tuple[int, int]
    """Height and width in pixels, of the image and of the zeros around it."""
    stride: tuple[int, int]
    """Pixels between the fields of neighbouring places."""
    start: tuple[int, int]
    """Of the field of place (0, 0); below 0 it begins in the padding."""

    def corner(self, place: tuple[int, int]) -> tuple[int, int]:
        """The first row and column that a place sees."""
        return self.start[0] + place[0] * self.stride[0], self.start[1] + place[1] * self.stride[1]


def receptive_fields(model: nn.Module, shape: tuple[int, ...]) -> dict[str, ReceptiveField]:
    """The field of every stage of maps, in the network's order, for images of `shape` [h, w, c]; nothing is computed.

    Found by following which indices each operation reads, from the image to the stage. For a chain of layers of size k, stride
    s and padding p that is: size + (k - 1) j, start - p j, then j s, from size 1, start 0 and j = 1 (Dumoulin and Visin 2016,
    arXiv:1603.07285, section 2.4, again and again); branches see the union. It is what a place can depend on, and of a deep
    one's field the middle counts for most (Luo et al. 2016, arXiv:1701.04128). What lies behind a transposed convolution is
    said to see the whole image.

    Raises:
      ArgumentError: by the network, for images that it cannot take.

    Example:
      >>> from jaxcnn.models import create_model
      >>> found = receptive_fields(create_model("lenet5", 10), (28, 28, 1))
      >>> [(name, field.size, field.stride, field.start) for name, field in found.items()]
      [('c1', (5, 5), (1, 1), (-2, -2)), ('c3', (14, 14), (2, 2), (-2, -2)), ('c5', (32, 32), (4, 4), (-2, -2))]
    """
    names: list[str] = []  # a dict would come back from tracing in the order of the alphabet

    def run(variables, image):
        maps = {name: x for name, x in outputs(model, variables, image).items() if x.ndim == 4}
        names.extend(maps)
        return list(maps.values())

    image = jax.ShapeDtypeStruct((1, *shape), "float32")
    variables = variable_shapes(model, image)
    program = jax.make_jaxpr(run)(variables, image).jaxpr
    others = [None] * (len(program.invars) - 1)
    rows, columns = (
        along(program, [*others, Reach(0, 1, tuple(int(a == axis) for a in range(4)))], shape[axis - 1])
        for axis in (1, 2)
    )
    return {name: _field(row, column) for name, row, column in zip(names, rows, columns, strict=True)}


def _field(row: Reach | None, column: Reach | None) -> ReceptiveField:
    if row is None or column is None:
        raise ArgumentError("a stage does not come of the image; expected one that does")
    both = [(row.size, column.size), (row.steps[1], column.steps[2]), (row.start, column.start)]
    return ReceptiveField(*((int(down), int(right)) for down, right in both))


def receptive_patch(image: np.ndarray, field: ReceptiveField, place: tuple[int, int], fill: int = 128) -> np.ndarray:
    """What one place sees of an image [h, w, c] -> [h', w', c] of the same dtype, what lies outside filled with `fill`.

    Where the field is as high or wide as the image or more, it is the image's whole height or width.

    Example:
      >>> image = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)
      >>> receptive_patch(image, ReceptiveField((3, 3), (1, 1), (-1, -1)), (0, 1))[..., 0].tolist()
      [[128, 128, 128], [0, 1, 2], [4, 5, 6]]
    """
    corner = field.corner(place)
    whole = [size >= side for size, side in zip(field.size, image.shape, strict=False)]
    first = [0 if all_of_it else begin for all_of_it, begin in zip(whole, corner, strict=True)]
    size = [side if all_of_it else own for all_of_it, side, own in zip(whole, image.shape, field.size, strict=False)]
    out = np.full((*size, image.shape[2]), fill, image.dtype)
    (y, x), (h, w) = first, size
    seen = image[max(y, 0) : max(y + h, 0), max(x, 0) : max(x + w, 0)]
    top, left = max(-y, 0), max(-x, 0)
    out[top : top + seen.shape[0], left : left + seen.shape[1]] = seen
    return out
