"""Loading of a network's variables from a file of weights."""

from __future__ import annotations

import difflib
import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path as File
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from jaxcnn.arguments import check_image_shape, check_integer
from jaxcnn.checkpoint._integrity import join_first
from jaxcnn.config import format_value
from jaxcnn.models import PreActResNet, ResNet
from jaxcnn.models.calling import verify_model
from jaxcnn.weights._errors import NoEntriesError, WeightsError
from jaxcnn.weights._networks import (
    PADDINGS,
    Path,
    Traced,
    default_image_shape,
    describe_network,
    pads_channels,
    published_name,
    reorder_channels,
    trace,
)
from jaxcnn.weights._torch_file import is_average
from jaxcnn.weights.files import find_file, read_weights
from jaxcnn.weights.hub import fetch_config, is_hub_name, network_of, parse_hub_name
from jaxcnn.weights.layouts import (
    TORCH_NAMES,
    Layout,
    Leaf,
    from_file_layout,
    layouts,
    locate_leaves,
)

log = logging.getLogger("jaxcnn.weights")
_MAX_INITIALIZED = 1 << 28
"""Maximal numbers of an initialized array, a gibibyte; 21,843 classes take 45 million."""

NameMap = Mapping[str, str | None] | Callable[[str], str | None]
"""Our layer for each of the file's, or a function of names.

None skips a layer.

The function maps names such as "conv1.weight" to "stem.weight".
"""


def load_weights(
    model: nn.Module,
    file: str | File,
    shape: tuple[int, ...] | None = None,
    seed: int = 0,
    *,
    names: NameMap | None = None,
    entry: str | None = None,
    shortcut_padding: str | None = None,
    stride_in_3x3: bool | None = None,
) -> dict[str, Any]:
    """Return the variables of `model` from a file of weights.

    Nothing in the file is executed, and no network is computed. These layouts are known:

    - AlexNet, VGG, GoogLeNet (`googlenet-bn`) and ResNets: those of torchvision and timm.
    - Networks for 32x32 images and LeNet-5: those of the usual scripts.
    - Every network: the one that `export_weights` writes.
    - Anything else: with `names`.

    A prefix of all names is removed. Where the file has another number of classes, or no layer of
    logits, that layer is initialized, and a warning is logged. Auxiliary heads that the model lacks
    are skipped, and so is `num_batches_tracked`. A file does not distinguish a plain network from a
    residual one with shortcut "A". Nor does it hold the activations that it was trained with.

    Args:
      model: as `create_model` makes it, or a flax module of your own with `names`. Torchvision's
        and timm's bottleneck ResNets are `resnet50-v1.5`, `-101-`, `-152-`. Torchvision's published
        GoogLeNet needs `transform_input=True`.
      file: `.safetensors`, or `.pth`, `.pt`, `.th`, `.bin`, `.ckpt` of PyTorch; see `read_weights`.
        `hf:owner/name` is a repository of the Hugging Face Hub, optionally with `@revision` and
        `:file`. It takes `pip install "jaxcnn[hub]"`. float16 and bfloat16 are widened.
      shape: of the images, [h, w, c]; None is the network's usual one.
      seed: of layers of logits that are initialized.
      names: the model's layer for each of the file's, such as `{"conv1": "stem", "fc": "head"}`
        (None skips one). A function maps each whole name: "conv1.weight" to "stem.weight". Layers
        that are left out keep the names of a known layout.
      entry: the part of a checkpoint to take; see `read_weights`.
      shortcut_padding: where the file's network with shortcut "A" adds channels of zeros. "end" is
        behind the old ones (as here). "both" is half on each side, and the channels are permuted.
        None is the padding of the known layout.
      stride_in_3x3: whether the file's bottlenecks have their stride in the 3x3 convolution (v1.5)
        or in the first 1x1 (v1, False). None takes it from the file, and v1.5 where a file of
        PyTorch does not have it.

    Returns:
      {"params": ..., "batch_stats": ...} and the model's other collections, float32 arrays of NumPy
      in the order of axes of this library. Integers of other collections stay such.

    Raises:
      WeightsError: the file cannot be read, or is of another network. The message has all missing,
        unexpected and misshapen keys and a description of the file, and the attributes have the
        full lists. Bottleneck weights of the wrong one of v1 and v1.5, which have the same names
        and shapes, are refused too. So are timm's VGGs for images of 256 pixels and more, over
        which its dense layers slide.
      ArgumentError: `model` does not accept images of that shape.

    Example:
      >>> import tempfile
      >>> from jaxcnn.models import create_model
      >>> from jaxcnn.weights import export_weights
      >>> model = create_model("perceptron", num_classes=3)
      >>> file = File(tempfile.mkdtemp(), "small.safetensors")
      >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))
      >>> export_weights(model, variables, file)
      >>> loaded = load_weights(model, file, (2, 2, 1))
      >>> bool((loaded["params"]["head"]["kernel"] == variables["params"]["head"]["kernel"]).all())
      True
    """
    if isinstance(model, (str, File)) and isinstance(file, nn.Module):
        raise WeightsError(
            f"model is {format_value(model)} and file is a network; expected the model first. "
            f"Write load_weights(model, {format_value(str(model))})."
        )
    is_padding = isinstance(shortcut_padding, str) and shortcut_padding in PADDINGS
    if shortcut_padding is not None and not is_padding:
        raise WeightsError(
            f"shortcut_padding is {format_value(shortcut_padding)}; expected 'end', 'both' or "
            "None. Use 'end'."
        )
    if stride_in_3x3 is not None and not (isinstance(model, ResNet) and model.bottleneck):
        raise WeightsError(
            f"stride_in_3x3 is {format_value(stride_in_3x3)}, "
            "but the network has no bottlenecks; expected None. Leave it out."
        )
    verify_model(model)
    shape = default_image_shape(model) if shape is None else check_image_shape(shape)
    seed = check_integer("seed", seed, 0)
    if entry is not None and not isinstance(entry, str):
        raise WeightsError(
            f"entry is {format_value(entry)}; expected a name or None. Write "
            "entry='state_dict_ema'."
        )
    traced = trace(model, shape)
    # The architecture comes first, since its file is small.
    network = _check_architecture(model, str(file)) if is_hub_name(file) else None
    path = find_file(file)
    arrays, metadata = _read_entry(path, entry, len(traced.specs))
    if network is not None:
        metadata = {"model": network} | metadata
    arrays = {
        key: array for key, array in arrays.items() if not key.endswith("num_batches_tracked")
    }
    if names is not None:
        arrays = rename_arrays(arrays, names, {".".join(path[1:-1]) for path in traced.specs})
    candidates = layouts(model) if names is None else _renamed_layouts(model, traced)
    match = match_layout(file, traced.specs, arrays, candidates)
    fresh = _leaves_to_initialize(model, file, match, traced, seed)
    _check_sizes({path: traced.specs[path].shape for path in fresh})
    needed = {path: leaf for path, leaf in match.leaves.items() if path not in fresh}
    try:
        _check_arrays(model, file, needed, match)
    except WeightsError as error:
        if entry is not None and 2 * len(arrays) < len(traced.specs):
            raise WeightsError(
                f"entry is {format_value(entry)}, which has {len(arrays)} arrays in {file}, where "
                f"the network has {len(traced.specs)}; expected a whole network's. Use entry=None."
            ) from None
        only_shapes = not (error.missing or error.unexpected)
        if only_shapes and (fitting := _fitting_shape(model, shape, needed, match)):
            raise WeightsError(
                f"{file} is of the network for images of other shapes than {shape}: "
                f"{error.misshapen[0]}; expected the shape of its images. Use shape={fitting}.",
                misshapen=error.misshapen,
            ) from None
        raise
    _check_arithmetic(model, file, match, traced, shape)
    _check_version(model, file, match.layout, metadata, stride_in_3x3)
    result = {path: from_file_layout(match.arrays[leaf.key], leaf) for path, leaf in needed.items()}
    result |= {path: _initialize(path, traced.specs[path], traced.heads, seed) for path in fresh}
    if _padding(model, file, match, shortcut_padding) == "both":
        result = reorder_channels(model, result)
    return unflatten_dict(
        {path: _with_dtype(result[path], spec) for path, spec in traced.specs.items()}
    )


def _read_entry(
    file: str | File, entry: str | None, num_leaves: int
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the arrays and metadata of an entry, as `read_weights` does.

    Raises:
      WeightsError: they cannot be read, or there is no such entry.
    """
    if entry is None:
        return read_weights(file)
    try:
        return read_weights(file, entry)
    except NoEntriesError:
        whole, _ = read_weights(file)
        if len(_common_prefixes(whole, num_leaves)) > 1:
            raise
        raise WeightsError(
            f"entry is {format_value(entry)}, but {file} has no entries, only the arrays of one "
            "network; expected None. Use entry=None."
        ) from None


def _check_architecture(model: nn.Module, name: str) -> str | None:
    """Return our name of the network that a repository of the hub is of.

    It is None where the repository does not name one of ours.

    Raises:
      WeightsError: it is of another network than `model`.
    """
    config, _ = fetch_config(parse_hub_name(name))
    network, own = network_of(config), published_name(model)
    if network is None or own is None or network == own:
        return network
    versions = {name.removesuffix("-v1.5") for name in (network, own)}
    reason = ""
    if len(versions) == 1:
        reason = ", which has its strides in the 3x3 convolutions"
    raise WeightsError(
        f"{name} is of {network!r}{reason}, and the model is {own!r}; expected weights of the "
        f"model. Write create_model({network!r}, ...), or create_pretrained({name!r})."
    )


# ---------------------------------------------------------------- layout and prefix


class Match(NamedTuple):
    """The layout and arrays of a file, for a network.

    Attributes:
      layout: the one of the network's layouts with the most names in the file.
      leaves: location in the file of each leaf of the variables, by path.
      arrays: the file's, without the prefix that all of the network's names have there.
    """

    layout: Layout
    leaves: dict[Path, Leaf]
    arrays: dict[str, np.ndarray]


def match_layout(
    file: str | File,
    specs: Mapping[Path, Any],
    arrays: Mapping[str, np.ndarray],
    layouts: Sequence[Layout],
) -> Match:
    """Return the layout and prefix with the most names in the file.

    Arrays outside the prefix are skipped with a warning. Where there are several networks, it
    describes how to choose one.
    """
    best = Match(layouts[0], locate_leaves(layouts[0], specs), dict(arrays))
    best_count, best_prefix = 0, ""
    ties: list[str] = []
    for layout in layouts:
        for prefix in _common_prefixes(arrays, len(specs)):
            inside = {
                key.removeprefix(prefix): array
                for key, array in arrays.items()
                if key.startswith(prefix)
            }
            shapes = {key: array.shape for key, array in inside.items()}
            leaves = locate_leaves(layout, specs, shapes)
            count = sum(leaf.key in inside for leaf in leaves.values())
            if count > best_count:
                best = Match(layout, leaves, inside)
                best_count, best_prefix, ties = count, prefix, []
            elif count == best_count and layout is best.layout and count:
                ties.append(prefix)
    outside = [key for key in arrays if not key.startswith(best_prefix)]
    if ties:
        log.warning(
            "%s holds several networks: took %s; write entry=%s for another",
            file,
            format_value(best_prefix[:-1]),
            " or entry=".join(format_value(prefix.removesuffix(".")) for prefix in ties[:4]),
        )
    elif outside:
        log.warning(
            "%s: took the arrays called %s..., and skipped %d others (%s)",
            file,
            best_prefix,
            len(outside),
            join_first([format_value(key) for key in outside]),
        )
    return best


def _common_prefixes(arrays: Mapping[str, Any], num_leaves: int) -> list[str]:
    """Return the candidates for a prefix, no prefix first.

    A candidate is shared by at least half as many names as the network has arrays. Averages over
    training come last.
    """
    counts: Counter[str] = Counter()
    for key in arrays:
        parts = key.split(".")[:6]
        counts.update(".".join(parts[:end]) + "." for end in range(1, len(parts)))
    common = [prefix for prefix, count in counts.items() if 2 * count >= num_leaves]
    return ["", *sorted(common, key=is_average)]


def _renamed_layouts(model: nn.Module, traced: Traced) -> Sequence[Layout]:
    """Return the layouts of arrays that the user's name map has renamed.

    Our names come first, then the known ones.
    """
    own = {".".join(path[1:-1]): ".".join(path[1:-1]) for path in traced.specs}
    grids = {name: grid for name, grid in traced.grids.items() if grid}
    mixed = []
    for layout in layouts(model):
        if layout.layers is not None:
            layers = {name: (name, *_as_tuple(layout.layers.get(name, ()))) for name in own}
            mixed.append(layout._replace(layers=layers))
    return [Layout(own, grids), *mixed, Layout()]


def _as_tuple(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


# ---------------------------------------------------------------- the user's name map


def rename_arrays(
    arrays: Mapping[str, np.ndarray], names: NameMap, layers: Collection[str]
) -> dict[str, np.ndarray]:
    """Return the arrays under the names that `names` maps them to.

    A mapping leaves the names of other layers unchanged.

    Args:
      arrays: the file's, by name.
      names: a mapping replaces the longest of its entries that a name begins with (up to a dot).
      layers: ours, such as "stem" and "stage1_block1.conv1".

    Raises:
      WeightsError: an entry is in no name of the file, leads to no layer here, or two arrays have
        one name.
    """
    if isinstance(names, Mapping):
        _check_name_map(names, arrays, layers)
        rename: Callable[[str], str | None] = lambda key: _map_name(key, names)  # noqa: E731
    elif callable(names):
        rename = names
    else:
        raise WeightsError(
            f"names is {format_value(names)}; expected a dict or a function. Use "
            f"names={{'conv1': 'stem'}}."
        )
    result: dict[str, np.ndarray] = {}
    for key, array in arrays.items():
        new = rename(key)
        if new is None:
            continue
        if not isinstance(new, str):
            raise WeightsError(
                f"names gives {format_value(new)} for {format_value(key)}; expected a name, or "
                "None to skip it"
            )
        new = _with_torch_suffix(key, new)
        if new in result:
            raise WeightsError(
                f"names gives {format_value(new)} to two arrays, "
                f"the second is {format_value(key)}; expected one for each"
            )
        result[new] = array
    return result


def _map_name(key: str, names: Mapping[str, str | None]) -> str | None:
    """Return the new name, whose longest prefix in `names` is replaced."""
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        start = ".".join(parts[:end])
        if start in names:
            new = names[start]
            return None if new is None else ".".join([*filter(None, [new]), *parts[end:]])
    return key


# A bias has the same name and shape in both.
_TORCH_SUFFIXES = {name: torch for name, torch in TORCH_NAMES.items() if name != "bias"}


def _with_torch_suffix(key: str, new: str) -> str:
    """Return the new name, with PyTorch's last part if the old has it.

    The array has PyTorch's order of axes, whatever its name. So "head.kernel" for "fc.weight"
    becomes "head.weight".
    """
    start, _, leaf = new.rpartition(".")
    if leaf in _TORCH_SUFFIXES and key.rpartition(".")[2] in _TORCH_SUFFIXES.values():
        return f"{start}.{_TORCH_SUFFIXES[leaf]}"
    return new


def _check_name_map(
    names: Mapping[str, str | None], arrays: Mapping[str, np.ndarray], layers: Collection[str]
) -> None:
    for file_layer, layer in names.items():
        if not isinstance(file_layer, str) or not (layer is None or isinstance(layer, str)):
            raise WeightsError(
                f"names maps {format_value(file_layer)} to {format_value(layer)}; "
                "expected names. Use names={'conv1': 'stem'}."
            )
        if not any(key == file_layer or key.startswith(f"{file_layer}.") for key in arrays):
            file_layers = list(dict.fromkeys(key.rpartition(".")[0] for key in arrays))
            raise WeightsError(
                f"names has {format_value(file_layer)}, which no array in the file is called; "
                f"{_suggest(file_layer, file_layers)}"
            )
        if layer and not any(
            own == layer or own.startswith(f"{layer}.") or layer.startswith(f"{own}.")
            for own in layers
        ):
            raise WeightsError(
                f"names maps {format_value(file_layer)} to {format_value(layer)}, "
                f"no layer of the network; {_suggest(layer, layers)}"
            )


def _suggest(name: str, candidates: Collection[str]) -> str:
    closest = difflib.get_close_matches(name, candidates, n=3) or list(candidates)[:3]
    return "expected a layer such as " + ", ".join(format_value(layer) for layer in closest)


# ---------------------------------------------------------------- layers of logits


def _leaves_to_initialize(
    model: nn.Module, file: Any, match: Match, traced: Traced, seed: int
) -> set[Path]:
    """Return the leaves of layers of logits that cannot be loaded.

    A warning is logged.

    The file has them for other classes. Or it lacks them, and all other leaves fit.
    """
    heads = {
        path: leaf for path, leaf in match.leaves.items() if ".".join(path[1:-1]) in traced.heads
    }
    resized = {path for path, leaf in heads.items() if _has_other_classes(leaf, match.arrays)}
    missing = {path for path, leaf in match.leaves.items() if leaf.key not in match.arrays}
    keys = {leaf.key for leaf in match.leaves.values()}
    unknown = [key for key in match.arrays if key not in keys and not _is_auxiliary(model, key)]
    only_heads_missing = (
        missing <= heads.keys() and not unknown and len(missing) < len(match.leaves)
    )
    absent = missing if only_heads_missing else set()
    reasons = (
        (resized, "is of another number of classes"),
        (absent - resized, "has no layer of logits"),
    )
    for paths, reason in reasons:
        if paths:
            layers = ", ".join(sorted({".".join(path[1:-1]) for path in paths}))
            log.warning("%s %s: %s starts from scratch (seed %d)", file, reason, layers, seed)
    return resized | absent


def _check_sizes(shapes: Mapping[Path, tuple[int, ...]]) -> None:
    """Check that layers of logits that are initialized fit in memory.

    XLA ends the process where an array does not.

    Raises:
      WeightsError: an array has more than `_MAX_INITIALIZED` numbers.
    """
    # The largest first, as `shapes` has no fixed order.
    for path, shape in sorted(shapes.items(), key=lambda item: -math.prod(item[1])):
        if math.prod(shape) > _MAX_INITIALIZED:
            raise WeightsError(
                f"{'.'.join(path[1:])} has the shape {list(shape)}, more than {_MAX_INITIALIZED} "
                "numbers; expected a layer of logits that fits in memory. Use num_classes=1000."
            )


def _has_other_classes(leaf: Leaf, arrays: Mapping[str, np.ndarray]) -> bool:
    """Return whether the file's layer differs in the number of classes alone."""
    if leaf.key not in arrays:
        return False
    shape, axis = arrays[leaf.key].shape, 0 if leaf.torch else -1
    return any(
        len(shape) == len(form)
        and shape != form
        and np.delete(shape, axis).tolist() == np.delete(form, axis).tolist()
        for form in leaf.forms()
    )


def _initialize(
    path: Path, spec: jax.ShapeDtypeStruct, heads: Mapping[str, nn.Dense], seed: int
) -> np.ndarray:
    """Return a leaf of a layer of logits, from its own initializer."""
    layer = ".".join(path[1:-1])
    init = heads[layer].kernel_init if path[-1] == "kernel" else heads[layer].bias_init
    key = jax.random.fold_in(jax.random.key(seed), sorted(heads).index(layer))
    return np.asarray(init(key, spec.shape, jnp.float32))


# ---------------------------------------------------------------- checks


def _check_arrays(model: nn.Module, file: Any, needed: Mapping[Path, Leaf], match: Match) -> None:
    """Raise WeightsError, with all that does not fit, unless all does."""
    arrays = match.arrays
    expected = {leaf.key for leaf in match.leaves.values()}
    expected |= {key for key in arrays if _is_auxiliary(model, key)}
    missing = [leaf.key for leaf in needed.values() if leaf.key not in arrays]
    unexpected = [key for key in arrays if key not in expected]
    misshapen = [
        f"{leaf.key} is {arrays[leaf.key].dtype}{list(arrays[leaf.key].shape)}, expected "
        f"{list(leaf.forms()[0])}"
        for path, leaf in needed.items()
        if leaf.key in arrays
        and (arrays[leaf.key].shape not in leaf.forms() or not _is_valid(path, arrays[leaf.key]))
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    if not (missing or unexpected or misshapen):
        return
    problems = []
    for kind, keys in kinds.items():
        if keys:
            texts = [format_value(key, 120).strip("'") for key in keys]
            problems.append(f"{len(keys)} {kind} ({join_first(texts)})")
    name = published_name(model) or type(model).__name__
    raise WeightsError(
        f"{file} is not of {name}: {'; '.join(problems)}; "
        f"{_advice(arrays, missing, unexpected, needed)}",
        **kinds,
    )


def _fitting_shape(
    model: nn.Module, shape: tuple[int, ...], needed: Mapping[Path, Leaf], match: Match
) -> tuple[int, int, int] | None:
    """Return a shape of images for which the network has the file's arrays, or None."""
    arrays = match.arrays
    if not all(_is_valid(path, arrays[leaf.key]) for path, leaf in needed.items()):
        return None
    differing = [leaf for leaf in needed.values() if arrays[leaf.key].shape not in leaf.forms()]
    # The inputs of a convolution are the images' channels, or those of a multiple of them.
    sizes = [
        arrays[leaf.key].shape[1 if leaf.torch else -2]
        for leaf in differing
        if arrays[leaf.key].ndim == len(leaf.shape) == 4
    ]
    height, width, _ = shape
    channels = dict.fromkeys(sizes or [shape[2], 1, 3])
    sides = dict.fromkeys([(height, width), *((side, side) for side in (8, 28, 32, 64, 224))])
    for candidate in [(*side, channel) for side in sides for channel in channels]:
        # The network may refuse a shape in any way.
        try:
            specs = trace(model, candidate).specs
        except Exception:
            continue
        if all(
            path in specs
            and arrays[leaf.key].shape in leaf._replace(shape=specs[path].shape).forms()
            for path, leaf in needed.items()
        ):
            return candidate
    return None


def _advice(
    arrays: Mapping[str, Any],
    missing: list[str],
    unexpected: list[str],
    needed: Mapping[Path, Leaf],
) -> str:
    """Return a description of the file, and a suggestion."""
    description = describe_network(arrays)
    advice = f"it looks like {description}" if description else "build the network that it is of"
    if missing and unexpected and "." in unexpected[0]:
        path = next(path for path, leaf in needed.items() if leaf.key == missing[0])
        file_layer = format_value(unexpected[0].rpartition(".")[0], 60)
        layer = ".".join(path[1:-1])
        advice += f"; for other names of layers, write names={{{file_layer}: {layer!r}, ...}}"
    return advice


def _is_auxiliary(model: nn.Module, key: str) -> bool:
    """Return whether a key is of a missing auxiliary head."""
    return not getattr(model, "aux", True) and key.startswith(("aux1.", "aux2."))


def _check_arithmetic(
    model: nn.Module, file: Any, match: Match, traced: Traced, shape: tuple[int, ...]
) -> None:
    """Check that the file's network computes the same from the same arrays.

    It is checked as far as the names show it.

    Raises:
      WeightsError: it computes something else.
    """
    if match.layout.has_sliding_dense and max(shape[:2]) >= 256:
        size = "x".join(map(str, shape[:2]))
        raise WeightsError(
            f"{file} is timm's VGG, whose dense layers slide over the maps of images of {size}, "
            "where this one averages the maps to 7x7; expected images below 256x256. "
            "Use shape=(224, 224, 3), and images of that size."
        )
    if match.layout.layers is None:
        return
    kernels = {
        ".".join(path[1:-1]): leaf for path, leaf in match.leaves.items() if path[-1] == "kernel"
    }
    if transposed := [name for name in traced.transposed if name in kernels]:
        raise WeightsError(
            f"{file} has a transposed convolution for {transposed[0]!r}, "
            "whose axes and order differ between PyTorch and Flax; "
            "expected other layers. Write the file from Flax, with jaxcnn.export_weights."
        )
    for name, grid in traced.grids.items():
        if grid is None and match.layout.grids.get(name) is None and name in kernels:
            raise WeightsError(
                f"dense layer {name!r} takes flattened maps of unknown height and width, "
                "which PyTorch orders otherwise; expected square maps. "
                "Average them, or write the file from Flax, with jaxcnn.export_weights."
            )
    if isinstance(model, PreActResNet):
        _check_preactivation(model, file, match)


def _check_preactivation(model: PreActResNet, file: Any, match: Match) -> None:
    """Check what the shortcuts of a pre-activation network carry.

    The first block's shortcut may carry the values before BN or behind it.
    """
    stem = match.leaves.get(("params", "stem_norm", "scale"))
    in_block = stem is not None and "1." in stem.key.rpartition("bn")[0]
    if stem is not None and in_block and not (model.bottleneck and model.small):
        raise WeightsError(
            f"{file} has the first BN within the first block ({stem.key}), "
            "whose shortcut then carries what comes before it; "
            "expected BN of the stem's own. Use create_model(..., stem_norm=False)."
        )
    if any(".downsample" in leaf.key for leaf in match.leaves.values()):
        log.warning(
            "%s does not say whether its 1x1 shortcuts take a block's input before or behind BN "
            "and ReLU: taken as behind, as in He et al. 2016",
            file,
        )


def _padding(model: nn.Module, file: Any, match: Match, shortcut_padding: str | None) -> str | None:
    """Return where the file's network adds channels of zeros.

    Raises:
      WeightsError: neither the layout nor `shortcut_padding` determines it.
    """
    if not pads_channels(model) or match.layout.layers is None:
        if shortcut_padding is not None:
            reason = (
                "the file has this library's own layout"
                if pads_channels(model)
                else "the network has no shortcut 'A'"
            )
            raise WeightsError(
                f"shortcut_padding is {shortcut_padding!r}, but {reason}; expected None. Leave it "
                "out."
            )
        return None
    if shortcut_padding or match.layout.shortcut_padding:
        return shortcut_padding or match.layout.shortcut_padding
    head = match.leaves["params", "head", "kernel"].key
    # The name of akamaster/pytorch_resnet_cifar10, and scripts derived from it.
    if head == "linear.weight":
        log.warning(
            "%s does not say where shortcut A adds channels of zeros: taken as on both sides, "
            "as its names are those of akamaster/pytorch_resnet_cifar10; "
            "write shortcut_padding='end' if they are behind the old ones",
            file,
        )
        return "both"
    raise WeightsError(
        f"{file} does not say where shortcut A adds channels of zeros; "
        "expected shortcut_padding='end' (behind the old channels) or 'both' "
        "(half on each side). Write one of them, the one that gives the published error."
    )


def _check_version(
    model: nn.Module,
    file: Any,
    layout: Layout,
    metadata: Mapping[str, str],
    stride_in_3x3: bool | None,
) -> None:
    """Check that bottlenecks have their stride where the file's have it.

    It is in the first 1x1 (v1) or in the 3x3 convolution (v1.5). Both have the same names and
    shapes. PyTorch's weights are v1.5, unless the header of `export_weights` or the user has it
    otherwise. Our own files have the version in the header.
    """
    if not (isinstance(model, ResNet) and model.bottleneck):
        return
    header = metadata.get("model", "")
    default = model.stride_in_3x3 or layout.layers is not None
    is_v15 = default if stride_in_3x3 is None else stride_in_3x3
    if header:
        is_v15 = header.endswith("-v1.5")
    if header and stride_in_3x3 is not None and stride_in_3x3 != is_v15:
        raise WeightsError(
            f"stride_in_3x3 is {stride_in_3x3}, but {file} says that it is of {header!r}; leave it "
            "out"
        )
    if is_v15 == model.stride_in_3x3:
        return
    name = published_name(model) or "this network"
    expected = f"{name}-v1.5" if is_v15 else name.removesuffix("-v1.5")
    reason = (
        "has its stride in the 3x3 convolutions"
        if is_v15
        else "has its stride in the first 1x1 convolutions"
    )
    alternative = ""
    if not header and stride_in_3x3 is None:
        reason = (
            "does not say where its bottlenecks have their stride, "
            "and PyTorch's usually have it in the 3x3 convolutions"
        )
        alternative = ", or stride_in_3x3=False here if you know that it is v1"
    raise WeightsError(
        f"{file} {reason}, and {name} would compute something else with it; write "
        f"{expected!r}{alternative}"
    )


def _is_valid(path: Path, array: np.ndarray) -> bool:
    """Return whether an array's dtype fits; only other collections may have integers."""
    is_other = path[0] not in ("params", "batch_stats")
    return _is_float(array) or (is_other and array.dtype.kind in "iub")


def _is_float(array: np.ndarray) -> bool:
    return bool(jnp.issubdtype(array.dtype, jnp.floating))


def _with_dtype(array: np.ndarray, spec: Any) -> np.ndarray:
    """Return an array as float32, or as integers where the model has integers."""
    is_whole = np.dtype(spec.dtype).kind in "iub"
    return np.asarray(array, spec.dtype if is_whole else np.float32, order="C")
