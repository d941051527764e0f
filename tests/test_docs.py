"""What the documentation shows runs: every docstring's example, and the README's."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

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


def test_the_readmes_hours_of_the_paper_preset_follow_from_its_speeds():
    """A run is 64,000 steps of 128 images."""
    from experiments import depth

    text, about = README.read_text(), depth.__doc__ or ""
    speed = {
        name: int(re.findall(rf"^\| {name} \| ([\d,]+) \|", text, re.M)[0])
        for name in ("ResNet-20", "ResNet-56")
    }
    hours = [64_000 * 128 / each / 3600 for each in speed.values()]
    assert f"{hours[0]:.0f} to {hours[1]:.0f} hours a run" in about
    paper = depth.PRESETS["paper"]
    runs = len(paper.depths) * len(paper.families) * paper.num_seeds
    assert f"about {100 * round(runs * sum(hours) / 2 / 100)} hours for its {runs} runs" in about


@pytest.mark.parametrize("name", [name for name in dir(jaxcnn) if callable(getattr(jaxcnn, name))])
def test_public_names_are_documented(name):
    assert getattr(jaxcnn, name).__doc__


@pytest.mark.slow
def test_the_readmes_example_runs(tmp_path, monkeypatch):
    """As printed, but for the data set and the number of steps."""
    (code,) = [
        c
        for c in re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
        if "import jaxcnn" in c
    ]
    assert len(code.splitlines()) <= 25
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert int(names["state"].step) == names["config"].num_steps
    assert jaxcnn.read_metrics("runs/r20")[-1]["step"] == names["config"].num_steps
    (more,) = [
        c for c in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if "lr_finder" in c
    ]
    exec(compile(more, "README.md", "exec"), names)
    assert names["tuned"].learning_rate == names["result"].suggested
    assert names["top"] > 0
    (look,) = [
        c
        for c in re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
        if "load_weights" in c
    ]
    _fruit(tmp_path / "fruit")
    net = jaxcnn.create_model("resnet18", 1000)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype),
        dict(jax.eval_shape(net.init, jax.random.key(0), image)),
    )
    jaxcnn.export_weights(net, variables, "resnet18.safetensors")
    exec(compile(look, "README.md", "exec"), names)
    assert names["heat"].shape == (8, 8, 8)
    assert names["fruit"].classes == ("apple", "pear")
    assert jax.tree.map(np.shape, names["variables"]) == jax.tree.map(np.shape, variables)
    (seeing,) = [
        c
        for c in re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
        if "import interpret" in c
    ]
    exec(compile(seeing, "README.md", "exec"), names)
    assert names["heat"].shape == (8, 8, 8)
    assert [len(maps) for maps in names["maps"].values()] == [8] * 4
    assert names["liked"]["stage3"].shape == (2, 8, 8, 1)
    assert names["field"].size == (37, 37)
    assert list(names["stds"]) == list(names["ranks"])


def _fruit(folder):
    for i, name in enumerate(("apple", "pear")):
        (folder / name).mkdir(parents=True)
        for j in range(4):
            picture = np.full((240, 300, 3), 40 * i + 20 * j, np.uint8)
            Image.fromarray(picture).save(folder / name / f"{j}.png")


def test_every_promise_of_the_readme_has_its_test():
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", README.read_text())
    assert len(named) >= 12
    for file, test in named:
        text = README.parent.joinpath(file).read_text()
        assert f"def {test}(" in text if test else "def test_" in text, f"{file}::{test}"
