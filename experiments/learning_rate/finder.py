"""Learning-rate range test: one short run at a rising rate."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import jaxcnn as jc
from experiments._common import display_names
from experiments.learning_rate.options import Options, config, data
from jaxcnn import plots, runs, tables
from jaxcnn.config import as_dict
from jaxcnn.run_log import read_json, write_text
from jaxcnn.training_checks import check_config


def _config(options: Options, name: str) -> jc.ExperimentConfig:
    """Return the config of an optimizer's range test."""
    return config(options, optimizer=name, batch_size=options.batch_size)


def check(options: Options) -> None:
    """Check the part's settings.

    Raises:
      ArgumentError: for an invalid one.
    """
    finder = options.finder
    if not finder.optimizers:
        raise jc.ArgumentError(
            "finder.optimizers is empty; write --finder.optimizers sgd momentum adam"
        )
    if not 0 < finder.low < finder.high < float("inf"):
        raise jc.ArgumentError(
            f"finder goes from {finder.low} to {finder.high}; "
            "expected 0 < low < high: write --finder.low 1e-5"
        )
    if finder.num_steps < 10:
        raise jc.ArgumentError(
            f"finder.num_steps is {finder.num_steps}; expected at least 10: "
            "write --finder.num-steps 150"
        )
    for name in finder.optimizers:
        runs.model_and_optimizer(_config(options, name), 10)
        strategy = options.make_strategy()
        check_config(_config(options, name).train, data(options), strategy)


def _settings(options: Options, name: str) -> dict[str, Any]:
    """Return the settings of an optimizer's test, as JSON has them."""
    return {
        "config": as_dict(_config(options, name)),
        "finder": asdict(options.finder) | {"optimizers": None},
    }


def run(options: Options, stop: Any) -> bool:
    """Test every optimizer without numbers of these settings; return False if stopped."""
    folder = options.out / "finder"
    folder.mkdir(parents=True, exist_ok=True)
    for name in options.finder.optimizers:
        path, settings = folder / f"{name}.json", _settings(options, name)
        if path.exists() and read_json(path).get("request") == settings:
            continue
        test, dataset, finder = _config(options, name), data(options), options.finder
        result = jc.lr_finder(
            jc.create_model(test.model, dataset.num_classes, **test.model_kwargs),
            test.optimizer,
            dataset,
            test.train,
            low=finder.low,
            high=finder.high,
            num_steps=finder.num_steps,
            strategy=options.make_strategy(),
        )
        numbers = {
            k: v.tolist() if hasattr(v, "tolist") else v for k, v in result._asdict().items()
        }
        content = {"request": settings} | {k: _finite(v) for k, v in numbers.items()}
        write_text(path, json.dumps(content) + "\n")
        if stop():
            return False
    return True


def _finite(value: Any) -> Any:
    """Return a value with None where JSON has no number."""
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return value if value is None or abs(value) < float("inf") else None


def draw(options: Options) -> list[dict[str, Any]]:
    """Write the figure `finder` and the table of the tests in the part's folder.

    Returns:
      Lines of the common table.

    Raises:
      ArgumentError: if there are none.
    """
    folder = options.out / "finder"
    tests = {path.stem: read_json(path) for path in sorted(folder.glob("*.json"))}
    if not tests:
        raise jc.ArgumentError(f"{folder} holds no range test; leave out --plot-only")
    setting = next(iter(tests.values()))["request"]["config"]
    batch_size = setting["train"]["batch_size"]
    protocol = f"{setting['model']} on {setting['dataset']}, batch {batch_size}, 1 seed"
    keys = ("suggested", "limit", "diverged")
    lines = [
        {"optimizer": name}
        | {key: test[key] if test[key] is None else f"{test[key]:.3g}" for key in keys}
        for name, test in tests.items()
    ]
    notes = [
        f"{protocol}. suggested: where the loss falls most steeply; limit: where it leaves its "
        "lowest values for good; diverged: where it is 4 times its start."
    ]
    tables.write_table(folder, lines, notes)
    panels = [_panel(name, test) for name, test in tests.items()]
    figure = plots.panels(
        panels, share="none", title=display_names(f"Range test of the learning rate: {protocol}")
    )
    options.save(figure, folder / "finder")
    return [
        {"what": f"{title}, {name}", "predicted": None, "measured": test[key], "ratio": None}
        for name, test in tests.items()
        for key, title in (("suggested", "range test suggests"), ("limit", "range test's limit"))
    ]


def _panel(name: str, test: dict[str, Any]) -> plots.Panel:
    """Return the panel of an optimizer's test: loss against the rate."""
    first = test["smooth"][0]
    marks = [
        plots.Mark(test[key], "x", key) for key in ("suggested", "limit") if test[key] is not None
    ]
    lines = (
        plots.Line(
            test["rates"], test["losses"], label="loss of each batch", color="0.75", width=1.0
        ),
        plots.Line(
            test["rates"], test["smooth"], label="centered mean of 5", color=plots.COLORS[0]
        ),
    )
    crosses = ((test["diverged"], None),) if test["diverged"] is not None else ()
    return plots.Panel(
        name,
        lines,
        tuple(marks),
        "learning rate",
        "loss (nats)",
        True,
        ylim=(0, 1.6 * first),
        crosses=crosses,
    )
