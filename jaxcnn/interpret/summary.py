"""Summary of a network: shapes, parameters and multiply-adds of each layer.

Nothing is computed.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn

from jaxcnn._util import paused_garbage_collection
from jaxcnn.arguments import check_image_shape
from jaxcnn.interpret._jaxpr import trace
from jaxcnn.interpret._layer_names import find_layers


class LayerSummary(NamedTuple):
    """A layer, or an operation between layers.

    Attributes:
      name: path of its module, or of the enclosing module and operation. An example of the second
        is "stage1_block1/add".
      kind: kind of the layer; "Conv 3x3 /2" has stride 2.
      shape: shape of its output, without the batch axis; () without output.
      params: number of trainable values, counted where they are used first.
      fixed: number of values not trained, such as BN's moving averages.
      macs: multiply-adds for one image.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    params: int
    fixed: int
    macs: int


class ModelSummary(NamedTuple):
    """Summaries of all layers and their sums, shown as a table.

    Attributes:
      rows: layers in the order of computation.
      params: number of trainable values.
      fixed: number of values that training does not step.
      macs: multiply-adds for one image.
      bytes: memory of the trainable and the other values, in bytes.
    """

    rows: tuple[LayerSummary, ...]
    params: int
    fixed: int
    macs: int
    bytes: int

    def __repr__(self) -> str:
        cells = [("layer", "kind", "output", "parameters", "multiply-adds")]
        cells += [
            (r.name, r.kind, _format_shape(r.shape), _format_count(r.params), _format_count(r.macs))
            for r in self.rows
        ]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(map(_align, line, widths, "<<>>>")).rstrip() for line in cells]
        rule = "-" * max(map(len, lines))
        return "\n".join([lines[0], rule, *lines[1:], rule, *self._totals()])

    def _totals(self) -> list[str]:
        kib, mib = self.bytes / 2**10, self.bytes / 2**20
        totals = [
            ("parameters, trainable", f"{self.params:,}"),
            ("not trainable (averages)", f"{self.fixed:,}"),
            ("memory of both", f"{mib:,.1f} MiB" if mib >= 1 else f"{kib:.1f} KiB"),
            ("multiply-adds of one image", f"{self.macs:,} ({_abbreviate(self.macs)})"),
        ]
        return [f"{name:<28}{value}" for name, value in totals]


def summary(model: nn.Module, shape: tuple[int, ...]) -> ModelSummary:
    """Return every layer of `model` for images of `shape`.

    The model is traced in test mode with abstract values. Nothing is computed or compiled, whatever
    its size. A row is a module that calls no other, or an operation between modules. Such
    operations are activations, pooling, addition or concatenation of branches, upsampling, padding,
    flattening and subsampling. Modules that test mode does not use (auxiliary heads) come last.

    Multiply-adds are those of convolutions and matrix products, with a weight at every position of
    the window, padding included. Biases, BN, activations, pooling and additions count none.
    Published numbers ("FLOPs" of papers and of torchvision) are counted like this. A transposed
    convolution counts the kernel at every pixel of its input.

    Args:
      model: any flax module of images float32 [b, h, w, c].
      shape: of one image, [h, w, c].

    Raises:
      ArgumentError: the shape is not three whole numbers, or a network of this library does not
        accept it.

    Example:
      >>> from jaxcnn.models import create_model
      >>> table = summary(create_model("lenet5", 10), (28, 28, 1))
      >>> table.params, table.macs, table.rows[2].kind
      (61706, 416520, 'Conv 5x5')
      >>> print(table)  # doctest: +ELLIPSIS
      layer           kind                   output  parameters  multiply-adds
      ------------------------------------------------------------------------
      image           Input                 28x28x1           -              -
      padding         Padding               32x32x1           -              -
      c1              Conv 5x5              28x28x6         156        117,600
      tanh            Tanh                  28x28x6           -              -
      average_pool    Average pooling 2x2   14x14x6           -              -
      c3              Conv 5x5             10x10x16       2,416        240,000
      ...
      multiply-adds of one image  416,520 (0.42 M)
    """
    shape = check_image_shape(shape)
    with paused_garbage_collection():
        traced = trace(model, shape)
    rows = [LayerSummary("image", "Input", shape, 0, 0, 0)]
    for name, kind, output_shape, variables, macs in find_layers(traced):
        counts = {"params": 0, "fixed": 0}
        for names in variables:
            counts["params" if names[0] == "params" else "fixed"] += traced.sizes[names].size
        rows.append(LayerSummary(name, kind, output_shape, counts["params"], counts["fixed"], macs))
    return ModelSummary(
        tuple(rows),
        params=sum(row.params for row in rows),
        fixed=sum(row.fixed for row in rows),
        macs=sum(row.macs for row in rows),
        bytes=sum(leaf.size * leaf.dtype.itemsize for leaf in traced.sizes.values()),
    )


def _align(text: str, width: int, side: str) -> str:
    return f"{text:{side}{width}}"


def _format_shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "-"


def _format_count(number: int) -> str:
    return f"{number:,}" if number else "-"


def _abbreviate(number: int) -> str:
    """Format a number in millions (M) or thousands of millions (G).

    Example:
      >>> _abbreviate(40_551_040), _abbreviate(4_089_184_256)
      ('40.55 M', '4.089 G')
    """
    return f"{number / 1e9:.3f} G" if number >= 1e9 else f"{number / 1e6:.2f} M"
