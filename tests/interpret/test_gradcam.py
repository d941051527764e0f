"""Grad-CAM against NumPy, and against what is known of where the heat must be."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn as jc
from jaxcnn.augment import make_normalizer
from jaxcnn.data.types import assemble
from jaxcnn.interpret import gradcam, stage_shapes
from jaxcnn.models.layers import stage
from jaxcnn.state import init_state

RNG = np.random.default_rng(0)


class Two(nn.Module):
    """A convolution, ReLU, and a dense layer on the pooled maps: its gradients can be written down."""

    num_classes: int = 3
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train=False, stages=False):
        seen: dict[str, jax.Array] = {}
        x = stage(self, seen, "maps", nn.relu(nn.Conv(4, (3, 3), name="conv")(x)))
        x = stage(self, seen, "squares", jnp.square(x))
        x = stage(self, seen, "pool", x.mean((1, 2)))
        logits = nn.Dense(self.num_classes, name="head")(x)
        return (logits, seen) if stages else logits


@pytest.fixture(scope="module")
def run():
    images = RNG.integers(0, 256, (5, 6, 8, 2), dtype=np.uint8)
    split = jc.Split(images, np.arange(5, dtype=np.int32) % 3)
    data = assemble("own", split, split, (6, 8, 2), ("a", "b", "c"))
    model, tx = Two(), jc.create_optimizer(jc.OptimizerConfig())
    return model, init_state(model, tx, jc.TrainConfig(), data), images


def by_hand(model, state, images, classes, squares):
    """Equations 1 and 2 with the derivatives on paper: d logit_c / d pooled_k = W_kc, of squares 2 x / (h w)."""
    outputs: Any = model.apply(
        {"params": state.params},
        jnp.asarray(images / 255 - state.normalizer.mean, jnp.float32),
        stages=True,
    )
    maps, weights = np.asarray(outputs[1]["maps"]), np.asarray(state.params["head"]["kernel"])
    heats = []
    for x, label in zip(maps, classes, strict=True):
        slopes = weights[:, label] / x[..., 0].size * (1 if squares else 2 * x)
        alpha = np.broadcast_to(slopes, x.shape).mean((0, 1))
        heat = np.maximum(((x**2 if squares else x) * alpha).sum(-1), 0)
        heats.append(heat / heat.max() if heat.max() > 0 else heat)
    return np.stack(heats)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["maps", "squares"])
def test_heat_is_the_papers_equations(run, name):
    model, state, images = run
    classes = np.array([2, 0, 1, 1, 0])
    got = gradcam(model, state, images, classes, stage=name, batch_size=2)
    np.testing.assert_allclose(
        got, by_hand(model, state, images, classes, name == "squares"), rtol=0, atol=1e-5
    )
    assert got.dtype == np.float32


def test_without_classes_it_asks_about_the_predicted_ones_at_the_last_map(run):
    model, state, images = run
    predicted = jc.predict(model, state, images).argmax(1)
    np.testing.assert_array_equal(
        gradcam(model, state, images), gradcam(model, state, images, predicted, "squares")
    )


@pytest.mark.slow
def test_heat_is_enlarged_to_the_image_and_lies_on_what_decides():
    """A patch of one colour on noise decides the class; a network trained on it looks there."""
    n, rng = 300, np.random.default_rng(1)
    labels = rng.integers(0, 2, n).astype(np.int32)
    images = rng.integers(0, 120, (n, 16, 16, 3), dtype=np.uint8)
    corners = rng.integers(0, 3, (n, 2)) * 4 + 2
    for image, label, (y, x) in zip(images, labels, corners, strict=True):
        image[y : y + 4, x : x + 4] = (250, 40, 40) if label else (40, 250, 40)
    split = jc.Split(images, labels)
    data = assemble("patches", split, split, (16, 16, 3), ("green", "red"))
    config = jc.TrainConfig(num_steps=60, batch_size=50, eval_every=60)
    model = Two(num_classes=2)
    state, row = list(
        jc.train(
            model,
            jc.create_optimizer(jc.OptimizerConfig(learning_rate=0.3)),
            data,
            config,
            strategy=jc.strategy("jit", 1),
        )
    )[-1]
    assert row is not None
    assert row["eval_error"] == 0
    heat = gradcam(model, state, images[:50], labels[:50], "maps")
    inside = [
        h[y - 1 : y + 5, x - 1 : x + 5].sum() / h.sum()
        for h, (y, x) in zip(heat, corners, strict=False)
        if h.sum()
    ]
    assert len(inside) > 45
    assert np.median(inside) > 0.8  # of 36 pixels in 256, which by chance hold 0.14


@pytest.mark.slow
@pytest.mark.parametrize("network", ["resnet8", "convnet", "lenet5"])
def test_every_stage_is_in_the_path_of_the_logits(network):
    model, shape = jc.create_model(network, 10), (28, 28, 1)
    variables = model.lazy_init(jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    image, there = (
        jnp.asarray(RNG.normal(size=(1, *shape)), jnp.float32),
        stage_shapes(model, shape),
    )

    def total(nudges):
        logits: Any = model.apply({**variables, "nudges": nudges}, image)
        return jnp.square(logits).sum()

    slopes = jax.jit(jax.grad(total))({name: jnp.zeros((1, *size)) for name, size in there.items()})
    assert all(np.any(slope != 0) for slope in slopes.values())
    assert len(there) > 2


@pytest.mark.parametrize(
    ("stage", "said"),
    [("pool", "expected one of maps, squares"), ("map", "did you mean 'maps'"), ("stage9", "maps")],
)
def test_a_stage_that_cannot_be_asked_is_refused_with_those_that_can(run, stage, said):
    model, state, images = run
    with pytest.raises(jc.ArgumentError, match=said):
        gradcam(model, state, images, stage=stage)


def test_other_mistakes_are_named(run):
    model, state, images = run
    with pytest.raises(jc.ArgumentError, match="expected one class for each of the 5 images"):
        gradcam(model, state, images, np.array([1, 2]))
    with pytest.raises(jc.DataError, match="uint8"):
        gradcam(model, state, images.astype(np.float32))
    with pytest.raises(jc.ArgumentError, match="MLP has no stage whose output is maps"):
        gradcam(jc.create_model("mlp", 3), state, images)


def test_where_nothing_speaks_for_the_class_there_is_no_heat(run):
    model, state, images = run
    params = state.params | {
        "head": {"kernel": -np.ones((4, 3), np.float32), "bias": np.zeros(3, np.float32)}
    }
    heat = gradcam(
        model,
        state._replace(params=params, normalizer=make_normalizer(np.zeros((6, 8, 2)), np.ones(2))),
        images,
        stage="maps",
    )
    np.testing.assert_array_equal(heat, 0)
