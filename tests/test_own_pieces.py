"""A researcher's own model, arrays, optimizer and loss, from training to prediction.

The first part is what a user writes, in a file of his own. The tests run it in two processes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import jaxcnn as jc

# ---------------------------------------------------------------- own pieces


class TwoHeads(nn.Module):
    """Two questions about an image of a digit."""

    widths: list[int]

    @nn.compact
    def __call__(self, x, train: bool):
        for i, width in enumerate(self.widths):
            x = nn.Conv(width, kernel_size=(3, 3), use_bias=False, name=f"conv{i}")(x)
            x = nn.BatchNorm(use_running_average=not train, name=f"norm{i}")(x)
            x = nn.relu(x)
            x = nn.max_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = x.reshape((x.shape[0], -1))
        x = nn.Dropout(rate=0.2, deterministic=not train)(x)
        return {
            "digit": nn.Dense(10, name="digit")(x),
            "parity": nn.Dense(2, name="parity")(x),
        }


def smoothed_cross_entropies(outputs, batch):
    losses, metrics = jnp.zeros(len(batch.inputs)), {}
    for head, logits in outputs.items():
        targets = batch.labels[head]
        smoothed = optax.smooth_labels(targets, alpha=0.1)
        losses += optax.softmax_cross_entropy(logits, smoothed)
        metrics[f"{head}_error"] = logits.argmax(-1) != targets.argmax(-1)
    return losses, metrics


def mixup(rng, image, target, other_image, other_target):
    weight = jax.random.beta(rng, 0.2, 0.2)

    def mix(own, other):
        return weight * own + (1 - weight) * other

    return mix(image, other_image), jax.tree.map(mix, target, other_target)


def load_arrays():
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8) / 16  # [1797, 8, 8] in 0..1
    targets = {"digit": np.eye(10)[labels], "parity": np.eye(2)[labels % 2]}
    train, test = slice(0, 1437), slice(1437, None)
    return jc.dataset(
        (images[train], {name: array[train] for name, array in targets.items()}),
        (images[test], {name: array[test] for name, array in targets.items()}),
        name="two heads",
    )


data = load_arrays()
model = TwoHeads(widths=[8, 16])
tx = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(optax.cosine_decay_schedule(0.01, decay_steps=100), weight_decay=1e-4),
)
tx = jc.with_ema(tx, decay=0.9)
config = jc.TrainConfig(num_steps=100, batch_size=64, eval_every=10)


def train(run_dir, max_rows=None, tolerance=0.01):
    """Train until the loss stops falling by `tolerance`, or for some rows only."""
    best = float("inf")
    pieces = {"loss": smoothed_cross_entropies, "augment": mixup}
    run = jc.train(model, tx, data, config, **pieces, run_dir=run_dir, tensorboard=True)
    for rows, (latest, row) in enumerate(run, 1):
        state = latest
        assert row is not None
        print(row["step"], row["eval_loss"], row["eval_digit_error"], row["eval_parity_error"])
        if row["eval_loss"] > best - tolerance or rows == max_rows:
            break
        best = row["eval_loss"]
    return state


def look(state):
    print(jc.summary(model, data.train.images.shape[1:]))
    digit = jc.select_output(model, "digit")
    return jc.gradcam(digit, state, data.test.images[:4], stage="conv1")


def export(state, file):
    jc.export_weights(model, state, file)


def predict(file, images):
    fresh = TwoHeads(widths=[8, 16])
    variables = jc.load_weights(fresh, file, shape=images.shape[1:])
    return jc.predict(fresh, variables, images, normalizer=data)


# ---------------------------------------------------------------- tests


def run(code, folder, quick):
    """Run code in a process of its own, where the user's file is a module."""
    root, tests = Path(jc.__file__).parents[1], Path(__file__).parent
    skipped = ("JAX_NUMPY", "XLA_FLAGS")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(skipped)}
    environment |= {"PYTHONPATH": f"{root}{os.pathsep}{tests}", "OUT": str(folder)}
    # The processes share what they compile.
    environment["JAX_COMPILATION_CACHE_DIR"] = os.path.join(os.environ["JAXCNN_CACHE"], "programs")
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    environment |= quick
    source = f"import os, numpy as np, test_own_pieces as own; out = os.environ['OUT']; {code}"
    command = [sys.executable, "-c", source]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)


SAVE = "np.savez(f'{out}/params.npz', **own.flat(state)); "
USE = "heat = own.look(state); own.export(state, f'{out}/weights.safetensors'); "
USE += "predicted = own.predict(f'{out}/weights.safetensors', own.data.test.images); "
USE += "direct = own.jc.predict(own.model, state, own.data.test.images); "
USE += "np.savez(f'{out}/seen.npz', heat=heat, **predicted); "
USE += "np.savez(f'{out}/direct.npz', **direct)"


def flat(state):
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


@pytest.mark.slow
def test_a_run_in_two_processes_has_the_bits_of_one_and_is_looked_at_and_exported(
    tmp_path, quick_environment
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    done = run(f"state = own.train(f'{{out}}/run'); {SAVE}{USE}", whole, quick_environment)
    run("own.train(f'{out}/run', max_rows=2)", parts, quick_environment)
    assert [row["step"] for row in jc.read_metrics(parts / "run")] == [10, 20]
    run(f"state = own.train(f'{{out}}/run'); {SAVE}", parts, quick_environment)
    with np.load(whole / "params.npz") as a, np.load(parts / "params.npz") as b:
        assert a.files == b.files
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    rows = jc.read_metrics(whole / "run")
    assert len(rows) >= 4
    assert rows[-1]["eval_digit_error"] < 15
    assert "conv1" in done.stdout
    # The weights give a fresh model the predictions that the state gives.
    with np.load(whole / "seen.npz") as seen, np.load(whole / "direct.npz") as direct:
        assert seen["heat"].shape == (4, 8, 8)
        assert seen["heat"].max() > 0
        for head, size in (("digit", 10), ("parity", 2)):
            assert seen[head].shape == (len(data.test.images), size)
            np.testing.assert_array_equal(seen[head], direct[head])
            error = 100 * (seen[head].argmax(-1) != data.test.labels[head].argmax(-1)).mean()
            assert error == pytest.approx(rows[-1][f"eval_{head}_error"])
    # TensorBoard has each row once, also of a run that was resumed.
    for folder in (whole, parts):
        (events,) = (folder / "run" / "tensorboard").iterdir()
        assert events.stat().st_size > 1000
    # The records say what ran.
    record = json.loads((whole / "run" / "run.json").read_text())
    assert record["model"] == {"class": "test_own_pieces.TwoHeads", "fields": {"widths": [8, 16]}}
    names = [part["name"] for part in record["optimizer"]["parts"]]
    assert {"with_ema", "clip_by_global_norm", "scale_by_adam"} <= set(names)
    recorded = json.loads((whole / "run" / "config.json").read_text())
    assert recorded["loss"].startswith("test_own_pieces.smoothed_cross_entropies")
    assert recorded["augmentation"].startswith("test_own_pieces.mixup")
    assert recorded["train"]["num_steps"] == 100
    assert record["code"].keys() >= {"model", "loss", "augmentation"}


def test_the_loss_is_the_equation():
    rng = np.random.default_rng(0)
    outputs = {"digit": rng.standard_normal((5, 10)), "parity": rng.standard_normal((5, 2))}
    labels = {"digit": np.eye(10)[:5], "parity": np.eye(2)[np.arange(5) % 2]}
    batch = type("Batch", (), {"inputs": np.zeros((5, 8, 8, 1)), "labels": labels})
    losses, metrics = smoothed_cross_entropies(
        {head: jnp.asarray(logits, jnp.float32) for head, logits in outputs.items()}, batch
    )
    expected = np.zeros(5)
    for head, logits in outputs.items():
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        targets = np.full(logits.shape, 0.1 / logits.shape[-1])
        targets += 0.9 * labels[head]
        expected -= (targets * log_p).sum(-1)
        np.testing.assert_array_equal(
            metrics[f"{head}_error"], logits.argmax(-1) != labels[head].argmax(-1)
        )
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
