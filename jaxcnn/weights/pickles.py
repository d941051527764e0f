"""An unpickler of what `torch.save` writes, which can make nothing but numbers, texts, lists, dicts and notes of tensors.

Python's own unpickler calls what a file names. Here no name is looked up: a name in `jaxcnn.weights.notes` stands for a
small function there, or for an object that is skipped. Any other name, like any operation that is not in `_OPERATIONS`,
is refused. Every operation takes one byte or more of a pickle of at most `LIMIT` bytes and leaves at most one small object.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxcnn.weights.notes import CALLS, CURE, HARMLESS, Name, Skipped, fill, named, stored
from jaxcnn.weights.types import Storage, Tensor, WeightsError

LIMIT = 1 << 21
"""Bytes of a pickle. That of a ResNet-152's weights has 130 thousand, and with an optimiser's state half a million."""


class _Mark(NamedTuple):
    """Where the items of a collection begin on the stack."""


@dataclass
class _Machine:
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    storages: dict[str, Storage] = field(default_factory=dict)

    def items(self) -> list[Any]:
        """What lies above the last mark; both are taken."""
        items: list[Any] = []
        while not isinstance(item := self.stack.pop(), _Mark):
            items.append(item)
        return items[::-1]

    def several(self, count: int) -> list[Any]:
        return [self.stack.pop() for _ in range(count)][::-1]


def load(data: bytes, storages: dict[str, Storage] | None = None) -> tuple[Any, int]:
    """What the pickle at the beginning of `data` holds, and the number of its bytes; it runs nothing.

    Args:
      data: at least one pickle. One that is longer than `LIMIT` is refused.
      storages: those that the pickle names are added to it, by key.

    Raises:
      WeightsError: it names something that weights do not need.
      ValueError, and others of Python's: it is no pickle, or is cut short.

    Example:
      >>> import pickle
      >>> load(pickle.dumps({"a": [1, 2.5]}) + b"more")[0]
      {'a': [1, 2.5]}
    """
    machine = _Machine(storages={} if storages is None else storages)
    for operation, argument, at in pickletools.genops(io.BytesIO(data[:LIMIT])):
        if operation.name == "STOP":
            (result,) = machine.stack
            return result, (at or 0) + 1
        if operation.name not in _OPERATIONS:
            raise WeightsError(
                f"it has the operation {operation.name}, which weights do not need: nothing of it was run; {CURE}"
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
        machine.stack.append(tuple(machine.items() if count is None else machine.several(count)))

    return run


def _put(machine, index):
    machine.memo[len(machine.memo) if index is None else index] = machine.stack[-1]


def _get(machine, index):
    machine.stack.append(machine.memo[index])


def _append(machine, _):
    value = machine.stack.pop()
    _extend(machine, [value])


def _appends(machine, _):
    _extend(machine, machine.items())


def _extend(machine, values):
    if type(machine.stack[-1]) is Skipped:
        return
    if type(machine.stack[-1]) is not list:
        raise ValueError("items are added to what is no list")
    machine.stack[-1].extend(values)


def _set_item(machine, _):
    fill(machine.several(2), machine.stack[-1])


def _set_items(machine, _):
    items = machine.items()
    fill(items, machine.stack[-1])


def _global(machine, argument):
    machine.stack.append(named(*argument.split(" ", 1)))


def _stack_global(machine, _):
    machine.stack.append(named(*machine.several(2)))


def _add_items(machine, _):
    machine.items()
    if type(machine.stack[-1]) is not Skipped:
        raise ValueError("items are added to what is no set")


def _frozen_set(machine, _):
    machine.items()
    machine.stack.append(Skipped("builtins.frozenset"))


def _reduce(machine, _):
    function, arguments = machine.several(2)
    if isinstance(function, Name) and function.name in HARMLESS and type(arguments) is tuple:
        machine.stack.append(Skipped(function.name))
        return
    if not isinstance(function, Name) or function.name not in CALLS:
        raise ValueError("it calls what is no function")
    if type(arguments) is not tuple or len(arguments) > 8:  # a long tuple, passed a thousand times, is copied as often
        raise ValueError(f"{function.name} is called with what it does not take")
    machine.stack.append(CALLS[function.name](*arguments))


def _persistent(machine, _):
    machine.stack.append(stored(machine.stack.pop(), machine.storages))


def _build(machine, _):
    """State of an object: that of a dict (torch's versions of layers) is not needed, an old Parameter's is its tensor."""
    state = machine.stack.pop()
    target = machine.stack[-1]
    if type(target) not in (dict, Tensor, Skipped):
        raise ValueError(f"a {type(target).__name__} is given a state")
    if type(target) is Tensor and not (type(state) is tuple and len(state) in (3, 4)):
        raise ValueError("a tensor is given a state")


_VALUES = "BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINSTRING SHORT_BINSTRING"
_VALUES += " BINBYTES SHORT_BINBYTES"
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
