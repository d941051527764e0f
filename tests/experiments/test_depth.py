"""The script as a user runs it: mistakes, presets, tables and the effect itself."""

import csv
from pathlib import Path

import numpy as np
import pytest
from scripts import on_one_device, refuses

import jaxcnn as jc
from experiments import depth
from jaxcnn import runs

ROOT = Path(depth.__file__).parent.parent
TINY = ["--depths", "8", "32", "--width", "4", "--num-steps", "120", "--eval-every", "60"]
TINY += ["--batch-size", "64", "--num-seeds", "2"]
COLUMNS = (
    "family,depth,params,seeds,eval_split,train_error,train_error_std,train_error_ci95,"
    "eval_error,eval_error_std,eval_error_ci95,seconds,paper_test_error"
)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A case smaller than the quick preset; on one device, for which 32 layers compile in a third of the time."""
    out = tmp_path_factory.mktemp("study") / "depth"
    with on_one_device():
        assert depth.main([*TINY, "--out", str(out)]) == 0
    return out


def table(out):
    with (out / "table.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_the_study_leaves_table_figure_and_runs(study):
    assert (study / "table.csv").read_text().splitlines()[0] == COLUMNS
    lines = table(study)
    assert [(line["family"], line["depth"], line["seeds"]) for line in lines] == [
        (family, depth, "2") for family in ("plain", "residual") for depth in ("8", "32")
    ]
    assert lines[0]["params"] == str(
        jc.count_parameters(jc.create_model("plain8", 10, width=4), (8, 8, 1))
    )
    assert (study / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "| plain | 8 |" in (study / "table.md").read_text()
    assert "| plain | 8 | 32 | 2 |" in (study / "depth_effect.md").read_text()
    for name in ("plain8-seed0", "plain32-seed1", "resnet8-seed0", "resnet32-seed1"):
        assert {"config.json", "env.json", "metrics.jsonl", "result.json"} <= {
            p.name for p in (study / name).iterdir()
        }


@pytest.mark.slow
def test_the_tables_numbers_are_those_of_the_last_rows(study):
    finals = [jc.read_metrics(study / f"resnet32-seed{seed}")[-1]["eval_error"] for seed in (0, 1)]
    (line,) = [
        line for line in table(study) if (line["family"], line["depth"]) == ("residual", "32")
    ]
    assert float(line["eval_error"]) == pytest.approx(np.mean(finals), abs=0.005)
    assert float(line["eval_error_std"]) == pytest.approx(np.std(finals, ddof=1), abs=0.005)
    # Student's t for one degree of freedom is 12.706
    assert float(line["eval_error_ci95"]) == pytest.approx(
        12.7062 * np.std(finals, ddof=1) / 2**0.5, abs=0.005
    )


@pytest.mark.slow
def test_finished_runs_are_not_run_again_and_plot_only_trains_nothing(study, monkeypatch):
    def trains(*a, **k):
        pytest.fail("it trained")

    monkeypatch.setattr("jaxcnn.runs.single.train", trains)
    before = (study / "table.csv").read_text()
    for name in ("table.csv", "table.md", "curves.png"):
        (study / name).unlink()
    assert depth.main([*TINY, "--out", str(study)]) == 0
    assert (study / "table.csv").read_text() == before
    (study / "curves.png").unlink()
    assert depth.main(["--plot-only", "--out", str(study)]) == 0
    assert (study / "curves.png").exists()


def finished(model, seed, train_error, eval_error, status="finished"):
    config = jc.override(jc.ExperimentConfig(), model=model, seed=seed)
    result = {"train_error": train_error, "eval_error": eval_error}
    result |= {"status": status, "step": 7, "reason": "train_loss is nan"}
    return runs.Run(config, result, [])


def test_the_effect_of_depth_is_over_pairs_of_the_same_seed():
    plain = [
        finished("cifar-plain20", 0, 4.0, 10.0),
        finished("cifar-plain56", 0, 9.0, 13.0),
        finished("cifar-plain20", 1, 5.0, 11.0),
        finished("cifar-plain56", 1, 8.0, 15.0),
        finished("cifar-plain32", 1, 50.0, 50.0),  # neither the deepest nor the shallowest
        finished("cifar-plain20", 2, 50.0, 50.0),  # without a partner
        finished("cifar-plain20", 3, 50.0, 50.0),
        finished("cifar-plain56", 3, 50.0, 50.0, status="diverged"),
    ]
    residual = [finished("cifar-resnet20", 0, 3.0, 9.0), finished("cifar-resnet56", 0, 1.0, 8.0)]
    first, second = depth.depth_effect([*residual, *plain])
    assert [first[key] for key in ("family", "shallow", "deep", "seeds")] == ["plain", 20, 56, 2]
    # Differences 5 and 3, and 3 and 4. Student's t for one degree of freedom is 12.7062.
    assert first["train_error"] == pytest.approx(4.0)
    assert first["train_error_std"] == pytest.approx(2**0.5)
    assert first["train_error_ci95"] == pytest.approx(12.7062, abs=1e-4)
    assert first["eval_error"] == pytest.approx(3.5)
    assert first["eval_error_ci95"] == pytest.approx(12.7062 / 2, abs=1e-4)
    assert (second["family"], second["seeds"]) == ("residual", 1)
    assert (second["train_error"], second["eval_error"]) == (-2.0, -1.0)
    assert second["eval_error_ci95"] is None


def test_one_depth_has_no_effect():
    assert depth.depth_effect([finished("cifar-plain20", 0, 4.0, 10.0)]) == []


def test_a_figure_that_is_not_finite_gives_no_mean_effect():
    pair = [finished("cifar-plain20", 0, None, 10.0), finished("cifar-plain56", 0, 9.0, 13.0)]
    (line,) = depth.depth_effect(pair)
    assert (line["train_error"], line["eval_error"]) == (None, 3.0)


def test_the_quarter_preset_is_the_paper_but_for_its_length_and_precision():
    quarter, paper = (depth.configs(depth.PRESETS[name]) for name in ("quarter", "paper"))
    assert list(quarter) == [
        f"{name}{layers}-seed{seed}"
        for seed in range(3)
        for layers in (20, 56)
        for name in ("plain", "resnet")
    ]
    for name, config in quarter.items():
        full = paper[name]
        assert (config.train.num_steps, full.train.num_steps) == (16_000, 64_000)
        assert config.optimizer.milestones == (8_000, 12_000)
        full = jc.override(full, num_steps=16_000, milestones=(8_000, 12_000), eval_every=1_000)
        assert config == jc.override(
            full, model_kwargs=dict(full.model_kwargs) | {"dtype": "bfloat16"}
        )


MISTAKES = [
    (
        ["--depths", "21"],
        "--depths is 21; expected 6 n + 2 for whole n >= 1: write --depths 20 26",
    ),
    (["--depths"], "depths is empty"),
    (["--learning-rate", "nan"], "--learning-rate is nan; expected a finite number"),
    (["--num-steps", "-5"], "--num-steps is -5; expected a whole number of 1 to 100000000"),
    (["--dataset", "cifar11"], "cifar10"),
    (
        ["--milestones", "50", "20"],
        "--milestones is 50 20; expected increasing steps from 1 up: write --milestones 150 225",
    ),
    (
        ["--eval-split", "validation"],
        "--eval-split is 'validation' but none is held out: write --num-validation 100 as well",
    ),
    (["--num-seeds", "0"], "num-seeds is 0"),
    (["--width", "0"], "width is 0"),
    (["--batch-size", "5000"], "--batch-size is 5000, more than the 1437 training images"),
    (["--batch-size", "100"], "8 devices cannot share equally; write --batch-size 96 or 104"),
    (
        ["--coordinator", "10.0.0.1:9876", "--num-processes", "2"],
        "--process-id is not given, but the job has several hosts: write --process-id 0",
    ),
    (
        ["--coordinator", "10.0.0.1", "--num-processes", "2", "--process-id", "0"],
        "expected HOST:PORT: write --coordinator 10.0.0.1:9876",
    ),
    (["--optimizer", "adma"], "optimizer is 'adma'"),
    (["--families", "plane"], "plane"),
    (["--dpeths", "20"], "--depths"),
    (["--preset", "papr"], "did you mean 'paper'"),
    (["--out", "/proc/nothing"], "cannot write in /proc/nothing"),
    (["--plot-only", "--out", "/nowhere"], "/nowhere holds no finished run"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("args", "says"), MISTAKES, ids=[" ".join(args) for args, _ in MISTAKES])
def test_mistakes_are_one_line_and_exit_code_two(args, says, tmp_path, capsys, monkeypatch):
    args = args if "--out" in args else [*args, "--out", str(tmp_path / "out")]
    refuses(depth.main, args, says, capsys, monkeypatch)


@pytest.mark.slow
def test_a_folder_of_another_config_is_refused(study, capsys):
    with pytest.raises(SystemExit) as exit:
        depth.main([*TINY, "--learning-rate", "0.2", "--out", str(study)])
    assert exit.value.code == 2
    # The first line is of the milestones, before the folder is read.
    milestones, error = capsys.readouterr().err.splitlines()
    assert milestones.startswith("120 steps: the learning rate falls at 60 90")
    assert error.startswith("error: ")
    assert "holds a run of another config: learning_rate (0.05 there, 0.2 here)" in error


def test_presets_are_the_papers_numbers():
    options = depth.PRESETS["paper"]
    config = next(iter(depth.configs(options).values()))
    default = jc.ExperimentConfig()
    assert config.dataset == "cifar10"
    assert (config.train.num_steps, config.train.batch_size) == (64_000, 128)
    assert config.optimizer.milestones == (32_000, 48_000)
    assert config.optimizer == default.optimizer
    for name in ("subtract_mean", "divide_std"):
        assert getattr(config.train, name) == getattr(default.train, name), name
    # which the default config leaves out
    assert config.train.augment == jc.AugmentConfig(padding=4, flip=True)
    assert config.model_kwargs == {
        "width": 16,
        "bn_group": 64,
        "kernel_init": "he",
        "dtype": "float32",
    }


def test_warm_up_is_for_the_110_layer_residual_network_alone():
    options = depth.Options(depths=(56, 110), num_seeds=1)
    rates = {name: config.optimizer.warmup_lr for name, config in depth.configs(options).items()}
    assert rates == {
        "plain56-seed0": None,
        "resnet56-seed0": None,
        "plain110-seed0": None,
        "resnet110-seed0": 0.01,
    }


def test_one_seed_of_everything_comes_first():
    names = list(depth.configs(depth.Options()))
    assert names[:4] == ["plain20-seed0", "resnet20-seed0", "plain56-seed0", "resnet56-seed0"]
    assert len(names) == 8


@pytest.mark.slow
def test_depth_hurts_the_plain_network_and_not_the_residual_one(study):
    error = {(line["family"], line["depth"]): float(line["train_error"]) for line in table(study)}
    assert error["plain", "32"] > error["plain", "8"] + 20
    assert error["plain", "32"] > error["residual", "32"] + 20


@pytest.mark.slow
@pytest.mark.real
def test_cifar10_trains(tmp_path):
    args = [
        "--preset",
        "paper",
        "--depths",
        "8",
        "--num-seeds",
        "1",
        "--num-steps",
        "40",
        "--eval-every",
        "40",
        "--width",
        "4",
    ]
    with on_one_device():
        assert depth.main([*args, "--families", "residual", "--out", str(tmp_path)]) == 0
    line = table(tmp_path)[0]
    assert float(line["train_error"]) < 85
    assert line["paper_test_error"] == ""
