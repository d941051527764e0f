"""What the documentation shows runs: every docstring's example, and the README's."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import jaxcnn

MODULES = sorted(m.name for m in pkgutil.walk_packages(jaxcnn.__path__, "jaxcnn."))
README = Path(jaxcnn.__file__).parent.parent / "README.md"


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, extraglobs={}, optionflags=doctest.ELLIPSIS)
    assert not failed


@pytest.mark.parametrize("name", [name for name in dir(jaxcnn) if callable(getattr(jaxcnn, name))])
def test_public_names_are_documented(name):
    assert getattr(jaxcnn, name).__doc__


def test_the_readmes_example_runs(tmp_path, monkeypatch):
    """As printed, but for the data set and the number of steps."""
    (code,) = [c for c in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if "import jaxcnn" in c]
    assert len(code.splitlines()) <= 25
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert int(names["state"].step) == names["recipe"].steps
    assert jaxcnn.read_rows("runs/r20")[-1]["step"] == names["recipe"].steps
    (more,) = [c for c in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if "lr_range_test" in c]
    exec(compile(more, "README.md", "exec"), names)
    assert names["tuned"].lr == names["found"].suggested
    assert names["top"] > 0


def test_every_promise_of_the_readme_has_its_test():
    named = re.findall(r"`(tests/\w+\.py)(?:::(\w+))?`", README.read_text())
    assert len(named) >= 12
    for file, test in named:
        text = README.parent.joinpath(file).read_text()
        assert f"def {test}(" in text if test else "def test_" in text, f"{file}::{test}"
