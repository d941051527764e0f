"""Studies with a run that diverged, or with runs of other settings, in the same folder."""

import csv
import dataclasses
import json
from pathlib import Path

import pytest
from scripts import refuses

import jaxcnn as jc
from experiments import (
    anomaly,
    batch_size,
    depth,
    depth_map,
    detection,
    generation,
    keypoints,
    mnist,
    optimizers,
    overfitting,
    segmentation,
    text,
)
from experiments._common import (
    check_each_once,
    check_new_runs,
    check_same_settings,
    first_converged,
    grouped_runs,
    paired_sentence,
    seed_pairs,
)
from jaxcnn import runs

pytestmark = pytest.mark.usefixtures("one_device")
RESULTS = Path(__file__).parents[2] / "experiments" / "results"
TINY = ["--scenes", "40", "--width", "2", "--num-steps", "2", "--batch-size", "8"]
STUDIES = {
    "segmentation": (segmentation, "unet", "mean_iou", ["--networks", "unet", "--depth", "1"]),
    "detection": (detection, "ssd", "map", ["--detectors", "ssd"]),
    "keypoints": (keypoints, "pose", "pck", []),
    "depth_map": (depth_map, "squared", "abs_rel", ["--losses", "squared", "--depth", "1"]),
}
"""Study -> its module, the name of its runs, a column, and options of few runs."""
COMMITTED = {
    "segmentation": "segmentation-digits",
    "detection": "detection",
    "keypoints": "keypoints",
    "depth_map": "depth-map",
}
"""Study -> folder of its committed results."""


def lines(out: Path) -> list[dict[str, str]]:
    with (out / "table.csv").open() as file:
        return [line for line in csv.DictReader(file) if line["seeds"]]


@pytest.mark.quick_compilation
@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
def test_a_diverged_run_is_told_and_the_others_are_drawn(study, tmp_path, capsys):
    module, name, column, options = STUDIES[study]
    out, other = tmp_path / "runs", tmp_path / "diverged"
    args = [*TINY, *options]
    assert module.main([*args, "--seeds", "0", "--out", str(out)]) == 0
    before = lines(out)
    capsys.readouterr()
    # A study of which nothing is left has a table and figures too.
    diverging = [*args, "--seeds", "1", "--learning-rate", "1e38", "--out", str(other)]
    assert module.main(diverging) == 0
    note = f"{name}-seed1: "
    assert note in capsys.readouterr().out
    assert note in (other / "table.md").read_text()
    assert {(line["seeds"], line[column]) for line in lines(other)} == {("0", "")}
    # As if the same rate had diverged from another seed.
    run = out / f"{name}-seed1"
    (other / run.name).rename(run)
    config = json.loads((run / "config.json").read_text())
    config["optimizer"]["learning_rate"] = module.Options().learning_rate
    (run / "config.json").write_text(json.dumps(config))
    (out / "curves.png").unlink()
    assert module.main([*args, "--plot-only", "--out", str(out)]) == 0
    assert note in capsys.readouterr().out
    assert " diverged at step " in (out / "table.md").read_text()
    assert lines(out) == before
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")


def made(name: str, **changes) -> runs.Run:
    config = jc.override(jc.ExperimentConfig(dataset="digits", max_train_examples=100), **changes)
    return runs.Run(config, {"status": "finished"}, [], name)


@pytest.mark.parametrize(
    ("setting", "row", "changes"),
    [
        ("train.num_steps", "b", {"num_steps": 3}),
        ("train.batch_size", "b", {"batch_size": 3}),
        ("dataset", "b", {"dataset": "mnist"}),
        ("max_train_examples", "b", {"max_train_examples": 110}),
        ("optimizer.learning_rate", "a", {"learning_rate": 0.5}),
        ("model_kwargs.width", "a", {"model_kwargs": {"width": 3}}),
    ],
)
def test_runs_of_other_settings_are_refused(setting, row, changes):
    groups = {"a": [made("a-seed0"), made("a-seed1", seed=1)], "b": [made("b-seed0", model="mlp")]}
    check_same_settings(groups, Path("study"))
    groups[row].append(made("c-seed2", seed=2, model=groups[row][0].config.model, **changes))
    with pytest.raises(jc.ArgumentError) as error:
        check_same_settings(groups, Path("study"))
    text = str(error.value)
    assert text.startswith(f"study has runs of several settings: {setting} is ")
    assert "'c-seed2'" in text
    assert "\n" not in text


@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.parametrize(
    ("option", "says"),
    [
        (["--num-steps", "3"], "train.num_steps is 2"),
        (["--scenes", "50"], "max_train_examples is 40"),
        (["--learning-rate", "0.5"], "optimizer.learning_rate is 0.003"),
    ],
)
def test_a_study_refuses_to_train_a_seed_with_other_settings(
    study, option, says, tmp_path, capsys, monkeypatch
):
    module, name, _, options = STUDIES[study]
    tiny = module.Options(scenes=40, width=2, num_steps=2, batch_size=8)
    if hasattr(tiny, "depth"):
        tiny = dataclasses.replace(tiny, depth=1)
    configs = module.configs(tiny) if name == "pose" else module.configs(tiny, name)
    folder = tmp_path / f"{name}-seed0"
    folder.mkdir()
    # As the records describe a model of the script's own.
    config = jc.override(configs[folder.name], model="package.Network", loss="package.Loss")
    (folder / "config.json").write_text(config.to_json())
    # The same settings are fine.
    new = {f"{name}-seed1": jc.override(configs[folder.name], seed=1)}
    check_new_runs(new, tmp_path)
    args = [*TINY, *options, "--seeds", "1", *option, "--out", str(tmp_path)]
    refuses(module.main, args, says, capsys, monkeypatch)


def test_rows_may_have_settings_of_their_own():
    """A network's best rate and width are its own."""
    own = [made("b-seed0", learning_rate=0.5, model_kwargs={"width": 3})]
    check_same_settings({"a": [made("a-seed0")], "b": own}, Path("study"))


def a_seed(seed: int, error: float | None, **result) -> runs.Run:
    name = f"a-seed{seed}"
    return made(name, seed=seed)._replace(result={"status": "finished", "error": error} | result)


DIVERGED = {"status": "diverged", "step": 3, "reason": "nan"}


def test_changes_are_paired_by_seeds_that_did_not_diverge():
    first = [a_seed(2, 3.0), a_seed(0, 1.0), a_seed(1, 2.0, **DIVERGED), a_seed(5, 9.0)]
    second = [a_seed(0, 1.5), a_seed(1, 9.0), a_seed(2, None), a_seed(4, 9.0)]
    assert seed_pairs(first, second, "error") == [(3.0, None), (1.0, 1.5)]
    assert seed_pairs(first, [], "error") == []
    assert paired_sentence("x changes y", []) == paired_sentence("x changes y", [1.0]) == ""
    # 12.706 / sqrt(2) times the deviation of 0.7071.
    found = paired_sentence("x changes y", [-1.0, -2.0], "%", digits=2)
    assert found == " Paired by seed, x changes y by -1.50 +- 6.35%."


def test_rows_are_in_order_and_strangers_are_refused(tmp_path, monkeypatch):
    found = [made("b-seed0"), made("a-seed1", seed=1), made("a-seed0")]
    monkeypatch.setattr(runs, "finished_runs", lambda out: found)
    groups = grouped_runs(tmp_path, ["a", "none", "b"])
    assert list(groups) == ["a", "b"]
    assert [run.name for run in groups["a"]] == ["a-seed1", "a-seed0"]
    for name_of in (lambda run: None, lambda run: run.name):
        with pytest.raises(
            jc.ArgumentError, match=r"'b-seed0'; expected those of a, b\. Write --out"
        ):
            grouped_runs(tmp_path, ["a", "b"], name_of)


def test_figures_are_of_the_first_run_that_did_not_diverge(tmp_path, monkeypatch):
    found = [a_seed(0, None, **DIVERGED), a_seed(2, 1.0), a_seed(1, 1.0)]
    monkeypatch.setattr(runs, "finished_runs", lambda out: found)
    configs = {f"a-seed{seed}": jc.override(jc.ExperimentConfig(), seed=seed) for seed in range(4)}
    assert first_converged(configs, tmp_path) == ("a-seed1", configs["a-seed1"])
    assert first_converged({"a-seed0": configs["a-seed0"]}, tmp_path) is None


@pytest.mark.parametrize(("values", "shown"), [((), "empty"), (("a", "b", "a"), "a b a")])
def test_what_is_compared_is_there_once(values, shown):
    check_each_once("kinds", ("a", "b"), "kind", "a b")
    with pytest.raises(jc.ArgumentError) as error:
        check_each_once("kinds", values, "kind", "a b")
    expected = "expected each kind once, and at least one: write --kinds a b"
    assert str(error.value) == f"--kinds is {shown}; {expected}"


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_refuses_to_draw_runs_of_other_settings(study, tmp_path, capsys, monkeypatch):
    """The committed runs, one of which is changed to half of the steps."""
    module = STUDIES[study][0]
    packed = RESULTS / COMMITTED[study] / "runs.jsonl"
    records = [json.loads(line) for line in packed.read_text().splitlines()]
    records[-1]["config"]["train"]["num_steps"] //= 2
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in records))
    args = ["--plot-only", "--out", str(tmp_path)]
    refuses(module.main, args, "several settings: train.num_steps is", capsys, monkeypatch)


STRANGERS = [
    (anomaly, "."),
    (batch_size, "."),
    (depth, "."),
    (generation, "."),
    (mnist, "digits"),
    (optimizers, "."),
    (overfitting, "."),
    (text, "."),
    *((study[0], ".") for study in STUDIES.values()),
]
"""Script, and the folder of its runs within that of the study."""


@pytest.mark.parametrize(
    ("module", "folder"), STRANGERS, ids=lambda value: getattr(value, "__name__", value)
)
def test_no_study_trains_into_the_folder_of_another(module, folder, tmp_path, capsys, monkeypatch):
    stranger = tmp_path / folder / "stranger-seed0"
    stranger.mkdir(parents=True)
    config = jc.override(jc.ExperimentConfig(), dataset="other-images", model="other")
    (stranger / "config.json").write_text(config.to_json())
    refuses(module.main, ["--out", str(tmp_path)], "'other-images'", capsys, monkeypatch)
    assert sorted(stranger.parent.iterdir()) == [stranger]
