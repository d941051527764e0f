"""Hostile surroundings and hostile options: one line, a saved run, and never a hang."""

import copy
import dataclasses
import importlib
import io
import json
import math
import os
import pickle
import pwd
import shlex
import signal
import subprocess
import sys
import threading
import time
import typing
import warnings
import zlib
from pathlib import Path
from typing import Any

import jax
import pytest

import experiments
from experiments._options import SHARED
from jaxcnn import cli
from jaxcnn.checkpoint import CheckpointError, Checkpoints
from jaxcnn.config import (
    ArgumentError,
    ExperimentConfig,
    OptimizerConfig,
    TrainConfig,
    as_dict,
    override,
)
from jaxcnn.cpu import without_persistent_cache
from jaxcnn.data import DataError, cache, load_dataset, loading
from jaxcnn.progress import Progress, SafeStream
from jaxcnn.run_log import read_metrics
from jaxcnn.runs import sweep, sweeps

pytestmark = pytest.mark.quick_compilation

ROOT = Path(cli.__file__).parent.parent
SMALL = [
    "--depths",
    "8",
    "--families",
    "plain",
    "--num-seeds",
    "1",
    "--width",
    "2",
    "--keep-every",
    "0",
]


def scripts():
    """Name -> the module of each script that parses options."""
    files = [
        path
        for path in Path(experiments.__file__).parent.rglob("*.py")
        if path.name not in ("_common.py", "_options.py")
        and any(call in path.read_text() for call in ("parse_options(", "run_study(PRESETS"))
    ]
    for path in sorted(files):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        yield pytest.param(importlib.import_module(name), id=name.removeprefix("experiments."))


def integers(options, prefix=""):
    """The names of the options that are integers, with those within parts."""
    for name, hint in typing.get_type_hints(options).items():
        if dataclasses.is_dataclass(hint):
            yield from integers(hint, f"{prefix}{name}.")
        elif int in (hint, *typing.get_args(hint)):
            yield f"{prefix}{name}"


def said(error):
    line = error.value.args[0] if isinstance(error.value.args[0], str) else str(error.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("script", list(scripts()))
def test_every_integer_option_of_every_script_has_bounds(script, capsys, tmp_path):
    found = list(integers(script.Options))
    assert {name.rpartition(".")[2] for name in found} <= set(SHARED.bounds)
    for name in found:
        for value in (-(10**9), 10**18):
            began = time.monotonic()
            out = ["--out", str(tmp_path / "out")] if has_out(script) else []
            usual = getattr(script.Options(), name, None)
            values = [str(value)] * (len(usual) if isinstance(usual, tuple) and usual else 1)
            with pytest.raises(SystemExit) as exit:
                script.main([cli.flag_name(name), *values, *out])
            line = capsys.readouterr().err
            assert (exit.value.code, line.count("\n")) == (2, 1), line
            assert line.startswith(
                f"error: {cli.flag_name(name)} is {value}; expected a whole number of "
            )
            assert time.monotonic() - began < 5
    assert not (tmp_path / "out").exists()


def has_out(script):
    return any(field.name == "out" for field in dataclasses.fields(script.Options))


@pytest.mark.parametrize("name", ["out", "data_dir"])
def test_an_empty_path_is_no_folder(name, capsys):
    from experiments import depth

    for args in (
        [cli.flag_name(name), ""],
        [f"{cli.flag_name(name)}="],
        [cli.flag_name(name), "  "],
    ):
        with pytest.raises(SystemExit) as exit:
            depth.main(args)
        assert exit.value.code == 2
        assert capsys.readouterr().err == (
            f"error: {cli.flag_name(name)} is empty; expected a value. Leave it out, or write one "
            "after it\n"
        )


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (
            ["--num-steps", "1e6"],
            "--num-steps is '1e6'; expected a whole number. Use --num-steps 1000000",
        ),
        (
            ["--num-steps", "many"],
            "--num-steps is 'many'; expected a whole number. Use --num-steps 300",
        ),
        (
            ["--learning-rate", "fast"],
            "--learning-rate is 'fast'; expected a number. Use --learning-rate 0.05",
        ),
        (
            ["--learning-rate", "nan"],
            "--learning-rate is nan; expected a finite number. Use --learning-rate 0.05",
        ),
        (
            ["--keep-every", "-1"],
            "--keep-every is -1; expected a whole number of 0 to 100000000. Use --keep-every 25",
        ),
        (
            ["--depths", "-4"],
            "--depths is -4; expected a whole number of 8 to 1202. Use --depths 20 56",
        ),
        (
            ["--depths", "21"],
            "--depths is 21; expected 6 n + 2 for whole n >= 1: write --depths 20 26",
        ),
        (
            ["--batch-size", "5000"],
            "--batch-size is 5000, more than the 1437 training images; write --batch-size 128",
        ),
    ],
)
def test_messages_name_the_flag_that_was_typed(args, says, capsys, tmp_path):
    from experiments import depth

    with pytest.raises(SystemExit):
        depth.main(
            [*args, "--strategy", "pmap", "--out", str(tmp_path)]
            if args[0] != "--batch-size"
            else [*args, "--out", str(tmp_path)]
        )
    assert capsys.readouterr().err == f"error: {says}\n"


@pytest.mark.parametrize("columns", ["1", "0", "-3", "wide", "1000000000"])
def test_help_takes_a_readable_width(columns, monkeypatch, capsys):
    from experiments import depth

    monkeypatch.setenv("COLUMNS", columns)
    began = time.monotonic()
    with pytest.raises(SystemExit):
        depth.main(["--help"])
    assert time.monotonic() - began < 10
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 200
    assert os.environ["COLUMNS"] == columns


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_stream_without_a_character_gets_a_plain_one(encoding, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding))
    with cli.cli_errors():
        print("3.4 ± 0.2 \u732b \udcff ┐")
    expected = {
        "ascii": "3.4 +/- 0.2 ? ? +",
        "latin-1": "3.4 ± 0.2 ? ? +",
        "utf-8": "3.4 ± 0.2 \u732b ? ┐",
    }
    assert raw.getvalue().decode(encoding) == expected[encoding] + "\n"
    assert sys.stdout.errors == "strict"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"MPLBACKEND": "bad"}, "'bad' is not a valid value for backend"),
        ({"JAX_PLATFORMS": "cuda"}, "JAX_PLATFORMS is 'cuda'"),
        ({"JAX_PLATFORMS": "foo"}, "JAX_PLATFORMS is 'foo'"),
        (
            {"JAX_ENABLE_X64": "maybe"},
            "invalid truth value 'maybe' for environment 'JAX_ENABLE_X64'",
        ),
    ],
)
def test_a_bad_environment_is_one_line(setting, says, tmp_path):
    if jax.default_backend() == "gpu" and setting == {"JAX_PLATFORMS": "cuda"}:
        pytest.skip("a GPU is there")
    command_line = [sys.executable, "-m", "experiments.depth", *SMALL, "--out", str(tmp_path)]
    ended = subprocess.run(
        command_line,
        env=os.environ | setting,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert ended.stderr.startswith("error: ")
    assert says in ended.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux")
def test_too_little_address_space_is_said_before_it_is_needed():
    ended = subprocess.run(
        [
            "sh",
            "-c",
            f"ulimit -v {2 << 20}; exec {shlex.quote(sys.executable)} -m experiments.depth",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert ended.stderr.startswith(
        "error: memory is limited to 2.0 GiB (ulimit -v); expected at least "
    )


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating\n 7 bytes"),
    ],
    ids=["host", "device"],
)
def test_out_of_memory_is_one_line_that_says_what_to_reduce(error, capsys):
    from experiments import depth

    def fails():
        with cli.cli_errors():
            cli.parse(depth.PRESETS, [])
            raise error

    with pytest.raises(SystemExit) as exit:
        fails()
    line = capsys.readouterr().err
    assert (exit.value.code, line.count("\n")) == (2, 1)
    assert line.startswith("error: out of memory (")
    assert line.endswith("Write a smaller --width or a smaller --batch-size\n")


def test_other_errors_of_jax_keep_their_traceback():
    with pytest.raises(jax.errors.JaxRuntimeError), cli.cli_errors():
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_a_network_beyond_this_machine_is_refused_before_its_parameters_are_made(
    monkeypatch, tmp_path
):
    there = sweeps.machine_memory()
    assert there is None or 1 << 26 < there < 1 << 50
    monkeypatch.setattr(sweeps, "machine_memory", lambda: 1 << 20)
    config = ExperimentConfig(
        dataset="digits",
        model="plain8",
        model_kwargs={"width": 64},
        optimizer=OptimizerConfig(milestones=()),
        train=TrainConfig(num_steps=1),
    )
    with pytest.raises(ArgumentError, match=r"a has 1,\d+,\d+ parameters.*Write a smaller width"):
        sweep({"a": config}, load_dataset("digits"), tmp_path)
    assert list(tmp_path.iterdir()) == []


# Signals and streams.


@pytest.mark.slow
def test_a_closed_terminal_leaves_a_saved_run(tmp_path):
    """SIGHUP with a stdout that is closed and a stderr that is full: the last step is saved, the exit code 129."""
    code = (
        "import os, signal, sys; os.close(1); os.dup2(os.open('/dev/full', os.O_WRONLY), 2)\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # the tests themselves may run under nohup
        "os.execv(sys.executable, [sys.executable, '-m', 'experiments.depth', *sys.argv[1:]])"
    )
    args = [*SMALL, "--num-steps", "1000000", "--eval-every", "10", "--out", str(tmp_path)]
    process = subprocess.Popen([sys.executable, "-c", code, *args], cwd=ROOT)
    folder, until = tmp_path / "plain8-seed0", time.monotonic() + 300
    try:
        while (
            not (folder / "metrics.jsonl").exists()
            and time.monotonic() < until
            and process.poll() is None
        ):
            time.sleep(0.1)
        assert process.poll() is None
        process.send_signal(signal.SIGHUP)
        assert process.wait(150) == 129
    finally:
        process.kill()
        process.wait()
    with Checkpoints(folder / "checkpoints") as saved:
        steps = saved.steps()
    assert max(steps) >= read_metrics(folder)[-1]["step"]
    assert not (folder / "result.json").exists()


def test_nohup_keeps_a_hangup_from_stopping_anything():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with cli.GracefulShutdown() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
def test_a_program_that_sigterm_does_not_stop_is_ended():
    code = (
        "import time; from jaxcnn import cli, shutdown; shutdown.GRACE_SECONDS = 1.0\n"
        "with cli.GracefulShutdown(): print('ready', flush=True); time.sleep(100); print('slept')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=-1, stderr=-1, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (143, "")
    assert error.endswith(
        "ended 1 s after signal 15; the same command resumes from the last saved state\n"
    )


def test_two_interrupts_in_a_notebook_raise_keyboard_interrupt(monkeypatch):
    monkeypatch.setattr(sys, "ps1", "In [1]: ", raising=False)

    def interrupted():
        with cli.GracefulShutdown() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop()
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("the second interrupt was ignored")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    time.sleep(0.2)  # in which the listening thread would end this process


@pytest.mark.slow
def test_a_script_runs_in_a_thread(tmp_path):
    from experiments import depth

    answers = []
    args = [*SMALL, "--num-steps", "1", "--batch-size", "8", "--out", str(tmp_path)]
    thread = threading.Thread(target=lambda: answers.append(depth.main(args)))
    thread.start()
    thread.join(120)
    assert answers == [0]
    assert (tmp_path / "table.md").exists()


class Broken(io.StringIO):
    """A terminal that has gone."""

    def isatty(self):
        return True

    def write(self, *text):
        raise OSError(5, "Input/output error")

    def flush(self):
        self.write()


@pytest.mark.parametrize(
    "stream", [Broken(), io.StringIO(), None], ids=["broken", "closed", "none"]
)
def test_progress_that_cannot_be_written_ends_nothing(stream, monkeypatch):
    if isinstance(stream, io.StringIO) and not isinstance(stream, Broken):
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    with cli.cli_errors(), Progress(10, every=0) as progress:
        progress.advance(5, "half")
        progress.write("a row")
        print("a line", file=sys.stderr)
    assert progress.done == 5
    assert sys.stderr is stream
    assert not SafeStream(None).isatty()


def test_a_clock_set_back_does_not_stop_the_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    with Progress(10, file=out) as progress:
        monkeypatch.setattr("tqdm.std.time", lambda: 0.0)
        time.sleep(0.2)
        progress.advance(5, "half")
        assert out.getvalue().split("\r")[-1].startswith(" 50% |")


def test_a_save_that_never_ends_is_an_error(monkeypatch, tmp_path):
    class State(typing.NamedTuple):
        step: typing.Any

    import numpy as np

    ends = threading.Event()
    monkeypatch.setattr("jaxcnn.checkpoint.checkpoints.SAVE_TIMEOUT", 0.2)
    monkeypatch.setattr(Checkpoints, "_verify", lambda *_: ends.wait(60))
    saved = Checkpoints(tmp_path)
    try:
        saved.save(State(np.int32(1)))
        with pytest.raises(
            CheckpointError, match=r"has not ended within 0.2 s; expected a disk that answers"
        ):
            saved.wait()
    finally:
        ends.set()
        saved.close()


# Caches.


CACHE = """
import sys, jax, jax.numpy as jnp
from pathlib import Path
from jaxcnn import cli
folder = Path(sys.argv[1])
cli.enable_compilation_cache(folder)
def work():
    return [float(jax.jit(lambda x, i=i: jnp.sin(x) * i)(2.0)) for i in range(3)]
first = work()
files = sorted(folder.glob("*-cache"))
for file in files[1:]:
    file.write_bytes(file.read_bytes()[:-9])
jax.clear_caches()
assert work() == first
jax.clear_caches()
assert work() == first
print(len(files), cli.remove_damaged_programs(folder), len(list(folder.glob("*-cache"))) == len(files))
"""


@pytest.mark.slow
def test_cut_programs_are_told_once_and_made_again(tmp_path):
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("JAX_COMPILATION_CACHE")
    }
    ended = subprocess.run(
        [sys.executable, "-c", CACHE, str(tmp_path)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    count, damaged, whole = ended.stdout.split()
    assert (int(count) >= 3, damaged, whole) == (True, "0", "True")
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert ended.stderr.startswith(
        f"warning: compiled programs in {tmp_path} are damaged, and made again: {int(count) - 1} ("
    )


def test_a_program_in_part_is_damaged_and_others_stay(tmp_path):
    whole = zlib.compress(b"program" * 99)
    for name, data in {
        "a": whole,
        "b": whole[:-3],
        "c": b"",
        "d": b"junk",
        "e": b"\x28\xb5\x2f\xfd\x00",
    }.items():
        (tmp_path / f"{name}-cache").write_bytes(data)
    assert cli.remove_damaged_programs(tmp_path) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["a-cache"]


def test_other_warnings_are_shown_as_before(tmp_path):
    shown = []
    show = cli._CacheWarnings(tmp_path, lambda message, *_: shown.append(str(message)))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        warnings.warn("another", stacklevel=1)
    assert shown == ["another"]


def test_the_cache_may_be_named_from_the_home_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("JAXCNN_CACHE", "~/c")
    assert cache.cache_root() == tmp_path / "c"
    assert cache.dataset_folder("mnist") == tmp_path / "c/data/mnist"
    before = jax.config.values["jax_compilation_cache_dir"]
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        cli.enable_compilation_cache()
        assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "c/programs")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_a_container_without_a_home_directory_needs_only_a_cache(monkeypatch, tmp_path):
    def nobody(number):
        raise KeyError(number)

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setenv("JAXCNN_CACHE", str(tmp_path))
    assert cache.dataset_folder("mnist") == tmp_path / "data/mnist"
    assert loading._roots() == [tmp_path / "tensorflow_datasets"]
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    assert loading._roots() == [tmp_path / "tfds"]
    for name in ("JAXCNN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        DataError, match=r"no home directory; expected .* Set JAXCNN_CACHE"
    ) as error:
        cache.cache_root()
    assert said(error)
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        cli.enable_compilation_cache()
        assert jax.config.values["jax_compilation_cache_dir"] is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_unkept_of_several_threads_leaves_the_setting_as_it_was():
    def setting():
        return jax.config.values["jax_persistent_cache_min_compile_time_secs"]

    before, first, second = setting(), threading.Event(), threading.Event()

    def other():
        with without_persistent_cache():
            first.set()
            second.wait(10)

    thread = threading.Thread(target=other)
    with without_persistent_cache():
        thread.start()
        first.wait(10)
    assert setting() == math.inf  # the other thread is still within
    second.set()
    thread.join()
    assert setting() == before


# A config is a value.


@pytest.mark.parametrize("name", ["model_kwargs", "optimizer_kwargs", "lr_multipliers"])
def test_the_mappings_of_a_config_cannot_be_changed(name):
    given: Any = {"a": 0.5} if name != "model_kwargs" else {"hidden": [4, {"b": [1]}], "width": 8}
    fields: Any = {name: given}
    config = override(ExperimentConfig(), **fields)
    mapping = getattr(config if name == "model_kwargs" else config.optimizer, name)
    expected = copy.deepcopy(given)
    changes = [
        lambda: mapping.__setitem__("a", 1), lambda: mapping.pop("a"), lambda: mapping.clear(), lambda: mapping.popitem(),
        lambda: mapping.update(a=1), lambda: mapping.setdefault("z", 1), lambda: mapping.__delitem__("a"),
        lambda: mapping.__ior__({"a": 1}),
    ]  # fmt: skip
    if name == "model_kwargs":
        changes += [lambda: mapping["hidden"].append(1), lambda: mapping["hidden"][1]["b"].sort()]
        given["hidden"].append(5)  # the caller's own list
    for change in changes:
        with pytest.raises(TypeError, match="cannot be changed"):
            change()
    assert mapping == expected


def test_a_frozen_config_is_copied_compared_and_written_as_before():
    config: Any = override(
        ExperimentConfig(),
        model_kwargs={"hidden": [4, 3], "width": 8},
        optimizer_kwargs={"b2": 0.99},
        lr_multipliers={"stem": 0.5},
    )
    again: Any
    for again in (
        pickle.loads(pickle.dumps(config)), copy.deepcopy(config), copy.copy(config), override(config),
        ExperimentConfig.from_json(config.to_json()), ExperimentConfig.from_dict(as_dict(config)),
    ):  # fmt: skip
        assert again == config
        with pytest.raises(TypeError, match="cannot be changed"):
            again.model_kwargs["width"] = 9
    assert (
        json.loads(config.to_json())["model_kwargs"]
        == {"hidden": [4, 3], "width": 8}
        == config.model_kwargs
    )
    assert override(config, seed=1) != config
    assert repr(config.model_kwargs) == "{'hidden': [4, 3], 'width': 8}"
    assert (
        {**config.model_kwargs, "width": 9}
        == config.model_kwargs | {"width": 9}
        == {"hidden": [4, 3], "width": 9}
    )
    mine = config.model_kwargs.copy()
    mine["width"] = 1
    with pytest.raises(TypeError, match="unhashable"):
        hash(config)


def error_classes():
    """All classes of errors that the library defines."""
    for path in sorted((ROOT / "jaxcnn").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for value in vars(importlib.import_module(name)).values():
            is_own = isinstance(value, type) and value.__module__ == name
            if is_own and issubclass(value, BaseException):
                yield value


def test_every_error_of_the_library_is_the_same_in_another_process():
    """A pool of processes pickles what its workers raise."""
    arguments = {
        "ImageError": ([("a.jpg", "empty"), ("b.jpg", "no JPEG")], "delete it"),
        "WeightsError": ("no such file", ("a",), ("b", "c"), ("d",)),
        "NoEntriesError": ("no such file", ("a",), ("b", "c"), ("d",)),
        "FolderInUseError": ("in use", "process 12 on node3", True),
    }
    classes = list(error_classes())
    assert {cls.__name__ for cls in classes} >= set(arguments) | {"DataError", "ArgumentError"}
    for cls in classes:
        error = cls(*arguments.get(cls.__name__, ("a message",)))
        for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
            assert type(other) is cls
            assert str(other) == str(error)
            assert vars(other) == vars(error)
