"""Training on a GPU: the CPU's numbers, the same ones under pmap and after a stop, and bfloat16.

With JAXCNN_REHEARSE_GPU=1 these tests run on a CPU in place of the GPU, so that their code is known to work. The network
is narrower there, because gradients of convolutions in a scan are slow on a CPU.
"""

import itertools
import os

import jax
import numpy as np
import pytest

import jaxcnn as jc
from jaxcnn import nvidia, parallel
from jaxcnn.data import Dataset, Split, channel_statistics

pytestmark = pytest.mark.gpu

WIDTH, BATCH = (4, 8) if os.environ.get("JAXCNN_REHEARSE_GPU") else (16, 32)
AUGMENT = jc.AugmentConfig(padding=4, flip=True)
CONFIG = jc.TrainConfig(num_steps=4, eval_every=2, batch_size=BATCH, augment=AUGMENT)
# Of an update's norm.
TOLERANCE = 1e-3


def on_cpu():
    return parallel.Strategy("jit", jax.devices("cpu")[:1])


def on_gpu(kind="jit"):
    """One device of the default backend; a CPU in its place scans too."""
    strategy = parallel.Strategy(kind, jax.devices()[:1])
    strategy.__dict__["scans"] = True
    return strategy


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)

    def split(n):
        labels = rng.integers(0, 10, n).astype(np.int32)
        noise = rng.integers(0, 128, (n, 32, 32, 3))
        return Split((noise + 12 * labels[:, None, None, None]).astype(np.uint8), labels)

    train, names = split(256), tuple(map(str, range(10)))
    return Dataset("noise", train, split(0), split(64), names, *channel_statistics(train.images))


@pytest.fixture(autouse=True)
def precise():
    """Products in float32, where a GPU of NVIDIA has TF32 by default."""
    with jax.default_matmul_precision("highest"):
        yield


def learner(dtype="float32"):
    model = jc.create_model("resnet8", 10, width=WIDTH, dtype=dtype)
    rate = jc.OptimizerConfig("momentum", learning_rate=0.1, milestones=())
    return model, jc.create_optimizer(rate)


def steps(strategy, data, count, dtype="float32"):
    """The states before and after `count` steps, one scan."""
    model, tx = learner(dtype)
    step = jc.make_train_step(model, tx, augment=AUGMENT, axis_name=strategy.axis_name)
    start = jc.init_state(model, tx, CONFIG, data)
    order = np.arange(BATCH * count, dtype=np.int32).reshape(count, BATCH)
    placed = strategy.replicate(start), strategy.replicate(data.train)
    return start, strategy.fetch(strategy.compile_steps(step)(*placed, order))


def difference(a, b, start):
    """Norm of the difference of two states' parameters, over that of the update from `start`."""

    def distance(x, y):
        pairs = zip(jax.tree.leaves(x.params), jax.tree.leaves(y.params), strict=True)
        return np.sqrt(sum(np.sum((np.float64(p) - np.float64(q)) ** 2) for p, q in pairs))

    assert distance(b, start) > 0
    return distance(a, b) / distance(b, start)


def test_one_step_is_the_cpus(data):
    (start, gpu), (_, cpu) = steps(on_gpu(), data, 1), steps(on_cpu(), data, 1)
    assert difference(gpu, cpu, start) < TOLERANCE
    assert gpu.metrics.mean_loss == pytest.approx(cpu.metrics.mean_loss, rel=1e-3)
    assert gpu.metrics.mean_grad_norm == pytest.approx(cpu.metrics.mean_grad_norm, rel=1e-3)
    for a, b in zip(
        jax.tree.leaves(gpu.model_state), jax.tree.leaves(cpu.model_state), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_pmap_is_jit(data):
    (start, jit), (_, pmap) = steps(on_gpu(), data, 2), steps(on_gpu("pmap"), data, 2)
    assert difference(pmap, jit, start) < TOLERANCE
    assert int(pmap.step) == int(jit.step) == 2


def test_recorded_graphs_change_no_number(data, monkeypatch):
    """Three steps of the options of `jaxcnn.nvidia`, and of XLA's own."""
    start, chosen = steps(on_gpu(), data, 3)
    monkeypatch.setattr(parallel.Strategy, "compiler_options", lambda self: None)
    _, plain = steps(on_gpu(), data, 3)
    assert difference(chosen, plain, start) < TOLERANCE


def test_the_options_pass_their_trial():
    """Otherwise the GPU runs XLA's defaults, and a comparison with them says nothing."""
    device = jax.devices()[0]
    if device.platform == "gpu" and not nvidia.is_nvidia(device):
        pytest.skip("of NVIDIA alone")
    if nvidia.is_left_to_user():
        pytest.skip("the user has flags of their own")
    assert nvidia.options(device) is not None


def test_a_resumed_run_is_the_unbroken_one(data, tmp_path):
    model, tx = learner()

    def train(folder):
        return jc.train(model, tx, data, CONFIG, run_dir=tmp_path / folder, strategy=on_gpu())

    unbroken = [state for state, _ in train("unbroken")]
    (first, row), *_ = itertools.islice(train("stopped"), 1)
    assert row is not None
    assert int(first.step) == 2
    resumed = [state for state, _ in train("stopped")]
    assert [int(state.step) for state in resumed] == [4]
    assert difference(resumed[-1], unbroken[-1], unbroken[0]) < TOLERANCE


def test_bfloat16_is_finite_and_learns_as_float32_does(data):
    start, state = steps(on_gpu(), data, 8, "bfloat16")
    _, exact = steps(on_gpu(), data, 8)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(state.params))
    # Eight bits of each activation. Steps in another direction would differ by 2.
    assert 0 < difference(state, exact, start) < 0.5
    assert state.metrics.mean_loss == pytest.approx(exact.metrics.mean_loss, rel=0.05)


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_a_scan_moves_nothing_while_it_runs(kind, data):
    """On a GPU the guard refuses reads too, which on a CPU are no transfers."""
    strategy, (model, tx) = on_gpu(kind), learner()
    step = jc.make_train_step(model, tx, augment=AUGMENT, axis_name=strategy.axis_name)
    program, place = strategy._program(step, False)
    order = place(np.arange(2 * BATCH, dtype=np.int32).reshape(2, BATCH))
    if isinstance(order, np.ndarray):
        spec = jax.sharding.PartitionSpec(parallel.AXIS)
        order = jax.device_put(order, jax.sharding.NamedSharding(strategy.mesh, spec))
    placed = strategy.replicate(jc.init_state(model, tx, CONFIG, data))
    split = strategy.replicate(data.train)
    with jax.transfer_guard("disallow"):
        state = jax.block_until_ready(program(placed, split, order))
    assert int(strategy.fetch(state).step) == 2
