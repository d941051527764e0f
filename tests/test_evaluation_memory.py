"""Default batches of evaluation fit in 2 GiB, by XLA's own plan of the compiled program."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn as jc
from jaxcnn import cpu, parallel
from jaxcnn.evaluation import MAX_ACTIVATION_BYTES, resolve_batch_size
from jaxcnn.models.calling import activation_bytes, call
from jaxcnn.state import State

GIB = 1 << 30


class Wide(nn.Module):
    """Four maps of 2,000 channels at the size of the image, of which two are needed at once."""

    @nn.compact
    def __call__(self, x, train=False):
        for _ in range(4):
            x = nn.Conv(2000, (1, 1), use_bias=False)(x)
        return nn.Dense(10)(x.mean((1, 2)))


def shapes_of(model, shape):
    image = jnp.zeros((1, *shape))
    variables = dict(jax.eval_shape(lambda: model.init(jax.random.PRNGKey(0), image)))
    params = variables.pop("params")
    return State(np.int32(0), params, variables, (), None, None, None)  # pyright: ignore


def default_batch(model, shape):
    images = np.broadcast_to(np.uint8(0), (10_000, *shape))
    return resolve_batch_size(images, None, model, shapes_of(model, shape))


def plan(model, shape, batch):
    """Bytes of temporary arrays in the compiled evaluation."""
    state = shapes_of(model, shape)
    variables = {"params": state.params, **state.model_state}

    def run(variables, images):
        return call(model, variables, images.astype(jnp.float32) / 255, train=False)

    program = jax.jit(cpu.crop_negative_padding(run), compiler_options=parallel.cpu_options())
    images = jax.ShapeDtypeStruct((batch, *shape), np.uint8)
    analysis = program.lower(variables, images).compile().memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape", "options"),
    [
        ("resnet50", (224, 224, 3), {}),
        ("vgg16", (224, 224, 3), {}),
        ("unet", (512, 512, 3), {}),
        ("unet", (64, 64, 3), {}),
        ("resnet20", (64, 64, 3), {"width": 160}),
    ],
)
def test_the_plan_of_a_default_batch_is_at_most_2_gib(name, shape, options):
    model = jc.create_model(name, 2, **options)
    batch = default_batch(model, shape)
    assert plan(model, shape, batch) < 2 * GIB
    # Nor is it needlessly small.
    assert batch >= 4
    assert plan(model, shape, batch) > 0.2 * GIB


@pytest.mark.parametrize(
    ("name", "shape"),
    [("resnet56", (32, 32, 3)), ("lenet5", (28, 28, 1)), ("resnet18", (32, 32, 3))],
)
def test_small_images_keep_the_batch_of_500(name, shape):
    """Another batch would round the losses of runs otherwise."""
    assert default_batch(jc.create_model(name, 10), shape) == 500


def test_activations_are_counted_at_their_peak():
    model, shape = Wide(), (16, 16, 3)
    state = shapes_of(model, shape)
    one_map = 4 * 16 * 16 * 2000
    num_bytes = activation_bytes(model, {"params": state.params}, shape)
    assert 2 * one_map <= num_bytes < 2.2 * one_map
    batch = default_batch(model, shape)
    assert batch == MAX_ACTIVATION_BYTES // num_bytes
    assert 200 < batch < 500


def test_parameters_are_no_activations():
    """A cast of large kernels happens once for all images."""
    model = nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(4000, dtype=jnp.bfloat16)])
    state = shapes_of(model, (32, 32, 3))
    num_bytes = activation_bytes(model, {"params": state.params}, (32, 32, 3))
    assert num_bytes < 4 * (32 * 32 * 3 + 4000) * 2


@pytest.mark.slow
def test_evaluation_in_smaller_batches_has_the_same_figures(monkeypatch):
    import jaxcnn.evaluation

    data, one = jc.load_dataset("digits"), jc.strategy("jit", 1)
    model = jc.create_model("convnet", 10)
    state = jc.init_state(model, jc.create_optimizer(jc.OptimizerConfig()), jc.TrainConfig(), data)
    want, logits = (
        jc.evaluate(model, state, data.test, strategy=one),
        jc.predict(model, state, data.test.images),
    )
    monkeypatch.setattr(jaxcnn.evaluation, "MAX_ACTIVATION_BYTES", 1 << 18)
    assert resolve_batch_size(data.test.images, None, model, state) < 100
    got = jc.evaluate(model, state, data.test, strategy=one)
    assert got.num_examples == want.num_examples
    assert got.num_wrong == want.num_wrong
    np.testing.assert_allclose(got.loss, want.loss, rtol=1e-6)
    np.testing.assert_allclose(jc.predict(model, state, data.test.images), logits, atol=1e-5)
