"""The learning-rate range test: one short run at a rising rate, and what it suggests for each optimiser."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import jaxcnn as jc
from experiments.learning_rate.options import Options, data, recipe
from jaxcnn import plots, runs, tables, training
from jaxcnn.run_log import read_json, write_text


def _recipe(options: Options, name: str) -> jc.Recipe:
    return recipe(options, optimizer=name, batch=options.batch)


def check(options: Options) -> None:
    """ArgumentError for a setting that cannot be meant."""
    finder = options.finder
    if not finder.optimizers:
        raise jc.ArgumentError("finder.optimizers is empty; write --finder.optimizers sgd momentum adam")
    if not 0 < finder.low < finder.high < float("inf"):
        raise jc.ArgumentError(
            f"finder goes from {finder.low} to {finder.high}; expected 0 < low < high: write --finder.low 1e-5"
        )
    if finder.steps < 10:
        raise jc.ArgumentError(f"finder.steps is {finder.steps}; expected at least 10: write --finder.steps 150")
    for name in finder.optimizers:
        runs.model_and_optimizer(_recipe(options, name), 10)
        training.check_config(_recipe(options, name), data(options), jc.strategy(options.strategy))


def _asked(options: Options, name: str) -> dict[str, Any]:
    return {
        "recipe": json.loads(_recipe(options, name).to_json()),
        "finder": asdict(options.finder) | {"optimizers": None},
    }


def run(options: Options, stop: Any) -> bool:
    """Test every optimiser whose numbers are not there; False when stopped on the way."""
    folder = options.out / "finder"
    folder.mkdir(parents=True, exist_ok=True)
    for name in options.finder.optimizers:
        path, asked = folder / f"{name}.json", _asked(options, name)
        if path.exists() and read_json(path).get("asked") == asked:
            continue
        setting, there = _recipe(options, name), data(options)
        model, finder = jc.create_model(setting.model, len(there.classes), **setting.options), options.finder
        strategy, span = jc.strategy(options.strategy), {"low": finder.low, "high": finder.high, "steps": finder.steps}
        found = jc.lr_finder(model, there, setting, **span, strategy=strategy)
        numbers = {k: v.tolist() if hasattr(v, "tolist") else v for k, v in found._asdict().items()}
        write_text(path, json.dumps({"asked": asked} | {k: _finite(v) for k, v in numbers.items()}) + "\n")
        if stop():
            return False
    return True


def _finite(value: Any) -> Any:
    """The same with None where JSON has no number."""
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return value if value is None or abs(value) < float("inf") else None


def draw(options: Options) -> list[dict[str, Any]]:
    """`finder.png` and the table, from the numbers that are there."""
    folder = options.out / "finder"
    found = {path.stem: read_json(path) for path in sorted(folder.glob("*.json"))}
    if not found:
        raise jc.ArgumentError(f"{folder} holds no range test; leave out --plot-only")
    setting = next(iter(found.values()))["asked"]["recipe"]
    n = f"{setting['model']} on {setting['dataset']}, batch {setting['batch']}, 1 seed"
    keys = ("suggested", "limit", "diverged")
    lines = [
        {"optimizer": name} | {k: t[k] if t[k] is None else f"{t[k]:.3g}" for k in keys} for name, t in found.items()
    ]
    notes = [
        f"{n}. suggested: where the loss falls most steeply; limit: where it leaves its lowest values for good; "
        "diverged: where it is 4 times its start."
    ]
    tables.write_table(folder, lines, notes)
    figure = plots.panels([_panel(name, test) for name, test in found.items()], share="none", title=f"Range test: {n}")
    plots.save(figure, folder / "finder.png")
    return [
        {"what": f"{what}, {name}", "predicted": None, "measured": test[key], "ratio": None}
        for name, test in found.items()
        for key, what in (("suggested", "range test suggests"), ("limit", "range test's limit"))
    ]


def _panel(name: str, test: dict[str, Any]) -> plots.Panel:
    first = test["smooth"][0]
    marks = [plots.Mark(test[key], "x", key) for key in ("suggested", "limit") if test[key] is not None]
    lines = (
        plots.Line(test["rates"], test["losses"], label="loss of each batch", color="0.75", width=1.0),
        plots.Line(test["rates"], test["smooth"], label="centred mean of 5", color=plots.COLORS[0]),
    )
    crosses = ((test["diverged"], None),) if test["diverged"] is not None else ()
    return plots.Panel(
        name, lines, tuple(marks), "learning rate", "loss (nats)", True, ylim=(0, 1.6 * first), crosses=crosses
    )
