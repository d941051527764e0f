"""Digests of a user's own code, which are equal in every process and version of Python.

Fields and numbers describe a model, an optimizer or a loss in words. Two functions of one name may
still compute something else. A digest of what they are written as tells them apart.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import functools
import hashlib
import inspect
import linecache
import os
import site
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_LIBRARIES = tuple(
    os.path.join(os.path.realpath(path), "")
    for path in {
        *site.getsitepackages(),
        site.getusersitepackages(),
        *(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib")),
        str(Path(__file__).resolve().parent),
    }
)
"""Folders of code that versions and commits record."""
_SKIPPED_NODES = ("ctx", "kind", "type_comment", "type_params", "annotation", "returns")
_GENERATED = ("__init__", "__repr__", "__eq__", "__hash__", "__post_init__", "__replace__")
"""Methods that dataclasses and Flax write."""
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_FILLING_METHODS = ("append", "extend", "insert", "add", "update", "setdefault", "pop", "clear")
"""Methods of lists, sets and dicts that change them."""


def code_digest(value: Any) -> str | None:
    """Return a digest of the code and the constants of a user's own objects.

    It covers functions and classes that are not in an installed package, and what they refer to:
    closures, defaults, globals, base classes, attributes and fields. Comments, docstrings, layout
    and types do not count. Attributes and variables that the code itself assigns, such as counters,
    are left out.

    Returns:
      16 hexadecimal digits, or None if nothing is the user's own, or its source is not there.

    Example:
      >>> import optax
      >>> code_digest(optax.adam(0.1)) is None
      True
    """
    walk = _Walk()
    try:
        text = walk.describe(value)
    except (OSError, RecursionError, SyntaxError, TypeError, ValueError):
        return None
    return hashlib.sha256(text.encode()).hexdigest()[:16] if walk.has_own_code else None


_CONTAINERS = (Mapping, list, tuple, set, frozenset, functools.partial, types.MethodType)


class _Walk:
    """Descriptions of objects, each of which is described once."""

    def __init__(self) -> None:
        self.numbers: dict[int, int] = {}
        self.alive: list[Any] = []
        self.has_own_code = False

    def describe(self, value: Any) -> str:
        """Return a description without addresses and without an order of sets."""
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
            return f"{type(value).__name__} {value!r}"
        if isinstance(value, enum.Enum):
            return f"{type(value).__name__}.{value.name}"
        if isinstance(value, (np.ndarray, np.generic, jax.Array)):
            return _describe_array(value)
        if isinstance(value, types.ModuleType):
            return value.__name__
        if isinstance(value, np.dtype):
            return f"dtype {value.name}"
        if isinstance(value, _CONTAINERS):
            # Equal constants may be one object in one version of Python, and two in another.
            return f"{type(value).__name__}({'; '.join(self._parts(value))})"
        if id(value) in self.numbers:
            return f"object {self.numbers[id(value)]}"
        self.numbers[id(value)] = len(self.numbers)
        # Another object may not get the id.
        self.alive.append(value)
        return f"{type(value).__name__}({'; '.join(self._parts(value))})"

    def _parts(self, value: Any) -> Iterator[str]:
        is_namespace = isinstance(value, types.SimpleNamespace)
        value = vars(value) if is_namespace else value
        if not isinstance(value, type) and hasattr(value, "items") and hasattr(value, "keys"):
            items = sorted(value.items(), key=lambda item: str(item[0]))
            yield from (f"{key!s}: {self.describe(item)}" for key, item in items)
        elif isinstance(value, (list, tuple)):
            yield from map(self.describe, value)
        elif isinstance(value, (set, frozenset)):
            # The order of a set is another in each process.
            walks = [(_Walk(), item) for item in value]
            yield from sorted(walk.describe(item) for walk, item in walks)
            self.has_own_code |= any(walk.has_own_code for walk, _ in walks)
        elif isinstance(value, functools.partial):
            yield from map(self.describe, (value.func, value.args, value.keywords))
        elif isinstance(value, types.MethodType):
            yield from map(self.describe, (value.__self__, value.__func__))
        elif isinstance(value, type):
            yield from self._class_parts(value)
        elif isinstance(value, types.FunctionType):
            yield from self._function_parts(value)
        elif callable(getattr(value, "__wrapped__", None)):
            yield self.describe(value.__wrapped__)
        else:
            yield self.describe(type(value))
            yield str(getattr(value, "__qualname__", ""))
            attributes = _attributes(value)
            if is_own(type(value)) or dataclasses.is_dataclass(value):
                assigned = _assigned_names(type(value))
                yield from (
                    f"{name}: {self.describe(item)}"
                    for name, item in sorted(attributes.items())
                    if name not in assigned
                )

    def _class_parts(self, cls: type) -> Iterator[str]:
        yield cls.__qualname__
        if not is_own(cls):
            # Such as the class that `nn.remat` makes of another.
            yield from (self.describe(base) for base in cls.__bases__ if _has_own_base(base))
            return
        self.has_own_code = True
        yield from map(self.describe, cls.__bases__)
        assigned = _assigned_names(cls)
        for name, item in sorted(vars(cls).items()):
            function = inspect.unwrap(getattr(item, "__func__", getattr(item, "fget", item)))
            is_function = isinstance(function, types.FunctionType)
            if is_function:
                if name not in _GENERATED and is_own(function):
                    yield f"{name}: {self.describe(function)}"
                continue
            is_constant = isinstance(item, (bool, int, float, str, tuple, list, dict, np.ndarray))
            is_public = not name.startswith("_") and name not in ("name", "parent", "scope")
            if is_public and (is_constant or callable(item)) and name not in assigned:
                yield f"{name}: {self.describe(item)}"

    def _function_parts(self, function: types.FunctionType) -> Iterator[str]:
        function = inspect.unwrap(function)
        yield function.__qualname__
        names = function.__code__.co_freevars
        cells = dict(zip(names, function.__closure__ or (), strict=True))
        if is_own(function):
            self.has_own_code = True
            tree = _syntax_tree(function)
            yield _describe_node(tree)
            yield self.describe((function.__defaults__, function.__kwdefaults__))
            used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            known = {name: function.__globals__[name] for name in used & {*function.__globals__}}
            assigned = _assigned_globals(function)
            for name, item in sorted(known.items()):
                is_constant = isinstance(item, (bool, int, float, str, tuple, type, np.ndarray))
                if name not in assigned and (is_constant or callable(item)):
                    yield f"{name}: {self.describe(item)}"
        for name, cell in sorted(cells.items()):
            try:
                content = cell.cell_contents
            # The variable has no value yet.
            except ValueError:
                continue
            # It is no constant. Optax's cosine schedule assigns one of its own.
            if is_own(function) and _is_assigned(function, name, content):
                continue
            # Of a library's function, numbers are in the record already.
            if is_own(function) or not isinstance(content, (int, float, str, jax.Array)):
                yield f"{name}: {self.describe(content)}"


def is_own(value: Any) -> bool:
    """Return whether a class or function is not of an installed package.

    Example:
      >>> is_own(np.mean), is_own(dict)
      (False, False)
    """
    if isinstance(value, types.FunctionType):
        file = inspect.unwrap(value).__code__.co_filename
        if file == "<string>":
            return value.__module__ == "__main__"
    else:
        module = sys.modules.get(getattr(value, "__module__", ""), None)
        if module is None or module.__name__ in sys.builtin_module_names:
            return False
        file = getattr(module, "__file__", None)
        if file is None:
            return module.__name__ == "__main__"
    return not os.path.realpath(file).startswith(_LIBRARIES) and not file.startswith("<frozen")


def _has_own_base(cls: type) -> bool:
    return any(map(is_own, cls.__mro__))


def _attributes(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass, or else the attributes of an object."""
    if dataclasses.is_dataclass(value):
        # A field that only a newer version of a library has is at its default.
        defaults = {} if is_own(type(value)) else _defaults(type(value))
        fields = {f.name: getattr(value, f.name, None) for f in dataclasses.fields(value) if f.init}
        return {
            name: item
            for name, item in fields.items()
            if name not in ("parent", "name")
            and not (name in defaults and _is_equal(item, defaults[name]))
        }
    return dict(getattr(value, "__dict__", {}))


def _defaults(cls: type) -> dict[str, Any]:
    fields: Any = dataclasses.fields(cls)
    return {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}


def _is_equal(a: Any, b: Any) -> bool:
    is_plain = isinstance(a, (bool, int, float, str, tuple)) and type(a) is type(b)
    return a is b or (is_plain and a == b)


def _syntax_tree(function: types.FunctionType) -> ast.AST:
    """Return the tree of a function's source.

    Raises:
      OSError: there is no source.
    """
    code = function.__code__
    is_lambda = function.__name__ == "<lambda>"
    places = [(line, column) for line, _, column, _ in code.co_positions() if line and column]
    for node in _function_nodes(_source(function)):
        start: Any = min([node, *getattr(node, "decorator_list", ())], key=lambda n: n.lineno)
        if start.lineno != code.co_firstlineno or isinstance(node, ast.Lambda) != is_lambda:
            continue
        # There may be several lambdas in a line, and only the body of one starts at this place.
        body: Any = node.body
        if not is_lambda or (body.lineno, body.col_offset) == min(places, default=None):
            return node
    raise OSError(f"no source of {function.__qualname__}")


def _source(function: types.FunctionType) -> str:
    return "".join(linecache.getlines(function.__code__.co_filename, function.__globals__))


def _assigned_globals(function: types.FunctionType) -> set[str]:
    """Return the variables of a function's module that a call of it assigns.

    Functions of the user's own that it calls by name may do so too.
    """
    names: set[str] = set()
    todo, done = [function], set()
    while todo:
        current = todo.pop()
        if id(current) in done or not is_own(current):
            continue
        done.add(id(current))
        tree = _syntax_tree(current)
        for node in ast.walk(tree):
            if isinstance(node, ast.Global):
                names.update(node.names)
            elif isinstance(node, ast.Name):
                called = inspect.unwrap(current.__globals__.get(node.id, node))
                todo += [called] if isinstance(called, types.FunctionType) else []
    return names


def _is_assigned(function: types.FunctionType, name: str, content: Any) -> bool:
    """Check if calls assign a variable of a function's closure, or fill it.

    Its neighbors, which are defined within the same function as the variable, may do so too.
    """
    line = function.__code__.co_firstlineno
    around = [n for n in _function_nodes(_source(function)) if n.lineno <= line <= n.end_lineno]
    # The innermost function comes first.
    around.sort(key=lambda node: -node.lineno)
    owner = next((node for node in around if name in _bound_names(node)), None)
    if owner is None:
        return False
    is_container = isinstance(content, (dict, list, set, bytearray, np.ndarray))
    return any(_changes(node, name, is_container) for node in _inner_functions(owner))


def _bound_names(function: Any) -> set[str]:
    """Return the parameters of a function and the variables that it assigns as its own."""
    names = {node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)}
    others: set[str] = set()
    for node in _own_nodes(function):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Nonlocal, ast.Global)):
            others.update(node.names)
    return names - others


def _changes(function: Any, name: str, is_container: bool) -> bool:
    """Check if a function or one in it changes a variable of the functions around it."""
    if name in _bound_names(function):
        return False
    for node in _own_nodes(function):
        if isinstance(node, ast.Nonlocal) and name in node.names:
            return True
        is_item = isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store)
        is_method = isinstance(node, ast.Attribute) and node.attr in _FILLING_METHODS
        variable = getattr(node, "value", None)
        is_filled = (is_item or is_method) and isinstance(variable, ast.Name)
        if is_container and is_filled and getattr(variable, "id", "") == name:
            return True
    return any(_changes(node, name, is_container) for node in _inner_functions(function))


def _own_nodes(function: Any) -> Iterator[Any]:
    """Yield the nodes of a function's body, without those of functions in it."""
    todo = list(function.body) if isinstance(function.body, list) else [function.body]
    while todo:
        node = todo.pop()
        yield node
        if not isinstance(node, _FUNCTIONS):
            todo += ast.iter_child_nodes(node)


def _inner_functions(function: Any) -> list[Any]:
    return [node for node in _own_nodes(function) if isinstance(node, _FUNCTIONS)]


@functools.lru_cache(maxsize=64)
def _function_nodes(source: str) -> tuple[Any, ...]:
    """Return the definitions of functions in a file, inner ones of lambdas first."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, _FUNCTIONS)]
    return tuple(reversed(nodes))


def _describe_node(node: Any) -> str:
    """Describe a syntax tree without docstrings, types and positions."""
    if isinstance(node, list):
        return f"[{', '.join(map(_describe_node, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    parts = []
    for name in node._fields:
        child = getattr(node, name, None)
        if name in _SKIPPED_NODES or child is None or child == []:
            continue
        if name == "body" and isinstance(child, list) and _is_docstring(child[0]):
            child = child[1:]
        parts.append(f"{name}={_describe_node(child)}")
    return f"{type(node).__name__}({', '.join(parts)})"


def _is_docstring(node: Any) -> bool:
    constant = node.value if isinstance(node, ast.Expr) else None
    return isinstance(constant, ast.Constant) and isinstance(constant.value, str)


def _assigned_names(cls: type) -> set[str]:
    """Return the names of attributes that the methods of a class assign."""
    names: set[str] = set()
    for base in filter(is_own, cls.__mro__):
        for item in vars(base).values():
            function = inspect.unwrap(getattr(item, "__func__", item))
            is_function = isinstance(function, types.FunctionType) and is_own(function)
            # What the constructor assigns are the object's numbers.
            if is_function and function.__name__ not in ("__init__", "__post_init__"):
                try:
                    names |= _stored_attributes(_syntax_tree(function))
                except (OSError, SyntaxError):
                    continue
    return names


def _stored_attributes(tree: ast.AST) -> set[str]:
    """Return the attributes that a function assigns, or whose items it assigns."""
    targets: list[Any] = [
        node.value if isinstance(node, ast.Subscript) else node
        for node in ast.walk(tree)
        if isinstance(getattr(node, "ctx", None), ast.Store)
    ]
    return {target.attr for target in targets if isinstance(target, ast.Attribute)}


def _describe_array(array: Any) -> str:
    if jnp.issubdtype(array.dtype, jax.dtypes.extended):
        return f"{array.dtype} {np.asarray(jax.random.key_data(array)).tolist()}"
    array = np.asarray(array)
    if array.dtype.hasobject:
        return f"array of {array.size} objects"
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return f"{array.dtype} {array.shape} {digest}"
