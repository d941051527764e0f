"""The import direction: a room imports only rooms of smaller numbers, and each outside library has its one room."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import LONGEST

import jaxcnn
from jaxcnn import cpu

ROOT = Path(jaxcnn.__file__).parent
LAYER = {
    "arguments": 0, "_util": 0, "code_digest": 0,
    "config": 1, "data": 1, "boxes": 1, "keypoints": 1, "ctc": 1, "metrics": 1, "progress": 1,
    "plots": 1, "cpu": 1, "nvidia": 1, "tensorboard": 1, "option_help": 1,
    "augment": 2, "losses": 2, "optim": 2, "parallel": 2, "multihost": 2, "curvature": 2,
    "models": 3, "input_pipeline": 3, "divergence": 3, "checkpoint": 3, "shutdown": 3,
    "state": 4, "provenance": 4,
    "evaluation": 5, "weights": 5, "run_log": 5, "resume": 5,
    "records": 6, "tables": 6, "cli": 6, "search": 6, "training_checks": 6,
    "training": 7, "classifier": 7,
    "runs": 8, "interpret": 8, "learning_rate_finder": 8, "loss_landscape": 8,
}  # fmt: skip
ONLY_IN = {
    "matplotlib": "plots",
    "orbax": "checkpoint",
    "tensorstore": "checkpoint",
    "tyro": "cli",
    "tqdm": "data progress",
    "IPython": "progress",
    "scipy": "tables data classifier",
}
ONLY_IN |= {
    "tensorflow_datasets": "data",
    "array_record": "data",
    "sklearn": "data",
    "PIL": "data plots",
}
ONLY_IN |= {"safetensors": "weights", "huggingface_hub": "weights", "tensorboardX": "tensorboard"}
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def room(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path):
    """Every module that a file imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: write imports from the top, `from jaxcnn...`"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_import_only_lower_ones(path):
    own = [name.split(".")[1] for name in imports(path) if name.startswith("jaxcnn.")]
    above = {other for other in own if other != room(path) and LAYER[other] >= LAYER[room(path)]}
    assert not above, f"{room(path)} ({LAYER[room(path)]}) imports {above}"
    assert not [name for name in imports(path) if name.split(".")[0] in ("experiments", "tests")]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_outside_libraries_keep_to_their_rooms(path):
    for name in {name.split(".")[0] for name in imports(path)} & set(ONLY_IN):
        assert room(path) in ONLY_IN[name].split(), f"{name} belongs to {ONLY_IN[name]}"


def test_cpu_has_one_seam():
    """Others use what `jaxcnn/cpu/__init__.py` hands out, and none of its modules."""
    users = [path for path in FILES if room(path) != "cpu"]
    users += sorted(ROOT.parent.joinpath("experiments").rglob("*.py"))
    for path in (path for path in users if "cpu" in path.read_text()):
        used = {name.split(".")[2] for name in imports(path) if name.startswith("jaxcnn.cpu.")}
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("cpu", "jaxcnn.cpu"):
                used.add(node.attr)
        assert used <= set(cpu.__all__), f"{path} uses {used - set(cpu.__all__)} of jaxcnn.cpu"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_parallel_knows_devices(path):
    """Only parallel.py lists devices or places arrays on them."""
    asked = {
        "devices",
        "local_devices",
        "device_put",
        "pmap",
        "make_mesh",
        "NamedSharding",
        "default_backend",
    }
    used = {
        node.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
    }
    if room(path) != "parallel":
        assert not {name for name in used & asked if f"jax.{name}" in path.read_text()}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_multihost_knows_other_processes(path):
    """Only multihost.py joins them or talks to them; parallel.py tells how many there are, and Orbax is told to be alone."""
    text, mine = path.read_text(), room(path)
    assert mine == "multihost" or not any(
        name in text for name in ("multihost_utils", "jax.distributed.")
    )
    assert mine in ("multihost", "parallel", "checkpoint") or "jax.process_" not in text


def test_the_top_level_is_fixed():
    """Of what is committed: users have environments and notes of their own next to it."""
    git = ["git", "-C", str(ROOT.parent), "ls-files"]
    listed = subprocess.run(git, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("no git checkout")
    top = {name.partition("/")[0] for name in listed.stdout.split("\n") if name}
    top = {name for name in top if not name.startswith(".")}
    fixed = {
        "jaxcnn",
        "experiments",
        "tests",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CONTRIBUTING.md",
    }
    assert top == fixed


@pytest.mark.slow
def test_importing_the_library_is_light():
    """What one task needs is imported when it is asked for: a machine without it can do the others.

    The first step of the main command does not wait for it either.
    """
    heavy = [
        "matplotlib",
        "orbax",
        "tensorflow_datasets",
        "array_record",
        "sklearn",
        "scipy",
        "PIL",
        "pandas",
        "tyro",
        "tqdm",
        "tensorboardX",
        "huggingface_hub",
    ]
    code = (
        "import sys, jaxcnn, jaxcnn.weights, experiments.depth; jaxcnn.load_dataset('digits'); "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == "[]"


def test_every_file_that_workers_start_with_exists():
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert [names.count(name) for name in LONGEST] == [1] * len(LONGEST)
