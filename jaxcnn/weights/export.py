"""Export of a network's variables to a file that PyTorch can load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict

from jaxcnn._util import write_atomically
from jaxcnn.arguments import check_mapping, check_path, format_value
from jaxcnn.checkpoint._integrity import join_first
from jaxcnn.models.calling import is_library_model, verify_model
from jaxcnn.optim import eval_params
from jaxcnn.weights._errors import WeightsError
from jaxcnn.weights._networks import default_image_shape, published_name, trace
from jaxcnn.weights.layouts import layouts, locate_leaves, to_file_layout


def export_weights(
    model: nn.Module,
    variables: Mapping[str, Any] | Any,
    file: str | Path,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the variables of `model` to a safetensors file.

    The layout is torchvision's where it has one for the network, else our own.
    `torchvision.models.resnet50().load_state_dict(safetensors.torch.load_file(file))` loads the
    former, with `strict=True`. Our own layout has our names ("stage1_block1.conv1.kernel") and
    order of axes. `load_weights` reads both.

    Args:
      model: as `create_model` makes it.
      variables: {"params": ..., "batch_stats": ...}, of floats, or a State. Other collections are
        written for a module of your own, and left out for a network of this library.
      file: written whole or not at all. An existing file is replaced, a link too.
      metadata: texts for the header. "model" is added where weights are published under a name of
        the network. It distinguishes v1 from v1.5.

    Raises:
      WeightsError: the file cannot be written, the variables are of another network, or metadata
        is no text or has another network's name.

    Example:
      >>> import tempfile
      >>> import jax
      >>> from jaxcnn.models import create_model
      >>> from jaxcnn.weights import read_metadata
      >>> model = create_model("perceptron", num_classes=3)
      >>> file = Path(tempfile.mkdtemp(), "small.safetensors")
      >>> variables = model.init(jax.random.key(0), np.zeros((1, 2, 2, 1), "float32"))
      >>> export_weights(model, variables, file, {"classes": "cat dog owl"})
      >>> read_metadata(file)
      {'classes': 'cat dog owl'}
    """
    from safetensors.numpy import save

    verify_model(model)
    path = check_path("file", file, WeightsError, example="'resnet20.safetensors'")
    if not path.name or path.is_dir():
        raise WeightsError(
            f"file is {format_value(str(file))}, a folder; expected a file. Write "
            "'resnet20.safetensors'."
        )
    texts = check_mapping("metadata", {} if metadata is None else metadata, "{'by': 'us'}")
    # A State has the shape of its images.
    shape = np.shape(getattr(getattr(variables, "normalizer", None), "mean", ()))
    variables = _check_variables(variables)
    flat = _stored_arrays(model, variables)
    _check_network(model, flat, shape)
    layout = layouts(model)[0]
    leaves = locate_leaves(layout, flat)
    arrays = {
        leaf.key: np.asarray(to_file_layout(flat[key], leaf), order="C")
        for key, leaf in leaves.items()
    }
    header = _header(model, texts)
    if layout.layers is not None:
        # PyTorch's state dict has a count for each BN, and `strict=True` expects every key.
        keys = [leaf.key for leaf in leaves.values() if leaf.key.endswith("running_mean")]
        norms = [key.removesuffix("running_mean") for key in keys]
        arrays |= {f"{name}num_batches_tracked": np.zeros((), np.int64) for name in norms}
        header |= {"format": "pt"}
    _write(path, save(arrays, header))


def _stored_arrays(
    model: nn.Module, variables: Mapping[str, Any]
) -> dict[tuple[str, ...], np.ndarray]:
    """Return the arrays to write, by collection and path; floating ones as float32."""
    names = ("params", "batch_stats") if is_library_model(model) else tuple(variables)
    collections: Any = nn.meta.unbox({name: variables[name] for name in names if name in variables})
    return {
        tuple(map(str, path)): np.asarray(leaf)
        if np.asarray(leaf).dtype.kind in "iub" and path[0] not in ("params", "batch_stats")
        else np.asarray(leaf, np.float32)
        for path, leaf in flatten_dict(collections).items()
        # Values that were sown are in tuples, and nothing reads them.
        if not isinstance(leaf, tuple)
    }


def _check_variables(value: Any) -> Mapping[str, Any]:
    """Return the variables at which a State is evaluated, or `value`.

    Raises:
      WeightsError: `value` is neither a State nor variables.
    """
    if (
        isinstance(value, tuple)
        and hasattr(value, "params")
        and hasattr(value, "model_state")
        and hasattr(value, "opt_state")
    ):
        state: Any = value
        return {"params": eval_params(state.opt_state, state.params), **state.model_state}
    if isinstance(value, Mapping) and isinstance(value.get("params"), Mapping):
        return value
    is_mapping = isinstance(value, Mapping)
    problem = "has no params" if is_mapping else f"is of type {type(value).__name__}"
    raise WeightsError(
        f"variables {problem}; expected a State, or the collections of a network. Write "
        f"{{'params': params, ...}}."
    )


def _check_network(
    model: nn.Module, arrays: Mapping[tuple[str, ...], np.ndarray], state_shape: tuple[int, ...]
) -> None:
    """Check that the arrays are of `model`, for images of some shape.

    Sizes that differ between images of several shapes are not checked, nor is a module that is
    built for images of one shape only.

    Raises:
      WeightsError: they are of another network.
    """
    height, width, channels = default_image_shape(model)
    shapes = [(height, width, channels), (height, width, 4 - channels), (32, 32, 1), (28, 28, 3)]
    # Tracing takes up to seconds, so the most likely shape comes first.
    shapes = [state_shape, *shapes] if len(state_shape) == 3 else shapes
    traces: list[dict[tuple[str, ...], tuple[int, ...]]] = []
    found = {path: array.shape for path, array in arrays.items()}
    for shape in shapes:
        # A module may refuse a shape in any way.
        try:
            specs = trace(model, shape).specs
        except Exception:
            continue
        exported = {path for path in specs if path in found or path[0] in ("params", "batch_stats")}
        traces.append({path: specs[path].shape for path in exported})
        if traces[-1] == found:
            return
    if len(traces) < 2 or any(other.keys() != traces[0].keys() for other in traces):
        return
    names = {path: ".".join(path[1:]) for path in [*traces[0], *found]}
    missing = sorted(names[path] for path in traces[0].keys() - found.keys())
    unexpected = sorted(names[path] for path in found.keys() - traces[0].keys())
    misshapen = [
        f"{names[path]} is {list(found[path])}, expected {list(shape)}"
        for path, shape in traces[0].items()
        if path in found and not _fits(found[path], [other[path] for other in traces])
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    problems = [
        f"{len(keys)} {kind} "
        f"({join_first([format_value(key, 120).strip(chr(39)) for key in keys])})"
        for kind, keys in kinds.items()
        if keys
    ]
    if problems:
        name = published_name(model) or type(model).__name__
        raise WeightsError(
            f"variables are not of {name}: {'; '.join(problems)}; "
            "expected those of this network. Write the model that they are of.",
            **kinds,
        )


def _fits(shape: tuple[int, ...], expected: list[tuple[int, ...]]) -> bool:
    """Return whether a shape equals those expected, where these agree."""
    if any(len(other) != len(shape) for other in expected):
        return False
    return all(
        len(set(sizes)) > 1 or size == sizes[0]
        for size, *sizes in zip(shape, *expected, strict=True)
    )


def _header(model: nn.Module, metadata: dict[str, str]) -> dict[str, str]:
    invalid = [
        name
        for name, value in metadata.items()
        if not (isinstance(name, str) and isinstance(value, str))
    ]
    if invalid:
        raise WeightsError(f"metadata {invalid[0]!r} is no text; write json.dumps of it")
    name = published_name(model)
    if name and metadata.get("model", name) != name:
        raise WeightsError(
            f"metadata says model {metadata['model']!r}, and the network is {name!r}; leave it out"
        )
    return metadata | ({"model": name} if name else {})


def _write(file: Path, data: bytes) -> None:
    try:
        write_atomically(file, data)
    except OSError as error:
        raise WeightsError(
            f"cannot write {file}: {error.strerror}; name a file in a folder of yours"
        ) from error
