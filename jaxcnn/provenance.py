"""Provenance: what a run was made from, as plain values that its records hold and compare when it is resumed.

A recipe names a model, an optimiser and a data set; what ran may be others. `made_from` says what ran. `train` notes it for
each row that it yields, and `RunLog.write` finds it there, so that a loop that only writes its rows records the truth.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
import platform
import subprocess
import types
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.data import Dataset
from jaxcnn.models import create_model
from jaxcnn.optim import create_optimizer, current_learning_rate
from jaxcnn.recipe import ArgumentError, Recipe

Facts = dict[str, Any]
FLAGS = (
    "jax_enable_x64",
    "jax_threefry_partitionable",
    "jax_default_prng_impl",
    "jax_random_seed_offset",
    "jax_default_matmul_precision",
)
"""Settings of JAX that change the numbers of a run by more than rounding."""
OPTIMIZER = (
    *("optimizer", "method", "lr", "schedule", "drops", "factor", "warmup_lr", "warmup_error"),
    *("momentum", "decay", "decay_on"),
)
"""Fields of a recipe that its optimiser alone reads."""
SAMPLED = 1 << 26
"""Bytes of an array that its digest reads at most; of larger arrays it reads evenly spaced examples."""
LARGEST = 1e100
"""Numbers beyond this become text, for records hold none."""
NOTED = 4096
"""Rows at most whose origin is remembered until they are written."""
_GLUE = ("chain", "with_extra_args_support", "init_empty_state")
"""Functions of Optax that only hold others."""
_DEPTH = 6
_TEXT = 300


def made_from(model: Any, tx: Any, recipe: Recipe, data: Dataset, params: Any, opt: Any) -> Facts:
    """Return what a run is made from: its recipe, pieces that are not the recipe's, and digests.

    Args:
      model, tx, recipe, data: as `jaxcnn.training` takes them.
      params, opt: the parameters and the optimiser's state at step 0; their shapes enter the digest, their values do not.

    Returns:
      `recipe` (its fields), `model` and `optimizer` (None where they are those that the recipe names), `arrays` (a digest of
      names, shapes and dtypes; None for the recipe's own pieces) and `data` (a digest of labels and images).
    """
    own = {"model": model_of(model, recipe, len(data.classes)), "optimizer": optimizer_of(tx, recipe)}
    if own["optimizer"] is not None and (rate := current_learning_rate(opt)) is not None:
        own["optimizer"]["rate"] = rate
    arrays = None if own["model"] is own["optimizer"] is None else {"params": shapes(params), "optimizer": shapes(opt)}
    return {"recipe": dataclasses.asdict(recipe), **own, "arrays": arrays, "data": data_digest(data)}


def model_of(model: Any, recipe: Recipe, classes: int | None = None) -> Facts | None:
    """Return the class and the constructor's fields of a model, or None if it is the one that the recipe names.

    Example:
      >>> import flax.linen as nn
      >>> model_of(nn.Dense(3), Recipe())["class"], model_of(create_model("resnet20", 10), Recipe())
      ('flax.linen.linear.Dense', None)
    """
    try:
        named = create_model(recipe.model, classes or getattr(model, "classes", 2), **recipe.options)
        if type(named) is type(model) and _fields(named) == _fields(model):
            return None
    except (ArgumentError, AttributeError, TypeError):  # the recipe's name is the user's own word for this model
        pass
    return {"class": _name(type(model)), "fields": _fields(model)}


def optimizer_of(tx: Any, recipe: Recipe) -> Facts | None:
    """Return the parts of an optimiser with their numbers, or None if it is the one that the recipe names.

    Optax's transformations are functions that hold their numbers, so the parts are the functions' names.

    Example:
      >>> import optax
      >>> optimizer_of(optax.sgd(0.5), Recipe())["parts"]
      [{'name': 'identity'}, {'name': 'scale', 'step_size': -0.5}]
    """
    try:
        named = create_optimizer(recipe)
        if named.update is tx.update:  # recipes that differ in the rate alone share their update
            rate = next((part["lr"] for part in _parts(tx.init) if "lr" in part), recipe.lr)
            same = _parts(named.init) == _parts(tx.init)
            return None if same else {"parts": [{"name": recipe.optimizer, "lr": rate}]}
    except ArgumentError:
        pass
    # Some numbers are held by `init` alone, such as an injected rate.
    parts = _parts(tx.update) + [part for part in _parts(tx.init) if len(part) > 1]
    kept = [part for part in parts if not any(_within(part, other) for other in parts)]
    return {"parts": [part for i, part in enumerate(kept) if part not in kept[:i]]}


def _within(part: Facts, other: Facts) -> bool:
    """Whether `other` is the same part and says more of it."""
    return len(part) < len(other) and all(key in other and other[key] == value for key, value in part.items())


def in_words(facts: Mapping[str, Any] | None, key: str, recipe: Recipe | None = None) -> str:
    """Return a model or an optimiser as one line says it; None is that of `recipe`.

    Example:
      >>> in_words({"parts": [{"name": "scale", "step_size": -0.5}], "rate": 0.5}, "optimizer")
      'scale(step_size=-0.5) at rate 0.5'
    """
    if facts is None and recipe is not None:
        return _call(recipe.model, recipe.options) if key == "model" else _call(recipe.optimizer, {"lr": recipe.lr})
    if facts is None:
        return f"the recipe's {key}"
    if key == "model":
        return _call(facts["class"], facts["fields"])
    rate = f" at rate {facts['rate']:g}" if "rate" in facts else ""
    calls = [_call(part["name"], {k: v for k, v in part.items() if k != "name"}) for part in facts["parts"]]
    return " + ".join(calls) + rate


def differences(there: Mapping[str, Any], now: Mapping[str, Any], recipe: Recipe | None = None) -> list[str]:
    """Return how the facts of two runs differ, each difference with both values; a fact that one lacks is no difference.

    `recipe`, which is that of both, gives the words for a model or an optimiser that is its own.

    Example:
      >>> differences({"data": "aa", "jax": {"jax_enable_x64": False}}, {"data": "aa", "jax": {"jax_enable_x64": True}})
      ['jax_enable_x64 is False there and True here']
    """
    found = []
    for key in ("model", "optimizer"):
        if key in there and key in now and (pair := _differing(there[key], now[key], key, recipe)):
            found.append(f"{key} is {_cut(pair[0])} there and {_cut(pair[1])} here")
    for key in ("jax",) if found else ("arrays", "jax"):
        old, new = there.get(key) or {}, now.get(key) or {}
        what = (
            {"params": "the parameters' shapes are", "optimizer": "the optimizer's state is"} if key == "arrays" else {}
        )
        pairs = [(name, old[name], new[name]) for name in old if name in new and old[name] != new[name]]
        found += [f"{what.get(name, f'{name} is')} {a} there and {b} here" for name, a, b in pairs]
    if "data" in there and "data" in now and there["data"] != now["data"]:
        found.append(f"the data's images or labels have the digest {there['data']} there and {now['data']} here")
    return found


def _differing(there: Facts | None, now: Facts | None, key: str, recipe: Recipe | None) -> tuple[str, str] | None:
    """Both values where they differ: of an optimiser of the same parts only the parts whose numbers do."""
    if there == now:
        return None
    whole = in_words(there, key, recipe), in_words(now, key, recipe)
    if there is None or now is None:
        return whole
    if key == "model":
        old, new = [{"name": there["class"]} | there["fields"]], [{"name": now["class"]} | now["fields"]]
    else:
        old, new = there["parts"], now["parts"]
    if [part["name"] for part in old] != [part["name"] for part in new]:
        return whole
    pairs = []
    for a, b in zip(old, new, strict=True):
        # Fields that only one version of the code has do not count: a run may be resumed after an upgrade.
        if changed := [name for name in a if name in b and a[name] != b[name]]:
            pairs.append([_call(part["name"], {name: part[name] for name in changed}) for part in (a, b)])
    if not pairs and None not in (rates := [facts.get("rate") for facts in (there, now)]) and rates[0] != rates[1]:
        pairs.append([f"at rate {rate:g}" for rate in rates])
    return (" + ".join(a for a, _ in pairs), " + ".join(b for _, b in pairs)) if pairs else None


def well_formed(facts: Mapping[str, Any]) -> bool:
    """Return whether facts that were read from a file have the form of those that `made_from` gives.

    Example:
      >>> well_formed({"model": None, "data": "aa"}), well_formed({"model": 3})
      (True, False)
    """
    model, tx = facts.get("model"), facts.get("optimizer")
    kinds = {"arrays": (dict, type(None)), "jax": dict, "data": str, "warm_starts": list}
    return (
        _typed(facts, {key: kind for key, kind in kinds.items() if key in facts})
        and (model is None or (isinstance(model, dict) and _typed(model, {"class": str, "fields": dict})))
        and (tx is None or (isinstance(tx, dict) and _typed(tx, {"parts": list}) and _rated(tx)))
    )


def _rated(tx: Facts) -> bool:
    named = all(isinstance(part, dict) and isinstance(part.get("name"), str) for part in tx["parts"])
    return named and isinstance(tx.get("rate", 0.0), (int, float))


def _typed(values: Mapping[str, Any], kinds: Mapping[str, Any]) -> bool:
    return all(isinstance(values.get(key), kind) for key, kind in kinds.items())


def data_digest(data: Dataset) -> str:
    """Return a digest of class names, labels, images and statistics; of large arrays of evenly spaced examples.

    Example:
      >>> from jaxcnn.data import load_dataset
      >>> data = load_dataset("digits")
      >>> other = data._replace(train=data.train._replace(labels=data.train.labels[::-1].copy()))
      >>> data_digest(data) == data_digest(load_dataset("digits")), data_digest(data) == data_digest(other)
      (True, False)
    """
    whole = hashlib.sha256(json.dumps(list(data.classes)).encode())
    for split in (data.train, data.validation, data.test):
        for array in split:
            whole.update(f"{array.dtype} {array.shape}".encode() + _digest(array))
    for array in (data.mean, data.std):  # of every training image, so that they tell of those that no sample has
        whole.update(np.ascontiguousarray(array).data)
    return whole.hexdigest()[:16]


_digests: dict[int, tuple[weakref.ref, bytes]] = {}


def _digest(array: np.ndarray) -> bytes:
    """SHA-256 of an array. Large ones are read once for each array object; of these a few examples are read every time."""
    few = hashlib.sha256(np.ascontiguousarray(array[:: max(1, len(array) // 16)]).data).digest()
    if array.nbytes <= 1 << 20:
        return hashlib.sha256(np.ascontiguousarray(array).data).digest()
    known = _digests.get(id(array))
    if known is None or known[0]() is not array:
        sample = np.ascontiguousarray(array[:: math.ceil(array.nbytes / SAMPLED)])
        key = id(array)
        known = weakref.ref(array, lambda _: _digests.pop(key, None)), hashlib.sha256(sample.data).digest()
        _digests[key] = known
    return known[1] + few


def shapes(tree: Any) -> str:
    """Return a digest of the names, shapes and dtypes of a tree's arrays, whatever their values."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    text = [f"{jax.tree_util.keystr(path)} {np.shape(leaf)} {np.result_type(leaf)}" for path, leaf in leaves]
    return hashlib.sha256("\n".join(text).encode()).hexdigest()[:16]


def settings() -> dict[str, Any]:
    """Return JAX's `FLAGS` as they are now."""
    return {name: _plain(getattr(jax.config, name)) for name in FLAGS if hasattr(jax.config, name)}


def machine() -> dict[str, Any]:
    """Return the CPU's name, the cores that this process may use, and the commit of the library's sources or None."""
    return {"cpu": processor(), "cores": cores(), "commit": _commit()}


@functools.lru_cache(maxsize=1)
def processor() -> str:
    """Return the CPU's name, as the system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.lru_cache(maxsize=1)
def _commit() -> str | None:
    """The commit of the checkout that the package runs from, with "-dirty" where tracked files differ; None elsewhere."""
    root = Path(__file__).resolve().parent.parent
    if not (
        root / ".git"
    ).exists():  # a package that is installed within somebody's repository is not that repository's
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip() or None


_noted: OrderedDict[tuple[Any, Any], Facts] = OrderedDict()


def note(row: Mapping[str, Any], facts: Facts) -> None:
    """Remember what the run of a row was made from, by the row's step and seconds, which no other row has."""
    _noted[row["step"], row["seconds"]] = facts
    if len(_noted) > NOTED:
        _noted.popitem(last=False)


def noted(row: Mapping[str, Any]) -> Facts | None:
    """Return what `note` remembered of a row; None if it is not one of `train`'s."""
    return _noted.get((row.get("step"), row.get("seconds")))


def _fields(value: Any) -> Facts:
    """The constructor's fields of a module or another dataclass."""
    if not dataclasses.is_dataclass(value):
        return {}
    names = [f.name for f in dataclasses.fields(value) if f.init and f.name not in ("parent", "name")]
    return {name: _plain(getattr(value, name, None)) for name in names}


def _plain(value: Any, depth: int = 0) -> Any:
    """A value as JSON can hold it, without addresses, so that it is the same in every process."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value) if value.isprintable() else repr(value)
    if isinstance(value, (int, float)):
        return value if -LARGEST <= value <= LARGEST else f"{value!s:.80}"
    if depth > _DEPTH:
        return "..."
    if isinstance(value, Mapping):
        return {str(name): _plain(part, depth + 1) for name, part in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        parts = [_plain(part, depth + 1) for part in value]
        return sorted(parts, key=str) if isinstance(value, (set, frozenset)) else parts
    if isinstance(value, functools.partial):
        return {"function": _plain(value.func), "given": _plain([value.args, value.keywords], depth + 1)}
    if isinstance(value, types.FunctionType):
        held = {name: part for name, part in _closure(value) if _is_plain(part)}
        return _call(_name(value), _plain(held, depth + 1)) if held else _name(value)
    if isinstance(value, type) or (callable(value) and not dataclasses.is_dataclass(value)):
        return _name(value)
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return _array(value)
    if dataclasses.is_dataclass(value):
        fields = {name: _plain(part, depth + 1) for name, part in _fields(value).items()}
        return {"class": _name(type(value)), "fields": fields}
    return value.name if isinstance(value, np.dtype) else _name(type(value))


def _array(value: Any) -> Any:
    """The number that an array of no axes is; of any other its dtype, shape and a digest."""
    if jnp.issubdtype(value.dtype, jax.dtypes.extended):  # random keys, which NumPy does not hold
        return str(value.dtype)
    array = np.asarray(value)
    if array.ndim == 0 and array.dtype.kind in "biuf":
        return _plain(array.item())
    return f"{array.dtype}{list(array.shape)} {hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()[:16]}"


def _name(value: Any) -> str:
    """The qualified name of a class or a function, or of an object's class."""
    named = value if hasattr(value, "__qualname__") else type(value)
    module = getattr(named, "__module__", None)
    return f"{module}.{named.__qualname__}" if module else named.__qualname__


def _parts(function: Any) -> list[Facts]:
    """The functions that a transformation is built from, outermost first, each with the plain values that it holds."""
    found: list[Facts] = []
    seen: set[int] = set()

    def visit(value: Any, depth: int) -> None:
        value = getattr(value, "__wrapped__", value)
        if depth > 20 or id(value) in seen:
            return
        if isinstance(value, Mapping):
            value = list(value.values())
        if isinstance(value, (tuple, list)):
            for part in value:
                visit(part, depth + 1)
            return
        held = _held(value)
        if held is None:
            return
        seen.add(id(value))
        name, numbers, inner = held
        if numbers or name not in _GLUE:
            found.append({"name": name} | numbers)
        for part in inner:
            visit(part, depth + 1)

    visit(function, 0)
    return found


def _held(value: Any) -> tuple[str, Facts, list[Any]] | None:
    """(name, the plain values, what else it holds) of a function or an object with functions; None for anything else."""
    if isinstance(value, functools.partial):
        named = dict(enumerate(value.args)) | value.keywords
        values = {str(key): part for key, part in named.items()} | {"function": value.func}
        name = "partial"
    elif isinstance(value, types.MethodType):
        values, name = dict(vars(value.__self__)) if hasattr(value.__self__, "__dict__") else {}, _outer(value)
    elif isinstance(value, types.FunctionType):
        values, name = dict(_closure(value)), _outer(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        values, name = vars(value) if hasattr(value, "__dict__") else {}, type(value).__qualname__
        if isinstance(value, Recipe):  # in what `jaxcnn.create_optimizer` returns, where the rate is state
            values = {field: values[field] for field in OPTIMIZER if field != "lr"}
    else:
        return None
    plain = {key: part for key, part in values.items() if _is_plain(part)}
    return name, {key: _plain(part) for key, part in plain.items()}, [v for k, v in values.items() if k not in plain]


def _outer(function: Any) -> str:
    """The function that a user calls: `scale` for `scale.<locals>.update_fn`."""
    return function.__qualname__.split(".<locals>")[0].removesuffix(".update").removesuffix(".init")


def _closure(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function holds: its closure and, for one of the user's own, its defaults, constants and plain globals."""
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not filled yet
            continue
    if function.__module__.split(".")[0] in ("optax", "jax", "flax", "jaxcnn"):
        return
    names = code.co_varnames[: code.co_argcount][::-1]
    yield from zip(names, (function.__defaults__ or ())[::-1], strict=False)
    yield from (function.__kwdefaults__ or {}).items()
    numbers = [value for value in code.co_consts if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if numbers:
        yield "constants", numbers
    for name in code.co_names:
        if isinstance(value := function.__globals__.get(name), (int, float, str)):
            yield name, value


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Whether a value is numbers and words alone."""
    if isinstance(value, Mapping):
        return depth < _DEPTH and all(_is_plain(part, depth + 1) for part in value.values())
    if isinstance(value, (list, tuple)):
        return depth < _DEPTH and all(_is_plain(part, depth + 1) for part in value)
    return value is None or isinstance(value, (bool, int, float, str, np.ndarray, np.generic, np.dtype, jax.Array))


def _call(name: str, values: Mapping[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={_word(value)}' for key, value in values.items())})"


def _word(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else json.dumps(value) if isinstance(value, dict) else str(value)


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT else text[:_TEXT] + "..."
