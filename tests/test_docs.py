"""What the documentation shows runs: every docstring's example, and the README's."""

import csv
import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import jaxcnn

pytestmark = pytest.mark.usefixtures("one_device")

MODULES = ["jaxcnn", *sorted(m.name for m in pkgutil.walk_packages(jaxcnn.__path__, "jaxcnn."))]
README = Path(jaxcnn.__file__).parent.parent / "README.md"


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, extraglobs={}, optionflags=doctest.ELLIPSIS)
    assert not failed


def test_the_readmes_table_has_the_columns_that_the_command_prints():
    printed = (
        (README.parent / "experiments/results/depth-digits/table.md").read_text().splitlines()[0]
    )
    assert printed in README.read_text().splitlines()


def test_the_hours_of_the_paper_preset_follow_from_the_benchmark():
    """A run is 64,000 steps of 128 images."""
    from experiments import depth

    with (README.parent / "experiments/results/benchmark/table.csv").open() as file:
        speeds = {row["network"]: float(row["images_per_second"]) for row in csv.DictReader(file)}
    hours = [64_000 * 128 / speeds[name] / 3600 for name in ("resnet20", "resnet56")]
    about = depth.__doc__ or ""
    assert f"{hours[0]:.0f} to {hours[1]:.0f} hours a run" in about
    paper = depth.PRESETS["paper"]
    runs = len(paper.depths) * len(paper.families) * paper.seeds
    assert f"about {100 * round(runs * sum(hours) / 2 / 100)} hours for its {runs} runs" in about


def test_the_readmes_speeds_are_those_of_the_benchmark():
    with (README.parent / "experiments/results/benchmark/table.csv").open() as file:
        rows = {row["network"]: row for row in csv.DictReader(file)}
    ours, relative = (
        [cell.strip().replace(",", "") for cell in line.split("|")[2:-1]]
        for line in README.read_text().splitlines()
        if line.startswith(("| jaxcnn |", "| relative to PyTorch"))
    )
    for i, name in enumerate(("lenet5-relu", "resnet20", "resnet56", "vgg11-32")):
        assert float(ours[i]) == round(float(rows[name]["images_per_second"]))
        assert float(relative[i]) == round(float(rows[name]["over_pytorch"]), 2)


@pytest.mark.parametrize("name", [name for name in dir(jaxcnn) if callable(getattr(jaxcnn, name))])
def test_public_names_are_documented(name):
    assert getattr(jaxcnn, name).__doc__


@pytest.mark.slow
def test_the_readmes_example_runs(tmp_path, monkeypatch, capsys):
    """As printed."""
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    assert len(code.splitlines()) <= 25
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    steps = names["config"].num_steps
    assert int(names["state"].step) == steps
    assert jaxcnn.read_metrics("runs/r20")[-1]["step"] == steps
    assert (names["logits"].shape, names["heat"].shape) == ((8, 10), (8, 8, 8))
    assert "67,906" in capsys.readouterr().out


def test_the_readme_is_short():
    """At most 160 lines of 100 columns, but for tables."""
    lines = README.read_text().splitlines()
    assert len(lines) <= 160
    prose = [line for line in lines if not line.startswith("|")]
    assert max(map(len, prose)) <= 106


def test_every_promise_of_the_readme_has_its_test():
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", README.read_text())
    assert len(named) >= 12
    for file, test in named:
        text = README.parent.joinpath(file).read_text()
        assert f"def {test}(" in text if test else "def test_" in text, f"{file}::{test}"
