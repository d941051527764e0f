"""Functions of a state take plain variables alike, with constants of normalization."""

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn as jc
from jaxcnn import interpret
from jaxcnn.augment import IMAGENET_NORMALIZER, Normalizer
from jaxcnn.loss_landscape import evaluate_along, random_direction
from jaxcnn.state import as_state

pytestmark = pytest.mark.quick_compilation

DATA = jc.load_dataset("digits")
MODEL = jc.create_model("resnet8", 10, width=2)
TX = jc.create_optimizer(jc.OptimizerConfig())
STATE = jc.init_state(MODEL, TX, jc.TrainConfig(), DATA)
VARIABLES = {"params": STATE.params, **STATE.model_state}
IMAGES, LABELS = DATA.test.images[:4], DATA.test.labels[:4]
SPLIT = jc.Split(IMAGES, LABELS)
ONE = jc.strategy("jit", 1)
DIRECTION = random_direction(jax.random.key(0), STATE.params)
FUNCTIONS = {
    "evaluate": lambda s, **k: jc.evaluate(MODEL, s, SPLIT, strategy=ONE, **k),
    "predict": lambda s, **k: jc.predict(MODEL, s, IMAGES, **k),
    "gradcam": lambda s, **k: jc.gradcam(MODEL, s, IMAGES, **k),
    "gradcam_plus_plus": lambda s, **k: interpret.gradcam_plus_plus(MODEL, s, IMAGES, **k),
    "guided_backprop": lambda s, **k: interpret.guided_backprop(MODEL, s, IMAGES, **k),
    "integrated_gradients": lambda s, **k: interpret.integrated_gradients(
        MODEL, s, IMAGES, num_steps=2, **k
    ),
    "occlusion": lambda s, **k: interpret.occlusion(MODEL, s, IMAGES, **k),
    "attribution": lambda s, **k: interpret.attribution("occlusion", MODEL, s, IMAGES, **k),
    "feature_maps": lambda s, **k: interpret.feature_maps(MODEL, s, IMAGES, **k),
    "top_activations": lambda s, **k: interpret.top_activations(MODEL, s, IMAGES, 2, **k),
    "first_kernels": lambda s, **k: interpret.first_kernels(MODEL, s, **k),
    "maximize_activation": lambda s, **k: interpret.maximize_activation(
        MODEL, s, {"stem": [0]}, num_steps=1, **k
    ),
    "map_responses": lambda s, **k: interpret.map_responses(np.std, MODEL, s, IMAGES, **k),
    "response_std": lambda s, **k: interpret.response_std(MODEL, s, IMAGES, **k),
    "gradient_norms": lambda s, **k: interpret.gradient_norms(MODEL, s, IMAGES, LABELS, **k),
    "effective_ranks": lambda s, **k: interpret.effective_ranks(MODEL, s, IMAGES, **k),
    "evaluate_along": lambda s, **k: evaluate_along(
        MODEL, s, SPLIT, [DIRECTION], [[0.0, 1.0]], strategy=ONE, **k
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_variables_give_what_their_state_gives(name):
    want = FUNCTIONS[name](STATE)
    for constants in (DATA, STATE.normalizer):
        got = FUNCTIONS[name](VARIABLES, normalizer=constants)
        jax.tree.map(np.testing.assert_array_equal, got, want)


def test_every_function_of_a_state_is_tried():
    import inspect

    takes_state = {
        name
        for module in (jc, interpret)
        for name in dir(module)
        if inspect.isfunction(function := getattr(module, name))
        and {"model", "state"} <= set(inspect.signature(function).parameters)
    }
    assert takes_state - {"recompute_batch_stats"} <= set(FUNCTIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_variables_without_constants_are_one_line(name):
    with pytest.raises(
        jc.ArgumentError, match=r"has no constants.*Write normalizer=data"
    ) as caught:
        FUNCTIONS[name](VARIABLES)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_recomputed_statistics_are_of_the_kind_that_was_there():
    options = {"batch_size": 32, "strategy": ONE}
    want = jc.recompute_batch_stats(MODEL, STATE, DATA.train, 64, **options)
    got = jc.recompute_batch_stats(MODEL, VARIABLES, DATA.train, 64, normalizer=DATA, **options)
    assert isinstance(got, dict)
    jax.tree.map(np.testing.assert_array_equal, got["batch_stats"], want.model_state["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, got["params"], STATE.params)


def test_frozen_variables_and_device_arrays():
    frozen = flax.core.freeze(jax.tree.map(jnp.asarray, VARIABLES))
    np.testing.assert_array_equal(
        jc.predict(MODEL, frozen, IMAGES, normalizer=DATA), jc.predict(MODEL, STATE, IMAGES)
    )


def test_constants_of_channels_are_those_of_every_pixel():
    model = jc.create_model("mlp", 10)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 6, 5, 3)))
    images = np.random.default_rng(0).integers(0, 256, (3, 6, 5, 3), dtype=np.uint8)
    mean, std = (np.asarray(part, np.float64) for part in IMAGENET_NORMALIZER)
    want = model.apply(variables, ((images / 255 - mean) / std).astype(np.float32))
    got = jc.predict(model, variables, images, normalizer=IMAGENET_NORMALIZER)
    np.testing.assert_allclose(got, np.asarray(want), atol=1e-5)


@pytest.mark.parametrize(
    ("state", "normalizer", "says"),
    [
        (STATE, DATA, r"the state has constants.*Leave out normalizer"),
        ({"batch_stats": {}}, DATA, r"variables have no params, but batch_stats"),
        (STATE.params, DATA, r"variables have no params, but"),
        (VARIABLES, 3, r"^normalizer is 3; expected a Normalizer.*Write normalizer=data"),
        (
            VARIABLES,
            IMAGENET_NORMALIZER,
            r"^normalizer is .*expected a Normalizer of mean",
        ),
        (VARIABLES, Normalizer(jnp.zeros((8, 8, 1)), jnp.zeros(2)), "^normalizer is"),
        ({"params": {"a": None}}, DATA, r"the variables' params has None at \['a'\]"),
        (3, DATA, "state is of type int"),
    ],
)
def test_what_is_no_state_is_one_line(state, normalizer, says):
    with pytest.raises(jc.ArgumentError, match=says) as caught:
        jc.predict(MODEL, state, IMAGES, normalizer=normalizer)
    assert "\n" not in str(caught.value)


def test_a_state_is_returned_as_it_is():
    assert as_state(MODEL, STATE) is STATE
