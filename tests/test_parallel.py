"""One step, any layout: one device, pmap and sharding must move the parameters alike."""

import math
from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

import jaxcnn as jc
from jaxcnn import parallel, runs
from jaxcnn.models.norm import BatchNorm
from jaxcnn.state import init_state
from jaxcnn.training import epoch_order, make_train_step

CONFIG = jc.override(
    jc.ExperimentConfig(),
    dataset="digits",
    batch_size=32,
    padding=1,
    flip=True,
    num_steps=5,
)


class Residual(nn.Module):
    """A block of a residual network, which compiles in a third of the time of three of them."""

    bn_group: int = 0
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train=False):
        conv = partial(nn.Conv, 4, (3, 3), use_bias=False)
        norm = partial(BatchNorm, self.bn_group, self.axis_name)
        x = nn.relu(norm()(conv()(x), train))
        x = nn.relu(x + norm()(conv()(x), train))
        return nn.Dense(10)(x.mean((1, 2)))


class Own(nn.Module):
    """A user's network of Flax's layers, which know of no axis."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(x))
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
        return nn.Dense(10)(x.reshape((len(x), -1)))


RESNET8: Any = partial(jc.create_model, "resnet8", 10, width=4)


@cache
def trained(strategy, group=0, seed=0, make: Any = Residual):
    """The state after 5 steps, and the gradient's norm at the first."""
    config = jc.override(CONFIG, seed=seed)
    data = jc.load_dataset("digits")
    model = make(bn_group=group)
    tx = jc.create_optimizer(config.optimizer, config.train.num_steps)
    state = init_state(model, tx, config.train, data)
    run = strategy.compile_steps(
        make_train_step(
            model,
            tx,
            augment=config.train.augment,
            axis_name=strategy.axis_name,
        )
    )
    carry, split = strategy.replicate(state), strategy.replicate(data.train)
    first = None
    for row in epoch_order(
        state.rng, 0, config.train.num_steps, config.train.batch_size, len(data.train.labels)
    ):
        carry = run(carry, split, row[None])
        first = first if first is not None else strategy.fetch(carry).metrics.mean_grad_norm
    return strategy.fetch(carry), first


def largest_difference(a, b):
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(np.abs(x - y).max()), a, b)))


@pytest.fixture(scope="module")
def alone():
    return trained(jc.strategy("jit", devices=1))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jit", "pmap"])
@pytest.mark.parametrize("devices", [1, 2, 8])
def test_layouts_agree(alone, kind, devices):
    state, norm = trained(jc.strategy(kind, devices))
    assert largest_difference(state.params, alone[0].params) < 1e-6
    assert largest_difference(state.model_state, alone[0].model_state) < 1e-6
    assert norm / alone[1] == pytest.approx(1, abs=1e-5)
    assert state.metrics.num_examples == 5 * CONFIG.train.batch_size
    assert state.metrics.num_wrong == alone[0].metrics.num_wrong


@pytest.mark.slow
@pytest.mark.quick_compilation
@pytest.mark.parametrize("kind", ["jit", "pmap"])
@pytest.mark.parametrize("group", [2, 16])
def test_groups_of_bn_are_the_same_examples_on_eight_devices(kind, group):
    """A device holds 4 of the 32 examples: two groups of 2, or a quarter of a group of 16."""
    alone, _ = trained(jc.strategy("jit", devices=1), group, seed=1)
    state, _ = trained(jc.strategy(kind, 8), group, seed=1)
    assert largest_difference(state.params, alone.params) < 1e-6
    assert largest_difference(state.model_state, alone.model_state) < 1e-6
    whole, _ = trained(jc.strategy("jit", devices=1), seed=1)
    assert (
        largest_difference(state.params, whole.params) > 1e-4
    )  # another algorithm than BN over the batch


@pytest.mark.slow
@pytest.mark.quick_compilation
def test_groups_of_each_layer_of_a_network_are_the_same_examples_on_eight_devices():
    alone, state = (
        trained(strategy, 16, seed=1, make=RESNET8)[0]
        for strategy in (jc.strategy("jit", devices=1), jc.strategy("pmap", 8))
    )
    assert largest_difference(state.params, alone.params) < 1e-6
    assert largest_difference(state.model_state, alone.model_state) < 1e-6


MAPS = {
    "shard_map": lambda step, mesh, kinds: jax.shard_map(step, mesh=mesh, **kinds),
    "shard_map, unchecked": lambda step, mesh, kinds: jax.shard_map(
        step, mesh=mesh, **kinds, check_vma=False
    ),
    "vmap": lambda step, mesh, kinds: (
        lambda state, split, index: jax.tree.map(
            lambda leaf: leaf[0],
            jax.vmap(step, (None, None, 0), axis_name="d")(state, split, index.reshape(2, -1)),
        )
    ),
}
"""What a step with an axis name is mapped with: functions of the step, the mesh and the specs."""


@pytest.mark.quick_compilation
@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize(
    ("optimizer", "model", "freeze"),
    [
        ("sgd", Residual(), ()),
        ("sgd", Own(), ()),
        ("sgd", Residual(8), ("Conv_0", "BatchNorm_0")),
        # It asks for a gradient at a second point.
        ("sam", Residual(), ()),
        # It differentiates the loss itself, in a loop whose end all devices must agree on.
        pytest.param("lbfgs", Residual(), (), marks=pytest.mark.slow),
    ],
    ids=["sgd", "own layers", "groups and frozen stages", "sam", "lbfgs"],
)
def test_a_step_is_that_of_one_device_under_each_map(kind, optimizer, model, freeze):
    """`jax.shard_map` adds up gradients of replicated parameters over devices by itself."""
    data, config = jc.load_dataset("digits"), jc.override(CONFIG.train, freeze=freeze)
    tx: Any = optax.lbfgs() if optimizer == "lbfgs" else None
    tx = tx or jc.create_optimizer(jc.OptimizerConfig(optimizer, learning_rate=0.1))
    state = init_state(model, tx, config, data)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("d",))
    make_step = partial(make_train_step, model, tx, freeze=freeze, augment=config.augment)
    step = make_step(axis_name="d")
    kinds = {"in_specs": (PartitionSpec(), PartitionSpec(), PartitionSpec("d"))}
    mapped = MAPS[kind](step, mesh, kinds | {"out_specs": PartitionSpec()})
    alone, shared = (
        jax.jit(function)(state, data.train, np.arange(32, dtype=np.int32))
        for function in (make_step(), mapped)
    )
    assert largest_difference(shared.params, alone.params) < 1e-6
    assert largest_difference(shared.model_state, alone.model_state) < 1e-6
    norms = [float(each.metrics.mean_grad_norm) for each in (shared, alone)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    assert largest_difference(alone.params, state.params) > 1e-3


def test_groups_on_some_devices_are_refused_where_shard_map_cannot_have_them():
    model, tx = Residual(16), optax.sgd(0.1)
    data = jc.load_dataset("digits")
    state = init_state(model, tx, CONFIG.train, data)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("d",))
    specs = PartitionSpec(), PartitionSpec(), PartitionSpec("d")
    step = make_train_step(model, tx, axis_name="d")
    mapped = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())
    with pytest.raises(jc.ArgumentError, match=r"span 2 devices.*check_vma=False"):
        jax.eval_shape(mapped, state, data.train, np.arange(32, dtype=np.int32))


def pairs(total, x, index):
    """Of b rows, it makes a [b, b] table that is neither its argument nor its result."""
    rows = x[index]
    return total + jax.lax.pmean(
        jax.numpy.sort(rows @ rows.T)[0, 0], "batch"
    )  # nothing but the whole can be sorted


@pytest.mark.parametrize("devices", [1, 4])
def test_memory_is_what_a_step_makes_on_each_device_and_drops(devices):
    """Each of the devices holds a table of its own share of the rows: [b / devices, b / devices] float32."""
    strategy, x, b = jc.strategy("pmap", devices), np.ones((1024, 8), np.float32), 1024
    carry, fixed = strategy.replicate(np.float32(0)), strategy.replicate(x)
    took = strategy.memory(pairs, carry, fixed, np.arange(b, dtype=np.int32))
    table = 4 * (b // devices) ** 2
    assert took is not None
    assert table <= took < 2.2 * table  # before and after the sorting at most
    assert float(strategy.fetch(carry)) == 0  # nothing ran, and the carry was not given away


@pytest.mark.slow
def test_memory_of_a_real_step_grows_with_the_batch_and_leaves_the_state_alone():
    strategy, data = jc.strategy("jit", devices=1), jc.load_dataset("digits")
    config = jc.override(CONFIG, model="mlp", model_kwargs={})
    model, tx = (
        jc.create_model("mlp", 10),
        jc.create_optimizer(config.optimizer, config.train.num_steps),
    )
    carry, fixed = (
        strategy.replicate(init_state(model, tx, config.train, data)),
        strategy.replicate(data.train),
    )
    step = make_train_step(model, tx)
    few, many = (
        strategy.memory(step, carry, fixed, np.arange(b, dtype=np.int32)) for b in (1, 1024)
    )
    assert few is not None
    assert many is not None
    assert few + 4 * 1023 * (64 + 64) < many  # both hidden layers' outputs wait for the gradient
    assert int(strategy.fetch(carry).step) == 0


def test_memory_is_none_where_xla_does_not_tell(monkeypatch):
    monkeypatch.setattr("jax.stages.Compiled.memory_analysis", lambda self: None)
    strategy = jc.strategy("jit", devices=1)
    step = lambda total, x, index: total + x[index].sum()  # noqa: E731
    assert (
        strategy.memory(step, np.float32(0), np.ones(9, np.float32), np.arange(3, dtype=np.int32))
        is None
    )


@pytest.mark.slow
def test_programs_are_kept_within_a_bound_and_made_again(monkeypatch):
    """What is asked for in turn stays; the first beyond the bound drops all, JAX's own too."""
    made = []

    @parallel.cached_program
    def program(n):
        made.append(n)
        return jax.jit(lambda x: x * n)

    parallel.clear_program_cache()
    monkeypatch.setattr(parallel, "MAX_PROGRAMS", 3)
    assert [float(program(n)(1.0)) for n in (1, 2, 3, 1, 2, 3)] == [1, 2, 3, 1, 2, 3]
    assert made == [1, 2, 3]
    held: Any = jax.jit(jax.numpy.sin)
    held(1.0)
    assert held._cache_size() == 1
    assert float(program(4)(1.0)) == 4
    assert held._cache_size() == 0
    assert float(program(4)(1.0)) == 4
    assert float(program(1)(1.0)) == 1
    assert made == [1, 2, 3, 4, 1]


@pytest.mark.slow
@pytest.mark.quick_compilation
def test_a_study_of_more_networks_than_are_kept_has_the_same_numbers(tmp_path, monkeypatch):
    config = jc.override(
        jc.ExperimentConfig(),
        dataset="digits",
        model="mlp",
        num_steps=4,
        eval_every=2,
        batch_size=32,
        milestones=(),
        padding=0,
    )
    all_runs = {
        f"{width}": jc.override(config, model_kwargs={"hidden": [width]}) for width in (4, 5, 6)
    }
    all_runs["4 again"] = all_runs["4"]
    data, strategy = jc.load_dataset("digits"), jc.strategy("jit", devices=1)
    monkeypatch.setattr(parallel, "MAX_PROGRAMS", 2)  # one network
    results = runs.sweep(all_runs, data, tmp_path, strategy=strategy)
    assert results is not None
    assert results["4"]["eval_loss"] == results["4 again"]["eval_loss"] != results["5"]["eval_loss"]
    assert len(parallel._program_cache) <= 2


def test_a_program_that_is_compiled_again_is_not_written_to_disk_either():
    """JAX's caches are cleared when a process has many programs, in the middle of a run too."""
    settings = []

    def step(carry, fixed, index):
        # Each compilation traces it once.
        settings.append(jax.config.values["jax_persistent_cache_min_compile_time_secs"])
        return carry + fixed[index].sum()

    one = parallel.strategy("jit", devices=1)
    run = one.compile_steps(step, rewrite_for_cpu=True)
    carry, fixed = one.replicate(np.float32(0)), one.replicate(np.ones(4, np.float32))
    for _ in range(2):
        for _ in range(2):
            carry = run(carry, fixed, np.array([[0, 1]], np.int32))
        parallel.clear_program_cache()
    assert settings == [math.inf, math.inf]
    assert float(carry) == 8
