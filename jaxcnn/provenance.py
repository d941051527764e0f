"""Facts about what a run is made from.

They are plain values, which the run's records hold and compare when it is resumed. A config names a
model, an optimizer and a data set, but a run may use others. `run_facts` describes those that it
uses. `train` caches them for each row that it yields, and `RunLog.write` looks them up. So a loop
that only writes its rows records the truth.
"""

from __future__ import annotations

import contextlib
import dataclasses
import dis
import functools
import hashlib
import json
import math
import os
import platform
import re
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

from jaxcnn.code_digest import code_digest
from jaxcnn.config import (
    ArgumentError,
    ExperimentConfig,
    OptimizerConfig,
    TrainConfig,
    as_dict,
    override,
)
from jaxcnn.data import Dataset
from jaxcnn.data.types import label_arrays
from jaxcnn.losses import as_loss, is_library_loss, loss_call
from jaxcnn.models import create_model
from jaxcnn.optim import config_of, create_optimizer, current_learning_rate

Facts = dict[str, Any]
JAX_FLAGS = (
    "jax_enable_x64",
    "jax_threefry_partitionable",
    "jax_default_prng_impl",
    "jax_random_seed_offset",
    "jax_default_matmul_precision",
)
"""Settings of JAX that change a run's numbers by more than rounding."""
MAX_DIGEST_BYTES = 1 << 26
"""Maximum bytes of an array that its digest reads.

Of larger arrays it reads evenly spaced examples.
"""
MAX_NUMBER = 1e100
"""Bound of numbers in records. Larger ones become text."""
MAX_CACHED_ROWS = 4096
"""Maximum number of rows whose facts are cached."""
_WRAPPERS = ("chain", "with_extra_args_support", "init_empty_state")
"""Functions of Optax that only contain other functions."""
_MAX_DEPTH = 6
_MAX_TEXT = 300


def run_facts(
    model: Any,
    tx: Any,
    config: TrainConfig,
    data: Dataset,
    params: Any,
    opt: Any,
    loss: Any = "cross-entropy",
    augment: Any = None,
) -> Facts:
    """Return the facts of a run.

    Args:
      model: as in `jaxcnn.train`.
      tx: as in `jaxcnn.train`.
      config: as in `jaxcnn.train`.
      data: as in `jaxcnn.train`.
      params: the parameters at step 0. Their shapes enter the digest, their values do not.
      opt: the optimizer's state at step 0, likewise.
      loss: as in `jaxcnn.train`.
      augment: as in `jaxcnn.train`.

    Returns:
      A dict with these keys:

      - "train": the fields of `config`.
      - "loss": see `loss_facts`.
      - "augmentation": see `augmentation_facts`.
      - "dataset" and "num_classes".
      - "model" and "optimizer": see `model_facts` and `optimizer_facts`.
      - "code": digests of the user's own code, see `code_facts`.
      - "arrays": digests of names, shapes and dtypes.
      - "data": a digest of labels and images.

      `train` adds "variables": see `variables_digest`, or None if they are initialized.
    """
    optimizer = optimizer_facts(tx)
    if config_of(tx) is None and (rate := current_learning_rate(opt)) is not None:
        optimizer["rate"] = rate
    return {
        "train": as_dict(config, all_fields=True),
        "loss": loss_facts(as_loss(loss)),
        "augmentation": augmentation_facts(augment),
        "dataset": data.name,
        "num_classes": data.num_classes,
        "model": model_facts(model),
        "optimizer": optimizer,
        "code": code_facts(model=model, tx=tx, loss=as_loss(loss), augment=augment),
        "arrays": {"params": shapes_digest(params), "optimizer": shapes_digest(opt)},
        "data": data_digest(data),
    }


def model_facts(model: Any) -> Facts:
    """Return the class and the fields of a model.

    Example:
      >>> import flax.linen as nn
      >>> model_facts(nn.Dense(3))["class"]
      'flax.linen.linear.Dense'
    """
    return {"class": _qualified_name(type(model)), "fields": _fields(model)}


def optimizer_facts(tx: Any) -> Facts:
    """Return the parts of an optimizer with their numbers.

    The result of `jaxcnn.create_optimizer` is one part, with the fields of its config. Other
    transformations are functions whose closures hold their numbers. Their parts have the names of
    these functions.

    Returns:
      {"parts": [{"name": ..., ...}, ...]}.

    Example:
      >>> import optax
      >>> optimizer_facts(optax.sgd(0.5))["parts"]
      [{'name': 'identity'}, {'name': 'scale', 'step_size': -0.5}]
    """
    if (made_from := config_of(tx)) is not None:
        config, arguments = made_from
        return {"parts": [as_dict(config) | arguments]}
    # Only `init` holds some numbers, such as an injected rate.
    parts = _parts(tx.update) + [part for part in _parts(tx.init) if len(part) > 1]
    largest = [part for part in parts if not any(_is_part_of(part, whole) for whole in parts)]
    return {"parts": [part for i, part in enumerate(largest) if part not in largest[:i]]}


def code_facts(model: Any = None, tx: Any = None, loss: Any = None, augment: Any = None) -> Facts:
    """Return digests of the user's own code.

    Their names are "model", "optimizer", "loss" and "augmentation".

    Code of installed packages has none.

    Example:
      >>> code_facts(tx=create_optimizer(OptimizerConfig()))
      {}
    """
    pieces = {"model": model, "optimizer": tx, "loss": loss, "augmentation": augment}
    digests = {name: code_digest(piece) for name, piece in pieces.items() if piece is not None}
    return {name: digest for name, digest in digests.items() if digest is not None}


def loss_facts(loss: Any) -> list[Any]:
    """Return the name and the arguments of a loss.

    A loss that is not the library's has a description in place of a name: that of its function or
    class, with the plain values in its closure, arguments or fields.

    Example:
      >>> from jaxcnn.losses import CrossEntropy
      >>> loss_facts(CrossEntropy(label_smoothing=0.1))
      ['cross-entropy', {'label_smoothing': 0.1}]
      >>> loss_facts(functools.partial(max, default=2))
      ['functools.partial(default=2) of builtins.max', {}]
    """
    if is_library_loss(loss):
        return list(loss_call(loss))
    return [_shorten(describe_function(loss)), {}]


def augmentation_facts(augment: Any) -> str | None:
    """Return the description of an augmentation that is a function, or None.

    Those of the library have the names and numbers that make them. Another function has the
    description of a loss.

    Example:
      >>> from jaxcnn.augment import chain, cutout, mixup
      >>> augmentation_facts(chain(cutout(8), mixup(0.2, num_classes=10)))
      'chain(cutout(size=8), mixup(alpha=0.2, num_classes=10))'
    """
    if augment is None:
        return None
    text = _describe_augmentation(augment)
    if len(text) <= _MAX_TEXT:
        return text
    return f"{text[:_MAX_TEXT]}... {hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _describe_augmentation(augment: Any) -> str:
    kind = type(augment)
    if not dataclasses.is_dataclass(augment) or not kind.__module__.startswith("jaxcnn.augment"):
        return describe_function(augment)
    # Its class is called as the function that makes it, in another form: `_RandAugment`.
    name = re.sub(r"(?<=[a-z])([A-Z])", r"_\1", kind.__name__.lstrip("_")).lower()
    values = {field.name: getattr(augment, field.name) for field in dataclasses.fields(augment)}
    if functions := values.pop("functions", None):
        return f"{name}({', '.join(map(_describe_augmentation, functions))})"
    parts = [
        f"{key}={_describe_value(value)}" for key, value in values.items() if value is not None
    ]
    return f"{name}({', '.join(parts)})"


def _describe_value(value: Any) -> str:
    """Describe a field: a config by all of its fields, also those at their defaults."""
    if not dataclasses.is_dataclass(value):
        return _format(_to_json(value))
    names = [field.name for field in dataclasses.fields(value)]
    fields = ", ".join(f"{name}={getattr(value, name)!r}" for name in names)
    return f"{type(value).__name__}({fields})"


def describe_function(function: Any) -> str:
    """Describe a function by its name and the plain values that it holds.

    Example:
      >>> describe_function(functools.partial(max, default=2))
      'functools.partial(default=2) of builtins.max'
    """
    contents = _contents(function)
    # Of another object that can be called, the attributes are its numbers.
    values = dict(getattr(function, "__dict__", {}))
    plain = {key: _to_json(value) for key, value in values.items() if _is_plain(value)}
    name, inner = _qualified_name(function), []
    if contents is not None:
        _, plain, inner = contents
    described = _format_call(name, plain) if plain else name
    functions = [value for value in inner if callable(value)]
    return " of ".join([described, *map(describe_function, functions[:4])])


def builder_config(config: ExperimentConfig, facts: Mapping[str, Any]) -> ExperimentConfig:
    """Return the config that the function `build` of a run got.

    Args:
      config: from the run's `config.json`, with the names of what was built.
      facts: of the run's `run.json`.
    """
    names = facts["build"]
    return override(config, model=names["model"], optimizer=names["optimizer"])


def without_those_of(config: ExperimentConfig, facts: Mapping[str, Any], num_classes: int) -> Facts:
    """Return facts with None for a model or an optimizer that is the config's own.

    Args:
      config: of the run.
      facts: some of those of `run_facts`.
      num_classes: of the data.

    Returns:
      The facts. "arrays" is None as well if both are the config's.

    Example:
      >>> facts = {"optimizer": optimizer_facts(create_optimizer(OptimizerConfig()))}
      >>> without_those_of(ExperimentConfig(), facts, 10)
      {'optimizer': None}
    """
    facts = dict(facts)
    if "augmentation" in facts and facts["augmentation"] == config.augmentation:
        facts["augmentation"] = None
    if facts.get("loss") == [config.loss, dict(config.loss_kwargs)]:
        facts["loss"] = None
    # The config may have the user's own words for a model or an optimizer.
    with contextlib.suppress(ArgumentError, AttributeError, TypeError):
        model = create_model(config.model, num_classes, **config.model_kwargs)
        if facts.get("model") == model_facts(model):
            facts["model"] = None
    with contextlib.suppress(ArgumentError):
        train = config.train
        tx = create_optimizer(config.optimizer, train.num_steps, seed=train.seed)
        if facts.get("optimizer") == optimizer_facts(tx):
            facts["optimizer"] = None
    if "arrays" in facts and facts["model"] is None and facts["optimizer"] is None:
        facts["arrays"] = None
    return facts


def _is_part_of(part: Facts, whole: Facts) -> bool:
    """Check if `whole` has all values of `part` and more."""
    has_all = all(key in whole and whole[key] == value for key, value in part.items())
    return len(part) < len(whole) and has_all


def describe(
    facts: Mapping[str, Any] | None, key: str, config: ExperimentConfig | None = None
) -> str:
    """Describe a model or an optimizer on one line.

    Args:
      facts: of the model or optimizer; None is that of `config`.
      key: "model", "optimizer", "loss" or "augmentation".
      config: of the run, if known.

    Example:
      >>> describe({"parts": [{"name": "scale", "step_size": -0.5}], "rate": 0.5}, "optimizer")
      'scale(step_size=-0.5) at rate 0.5'
    """
    if key == "loss" and (facts is not None or config is not None):
        call: Any = facts if facts is not None else (config.loss, config.loss_kwargs)  # type: ignore[union-attr]
        return _format_call(*call) if call[1] else call[0]
    if key == "augmentation" and (facts is not None or config is not None):
        own: Any = facts if facts is not None else config.augmentation  # type: ignore[union-attr]
        return own or f"the config's {config.train.augment}"  # type: ignore[union-attr]
    if facts is None and config is not None:
        if key == "model":
            return _format_call(config.model, config.model_kwargs)
        return _format_part(as_dict(config.optimizer))
    if facts is None:
        return f"the config's {key}"
    if key == "model":
        return _format_call(facts["class"], facts["fields"])
    rate = f" at rate {facts['rate']:g}" if "rate" in facts else ""
    return " + ".join(map(_format_part, facts["parts"])) + rate


def _format_part(part: Mapping[str, Any]) -> str:
    """Describe a part; of an `OptimizerConfig` only the rate and what is not the default."""
    values = {key: value for key, value in part.items() if key != "name"}
    defaults = as_dict(OptimizerConfig())
    if defaults.keys() <= part.keys():
        values = {
            key: value
            for key, value in values.items()
            if key == "learning_rate" or value != defaults.get(key)
        }
    return _format_call(part["name"], values)


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], config: ExperimentConfig | None = None
) -> list[str]:
    """Describe the differences between the facts of two runs.

    Each difference has both values. A fact that one of them lacks is not a difference.

    Args:
      old: facts of the recorded run ("there").
      new: facts of the current run ("here").
      config: of both. It describes a model or an optimizer that is its own.

    Example:
      >>> old = {"data": "aa", "jax": {"jax_enable_x64": False}}
      >>> differences(old, {"data": "aa", "jax": {"jax_enable_x64": True}})
      ['jax_enable_x64 is False there and True here']
    """
    messages = []
    # Rows of a run without one have no augmentation in records that are older than this fact.
    for key in ("augmentation", "variables"):
        if "arrays" in old and key in new:
            old = {key: None, **old}
    for key in ("model", "optimizer", "loss", "augmentation"):
        if key in old and key in new and (pair := _difference(old[key], new[key], key, config)):
            messages.append(f"{key} is {_shorten(pair[0])} there and {_shorten(pair[1])} here")
    named = {message.split(" ")[0] for message in messages}
    old_code, new_code = old.get("code") or {}, new.get("code") or {}
    for key in sorted((old_code.keys() & new_code.keys()) - named):
        if old_code[key] != new_code[key]:
            messages.append(
                f"the {key}'s code or constants have the digest {old_code[key]} there and "
                f"{new_code[key]} here"
            )
    # Another model or optimizer has other arrays.
    for key in ("jax",) if messages else ("arrays", "jax"):
        old_values, new_values = old.get(key) or {}, new.get(key) or {}
        subjects = {}
        if key == "arrays":
            subjects = {
                "params": "the parameters' shapes are",
                "optimizer": "the optimizer's state is",
            }
        pairs = [
            (name, old_values[name], new_values[name])
            for name in old_values
            if name in new_values and old_values[name] != new_values[name]
        ]
        messages += [
            f"{subjects.get(name, f'{name} is')} {a} there and {b} here" for name, a, b in pairs
        ]
    if "data" in old and "data" in new and old["data"] != new["data"]:
        messages.append(
            f"the data's images or labels have the digest {old['data']} there and {new['data']} "
            "here"
        )
    if "variables" in old and "variables" in new and old["variables"] != new["variables"]:
        there, here = (
            f"variables with the digest {facts['variables']}" if facts["variables"] else "none"
            for facts in (old, new)
        )
        messages.append(
            f"the variables that training starts from are {there} there and {here} here"
        )
    return messages


def _difference(
    old: Facts | None, new: Facts | None, key: str, config: ExperimentConfig | None
) -> tuple[str, str] | None:
    """Describe both values if they differ.

    If two optimizers have the same parts, only parts with other numbers are described.
    """
    if old == new:
        return None
    descriptions = describe(old, key, config), describe(new, key, config)
    if old is None or new is None or key in ("loss", "augmentation"):
        return descriptions
    if key == "model":
        old_parts = [{"name": old["class"]} | old["fields"]]
        new_parts = [{"name": new["class"]} | new["fields"]]
    else:
        old_parts, new_parts = (
            [_with_later_fields(part) for part in facts["parts"]] for facts in (old, new)
        )
    if [part["name"] for part in old_parts] != [part["name"] for part in new_parts]:
        return descriptions
    pairs = []
    for a, b in zip(old_parts, new_parts, strict=True):
        # Fields that only one version of the code has do not count, so that a run can be resumed
        # after an upgrade.
        if changed := [name for name in a if name in b and a[name] != b[name]]:
            pairs.append(
                [
                    _format_call(part["name"], {name: part[name] for name in changed})
                    for part in (a, b)
                ]
            )
    rates = [facts.get("rate") for facts in (old, new)]
    if not pairs and None not in rates and rates[0] != rates[1]:
        pairs.append([f"at rate {rate:g}" for rate in rates])
    return (" + ".join(a for a, _ in pairs), " + ".join(b for _, b in pairs)) if pairs else None


def _with_later_fields(part: Facts) -> Facts:
    """Return a part with the defaults that records of an `OptimizerConfig` leave out."""
    defaults = as_dict(OptimizerConfig())
    if not defaults.keys() <= part.keys():
        return part
    return as_dict(OptimizerConfig(), all_fields=True) | part


def are_valid_facts(facts: Mapping[str, Any]) -> bool:
    """Check if facts from a file have the form of `run_facts`.

    Example:
      >>> are_valid_facts({"model": None, "data": "aa"}), are_valid_facts({"model": 3})
      (True, False)
    """
    model, tx = facts.get("model"), facts.get("optimizer")
    kinds = {"arrays": (dict, type(None)), "jax": dict, "data": str, "warm_starts": list}
    kinds |= {"build": dict, "augmentation": (str, type(None))}
    kinds |= {"code": dict, "num_steps": list, "variables": (str, type(None))}
    names = {"function": str, "model": str, "optimizer": str}
    return (
        _have_types(facts, {key: kind for key, kind in kinds.items() if key in facts})
        and ("build" not in facts or _have_types(facts["build"], names))
        and (
            model is None
            or (isinstance(model, dict) and _have_types(model, {"class": str, "fields": dict}))
        )
        and (
            tx is None
            or (isinstance(tx, dict) and _have_types(tx, {"parts": list}) and _are_parts_valid(tx))
        )
    )


def _are_parts_valid(tx: Facts) -> bool:
    have_names = all(
        isinstance(part, dict) and isinstance(part.get("name"), str) for part in tx["parts"]
    )
    return have_names and isinstance(tx.get("rate", 0.0), (int, float))


def _have_types(values: Mapping[str, Any], kinds: Mapping[str, Any]) -> bool:
    return all(isinstance(values.get(key), kind) for key, kind in kinds.items())


def variables_digest(variables: Mapping[str, Any] | Any) -> str:
    """Return a digest of the variables that a run starts from.

    Args:
      variables: {"params": ..., "batch_stats": ...}, or a State.

    Example:
      >>> variables = {"params": {"bias": np.zeros(3, np.float32)}}
      >>> variables_digest(variables) == variables_digest({"params": {"bias": jnp.zeros(3)}})
      True
    """
    if not isinstance(variables, Mapping):
        variables = {"params": variables.params, **variables.model_state}
    digest = hashlib.sha256()
    leaves = jax.tree_util.tree_leaves_with_path(dict(variables))
    arrays = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    for name, leaf in sorted(arrays.items()):
        digest.update(f"{name}{leaf.dtype} {leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def data_digest(data: Dataset) -> str:
    """Return a digest of class names, labels, images and statistics.

    Of large arrays, it covers evenly spaced examples.

    Example:
      >>> from jaxcnn.data import load_dataset
      >>> data = load_dataset("digits")
      >>> data_digest(data) == data_digest(load_dataset("digits"))
      True
      >>> reversed_labels = data.train.labels[::-1].copy()
      >>> reversed_data = data._replace(train=data.train._replace(labels=reversed_labels))
      >>> data_digest(data) == data_digest(reversed_data)
      False
    """
    digest = hashlib.sha256(json.dumps(list(data.classes)).encode())
    for split in (data.train, data.validation, data.test):
        for path, array in [("images", split.images), *label_arrays(split.labels)]:
            # The names of several arrays are part of the data.
            name = "" if path in ("images", "labels") else path
            digest.update(f"{name}{array.dtype} {array.shape}".encode() + _digest(array))
    # Statistics are of every training image, so they cover images that are not in a sample.
    for array in (data.mean, data.std):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


_digests: dict[int, tuple[weakref.ref, bytes]] = {}


def _digest(array: np.ndarray) -> bytes:
    """Return the SHA-256 of an array.

    Large arrays are read once for each array object. A few of their examples are read every time.
    """
    step = max(1, len(array) // 16)
    few_examples = hashlib.sha256(np.ascontiguousarray(array[::step]).data).digest()
    if array.nbytes <= 1 << 20:
        return hashlib.sha256(np.ascontiguousarray(array).data).digest()
    cached = _digests.get(id(array))
    # Another array may have the id of one that was deleted.
    if cached is None or cached[0]() is not array:
        sample = np.ascontiguousarray(array[:: math.ceil(array.nbytes / MAX_DIGEST_BYTES)])
        key = id(array)
        reference = weakref.ref(array, lambda _: _digests.pop(key, None))
        cached = reference, hashlib.sha256(sample.data).digest()
        _digests[key] = cached
    return cached[1] + few_examples


def shapes_digest(tree: Any) -> str:
    """Return a digest of the names, shapes and dtypes of arrays.

    It does not depend on their values.
    """
    lines = [
        f"{jax.tree_util.keystr(path)} {np.shape(leaf)} {np.result_type(leaf)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def jax_settings() -> dict[str, Any]:
    """Return the current values of `JAX_FLAGS`."""
    return {
        name: _to_json(getattr(jax.config, name)) for name in JAX_FLAGS if hasattr(jax.config, name)
    }


def machine_facts() -> dict[str, Any]:
    """Return the CPU, the usable cores and the library's commit.

    The commit is None if the sources are not a checkout.
    """
    return {"cpu": processor(), "cores": cores(), "commit": _commit()}


@functools.lru_cache(maxsize=1)
def processor() -> str:
    """Return the name that the system has for the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.lru_cache(maxsize=1)
def _commit() -> str | None:
    """Return the commit of the checkout that the package runs from.

    It ends with "-dirty" if tracked files differ. It is None outside a checkout.
    """
    root = Path(__file__).resolve().parent.parent
    # A package may be installed inside the repository of another project.
    if not (root / ".git").exists():
        return None
    options = ["--always", "--dirty", "--abbrev=40", "--exclude=*"]
    command = ["git", "-C", str(root), "describe", *options]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return process.stdout.strip() or None


_cached_facts: OrderedDict[tuple[Any, Any], Facts] = OrderedDict()


def cache_run_facts(row: Mapping[str, Any], facts: Facts) -> None:
    """Cache the facts of a row's run in this process.

    The key is the row's step and seconds, which no other row has. Nothing is written, and the
    oldest of `MAX_CACHED_ROWS` entries is dropped.
    """
    _cached_facts[row["step"], row["seconds"]] = facts
    if len(_cached_facts) > MAX_CACHED_ROWS:
        _cached_facts.popitem(last=False)


def cached_run_facts(row: Mapping[str, Any]) -> Facts | None:
    """Return the cached facts of a row's run.

    They are None if it is not a row of `train` in this process.
    """
    return _cached_facts.get((row.get("step"), row.get("seconds")))


# ---------------------------------------------------------------- equal functions


def are_equal_functions(a: Any, b: Any) -> bool:
    """Check if two functions have the same code and equal values in their closures.

    Then they compute the same, and one compiled program serves both. Values that cannot be compared
    are equal only if they are one object.

    Example:
      >>> def scale(factor):
      ...     return lambda x: factor * x
      >>> are_equal_functions(scale(2.0), scale(2.0)), are_equal_functions(scale(2.0), scale(3.0))
      (True, False)
    """
    return _are_equal(a, b, {})


def _are_equal(a: Any, b: Any, compared: dict[tuple[int, int], Any]) -> bool:
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, (bool, int, float, complex, str, bytes)):
        # Unlike ==, it tells 0.0 from -0.0.
        return repr(a) == repr(b)
    # A function may be in its own closure. The objects are kept, so that no other gets their ids.
    if (id(a), id(b)) in compared:
        return True
    compared[id(a), id(b)] = a, b
    if isinstance(a, (np.ndarray, np.generic, jax.Array)):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        if jnp.issubdtype(a.dtype, jax.dtypes.extended):
            return False
        return np.asarray(a).tobytes() == np.asarray(b).tobytes()
    if isinstance(a, (type, np.dtype)):
        return a == b
    if isinstance(a, (tuple, list)):
        pairs = zip(a, b, strict=True) if len(a) == len(b) else [(0, 1)]
    elif isinstance(a, dict):
        pairs = [(list(a), list(b)), *((a[key], b.get(key)) for key in a)]
    elif isinstance(a, functools.partial):
        pairs = [(a.func, b.func), (a.args, b.args), (a.keywords, b.keywords)]
    elif isinstance(a, types.MethodType):
        pairs = [(a.__func__, b.__func__), (a.__self__, b.__self__)]
    elif isinstance(a, types.FunctionType):
        if a.__code__ != b.__code__ or a.__globals__ is not b.__globals__:
            return False
        pairs = [(a.__defaults__, b.__defaults__), (a.__kwdefaults__, b.__kwdefaults__)]
        pairs += [(_cells(a), _cells(b))]
    elif dataclasses.is_dataclass(a) and hasattr(a, "__dict__"):
        pairs = [(dict(vars(a)), dict(vars(b)))]
    else:
        return False
    return all(_are_equal(x, y, compared) for x, y in pairs)


def _cells(function: types.FunctionType) -> list[Any]:
    """Return the values of a function's closure. A variable without one has an empty list."""
    cells: list[Any] = []
    for cell in function.__closure__ or ():
        try:
            cells.append([cell.cell_contents])
        except ValueError:
            cells.append([])
    return cells


# ---------------------------------------------------------------- plain values


def _fields(value: Any) -> Facts:
    """Return the fields of a module's or another dataclass's constructor."""
    if not dataclasses.is_dataclass(value):
        return {}
    names = [
        field.name
        for field in dataclasses.fields(value)
        if field.init and field.name not in ("parent", "name")
    ]
    return {name: _to_json(getattr(value, name, None)) for name in names}


def _to_json(value: Any, depth: int = 0) -> Any:
    """Return a form of a value that JSON can hold.

    It has no addresses, so it is the same in every process.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value) if value.isprintable() else repr(value)
    if isinstance(value, (int, float)):
        return value if -MAX_NUMBER <= value <= MAX_NUMBER else f"{value!s:.80}"
    if depth > _MAX_DEPTH:
        return "..."
    if isinstance(value, Mapping):
        return {str(name): _to_json(item, depth + 1) for name, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [_to_json(item, depth + 1) for item in value]
        return sorted(items, key=str) if isinstance(value, (set, frozenset)) else items
    if isinstance(value, functools.partial):
        arguments = _to_json([value.args, value.keywords], depth + 1)
        return {"function": _to_json(value.func), "given": arguments}
    if isinstance(value, types.FunctionType):
        values = {name: item for name, item in _closure(value) if _is_plain(item)}
        name = _qualified_name(value)
        return _format_call(name, _to_json(values, depth + 1)) if values else name
    if isinstance(value, type) or (callable(value) and not dataclasses.is_dataclass(value)):
        return _qualified_name(value)
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return _array_to_json(value)
    if dataclasses.is_dataclass(value):
        fields = {name: _to_json(item, depth + 1) for name, item in _fields(value).items()}
        return {"class": _qualified_name(type(value)), "fields": fields}
    return value.name if isinstance(value, np.dtype) else _qualified_name(type(value))


def _array_to_json(value: Any) -> Any:
    """Return the number of a 0-dimensional array, or else a description.

    The description has dtype, shape and a digest.
    """
    # NumPy cannot hold random keys.
    if jnp.issubdtype(value.dtype, jax.dtypes.extended):
        return str(value.dtype)
    array = np.asarray(value)
    if array.ndim == 0 and array.dtype.kind in "biuf":
        return _to_json(array.item())
    digest = hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()[:16]
    return f"{array.dtype}{list(array.shape)} {digest}"


def _qualified_name(value: Any) -> str:
    """Return the qualified name of a class, function or object's class."""
    definition = value if hasattr(value, "__qualname__") else type(value)
    module = getattr(definition, "__module__", None)
    return f"{module}.{definition.__qualname__}" if module else definition.__qualname__


# ---------------------------------------------------------------- parts of an optimizer


def _parts(function: Any) -> list[Facts]:
    """Return the functions that a transformation is built from.

    The outermost is first. Each has the plain values that its closure holds.
    """
    parts: list[Facts] = []
    visited: set[int] = set()

    def visit(value: Any, depth: int) -> None:
        value = getattr(value, "__wrapped__", value)
        if depth > 20 or id(value) in visited:
            return
        if isinstance(value, Mapping):
            value = list(value.values())
        if isinstance(value, (tuple, list)):
            for item in value:
                visit(item, depth + 1)
            return
        contents = _contents(value)
        if contents is None:
            return
        visited.add(id(value))
        name, numbers, inner = contents
        if numbers or name not in _WRAPPERS:
            parts.append({"name": name} | numbers)
        for item in inner:
            visit(item, depth + 1)

    visit(function, 0)
    return parts


def _contents(value: Any) -> tuple[str, Facts, list[Any]] | None:
    """Return the contents of a function or an object with functions.

    Returns:
      Its name, its plain values and its other values; or None for anything else.
    """
    if isinstance(value, functools.partial):
        arguments = dict(enumerate(value.args)) | value.keywords
        values = {str(key): item for key, item in arguments.items()} | {"function": value.func}
        name = "partial"
    elif isinstance(value, types.MethodType):
        values = dict(vars(value.__self__)) if hasattr(value.__self__, "__dict__") else {}
        name = _public_name(value)
    elif isinstance(value, types.FunctionType):
        values, name = dict(_closure(value)), _public_name(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        values = vars(value) if hasattr(value, "__dict__") else {}
        values = {key: _fields_of_numbers(item) for key, item in values.items()}
        name = type(value).__qualname__
        # The result of `jaxcnn.create_optimizer` holds a config. There, the rate is state.
        if isinstance(value, OptimizerConfig):
            values = {name: item for name, item in values.items() if name != "learning_rate"}
    else:
        return None
    plain = {key: item for key, item in values.items() if _is_plain(item)}
    inner = [item for key, item in values.items() if key not in plain]
    return name, {key: _to_json(item) for key, item in plain.items()}, inner


def _fields_of_numbers(value: Any) -> Any:
    """Return the fields of a frozen dataclass, such as a detector's anchors, by name.

    Any other value, and one that can be called, is returned as it is.
    """
    params = getattr(type(value), "__dataclass_params__", None)
    if params is None or not params.frozen or callable(value) or isinstance(value, OptimizerConfig):
        return value
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _public_name(function: Any) -> str:
    """Return the name of the function that a user calls.

    It is `scale` for `scale.<locals>.update_fn`.
    """
    return function.__qualname__.split(".<locals>")[0].removesuffix(".update").removesuffix(".init")


def _closure(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield names and values of a function's closure.

    For a function of the user's own, its defaults, constants and plain globals follow.
    """
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        # The variable has no value yet.
        except ValueError:
            continue
    # A function of evaluated code may have no module.
    if (function.__module__ or "").split(".")[0] in ("optax", "jax", "flax", "jaxcnn"):
        return
    names = code.co_varnames[: code.co_argcount][::-1]
    yield from zip(names, (function.__defaults__ or ())[::-1], strict=False)
    yield from (function.__kwdefaults__ or {}).items()
    # A function without a name is told apart by what it uses, which no version of Python changes.
    if function.__name__ == "<lambda>":
        operators = [
            instruction.argrepr
            for instruction in dis.get_instructions(function)
            if instruction.opname == "BINARY_OP"
        ]
        content = repr((code.co_names, code.co_varnames, operators)).encode()
        yield "code", hashlib.sha256(content).hexdigest()[:8]
    numbers = [
        value
        for value in code.co_consts
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    ]
    if numbers:
        yield "constants", numbers
    for name in code.co_names:
        if isinstance(value := function.__globals__.get(name), (int, float, str)):
            yield name, value


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Check if a value consists of numbers and text."""
    if isinstance(value, Mapping):
        return depth < _MAX_DEPTH and all(_is_plain(item, depth + 1) for item in value.values())
    if isinstance(value, (list, tuple)):
        return depth < _MAX_DEPTH and all(_is_plain(item, depth + 1) for item in value)
    plain_types = (bool, int, float, str, np.ndarray, np.generic, np.dtype, jax.Array)
    return value is None or isinstance(value, plain_types)


def _format_call(name: str, values: Mapping[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={_format(value)}' for key, value in values.items())})"


def _format(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "..."
