"""What a step costs on paper: operations of the layers, and memory and traffic as XLA plans them."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.benchmark.networks import Job
from experiments.benchmark.pace import initial, tuned, whole_step
from jaxcnn.interpret import summary

PASSES = 3
"""Forward, the gradient of the inputs and that of the weights: as many multiply-adds each (a little less in the first layer,
whose inputs need no gradient). Twice that many FLOP."""


def flop(job: Job) -> int:
    """FLOP of training on one image: 6 for each multiply-add of its convolutions and matrix products."""
    return 2 * PASSES * summary(job.model, job.data.train.images.shape[1:]).macs


def planned(job: Job) -> dict[str, Any]:
    """Bytes of the step that `train` compiles, on each device: `memory` it needs, and `traffic` to and from memory.

    Memory is temporaries, arguments and results, those that take an argument's place counted once; the data set is left out.
    Traffic is XLA's estimate for the compiled program, what fused operations hand on left out; it counts the whole data set,
    so `job` should have one batch alone. None where XLA does not tell.
    """
    carry, fixed = job.strategy.replicate(initial(job)), job.strategy.replicate(job.data.train)
    index = np.arange(job.recipe.batch, dtype=np.int32)
    program = job.strategy.compile(whole_step(job), carry, fixed, index, tuned(job))
    plan, cost = program.memory_analysis(), program.cost_analysis()
    memory = None
    if plan is not None:
        held = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
        images = sum(array.nbytes for array in job.data.train)
        memory = int(plan.temp_size_in_bytes + held - images)
    return {"memory": memory, "traffic": (cost or {}).get("bytes accessed")}
