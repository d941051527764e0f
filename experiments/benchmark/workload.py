"""Workloads of the benchmark: a network, its optimizer, synthetic images, and their costs."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

import jaxcnn as jc
from jaxcnn import parallel
from jaxcnn.data import Dataset, Split, channel_statistics
from jaxcnn.interpret import summary
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
PASSES = 3
"""Passes of a training step.

They are the forward pass, the gradient of the inputs and the gradient of the weights. Each has as
many multiply-adds, a little less in the first layer, whose inputs need no gradient. There are twice
that many FLOP.
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


def training_flop(workload: Workload) -> int:
    """Return FLOP of training on one image.

    There are 6 for each multiply-add of the convolutions and matrix products.
    """
    return 2 * PASSES * summary(workload.model, workload.data.train.images.shape[1:]).macs


def compiled_cost(workload: Workload) -> dict[str, Any]:
    """Return memory and memory traffic of the step that `train` compiles.

    Args:
      workload: should have one batch alone, because the estimate of traffic counts the whole data
        set.

    Returns:
      Bytes on each device, or None where XLA does not report them:

      - `memory`: temporaries, arguments and results without the data set. Results in an argument's
        place count once.
      - `traffic`: XLA's estimate for the compiled program of bytes from and to memory. What fused
        operations pass on is left out.
    """
    strategy, split = workload.strategy, workload.data.train
    carry, fixed = strategy.replicate(initial_state(workload)), strategy.replicate(split)
    index = np.arange(workload.config.train.batch_size, dtype=np.int32)
    program = strategy.compile(
        train_step(workload), carry, fixed, index, should_rewrite_for_cpu(workload)
    )
    plan, cost = program.memory_analysis(), program.cost_analysis()
    memory = None
    if plan is not None:
        buffers = plan.argument_size_in_bytes + plan.output_size_in_bytes
        buffers -= plan.alias_size_in_bytes
        dataset_bytes = sum(array.nbytes for array in split)
        memory = int(plan.temp_size_in_bytes + buffers - dataset_bytes)
    return {"memory": memory, "traffic": (cost or {}).get("bytes accessed")}
