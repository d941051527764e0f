"""Receptive fields: the pixels that one position of a map depends on."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np

from jaxcnn.arguments import check_image_shape
from jaxcnn.config import ArgumentError
from jaxcnn.interpret._outputs import outputs
from jaxcnn.interpret._receptive_field_rules import Extent, trace_extents
from jaxcnn.models.calling import variable_shapes


class ReceptiveField(NamedTuple):
    """Receptive fields of all positions of a stage.

    Position (i, j) depends on `size[0]` rows of the image, from start[0] + i stride[0]. The same
    holds for columns with index 1.
    """

    size: tuple[int, int]
    """Height and width in pixels; padding around the image counts too."""
    stride: tuple[int, int]
    """Pixels between the fields of neighboring positions."""
    start: tuple[int, int]
    """First row and column of the field of position (0, 0).

    Below 0 it is in the padding.
    """

    def corner(self, place: tuple[int, int]) -> tuple[int, int]:
        """Return the first row and column that a position depends on."""
        return self.start[0] + place[0] * self.stride[0], self.start[1] + place[1] * self.stride[1]


def receptive_fields(model: nn.Module, shape: tuple[int, ...]) -> dict[str, ReceptiveField]:
    """Return the receptive field of every stage of maps; nothing is computed.

    The result follows from the indices that each operation reads, from the image to the stage. For
    a chain of layers of size k, stride s and padding p, each layer updates three numbers (Dumoulin
    and Visin 2016, arXiv:1603.07285, section 2.4). They begin with size 1, start 0 and j = 1. The
    size grows by (k - 1) j, the start falls by p j, and then j is multiplied by s.

    The field of joined branches is their union. It holds all pixels that a position can depend on.
    In a deep network the middle of the field counts for most (Luo et al. 2016, arXiv:1701.04128).
    Behind a transposed convolution the field is taken to be the whole image.

    Args:
      model: any network.
      shape: of the images, [h, w, c].

    Returns:
      The fields by stage, in the network's order.

    Raises:
      ArgumentError: the shape is not three whole numbers above 0, or the network does not accept
        such images.

    Example:
      >>> from jaxcnn.models import create_model
      >>> fields = receptive_fields(create_model("lenet5", 10), (28, 28, 1))
      >>> for name, field in fields.items():
      ...     print(name, field.size, field.stride, field.start)
      c1 (5, 5) (1, 1) (-2, -2)
      c3 (14, 14) (2, 2) (-2, -2)
      c5 (32, 32) (4, 4) (-2, -2)
    """
    shape = check_image_shape(shape)
    # A dict would come back from tracing in alphabetical order.
    names: list[str] = []

    def run(variables, image):
        maps = {name: x for name, x in outputs(model, variables, image).items() if x.ndim == 4}
        names.extend(maps)
        return list(maps.values())

    image = jax.ShapeDtypeStruct((1, *shape), "float32")
    variables = variable_shapes(model, image)
    program = jax.make_jaxpr(run)(variables, image).jaxpr
    # The image is the last input; the variables do not depend on it.
    variable_extents = [None] * (len(program.invars) - 1)
    rows, columns = (
        trace_extents(
            program,
            [*variable_extents, Extent(0, 1, tuple(int(a == axis) for a in range(4)))],
            shape[axis - 1],
        )
        for axis in (1, 2)
    )
    return {
        name: _field(row, column) for name, row, column in zip(names, rows, columns, strict=True)
    }


def _field(row: Extent | None, column: Extent | None) -> ReceptiveField:
    if row is None or column is None:
        raise ArgumentError("a stage does not come of the image; expected one that does")
    pairs = [(row.size, column.size), (row.steps[1], column.steps[2]), (row.start, column.start)]
    return ReceptiveField(*((int(down), int(right)) for down, right in pairs))


def receptive_patch(
    image: np.ndarray, field: ReceptiveField, place: tuple[int, int], fill: int = 128
) -> np.ndarray:
    """Return the part of an image that one position sees.

    It is [h', w', c].

    The dtype is that of the image. Pixels outside the image are set to `fill`. A field at least as
    high or wide as the image gives the image's whole height or width.

    Args:
      image: [h, w, c].
      field: of the stage.
      place: row and column in the map.
      fill: value of pixels outside the image.

    Example:
      >>> image = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)
      >>> field = ReceptiveField((3, 3), (1, 1), (-1, -1))
      >>> receptive_patch(image, field, (0, 1))[..., 0].tolist()
      [[128, 128, 128], [0, 1, 2], [4, 5, 6]]
    """
    corner = field.corner(place)
    # The image has a third axis, the channels.
    sides = list(zip(field.size, image.shape, strict=False))
    covers = [size >= side for size, side in sides]
    y, x = (0 if covered else first for covered, first in zip(covers, corner, strict=True))
    h, w = (side if covered else size for covered, (size, side) in zip(covers, sides, strict=True))
    out = np.full((h, w, image.shape[2]), fill, image.dtype)
    visible = image[max(y, 0) : max(y + h, 0), max(x, 0) : max(x + w, 0)]
    top, left = max(-y, 0), max(-x, 0)
    out[top : top + visible.shape[0], left : left + visible.shape[1]] = visible
    return out
