"""Reading of weight files: safetensors, and both formats of `torch.save`.

The format is determined by the content, not by the name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.arguments import check_path
from jaxcnn.checkpoint._integrity import describe_error
from jaxcnn.weights._errors import WeightsError
from jaxcnn.weights._torch_file import read_legacy, read_zip, select_entry
from jaxcnn.weights.hub import fetch_weights, is_hub_name

_MAX_FILE_BYTES = 1 << 32
"""Maximal size of a file; VGG-19 has 575 million bytes."""
_MAX_HEADER_BYTES = 1 << 23
"""Maximal size of a header.

That of ResNet-152 has 90 thousand bytes, and the library's own limit is 100 million.
"""
_PREFIXES = ("module.", "_orig_mod.", "model.")
"""Prefixes of torch's DataParallel and compile, and of Lightning."""
_OTHER_FORMATS = {
    b"\x89HDF": "a file of Keras (HDF5)",
    b"\x93NUMPY": "an array of NumPy",
    b"\x1f\x8b": "a gzip archive: unpack it first",
    b"<": "a web page: fetch the file itself",
    b"version ": "a pointer of Git LFS: fetch the file itself with git lfs pull",
}
"""Descriptions of other formats, by their first bytes."""
_EXPECTED = "expected .safetensors, or .pth / .pt as torch.save writes them"


def read_weights(
    file: str | Path, entry: str | None = None
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the arrays and the metadata of a file of weights.

    Nothing in the file is executed. Neither PyTorch nor Python's pickle is used.

    Args:
      file: `.safetensors`, or `.pth`, `.pt`, `.th`, `.bin` or `.ckpt` of `torch.save` in either
        format, or a name on the Hugging Face Hub, `hf:owner/name`. The format is read from the
        file, not from its name. A link is followed, and a pipe or a device is refused.
      entry: the part of a training script's checkpoint to take, such as "state_dict_ema" or
        "checkpoint.model". In a file of several networks it is the first part of the names. None
        takes `state_dict`, `model`, `net` or the like, and logs a warning where the file holds
        several sets of weights.

    Returns:
      The arrays by name, of the type in the file (float32, float16, bfloat16, integers), and the
      header's texts by name, which only safetensors has. A prefix that all names share ("module."
      of DataParallel) is removed. Arrays may be read-only. Objects of usual types next to the
      weights are skipped.

    Raises:
      WeightsError: the file does not exist, is of another kind, is damaged, or names something to
        execute. The message is one line.
    """
    path = find_file(file)
    with _one_line_errors(path):
        reader = _detect_reader(path)
        return _without_prefixes(reader(path, entry)), read_metadata(path)


def read_metadata(file: str | Path) -> dict[str, str]:
    """Return the texts in a safetensors file's header.

    `export_weights` writes its metadata there. The result is {} for files of PyTorch. The numbers
    are not read.

    Raises:
      WeightsError: as for `read_weights`.
    """
    path = find_file(file)
    with _one_line_errors(path):
        if _detect_reader(path) is not _read_safetensors:
            return {}
        with _open_safetensors(path) as opened:
            return dict(opened.metadata() or {})


def find_file(file: str | Path) -> Path:
    """Return the path of a file of weights.

    A name such as `hf:timm/resnet18.tv_in1k` is downloaded, if it is not in the cache.

    Raises:
      WeightsError: `file` is no path, or the name cannot be downloaded.
    """
    path = check_path("file", file, WeightsError, example="'resnet20.safetensors'")
    return fetch_weights(str(path)) if is_hub_name(file) else path


@contextlib.contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    """Convert errors to WeightsError with a message of one line.

    For damaged bytes, zipfile, struct, NumPy and safetensors raise errors of many types.
    """
    try:
        yield
    except WeightsError as error:
        raise type(error)(f"{path} is refused: {error}") from None
    except OSError as error:
        raise WeightsError(
            f"{path} cannot be read: {error.strerror or describe_error(error)}"
        ) from error
    except Exception as error:
        raise WeightsError(
            f"{path} is damaged, or no file of weights: {describe_error(error)}; fetch it again"
        ) from error


def _detect_reader(path: Path) -> Callable[[Path, str | None], dict[str, np.ndarray]]:
    """Return the reader for a file, by its first bytes."""
    if not path.exists():
        raise WeightsError(f"there is no such file; {_EXPECTED}")
    # A pipe or a device may never end.
    if not path.is_file():
        raise WeightsError(f"it is no plain file; {_EXPECTED}")
    if (size := path.stat().st_size) > _MAX_FILE_BYTES:
        raise WeightsError(f"it has {size} bytes, more than any network here")
    with path.open("rb") as file:
        start = file.read(9)
    if start[4:] == b"\0\0\0\0{":
        return _read_safetensors
    if start.startswith(b"PK\x03\x04"):
        return read_zip
    if start.startswith(b"\x80"):
        return read_legacy
    for magic, description in _OTHER_FORMATS.items():
        if start.startswith(magic):
            raise WeightsError(f"it looks like {description}; {_EXPECTED}")
    raise WeightsError(
        f"it is no file of weights (it begins with {start.hex(' ') or 'nothing'}); {_EXPECTED}"
    )


def _open_safetensors(path: Path) -> Any:
    """Open a file with the safetensors library.

    The library checks that the header is valid, and that tensors do not overlap.
    """
    from safetensors import safe_open

    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > _MAX_HEADER_BYTES:
        raise ValueError(f"its header announces {size} bytes, more than any network's")
    return safe_open(path, framework="np")


def _read_safetensors(path: Path, entry: str | None = None) -> dict[str, np.ndarray]:
    with _open_safetensors(path) as file:
        names = file.keys()
        return select_entry({name: file.get_tensor(name) for name in names}, entry)


def _without_prefixes(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays without the prefixes that all names share."""
    # Twice, since the prefixes may be nested in any order.
    for prefix in _PREFIXES * 2:
        if all(name.startswith(prefix) for name in arrays):
            arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
    return arrays
