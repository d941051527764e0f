"""`python -m experiments.filters`: compute and draw every figure."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp

import experiments.filters as about
import jaxcnn as jc
from experiments._common import FigureOptions
from experiments._options import parse_options
from experiments.filters import figures
from jaxcnn import cli
from jaxcnn.config import check_choice
from jaxcnn.data import load_image

FIGURES = {
    "filters": figures.filters_figure,
    "convolution": figures.steps_figure,
    "im2col": figures.product_figure,
    "sizes": figures.sizes_figure,
    "pooling": figures.pooling_figure,
    "upsampling": figures.upsampling_figure,
    "lrn": figures.lrn_figure,
}
"""Name -> function that draws it from a photograph.

The photograph is float32 [size, size, 3] in 0..1.
"""


@dataclass(frozen=True)
class Options(FigureOptions):
    """Every setting of the script."""

    preset: Literal["photograph"] = "photograph"
    image: Path | None = None
    """Image file; None is scikit-learn's china.jpg."""
    size: int = 320
    """Side in pixels of the middle square; a multiple of 8."""
    figures: tuple[str, ...] = tuple(FIGURES)
    """Figures to draw."""
    out: Path = Path("runs/filters")
    """Folder for the figures."""


def load_photograph(options: Options) -> jax.Array:
    """Return the photograph, float32 [size, size, 3] in 0..1.

    Raises:
      DataError: it cannot be read.
    """
    import sklearn.datasets

    path = options.image or Path(sklearn.datasets.__file__).parent / "images" / "china.jpg"
    return jnp.asarray(load_image(path, options.size, options.size), jnp.float32) / 255


def main(args: list[str] | None = None) -> int:
    """Draw the figures, and return the exit code."""
    with cli.cli_errors():
        options = parse_options({"photograph": Options()}, args, description=about.__doc__)
        names = [check_choice("figure", name, FIGURES) for name in options.figures]
        if options.size % 8 or options.size < 64:
            raise jc.ArgumentError(
                f"size is {options.size}; expected a multiple of 8 of at least 64: write --size 320"
            )
        image = load_photograph(options)
        options.out.mkdir(parents=True, exist_ok=True)
        for name in names:
            options.save(FIGURES[name](image), options.out / name)
        files = [f"{name}.{options.format}" for name in names]
        print(f"wrote {', '.join(files)} to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
