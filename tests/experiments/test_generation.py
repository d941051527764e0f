"""Generation and the search of codes: their parts against NumPy, and the study as a user runs it."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scripts import refuses

import jaxcnn as jc
from experiments import generation
from experiments.latent_search import anomaly_scores, search_codes
from jaxcnn.metrics import frechet_distance
from jaxcnn.models.dcgan import DCGAN, PIXEL_RANGE, NonSaturatingLoss, player_variables

pytestmark = pytest.mark.usefixtures("one_device")
TINY = ["--width", "4", "--code", "3", "--num-steps", "6", "--batch-size", "8"]
TINY += ["--classifier-steps", "4", "--num-seeds", "2"]


@pytest.fixture(scope="module")
def digits():
    return jc.load_dataset("digits")


@pytest.fixture(scope="module")
def gan(digits):
    """A generator whose images depend on their codes, as a trained one's do."""
    model = DCGAN(code=4, width=4)
    config = jc.TrainConfig(subtract_mean=PIXEL_RANGE, divide_std=PIXEL_RANGE)
    tx = jc.create_optimizer(jc.OptimizerConfig("adam"), 4)
    state = jc.init_state(model, tx, config, digits, loss=NonSaturatingLoss())
    params = jax.tree.map(lambda x: 15 * x if x.ndim > 1 else x, state.params)
    return model, state._replace(params=params)


def test_the_search_is_gradient_descent_on_a_linear_generator():
    """With the loss written out; its gradient is a sum of signs."""
    rng = np.random.default_rng(0)
    make, judge = rng.normal(size=(6, 3)), rng.normal(size=(5, 6))
    images, starts = rng.normal(size=(4, 6)), rng.normal(size=(4, 3))
    rate, weight = 0.01, 0.1
    found = search_codes(
        lambda code: jnp.float32(make) @ code,
        lambda image: jnp.float32(judge) @ image,
        jnp.float32(images),
        jnp.float32(starts),
        optax.sgd(rate),
        num_steps=20,
        weight=weight,
    )
    for i in range(4):
        code = starts[i].copy()
        for step in range(21):
            rest = make @ code - images[i]
            loss = (1 - weight) * np.abs(rest).sum() + weight * np.abs(judge @ rest).sum()
            if step == 20:
                break
            np.testing.assert_allclose(found.history[i, step], loss, rtol=1e-4)
            slope = (1 - weight) * np.sign(rest) + weight * judge.T @ np.sign(judge @ rest)
            code -= rate * make.T @ slope
        np.testing.assert_allclose(found.codes[i], code, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.losses[i], loss, rtol=1e-4)


@pytest.mark.quick_compilation
@pytest.mark.slow
def test_the_search_finds_the_code_of_a_generated_image(gan):
    model, state = gan
    generator, discriminator = model.generator((8, 8, 1)), model.discriminator()
    players = [player_variables(state, name) for name in ("generator", "discriminator")]
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(3, 4)).astype(np.float32)

    def generate(code):
        return generator.apply(players[0], code[None])[0]

    def features(image):
        return discriminator.apply(players[1], image[None], stages=True)[1]["conv2"][0]

    images = jax.vmap(generate)(codes)
    starts = codes + 0.5 * rng.normal(size=codes.shape).astype(np.float32)
    tx = optax.adam(optax.cosine_decay_schedule(0.05, 300))
    search = jax.jit(lambda x, z: search_codes(generate, features, x, z, tx, num_steps=300))
    found = search(images, starts)
    assert (np.abs(starts - codes).max(1) > 0.2).all()
    np.testing.assert_allclose(found.codes, codes, atol=0.01)
    history = np.asarray(found.history)
    assert (np.asarray(found.losses) < 0.01 * history[:, 0]).all()
    # The loss falls all along, but for the noise of Adam's steps.
    thirds = history.reshape(3, 3, 100).mean(2)
    assert (np.diff(thirds, axis=1) < 0).all()


@pytest.mark.slow
def test_noise_is_stranger_than_generated_images(gan):
    """An image's score does not depend on the other images, nor on where the batches end."""
    model, state = gan
    rng = np.random.default_rng(1)
    generated = generation.generated(model, state, rng.normal(size=(30, 4)).astype(np.float32))
    noise = rng.integers(0, 256, (75, 8, 8, 1), np.uint8)
    scores = anomaly_scores(model, state, np.concatenate([generated, noise]), num_steps=60)
    assert scores.shape == (105,)
    assert scores[:30].max() < scores[30:].min()
    few = anomaly_scores(model, state, np.concatenate([generated, noise[:1]]), num_steps=60)
    np.testing.assert_allclose(few, scores[:31], rtol=1e-4)


def test_codes_on_a_great_circle_keep_length_and_angle():
    rng = np.random.default_rng(0)
    start, end = rng.normal(size=(2, 9))
    path = generation.great_circle(start, end, 7).astype(np.float64)
    np.testing.assert_allclose(path[[0, -1]], [start, end], rtol=1e-5)
    lengths = np.linalg.norm(path, axis=1)
    np.testing.assert_allclose(np.diff(lengths), np.diff(lengths)[0], atol=1e-6)
    units = path / lengths[:, None]
    angles = np.arccos((units[1:] * units[:-1]).sum(1))
    np.testing.assert_allclose(angles, angles[0], rtol=1e-4)


def test_the_nearest_image_is_that_of_a_loop(digits):
    images, samples = digits.train.images[:50], digits.test.images[:9]
    for sample, nearest in zip(samples, generation.nearest_images(images, samples), strict=True):
        distances = [np.square(sample.astype(float) - image).sum() for image in images]
        assert np.square(sample.astype(float) - nearest).sum() == min(distances)


def test_samples_without_a_network_have_the_moments_of_the_images(digits):
    images = digits.train.images
    samples = generation.reference_images(images, np.random.default_rng(0))
    n = len(images) // 2
    assert {len(array) for array in samples.values()} == {n}
    assert set(samples) == {"real", *generation.SAMPLERS} - {"frechet"}
    # Both halves are images of the data set, and no image is in both.
    halves = np.concatenate([samples["real"], samples["frechet_floor"]]).reshape(2 * n, -1)
    known, counts = np.unique(images.reshape(len(images), -1), axis=0, return_counts=True)
    drawn, drawn_counts = np.unique(halves, axis=0, return_counts=True)
    limit = {row.tobytes(): count for row, count in zip(known, counts, strict=True)}
    assert all(
        count <= limit[row.tobytes()] for row, count in zip(drawn, drawn_counts, strict=True)
    )
    mean = images.mean(0)
    np.testing.assert_allclose(samples["frechet_mean"][3], mean, atol=0.5)
    middle = np.abs(mean - 127) < 40  # where clipping changes little
    difference = samples["frechet_gaussian"].mean(0) - mean
    assert np.abs(difference[middle]).max() < 25
    noise = samples["frechet_noise"]
    assert noise.mean() == pytest.approx(127.5, abs=2)
    assert noise.std() == pytest.approx(256 / np.sqrt(12), rel=0.02)


def test_enlarged_images_are_squares_of_their_pixels(digits):
    images = digits.test.images[:3]
    large = generation.enlarged(images)
    assert large.shape == (3, 28, 28, 1)
    for offset in range(3):
        rows = slice(2 + offset, 26, 3)
        np.testing.assert_array_equal(large[:, rows, rows], images)
    assert int(large.sum()) == 9 * int(images.sum())
    assert generation.enlarged(large) is large


def test_the_measure_is_the_distance_of_its_own_samples(gan, digits):
    """With pixels as features; the floor is that of real images, and lowest."""
    model, state = gan

    def pixels(images):
        return images.reshape(len(images), -1)[:, ::5] / 255.0

    measure = generation.frechet_measure(pixels)
    row = measure(model, state, digits)
    assert row == measure(model, state, digits)
    assert list(row) == ["frechet", *(name for name in row if name != "frechet")]
    assert set(row) == set(generation.SAMPLERS)
    samples = generation.reference_images(digits.train.images, np.random.default_rng(0))
    codes = generation.random_codes(model, 0, len(samples["real"]))
    images = generation.generated(model, state, codes)
    expected = frechet_distance(pixels(images), pixels(samples["real"]))
    assert row["frechet"] == pytest.approx(expected, rel=1e-6)
    assert row["frechet_floor"] == min(row.values())
    assert row["frechet_floor"] < 0.05 * row["frechet_mean"]


@pytest.mark.quick_compilation
@pytest.mark.slow
def test_the_generation_study_leaves_table_figures_and_runs(tmp_path, capsys):
    out = tmp_path / "runs"
    assert generation.main([*TINY, "--out", str(out)]) == 0
    with (out / "table.csv").open() as file:
        lines = {line["images"]: line for line in csv.DictReader(file)}
    assert list(lines) == list(generation.SAMPLERS.values())
    assert all(float(line["frechet"]) > 0 and line["seeds"] == "2" for line in lines.values())
    assert all(float(line["frechet_ci95"]) > 0 for line in lines.values())
    for name in ("curves.png", "samples.png", "interpolation.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/metrics.jsonl")}
    assert {path.parent.name for path in before} == {"lenet5", "dcgan-seed0", "dcgan-seed1"}
    assert generation.main([*TINY, "--out", str(out), "--plot-only"]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in out.glob("*/metrics.jsonl")}
    capsys.readouterr()
    (out / "lenet5" / "result.json").unlink()
    with pytest.raises(SystemExit):
        generation.main([*TINY, "--out", str(out), "--plot-only"])
    assert "has no finished run lenet5; expected both" in capsys.readouterr().err


@pytest.mark.quick_compilation
@pytest.mark.slow
def test_diverged_runs_are_in_the_table_and_stop_no_drawing(tmp_path):
    """One seed beside another that has not diverged, and alone."""
    out = tmp_path / "runs"
    args = [*TINY[:-1], "1", "--out", str(out)]
    assert generation.main([*args, "--learning-rate", "1e38"]) == 0
    assert "seed 0 diverged at step" in (out / "table.md").read_text()
    assert not list(out.glob("*.png"))
    assert generation.main([*TINY[:-2], "--out", str(out), "--seeds", "1"]) == 0
    assert "seed 0 diverged at step" in (out / "table.md").read_text()
    with (out / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert all(line["seeds"] == "1" and float(line["frechet"]) > 0 for line in lines)
    assert (out / "curves.png").is_file()
    assert (out / "samples.png").is_file()


def test_no_image_has_no_score(gan):
    with pytest.raises(jc.ArgumentError, match=r"images are of shape \(0, 8, 8, 1\); expected"):
        anomaly_scores(gan[0], gan[1], np.zeros((0, 8, 8, 1), np.uint8))


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--code", "0"], "--code is 0; expected a whole number of 1 to "),
        (["--classifier-steps", "0"], "classifier-steps is 0"),
        (["--learning-rate", "-1"], "learning-rate is -1.0"),
        (["--dataset", "digit"], "digits"),
        (["--seeds", "1", "1"], "seeds is 1 1"),
        (["--batch-size", "2000"], "batch-size is 2000, more than the 1437"),
    ],
)
def test_mistakes_about_generation(args, says, capsys, monkeypatch, tmp_path):
    refuses(generation.main, [*args, "--out", str(tmp_path / "new")], says, capsys, monkeypatch)
