"""Public functions, called with wrong arguments: each call gives a result or an error of this library, in one line, soon.

A call has one or two arguments, or parts of them, replaced by values of another type, shape, size or meaning. The suite tries a
few calls of each function; `pytest tests/test_fuzz.py --cases 500` tries 500.
"""

import dataclasses
import inspect
import json
import linecache
import operator
import random
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from huggingface_hub import constants as hub_constants
from PIL import Image

import jaxcnn as jc
from jaxcnn import runs

PACKAGE = str(Path(jc.__file__).parent)
SECONDS = 60
"""After which a call hangs. None of them trains for more than a few steps."""

CONSTRUCTORS = {
    "Dataset",
    "Split",
    "State",
    "Metrics",
    "CheckpointError",
    "DataError",
    "ArgumentError",
    "WeightsError",
}
"""Tuples and errors, which take anything; what uses them is what checks them."""

CONFIGS = (jc.ExperimentConfig, jc.OptimizerConfig, jc.TrainConfig, jc.AugmentConfig)
FUNCTIONS = {"loss", "gradient", "resume", "should_stop", "names", "augment"}
FUNCTIONS |= {"measure", "on_step", "prepare_state", "build", "name"}
"""Arguments that are functions of the user's own, whose errors are the user's."""


def fails(*args, **kwargs):
    raise ZeroDivisionError("of the user's own")


SCALARS = [
    None, True, False, 0, 1, -1, 3, 2**31, 2**63, 10**30, 0.5, -0.5, 1e300, float("nan"), float("inf"), 1j,
    "", "x", "a\nb", "\0", "x" * 5000, "ä漢$|", b"x", (), (1,), (-1, 2), int, nn.Dense, nn.Dense(3), optax.sgd,
]  # fmt: skip
ANYTHING: list[Callable[[], Any]] = [
    *(lambda value=value: value for value in SCALARS),
    list,
    dict,
    set,
    object,
    lambda: [1, "x"],
    lambda: {"a": 1},
    lambda: {1: None},
    lambda: iter([1, 2]),
    lambda: fails,
    lambda: optax.sgd(0.1),
    lambda: Path("/dev/null/at/all"),  # where nothing can be made, by the root user either
    lambda: np.zeros(0),
    lambda: np.zeros((2, 3), np.int32),
    lambda: np.zeros((3, 8, 8, 1), np.uint8),
    lambda: np.array("x"),
    lambda: np.array([None, 1], object),
    lambda: np.float32("nan"),
    lambda: np.int64(3),
    lambda: jnp.ones(3),
    lambda: jax.ShapeDtypeStruct((2, 3), jnp.float32),
    lambda: jax.random.key(0),
]


def changed_array(array: np.ndarray, rng: random.Random) -> Any:
    """An array with another type, shape, order or values."""
    ways: list[Callable[[], Any]] = [
        lambda: array[None],
        lambda: array.T,
        lambda: array.reshape(-1),
        lambda: array.astype(np.float32),
        lambda: array.astype(np.float64) * np.nan,
        lambda: array.astype(np.int64),
        lambda: array.astype(np.int64) - 1000,
        lambda: array.astype(np.int32) + 1000,
        lambda: array.astype(">i4"),
        lambda: array.astype(bool),
        lambda: array.astype(complex),
        lambda: array.astype(str),
        lambda: array.astype(object),
        lambda: array.tolist(),
        lambda: jnp.asarray(array.astype(np.float32)),
        lambda: np.ma.masked_array(array),
    ]
    if array.ndim:
        ways += [
            lambda: array[:0],
            lambda: array[:1],
            lambda: array[..., 0],
            lambda: array[::-1],
            lambda: np.concatenate([array, array]),
        ]
    return rng.choice(ways)()


def changed(value: Any, rng: random.Random) -> Any:
    """Something near `value`, or something else."""
    if rng.random() < 0.35:
        return rng.choice(ANYTHING)()
    if isinstance(value, CONFIGS):
        name = rng.choice([field.name for field in dataclasses.fields(value)])
        return dataclasses.replace(value, **{name: changed(getattr(value, name), rng)})
    if isinstance(value, (np.ndarray, jax.Array)):
        plain = isinstance(value, np.ndarray) or not jnp.issubdtype(
            value.dtype, jax.dtypes.prng_key
        )
        return changed_array(np.asarray(value), rng) if plain else rng.choice(ANYTHING)()
    if isinstance(value, bool):
        return rng.choice([0, 1, not value, "yes", None])
    if isinstance(value, int):
        return rng.choice(
            [
                value + 1,
                value - 1,
                -value,
                value * 1000,
                float(value),
                str(value),
                value == 1,
                [value],
                0,
            ]
        )
    if isinstance(value, float):
        return rng.choice([-value, 0.0, value * 1e6, int(value), str(value), float("nan"), [value]])
    if isinstance(value, str):
        return rng.choice(
            [
                value.upper(),
                value + "x",
                value[:-1],
                f" {value}",
                [value],
                value.encode(),
                Path(value),
            ]
        )
    if isinstance(value, Path):
        file = value.parent / "file.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("text")
        return rng.choice(
            [value / "missing", str(value), value.parent, file, [value], str(value).encode()]
        )
    if isinstance(value, tuple) and getattr(value, "_fields", ()):
        names: Any = value
        name = rng.choice(names._fields)
        part = changed(getattr(value, name), rng)
        # A function in place of the optimizer's own is the user's, and so are its errors.
        while isinstance(value, optax.GradientTransformation) and callable(part):
            part = changed(getattr(value, name), rng)
        return names._replace(**{name: part})
    if isinstance(value, (tuple, list)) and value:
        spot = rng.randrange(len(value))
        ways = [
            value[:spot],
            [*value, value[spot]],
            [*value[:spot], changed(value[spot], rng), *value[spot + 1 :]],
        ]
        return type(value)(rng.choice(ways))
    if isinstance(value, dict) and value:
        name = rng.choice(list(value))
        rest = {key: each for key, each in value.items() if key != name}
        return rng.choice([rest, {**value, name: changed(value[name], rng)}, {**value, "other": 1}])
    return rng.choice(ANYTHING)()


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """What good calls are made of."""
    return made(tmp_path_factory.mktemp("fuzz"))


def made(folder: Path) -> tuple[Any, ...]:
    rng = np.random.default_rng(0)
    images, labels = (
        rng.integers(0, 256, (24, 8, 8, 1), np.uint8),
        (np.arange(24) % 3).astype(np.int32),
    )
    train, validation, test = (jc.Split(images[:n], labels[:n]) for n in (24, 6, 9))
    mean, std = np.full((8, 8, 1), 0.5, np.float32), np.ones(1, np.float32)
    data = jc.Dataset("own", train, validation, test, ("a", "b", "c"), mean, std)
    options = {"width": 2, "hidden": 3}
    config = jc.ExperimentConfig(
        "own",
        "convnet",
        model_kwargs=options,
        num_validation=6,
        optimizer=jc.OptimizerConfig(milestones=(1,)),
        train=jc.TrainConfig(num_steps=2, batch_size=4, eval_every=1, subtract_mean="none"),
    )
    model = jc.create_model("convnet", 3, **options)
    tx = jc.create_optimizer(config.optimizer)
    normed = jc.create_model("convnet", 3, batch_norm=True, **options)
    state, other = (jc.init_state(network, tx, config.train, data) for network in (model, normed))
    jc.export_weights(model, state, folder / "weights.safetensors")
    one = jc.strategy("jit", devices=1)
    for _ in jc.train(model, tx, data, config.train, run_dir=folder / "trained", strategy=one):
        pass
    runs.sweep({"a": config}, data, folder / "study", strategy=one, quiet=True)
    store_pretrained(folder / "hub" / "models--timm--small")
    (folder / "run").mkdir()
    (folder / "run" / "metrics.jsonl").write_text('{"step": 1, "rate": 0.1}\n')
    for part in "ab":
        (folder / "images" / part).mkdir(parents=True)
        for number in range(5):
            Image.fromarray(images[number + 5 * (part == "b"), :, :, 0]).save(
                folder / "images" / part / f"{number}.png"
            )
    return folder, data, config, model, tx, state, normed, other


def store_pretrained(repo: Path) -> None:
    """A repository in the cache of `huggingface_hub`, as a download leaves it."""
    commit = "0" * 40
    (repo / "snapshots" / commit).mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    fields = {"input_size": [3, 32, 32], "crop_pct": 0.9, "interpolation": "bilinear"}
    fields |= {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    config = {"architecture": "resnet18", "num_classes": 3, "pretrained_cfg": fields}
    (repo / "snapshots" / commit / "config.json").write_text(json.dumps(config))
    model = jc.create_model("resnet18", 3, width=2)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape), dict(shapes))
    jc.export_weights(model, variables, repo / "snapshots" / commit / "model.safetensors")


def quadratic(params, *args) -> Any:
    return sum((leaf**2).sum() for leaf in jax.tree.leaves(params))


def calls(
    things: tuple[Any, ...], out: Path
) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """A good call of each public function: the function and its arguments by name."""
    folder, data, config, model, tx, state, normed, other = things
    smoothed = jc.create_loss("cross-entropy", label_smoothing=0.1)
    params, one, key = {"a": jnp.ones(3)}, jc.strategy("jit", devices=1), jax.random.key(0)
    variables = {"params": state.params, **state.model_state}

    def saved(folder, keep_every, state):
        with jc.Checkpoints(folder, keep_every) as checkpoints:
            checkpoints.save(state)
            checkpoints.wait()
            return checkpoints.restore(state)

    def logged(folder, config, facts, step, row, **pieces):
        with jc.RunLog(folder, config, facts, **pieces) as log:
            log.write(step=step, train_loss=row)

    def pretrained(name, num_classes, seed, width):
        # Offline, so that no wrong name reaches for the network.
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HF_HUB_OFFLINE", "1")
            patch.setattr(hub_constants, "HF_HUB_CACHE", str(folder / "hub"))
            return jc.create_pretrained(name, num_classes=num_classes, seed=seed, width=width)

    def built(name, num_classes, **options):
        return jc.create_model(name, num_classes, **options)

    def differentiated(model, loss):
        jax.grad(jc.loss_fn(model, loss))(
            state.params, state.model_state, data.train.images / np.float32(255), data.train.labels
        )

    def fields(config):
        return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}

    def overridden(config, learning_rate, padding):
        return jc.override(config, learning_rate=learning_rate, padding=padding)

    common, nothing = {"model": model, "state": state}, jc.Split(*(part[:0] for part in data.train))
    return {
        "Checkpoints": (saved, {"folder": out / "checkpoints", "keep_every": 0, "state": state}),
        "ExperimentConfig": (jc.ExperimentConfig, fields(config)),
        "OptimizerConfig": (jc.OptimizerConfig, fields(config.optimizer)),
        "TrainConfig": (jc.TrainConfig, fields(config.train)),
        "AugmentConfig": (jc.AugmentConfig, fields(config.train.augment)),
        "override": (overridden, {"config": config, "learning_rate": 0.3, "padding": 1}),
        "RunLog": (
            logged,
            {"folder": out / "log", "config": config, "facts": {"a": 1}, "step": 1, "row": 0.5}
            | {"model": model, "tx": tx, "data": data, "tensorboard": True}
            | {"build": None, "extend": False, "run_facts": None},
        ),
        "with_variables": (jc.with_variables, {"state": state, "variables": variables}),
        "create_loss": (
            lambda name, **kwargs: jc.create_loss(name, **kwargs),
            {"name": "cross-entropy", "label_smoothing": 0.1, "class_weights": (1.0, 2.0, 3.0)},
        ),
        "create_model": (
            built,
            {"name": "convnet", "num_classes": 3, "width": 2, "hidden": 3, "batch_norm": False},
        ),
        "strategy": (jc.strategy, {"kind": "jit", "devices": 1}),
        "eigenvalues": (
            jc.eigenvalues,
            {"loss": quadratic, "params": params, "key": key, "iterations": 3},
        ),
        "evaluate": (
            jc.evaluate,
            {
                **common,
                "split": data.test,
                "batch_size": 4,
                "strategy": one,
                "loss": "cross-entropy",
                "normalizer": None,
            },
        ),
        "dataset": (
            jc.dataset,
            {
                "train": tuple(data.train),
                "test": tuple(data.test),
                "validation": tuple(data.test),
                "num_classes": 3,
                "classes": ("a", "b", "c"),
                "name": "mine",
            },
        ),
        "export_weights": (
            jc.export_weights,
            {
                "model": model,
                "variables": variables,
                "file": out / "w.safetensors",
                "metadata": {"by": "us"},
            },
        ),
        "train": (
            lambda **given: next(iter(jc.train(**given))),
            {
                "model": model,
                "tx": tx,
                "data": data,
                "config": config.train,
                "loss": "cross-entropy",
                "augment": jc.augment.cutout(2),
                "variables": variables,
                "run_dir": None,
                "resume": lambda state: None,
            }
            | {"warm_start": False, "strategy": one, "should_stop": lambda step: step}
            | {"progress": False, "tensorboard": False},
        ),
        "image_folder": (
            jc.image_folder,
            {
                "path": folder / "images",
                "size": 8,
                "resize": 10,
                "validation": 0.2,
                "test": 0.2,
                "seed": 0,
            }
            | {"skip_broken": False, "memory": 2**31, "interpolation": "bicubic"},
        ),
        "gradcam": (
            jc.gradcam,
            {
                **common,
                "images": data.test.images[:2],
                "classes": np.zeros(2, np.int32),
                "stage": None,
                "batch_size": 2,
                "normalizer": None,
            },
        ),
        "hold_out": (
            jc.hold_out,
            {"data": data._replace(validation=nothing), "n": 3, "seed": 0},
        ),
        "load_dataset": (
            jc.load_dataset,
            {"name": "digits", "data_dir": None, "validation": 3, "seed": 0},
        ),
        "lr_finder": (
            jc.lr_finder,
            {
                "model": model,
                "optimizer": config.optimizer,
                "data": data,
                "config": config.train,
                "low": 1e-3,
                "high": 1.0,
                "num_steps": 10,
                "loss": "squared",
                "augment": None,
                "strategy": one,
            },
        ),
        "make_train_step": (
            jc.make_train_step,
            {
                "model": model,
                "tx": tx,
                "loss": "cross-entropy",
                "freeze": ("stem",),
                "augment": jc.AugmentConfig(padding=1),
                "axis_name": None,
            },
        ),
        "noise_scale": (
            jc.noise_scale,
            {
                "gradient": lambda params, batch: params,
                "params": params,
                "batches": [jnp.ones(3), jnp.zeros(3)],
            },
        ),
        "loss_fn": (differentiated, {"model": model, "loss": "cross-entropy"}),
        "create_optimizer": (
            jc.create_optimizer,
            {"config": config.optimizer, "num_steps": 2, "seed": 0},
        ),
        "count_parameters": (jc.count_parameters, {"model": model, "shape": (8, 8, 1)}),
        "recompute_batch_stats": (
            jc.recompute_batch_stats,
            {
                "model": normed,
                "state": other,
                "split": data.train,
                "n": 8,
                "batch_size": 4,
                "strategy": one,
                "normalizer": None,
            },
        ),
        "predict": (
            jc.predict,
            {
                "model": model,
                "state": variables,
                "images": data.test.images,
                "batch_size": 4,
                "normalizer": state.normalizer,
            },
        ),
        "with_ema": (jc.with_ema, {"tx": tx, "decay": 0.9, "debias": True}),
        "list_models": (jc.list_models, {"pattern": "resnet*"}),
        "select_output": (jc.select_output, {"model": model, "output": 0}),
        "load_weights": (
            jc.load_weights,
            {
                "model": model,
                "file": folder / "weights.safetensors",
                "shape": (8, 8, 1),
                "seed": 0,
                "names": None,
            }
            | {"entry": None, "shortcut_padding": None, "stride_in_3x3": None},
        ),
        "load_classifier": (
            jc.load_classifier,
            {"folder": folder / "trained", "step": "last", "model": model}
            | {"classes": ("a", "b", "c"), "resize": 10, "interpolation": "bicubic"},
        ),
        "create_pretrained": (
            pretrained,
            {"name": "timm/small", "num_classes": 3, "seed": 0, "width": 2},
        ),
        "Preprocessing": (
            jc.Preprocessing,
            {"size": 32, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2)}
            | {"interpolation": "bicubic", "crop_fraction": 0.9},
        ),
        "read_metrics": (jc.read_metrics, {"folder": folder / "run"}),
        "sharpness": (
            jc.sharpness,
            {
                "loss": quadratic,
                "params": params,
                "key": key,
                "tolerance": 1e-2,
                "max_iterations": 5,
            },
        ),
        "init_state": (
            jc.init_state,
            {"model": model, "tx": tx, "config": config.train, "data": data, "loss": smoothed},
        ),
        "subset": (jc.subset, {"data": data, "n": 6, "seed": 0}),
        "summary": (jc.summary, {"model": model, "shape": (8, 8, 1)}),
        **calls_of_runs(things, out),
    }


def calls_of_runs(
    things: tuple[Any, ...], out: Path
) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """The same for `jaxcnn.runs`."""
    folder, data, config, *_ = things
    one = jc.strategy("jit", devices=1)
    functions = {"should_stop": lambda: False, "measure": lambda model, state, data: {}}
    options = functions | {"strategy": one, "keep_every": 0, "build": None, "loss": "squared"}
    of_run = options | {"tensorboard": False, "on_step": lambda step, row: None}
    of_run |= {"prepare_state": lambda state: state}
    finished = runs.finished_runs(folder / "study")
    keys, searched = ("train_error", "eval_error"), jc.override(config, eval_split="validation")

    def opened(**given):
        with runs.open_run_dir(**given):
            pass

    def evaluated(trial, num_steps, **given):
        return runs.experiment_evaluator(**given)(trial, num_steps)

    names = {
        "run": (runs.run, {"config": config, "data": data, "folder": out / "run"} | of_run),
        "sweep": (
            runs.sweep,
            {"runs": {"a": config}, "data": data, "out": out / "sweep", "quiet": True}
            | options
            | {"tensorboard": False},
        ),
        "train_until": (
            runs.train_until,
            {"config": config, "data": data, "folder": out / "until", "num_steps": 1}
            | {"should_stop": lambda: False, "on_step": lambda step, row: None, "strategy": one},
        ),
        "experiment_evaluator": (
            evaluated,
            {"data": data, "out": out / "trials", "trial": searched, "num_steps": 1}
            | {"metric": "eval_error", "name": runs.run_name, "should_stop": lambda: False}
            | {"strategy": one},
        ),
        "open_run_dir": (
            opened,
            {"config": config, "folder": out / "opened", "strategy": one, "data": data},
        ),
        "load_trained_model": (
            runs.load_trained_model,
            {"folder": folder / "study" / "a", "data": data, "data_dir": None, "path": False}
            | {"loss": None, "build": None},
        ),
        "finished_runs": (runs.finished_runs, {"out": folder / "study"}),
        "pack": (runs.pack, {"source": folder / "study", "target": out / "packed"}),
        "eval_split": (runs.eval_split, {"runs": finished}),
        "aggregate_seeds": (runs.aggregate_seeds, {"runs": finished, "keys": keys}),
        "run_name": (runs.run_name, {"config": config}),
        "model_and_optimizer": (
            runs.model_and_optimizer,
            {"config": config, "num_classes": 3},
        ),
        "subset_for": (runs.subset_for, {"config": config, "data": data}),
    }
    return {f"runs.{name}": call for name, call in names.items()}


NAMES = sorted(
    {name for name in dir(jc) if name[0] != "_" and callable(getattr(jc, name))} - CONSTRUCTORS
) + sorted(
    f"runs.{name}"
    for name in set(dir(runs)) - {"Build", "Measure", "Run", "SearchStopped", "TrainedModel"}
    if name[0] != "_" and callable(getattr(runs, name))
)


def fault(call: Callable[[], Any]) -> str | None:
    """What is wrong with the way in which a call ends; None where that is a result or an error of the library's own."""

    def hangs(*_):
        raise TimeoutError("the call hangs")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(SECONDS)
    try:
        call()
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        last, said = frames[-1], f"{type(error).__name__}: {error}"
        ours = next(
            (
                f"{Path(f.filename).name}:{f.lineno}"
                for f in reversed(frames)
                if f.filename.startswith(PACKAGE)
            ),
            "?",
        )
        if last.name in ("fails", "changed", "changed_array"):
            return None
        if isinstance(error, TimeoutError):
            return f"hangs at {ours}"
        line = linecache.getline(last.filename, last.lineno or 0).strip()
        if not last.filename.startswith(PACKAGE) or not line.startswith("raise"):
            return f"raw at {ours}: {said[:200]}"
        if "\n" in said or len(said) > 1200:
            return f"not one line at {ours}: {said[:200]}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return None


def faults(name: str, things: tuple[Any, ...], out: Path, cases: int) -> dict[str, str]:
    """The different faults of `cases` calls of a function: where -> the first case and what happened."""
    found: dict[str, str] = {}
    for case in range(cases):
        rng = random.Random(f"{name} {case}")
        function, arguments = calls(things, out / str(case))[name]
        spots = rng.sample(sorted(arguments), rng.choice([1, 1, 2]) if len(arguments) > 1 else 1)
        given = dict(arguments)
        try:
            given |= {key: changed(arguments[key], rng) for key in spots}
        except (
            ValueError,
            TypeError,
        ):  # an array that cannot be changed in that way, or a config that refuses the value
            continue
        if (
            type(given.get("num_steps")) is int and given["num_steps"] > 100
        ):  # takes as long as it says
            continue
        if any(
            key in FUNCTIONS and callable(given[key]) and given[key] is not arguments[key]
            for key in spots
        ):
            continue
        if wrong := fault(lambda function=function, given=given: function(**given)):
            found.setdefault(" ".join(wrong.split(": ")[:2])[:80], f"case {case}, {spots}: {wrong}")
    return found


@pytest.mark.quick_compilation
@pytest.mark.slow
def test_every_public_function_is_tried(things, tmp_path):
    assert sorted(calls(things, tmp_path)) == sorted(NAMES)
    for name, (function, arguments) in calls(things, tmp_path).items():
        function(**arguments)
        if name not in ("Checkpoints", "loss_fn"):
            kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
            named = {
                p.name
                for p in inspect.signature(operator.attrgetter(name)(jc)).parameters.values()
                if p.kind not in kinds
            }
            assert named <= set(arguments), name


def test_the_fuzzer_sees_a_raw_error_and_an_error_of_several_lines():
    from jaxcnn.data import DataError, channel_statistics

    def lines():
        raise DataError("one\ntwo")

    nothing: Any = None
    assert "raw at types.py" in str(fault(lambda: channel_statistics(nothing)))
    assert "raw" in str(fault(lines))  # not raised in the library
    assert fault(lambda: jc.strategy("tpu")) is None


@pytest.mark.parametrize("name", NAMES)
def test_wrong_arguments_give_one_line_or_a_result(name, things, cases, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = faults(name, things, tmp_path, cases(12))
    assert not found, "\n".join(["", *found.values()])


def test_what_hundreds_of_calls_found(things, tmp_path):
    """Rare values of the fuzzer, each with the function in which it gave a raw error."""
    _, data, config, model, _, state, normed, other = things
    params, images = {**state.params, "conv1": jnp.ones(3)}, data.test.images
    stats = {
        "batch_stats": {"other": {"mean": np.zeros(2, np.float32), "var": np.ones(2, np.float32)}}
    }
    keyed, other_stats = (
        state.normalizer._replace(mean=jax.random.key(0)),
        other._replace(model_state=stats),
    )
    found: list[tuple[Callable[[], Any], str]] = [
        (
            lambda: jc.with_variables(state._replace(params={"a": iter([1])}), {}),
            r"params has .*list_iterator.* at \['a'\]",
        ),
        (lambda: jc.evaluate(model, state._replace(normalizer=keyed), data.test), "normalizer is "),
        (
            lambda: jc.gradcam(model, state._replace(params=params), images),
            "variables are not of this ConvNet",
        ),
        (
            lambda: jc.recompute_batch_stats(normed, other_stats, data.train, 8, batch_size=8),
            "of this ConvNet",
        ),
        (
            lambda: jc.recompute_batch_stats(normed, other, data.train, 8, batch_size=4),
            "batch_size is 4, which 8 devices cannot share",
        ),
        (lambda: jc.sharpness(quadratic, iter([1, 2])), "params holds list_iterator"),
        (lambda: jc.noise_scale(quadratic, iter([1, 2]), [1, 2]), "params holds list_iterator"),
        (
            lambda: jc.lr_finder(
                model, config.optimizer, data._replace(name=np.zeros((2, 3))), config.train
            ),
            "name is of type ndarray",
        ),
        (
            lambda: jc.RunLog(
                tmp_path / "a", config, data=data._replace(test=jc.Split(images, cast(Any, "x")))
            ),
            "test labels",
        ),  # pyright: ignore[reportArgumentType]
        (lambda: jc.export_weights(model, state, "x" * 5000), "names of at most 255 bytes"),
        (lambda: jc.export_weights(model, state, "\ud800"), "a path that this system can write"),
    ]
    for call, words in found:
        with pytest.raises(ValueError, match=words) as error:
            call()
        assert "\n" not in str(error.value)
        assert type(error.value).__module__.startswith("jaxcnn.")
    with (
        jc.Checkpoints(tmp_path / "b") as saved,
        pytest.raises(jc.CheckpointError, match="list_iterator"),
    ):
        saved.save(state._replace(params={"a": iter([1])}))
