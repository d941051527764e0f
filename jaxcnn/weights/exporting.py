"""`export`: the variables of a network as a file that PyTorch's users can load."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict

from jaxcnn.arguments import check_mapping, check_path, format_value
from jaxcnn.models.calling import verify_model
from jaxcnn.optim import eval_params
from jaxcnn.weights.layouts import layouts, leaves, theirs
from jaxcnn.weights.naming import published_name
from jaxcnn.weights.types import WeightsError


def export_weights(
    model: nn.Module, variables: Mapping[str, Any] | Any, file: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write the variables of `model` as safetensors, in torchvision's layout where it has one, else in our own.

    `torchvision.models.resnet50().load_state_dict(safetensors.torch.load_file(file))` takes it, with `strict=True`. Our
    own layout has our names ("stage1_block1.conv1.kernel") and order of axes. `load_weights` reads both.

    Args:
      model: as `create_model` makes it.
      variables: {"params": ..., "batch_stats": ...}, of float32, or a State; other collections are left out.
      file: written whole or not at all; one that is there is replaced, a link too.
      metadata: texts for the header. "model" is added where the network has a name that published weights are known by,
        and tells v1 from v1.5.

    Raises:
      WeightsError: the file cannot be written, metadata that is no text, or another network's name in it.

    Example:
      >>> import tempfile
      >>> import jax
      >>> from jaxcnn.models import create_model
      >>> from jaxcnn.weights import read_metadata
      >>> model, file = create_model("perceptron", classes=3), Path(tempfile.mkdtemp(), "small.safetensors")
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
            f"file is {format_value(str(file))}, a folder; expected a file. Write 'resnet20.safetensors'."
        )
    texts = check_mapping("metadata", {} if metadata is None else metadata, "{'by': 'us'}")
    variables = _variables(variables)
    kept = {name: variables[name] for name in ("params", "batch_stats") if name in variables}
    flat = {path: np.asarray(leaf, np.float32) for path, leaf in flatten_dict(kept).items()}
    layout = layouts(model)[0]
    where = leaves(layout, flat)
    arrays = {leaf.key: np.ascontiguousarray(theirs(flat[path], leaf)) for path, leaf in where.items()}
    header = _header(model, texts)
    if layout.layers is not None:  # torch's own count, so that the names are all of its state dict's
        norms = [leaf.key.removesuffix("running_mean") for leaf in where.values() if leaf.key.endswith("running_mean")]
        arrays |= {f"{name}num_batches_tracked": np.zeros((), np.int64) for name in norms}
        header |= {"format": "pt"}
    _write(path, save(arrays, header))


def _variables(given: Any) -> Mapping[str, Any]:
    """The variables of a State, at which its network is judged; WeightsError for what is neither."""
    if (
        isinstance(given, tuple)
        and hasattr(given, "params")
        and hasattr(given, "model_state")
        and hasattr(given, "opt_state")
    ):
        state: Any = given
        return {"params": eval_params(state.opt_state, state.params), **state.model_state}
    if isinstance(given, Mapping) and isinstance(given.get("params"), Mapping):
        return given
    what = "has no params" if isinstance(given, Mapping) else f"is of type {type(given).__name__}"
    raise WeightsError(
        f"variables {what}; expected a State, or the collections of a network. Write {{'params': params, ...}}."
    )


def _header(model: nn.Module, metadata: dict[str, str]) -> dict[str, str]:
    if odd := [name for name, value in metadata.items() if not (isinstance(name, str) and isinstance(value, str))]:
        raise WeightsError(f"metadata {odd[0]!r} is no text; write json.dumps of it")
    name = published_name(model)
    if name and metadata.get("model", name) != name:
        raise WeightsError(f"metadata says model {metadata['model']!r}, and the network is {name!r}; leave it out")
    return metadata | ({"model": name} if name else {})


def _write(file: Path, data: bytes) -> None:
    part = file.with_name(f"{file.name}.part")
    try:
        part.unlink(missing_ok=True)  # a link there would lead the bytes elsewhere
        with part.open("xb") as out:
            out.write(data)
        os.replace(part, file)
    except OSError as error:
        raise WeightsError(f"cannot write {file}: {error.strerror}; name a file in a folder of yours") from error
