"""What is measured: a network, its optimiser and synthetic images, as a user would give them to `train`."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

import jaxcnn as jc
from experiments.benchmark.options import IMAGENET, NETWORKS, Shape
from jaxcnn import parallel
from jaxcnn.data import Dataset, Split, channel_statistics

TESTED = 10
"""Images that `train` tests on at the end of each measurement, after its clock has stopped."""


class Job(NamedTuple):
    """All that `train` is given."""

    model: nn.Module
    tx: Any
    data: Dataset
    recipe: jc.Recipe
    strategy: parallel.Strategy


def job(name: str, batch: int, dtype: str, strategy: parallel.Strategy, steps: int = 1) -> Job:
    """The network called `name` on images of noise, with momentum, decay, crop and flip.

    There are as many images as `steps` steps take: a row of `train` is then a pass over the data, as by default, so that what
    is done once a pass has its usual share. The rate is low, since labels of noise and a rate of 0.1 would diverge;
    224x224 pixels have the resized crop.
    """
    shape = NETWORKS[name]
    view: dict[str, Any] = {"crop": "resized", "flip": True} if shape == IMAGENET else {"pad": 4, "flip": True}
    plain: dict[str, Any] = {"options": {"dtype": dtype}, "schedule": "constant", "drops": (), "lr": 0.01}
    data = noise(shape, steps * batch, 1000 if shape == IMAGENET else 10)
    # Decay is on all parameters, as in PyTorch's SGD.
    recipe = jc.Recipe(dataset=data.name, model=name, batch=batch, decay_on="all", **plain, **view)
    return Job(
        jc.create_model(name, len(data.classes), dtype=dtype), jc.create_optimizer(recipe), data, recipe, strategy
    )


def noise(shape: Shape, n: int, classes: int) -> Dataset:
    """`n` training images of uniform bytes [n, *shape] with labels at random.

    Example:
      >>> data = noise((28, 28, 1), 20, 10)
      >>> data.train.images.shape, len(data.test.labels)
      ((20, 28, 28, 1), 10)
    """
    rng = np.random.default_rng(0)

    def split(n: int) -> Split:
        labels = rng.integers(0, classes, n).astype(np.int32)
        return Split(rng.integers(0, 256, (n, *shape), np.uint8), labels)

    train, names = split(n), tuple(f"class {i}" for i in range(classes))
    return Dataset("noise", train, split(0), split(TESTED), names, *channel_statistics(train.images))
