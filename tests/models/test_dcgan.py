"""DCGAN: sizes, gradients of both players against separate ones and against finite differences, and mistakes."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcnn as jc
from jaxcnn.losses import Batch
from jaxcnn.models.dcgan import (
    DCGAN,
    PIXEL_RANGE,
    Discriminator,
    Generator,
    NonSaturatingLoss,
    TransposedConv,
    generate,
    hash_images,
    player_variables,
)
from jaxcnn.models.norm import batch_moments, frozen_batch_norm, intercept_calls
from jaxcnn.state import as_state

CONFIG = jc.TrainConfig(
    num_steps=4, batch_size=16, eval_every=2, subtract_mean=PIXEL_RANGE, divide_std=PIXEL_RANGE
)
ADAM = jc.OptimizerConfig(
    "adam", learning_rate=2e-4, schedule="constant", optimizer_kwargs={"b1": 0.5}
)


@pytest.fixture(scope="module")
def digits():
    return jc.load_dataset("digits")


def with_large_kernels(variables):
    """Kernels of 0.02 leave all logits near 0, whatever the images are."""
    params = jax.tree.map(lambda x: 15 * x if x.ndim > 1 else x, variables["params"])
    return {**variables, "params": params}


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(("side", "channels"), [(8, 1), (28, 1), (32, 3)])
def test_shapes_and_parameters_are_those_of_the_layers(side, channels):
    """Counted by hand: BN has two parameters for each map, and the layer before it no bias."""
    codes, width, quarter = 10, 6, side // 4
    image = jax.ShapeDtypeStruct((3, side, side, channels), "float32")
    model = DCGAN(code=codes, width=width)
    outputs, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    assert {name: logits.shape for name, logits in outputs.items()} == {
        "real": (3,),
        "fake": (3,),
        "judged": (3,),
    }
    params = variables["params"]
    generator = codes * quarter**2 * 2 * width + 4 * width  # dense layer
    generator += 16 * 2 * width * width + 2 * width  # first transposed convolution
    generator += 16 * width * channels + channels
    assert count(params["generator"]) == generator
    discriminator = 16 * channels * width + width
    discriminator += 16 * width * 2 * width + 4 * width
    discriminator += quarter**2 * 2 * width + 1
    assert count(params["discriminator"]) == discriminator
    images = jax.eval_shape(
        Generator((side, side, channels), width).apply,
        {name: tree["generator"] for name, tree in variables.items()},
        jax.ShapeDtypeStruct((2, codes), "float32"),
    )
    assert images.shape == (2, side, side, channels)


@pytest.mark.quick_compilation
def test_kernels_start_at_a_deviation_of_a_fiftieth():
    model = DCGAN(width=32)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    kernels = [leaf for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim > 1]
    assert len(kernels) == 6
    for kernel in kernels:
        error = 0.02 / np.sqrt(2 * kernel.size)
        assert float(kernel.std()) == pytest.approx(0.02, abs=4 * error)
        assert abs(float(kernel.mean())) < 4 * 0.02 / np.sqrt(kernel.size)


def transposed(x, kernel):
    """A transposed 4x4 convolution of stride 2, as a loop: every pixel adds a square to the result."""
    h, w = x.shape[:2]
    full = np.zeros((2 * h + 2, 2 * w + 2, kernel.shape[-1]))
    for i in range(h):
        for j in range(w):
            # Flax does not mirror the kernel, so a pixel adds the mirrored one.
            square = np.einsum("c,yxcf->yxf", x[i, j], kernel[::-1, ::-1])
            full[2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += square
    return full[1:-1, 1:-1]


@pytest.mark.slow
def test_a_transposed_convolution_is_that_of_flax():
    """The layer and its gradients; also with odd sides, and with one channel."""
    rng = np.random.default_rng(0)
    for shape, filters in (((2, 3, 5, 4), 6), ((1, 1, 2, 1), 1)):
        x = jnp.asarray(rng.normal(size=shape), jnp.float32)
        layer = nn.ConvTranspose(filters, (4, 4), (2, 2))
        variables = layer.init(jax.random.key(0), x)
        variables = jax.tree.map(
            lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), variables
        )
        weights = rng.normal(size=(*shape[:1], 2 * shape[1], 2 * shape[2], filters))
        results = []
        for module in (layer, TransposedConv(filters)):

            def total(variables, x, module=module, weights=weights):
                y: Any = module.apply(variables, x)
                return (y * jnp.float32(weights)).sum(), y

            both = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))
            results.append(both(variables, x))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *results)


@pytest.mark.slow
def test_the_generator_is_its_layers_as_loops():
    rng = np.random.default_rng(0)
    model = Generator((8, 12, 2), width=3)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 5)))
    # With other values than 0 and 1, no part of BN is lost.
    variables = jax.tree.map(
        lambda x: jnp.asarray(rng.uniform(0.2, 1, x.shape), jnp.float32), variables
    )
    codes = rng.normal(size=(2, 5)).astype(np.float32)
    images: Any = model.apply(variables, codes)
    p, s = (jax.tree.map(np.float64, variables[name]) for name in ("params", "batch_stats"))

    def norm(x, name):
        y = (x - s[name]["mean"]) / np.sqrt(s[name]["var"] + 1e-5)
        return np.maximum(y * p[name]["scale"] + p[name]["bias"], 0)

    for code, image in zip(codes, images, strict=True):
        x = norm((code @ p["project"]["kernel"]).reshape(2, 3, 6), "project_norm")
        x = norm(transposed(x, p["up1"]["kernel"]), "up1_norm")
        expected = np.tanh(transposed(x, p["up2"]["kernel"]) + p["up2"]["bias"])
        np.testing.assert_allclose(np.asarray(image), expected, atol=2e-5)


@pytest.mark.slow
def test_the_gradient_of_the_generator_is_that_of_finite_differences():
    """In training mode, so through the moments of BN; differences are of the loops, in float64."""
    model = Generator((8, 8, 1), width=4)
    rng = np.random.default_rng(1)
    codes = rng.normal(size=(6, 5)).astype(np.float32)
    weights = rng.normal(size=(6, 8, 8, 1)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), codes)
    # Kernels of 0.02 leave all images gray, where tanh is straight.
    params = jax.tree.map(lambda x: 20 * x if x.ndim > 1 else x + 0.5, variables["params"])

    def loss(params):
        images, _ = model.apply(
            {**variables, "params": params}, codes, True, mutable=["batch_stats"]
        )
        return (images * weights).sum()

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)

    def exact(p):
        def norm(x, name):
            axes = tuple(range(x.ndim - 1))
            y = (x - x.mean(axes)) / np.sqrt(x.var(axes) + 1e-5)
            return np.maximum(y * p[name]["scale"] + p[name]["bias"], 0)

        x = (np.float64(codes) @ p["project"]["kernel"]).reshape(6, 2, 2, 8)
        x = norm(x, "project_norm")
        x = norm(np.stack([transposed(one, p["up1"]["kernel"]) for one in x]), "up1_norm")
        x = np.stack([transposed(one, p["up2"]["kernel"]) for one in x]) + p["up2"]["bias"]
        return (np.tanh(x) * weights).sum()

    p64 = jax.tree.map(np.float64, params)
    assert float(value) == pytest.approx(exact(p64), rel=1e-4)
    norm = float(optax.tree.norm(gradient))
    assert norm > 1
    for _ in range(8):
        direction = jax.tree.map(lambda x: rng.normal(size=x.shape), p64)
        points = [
            exact(jax.tree.map(lambda x, d, e=e: x + e * d, p64, direction)) for e in (1e-6, -1e-6)
        ]
        pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
        slope = sum((np.float64(g) * d).sum() for g, d in pairs)
        assert slope == pytest.approx((points[0] - points[1]) / 2e-6, abs=2e-4 * norm)


@pytest.mark.slow
def test_one_backward_pass_has_the_gradient_of_each_player(digits):
    """The discriminator's loss moves the discriminator alone, the generator's the generator alone."""
    model, images = (
        DCGAN(code=6, width=4),
        jnp.asarray(digits.test.images[:8] / 127.5 - 1, "float32"),
    )
    variables = jax.jit(model.init)(jax.random.key(0), images)
    key = jax.random.key(3)
    batch = Batch(images, jnp.zeros(8, jnp.int32))
    stats = variables["batch_stats"]

    def total(params):
        outputs, new = model.apply(
            {"params": params, "batch_stats": stats},
            images,
            True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        return NonSaturatingLoss()(outputs, batch)[0].mean(), new["batch_stats"]

    gradient, new = jax.jit(jax.grad(total, has_aux=True))(variables["params"])
    # The same codes, by the rule of the docstring.
    codes: Any = model.apply(
        variables, images, True, rngs={"dropout": key}, method=lambda m, *args: m._draw_codes(*args)
    )
    assert codes.shape == (8, 6)
    assert len(np.unique(np.asarray(codes)[:, 0])) == 8
    networks = {"generator": Generator((8, 8, 1), 4), "discriminator": Discriminator(4)}

    def play(name, params, stats, x):
        result, new = networks[name].apply(
            {"params": params, "batch_stats": stats}, x, True, mutable=["batch_stats"]
        )
        return result, new["batch_stats"]

    def players_losses(g, d):
        fakes, _ = play("generator", g, stats["generator"], codes)
        real, after_real = play("discriminator", d, stats["discriminator"], images)
        fake, after_both = play("discriminator", d, after_real, fakes)
        p_real, p_fake = jax.nn.sigmoid(real), jax.nn.sigmoid(fake)
        judge = -(jnp.log(p_real) + jnp.log(1 - p_fake)).mean()
        return judge, -jnp.log(p_fake).mean(), after_both

    g, d = variables["params"]["generator"], variables["params"]["discriminator"]
    expected = {
        "generator": jax.jit(jax.grad(lambda g, d: players_losses(g, d)[1]))(g, d),
        "discriminator": jax.jit(jax.grad(lambda g, d: players_losses(g, d)[0], 1))(g, d),
    }
    norms = {name: float(optax.tree.norm(tree)) for name, tree in expected.items()}
    assert all(norm > 1e-4 for norm in norms.values())
    for name, tree in expected.items():
        jax.tree.map(
            lambda a, b, n=norms[name]: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * n),
            gradient[name],
            tree,
        )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        new["discriminator"],
        jax.jit(players_losses)(g, d)[2],
    )


@pytest.mark.quick_compilation
@pytest.mark.slow
def test_a_frozen_discriminator_judges_as_it_does_for_itself():
    """BN of its pass for the generator is frozen too."""
    model = DCGAN(code=6, width=4)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(-1, 1, (8, 8, 8, 1)), jnp.float32)
    variables = with_large_kernels(jax.jit(model.init)(jax.random.key(0), images))

    @partial(jax.jit, static_argnums=0)
    def apply(frozen):
        with frozen_batch_norm(lambda name: name == frozen):
            rngs = {"dropout": jax.random.key(1)}
            return model.apply(variables, images, True, rngs=rngs, mutable=["batch_stats"])

    frozen, new = apply("discriminator")
    np.testing.assert_array_equal(frozen["judged"], frozen["fake"])
    before, after = (tree["batch_stats"]["discriminator"] for tree in (variables, new))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    free, new = apply(None)
    np.testing.assert_array_equal(free["judged"], free["fake"])
    assert np.abs(free["fake"] - frozen["fake"]).max() > 0.1
    assert (new["batch_stats"]["discriminator"]["conv2_norm"]["mean"] != 0).all()


def test_precise_moments_of_the_discriminator_are_of_both_kinds_of_images():
    """Those of the maps of real and of generated images, stacked, by NumPy."""
    model = DCGAN(code=6, width=4)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(-1, 1, (8, 8, 8, 1)), jnp.float32)
    variables = with_large_kernels(jax.jit(model.init)(jax.random.key(0), images))

    @jax.jit
    def run(variables):
        seen = []

        def record(call, args, kwargs, context):
            y = call(*args, **kwargs)
            if context.module.path == ("discriminator", "conv2"):
                seen.append(y)
            return y

        with batch_moments(), intercept_calls(record):
            rngs = {"dropout": jax.random.key(1)}
            _, new = model.apply(variables, images, True, rngs=rngs, mutable=["batch_stats"])
        return new["batch_stats"]["discriminator"]["conv2_norm"], seen[:2]

    found, maps = run(variables)
    real, fake = (np.float64(y) for y in maps)
    both = np.concatenate([real, fake])
    np.testing.assert_allclose(found["mean"], both.mean((0, 1, 2)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["var"], both.var((0, 1, 2)), rtol=1e-4)
    # That of one kind alone is another.
    assert np.abs(both.mean((0, 1, 2)) - fake.mean((0, 1, 2))).max() > 0.05


def test_losses_are_those_of_the_paper():
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(2, 7))
    outputs = {
        "real": jnp.float32(real),
        "fake": jnp.float32(fake),
        "judged": jnp.float32(fake),
    }
    losses, values = NonSaturatingLoss()(outputs, Batch(jnp.zeros((7, 8, 8, 1)), jnp.zeros(7)))
    p, q = (1 / (1 + np.exp(-x)) for x in (real, fake))
    np.testing.assert_allclose(values["discriminator_loss"], -np.log(p) - np.log(1 - q), rtol=1e-5)
    np.testing.assert_allclose(values["generator_loss"], -np.log(q), rtol=1e-5)
    np.testing.assert_allclose(losses, -np.log(p) - np.log(1 - q) - np.log(q), rtol=1e-5)
    assert values["real_error"].tolist() == (p <= 0.5).tolist()
    assert values["fake_error"].tolist() == (q > 0.5).tolist()


@pytest.mark.quick_compilation
def test_codes_of_evaluation_belong_to_the_images(digits):
    model, images = DCGAN(code=6, width=4), jnp.asarray(digits.test.images / 127.5 - 1, "float32")
    variables = with_large_kernels(jax.jit(model.init)(jax.random.key(0), images[:1]))
    outputs: Any = jax.jit(model.apply)(variables, images)
    logits = np.asarray(outputs["fake"])
    assert logits.std() > 0.1
    np.testing.assert_array_equal(outputs["judged"], logits)
    part: Any = jax.jit(model.apply)(variables, images[40:20:-1] + 1e-4)
    np.testing.assert_allclose(part["fake"], logits[40:20:-1], rtol=1e-4, atol=1e-5)
    # The sums in NumPy, of whole numbers; only equal images have equal ones.
    pixels = digits.test.images.reshape(len(images), -1)
    places = (np.arange(1, 65) * 0x9E3779B1) % 2**32
    places = (places ^ (places >> 15)) * 0x85EBCA6B % 2**32
    places = (places ^ (places >> 13)) | 1
    numbers = [
        sum(int(p) * int(w) for p, w in zip(row, places, strict=True)) % 2**32 for row in pixels
    ]
    assert np.asarray(hash_images(images)).tolist() == numbers
    assert len(set(numbers)) == len(np.unique(pixels, axis=0))


@pytest.mark.quick_compilation
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_evaluation_is_the_same_on_eight_devices(kind, digits):
    model, loss = DCGAN(code=6, width=4), NonSaturatingLoss()
    state = jc.init_state(model, jc.create_optimizer(ADAM, 4), CONFIG, digits, loss=loss)
    params = with_large_kernels({"params": state.params})["params"]
    state = state._replace(params=params)
    totals = [
        jc.evaluate(model, state, digits.test, loss=loss, strategy=strategy)
        for strategy in (jc.strategy("jit", 1), jc.strategy(kind, 8))
    ]
    one, many = (
        {name: float(x) / int(total.num_examples) for name, x in total.sums.items()}
        for total in totals
    )
    assert abs(one["generator_loss"] - np.log(2)) > 0.05
    assert many == pytest.approx(one, rel=1e-5)


@pytest.mark.quick_compilation
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_a_step_is_the_same_on_eight_devices(kind, digits):
    """Codes and the moments of BN are those of the whole batch."""
    model, tx = DCGAN(code=6, width=4), jc.create_optimizer(ADAM, 4)
    states = []
    for strategy in (jc.strategy("jit", 1), jc.strategy(kind, 8)):
        loss = NonSaturatingLoss()
        *_, (state, row) = jc.train(
            model, tx, digits, CONFIG, loss=loss, strategy=strategy, progress=False
        )
        states.append((state, row))
    (one, row), (many, other) = states
    for name in ("train_discriminator_loss", "train_generator_loss", "eval_generator_loss"):
        assert other[name] == pytest.approx(row[name], rel=1e-4)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(many.params), strict=True):
        # Adam divides by the gradient's size, so rounding of a gradient near 0 can turn a step.
        assert np.mean(np.abs(a - b)) < 2e-5


@pytest.mark.quick_compilation
@pytest.mark.slow
def test_training_stops_and_resumes_to_the_same_bits(digits, tmp_path):
    model, tx, loss = DCGAN(code=6, width=4), jc.create_optimizer(ADAM, 4), NonSaturatingLoss()
    kwargs = {"loss": loss, "strategy": jc.strategy("jit", 1), "progress": False}
    *_, (whole, row) = jc.train(model, tx, digits, CONFIG, **kwargs)
    for state, _ in jc.train(
        model, tx, digits, CONFIG, run_dir=tmp_path, should_stop=lambda step: step >= 3, **kwargs
    ):
        assert state.step <= 3
    *_, (resumed, again) = jc.train(model, tx, digits, CONFIG, run_dir=tmp_path, **kwargs)
    jax.tree.map(np.testing.assert_array_equal, whole.params, resumed.params)
    jax.tree.map(np.testing.assert_array_equal, whole.model_state, resumed.model_state)
    assert row is not None
    assert again is not None
    assert again["train_generator_loss"] == row["train_generator_loss"]


@pytest.fixture(scope="module")
def untrained(digits):
    model = DCGAN(code=6, width=4)
    tx = jc.create_optimizer(ADAM, 4)
    return model, jc.init_state(model, tx, CONFIG, digits, loss=NonSaturatingLoss())


def test_generated_images_are_those_of_the_generator_in_test_mode(untrained):
    model, state = untrained
    codes = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    images = generate(model, state, codes)
    outputs = Generator((8, 8, 1), 4).apply(player_variables(state, "generator"), codes)
    assert images.dtype == np.uint8
    np.testing.assert_allclose(images, np.round((np.asarray(outputs) + 1) * 127.5), atol=1)


def test_variables_generate_as_the_state_that_messages_name(untrained, digits):
    model, state = untrained
    variables = {"params": state.params, **state.model_state}
    codes = jax.random.normal(jax.random.key(0), (2, 6), jnp.bfloat16)
    again = generate(model, as_state(model, variables, normalizer=digits), codes)
    np.testing.assert_array_equal(again, generate(model, state, codes))


def test_mistakes_are_one_line(untrained, digits):
    model, state = untrained
    codes = np.zeros((2, 6), np.float32)
    tx = jc.create_optimizer(jc.OptimizerConfig(), 4)
    mlp: Any = jc.create_model("mlp", 10)
    other = jc.init_state(mlp, tx, jc.TrainConfig(), digits)
    variables = {"params": state.params, **state.model_state}
    calls = [
        (lambda: generate(model, state, codes[:, :5]), r"codes are float32 \(2, 5\); expected"),
        (lambda: generate(model, state, codes[0]), "codes are float32"),
        (lambda: generate(model, state, codes[:0]), "codes are float32"),
        (lambda: generate(model, state, [[0.0] * 6]), "codes are "),
        (lambda: generate(model, state, codes + np.float32(np.nan)), "codes have values that are"),
        (lambda: generate(model, state, jnp.full((2, 6), jnp.inf)), "codes have values that are"),
        (lambda: generate(mlp, state, codes), "model is .*expected a DCGAN"),
        (lambda: generate(model, other, codes), "no 'generator'; expected that of a DCGAN"),
        (lambda: generate(model, None, codes), "no 'generator'"),
        (lambda: player_variables(state, "judge"), "player is 'judge'; expected one of disc"),
        (lambda: player_variables(state, "gen"), "did you mean 'generator'"),
        (lambda: player_variables(variables, "generator"), "dict of variables.*as_state"),
        (lambda: generate(model, variables, codes), "dict of variables.*as_state"),
        (lambda: generate(model, state, jax.random.key(0)), r"codes are key<fry> \(\); expected"),
        (
            lambda: generate(DCGAN(code=6, width=8), state, codes),
            "variables are not of this Generator.*same options",
        ),
        (
            lambda: jc.evaluate(
                model, variables, digits.test, loss=NonSaturatingLoss(), normalizer=digits
            ),
            "not normalized to -1..1.*subtract_mean=PIXEL_RANGE",
        ),
        (
            lambda: next(jc.train(model, tx, digits, jc.TrainConfig(2), loss=NonSaturatingLoss())),
            "not normalized to -1..1.*subtract_mean=PIXEL_RANGE",
        ),
        (
            lambda: jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 6, 8, 1))),
            "images of 6x8 pixels",
        ),
        (
            lambda: Generator((8, 6, 1)).init(jax.random.key(0), codes),
            r"shape \(8, 6, 1\), which it halves twice",
        ),
        (lambda: Generator((8, 8)).init(jax.random.key(0), codes), "shape is"),  # pyright: ignore
        (lambda: Generator((8, 8, 1)).init(jax.random.key(0), codes[0]), "codes are of shape"),
        (
            lambda: NonSaturatingLoss()(
                {"real": jnp.zeros(2)}, Batch(jnp.zeros((2, 8, 8, 1)), jnp.zeros(2))
            ),
            "expected logits .b. called real, fake, judged",
        ),
    ]
    for call, says in calls:
        with pytest.raises(jc.ArgumentError, match=says) as error:
            call()
        assert "\n" not in str(error.value)
