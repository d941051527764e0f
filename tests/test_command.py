"""The command line: presets, one-line mistakes, polite stops and the cache of programs."""

import os
import signal
from dataclasses import dataclass
from typing import Literal

import jax
import pytest

from jaxcnn import command
from jaxcnn.recipe import RecipeError


@dataclass(frozen=True)
class Options:
    """Options of a test."""

    preset: Literal["small", "large"] = "small"
    steps: int = 10
    depths: tuple[int, ...] = (20, 56)
    plot_only: bool = False


PRESETS = {"small": Options(), "large": Options("large", steps=1000)}


def test_a_preset_gives_defaults_and_options_override_them():
    assert command.parse(PRESETS, []) == Options()
    assert command.parse(PRESETS, ["--preset", "large"]).steps == 1000
    assert command.parse(PRESETS, ["--preset=large", "--depths", "8"]) == Options("large", 1000, (8,))
    assert command.parse(PRESETS, ["--steps", "3", "--preset", "large", "--plot-only"]) == Options(
        "large", 3, (20, 56), True
    )


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--dpeths", "20"], "Unrecognized options: --dpeths"),
        (["--dpeths", "20"], "--depths"),
        (["--steps", "many"], "--steps"),
        (["--preset", "lagre"], "did you mean 'large'"),
        (["--depths", "20", "x"], "--depths"),
        (["extra"], "extra"),
    ],
)
def test_mistakes_are_one_line(args, says, capsys):
    with pytest.raises(SystemExit) as exit, command.friendly():
        command.parse(PRESETS, args)
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("error: ")
    assert says in error


def test_help_shows_the_presets_defaults(capsys):
    with pytest.raises(SystemExit) as exit:
        command.parse(PRESETS, ["--preset", "large", "--help"])
    assert not exit.value.code
    assert "1000" in capsys.readouterr().out


def test_bugs_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), command.friendly():
        _ = 1 / 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_asks_and_says_its_exit_code(number, code):
    before = signal.getsignal(number)
    with command.Stop() as stop:
        assert (stop(), stop.exit_code) == (False, 0)
        os.kill(os.getpid(), number)
        assert (stop(), stop.exit_code) == (True, code)
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_insists():
    with command.Stop() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_programs_are_kept_where_the_user_says(tmp_path, monkeypatch):
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("JAXCNN_CACHE", str(tmp_path))
    try:
        command.cache_programs()
        assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "programs")
        command.cache_programs(tmp_path / "other")
        assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "programs")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_a_recipe_error_is_exit_code_two(capsys):
    with pytest.raises(SystemExit) as exit, command.friendly():
        raise RecipeError("lr is nan; write another")
    assert exit.value.code == 2
    assert capsys.readouterr().err == "error: lr is nan; write another\n"
