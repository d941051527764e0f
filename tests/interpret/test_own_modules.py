"""Modules of a user's own, which hand out no stages, looked at by the paths of their submodules."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn as jc
from jaxcnn.data.types import assemble
from jaxcnn.interpret import (
    feature_maps,
    gradcam,
    gradcam_plus_plus,
    maximize_activation,
    receptive_fields,
    stage_shapes,
    top_activations,
)
from jaxcnn.models.layers import stage
from jaxcnn.state import init_state

pytestmark = pytest.mark.quick_compilation

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 2), dtype=np.uint8)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.Conv(4, (3, 3))(x))


class Own(nn.Module):
    lifted: str = ""

    def setup(self):
        self.first = nn.Conv(4, (3, 3), strides=2)
        self.block = {"": Block, "remat": nn.remat(Block), "jit": nn.jit(Block)}[self.lifted]()
        self.head = nn.Dense(3)

    def __call__(self, x, train=False):
        x = self.block(nn.relu(self.first(x)))
        x = self.block(x)
        return self.head(jnp.square(x).mean((1, 2)))


class Staged(Own):
    """The same with stages."""

    def __call__(self, x, train=False, stages=False):
        seen: dict[str, jax.Array] = {}
        x = stage(self, seen, "first", self.first(x))
        x = stage(self, seen, "block", self.block(nn.relu(x)))
        x = stage(self, seen, "block#2", self.block(x))
        logits = self.head(jnp.square(x).mean((1, 2)))
        return (logits, seen) if stages else logits


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (3, 3), name="first")(x)
        body = nn.scan(
            lambda block, x, _: (block(x), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=2,
        )
        x, _ = body(Block(name="block"), x, None)
        return nn.Dense(3)(x.mean((1, 2)))


def started(model):
    split = jc.Split(IMAGES, np.arange(5, dtype=np.int32) % 3)
    data = assemble("own", split, split, IMAGES.shape[1:], ("a", "b", "c"))
    tx = jc.create_optimizer(jc.OptimizerConfig())
    return init_state(model, tx, jc.TrainConfig(), data)


@pytest.fixture(scope="module")
def state():
    return started(Own())


NAMES = ("first", "block", "block#2")


def test_modules_are_listed_by_their_paths_in_the_order_of_their_calls():
    found = stage_shapes(Own(), (8, 8, 2))
    assert list(found) == ["first", "block/Conv_0", "block", "block/Conv_0#2", "block#2", "head"]
    assert found["block/Conv_0"] == (4, 4, 4)
    assert found["head"] == (3,)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "lifted"),
    [(gradcam, ""), (gradcam, "remat"), (gradcam, "jit"), (gradcam_plus_plus, "")],
)
def test_heat_is_that_of_stages(method, lifted, state):
    for name in NAMES if (method, lifted) == (gradcam, "") else ["block"]:
        expected = method(Staged(), state, IMAGES, np.arange(5) % 3, stage=name)
        assert expected.max() > 0.5
        found = method(Own(lifted), state, IMAGES, np.arange(5) % 3, stage=name)
        np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=name)


def test_the_last_maps_are_asked_by_default(state):
    np.testing.assert_array_equal(
        gradcam(Own(), state, IMAGES), gradcam(Own(), state, IMAGES, stage="block#2")
    )


@pytest.mark.slow
def test_maps_and_what_excites_them_are_those_of_stages(state):
    def responses(model, state, images, names):
        return {
            name: found.responses
            for name, found in top_activations(model, state, images, 2, names).items()
        }

    for function in (feature_maps, responses):
        found, expected = (function(model, state, IMAGES, NAMES) for model in (Own(), Staged()))
        for name in NAMES:
            np.testing.assert_allclose(found[name], expected[name], atol=1e-6)
    channels = {"block": [0, 3], "first": [1]}
    found, expected = (
        maximize_activation(model, state, channels, num_steps=2) for model in (Own(), Staged())
    )
    for name in channels:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5)
    fields = receptive_fields(Own(), (8, 8, 2))
    assert {name: fields[name] for name in NAMES} == receptive_fields(Staged(), (8, 8, 2))


@pytest.mark.slow
def test_what_cannot_be_asked_is_one_line(state):
    with pytest.raises(
        jc.ArgumentError, match=r"stage is 'blok'; expected one of block, .*; did you mean 'block'"
    ):
        gradcam(Own(), state, IMAGES, stage="blok")
    scanned = Scanned()
    assert set(stage_shapes(scanned, (8, 8, 2))) == {"first", "Dense_0"}
    assert gradcam(scanned, started(scanned), IMAGES).shape == (5, 8, 8)

    class Flat(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dense(3)(x.reshape(len(x), -1))

    with pytest.raises(jc.ArgumentError, match="Flat has no module whose output is maps"):
        gradcam(Flat(), started(Flat()), IMAGES)
