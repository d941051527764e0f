"""Responses, gradients and ranks by layer, against NumPy, Flax's own record, and the theory of signals in deep networks."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import jaxcnn as jc
from experiments.signal_propagation import start
from jaxcnn.augment import normalize
from jaxcnn.evaluation import loss_fn
from jaxcnn.interpret.signal_propagation import (
    effective_rank,
    effective_ranks,
    gradient_norms,
    kernel_norms,
    map_responses,
    response_std,
    responses,
    similarity,
)
from jaxcnn.models.norm import BatchNorm

RNG = np.random.default_rng(0)
DATA = jc.load_dataset("digits")
IMAGES, LABELS = (
    DATA.train.images[:32],
    DATA.train.labels[:32],
)  # of one shape, so that operations are compiled once


def begun(model, seed=0, data=DATA):
    tx = jc.create_optimizer(jc.OptimizerConfig())
    return jc.init_state(model, tx, jc.TrainConfig(seed=seed), data)


def by_svd(matrix):
    values = np.linalg.svd(matrix, compute_uv=False)
    shares = values / values.sum()
    return np.exp(-sum(share * np.log(share) for share in shares if share > 0))


@pytest.mark.parametrize(("n", "d", "rank"), [(7, 40, 7), (40, 7, 7), (30, 30, 3)])
def test_effective_rank_is_that_of_the_singular_values(n, d, rank):
    matrix = (RNG.standard_normal((n, rank)) * 3.0 ** -np.arange(rank)) @ RNG.standard_normal(
        (rank, d)
    )
    assert effective_rank(matrix.astype(np.float32)) == pytest.approx(by_svd(matrix), rel=1e-5)
    assert effective_rank(1e-30 * matrix.reshape(n, -1, 1)) == pytest.approx(
        by_svd(matrix), rel=1e-6
    )


def test_features_that_are_nothing_have_no_rank():
    for bad in (np.zeros((3, 4)), np.array([[1.0, np.nan]]), np.array([[np.inf, 1.0]])):
        assert np.isnan(effective_rank(bad))
    assert np.isnan(similarity(np.array([[0.0, 0.0], [1.0, 0.0]])))


def test_similarity_is_the_mean_cosine_of_pairs():
    x = RNG.standard_normal((5, 2, 3)) + 1
    flat = x.reshape(5, -1)
    pairs = [
        a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        for i, a in enumerate(flat)
        for j, b in enumerate(flat)
        if i != j
    ]
    assert similarity(x) == pytest.approx(np.mean(pairs), rel=1e-9)
    assert similarity(1e-200 * x) == pytest.approx(np.mean(pairs), rel=1e-9)


FIRST = {"stem": "stem_norm", "stage1_block1/conv1": "stage1_block1/norm1"}
FOLLOWS: dict[str, dict[str, str | None]] = {
    "resnet8": {**FIRST, "stage2_block1/conv2": "stage2_block1/norm2"},
    "cifar-preresnet8": {
        **FIRST,
        "stage1_block1/conv1": "stage1_block1/norm2",
        "stage2_block1/conv2": None,
    },
}
"""Layer -> the BN that takes its output as it is."""


@pytest.mark.quick_compilation
@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", list(FOLLOWS))
def test_responses_come_after_bn_where_there_is_one_and_before_all_else(name, train):
    model: Any = jc.create_model(name, 10, width=4)
    state = begun(model)
    inputs, variables = (
        normalize(IMAGES, state.normalizer),
        {"params": state.params, **state.model_state},
    )
    found = responses(model, variables, inputs, train=train)
    _, kept = model.apply(variables, inputs, train=train, capture_intermediates=True, mutable=True)
    record: Any = flatten_dict(kept["intermediates"], sep="/")
    assert next(iter(found)) == "stem"
    assert list(found)[-1] == "head"
    for layer, norm in FOLLOWS[name].items():
        np.testing.assert_array_equal(found[layer], record[f"{norm or layer}/__call__"][0])
    np.testing.assert_array_equal(found["head"], record["head/__call__"][0])


NAMES = [
    "plain8",
    "vgg11-bn-32",
    "lenet5-1998",
    "googlenet-bn",
    "autoencoder",
    "unet",
    "pspnet",
    "deeplabv3plus",
    "alexnet-groups",
    "cifar-resnet8",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_kernel_of_every_network_has_its_response(name):
    model: Any = jc.create_model(name, 10)
    size = {"googlenet-bn": 224, "alexnet-groups": 224, "lenet5-1998": 28}.get(name, 32)
    image = jax.ShapeDtypeStruct((2, size, size, 1 if size == 28 else 3), "float32")
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    found = jax.eval_shape(lambda v, x: responses(model, v, x, train=True), variables, image)
    kernels = {
        "/".join(path[:-1]) for path in flatten_dict(variables["params"]) if path[-1] == "kernel"
    }
    assert set(found) == kernels


class Again(nn.Module):
    """One layer used twice, and BN of a sum, which is nobody's."""

    @nn.compact
    def __call__(self, x, train=False):
        dense = nn.Dense(64, name="dense")
        y = dense(dense(x.reshape(len(x), -1)))
        return BatchNorm(name="norm")(y + 1, train)


@pytest.mark.quick_compilation
@pytest.mark.slow
def test_a_layer_used_twice_has_two_responses_and_the_norm_of_a_sum_is_not_its_own():
    state = begun(Again())
    kernel = state.params["dense"]["kernel"]
    x = normalize(DATA.train.images[:3], state.normalizer)
    found = responses(Again(), {"params": state.params, **state.model_state}, x)
    once = np.asarray(x).reshape(3, -1) @ kernel
    np.testing.assert_allclose(found["dense"], once, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["dense#2"], once @ kernel, rtol=1e-4, atol=1e-5)


def normed(x, test):
    x = nn.BatchNorm(use_running_average=test, name="norm")(nn.Conv(4, (3, 3), name="conv")(x))
    x = nn.Dropout(0.5, deterministic=test)(nn.relu(x).mean((1, 2)))
    return nn.Dense(10, name="head")(x)


class Train(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return normed(x, not train)


class Training(nn.Module):
    @nn.compact
    def __call__(self, x, training):
        return normed(x, not training)


class IsTraining(nn.Module):
    @nn.compact
    def __call__(self, x, *, is_training):
        return normed(x, not is_training)


class Deterministic(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic=True):
        return normed(x, deterministic)


class Field(nn.Module):
    training: bool = False

    @nn.compact
    def __call__(self, x):
        return normed(x, not self.training)


@pytest.mark.quick_compilation
@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("model", [Training(), IsTraining(), Deterministic(), Field()])
def test_signals_are_the_same_whatever_the_flag_of_training_is_called(model, train):
    state = begun(Train())
    for measure in (response_std, effective_ranks):
        found, expected = (measure(m, state, IMAGES, train=train) for m in (model, Train()))
        assert found == expected
    found, expected = (
        gradient_norms(m, state, IMAGES, LABELS, train=train) for m in (model, Train())
    )
    assert found == expected
    assert list(found) == ["conv", "head"]


@pytest.mark.parametrize("train", [False, True])
def test_a_second_network_of_the_same_shapes_compiles_nothing(train):
    """Operations are compiled for their shapes, not for each call."""
    compiled = []

    def note(event, duration_secs, **kwargs):
        if "backend_compile" in event:
            compiled.append(kwargs)

    first, second = begun(Train(), 0), begun(Train(), 1)

    def measure(state):
        response_std(Train(), state, IMAGES, train=train)
        effective_ranks(Train(), state, IMAGES, train=train)

    measure(first)
    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        measure(second)
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    assert compiled == []


class Jitted(nn.Module):
    """A layer in `nn.jit`, which calls it no second time for the same collections."""

    @nn.compact
    def __call__(self, x):
        x = nn.jit(nn.Dense)(8, name="hidden")(x.reshape(len(x), -1))
        return nn.Dense(10, name="head")(nn.relu(x))


def test_a_layer_in_jit_has_its_responses_in_every_call():
    state = begun(Jitted())
    x = normalize(IMAGES, state.normalizer)
    variables = {"params": state.params}
    expected = x.reshape(len(x), -1) @ state.params["hidden"]["kernel"]
    for factor in (1, 2):
        found = responses(Jitted(), variables, factor * x)
        assert list(found) == ["hidden", "head"]
        np.testing.assert_allclose(found["hidden"], factor * expected, rtol=1e-4, atol=1e-5)


class NoFlag(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10, name="head")(nn.relu(nn.Conv(4, (3, 3), name="conv")(x)).mean((1, 2)))


class OtherStream(nn.Module):
    """Noise from a stream of its own in training."""

    @nn.compact
    def __call__(self, x, train=False):
        x = x.reshape(len(x), -1)
        if train:
            x = x + jax.random.normal(self.make_rng("noise"), x.shape)
        return nn.Dense(10, name="head")(x)


class Noisy(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dropout(0.5, deterministic=False)(x.reshape(len(x), -1))
        return nn.Dense(10, name="head")(x)


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True])
def test_a_model_without_a_flag_has_the_signals_of_its_own_record(train):
    state = begun(NoFlag())
    x = normalize(IMAGES, state.normalizer)
    record: Any = NoFlag().apply({"params": state.params}, x, capture_intermediates=True)[1]
    found = map_responses(np.asarray, NoFlag(), state, IMAGES, train=train)
    for name in ("conv", "head"):
        expected = record["intermediates"][name]["__call__"][0]
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6)
    std = response_std(NoFlag(), state, IMAGES, train=train)
    assert std == pytest.approx({name: y.std(dtype=np.float64) for name, y in found.items()})
    assert list(gradient_norms(NoFlag(), state, IMAGES, LABELS, train=train)) == list(std)


def test_any_stream_of_random_numbers_is_given_in_training_and_none_in_test_mode():
    state = begun(OtherStream())
    plain, noisy = (response_std(OtherStream(), state, IMAGES, train=t) for t in (False, True))
    assert noisy["head"] > plain["head"]
    with pytest.raises(jc.ArgumentError, match="Noisy draws random numbers in test mode"):
        response_std(Noisy(), state, IMAGES)


class OwnKernel(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3))(x)).mean((1, 2))
        return x @ self.param("kernel", nn.initializers.lecun_normal(), (4, 10))


def test_a_kernel_of_the_model_itself_has_the_name_of_its_class():
    model = OwnKernel()
    state = begun(model)
    names = ["Conv_0", "OwnKernel"]
    assert list(response_std(model, state, IMAGES)) == names
    norms = gradient_norms(model, state, IMAGES, LABELS)
    assert list(norms) == names
    assert set(kernel_norms(state.params, model)) == set(names)
    assert set(kernel_norms(state.params)) == {"Conv_0", ""}
    # The gradient of softmax regression on the features before the kernel.
    x = normalize(IMAGES, state.normalizer)
    conv = nn.Conv(4, (3, 3)).apply({"params": state.params["Conv_0"]}, x)
    features = np.maximum(np.asarray(conv, np.float64), 0).mean((1, 2))
    exp = np.exp(features @ np.asarray(state.params["kernel"], np.float64))
    gradient = features.T @ (exp / exp.sum(1, keepdims=True) - np.eye(10)[LABELS]) / len(x)
    assert norms["OwnKernel"] == pytest.approx(np.linalg.norm(gradient), rel=1e-4)
    kernel = np.asarray(state.params["kernel"], np.float64)
    found = kernel_norms(state.params, model)["OwnKernel"]
    assert found == pytest.approx(np.linalg.norm(kernel), rel=1e-6)


@pytest.mark.parametrize("lift", [nn.remat, nn.jit])
def test_a_lifted_model_keeps_the_gradient_of_its_own_kernel(lift):
    state, lifted = begun(OwnKernel()), lift(OwnKernel)()
    expected = list(gradient_norms(OwnKernel(), state, IMAGES, LABELS).values())
    found = gradient_norms(lifted, state, IMAGES, LABELS)
    assert list(found.values()) == pytest.approx(expected, rel=1e-5)
    assert set(found) == set(kernel_norms(state.params, lifted))


@pytest.mark.parametrize("batch", [0, -1, 2.5, True, "all"])
def test_a_wrong_batch_is_refused(batch):
    state = begun(NoFlag())
    with pytest.raises(jc.ArgumentError, match=r"at least 1\. Write batch_size=500\.$"):
        response_std(NoFlag(), state, IMAGES, batch_size=batch)


def test_a_measure_that_is_no_function_is_refused():
    measure: Any = "std"
    with pytest.raises(jc.ArgumentError, match=r"measure is 'std'; .* Write measure=np.std\.$"):
        map_responses(measure, NoFlag(), begun(NoFlag()), IMAGES)


@pytest.mark.slow
def test_std_is_of_the_whole_response_whatever_the_batch():
    model = jc.create_model("convnet", 10, width=4)
    state = begun(model)
    whole = map_responses(lambda y: y.astype(np.float64).std(), model, state, IMAGES)
    for batch in (32, 12):
        assert response_std(model, state, IMAGES, batch_size=batch) == pytest.approx(
            whole, rel=1e-5
        )


@pytest.mark.slow
def test_bn_makes_every_response_of_std_one_before_training():
    for name in ("plain20", "resnet20"):
        model = jc.create_model(name, 10, width=4)
        std = response_std(model, begun(model), IMAGES, train=True)
        del std["head"]
        assert list(std.values()) == pytest.approx([1.0] * 19, abs=2e-3)


def test_gradient_of_softmax_regression_is_the_formula():
    model = jc.create_model("perceptron", 10)
    state = begun(model)
    x = np.asarray(normalize(IMAGES, state.normalizer)).reshape(32, -1)
    expected = regression(x, x @ state.params["head"]["kernel"])
    for train in (True, False):
        assert gradient_norms(model, state, IMAGES, LABELS, train=train) == pytest.approx(
            {"head": expected}, rel=1e-5
        )


def regression(x, logits):
    """The norm of the gradient of softmax regression's kernel."""
    shares = np.exp(np.float64(logits))
    shares /= shares.sum(1, keepdims=True)
    return np.linalg.norm(x.T @ (shares - np.eye(10)[LABELS]) / len(x))


@pytest.mark.quick_compilation
@pytest.mark.slow
def test_gradients_are_of_the_loss_trained_on_and_mode_is_obeyed():
    model: Any = jc.create_model("resnet8", 10, width=4)
    state = begun(model)
    inputs = normalize(IMAGES, state.normalizer)
    variables = {"params": state.params, **state.model_state}
    reference = jax.jit(jax.grad(loss_fn(model)))(state.params, state.model_state, inputs, LABELS)
    found = gradient_norms(model, state, IMAGES, LABELS)
    assert found == pytest.approx(kernel_norms(reference), rel=1e-3)
    assert list(found) == list(responses(model, variables, inputs))
    logits, stages = model.apply(variables, inputs, train=False, stages=True)
    expected = regression(np.asarray(stages["pool"]), np.asarray(logits))
    found = gradient_norms(model, state, IMAGES, LABELS, train=False)
    assert found["head"] == pytest.approx(expected, rel=1e-4)


def test_wrong_labels_and_losses_are_refused():
    model = jc.create_model("perceptron", 10)
    state, (images, labels) = begun(model), DATA.train[:2]
    with pytest.raises(jc.DataError, match="labels"):
        gradient_norms(model, state, images[:4], labels[:3])
    with pytest.raises(jc.ArgumentError, match="did you mean 'squared'"):
        gradient_norms(model, state, images[:4], labels[:4], loss="square")
    with pytest.raises(jc.DataError, match="uint8"):
        response_std(model, state, images[:4] / np.float32(255))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain14", "resnet14"])
def test_without_bn_mean_squares_are_those_of_theory(name):
    """The mean over seeds, within four of its standard errors, which are below a fifth: zeros make it fall, shortcuts grow."""
    model, images, seeds = jc.create_model(name, 10, width=24, batch_norm=False), IMAGES[:4], 16
    states = [begun(model, seed) for seed in range(seeds)]
    runs = [map_responses(lambda y: np.square(y).mean(), model, state, images) for state in states]
    squares = np.array([[value for layer, value in run.items() if layer != "head"] for run in runs])
    expected = start.mean_squares(
        np.asarray(normalize(images, states[0].normalizer)), 14, name == "resnet14", 4000
    )
    mean, error = squares.mean(0), squares.std(0, ddof=1) / np.sqrt(seeds)
    assert (error < 0.2 * mean).all()
    assert (np.abs(mean - expected) < 4 * error + 0.01 * expected).all(), (
        mean / expected,
        error / mean,
    )
    if name == "resnet14":
        assert expected[4] > 2 * expected[2]
    else:
        assert expected[-1] < 0.1 * expected[0]


class Wide(nn.Module):
    """Dense layers with BN and ReLU, as wide as theory wants."""

    depth: int = 20
    num_classes: int = 10

    @nn.compact
    def __call__(self, x, train=False):
        x = x.reshape(len(x), -1)
        for layer in range(self.depth):
            x = nn.relu(
                BatchNorm(name=f"norm{layer}")(nn.Dense(256, name=f"dense{layer}")(x), train)
            )
        return nn.Dense(self.num_classes, name="head")(x)


@pytest.mark.slow
def test_with_bn_gradients_grow_from_layer_to_layer_as_in_theory():
    """Yang et al. 2019 (arXiv:1902.08129): by the root of pi / (pi - 1), towards the first layer."""
    images = RNG.integers(0, 256, (256, 8, 8, 1), dtype=np.uint8)
    norms = list(
        gradient_norms(
            Wide(), begun(Wide()), images, RNG.integers(0, 10, 256).astype(np.int32)
        ).values()
    )
    assert (norms[4] / norms[18]) ** (1 / 14) == pytest.approx(start.GROWTH, rel=0.02)


@pytest.mark.slow
def test_ranks_collapse_without_bn_and_not_with_it():
    """Daneshmand et al. 2020 (arXiv:2003.01652), at depth 56."""
    with_bn, without = (
        jc.create_model("plain56", 10, width=4, batch_norm=norm) for norm in (True, False)
    )
    kept = list(effective_ranks(with_bn, begun(with_bn), IMAGES, train=True).values())[-2]
    lost = list(effective_ranks(without, begun(without), IMAGES, train=True).values())[-2]
    assert lost < 5 < 12 < kept, (lost, kept)
