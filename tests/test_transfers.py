"""Between two rows nothing crosses to the host but the checks and the row: data, augmentation and update stay on the device."""

import re

import jax
import numpy as np
import pytest

import jaxcnn as jc
from jaxcnn import parallel
from jaxcnn.parallel import MAX_SCAN_STEPS

CONFIG = jc.TrainConfig(
    num_steps=600, eval_every=600, batch_size=32, augment=jc.AugmentConfig(padding=1)
)


@pytest.fixture
def data():
    return jc.load_dataset("digits")


def accelerator(kind, monkeypatch):
    """A strategy of two devices that scans, as on an accelerator."""
    strategy = parallel.Strategy(kind, jax.devices()[:2])
    monkeypatch.setattr(strategy, "scans", True)
    return strategy


def on_devices(strategy, place, order):
    """The order of a chunk, placed on the devices before the call."""
    placed = place(order)
    if isinstance(placed, np.ndarray):
        mesh, spec = strategy.mesh, jax.sharding.PartitionSpec(parallel.AXIS)
        placed = jax.device_put(placed, jax.sharding.NamedSharding(mesh, spec))
    return placed


def guard_programs(strategy, monkeypatch):
    """Let the strategy's programs run under a guard that refuses transfers; return the orders of their calls."""
    calls, make = [], strategy._program

    def guarded(step, rewrite_for_cpu):
        program, place = make(step, rewrite_for_cpu)

        def call(carry, fixed, order):
            calls.append(order.shape)
            with jax.transfer_guard("disallow"):
                return program(carry, fixed, order)

        return call, lambda order: on_devices(strategy, place, order)

    monkeypatch.setattr(strategy, "_program", guarded)
    return calls


def record_reads(monkeypatch):
    """Record the bytes of every array of JAX that becomes one of NumPy."""
    reads, asarray = [], np.asarray

    def recorded(x, *args, **kwargs):
        if isinstance(x, jax.Array):
            reads.append(x.nbytes)
        return asarray(x, *args, **kwargs)

    monkeypatch.setattr(np, "asarray", recorded)
    return reads


def learner():
    tx = jc.create_optimizer(jc.OptimizerConfig("momentum", learning_rate=0.05, milestones=()))
    return jc.create_model("mlp", 10), tx


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_a_call_of_500_steps_moves_nothing(kind, data, monkeypatch):
    """Two scans make a row, and one pass over the test set; each runs with all transfers refused."""
    strategy = accelerator(kind, monkeypatch)
    calls = guard_programs(strategy, monkeypatch)
    model, tx = learner()
    ((state, row),) = jc.train(model, tx, data, CONFIG, strategy=strategy)
    assert row is not None
    assert row["eval_error"] < 20
    steps = {"jit": lambda shape: shape[0], "pmap": lambda shape: shape[1]}[kind]
    assert [steps(shape) for shape in calls] == [300, 300, 1]
    assert max(map(steps, calls)) <= MAX_SCAN_STEPS
    assert int(state.step) == 600


def test_the_guard_sees_what_a_step_brings_along(data, monkeypatch):
    strategy = accelerator("jit", monkeypatch)
    guard_programs(strategy, monkeypatch)
    run = strategy.compile_steps(lambda carry, fixed, index: carry + fixed[index].sum())
    order = np.zeros((3, 2), np.int32)
    carry, on_host = strategy.replicate(np.float32(0)), np.ones(4, np.float32)
    assert float(strategy.fetch(run(carry, strategy.replicate(on_host), order))) == 6
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        run(strategy.replicate(np.float32(0)), on_host, order)


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_between_rows_the_host_reads_the_order_the_checks_and_the_row(kind, data, monkeypatch):
    """The permutation of each epoch, metrics and parameters after each scan, then the state and the counts of the test."""
    strategy = accelerator(kind, monkeypatch)
    model, tx = learner()
    epochs = -(-CONFIG.num_steps * CONFIG.batch_size // len(data.train.labels))
    rows = iter(jc.train(model, tx, data, jc.override(CONFIG, num_steps=1200), strategy=strategy))
    next(rows)
    reads = record_reads(monkeypatch)
    state, _ = next(rows)
    monkeypatch.undo()
    size = {
        name: sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(getattr(state, name)))
        for name in state._fields
    }
    order = (epochs + 1) * 4 * len(data.train.labels)
    checks = 2 * (size["params"] + size["metrics"])
    row = sum(size.values()) + 2 * size["metrics"] + 64
    assert size["params"] < sum(reads) <= order + checks + row


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_a_program_is_one_loop_that_calls_no_host(kind, data, monkeypatch):
    strategy = accelerator(kind, monkeypatch)
    model, tx = learner()
    state = jc.init_state(model, tx, CONFIG, data)
    kwargs = {"augment": CONFIG.augment, "axis_name": strategy.axis_name}
    program, place = strategy._program(jc.make_train_step(model, tx, **kwargs), False)
    order = np.zeros((500, 32), np.int32)
    placed = strategy.replicate(state), strategy.replicate(data.train)
    text = program.lower(*placed, place(order)).as_text()
    assert "stablehlo.while" in text
    assert "tensor<500x" in text
    targets = set(re.findall(r"custom_call @(\w+)", text))
    assert not [name for name in targets if re.search("callback|host|infeed|outfeed", name.lower())]
    assert not re.findall(r"stablehlo\.(infeed|outfeed|send|recv)", text)
