"""`python -m experiments.speedrun`: each piece of the method against NumPy, runs that learn, what they leave, going on."""

import csv
import doctest
import importlib
import json
import logging
import math
import pkgutil
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scripts import refuses

import experiments.speedrun as package
import jaxcnn as jc
from experiments.speedrun import __main__ as script
from experiments.speedrun import network, options, training
from experiments.speedrun.__main__ import main, train_missing_runs
from jaxcnn import augment, parallel

TINY = replace(options.PRESETS["digits"], widths=(8,), epochs=3.0, learning_rate=100.0, runs=2)
ARGS = [
    "--preset",
    "digits",
    "--widths",
    "8",
    "--epochs",
    "3",
    "--learning-rate",
    "100",
    "--runs",
    "2",
]
COLUMNS = (
    "dataset,n,seconds,seconds_std,seconds_ci95,train_seconds,train_seconds_std,train_seconds_ci95,"
    "accuracy,accuracy_std,accuracy_ci95,target,reached,device,versions,date"
)


@pytest.fixture(scope="module")
def data():
    return jc.load_dataset("digits")


@pytest.fixture(scope="module")
def run(data):
    """The runs of TINY, warm; every label of their test set is wrong."""
    wrong = data._replace(test=jc.Split(data.test.images, (data.test.labels + 1) % 10))
    run = training.make_runner(TINY, wrong, jc.strategy(devices=1))
    run(0, warm_up=True)
    return run


@pytest.mark.slow
def test_whitening_is_the_inverse_root_of_the_patches_covariance():
    rng = np.random.default_rng(0)
    images = (
        rng.normal(size=(40, 9, 7, 3)).cumsum(1).cumsum(2).astype(np.float32)
    )  # neighbours alike, as in images
    kernel = np.asarray(network.whitening_kernel(jnp.asarray(images)), np.float64)
    assert kernel.shape == (2, 2, 3, 24)
    np.testing.assert_array_equal(kernel[..., 12:], -kernel[..., :12])
    windows = np.lib.stride_tricks.sliding_window_view(images.astype(np.float64), (2, 2), (1, 2))
    patches = windows.transpose(0, 1, 2, 4, 5, 3).reshape(
        -1, 12
    )  # in the kernel's order: row, column, channel
    variances, vectors = np.linalg.eigh(np.cov(patches.T, bias=True))
    filters = kernel.reshape(12, 24)[:, :12]
    # Eigenvectors have no sign, so what is compared is F F^T = V (variances + epsilon)^-1 V^T.
    wanted = vectors / (variances + 5e-4) @ vectors.T
    np.testing.assert_allclose(
        filters @ filters.T, wanted, rtol=2e-3, atol=2e-3 * abs(wanted).max()
    )
    sizes = ("NHWC", "HWIO", "NHWC")
    seen = jax.lax.conv_general_dilated(
        jnp.asarray(images),
        jnp.asarray(kernel, jnp.float32),
        (1, 1),
        "VALID",
        dimension_numbers=sizes,
    )
    covariance = np.cov(np.asarray(seen, np.float64)[..., :12].reshape(-1, 12).T, bias=True)
    np.testing.assert_allclose(covariance, np.diag(variances / (variances + 5e-4)), atol=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "filters"), [(5, 5), (3, 7), (7, 3)])
def test_a_convolution_begins_as_the_identity(channels, filters):
    kernel = jax.jit(network.partial_identity, static_argnums=1)(
        jax.random.key(0), (3, 3, channels, filters)
    )
    x = np.random.default_rng(1).normal(size=(2, 6, 6, channels)).astype(np.float32)
    layer, same = nn.Conv(filters, (3, 3), padding=1, use_bias=False), min(channels, filters)
    y = np.asarray(jax.jit(layer.apply)({"params": {"kernel": kernel}}, x))
    np.testing.assert_array_equal(y[..., :same], x[..., :same])
    rest, bound = np.asarray(kernel[..., same:]), (9 * channels) ** -0.5
    if rest.size:
        assert 0.9 * bound < abs(rest).max() <= bound
        assert abs(rest.mean()) < 0.2 * bound


def test_the_network_is_the_papers():
    model = network.Net(10)
    image, kernel = jnp.zeros((1, 32, 32, 3)), jnp.zeros((2, 2, 3, 24))
    params = jax.eval_shape(model.init, jax.random.key(0), image, kernel)["params"]
    sizes = {
        "/".join(k.key for k in path): leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    trained = sum(size for name, size in sizes.items() if not name.endswith("scale"))
    convolutions = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256)
    assert trained == 24 + convolutions + 2 * (64 + 256 + 256) + 2560 == 1_971_352


def test_the_network_against_its_equations():
    """One block in training mode, in NumPy: whitening, GELU, convolution, pooling, BN, GELU, and again."""
    rng = np.random.default_rng(0)
    images, kernel = rng.normal(size=(3, 8, 7, 2)), rng.normal(size=(2, 2, 2, 16))
    model = network.Net(5, (4,))
    params = jax.eval_shape(
        model.init, jax.random.key(0), images.astype(np.float32), kernel.astype(np.float32)
    )
    params = jax.tree.map(lambda x: rng.normal(size=x.shape), params["params"])

    def conv(x, kernel):
        windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], (1, 2))
        return np.einsum("bhwcij,ijcf->bhwf", windows, kernel)

    def gelu(x):
        return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2

    def same_size(x, name):
        return conv(np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), params[name]["kernel"])

    def norm(x, name):
        spread = np.sqrt(x.var((0, 1, 2)) + 1e-5)
        return (x - x.mean((0, 1, 2))) / spread * params[name]["scale"] + params[name]["bias"]

    x = gelu(conv(images, kernel) + params["whitening_bias"])
    x = (
        same_size(x, "block1_conv1")[:, :6, :6].reshape(3, 3, 2, 3, 2, 4).max((2, 4))
    )  # 7 x 6: a row is dropped
    x = gelu(norm(x, "block1_norm1"))
    x = gelu(norm(same_size(x, "block1_conv2"), "block1_norm2"))
    wanted = x.max((1, 2)) @ params["head"]["kernel"] / 9
    small = jax.tree.map(np.float32, (params, images, kernel))
    stats = {
        f"block1_norm{i}": {"mean": np.zeros(4, np.float32), "var": np.ones(4, np.float32)}
        for i in (1, 2)
    }
    forward = jax.jit(
        lambda p, x, k: model.apply(
            {"params": p, "batch_stats": stats}, x, k, True, mutable=["batch_stats"]
        )
    )
    found, new = forward(*small)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    mean = same_size(gelu(conv(images, kernel) + params["whitening_bias"]), "block1_conv1")
    mean = mean[:, :6, :6].reshape(3, 3, 2, 3, 2, 4).max((2, 4)).mean((0, 1, 2))
    np.testing.assert_allclose(new["batch_stats"]["block1_norm1"]["mean"], 0.4 * mean, rtol=1e-4)


def test_every_image_is_mirrored_every_other_epoch():
    numbers, epochs = jnp.arange(400), jnp.arange(6)
    every = jax.jit(jax.vmap(jax.vmap(network.is_mirrored, (None, None, 0)), (None, 0, None)))
    seen, other = (
        np.asarray(every(jax.random.PRNGKey(seed), numbers, epochs)) for seed in (3, 4)
    )  # [400, 6]
    assert (seen[:, 1:] != seen[:, :-1]).all()
    assert 150 < seen[:, 0].sum() < 250
    assert 100 < (seen[:, 0] != other[:, 0]).sum() < 300


@pytest.mark.slow
def test_training_views_are_crops_of_the_mirrored_border():
    image = np.random.default_rng(0).integers(0, 256, (6, 5, 2), np.uint8)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="reflect")
    crops = {padded[i : i + 6, j : j + 5].tobytes(): (i, j) for i in range(5) for j in range(5)}
    assert len(crops) == 25
    view = jax.vmap(network.train_view, (None, 0, 0, None, None, None))
    key, ones, many = jax.random.PRNGKey(0), jnp.ones(300, jnp.int32), jnp.arange(300)
    moved: Any = jax.jit(
        lambda number, epoch: view(key, number, epoch, jnp.asarray(image), 2, False)
    )
    for numbers, epochs in ((many, ones), (ones, many)):
        assert len({crops[each.tobytes()] for each in np.asarray(moved(numbers, epochs))}) == 25
    still = np.asarray(jax.jit(lambda: view(key, ones, many, jnp.asarray(image), 0, True))())
    np.testing.assert_array_equal(still[1::2], np.broadcast_to(still[1], still[1::2].shape))
    np.testing.assert_array_equal(still[::2], np.broadcast_to(still[1, :, ::-1], still[::2].shape))


def test_averaged_logits_are_those_of_six_views():
    rng = np.random.default_rng(0)
    images, weights = rng.normal(size=(3, 6, 5, 2)), rng.normal(size=(60, 4))
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")

    def by_hand(*offsets, flips=(1, -1)):
        seen = [padded[:, i : i + 6, j : j + 5][:, :, ::flip] for i, j in offsets for flip in flips]
        return sum(view.reshape(3, -1) @ weights for view in seen) / len(seen)

    def found(*how):
        table = jnp.asarray(weights, jnp.float32)
        return network.average_logits(
            lambda x: x.reshape(3, -1) @ table, jnp.asarray(images, jnp.float32), *how
        )

    centre, corners = (1, 1), ((0, 0), (2, 2))
    wanted = {
        (0, True): by_hand(centre, flips=(1,)),
        (1, True): by_hand(centre),
        (1, False): by_hand(centre, flips=(1,)),
        (2, True): by_hand(centre) / 2 + by_hand(*corners) / 2,
        (2, False): by_hand(centre, flips=(1,)) / 2 + by_hand(*corners, flips=(1,)) / 2,
    }
    for how, logits in wanted.items():
        np.testing.assert_allclose(found(*how), logits, rtol=1e-4, atol=1e-4)


def test_the_schedules_corners():
    share = training.triangular_schedule(1000)
    at = {0: 0.2, 115: 0.6, 230: 1.0, 615: 0.535, 1000: 0.07}
    assert [np.asarray(share(step)).item() for step in at] == pytest.approx(
        list(at.values()), abs=1e-6
    )


def test_smoothed_labels_against_the_formula():
    rng = np.random.default_rng(0)
    logits, labels, share = rng.normal(size=(5, 7)) * 3, rng.integers(0, 7, 5), 0.2
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    wanted = -(1 - share) * logs[np.arange(5), labels] - share * logs.mean(1)
    found = training.smoothed_cross_entropy(
        jnp.asarray(logits, jnp.float32), jnp.asarray(labels, jnp.int32), share
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_the_optimizer_against_its_equations():
    setting = replace(options.PRESETS["cifar10"], batch_size=512, epochs=8.0, whitening_epochs=3.0)
    n, total = 1024, 16  # 2 steps an epoch
    tx, rng = training.make_optimizer(setting, n), np.random.default_rng(0)
    assert training.num_steps(setting, n) == total
    params = {"conv": {"kernel": 1.0}, "norm": {"bias": 1.0, "scale": 1.0}, "whitening_bias": 1.0}
    names = {"kernel": ("conv", "kernel"), "bias": ("norm", "bias"), "scale": ("norm", "scale")}
    tree = jax.tree.map(jnp.float32, params)
    state = tx.init(tree)
    mine = dict.fromkeys(["kernel", "bias", "scale", "whitening"], 1.0)
    speed = dict.fromkeys(mine, 0.0)
    unit = 0.5 / (1 + 1 / 0.15)
    for step in range(total):
        slopes = dict(zip(mine, rng.normal(size=4), strict=True))
        grads = {
            "conv": {"kernel": slopes["kernel"]},
            "norm": {"bias": slopes["bias"], "scale": slopes["scale"]},
        }
        grads = jax.tree.map(jnp.float32, grads | {"whitening_bias": slopes["whitening"]})
        with jax.numpy_dtype_promotion("standard"):
            moves, state = tx.update(grads, state, tree)
        tree = jax.tree.map(jnp.add, tree, moves)
        share = np.interp(step, [0, 0.23 * total, total], [0.2, 1, 0.07])
        for name, times in {"kernel": 1, "bias": 64, "scale": 0, "whitening": step < 6}.items():
            slope = 11.5 * unit * times * slopes[name] + 0.0153 * unit * mine[name]
            speed[name] = slope + 0.85 * speed[name]
            mine[name] -= share * (slope + 0.85 * speed[name]) * bool(times)
        found = {name: float(tree[a][b]) for name, (a, b) in names.items()}
        assert found | {"whitening": float(tree["whitening_bias"])} == pytest.approx(mine, rel=1e-4)


def test_lookahead_against_its_equations():
    slow = fast = 0.0
    mine = {"slow": 0.0, "fast": 0.0}
    for step in range(1, 21):
        fast = jnp.float32(fast) + step
        slow, fast = training.lookahead(jnp.float32(slow), fast, jnp.int32(step), 20)
        mine["fast"] += step
        if step % 5 == 0:
            keep = 0.95**5 * (step / 20) ** 3
            mine["slow"] = mine["fast"] = keep * mine["slow"] + (1 - keep) * mine["fast"]
        assert (float(slow), float(fast)) == pytest.approx((mine["slow"], mine["fast"]))


def test_each_epoch_shows_every_image_once():
    found = training.batch_indices(
        1, 7, 3, 10
    )  # 21 places of two epochs of 10, and one of the third
    assert found.shape == (7, 3)
    assert sorted(found.ravel()[:10]) == sorted(found.ravel()[10:20]) == list(range(10))
    assert not np.array_equal(found.ravel()[:10], found.ravel()[10:20])
    assert not np.array_equal(found, training.batch_indices(2, 7, 3, 10))


@pytest.mark.slow
def test_the_count_is_of_each_test_image_once(data):
    model, split = (
        network.Net(10, ()),
        jc.Split(data.test.images[:50], data.test.labels[:50].copy()),
    )
    norm = augment.make_normalizer(data.mean, data.std, subtract="channel", divide=True)
    inputs = np.asarray(augment.normalize(split.images, norm))
    kernel = np.random.default_rng(0).normal(size=(2, 2, 1, 8)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), inputs[:1], kernel)
    guess = np.asarray(jax.jit(model.apply)(variables, inputs, kernel)).argmax(-1)
    split.labels[-1] = guess[-1]  # where an index of -1 would lead
    setting = replace(TINY, views=0, test_batch=16)
    strategy = jc.strategy(devices=1)
    count, right = (
        strategy.compile_steps(training.make_eval_step(model, setting)),
        strategy.replicate(np.int32(0)),
    )
    fixed = strategy.replicate((variables, training.Fixed(split, norm, kernel, np.uint32(0))))
    for piece in strategy.chunks(parallel.padded_batches(50, 16, 1)):
        right = count(right, fixed, piece)
    assert int(strategy.fetch(right)) == (guess == split.labels).sum()


@pytest.mark.slow
def test_a_run_learns_and_its_warm_up_leaves_nothing_to_compile(run, caplog):
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        first, again, other = run(0), run(0), run(1)
        assert not caplog.records
        jax.jit(lambda x: x + 1)(1.0)
        assert caplog.records  # or nothing would have been heard
    assert len(first.train_loss) == 3
    assert first.train_loss[-1] < first.train_loss[0] - 0.3 < 2.3
    assert (
        first.accuracy < 20
    )  # or it was not the test set, whose labels are wrong, that was counted
    assert 0 < first.train_seconds < first.seconds
    assert (first.accuracy, first.train_loss) == (again.accuracy, again.train_loss)
    assert first.train_loss != other.train_loss


def same(one, other):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))


@pytest.mark.slow
def test_one_program_for_all_steps_does_what_the_loop_does(data):
    loop, scan = (parallel.Strategy("jit", jax.devices()[:1]) for _ in range(2))
    scan.__dict__["scans"] = True  # as on an accelerator
    n, key = len(data.train.labels), jax.random.PRNGKey(0)
    model, tx = network.Net(10, TINY.widths), training.make_optimizer(TINY, n)
    norm = augment.make_normalizer(data.mean, data.std, subtract="channel", divide=True)
    begin = jax.jit(training.make_begin(model, tx, TINY, training.num_steps(TINY, n)))
    carry, kernel = begin(key, data.train.images, norm)
    order, ends, seen = training.batch_indices(0, 6, TINY.batch_size, n), [], []
    for strategy, programs in ((loop, 6), (scan, 1)):
        fold = strategy.compile_steps(training.make_step(model, tx, TINY, n))
        placed, fixed = strategy.replicate((carry, training.Fixed(data.train, norm, kernel, key)))
        parts = list(training.program_chunks(strategy, order, warm_up=False))
        assert len(parts) == programs
        for part in parts:
            placed = fold(placed, fixed, part)
            seen.append(strategy.fetch(placed))
        ends.append(seen[-1])
    assert int(ends[0].step) == int(ends[1].step) == 6
    assert same(seen[3].slow, carry.slow)  # the fifth step is the first to look ahead
    assert same(seen[4].slow, seen[4].variables)
    assert same(seen[4].slow, seen[5].slow)
    assert not same(seen[4].slow, seen[5].variables)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        *(end.slow for end in ends),
    )
    np.testing.assert_allclose(ends[0].losses, ends[1].losses, rtol=1e-4)


@pytest.fixture(scope="module")
def out(tmp_path_factory, run):
    out = tmp_path_factory.mktemp("speedrun") / "out"
    assert main([*ARGS, "--out", str(out)]) == 0
    return out


@pytest.mark.slow
def test_it_leaves_a_table_a_figure_and_a_line_for_each_run(out):
    head, *lines = (out / "table.csv").read_text().splitlines()
    assert head == COLUMNS
    assert len(lines) == 1
    with (out / "table.csv").open() as file:
        (row,) = csv.DictReader(file)
    found = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    assert [line["seed"] for line in found] == [0, 1]
    assert min(line["accuracy"] for line in found) > 50  # guessing is right in 10%
    for name in ("seconds", "train_seconds", "accuracy"):
        values = [line[name] for line in found]
        assert float(row[name]) == pytest.approx(np.mean(values), rel=1e-5)
        assert float(row[f"{name}_std"]) == pytest.approx(
            np.std(values, ddof=1), rel=1e-5, abs=1e-12
        )
    assert (row["n"], row["target"], row["reached"]) == ("2", "", "")
    assert f"jax {jax.__version__}" in row["versions"]
    assert (out / "runs.png").read_bytes().startswith(b"\x89PNG")
    assert "n = 2" in (out / "table.md").read_text()


def hand_made(*accuracies):
    made = {
        "seconds": 3.0,
        "train_seconds": 2.5,
        "train_loss": [2.0, 1.0],
        "warm_up": 9.0,
        "date": "2026-11-21 10:00:00",
    }
    return [made | {"seed": seed, "accuracy": accuracy} for seed, accuracy in enumerate(accuracies)]


def test_the_mean_decides_whether_the_target_is_reached():
    config = {"dataset": "cifar10", "device": "a card", "versions": "jax"}
    assert script.summary_row(hand_made(94.25, 93.75), config)["reached"] == "yes"
    assert script.summary_row(hand_made(94.25, 93.5), config)["reached"] == "no"
    config |= {
        "max_train_examples": None,
        "epochs": 9.9,
        "batch_size": 1024,
        "widths": [64],
        "dtype": "float32",
    }
    few = " ".join(
        script.table_notes(
            hand_made(94.25, 93.75), script.summary_row(hand_made(94.25, 93.75), config), config
        )
    )
    assert "94% in the mean of at least 50 runs" in few
    lost = hand_made(94.0, *[10.0] * 49)
    lost[7]["train_loss"] = [2.0, None]
    many = " ".join(script.table_notes(lost, script.summary_row(lost, config), config))
    assert "at least 50" not in many
    assert "1 of the runs diverged" in many


@pytest.mark.slow
def test_nothing_is_done_twice_and_plot_only_trains_nothing(out, monkeypatch):
    monkeypatch.setattr(
        "experiments.speedrun.__main__.make_runner", lambda *a, **k: pytest.fail("it trained")
    )
    before = (out / "table.csv").read_text()
    (out / "runs.png").unlink()
    assert main([*ARGS, "--out", str(out)]) == 0
    assert main(["--plot-only", "--out", str(out)]) == 0
    assert (out / "table.csv").read_text() == before
    assert (out / "runs.png").exists()


@pytest.mark.slow
def test_a_stopped_command_keeps_its_runs_and_goes_on(out, tmp_path):
    asked, steps = [0], training.num_steps(TINY, 1437)

    def stop():
        asked[0] += 1
        return (
            asked[0] > 1 + steps + 5
        )  # the warm-up's only step, the first run, and a bit of the second

    setting = replace(TINY, out=tmp_path)
    assert train_missing_runs(setting, stop) is False
    kept = (tmp_path / "runs.jsonl").read_text()
    assert [json.loads(line)["seed"] for line in kept.splitlines()] == [0]
    assert main([*ARGS, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "runs.jsonl").read_text().startswith(kept)
    both, whole = script.read_runs(tmp_path), script.read_runs(out)
    assert [line["train_loss"] for line in both] == [line["train_loss"] for line in whole]


MISTAKES = [
    (["--runs", "0"], "--runs is 0; expected a whole number of 1 to 100000"),
    (["--widths"], "--widths is empty"),
    (["--widths", "4", "8", "8"], "8 x 8 pixels allow 2; write --widths 4 8"),
    (["--learning-rate", "nan"], "--learning-rate is nan; expected a finite number"),
    (["--epochs", "0"], "epochs is 0.0"),
    (["--momentum", "1"], "momentum is 1.0; expected at least 0 and less than 1"),
    (["--weight-decay", "-1"], "--weight-decay is -1.0"),
    (
        ["--batch-size", "5000"],
        "--batch-size is 5000, more than the 1437 training images; write --batch-size 128",
    ),
    (["--max-train-examples", "100000"], "cannot keep 100000 training images"),
    (["--translate", "8"], "translate is 8; expected less than the 8 pixels"),
    (["--views", "3"], "views"),
    (["--dataset", "digts"], "did you mean 'digits'"),
    (["--preset", "shrt"], "did you mean 'short'"),
    (["--out", "/proc/nothing"], "cannot write in /proc/nothing"),
    (["--plot-only", "--out", "/nowhere"], "/nowhere holds no run"),
]


@pytest.mark.parametrize(("args", "says"), MISTAKES, ids=[" ".join(args) for args, _ in MISTAKES])
def test_mistakes_are_one_line_and_exit_code_two(args, says, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "experiments.speedrun.__main__.make_runner", lambda *a, **k: pytest.fail("it trained")
    )
    args = args if "--out" in args else [*args, "--out", str(tmp_path / "out")]
    args = args if "--preset" in args else ["--preset", "digits", *args]
    refuses(main, args, says, capsys, monkeypatch)


def test_runs_of_other_settings_or_another_machine_are_refused(out, tmp_path, capsys, monkeypatch):
    refuses(
        main,
        [*ARGS, "--learning-rate", "5", "--out", str(out)],
        "learning_rate (100.0 there, 5.0 asked)",
        capsys,
        monkeypatch,
    )
    moved = tmp_path / "moved"
    moved.mkdir()
    there = json.loads((out / "config.json").read_text()) | {"device": "another card"}
    (moved / "config.json").write_text(json.dumps(there))
    refuses(main, [*ARGS, "--out", str(moved)], "device ('another card' there", capsys, monkeypatch)
    (moved / "runs.jsonl").write_text('{"seed": 0\n')
    refuses(
        main, ["--plot-only", "--out", str(moved)], "is not what was written", capsys, monkeypatch
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(package.__path__)])
def test_examples_run(name):
    failed, _ = doctest.testmod(importlib.import_module(f"experiments.speedrun.{name}"))
    assert not failed
