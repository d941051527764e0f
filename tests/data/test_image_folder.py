"""A folder of your own images: every kind of file, what is broken, which image goes where, and what is kept on disk."""

import errno
import io
import itertools
import json
import logging
import os
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_fakes import bare_machine, flip, one_line  # noqa: F401
from PIL import Image

from jaxcnn.config import ArgumentError
from jaxcnn.data import (
    DataError,
    ImageError,
    channel_statistics,
    image_files,
    image_folder,
    image_folder_with_paths,
    image_io,
    load_image,
    load_images,
    resize_image,
    temporary,
)
from jaxcnn.data.splits import SPLITS

pytestmark = pytest.mark.usefixtures("bare_machine")


def drawing(height=6, width=9, channels=3, seed=0):
    """An image no axis of which is symmetric."""
    return (
        np.random.default_rng(seed)
        .integers(0, 256, (height, width, channels), dtype=np.uint8)
        .squeeze()
    )


def saved(array, path, **options):
    Image.fromarray(array).save(path, **options)
    return path


def whole(path, side):
    """A square image as it is."""
    return load_image(path, size=side, resize=side)


def put(root, name, seed=0, **options):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return saved(drawing(8, 8, seed=seed), path, **options)


@pytest.fixture
def fruit(tmp_path):
    """Seven apples, five limes and three plums of 8 x 8 pixels, no two the same."""
    root, seeds = tmp_path / "fruit", itertools.count()
    for name, n in (("apple", 7), ("lime", 5), ("plum", 3)):
        for i in range(n):
            put(root, f"{name}/{i}.png", next(seeds))
    return root


# One image


def triangle(n_in, n_out):
    """Weights [n_out, n_in] of bilinear interpolation with antialiasing: a triangle as wide as the step."""
    step = n_in / n_out
    centre = (np.arange(n_out)[:, None] + 0.5) * step
    weights = np.maximum(0, 1 - np.abs(np.arange(n_in)[None] + 0.5 - centre) / max(step, 1))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize(("height", "width"), [(60, 41), (37, 90), (20, 20), (10, 13)])
def test_the_shorter_side_is_resized_and_the_middle_cut_out_as_torchvision_does(
    height, width, tmp_path
):
    image = drawing(height, width)
    found = load_image(saved(image, tmp_path / "a.png"), size=21)
    resize = 24  # 21 * 256 / 224
    # Resize: the longer side rounds down; CenterCrop: the corner rounds to even.
    high, wide = (int(resize * side / min(height, width)) for side in (height, width))
    scaled = np.einsum(
        "yi,xj,ijc->yxc", triangle(height, high), triangle(width, wide), image.astype(float)
    )
    top, left = round((high - 21) / 2), round((wide - 21) / 2)
    expected = scaled[top : top + 21, left : left + 21]
    assert found.shape == (21, 21, 3)
    assert np.abs(found - expected).max() <= 1.5  # two passes of 8 bits


def cubic(n_in, n_out):
    """Weights of Keys' cubic convolution (1981, equation 15, a = -1/2), as wide as the step."""
    step = n_in / n_out
    centre = (np.arange(n_out)[:, None] + 0.5) * step
    x = np.abs(np.arange(n_in)[None] + 0.5 - centre) / max(step, 1)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("side", [40, 15])
def test_bicubic_resizing_is_the_cubic_convolution(side, tmp_path):
    # Away from 0 and 255, where the overshoot of each pass is cut off.
    image = (64 + drawing(side, side) // 2).astype(np.uint8)
    path = saved(image, tmp_path / "a.png")
    found = load_image(path, 21, 21, interpolation="bicubic")
    weights = cubic(side, 21)
    expected = np.einsum("yi,xj,ijc->yxc", weights, weights, image.astype(float))
    assert np.abs(found - expected).max() <= 1.5
    assert np.abs(load_image(path, 21, 21).astype(float) - expected).max() > 3


def test_interpolations_have_caches_of_their_own(fruit, monkeypatch):
    default = image_folder(fruit, 5, 6)
    bicubic = image_folder(fruit, 5, 6, interpolation="bicubic")
    assert not np.array_equal(default.train.images, bicubic.train.images)
    # Both stay, and the default is bilinear: nothing is decoded again.
    monkeypatch.setattr("jaxcnn.data.image_cache.decode", lambda *args: pytest.fail("it decoded"))
    for interpolation, expected in (("bilinear", default), ("bicubic", bicubic)):
        again = image_folder(fruit, 5, 6, interpolation=interpolation)
        np.testing.assert_array_equal(again.train.images, expected.train.images)


@pytest.mark.parametrize("name", ["lanczos", "bicubi", 3, None])
def test_interpolations_that_do_not_exist_are_one_line(name, fruit):
    for call in (lambda **k: image_folder(fruit, 5, **k), lambda **k: load_image(fruit, 5, **k)):
        with pytest.raises(ArgumentError, match=f"interpolation is {name!r}.*bicubic"):
            call(interpolation=name)


def test_an_image_of_the_right_size_is_left_as_it_is(tmp_path):
    image = drawing(8, 8)
    np.testing.assert_array_equal(whole(saved(image, tmp_path / "a.png"), 8), image)
    wide = drawing(8, 11)
    np.testing.assert_array_equal(
        whole(saved(wide, tmp_path / "b.png"), 8), wide[:, 2:10]
    )  # 1.5 rounds to even


STORED = {  # EXIF: which side of the image the first stored row and the first stored column are
    1: lambda u: u,
    2: lambda u: u[:, ::-1],
    3: lambda u: u[::-1, ::-1],
    4: lambda u: u[::-1],
    5: lambda u: u.swapaxes(0, 1),
    6: lambda u: u[:, ::-1].swapaxes(0, 1),
    7: lambda u: u[::-1, ::-1].swapaxes(0, 1),
    8: lambda u: u[::-1].swapaxes(0, 1),
}


@pytest.mark.parametrize("kind", ["png", "webp", "tiff"])
@pytest.mark.parametrize("tag", STORED)
def test_an_image_is_turned_upright(tag, kind, tmp_path):
    upright, exif = drawing(8, 12), Image.Exif()
    exif[0x0112] = tag
    path = tmp_path / f"a.{kind}"
    options: dict[str, Any] = {"lossless": True} if kind == "webp" else {}
    saved(np.ascontiguousarray(STORED[tag](upright)), path, exif=exif, **options)
    np.testing.assert_array_equal(whole(path, 8), upright[:, 2:10])


def test_damaged_tags_turn_nothing(tmp_path):
    image = drawing(8, 8)
    saved(image, tmp_path / "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff nonsense")
    np.testing.assert_array_equal(whole(tmp_path / "a.png", 8), image)


def over_white(colour, alpha):
    """What shows of a colour that covers `alpha` / 255 of white."""
    share = alpha.astype(float)[..., None] / 255
    return colour * share + 255 * (1 - share)


def test_grey_palette_and_one_bit_images(tmp_path):
    grey = drawing(8, 8, 1)
    np.testing.assert_array_equal(
        whole(saved(grey, tmp_path / "l.png"), 8), np.repeat(grey[..., None], 3, 2)
    )
    bits = grey > 127
    Image.fromarray(bits).save(tmp_path / "1.png")
    np.testing.assert_array_equal(
        whole(tmp_path / "1.png", 8), np.repeat(bits[..., None] * np.uint8(255), 3, 2)
    )
    colours, index = drawing(1, 64), np.arange(64, dtype=np.uint8).reshape(8, 8)
    palette = Image.frombytes("P", (8, 8), index.tobytes())
    palette.putpalette(colours.tobytes())
    for kind in ("png", "gif", "bmp"):
        palette.save(tmp_path / f"p.{kind}")
        np.testing.assert_array_equal(whole(tmp_path / f"p.{kind}", 8), colours[index])
    palette.save(tmp_path / "t.png", transparency=bytes(range(64)))
    expected = over_white(colours[index], index)
    assert np.abs(whole(tmp_path / "t.png", 8) - expected).max() <= 1


def test_what_is_transparent_lies_on_white(tmp_path):
    rgba, la = drawing(8, 8, 4), drawing(8, 8, 2)
    cases: list[tuple[str, dict[str, Any]]] = [
        ("png", {}),
        ("webp", {"lossless": True, "exact": True}),
        ("tiff", {}),
    ]
    for kind, options in cases:
        found = whole(saved(rgba, tmp_path / f"a.{kind}", **options), 8)
        assert np.abs(found - over_white(rgba[..., :3], rgba[..., 3])).max() <= 1
    found = whole(saved(la, tmp_path / "la.png"), 8)
    assert np.abs(found - over_white(np.repeat(la[..., :1], 3, 2), la[..., 1])).max() <= 1


def png(array):
    """A PNG of 16 bits, grey or RGB, written by its specification: Pillow writes none of RGB."""
    height, width = array.shape[:2]
    colour = {2: 0, 3: 2}[array.ndim]

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    parts = (
        chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)),
        chunk(b"IDAT", zlib.compress(rows)),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    grey = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    (tmp_path / "g.png").write_bytes(png(grey))
    Image.fromarray(grey).save(tmp_path / "g.tiff")
    Image.frombytes("I;16B", (8, 8), grey.astype(">u2").tobytes()).save(tmp_path / "b.tiff")
    expected = np.repeat(np.round(grey / 257).astype(np.uint8)[..., None], 3, 2)
    for name in ("g.png", "g.tiff", "b.tiff"):
        np.testing.assert_array_equal(whole(tmp_path / name, 8), expected, name)
    rgb = np.random.default_rng(0).integers(0, 65536, (8, 8, 3), dtype=np.uint16)
    (tmp_path / "c.png").write_bytes(png(rgb))
    assert np.abs(whole(tmp_path / "c.png", 8) - rgb / 257).max() <= 1


def without_adobe(data):
    """The JPEG without its APP14 marker, which says that ink is written inverted."""
    at = data.index(b"\xff\xee")
    return data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]


def test_cmyk_with_and_without_adobes_marker(tmp_path):
    ink = np.zeros((16, 16, 4), np.uint8)
    ink[..., 1], ink[..., 2] = 255, 255  # magenta and yellow make red
    Image.frombytes("CMYK", (16, 16), ink.tobytes()).save(tmp_path / "a.jpg", quality=100)
    assert np.abs(whole(tmp_path / "a.jpg", 16) - np.array([255.0, 0, 0])).max() <= 4
    file = (
        io.BytesIO()
    )  # Pillow inverts what it writes; given the inverse, the file holds the ink itself
    Image.frombytes("CMYK", (16, 16), (255 - ink).tobytes()).save(file, "JPEG", quality=100)
    (tmp_path / "b.jpg").write_bytes(without_adobe(file.getvalue()))
    assert np.abs(whole(tmp_path / "b.jpg", 16) - np.array([255.0, 0, 0])).max() <= 4
    Image.frombytes("CMYK", (16, 16), ink.tobytes()).save(tmp_path / "c.tiff")
    np.testing.assert_array_equal(whole(tmp_path / "c.tiff", 16), np.full((16, 16, 3), [255, 0, 0]))


def test_of_a_film_the_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    for kind in ("gif", "webp", "png", "tiff"):
        options: dict[str, Any] = {"lossless": True} if kind == "webp" else {}
        frames[0].save(tmp_path / f"a.{kind}", save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(
            whole(tmp_path / f"a.{kind}", 8), np.full((8, 8, 3), [255, 0, 0]), kind
        )


def test_a_file_is_told_by_its_bytes_and_not_by_its_name(tmp_path):
    image = drawing(8, 8)
    saved(image, tmp_path / "a.png").rename(tmp_path / "a.jpg")
    np.testing.assert_array_equal(whole(tmp_path / "a.jpg", 8), image)


# What is broken


def bomb(width, height):
    """A PNG of some 70 bytes that says it is so large."""
    data = png(np.zeros((1, 1), np.uint16))
    head = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]


def broken_files(root):
    good = put(root, "good.jpg").read_bytes()
    content = {
        "bomb.png": bomb(60_000, 60_000),
        "large.png": bomb(9_500, 9_500),
        "cut.jpg": good[: len(good) // 2],
        "empty.jpg": b"",
        "text.jpg": b"I am no image",
        "long.png": None,
        "float.tiff": None,
    }
    for name, data in content.items():
        if data is not None:
            (root / name).write_bytes(data)
    Image.new("1", (1, 60_000)).save(root / "long.png")
    Image.fromarray(np.zeros((8, 8), np.float32)).save(root / "float.tiff")
    (root / "gone.jpg").symlink_to(root / "nothing")
    os.mkfifo(root / "pipe.png")
    return {
        "bomb.png": "more than 89,478,485",
        "large.png": "9500 x 9500 pixels, more than 89,478,485",
        "cut.jpg": "runcated",
        "empty.jpg": "empty",
        "text.jpg": "none of JPEG, PNG",
        "long.png": "resized to 256 on the shorter side it has 256 x 15360000 pixels",
        "float.tiff": "mode F",
        "gone.jpg": "no such file",
        "pipe.png": "no plain file",
    }


def test_everything_broken_is_told_at_once(tmp_path, monkeypatch):
    reasons = broken_files(tmp_path / "a")
    monkeypatch.setattr(Image.Image, "draft", None)
    with pytest.raises(ImageError) as caught:
        load_images([tmp_path / "a" / name for name in ["good.jpg", *reasons]])
    assert [Path(name).name for name, _ in caught.value.broken] == list(reasons)
    for (name, found), expected in zip(caught.value.broken, reasons.values(), strict=True):
        assert expected in found, name
    assert one_line(caught).startswith("9 files are not images that can be read: ")
    assert "and 6 more" in one_line(caught)


def test_a_large_image_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(bomb(9_500, 9_500))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("it decoded"))
    with pytest.raises(ImageError, match="9500 x 9500"):
        load_image(tmp_path / "a.png")


def test_a_folder_with_broken_images_is_refused_or_read_without_them(fruit, caplog):
    put(fruit, "apple/good.png", 77)
    broken_files(fruit / "apple")
    (fruit / "lime/phone.HEIC").write_bytes(b"ftypheic")
    with pytest.raises(ImageError) as caught:
        image_folder(fruit, 8, 8)
    assert len(caught.value.broken) == 9  # at 8 pixels the long one will do
    assert "skip_broken=True" in one_line(caught)
    assert ("phone.HEIC", "heic is not read here; convert it to JPEG") in [
        (Path(name).name, why) for name, why in caught.value.broken
    ]
    with caplog.at_level(logging.WARNING):
        data, names = image_folder_with_paths(fruit, 8, 8, skip_broken=True)
    assert "9 files are not images" in caplog.text
    found = {name for part in names.values() for name in part}
    assert {"apple/good.png", "apple/good.jpg", "apple/long.png"} <= found
    assert len(found) == len(data.train.labels) + len(data.test.labels) == 15 + 3
    assert not {"apple/cut.jpg", "lime/phone.HEIC"} & found


# Which images there are, and where they go


def test_a_folder_of_classes(fruit):
    data, names = image_folder_with_paths(fruit, 8, 8, test=0.4, validation=0.2)
    assert data.name == "folder"
    assert data.classes == ("apple", "lime", "plum")
    counts = {part: np.bincount(getattr(data, part).labels, minlength=3).tolist() for part in names}
    assert counts == {"train": [3, 2, 1], "validation": [1, 1, 1], "test": [3, 2, 1]}
    for part, own in names.items():
        split = getattr(data, part)
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int32
        assert list(own) == sorted(own)
        for name, image, label in zip(own, split.images, split.labels, strict=True):
            assert name.startswith(data.classes[label])
            np.testing.assert_array_equal(image, np.asarray(Image.open(fruit / name)))
    assert len({name for own in names.values() for name in own}) == 15
    mean, std = channel_statistics(data.train.images)
    np.testing.assert_array_equal(data.mean, mean)
    np.testing.assert_array_equal(data.std, std)


def test_the_choice_depends_on_the_seed_and_the_names_alone(fruit, tmp_path, monkeypatch):
    first = image_folder_with_paths(fruit, 8, 8, test=0.4)[1]
    assert image_folder_with_paths(fruit, 8, 8, test=0.4, seed=1)[1] != first
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: sorted(listed(self), reverse=True))
    monkeypatch.setenv("JAXCNN_CACHE", str(tmp_path / "elsewhere"))
    assert image_folder_with_paths(fruit, 8, 8, test=0.4)[1] == first
    put(fruit, "kiwi/0.png", 90)
    put(fruit, "kiwi/1.png", 91)
    more = image_folder_with_paths(fruit, 8, 8, test=0.4)[1]
    assert [name for name in more["test"] if "kiwi" not in name] == list(first["test"])


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [("train", "val", "test"), ("Training", "validation", "Testing"), ("train", "valid", None)],
)
def test_a_folder_of_parts(train, validation, test, tmp_path, caplog):
    seeds = itertools.count()
    for part, n in ((train, 4), (validation, 2), (test, 3)):
        for name in ("cat", "dog"):
            for i in range(n if part else 0):
                put(tmp_path, f"{part}/{name}/deep/er/{i}.png", next(seeds))
    (tmp_path / "notes").mkdir()
    data, names = image_folder_with_paths(tmp_path, 8, 8)
    assert [len(names[part]) for part in SPLITS] == ([8, 4, 6] if test else [8, 4, 0])
    assert (f"evaluate on {validation}" in caplog.text) == (not test)
    caplog.clear()
    data, names = image_folder_with_paths(tmp_path, 8, 8, test=0.25)
    assert [len(names[part]) for part in SPLITS] == ([8, 4, 6] if test else [6, 4, 2])
    assert ("0.25 of each class of train" in caplog.text) == (not test)
    assert all(name.startswith(f"{validation}/") for name in names["validation"])
    assert data.validation.labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("nested", [False, True])
def test_a_class_may_be_called_train(nested, tmp_path):
    seeds = itertools.count()
    for name in ("train", "test", "car", "boat"):
        for i in range(5):
            deep = "red/" if nested and name != "train" else ""
            put(tmp_path, f"{name}/{deep}{i}.png", next(seeds))
    data = image_folder(tmp_path, 8, 8)
    assert data.classes == ("boat", "car", "test", "train")
    assert (len(data.train.labels), len(data.test.labels)) == (16, 4)


def test_folders_beside_parts_that_agree_are_passed_over(tmp_path, caplog):
    for i, name in enumerate(("train/cat/1", "train/dog/1", "test/cat/1", "test/dog/1", "more/1")):
        put(tmp_path, f"{name}.png", i)
    data = image_folder(tmp_path, 8, 8)
    assert (data.classes, len(data.train.labels), len(data.test.labels)) == (("cat", "dog"), 2, 2)
    assert "1 skipped, whose names are not those of images: more/" in caplog.text


def test_no_test_part_if_none_is_asked_for(fruit):
    data = image_folder(fruit, 8, 8, test=0)
    assert (len(data.train.labels), data.test.images.shape) == (15, (0, 8, 8, 3))


def test_litter_is_skipped_and_other_files_are_named(fruit, caplog):
    for name in (
        ".DS_Store",
        "Thumbs.db",
        "apple/._0.png",
        "apple/desktop.ini",
        ".git/x.png",
        "__MACOSX/apple/._0.jpg",
    ):
        (fruit / name).parent.mkdir(parents=True, exist_ok=True)
        (fruit / name).write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        assert len(image_folder(fruit, 8, 8, test=0).train.labels) == 15
    assert not caplog.text
    for name in ("notes.txt", "lime/labels.csv"):
        (fruit / name).write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        image_folder(fruit, 8, 8)
    (line,) = caplog.messages
    assert line.endswith(
        "2 skipped, whose names are not those of images: lime/labels.csv, notes.txt"
    )


def test_links_are_followed_but_not_in_a_ring(fruit, tmp_path, caplog):
    put(tmp_path, "elsewhere/x.png", 50)
    (fruit / "apple/there").symlink_to(tmp_path / "elsewhere")
    (fruit / "kiwi").symlink_to(fruit / "plum")  # a class that is a link
    (fruit / "lime/round").symlink_to(fruit / "lime")
    with caplog.at_level(logging.WARNING):
        data, names = image_folder_with_paths(fruit, 8, 8, test=0)
    assert "lime/round leads back to" in caplog.text
    assert "3 images are in two classes" in caplog.text
    assert len(data.train.labels) == 15 + 1 + 3
    assert "apple/there/x.png" in names["train"]


def test_the_same_bytes_in_two_parts_are_told_each_time(fruit, tmp_path, caplog):
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            put(tmp_path, f"both/{part}/{name}/{part}.png", hash_of(part, name))
    put(tmp_path, "both/test/cat/copy.png", hash_of("train", "cat"))
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            image_folder(tmp_path / "both", 8, 8)
        (line,) = caplog.messages
        assert (
            "1 image is in two parts with the same bytes, the first train/cat/train.png and "
            "test/cat/copy.png" in line
        )


def hash_of(*words):
    return zlib.crc32("".join(words).encode())


def one_class(root):
    put(root, "apple/1.png")


def no_class(root):
    put(root, "1.png")


def empty_class(root):
    put(root, "apple/1.png")
    put(root, "apple/2.png")
    (root / "lime").mkdir()
    (root / "lime/read.me").write_text("x")


def lone_image(root):
    for name in ("apple/1.png", "apple/2.png", "lime/1.png"):
        put(root, name)


def different(root):
    for name in ("train/a/1.png", "train/b/1.png", "test/a/1.png", "test/c/1.png"):
        put(root, name)


def two_trains(root):
    put(root, "train/a/1.png")
    put(root, "training/a/1.png")


def no_train(root):
    put(root, "test/a/1.png")
    put(root, "val/a/1.png")


def two_readings(root):
    for name in ("train/steam/1.png", "train/diesel/1.png", "car/red/1.png"):
        put(root, name)


def flat_parts(root):
    for name in ("train/1.png", "train/2.png", "test/1.png"):
        put(root, name)


def unprintable(root):
    lone_image(root)
    (root / "bad\nname").mkdir()


def a_file(root):
    root.rmdir()
    put(root.parent, root.name + ".png").rename(root)


WRONG = [
    (lambda root: root.rmdir(), "is not there; expected a folder with a subfolder"),
    (a_file, "is a file; expected a folder with a subfolder"),
    (no_class, "has no folders of classes; expected two or more"),
    (one_class, "has one folder of a class, apple; expected two or more"),
    (empty_class, "no image in lime; expected some (jpg"),
    (lone_image, "class lime has 1 image to train on; expected at least 2"),
    (different, "train lacks the classes c; expected the same in train and test"),
    (two_trains, "two folders for train"),
    (no_train, "test and val, but no train"),
    (two_readings, "train is a class beside car, or holds the classes diesel, steam: rename"),
    (flat_parts, "train has no folders of classes"),
    (unprintable, "cannot be printed; rename its folder"),
]


@pytest.mark.parametrize(("make", "says"), WRONG, ids=lambda x: getattr(x, "__name__", ""))
def test_a_folder_that_is_none_is_one_line(make, says, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    make(root)
    with pytest.raises(DataError) as caught:
        image_folder(root, 8)
    assert says in one_line(caught).replace("val and test", "test and val")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"size": 0}, "size is 0"),
        ({"size": 8.0}, "size is 8.0"),
        (
            {"resize": 7},
            "resize is 7, the shorter side before size=8 is cut out; expected a whole number in "
            "8..8192",
        ),
        ({"test": 1}, "test is 1; expected a share"),
        ({"test": 0.5, "validation": 0.5}, "which leaves nothing"),
        ({"validation": True}, "validation is True"),
        ({"seed": -1}, "seed is -1"),
        ({"memory": "2GB"}, "memory is '2GB'"),
        ({"path": "a\0b"}, "path is 'a\\x00b'"),
    ],
)
def test_options_that_cannot_be_meant(options, says, fruit):
    with pytest.raises(DataError) as caught:
        image_folder(**({"path": fruit, "size": 8} | options))
    assert says in one_line(caught)


# What is kept


def no_decoding(monkeypatch):
    monkeypatch.setattr("jaxcnn.data.image_cache.decode", lambda *a: pytest.fail("it decoded"))


def test_images_are_decoded_once(fruit, monkeypatch):
    first, names = image_folder_with_paths(fruit, 8, 8)
    with monkeypatch.context() as patch:
        no_decoding(patch)
        again, same = image_folder_with_paths(fruit, 8, 8)
    assert names == same
    np.testing.assert_array_equal(again.train.images, first.train.images)
    np.testing.assert_array_equal(again.mean, first.mean)
    np.testing.assert_array_equal(again.std, first.std)
    put(fruit, "plum/2.png", 60)  # another image of the same name
    data, names = image_folder_with_paths(fruit, 8, 8)
    part = "train" if "plum/2.png" in names["train"] else "test"
    image = getattr(data, part).images[names[part].index("plum/2.png")]
    np.testing.assert_array_equal(image, drawing(8, 8, seed=60))


def test_other_options_are_kept_apart_and_a_change_takes_the_old_ones_place(fruit, tmp_path):
    for _ in range(2):
        image_folder(fruit, 8, 8)
        image_folder(fruit, 6, 8)
        put(fruit, "plum/9.png", 61)
    there = list((tmp_path / "cache/data").iterdir())
    assert len(there) == 2
    assert {path.name for path in there[0].iterdir()} == {"images.json", "images.npy", "mean.npy"}


def test_large_folders_stay_on_the_disk_and_hold_the_same(fruit, monkeypatch):
    small = image_folder(fruit, 8, 8, validation=0.2)
    with monkeypatch.context() as patch:
        no_decoding(patch)
        large = image_folder(fruit, 8, 8, validation=0.2, memory=100)
    for part in ("train", "validation", "test"):
        images = getattr(large, part).images
        assert isinstance(images, np.memmap)
        assert not images.flags.writeable
        np.testing.assert_array_equal(images, getattr(small, part).images)
    assert not isinstance(small.train.images, np.memmap)
    np.testing.assert_array_equal(large.mean, small.mean)
    fresh = image_folder(fruit, 8, 8, validation=0.3, memory=100)
    assert isinstance(fresh.train.images, np.memmap)


@pytest.mark.parametrize("damage", ["images", "json", "cut"])
def test_a_damaged_cache_is_made_anew_with_a_message(damage, fruit, tmp_path, caplog):
    first = image_folder(fruit, 8, 8)
    (place,) = (tmp_path / "cache/data").iterdir()
    images = place / "images.npy"
    if damage == "images":
        flip(images, 500)
    elif damage == "cut":
        images.write_bytes(images.read_bytes()[:-9])
    else:
        about = json.loads((place / "images.json").read_text())
        (place / "images.json").write_text(json.dumps({"format": 1, "stamp": about["stamp"]}))
    with caplog.at_level(logging.WARNING):
        again = image_folder(fruit, 8, 8, memory=100 if damage == "cut" else 1 << 30)
    assert "is damaged" in caplog.text
    np.testing.assert_array_equal(again.train.images, first.train.images)


def test_a_cache_that_cannot_be_written_costs_a_note_or_where_it_must_be_an_error(
    fruit, tmp_path, monkeypatch, caplog
):
    (tmp_path / "plain").write_text("a file")
    monkeypatch.setenv("JAXCNN_CACHE", str(tmp_path / "plain"))
    with caplog.at_level(logging.WARNING):
        assert image_folder(fruit, 8, 8).train.images.shape == (12, 8, 8, 3)
    assert "is not kept in" in caplog.text
    with pytest.raises(DataError, match="set JAXCNN_CACHE to a folder of a larger disk"):
        image_folder(fruit, 8, 8, memory=100)


# Space on the disk


def full(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_space_for_large_folders_is_reserved_before_anything_is_decoded(
    fruit, tmp_path, monkeypatch
):
    no_decoding(monkeypatch)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        DataError,
        match=r"15 images .* cannot be kept in .*: No space left on device; set JAXCNN_CACHE",
    ) as caught:
        image_folder(fruit, 8, 8, memory=100)
    one_line(caught)
    assert not list((tmp_path / "cache/data").iterdir())


@pytest.mark.parametrize("supported", [True, False])
def test_a_reserved_file_is_not_sparse(supported, tmp_path, monkeypatch):
    if not supported:
        monkeypatch.delattr(os, "posix_fallocate")
    array = temporary.reserved_array(tmp_path / "a.npy", (3, 1 << 20))
    assert (tmp_path / "a.npy").stat().st_blocks * 512 >= array.nbytes
    array[2] = 7
    array.flush()
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy").sum(1), [0, 0, 7 << 20])


@pytest.mark.slow
def test_folders_that_killed_processes_left_are_removed_and_others_kept(tmp_path):
    ready = "import sys, pathlib; from jaxcnn.data.temporary import temporary_folder as t\n"
    ready += "with t(pathlib.Path(sys.argv[1]), 'x') as f: print(f, flush=True); input()"
    command = [sys.executable, "-c", ready, str(tmp_path)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    theirs = Path(child.stdout.readline().strip())
    old, new = tmp_path / ".x-older", tmp_path / ".x-newer"  # of versions without locks
    for path, age in ((old, 2 * 86400), (new, 60)):
        path.mkdir()
        os.utime(path, (time.time() - age, time.time() - age))
    with temporary.temporary_folder(tmp_path, "x") as mine:
        assert set(tmp_path.iterdir()) == {theirs, mine, new}
    assert set(tmp_path.iterdir()) == {theirs, new}
    child.kill()
    child.communicate()
    assert theirs.exists()
    temporary.remove_abandoned(tmp_path, "another")
    assert set(tmp_path.iterdir()) == {new}


def test_two_first_reads_of_one_folder_at_once(fruit, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: image_folder(fruit, 8, 8, memory=100), range(8)))
    for one in found[1:]:
        np.testing.assert_array_equal(one.train.images, found[0].train.images)
    (place,) = (tmp_path / "cache/data").iterdir()
    assert not place.name.startswith(".")


# Memory, and levels


def test_images_of_few_levels_in_16_bits_are_warned_of(fruit, tmp_path, caplog):
    grey = np.linspace(0, 4095, 64).astype(np.uint16).reshape(8, 8)
    (fruit / "apple/12.png").write_bytes(png(grey))
    (fruit / "lime/12.png").write_bytes(png(np.repeat(grey[..., None], 3, 2)))
    (fruit / "plum/full.png").write_bytes(png(16 * grey))
    (fruit / "plum/black.png").write_bytes(png(0 * grey))
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            image_folder(fruit, 8, 8)
        (line,) = caplog.messages
        assert (
            "2 images of 16 bits with no level above 4095 of 65535, the first apple/12.png" in line
        )
        assert "multiply them by 16" in line
    caplog.clear()
    Image.fromarray(grey // 4).save(tmp_path / "ten.tiff")
    with caplog.at_level(logging.WARNING):
        whole(tmp_path / "ten.tiff", 8)
    assert "multiply them by 64 and save the file again" in caplog.text


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "CMYK", "L", "I;16"])
def test_large_images_are_converted_in_strips_to_the_same_pixels(kind, tmp_path, monkeypatch):
    if kind == "I;16":
        (tmp_path / "a.png").write_bytes(
            png(np.random.default_rng(0).integers(0, 65536, (13, 9), dtype=np.uint16))
        )
    else:
        image = Image.fromarray(drawing(13, 9, 4), "RGBA").convert(kind)
        options: dict[str, Any] = {"transparency": 3} if kind == "P" else {}
        image.save(tmp_path / ("a.tiff" if kind == "CMYK" else "a.png"), **options)
    (path,) = tmp_path.glob("a.*")
    expected = whole(path, 8)
    monkeypatch.setattr(image_io, "_STRIP", 20)
    np.testing.assert_array_equal(whole(path, 8), expected)


def test_images_in_memory_at_once_are_bounded(tmp_path, monkeypatch):
    budget, most = image_io.Budget(3 * 8 * 60 * 60), []

    def noted(image, dark, before=image_io.rgb):
        most.append(budget.used)
        time.sleep(0.01)
        return before(image, dark)

    monkeypatch.setattr(image_io, "rgb", noted)
    monkeypatch.setattr(image_io, "_BUDGET", budget)
    monkeypatch.setattr(image_io, "_SMALL", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    paths = [saved(np.zeros((60, 60, 3), np.uint8), tmp_path / f"{i}.png") for i in range(20)]
    load_images([*paths, saved(np.zeros((300, 300, 3), np.uint8), tmp_path / "huge.png")], 8, 8)
    assert len(most) == 21
    assert sorted(most)[-1] > budget.total  # the huge one, alone
    assert sorted(most)[-2] <= budget.total
    assert max(most[:10]) > budget.total / 2  # more than one at a time
    assert budget.used == 0


def test_the_files_of_a_folder_are_sorted_and_images_by_name(tmp_path, caplog):
    for name in (
        "b/2.JPG",
        "b/10.png",
        "a.webp",
        "b/c/x.tiff",
        ".git/y.png",
        "notes.txt",
        "z.heic",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "up").symlink_to(tmp_path, target_is_directory=True)
    found = [path.relative_to(tmp_path).as_posix() for path in image_files(tmp_path)]
    assert found == ["a.webp", "b/10.png", "b/2.JPG", "b/c/x.tiff", "z.heic"]
    assert "leads back" in caplog.text
    assert "notes.txt" in caplog.text
    assert image_files(str(tmp_path / "b" / "c")) == [tmp_path / "b/c/x.tiff"]
    for path, words in ((tmp_path / "gone", "no folder"), (tmp_path / ".git/y.png", "no folder")):
        with pytest.raises(DataError, match=words):
            image_files(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no image in it"):
        image_files(tmp_path / "empty")


def test_an_array_is_resized_as_its_file_is(tmp_path):
    """Bit for bit, for every mode of eight bits, and against Pillow's own steps."""
    rng = np.random.default_rng(0)
    for channels in (None, 1, 3, 4):
        shape = (37, 23) if channels is None else (37, 23, channels)
        array = rng.integers(0, 256, shape, np.uint8)
        file = tmp_path / f"{channels}.png"
        Image.fromarray(array[..., 0] if channels == 1 else array).save(file)
        for size, resize in ((16, 16), (16, None), (40, 50)):
            expected = load_images([file], size, resize)[0]
            np.testing.assert_array_equal(resize_image(array, size, resize), expected)
    square = np.asarray(
        Image.fromarray(array[..., :3]).resize((16, 16 * 37 // 23), Image.Resampling.BILINEAR)
    )[round((16 * 37 // 23 - 16) / 2) :][:16]
    np.testing.assert_array_equal(resize_image(array[..., :3], 16, 16), square)
