"""`pretrained`: the variables of a network from a file of weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path as File
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxcnn.checkpoint.manifest import few
from jaxcnn.models import ResNet
from jaxcnn.recipe import shown
from jaxcnn.weights.layouts import Layout, Leaf, Path, layouts, leaves, ours
from jaxcnn.weights.naming import published_name
from jaxcnn.weights.reading import read
from jaxcnn.weights.types import WeightsError

log = logging.getLogger("jaxcnn.weights")


def pretrained(
    model: nn.Module, file: str | File, shape: tuple[int, ...] = (224, 224, 3), seed: int = 0
) -> dict[str, Any]:
    """The variables of `model` from a file of weights; nothing in the file is run, and no network computed.

    AlexNet, VGG, GoogLeNet (`googlenet-bn`) and ResNets are read in the layout of torchvision and timm, and every network
    in the one that `export` writes. Where the file has another number of classes, the layers of logits begin anew, which
    is logged as a warning. Auxiliary heads that the model lacks are passed over, and so is `num_batches_tracked`.

    Args:
      model: as `build` makes it. Torchvision's and timm's bottleneck ResNets are `resnet50-v1.5`, `-101-`, `-152-`, and
        torchvision's published GoogLeNet wants `transform_input=True`.
      file: `.safetensors`, or `.pth` / `.pt` of either kind; see `read`. float16 and bfloat16 are widened.
      shape: of the images, [h, w, c].
      seed: of layers of logits that begin anew.

    Returns:
      {"params": ..., "batch_stats": ...}, float32 arrays of NumPy in the order of axes of this library.

    Raises:
      WeightsError: for a file that cannot be read, or is of another network: all missing, unexpected and misshapen
        keys at once, with the full lists as attributes. Weights of bottlenecks for the wrong one of v1 and v1.5, which
        have the same names and shapes, are refused too.
      RecipeError: `model` takes no images of that shape.

    Example:
      >>> import tempfile
      >>> from jaxcnn.models import build
      >>> from jaxcnn.weights import export
      >>> model, file = build("perceptron", classes=3), File(tempfile.mkdtemp(), "small.safetensors")
      >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))
      >>> export(model, variables, file)
      >>> bool((pretrained(model, file, (2, 2, 1))["params"]["head"]["kernel"] == variables["params"]["head"]["kernel"]).all())
      True
    """
    arrays, metadata = read(file)
    specs, heads = traced(model, shape)
    arrays = {key: array for key, array in arrays.items() if not key.endswith("num_batches_tracked")}
    layout = _nearest(model, specs, arrays)
    expected = leaves(layout, specs)
    anew = {path for path, leaf in expected.items() if ".".join(path[1:-1]) in heads and _other_classes(leaf, arrays)}
    _check(model, file, {path: leaf for path, leaf in expected.items() if path not in anew}, arrays, expected)
    _same_version(model, file, layout, metadata)
    if anew:
        names = ", ".join(sorted({".".join(path[1:-1]) for path in anew}))
        log.warning("%s is of another number of classes: %s begins anew (seed %d)", file, names, seed)
    fresh = {path: _fresh(path, specs[path], heads, seed) for path in anew}
    found = {path: _float32(ours(arrays[leaf.key], leaf)) for path, leaf in expected.items() if path not in anew}
    return unflatten_dict({path: (fresh | found)[path] for path in expected})


def traced(model: nn.Module, shape: tuple[int, ...]) -> tuple[dict[Path, jax.ShapeDtypeStruct], dict[str, nn.Dense]]:
    """The shape of every leaf of the variables of `model`, by path, and its layers of logits, by name; nothing is computed."""
    dense: dict[str, nn.Dense] = {}

    def note(call, args, kwargs, context):
        if isinstance(context.module, nn.Dense):
            dense[".".join(context.module.path)] = context.module
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        specs: Any = flatten_dict(jax.eval_shape(model.init, jax.random.key(0), image))
    heads = {name: layer for name, layer in dense.items() if name.split(".")[-1] == "head"}
    return dict(specs), heads


def _nearest(model: nn.Module, specs: Mapping[Path, Any], arrays: Mapping[str, np.ndarray]) -> Layout:
    """The layout of which the file has the most names."""
    return max(layouts(model), key=lambda layout: sum(leaf.key in arrays for leaf in leaves(layout, specs).values()))


def _other_classes(leaf: Leaf, arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether the file's layer of logits differs in the number of classes, and in nothing else."""
    if leaf.key not in arrays:
        return False
    shape, axis = arrays[leaf.key].shape, 0 if leaf.torch else -1
    return any(
        len(shape) == len(form) and shape != form and np.delete(shape, axis).tolist() == np.delete(form, axis).tolist()
        for form in leaf.forms()
    )


def _check(model, file, needed: Mapping[Path, Leaf], arrays, expected: Mapping[Path, Leaf]) -> None:
    """WeightsError, with all that does not fit, unless all does."""
    known = {leaf.key for leaf in expected.values()} | {key for key in arrays if _auxiliary(model, key)}
    missing = [leaf.key for leaf in needed.values() if leaf.key not in arrays]
    unexpected = [key for key in arrays if key not in known]
    misshapen = [
        f"{leaf.key} is {arrays[leaf.key].dtype}{list(arrays[leaf.key].shape)}, expected {list(leaf.forms()[0])}"
        for leaf in needed.values()
        if leaf.key in arrays and (arrays[leaf.key].shape not in leaf.forms() or not _is_float(arrays[leaf.key]))
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    said = [
        f"{len(keys)} {kind} ({few([shown(key, 120).strip(chr(39)) for key in keys])})" for kind, keys in kinds.items()
    ]
    if missing or unexpected or misshapen:
        which = published_name(model) or type(model).__name__
        line = "; ".join(text for text, keys in zip(said, kinds.values(), strict=True) if keys)
        raise WeightsError(f"{file} is not of {which}: {line}; build the network that it is of", **kinds)


def _auxiliary(model: nn.Module, key: str) -> bool:
    return not getattr(model, "aux", True) and key.startswith(("aux1.", "aux2."))


def _same_version(model: nn.Module, file: Any, layout: Layout, metadata: Mapping[str, str]) -> None:
    """Bottlenecks with the stride in the first 1x1 (v1) or in the 3x3 (v1.5) have the same names and shapes.

    PyTorch's weights are v1.5 unless `export` wrote otherwise in the header; ours say what they are.
    """
    if not (isinstance(model, ResNet) and model.bottleneck):
        return
    said = metadata.get("model", "")
    newer = said.endswith("-v1.5") if said else model.stride_in_3x3 or layout.layers is not None
    if newer != model.stride_in_3x3:
        name = published_name(model) or "this network"
        right = f"{name}-v1.5" if newer else name.removesuffix("-v1.5")
        why = "has its stride in the 3x3 convolutions" if newer else "has its stride in the first 1x1 convolutions"
        raise WeightsError(f"{file} {why}, and {name} would compute something else with it; write {right!r}")


def _fresh(path: Path, spec: jax.ShapeDtypeStruct, heads: Mapping[str, nn.Dense], seed: int) -> np.ndarray:
    """A leaf of a layer of logits, as the network itself begins it."""
    layer = ".".join(path[1:-1])
    init = heads[layer].kernel_init if path[-1] == "kernel" else heads[layer].bias_init
    key = jax.random.fold_in(jax.random.key(seed), sorted(heads).index(layer))
    return np.asarray(init(key, spec.shape, jnp.float32))


def _is_float(array: np.ndarray) -> bool:
    return bool(jnp.issubdtype(array.dtype, jnp.floating))


def _float32(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)
