"""One step, any layout: one device, pmap and sharding must move the parameters alike."""

from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest

import jaxcnn as jc
from jaxcnn.state import start
from jaxcnn.train import make_step, order

RECIPE = jc.Recipe(dataset="digits", model="resnet8", options={"width": 4}, batch=32, pad=1, steps=5)


@cache
def trained(driver, group=0, steps=5):
    """The state after `steps` steps, and the gradient's norm at the first."""
    recipe = replace(RECIPE, options={"width": 4, "bn_group": group})
    data = jc.load("digits")
    model = jc.build(recipe.model, 10, **recipe.options)
    tx = jc.optimizer(recipe)
    state = start(model, tx, recipe, data)
    run = driver.fold(make_step(model, tx, pad=recipe.pad, axis=driver.axis))
    carry, split = driver.replicate(state), driver.replicate(data.train)
    first = None
    for row in order(state.key, 0, steps, recipe.batch, len(data.train.labels)):
        carry = run(carry, split, row[None])
        first = first if first is not None else driver.fetch(carry).sums.mean_norm
    return driver.fetch(carry), first


def largest_difference(a, b):
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(np.abs(x - y).max()), a, b)))


@pytest.fixture(scope="module")
def alone():
    return trained(jc.driver("jit", devices=1))


@pytest.mark.parametrize("kind", ["jit", "pmap"])
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_layouts_agree(alone, kind, devices):
    state, norm = trained(jc.driver(kind, devices))
    assert largest_difference(state.params, alone[0].params) < 1e-6
    assert largest_difference(state.stats, alone[0].stats) < 1e-6
    assert norm / alone[1] == pytest.approx(1, abs=1e-5)
    assert state.sums.n == 5 * RECIPE.batch
    assert state.sums.wrong == alone[0].sums.wrong


@pytest.mark.parametrize("kind", ["jit", "pmap"])
@pytest.mark.parametrize("group", [2, 16])
def test_groups_of_bn_are_the_same_examples_on_eight_devices(kind, group):
    """A device holds 4 of the 32 examples: two groups of 2, or a quarter of a group of 16."""
    alone, _ = trained(jc.driver("jit", devices=1), group)
    state, _ = trained(jc.driver(kind, 8), group)
    assert largest_difference(state.params, alone.params) < 1e-6
    assert largest_difference(state.stats, alone.stats) < 1e-6
    whole, _ = trained(jc.driver("jit", devices=1))
    assert largest_difference(state.params, whole.params) > 1e-4  # another algorithm than BN over the batch
