"""`python -m experiments.signal_propagation`: its files, its numbers against the library, divergence, mistakes."""

import csv

import numpy as np
import pytest
from scripts import refuses

import jaxcnn as jc
from experiments import depth
from experiments.signal_propagation import end, measure, no_batch_norm, path, start
from experiments.signal_propagation.__main__ import PARTS, main
from jaxcnn import runs
from jaxcnn.interpret.signal_propagation import gradient_norms, response_std
from jaxcnn.run_log import write_text

pytestmark = [pytest.mark.usefixtures("one_device"), pytest.mark.quick_compilation]

FEW = [
    "--images",
    "32",
    "--start-depths",
    "8",
    "--width",
    "4",
    "--trial-steps",
    "2",
    "--keep-every",
    "2",
]
FIGURES = {
    "start": ["std", "gradient", "rank"],
    "end": ["std", "gradient", "rank"],
    "path": ["gradient"],
}


@pytest.fixture(scope="module")
def all_runs(tmp_path_factory):
    """What the depth study leaves: a tiny network."""
    out = tmp_path_factory.mktemp("runs") / "depth"
    args = [
        "--depths",
        "8",
        "--families",
        "residual",
        "--num-seeds",
        "1",
        "--width",
        "4",
        "--num-steps",
        "4",
        "--batch-size",
        "32",
        "--milestones",
        "3",
    ]
    assert depth.main([*args, "--eval-every", "2", "--keep-every", "2", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def out(all_runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("signals") / "out"
    # Neither rate suits: at the first every loss is infinite, at the second nothing is learned in
    # four steps.
    assert main([*FEW, "--rates", "1e30", "0.001", "--runs", str(all_runs), "--out", str(out)]) == 0
    return out


def table(folder):
    with (folder / "table.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_every_part_leaves_its_table_lines_and_figures(out):
    assert set(FIGURES) == set(PARTS)
    for part, names in FIGURES.items():
        assert table(out / part)
        for name in names:
            assert (out / part / f"{name}.png").read_bytes().startswith(b"\x89PNG"), (part, name)
    names = [(line["network"], line["bn"]) for line in table(out / "start")]
    assert names == [("plain-8", "no"), ("plain-8", "yes"), ("ResNet-8", "no"), ("ResNet-8", "yes")]
    assert [(line["network"], line["bn"]) for line in table(out / "end")] == names[2:]


@pytest.mark.slow
def test_numbers_are_those_of_the_library(all_runs, out):
    run = runs.load_trained_model(all_runs / "resnet8-seed0")
    images, labels = run.data.train.images[:32], run.data.train.labels[:32]
    rows = end.last_rows(measure.read_all(out / "end")["resnet8-seed0"][1])
    std = response_std(run.model, run.last, images, train=True)
    norms = gradient_norms(run.model, run.last, images, labels)
    assert [row["layer"] for row in rows] == [name for name in std if name != "head"]
    assert [row["std"] for row in rows] == pytest.approx(
        [std[row["layer"]] for row in rows], rel=1e-5
    )
    assert [row["gradient"] for row in rows] == pytest.approx(
        [norms[row["layer"]] for row in rows], rel=1e-4
    )
    (line,) = (
        line for line in table(out / "end") if (line["network"], line["bn"]) == ("ResNet-8", "yes")
    )
    assert float(line["gradient_first"]) == pytest.approx(norms["stem"], rel=1e-4)
    assert float(line["eval_error"]) == pytest.approx(run.rows[-1]["eval_error"], rel=1e-5)


@pytest.mark.slow
def test_the_path_has_every_state_that_was_kept(out):
    rows = measure.read_all(out / "path")["resnet8-seed0"][1]
    steps, values = path.gradient_table(rows)
    assert steps == [0, 2, 4]
    assert values.shape == (7, 3)
    assert np.isfinite(values).all()


@pytest.mark.slow
def test_counterparts_differ_in_bn_and_rate_alone(all_runs, out):
    config, other = (
        jc.ExperimentConfig.load(folder / "resnet8-seed0") for folder in (all_runs, out / "without")
    )
    assert no_batch_norm.best_rates(out / "trials") == {"ResNet-8": 0.001}
    assert config.optimizer.learning_rate != other.optimizer.learning_rate
    assert config.model_kwargs != other.model_kwargs
    changes = {
        "learning_rate": other.optimizer.learning_rate,
        "model_kwargs": {**config.model_kwargs, "batch_norm": False},
    }
    assert other == jc.override(config, **changes)


@pytest.mark.slow
def test_runs_that_all_diverge_are_a_result(all_runs, tmp_path):
    args = [
        *FEW,
        "--parts",
        "end",
        "path",
        "--rates",
        "1e30",
        "--runs",
        str(all_runs),
        "--out",
        str(tmp_path),
    ]
    assert main(args) == 0
    diverged = {
        (line["network"], line["bn"]): line["diverged_at"] for line in table(tmp_path / "end")
    }
    assert diverged == {("ResNet-8", "no"): "2", ("ResNet-8", "yes"): ""}
    assert "ResNet-8 without BN diverged at step 2" in (tmp_path / "end" / "table.md").read_text()
    assert (tmp_path / "path" / "gradient.png").exists()


@pytest.mark.slow
def test_nothing_is_done_twice_and_figures_are_drawn_again(all_runs, out, tmp_path, monkeypatch):
    for name in ("gradient_norms", "map_responses"):
        monkeypatch.setattr(measure, name, lambda *a, **k: pytest.fail("it measured"))
    monkeypatch.setattr("jaxcnn.runs.single.train", lambda *a, **k: pytest.fail("it trained"))
    before = (out / "table.csv").read_text()
    (out / "end" / "std.png").unlink()
    assert main([*FEW, "--rates", "1e30", "0.001", "--runs", str(all_runs), "--out", str(out)]) == 0
    assert (out / "end" / "std.png").exists()
    assert (out / "table.csv").read_text() == before
    (tmp_path / "path").mkdir()
    for file in (out / "path").glob("*.jsonl"):
        write_text(tmp_path / "path" / file.name, file.read_text())
    assert main(["--plot-only", "--parts", "path", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "path" / "gradient.png").exists()


def head(residual, depth, norm=True, **more):
    net = {"residual": residual, "depth": depth, "batch_norm": norm, "seed": 0}
    return {"net": net, "diverged": None, "theory": [1.0, 0.1]} | more


def layers(*stds, gradients=(8.0, 2.0)):
    each = enumerate(zip(stds, gradients, strict=True), 1)
    return [
        {"index": i, "step": 0, "std": s, "gradient": g, "rank": 2.0, "similarity": 0.5}
        for i, (s, g) in each
    ]


def test_what_is_said_of_the_paper_follows_the_numbers():
    ends = [
        (head(False, 20), layers(1.0, 2.0)),
        (head(True, 20), layers(1.0, 1.0)),
        (head(True, 56), layers(2.0, 2.0)),
    ]
    smaller, deeper = end.findings(ends)
    assert smaller.endswith(
        "plain 1.500, residual 1.000; smaller in the residual network, as in the paper: yes."
    )
    assert deeper.endswith("(2.000 at depth 56, 1.000 at depth 20): no.")
    assert end.findings([(head(True, 20, norm=False, diverged=3), layers(None, None))]) == [
        "ResNet-20 without BN diverged at step 3."
    ]
    words = start.findings(
        [(head(False, 20), layers(1.0, 1.001)), (head(False, 20, norm=False), layers(0.5, None))]
    )
    assert words[0].endswith("the largest distance from it is 0.001.")
    assert "grows 4-fold, 4.000 a layer" in words[1]
    assert "from 0.5 to no finite number" in words[2]


def test_growth_and_colours_survive_what_is_not_finite():
    assert measure.gradient_growth(
        layers(1.0, 1.0, 1.0, gradients=(8.0, 4.0, 2.0))
    ) == pytest.approx(2)
    assert measure.gradient_growth(layers(1.0, 1.0, gradients=(None, 2.0))) is None
    assert path.color_limits([np.full((2, 2), np.nan)]) == (0.1, 1.0)
    low, high = path.color_limits([np.array([[0.0, 1e-30, 1.0, np.inf]])])
    assert 1e-9 < low < high <= 1


MISTAKES = [
    (["--parts"], "parts is empty"),
    (["--parts", "strat"], "strat"),
    (["--num-seeds", "0"], "num-seeds is 0"),
    (["--images", "1"], "images is 1; expected at least 2"),
    (["--states", "1"], "states is 1; expected at least 2"),
    (["--start-depths"], "start-depths is empty"),
    (["--start-depths", "21"], "depth is 21; expected 6 n + 2"),
    (["--width", "0"], "width is 0"),
    (["--rates"], "rates is empty"),
    (["--rates", "-1"], "learning_rate is -1"),
    (["--trial-steps", "0"], "steps is 0"),
    (["--depths", "26"], "make it: python -m experiments.depth --out"),
    (["--runs", "/nowhere"], "make them: python -m experiments.depth --out /nowhere"),
    (
        ["--preset", "cifar10", "--parts", "end", "--runs", "/nowhere"],
        "python -m experiments.depth --preset paper",
    ),
    (["--dataset", "mnits"], "did you mean 'mnist'"),
    (["--plot-only", "--out", "/nowhere"], "holds no signals; leave out --plot-only"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("args", "says"), MISTAKES, ids=[" ".join(args) for args, _ in MISTAKES])
def test_mistakes_are_one_line_and_exit_code_two(
    args, says, all_runs, tmp_path, capsys, monkeypatch
):
    args = args if "--out" in args else [*args, "--out", str(tmp_path / "out")]
    args = args if "--runs" in args else [*args, "--runs", str(all_runs)]
    refuses(main, args, says, capsys, monkeypatch)


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "plain8.jsonl").write_text("[1]\n")
    with pytest.raises(jc.ArgumentError, match=r"plain8.jsonl holds no signals"):
        measure.read_all(tmp_path)
