"""A trained network comes out of its folder alone: the same probabilities, its classes and its preprocessing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from PIL import Image
from scipy.special import log_softmax

import jaxcnn as jc
from jaxcnn import runs
from jaxcnn.classifier import Classifier, load_classifier, save_classifier
from jaxcnn.data import ImageError, resize_image
from jaxcnn.data.image_io import load_images, to_gray
from jaxcnn.state import eval_state
from jaxcnn.weights import WeightsError, read_metadata

pytestmark = pytest.mark.quick_compilation

ONE = {"devices": 1}


class Own(nn.Module):
    """A network that is not the library's."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(4, (3, 3), strides=2)(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(self.num_classes)(nn.relu(x).reshape(len(x), -1))


def train(folder, model=None, optimizer="momentum", data=None, **kwargs):
    data = jc.load_dataset("digits") if data is None else data
    model = (
        jc.create_model("convnet", 10, width=2, hidden=4, batch_norm=True)
        if model is None
        else model
    )
    config = jc.TrainConfig(6, 32, eval_every=2, **kwargs)
    tx = jc.create_optimizer(jc.OptimizerConfig(optimizer))
    one = jc.strategy("jit", **ONE)
    return list(jc.train(model, tx, data, config, run_dir=folder, strategy=one)), model, data


def expected(model, state, images):
    """Softmax of the logits that the run's own state gives."""
    return np.exp(log_softmax(jc.predict(model, state, images).astype(np.float64), axis=1))


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier") / "run"
    return folder, *train(folder)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["momentum", "schedule-free"])
def test_a_fresh_process_predicts_what_the_run_does(optimizer, tmp_path):
    """It gets a folder and images, and nothing else."""
    rows, model, data = train(tmp_path / "run", optimizer=optimizer)
    images = data.test.images[:70]
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys, numpy as np, jaxcnn as jc\n"
        "p, names = jc.load_classifier(sys.argv[1]).predict(np.load(sys.argv[2]))\n"
        "np.save(sys.argv[3], p); print(*names)"
    )
    args = [tmp_path / "run", tmp_path / "images.npy", tmp_path / "out.npy"]
    done = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, check=True
    )
    truth = expected(model, rows[-1][0], images)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), truth, atol=1e-6, rtol=0)
    assert done.stdout.split() == [data.classes[label] for label in truth.argmax(1)]


@pytest.mark.slow
def test_a_run_is_opened_at_its_steps(digits_run):
    folder, rows, model, data = digits_run
    images = data.test.images[:9]
    best = min(rows, key=lambda pair: (pair[1]["eval_error"], -pair[1]["step"]))
    for step, state in ((None, rows[-1][0]), ("last", rows[-1][0]), ("best", best[0])):
        classifier = load_classifier(folder, step=step)
        assert int(classifier.state.step) == int(state.step)
        np.testing.assert_allclose(
            classifier.predict(images)[0], expected(model, state, images), atol=1e-12
        )
    classifier = load_classifier(folder)
    assert classifier.classes == data.classes
    assert (classifier.size, classifier.resize, classifier.name) == (8, 8, "convnet")
    np.testing.assert_array_equal(classifier.mean, rows[-1][0].normalizer.mean)
    np.testing.assert_array_equal(classifier.std, rows[-1][0].normalizer.std)
    np.testing.assert_array_equal(
        classifier.variables["params"]["head"]["kernel"], rows[-1][0].params["head"]["kernel"]
    )
    assert classifier.variables.keys() == {"params", "batch_stats"}
    lines = repr(classifier).splitlines()
    assert lines[0] == "Classifier"
    assert lines[1].startswith("  model    convnet, ")
    assert lines[1].endswith("step 6")
    assert lines[2] == "  classes  10: 0, 1, 2, 3, ..., 9"
    assert lines[3] == "  images   8 x 8 x 1"
    assert all(line[10] == " " and line[11] != " " for line in lines[1:])


@pytest.mark.slow
def test_arrays_and_files_are_treated_alike(digits_run, tmp_path):
    """Images of several sizes, in color and gray, for a network of 8 x 8 gray pixels."""
    folder, *_ = digits_run
    classifier = load_classifier(folder)
    rng = np.random.default_rng(3)
    arrays = [
        rng.integers(0, 256, shape, np.uint8)
        for shape in ((30, 41, 3), (17, 9, 3), (8, 8, 3), (12, 12), (50, 8, 4))
    ]
    paths = []
    for i, array in enumerate(arrays):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(array).save(paths[-1])
    from_files, names = classifier.predict(paths)
    from_arrays, same = classifier.predict(arrays)
    np.testing.assert_allclose(from_files, from_arrays, atol=1e-12)
    assert names == same
    np.testing.assert_allclose(
        classifier.predict([paths[0], *arrays[1:]])[0], from_files, atol=1e-12
    )
    np.testing.assert_allclose(classifier.predict(paths[0])[0], from_files[:1], atol=1e-6)
    np.testing.assert_allclose(classifier.predict(str(paths[0]))[0], from_files[:1], atol=1e-6)
    np.testing.assert_allclose(classifier.predict(arrays[0])[0], from_files[:1], atol=1e-6)
    np.testing.assert_allclose(classifier.predict(arrays[3])[0], from_files[3:4], atol=1e-6)
    # Against the pieces: Pillow's own resizing by load_images, then the luminance.
    squares = load_images(paths, 8, 8)
    np.testing.assert_array_equal(classifier.preprocess(paths), to_gray(squares))
    np.testing.assert_array_equal(
        to_gray(squares)[..., 0], np.round(squares @ [0.2126, 0.7152, 0.0722]).astype(np.uint8)
    )
    # Images of the size are as they are.
    digits = jc.load_dataset("digits").test.images[:5]
    np.testing.assert_array_equal(classifier.preprocess(digits), digits)


@pytest.mark.slow
def test_what_cannot_be_predicted_is_one_line(digits_run, tmp_path):
    folder, *_ = digits_run
    classifier = load_classifier(folder)
    (tmp_path / "empty.png").touch()
    good = tmp_path / "good.png"
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(good)
    broken = [tmp_path / "empty.png", good, tmp_path / "gone.png"]
    images = np.zeros((2, 9, 9, 3), np.uint8)
    values: list[tuple[Any, type[ValueError], str]] = [
        (broken, ImageError, "2 files are not images that can be read: .*empty.png .*gone.png"),
        ([images[0], broken[0]], ImageError, "1 file is not an image"),
        (images / np.float32(255), jc.DataError, r"images\[0\]: an image is float32 \[9, 9, 3\]"),
        (np.zeros((2, 9, 9, 7), np.uint8), jc.DataError, "1, 3 or 4 channels"),
        (np.zeros((2, 0, 9, 3), np.uint8), jc.DataError, "1, 3 or 4 channels"),
        (np.zeros(3, np.uint8), jc.ArgumentError, "images have shape"),
        ([], jc.ArgumentError, "none at all"),
        (images[:0], jc.ArgumentError, "none at all"),
        (None, jc.ArgumentError, "images are None; expected paths or uint8 arrays"),
        ([good, None], jc.ArgumentError, "an image is None"),
        ([1, 2], jc.ArgumentError, "an image is 1"),
    ]
    for value, error, words in values:
        with pytest.raises(error, match=words) as caught:
            classifier.predict(value)
        assert "\n" not in str(caught.value)
    result = classifier.predict_files(broken)
    assert result.paths == (good,)
    assert [name for name, _ in result.broken] == [str(broken[0]), str(broken[2])]
    assert classifier.predict_files(broken[:1]).probabilities.shape == (0, 10)
    with pytest.raises(jc.DataError, match="more than"):
        resize_image(np.broadcast_to(np.zeros((1, 1), np.uint8), (20000, 20000)), 8)


@pytest.mark.slow
def test_many_files_are_predicted_a_few_at_a_time(digits_run, tmp_path, monkeypatch):
    folder, *_ = digits_run
    classifier = load_classifier(folder)
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(150)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (10, 12, 3), np.uint8)).save(path)
    whole, _ = classifier.predict(paths)
    monkeypatch.setattr("jaxcnn.classifier._CHUNK_PIXELS", 1)
    assert [len(chunk) for chunk in classifier._chunks(paths)] == [64, 64, 22]
    np.testing.assert_allclose(classifier.predict(paths)[0], whole, atol=1e-6, rtol=0)
    paths[70].write_bytes(b"no image")
    paths[140].unlink()
    with pytest.raises(ImageError, match="2 files"):
        classifier.predict(paths)
    result = classifier.predict_files(paths)
    good = [i for i in range(150) if i not in (70, 140)]
    assert result.paths == tuple(paths[i] for i in good)
    np.testing.assert_allclose(result.probabilities, whole[good], atol=1e-6, rtol=0)


@pytest.mark.slow
def test_a_run_of_ones_own_model_and_data(tmp_path):
    """Each piece that is not the library's is named, and what to write instead."""
    digits = jc.load_dataset("digits")
    names = tuple(f"digit {name}" for name in digits.classes)
    rows, model, _ = train(
        tmp_path / "run", Own(), data=digits._replace(name="mine", classes=names)
    )
    with pytest.raises(
        jc.ArgumentError, match=r"Own', which is not the library's; write .*model="
    ) as error:
        load_classifier(tmp_path / "run", classes=names)
    assert "\n" not in str(error.value)
    assert load_classifier(tmp_path / "run", model=model).classes == names
    (tmp_path / "run/classes.json").unlink()  # as of a run of an earlier version
    with pytest.raises(jc.ArgumentError, match=r"'mine', data of your own.*classes=data.classes"):
        load_classifier(tmp_path / "run", model=model)
    classifier = load_classifier(tmp_path / "run", classes=list(names), model=model, resize=10)
    assert (classifier.classes, classifier.size, classifier.resize) == (names, 8, 10)
    assert "8 x 8 x 1, the middle of 10" in repr(classifier)
    images = digits.test.images[:20]
    truth = expected(model, rows[-1][0], images)
    np.testing.assert_allclose(classifier.probabilities(images), truth, atol=1e-6, rtol=0)
    default = load_classifier(tmp_path / "run", classes=names, model=model)
    assert default.resize == 8  # arrays are trained on as they are
    np.testing.assert_allclose(default.predict(images)[0], truth, atol=1e-6, rtol=0)
    for kwargs, words in (
        ({"model": Own(9), "classes": names[:9]}, r"variables of another model than Own: 2 differ"),
        (
            {"model": jc.create_model("mlp", 10), "classes": names},
            "variables of another model than MLP",
        ),
        ({"model": model, "classes": names[:9]}, r"gives \[10\] for an image; expected \[9\]"),
        ({"model": model, "classes": ("a", "a")}, "two classes have one name"),
        ({"model": model, "classes": "abc"}, "classes is 'abc'"),
        ({"model": model, "classes": ("a", "b\x1b")}, "cannot be printed"),
        ({"model": model, "classes": names, "resize": 3}, "resize is 3"),
        ({"model": 3, "classes": names}, "model"),
        ({"model": model, "classes": names, "step": 7}, "write one of"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            load_classifier(tmp_path / "run", **kwargs)
        assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_run_on_a_folder_of_images_needs_the_folder_alone(tmp_path):
    """`train` writes down the names of its classes, of any letters."""
    rng = np.random.default_rng(0)
    for name in ('猫 "x"', "lime"):
        (tmp_path / "own" / name).mkdir(parents=True)
        for i in range(20):
            image = Image.fromarray(rng.integers(0, 256, (12, 14 + i, 3), np.uint8))
            image.save(tmp_path / "own" / name / f"{i}.png")
    data = jc.image_folder(tmp_path / "own", size=8)
    rows, model, _ = train(tmp_path / "run", jc.create_model("mlp", 2), data=data)
    classifier = load_classifier(tmp_path / "run")
    assert classifier.classes == data.classes == ("lime", '猫 "x"')
    files = sorted((tmp_path / "own").rglob("*.png"))
    other = load_classifier(tmp_path / "run", resize=12, interpolation="bicubic")
    same = load_images(files[:3], 8, 12, interpolation="bicubic")
    np.testing.assert_array_equal(other.preprocess(files[:3]), same)
    images = load_images(files, 8)  # as image_folder reads them
    truth = expected(model, rows[-1][0], images)
    np.testing.assert_allclose(classifier.predict(files)[0], truth, atol=1e-6, rtol=0)
    # One writer for a run and for a classifier, of letters as they are.
    text = (tmp_path / "run/classes.json").read_text("utf-8")
    assert text == '[\n  "lime",\n  "猫 \\"x\\""\n]\n'
    (tmp_path / "run/classes.json").write_text('["a", "b\\u001b"]')
    with pytest.raises(ValueError, match=r"classes\.json"):
        load_classifier(tmp_path / "run")
    (tmp_path / "run/classes.json").write_text('["a", "b", "c"]')
    with pytest.raises(ValueError, match="variables of another model than MLP"):
        load_classifier(tmp_path / "run")


def test_a_run_records_how_its_images_were_resized(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("fig", "lime"):
        (tmp_path / "own" / name).mkdir(parents=True)
        for i in range(24):
            image = Image.fromarray(rng.integers(0, 256, (19, 16 + i, 3), np.uint8))
            image.save(tmp_path / "own" / name / f"{i}.png")
    data = jc.image_folder(tmp_path / "own", size=8, resize=15, interpolation="bicubic")
    for other in (jc.subset(data, 12, seed=0), jc.hold_out(data, 4, seed=0)):
        assert other.scale == data.scale
    run = tmp_path / "run"
    _, model, _ = train(run, jc.create_model("mlp", 2), data=data)
    record = {"size": 8, "resize": 15, "interpolation": "bicubic"}
    assert json.loads((run / "resize.json").read_text()) == record
    classifier = load_classifier(run)
    assert (classifier.resize, classifier.interpolation) == (15, "bicubic")
    files = sorted((tmp_path / "own").rglob("*.png"))
    squares = load_images(files, 8, 15, interpolation="bicubic")
    np.testing.assert_array_equal(classifier.preprocess(files), squares)
    assert (squares != load_images(files, 8)).any()
    # Images that were cut again are not those that the record would give.
    cut = [split._replace(images=split.images[:, :6, :6]) for split in (data.train, data.test)]
    smaller = jc.dataset(cut[0], cut[1])._replace(scale=data.scale)
    train(tmp_path / "smaller", jc.create_model("mlp", 2), data=smaller)
    assert not (tmp_path / "smaller/resize.json").exists()
    wrong: Any = data._replace(scale=(8, 8))
    with pytest.raises(jc.DataError, match=r"scale is \(8, 8\); expected None, or the scale"):
        train(tmp_path / "wrong", jc.create_model("mlp", 2), data=wrong)
    assert not (tmp_path / "wrong").exists()
    # What is written precedes what is recorded, each by itself.
    both = load_classifier(run, resize=9), load_classifier(run, interpolation="bilinear")
    assert [(c.resize, c.interpolation) for c in both] == [(9, "bicubic"), (15, "bilinear")]
    for text, words in (
        ('{"size": 8, "resize": 15}', "'interpolation'"),
        ('{"size": 9, "resize": 15, "interpolation": "bicubic"}', "size is 9, and the run's"),
        ('{"size": 8, "resize": 15, "interpolation": "lanczos"}', "interpolation is"),
        ('{"size": 8, "resize": 1e9, "interpolation": "bicubic"}', "resize is 1000000000.0"),
        ('{"size": [], "resize": 15, "interpolation": "bicubic"}', "size is"),
    ):
        (run / "resize.json").write_text(text)
        with pytest.raises(jc.ArgumentError, match=r"resize\.json is not what a run") as error:
            load_classifier(run)
        assert words in str(error.value)
        assert str(error.value).isprintable()
    # As of a run of an earlier version, which gets the file when it is resumed.
    (run / "resize.json").unlink()
    assert load_classifier(run).resize == 9
    train(run, model, data=data)
    assert load_classifier(run).resize == 15


@pytest.mark.slow
def test_what_holds_no_classifier_is_one_line(digits_run, tmp_path):
    folder, *_ = digits_run
    config = json.loads((folder / "config.json").read_text())

    def with_config(name, **changes):
        copy = tmp_path / name
        (copy / "checkpoints").mkdir(parents=True)
        (copy / "config.json").write_text(json.dumps(config | changes))
        return copy

    (tmp_path / "empty").mkdir()
    for name in ("a", "b"):
        (tmp_path / "two" / name).mkdir(parents=True)
        (tmp_path / "two" / name / "weights.safetensors").touch()
    records = with_config("records")
    (records / "checkpoints").rmdir()
    for path, words in (
        (tmp_path / "gone", "gone is not there; write the folder"),
        (tmp_path / "empty", "holds no weights.safetensors"),
        (records, "records of a run, but no checkpoints"),
        (folder.parent, f"holds a classifier in a subfolder; write {folder}$"),
        (tmp_path / "two", r"holds 2 classifiers; write one of them: \S+/two/a, \S+/two/b$"),
        (
            with_config("masks", loss="reconstruction"),
            "'reconstruction', which does not sort images",
        ),
        (with_config("labels", loss="binary-cross-entropy"), "does not sort images into classes"),
        (with_config("none"), "has no steps; expected at least one"),
        (with_config("folder", dataset="folder"), "data of your own"),
        (with_config("model", model="resnet21x"), "the model 'resnet21x', which is not"),
        (with_config("wide", model_kwargs={"widht": 3}), "which is not the library's .*widht"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            load_classifier(path)
        assert "\n" not in str(error.value)
        assert type(error.value).__module__.startswith("jaxcnn")
    assert not (tmp_path / "gone").exists()


class Mapped(nn.Module):
    """A number for each class of each pixel, or by name."""

    by_name: bool

    @nn.compact
    def __call__(self, x):
        y = nn.Dense(10)(x)
        return {"digit": y.mean((1, 2))} if self.by_name else y


def of_digit(outputs, batch):
    outputs = outputs["digit"] if isinstance(outputs, dict) else outputs.mean((1, 2))
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs, batch.labels)
    return losses, {"error": outputs.argmax(-1) != batch.labels}


@pytest.mark.parametrize(
    "own",
    [pytest.param({}, marks=pytest.mark.slow), {"subtract_mean": (0.5,), "divide_std": (0.5,)}],
)
def test_what_to_write_for_a_run_that_is_no_classifier_gives_its_outputs(own, tmp_path):
    """The code in the message is run, with the normalization of the run."""
    data = jc.load_dataset("digits")
    tx, config = optax.sgd(0.1), jc.TrainConfig(2, 32, **own)
    dataset, images = data._replace(name="mine"), data.test.images[:4]
    kinds = {
        "of pixels": (Mapped(False), of_digit, "gives .8, 8, 10. for an image; expected"),
        "by name": (Mapped(True), of_digit, "gives dict for an image; expected"),
        "autoencoder": (nn.Dense(1), "reconstruction", "'reconstruction', which does not sort"),
    }
    for name, (model, loss, words) in kinds.items():
        run = tmp_path / name
        one = jc.strategy("jit", **ONE)
        *_, (state, _) = jc.train(model, tx, dataset, config, run_dir=run, loss=loss, strategy=one)
        with pytest.raises(jc.ArgumentError, match=words) as error:
            load_classifier(run, model=model)
        text = str(error.value)
        assert "classes=" not in text
        code = text.partition("Write ")[2].replace(", and then ", "\noutputs = ")
        room: dict[str, Any] = {"jaxcnn": jc, "model": model, "data": dataset, "images": images}
        exec(code, room)
        expected_outputs = jc.predict(model, state, images)
        for a, b in zip(*map(jax.tree.leaves, (room["outputs"], expected_outputs)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_only_classifiers_are_named_in_a_folder_of_runs(digits_run, tmp_path):
    """Neither runs of other losses, nor those whose outputs are images."""
    config = json.loads((digits_run[0] / "config.json").read_text())
    for name, changes in {
        "digits": {},
        "own": {"model": "own.Net", "model_kwargs": {"num_classes": 10}, "loss": "own.focal"},
        "lines": {"loss": "ctc", "loss_kwargs": {}},
        "gan": {
            "model": "jaxcnn.models.dcgan.DCGAN",
            "loss": "jaxcnn.models.dcgan.NonSaturatingLoss",
            "model_kwargs": {"code": 8},
        },
        "masks": {"model": "unet", "model_kwargs": {"width": 4}},
    }.items():
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "checkpoints/lock").touch()
        (tmp_path / name / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(jc.ArgumentError, match=r"holds 2 classifiers; .*: \S+/digits, \S+/own$"):
        load_classifier(tmp_path)
    with pytest.raises(jc.ArgumentError, match=r"NonSaturatingLoss', which does not sort images"):
        load_classifier(tmp_path / "gan")


@pytest.mark.slow
def test_a_config_of_a_stranger_allocates_nothing(digits_run, tmp_path):
    """A network of 10^12 parameters is refused by its shapes."""
    import shutil

    folder, *_ = digits_run
    shutil.copytree(folder, tmp_path / "run")
    path = tmp_path / "run/config.json"
    config = json.loads(path.read_text())
    config["model_kwargs"] = {"width": 1000, "hidden": 10**6, "batch_norm": True}
    path.write_text(json.dumps(config))
    with pytest.raises(jc.ArgumentError, match="variables of another model than ConvNet"):
        load_classifier(tmp_path / "run")


@pytest.mark.slow
def test_a_run_of_runs_run_is_opened_too(tmp_path):
    data = jc.load_dataset("digits", validation=100)
    config = jc.ExperimentConfig(
        "digits",
        "plain8",
        model_kwargs={"dtype": "bfloat16"},
        num_validation=100,
        train=jc.TrainConfig(2, 32, eval_split="validation"),
    )
    assert runs.run(config, data, tmp_path / "run", strategy=jc.strategy("jit", **ONE))
    run = runs.load_trained_model(tmp_path / "run")
    classifier = load_classifier(str(tmp_path / "run"))
    images = data.test.images[:10]
    truth = expected(run.model, run.last, images)
    np.testing.assert_allclose(classifier.predict(images)[0], truth, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_a_saved_file_is_a_classifier(tmp_path):
    """Of one channel, and of an optimizer that is evaluated at other parameters."""
    rows, model, data = train(tmp_path / "run", optimizer="lookahead", subtract_mean="channel")
    state, config = rows[-1][0], jc.ExperimentConfig.load(tmp_path / "run")
    save_classifier(tmp_path, config, model, state, data.classes, 8, 9, metadata={"by": "us"})
    assert read_metadata(tmp_path / "weights.safetensors")["by"] == "us"
    with pytest.raises(jc.ArgumentError, match="metadata has size, which the classifier writes"):
        save_classifier(
            tmp_path, config, model, state, data.classes, 8, 9, metadata={"size": "large"}
        )
    classifier = load_classifier(tmp_path)
    assert (classifier.size, classifier.resize, int(classifier.state.step)) == (8, 9, 6)
    images = data.test.images[:20]
    truth = expected(model, state, images)
    np.testing.assert_allclose(classifier.probabilities(images), truth, atol=1e-6, rtol=0)
    kernel = eval_state(state).params["head"]["kernel"]
    np.testing.assert_array_equal(classifier.variables["params"]["head"]["kernel"], kernel)
    for name, value in (("step", 1), ("model", model), ("classes", data.classes), ("resize", 8)):
        given: dict[str, Any] = {name: value}
        with pytest.raises(jc.ArgumentError, match=f"its own {name}.*Leave out {name}"):
            load_classifier(tmp_path, **given)
    with pytest.raises(WeightsError):
        save_classifier(tmp_path / "gone", config, model, state, data.classes, 8, 9)
    pixels = state._replace(
        normalizer=state.normalizer._replace(mean=np.zeros((8, 8, 1)) + np.eye(8)[..., None])
    )
    with pytest.raises(jc.ArgumentError, match=r"not one color.*subtract_mean='channel'"):
        save_classifier(tmp_path, config, model, pixels, data.classes, 8, 9)


@pytest.mark.slow
def test_a_loss_of_ones_own_has_probabilities_too(tmp_path):
    """Its outputs are numbers for each class, of which the softmax is taken."""

    def hinge(outputs, batch):
        right = np.float32(1) - outputs[np.arange(len(outputs)), batch.labels]
        return right, {"error": outputs.argmax(-1) != batch.labels}

    data, model = jc.load_dataset("digits"), jc.create_model("mlp", 10)
    config = jc.TrainConfig(1, 8)
    one = jc.strategy("jit", **ONE)
    for state, _ in jc.train(
        model, optax.sgd(0.1), data, config, run_dir=tmp_path, loss=hinge, strategy=one
    ):
        probabilities, _ = load_classifier_after(tmp_path, state, data)
        truth = expected(model, state, data.test.images[:5])
        np.testing.assert_allclose(probabilities, truth, atol=1e-6, rtol=0)


def load_classifier_after(folder: Path, state, data) -> tuple[np.ndarray, tuple[str, ...]]:
    """What a classifier of the variables of a run predicts, while its folder is still locked."""
    with pytest.raises(jc.CheckpointError, match="in use"):
        load_classifier(folder)
    own = Classifier(jc.create_model("mlp", 10), state, "mlp", data.classes, 8, 8)
    return own.predict(data.test.images[:5])
