"""The table of networks as a user runs it: mistakes, the same images and config for all, numbers where they belong."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_fakes import bare_machine as bare_machine
from data_fakes import fake, register, write_archives
from scripts import refuses

import jaxcnn as jc
from experiments import mnist
from jaxcnn.data import verify_dataset

pytestmark = pytest.mark.usefixtures("one_device")

NAMES = ["perceptron", "mlp-step"]
TINY = [
    "--networks",
    *NAMES,
    "--num-steps",
    "6",
    "--eval-every",
    "3",
    "--batch-size",
    "8",
    "--num-seeds",
    "2",
    "--milestones",
    "4",
]
RECORDS = Path(mnist.__file__).parent / "results"


def table(out):
    with (out / "table.csv").open() as file:
        return {line["network"]: line for line in csv.DictReader(file)}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "mnist"
    assert mnist.main([*TINY, "--out", str(out)]) == 0
    return out


def test_the_study_leaves_table_figure_and_runs(study):
    lines = table(study)
    assert list(lines) == NAMES
    columns = ["network", "params", "macs", "eval_split", "digits_seeds"]
    columns += [
        f"digits_{part}_error{tail}" for part in ("train", "eval") for tail in ("", "_std", "_ci95")
    ]
    assert list(lines["perceptron"]) == [*columns, "digits_seconds"]
    assert {(line["params"], line["macs"]) for line in lines.values()} == {
        ("7850", "7840"),
        ("55050", "54912"),
    }
    assert (study / "curves.png").read_bytes().startswith(b"\x89PNG")
    folders = {path.parent.name for path in study.glob("digits/*/result.json")}
    assert folders == {f"{name}-seed{seed}" for name in NAMES for seed in (0, 1)}
    text = (study / "table.md").read_text()
    for said in (
        "6 steps of 8 images",
        "rate 0.05,",
        "enlarged from 8x8",
        "| perceptron | 7850 | 7840 | test | 2 |",
    ):
        assert said in text


def test_the_tables_numbers_are_those_of_the_last_rows(study):
    for name in NAMES:
        ends = [jc.read_metrics(study / "digits" / f"{name}-seed{seed}")[-1] for seed in (0, 1)]
        finals = [end["eval_error"] for end in ends]
        assert [end["step"] for end in ends] == [6, 6]
        assert float(table(study)[name]["digits_eval_error"]) == pytest.approx(
            np.mean(finals), abs=1e-3
        )
        # Student's t for one degree of freedom is 12.706
        half = 12.7062 * np.std(finals, ddof=1) / 2**0.5
        assert float(table(study)[name]["digits_eval_error_ci95"]) == pytest.approx(half, abs=1e-2)


@pytest.mark.slow
def test_what_is_there_is_not_run_again_and_plot_only_trains_nothing(study, tmp_path, monkeypatch):
    shutil.copytree(study, tmp_path / "out")
    before = (study / "table.csv").read_text()
    monkeypatch.setattr("jaxcnn.runs.single.train", lambda *a, **k: pytest.fail("it trained"))
    for args in (TINY, ["--plot-only"]):
        for name in ("table.csv", "curves.png"):
            (tmp_path / "out" / name).unlink()
        assert mnist.main([*args, "--out", str(tmp_path / "out")]) == 0
        assert (tmp_path / "out" / "table.csv").read_text() == before
        assert (tmp_path / "out" / "curves.png").exists()


@pytest.mark.slow
def test_two_data_sets_share_a_table_and_a_network_may_lack_one(
    study, tmp_path, monkeypatch, bare_machine
):
    """Archives as users have them, of random images; a data set beside another, packed or not."""
    train, test = fake("fashion_mnist")
    write_archives(tmp_path / "data" / "manual" / "fashion_mnist", "fashion_mnist", train, test)
    register(monkeypatch, tmp_path / "data" / "manual" / "fashion_mnist")
    shutil.copytree(study, tmp_path / "out")
    args = [
        *TINY,
        "--networks",
        "perceptron",
        "--num-seeds",
        "1",
        "--datasets",
        "fashion_mnist",
        "--out",
        str(tmp_path / "out"),
    ]
    assert mnist.main([*args, "--data-dir", str(tmp_path / "data")]) == 0
    lines = table(tmp_path / "out")
    assert (
        lines["perceptron"]["digits_eval_error"] == table(study)["perceptron"]["digits_eval_error"]
    )
    end = jc.read_metrics(tmp_path / "out" / "fashion_mnist" / "perceptron-seed0")[-1]
    assert float(lines["perceptron"]["fashion_mnist_eval_error"]) == pytest.approx(
        end["eval_error"], abs=1e-3
    )
    assert (
        lines["perceptron"]["fashion_mnist_seeds"],
        lines["mlp-step"]["fashion_mnist_seeds"],
    ) == ("1", "0")
    assert lines["mlp-step"]["fashion_mnist_eval_error"] == ""
    assert mnist.runs.pack(tmp_path / "out" / "digits", tmp_path / "packed" / "digits") == 4
    assert mnist.main(["--plot-only", "--out", str(tmp_path / "packed")]) == 0
    packed, before = (
        float(table(out)["mlp-step"]["digits_eval_error"]) for out in (tmp_path / "packed", study)
    )
    assert packed == pytest.approx(before, rel=1e-5)  # of 6 digits


def test_data_that_is_not_there_is_said_before_anything_is_trained(
    tmp_path, capsys, monkeypatch, bare_machine
):
    args = [*TINY, "--datasets", "digits", "fashion_mnist", "--out", str(tmp_path / "out")]
    refuses(mnist.main, args, "fashion_mnist", capsys, monkeypatch)
    assert not (tmp_path / "out").exists()


def test_digits_are_enlarged_and_nothing_is_lost():
    small, large = jc.load_dataset("digits"), mnist.images("digits", None)
    for name in ("train", "test"):
        before, after = getattr(small, name).images, getattr(large, name).images
        assert after.shape == (len(before), 28, 28, 1)
        assert after.dtype == np.uint8
        for i, j in np.ndindex(3, 3):
            np.testing.assert_array_equal(after[:, 2 + i : 26 : 3, 2 + j : 26 : 3], before)
        assert after.sum() == 9 * before.sum(dtype=np.int64)
    verify_dataset(large)
    np.testing.assert_allclose(large.mean, large.train.images.mean(0) / 255, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(large.std, large.train.images.std() / 255, rtol=1e-5)


def test_all_networks_have_one_config_but_for_the_rate_of_the_printed_lenet():
    options = mnist.PRESETS["mnist"]
    made = mnist.configs(options, "mnist")
    assert list(made)[:2] == ["perceptron-seed0", "mlp-step-seed0"]  # one seed of everything first
    assert len(made) == 3 * len(mnist.NETWORKS)
    for name, config in made.items():
        assert name == f"{mnist.network(config)}-seed{config.train.seed}"
        assert (config.train.num_steps, config.train.batch_size) == (9380, 128)
        assert config.optimizer.milestones == (5600, 7600)
        assert config.train.augment == jc.AugmentConfig(padding=1)
        assert config.optimizer.learning_rate == (0.005 if config.model == "lenet5-1998" else 0.05)
        jc.create_model(config.model, 10, **config.model_kwargs)


def test_the_committed_result_is_of_these_configs_and_lenet_is_99_percent_right():
    made = mnist.configs(mnist.PRESETS["mnist"], "mnist")
    runs = mnist.groups(RECORDS / "mnist")["mnist"]
    assert set(runs) == set(mnist.NETWORKS)
    for name, group in runs.items():
        assert [run.config for run in group] == [
            made[f"{name}-seed{seed}"] for seed in range(len(group))
        ]
    for name in ("lenet5", "lenet5-relu"):
        assert len(runs[name]) == 3
        assert np.mean([run.result["eval_error"] for run in runs[name]]) <= 1.0


MISTAKES = [
    (["--networks", "lenet6"], "did you mean 'lenet5'?"),
    (["--networks"], "networks is empty; write --networks perceptron mlp-step"),
    (["--datasets"], "datasets is empty; write --datasets digits"),
    (["--datasets", "cifar10"], "cifar10"),
    (
        ["--num-seeds", "0"],
        "--num-seeds is 0; expected a whole number of 1 to 1000. Use --num-seeds 3",
    ),
    (["--lr-1998", "nan"], "--lr-1998 is nan; expected a finite number"),
    (["--batch-size", "5000"], "--batch-size is 5000, more than the 1437 training images"),
    (["--preset", "minst"], "did you mean 'mnist'"),
    (["--plot-only", "--out", "/nowhere"], "/nowhere holds no run of it that is over"),
]


@pytest.mark.parametrize(("args", "says"), MISTAKES, ids=[" ".join(args) for args, _ in MISTAKES])
def test_mistakes_are_one_line_and_exit_code_two(args, says, tmp_path, capsys, monkeypatch):
    args = args if "--out" in args else [*args, "--out", str(tmp_path / "out")]
    refuses(mnist.main, args, says, capsys, monkeypatch)


@pytest.mark.slow
@pytest.mark.real
def test_lenet_learns_mnist(tmp_path):
    """Two epochs of one seed; the whole experiment is `python -m experiments.mnist --preset mnist`."""
    args = [
        "--preset",
        "mnist",
        "--datasets",
        "mnist",
        "--networks",
        "lenet5-relu",
        "--num-seeds",
        "1",
        "--num-steps",
        "938",
    ]
    assert mnist.main([*args, "--milestones", "700", "--out", str(tmp_path)]) == 0
    assert float(table(tmp_path)["lenet5-relu"]["mnist_eval_error"]) < 2
