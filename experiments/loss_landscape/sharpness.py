"""The largest eigenvalue of the training loss's Hessian at the last state, in training mode, on one batch of images."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

import jaxcnn as jc
from experiments.loss_landscape import kept
from experiments.loss_landscape.options import Options, asked, images, opened
from jaxcnn import plots, tables
from jaxcnn.augment import normalize
from jaxcnn.progress import Progress
from jaxcnn.state import eval_state


def check(options: Options) -> None:
    """ArgumentError for a setting that cannot be meant."""
    sharp = options.sharpness
    if not sharp.tolerance > 0:
        raise jc.ArgumentError(
            f"sharpness.tolerance is {sharp.tolerance}; expected above 0: write --sharpness.tolerance 0.03"
        )
    if sharp.most < 1:
        raise jc.ArgumentError(f"sharpness.most is {sharp.most}; expected at least 1: write --sharpness.most 50")


def run(options: Options, stop: Any) -> bool:
    """Measure what is missing; False when stopped on the way."""
    weights = {
        name: jc.count_parameters(opened(options, name).model, _shape(options, name)) for name in options.networks
    }
    with Progress(sum(weights.values())) as progress:
        for network, weight in weights.items():
            path, what = (
                options.out / "sharpness" / f"{network}.npz",
                asked(options, network, asdict(options.sharpness)),
            )
            if kept.same(path, what) is not None:
                progress.skip(weight)
                continue
            value = sharp(options, network)
            kept.write(path, kept.Kept(what, {"sharpness": np.array(value)}))
            progress.advance(weight, "")
            progress.write(f"sharpness of {network}: {value:.4g}")
            if stop():
                return False
    return True


def _shape(options: Options, network: str) -> tuple[int, ...]:
    return images(options, network).images.shape[1:]


def sharp(options: Options, network: str) -> float:
    """The largest eigenvalue of the Hessian of the mean loss of the images; BN by their moments."""
    seen, split = opened(options, network), images(options, network)
    state = eval_state(seen.last)
    loss, inputs = jc.loss_fn(seen.model, seen.recipe.loss), normalize(split.images, state.normalizer)
    limits: dict[str, Any] = {
        "tolerance": options.sharpness.tolerance,
        "max_iterations": options.sharpness.most,
    }
    return jc.sharpness(loss, state.params, state.model_state, inputs, split.labels, **limits)


def draw(options: Options) -> dict[str, dict[str, Any]]:
    """`sharpness.png` and the table; returns columns of the common table for each network."""
    found = kept.every(options.out, "sharpness")
    rows = {name: {"sharpness": float(each.arrays["sharpness"])} for name, each in found.items()}
    what = kept.setting(next(iter(found.values())))
    notes = [f"{what}. The largest eigenvalue of the Hessian of their mean loss, in training mode: one batch."]
    tables.write_table(options.out / "sharpness", [{"network": name} | row for name, row in rows.items()], notes)
    bars = {kept.title(name): {"at the last state": row["sharpness"]} for name, row in rows.items()}
    figure = plots.bars(bars, ylabel="largest eigenvalue of the Hessian", title=f"Sharpness: {what}")
    plots.save(figure, options.out / "sharpness" / "sharpness.png")
    return rows
