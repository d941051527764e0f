"""Strict numerics for every test, on eight simulated CPU devices (no GPU, network, TensorFlow or PyTorch needed)."""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_NUMPY_DTYPE_PROMOTION", "strict")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
os.environ.setdefault("MPLBACKEND", "Agg")
# Decoded data and compiled programs of the tests are theirs alone: made by the first process,
# shared by pytest-xdist's workers.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAXCNN_CACHE"] = tempfile.mkdtemp(prefix="jaxcnn-tests-")
    atexit.register(shutil.rmtree, os.environ["JAXCNN_CACHE"], ignore_errors=True)

from pathlib import Path

import jax
import pytest

jax.config.update("jax_compilation_cache_dir", os.path.join(os.environ["JAXCNN_CACHE"], "programs"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def pytest_addoption(parser):
    parser.addoption(
        "--cases",
        type=int,
        default=0,
        help="random cases that each property test tries; 0: as many as it says",
    )


@pytest.fixture(scope="session")
def cases(pytestconfig):
    """How many random cases a property test tries: those of `--cases`, or its own default."""
    return lambda default: pytestconfig.getoption("--cases") or default


def pytest_collection_modifyitems(items):
    """Skip the tests of data or hardware that this machine lacks, each saying what it lacks."""
    folder = os.environ.get("TFDS_DATA_DIR", "")
    real = bool(folder) and Path(folder, "cifar10").is_dir()
    gpu = jax.default_backend() == "gpu"
    for item in items:
        if "real" in item.keywords and not real:
            item.add_marker(
                pytest.mark.skip(
                    reason="needs real data: set TFDS_DATA_DIR to a prepared TFDS folder"
                )
            )
        if "gpu" in item.keywords and not gpu:
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="module")
def one_device():
    """For tests of what a script makes: eight devices take several times as long to compile for, and are tested elsewhere."""
    from scripts import on_one_device

    with on_one_device():
        yield
