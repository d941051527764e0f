"""Strict numerics for every test, on eight simulated CPU devices (no GPU, network, TensorFlow or PyTorch needed)."""

import atexit
import contextlib
import functools
import gc
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
from typing import Any

import jax
import pytest

import jaxcnn as jc
from experiments import GC_THRESHOLDS
from jaxcnn.parallel import clear_program_cache

jax.config.update("jax_compilation_cache_dir", os.path.join(os.environ["JAXCNN_CACHE"], "programs"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

LONGEST = (
    "test_notebooks.py",
    "test_multihost.py",
    "test_finetune.py",
    "test_depth.py",
    "test_stress.py",
    "test_kinds_of_models.py",
    "test_augment_functions.py",
    "test_optimizers.py",
    "test_docs.py",
    "test_learning_rate.py",
    "test_own_models.py",
    "test_same_numbers.py",
    "test_shared_study.py",
    "test_rewriting_property.py",
    "test_inspect_run.py",
    "test_signal_propagation.py",
)
"""The files that take minutes, which workers start with, so that none works alone at the end.

pytest-xdist would start with the files of most tests, and end with the few and long ones.
"""


def pytest_addoption(parser):
    parser.addoption(
        "--cases",
        type=int,
        default=0,
        help="random cases that each property test tries; 0: as many as it says",
    )
    parser.addoption(
        "--slow",
        action="store_true",
        help="run the tests marked slow too, and property tests with all of their cases",
    )


@pytest.fixture(scope="session")
def cases(pytestconfig):
    """How many random cases a property test tries: those of `--cases`, or its own default.

    Without `--slow` it is a sixth of the default.
    """
    share = 1 if pytestconfig.getoption("--slow") else 6
    return lambda default: pytestconfig.getoption("--cases") or -(-default // share)


def pytest_collection_modifyitems(config, items):
    """Leave out slow tests, skip those of data or hardware that this machine lacks, and begin with the longest files.

    A slow test that is named (`file.py::test`) or selected by `-m` runs.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        ranks = {name: rank for rank, name in enumerate(LONGEST)}
        items.sort(key=lambda item: ranks.get(item.path.name, len(LONGEST)))
    is_named = any("::" in argument for argument in config.args)
    if not (config.getoption("--slow") or config.getoption("-m") or is_named):
        slow = [item for item in items if "slow" in item.keywords]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if "slow" not in item.keywords]
    folder = os.environ.get("TFDS_DATA_DIR", "")
    real = bool(folder) and Path(folder, "cifar10").is_dir()
    gpu = jax.default_backend() == "gpu" or bool(os.environ.get("JAXCNN_REHEARSE_GPU"))
    for item in items:
        if "real" in item.keywords and not real:
            item.add_marker(
                pytest.mark.skip(
                    reason="needs real data: set TFDS_DATA_DIR to a prepared TFDS folder"
                )
            )
        if "gpu" in item.keywords and not gpu:
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


def pytest_collection_finish():
    """Collect garbage as rarely as scripts do, and never among the modules and tests that stay.

    Python's own thresholds take 9 to 16% of the CPU time of three test files (AMD EPYC, Python
    3.11, 2026-11-30, n = 1: 24.9, 106.5 and 125.7 s before, 20.9, 96.6 and 112.4 s after).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


QUICK_OPTIONS = {
    "xla_cpu_use_fusion_emitters": False,  # of JAX 0.10; later ones have one way to emit loops
    "xla_cpu_parallel_codegen_split_count": 1,
}
"""They shorten what is left of compilation where LLVM optimizes nothing."""


@functools.cache
def quick_options():
    """Those of `QUICK_OPTIONS` that this XLA has."""
    known = {}
    for name, value in QUICK_OPTIONS.items():
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            jax.jit(lambda x: x + 1, compiler_options={name: value})(1)
            known[name] = value
    return known


@functools.cache
def add_quick_options():
    """Give programs that are compiled quickly the options of `quick_options` too.

    JAX has no public setting for them that a process can change, so its own function is wrapped. A
    JAX without that function compiles as correctly, and a little longer.
    """
    compiler: Any = getattr(getattr(jax, "_src", None), "compiler", None)
    options_of_jax = getattr(compiler, "get_compile_options", None)
    if options_of_jax is None:
        return

    def compile_options(*args, **kwargs):
        options = options_of_jax(*args, **kwargs)
        if jax.config.values["jax_disable_most_optimizations"]:
            options.env_option_overrides = [*options.env_option_overrides, *quick_options().items()]
        return options

    quick_options()  # These programs are compiled without them.
    compiler.get_compile_options = compile_options


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Compile quickly for tests marked `quick_compilation`, and as for users for all others.

    Neither has programs of the other: in memory they are dropped at each change, and on disk they
    have other keys.
    """
    quick = "quick_compilation" in item.keywords
    if quick != jax.config.values["jax_disable_most_optimizations"]:
        clear_program_cache()
        add_quick_options()
        jax.config.update("jax_disable_most_optimizations", quick)


@pytest.fixture(scope="session")
def quick_environment():
    """Variables with which another process compiles as quickly, for one device."""
    flags = [f"--{name}={value}".lower() for name, value in quick_options().items()]
    return {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": " ".join(flags)}


@pytest.fixture(scope="session")
def data():
    """A hundred training digits or so, on which a network trains in no time."""
    return jc.subset(jc.load_dataset("digits"), 128, seed=0)


@pytest.fixture(scope="session")
def model():
    """A network of two dense layers for digits."""
    return jc.create_model("mlp", 10)


@pytest.fixture(scope="session")
def tx():
    return jc.create_optimizer(jc.OptimizerConfig("adam", learning_rate=0.01))


@pytest.fixture(scope="session")
def one():
    """The first device alone."""
    return jc.strategy("jit", 1)


@pytest.fixture(scope="module")
def one_device():
    """For tests of what a script makes: eight devices take several times as long to compile for, and are tested elsewhere."""
    from scripts import on_one_device

    with on_one_device():
        yield


@pytest.fixture(scope="module", autouse=True)
def small_figures(request):
    """Write the figures of scripts at a quarter of their resolution, which saves half of the time to draw them."""
    with pytest.MonkeyPatch.context() as patch:
        if "experiments" in request.path.parts[-2:]:
            patch.setattr("jaxcnn.plots.style.DPI", 40)
        yield
