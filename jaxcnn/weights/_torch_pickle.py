"""A restricted unpickler for files of `torch.save`.

It can create only numbers, texts, lists, dicts and descriptions of tensors. Python's own unpickler
calls what a file names. Here no name is looked up. A name stands for a small function of this
module, or for an object that is skipped. Any other name is refused, and so is an operation that is
not in `_OPERATIONS`. Every operation takes at least one byte of a pickle of at most
`MAX_PICKLE_BYTES`, and leaves at most one small object.
"""

from __future__ import annotations

import io
import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxcnn.config import format_value
from jaxcnn.weights._errors import WeightsError

MAX_PICKLE_BYTES = 1 << 21
"""Maximal size of a pickle.

That of a ResNet-152's weights has 130 thousand bytes, with an optimizer's state half a million.
"""
REMEDY = (
    "load it where it was made, write torch.save(model.state_dict(), file) there, "
    "and read that file"
)

# ---------------------------------------------------------------- tensors

DTYPES = {
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": np.dtype(jnp.bfloat16),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
}
"""Dtype of a torch storage's elements, by its type's name."""


class Storage(NamedTuple):
    """A sequence of numbers in a torch file.

    Attributes:
      key: its name in the file.
      dtype: of the elements.
      size: number of elements.
      first: index of the first element; not 0 for a view of another storage.
    """

    key: str
    dtype: np.dtype
    size: int
    first: int = 0


class Tensor(NamedTuple):
    """The location of a tensor in its storage.

    `offset` and `stride` are in elements.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def make_tensor(storage: object, offset: object, shape: object, stride: object) -> Tensor:
    """Return a tensor that is checked to lie within its storage.

    Raises:
      ValueError: it does not, or an argument is of another type.

    Example:
      >>> make_tensor(Storage("0", DTYPES["torch.FloatStorage"], 6), 0, (2, 3), (1, 2)).stride
      (1, 2)
    """
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    (start,), shape, stride = _check_sizes((offset,)), _check_sizes(shape), _check_sizes(stride)
    last = 0
    # A tensor without elements has no last element.
    if all(shape):
        last = start + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    count = math.prod(shape)
    if last >= max(storage.size, 1) or count > storage.size:
        raise ValueError(
            f"a tensor of {count:.3g} elements that does not fit into its storage of {storage.size}"
        )
    return Tensor(storage, start, shape, stride)


def _check_sizes(value: object) -> tuple[int, ...]:
    """Return `value`, if it is a tuple of sizes.

    It has at most eight integers of at least 0.

    An integer of 63 bits or more is refused too, since no file has such a size.
    """
    if (
        not isinstance(value, tuple)
        or len(value) > 8
        or not all(type(n) is int and 0 <= n < 2**63 for n in value)
    ):
        raise ValueError("a tensor whose offset, sizes or strides are no whole numbers from 0 up")
    return value


# ---------------------------------------------------------------- substitutes for names


class Name(NamedTuple):
    """A global by its name, which is never looked up."""

    name: str


class Skipped(NamedTuple):
    """An object next to the weights whose type is in `SKIPPED_TYPES`.

    Neither it nor its contents are created.
    """

    name: str


def check_name(module: str, name: str) -> Name:
    """Return the name, if it is in `CALLS`, `DTYPES` or `SKIPPED_TYPES`.

    Raises:
      WeightsError: it is in none of them.
    """
    full = f"{module}.{name}"
    if full not in CALLS and full not in DTYPES and full not in SKIPPED_TYPES:
        raise WeightsError(
            f"it names {format_value(full)}, which weights do not need: nothing of it was run; "
            f"{REMEDY}"
        )
    return Name(full)


def add_storage(persistent_id: Any, storages: dict[str, Storage]) -> Storage:
    """Return the storage of a persistent id, and add it to `storages`.

    Args:
      persistent_id: ("storage", type, key, device, size). The older format adds None, or (key,
        first, size) for a view of another storage.
      storages: by key; a view is added as its whole storage.
    """
    if (
        type(persistent_id) is not tuple
        or len(persistent_id) not in (5, 6)
        or type(persistent_id[2]) is not str
        or not isinstance(persistent_id[1], Name)
    ):
        raise ValueError("it refers to what is no storage")
    kind, dtype, key, _device, size, *view = persistent_id
    if (
        kind != "storage"
        or dtype.name not in DTYPES
        or type(size) is not int
        or not 0 <= size < 2**63
    ):
        raise ValueError("it refers to what is no storage")
    whole = Storage(key, DTYPES[dtype.name], size)
    if storages.setdefault(key, whole) != whole:
        raise ValueError(f"storage {format_value(key)} is described twice")
    return _view(whole, *view)


def _view(whole: Storage, view=None) -> Storage:
    if view is None:
        return whole
    _, first, size = view
    if (
        type(first) is not int
        or type(size) is not int
        or min(first, size) < 0
        or first + size > whole.size
    ):
        raise ValueError(f"a view does not fit into its storage {format_value(whole.key)}")
    return whole._replace(first=first, size=size)


def _ordered_dict(pairs=None):
    """Return a dict for an OrderedDict.

    Python 2 writes the pairs as an argument.

    The list of pairs is emptied, so that one list is not turned into a thousand dicts.
    """
    result: dict[Any, Any] = {}
    if type(pairs) is list:
        copied = pairs[:]
        pairs.clear()
        for key, value in copied:
            set_items([key, value], result)
    return result


def _rebuild_tensor(storage, offset, shape, stride, *_):
    return make_tensor(storage, offset, shape, stride)


def _parameter(data, *_):
    if not isinstance(data, Tensor):
        raise ValueError("a parameter without a tensor")
    return data


CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.nn.parameter.Parameter": _parameter,
}
"""Substitutes for the functions that a file of weights names.

Their further arguments, which are ignored, are of gradients and hooks.
"""

_BUILTINS = (
    "bool bytearray bytes complex dict float frozenset int list object range set slice str tuple"
)
_TORCH = (
    "Size device bool uint8 int8 int16 int32 int64 float16 bfloat16 float32 float64"
    " complex64 complex128 half float double short int long"
    " channels_last contiguous_format preserve_format strided"
)
_NUMPY = "multiarray.scalar multiarray._reconstruct"
_PATHS = "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath"
_SKIPPED_TYPES = {
    "builtins": _BUILTINS,
    # Protocol 2, which torch.save uses, has this name for it.
    "__builtin__": _BUILTINS,
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
SKIPPED_TYPES = {
    f"{module}.{name}" for module, names in _SKIPPED_TYPES.items() for name in names.split()
}
"""Types that training scripts store next to weights.

Their objects are skipped as data.
"""


_KEY_TYPES = (str, int, float, bool, type(None))


def set_items(items: list[Any], target: Any) -> None:
    """Set alternating keys and values of `items` in a dict.

    Those of a skipped object are skipped too.
    """
    if type(target) is Skipped:
        return
    if type(target) is not dict or len(items) % 2:
        raise ValueError("items are set in what is no dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # The hash of a tuple of tuples may take forever, or the whole C stack.
        if type(key) not in _KEY_TYPES:
            raise ValueError(f"a key is a {type(key).__name__}")
        target[key] = value


# ---------------------------------------------------------------- the machine


class _Mark(NamedTuple):
    """The beginning of a collection's items on the stack."""


@dataclass
class _Machine:
    """Stack, memo and storages of a running unpickler."""

    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    storages: dict[str, Storage] = field(default_factory=dict)

    def pop_to_mark(self) -> list[Any]:
        """Pop the values above the last mark, and the mark."""
        items: list[Any] = []
        while not isinstance(item := self.stack.pop(), _Mark):
            items.append(item)
        return items[::-1]

    def pop(self, count: int) -> list[Any]:
        """Pop `count` values, and return them in the order of the stack."""
        return [self.stack.pop() for _ in range(count)][::-1]


def load_pickle(data: bytes, storages: dict[str, Storage] | None = None) -> tuple[Any, int]:
    """Return the content of a pickle, and its size in bytes.

    It is the pickle at the beginning of `data`.

    Nothing is executed.

    Args:
      data: at least one pickle. One longer than `MAX_PICKLE_BYTES` is refused.
      storages: those that the pickle names are added to it, by key.

    Raises:
      WeightsError: it names something that weights do not need.
      Exception: ValueError and others of Python, if it is no pickle or is cut short.

    Example:
      >>> import pickle
      >>> load_pickle(pickle.dumps({"a": [1, 2.5]}) + b"more")[0]
      {'a': [1, 2.5]}
    """
    machine = _Machine(storages={} if storages is None else storages)
    for operation, argument, position in pickletools.genops(io.BytesIO(data[:MAX_PICKLE_BYTES])):
        if operation.name == "STOP":
            (result,) = machine.stack
            return result, (position or 0) + 1
        if operation.name not in _OPERATIONS:
            raise WeightsError(
                f"it has the operation {operation.name}, which weights do not need: nothing of it "
                f"was run; {REMEDY}"
            )
        _OPERATIONS[operation.name](machine, argument)
    raise ValueError("it has no end")


def _push(machine, value):
    machine.stack.append(value)


def _constant(make: Callable[[], Any]):
    return lambda machine, _: machine.stack.append(make())


def _mark(machine, _):
    machine.stack.append(_Mark())


def _tuple(count: int | None):
    def run(machine, _):
        items = machine.pop_to_mark() if count is None else machine.pop(count)
        machine.stack.append(tuple(items))

    return run


def _put(machine, index):
    machine.memo[len(machine.memo) if index is None else index] = machine.stack[-1]


def _get(machine, index):
    machine.stack.append(machine.memo[index])


def _append(machine, _):
    value = machine.stack.pop()
    _extend(machine, [value])


def _appends(machine, _):
    _extend(machine, machine.pop_to_mark())


def _extend(machine, values):
    if type(machine.stack[-1]) is Skipped:
        return
    if type(machine.stack[-1]) is not list:
        raise ValueError("items are added to what is no list")
    machine.stack[-1].extend(values)


def _set_item(machine, _):
    set_items(machine.pop(2), machine.stack[-1])


def _set_items(machine, _):
    items = machine.pop_to_mark()
    set_items(items, machine.stack[-1])


def _global(machine, argument):
    machine.stack.append(check_name(*argument.split(" ", 1)))


def _stack_global(machine, _):
    machine.stack.append(check_name(*machine.pop(2)))


def _add_items(machine, _):
    machine.pop_to_mark()
    if type(machine.stack[-1]) is not Skipped:
        raise ValueError("items are added to what is no set")


def _frozen_set(machine, _):
    machine.pop_to_mark()
    machine.stack.append(Skipped("builtins.frozenset"))


def _reduce(machine, _):
    function, arguments = machine.pop(2)
    is_name = isinstance(function, Name)
    if is_name and function.name in SKIPPED_TYPES and type(arguments) is tuple:
        machine.stack.append(Skipped(function.name))
        return
    if not is_name or function.name not in CALLS:
        raise ValueError("it calls what is no function")
    # A long tuple that is passed a thousand times would be copied as often.
    if type(arguments) is not tuple or len(arguments) > 8:
        raise ValueError(f"{function.name} is called with what it does not take")
    machine.stack.append(CALLS[function.name](*arguments))


def _persistent(machine, _):
    machine.stack.append(add_storage(machine.stack.pop(), machine.storages))


def _build(machine, _):
    """Drop the state of an object.

    The state of a dict (torch's versions of layers) is not needed. That of an old Parameter is its
    tensor.
    """
    state = machine.stack.pop()
    target = machine.stack[-1]
    if type(target) not in (dict, Tensor, Skipped):
        raise ValueError(f"a {type(target).__name__} is given a state")
    if type(target) is Tensor and not (type(state) is tuple and len(state) in (3, 4)):
        raise ValueError("a tensor is given a state")


_VALUES = "BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINSTRING"
_VALUES += " SHORT_BINSTRING BINBYTES SHORT_BINBYTES"
_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = dict.fromkeys(_VALUES.split(), _push) | {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "NONE": _constant(lambda: None),
    "NEWTRUE": _constant(lambda: True),
    "NEWFALSE": _constant(lambda: False),
    "EMPTY_DICT": _constant(dict),
    "EMPTY_LIST": _constant(list),
    "EMPTY_TUPLE": _constant(tuple),
    "EMPTY_SET": _constant(lambda: Skipped("builtins.set")),
    "ADDITEMS": _add_items,
    "FROZENSET": _frozen_set,
    "MARK": _mark,
    "TUPLE": _tuple(None),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "MEMOIZE": _put,
    "BINGET": _get,
    "LONG_BINGET": _get,
    "APPEND": _append,
    "APPENDS": _appends,
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "BUILD": _build,
    "BINPERSID": _persistent,
}
