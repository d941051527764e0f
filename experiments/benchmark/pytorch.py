"""PyTorch baseline: the same networks, layer by layer, and their training.

PyTorch is imported only when a function here needs it. Its steps are on a batch that lies ready on
the device as floats. Unlike `train`, they gather, crop and flip nothing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from experiments.benchmark.timing import TimedRun
from experiments.benchmark.workload import NETWORKS
from jaxcnn.data.types import one_line
from jaxcnn.models.resnet import LAYERS as IMAGENET_LAYERS
from jaxcnn.models.vgg import LAYERS as VGG_LAYERS
from jaxcnn.provenance import cores


def _torch() -> Any:
    """Import `torch`, which is no dependency."""
    return import_module("torch")


@lru_cache(maxsize=1)
def _residual_class() -> Any:
    """Define the class of a residual block, whose base class is PyTorch's."""
    torch = _torch()
    nn = torch.nn

    class Residual(nn.Module):
        """ReLU(body(x) + shortcut(x)).

        The shortcut is the projection, if any. Otherwise it takes every `stride`-th pixel and adds
        `padding` channels of zeros.
        """

        def __init__(self, body: Any, project: Any = None, stride: int = 1, padding: int = 0):
            super().__init__()
            self.body, self.project = body, project
            self.stride, self.padding = stride, padding

        def forward(self, x: Any) -> Any:
            y = self.body(x)
            if self.project is not None:
                x = self.project(x)
            elif self.stride > 1:
                x = x[:, :, :: self.stride, :: self.stride]
                x = nn.functional.pad(x, (0, 0, 0, 0, 0, self.padding))
            return torch.relu(x + y)

    return Residual


def _conv_norm(i: int, o: int, size: int, stride: int = 1, relu: bool = True) -> list[Any]:
    """Return a convolution from i to o channels, BN and optionally ReLU."""
    nn = _torch().nn
    layers = [nn.Conv2d(i, o, size, stride, size // 2, bias=False), nn.BatchNorm2d(o)]
    return [*layers, nn.ReLU()] if relu else layers


def cifar_resnet(depth: int, residual: bool) -> Any:
    """Build `jaxcnn.models.CifarResNet`, with shortcut A or none."""
    nn = _torch().nn
    layers, i = _conv_norm(3, 16, 3), 16
    for stage in range(3):
        for block in range((depth - 2) // 6):
            o, stride = 16 * 2**stage, 2 if stage and not block else 1
            body = [*_conv_norm(i, o, 3, stride), *_conv_norm(o, o, 3, relu=not residual)]
            if residual:
                body = [_residual_class()(nn.Sequential(*body), stride=stride, padding=o - i)]
            layers += body
            i = o
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(i, 10))


def imagenet_resnet(depth: int) -> Any:
    """Build `jaxcnn.models.ResNet` with shortcut B.

    The stride of a bottleneck is in its first layer.
    """
    nn = _torch().nn
    blocks, bottleneck = IMAGENET_LAYERS[depth]
    layers, i = [*_conv_norm(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)], 64
    for stage, count in enumerate(blocks):
        for block in range(count):
            f, stride = 64 * 2**stage, 2 if stage and not block else 1
            o = 4 * f if bottleneck else f
            last = _conv_norm(f, f, 3, relu=bottleneck)
            if bottleneck:
                last += _conv_norm(f, o, 1, relu=False)
            body = [*_conv_norm(i, f, 1 if bottleneck else 3, stride), *last]
            project = None
            if i != o or stride > 1:
                project = nn.Sequential(*_conv_norm(i, o, 1, stride, relu=False))
            layers.append(_residual_class()(nn.Sequential(*body), project))
            i = o
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(i, 1000))


def vgg(depth: int) -> Any:
    """Build `jaxcnn.models.VGG` for 32x32 pixels."""
    nn = _torch().nn
    layers, i = [], 3
    for stage, count in enumerate(VGG_LAYERS[depth]):
        for _ in range(count):
            o = min(64 * 2**stage, 512)
            layers += [nn.Conv2d(i, o, 3, padding=1), nn.ReLU()]
            i = o
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(i, 10))


def lenet() -> Any:
    """Build `jaxcnn.models.LeNet5` with ReLU and max pooling."""
    nn = _torch().nn
    convolutions = [
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
    ]
    dense = [
        *(nn.Conv2d(16, 120, 5), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    ]
    return nn.Sequential(*convolutions, *dense)


def pytorch_model(name: str) -> Any:
    """Build a network of the benchmark as a torch.nn.Module.

    It takes images [b, c, h, w] and returns logits [b, num_classes].

    Args:
      name: a key of `NETWORKS`. The module has as many parameters as the library's network.
    """
    if name == "lenet5-relu":
        return lenet()
    family, depth = re.sub(r"[\d-].*", "", name), int(re.findall(r"\d+", name)[0])
    if family == "vgg":
        return vgg(depth)
    if depth in IMAGENET_LAYERS:
        return imagenet_resnet(depth)
    return cifar_resnet(depth, family == "resnet")


def unavailable_reason(platform: str, devices: int) -> str | None:
    """Return why PyTorch cannot be measured, in one line.

    Args:
      platform: of JAX's devices.
      devices: their number.

    Returns:
      None if it can be measured.
    """
    if find_spec("torch") is None:
        return "PyTorch is not installed, so nothing is compared with it; pip install torch"
    if platform == "cpu":
        return None
    if not _torch().cuda.is_available():
        return (
            "PyTorch sees no GPU here, so nothing is compared with it; "
            "install a build of it for this GPU"
        )
    return (
        "PyTorch would run on one GPU only; write --devices 1 to compare" if devices > 1 else None
    )


def time_forms(
    name: str, batch_size: int, dtype: str, forms: Iterable[str], device: str, parameters: int
) -> tuple[dict[str, TimedRun], list[str]]:
    """Return the timers of a network's forms, each run once.

    Args:
      name: a key of `NETWORKS`.
      batch_size: images a step.
      dtype: "bfloat16" is automatic mixed precision.
      forms: eager, channels_last, compile, max-autotune.
      device: "cpu" or "cuda".
      parameters: number of parameters of the library's network, which PyTorch's must have too.

    Returns:
      Timers by form, and a line for each form that failed.
    """
    torch = _torch()
    # It compiles 8 networks and runs the next as eager.
    torch.compiler.reset()
    torch.set_num_threads(cores())
    torch.backends.cudnn.benchmark = True
    # TF32 on a GPU, as in JAX.
    torch.set_float32_matmul_precision("high" if device == "cuda" else "highest")
    runs, failures = {}, []
    for form in forms:
        torch.manual_seed(0)
        model = pytorch_model(name)
        num_parameters = sum(p.numel() for p in model.parameters())
        assert num_parameters == parameters, f"{name} is another network in PyTorch"
        try:
            run = time_training(model, form, batch_size, dtype, NETWORKS[name], device)
            run(1)
            runs[form] = run
        # No compiler or no memory must not end the measurement of the other forms.
        except Exception as error:
            message = one_line(error, 200)
            failures.append(f"{name} in PyTorch's form {form} failed: {message}")
    return runs, failures


def time_training(
    model: Any, form: str, batch_size: int, dtype: str, shape: tuple[int, ...], device: str
) -> TimedRun:
    """Return the timer of k training steps on one batch of noise.

    The loss is the cross-entropy, and the optimizer is SGD with momentum and weight decay. The
    arguments are those of `time_forms`.

    Args:
      model: moved to the device and trained.
      form: "eager" keeps the default memory layout; all others are in channels_last.
      batch_size: images a step.
      dtype: "bfloat16" is automatic mixed precision.
      shape: of an image, [h, w, c].
      device: "cpu" or "cuda".
    """
    torch = _torch()
    layout = torch.contiguous_format if form == "eager" else torch.channels_last
    h, w, c = shape
    model = model.to(device=device, memory_format=layout).train()
    x = torch.randn(batch_size, c, h, w).to(device=device, memory_format=layout)
    y = torch.randint(0, model[-1].out_features, (batch_size,)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    network = _compile(model, form, device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = torch.nn.functional.cross_entropy(network(x), y)
        loss.backward()
        optimizer.step()

    def run(k: int) -> float:
        _synchronize(device)
        start = time.perf_counter()
        for _ in range(k):
            step()
        _synchronize(device)
        return time.perf_counter() - start

    return run


def _compile(model: Any, form: str, device: str) -> Any:
    """Compile the model if the form is a mode of the compiler."""
    # "reduce-overhead" uses CUDA graphs.
    modes: Mapping[str, str | None] = {
        "compile": "reduce-overhead" if device == "cuda" else None,
        "max-autotune": "max-autotune",
    }
    return _torch().compile(model, mode=modes[form]) if form in modes else model


def _synchronize(device: str) -> None:
    """Wait for a GPU, whose work continues after the calls have returned."""
    if device == "cuda":
        _torch().cuda.synchronize()
