"""Mistakes of users who tried the library: each is one line, whose advice works when it is followed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import jaxcnn as jc
from jaxcnn import curvature, runs
from jaxcnn.learning_rate_finder import range_test
from jaxcnn.optim import eval_params
from jaxcnn.optim.transforms import lookahead

CONFIG = jc.TrainConfig(num_steps=4, batch_size=64, eval_every=2)


@pytest.fixture(scope="module")
def data():
    return jc.load_dataset("digits")


def trained(data, tx, **kwargs):
    return list(jc.train(jc.create_model("mlp", 10), tx, data, CONFIG, **kwargs))


def by_head(head, rest):
    labels = lambda params: {name: "head" if name == "head" else "rest" for name in params}  # noqa: E731
    return optax.partition({"head": head, "rest": rest}, labels)


@pytest.mark.slow
@pytest.mark.parametrize(
    "average",
    [lambda: contrib.schedule_free_sgd(0.5), lambda: lookahead(optax.sgd(0.1), 5, 0.5)],
)
def test_averages_of_a_partition_are_evaluated_and_the_rest_is_as_trained(data, average):
    state, _ = trained(data, by_head(average(), optax.sgd(0.1)))[-1]
    evaluated = eval_params(state.opt_state, state.params)
    for name, tree in state.params.items():
        same = jax.tree.map(np.array_equal, tree, evaluated[name])
        assert all(jax.tree.leaves(same)) == (name != "head")


def test_averages_of_two_partitions_are_those_of_each_alone(data):
    one, two = contrib.schedule_free_sgd(0.5), contrib.schedule_free_sgd(0.1)
    params: Any = {"head": jnp.ones(3), "rest": jnp.ones(2)}
    both = by_head(one, two)
    states: Any = both.init(params), one.init(params["head"]), two.init(params["rest"])
    grads = {"head": jnp.arange(3.0), "rest": jnp.arange(2.0)}
    for _ in range(3):
        updates: Any
        updates, both_state = both.update(grads, states[0], params)
        states = (
            both_state,
            *(
                tx.update(grads[name], state, params[name])[1]
                for tx, state, name in zip((one, two), states[1:], params, strict=True)
            ),
        )
        params = optax.apply_updates(params, updates)
    evaluated: Any = eval_params(states[0], params)
    for name, state in zip(params, states[1:], strict=True):
        np.testing.assert_allclose(
            evaluated[name], contrib.schedule_free_eval_params(state, params[name]), rtol=1e-6
        )


def test_lookahead_of_optax_is_one_line_and_the_advice_trains(data):
    with pytest.raises(jc.ArgumentError, match=r"Use jaxcnn\.optim\.transforms\.lookahead"):
        trained(data, optax.lookahead(optax.sgd(0.1), 5, 0.5))
    assert len(trained(data, lookahead(optax.sgd(0.1), 5, 0.5))) == 2


@pytest.mark.parametrize(
    ("resume", "message"),
    [
        (lambda state: state.params, "resume returned .*; expected a State, or None"),
        (lambda: None, "cannot be called with 1 argument; expected a function of 1"),
        (lambda state, step: None, "cannot be called with 1 argument; expected a function of 1"),
    ],
)
def test_a_wrong_resume_is_one_line(data, resume, message):
    with pytest.raises(jc.ArgumentError, match=message) as error:
        trained(data, optax.sgd(0.1), resume=resume)
    assert "\n" not in str(error.value)


def test_a_wrong_pause_is_one_line(data):
    with pytest.raises(
        jc.ArgumentError, match=r"should_stop is .* cannot be called with 1 argument"
    ):
        trained(data, optax.sgd(0.1), should_stop=lambda: True)


def test_numbers_of_images_are_advised_only_where_the_data_have_them(data, tmp_path):
    def message(**fields):
        config = jc.ExperimentConfig(dataset="digits", model="mlp", train=CONFIG, **fields)
        with pytest.raises(ValueError, match=r"expected|but") as error:
            runs.run(config, data, tmp_path)
        return str(error.value)

    assert message(num_validation=300).endswith("write load_dataset(..., validation=300)")
    assert len(jc.load_dataset("digits", validation=300).validation.labels) == 300
    assert message(num_validation=2000).endswith("write num_validation=0")
    assert "an integer in 1..1437" in message(max_train_examples=5000)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "function",
    [
        curvature.sharpness,
        lambda loss, params: jc.eigenvalues(loss, params, key=jax.random.key(0)),
        lambda loss, params: curvature.hessian_vector(loss, params, params),
    ],
)
@pytest.mark.parametrize(
    ("loss", "returns"),
    [
        (lambda w: w * w, r"float32\[3\]"),
        (lambda w: jnp.int32(3), r"int32\[\]"),
        (lambda w: (w * w).sum(keepdims=True), r"float32\[1\]"),
    ],
)
def test_a_loss_of_several_numbers_is_one_line(function, loss, returns):
    with pytest.raises(jc.ArgumentError, match=f"loss returns {returns}; expected one number"):
        function(loss, np.ones(3, "float32"))


@pytest.mark.parametrize("result", [1.0, (1.0,), (1.0, np.ones(2)), [1.0, 2.0]])
def test_a_step_that_returns_no_pair_is_one_line(result):
    step: Any = lambda carry, rate: result  # noqa: E731
    with pytest.raises(jc.ArgumentError, match=r"step returned .* Return \(carry, loss\)"):
        range_test(step, 1.0, low=1e-3, high=10)


def test_a_step_of_one_argument_is_one_line():
    step: Any = lambda carry: (carry, 1.0)  # noqa: E731
    with pytest.raises(jc.ArgumentError, match="cannot be called with 2 arguments"):
        range_test(step, 1.0, low=1e-3, high=10)


@pytest.mark.slow
def test_a_checkpoint_of_another_optimizer_names_the_optimizer(data, tmp_path):
    with jc.Checkpoints(tmp_path) as checkpoints:
        for state, _ in trained(data, optax.sgd(0.1, 0.9)):
            checkpoints.save(state)
        with pytest.raises(jc.CheckpointError, match="is of another optimizer, build that one"):
            trained(data, optax.adam(1e-3), resume=checkpoints.restore)
        with pytest.raises(jc.CheckpointError, match="is of another model, build that one"):
            list(
                jc.train(
                    jc.create_model("mlp", 10, hidden=(5,)),
                    optax.sgd(0.1, 0.9),
                    data,
                    CONFIG,
                    resume=checkpoints.restore,
                )
            )


@pytest.mark.slow
def test_sam_of_optax_trains(data):
    """Its update takes `grad_fn` only, of the extra arguments that a step has."""

    def sam(opaque):
        ascent = optax.chain(contrib.normalize(), optax.sgd(0.05))
        return contrib.sam(optax.sgd(0.1), ascent, sync_period=2, opaque_mode=opaque)

    for opaque in (False, True):
        steps: Any = trained(data, sam(opaque))
        first, last = (rows[1]["train_loss"] for rows in steps)
        assert last < first


@pytest.mark.parametrize("freeze", ["stem", ("stem", 1)])
def test_stages_to_freeze_are_names_in_a_tuple(freeze):
    with pytest.raises(jc.ArgumentError, match=r"write freeze=\('stem',\)"):
        jc.make_train_step(jc.create_model("resnet8", 10), optax.sgd(0.1), freeze=freeze)
