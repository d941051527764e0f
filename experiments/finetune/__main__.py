"""`python -m experiments.finetune`: read the pictures, train, keep the classifier, and show what it gets wrong."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from typing import Any

import experiments.finetune as about
import jaxcnn as jc
from experiments.finetune import samples
from experiments.finetune.opening import START, digest, opened, remember
from experiments.finetune.options import PRESETS, Options, check, recipe
from experiments.finetune.results import draw
from experiments.finetune.saved import FILE, read, save
from experiments.finetune.watch import Watch
from jaxcnn import cli, runs
from jaxcnn.checkpoint import Checkpoints
from jaxcnn.progress import Progress
from jaxcnn.run_log import read_json, write_text
from jaxcnn.state import with_variables
from jaxcnn.weights import load_weights


def main(args: list[str] | None = None) -> int:
    """Train what is missing, then draw; returns the exit code."""
    with cli.cli_errors(), cli.GracefulShutdown() as stop:
        options = cli.parse(PRESETS, chosen(sys.argv[1:] if args is None else args), about=about.__doc__)
        check(options)
        data, names = pictures(options)
        made = recipe(options, data)
        cli.enable_compilation_cache()
        if not options.plot_only and not train(options, made, data, stop):
            print("stopped and saved; the same command goes on from here", file=sys.stderr)
            return stop.exit_code
        remember(options.images or options.out / "images", options)
        with cli.reading(options.out):
            (run,) = runs.finished_runs(options.out)
            source = options.weights and options.weights.name
            own = names[run.recipe.report]
            draw(options.out, read(options.out), data, own, run, weights=source, most=options.worst)
        print(f"python -m experiments.predict --run {options.out} picture.jpg    classifies others")
    return 0


def chosen(args: Sequence[str]) -> list[str]:
    """The arguments with the preset that they mean: `own` if there are pictures of one's own, else the first."""
    if any(arg.split("=")[0] == "--preset" for arg in args):
        return list(args)
    own = any(arg.split("=")[0] == "--images" for arg in args)
    return ["--preset", "own" if own else "photographs", *args]


def pictures(options: Options) -> tuple[jc.Dataset, dict[str, tuple[str, ...]]]:
    """The pictures and their names, those of a preset written first."""
    root = options.images or options.out / "images"
    if options.images is None:
        options.out.mkdir(parents=True, exist_ok=True)
        if options.preset == "photographs":
            samples.photographs(root)
        else:
            samples.cifar10(root, options.data_dir)
    return opened(root, options)


def train(options: Options, made: jc.Recipe, data: jc.Dataset, stop: Any) -> bool:
    """Train in OUT/run and keep the classifier in OUT; False if it was stopped."""
    strategy = jc.strategy(options.strategy)
    model, tx = runs.model_and_optimizer(made, len(data.classes))
    begin = started(options, model)
    claim(options, data)
    with Progress(made.steps) as progress:
        result = runs.run(
            made,
            data,
            options.out / "run",
            strategy=strategy,
            stop=stop,
            watch=Watch(progress, made.steps),
            begin=begin,
        )
    if result is None:
        return False
    if not (options.out / FILE).is_file():
        with Checkpoints(options.out / "run" / "checkpoints") as saved:
            state = saved.restore(jc.init_state(model, tx, made, data))
        if state is None:
            raise jc.ArgumentError(lost(options, result))
        resize = options.resize or round(options.size * 256 / 224)
        save(options.out, made, model, state, data.classes, options.size, resize)
    return True


def lost(options: Options, result: Any) -> str:
    """Why a run that is over has kept no state, and what to write instead."""
    if result["status"] != "diverged":
        return f"{options.out}/run is over, but has no checkpoints; write another --out"
    return (
        f"training diverged at step {result['step']}, before anything was saved: {result['why']}; expected a loss that falls: "
        f"write a smaller rate, such as --lr {options.lr / 10:g}, and another --out than {options.out}"
    )


def started(options: Options, model: Any) -> Any:
    """What turns the state of step 0 into the one to begin with; the weights are read now, so that a mistake costs nothing."""
    if options.weights is None:
        return lambda state: state
    variables = load_weights(model, options.weights, (options.size, options.size, 3))
    return lambda state: with_variables(state, variables)


def claim(options: Options, data: jc.Dataset) -> None:
    """ArgumentError if OUT holds a run that began elsewhere: a recipe knows neither its pictures nor its weights."""
    now = {"pictures": digest(data), "weights": None}
    if options.weights is not None:
        with options.weights.open("rb") as file:
            now["weights"] = hashlib.file_digest(file, "sha256").hexdigest()
    path = options.out / START
    if path.exists():
        before = read_json(path)
        if other := [what for what, value in now.items() if before.get(what) != value]:
            raise jc.ArgumentError(f"{options.out} holds a run from other {' and '.join(other)}; write another --out")
        return
    options.out.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(now) + "\n")


if __name__ == "__main__":
    sys.exit(main())
