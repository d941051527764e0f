"""The range test against quadratics, whose limit is known, and on a network against runs at a constant rate."""

import math
import os

import flax.linen as nn
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import jaxcnn as jc
from jaxcnn import learning_rate_finder as module
from jaxcnn.learning_rate_finder import range_test, read


def descent(curvatures, momentum=0.0):
    """(step, start) of gradient descent on 1/2 sum c w^2, in float64."""
    c = np.asarray(curvatures, np.float64)

    def step(carry, rate):
        w, v = carry
        v = momentum * v + c * w
        return (w - rate * v, v), 0.5 * c @ (w * w)

    return step, (np.ones(len(c)), np.zeros(len(c)))


SPECTRA = {
    "one": [8.0],
    "two": [1.0, 8.0],
    "wide": [0.03, 0.3, 3.0, 30.0],
    "dense": np.geomspace(1e-3, 50, 200),
}


@pytest.mark.parametrize("window", [1, 5])
@pytest.mark.parametrize(
    ("momentum", "steps"), [(m, n) for m in (0.0, 0.5, 0.9) for n in (50, 100, 300) if n > 60 * m]
)
@pytest.mark.parametrize("name", SPECTRA)
def test_on_quadratics_the_limit_is_within_two_of_the_truth(name, momentum, steps, window):
    step, start = descent(SPECTRA[name], momentum)
    found = range_test(step, start, low=1e-5, high=37.0, num_steps=steps, window=window)
    truth = 2 * (1 + momentum) / max(SPECTRA[name])
    assert found.limit is not None
    assert found.suggested is not None
    assert found.diverged is not None
    assert truth / 2 < found.limit < truth * 2
    assert found.suggested < truth
    assert found.diverged > truth
    assert found.rates[-1] == found.diverged  # it stops there
    assert len(found.rates) == len(found.losses) == len(found.smooth)


@pytest.mark.parametrize("name", SPECTRA)
def test_the_pace_of_the_divergence_gives_the_curvature(name):
    """On a quadratic without momentum it is nearly exact, however late the divergence shows."""
    step, start = descent(SPECTRA[name])
    found = range_test(step, start, low=1e-5, high=37.0, num_steps=100)
    assert found.limit == pytest.approx(2 / max(SPECTRA[name]), rel=0.15)


def test_a_loss_that_only_falls_has_no_limit():
    found = range_test(lambda t, rate: (t + 1, 1 / (1 + t)), 0, low=1e-3, high=1.0, num_steps=30)
    assert (found.limit, found.diverged) == (None, None)
    assert found.suggested is not None
    assert len(found.rates) == 30
    np.testing.assert_allclose(found.rates, np.geomspace(1e-3, 1.0, 30))


def test_a_loss_that_only_rises_suggests_nothing():
    assert (
        range_test(
            lambda t, rate: (t + 1, 1 + t / 100), 0, low=1e-3, high=1.0, num_steps=30
        ).suggested
        is None
    )


def test_the_suggestion_is_where_the_loss_falls_most():
    rates = np.geomspace(1e-4, 1, 81)
    losses = 2 - 1 / (1 + (1e-2 / rates) ** 2)  # steepest in log rate at 0.01
    found = read(rates, losses)
    assert found.suggested == pytest.approx(1e-2, rel=0.1)
    np.testing.assert_allclose(
        found.smooth[2:-2], np.convolve(losses, np.ones(5) / 5, "valid"), rtol=1e-12
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_no_number_ends_the_test(bad):
    found = range_test(
        lambda t, rate: (t + 1, 2 - 0.1 * t if t < 12 else bad), 0, low=1e-3, high=1.0, num_steps=30
    )
    assert len(found.losses) == 13
    assert found.diverged == found.rates[12]
    assert found.limit == found.rates[11]


def test_what_falls_above_the_ceiling_suggests_nothing():
    rates = np.geomspace(1e-4, 1, 81)
    sure_and_wrong = 2 / (1 + (rates / 3e-4) ** 2)  # steepest at 3e-4
    losses = 2.3 - 1 / (1 + (1e-2 / rates) ** 2) + sure_and_wrong
    assert read(rates, losses).suggested == pytest.approx(3e-4, rel=0.2)
    assert read(rates, losses, ceiling=2.3).suggested == pytest.approx(1e-2, rel=0.2)


@pytest.mark.parametrize(
    ("losses", "ceiling", "diverged"),
    [
        ([3.0, 2.9], 2.3, None),  # falls, but not below guessing
        ([3.0] * 40, 2.3, None),
        ([2.3] * 40, math.inf, None),
        ([0.0] * 40, math.inf, None),
        ([2.0] * 20 + [2.2] * 20, math.inf, None),  # never below its first
        ([2.3, 9.4], 2.3, 1),  # too high: the first step loses all
        ([2.3, 2.4, 1e30], 2.3, 2),
        ([2.3, math.inf], math.inf, 1),
        ([math.nan], 2.3, 0),
        ([math.nan] * 9, 2.3, 0),
        ([math.inf, 1.0, 0.5], math.inf, 0),
    ],
)
def test_a_range_in_which_nothing_is_learnt_has_no_limit_and_no_suggestion(
    losses, ceiling, diverged
):
    rates = np.geomspace(1e-3, 1e-2, len(losses))
    found = read(rates, losses, ceiling=ceiling)
    assert (found.suggested, found.limit) == (None, None)
    assert found.diverged == (None if diverged is None else rates[diverged])
    np.testing.assert_array_equal(found.losses, losses)
    assert len(found.smooth) == len(losses)


def test_a_divergence_within_the_first_window_is_seen():
    """The loss in question is no part of what it is compared with: [1, 1, 17] has a mean of 6.3."""
    for steps in range(1, 6):
        losses = [1.0] * steps + [4.1]
        assert read(np.geomspace(1e-3, 1, len(losses)), losses).diverged == 1.0
        assert read(np.geomspace(1e-3, 1, len(losses)), [*losses[:-1], 3.9]).diverged is None


CURVES = st.lists(
    st.one_of(st.floats(0, 10), st.floats(), st.sampled_from([0.0, 2.3, 1e308, -1.0, 5e-324])),
    min_size=1,
    max_size=60,
)


def first_blown(losses, window):
    for i, loss in enumerate(losses):
        first = [before / min(i, window) for before in losses[: min(i, window)]]
        if not math.isfinite(loss) or (sum(first) > 0 and loss / 4 > sum(first)):
            return i
    return None


@settings(max_examples=int(os.environ.get("JAXCNN_CASES", 0)) or 300, deadline=None)
@given(
    CURVES,
    st.integers(1, 9),
    st.one_of(st.just(math.inf), st.floats(0, 5), st.floats(allow_nan=False)),
)
@example([math.nan], 5, 2.3)
@example([3.0, 2.9], 5, 2.3)
@example([1.0, 0.0, 0.0], 2, -math.inf)
def test_any_curve_is_read_and_what_it_gives_lies_within_the_range(losses, window, ceiling):
    rates = np.geomspace(1e-5, 10, len(losses) + 1)[: len(losses)]
    found = read(rates, losses, window, ceiling)
    end = first_blown(losses, window)
    assert found.diverged == (None if end is None else rates[end])
    stop = len(losses) if end is None else end
    assert np.isfinite(found.smooth[:stop]).all()
    for rate in (found.suggested, found.limit):
        assert rate is None or 0 < rate <= rates[stop - 1] * (1 + 1e-9)
    if found.suggested is not None:
        assert rates[0] <= found.suggested * (1 + 1e-9)
    learnt = [loss for loss in found.smooth[:stop] if loss < min(found.smooth[0], ceiling)]
    if not learnt:
        assert (found.suggested, found.limit) == (None, None)


@pytest.mark.parametrize(
    ("rates", "losses", "more"),
    [
        ([], [], {}),
        ([1.0], [1.0, 2.0], {}),
        ([1.0, 1.0], [1.0, 2.0], {}),
        ([2.0, 1.0], [1.0, 2.0], {}),
        ([0.0, 1.0], [1.0, 2.0], {}),
        ([1.0, math.nan], [1.0, 2.0], {}),
        ([[1.0, 2.0]], [[1.0, 2.0]], {}),
        (None, None, {}),
        (["a"], ["b"], {}),
        ([1.0, [2.0]], [1.0, 2.0], {}),
        ([1.0, 2.0], [1.0, 2.0], {"window": 0}),
        ([1.0, 2.0], [1.0, 2.0], {"window": 2.5}),
        ([1.0, 2.0], [1.0, 2.0], {"ceiling": math.nan}),
        ([1.0, 2.0], [1.0, 2.0], {"ceiling": "2.3"}),
    ],
)
def test_what_cannot_be_read_is_one_line(rates, losses, more):
    with pytest.raises(jc.ArgumentError) as error:
        read(rates, losses, **more)
    assert "\n" not in str(error.value)


OPTIMIZER = jc.OptimizerConfig("sgd", weight_decay=0.0)
CONFIG = jc.TrainConfig(batch_size=64)


@pytest.fixture(scope="module")
def data():
    return jc.load_dataset("digits")


@pytest.mark.quick_compilation
def test_an_average_of_the_parameters_changes_nothing(data):
    model = jc.create_model("mlp", 10)
    plain, averaged = (
        jc.lr_finder(model, jc.override(OPTIMIZER, ema_decay=decay), data, CONFIG, num_steps=20)
        for decay in (0.0, 0.9)
    )
    np.testing.assert_array_equal(averaged.losses, plain.losses)
    assert averaged.suggested == plain.suggested


@pytest.mark.slow
def test_a_network_trains_at_the_suggested_rate_and_not_far_above_the_limit(data):
    model = jc.create_model("mlp", 10)
    found = jc.lr_finder(model, OPTIMIZER, data, CONFIG, num_steps=100)
    assert found.suggested
    assert found.limit
    assert found.diverged
    assert found.suggested < found.limit < found.diverged

    def ends(rate):
        config = jc.override(CONFIG, num_steps=60, eval_every=60)
        tx = jc.create_optimizer(
            jc.override(OPTIMIZER, learning_rate=rate, schedule="constant", milestones=())
        )
        return [row["train_loss"] for _, row in jc.train(model, tx, data, config) if row][-1]

    assert ends(found.suggested) < 1.0
    assert ends(4 * found.limit) > 2.3  # worse than guessing


def test_a_range_far_too_high_for_a_network_diverges_and_has_no_limit(data):
    found = jc.lr_finder(
        jc.create_model("mlp", 10), OPTIMIZER, data, CONFIG, low=1e5, high=1e9, num_steps=10
    )
    assert (found.suggested, found.limit) == (None, None)
    assert found.diverged is not None


class Broken(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(10)(x.reshape(len(x), -1)) * np.float32(np.nan)


class Deaf(nn.Module):
    """Gives the same logits whatever it sees or learns."""

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(10)(x.reshape(len(x), -1)) * np.float32(0)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "diverged"), [(Broken(), 1e-5), (Deaf(), None)])
def test_a_network_without_a_loss_or_without_a_slope_has_no_limit(data, model, diverged):
    found = jc.lr_finder(model, OPTIMIZER, data, CONFIG, num_steps=10)
    assert (found.suggested, found.limit, found.diverged) == (None, None, diverged)


@pytest.mark.slow
def test_it_is_compiled_once_and_repeats_itself(data, monkeypatch):
    traces = []
    make = module.make_train_step

    def counted(*a, **k):
        step = make(*a, **k)
        return lambda *arrays: traces.append(1) or step(*arrays)

    monkeypatch.setattr(module, "make_train_step", counted)
    one = jc.lr_finder(
        jc.create_model("mlp", 10),
        OPTIMIZER,
        data,
        CONFIG,
        num_steps=20,
        strategy=jc.strategy(devices=1),
    )
    assert len(traces) == 1
    again = jc.lr_finder(
        jc.create_model("mlp", 10),
        OPTIMIZER,
        data,
        CONFIG,
        num_steps=20,
        strategy=jc.strategy(devices=1),
    )
    np.testing.assert_array_equal(one.losses, again.losses)


def test_its_first_loss_is_that_of_the_first_batch(data):
    config = jc.override(CONFIG, num_steps=1, eval_every=1)
    tx = jc.create_optimizer(
        jc.override(OPTIMIZER, learning_rate=1e-5, schedule="constant", milestones=())
    )
    model = jc.create_model("mlp", 10)
    (row,) = [row for _, row in jc.train(model, tx, data, config) if row]
    assert jc.lr_finder(model, OPTIMIZER, data, CONFIG, num_steps=10).losses[0] == pytest.approx(
        row["train_loss"], rel=1e-6
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"low": 0}, "rates go from 0 to 10.0; expected 0 < low < high"),
        ({"low": -1}, "expected 0 < low < high"),
        ({"low": float("nan")}, "expected 0 < low < high"),
        ({"high": float("inf")}, "expected 0 < low < high"),
        ({"low": 2.0, "high": 1.0}, "expected 0 < low < high"),
        ({"low": "a"}, "expected 0 < low < high"),
        ({"high": None}, "expected 0 < low < high"),
        ({"low": 1.0, "high": 1.0 + 1e-15}, "are not told apart"),
        ({"num_steps": 9}, "num_steps is 9; expected a whole number of at least 10"),
        ({"num_steps": 20.0}, "num_steps is 20.0"),
    ],
)
def test_mistakes_are_one_line(data, change, says):
    with pytest.raises(jc.ArgumentError) as error:
        jc.lr_finder(jc.create_model("mlp", 10), OPTIMIZER, data, CONFIG, **change)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
