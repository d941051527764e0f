"""`jaxcnn.dataset`: every accepted form of the same arrays is the same data set, and the rest is one line."""

import logging
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxcnn as jc
from jaxcnn.data import channel_statistics

RNG = np.random.default_rng(0)
CLASSES = 4
NAMES = ("ant", "bee", "cat", "dog")
IMAGE_FORMS = {
    "uint8": lambda x: x,
    "read-only": lambda x: (y := x.copy(), y.setflags(write=False))[0],
    "int32": lambda x: x.astype(np.int32),
    "int64": lambda x: x.astype(np.int64),
    "big-endian": lambda x: x.astype(">i4"),
    "uint16": lambda x: x.astype(np.uint16) * np.uint16(257),
    "big-endian uint16": lambda x: (x.astype(np.uint16) * np.uint16(257)).astype(">u2"),
    "float 0..1": lambda x: (x / 255).astype(np.float32),
    "float64 0..1": lambda x: x / 255,
    "float16 0..1": lambda x: (x / 255).astype(np.float16),
    "float 0..255": lambda x: x.astype(np.float32),
    "jax": jnp.asarray,
    "jax float": lambda x: jnp.asarray(x / 255, jnp.float32),
    "list": lambda x: x.tolist(),
    "list of arrays": list,
    "fortran": np.asfortranarray,
}
LABEL_FORMS = {
    "int32": lambda y: y,
    "int64": lambda y: y.astype(np.int64),
    "uint8": lambda y: y.astype(np.uint8),
    "big-endian": lambda y: y.astype(">i8"),
    "jax": jnp.asarray,
    "list": lambda y: y.tolist(),
    "tuple": lambda y: tuple(y.tolist()),
    "column": lambda y: y[:, None],
    "text": lambda y: np.array(NAMES)[y],
    "list of text": lambda y: [NAMES[i] for i in y],
    "objects": lambda y: np.array([NAMES[i] for i in y], object),
    "bytes": lambda y: np.array([NAMES[i].encode() for i in y]),
    "text column": lambda y: np.array(NAMES)[y][:, None],
    "one-hot": lambda y: np.eye(CLASSES, dtype=np.int32)[y],
    "one-hot float": lambda y: np.eye(CLASSES)[y],
    "one-hot bool": lambda y: np.eye(CLASSES, dtype=bool)[y],
    "one-hot list": lambda y: np.eye(CLASSES, dtype=int)[y].tolist(),
    "whole floats": lambda y: y.astype(np.float64),
}


def arrays(seed, gray):
    """Images and labels of a train and a test part; every class is in train, and 0 and 255 are."""
    rng = np.random.default_rng(seed)
    shape = (5, 6, 1) if gray else (5, 6, 3)
    parts = []
    for n in (9, 7):
        images = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
        images.flat[:2] = 0, 255
        labels = rng.integers(0, CLASSES, n).astype(np.int32)
        labels[:CLASSES] = np.arange(CLASSES)
        parts.append((images, labels))
    return parts


def assert_equal(data, other):
    assert data.classes == other.classes
    assert data.name == other.name
    for name in ("train", "validation", "test"):
        for a, b in zip(getattr(data, name), getattr(other, name), strict=True):
            assert type(a) is type(b) is np.ndarray
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(data.mean, other.mean)
    np.testing.assert_array_equal(data.std, other.std)


@pytest.fixture
def tries(cases):
    return settings(max_examples=cases(300), deadline=None, database=None)


def test_every_form_of_the_same_arrays_is_the_same_data_set(tries):
    @tries
    @given(
        st.integers(0, 2**31), st.booleans(), st.booleans(), st.booleans(),
        *(st.sampled_from(sorted(IMAGE_FORMS)) for _ in range(2)),
        st.sampled_from(sorted(LABEL_FORMS)),
    )  # fmt: skip
    def check(seed, gray, as_split, with_validation, train_form, test_form, label_form):
        parts = arrays(seed, gray)
        empty = jc.Split(parts[0][0][:0], parts[0][1][:0])
        mean, std = channel_statistics(parts[0][0])
        want = jc.Dataset(
            "mine", jc.Split(*parts[0]), jc.Split(*parts[1]) if with_validation else empty,
            jc.Split(*parts[1]), NAMES, mean, std,
        )  # fmt: skip
        forms = []
        for (images, labels), form in zip(parts, (train_form, test_form), strict=True):
            squeezed = images[..., 0] if gray and seed % 2 else images
            forms.append((IMAGE_FORMS[form](squeezed), LABEL_FORMS[label_form](labels)))
        scales = {form.split()[-1] for form in (train_form, test_form) if form.startswith("float")}
        if "jax float" in (train_form, test_form):
            scales.add("0..1")
        if len(scales) > 1:
            with pytest.raises(jc.DataError, match=r"expected one scale in all parts: write"):
                jc.dataset(*forms)
            return
        if as_split:
            forms = [jc.Split(*form) for form in forms]
        data = jc.dataset(
            *forms, forms[1] if with_validation else None, num_classes=CLASSES, classes=NAMES,
            name="mine",
        )  # fmt: skip
        assert_equal(data, want)

    check()


@pytest.mark.parametrize("form", sorted(LABEL_FORMS))
def test_classes_are_found_in_the_labels(form):
    if form == "whole floats":
        pytest.skip("they are targets unless the number of classes is there")
    train, test = arrays(1, False)
    labels = LABEL_FORMS[form](train[1])
    data = jc.dataset((train[0], labels), (test[0], LABEL_FORMS[form](test[1])))
    assert data.classes == (
        NAMES if "text" in form or form in ("bytes", "objects") else tuple("0123")
    )
    assert data.num_classes == CLASSES
    np.testing.assert_array_equal(data.train.labels, train[1])


def test_conversions_are_named_once_in_one_line(caplog):
    train, test = arrays(0, True)
    with caplog.at_level(logging.WARNING, "jaxcnn.data"):
        jc.dataset(train, test)
        assert not caplog.records
        jc.dataset(
            ((train[0][..., 0] / 255).astype(np.float32), train[1].astype(np.int64)),
            ((test[0][..., 0] / 255).astype(np.float32), test[1].astype(np.int64)),
        )
    (record,) = caplog.records
    assert record.getMessage() == (
        "dataset arrays: images [n, h, w] got an axis of one channel; images float32 became uint8 "
        "(0..1 times 255, rounded to 8 bits); labels int64 became int32"
    )


def test_bool_images_and_labels():
    images = RNG.random((8, 5, 6)) < 0.5
    labels = np.arange(8) % 2 == 1
    data = jc.dataset((images, labels), (images, labels))
    np.testing.assert_array_equal(data.train.images[..., 0], images * 255)
    assert data.train.labels.tolist() == [0, 1] * 4


def test_a_memory_map_of_bytes_stays_on_disk_and_others_are_read(tmp_path):
    train, test = arrays(0, True)
    images = np.memmap(tmp_path / "images", np.uint8, "w+", shape=train[0].shape[:3])
    images[:] = train[0][..., 0]
    data = jc.dataset((images, train[1]), test)
    assert isinstance(data.train.images, np.memmap)
    assert np.shares_memory(data.train.images, images)
    halves = np.memmap(tmp_path / "halves", np.float32, "w+", shape=train[0].shape)
    halves[:] = train[0] / 255
    read = jc.dataset((halves, train[1]), test)
    assert type(read.train.images) is np.ndarray
    np.testing.assert_array_equal(read.train.images, data.train.images)


def test_a_dark_part_is_read_as_the_others_are():
    train, test = arrays(0, False)
    dark = np.zeros_like(test[0])
    dark[0, 0, 0] = 1
    data = jc.dataset((train[0].astype(np.float32), train[1]), (dark.astype(np.float32), test[1]))
    np.testing.assert_array_equal(data.test.images, dark)


@pytest.mark.parametrize(
    "labels",
    [
        RNG.integers(0, 2, (9, 5)).astype(np.int64) | np.eye(9, 5, dtype=np.int64)[::-1] | 1 * (np.arange(9)[:, None] == 3),
        RNG.normal(size=9),
        RNG.normal(size=(9, 4)).astype(np.float32),
        RNG.dirichlet(np.ones(4), 9),
        {"box": RNG.normal(size=(9, 4)), "class": np.arange(9)},
        (RNG.normal(size=(9, 2)), [1, 2, 3] * 3),
        RNG.normal(size=(9, 5, 6, 2)).astype(np.float32),
    ],
    ids=["multi-hot", "float", "vector", "shares", "dict", "tuple", "maps"],
)  # fmt: skip
def test_targets_of_other_losses_keep_their_values(labels):
    images = arrays(0, False)[0][0]
    data = jc.dataset((images, labels), (images, labels))
    assert data.classes == ()
    import jax

    flat, kept = (
        jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, list))
        for tree in (labels, data.train.labels)
    )
    for before, after in zip(flat, kept, strict=True):
        assert isinstance(after, np.ndarray)
        assert after.dtype.itemsize <= 4
        np.testing.assert_allclose(after, np.asarray(before), rtol=1e-6)


@pytest.mark.parametrize("form", [np.uint8, np.int64, bool])
def test_masks(form):
    images = arrays(0, False)[0][0]
    masks = RNG.integers(0, 2, images.shape[:3]).astype(form)
    for given_masks in (masks, masks[..., None]):
        data = jc.dataset((images, given_masks), (images, given_masks))
        assert data.train.labels.dtype == np.int32
        np.testing.assert_array_equal(data.train.labels, masks)
        assert data.num_classes == 2


@pytest.mark.quick_compilation
@pytest.mark.slow
def test_what_comes_out_trains():
    train, test = arrays(0, False)
    one = jc.strategy("jit", 1)
    config = jc.TrainConfig(num_steps=2, batch_size=4)
    tx = jc.create_optimizer(jc.OptimizerConfig())
    data = jc.dataset(
        (train[0] / 255, np.array(NAMES)[train[1]]), (test[0] / 255, np.array(NAMES)[test[1]])
    )
    model = jc.create_model("mlp", data.num_classes)
    rows: list[Any] = [row for _, row in jc.train(model, tx, data, config, strategy=one)]
    assert np.isfinite(rows[-1]["eval_loss"])
    shares = RNG.dirichlet(np.ones(4), 9).astype(np.float32)
    data = jc.dataset((train[0], shares), (train[0], shares), num_classes=4)
    rows: list[Any] = [row for _, row in jc.train(model, tx, data, config, strategy=one)]
    assert 0 <= rows[-1]["eval_error"] <= 100
    several = np.eye(9, 3, dtype=np.uint8) | np.eye(9, 3, 1, dtype=np.uint8)
    data = jc.dataset((train[0], several), (train[0], several))
    model = jc.create_model("mlp", 3)
    rows = [
        row
        for _, row in jc.train(model, tx, data, config, loss="binary-cross-entropy", strategy=one)
    ]
    assert np.isfinite(rows[-1]["eval_loss"])


class HuggingFace:
    column_names = ("img", "fine_label")

    def __len__(self):
        return 3

    def __getitem__(self, name):
        return [1, 2, 3]


class Tensors:
    def as_numpy_iterator(self):
        return iter([])


class Torch:
    def __len__(self):
        return 3

    def __getitem__(self, number):
        return number


X, Y = arrays(0, False)[0]


@pytest.mark.parametrize(
    ("train", "says"),
    [
        ((X.astype(np.float32) * np.nan, Y), "train images have NaN or infinite pixels, the first in image 0"),
        ((X / 255 - 0.5, Y), r"float64 in -0.5..0.5; expected no negative pixels"),
        ((X * 1.3, Y), r"0..331.5; expected uint8, floats in 0..1, or whole numbers"),
        ((X.astype(np.int32) * 3, Y), r"int32 in 0..765; expected uint8"),
        ((X.astype(np.int32) // 255, Y), r"may mean 0..1 or 0..255"),
        ((X.astype(np.uint16) * np.uint16(16), Y), r"0..4080, which may be of a camera of 12 bits"),
        ((X.astype(complex), Y), "train images are complex128"),
        ((X.astype(str), Y), "train images are <U"),
        (([*X[:8], X[0][:3]], Y), r"train images cannot be one array .*np.stack"),
        ((X.transpose(0, 3, 1, 2), Y), r"channels come last, write images.transpose\(0, 2, 3, 1\)"),
        ((X.reshape(9, -1), Y), "reshape"),
        ((X, ([[1.0], [1.0, 2.0]], Y)), "cannot be one array"),
        ((X[0], Y[:5]), r"write images\[None\] for one image"),
        ((X[:0], Y[:0]), "train images are none at all"),
        ((X, Y[:8]), "train has 9 images and 8 labels; expected as many"),
        ((X, {"a": Y, "b": Y[:3]}), r"9 images and 3 labels\['b'\]"),
        ((X, Y - 1), r"train labels span -1..2; expected 0 and above"),
        ((X, Y + 1), r"span 1..4, and none is 0; .*write labels - 1, or num_classes=5"),
        ((X, Y * 1000), r"go up to 3000, more than the 9 labels; .*np.unique"),
        ((X, None), "train labels are None"),
        ((X, 3), "train labels are 3; expected an array"),
        ((X, Y * 0), "train labels are all 0"),
        ((X, Y.astype(complex)), "train labels are complex128"),
        ((X, np.array([None] * 9)), "train labels are object"),
        ((X, RNG.normal(size=9) * np.nan), "labels have NaN"),
        ((X, np.arange(9) + 2**40 + 0.0 * X[0, 0, 0, 0]), None),
        ((X, (X[..., 0] > 99) * np.uint8(255)), r"masks of 0 and 255; .*write masks // 255"),
        ((X, np.ma.masked_array(Y)), "train labels are a masked array"),
        ((X,), r"train is a tuple of 1; expected a pair"),
        (X, r"train is .*expected a pair"),
        (None, "train is None; expected a pair"),
        ({"image": X, "label": Y}, r"write train=\(data\['image'\], data\['label'\]\)"),
        ({"train": 1, "test": 2}, r"write train=\(data\['train'\]\['image'\]"),
        (HuggingFace(), r"np.asarray\(image\) for image in data\['img'\]\]\), data\['fine_label'\]\)"),
        (Tensors(), r"Tensors; .*zip\(\*data.unbatch\(\).as_numpy_iterator"),
        (Torch(), r"Torch; .*tuple\(map\(np.stack, zip\(\*data\)\)\)"),
        (jc.load_dataset("digits"), r"train is a Dataset; .*write train=data.train"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_in_one_way_is_one_line(train, says):
    if says is None:
        data = jc.dataset(train, train)
        assert data.train.labels.dtype == np.float32
        return
    with pytest.raises(jc.DataError, match=says) as caught:
        jc.dataset(train)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"test": (X[:, :4], Y)}, r"test images have shape \(4, 6, 3\); expected \(5, 6, 3\)"),
        ({"test": (X, Y + 1)}, r"test labels span 1..4; expected 0..3.*write labels - 1"),
        ({"classes": ()}, r"classes is \(\); expected two names or more: .*leave out classes"),
        ({"test": (X, Y + 3)}, r"test labels span 3..6; expected 0..3.*num_classes=7"),
        ({"test": (X, Y.astype(str))}, "expected one form in all parts"),
        ({"test": (X, np.eye(4)[Y])}, "expected one form in all parts"),
        ({"num_classes": 3}, r"train labels span 0..3; expected 0..2.*write num_classes=4"),
        ({"classes": ("a", "b", "c")}, r"span 0..3; expected 0..2.*write classes=.* with 4 names"),
        ({"num_classes": 3, "classes": NAMES}, "classes has 4 names and num_classes is 3"),
        ({"classes": ("a", "a")}, "classes has 'a' twice"),
        ({"classes": "abcd"}, "classes is 'abcd'; expected two names"),
        ({"name": 3}, "name is of type int"),
        ({"validation": (X[:0], Y[:0])}, "validation images are none at all"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_one_line(arguments, says):
    with pytest.raises(jc.DataError, match=says) as caught:
        jc.dataset(**({"train": (X, Y), "test": (X, Y)} | arguments))
    assert "\n" not in str(caught.value)


def test_text_labels_that_do_not_fit():
    names = np.array(NAMES)[Y]
    other = np.where(names == "dog", "eel", names)
    with pytest.raises(jc.DataError, match=r"test labels have 'eel', which the train labels lack"):
        jc.dataset((X, names), (X, other))
    with pytest.raises(jc.DataError, match=r"train labels have 'ant', which classes lack"):
        jc.dataset((X, names), (X, names), classes=("bee", "cat", "dog"))
    with pytest.raises(
        jc.DataError,
        match=r"have 4 names and num_classes is 5.* or integers \[n, m\] that are padded",
    ):
        jc.dataset((X, names), (X, names), num_classes=5)
    order = ("dog", "cat", "bee", "ant", "fox")
    data = jc.dataset((X, names), (X, names), classes=order)
    assert [data.classes[i] for i in data.train.labels] == names.tolist()


def test_num_classes_that_is_no_number():
    with pytest.raises(jc.ArgumentError, match="num_classes is 'ten'"):
        jc.dataset((X, Y), (X, Y), num_classes="ten")  # pyright: ignore[reportArgumentType]


def test_without_a_test_part():
    data = jc.dataset((X, Y), validation=(X, Y))
    assert len(data.test.images) == 0
    assert len(data.validation.images) == 9


TALL = np.random.default_rng(0).integers(0, 256, (6, 8, 4, 1), dtype=np.uint8)
MASKS = np.arange(6 * 8 * 4).reshape(6, 8, 4) % 3
SGD = jc.create_optimizer(jc.OptimizerConfig("sgd"), 1)
ONE_STEP = jc.TrainConfig(num_steps=1, batch_size=4)


def train_masks(data, **kwargs):
    one = jc.strategy("jit", 1)
    return next(jc.train(nn.Dense(3), SGD, data, ONE_STEP, strategy=one, **kwargs))


@pytest.mark.parametrize(
    ("masks", "fix", "repair"),
    [
        (MASKS[:, ::4, ::2], r"labels.repeat\(4, 1\).repeat\(2, 2\)", lambda y: y.repeat(4, 1).repeat(2, 2)),
        (MASKS.repeat(2, 1), "resize the masks to 8x4 pixels", lambda y: y[:, ::2]),
        (MASKS[:, :5, :3], "resize the masks to 8x4 pixels", None),
        (MASKS.transpose(0, 2, 1), r"labels.transpose\(0, 2, 1\)", lambda y: y.transpose(0, 2, 1)),
        (np.eye(3)[MASKS], r"labels.argmax\(-1\).astype", lambda y: y.argmax(-1).astype(np.int32)),
        (np.eye(3, dtype=int)[MASKS], r"labels.argmax\(-1\)", lambda y: y.argmax(-1)),
        (MASKS.astype(np.float32), r"labels.astype\(np.int32\)", lambda y: y.astype(np.int32)),
    ],
)  # fmt: skip
def test_masks_of_another_form_are_told_how_they_become_masks(masks, fix, repair, caplog):
    data = jc.dataset((TALL, masks), (TALL, masks))
    assert (
        "targets of a loss of your own, as masks of classes are integers (6, 8, 4)" in caplog.text
    )
    with pytest.raises(jc.DataError, match=f"train labels .*{fix}"):
        train_masks(data)
    if repair is not None:
        shape = jc.dataset((TALL, repair(masks)), num_classes=3).train.labels.shape
        assert shape == (6, 8, 4)


@pytest.mark.parametrize("void", [255, -1])
@pytest.mark.parametrize("num_classes", [None, 3])
def test_pixels_without_a_class_are_no_classes(void, num_classes):
    masks = np.where(TALL[..., 0] < 99, void, MASKS)
    match = rf"train labels are masks of classes 0..2 with {void} for pixels .*{{'mask': masks}}"
    with pytest.raises(jc.DataError, match=match):
        jc.dataset((TALL, masks), num_classes=num_classes)


def test_255_may_be_a_class_of_masks():
    """Where 256 are asked for, and where other classes leave no gap below it."""
    wide = np.where(TALL[..., 0] < 99, 255, MASKS)
    assert jc.dataset((TALL, wide), num_classes=256).num_classes == 256
    dense = np.arange(6 * 8 * 4 * 2).reshape(6, 8, 8) % 256
    assert jc.dataset((TALL.repeat(2, 2), dense)).num_classes == 256


def test_a_loss_leaves_out_pixels_without_a_class():
    """As `dataset` shows it: what the network gives there changes nothing."""

    def of_known_pixels(outputs, batch):
        mask = batch.labels["mask"]
        is_known = mask != 255
        classes = jnp.where(is_known, mask, 0)
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs, classes)
        return jnp.where(is_known, losses, 0), {}

    split = TALL, {"mask": np.where(TALL[..., 0] < 99, 255, MASKS)}
    data = jc.dataset(split, split, num_classes=3)
    state, row = train_masks(data, loss=of_known_pixels)
    assert row is not None
    logits = jc.predict(nn.Dense(3), state, TALL)
    mask = data.train.labels["mask"]
    chosen = np.take_along_axis(logits, np.where(mask == 255, 0, mask)[..., None], -1)[..., 0]
    losses = np.log(np.exp(logits).sum(-1)) - chosen
    expected = losses[mask != 255].sum() / mask.size
    assert row["eval_loss"] == pytest.approx(expected, rel=1e-4)
