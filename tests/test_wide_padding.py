"""Convolutions that are padded by the size of their kernel or more, wherever the library takes a gradient.

Their gradients by images have negative padding, for which XLA of jaxlib 0.10 reads beyond the image
(`jaxcnn.cpu.crop_negative_padding`).
"""

from functools import cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn as jc
from jaxcnn import cpu, curvature, parallel
from jaxcnn.cpu import convolution
from jaxcnn.data import channel_statistics
from jaxcnn.interpret.attribution import integrated_gradients
from jaxcnn.interpret.feature_visualization import maximize_activation
from jaxcnn.interpret.gradcam import gradcam
from jaxcnn.interpret.guided_backprop import guided_backprop
from jaxcnn.models.layers import stage
from jaxcnn.state import init_state

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (8, 17, 5, 3), dtype=np.uint8)
SPLIT = jc.Split(IMAGES, (np.arange(8) % 4).astype(np.int32))
NONE = jc.Split(IMAGES[:0], SPLIT.labels[:0])
DATA = jc.Dataset("mine", SPLIT, NONE, SPLIT, tuple("abcd"), *channel_statistics(IMAGES))
TX = jc.create_optimizer(jc.OptimizerConfig(learning_rate=0.01, milestones=()))
CONFIG = jc.TrainConfig(batch_size=8, num_steps=3, eval_every=3)
CLASSES = np.full(8, 2)
PADDING = ((3, 2), (3, 0))


class Wide(nn.Module):
    """Two convolutions with more padding than their kernel of 3x2 has pixels, as an option or by `jnp.pad`."""

    explicit: bool

    @nn.compact
    def __call__(self, x, train=False, stages=False):
        seen: dict[str, jax.Array] = {}
        padding: Any = "VALID" if self.explicit else PADDING
        for i in range(2):
            if self.explicit:
                x = jnp.pad(x, ((0, 0), *PADDING, (0, 0)))
            x = nn.Conv(4, (3, 2), padding=padding, name=f"conv{i}")(x)
            x = stage(self, seen, f"maps{i}", nn.tanh(x) + 0.3 * nn.relu(x))
        logits = nn.Dense(4)(jnp.square(x).reshape(len(x), -1))
        return (logits, seen) if stages else logits


@cache
def initial(explicit):
    model = Wide(explicit)
    return model, init_state(model, TX, CONFIG, DATA)


def loss(explicit, params, images, labels):
    logits: Any = initial(explicit)[0].apply({"params": params}, images / 255)
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean()


def sharpness(explicit):
    params = initial(explicit)[1].params
    return curvature.sharpness(
        lambda params: loss(explicit, params, np.float32(IMAGES), SPLIT.labels), params
    )


def noise_scale(explicit):
    def gradient(params, batch):
        return jax.grad(lambda params: loss(explicit, params, *batch))(params)

    batches = [(np.float32(IMAGES[i : i + 2]), SPLIT.labels[i : i + 2]) for i in (0, 2, 4, 6)]
    return curvature.noise_scale(gradient, initial(explicit)[1].params, batches).trace


def trained(explicit):
    model, _ = initial(explicit)
    *_, (state, _) = jc.train(model, TX, DATA, CONFIG)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state.params)]


OF_NETWORKS = {
    "integrated_gradients": lambda model, state: integrated_gradients(
        model, state, IMAGES, classes=CLASSES, num_steps=8
    ),
    "maximize_activation": lambda model, state: maximize_activation(
        model, state, {"maps1": [0, 1, 2, 3]}, num_steps=3
    )["maps1"],
    "guided_backprop": lambda model, state: guided_backprop(model, state, IMAGES, classes=CLASSES),
    "gradcam": lambda model, state: gradcam(model, state, IMAGES, classes=CLASSES, stage="maps0"),
}


PROGRAMS = {
    name: lambda function=function: function(*initial(False))
    for name, function in OF_NETWORKS.items()
} | {
    name: lambda f=f: f(False)
    for name, f in {"sharpness": sharpness, "noise_scale": noise_scale, "train": trained}.items()
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_with_a_gradient_is_cropped(name, monkeypatch):
    """The numbers alone do not show it: some programs are right by luck, and all are on jaxlib 0.12."""
    cropped, rule = [], convolution.crop_rule

    def counted(eqn):
        replacement = rule(eqn)
        cropped.append(replacement is not None)
        return replacement

    monkeypatch.setattr(convolution, "crop_rule", counted)
    monkeypatch.setattr(cpu, "_reads_beyond_images", lambda: True)
    parallel.clear_program_cache()
    PROGRAMS[name]()
    parallel.clear_program_cache()
    assert any(cropped)


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_NETWORKS)
def test_attributions_are_right(name):
    got, expected = (
        np.asarray(OF_NETWORKS[name](*initial(explicit))) for explicit in (False, True)
    )
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("function", [sharpness, noise_scale])
def test_curvature_is_right(function):
    np.testing.assert_allclose(function(False), function(True), rtol=1e-3)


@pytest.mark.slow
def test_training_is_right():
    for got, expected in zip(trained(False), trained(True), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
