"""One table of mistakes: each is one line that names the field and the fix, and it comes before anything is compiled."""

import hashlib
import re
import shutil
import sys
from types import SimpleNamespace
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from data_fakes import bare_machine, fake, flip, register, write_archives, write_prepared  # noqa: F401
from scripts import train_config

import jaxcnn as jc
from jaxcnn import interpret, losses, plots, runs
from jaxcnn.checkpoint import CheckpointError, Checkpoints
from jaxcnn.config import ArgumentError, ExperimentConfig
from jaxcnn.data import (
    DataError,
    Dataset,
    Split,
    archives,
    channel_statistics,
    hold_out,
    load_dataset,
    subset,
    verify_dataset,
)
from jaxcnn.models import calling
from jaxcnn.runs.sweeps import _check_run_name

pytestmark = pytest.mark.usefixtures("bare_machine")

# A data set of the user's own: 40 images of 4 classes to train on, 20 to test with.
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (40, 8, 10, 3), dtype=np.uint8)
LABELS = (np.arange(40) % 4).astype(np.int32)
TEST = Split(IMAGES[:20], LABELS[:20])
MEAN, STD = channel_statistics(IMAGES)
GOOD = Dataset(
    "mine",
    Split(IMAGES, LABELS),
    Split(IMAGES[:0], LABELS[:0]),
    TEST,
    ("a", "b", "c", "d"),
    MEAN,
    STD,
)
# Fractions are classes of nothing: targets of a loss of the user's own, with and without a number of outputs.
FRACTIONS = jc.dataset((IMAGES, LABELS / 3), (IMAGES, LABELS / 3), num_classes=4, name="mine")
TARGETS = jc.dataset((IMAGES, LABELS / 3), (IMAGES, LABELS / 3), name="mine")
# Images whose sides are multiples of 4.
FOURS = jc.dataset((IMAGES[:, :, :8], LABELS), (IMAGES[:, :, :8], LABELS), name="mine")
CONFIG = ExperimentConfig(
    dataset="mine",
    model="mlp",
    model_kwargs={"hidden": [4]},
    optimizer=jc.OptimizerConfig(milestones=()),
    train=jc.TrainConfig(batch_size=8, num_steps=5),
)


def of(values: Any) -> Any:
    """Values as no type checker would let them through."""
    return values


def distance(outputs, batch):
    return (outputs[:, 0] - batch.labels) ** 2, {}


def fit(data=GOOD, devices=1, **changes):
    config = jc.override(CONFIG, **changes)
    strategy = jc.strategy("jit", devices)
    return next(
        train_config(
            jc.create_model(config.model, 4, **config.model_kwargs),
            config,
            data,
            strategy=strategy,
        )
    )


def augmented(r, augment):
    tx = jc.create_optimizer(CONFIG.optimizer, 5)
    return next(jc.train(r.model, tx, GOOD, CONFIG.train, augment=of(augment)))


def fit_several(other, r):
    labels = (np.arange(160).reshape(40, 4) % 2).astype(other.dtype) * other
    data = jc.dataset((IMAGES, labels), (IMAGES, labels), num_classes=4, name="mine")
    return runs.run(jc.override(CONFIG, loss="binary-cross-entropy"), data, r.path / "run")


def fit_images(change):
    return fit(GOOD._replace(train=Split(change(IMAGES), LABELS)))


def fit_labels(change):
    return fit(GOOD._replace(train=Split(IMAGES, change(LABELS))))


def fit_with(**changes):
    return fit(GOOD._replace(**changes))


def spoilt(array, value, at=7):
    array = array.copy()
    array[at] = value
    return array


def objects(images):
    array = np.empty(len(images), object)
    array[:] = [image[: 4 + i % 3] for i, image in enumerate(images)]
    return array


def sweep(all_runs, room, data=GOOD):
    return runs.sweep(all_runs, data, room.path / "out", strategy=jc.strategy("jit", 1))


def sweep_with(room, **changes):
    return sweep({"a": jc.override(CONFIG, **changes)}, room)


class Tiny(NamedTuple):
    """A state for checkpoints."""

    step: Any
    params: Any


def tiny(width=3, dtype=np.float32):
    return Tiny(np.int32(1), {"w": np.ones(width, dtype)})


def other_checkpoint(room, **like):
    with Checkpoints(room.path) as saved:
        saved.save(tiny())
        return saved.restore(tiny(**like))


def damaged_checkpoint(room):
    with Checkpoints(room.path) as saved:
        saved.save(tiny())
    for path in (room.path / "1").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with Checkpoints(room.path) as saved:
        return saved.restore(tiny())


def cut_archive(room):
    paths = write_archives(room.path, "cifar10", *fake("cifar10"))
    paths[0].write_bytes(paths[0].read_bytes()[:-400])
    return archives.parse("cifar10", paths)


def wrong_checksum(room):
    manual = room.path / "own/manual/mnist"
    write_archives(manual, "mnist", *fake("mnist"))
    register(room.patch, manual)
    sources = archives.registered_sources("mnist", jc.DATASETS["mnist"].archives)
    room.patch.setattr("jaxcnn.data.archives.registered_sources", lambda name, files: sources)
    flip(manual / "train-images-idx3-ubyte.gz", 100)
    return load_dataset("mnist", room.path / "own")


def damaged_cache(room):
    room.patch.setenv("TFDS_DATA_DIR", str(room.path / "tfds"))
    write_prepared(room.path / "tfds", "mnist", fake("mnist"))
    load_dataset("mnist")
    shutil.rmtree(room.path / "tfds")
    flip(room.path / "cache/data/mnist/train_images.npy", 5000)
    return load_dataset("mnist")


def lacking_shard(room):
    folder = write_prepared(room.path, "mnist", fake("mnist"))
    (folder / "mnist-test.array_record-00001-of-00002").unlink()
    return load_dataset("mnist", room.path)


def other_config(room):
    jc.RunLog(room.path / "out/a", jc.override(CONFIG, learning_rate=0.5))
    return sweep({"a": CONFIG}, room)


def config(room, text):
    (room.path / "config.json").write_text(text)
    return ExperimentConfig.load(room.path)


def folder_of_a_run(room):
    folder = finished_run(room)
    (folder / "checkpoints").mkdir()
    return Checkpoints(folder)


def finished_run(room):
    folder = room.path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(CONFIG.to_json())
    (folder / "result.json").write_text('{"status": "finished"}')
    return folder


COLUMN = LABELS[:, None] / 3
SEVERAL = jc.dataset(
    (IMAGES, np.ones((40, 4))), (IMAGES, np.ones((40, 4))), num_classes=4, name="mine"
)


def one_step(room, *, state=None, tx=optax.identity(), **changes):  # noqa: B008
    """Trace a step, whose arguments are those of a valid one but for the changes."""
    arguments = {"split": GOOD.train, "index": np.arange(8)} | changes
    step = jc.make_train_step(room.model, tx)
    return jax.eval_shape(step, room.state if state is None else state, **arguments)


class FixedBatch(nn.Module):
    """A model that keeps no axis of images."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(x.reshape((8, -1)))


def fixed_batch(room):
    params = {"Dense_0": {"kernel": np.ones((30, 4), np.float32), "bias": np.ones(4, np.float32)}}
    image = jax.ShapeDtypeStruct((8, *IMAGES.shape[1:]), np.float32)
    return jax.eval_shape(
        lambda x: calling.call(FixedBatch(), {"params": params}, x, train=False), image
    )


UINT8, INT32 = "expected uint8 [n, h, w, c]", "expected int32"
SIZES = "write mean, std = jaxcnn.data.channel_statistics(train.images)"
TABLE: list[tuple[str, Any, type, str, str]] = [
    # images
    ("images as shares", lambda r: fit_images(lambda x: x / 255),
     DataError, "train images are float64 in 0..1", "write (images * 255).round().astype(np.uint8)"),
    ("images as floats", lambda r: fit_images(lambda x: x.astype(np.float32)),
     DataError, "train images are float32 in 0..255", "write images.round().astype(np.uint8)"),
    ("images normalized", lambda r: fit_images(lambda x: x / 128 - 1),
     DataError, "train images are float64 in -1..", "as they were before they were normalized"),
    ("images of 16 bits", lambda r: fit_images(lambda x: x.astype(np.uint16) * 256),
     DataError, "train images are uint16 in 0..65280", "scale them to 0..255"),
    ("images as int64", lambda r: fit_images(lambda x: x.astype(np.int64)),
     DataError, "train images are int64", "write images.round().astype(np.uint8)"),
    ("images black or white", lambda r: fit_images(lambda x: x > 99),
     DataError, "train images are bool", "write images * np.uint8(255)"),
    ("a NaN pixel", lambda r: fit_images(lambda x: spoilt(x / 255, np.nan)),
     DataError, "train images are float64 with NaN pixels or inf, the first in image 7", "fix that image, or leave it out"),
    ("an infinite pixel", lambda r: fit_images(lambda x: spoilt(x / 255, -np.inf, 9)),
     DataError, "the first in image 9", "fix that image, or leave it out"),
    ("channels first", lambda r: fit_images(lambda x: x.transpose(0, 3, 1, 2)),
     DataError, "train images have shape (40, 3, 8, 10)", "write images.transpose(0, 2, 3, 1)"),
    ("gray channel first", lambda r: fit_images(lambda x: x[:, None, :, :8, 0]),
     DataError, "train images have shape (40, 1, 8, 8)", "write images.transpose(0, 2, 3, 1)"),
    ("no channel axis", lambda r: fit_images(lambda x: x[..., 0]),
     DataError, "train images have shape (40, 8, 10)", "write images[..., None]"),
    ("flat images", lambda r: fit_images(lambda x: x[:, :8, :8, 0].reshape(40, 64)),
     DataError, "train images have shape (40, 64)", "write images.reshape(-1, 8, 8, 1)"),
    ("no pixels", lambda r: fit_images(lambda x: x[:, :0]),
     DataError, "train images have shape (40, 0, 10, 3)", "at least one pixel"),
    ("images in a list", lambda r: fit_images(list),
     DataError, "train images are of type list", "write np.array(..., np.uint8)"),
    ("images of JAX", lambda r: fit_images(lambda x: r.array),
     DataError, "train images are of type ArrayImpl", "write np.asarray(...)"),
    ("images of several sizes", lambda r: fit_images(objects),
     DataError, "train images are an array of objects", "np.stack"),
    ("no images at all", lambda r: fit_with(train=Split(IMAGES[:0], LABELS[:0])),
     DataError, "train images are none at all", "at least one image"),
    ("no images to test with", lambda r: fit_with(test=Split(IMAGES[:0], LABELS[:0])),
     ArgumentError, "test split is empty", "at least one image"),
    ("test images of another size", lambda r: fit_with(test=Split(IMAGES[:, :6], LABELS)),
     DataError, "test images have shape (6, 10, 3); expected (8, 10, 3)", "resize or crop them"),
    ("float images to validate with", lambda r: fit_with(validation=Split(IMAGES / 255, LABELS)),
     DataError, "validation images are float64", "write (images * 255)"),
    # labels
    ("labels past the last class", lambda r: fit_labels(lambda y: spoilt(y, 4)),
     DataError, "train labels span 0..4; expected 0..3", "name all in `classes`"),
    ("labels from 1", lambda r: fit_labels(lambda y: y + 1),
     DataError, "train labels span 1..4", "write labels - 1"),
    ("a label of -1", lambda r: fit_labels(lambda y: spoilt(y, -1)),
     DataError, "train labels span -1..3", "number the classes from 0"),
    ("a label that int32 would wrap", lambda r: fit_labels(lambda y: spoilt(y.astype(np.int64), 2**32)),
     DataError, "train labels span 0..4294967296", "number the classes from 0"),
    ("labels as int64", lambda r: fit_labels(lambda y: y.astype(np.int64)),
     DataError, f"train labels are int64; {INT32}", "write labels.astype(np.int32)"),
    ("labels as floats", lambda r: fit_labels(lambda y: y.astype(np.float32)),
     DataError, f"train labels are float32; {INT32}", "write labels.astype(np.int32)"),
    ("labels between the classes", lambda r: fit_labels(lambda y: y + 0.5),
     DataError, f"train labels are float64; {INT32}", "0.5 is the number of no class"),
    ("a label that is NaN", lambda r: fit_labels(lambda y: spoilt(y.astype(float), np.nan)),
     DataError, f"train labels are float64; {INT32}", "nan is the number of no class"),
    ("labels in words", lambda r: fit_labels(lambda y: np.array(["cat", "dog"])[y % 2]),
     DataError, "train labels are <U3", "np.unique(labels, return_inverse=True)[1]"),
    ("labels in a column", lambda r: fit_labels(lambda y: y[:, None]),
     DataError, "train labels have shape (40, 1); expected (40,)", "write labels[:, 0]"),
    ("labels one-hot", lambda r: fit_labels(lambda y: np.eye(4, dtype=np.int32)[y]),
     DataError, "train labels have shape (40, 4)", "write labels.argmax(1)"),
    ("too few labels", lambda r: fit_labels(lambda y: y[:39]),
     DataError, "train labels have shape (39,); expected (40,)", "there are 40 images"),
    ("labels in a list", lambda r: fit_labels(list),
     DataError, "train labels are of type list", "write np.array(..., np.int32)"),
    ("one class only", lambda r: fit_labels(lambda y: np.full_like(y, 2)),
     DataError, "train labels are all 2", "shuffle before you cut"),
    ("test labels past the last class", lambda r: fit_with(test=Split(IMAGES, LABELS + 7)),
     DataError, "test labels span 7..10; expected 0..3", "number the classes from 0"),
    # the rest of a data set
    ("one name for the classes", lambda r: fit_with(classes=("a",)),
     DataError, "classes is ('a',)", "expected two names or more"),
    ("no names of classes and the loss of classes", lambda r: fit_with(classes=()),
     DataError, "classes is ()", "a loss of your own where labels are not classes"),
    ("names of classes in an array", lambda r: fit_with(classes=np.array(["a", "b", "c", "d"])),
     DataError, "classes is", "expected two names or more"),
    ("a number for the classes", lambda r: fit_with(classes=of(4)),
     DataError, "classes is 4", "expected two names or more"),
    ("a mean per channel", lambda r: fit_with(mean=MEAN.mean((0, 1))),
     DataError, "mean is float32 (3,); expected float32 (8, 10, 3)", SIZES),
    ("a mean in 0..255", lambda r: fit_with(mean=MEAN * 255),
     DataError, "mean spans ", SIZES),
    ("a mean that is NaN", lambda r: fit_with(mean=MEAN * np.float32(np.nan)),
     DataError, "mean spans nan..nan", SIZES),
    ("a deviation in float64", lambda r: fit_with(std=STD.astype(float)),
     DataError, "std is float64 (3,)", SIZES),
    ("a plain pair for a split", lambda r: fit_with(train=of((IMAGES, LABELS))),
     DataError, "train is a tuple", "write Split(images, labels)"),
    ("a plain pair for the data", lambda r: fit(of((IMAGES, LABELS))),
     DataError, "data is a tuple", "expected a jaxcnn.Dataset"),
    # the same data elsewhere
    ("one image to predict", lambda r: jc.predict(r.model, r.state, IMAGES[0]),
     DataError, f"images have shape (8, 10, 3); {UINT8}", "write images[None]"),
    ("no image to predict", lambda r: jc.predict(r.model, r.state, IMAGES[:0]),
     DataError, "images are none at all", "at least one image"),
    ("images of another size to predict", lambda r: jc.predict(r.model, r.state, IMAGES[:, :4]),
     DataError, "images have shape (4, 10, 3); expected (8, 10, 3)", "resize or crop them"),
    ("a list to predict", lambda r: jc.predict(r.model, r.state, of([1])),
     DataError, "images are of type list", "write np.array(..., np.uint8)"),
    ("labels that the model lacks", lambda r: jc.evaluate(r.model, r.state, Split(IMAGES, LABELS + 1)),
     DataError, "split labels span 1..4; expected 0..3", "write labels - 1"),
    ("float images to evaluate", lambda r: jc.evaluate(r.model, r.state, Split(IMAGES / 255, LABELS)),
     DataError, "split images are float64", "write (images * 255)"),
    ("an empty split to evaluate", lambda r: jc.evaluate(r.model, r.state, GOOD.validation),
     ArgumentError, "split to evaluate is empty", "at least one image"),
    ("bad labels to hold out", lambda r: hold_out(GOOD._replace(train=Split(IMAGES, LABELS - 1)), 5, 0),
     DataError, "train labels span -1..2", "number the classes from 0"),
    ("bad labels to choose from", lambda r: subset(GOOD._replace(train=Split(IMAGES, LABELS / 1)), 8, 0),
     DataError, "train labels are float64", "write labels.astype(np.int32)"),
    ("a negative seed for a subset", lambda r: subset(GOOD, 8, -1),
     DataError, "seed is -1", "expected an integer >= 0"),
    ("a seed in words", lambda r: hold_out(GOOD, 8, of("one")),
     DataError, "seed is 'one'", "expected an integer >= 0"),
    ("more held out than there are", lambda r: hold_out(GOOD, 40, 0),
     DataError, "cannot hold out 40 images", "expected an integer in 0..39"),
    ("float images in a study", lambda r: sweep({"a": CONFIG}, r, fit_data(IMAGES / 255)),
     DataError, "train images are float64", "write (images * 255)"),
    # batches and devices
    ("a batch larger than the data", lambda r: fit(batch_size=48),
     ArgumentError, "batch_size is 48, more than the 40 training images", "write batch_size=40"),
    ("a batch that 8 devices cannot share", lambda r: fit(devices=8, batch_size=12),
     ArgumentError, "batch_size is 12", "write batch_size=8 or 16"),
    ("devices that are not there", lambda r: fit(devices=9),
     ArgumentError, "devices is 9", "Write devices=8"),
    ("nothing held out to report on", lambda r: sweep_with(r, eval_split="validation", num_validation=5),
     ArgumentError, "num_validation is 5", "write load_dataset(..., validation=5)"),
    ("nothing held out to evaluate on", lambda r: fit(eval_split="validation", num_validation=5),
     ArgumentError, "the validation split is empty", "at least one image"),
    ("more images than there are", lambda r: sweep_with(r, max_train_examples=50),
     DataError, "cannot keep 50 training images", "an integer in 1..40"),
    ("precise BN over too few", lambda r: fit(recompute_batch_stats=7),
     ArgumentError, "recompute_batch_stats is 7; expected 8 (one batch) to 40", "or 0"),
    ("a channel that never changes", lambda r: fit(flat_blue(), divide_std=True),
     ArgumentError, "divide_std is True", "write divide_std=False"),
    # one thing for another
    ("a data set to evaluate", lambda r: jc.evaluate(r.model, r.state, of(GOOD)),
     DataError, "split is a Dataset", "write data.test"),
    ("a data set to predict", lambda r: jc.predict(r.model, r.state, of(GOOD)),
     DataError, "images are of type Dataset", "write data.test.images"),
    ("a split to predict", lambda r: jc.predict(r.model, r.state, of(TEST)),
     DataError, "images are of type Split", "write split.images"),
    ("a config for an optimizer", lambda r: next(jc.train(r.model, of(CONFIG.optimizer), GOOD, CONFIG.train)),
     ArgumentError, "tx is of type OptimizerConfig", "Write jaxcnn.create_optimizer(config, num_steps)"),
    ("a name for an optimizer", lambda r: next(jc.train(r.model, of("adam"), GOOD, CONFIG.train)),
     ArgumentError, "tx is 'adam'", "Write jaxcnn.create_optimizer(jaxcnn.OptimizerConfig('adam')"),
    ("a name for an augmentation", lambda r: jc.augment.as_augmentation("RandAugment"),
     ArgumentError, "augment is 'RandAugment'", "Write augment=jaxcnn.augment.rand_augment(...)"),
    ("state and model exchanged", lambda r: jc.evaluate(of(r.state), of(r.model), TEST),
     ArgumentError, "model is of type State", "Write the model first, and this behind it"),
    ("optimizer and model exchanged", lambda r: next(jc.train(of(optax.sgd(0.1)), of(r.model), GOOD, CONFIG.train)),
     ArgumentError, "model is of type GradientTransformation", "Write the model first, and this behind it"),
    ("fractions as classes", lambda r: runs.run(CONFIG, FRACTIONS, r.path / "run"),
     DataError, "train labels are float32; expected int32: 0.3333 is the number of no class", "write a loss of your own"),
    ("targets for a network of the config", lambda r: runs.run(CONFIG, TARGETS, r.path / "run", loss=distance),
     ArgumentError, "the data have no classes", "Write build=lambda config, data: jaxcnn.runs.model_and_optimizer(config, 1)"),
    ("a number of classes among the options of a network", lambda r: runs.model_and_optimizer(jc.override(CONFIG, model_kwargs={"num_classes": 3}), 4),
     ArgumentError, "model_kwargs has num_classes, which is the data's", "Leave it out, or write build="),
    ("labels of 0 and 255 for a binary loss", lambda r: fit_several(np.uint8(255), r),
     ArgumentError, "train labels[0] have 255", "Write (labels > 0).astype(np.uint8)"),
    ("unknown labels for a binary loss", lambda r: fit_several(np.int8(-1), r),
     ArgumentError, "train labels[0] have -1", "a loss of your own that leaves out unknown labels"),
    ("data of one class", lambda r: jc.dataset((IMAGES, LABELS * 0)),
     DataError, "train labels are all 0", "or write np.zeros(n, np.float32) for a loss that uses no labels"),
    ("data without a test split", lambda r: fit(GOOD._replace(validation=TEST, test=GOOD.validation)),
     ArgumentError, "the test split is empty", "Write eval_split='validation'"),
    ("data with a training split alone", lambda r: fit(GOOD._replace(test=GOOD.validation)),
     ArgumentError, "the test split is empty", "Write data = jaxcnn.hold_out(data, n, seed=0) and eval_split='validation'"),
    ("a warm start of nothing", lambda r: jc.train(r.model, of(jc.create_optimizer(CONFIG.optimizer, 5)), GOOD, CONFIG.train, warm_start=True),
     ArgumentError, "warm_start is True, but resume is None", "Write resume="),
    ("exact statistics of a network without BN", lambda r: runs.run(jc.override(CONFIG, recompute_batch_stats=40), GOOD, r.path / "run"),
     ArgumentError, "MLP has no BN to average", "write recompute_batch_stats=0"),
    ("the same in a sweep, second", lambda r: sweep({"a": CONFIG, "b": jc.override(CONFIG, recompute_batch_stats=40)}, r),
     ArgumentError, "MLP has no BN to average", "write recompute_batch_stats=0"),
    ("constants of other channels in a sweep, second", lambda r: sweep({"a": CONFIG, "b": jc.override(CONFIG, subtract_mean=(0.1, 0.2))}, r),
     ArgumentError, "subtract_mean has 2 numbers, but images have 3 channels", "Use subtract_mean=(0.5, 0.5, 0.5)"),
    ("an autoencoder for classes in a sweep, second", lambda r: sweep({"a": CONFIG, "b": jc.override(CONFIG, model="autoencoder", model_kwargs={})}, r, FOURS),
     ArgumentError, "the model gives (8, 8, 3) for an image", "build a classifier"),
    ("runs in a list", lambda r: sweep(of([CONFIG]), r),
     ArgumentError, "runs is [ExperimentConfig(", "Write runs={'a': config}"),
    ("runs by number", lambda r: sweep(of({0: CONFIG}), r),
     ArgumentError, "runs is {0: ExperimentConfig(", "Write runs={'a': config}"),
    ("yes to a stop", lambda r: runs.run(CONFIG, GOOD, r.path / "run", should_stop=of(True)),
     ArgumentError, "should_stop is True", "Write should_stop=lambda: False"),
    ("a measure of the state alone", lambda r: runs.sweep({"a": CONFIG}, GOOD, r.path / "out", measure=of(lambda state: {})),
     ArgumentError, "cannot be called with 3 arguments", "Write measure=lambda model, state, data: "),
    ("a note of a step alone", lambda r: runs.run(CONFIG, GOOD, r.path / "run", on_step=of(lambda step: None)),
     ArgumentError, "cannot be called with 2 arguments", "Write on_step=lambda step, row: None"),
    ("a list of augmentations", lambda r: augmented(r, [jc.augment.cutout(2)]),
     ArgumentError, "expected a function of a key", "Write augment=jaxcnn.augment.chain(function, another)"),
    ("a function for the inside of an augmentation", lambda r: augmented(r, jc.augment.random_flip),
     ArgumentError, "does not take three arguments", "augment.from_config(jaxcnn.AugmentConfig(flip=True))"),
    ("yes to augmentation", lambda r: augmented(r, True),
     ArgumentError, "augment is True", "augment.from_config(jaxcnn.AugmentConfig(padding=4, flip=True))"),
    ("a config of augmentation beside the config", lambda r: augmented(r, jc.AugmentConfig(padding=1)),
     ArgumentError, "augment is an AugmentConfig", "Write augment=jaxcnn.augment.from_config(...), or"),
    ("a function in the config", lambda r: jc.TrainConfig(augment=of(jc.augment.cutout(2))),
     ArgumentError, "expected AugmentConfig(...)", "jaxcnn.train(..., augment=function) for any other"),
    ("an image of floats to lay heat over", lambda r: plots.overlay(np.ones((2, 2, 3)), np.ones((2, 2))),
     ValueError, "image is float64; expected uint8", "write (255 * image).astype(np.uint8)"),
    ("heat above 1", lambda r: plots.overlay(IMAGES[0], np.full((8, 10), 2.0)),
     ValueError, "heat spans 2..2; expected 0..1", "Write heat / heat.max()"),
    ("heat that is not a number", lambda r: plots.overlay(IMAGES[0], np.full((8, 10), np.nan)),
     ValueError, "heat spans nan..nan; expected 0..1", "Write np.nan_to_num(heat)"),
    ("a text for names of classes", lambda r: plots.confusion(np.eye(2, dtype=int), "ab"),
     ValueError, "classes is the text 'ab'", "Write classes=data.classes"),
    ("shares for counts", lambda r: plots.confusion(np.eye(2), ["a", "b"]),
     ValueError, "expected whole numbers from 0", "Write counts=jaxcnn.metrics.confusion("),
    ("a network of the hub without its owner", lambda r: jc.create_pretrained("resnet18"),
     jc.WeightsError, "name is 'resnet18', without an owner", "Write 'timm/resnet18.tv_in1k'"),
    ("a detector with its size", lambda r: jc.create_model("SSD300", 10),
     ArgumentError, "which has arguments and a loss of its own", "Write jaxcnn.models.ssd.SSD("),
    ("weights and network exchanged", lambda r: jc.load_weights(of("a.pth"), r.model),
     jc.WeightsError, "model is 'a.pth' and file is a network", "Write load_weights(model, 'a.pth')"),
    ("a state for variables", lambda r: interpret.responses(r.model, of(r.state), of(IMAGES)),
     ArgumentError, "variables are of type State", "Write {\"params\": state.params"),
    ("images for variables", lambda r: interpret.responses(r.model, of(IMAGES), of(r.state)),
     ArgumentError, "variables are of type ndarray", "Write {\"params\": state.params"),
    ("a network for parameters", lambda r: interpret.kernel_norms(r.model),
     ArgumentError, "params are of type MLP", "Write kernel_norms(state.params)"),
    ("fewer names than classes", lambda r: jc.dataset((IMAGES, LABELS), classes=("a", "b"), num_classes=4),
     DataError, "classes has 2 names and num_classes is 4", "name all 4 classes, or leave out"),
    ("a folder of images that is not there", lambda r: jc.image_folder(r.path / "no"),
     DataError, "is not there", "no/apple/1.jpg"),
    ("runs to pack that are not there", lambda r: runs.pack(r.path / "no", r.path),
     ArgumentError, "no is no folder", "Write pack('runs/my-study', target)"),
    # names
    ("another data set", lambda r: sweep_with(r, dataset="yours"),
     ArgumentError, "dataset is 'yours'", "write dataset='mine'"),
    ("an unknown data set", lambda r: load_dataset("cifar11"),
     DataError, "no data set is named 'cifar11'", "did you mean 'cifar10'?"),
    ("a name that climbs out", lambda r: load_dataset("../../cifar10"),
     DataError, "'../../cifar10' is a path", "pass data=jaxcnn.image_folder(PATH, size=...)"),
    ("a folder for a data set's name", lambda r: load_dataset(str(r.path)),
     DataError, "is a path; expected the name of a data set", "pass data=jaxcnn.image_folder(PATH, size=...)"),
    ("no name at all", lambda r: load_dataset(of(["mnist"])),
     DataError, "no data set is named", "did you mean 'mnist'?"),
    ("a NUL in the data's folder", lambda r: load_dataset("mnist", "a\0b"),
     DataError, "data_dir is 'a\\x00b'", "expected the path of a folder"),
    ("an unknown model", lambda r: jc.create_model("resnett20", 10),
     ArgumentError, "model is 'resnett20'", "write resnet20"),
    ("a depth that is not 6 n + 2", lambda r: jc.create_model("resnet21", 10),
     ArgumentError, "depth is 21; expected 6 n + 2", "write 20 or 26"),
    ("an unknown option", lambda r: jc.create_model("resnet20", 10, widht=8),
     ArgumentError, "option of resnet20 is 'widht'", "did you mean 'width'?"),
    ("an unknown type", lambda r: jc.create_model("resnet20", 10, dtype=3),
     ArgumentError, "dtype is 3", "expected one of bfloat16, float32"),
    ("no class to build for", lambda r: jc.create_model("resnet20", 0),
     ArgumentError, "num_classes is 0", "at least 1"),
    ("an unknown optimiser", lambda r: fit(optimizer="momentun"),
     ArgumentError, "optimizer is 'momentun'", "did you mean 'momentum'?"),
    ("an unknown schedule", lambda r: fit(schedule="cosin"),
     ArgumentError, "schedule is 'cosin'", "did you mean 'cosine'?"),
    ("an unknown number of a method", lambda r: fit(optimizer="adam", optimizer_kwargs={"b3": 0.9}),
     ArgumentError, "b3", "b1, b2"),
    ("an unknown loss", lambda r: fit(loss="squarred"),
     ArgumentError, "loss is 'squarred'", "did you mean 'squared'?"),
    ("an unknown split", lambda r: jc.TrainConfig(eval_split="tests"),
     ArgumentError, "eval_split is 'tests'", "did you mean 'test'?"),
    ("an unknown strategy", lambda r: jc.strategy("pmapp"),
     ArgumentError, "strategy is 'pmapp'", "did you mean 'pmap'?"),
    ("an unknown field", lambda r: config(r, '{"train": {"num_stepz": 3}}'),
     ArgumentError, "TrainConfig field is 'num_stepz'", "did you mean 'num_steps'?"),
    # numbers
    ("a rate that is NaN", lambda r: jc.OptimizerConfig(learning_rate=float("nan")),
     ArgumentError, "learning_rate is nan", "expected a finite number above 0"),
    ("an infinite rate", lambda r: jc.OptimizerConfig(learning_rate=float("inf")),
     ArgumentError, "learning_rate is inf", "expected a finite number above 0"),
    ("a rate of 0", lambda r: jc.OptimizerConfig(learning_rate=0),
     ArgumentError, "learning_rate is 0", "expected a finite number above 0"),
    ("a negative rate", lambda r: jc.OptimizerConfig(learning_rate=-0.1),
     ArgumentError, "learning_rate is -0.1", "expected a finite number above 0"),
    ("a rate of 5,001 digits", lambda r: jc.OptimizerConfig(learning_rate=10**5000),
     ArgumentError, "learning_rate is a int that cannot be written", "expected a finite number above 0"),
    ("milestones out of order", lambda r: jc.OptimizerConfig(milestones=(9, 5)),
     ArgumentError, "milestones is (9, 5)", "write milestones=(32000, 48000)"),
    ("a seed past 32 bits", lambda r: jc.TrainConfig(seed=2**32),
     ArgumentError, "seed is 4294967296", "below 2^32"),
    ("options that are no names", lambda r: ExperimentConfig(model_kwargs=of({1: 2})),
     ArgumentError, "model_kwargs is {1: 2}", 'write {"width": 8}'),
    ("options nested without end", lambda r: ExperimentConfig(model_kwargs={"a": nested(200)}),
     ArgumentError, "model_kwargs is {'a': [[[", 'write {"width": 8}'),
    # files
    ("a checkpoint of another model", lambda r: other_checkpoint(r, width=4),
     CheckpointError, "is of another model, build that one", ".params['w'] is float32[3], expected float32[4]"),
    ("a checkpoint of another type", lambda r: other_checkpoint(r, dtype=np.float16),
     CheckpointError, "is of another model, build that one", ".params['w'] is float32[3], expected float16[3]"),
    ("no good checkpoint", damaged_checkpoint,
     CheckpointError, "are damaged [1]", "move it away to start from scratch"),
    ("a damaged archive", cut_archive,
     DataError, "cifar-10-binary.tar.gz cannot be parsed", "Compressed file ended"),
    ("an archive of other bytes", wrong_checksum,
     DataError, "train-images-idx3-ubyte.gz has SHA-256", "again"),
    ("a damaged cache and no source", damaged_cache,
     DataError, "cache/data/mnist is damaged", "load_dataset('digits')"),
    ("a prepared folder that lacks a file", lacking_shard,
     DataError, "lacks mnist-test.array_record-00001-of-00002", "prepare it again, or delete it"),
    ("no network", lambda r: load_dataset("svhn_cropped"),
     DataError, "cannot be downloaded (no network in this test)", "load_dataset('digits')"),
    ("the folder of no run", lambda r: ExperimentConfig.load(r.path / "no"),
     ArgumentError, "no/config.json is no file", "expected the folder of a run"),
    ("a config that is no JSON", lambda r: config(r, "learning_rate = 3"),
     ArgumentError, "the config is not JSON", "write one with ExperimentConfig(...).to_json()"),
    ("a folder of another config", other_config,
     ArgumentError, "learning_rate (0.5 there, 0.1 here)", "write another run_dir (--out)"),
    ("a folder without runs", lambda r: runs.finished_runs(r.path),
     ArgumentError, "holds no finished run", "Write another one (--out)"),
    ("a run's folder in place of its checkpoints", folder_of_a_run,
     CheckpointError, "is the folder of a run", "/checkpoints')"),
    ("a run in place of a study", lambda r: runs.finished_runs(finished_run(r)),
     ArgumentError, "is the folder of one run", "jaxcnn.read_metrics"),
    ("no folder", lambda r: next(jc.train(r.model, optax.sgd(0.1), GOOD, CONFIG.train, run_dir="")),
     ArgumentError, "run_dir is ''", "Write run_dir='runs/a'"),
    # arguments of one function that another has not
    ("a transformation in place of its config", lambda r: jc.lr_finder(r.model, of(optax.sgd(0.1)), GOOD, CONFIG.train),
     ArgumentError, "optimizer is a GradientTransformation", "expected an OptimizerConfig"),
    ("constants that are numbers", lambda r: jc.evaluate(r.model, {"params": r.state.params}, TEST, normalizer=of(((0.5,), (0.5,)))),
     ArgumentError, "normalizer is ((0.5,), (0.5,))", "Write normalizer=data"),
    ("params without their name", lambda r: jc.with_variables(r.state, r.state.params),
     ArgumentError, "variables have no params, but", "{'params': params, ...}"),
    ("a strategy by its name", lambda r: jc.evaluate(r.model, r.state, TEST, strategy=of("pmap")),
     ArgumentError, "strategy is 'pmap'", "jaxcnn.strategy('pmap')"),
    ("a state to resume from", lambda r: next(jc.train(r.model, optax.sgd(0.1), GOOD, CONFIG.train, resume=of(r.state))),
     ArgumentError, "resume is", "resume=lambda initial: state"),
    ("a field with its section", lambda r: jc.override(CONFIG, **{"train.seed": 3}),
     ArgumentError, "field is 'train.seed'", "override(config, seed=...)"),
    ("images that are not normalized", lambda r: jax.eval_shape(jc.loss_fn(r.model), r.state.params, {}, IMAGES, LABELS),
     ArgumentError, "inputs are an array uint8", "jaxcnn.augment.normalize(images, state.normalizer)"),
    ("classes in place of several labels", lambda r: losses.BinaryCrossEntropy()(np.zeros((4, 1), np.float32), losses.Batch(IMAGES[:4], LABELS[:4])),
     ArgumentError, "labels are a class of each image", "labels.astype('float32')[:, None]"),
    ("targets of a regression for a loss of classes", lambda r: fit(jc.dataset((IMAGES, COLUMN), (IMAGES, COLUMN), name="mine"), loss="squared"),
     DataError, "row 0 has no shares of the classes", "write loss=lambda outputs, batch:"),
    ("several labels for a loss of one", lambda r: fit(SEVERAL, loss="squared"),
     DataError, "row 0 has no shares of the classes", "write loss='binary-cross-entropy'"),
    # a step
    ("images in place of a split", lambda r: one_step(r, split=IMAGES),
     ArgumentError, "split is an array uint8", "step(state, data.train, index)"),
    ("params in place of a state", lambda r: one_step(r, state=r.state.params),
     ArgumentError, "state is of type dict", "init_state(model, tx, config, data)"),
    ("an index of batches", lambda r: one_step(r, index=np.arange(8).reshape(2, 4)),
     ArgumentError, "index is an array int", "expected the numbers of the batch's examples, int32 [b]"),
    ("an index of fractions", lambda r: one_step(r, index=np.arange(8.0)),
     ArgumentError, "index is an array float", "jnp.arange(32)"),
    ("examples without their numbers", lambda r: one_step(r, split=None, index=TEST.take(slice(8))),
     ArgumentError, "index is of type Split", "and the pair of it and its examples"),
    ("the state of another optimizer", lambda r: one_step(r, tx=optax.adam(0.1)),
     ArgumentError, "as the state's opt_state is of another optimizer", "Write init_state(model, tx, config, data)"),
    ("a model of one size of batches", lambda r: fixed_batch(r),
     ArgumentError, "FixedBatch has parameters whose shapes depend on the number of images", "x.reshape((len(x), -1))"),
    # names of runs, which become folders
    *(
        (f"a run called {name[:12]!r}", lambda r, name=name: _check_run_name(name),
         ArgumentError, "run name is ", "write 'resnet20-seed0'")
        for name in ("../../x", "/tmp/x", "", ".", "..", "a/b", "a\\b", "a\0b", "a\nb", "~", ".hidden", "x" * 201, "\udc80")
    ),
]  # fmt: skip


def nested(depth):
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def fit_data(images):
    return GOOD._replace(train=Split(images, LABELS))


def flat_blue():
    images = IMAGES.copy()
    images[..., 2] = 9
    mean, std = channel_statistics(images)
    return GOOD._replace(train=Split(images, LABELS), mean=mean, std=std)


@pytest.fixture(scope="module")
def ready():
    """What some mistakes need, made before anyone counts what is compiled."""
    model = jc.create_model("mlp", 4, hidden=[4])
    jc.strategy("jit", 1)
    return {
        "model": model,
        "state": jc.init_state(
            model, jc.create_optimizer(CONFIG.optimizer, CONFIG.train.num_steps), CONFIG.train, GOOD
        ),
        "array": jax.numpy.asarray(IMAGES),
    }


@pytest.fixture
def compiled(ready, monkeypatch):
    """What JAX lowers or compiles during the test; a run that gets as far as its first state is a failure at once."""
    seen = []

    def note(event: str, duration_secs: float, **kwargs: Any):
        if "jaxpr_to_mlir" in event or "backend_compile" in event:
            seen.append(event)

    def reached(*args, **kwargs):
        pytest.fail("it went on to train or to measure")

    monkeypatch.setattr("jaxcnn.training.init_state", reached)
    monkeypatch.setattr("jaxcnn.parallel.Strategy.compile_steps", reached)
    monkeypatch.setattr(
        sys.modules["jaxcnn.evaluation"], "_predictor", reached
    )  # the package has a function of that name
    jax.monitoring.register_event_duration_secs_listener(note)
    yield seen
    jax.monitoring.unregister_event_duration_listener(note)


@pytest.mark.parametrize(
    ("mistake", "kind", "field", "mend"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_one_line(mistake, kind, field, mend, ready, compiled, tmp_path, monkeypatch):
    room = SimpleNamespace(path=tmp_path, patch=monkeypatch, **ready)
    with pytest.raises(kind) as caught:
        mistake(room)
    message = str(caught.value)
    assert type(caught.value) is kind
    assert "\n" not in message
    assert len(re.sub(r"https?://\S+|/[\w./-]+", "", message)) < 400  # beside addresses and paths
    assert field in message
    assert mend in message.split(field, 1)[1]  # what is wrong comes first
    assert compiled == []


def test_a_name_in_other_spelling_has_one_correction():
    for name in ("ResNet-20", "resnet_20", "Resnet20"):
        with pytest.raises(ArgumentError, match=r"; write resnet20$"):
            jc.create_model(name, 10)


def test_the_table_is_long_and_its_guard_awake(compiled):
    assert len(TABLE) >= 100
    assert len({row[0] for row in TABLE}) == len(TABLE)
    with pytest.raises(pytest.fail.Exception, match="it went on"):
        fit()
    with pytest.raises(pytest.fail.Exception, match="it went on"):
        fit(GOOD._replace(validation=TEST), num_validation=20, eval_split="validation")
    jax.jit(lambda x: x * 3 + 1)(np.float32(hashlib.sha256().digest_size))
    assert compiled


def test_plain_names_of_runs_are_accepted():
    for name in ("resnet20-seed0", "lr=0.1, wd 1e-4", "läufe_3", "x" * 200):
        assert _check_run_name(name) == name


def test_only_what_matters_is_asked_of_images():
    """One pixel high, one channel, 5 channels, a view that is not contiguous, a memory map: all of them are images."""
    for images in (
        np.zeros((40, 1, 12, 9), np.uint8),
        np.zeros((40, 1, 1, 3), np.uint8),
        np.zeros((40, 3, 3, 5), np.uint8)[:, :, :, ::-1],
        IMAGES[:, ::2, :, :1],
        np.asfortranarray(IMAGES),
    ):
        mean, std = channel_statistics(images)
        test = Split(images[:5], LABELS[:5])
        verify_dataset(
            Dataset(
                "mine",
                Split(images, LABELS),
                Split(images[:0], LABELS[:0]),
                test,
                ("a",) * 4,
                mean,
                std,
            )
        )


def test_pixels_are_not_looked_at_unless_something_is_wrong():
    """The cost is that of the labels: a memory map of images is not read."""

    class Unread(np.ndarray):
        def __getitem__(self, key):
            pytest.fail("pixels were read")

        def __array_ufunc__(self, *args, **kwargs):
            pytest.fail("pixels were read")

    unread = IMAGES.view(Unread)
    verify_dataset(GOOD._replace(train=Split(unread, LABELS), test=Split(unread, LABELS)))
