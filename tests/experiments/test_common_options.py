"""Options that many scripts have: seeds, devices and the format of figures."""

import csv
import doctest
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy import ndimage

import jaxcnn as jc
from experiments import _common, depth, generation, mnist
from experiments import text as reading
from experiments._common import DeviceOptions, FigureOptions, SeedOptions, print_hint
from experiments._options import parse_options, print_milestones
from experiments.scenes import parts
from jaxcnn import cli, plots, tables
from jaxcnn.plots.style import DPI


@pytest.fixture(scope="module")
def small_figures():
    """Write figures at full resolution, whose size is tested here."""


@dataclass(frozen=True)
class Options(SeedOptions, DeviceOptions, FigureOptions):
    """Options of a script."""

    preset: Literal["quick", "long"] = "quick"
    num_seeds: int = 2


PRESETS = {"quick": Options(), "long": Options(preset="long", num_seeds=5)}


@pytest.mark.parametrize(
    ("args", "seeds"),
    [
        ([], (0, 1)),
        (["--preset", "long"], (0, 1, 2, 3, 4)),
        (["--num-seeds", "3"], (0, 1, 2)),
        (["--seeds", "2"], (2,)),
        (["--seeds", "5", "0", "4294967295"], (5, 0, 4294967295)),
        (["--preset", "long", "--seeds", "7"], (7,)),
    ],
)
def test_seeds_are_a_list_or_a_number_of_them(args, seeds):
    assert parse_options(PRESETS, args).run_seeds() == seeds


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--seeds", "1", "--num-seeds", "2"], "--seeds and --num-seeds are both there"),
        (["--num_seeds=2", "--seeds", "0"], "--seeds and --num-seeds are both there"),
        (["--seeds"], "--seeds is empty; expected a value"),
        (["--seeds", "1", "1", "2"], "seeds is 1 1 2; expected each seed once: write --seeds 1 2"),
        (["--seeds", "-1"], "--seeds is -1; expected a whole number of 0 to 4294967295"),
        (["--num-seeds", "0"], "--num-seeds is 0; expected a whole number of 1 to 1000"),
        (["--seeds", "0,1"], "--seeds is"),
        (["--devices", "999"], f"--devices is 999, and JAX sees {len(jax.devices())}; expected"),
        (["--devices", "0"], "--devices is 0; expected a whole number of 1"),
        (["--format", "jpg"], "png"),
    ],
)
def test_mistakes_are_one_line(args, says, capsys):
    def main():
        with cli.cli_errors():
            options = parse_options(PRESETS, args)
            return options.run_seeds(), options.make_strategy()

    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert says in error


def test_options_made_in_python_are_checked_too():
    with pytest.raises(jc.ArgumentError, match="num_seeds is 0; expected at least 1"):
        Options(num_seeds=0).run_seeds()


def test_the_first_devices_are_used():
    assert Options(devices=1).make_strategy().devices == tuple(jax.devices()[:1])
    assert Options().make_strategy().devices == tuple(jax.devices())
    assert Options(strategy="pmap", devices=2).make_strategy().kind == "pmap"


def test_names_of_runs_are_those_of_their_seeds():
    names = list(depth.configs(depth.Options(depths=(20,), families=("plain",), seeds=(7, 3))))
    assert names == ["plain20-seed7", "plain20-seed3"]


@pytest.mark.parametrize(
    ("kind", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_figures_are_written_in_their_format_with_equal_bytes(tmp_path, kind, magic):
    contents = []
    for name in ("a.b", "c"):
        figure = Figure()
        figure.subplots().plot([1, 2], [3, 4], label="of $x$")
        Options(format=kind).save(figure, tmp_path / name)
        contents.append((tmp_path / f"{name}.{kind}").read_bytes())
    assert contents[0].startswith(magic)
    assert contents[0] == contents[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a.b.{kind}", f"c.{kind}"]


def test_a_figure_without_a_suffix_is_a_png(tmp_path):
    plots.save(Figure(), tmp_path / "figure")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("is_photograph", [False, True])
def test_a_png_is_small_and_looks_as_drawn(is_photograph, tmp_path):
    """Lines have a palette, photographs have colors in steps of 5; white stays white."""
    rng, figure = np.random.default_rng(0), Figure()
    axis = figure.subplots()
    if is_photograph:
        # Smooth and colored, as photographs are.
        pixels = ndimage.gaussian_filter(rng.uniform(size=(200, 300, 3)), (9, 9, 0))
        axis.imshow((pixels - pixels.min()) / np.ptp(pixels))
    else:
        for color in plots.COLORS:
            axis.plot(rng.normal(size=300).cumsum(), color=color)
    plots.save(figure, tmp_path / "small.png")
    figure.savefig(tmp_path / "full.png", dpi=DPI)
    small, full = (Image.open(tmp_path / f"{name}.png") for name in ("small", "full"))
    assert small.mode == ("RGB" if is_photograph else "P")
    assert small.info["dpi"] == full.info["dpi"]
    seen, drawn = (np.asarray(image.convert("RGB")).astype(int) for image in (small, full))
    differences = np.abs(seen - drawn).max(-1)
    assert (seen[(drawn == 255).all(-1)] == 255).all()
    assert differences.mean() < 2
    assert differences.max() <= 2 or not is_photograph
    sizes = [(tmp_path / f"{name}.png").stat().st_size for name in ("small", "full")]
    assert sizes[0] < 0.8 * sizes[1]


def test_a_transparent_png_stays_so(tmp_path):
    figure = Figure(facecolor="none")
    plots.save(figure, tmp_path / "clear.png")
    assert Image.open(tmp_path / "clear.png").getchannel("A").getextrema() == (0, 0)


def test_curves_are_rows_with_every_numeric_key(tmp_path):
    rows = {
        "plain, 1": [{"step": 1, "loss": 0.123456789, "eval_split": "test", "diverged": "nan"}],
        "b": [{"loss": None, "step": 2, "iou": 3, "ok": True}, {"step": 4, "loss": 1e-9}],
    }
    tables.write_curves(tmp_path, rows)
    with open(tmp_path / "curves.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == ["run", "step", "loss", "iou"]
    assert [list(line.values()) for line in lines] == [
        ["plain, 1", "1", "0.123457", ""],
        ["b", "2", "", "3"],
        ["b", "4", "1e-09", ""],
    ]


@pytest.mark.quick_compilation
@pytest.mark.slow
def test_a_study_of_listed_seeds_writes_its_curves_as_numbers_and_as_svg(tmp_path, capsys):
    args = ["--depths", "8", "--families", "plain", "--width", "4", "--num-steps", "4"]
    args += ["--eval-every", "2", "--batch-size", "32", "--devices", "1", "--out", str(tmp_path)]
    assert depth.main([*args, "--seeds", "5", "2", "--format", "svg"]) == 0
    names = {path.name for path in tmp_path.iterdir()}
    figures = {"table.csv", "table.md", "curves.csv", "curves.svg", "lock"}
    assert names == figures | {"plain8-seed5", "plain8-seed2"}
    assert "curves.csv and curves.svg" in capsys.readouterr().out
    with open(tmp_path / "curves.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    for name in ("plain8-seed2", "plain8-seed5"):
        rows = jc.read_metrics(tmp_path / name)
        own = [line for line in lines if line["run"] == name]
        assert [int(line["step"]) for line in own] == [2, 4]
        for key in ("train_error", "eval_loss", "grad_norm"):
            values = [float(line[key]) for line in own]
            assert values == pytest.approx([row[key] for row in rows], rel=1e-5)
    # A seed more is another process's affair, and the table has all of them.
    assert depth.main([*args, "--seeds", "0"]) == 0
    with open(Path(tmp_path, "table.csv"), newline="") as file:
        (line,) = csv.DictReader(file)
    assert line["seeds"] == "3"


@pytest.mark.parametrize("is_stopped", [True, False])
@pytest.mark.parametrize("is_primary", [True, False])
def test_a_hint_is_of_the_primary_process_after_all_have_exchanged_signals(
    is_stopped, is_primary, capsys, monkeypatch
):
    calls = []
    monkeypatch.setattr("jaxcnn.multihost.is_primary", lambda: is_primary)
    print_hint(lambda: calls.append(1) or is_stopped)
    assert calls == [1]
    hint = capsys.readouterr().err
    assert hint.count("\n") == is_primary
    if is_primary:
        assert ("resumes" in hint, "--plot-only" in hint) == (is_stopped, not is_stopped)


@pytest.mark.parametrize(
    ("script", "args", "milestones", "line"),
    [
        (depth, [], (150, 225), ""),
        (depth, ["--num-steps", "300"], (150, 225), ""),
        (
            depth,
            ["--num-steps", "40"],
            (20, 30),
            "40 steps: the learning rate falls at 20 30, in proportion to 150 225 of 300; "
            "--milestones chooses others\n",
        ),
        (
            depth,
            ["--preset=paper", "--num_steps=6400"],
            (3_200, 4_800),
            "6400 steps: the learning rate falls at 3200 4800, in proportion to 32000 48000 of "
            "64000; --milestones chooses others\n",
        ),
        (depth, ["--num-steps", "600", "--milestones", "500"], (500,), ""),
        (
            depth,
            ["--num-steps", "40", "--milestones", "20", "40", "225"],
            (20, 40, 225),
            "40 steps end before milestone 40 and 225: the learning rate does not fall there; "
            "--milestones chooses others\n",
        ),
        (
            depth,
            ["--num-steps", "1"],
            (),
            "1 steps: the learning rate does not fall, in proportion to 150 225 of 300; "
            "--milestones chooses others\n",
        ),
        (depth, ["--num-steps", "40", "--milestones"], (), ""),
        (
            mnist,
            ["--num-steps", "40"],
            (24, 32),
            "40 steps: the learning rate falls at 24 32, in proportion to 300 400 of 500; "
            "--milestones chooses others\n",
        ),
    ],
)
def test_milestones_are_in_proportion_to_the_steps(script, args, milestones, line, capsys):
    """A shorter run keeps the shape of its schedule, and a line says so."""
    options = parse_options(script.PRESETS, args)
    assert options.milestones == milestones
    print_milestones(options, script.PRESETS[options.preset])
    assert capsys.readouterr().err == line


def test_a_study_prints_and_records_its_milestones(tmp_path, capsys):
    args = ["--networks", "perceptron", "--num-seeds", "1", "--num-steps", "4"]
    assert mnist.main([*args, "--eval-every", "4", "--out", str(tmp_path)]) == 0
    assert "4 steps: the learning rate falls at 2 3," in capsys.readouterr().err
    config = jc.ExperimentConfig.load(tmp_path / "digits/perceptron-seed0")
    assert config.optimizer.milestones == (2, 3)


@pytest.mark.parametrize("module", [_common, generation, parts, reading])
def test_examples_of_scripts_run(module):
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed
