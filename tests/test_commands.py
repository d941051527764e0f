"""Every command that the documentation prints is one that its script accepts."""

import ast
import importlib
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest

import experiments
from experiments import __main__ as listing
from jaxcnn import cli, option_help

ROOT = Path(experiments.__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("experiments/results/**/*.md")]
OTHER_FLAGS = {"--cases", "--help", "--nodes", "--ntasks-per-node", "--slow"}
"""Flags of pytest, of every script and of srun."""
PLACEHOLDERS = {"N": "4", "I": "0"}
"""Numbers in place of the letters that stand for one."""
WITHOUT_OPTIONS = {"benchmark.timing", "scaling.traffic", "scaling.worker"} | {
    "stress.interrupts",
    "stress.worker",
}
"""Programs that scripts start, which have arguments and no options."""


class _Parsed(BaseException):
    """The command line was accepted."""


def _options(name, args, monkeypatch):
    """The options that `experiments.NAME` reads from its command line; it goes no further."""
    parse = cli.parse

    def parse_and_stop(*given, **kwargs):
        raise _Parsed(parse(*given, **kwargs))

    script = f"experiments.{name}"
    spec = importlib.util.find_spec(script)
    assert spec is not None
    if spec.submodule_search_locations:
        script += ".__main__"
    main = importlib.import_module(script).main
    with monkeypatch.context() as patch:
        patch.setattr(cli, "parse", parse_and_stop)
        with pytest.raises(_Parsed) as parsed:
            main(args)
    return parsed.value.args[0]


def _commands():
    """Yield the commands of the pages and of the experiments' docstrings, and where they are."""
    for page in PAGES:
        # A command may be broken after a backslash, as in a shell.
        text = re.sub(r"\\\n *", "", page.read_text())
        lines = [
            line for block in re.findall(r"```\n(.*?)```", text, re.S) for line in block.split("\n")
        ]
        lines += re.findall(r"`([^`\n]+)`", text)
        for line in lines:
            yield from _command(line, page)
    for module in sorted(ROOT.glob("experiments/**/*.py")):
        text = ast.get_docstring(ast.parse(module.read_text())) or ""
        for line in text.replace("\\\n", " ").split("\n"):
            yield from _command(line, module)


def _command(line, file):
    match = re.search(r"python -m experiments\.([\w.]*\w)(.*)", line)
    if match and match[1] != "NAME":
        # What stands two spaces or a # behind the command explains it; a ` ends it.
        text = re.split(r"\s{2,}|[#`]", match[2])[0].strip()
        yield match[1], text, str(file.relative_to(ROOT))


COMMANDS = sorted({(name, text): place for name, text, place in _commands()}.items())


def test_the_commands_of_the_documentation_are_found():
    printed = {name for (name, _), _ in COMMANDS}
    assert printed >= {"depth", "mnist", "optimizers", "finetune.transfer", "stress.soak"}
    assert len(COMMANDS) > 60


@pytest.mark.parametrize(
    ("command", "place"), COMMANDS, ids=[f"{name} {text}".strip() for (name, text), _ in COMMANDS]
)
def test_its_script_accepts_a_command(command, place, tmp_path, monkeypatch):
    name, text = command
    if name in WITHOUT_OPTIONS:
        assert " --" not in f" {text}", place
        return
    monkeypatch.chdir(tmp_path)
    args = [PLACEHOLDERS.get(arg, arg) for arg in shlex.split(text) if arg != "..."]
    if "--out" in args:
        args[args.index("--out") + 1] = str(tmp_path / "out")
    _options(name, args, monkeypatch)


def test_every_flag_of_the_documentation_is_one_of_a_script(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = set(OTHER_FLAGS)
    for name in {name for (name, _), _ in COMMANDS} - WITHOUT_OPTIONS:
        for option, value in option_help.option_values(_options(name, [], monkeypatch)):
            known.add(cli.flag_name(option))
            if isinstance(value, bool):
                known.add(cli.flag_name(f"no_{option}"))
    for page in PAGES:
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z.-]*[a-z]", page.read_text()):
            assert flag in known, f"{page.relative_to(ROOT)}: {flag}"


def test_the_list_of_experiments_has_each_of_them_once(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["experiments"])
    assert listing.main() == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]]
    assert set(names) == {name for (name, _), _ in COMMANDS} - WITHOUT_OPTIONS
    assert len(names) == len(set(names))
    assert all(listing.commands().values())


def test_an_argument_of_the_list_is_refused(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["experiments", "dept"])
    assert listing.main() == 2
    assert "'dept' is an argument of no experiment" in capsys.readouterr().err
