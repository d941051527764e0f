"""The same networks in PyTorch, trained there: what the library is measured beside. PyTorch is imported only when asked for.

Its steps are on a batch that lies ready on the device as floats: unlike `train`, they gather, crop and flip nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any

from experiments.benchmark.counterparts import counterpart, pytorch
from experiments.benchmark.machine import cores
from experiments.benchmark.options import NETWORKS
from experiments.benchmark.pace import Run
from jaxcnn.data.types import one_line


def absent(platform: str, devices: int) -> str | None:
    """Why PyTorch cannot be measured beside, in one line; None if it can."""
    if find_spec("torch") is None:
        return "PyTorch is not installed, so nothing is compared with it; pip install torch"
    if platform == "cpu":
        return None
    torch = pytorch()

    if not torch.cuda.is_available():
        return "PyTorch sees no GPU here, so nothing is compared with it; install a build of it for this GPU"
    return "PyTorch would run on one GPU only; write --devices 1 to compare" if devices > 1 else None


def runs(
    name: str, batch: int, dtype: str, forms: Iterable[str], device: str, parameters: int
) -> tuple[dict[str, Run], list[str]]:
    """Form -> what times k steps of it, each tried once; and a line for each form that failed.

    Args:
      name: a key of `NETWORKS`.
      batch: images a step.
      dtype: "bfloat16" is automatic mixed precision.
      forms: eager, channels_last, compile, max-autotune.
      device: "cpu" or "cuda".
      parameters: how many the counterpart must have, as the library's network has.
    """
    torch = pytorch()

    torch.compiler.reset()  # it compiles 8 networks and runs the next as eager
    torch.set_num_threads(cores())
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high" if device == "cuda" else "highest")  # TF32, as JAX has it there
    works, failed = {}, []
    for form in forms:
        torch.manual_seed(0)
        model = counterpart(name)
        assert sum(p.numel() for p in model.parameters()) == parameters, f"{name} is another network in PyTorch"
        try:
            run = trained(model, form, batch, dtype, NETWORKS[name], device)
            run(1)
            works[form] = run
        except Exception as error:  # no compiler, no memory: the other forms are there
            failed.append(f"{name} in PyTorch's form {form} failed: {one_line(error, 200)}")
    return works, failed


def trained(model: Any, form: str, batch: int, dtype: str, shape: tuple[int, ...], device: str) -> Run:
    """What times k steps of SGD with momentum and decay on the cross-entropy of one batch of noise."""
    torch = pytorch()

    layout = torch.contiguous_format if form == "eager" else torch.channels_last
    h, w, c = shape
    model = model.to(device=device, memory_format=layout).train()
    x = torch.randn(batch, c, h, w).to(device=device, memory_format=layout)
    y = torch.randint(0, model[-1].out_features, (batch,)).to(device)
    method = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    network = _compiled(model, form, device)

    def step() -> None:
        method.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = torch.nn.functional.cross_entropy(network(x), y)
        loss.backward()
        method.step()

    def run(k: int) -> float:
        _synchronise(device)
        began = time.perf_counter()
        for _ in range(k):
            step()
        _synchronise(device)
        return time.perf_counter() - began

    return run


def _compiled(model: Any, form: str, device: str) -> Any:
    torch = pytorch()

    modes: Mapping[str, str | None] = {"compile": "reduce-overhead" if device == "cuda" else None}
    modes |= {"max-autotune": "max-autotune"}
    return torch.compile(model, mode=modes[form]) if form in modes else model


def _synchronise(device: str) -> None:
    """Wait for a GPU: its work goes on after the calls have returned."""
    torch = pytorch()

    if device == "cuda":
        torch.cuda.synchronize()
