"""What stands for the names in a pickle of `torch.save`: notes of where tensors lie, plain dicts, and skipped objects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxcnn.recipe import format_value
from jaxcnn.weights.types import DTYPES, Storage, Tensor, WeightsError, tensor


class Name(NamedTuple):
    """A global, by name; it is never looked up."""

    name: str


class Skipped(NamedTuple):
    """An object next to the weights whose type is on the list `HARMLESS`; neither it nor its contents are made."""

    name: str


CURE = "load it where it was made, write torch.save(model.state_dict(), file) there, and read that file"


def named(module: str, name: str) -> Name:
    """The name, if it is on the lists `CALLS`, `DTYPES` or `HARMLESS`; WeightsError for any other."""
    full = f"{module}.{name}"
    if full not in CALLS and full not in DTYPES and full not in HARMLESS:
        raise WeightsError(f"it names {format_value(full)}, which weights do not need: nothing of it was run; {CURE}")
    return Name(full)


def stored(said: Any, storages: dict[str, Storage]) -> Storage:
    """The storage that a persistent id tells of, which joins `storages`.

    ("storage", type, key, device, size), and in the older format whether it is a view: None or (key, first, size).
    """
    if type(said) is not tuple or len(said) not in (5, 6) or type(said[2]) is not str or not isinstance(said[1], Name):
        raise ValueError("it refers to what is no storage")
    kind, dtype, key, _device, size, *view = said
    if kind != "storage" or dtype.name not in DTYPES or type(size) is not int or not 0 <= size < 2**63:
        raise ValueError("it refers to what is no storage")
    whole = Storage(key, DTYPES[dtype.name], size)
    if storages.setdefault(key, whole) != whole:
        raise ValueError(f"storage {format_value(key)} is described twice")
    return _view(whole, *view)


def _view(whole: Storage, view=None) -> Storage:
    if view is None:
        return whole
    _, first, size = view
    if type(first) is not int or type(size) is not int or min(first, size) < 0 or first + size > whole.size:
        raise ValueError(f"a view does not fit into its storage {format_value(whole.key)}")
    return whole._replace(first=first, size=size)


def _ordered(pairs=None):
    """Python 2 writes the pairs as an argument. They are taken: no list is turned into a thousand dicts."""
    result: dict[Any, Any] = {}
    if type(pairs) is list:
        taken = pairs[:]
        pairs.clear()
        for key, value in taken:
            fill([key, value], result)
    return result


def _rebuilt(storage, offset, shape, stride, *_):
    return tensor(storage, offset, shape, stride)


def _parameter(data, *_):
    if not isinstance(data, Tensor):
        raise ValueError("a parameter without a tensor")
    return data


CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "torch._utils._rebuild_tensor": _rebuilt,
    "torch._utils._rebuild_tensor_v2": _rebuilt,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.nn.parameter.Parameter": _parameter,
}
"""What stands for the functions that a file of weights names; the arguments left out are gradients' and hooks'."""

_BUILTINS = "bool bytearray bytes complex dict float frozenset int list object range set slice str tuple"
_TORCH = "Size device bool uint8 int8 int16 int32 int64 float16 bfloat16 float32 float64 complex64 complex128"
_TORCH += " half float double short int long channels_last contiguous_format preserve_format strided"
_NUMPY = "multiarray.scalar multiarray._reconstruct"
_PATHS = "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath"
_HARMLESS = {
    "builtins": _BUILTINS,
    "__builtin__": _BUILTINS,  # as protocol 2, which torch.save uses, names them
    "torch": _TORCH,
    "collections": "Counter defaultdict deque",
    "argparse": "Namespace",
    "types": "SimpleNamespace",
    "numpy": "dtype ndarray",
    "numpy.core": _NUMPY,
    "numpy._core": _NUMPY,
    "pathlib": _PATHS,
    "pathlib._local": _PATHS,
    "datetime": "date datetime time timedelta timezone",
    "_codecs": "encode",
    "copy_reg": "_reconstructor",
    "copyreg": "_reconstructor",
}
HARMLESS = {f"{module}.{name}" for module, names in _HARMLESS.items() for name in names.split()}
"""Types that training scripts store next to weights. Objects of these types are skipped as data."""


_KEYS = (str, int, float, bool, type(None))


def fill(items: list[Any], target: Any) -> None:
    """Set keys and values, one after the other in `items`, in a dict; those of a skipped object are skipped too."""
    if type(target) is Skipped:
        return
    if type(target) is not dict or len(items) % 2:
        raise ValueError("items are set in what is no dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) not in _KEYS:  # the hash of a tuple of tuples may take for ever, or the whole C stack
            raise ValueError(f"a key is a {type(key).__name__}")
        target[key] = value
