"""Workloads of the benchmark: a network, its optimizer and synthetic images."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

import jaxcnn as jc
from jaxcnn import parallel
from jaxcnn.data import Dataset, Split, channel_statistics
from jaxcnn.state import State, init_state
from jaxcnn.training import make_train_step, step_kwargs

Shape = tuple[int, int, int]
CIFAR, IMAGENET = (32, 32, 3), (224, 224, 3)
NETWORKS: dict[str, Shape] = {"lenet5-relu": (28, 28, 1)}
"""Image shape [h, w, c] by network name. There are 1000 classes at 224x224 and 10 elsewhere."""
NETWORKS |= {f"{family}{depth}": CIFAR for depth in (20, 56, 110) for family in ("plain", "resnet")}
NETWORKS |= {"vgg11-32": CIFAR, "vgg16-32": CIFAR, "resnet18": IMAGENET, "resnet50": IMAGENET}
NUM_TEST_IMAGES = 10
"""Images of the test after each measurement.

The clock of `train` has stopped before it.
"""


class Workload(NamedTuple):
    """Arguments of `train`."""

    model: nn.Module
    tx: Any
    data: Dataset
    config: jc.ExperimentConfig
    strategy: parallel.Strategy


def create_workload(
    name: str, batch_size: int, dtype: str, strategy: parallel.Strategy, num_steps: int = 1
) -> Workload:
    """Create a network with images of noise, momentum, decay, crop and flip.

    There are as many images as `num_steps` steps take. A row of `train` is then a pass over the
    data, as by default. Work that is done once a pass has its usual share.

    Args:
      name: a key of `NETWORKS`. Images of 224x224 pixels have the resized crop.
      batch_size: images a step, over all devices.
      dtype: of activations.
      strategy: the devices.
      num_steps: steps of a pass over the data.
    """
    shape = NETWORKS[name]
    augment = jc.AugmentConfig(padding=4, flip=True)
    if shape == IMAGENET:
        augment = jc.AugmentConfig(crop="resized", flip=True)
    data = noise_dataset(shape, num_steps * batch_size, 1000 if shape == IMAGENET else 10)
    config = jc.ExperimentConfig(
        dataset=data.name,
        model=name,
        model_kwargs={"dtype": dtype},
        optimizer=jc.OptimizerConfig(
            # The rate is low, since labels of noise and a rate of 0.1 would diverge.
            learning_rate=0.01,
            schedule="constant",
            milestones=(),
            # Decay is on all parameters, as in PyTorch's SGD.
            decay_mask="all",
        ),
        train=jc.TrainConfig(batch_size=batch_size, augment=augment),
    )
    model = jc.create_model(name, data.num_classes, dtype=dtype)
    return Workload(
        model, jc.create_optimizer(config.optimizer, config.train.num_steps), data, config, strategy
    )


def noise_dataset(shape: Shape, n: int, num_classes: int) -> Dataset:
    """Create `n` training images of uniform bytes [n, *shape] with random labels.

    Example:
      >>> data = noise_dataset((28, 28, 1), 20, 10)
      >>> data.train.images.shape, len(data.test.labels)
      ((20, 28, 28, 1), 10)
    """
    rng = np.random.default_rng(0)

    def split(n: int) -> Split:
        labels = rng.integers(0, num_classes, n).astype(np.int32)
        return Split(rng.integers(0, 256, (n, *shape), np.uint8), labels)

    train, names = split(n), tuple(f"class {i}" for i in range(num_classes))
    statistics = channel_statistics(train.images)
    return Dataset("noise", train, split(0), split(NUM_TEST_IMAGES), names, *statistics)


def train_step(workload: Workload) -> Any:
    """Return the step that `train` trains with."""
    kwargs = step_kwargs(workload.config.train)
    return make_train_step(
        workload.model, workload.tx, **kwargs, axis_name=workload.strategy.axis_name
    )


def should_rewrite_for_cpu(workload: Workload) -> bool:
    """Return whether `train` has this step compiled by `jaxcnn.cpu`."""
    config, shape = workload.config, workload.data.train.images.shape[1:]
    return workload.strategy.should_rewrite_for_cpu(
        config.train.num_steps * config.train.batch_size * math.prod(shape)
    )


def initial_state(workload: Workload) -> State:
    """Return the state at step 0, on the host."""
    return init_state(workload.model, workload.tx, workload.config.train, workload.data)
