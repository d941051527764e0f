"""A folder of images becomes a classifier that is kept, asked and explained; and a mistake is one line."""

import contextlib
import csv
import io
import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import jax
import numpy as np
import pytest
from hub_server import Repo, environment, serve
from PIL import Image
from safetensors.numpy import load_file, save_file
from scripts import refuses
from sklearn.utils.class_weight import compute_class_weight
from test_commands import _options

import jaxcnn as jc
from experiments import predict
from experiments.finetune import __main__ as script
from experiments.finetune import images, results, transfer
from experiments.finetune.options import PRESETS, with_preprocessing
from experiments.inspect_run import __main__ as look_script
from experiments.inspect_run.context import Options, load_context
from jaxcnn import metrics
from jaxcnn.classifier import Classifier, load_classifier
from jaxcnn.data import image_folder_with_paths, load_images
from jaxcnn.weights import read_metadata
from jaxcnn.weights import read_weights as read_weights

pytestmark = [pytest.mark.usefixtures("one_device"), pytest.mark.quick_compilation]

CLASSES = ("crème", "mint", "plum")
COLOURS = ((230, 220, 180), (150, 230, 190), (110, 50, 110))
TINY = [
    "--model",
    "resnet8",
    "--width",
    "2",
    "--size",
    "16",
    "--epochs",
    "3",
    "--batch-size",
    "8",
    "--learning-rate",
    "0.05",
]


def paint(root, classes=CLASSES, n=16, seed=0):
    """Noisy images of a colour for each class, of several formats and shapes."""
    rng = np.random.default_rng(seed)
    for name, colour in zip(classes, COLOURS, strict=False):
        (root / name).mkdir(parents=True)
        for i in range(n):
            noise = rng.normal(0, 60, (20 + i, 24, 3))
            image = Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8))
            image.save(root / name / f"{i}.{('jpg', 'png', 'webp')[i % 3]}")
    return root


@pytest.fixture(scope="module")
def sweets(tmp_path_factory):
    return paint(tmp_path_factory.mktemp("own") / "sweets")


@pytest.fixture(scope="module")
def run(sweets, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    assert script.main(["--images", str(sweets), *TINY, "--out", str(out)]) == 0
    return out


def table(out):
    with (out / "table.csv").open() as file:
        return {line["class"]: line for line in csv.DictReader(file)}


@pytest.mark.slow
def test_a_folder_becomes_a_classifier_with_tables_and_figures(run):
    lines = table(run)
    assert set(lines) == {*CLASSES, "all"}
    assert list(lines)[-1] == "all"
    assert (lines["all"]["train"], lines["all"]["test"]) == ("39", "9")
    assert json.loads((run / "classes.json").read_text("utf-8")) == list(CLASSES)
    for name in ("curves.png", "confusion.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG")
    text = (run / "table.md").read_text("utf-8")
    assert "resnet8 from random numbers, 15 steps of 8 images" in text
    assert "is right for 33.3%" in text  # always the same class


@pytest.mark.slow
def test_what_is_kept_is_what_was_trained(run, sweets):
    """The last row's error came from the run's own state; the table and `predict` come from the file."""
    last = jc.read_metrics(run / "run")[-1]
    assert float(table(run)["all"]["recall"]) == pytest.approx(100 - last["eval_error"], abs=1e-3)
    saved = load_classifier(run)
    data, _ = image_folder_with_paths(sweets, 16)
    sums = jc.evaluate(saved.model, saved.state, data.test)
    assert sums.error_percent == pytest.approx(last["eval_error"], abs=1e-4)
    assert sums.mean_loss == pytest.approx(last["eval_loss"], rel=1e-5)
    np.testing.assert_allclose(saved.state.normalizer.mean[3, 4], [0.485, 0.456, 0.406], rtol=1e-6)
    np.testing.assert_allclose(saved.state.normalizer.std, [0.229, 0.224, 0.225], rtol=1e-6)


@pytest.mark.slow
def test_new_images_are_classified(run, sweets, tmp_path, capsys):
    shown = [sweets / "plum" / "0.jpg", sweets / "mint" / "2.webp"]
    assert (
        predict.main(
            [
                "--run",
                str(run),
                *map(str, shown),
                "--heat",
                str(tmp_path / "a/heat.png"),
                "--top",
                "2",
            ]
        )
        == 0
    )
    out = capsys.readouterr().out.splitlines()
    saved = load_classifier(run)
    logits = jc.predict(saved.model, saved.state, load_images(shown, 16)).astype(np.float64)
    for line, path, row in zip(
        out[2:4], shown, np.exp(logits) / np.exp(logits).sum(1, keepdims=True), strict=True
    ):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        best = np.argsort(-row)[:2]
        assert cells == [str(path), *(f"{CLASSES[c]} {100 * row[c]:.1f}%" for c in best)]
    assert (tmp_path / "a/heat.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_what_cannot_be_asked_is_one_line(run, sweets, tmp_path, capsys, monkeypatch):
    good = str(sweets / "plum/0.jpg")
    (tmp_path / "empty.jpg").touch()
    broken = [str(tmp_path / "empty.jpg"), str(tmp_path / "gone.jpg")]
    shutil.copy(run / "weights.safetensors", tmp_path / "weights.safetensors")
    for args, says in (
        ([], "no image is named"),
        (["--run", str(tmp_path / "none"), good], "none is not there; write the folder"),
        (
            [good, *broken],
            f"2 files are not images that can be read: {broken[0]} (empty), {broken[1]} (no such "
            "file)",
        ),
        ([good, "--top", "0"], "top is 0"),
        ([good, "--tpo", "2"], "--tpo"),
    ):
        refuses(predict.main, ["--run", str(run), *args], says, capsys, monkeypatch)
    (tmp_path / "folder").mkdir()
    for heat, says in (
        ("h.xyz", f"webp: write --heat {tmp_path / 'h.png'}"),
        ("folder", f"a folder; expected a file: write --heat {tmp_path / 'folder/heat.png'}"),
        ("empty.jpg/h.png", "empty.jpg is a file; write --heat with a file in a folder"),
        ("/proc/none/h.png", "cannot write in /proc/none"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(predict, "load_classifier", lambda run: pytest.fail("it began"))
            refuses(predict.main, ["--heat", str(tmp_path / heat), good], says, capsys, patch)
    assert predict.check_figure(tmp_path / "h.pdf") == tmp_path / "h.pdf"
    assert predict.check_figure(tmp_path / "heat") == tmp_path / "heat.png"
    (tmp_path / "weights.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}              ")
    refuses(
        predict.main,
        ["--run", str(tmp_path), good],
        "was not written by experiments.finetune",
        capsys,
        monkeypatch,
    )


HOSTILE = [
    ({"size": "0"}, "size is 0; expected a whole number of pixels in 1..4096"),
    ({"size": "60000"}, "size is 60000"),
    ({"size": "null"}, "size is None"),
    ({"size": "1e400"}, "size is inf"),
    ({"resize": "null"}, None),
    ({"resize": '"x"'}, "resize is 'x'"),
    ({"classes": "null"}, "classes is None"),
    ({"classes": '"abc"'}, "classes is 'abc'"),
    (
        {"classes": '["a", "b\\u001b[31m", "c"]'},
        r"a class is called 'b\x1b[31m', which cannot be printed",
    ),
    ({"mean": "[NaN, 0, 0]"}, "mean is [nan, 0, 0]; expected three finite numbers"),
    ({"std": "[0, 1, 1]"}, "std is [0, 1, 1]; expected three finite positive numbers"),
    ({"std": "null"}, "std is None"),
    ({"step": "-1"}, "step is -1"),
    ({"step": "1e400"}, "step is inf"),
    ({"mean": "[0.5]"}, "mean has 1 numbers and std 3"),
    ({"options": "null"}, "was not written by experiments.finetune"),
    ({"options": '{"width": 100000}'}, "is not of CifarResNet"),
    ({"options": '{"width": -1}'}, "width"),
    ({"network": "\x1b[31m"}, r"\x1b[31m"),
    ({"mean": "[" * 100000}, "was not written by experiments.finetune"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("change", "says"), HOSTILE)
def test_a_strangers_header_is_one_line(change, says, run, sweets, tmp_path, capsys, monkeypatch):
    path = tmp_path / "weights.safetensors"
    tensors = load_file(run / path.name)
    save_file(tensors, path, read_metadata(run / path.name) | change)
    args = ["--run", str(tmp_path), str(sweets / "plum/0.jpg")]
    if says is None:  # the default
        assert predict.main(args) == 0
    else:
        refuses(predict.main, args, says, capsys, monkeypatch)


@pytest.mark.slow
def test_weights_that_are_no_numbers_are_one_line(run, sweets, tmp_path, capsys, monkeypatch):
    path = tmp_path / "weights.safetensors"
    tensors = load_file(run / path.name)
    save_file(
        {name: np.full_like(array, np.nan) for name, array in tensors.items()},
        path,
        read_metadata(run / path.name),
    )
    refuses(
        predict.main,
        ["--run", str(tmp_path), str(sweets / "plum/0.jpg")],
        "nan",
        capsys,
        monkeypatch,
    )


@pytest.mark.slow
def test_a_file_name_tells_the_terminal_nothing(run, sweets, tmp_path, capsys):
    path = tmp_path / "a\x1b[31m|b.jpg"
    shutil.copy(sweets / "plum/0.jpg", path)
    assert predict.main(["--run", str(run), str(path)]) == 0
    assert "\\\\x1b[31m\\|b.jpg" in (out := capsys.readouterr().out)
    assert "\x1b" not in out


@pytest.mark.slow
def test_a_fine_tuned_run_can_be_looked_at(run, sweets, tmp_path, capsys, monkeypatch):
    options = Options(run=run / "run", parts=("errors",), out=tmp_path / "page")
    seen = load_context(options)
    data, _ = image_folder_with_paths(sweets, 16)
    np.testing.assert_array_equal(seen.images, data.test.images)
    assert seen.classes == CLASSES
    there = (run / "images.json").read_text("utf-8")
    other = paint(tmp_path / "other", n=16, seed=9)
    for text, says in (
        (None, "has no images.json that says which"),
        (there.replace(str(sweets), str(other)), "are not those of"),
        (there.replace(str(sweets), str(tmp_path / "gone")), "is not there"),
        ("{}", "was not written by experiments.finetune"),
    ):
        copy = tmp_path / f"copy{says[:3]}"
        shutil.copytree(run, copy)
        (copy / "images.json").unlink() if text is None else (copy / "images.json").write_text(
            text, "utf-8"
        )
        refuses(
            look_script.main,
            ["--run", str(copy / "run"), "--out", str(tmp_path / "p")],
            says,
            capsys,
            monkeypatch,
        )


@pytest.mark.slow
def test_training_that_diverges_says_where_why_and_what_to_do(sweets, tmp_path, capsys):
    args = [
        "--images",
        str(sweets),
        *TINY,
        "--learning-rate",
        "1e30",
        "--out",
        str(tmp_path / "out"),
    ]
    for _ in range(2):  # the second time from the records
        with pytest.raises(SystemExit) as exit:
            script.main(args)
        assert exit.value.code == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert re.match(
            r"error: training diverged at step \d+, .*: .*(nan|inf).*; .* --learning-rate 1e\+29, and another --out",
            line,
        ), line


@pytest.mark.slow
def test_val_is_what_is_tested_on(sweets, tmp_path, caplog):
    # As many images as those of `run`, whose programs it uses.
    for at, n in (("train", 13), ("val", 3)):
        paint(tmp_path / "parts" / at, n=n, seed=n)
    out = tmp_path / "out"
    assert script.main(["--images", str(tmp_path / "parts"), *TINY, "--out", str(out)]) == 0
    lines = table(out)
    assert (lines["all"]["train"], lines["all"]["validation"]) == ("39", "9")
    assert "has no test folder: evaluate on val" in caplog.text
    assert jc.read_metrics(out / "run")[-1]["eval_split"] == "validation"


@pytest.mark.slow
@pytest.mark.parametrize("val", ["valid", "Validation"])
def test_it_says_which_images_are_used_for_what(val, tmp_path, capsys, monkeypatch):
    root = tmp_path / "parts"
    for at, n in (("train", 5), (val, 2), ("test", 3)):
        paint(root / at, n=n, seed=n)
    options = replace(PRESETS["own"], size=16)
    for changes, says in (
        (
            {},
            f"train: 15 images (train/); validation: 6 ({val}/), chooses the epoch; "
            "test: 9 (test/)",
        ),
        (
            {"epoch": "last"},
            f"train: 15 images (train/); validation: 6 ({val}/), is not used; test: 9 (test/); "
            "the last epoch is saved",
        ),
    ):
        mine = replace(options, **changes)
        data, _ = images.load_images(root, mine)
        assert images.describe_images(root, data, mine) == says
        split = script.make_config(mine, data).train.eval_split
        assert split == ("test" if changes else "validation")
    shutil.rmtree(root / "test")
    for changes, says in (
        ({}, f"validation: 6 ({val}/), chooses the epoch and is reported; test: none"),
        ({"epoch": "last"}, f"validation: 6 ({val}/), is reported; test: none; the last epoch"),
        ({"test": 0.2}, "train: 12 images (train/); validation: 6 .*; test: 3 (split off from"),
    ):
        mine = replace(options, **changes)
        data, _ = images.load_images(root, mine)
        line = images.describe_images(root, data, mine)
        assert re.search(re.escape(says).replace(r"\.\*", ".*"), line), line
    shutil.rmtree(root / val)
    for name in CLASSES:
        (root / "train" / name).rename(root / name)
    (root / "train").rmdir()
    mine = replace(options, validation=0.2)
    data, _ = images.load_images(root, mine)
    assert images.describe_images(root, data, mine) == (
        "train: 9 images (parts/); validation: 3 (split off from parts/), chooses the epoch; "
        "test: 3 (split off from parts/)"
    )
    monkeypatch.setattr(script, "train", lambda *a: pytest.fail("said too late"))
    args = ["--images", str(root), *TINY, "--epochs", "1", "--out", str(tmp_path / "out")]
    with pytest.raises(pytest.fail.Exception):
        script.main(args)
    line = "train: 12 images (parts/); validation: none; test: 3 (split off from parts/); the last"
    assert line in capsys.readouterr().out


@pytest.mark.slow
def test_weights_of_classes_are_those_of_scikit_learn(tmp_path):
    for name, n in zip(CLASSES, (30, 10, 5), strict=True):
        paint(tmp_path / "rare", (name,), n, seed=n)
    out = tmp_path / "out"
    args = ["--images", str(tmp_path / "rare"), *TINY, "--epochs", "1", "--out", str(out)]
    args += ["--model", "convnet"]
    assert script.main([*args, "--class-weight", "balanced"]) == 0
    config = jc.ExperimentConfig.load(out / "run")
    data = images.reload_images(out / "run")
    assert np.bincount(data.train.labels).tolist() == [24, 8, 4]
    theirs = compute_class_weight("balanced", classes=np.arange(3), y=data.train.labels)
    assert config.loss == "cross-entropy"
    np.testing.assert_allclose(config.loss_kwargs["class_weights"], theirs, rtol=1e-12)
    loss = jc.create_loss(config.loss, **config.loss_kwargs)
    saved, row = load_classifier(out), jc.read_metrics(out / "run")[-1]
    weighted = jc.evaluate(saved.model, saved.state, data.test, loss=loss).mean_loss
    assert row["eval_loss"] == pytest.approx(weighted, rel=1e-5)
    # Against the definition, from the probabilities alone.
    shares = saved.probabilities(data.test.images)[np.arange(9), data.test.labels]
    by_hand = (-np.log(shares) * theirs[data.test.labels]).mean()
    assert row["eval_loss"] == pytest.approx(by_hand, rel=1e-4)
    seen = load_context(Options(run=out / "run", parts=("errors",), out=tmp_path / "page"))
    np.testing.assert_array_equal(seen.labels, data.test.labels)
    assert "classes weighted by their rarity" in (out / "table.md").read_text("utf-8")
    refused = [*args, "--class-weight", "none"]
    with pytest.raises(SystemExit):
        script.main(refused)  # another loss than the run's


@pytest.mark.slow
def test_the_best_epoch_is_saved_and_tested_once(run, tmp_path, capsys, monkeypatch):
    """Worse by construction: it begins with a trained network and unlearns it.

    Training images have the names of other classes, and those of validation and test their own.
    """
    root, out = tmp_path / "parts", tmp_path / "out"
    # As many images as those of `run`, whose programs evaluate here.
    paint(root / "val", n=3, seed=2)
    paint(root / "test", n=3, seed=3)
    paint(root / "right", n=13, seed=1)
    for name, other in zip(CLASSES, (*CLASSES[1:], CLASSES[0]), strict=True):
        (root / "train").mkdir(exist_ok=True)
        (root / "right" / name).rename(root / "train" / other)
    (root / "right").rmdir()
    weights = str(run / "weights.safetensors")
    options = list(zip(TINY[::2], TINY[1::2], strict=True))
    base = [*sum((pair for pair in options if "rate" not in pair[0]), ()), "--images", str(root)]
    base += ["--weights", weights, "--backbone-rate", "1", "--learning-rate", "0.05"]
    args = [*base, "--eval-every", "1", "--epochs", "4", "--out", str(out)]
    evaluated = []
    probabilities = Classifier.probabilities
    monkeypatch.setattr(
        Classifier,
        "probabilities",
        lambda self, pixels: evaluated.append(pixels) or probabilities(self, pixels),
    )
    assert script.main(args) == 0
    rows = jc.read_metrics(out / "run")
    errors = [row["eval_error"] for row in rows]
    assert {row["eval_split"] for row in rows} == {"validation"}
    assert errors[-1] > min(errors) + 20, errors
    best = max(row["step"] for row in rows if row["eval_error"] == min(errors))
    assert best < rows[-1]["step"]
    saved, data = load_classifier(out), images.reload_images(out / "run")
    assert len(evaluated) == 1
    np.testing.assert_array_equal(evaluated[0], data.test.images)
    assert int(saved.state.step) == best
    sums = jc.evaluate(saved.model, saved.state, data.validation)
    assert sums.error_percent == pytest.approx(min(errors), abs=1e-4)
    test_error = jc.evaluate(saved.model, saved.state, data.test).error_percent
    assert float(table(out)["all"]["recall"]) == pytest.approx(100 - test_error, abs=1e-3)
    assert table(out)["all"]["test"] == "9"
    note = f"at step {best}, of {len(rows)} evaluations the one with the lowest validation error, "
    printed = capsys.readouterr().out
    assert f"{note}{min(errors):.1f}%; the test images chose nothing" in printed
    assert f"{note}{min(errors):.1f}%" in (out / "table.md").read_text("utf-8")
    # The checkpoints have it too, without the model.
    with jc.Checkpoints(out / "run/checkpoints") as checkpoints:
        kernel = checkpoints.variables("best")["params"]["head"]["kernel"]
    np.testing.assert_array_equal(kernel, saved.variables["params"]["head"]["kernel"])
    # Again from the file alone, and not as the last epoch.
    before = (out / "table.md").read_bytes()
    assert script.main([*args, "--plot-only"]) == 0
    assert (out / "table.md").read_bytes() == before
    with monkeypatch.context() as patch:
        patch.setattr("experiments.finetune.__main__.make_initializer", lambda *a: lambda s: s)
        refuses(
            script.main,
            [*args, "--epoch", "last"],
            "the best epoch; write --epoch best",
            capsys,
            patch,
        )
    options = Options(run=out / "run", parts=("errors",), out=tmp_path / "page")
    seen = load_context(options)
    np.testing.assert_array_equal(seen.images, data.validation.images)
    # The run is the same one with --epoch last, and another network is saved.
    last = tmp_path / "last"
    assert script.main([*args[:-1], str(last), "--epoch", "last"]) == 0
    assert int(load_classifier(last).state.step) == rows[-1]["step"]
    assert jc.read_metrics(last / "run")[-1]["eval_split"] == "test"
    assert "at the last step" in (last / "table.md").read_text("utf-8")
    sums = jc.evaluate(saved.model, load_classifier(last).state, data.validation)
    assert sums.error_percent == pytest.approx(errors[-1], abs=1e-4)


@pytest.mark.slow
def test_a_classifier_of_an_earlier_version_is_read(run, sweets, tmp_path):
    """Its header has no step and no epoch."""
    shutil.copytree(run, tmp_path / "old")
    path = tmp_path / "old/weights.safetensors"
    header = {k: v for k, v in read_metadata(path).items() if k not in ("step", "epoch")}
    assert (
        header.keys()
        == read_metadata(path).keys() - {"step", "epoch"}
        != read_metadata(path).keys()
    )
    save_file(load_file(path), path, header)
    file = sweets / "plum/0.jpg"
    new, old = (load_classifier(out).predict(file) for out in (run, tmp_path / "old"))
    np.testing.assert_array_equal(new[0], old[0])
    before = (tmp_path / "old/table.md").read_bytes()
    args = ["--images", str(sweets), *TINY, "--out", str(tmp_path / "old")]
    assert script.main(args) == 0
    assert (tmp_path / "old/table.md").read_bytes() == before
    with pytest.raises(
        jc.ArgumentError, match=r"run of a fine-tuned classifier, .*load_classifier"
    ):
        load_classifier(run / "run")


@pytest.mark.slow
def test_folders_become_a_csv_with_any_names(run, sweets, tmp_path, capsys, monkeypatch):
    root = tmp_path / "new"
    names = [
        "a,b.jpg",
        'say "x".jpg',
        "line\nbreak.jpg",
        "猫/梅 .jpg",
        "b/z.JPG",
        "b/a.jpg",
        "é.jpg",
    ]
    for i, name in enumerate([*names, ".hidden.jpg", "notes.txt"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(sweets / "plum" / f"{3 * (i % 5)}.jpg", root / name)
    (tmp_path / "=1+1.jpg").write_bytes((sweets / "mint/0.jpg").read_bytes())
    monkeypatch.chdir(tmp_path)
    args = ["--run", str(run), "=1+1.jpg", "new", "--csv", "out/table.csv"]
    assert predict.main(args) == 0
    printed = capsys.readouterr().out
    assert "wrote out/table.csv" in printed
    with open("out/table.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    paths = sorted((Path("new", name) for name in names), key=lambda path: path.as_posix())
    assert [Path(row["path"]) for row in rows] == [Path("=1+1.jpg"), *paths]
    assert rows[0]["path"] == "./=1+1.jpg"
    assert list(rows[0]) == ["path", "class", *(f"p({name})" for name in CLASSES)]
    truth, likeliest = load_classifier(run).predict([Path("=1+1.jpg"), *paths])
    shares = [[float(row[f"p({name})"]) for name in CLASSES] for row in rows]
    np.testing.assert_allclose(shares, truth, rtol=1e-8)
    assert [row["class"] for row in rows] == list(likeliest)
    assert len(printed.splitlines()) == 2 + 1 + len(names) + 1  # the table is printed as before


def test_a_csv_is_what_its_reader_gives_back():
    """Names of classes and files of any letters, but for bytes that are no text."""
    classes = ["a,b", 'c "d"', "猫", "path", "class"]
    paths = [Path("x\r\ny"), Path("-1"), Path("@x"), Path("/=x"), Path("b\udcff"), Path("a\tb")]
    shares = np.random.default_rng(0).dirichlet(np.ones(5), len(paths))
    text = predict.csv_text(classes, paths, shares)
    header, *rows = csv.reader(io.StringIO(text, newline=""))
    assert header == ["path", "class", *(f"p({name})" for name in classes)]
    read = [Path(row[0]) for row in rows]
    assert read == [*paths[:4], Path("b\\udcff"), paths[5]]
    assert [row[0][0] for row in rows] == list("x../ba")
    assert [row[1] for row in rows] == [classes[label] for label in shares.argmax(1)]
    np.testing.assert_allclose(np.array([row[2:] for row in rows], float), shares, rtol=1e-8)
    text.encode("utf-8")


@pytest.mark.slow
def test_broken_files_are_named_or_left_out(run, sweets, tmp_path, capsys, monkeypatch):
    root = tmp_path / "new"
    root.mkdir()
    shutil.copy(sweets / "plum/0.jpg", root / "b.jpg")
    (root / "a.jpg").touch()
    (root / "c.heic").write_bytes(b"x")
    (tmp_path / "none").mkdir()
    base, out = ["--run", str(run), "--csv", str(tmp_path / "t.csv")], tmp_path / "t.csv"
    for args, says in (
        (
            [str(root)],
            f"2 files are not images that can be read: {root}/a.jpg (empty), {root}/c.heic",
        ),
        ([str(root)], "or write --skip-broken"),
        ([str(root / "a.jpg"), "--skip-broken"], "1 file is not an image"),  # none is left
        ([str(tmp_path / "none")], "has no image in it"),
        (
            [str(root / "b.jpg"), "--csv", "table.jpg"],
            "csv is 'table.jpg'; expected a file: write --csv table.csv",
        ),
        ([str(root / "b.jpg"), "--csv", str(root)], "table.csv"),
        ([str(root / "b.jpg"), "--csv", "/proc/none/t.csv"], "cannot write in /proc/none"),
        ([*[str(root / "b.jpg")] * 101, "--heat", str(tmp_path / "h.png")], "--heat draws 100"),
    ):
        refuses(predict.main, [*base, *args], says, capsys, monkeypatch)
        assert not out.exists()
    assert predict.main([*base, str(root), "--skip-broken", "--heat", str(tmp_path / "h.png")]) == 0
    captured = capsys.readouterr()
    assert f"skipped: 2 files are not images that can be read: {root}/a.jpg (empty)" in captured.err
    with out.open(newline="", encoding="utf-8") as file:
        assert [row["path"] for row in csv.DictReader(file)] == [str(root / "b.jpg")]
    assert (tmp_path / "h.png").exists()


@pytest.mark.slow
def test_predict_takes_a_run_on_a_data_set(tmp_path, capsys):
    data, model = jc.load_dataset("digits"), jc.create_model("convnet", 10, width=2, hidden=4)
    tx, config = jc.create_optimizer(jc.OptimizerConfig()), jc.TrainConfig(2, 32)
    for _ in jc.train(model, tx, data, config, run_dir=tmp_path / "run"):
        pass
    Image.fromarray(np.repeat(data.test.images[0], 5, 0).repeat(5, 1)[..., 0]).save(
        tmp_path / "7.png"
    )
    args = ["--run", str(tmp_path / "run"), str(tmp_path / "7.png")]
    assert predict.main([*args, "--heat", str(tmp_path / "heat.png")]) == 0
    shares, (name,) = load_classifier(tmp_path / "run").predict(tmp_path / "7.png")
    assert f"{name} {100 * shares.max():.1f}%" in capsys.readouterr().out


@pytest.mark.slow
def test_class_names_are_text(tmp_path):
    names = ("a $ b^{", "x|y *z*", "猫")
    paint(tmp_path / "odd", names)
    out = tmp_path / "out"
    assert script.main(["--images", str(tmp_path / "odd"), *TINY, "--out", str(out)]) == 0
    rows = [
        line for line in (out / "table.md").read_text("utf-8").splitlines() if line.startswith("|")
    ]
    assert {len(re.split(r"(?<!\\)\|", row)) for row in rows} == {8}
    assert set(table(out)) == {*names, "all"}


@pytest.mark.slow
def test_beginning_from_weights(run, tmp_path, caplog):
    """Two other classes: the head is new, what is frozen stays bit for bit with its BN, the rest moves."""
    root, out = paint(tmp_path / "two", ("fig", "kiwi"), 8, seed=5), tmp_path / "out"
    args = [
        "--images",
        str(root),
        *TINY,
        "--epochs",
        "1",
        "--out",
        str(out),
        "--weights",
        str(run / "weights.safetensors"),
    ]
    assert script.main([*args, "--freeze", "stem", "stage2"]) == 0
    assert "starts from scratch" in caplog.text
    before, after = (read_weights(where / "weights.safetensors")[0] for where in (run, out))
    assert before.keys() == after.keys()
    for name in before:
        same = before[name].shape == after[name].shape and np.array_equal(before[name], after[name])
        frozen = name.startswith(("stem", "stage2"))
        assert same == (frozen or name.endswith("num_batches_tracked")), name
    config = jc.ExperimentConfig.load(out / "run")
    assert config.train.freeze == ("stem", "stage2")
    assert config.optimizer.lr_multipliers == {"stage1": 0.1, "stage3": 0.1}
    assert json.loads(read_metadata(out / "weights.safetensors")["classes"]) == ["fig", "kiwi"]
    assert "from weights.safetensors" in (out / "table.md").read_text("utf-8")


@pytest.mark.slow
def test_the_config_for_a_head_alone_and_for_all(run, sweets):
    data, _ = image_folder_with_paths(sweets, 16)
    options = replace(
        PRESETS["own"], model="resnet8", width=2, size=16, weights=run / "weights.safetensors"
    )
    head = script.make_config(replace(options, train="head"), data)
    assert sorted(head.train.freeze) == ["stage1", "stage2", "stage3", "stem"]
    assert head.optimizer.lr_multipliers == {}
    whole = script.make_config(options, data)
    assert whole.optimizer.lr_multipliers == dict.fromkeys(
        ("stem", "stage1", "stage2", "stage3"), 0.1
    )
    assert (
        whole.train.subtract_mean,
        whole.train.divide_std,
        whole.train.augment.crop,
        whole.train.augment.padding,
        whole.train.augment.flip,
    ) == (
        "imagenet",
        True,
        "resized",
        0,
        True,
    )
    assert (whole.train.num_steps, whole.train.batch_size) == (round(10 * 39 / 32), 32)
    assert (
        script.make_config(replace(options, weights=None, crop="pad"), data).train.augment.padding
        == 2
    )
    part = script.make_config(replace(options, freeze=("stage1_block1",)), data)
    assert part.train.freeze == ("stage1_block1",)
    few, _ = image_folder_with_paths(sweets, 16, validation=0.3, test=0)
    assert (
        script.make_config(options, few).train.eval_split,
        script.make_config(options, few).num_validation,
    ) == ("validation", 15)


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on(run, sweets, tmp_path, monkeypatch, capsys):
    args = ["--images", str(sweets), *TINY, "--out", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        asked = iter([False] * 6 + [True] * 100)
        patch.setattr("jaxcnn.cli.GracefulShutdown.__call__", lambda self: next(asked))
        patch.setattr("jaxcnn.cli.GracefulShutdown.exit_code", 130)
        assert script.main(args) == 130
    assert "the same command resumes from here" in capsys.readouterr().err
    assert not (tmp_path / "out/weights.safetensors").exists()
    assert script.main(args) == 0
    first, second = (
        read_weights(out / "weights.safetensors")[0] for out in (run, tmp_path / "out")
    )
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], name)
    times = ("seconds", "images_per_second")
    rows = [
        [{k: v for k, v in row.items() if k not in times} for row in jc.read_metrics(out / "run")]
        for out in (run, tmp_path / "out")
    ]
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_a_run_that_is_over_is_only_drawn_and_never_mixed_with_another(
    run, sweets, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("jaxcnn.runs.single.train", lambda *a, **k: pytest.fail("it trained"))
    before = (run / "table.csv").read_text("utf-8")
    (run / "table.csv").unlink()
    assert script.main(["--images", str(sweets), *TINY, "--out", str(run)]) == 0
    assert script.main(["--images", str(sweets), *TINY, "--out", str(run), "--plot-only"]) == 0
    assert (run / "table.csv").read_text("utf-8") == before
    other = paint(tmp_path / "other", n=16, seed=9)
    for args, says in (
        (["--images", str(other), *TINY], "holds a run from other images; write another --out"),
        (
            ["--images", str(sweets), *TINY, "--weights", str(run / "weights.safetensors")],
            "from other weights",
        ),
        (["--images", str(sweets), *TINY, "--learning-rate", "0.1"], "learning_rate"),
    ):
        refuses(script.main, [*args, "--out", str(run)], says, capsys, monkeypatch)


MISTAKES = [
    (["--preset", "own"], "--images is missing; write --images"),
    (["--images", "nowhere"], "is not there; expected a folder with a subfolder"),
    (["--images", "SWEETS", "--model", "resnet21x"], "model is 'resnet21x'"),
    (
        ["--images", "SWEETS", "--train", "head"],
        "--train head would keep random numbers as they are; write --weights",
    ),
    (["--images", "SWEETS", "--freeze", "stem"], "--freeze would keep random numbers"),
    (["--images", "SWEETS", "--weights", "gone.pth"], "gone.pth is refused: there is no such file"),
    (
        ["--images", "SWEETS", "--weights", "WEIGHTS", "--freeze", "stage9"],
        "freeze has 'stage9', of which resnet8 has nothing; it has",
    ),
    (
        ["--images", "nowhere", "--model", "resnet21x"],
        "model is 'resnet21x'",
    ),  # before the images are read
    (["--images", "nowhere", "--optimizer", "momentun"], "did you mean 'momentum'"),
    (["--images", "SWEETS", "--epochs", "0"], "epochs is 0"),
    (["--images", "SWEETS", "--test", "0"], "there are no images to test on; write --test 0.2"),
    (["--images", "SWEETS", "--resize", "8"], "resize is 8"),
    (["--images", "SWEETS", "--worst", "-1"], "worst is -1"),
    (["--images", "SWEETS/plum"], "has no folders of classes"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("args", "says"), MISTAKES)
def test_a_mistake_is_one_line_before_anything_is_trained(
    args, says, run, sweets, tmp_path, capsys, monkeypatch
):
    weights = str(run / "weights.safetensors")
    args = [arg.replace("SWEETS", str(sweets)).replace("WEIGHTS", weights) for arg in args]
    options = [pair for pair in zip(TINY[::2], TINY[1::2], strict=True) if pair[0] not in args]
    refuses(
        script.main,
        [*sum(options, ()), *args, "--out", str(tmp_path / "out")],
        says,
        capsys,
        monkeypatch,
    )


@pytest.mark.parametrize(
    ("args", "preset"),
    [
        ([], "photographs"),
        (["--images=x"], "own"),
        (["--preset", "cifar10", "--images", "x"], "cifar10"),
    ],
)
def test_the_preset_follows_from_the_images(args, preset, monkeypatch):
    assert _options("finetune", args, monkeypatch).preset == preset


# The folders of the presets


@pytest.mark.slow
def test_no_pixel_of_a_photograph_is_in_both_parts(tmp_path):
    images.write_photographs(tmp_path / "images")
    data, names = image_folder_with_paths(tmp_path / "images", images.SIDE, images.SIDE)
    assert data.classes == ("china", "flower", "hopper")
    spans = {part: {} for part in ("train", "test")}
    for part in spans:
        for name in names[part]:
            _, label, place = name.split("/")
            left = int(place.split(".")[0].split("-")[1])
            spans[part].setdefault(label, []).append((left, left + images.SIDE))
    for label in data.classes:
        assert max(right for _, right in spans["train"][label]) <= min(
            left for left, _ in spans["test"][label]
        )
    assert np.bincount(data.test.labels).min() >= 40
    before = (tmp_path / "images").stat().st_mtime_ns
    images.write_photographs(tmp_path / "images")  # there already
    assert (tmp_path / "images").stat().st_mtime_ns == before


def fake_cifar(n=24):
    rng = np.random.default_rng(0)
    names = (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )
    splits = [
        jc.Split(
            rng.integers(0, 256, (m, 32, 32, 3), dtype=np.uint8),
            (np.arange(m) % 10).astype(np.int32),
        )
        for m in (10 * n, 80)
    ]
    mean, std = np.full((32, 32, 3), 0.5, np.float32), np.full(3, 0.2, np.float32)
    empty = jc.Split(np.zeros((0, 32, 32, 3), np.uint8), np.zeros(0, np.int32))
    return jc.Dataset("cifar10", splits[0], empty, splits[1], names, mean, std)


def test_cifar10_as_files(tmp_path, monkeypatch):
    monkeypatch.setattr(jc, "load_dataset", lambda *a: fake_cifar())
    monkeypatch.setattr(images, "CIFAR_COUNTS", (5, 3))
    images.write_cifar10(tmp_path / "images")
    data, names = image_folder_with_paths(tmp_path / "images", 32, 32)
    truth = fake_cifar()
    assert data.classes == truth.classes
    assert (np.bincount(data.train.labels) == 5).all()
    assert (np.bincount(data.test.labels) == 3).all()
    at = [int(name.split("/")[-1].split(".")[0]) for name in names["test"]]
    np.testing.assert_array_equal(data.test.images, truth.test.images[at])
    np.testing.assert_array_equal(data.test.labels, truth.test.labels[at])


@contextlib.contextmanager
def other_process():
    """Yield a function that gives another process the lock of a folder, instead of the last one."""
    code = (
        "import sys; from jaxcnn.checkpoint import lock_folder\n"
        "for line in sys.stdin:\n"
        "    lock = None\n"
        "    lock = lock_folder(line.rstrip())\n"
        "    print('locked', flush=True)"
    )
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def hold(folder):
            stdin.write(f"{folder}\n")
            stdin.flush()
            assert stdout.readline() == "locked\n"

        yield hold
        process.communicate()


@pytest.mark.slow
def test_the_transfer_study(tmp_path, monkeypatch):
    monkeypatch.setattr(jc, "load_dataset", lambda *a: fake_cifar())
    args = [
        "--model",
        "convnet",
        "--width",
        "2",
        "--animals",
        "8",
        "--first-steps",
        "2",
        "--images",
        "4",
        "--held",
        "4",
    ]
    args += ["--num-seeds", "1", "--num-steps", "2", "--batch-size", "16", "--out", str(tmp_path)]
    # Another process has the first folder, then one of the runs: the others are trained meanwhile.
    with other_process() as hold:
        for held, trained in (
            ("animals", []),
            ("head-4-seed0", ["all-4-seed0", "scratch-4-seed0"]),
        ):
            hold(tmp_path / held / "checkpoints")
            assert transfer.main(args) == 0
            assert not (tmp_path / "table.csv").exists()
            finished = {path.parent.name for path in tmp_path.glob("*/result.json")} - {"animals"}
            assert sorted(finished) == trained
        # Nobody has the study.
        hold(tmp_path)
        assert transfer.main(args) == 0
    runs = transfer.runs_by_name(tmp_path)
    assert set(runs) == {"scratch-4-seed0", "head-4-seed0", "all-4-seed0"}
    assert runs["head-4-seed0"].config.train.freeze
    assert "head" not in runs["head-4-seed0"].config.train.freeze
    assert all(run.config.train.freeze == () for name, run in runs.items() if "head" not in name)
    assert all(run.config.optimizer.lr_multipliers == {} for run in runs.values())
    with (tmp_path / "table.csv").open() as file:
        assert [line["start"] for line in csv.DictReader(file)] == list(transfer.STARTS.values())
    monkeypatch.setattr("jaxcnn.runs.single.train", lambda *a, **k: pytest.fail("it trained"))
    assert transfer.main(args) == 0
    assert (tmp_path / "errors.png").read_bytes().startswith(b"\x89PNG")


def test_a_part_of_a_data_set():
    data = fake_cifar()
    vehicles = transfer.class_subset(data, transfer.VEHICLES, 6, 3)
    assert vehicles.train.images.shape == (24, 32, 32, 3)
    for label, name in enumerate(transfer.VEHICLES):
        old = data.classes.index(name)
        np.testing.assert_array_equal(
            vehicles.test.images[vehicles.test.labels == label],
            data.test.images[data.test.labels == old][:3],
        )


# Figures by hand


def test_the_table_counts_recall_and_precision():
    labels, said = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 0, 2])
    counts = metrics.confusion(labels, said, 3)
    assert counts.tolist() == [[1, 2, 0], [1, 1, 0], [0, 0, 1]]
    first, second, third, every = results.class_table(counts, "abc", np.array([5, 6, 7]), "test")
    assert first == {
        "class": "a",
        "train": 5,
        "test": 3,
        "recall": 100 / 3,
        "precision": 50,
        "taken for": "b (2)",
    }
    assert second == {
        "class": "b",
        "train": 6,
        "test": 2,
        "recall": 50,
        "precision": 100 / 3,
        "taken for": "a (1)",
    }
    assert (third["class"], third["recall"], third["taken for"]) == ("c", 100, None)
    assert (every["recall"], every["test"], every["train"]) == (50, 6, 18)
    held_out = results.class_table(counts, "abc", np.array([5, 6, 7]), "validation")
    assert [line["validation"] for line in held_out] == [3, 2, 1, 6]
    assert not [line for line in held_out if "test" in line]


@pytest.mark.parametrize(("right", "n"), [(0, 9), (9, 9), (3, 10), (91, 128)])
def test_wilsons_interval_solves_its_equation(right, n):
    """Its ends are the p for which |share - p| is 1.96 standard errors sqrt(p (1 - p) / n)."""
    for end in results.wilson_interval(right, n):
        p = end / 100
        assert abs(right / n - p) == pytest.approx(
            NormalDist().inv_cdf(0.975) * math.sqrt(max(p * (1 - p), 0) / n), abs=1e-9
        )


def test_the_worst_mistakes_are_the_surest_and_not_all_alike():
    labels = np.zeros(8, np.int64)
    labels[7] = 2
    sure = [0.9, 0.8, 0.7, 0.6, 0.95, 0.0, 0.55]
    shares = np.array([[1 - s, s, 0] for s in sure] + [[0.5, 0.2, 0.3]])
    assert results.worst_mistakes(labels, shares, 9).tolist() == [4, 0, 1, 2, 7]
    assert results.worst_mistakes(labels, shares, 2).tolist() == [4, 0]
    assert results.worst_mistakes(labels, shares, 9, max_per_pair=1).tolist() == [4, 7]


# Weights by name


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with a ResNet-18 of timm's, two filters wide, for other images than ImageNet's."""
    model = jc.create_model("resnet18", 5, width=2)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 24, 24, 3), np.float32))
    rng = np.random.default_rng(0)
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            np.ones(leaf.shape)
            if path[-1].key in ("scale", "var")
            else rng.normal(0, 0.1, leaf.shape)
        ),
        dict(shapes),
    )
    jc.export_weights(model, variables, tmp_path / "r18.safetensors")
    fields = {"input_size": [3, 24, 24], "crop_pct": 0.9, "interpolation": "bicubic"}
    fields |= {"mean": [0.5, 0.4, 0.3], "std": [0.25, 0.2, 0.3], "num_classes": 5}
    config = {"architecture": "resnet18", "num_classes": 5, "pretrained_cfg": fields}
    files = {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": (tmp_path / "r18.safetensors").read_bytes(),
    }
    with serve() as hub, environment(hub, tmp_path / "cache", monkeypatch):
        bare = {"model.safetensors": files["model.safetensors"]}
        hub.repos = {"timm/r18": Repo(files), "own/bare": Repo(bare)}
        yield hub


NAMED = ["--width", "2", "--epochs", "1", "--batch-size", "8", "--train", "head"]


@pytest.mark.slow
def test_weights_by_name_bring_their_preprocessing(hub, sweets, tmp_path, monkeypatch):
    out = tmp_path / "out"
    args = ["--images", str(sweets), *NAMED, "--weights", "hf:timm/r18", "--out", str(out)]
    assert script.main(args) == 0
    config = jc.ExperimentConfig.load(out / "run")
    assert config.train.subtract_mean == (0.5, 0.4, 0.3)
    assert config.train.divide_std == (0.25, 0.2, 0.3)
    settings = json.loads((out / "images.json").read_text())
    assert [settings[name] for name in ("size", "resize", "interpolation")] == [24, 26, "bicubic"]
    saved = load_classifier(out)
    assert (saved.size, saved.resize, saved.interpolation) == (24, 26, "bicubic")
    np.testing.assert_allclose(saved.state.normalizer.mean[3, 4], [0.5, 0.4, 0.3], rtol=1e-6)
    stem = saved.state.params["stem"]["kernel"]
    np.testing.assert_array_equal(
        stem, jc.load_weights(saved.model, "hf:timm/r18", (24, 24, 3))["params"]["stem"]["kernel"]
    )
    assert "from hf:timm/r18" in (out / "table.md").read_text("utf-8")
    data, _ = image_folder_with_paths(sweets, 24, 26, interpolation="bicubic")
    np.testing.assert_array_equal(images.reload_images(out / "run").test.images, data.test.images)
    # `predict` reads images as they were read for training.
    path = sweets / "plum/0.jpg"
    image = load_images([path], 24, 26, interpolation="bicubic")
    np.testing.assert_array_equal(saved.preprocess(path), image)
    array = np.asarray(Image.open(path).convert("RGB"))
    np.testing.assert_array_equal(saved.preprocess(array), image)
    # Again: it goes on from what is there.
    assert script.main(args) == 0


def test_what_the_user_chooses_comes_before_the_names_preprocessing(hub):
    options = replace(PRESETS["own"], images=Path("x"), weights=Path("hf:timm/r18"), width=2)
    taken = with_preprocessing(options)
    assert (taken.size, taken.resize, taken.interpolation) == (24, 26, "bicubic")
    assert (taken.subtract_mean, taken.divide_std) == ((0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
    own = replace(options, size=48, interpolation="bilinear", divide_std=(0.5,))
    taken = with_preprocessing(own)
    assert (taken.size, taken.resize, taken.interpolation) == (48, 53, "bilinear")
    assert (taken.subtract_mean, taken.divide_std) == ((0.5, 0.4, 0.3), (0.5,))
    file = replace(options, weights=Path("r18.pth"))
    assert with_preprocessing(file) is file


def test_weights_by_name_that_do_not_fit_are_one_line(hub, sweets, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    args = ["--images", str(sweets), *NAMED, "--out", str(out), "--weights"]
    for more, says in (
        (["hf:timm/r18", "--model", "resnet34"], "is of 'resnet18'; expected weights of the model"),
        (["hf:own/bare"], "does not say how its images were normalized"),
        (["hf:timm/none"], "is not on http://127.0.0.1"),
        (["hf:timm"], "is no name on the hub"),
        (["hf:timm/r18", "--subtract-mean", "0.5", "0.5"], "subtract_mean has 2 numbers"),
        (["hf:timm/r18", "--divide-std", "0"], "divide-std is 0.0; expected"),
        ([str(tmp_path / "r18.safetensors"), "--divide-std", "0.5"], "subtract_mean has none"),
    ):
        refuses(script.main, [*args, *more], says, capsys, monkeypatch)
    assert not out.exists()


def test_constants_of_the_users_own_are_those_of_the_run(sweets):
    data, _ = image_folder_with_paths(sweets, 16)
    options = replace(PRESETS["own"], subtract_mean=(0.4, 0.5, 0.6), divide_std=(0.3,), size=16)
    train = script.make_config(options, data).train
    assert (train.subtract_mean, train.divide_std) == ((0.4, 0.5, 0.6), (0.3,))


def test_the_note_of_a_last_step_is_that_of_the_committed_table():
    """Its counts, from the columns of that table."""
    counts = np.array([[30, 0, 10], [0, 40, 0], [26, 1, 21]])  # china, flower, hopper
    options = PRESETS["photographs"]
    empty = jc.Split(np.zeros((0, 48, 48, 3), np.uint8), np.zeros(0, np.int32))
    labels = np.repeat(np.arange(3, dtype=np.int32), (528, 528, 595))
    train = jc.Split(np.broadcast_to(np.uint8(0), (1651, 48, 48, 3)), labels)
    test = jc.Split(np.zeros((1, 48, 48, 3), np.uint8), np.zeros(1, np.int32))
    mean = np.zeros((48, 48, 3), np.float32)
    data = jc.Dataset("folder", train, empty, test, ("china", "flower", "hopper"), mean, mean[0, 0])
    config = script.make_config(options, data)
    assert (config.loss, config.loss_kwargs, config.train.eval_split) == (
        "cross-entropy",
        {},
        "test",
    )
    note = results.protocol_note(counts, np.bincount(labels), config, None, "test")
    committed = Path(script.__file__).parents[1] / "results/finetune/table.md"
    assert note in committed.read_text("utf-8").splitlines()
