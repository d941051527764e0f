"""`python -m experiments.learning_rate`: each part's numbers against theory, what it leaves behind, mistakes, going on."""

import csv
import itertools
import json

import numpy as np
import pytest
from scripts import refuses

import jaxcnn as jc
from experiments.learning_rate import edge, schedules, sweep, theory
from experiments.learning_rate.__main__ import PARTS, main
from experiments.learning_rate.options import PRESETS, Options
from jaxcnn import runs

pytestmark = pytest.mark.usefixtures("one_device")

TINY = ["--model", "mlp", "--batch-size", "64", "--num-seeds", "1", "--num-validation", "237"]
TINY += ["--sweep.rates", "0.1", "1000", "--sweep.batches", "64", "256", "--sweep.epochs", "1"]
TINY += ["--finder.optimizers", "sgd", "--finder.num-steps", "40"]
TINY += [
    "--schedules.names",
    "constant",
    "cosine",
    "--schedules.rates",
    "0.03",
    "0.1",
    "--schedules.num-steps",
    "8",
]
TINY += [
    "--edge.rates",
    "0.2",
    "--edge.momentum-rates",
    "0.1",
    "--edge.num-steps",
    "6",
    "--edge.eval-every",
    "3",
]
TINY += ["--edge.max-train-examples", "64", "--edge.hidden", "8"]
FIGURES = {
    "theory": ["line", "quadratic", "directions", "limit"],
    "sweep": ["curves", "map"],
    "finder": ["finder"],
    "schedules": ["rates", "curves"],
    "edge": ["edge", "momentum"],
}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    out = tmp_path_factory.mktemp("rates") / "out"
    assert main([*TINY, "--out", str(out)]) == 0
    return out


def table(folder):
    with (folder / "table.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.quick_compilation
@pytest.mark.slow
def test_every_part_leaves_its_table_and_figures(out):
    assert set(FIGURES) == set(PARTS)
    for part, names in FIGURES.items():
        assert table(out / part)
        for name in names:
            assert (out / part / f"{name}.png").read_bytes().startswith(b"\x89PNG"), (part, name)
    assert {line["part"] for line in table(out)} == set(PARTS)


@pytest.mark.slow
def test_measured_limits_are_those_of_theory(out):
    line = np.linalg.eigvalsh(np.array([[5.0, 1.0], [1.0, 1.0]]))[
        -1
    ]  # moments of x = -2 .. 4: mean 1, mean square 5
    problems = itertools.product((line, 20.0), theory.MOMENTA)
    for line, (top, momentum) in zip(table(out / "theory"), problems, strict=True):
        assert float(line["predicted"]) == pytest.approx(2 * (1 + momentum) / top, rel=1e-5)
        assert float(line["measured"]) == pytest.approx(2 * (1 + momentum) / top, rel=0.01)


@pytest.mark.slow
def test_a_rate_beyond_sense_is_a_result(out):
    lines = {(line["batch_size"], line["rate"]): line["too_large"] for line in table(out / "sweep")}
    assert lines == {
        ("64", "0.1"): "-",
        ("64", "1000"): "yes",
        ("256", "0.1"): "-",
        ("256", "1000"): "yes",
    }
    limits = {line["what"]: line["measured"] for line in table(out) if line["part"] == "sweep"}
    assert limits == {
        "largest stable rate, batch 64": "0.1",
        "largest stable rate, batch 256": "0.1",
    }
    assert "diverged at step" in (out / "sweep" / "table.md").read_text()


def run(rate, loss, status="finished"):
    config = jc.override(jc.ExperimentConfig(), dataset="digits", model="mlp", learning_rate=rate)
    return runs.Run(config, {"status": status, "reason": "", "step": 1, "train_loss": loss}, [])


def test_slow_is_not_too_large_and_dead_is():
    all_runs = {
        0.001: run(0.001, 2.31),
        0.1: run(0.1, 0.5),
        1.0: run(1.0, 0.9),
        3.0: run(3.0, 2.29),
    }
    all_runs[10.0] = run(10.0, None, "diverged")
    assert sweep.broken(all_runs, 10) == {3.0, 10.0}
    assert sweep.stable(all_runs, 10) == 1.0
    assert sweep.stable({10.0: all_runs[10.0]}, 10) is None


@pytest.mark.slow
def test_the_finders_numbers_are_the_functions(out):
    found = json.loads((out / "finder" / "sgd.json").read_text())
    config = jc.ExperimentConfig.from_json(json.dumps(found["request"]["config"]))
    again = jc.lr_finder(
        jc.create_model("mlp", 10),
        config.optimizer,
        jc.load_dataset("digits"),
        config.train,
        low=1e-5,
        high=100.0,
        num_steps=40,
    )
    assert found["suggested"] == again.suggested
    assert found["losses"] == pytest.approx(again.losses.tolist())


@pytest.mark.slow
def test_the_chosen_peak_rate_has_the_least_validation_error(out):
    all_runs = runs.finished_runs(out / "schedules")
    for line in table(out / "schedules"):
        mine = {
            run.config.optimizer.learning_rate: run.result
            for run in all_runs
            if run.config.optimizer.schedule == line["schedule"]
        }
        assert len(mine) == 2
        assert float(line["rate"]) == min(
            mine, key=lambda rate: (mine[rate]["eval_error"], mine[rate]["eval_loss"])
        )
        best = mine[float(line["rate"])]
        assert float(line["validation_error"]) == pytest.approx(best["eval_error"], abs=0.005)
        assert float(line["test_error"]) == pytest.approx(best["heldout_error"], abs=0.005)
    assert all(run.config.train.eval_split == "validation" for run in all_runs)


@pytest.mark.slow
def test_heldout_figures_are_the_test_splits(out):
    folder = out / "schedules" / "cosine-rate0.1-seed0"
    config, data = jc.ExperimentConfig.load(folder), jc.load_dataset("digits", validation=237)
    model, tx = runs.model_and_optimizer(config, 10)
    with jc.Checkpoints(folder / "checkpoints") as saved:
        state = saved.restore(jc.init_state(model, tx, config.train, data))
    assert state is not None
    assert (
        jc.read_metrics(folder)[-1]["heldout_error"]
        == jc.evaluate(model, state, data.test).error_percent
    )


def test_a_diverged_rate_is_not_chosen():
    all_runs = [run(0.1, 0.5), run(1.0, None, "diverged")]
    all_runs[0].result.update(eval_error=50.0, eval_loss=1.5)
    all_runs[1].result.update(eval_error=1.0, eval_loss=0.1)
    assert schedules.best(all_runs)[0] == 0.1


@pytest.mark.slow
def test_the_sharpness_of_the_rows_is_the_top_of_the_dense_hessian(out):
    import jax
    from jax.flatten_util import ravel_pytree

    from jaxcnn.augment import normalize

    folder = out / "edge" / "momentum0-rate0.2"
    config = jc.ExperimentConfig.load(folder)
    data = runs.subset_for(config, jc.load_dataset("digits"))
    model, tx = runs.model_and_optimizer(config, 10)
    with jc.Checkpoints(folder / "checkpoints") as saved:
        state = saved.restore(jc.init_state(model, tx, config.train, data))
    assert state is not None
    flat, unravel = ravel_pytree(state.params)
    inputs, targets = (
        normalize(data.train.images, state.normalizer),
        np.eye(10, dtype=np.float32)[data.train.labels],
    )

    def loss(flat):  # the squared loss, written again
        return (
            0.5
            * ((model.apply({"params": unravel(flat)}, inputs, train=True) - targets) ** 2).sum()
            / len(targets)
        )

    top = np.linalg.eigvalsh(np.asarray(jax.hessian(loss)(flat), np.float64))[-1]
    assert jc.read_metrics(folder)[-1]["sharpness"] == pytest.approx(top, rel=1e-3)


@pytest.mark.slow
def test_full_batch_descent_settles_at_the_edge(tmp_path):
    """Cohen et al.'s effect, on a case smaller than the quick one: sharpness at 2 / rate, where it was below at the start."""
    args = [
        "--parts",
        "edge",
        "--edge.rates",
        "0.4",
        "--edge.momentum-rates",
        "0.3",
        "--edge.num-steps",
        "600",
    ]
    assert (
        main(
            [
                *args,
                "--edge.eval-every",
                "60",
                "--edge.max-train-examples",
                "300",
                "--out",
                str(tmp_path),
            ]
        )
        == 0
    )
    for line in table(tmp_path / "edge"):
        assert 0.9 < float(line["ratio"]) < 1.15, line
    options = Options(edge=PRESETS["quick"].edge)
    assert len(edge.configs(options)) == 6
    assert all(
        config.train.batch_size == 1437 and config.loss == "squared"
        for config in edge.configs(options).values()
    )


@pytest.mark.quick_compilation
@pytest.mark.slow
def test_nothing_is_done_twice_and_a_part_by_itself_keeps_the_others(out, monkeypatch):
    def trains(*a, **k):
        pytest.fail("it trained")

    monkeypatch.setattr("jaxcnn.runs.single.train", trains)
    monkeypatch.setattr("jaxcnn.lr_finder", trains)
    before = (out / "table.csv").read_text()
    assert main([*TINY, "--out", str(out)]) == 0
    assert (out / "table.csv").read_text() == before
    assert main([*TINY, "--parts", "schedules", "--out", str(out)]) == 0
    assert (out / "table.csv").read_text() == before
    (out / "edge" / "edge.png").unlink()
    assert main(["--plot-only", "--parts", "edge", "--out", str(out)]) == 0
    assert (out / "edge" / "edge.png").exists()


MISTAKES = [
    (["--parts"], "parts is empty"),
    (["--parts", "teory"], "teory"),
    (["--num-seeds", "0"], "num-seeds is 0"),
    (["--theory.curvatures", "1", "0"], "curvature is 0"),
    (["--sweep.rates"], "sweep.rates is empty"),
    (["--sweep.rates", "nan"], "--sweep.rates is nan; expected a finite number"),
    (["--sweep.rates", "0.1", "0"], "sweep.rates has 0.0"),
    (["--sweep.rates", "-1"], "sweep.rates has -1.0"),
    (["--sweep.rates", "inf"], "--sweep.rates is inf"),
    (["--sweep.batches", "5000"], "--batch-size is 5000, more than the 1437 training images"),
    (["--sweep.batches"], "sweep.batches is empty"),
    (["--optimizer", "adma"], "did you mean 'adam'"),
    (["--finder.optimizers", "momentun"], "did you mean 'momentum'"),
    (["--finder.optimizers"], "finder.optimizers is empty"),
    (["--finder.low", "10", "--finder.high", "1"], "expected 0 < low < high"),
    (["--finder.num-steps", "3"], "finder.num-steps is 3"),
    (["--schedules.names", "cosin"], "did you mean 'cosine'"),
    (["--schedules.names"], "schedules.names is empty"),
    (["--schedules.rates", "0"], "schedules.rates has 0.0"),
    (["--edge.rates", "-0.1"], "edge.rates has -0.1"),
    (["--edge.hidden"], "edge.hidden is empty"),
    (["--edge.momentum", "1.5"], "momentum is 1.5"),
    (["--edge.max-train-examples", "100000"], "cannot keep 100000 training images"),
    (["--model", "convnt"], "convnet"),
    (["--dataset", "mnits"], "did you mean 'mnist'"),
    (["--plot-only", "--out", "/nowhere"], "/nowhere"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("args", "says"), MISTAKES, ids=[" ".join(args) for args, _ in MISTAKES])
def test_mistakes_are_one_line_and_exit_code_two(args, says, tmp_path, capsys, monkeypatch):
    args = args if "--out" in args else [*args, "--out", str(tmp_path / "out")]
    refuses(main, args, says, capsys, monkeypatch)
