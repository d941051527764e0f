"""`load_weights`: the variables of a network from a file of weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path as File
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from jaxcnn.arguments import check_image_shape, check_integer
from jaxcnn.checkpoint._integrity import join_first
from jaxcnn.models import PreActResNet, ResNet
from jaxcnn.models.calling import verify_model
from jaxcnn.recipe import format_value
from jaxcnn.weights.channels import PADDINGS, pads_channels, reordered
from jaxcnn.weights.describing import looks_like
from jaxcnn.weights.layouts import Layout, Leaf, Path, layouts, ours
from jaxcnn.weights.matching import Match, match
from jaxcnn.weights.naming import published_name
from jaxcnn.weights.reading import read_weights
from jaxcnn.weights.renaming import Names, renamed
from jaxcnn.weights.tracing import Traced, trace, usual_shape
from jaxcnn.weights.types import WeightsError

log = logging.getLogger("jaxcnn.weights")


def load_weights(
    model: nn.Module,
    file: str | File,
    shape: tuple[int, ...] | None = None,
    seed: int = 0,
    *,
    names: Names | None = None,
    entry: str | None = None,
    shortcut_padding: str | None = None,
    stride_in_3x3: bool | None = None,
) -> dict[str, Any]:
    """The variables of `model` from a file of weights; nothing in the file is run, and no network computed.

    AlexNet, VGG, GoogLeNet (`googlenet-bn`) and ResNets are read in the layout of torchvision and timm, the networks for
    32x32 images and LeNet-5 in those of the usual scripts (`jaxcnn/weights/cifar.py`), and every network in the one that
    `export` writes; anything else with `names`. A prefix of all names is taken off. Where the file has another number of
    classes, or no layer of logits, that layer begins anew, which is logged as a warning. Auxiliary heads that the model
    lacks are passed over, and so is `num_batches_tracked`. A file cannot tell a plain network from a residual one with
    shortcut "A", nor which activations it was trained with.

    Args:
      model: as `create_model` makes it, or a flax module of your own with `names`. Torchvision's and timm's bottleneck ResNets
        are `resnet50-v1.5`, `-101-`, `-152-`, and torchvision's published GoogLeNet wants `transform_input=True`.
      file: `.safetensors`, or `.pth`, `.pt`, `.th`, `.bin`, `.ckpt` of PyTorch; see `read`. float16 and bfloat16 are widened.
      shape: of the images, [h, w, c]; None is the network's usual one.
      seed: of layers of logits that begin anew.
      names: the file's layer -> the model's, such as `{"conv1": "stem", "fc": "head"}` (None skips one), or a function of
        each whole name: "conv1.weight" -> "stem.weight". Layers it leaves out keep the names of a known layout.
      entry: the part of a checkpoint to take; see `read`.
      shortcut_padding: with shortcut "A", where the file's network adds channels of zeros: "end", behind the old ones (as
        here), or "both", half on each side (the channels are permuted). None is what the known layout says.
      stride_in_3x3: whether the file's bottlenecks have their stride in the 3x3 convolution (v1.5) or in the first 1x1 (v1,
        False). None is what the file says, and v1.5 where a file of PyTorch says nothing.

    Returns:
      {"params": ..., "batch_stats": ...}, float32 arrays of NumPy in the order of axes of this library.

    Raises:
      WeightsError: for a file that cannot be read, or is of another network: all missing, unexpected and misshapen
        keys at once, with the full lists as attributes, and what the file looks like. Weights of bottlenecks for the
        wrong one of v1 and v1.5, which have the same names and shapes, are refused too, and so are timm's VGGs for
        images of 256 pixels and more, over which its dense layers slide.
      ArgumentError: `model` takes no images of that shape.

    Example:
      >>> import tempfile
      >>> from jaxcnn.models import create_model
      >>> from jaxcnn.weights import export_weights
      >>> model, file = create_model("perceptron", classes=3), File(tempfile.mkdtemp(), "small.safetensors")
      >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))
      >>> export_weights(model, variables, file)
      >>> loaded = load_weights(model, file, (2, 2, 1))
      >>> bool((loaded["params"]["head"]["kernel"] == variables["params"]["head"]["kernel"]).all())
      True
    """
    if shortcut_padding is not None and not (isinstance(shortcut_padding, str) and shortcut_padding in PADDINGS):
        raise WeightsError(
            f"shortcut_padding is {format_value(shortcut_padding)}; expected 'end', 'both' or None. Use 'end'."
        )
    if stride_in_3x3 is not None and not (isinstance(model, ResNet) and model.bottleneck):
        raise WeightsError(
            f"stride_in_3x3 is {format_value(stride_in_3x3)}, but the network has no bottlenecks; expected None. Leave it out."
        )
    verify_model(model)
    shape = usual_shape(model) if shape is None else check_image_shape(shape)
    seed = check_integer("seed", seed, 0)
    if entry is not None and not isinstance(entry, str):
        raise WeightsError(f"entry is {format_value(entry)}; expected a name or None. Write entry='state_dict_ema'.")
    arrays, metadata = read_weights(file) if entry is None else read_weights(file, entry)
    seen = trace(model, shape)
    arrays = {key: array for key, array in arrays.items() if not key.endswith("num_batches_tracked")}
    if names is not None:
        arrays = renamed(arrays, names, {".".join(path[1:-1]) for path in seen.specs})
    found = match(file, seen.specs, arrays, layouts(model) if names is None else _own_names(model, seen))
    anew = _anew(model, file, found, seen, seed)
    needed = {path: leaf for path, leaf in found.leaves.items() if path not in anew}
    _check(model, file, needed, found)
    _same_arithmetic(model, file, found, seen, shape)
    _same_version(model, file, found.layout, metadata, stride_in_3x3)
    result = {path: ours(found.arrays[leaf.key], leaf) for path, leaf in needed.items()}
    result |= {path: _fresh(path, seen.specs[path], seen.heads, seed) for path in anew}
    if _padding(model, file, found, shortcut_padding) == "both":
        result = reordered(model, result)
    return unflatten_dict({path: _float32(result[path]) for path in seen.specs})


def traced(model: nn.Module, shape: tuple[int, ...]) -> tuple[dict[Path, jax.ShapeDtypeStruct], dict[str, nn.Dense]]:
    """The shape of every leaf of the variables of `model`, by path, and its layers of logits, by name; nothing is computed."""
    return trace(model, shape)[:2]


def _own_names(model: nn.Module, seen: Traced) -> Sequence[Layout]:
    """The layouts of arrays that a name map of the user's own has renamed: our names first, then the known ones."""
    own = {".".join(path[1:-1]): ".".join(path[1:-1]) for path in seen.specs}
    grids = {name: grid for name, grid in seen.grids.items() if grid}
    known = [layout for layout in layouts(model) if layout.layers is not None]
    mixed = [
        layout._replace(layers={name: (name, *_several((layout.layers or {}).get(name, ()))) for name in own})
        for layout in known
    ]
    return [Layout(own, grids), *mixed, Layout()]


def _several(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _anew(model: nn.Module, file: Any, found: Match, seen: Traced, seed: int) -> set[Path]:
    """The leaves of layers of logits that the file has for other classes, or, if all else fits, lacks; with a warning."""
    heads = {path: leaf for path, leaf in found.leaves.items() if ".".join(path[1:-1]) in seen.heads}
    other = {path for path, leaf in heads.items() if _other_classes(leaf, found.arrays)}
    missing = {path for path, leaf in found.leaves.items() if leaf.key not in found.arrays}
    keys = {leaf.key for leaf in found.leaves.values()}
    stray = [key for key in found.arrays if key not in keys and not _auxiliary(model, key)]
    none = missing if missing <= heads.keys() and not stray and len(missing) < len(found.leaves) else set()
    for paths, why in ((other, "is of another number of classes"), (none - other, "has no layer of logits")):
        if paths:
            layers = ", ".join(sorted({".".join(path[1:-1]) for path in paths}))
            log.warning("%s %s: %s begins anew (seed %d)", file, why, layers, seed)
    return other | none


def _other_classes(leaf: Leaf, arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether the file's layer of logits differs in the number of classes, and in nothing else."""
    if leaf.key not in arrays:
        return False
    shape, axis = arrays[leaf.key].shape, 0 if leaf.torch else -1
    return any(
        len(shape) == len(form) and shape != form and np.delete(shape, axis).tolist() == np.delete(form, axis).tolist()
        for form in leaf.forms()
    )


def _check(model: nn.Module, file: Any, needed: Mapping[Path, Leaf], found: Match) -> None:
    """WeightsError, with all that does not fit, unless all does."""
    arrays = found.arrays
    known = {leaf.key for leaf in found.leaves.values()} | {key for key in arrays if _auxiliary(model, key)}
    missing = [leaf.key for leaf in needed.values() if leaf.key not in arrays]
    unexpected = [key for key in arrays if key not in known]
    misshapen = [
        f"{leaf.key} is {arrays[leaf.key].dtype}{list(arrays[leaf.key].shape)}, expected {list(leaf.forms()[0])}"
        for leaf in needed.values()
        if leaf.key in arrays and (arrays[leaf.key].shape not in leaf.forms() or not _is_float(arrays[leaf.key]))
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    said = [
        f"{len(keys)} {kind} ({join_first([format_value(key, 120).strip(chr(39)) for key in keys])})"
        for kind, keys in kinds.items()
    ]
    if missing or unexpected or misshapen:
        which = published_name(model) or type(model).__name__
        line = "; ".join(text for text, keys in zip(said, kinds.values(), strict=True) if keys)
        raise WeightsError(f"{file} is not of {which}: {line}; {_advice(arrays, missing, unexpected, needed)}", **kinds)


def _advice(arrays: Mapping[str, Any], missing: list[str], unexpected: list[str], needed: Mapping[Path, Leaf]) -> str:
    """What the file looks like, and what to try."""
    looks = looks_like(arrays)
    advice = f"it looks like {looks}" if looks else "build the network that it is of"
    if missing and unexpected:
        path = next(path for path, leaf in needed.items() if leaf.key == missing[0])
        theirs = format_value(unexpected[0].rpartition(".")[0], 60)
        advice += f"; for other names of layers, write names={{{theirs}: {'.'.join(path[1:-1])!r}, ...}}"
    return advice


def _auxiliary(model: nn.Module, key: str) -> bool:
    return not getattr(model, "aux", True) and key.startswith(("aux1.", "aux2."))


def _same_arithmetic(model: nn.Module, file: Any, found: Match, seen: Traced, shape: tuple[int, ...]) -> None:
    """WeightsError where the file's network computes something else from the same arrays, as far as the names tell."""
    if found.layout.slides and max(shape[:2]) >= 256:
        size = "x".join(map(str, shape[:2]))
        raise WeightsError(
            f"{file} is timm's VGG, whose dense layers slide over the maps of images of {size}, where this one averages the "
            "maps to 7x7; expected images below 256x256. Use shape=(224, 224, 3), and images of that size."
        )
    if found.layout.layers is None:
        return
    kernels = {".".join(path[1:-1]): leaf for path, leaf in found.leaves.items() if path[-1] == "kernel"}
    if odd := [name for name in seen.transposed if name in kernels]:
        raise WeightsError(
            f"{file} has a transposed convolution for {odd[0]!r}, whose axes and order differ between PyTorch and Flax; "
            "expected other layers. Write the file from Flax, with jaxcnn.export."
        )
    for name, grid in seen.grids.items():
        if grid is None and found.layout.grids.get(name) is None and name in kernels:
            raise WeightsError(
                f"dense layer {name!r} takes flattened maps of unknown height and width, which PyTorch orders otherwise; "
                "expected square maps. Average them, or write the file from Flax, with jaxcnn.export."
            )
    if isinstance(model, PreActResNet):
        _same_order(model, file, found)


def _same_order(model: PreActResNet, file: Any, found: Match) -> None:
    """Where activation stands before weights, the first block's shortcut may carry what comes before BN or behind it."""
    stem = found.leaves.get(("params", "stem_norm", "scale"))
    if stem and "1." in stem.key.rpartition("bn")[0] and not (model.bottleneck and model.small):
        raise WeightsError(
            f"{file} has the first BN within the first block ({stem.key}), whose shortcut then carries what comes before it; "
            "expected BN of the stem's own. Use build(..., stem_norm=False)."
        )
    if any(".downsample" in leaf.key for leaf in found.leaves.values()):
        log.warning(
            "%s does not say whether its 1x1 shortcuts take a block's input before or behind BN and ReLU: taken as behind, "
            "as in He et al. 2016",
            file,
        )


def _padding(model: nn.Module, file: Any, found: Match, asked: str | None) -> str | None:
    """Where the file's network adds channels of zeros; WeightsError if that is neither known nor given."""
    if not pads_channels(model) or found.layout.layers is None:
        if asked is not None:
            why = (
                "the file has this library's own layout" if pads_channels(model) else "the network has no shortcut 'A'"
            )
            raise WeightsError(f"shortcut_padding is {asked!r}, but {why}; expected None. Leave it out.")
        return None
    known = found.layout.padding
    if asked or known:
        return asked or known
    head = found.leaves["params", "head", "kernel"].key
    if head == "linear.weight":  # akamaster/pytorch_resnet_cifar10, and what follows it
        log.warning(
            "%s does not say where shortcut A adds channels of zeros: taken as on both sides, as its names are those of "
            "akamaster/pytorch_resnet_cifar10; write shortcut_padding='end' if they are behind the old ones",
            file,
        )
        return "both"
    raise WeightsError(
        f"{file} does not say where shortcut A adds channels of zeros; expected shortcut_padding='end' (behind the old "
        "channels) or 'both' (half on each side). Write one of them, the one that gives the published error."
    )


def _same_version(model: nn.Module, file: Any, layout: Layout, metadata: Mapping[str, str], asked: bool | None) -> None:
    """Bottlenecks with the stride in the first 1x1 (v1) or in the 3x3 (v1.5) have the same names and shapes.

    PyTorch's weights are v1.5 unless `export` wrote otherwise in the header, or the user says so; ours say what they are.
    """
    if not (isinstance(model, ResNet) and model.bottleneck):
        return
    said = metadata.get("model", "")
    guess = model.stride_in_3x3 or layout.layers is not None
    newer = said.endswith("-v1.5") if said else guess if asked is None else asked
    if said and asked is not None and asked != newer:
        raise WeightsError(f"stride_in_3x3 is {asked}, but {file} says that it is of {said!r}; leave it out")
    if newer != model.stride_in_3x3:
        name = published_name(model) or "this network"
        right = f"{name}-v1.5" if newer else name.removesuffix("-v1.5")
        why = "has its stride in the 3x3 convolutions" if newer else "has its stride in the first 1x1 convolutions"
        if not said and asked is None:
            why = "does not say where its bottlenecks have their stride, and PyTorch's usually have it in the 3x3 convolutions"
        more = "" if said or asked is not None else ", or stride_in_3x3=False here if you know that it is v1"
        raise WeightsError(f"{file} {why}, and {name} would compute something else with it; write {right!r}{more}")


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
