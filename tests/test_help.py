"""The help of every script: each option is explained, in lines that a terminal shows whole."""

import dataclasses
import importlib.util
import re
import subprocess
import sys
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from test_commands import ROOT, WITHOUT_OPTIONS, _options

from experiments.__main__ import commands
from experiments._options import SHARED
from experiments.finetune.options import PRESETS
from jaxcnn import cli, option_help

NAMES = sorted(set(commands()) - WITHOUT_OPTIONS)
MAX_LINES = 60
"""Most lines of a help without groups."""


def help_of(name, columns, monkeypatch, capsys):
    """The help of a script, as it prints it."""
    script = f"experiments.{name}"
    spec = importlib.util.find_spec(script)
    assert spec is not None
    script += ".__main__" if spec.submodule_search_locations else ""
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as exit:
        importlib.import_module(script).main(["--help"])
    assert exit.value.code == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def entries(text):
    """The text of each option, by its flag without --[no-]."""
    lines = text.split("\n")
    starts = [i for i, line in enumerate(lines) if re.match(r"(?:\S.*\):|[a-z ]+:)$", line)]
    found = {}
    name = None
    for line in lines[starts[0] + 1 :]:
        if re.match(r"  \S", line):
            name = re.sub(r"^--(\[no-\])?", "", line.split()[0])
            found[name] = line.strip()
        elif line.startswith("   ") and name is not None:
            found[name] += " " + line.strip()
    return found, len(starts)


@pytest.mark.parametrize("name", NAMES)
def test_every_option_of_a_script_is_explained_in_short_lines(name, monkeypatch, capsys):
    text = help_of(name, 100, monkeypatch, capsys)
    lines = text.splitlines()
    assert lines[0].startswith(f"usage: python -m experiments.{name} [OPTIONS]")
    assert max(map(len, lines)) <= 100
    # Of this machine. An example of the docstring may have one.
    assert not [path for path in (str(ROOT), sys.prefix, str(Path.home())) if path in text]
    assert not re.search(r"/\S*\.py\b", text)
    assert "{None}" not in text
    assert "(default: )" not in text
    found, groups = entries(text)
    assert len(lines) <= MAX_LINES or groups >= 4
    options = _options(name, [], monkeypatch)
    preset = typing.get_type_hints(type(options))["preset"]
    # A preset without another is left out.
    without = {"preset"} if len(typing.get_args(preset)) == 1 else set()
    flags = {key: value for key, value in option_help.option_values(options) if key not in without}
    positional = {"images": "PATH"} if name == "predict" else {}
    assert set(found) == {positional.get(key, key.replace("_", "-")) for key in flags}
    descriptions = {
        option.name: option.description for option in option_help.list_options(options, SHARED)
    }
    for key, value in flags.items():
        entry, words = found[positional.get(key, key.replace("_", "-"))], descriptions[key]
        assert len(words.split()) >= 2, entry
        assert words.removesuffix(".") in entry
        assert re.search(r" \(default: [^()]+\)$", entry), entry
        if value is None:
            assert "None" in words, f"{entry}: what None does"
        if value == ():
            assert entry.endswith("(default: none)")


@pytest.mark.parametrize("columns", [1, 80, 300])
def test_lines_suit_the_terminal(columns, monkeypatch, capsys):
    text = help_of("depth", columns, monkeypatch, capsys)
    options = text.partition("options (")[2]
    assert max(map(len, text.splitlines())) <= 100
    low = 61 if columns == 1 else 81
    # A word is not broken, so the values of an option may be wider than a narrow terminal.
    assert columns == 300 or max(map(len, options.splitlines()[1:])) <= low


def test_everyday_options_come_first(monkeypatch, capsys):
    found, _ = entries(help_of("depth", 100, monkeypatch, capsys))
    names = list(found)
    assert names[:3] == ["preset", "dataset", "depths"]
    assert names.index("num-steps") < names.index("bn-group") < names.index("coordinator")


@pytest.mark.slow
def test_a_script_prints_its_own_command_in_a_process_of_its_own():
    done = subprocess.run(
        [sys.executable, "-m", "experiments.depth", "--preset", "paper", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: python -m experiments.depth [OPTIONS]\n")
    assert "(default: 32000 48000)" in done.stdout


@dataclass(frozen=True)
class _Inner:
    """Numbers of a part."""

    points: int = 3
    """Points of a line."""


@dataclass(frozen=True)
class _Base:
    out: Path = Path("a")
    shared: int | None = None
    """Shared number; None is 4."""


@dataclass(frozen=True)
class _Sample(_Base):
    preset: Literal["a", "b"] = "a"
    shared: int | None = 5
    pair: tuple[int, float] = (1, 2.5)
    words: tuple[Literal["x", "y"], ...] = ()
    """Words to print..."""
    inner: _Inner = dataclasses.field(default_factory=_Inner)
    unexplained: bool = True


SAMPLE = """\
usage: python -m experiments.mine [OPTIONS]

Title over two lines.

    python -m experiments.mine --shared 3    says this

What it expects and writes: python -m pydoc experiments.mine

options (defaults of --preset b; --preset NAME --help shows another's):
  --preset {a,b}              Set of defaults (default: b)
  --shared INT                Shared number; None is 4 (default: 5)
  --pair INT FLOAT            (default: 1 2.5)
  --words {x,y} ...           Words to print... (default: none)
  --[no-]unexplained          (default: yes)

files:
  --out PATH                  Folder for tables, figures and runs (default: a)

inner (Numbers of a part):
  --inner.points INT          Points of a line (default: 7)
"""


SAMPLE_SHARED = option_help.SharedOptions(
    groups={"files": ("out",)},
    descriptions={"preset": "Set of defaults.", "out": "Folder for tables, figures and runs."},
)


def test_the_text_of_a_class_of_options():
    presets = {"a": _Sample(), "b": _Sample(preset="b", inner=_Inner(7))}
    about = (
        "Title over\ntwo lines.\n\n    python -m experiments.mine --shared 3    says this\n\nMore."
    )
    assert option_help.format_help(presets, presets["b"], about, 100, SAMPLE_SHARED) == SAMPLE


def test_defaults_of_a_preset_that_an_option_selects():
    """Without another preset, `--shared` selects b: both defaults are in the help."""
    presets = {"a": _Sample(), "b": _Sample(preset="b", pair=(2, 3.5), inner=_Inner(7))}
    implied = {"shared": "b"}

    def text(preset):
        return option_help.format_help(presets, presets[preset], None, 100, implied=implied)

    found, _ = entries(text("a"))
    assert found["pair"].endswith("(default: 1 2.5; with --shared: 2 3.5)")
    assert found["inner.points"].endswith("(default: 3; with --shared: 7)")
    assert found["shared"].endswith("(default: 5)")
    assert found["preset"].endswith("(default: a)")
    assert "With --shared the defaults are those of --preset b" in text("a")
    assert "(default: 2 3.5)" in text("b")
    assert "with --shared:" not in text("b")
    assert cli.parse(presets, ["--shared", "1"], implied=implied).pair == (2, 3.5)
    assert cli.parse(presets, ["--shared=1", "--preset", "a"], implied=implied).pair == (1, 2.5)
    assert cli.parse(presets, [], implied=implied).pair == (1, 2.5)


def test_the_help_of_fine_tuning_has_the_defaults_of_the_users_images(monkeypatch, capsys):
    text = help_of("finetune", 100, monkeypatch, capsys)
    assert "With --images the defaults are those of --preset own" in " ".join(text.split())
    found, _ = entries(text)
    own, photographs = PRESETS["own"], PRESETS["photographs"]
    for name, value in option_help.option_values(photographs):
        differs = getattr(own, name) != value and name != "preset"
        assert ("with --images: " in found[name.replace("_", "-")]) == differs
    assert found["model"].endswith("(default: resnet20; with --images: resnet18)")
    assert found["learning-rate"].endswith("(default: 0.1; with --images: 0.01)")
    assert found["size"].endswith("(default: 48; with --images: None)")


def test_help_is_printed_before_options_are_read(capsys):
    with pytest.raises(SystemExit) as exit:
        cli.parse({"a": _Sample()}, ["--no-such-option", "-h"])
    assert exit.value.code == 0
    assert capsys.readouterr().out.startswith("usage: python ")
