"""What a network is made of, layer by layer: shapes, parameters and multiply-adds, without computing anything."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn

from jaxcnn.arguments import check_image_shape
from jaxcnn.interpret._jaxpr import trace
from jaxcnn.interpret._layers import find_layers


class LayerSummary(NamedTuple):
    """One layer, or one operation that is no layer of its own."""

    name: str
    """Its module's path, or that of the module it stands in and what it does: "stage1_block1/add"."""
    kind: str
    """What it is: "Conv 3x3 /2" has stride 2."""
    shape: tuple[int, ...]
    """Of its output for one image, the example's axis left out; () where it has none."""
    params: int
    """Trainable numbers, counted where they are used first."""
    fixed: int
    """Numbers that training does not step, such as BN's moving averages."""
    macs: int
    """Multiply-adds for one image."""


class ModelSummary(NamedTuple):
    """All rows in the order of computation, and their sums; `print` makes a table of it."""

    rows: tuple[LayerSummary, ...]
    params: int
    """Trainable numbers."""
    fixed: int
    """Numbers that training does not step."""
    macs: int
    """Multiply-adds for one image."""
    bytes: int
    """Of memory that the trainable and the other numbers take."""

    def __str__(self) -> str:
        cells = [("layer", "kind", "output", "parameters", "multiply-adds")]
        cells += [(r.name, r.kind, _shape(r.shape), _count(r.params), _count(r.macs)) for r in self.rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(map(_placed, line, widths, "<<>>>")).rstrip() for line in cells]
        rule = "-" * max(map(len, lines))
        return "\n".join([lines[0], rule, *lines[1:], rule, *self._totals()])

    def _totals(self) -> list[str]:
        memory = f"{self.bytes / 2**20:,.1f} MiB" if self.bytes >= 2**20 else f"{self.bytes / 2**10:.1f} KiB"
        totals = [("parameters, trainable", f"{self.params:,}"), ("not trainable (averages)", f"{self.fixed:,}")]
        totals += [("memory of both", memory), ("multiply-adds of one image", f"{self.macs:,} ({_short(self.macs)})")]
        return [f"{name:<28}{value}" for name, value in totals]


def summary(model: nn.Module, shape: tuple[int, ...]) -> ModelSummary:
    """Every layer of `model` for images of `shape`, and what lies between the layers, in the order of computation.

    The model is traced in test mode with abstract values: nothing is computed or compiled, whatever its size. A row is a
    module that calls no other, or an operation between modules: an activation, pooling, an addition or a concatenation of
    branches, upsampling, padding, flattening, picking every other pixel. What test mode does not use (auxiliary heads) comes
    last.

    Multiply-adds are those of convolutions and matrix products with a weight at every place of the window, padding included;
    biases, BN, activations, pooling and additions count none. Published numbers ("FLOPs" of papers and of torchvision) are
    counted so. A transposed convolution counts the kernel at every pixel of its input.

    Args:
      model: any flax module of images float32 [b, h, w, c].
      shape: of one image, [h, w, c].

    Raises:
      ArgumentError: for a shape that is not three whole numbers, or, by the networks here, one that they cannot take.

    Example:
      >>> from jaxcnn.models import create_model
      >>> found = summary(create_model("lenet5", 10), (28, 28, 1))
      >>> found.params, found.macs, found.rows[2].kind
      (61706, 416520, 'Conv 5x5')
      >>> print(found)  # doctest: +ELLIPSIS
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
    traced = trace(model, shape)
    rows = [LayerSummary("image", "Input", shape, 0, 0, 0)]
    for name, kind, size, uses, macs in find_layers(traced):
        sizes = {"params": 0, "fixed": 0}
        for names in uses:
            sizes["params" if names[0] == "params" else "fixed"] += traced.sizes[names].size
        rows.append(LayerSummary(name, kind, size, sizes["params"], sizes["fixed"], macs))
    memory = sum(leaf.size * leaf.dtype.itemsize for leaf in traced.sizes.values())
    trainable, fixed, multiplied = (sum(getattr(row, field) for row in rows) for field in ("params", "fixed", "macs"))
    return ModelSummary(tuple(rows), trainable, fixed, multiplied, memory)


def _placed(text: str, width: int, side: str) -> str:
    return f"{text:{side}{width}}"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "-"


def _count(number: int) -> str:
    return f"{number:,}" if number else "-"


def _short(number: int) -> str:
    """In millions or thousands of millions.

    Example:
      >>> _short(40_551_040), _short(4_089_184_256)
      ('40.55 M', '4.089 G')
    """
    return f"{number / 1e9:.3f} G" if number >= 1e9 else f"{number / 1e6:.2f} M"
