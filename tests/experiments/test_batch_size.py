"""The batch's script: settings, the two comparisons, what full batch and sorted mean, folders, resuming, mistakes."""

import csv
import json
from typing import Any

import jax
import numpy as np
import pytest
from scripts import refuses

import jaxcnn as jc
from experiments import batch_size
from jaxcnn import runs
from jaxcnn.training import _order_function

pytestmark = [pytest.mark.usefixtures("one_device"), pytest.mark.quick_compilation]

TINY = [
    "--model",
    "mlp",
    "--max-train-examples",
    "64",
    "--batch-size",
    "16",
    "--epochs",
    "2",
    "8",
    "30",
    "--common",
    "2",
    "--num-seeds",
    "2",
]
SETTINGS = ("online", "mini-batch", "full-batch", "mini-batch-sorted", "online-sorted")


@pytest.fixture(scope="module", autouse=True)
def few_rows():
    """Every row is tested and saved, which takes longer than these runs do."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(batch_size, "ROWS", 4)
        patched.setattr(batch_size, "SORTED_ROWS", 2)
        yield


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batch") / "size"
    assert batch_size.main([*TINY, "--out", str(folder)]) == 0
    return folder


def table(out):
    with (out / "table.csv").open() as file:
        return {line["setting"]: line for line in csv.DictReader(file)}


def first(setting):
    """The config of the quick preset's first run of a setting."""
    return batch_size.configs(batch_size.PRESETS["quick"])[f"{setting}-seed0"]


@pytest.mark.slow
def test_it_leaves_tables_figures_and_a_folder_for_every_run(out):
    lines = table(out)
    assert tuple(lines) == SETTINGS
    assert [line["updates_per_epoch"] for line in lines.values()] == ["64", "4", "1", "4", "64"]
    assert [line["order"] for line in lines.values()] == [*["shuffled"] * 3, *["sorted"] * 2]
    assert {line["seeds"] for line in lines.values()} == {"2"}
    memory = [float(lines[name]["memory_mib"]) for name in SETTINGS[:3]]
    assert 0 < memory[0] < memory[1] < memory[2]
    for name in ("curves.png", "sorted.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert "| online | 1 | shuffled | 0.01 | 64 |" in (out / "table.md").read_text()
    for name in SETTINGS:
        for seed in (0, 1):
            assert {"config.json", "metrics.jsonl", "result.json"} <= {
                p.name for p in (out / f"{name}-seed{seed}").iterdir()
            }


@pytest.mark.slow
def test_the_table_holds_what_the_rows_hold(out):
    """Equal epochs: two. Of full batch that is its second update."""
    rows = [jc.read_metrics(out / f"full-batch-seed{seed}") for seed in (0, 1)]
    at = [next(row for row in run if row["step"] == 2) for run in rows]
    line = table(out)["full-batch"]
    for column, key in (
        ("train_loss", "all_loss"),
        ("eval_loss", "eval_loss"),
        ("eval_error", "eval_error"),
    ):
        values = [row[key] for row in at]
        assert float(line[f"{column}_at_epoch"]) == pytest.approx(np.mean(values), rel=5e-3)
        assert float(line[f"{column}_at_epoch_std"]) == pytest.approx(
            np.std(values, ddof=1), rel=5e-3
        )
    jumps = [np.median([row["loss_std"] for row in run[len(run) // 2 :]]) for run in rows]
    assert float(line["loss_std"]) == pytest.approx(np.mean(jumps), rel=5e-3)
    assert table(out)["online-sorted"]["eval_error_at_time"] == ""


@pytest.mark.slow
def test_training_figures_are_of_all_the_images_at_that_step(out):
    folder = out / "mini-batch-seed1"
    config = jc.ExperimentConfig.load(folder)
    data = runs.subset_for(config, jc.load_dataset("digits"))
    model, tx = runs.model_and_optimizer(config, 10)
    with jc.Checkpoints(folder / "checkpoints") as saved:
        state = saved.restore(jc.init_state(model, tx, config.train, data))
    assert state is not None
    sums, row = jc.evaluate(model, state, data.train), jc.read_metrics(folder)[-1]
    assert sums.num_examples == 64
    assert row["all_loss"] == pytest.approx(sums.mean_loss, rel=1e-5)
    assert row["all_error"] == sums.error_percent


@pytest.mark.slow
def test_the_noise_scale_is_written_and_noted(out):
    noise = json.loads((out / "noise.json").read_text())
    assert noise["start"]["trace"] > 0
    assert noise["start"]["scale"] == pytest.approx(
        noise["start"]["trace"] / noise["start"]["squared_norm"]
    )
    assert noise["draws"] >= 100
    assert noise["end"] != noise["start"]
    assert f"{noise['start']['scale']:.3g} at the start" in (out / "table.md").read_text()


@pytest.mark.slow
def test_the_noise_scale_at_the_start_is_that_of_every_images_gradient(out):
    """The covariance of the 64 gradients, which can be had exactly: 8000 draws come within a tenth of it."""
    config = jc.ExperimentConfig.load(out / "mini-batch-seed0")
    data = runs.subset_for(config, jc.load_dataset("digits"))
    model, tx = runs.model_and_optimizer(config, 10)
    state = jc.init_state(model, tx, config.train, data)
    slope = jax.grad(jc.loss_fn(model))
    inputs = data.train.images / np.float32(255) - state.normalizer.mean
    grads = jax.jit(jax.vmap(lambda x, y: slope(state.params, {}, x[None], y[None])))(
        inputs, data.train.labels
    )
    flat = np.concatenate([np.reshape(g, (64, -1)) for g in jax.tree.leaves(grads)], axis=1)
    exact = ((flat - flat.mean(0)) ** 2).sum() / 64 / (flat.mean(0) ** 2).sum()
    found = json.loads((out / "noise.json").read_text())["start"]["scale"]
    assert found == pytest.approx(exact, rel=0.1)


def run(batch_size, order, rows, examples=64):
    config = jc.ExperimentConfig(
        dataset="digits",
        model="mlp",
        max_train_examples=examples,
        train=jc.TrainConfig(num_steps=rows[-1]["step"], batch_size=batch_size, order=order),
    )
    return runs.Run(config, {"status": "finished"}, rows)


def made(paces, every=4, batch=16):
    """Rows every `every` steps that took these seconds a step; the loss is the step's own number."""
    return [
        {"step": every * i, "images_per_second": batch / pace, "loss_std": float(i)}
        | dict.fromkeys(("all_loss", "eval_loss", "eval_error"), float(every * i))
        for i, pace in enumerate(paces, 1)
    ]


def test_a_rows_time_leaves_out_compiling_and_is_the_same_for_all_seeds():
    """The first rows took 9 s a step; of the others the median is 0.2."""
    all_runs = [run(16, "shuffled", made(paces)) for paces in ((9, 0.1, 0.2), (9, 0.2, 5.0))]
    for rows in batch_size.timed(all_runs):
        assert [row["time"] for row in rows] == pytest.approx([0.8, 1.6, 2.4])
        assert [row["epoch"] for row in rows] == [1, 2, 3]


@pytest.mark.parametrize(
    ("epoch", "time", "steps"),
    [(2, 1.6, (8, 8)), (1, 2.39, (4, 8)), (3, 99, (12, 12)), (2.9, 0.8, (8, 4))],
)
def test_equal_epochs_and_equal_time_choose_the_last_row_within_the_limit(epoch, time, steps):
    all_runs = [run(16, "shuffled", made((9, 0.2, 0.2)))] * 2
    line = batch_size.table_row("mini-batch", all_runs, {"epoch": epoch, "time": time}, {"16": 0.5})
    assert (float(line["eval_error_at_epoch"]), float(line["train_loss_at_time"])) == steps
    assert line["memory_mib"] == 0.5
    assert line["seconds_per_epoch"] == pytest.approx(0.8)  # four updates
    assert line["loss_std"] == 2.5  # of rows 2 and 3


def test_a_sorted_run_has_no_row_at_equal_time():
    line = batch_size.table_row(
        "mini-batch-sorted", [run(16, "sorted", made((9, 1, 1)))], {"epoch": 3, "time": 99}, {}
    )
    assert line["eval_error_at_epoch"] == 12
    assert line["eval_error_at_time"] is line["seconds_per_epoch"] is line["memory_mib"] is None


def test_settings_differ_in_batch_order_rate_and_epochs_alone():
    configs = [first(name) for name in SETTINGS]
    assert [config.train.batch_size for config in configs] == [1, 32, 1280, 32, 1]
    same: dict[str, Any] = {"batch_size": 1, "order": "sorted", "learning_rate": 0.5}
    same |= {"num_steps": 10, "eval_every": 1}
    assert len({jc.override(config, **same).to_json() for config in configs}) == 1
    assert configs[0].train.augment == jc.AugmentConfig()
    optimizer = configs[0].optimizer
    assert (optimizer.name, optimizer.weight_decay, optimizer.schedule) == ("sgd", 0.0, "constant")


@pytest.mark.parametrize("preset", list(batch_size.PRESETS))
def test_every_setting_has_a_row_at_the_common_epoch_and_enough_of_them(preset, monkeypatch):
    monkeypatch.setattr(batch_size, "ROWS", 60)
    monkeypatch.setattr(batch_size, "SORTED_ROWS", 10)
    options = batch_size.PRESETS[preset]
    for config in batch_size.configs(options).values():
        assert config.train.eval_every is not None
        common = options.common * options.max_train_examples // config.train.batch_size
        assert common % config.train.eval_every == 0
        assert 40 <= config.train.num_steps / config.train.eval_every <= 120


@pytest.mark.slow
def test_full_batch_is_gradient_descent_on_all_the_images(out):
    """One step of `train` against jax.grad of the mean loss over all 64 images, written out anew."""
    config = jc.ExperimentConfig.load(out / "full-batch-seed0")
    config = jc.override(config, num_steps=1, eval_every=1)
    data = runs.subset_for(config, jc.load_dataset("digits"))
    model, tx = runs.model_and_optimizer(config, 10)
    begun = jc.init_state(model, tx, config.train, data)
    ((state, _),) = jc.train(model, tx, data, config.train, strategy=jc.strategy(devices=1))
    inputs = data.train.images / np.float32(255) - data.mean

    def loss(params):
        logits = model.apply({"params": params}, inputs)
        return -jax.nn.log_softmax(logits)[np.arange(64), data.train.labels].mean()

    by_hand = jax.tree.map(
        lambda p, g: p - np.float32(config.optimizer.learning_rate) * g,
        begun.params,
        jax.grad(loss)(begun.params),
    )
    for mine, theirs, before in zip(
        *map(jax.tree.leaves, (by_hand, state.params, begun.params)), strict=True
    ):
        assert np.abs(mine - theirs).max() < 1e-6
        assert np.abs(mine - before).max() > 1e-4


@pytest.mark.slow
def test_sorted_feeds_one_class_after_another_and_shuffled_does_not(out):
    data = runs.subset_for(
        jc.ExperimentConfig.load(out / "online-seed0"), jc.load_dataset("digits")
    )
    key = jax.random.PRNGKey(0)
    for name in ("online", "mini-batch"):
        config = jc.ExperimentConfig.load(out / f"{name}-sorted-seed0").train
        num_steps = 64 // config.batch_size
        fed = data.train.labels[_order_function(config, data)(key, 0, num_steps)].ravel()
        assert fed.tolist() == sorted(data.train.labels.tolist())
        shuffled = jc.override(config, order="shuffled")
        fed = data.train.labels[_order_function(shuffled, data)(key, 0, num_steps)].ravel()
        assert (np.diff(fed) < 0).sum() > 10


@pytest.mark.slow
def test_runs_that_are_over_are_not_run_again_and_plot_only_trains_nothing(out, monkeypatch):
    monkeypatch.setattr("jaxcnn.runs.single.train", lambda *a, **k: pytest.fail("it trained"))
    monkeypatch.setattr("jaxcnn.noise_scale", lambda *a, **k: pytest.fail("it measured"))
    before = (out / "table.csv").read_text()
    made = ("table.csv", "table.md", "curves.png", "sorted.png")
    for args in (TINY, ["--plot-only"]):
        for name in made:
            (out / name).unlink()
        assert batch_size.main([*args, "--out", str(out)]) == 0
        assert (out / "table.csv").read_text() == before
        assert all((out / name).exists() for name in made)


@pytest.mark.slow
def test_it_goes_on_where_it_was_stopped(out, tmp_path, monkeypatch, capsys):
    """Stopped in the middle of the first run; its rows are those of one that never stopped."""
    asked = iter(range(10_000))
    with monkeypatch.context() as patched:
        patched.setattr("jaxcnn.cli.GracefulShutdown.__call__", lambda self: next(asked) > 40)
        assert (
            batch_size.main([*TINY, "--out", str(tmp_path)]) == 0
        )  # no signal came, so 128 + nothing
    assert "resumes from here" in capsys.readouterr().err
    assert not (tmp_path / "online-seed0" / "result.json").exists()
    assert not (tmp_path / "table.md").exists()
    assert batch_size.main([*TINY, "--num-seeds", "1", "--out", str(tmp_path)]) == 0
    bare = [
        [
            {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")}
            for row in jc.read_metrics(f / "online-seed0")
        ]
        for f in (tmp_path, out)
    ]
    assert bare[0] == bare[1]


MISTAKES = [
    (["--num-seeds", "0"], "--num-seeds is 0; expected a whole number of 1 to 1000"),
    (["--common", "0"], "common is 0; expected"),
    (["--rates", "nan", "0.1", "0.2"], "--rates is nan; expected a finite number"),
    (["--rates", "0.1", "0", "0.2"], "learning_rate is 0"),
    (["--rates", "0.1", "0.1", "-2"], "learning_rate is -2"),
    (["--rates", "inf", "0.1", "0.2"], "--rates is inf"),
    (["--rates", "0.1"], "rates"),
    (["--dataset", "digitz"], "digits"),
    (["--model", "convnett"], "model is 'convnett'"),
    (["--preset", "mnits"], "did you mean 'mnist'"),
    (["--batch-size", "1"], "--batch-size is 1; expected a whole number of at least 2"),
    (
        ["--batch-size", "50"],
        "--max-train-examples is 1280; expected a multiple of --batch-size, "
        "and not --batch-size itself: write --max-train-examples 1250",
    ),
    (
        ["--batch-size", "1280"],
        "--max-train-examples is 1280; expected a multiple of --batch-size, "
        "and not --batch-size itself: write --batch-size 640",
    ),
    (["--max-train-examples", "12800"], "cannot keep 12800 training images"),
    (
        ["--epochs", "10", "60", "9"],
        "epochs is 10 60 9, less than the common 10: write --epochs 10 60 10",
    ),
    (["--epochs", "0", "60", "600"], "epochs is 0 60 600"),
    (["--out", "/proc/nothing"], "cannot write in /proc/nothing"),
    (["--plot-only", "--out", "/nowhere"], "/nowhere holds no finished run"),
    (["--ratse", "1"], "--rates"),
]


@pytest.mark.parametrize(("args", "says"), MISTAKES, ids=[" ".join(args) for args, _ in MISTAKES])
def test_mistakes_are_one_line_and_exit_code_two(args, says, tmp_path, capsys, monkeypatch):
    refuses(batch_size.main, ["--out", str(tmp_path / "out"), *args], says, capsys, monkeypatch)


@pytest.mark.slow
def test_a_diverged_run_is_noted_and_left_out_of_the_table(out, tmp_path):
    args = [*TINY[:-1], "1", "--rates", "0.01", "0.1", "1e9", "--out", str(tmp_path)]
    assert batch_size.main(args) == 0
    assert "full-batch" not in table(tmp_path)
    assert "mlp seed 0 diverged at step" in (tmp_path / "table.md").read_text()
