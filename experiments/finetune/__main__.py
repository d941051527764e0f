"""`python -m experiments.finetune`: read the images, train, save the classifier, show mistakes."""

from __future__ import annotations

import json
import sys
from typing import Any

import experiments.finetune as about
import jaxcnn as jc
from experiments._common import StepProgress
from experiments._options import parse_options
from experiments.finetune.images import (
    START_FILE,
    data_digest,
    describe_images,
    load_images,
    record_images,
    write_cifar10,
    write_photographs,
)
from experiments.finetune.options import (
    PRESETS,
    Options,
    check,
    hub_name,
    input_size,
    make_config,
    reported_split,
    selects_best,
    with_preprocessing,
)
from experiments.finetune.results import write_results
from jaxcnn import cli, runs
from jaxcnn._util import file_sha256
from jaxcnn.checkpoint import Checkpoints
from jaxcnn.classifier import CLASSES_FILE, WEIGHTS_FILE, load_classifier, save_classifier
from jaxcnn.progress import Progress
from jaxcnn.run_log import read_json, write_text
from jaxcnn.state import with_variables
from jaxcnn.weights import load_weights, read_metadata
from jaxcnn.weights.files import find_file


def main(args: list[str] | None = None) -> int:
    """Train what is missing, draw, and return the exit code."""
    with cli.cli_errors(), cli.GracefulShutdown() as stop:
        options = parse_options(PRESETS, args, about.__doc__, implied={"images": "own"})
        check(options)
        options = with_preprocessing(options)
        data, names = load_data(options)
        run_config = make_config(options, data)
        print(describe_images(options.images or options.out / "images", data, options))
        cli.enable_compilation_cache()
        if not options.plot_only and not train(options, run_config, data, stop):
            print("stopped and saved; the same command resumes from here", file=sys.stderr)
            return stop.exit_code
        record_images(options.images or options.out / "images", options)
        with cli.record_errors(options.out):
            (run,) = runs.finished_runs(options.out)
            source = hub_name(options) or (options.weights and options.weights.name)
            split_names = names[reported_split(data)]
            write_results(
                options.out,
                load_classifier(options.out),
                data,
                split_names,
                run,
                weights=source,
                max_mistakes=options.worst,
                figures=options,
            )
        print(f"python -m experiments.predict --run {options.out} image.jpg    classifies others")
    return 0


def load_data(options: Options) -> tuple[jc.Dataset, dict[str, tuple[str, ...]]]:
    """Return the images and their names.

    Those of a preset are written first.
    """
    root = options.images or options.out / "images"
    if options.images is None:
        options.out.mkdir(parents=True, exist_ok=True)
        if options.preset == "photographs":
            write_photographs(root)
        else:
            write_cifar10(root, options.data_dir)
    return load_images(root, options)


def train(options: Options, run_config: jc.ExperimentConfig, data: jc.Dataset, stop: Any) -> bool:
    """Train in OUT/run and save the classifier in OUT.

    Returns:
      False if it was stopped.
    """
    strategy = options.make_strategy()
    model, tx = runs.model_and_optimizer(run_config, data.num_classes)
    # Weights are read before the folder is claimed, so that an unreadable file claims nothing.
    initialize = make_initializer(options, model)
    claim_folder(options, data)
    epoch = "best" if selects_best(options, data) else "last"
    check_epoch(options, run_config, epoch)
    with Progress(run_config.train.num_steps) as progress:
        result = runs.run(
            run_config,
            data,
            options.out / "run",
            strategy=strategy,
            should_stop=stop,
            on_step=StepProgress(progress, run_config.train.num_steps),
            prepare_state=initialize,
            tensorboard=options.tensorboard,
        )
    if result is None:
        return False
    # The second file is missing where a process died between the two.
    if not all((options.out / name).is_file() for name in (WEIGHTS_FILE, CLASSES_FILE)):
        with Checkpoints(options.out / "run" / "checkpoints") as checkpoints:
            initial = jc.init_state(model, tx, run_config.train, data)
            step = None
            if epoch == "best" and checkpoints.steps():
                step = checkpoints.resolve_step("best")
            state = checkpoints.restore(initial, step)
        if state is None:
            raise jc.ArgumentError(missing_state_text(options, result))
        size = input_size(options)
        save_classifier(
            options.out,
            run_config,
            model,
            state,
            data.classes,
            size,
            options.resize or round(size * 256 / 224),
            options.interpolation or "bilinear",
            {"epoch": epoch},
        )
    return True


def check_epoch(options: Options, run_config: jc.ExperimentConfig, epoch: str) -> None:
    """Check that a run or a classifier in OUT is of the requested epoch.

    Files of earlier versions, which do not say, are taken as they are.

    Raises:
      ArgumentError: it is of the other one.
    """
    path = options.out / WEIGHTS_FILE
    saved = read_metadata(path).get("epoch", epoch) if path.is_file() else epoch
    run = options.out / "run"
    if (run / "config.json").is_file():
        split = jc.ExperimentConfig.load(run).train.eval_split
        if split != run_config.train.eval_split:
            saved = "last" if split == "test" else "best"
    if saved != epoch:
        raise jc.ArgumentError(
            f"{options.out} holds the classifier of the {saved} epoch; write --epoch {saved}, or "
            "another --out"
        )


def missing_state_text(options: Options, result: Any) -> str:
    """Return why a finished run has no state, and what to do."""
    if result["status"] != "diverged":
        return f"{options.out}/run is over, but has no checkpoints; write another --out"
    return (
        f"training diverged at step {result['step']}, before anything was saved: "
        f"{result['reason']}; expected a loss that falls: write a smaller rate, such as "
        f"--learning-rate {options.learning_rate / 10:g}, and another --out than {options.out}"
    )


def make_initializer(options: Options, model: Any) -> Any:
    """Return a function from the first state to the initial one.

    The first state is that of step 0. The weights are read now, before any work, so that mistakes
    are found early.
    """
    if options.weights is None:
        return lambda state: state
    size = input_size(options)
    variables = load_weights(model, options.weights, (size, size, 3))
    return lambda state: with_variables(state, variables)


def claim_folder(options: Options, data: jc.Dataset) -> None:
    """Check that the run in OUT began with these images and weights.

    The config stores neither. They are recorded on the first call.

    Raises:
      ArgumentError: OUT holds a run that began with others.
    """
    current = {"images": data_digest(data), "weights": None}
    if options.weights is not None:
        current["weights"] = file_sha256(find_file(options.weights))
    path = options.out / START_FILE
    if path.exists():
        previous = read_json(path)
        if differences := [name for name, value in current.items() if previous.get(name) != value]:
            raise jc.ArgumentError(
                f"{options.out} holds a run from other {' and '.join(differences)}; write another "
                "--out"
            )
        return
    options.out.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(current) + "\n")


if __name__ == "__main__":
    sys.exit(main())
