"""`experiments.published`: which network a file holds, the constants it is evaluated with, and what it refuses."""

import csv
import doctest
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scripts import refuses

import jaxcnn as jc
from experiments import published
from jaxcnn.data import Dataset, Split, channel_statistics


@pytest.fixture(scope="module")
def small_figures():
    """Write figures at full resolution, whose size is tested here."""


@pytest.fixture
def data(monkeypatch):
    """Images of random colors with CIFAR-10's shape and classes, since the predictions for noise are all the same."""
    rng = np.random.default_rng(0)
    images = (rng.integers(0, 226, (400, 1, 1, 3)) + rng.integers(0, 30, (400, 32, 32, 3))).astype(
        np.uint8
    )
    split = Split(images, np.arange(400, dtype=np.int32) % 10)
    empty = Split(images[:0], split.labels[:0])
    small = Dataset(
        "cifar10", split, empty, split, tuple("abcdefghij"), *channel_statistics(images)
    )
    monkeypatch.setattr(published.jc, "load_dataset", lambda *args: small)
    return small


def stored(tmp_path, name, file, seed):
    """A file of random weights, whose running statistics are not those that a network begins with."""
    model, rng = jc.create_model(name, 10), np.random.default_rng(seed)
    variables = dict(model.init(jax.random.key(seed), jnp.zeros((1, 32, 32, 3))))
    stats = jax.tree.map(
        lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32), variables["batch_stats"]
    )
    path = tmp_path / "weights" / file
    path.parent.mkdir(exist_ok=True)
    jc.export_weights(model, variables | {"batch_stats": stats}, path)
    return path, model, variables | {"batch_stats": stats}


def wrong_answers(model, variables, data, mean, std):
    inputs = (data.test.images.astype(np.float32) / 255 - np.float32(mean)) / np.float32(std)
    logits = model.apply(variables, jnp.asarray(inputs))
    return int((np.argmax(np.asarray(logits), 1) != data.test.labels).sum())


@pytest.mark.slow
def test_a_file_is_evaluated_with_the_constants_of_its_source_or_of_the_flags(
    tmp_path, data, monkeypatch, capsys
):
    known, plain, weights = stored(tmp_path, "plain8", "anything.safetensors", 1)
    _, residual, other_weights = stored(tmp_path, "resnet8", "resnet-8.safetensors", 2)
    source = published.Source(
        "somebody/something at 0", (0.1, 0.5, 0.9), (0.2, 0.1, 0.3), "end", "of one run"
    )
    digest = hashlib.sha256(known.read_bytes()).hexdigest()[:16]
    monkeypatch.setitem(published.KNOWN, digest, published.Published("plain", 8, 12.5, source))
    flags = ["--subtract-mean", "0.3", "0.4", "0.5", "--divide-std", "0.2", "0.3", "0.1"]
    assert (
        published.main(
            ["--weights", str(tmp_path / "weights"), "--out", str(tmp_path / "out"), *flags]
        )
        == 0
    )
    rows = list(csv.DictReader((tmp_path / "out" / "table.csv").read_text().splitlines()))
    assert [(row["family"], row["depth"], row["source"]) for row in rows] == [
        ("plain", "8", "somebody/something"),
        ("residual", "8", ""),
    ]
    expected = [
        wrong_answers(plain, weights, data, source.mean, source.std),
        wrong_answers(residual, other_weights, data, (0.3, 0.4, 0.5), (0.2, 0.3, 0.1)),
    ]
    assert expected[0] != wrong_answers(plain, weights, data, (0.3, 0.4, 0.5), (0.2, 0.3, 0.1))
    assert [round(float(row["test_error"]) * 4) for row in rows] == expected
    assert float(rows[0]["published_test_error"]) == 12.5
    assert all(
        float(row["test_error_low"]) < float(row["test_error"]) < float(row["test_error_high"])
        for row in rows
    )
    note = (tmp_path / "out" / "table.md").read_text()
    assert "somebody/something at 0: mean (0.1, 0.5, 0.9)" in note
    assert (tmp_path / "out" / "depth.png").stat().st_size > 10_000
    assert "resnet-8.safetensors" in capsys.readouterr().out


def test_known_files_are_six_of_two_sources():
    families = [(known.family, known.depth) for known in published.KNOWN.values()]
    assert sorted(families) == [
        ("plain", 20),
        ("plain", 56),
        *[("residual", d) for d in (20, 20, 44, 56)],
    ]
    assert {known.source for known in published.KNOWN.values()} == {
        published.MARTYN,
        published.AKAMASTER,
    }


@pytest.mark.parametrize("name", ["plain20.pt", "PlainNet-20.th", "plain_net20.safetensors"])
def test_a_name_has_the_family_and_the_depth(name, tmp_path):
    (tmp_path / name).write_bytes(b"x")
    assert published.identify(tmp_path / name) == published.Published("plain", 20, None, None)


def test_mistakes_are_one_line(tmp_path, capsys, monkeypatch):
    refused = lambda args, says: refuses(published.main, args, says, capsys, monkeypatch)  # noqa: E731
    refused([], "weights is missing; write --weights DIR")
    refused(["--weights", str(tmp_path / "none")], "which is no folder")
    refused(["--weights", str(tmp_path)], "which has no file of weights")
    (tmp_path / "net.pt").write_bytes(b"x")
    refused(
        ["--weights", str(tmp_path)],
        "net.pt is not recognized, and its name has no family and depth",
    )
    (tmp_path / "net.pt").rename(tmp_path / "resnet21.pt")
    refused(["--weights", str(tmp_path)], "with a depth of 6 n + 2. Rename it.")


def test_examples_run():
    assert doctest.testmod(published).failed == 0
