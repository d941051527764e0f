"""The command line: presets, one-line mistakes, polite stops and the cache of programs."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import pytest

from jaxcnn import cli
from jaxcnn.config import ArgumentError

ROOT = Path(cli.__file__).parent.parent


@dataclass(frozen=True)
class Options:
    """Options of a test."""

    preset: Literal["small", "large"] = "small"
    steps: int = 10
    depths: tuple[int, ...] = (20, 56)
    kinds: tuple[Literal["plain", "deep"], ...] = ("plain",)
    plot_only: bool = False


PRESETS = {"small": Options(), "large": Options("large", steps=1000)}


def test_a_preset_gives_defaults_and_options_override_them():
    assert cli.parse(PRESETS, []) == Options()
    assert cli.parse(PRESETS, ["--preset", "large"]).steps == 1000
    assert cli.parse(PRESETS, ["--preset=large", "--depths", "8"]) == Options("large", 1000, (8,))
    assert cli.parse(PRESETS, ["--steps", "3", "--preset", "large", "--plot-only"]) == Options(
        "large", 3, plot_only=True
    )


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--dpeths", "20"], "--dpeths is no option of this script; did you mean --depths? --help"),
        (["--depth=20"], "--depth is no option of this script; did you mean --depths? --help"),
        (["20"], "'20' belongs to no option; options start with --. --help lists the options"),
        (["--kinds", "plian"], "--kinds is 'plian'; expected one of deep, plain; did you mean 'pl"),
        (["--kinds", "zzz"], "--kinds is 'zzz'; expected one of deep, plain\n"),
        (["--zzz"], "--zzz is no option of this script; --help lists the options"),
        (["--steps", "many"], "--steps"),
        (
            ["--preset", "lagre"],
            "--preset is 'lagre'; expected one of large, small; did you mean 'la",
        ),
        (["--depths", "20", "x"], "--depths"),
        (["extra"], "extra"),
        (["--depths", "x"], "--depths is x; expected whole numbers. Use --depths 20 56"),
        (["--preset"], "--preset"),
    ],
)
def test_mistakes_are_one_line(args, says, capsys):
    with pytest.raises(SystemExit) as exit, cli.cli_errors():
        cli.parse(PRESETS, args)
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("error: ")
    assert says in error


def test_help_shows_the_presets_defaults(capsys):
    with pytest.raises(SystemExit) as exit:
        cli.parse(PRESETS, ["--preset", "large", "--help"])
    assert not exit.value.code
    assert "1000" in capsys.readouterr().out


def test_bugs_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), cli.cli_errors():
        _ = 1 / 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_asks_and_says_its_exit_code(number, code):
    before = signal.getsignal(number)
    with cli.GracefulShutdown() as stop:
        assert (stop(), stop.exit_code) == (False, 0)
        os.kill(os.getpid(), number)
        assert (stop(), stop.exit_code) == (True, code)
    assert signal.getsignal(number) is before


def test_a_signal_during_the_exchange_of_a_job_is_kept(monkeypatch):
    """One that came while the processes compared their numbers was overwritten by the result."""
    exchanges = []

    def exchange(number):
        exchanges.append(number)
        if len(exchanges) == 1:
            signal.raise_signal(signal.SIGTERM)
        return number

    monkeypatch.setattr("jaxcnn.multihost.global_max", exchange)
    with cli.GracefulShutdown() as stop:
        assert not stop()  # the other processes have this answer too
        assert stop()
        assert stop.exit_code == 143
    assert exchanges == [0, signal.SIGTERM]


LONG = """
import hashlib, sys
from jaxcnn import cli
with cli.GracefulShutdown() as stop:
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", int(sys.argv[1]))  # as in a compilation, Python hears nothing meanwhile
    sys.exit(stop.exit_code)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signals", "rounds", "code", "says"),
    [
        ((signal.SIGINT,), 3 * 10**6, 130, "stopping after this step"),
        ((signal.SIGINT, signal.SIGINT), 2 * 10**9, 130, "ended at once"),
        ((signal.SIGTERM, signal.SIGINT), 2 * 10**9, 130, "ended at once"),
        ((signal.SIGINT, signal.SIGTERM), 3 * 10**6, 130, "stopping after this step"),
    ],
)
def test_the_first_signal_is_answered_at_once_and_a_second_ctrl_c_obeyed_at_once(
    signals, rounds, code, says
):
    """2 10^9 rounds take some ten minutes, 3 10^6 some seconds."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", LONG, str(rounds)], stdout=pipe, stderr=pipe, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signals[0])
    heard = (
        process.stderr.readline() + process.stderr.readline()
    )  # the first is answered while the work goes on
    assert process.poll() is None
    for number in signals[1:]:
        process.send_signal(number)
    heard += process.communicate(timeout=60)[1]
    assert says in heard
    assert heard.startswith("\nstopping after this step; Ctrl-C ends it at once\n")
    assert process.returncode == code


def test_ctrl_c_during_the_imports_leaves_no_traceback():
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "experiments.depth", "--help"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.endswith(" numpy.linalg\n"):  # of the import of JAX
            break
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "Traceback" not in said


@pytest.mark.slow
def test_ctrl_c_after_all_is_saved_changes_no_exit_code():
    """Between the end of `GracefulShutdown` and the end of the process."""
    code = (
        "import sys; sys.argv[0] = '-m'; import experiments, os, signal; from jaxcnn import cli\n"
        "with cli.GracefulShutdown() as stop: os.kill(os.getpid(), signal.SIGINT)\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.exit(stop.exit_code)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr.count("Traceback")) == (130, 0)


def test_programs_are_kept_where_the_user_says(tmp_path, monkeypatch):
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("JAXCNN_CACHE", str(tmp_path))
    try:
        cli.enable_compilation_cache()
        assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "programs")
        cli.enable_compilation_cache(tmp_path / "other")
        assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "programs")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_a_config_error_is_exit_code_two(capsys):
    with pytest.raises(SystemExit) as exit, cli.cli_errors():
        raise ArgumentError("learning_rate is nan; write another")
    assert exit.value.code == 2
    assert capsys.readouterr().err == "error: learning_rate is nan; write another\n"


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("depths is (3, 2); write depths=(1, 2)", "--depths is 3 2; write --depths 20 56"),
        ("depths is (); write depths=(1,)", "--depths is empty; write --depths 20 56"),
        ("steps is 0; Use steps=5.", "--steps is 0; Use --steps 5."),
        ("x is 1; write preset='large' and steps=3", "x is 1; write --preset large and --steps 3"),
        ("x is 1; write plot_only=False", "x is 1; write --no-plot-only"),
        ("x is 1; write other=(1, 2)", "x is 1; write other=(1, 2)"),
    ],
)
def test_advice_is_written_as_on_a_command_line(message, says, capsys):
    def main():
        with cli.cli_errors():
            cli.parse(PRESETS, [])
            raise ArgumentError(message)

    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == f"error: {says}\n"


def test_an_output_folder_is_checked_and_not_created(tmp_path):
    cli.check_output_folder(tmp_path / "a/b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for name in ("file", "file/a/b", "link", "link/a"):
        with pytest.raises(ArgumentError, match="is a file; write --out with a folder"):
            cli.check_output_folder(tmp_path / name)
    with pytest.raises(ArgumentError, match=r"^cannot write in /proc/a: .*; write --out with"):
        cli.check_output_folder(Path("/proc/a"))
    with pytest.raises(ArgumentError, match="at most 255 bytes"):
        cli.check_output_folder(tmp_path / ("a" * 256))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the C library's settings are of Linux")
@pytest.mark.parametrize(("asked", "kept"), [(None, True), ("glibc.malloc.check=0", False)])
def test_scripts_keep_freed_memory_and_run_steps_in_their_thread_unless_the_user_says_otherwise(
    asked, kept
):
    code = """
import gc, os, sys
sys.argv = ["-m"]
os.execv = lambda *_: print("again")  # the new process would come here with the same environment
import experiments, jax
print(os.environ["GLIBC_TUNABLES"] == experiments.MALLOC_TUNABLES, jax.config.values["jax_cpu_enable_async_dispatch"])
print(gc.get_threshold() == experiments.GC_THRESHOLDS)
"""
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    environment |= {"GLIBC_TUNABLES": asked} if asked else {}
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    expected = (["again"] if kept else []) + [str(kept), str(not kept), "True"]
    assert said.stdout.split() == expected, said.stderr
