"""Records say what ran, also where that is not what the config names, and a folder holds one run alone."""

import json
import os
import subprocess
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcnn as jc
from jaxcnn import provenance, runs

CONFIG = jc.override(
    jc.ExperimentConfig(),
    dataset="digits",
    model="mlp",
    model_kwargs={"hidden": [4]},
    batch_size=64,
    num_steps=1,
    eval_every=1,
)


class Net(nn.Module):
    """A user's own, with the kinds of fields that they have."""

    features: int = 4
    activation: Any = nn.relu
    scales: Any = (1.0,)

    @nn.compact
    def __call__(self, x, train=False):
        x = self.activation(nn.Dense(self.features)(x.reshape(len(x), -1)))
        return nn.Dense(10)(x * self.scales[0])


@pytest.fixture(scope="module")
def data():
    return jc.load_dataset("digits")


def trained(folder, model, tx, data, config=CONFIG, log_config=None, pieces=None):
    """What the README's loop does."""
    log = jc.RunLog(folder, log_config or config, **pieces or {})
    row: Any
    for _, row in jc.train(model, tx, data, config.train, strategy=jc.strategy("jit", devices=1)):
        log.write(**row)
    return log


def read(folder, name):
    return json.loads((folder / name).read_text())


@pytest.fixture(scope="module")
def own(tmp_path_factory, data):
    """The folder of a run of an own model and an own optimizer, with a config that names neither."""
    folder = tmp_path_factory.mktemp("own")
    trained(
        folder,
        Net(),
        optax.adam(0.01),
        data,
        config=jc.override(CONFIG, model="resnet20", model_kwargs={}),
    )
    return folder


@pytest.mark.slow
def test_an_own_model_and_optimizer_are_recorded_and_the_configs_are_not(own):
    config, run = read(own, "config.json"), read(own, "run.json")
    assert config["model"] == run["model"]["class"] == f"{__name__}.Net"
    assert config["model_kwargs"]["features"] == 4
    assert config["optimizer"].keys() == {"name"}
    assert config["optimizer"]["name"].startswith("scale_by_adam(b1=0.9, b2=0.999")
    assert config["optimizer"]["name"].endswith("scale(step_size=-0.01)")
    assert {"name": "scale", "step_size": -0.01} in run["optimizer"]["parts"]
    for name in ("config.json", "run.json"):
        assert "resnet20" not in (own / name).read_text()
        assert "momentum" not in (own / name).read_text()
    assert (
        jc.ExperimentConfig.load(own).dataset == "digits"
    )  # still a config, for those who read what else was set
    assert set(read(own, "run.json")["arrays"]) == {"params", "optimizer"}


def test_the_same_pieces_go_on_in_their_folder(own, data):
    before = [(own / name).read_bytes() for name in ("config.json", "run.json")]
    log = trained(
        own,
        Net(),
        optax.adam(0.01),
        data,
        config=jc.override(CONFIG, model="resnet20", model_kwargs={}),
    )
    assert len(log.rows()) == 1
    assert before == [(own / name).read_bytes() for name in ("config.json", "run.json")]


NET = f"{__name__}.Net"


@pytest.mark.parametrize(
    ("model", "tx", "says"),
    [
        (Net(), optax.adam(0.02), ["scale(step_size=-0.01) there", "scale(step_size=-0.02) here"]),
        (
            Net(),
            optax.adam(0.01, b1=0.8),
            ["scale_by_adam(b1=0.9) there", "scale_by_adam(b1=0.8) here"],
        ),
        (
            Net(),
            optax.sgd(0.01),
            ["scale_by_adam(b1=0.9", "there and identity() + scale(step_size=-0.01) here"],
        ),
        (
            Net(features=5),
            optax.adam(0.01),
            [f"{NET}(features=4) there", f"{NET}(features=5) here"],
        ),
        (Net(activation=nn.tanh), optax.adam(0.01), ["relu) there", "tanh) here"]),
        (
            jc.create_model("mlp", 10),
            optax.adam(0.01),
            [f"{NET}(features=4", "jaxcnn.models.mlp.MLP(num_classes=10"],
        ),
        (
            Net(),
            jc.create_optimizer(CONFIG.optimizer, CONFIG.train.num_steps),
            ["scale_by_adam(b1=0.9", "momentum(learning_rate=0.1) here"],
        ),
    ],
)
@pytest.mark.parametrize("at", ["start", "row"])
def test_another_model_optimizer_or_rate_is_refused_with_both_values(
    own, data, model, tx, says, at
):
    config = jc.override(CONFIG, model="resnet20", model_kwargs={})
    rows = (own / "metrics.jsonl").read_bytes()
    row = {"step": 1, "seconds": float(np.random.default_rng().random()), "train_loss": 0.0}
    provenance.cache_run_facts(
        row, provenance.run_facts(model, tx, config.train, data, {}, ())
    )  # as `train` does
    pieces = {"model": model, "tx": tx} if at == "start" else {}
    with pytest.raises(jc.ArgumentError, match="holds another run") as error:
        jc.RunLog(own, config, **pieces).write(**row)
    for words in says:
        assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000
    assert (own / "metrics.jsonl").read_bytes() == rows


@pytest.mark.slow
def test_an_own_optimizer_is_refused_by_the_loop_as_it_is_written(own, data):
    with pytest.raises(
        jc.ArgumentError, match=r"scale\(step_size=-0.01\) there and scale\(step_size=-0.5\) here"
    ):
        trained(
            own,
            Net(),
            optax.adam(0.5),
            data,
            config=jc.override(CONFIG, model="resnet20", model_kwargs={}),
        )


@pytest.mark.slow
def test_the_configs_own_pieces_are_recorded_as_its_own(tmp_path, data):
    model, tx = runs.model_and_optimizer(CONFIG, 10)
    trained(tmp_path, model, tx, data, pieces={"model": model, "tx": tx, "data": data})
    assert jc.ExperimentConfig.load(tmp_path) == CONFIG
    run = read(tmp_path, "run.json")
    assert (run["model"], run["optimizer"], run["arrays"]) == (None, None, None)
    with pytest.raises(jc.ArgumentError, match=rf"model is mlp\(hidden=\[4\]\) there and {NET}"):
        jc.RunLog(tmp_path, CONFIG, model=Net())
    other = jc.create_optimizer(
        jc.override(CONFIG, learning_rate=0.5).optimizer
    )  # of the same name, with another rate
    with pytest.raises(
        jc.ArgumentError,
        match=r"optimizer is momentum\(learning_rate=0.1\) there and momentum\(learning_rate=0.5\) here;",
    ):
        jc.RunLog(tmp_path, CONFIG, tx=other)
    facts: Any = provenance.model_facts(jc.create_model("mlp", 10, hidden=[5]))
    assert facts["fields"]["hidden"] == [5]


def test_a_row_of_another_config_than_the_logs_is_refused(tmp_path, data):
    model, tx = runs.model_and_optimizer(CONFIG, 10)
    with pytest.raises(
        jc.ArgumentError, match=r"the row is of another config .*num_steps \(7 there, 1 trained\)"
    ):
        trained(tmp_path, model, tx, data, log_config=jc.override(CONFIG, num_steps=7))
    assert jc.read_metrics(tmp_path) == []


@pytest.mark.slow
def test_rows_of_two_runs_at_once_are_told_apart(tmp_path, data):
    all_runs = {"a": optax.sgd(0.1), "b": optax.sgd(0.2)}
    strategy = jc.strategy("jit", devices=1)
    fits = [jc.train(Net(), tx, data, CONFIG.train, strategy=strategy) for tx in all_runs.values()]
    row: Any
    for name, (_, row) in zip(all_runs, [next(fit) for fit in fits], strict=True):
        jc.RunLog(tmp_path / name, CONFIG).write(**row)
    for name, rate in (("a", -0.1), ("b", -0.2)):
        assert {"name": "scale", "step_size": rate} in read(tmp_path / name, "run.json")[
            "optimizer"
        ]["parts"]


RATE = 0.25


@pytest.mark.parametrize(
    ("tx", "words"),
    [
        (
            optax.sgd(0.1, momentum=0.9),
            ["trace(accumulator_dtype=None, decay=0.9", "scale(step_size=-0.1)"],
        ),
        (optax.sgd(optax.cosine_decay_schedule(0.3, 100)), ["decay_steps=100", "init_value=0.3"]),
        (optax.sgd(lambda step: RATE * 0.5**step), ["constants=[0.5]", "RATE=0.25"]),
        (optax.inject_hyperparams(optax.sgd)(0.3), ['"learning_rate": 0.3']),
        (optax.MultiSteps(optax.sgd(0.3), 4), ["every_k_schedule=4", "scale(step_size=-0.3)"]),
        (
            optax.partition({"a": optax.sgd(0.3), "b": optax.adam(0.2)}, {"x": "a"}),
            ["step_size=-0.3", "step_size=-0.2"],
        ),
        (optax.masked(optax.sgd(0.3), {"x": True}), ["scale(step_size=-0.3)"]),
        (
            optax.chain(
                optax.clip(0.7),
                jc.create_optimizer(
                    jc.override(jc.ExperimentConfig(), learning_rate=0.6).optimizer
                ),
            ),
            ["clip(max_delta=0.7)", "lr=0.6"],
        ),
        (optax.contrib.muon(0.02), ["step_size=-0.02"]),
        (optax.lbfgs(0.3), ["memory_size=10", "step_size=-0.3"]),
    ],
)
def test_the_numbers_of_any_optax_transformation_are_read(tx, words):
    facts: Any = provenance.optimizer_facts(tx)
    said = provenance.describe(facts, "optimizer")
    assert all(word in said for word in words), said
    assert json.loads(json.dumps(facts)) == facts  # as a file gives it back
    assert " at 0x" not in said


def test_numbers_that_one_version_alone_has_do_not_count():
    old, new = (
        {"name": "scale_by_adam", "b1": 0.9},
        {"name": "scale_by_adam", "b1": 0.9, "nesterov": False},
    )
    assert (
        provenance.differences({"optimizer": {"parts": [old]}}, {"optimizer": {"parts": [new]}})
        == []
    )
    slow, fast = ({"optimizer": {"parts": [old], "rate": rate}} for rate in (0.1, 0.2))
    assert provenance.differences(slow, fast) == [
        "optimizer is at rate 0.1 there and at rate 0.2 here"
    ]


def test_fields_of_any_kind_become_plain_values_without_addresses():
    class Odd(nn.Module):
        parts: Any = None

    fields = [
        [1, 2],
        {"a": 0.5},
        np.arange(3),
        jax.random.key(0),
        jnp.float32(0.25),
        np.float32(2),
        object(),
        nn.Dense(3),
    ]
    fields += [
        lambda x: 3 * x,
        nn.initializers.he_normal(),
        {1, 2},
        float("inf"),
        jnp.bfloat16,
        np.dtype("int8"),
    ]
    model = Odd(parts=fields)
    facts: Any = provenance.model_facts(model)
    text = json.dumps(facts, allow_nan=False)
    assert " at 0x" not in text
    for word in (
        "int64[3] ",
        "key<fry>",
        "0.25",
        '"inf"',
        "constants=[3]",
        "bfloat16",
        "int8",
    ):
        assert word in text, word
    assert "scale=2" in text  # what an initialiser was made with


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("change", ["labels", "image", "test labels", "names"])
def test_other_data_in_the_folder_of_a_run_are_refused(tmp_path, data, change, large, monkeypatch):
    if large:  # so that arrays count as those that are read once and in part
        repeated = jc.Split(
            np.repeat(data.train.images, 16, 0), np.repeat(data.train.labels, 16, 0)
        )
        data = data._replace(train=repeated)
        monkeypatch.setattr(provenance, "MAX_DIGEST_BYTES", 1 << 18)
    jc.RunLog(tmp_path, CONFIG, data=data)
    jc.RunLog(
        tmp_path, CONFIG, data=data._replace(train=jc.Split(*(np.array(a) for a in data.train)))
    )  # equal
    labels, images = data.train.labels.copy(), data.train.images.copy()
    labels[7] = (labels[7] + 1) % 10
    images[0] = 255 - images[0]
    tested = data.test._replace(labels=data.test.labels[::-1].copy())
    other = {
        "labels": data._replace(train=data.train._replace(labels=labels)),
        "image": data._replace(train=data.train._replace(images=images)),
        "test labels": data._replace(test=tested),
        "names": data._replace(classes=data.classes[::-1]),
    }[change]
    digests = provenance.data_digest(data), provenance.data_digest(other)
    with pytest.raises(
        jc.ArgumentError, match=f"images or labels .* {digests[0]} there and {digests[1]} here"
    ) as error:
        jc.RunLog(tmp_path, CONFIG, data=other)
    assert "\n" not in str(error.value)


def test_a_study_refuses_other_labels_before_it_trains(tmp_path, data, monkeypatch):
    strategy = jc.strategy("jit", devices=1)
    runs.run(CONFIG, data, tmp_path / "run", strategy=strategy, should_stop=lambda: True)
    monkeypatch.setattr("jaxcnn.runs.single.train", lambda *a, **k: pytest.fail("it trained"))
    other = data._replace(train=data.train._replace(labels=data.train.labels[::-1].copy()))
    for again in (
        lambda: runs.run(CONFIG, other, tmp_path / "run", strategy=strategy),
        lambda: runs.sweep({"run": CONFIG}, other, tmp_path, strategy=strategy),
    ):
        with pytest.raises(
            jc.ArgumentError, match="holds another run: the data's images or labels"
        ):
            again()


def test_a_packed_run_keeps_what_it_was_made_from(tmp_path, own, data):
    runs.run(CONFIG, data, tmp_path / "out" / "run", strategy=jc.strategy("jit", devices=1))
    log = jc.RunLog(own, jc.override(CONFIG, model="resnet20", model_kwargs={}))
    log.finish(status="finished")
    (tmp_path / "out" / "own").symlink_to(own)
    runs.pack(tmp_path / "out", tmp_path)
    mine, named = map(json.loads, (tmp_path / "runs.jsonl").read_text().splitlines())
    assert named["run"]["data"] == mine["run"]["data"] == provenance.data_digest(data)
    assert mine["config"]["optimizer"].keys() == {"name"}
    assert named["config"]["optimizer"]["learning_rate"] == CONFIG.optimizer.learning_rate
    (own / "result.json").unlink()


SCRIPT = """
import sys
import jaxcnn as jc
try:
    jc.RunLog(sys.argv[1], jc.ExperimentConfig())
except jc.ArgumentError as error:
    print(error)
"""
SETTINGS = [
    ("jax_enable_x64", True, "jax_enable_x64 is False there and True here"),
    (
        "jax_threefry_partitionable",
        False,
        "jax_threefry_partitionable is True there and False here",
    ),
    ("jax_default_prng_impl", "rbg", "jax_default_prng_impl is threefry2x32 there and rbg here"),
    ("jax_random_seed_offset", 3, "jax_random_seed_offset is 0 there and 3 here"),
    (
        "jax_default_matmul_precision",
        "highest",
        "jax_default_matmul_precision is None there and highest here",
    ),
]


@pytest.mark.parametrize(("name", "value", "says"), SETTINGS)
def test_settings_of_jax_that_change_numbers_are_recorded_and_refused(tmp_path, name, value, says):
    jc.RunLog(tmp_path, jc.ExperimentConfig())
    before = read(tmp_path, "run.json")["jax"][name]
    try:
        jax.config.update(name, value)
        with pytest.raises(
            jc.ArgumentError, match=f"holds another run: {says}; write another run_dir"
        ) as error:
            jc.RunLog(tmp_path, jc.ExperimentConfig())
    finally:
        jax.config.update(name, before)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_settings_are_those_of_the_environment_too(tmp_path):
    """In a process of its own, as a user sets them; all that differ are named."""
    jc.RunLog(tmp_path, jc.ExperimentConfig())
    env = os.environ | {"JAX_ENABLE_X64": "1", "JAX_THREEFRY_PARTITIONABLE": "0"}
    said = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"{SETTINGS[0][2]}; {SETTINGS[1][2]}" in said.stdout
    assert said.stdout.count("\n") == 1


def test_the_machine_and_the_commit_are_recorded(tmp_path, monkeypatch):
    jc.RunLog(tmp_path, jc.ExperimentConfig())
    (facts,) = read(tmp_path, "env.json")
    assert facts["cores"] == provenance.cores() >= 1
    assert facts["cpu"] == provenance.processor() != ""
    root = os.path.dirname(os.path.dirname(jc.__file__))
    head = subprocess.run(
        ["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    checkout = os.path.exists(os.path.join(root, ".git")) and head.returncode == 0
    assert (
        facts["commit"].removesuffix("-dirty") == head.stdout.strip()
        if checkout
        else facts["commit"] is None
    )
    monkeypatch.setattr(provenance, "cores", lambda: facts["cores"] + 1)
    jc.RunLog(tmp_path, jc.ExperimentConfig())
    assert [line["cores"] for line in read(tmp_path, "env.json")] == [
        facts["cores"],
        facts["cores"] + 1,
    ]


def test_a_package_outside_a_checkout_has_no_commit(tmp_path, monkeypatch):
    """Also where some other repository surrounds it, as a project does its virtual environment."""
    monkeypatch.setattr(
        provenance, "__file__", str(tmp_path / "site-packages" / "jaxcnn" / "provenance.py")
    )
    (tmp_path / ".git").mkdir()
    assert provenance._commit.__wrapped__() is None
    (tmp_path / "site-packages" / ".git").mkdir(parents=True)  # no repository: git fails
    assert provenance._commit.__wrapped__() is None


@pytest.mark.parametrize(
    "changed",
    [
        {"model": 3},
        {"model": {"class": "a"}},
        {"optimizer": {"parts": [1]}},
        {"optimizer": {"parts": [], "rate": "x"}},
        {"jax": 1},
        {"data": []},
        {"warm_starts": {}},
        {"arrays": "a"},
    ],
)
def test_a_damaged_record_is_one_line_that_names_the_file(tmp_path, changed):
    jc.RunLog(tmp_path, CONFIG)
    (tmp_path / "run.json").write_text(json.dumps(read(tmp_path, "run.json") | changed))
    with pytest.raises(ValueError, match=r"run\.json does not describe a run") as error:
        jc.RunLog(tmp_path, CONFIG)
    assert "\n" not in str(error.value)


def test_fields_of_extreme_values_can_be_read_back(tmp_path):
    model = Net(scales=(1e300, 10**400, "tab\t", float("nan")))
    for _ in range(2):  # what is written is read again
        jc.RunLog(tmp_path, CONFIG, model=model)


def test_a_dictionary_is_no_config_and_says_so(tmp_path):
    wrong: Any = {"learning_rate": 0.1}
    with pytest.raises(
        jc.ArgumentError,
        match=r"config is a dict, \{'learning_rate': 0.1\}; expected an ExperimentConfig. Use jaxcnn.Exp",
    ):
        jc.RunLog(tmp_path / "run", wrong)
    assert not (tmp_path / "run").exists()


def test_optimizers_of_lambdas_are_told_apart():
    def facts(function):
        return provenance.optimizer_facts(optax.stateless(function))

    kinds = [
        lambda updates, params: jax.tree.map(jnp.sign, updates),
        lambda updates, params: jax.tree.map(jnp.tanh, updates),
        lambda updates, params: jax.tree.map(jnp.add, updates, params),
    ]
    assert len({str(facts(function)) for function in kinds}) == len(kinds)
    add, subtract = (lambda u, p: u + p), (lambda u, p: u - p)
    assert facts(add) != facts(subtract)
    assert facts(add) == facts(lambda u, p: u + p)
