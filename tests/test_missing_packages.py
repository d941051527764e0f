"""Without tensorflow-datasets and array-record: a data set in the library's cache is all that training needs."""

import os
import subprocess
import sys

import pytest
from data_fakes import fake, write_prepared

from jaxcnn.data import cache

pytestmark = pytest.mark.slow
BLOCKER = """
import sys
class Without:
    # A finder that does not find some packages.
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        missing = name.partition(".")[0] in {names}
        return None if missing else self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""
READERS = ("tensorflow_datasets", "array_record", "tensorflow", "importlib_resources", "requests")
TRAIN = """
import numpy as np
import jaxcnn as jc
from experiments import depth, measure_gpu
from experiments.benchmark import __main__, timing
from experiments.speedrun import __main__
data = jc.load_dataset("cifar10")
tx = jc.create_optimizer(jc.OptimizerConfig())
for state, row in jc.train(jc.create_model("mlp", 10), tx, data, jc.TrainConfig(2, batch_size=4), run_dir=sys.argv[1]):
    pass
print(int(state.step), len(data.train.labels))
"""


def python(code, tmp_path, *names):
    variables = {"JAXCNN_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path), "XLA_FLAGS": ""}
    env = os.environ | variables
    env.pop("TFDS_DATA_DIR", None)
    blocker = BLOCKER.replace("{names}", repr(set(names)))
    command = [sys.executable, "-c", blocker + code, str(tmp_path / "run")]
    return subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.fixture
def cached(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXCNN_CACHE", str(tmp_path / "cache"))
    train, test = fake("cifar10")
    cache.write(cache.dataset_folder("cifar10"), "cifar10", "fake", (), train, test)
    return tmp_path


def test_a_cached_data_set_is_trained_on_without_readers(cached):
    said = python(TRAIN, cached, *READERS)
    assert said.returncode == 0, said.stderr
    assert said.stdout.split() == ["2", "20"]


def test_the_blocker_blocks(tmp_path):
    said = python("import tensorflow_datasets", tmp_path, *READERS)
    assert said.returncode == 1
    assert "No module named 'tensorflow_datasets'" in said.stderr


LOAD = """
import jaxcnn as jc
try:
    jc.load_dataset("cifar10")
except jc.DataError as error:
    print(error)
"""


def test_without_a_cache_one_line_says_what_is_missing(tmp_path):
    said = python(LOAD, tmp_path, *READERS)
    assert said.returncode == 0, said.stderr
    assert said.stdout.endswith("Use pip install tensorflow-datasets\n")
    assert "$JAXCNN_CACHE/data" in said.stdout
    assert said.stdout.count("\n") == 1, said.stdout


@pytest.mark.parametrize("package", ["tensorflow-datasets", "array-record"])
def test_a_prepared_folder_without_its_reader_is_one_line(package, tmp_path):
    write_prepared(tmp_path / "tensorflow_datasets", "cifar10", fake("cifar10"))
    said = python(LOAD, tmp_path, package.replace("-", "_"))
    assert said.returncode == 0, said.stderr
    assert "array_record-00000-of-" in said.stdout
    assert said.stdout.endswith(f"Use pip install {package}\n")
    assert said.stdout.count("\n") == 1, said.stdout
