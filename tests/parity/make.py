"""Make the stored arrays of `tests/weights/test_weights.py`: PyTorch's own outputs, from weights made of their names.

    pip install -e ".[parity]" && python tests/parity/make.py          (1 minute; writes *.npz, *.pth beside itself)

torchvision has AlexNet, VGG, GoogLeNet and ResNet; timm's ResNet and VGG are written by other people, and agree.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import known
import numpy as np
import timm
import torch
import torchvision

HERE = Path(__file__).parent
CLASSES = 20
PLAIN, INCEPTION, RESIDUAL = (
    2.0,
    1.2,
    0.6,
)  # variance of kernels times fan_in: activations stay of order 1
ALEXNET = {f"conv{i}": (f"features.{at}", "out") for i, at in enumerate((1, 4, 7, 9, 11), 1)}
ALEXNET |= {"dense1": ("classifier.2", "out"), "dense2": ("classifier.5", "out")}
RESNET = {"stem": ("maxpool", "in"), "pool": ("avgpool", "out")} | {
    f"stage{i}": (f"layer{i}", "out") for i in range(1, 5)
}
TIMM_RESNET = RESNET | {"pool": ("global_pool", "out")}
MODULES = [f"inception{name}" for name in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")]
GOOGLENET = {name: (name, "out") for name in ("conv1", "conv2", "conv3", *MODULES)} | {
    "pool": ("avgpool", "out")
}
GOOGLENET |= {"aux1": ("aux1", "out"), "aux2": ("aux2", "out")}


def vgg(model: Any, dense: tuple[str, str]) -> dict[str, tuple[str, str]]:
    pools = [
        name
        for name, layer in model.features.named_children()
        if isinstance(layer, torch.nn.MaxPool2d)
    ]
    stages = {f"stage{i}": (f"features.{at}", "in") for i, at in enumerate(pools, 1)}
    return stages | {"dense1": (dense[0], "out"), "dense2": (dense[1], "out")}


def last(maps: torch.Tensor) -> np.ndarray:
    """[b, c, h, w] -> [b, h, w, c], and [b, c] of a global mean."""
    maps = maps.flatten(1) if maps.ndim == 4 and maps.shape[2:] == (1, 1) else maps
    return (maps.permute(0, 2, 3, 1) if maps.ndim == 4 else maps).numpy().copy()


def made(
    model: Any, places: dict[str, tuple[str, str]], gain: float, image: tuple[int, ...]
) -> known.Case:
    """Run `model` on [b, h, w, c] pixels, with weights made from their names, and keep what goes by at `places`."""
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict(
        {name: torch.from_numpy(known.array(name, shape, gain)) for name, shape in shapes.items()}
    )
    seen, layers = {}, dict(model.eval().named_modules())
    for name, (layer, side) in places.items():

        def note(_layer, inputs, output, name=name, side=side):
            seen[name] = last(inputs[0] if side == "in" else output)

        layers[layer].register_forward_hook(note)
    with torch.no_grad():
        logits = model(torch.from_numpy(known.image(image).transpose(0, 3, 1, 2).copy()))
        for name, on in (("aux1", "inception4a"), ("aux2", "inception4d")):
            if name in places:  # heads run in training only, but are the same functions outside it
                layers[name](torch.from_numpy(seen[on].transpose(0, 3, 1, 2).copy()))
    stages = {name: (seen[name].shape, known.sample(name, seen[name])) for name in places}
    return known.Case(shapes, gain, image, logits.numpy(), stages)


def networks(name: str) -> tuple[Any, dict[str, tuple[str, str]], float]:
    """The network that another library calls `name` ("timm:resnet18"), where its stages are, and the gain."""
    options = {"num_classes": CLASSES}
    if name.startswith("timm:"):
        model = timm.create_model(name[5:], **options)
        if "resnet" in name:
            return model, TIMM_RESNET, RESIDUAL
        return model, vgg(model, ("pre_logits.act1", "pre_logits.act2")), PLAIN
    if name.startswith("googlenet"):
        shifted = name == "googlenet-shifted"
        model = torchvision.models.googlenet(transform_input=shifted, init_weights=False, **options)
        return model, GOOGLENET, INCEPTION
    model = torchvision.models.get_model(name, **options)
    if name.startswith("resnet"):
        return model, RESNET, RESIDUAL
    return (
        (model, ALEXNET, PLAIN)
        if name == "alexnet"
        else (model, vgg(model, ("classifier.1", "classifier.4")), PLAIN)
    )


SIZES = {"alexnet": (1, 224, 224, 3), "vgg11": (1, 160, 128, 3)}
NAMES = [
    "alexnet",
    "vgg11",
    "vgg11_bn",
    "vgg16",
    "timm:vgg11_bn",
    "googlenet",
    "googlenet-shifted",
    "resnet18",
    "resnet34",
]
NAMES += ["resnet50", "timm:resnet18", "timm:resnet50", "resnet101", "resnet152"]


def case(name: str) -> known.Case:
    return made(*networks(name), SIZES.get(name, (2, 96, 64, 3)))


def write_torch_files() -> None:
    """A tiny state dict in both formats: a transposed tensor, two that share a storage, half precisions, a count."""
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = {
        "whole": base,
        "turned": base.t(),
        "part": base[1:3, ::2],
        "scalar": torch.tensor(2.5),
    }
    tensors |= {"half": base[0].half(), "brain": base[0].bfloat16(), "empty": torch.zeros(0, 3)}
    tensors |= {
        "parameter": torch.nn.Parameter(base[3].clone()),
        "bn.num_batches_tracked": torch.tensor(7),
    }
    tree = torch.nn.Module().state_dict() | tensors
    torch.save(tree, HERE / "tiny-zip.pth")
    torch.save(tree, HERE / "tiny-legacy.pth", _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    write_torch_files()
    for each in NAMES:
        found = case(each)
        known.store(HERE / f"{each.replace(':', '-')}.npz", found)
        spread = {name: float(np.abs(values).max()) for name, (_, values) in found.stages.items()}
        print(each, "logits up to", np.abs(found.logits).max(), spread, flush=True)
