"""Files of weights by what they hold, whatever they are called: safetensors, and both formats of `torch.save`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.arguments import check_path
from jaxcnn.checkpoint._integrity import describe_error
from jaxcnn.weights.entries import part
from jaxcnn.weights.torchfile import read_legacy, read_zip
from jaxcnn.weights.types import WeightsError

_LARGEST = 1 << 32  # bytes of a file; VGG-19 has 575 million
_HEADER = 1 << 23  # bytes of it; that of ResNet-152 has 90 thousand, and the library's own limit is 100 million
_PREFIXES = ("module.", "_orig_mod.", "model.")  # of torch's DataParallel and compile, and of Lightning
_OTHERS = {
    b"\x89HDF": "a file of Keras (HDF5)",
    b"\x93NUMPY": "an array of NumPy",
    b"\x1f\x8b": "a gzip archive: unpack it first",
    b"<": "a web page: fetch the file itself",
    b"version ": "a pointer of Git LFS: fetch the file itself with git lfs pull",
}
_KINDS = "expected .safetensors, or .pth / .pt as torch.save writes them"


def read_weights(file: str | Path, entry: str | None = None) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """What a file of weights holds, and nothing of it is run: no PyTorch, no pickle of Python's.

    Args:
      file: `.safetensors`, or `.pth`, `.pt`, `.th`, `.bin` or `.ckpt` of `torch.save` in either format; what it is, is read
        from the file, not from its name. A link is followed, a pipe or a device refused.
      entry: the part of a training script's checkpoint to take, such as "state_dict_ema" or "checkpoint.model", or the
        first part of the names in a file that holds several networks. None takes `state_dict`, `model`, `net` or the like,
        and logs a warning where the file holds several sets of weights.

    Returns:
      name -> array of the type in the file (float32, float16, bfloat16, integers), and the header's texts by name, of
      which only safetensors has any. A prefix that all names have ("module." of DataParallel) is taken off. Arrays need
      not be writable. Objects of usual types next to the weights are skipped.

    Raises:
      WeightsError: there is no such file, it is of another kind, damaged, or names something to run; one line.
    """
    path = check_path("file", file, WeightsError, example="'resnet20.safetensors'")
    with _told(path):
        reader = _kind(path)
        return _short(reader(path, entry)), read_metadata(path)


def read_metadata(file: str | Path) -> dict[str, str]:
    """The texts in a safetensors file's header, such as what `export` put there; {} for the files of PyTorch.

    Raises:
      WeightsError: as for `read`; the numbers are not read.
    """
    path = check_path("file", file, WeightsError, example="'resnet20.safetensors'")
    with _told(path):
        if _kind(path) is not _read_safetensors:
            return {}
        with _open(path) as opened:
            return dict(opened.metadata() or {})


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Whatever zipfile, struct, NumPy and safetensors raise for bytes that they do not like, as one line."""
    try:
        yield
    except WeightsError as error:
        raise WeightsError(f"{path} is refused: {error}") from None
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or describe_error(error)}") from error
    except Exception as error:
        raise WeightsError(
            f"{path} is damaged, or no file of weights: {describe_error(error)}; fetch it again"
        ) from error


def _kind(path: Path) -> Callable[[Path, str | None], dict[str, np.ndarray]]:
    """The reader of a file, from its first bytes."""
    if not path.exists():
        raise WeightsError(f"there is no such file; {_KINDS}")
    if not path.is_file():  # a pipe or a device may never end
        raise WeightsError(f"it is no plain file; {_KINDS}")
    if (size := path.stat().st_size) > _LARGEST:
        raise WeightsError(f"it has {size} bytes, more than any network here")
    with path.open("rb") as file:
        start = file.read(9)
    if start[4:] == b"\0\0\0\0{":
        return _read_safetensors
    if start.startswith(b"PK\x03\x04"):
        return read_zip
    if start.startswith(b"\x80"):
        return read_legacy
    for magic, what in _OTHERS.items():
        if start.startswith(magic):
            raise WeightsError(f"it looks like {what}; {_KINDS}")
    raise WeightsError(f"it is no file of weights (it begins with {start.hex(' ') or 'nothing'}); {_KINDS}")


def _open(path: Path) -> Any:
    """The library's view of the file: it has checked that the header is sound, and that tensors do not overlap."""
    from safetensors import safe_open

    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > _HEADER:
        raise ValueError(f"its header announces {size} bytes, more than any network's")
    return safe_open(path, framework="np")


def _read_safetensors(path: Path, entry: str | None = None) -> dict[str, np.ndarray]:
    with _open(path) as file:
        names = file.keys()
        return part({name: file.get_tensor(name) for name in names}, entry)


def _short(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays without the prefixes that all names have."""
    for prefix in _PREFIXES * 2:
        if all(name.startswith(prefix) for name in arrays):
            arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
    return arrays
