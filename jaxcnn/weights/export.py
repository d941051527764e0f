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
from jaxcnn.models.calling import verify_model
from jaxcnn.optim import eval_params
from jaxcnn.weights._errors import WeightsError
from jaxcnn.weights._networks import published_name
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
      variables: {"params": ..., "batch_stats": ...}, of float32, or a State; other collections are
        left out.
      file: written whole or not at all. An existing file is replaced, a link too.
      metadata: texts for the header. "model" is added where weights are published under a name of
        the network. It distinguishes v1 from v1.5.

    Raises:
      WeightsError: the file cannot be written, or metadata is no text or has another network's
        name.

    Example:
      >>> import tempfile
      >>> import jax
      >>> from jaxcnn.models import create_model
      >>> from jaxcnn.weights import read_metadata
      >>> model = create_model("perceptron", classes=3)
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
            f"file is {format_value(str(file))}, a folder; expected a file. Write 'resnet20.safetensors'."
        )
    texts = check_mapping("metadata", {} if metadata is None else metadata, "{'by': 'us'}")
    variables = _check_variables(variables)
    exported = {name: variables[name] for name in ("params", "batch_stats") if name in variables}
    flat = {key: np.asarray(leaf, np.float32) for key, leaf in flatten_dict(exported).items()}
    layout = layouts(model)[0]
    leaves = locate_leaves(layout, flat)
    arrays = {
        leaf.key: np.ascontiguousarray(to_file_layout(flat[key], leaf))
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
        f"variables {problem}; expected a State, or the collections of a network. Write {{'params': params, ...}}."
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
