"""Sharpness: the largest eigenvalue of the training loss's Hessian.

It is taken at the last state, in training mode, on one batch of images.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

import jaxcnn as jc
from experiments._common import display_names
from experiments.loss_landscape import measurements
from experiments.loss_landscape.options import Options, load_model, loss_images, measurement_request
from jaxcnn import plots, tables
from jaxcnn.augment import normalize
from jaxcnn.progress import Progress
from jaxcnn.state import eval_state


def check(options: Options) -> None:
    """Check the settings of the part.

    Raises:
      ArgumentError: a setting is invalid.
    """
    settings = options.sharpness
    if not settings.tolerance > 0:
        raise jc.ArgumentError(
            f"sharpness.tolerance is {settings.tolerance}; expected above 0: write "
            "--sharpness.tolerance 0.03"
        )
    if settings.most < 1:
        raise jc.ArgumentError(
            f"sharpness.most is {settings.most}; expected at least 1: write --sharpness.most 50"
        )


def run(options: Options, stop: Any) -> bool:
    """Measure what is missing.

    Returns:
      False if it was stopped on the way.
    """
    sizes = {
        name: jc.count_parameters(load_model(options, name).model, _image_shape(options, name))
        for name in options.networks
    }
    with Progress(sum(sizes.values())) as progress:
        for network, size in sizes.items():
            path = options.out / "sharpness" / f"{network}.npz"
            request = measurement_request(options, network, asdict(options.sharpness))
            if measurements.read_matching(path, request) is not None:
                progress.skip(size)
                continue
            eigenvalue = largest_eigenvalue(options, network)
            measurements.write(
                path, measurements.Measurement(request, {"sharpness": np.array(eigenvalue)})
            )
            progress.advance(size, "")
            progress.write(f"sharpness of {network}: {eigenvalue:.4g}")
            if stop():
                return False
    return True


def _image_shape(options: Options, network: str) -> tuple[int, ...]:
    return loss_images(options, network).images.shape[1:]


def largest_eigenvalue(options: Options, network: str) -> float:
    """Return the largest eigenvalue of the Hessian of the mean loss.

    BN uses the moments of the images.
    """
    trained, split = load_model(options, network), loss_images(options, network)
    state = eval_state(trained.last)
    config = trained.config
    loss = jc.loss_fn(trained.model, jc.create_loss(config.loss, **config.loss_kwargs))
    inputs = normalize(split.images, state.normalizer)
    limits: dict[str, Any] = {
        "tolerance": options.sharpness.tolerance,
        "max_iterations": options.sharpness.most,
    }
    return jc.sharpness(loss, state.params, state.model_state, inputs, split.labels, **limits)


def draw(options: Options) -> dict[str, dict[str, Any]]:
    """Write the figure `sharpness` and the table.

    Returns:
      Network -> its columns of the common table.
    """
    measured = measurements.read_complete(options.out, "sharpness")
    rows = {
        name: {"sharpness": float(measurement.arrays["sharpness"])}
        for name, measurement in measured.items()
    }
    setting = measurements.setting_text(next(iter(measured.values())))
    notes = [
        f"{setting}. The largest eigenvalue of the Hessian of their mean loss, in training mode: "
        "one batch."
    ]
    tables.write_table(
        options.out / "sharpness", [{"network": name} | row for name, row in rows.items()], notes
    )
    bars = {
        measurements.display_title(name): {"at the last state": row["sharpness"]}
        for name, row in rows.items()
    }
    figure = plots.bars(
        bars,
        ylabel="largest eigenvalue of the Hessian",
        title=display_names(f"Sharpness: {setting}"),
    )
    options.save(figure, options.out / "sharpness" / "sharpness")
    return rows
