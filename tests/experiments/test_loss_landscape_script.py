"""`python -m experiments.loss_landscape`: against `evaluate` and a dense Hessian, mistakes, stopping and resuming."""

import csv
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scripts import refuses

import jaxcnn as jc
from experiments.loss_landscape import __main__ as script
from experiments.loss_landscape import measurements
from experiments.loss_landscape.__main__ import main
from jaxcnn import runs
from jaxcnn.augment import normalize

pytestmark = pytest.mark.usefixtures("one_device")

TINY = [
    "--networks",
    "mlp",
    "mlp2",
    "--images",
    "40",
    "--line.directions",
    "2",
    "--line.points",
    "5",
]
TINY += ["--plane.points", "3", "--path.points", "3", "--sharpness.tolerance", "1e-4"]
FIGURES = [
    "line/lines.png",
    "plane/planes.png",
    "plane/terrain.png",
    "path/path.png",
    "sharpness/sharpness.png",
]
CONFIG = jc.ExperimentConfig(
    dataset="digits",
    model="mlp",
    optimizer=jc.OptimizerConfig(learning_rate=0.1, milestones=()),
    train=jc.TrainConfig(num_steps=4, batch_size=64, eval_every=1),
)


@pytest.fixture(scope="module")
def all_runs(tmp_path_factory):
    """Runs as a study leaves them, of networks with a small dense Hessian; their states are drawn."""
    folder, data = tmp_path_factory.mktemp("runs"), jc.load_dataset("digits")
    for name, hidden in (("mlp", [3]), ("mlp2", [4])):
        config, rng = (
            jc.override(CONFIG, model_kwargs={"hidden": hidden}),
            np.random.default_rng(0),
        )
        log = jc.RunLog(folder / f"{name}-seed0", config)
        state = jc.init_state(*runs.model_and_optimizer(config, 10), config.train, data)
        with jc.Checkpoints(log.folder / "checkpoints", keep_every=1) as saved:
            for step in range(1, 5):
                params = jax.tree.map(
                    lambda w, rng=rng: w + np.float32(0.1 * rng.normal(size=w.shape)), state.params
                )
                state = state._replace(step=np.int32(step), params=params)
                saved.save(state, 90.0 - step)
                log.write(
                    step=step,
                    train_loss=2.0,
                    train_error=80.0,
                    eval_error=90.0 - step,
                    eval_split="test",
                )
    return folder


@pytest.fixture(scope="module")
def out(all_runs, tmp_path_factory):
    """The sharpness is of one network alone: a Hessian's product takes long to compile."""
    args = [*TINY, "--runs", str(all_runs), "--out", str(tmp_path_factory.mktemp("landscape"))]
    for parts in (
        ["--networks", "mlp", "--parts", "sharpness"],
        ["--parts", "line", "plane", "path"],
    ):
        assert main([*args, *parts]) == 0
    return Path(args[-1])


def table(folder):
    with (folder / "table.csv").open() as file:
        return {line["network"]: line for line in csv.DictReader(file)}


@pytest.mark.slow
def test_every_part_leaves_its_table_and_figures(out):
    for name in FIGURES:
        assert (out / name).read_bytes().startswith(b"\x89PNG"), name
    for part in script.PARTS:
        assert set(table(out / part)) == {"mlp", "mlp2"} - (
            {"mlp2"} if part == "sharpness" else set()
        )
    assert set(table(out)) == {"mlp", "mlp2"}
    assert "" not in table(out)["mlp"].values()


@pytest.mark.slow
def test_the_middle_is_the_last_state_on_these_images(all_runs, out):
    for name, line in table(out).items():
        run = runs.load_trained_model(all_runs / f"{name}-seed0")
        split = jc.subset(run.data, 40, seed=0).train
        sums = jc.evaluate(run.model, run.last, split, strategy=jc.strategy("jit", 1))
        assert float(line["loss"]) == pytest.approx(sums.mean_loss, rel=1e-5)
        assert float(line["train_error"]) == pytest.approx(sums.error_percent)
        assert float(line["eval_error"]) == pytest.approx(run.rows[-1]["eval_error"], rel=1e-5)
        plane = measurements.read(out / "plane" / f"{name}.npz").arrays
        assert (
            plane["loss"][1, 1]
            == measurements.read(out / "line" / f"{name}-direction0.npz").arrays["loss"][2]
            == sums.mean_loss
        )
        lines = [
            measurements.read(out / "line" / f"{name}-direction{i}.npz").arrays["loss"]
            for i in (0, 1)
        ]
        np.testing.assert_array_equal(
            plane["loss"][:, 1], lines[0][::2]
        )  # the plane's axes are the first two lines
        np.testing.assert_array_equal(plane["loss"][1], lines[1][::2])


@pytest.mark.slow
def test_the_table_is_of_all_directions_and_sides(out):
    for name, line in table(out).items():
        lines = np.array(
            [
                measurements.read(out / "line" / f"{name}-direction{i}.npz").arrays["loss"]
                for i in (0, 1)
            ]
        )
        for column, there in (("loss_at_0.5", lines[:, [1, 3]]), ("loss_at_1", lines[:, [0, 4]])):
            assert float(line[column]) == pytest.approx(there.mean(), rel=1e-5)
            assert line[f"{column}_range"] == f"{there.min():.3g} to {there.max():.3g}"
        plane = measurements.read(out / "plane" / f"{name}.npz").arrays["loss"]
        below = [100 * (plane < level).mean() for level in (2 * plane[1, 1], np.log(10))]
        assert [float(line[f"area_below_{what}"]) for what in ("2x", "guessing")] == pytest.approx(
            below, rel=1e-5
        )


@pytest.mark.slow
def test_the_path_ends_in_the_middle_of_its_plane_and_its_states_are_the_runs(all_runs, out):
    run = runs.load_trained_model(all_runs / "mlp-seed0", path=True)
    assert list(run.states) == [0, 1, 2, 3, 4]
    there = measurements.read(out / "path" / "mlp.npz")
    rows = np.array([ravel_pytree(state.params)[0] for state in run.states.values()], np.float64)
    moved = rows - rows[-1]
    _, singular, vectors = np.linalg.svd(moved - moved.mean(0), full_matrices=False)
    np.testing.assert_allclose(abs(there.arrays["path"]), abs(moved @ vectors[:2].T), atol=1e-5)
    share = 100 * (singular**2)[:2].sum() / (singular**2).sum()
    assert float(table(out)["mlp"]["explained"]) == pytest.approx(share, rel=1e-4)
    assert there.request["settings"]["steps"] == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_sharpness_is_the_top_of_the_dense_hessian(all_runs, out):
    run = runs.load_trained_model(all_runs / "mlp-seed0")
    split = jc.subset(run.data, 40, seed=0).train
    flat, unravel = ravel_pytree(run.last.params)
    inputs, targets = (
        normalize(split.images, run.last.normalizer),
        np.eye(10, dtype=np.float32)[split.labels],
    )

    def loss(flat):  # the cross-entropy, written again
        logits = run.model.apply({"params": unravel(flat)}, inputs, train=True)
        return -(jax.nn.log_softmax(logits) * targets).sum() / len(targets)

    top = np.linalg.eigvalsh(np.asarray(jax.jit(jax.hessian(loss))(flat), np.float64))[-1]
    assert float(table(out)["mlp"]["sharpness"]) == pytest.approx(top, rel=1e-3)


@pytest.mark.slow
def test_nothing_is_done_twice_and_drawing_needs_no_runs(all_runs, out, tmp_path, monkeypatch):
    def measures(*a, **k):
        pytest.fail("it measured")

    monkeypatch.setattr("experiments.loss_landscape.measurements.evaluate_along", measures)
    monkeypatch.setattr("jaxcnn.sharpness", measures)
    before = (out / "table.csv").read_text()
    assert (
        main(
            [*TINY, "--parts", "line", "plane", "path", "--runs", str(all_runs), "--out", str(out)]
        )
        == 0
    )
    assert (out / "table.csv").read_text() == before
    for name in ("mlp-direction0", "mlp-direction1"):
        (tmp_path / "line").mkdir(exist_ok=True)
        shutil.copy(out / "line" / f"{name}.npz", tmp_path / "line")
    assert (
        main(["--plot-only", "--parts", "line", "--runs", "nowhere", "--out", str(tmp_path)]) == 0
    )
    assert table(tmp_path / "line")["mlp"] == table(out / "line")["mlp"]


@pytest.mark.slow
def test_it_goes_on_where_it_was_stopped_with_the_same_bits(
    all_runs, out, tmp_path, monkeypatch, capsys
):
    asked = []

    class Stopping(script.cli.GracefulShutdown):
        def __call__(self):
            asked.append(self)
            if len(asked) == 8:
                signal.raise_signal(signal.SIGINT)
            return super().__call__()

    args = [
        *TINY,
        "--networks",
        "mlp",
        "--parts",
        "line",
        "plane",
        "--runs",
        str(all_runs),
        "--out",
        str(tmp_path),
    ]
    with monkeypatch.context() as patch:
        patch.setattr("jaxcnn.cli.GracefulShutdown", Stopping)
        assert main(args) == 130
    assert "resumes from here" in capsys.readouterr().err
    part = measurements.read(tmp_path / "line" / "mlp-direction1.npz")
    assert not part.is_complete
    assert int(part.arrays["done"]) == 3
    assert not (tmp_path / "plane").exists()
    assert main(args) == 0
    for name in ("line/mlp-direction0", "line/mlp-direction1", "plane/mlp"):
        mine, whole = (measurements.read(folder / f"{name}.npz") for folder in (tmp_path, out))
        assert mine.request == whole.request
        assert all((mine.arrays[key] == whole.arrays[key]).all() for key in whole.arrays)


@pytest.mark.slow
def test_other_settings_are_measured_anew(all_runs, tmp_path):
    args = [
        "--networks",
        "mlp",
        "--parts",
        "line",
        "--line.directions",
        "1",
        "--runs",
        str(all_runs),
        "--out",
        str(tmp_path),
    ]
    assert main([*args, "--images", "40", "--line.points", "5"]) == 0
    before = measurements.read(tmp_path / "line" / "mlp-direction0.npz")
    assert main([*args, "--images", "20", "--line.points", "9"]) == 0
    after = measurements.read(tmp_path / "line" / "mlp-direction0.npz")
    assert (before.arrays["loss"].size, after.arrays["loss"].size) == (5, 9)
    assert before.arrays["loss"][2] != after.arrays["loss"][4]


@pytest.mark.slow
def test_a_run_without_states_on_the_way_has_no_path_and_the_rest(all_runs, tmp_path, capsys):
    shutil.copytree(all_runs / "mlp-seed0", tmp_path / "runs" / "mlp-seed0")
    for step in (1, 2, 3):
        shutil.rmtree(tmp_path / "runs" / "mlp-seed0" / "checkpoints" / str(step))
    args = [*TINY, "--networks", "mlp", "--parts", "path", "line", "--runs", str(tmp_path / "runs")]
    assert main([*args, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert (
        "has 2 states from step 0 on, and a path takes 4; left out (python -m experiments.depth "
        "--keep-every 25" in said
    )
    assert "explained" not in table(tmp_path / "out")["mlp"]
    assert not (tmp_path / "out" / "path").exists()


MISTAKES = [
    (["--parts"], "parts is empty"),
    (["--parts", "lines"], "lines"),
    (["--networks"], "networks is empty"),
    (["--networks", "plain20"], "make it: python -m experiments.depth --out"),
    (["--seed", "3"], "there is no run with checkpoints in"),
    (["--images", "5000"], "cannot keep 5000 training images; expected an integer in 1..1437"),
    (["--line.points", "7"], "line.points is 7; expected 4 n + 1"),
    (["--line.directions", "0"], "line.directions is 0"),
    (["--line.reach", "0"], "line.reach is 0"),
    (["--plane.points", "4"], "plane.points is 4; expected an odd number"),
    (["--plane.reach", "nan"], "plane.reach is nan"),
    (["--plane.multiple", "1"], "plane.multiple is 1"),
    (["--plane.most", "0"], "plane.most is 0"),
    (["--path.points", "2"], "path.points is 2"),
    (["--path.margin", "-1"], "path.margin is -1"),
    (["--path.first", "-1"], "path.first is -1"),
    (["--sharpness.tolerance", "0"], "sharpness.tolerance is 0"),
    (["--sharpness.most", "0"], "sharpness.most is 0"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("args", "says"), MISTAKES, ids=[" ".join(args) for args, _ in MISTAKES])
def test_mistakes_are_one_line_before_anything_is_measured(
    all_runs, tmp_path, args, says, capsys, monkeypatch
):
    monkeypatch.setattr(
        "experiments.loss_landscape.measurements.evaluate_along",
        lambda *a, **k: pytest.fail("it measured"),
    )
    refuses(
        main,
        [*TINY, "--runs", str(all_runs), *args, "--out", str(tmp_path)],
        says,
        capsys,
        monkeypatch,
    )


@pytest.mark.slow
def test_a_file_that_is_broken_is_named(all_runs, out, tmp_path, capsys, monkeypatch):
    path = tmp_path / "line" / "mlp-direction0.npz"
    path.parent.mkdir()
    path.write_bytes((out / "line" / "mlp-direction0.npz").read_bytes()[:300])
    args = ["--plot-only", "--parts", "line", "--out", str(tmp_path)]
    refuses(main, args, "mlp-direction0.npz cannot be read", capsys, monkeypatch)
    path.unlink()
    refuses(main, args, "holds nothing that was measured to its end", capsys, monkeypatch)
