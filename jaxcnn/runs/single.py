"""One run in a folder of its own: training it, and loading it as a trained model.

Training can be stopped at any moment, and the same command resumes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxcnn import parallel
from jaxcnn._util import tree_size
from jaxcnn.arguments import check_boolean, check_callable, check_integer, check_path
from jaxcnn.checkpoint import Checkpoints
from jaxcnn.config import (
    ArgumentError,
    ExperimentConfig,
    format_value,
    override,
    verify_config,
)
from jaxcnn.data import DATASETS, Dataset, load_dataset, subset, verify_dataset, verify_inputs
from jaxcnn.evaluation import is_library_model
from jaxcnn.losses import CLASS_LOSSES, LOSSES, Loss, as_loss, create_loss
from jaxcnn.models import count_parameters, create_model
from jaxcnn.models.calling import verify_model
from jaxcnn.optim import as_transformation, create_optimizer
from jaxcnn.provenance import are_valid_facts, builder_config, loss_facts
from jaxcnn.records import RunRecords, missing_run_message
from jaxcnn.run_log import read_json, read_metrics
from jaxcnn.runs.results import Result
from jaxcnn.shutdown import interactive_interrupt
from jaxcnn.state import State, init_state, state_shapes
from jaxcnn.training import train
from jaxcnn.training_checks import check_config, check_model, has_known_outputs

Measure = Callable[[Any, State, Dataset], Mapping[str, Any]]
"""Function of (model, state, data) that returns more columns of a row.

The columns are plain numbers by name.
"""


Build = Callable[[ExperimentConfig, Dataset], tuple[Any, Any]]
"""Function of (config, data) that returns a model and an optimizer."""


def check_pieces(
    model: Any,
    tx: Any,
    config: ExperimentConfig,
    data: Dataset,
    strategy: parallel.Strategy,
    loss: Loss,
) -> None:
    """Check that a model, data and a loss fit together, before a folder is written.

    `train` checks it too. The library's own models are not traced for it.

    Raises:
      ArgumentError: they do not fit.
    """
    is_same = getattr(model, "num_classes", data.num_classes) == data.num_classes
    if is_same and has_known_outputs(model, data, loss) and not config.train.recompute_batch_stats:
        return
    state = state_shapes(model, tx, config.train, data, loss=loss)
    check_model(model, state, data, config.train, strategy, loss)


_FUNCTIONS = {
    "should_stop": ("lambda: False", 0),
    "measure": ("lambda model, state, data: {'name': 1.0}", 3),
    "on_step": ("lambda step, row: None", 2),
    "prepare_state": ("lambda state: state", 1),
}
"""Arguments that a run calls -> an example, and the number of its arguments."""


def check_functions(**functions: Any) -> None:
    """Check functions that a run calls after its start.

    Args:
      functions: by the names of the arguments of `run`.

    Raises:
      ArgumentError: one cannot be called with its arguments.
    """
    for name, function in functions.items():
        example, num_args = _FUNCTIONS[name]
        check_callable(name, function, example, num_args)


def model_and_optimizer(config: ExperimentConfig, num_classes: int) -> tuple[Any, Any]:
    """Return the config's model and optimizer.

    What is compiled for them serves every seed and rate.

    Args:
      config: of the run.
      num_classes: the number of the network's outputs, at least 1.

    Raises:
      ArgumentError: `num_classes` is 0, as for data with targets of other losses, or is in
        `config.model_kwargs` too. Or there is no such model or optimizer.

    Example:
      >>> from jaxcnn import OptimizerConfig
      >>> config = ExperimentConfig(model="mlp", optimizer=OptimizerConfig("adam"))
      >>> model, tx = model_and_optimizer(config, 1)
      >>> model.num_classes
      1
    """
    verify_config(config, ExperimentConfig)
    another = "build=lambda config, data: jaxcnn.runs.model_and_optimizer(config, 1)"
    if check_integer("num_classes", num_classes, 0, example=10) == 0:
        raise ArgumentError(
            "the data have no classes, so that the number of the network's outputs is unknown. "
            f"Write {another}, for one output"
        )
    if "num_classes" in config.model_kwargs:
        raise ArgumentError(
            "model_kwargs has num_classes, which is the data's; expected options of the network. "
            f"Leave it out, or write {another}, for one output"
        )
    model = create_model(config.model, num_classes, **config.model_kwargs)
    train = config.train
    return model, create_optimizer(config.optimizer, train.num_steps, seed=train.seed)


def build_pieces(
    config: ExperimentConfig, data: Dataset, build: Build | None = None
) -> tuple[Any, Any]:
    """Return the model and the optimizer of a run.

    Args:
      config: of the run.
      data: of the run.
      build: makes them; None is `model_and_optimizer`.

    Raises:
      ArgumentError: `build` is no such function, or returns anything but a model and an optimizer.
    """
    if build is None:
        return model_and_optimizer(config, data.num_classes)
    example = "lambda config, data: (model, tx)"
    pieces = check_callable("build", build, example, num_args=2)(config, data)
    if not isinstance(pieces, tuple) or len(pieces) != 2:
        raise ArgumentError(
            f"build returned {format_value(pieces)}; expected a model and an optimizer. "
            "Write return model, tx"
        )
    model, tx = pieces
    verify_model(model)
    return model, as_transformation(tx)


def with_loss(config: ExperimentConfig, loss: str | Loss | None) -> tuple[ExperimentConfig, Loss]:
    """Return the config with the loss of a run, and that loss.

    A loss that is not the library's has a description in place of a name, as in the run's records.

    Args:
      config: of the run.
      loss: of the run; None is the config's.
    """
    if loss is None:
        return config, create_loss(config.loss, **config.loss_kwargs)
    function = as_loss(loss)
    name, kwargs = loss_facts(function)
    return override(config, loss=name, loss_kwargs=kwargs), function


def subset_for(config: ExperimentConfig, data: Dataset) -> Dataset:
    """Return `data` with the config's number of training images.

    Every run of a study gets the same ones.

    Args:
      config: of a run.
      data: that it names.

    Raises:
      ArgumentError: `config` is no config of a run.
      DataError: the data are invalid, or have fewer images.
    """
    verify_config(config, ExperimentConfig)
    verify_inputs(data)
    if config.max_train_examples is None or config.max_train_examples == len(data.train.images):
        return data
    return subset(data, config.max_train_examples, seed=0)


def verify_data_of(config: ExperimentConfig, data: Dataset) -> None:
    """Check that the data are those that a config names.

    Raises:
      ArgumentError: they are of another name, or have another number of validation images.
      DataError: the data are invalid.
    """
    verify_config(config, ExperimentConfig)
    if config.augmentation is not None:
        raise ArgumentError(
            f"augmentation is {format_value(config.augmentation)}, the description of a function; "
            "expected None. Write jaxcnn.train(..., augment=function), or augmentation=None."
        )
    verify_dataset(data, are_classes=config.loss in CLASS_LOSSES)
    if config.dataset != data.name:
        raise ArgumentError(
            f"dataset is {config.dataset!r}, but the data is {data.name!r}; "
            f"write dataset={data.name!r}"
        )
    num_validation = len(data.validation.images)
    if config.num_validation != num_validation:
        can_be_held_out = config.num_validation < len(data.train.images) + num_validation
        raise ArgumentError(
            f"num_validation is {config.num_validation}, but the data holds out {num_validation}; "
            + (
                f"write load_dataset(..., validation={config.num_validation})"
                if can_be_held_out
                else f"write num_validation={num_validation}"
            )
        )


def run(
    config: ExperimentConfig,
    data: Dataset,
    folder: str | Path,
    *,
    strategy: parallel.Strategy | None = None,
    should_stop: Callable[[], Any] = lambda: False,
    on_step: Callable[[int, Mapping[str, Any] | None], None] = lambda step, row: None,
    measure: Measure = lambda model, state, data: {},
    prepare_state: Callable[[State], State] = lambda state: state,
    keep_every: int = 0,
    build: Build | None = None,
    loss: str | Loss | None = None,
    tensorboard: bool = False,
) -> Result | None:
    """Train a config in a folder.

    A run resumes from its last checkpoint if it has one. A finished run is not repeated.

    Args:
      config: the run's. A folder with the run of another config, or on other data, is an error.
      data: that of `load_dataset(config.dataset, validation=config.num_validation)`.
        `config.max_train_examples` of its training images are used.
      folder: of `config.json`, `run.json`, `env.json`, `metrics.jsonl`, `checkpoints/`, and
        `result.json` once the run is finished.
      strategy: devices, all by default.
      should_stop: called after every step. When it returns true, the state is saved and training
        ends. So it does after Ctrl-C in a notebook.
      on_step: called with the step and None after every step, and with the step and the row after
        every row.
      measure: returns more columns of each row.
      prepare_state: a function of the state at step 0 that returns the state to start from, such as
        `lambda state: with_variables(state, variables)`.
      keep_every: as in `Checkpoints`.
      build: a function (config, data) -> (model, tx) that makes a model and an optimizer of the
        user's own. `data` has the images that are used. None makes those that the config names.
        The records describe what it returned, and keep the config's numbers. The folder refuses
        another model or optimizer later.
      loss: of the user's own, as in `jaxcnn.train`. None is the config's.
      tensorboard: as in `RunLog`.

    Returns:
      The contents of `result.json`, or None if the run was stopped. They are `status` ("finished",
      or "diverged" with `reason`), `params`, the last row's figures and the run's `seconds`.

    Raises:
      ArgumentError: an argument is invalid, or the folder has another run.
      FolderInUseError: another process trains there, or this one. The message has its number and
        host.

    Example:
      >>> import tempfile
      >>> import flax.linen as nn
      >>> import optax
      >>> from jaxcnn import TrainConfig
      >>> class Linear(nn.Module):
      ...     num_classes: int
      ...     @nn.compact
      ...     def __call__(self, images, train=False):
      ...         return nn.Dense(self.num_classes)(images.reshape(len(images), -1))
      >>> def build(config, data):
      ...     return Linear(data.num_classes), optax.adam(config.optimizer.learning_rate)
      >>> config = ExperimentConfig(dataset="digits", train=TrainConfig(num_steps=2))
      >>> run(config, load_dataset("digits"), tempfile.mkdtemp(), build=build)["params"]
      650
    """
    strategy = parallel.check_strategy(strategy)
    # Mistakes come before anything is written in the folder.
    check_functions(
        should_stop=should_stop, measure=measure, on_step=on_step, prepare_state=prepare_state
    )
    verify_config(config, ExperimentConfig)
    config, loss_function = with_loss(config, loss)
    verify_data_of(config, data)
    data = subset_for(config, data)
    check_config(config.train, data, strategy, loss_function)
    model, tx = build_pieces(config, data, build)
    check_pieces(model, tx, config, data, strategy, loss_function)
    pieces: dict[str, Any] = {} if build is None else {"model": model, "tx": tx, "build": build}
    pieces |= {"keep_every": keep_every, "tensorboard": tensorboard}
    # Around the loop of `train`, whose own interrupt then does nothing: the state is saved at once,
    # and not evaluated.
    with (
        interactive_interrupt() as is_interrupted,
        RunRecords(config, folder, strategy, data, **pieces) as records,
    ):
        if records.result is not None:
            return records.result

        def resume(initial):
            state = records.restore(initial) or prepare_state(initial)
            on_step(int(state.step), None)
            return state

        def after_step(step):
            on_step(step, None)
            return should_stop() or is_interrupted()

        reason = None
        for state, row in train(
            model,
            tx,
            data,
            config.train,
            loss=loss_function,
            resume=resume,
            strategy=strategy,
            should_stop=after_step,
            progress=False,
        ):
            if row is None:
                records.save(state)
                if state.step < config.train.num_steps:
                    return None
                break
            reason = row.get("diverged")
            if reason is None:
                figures = measure(model, state, data)
                if not isinstance(figures, Mapping):
                    raise ArgumentError(
                        f"measure returned {format_value(figures)}; expected figures by name. "
                        "Write return {'name': 1.0}."
                    )
                row |= figures
            records.record(state, row)
            on_step(int(state.step), row)
            if reason:
                break
            if (should_stop() or is_interrupted()) and state.step < config.train.num_steps:
                return None
        return records.finish(num_parameters(model, tx, config, data, loss_function), reason)


def num_parameters(model: Any, tx: Any, config: ExperimentConfig, data: Dataset, loss: Loss) -> int:
    """Return the number of the parameters of a run's model."""
    if is_library_model(model):
        return count_parameters(model, data.train.images.shape[1:])
    state = state_shapes(model, tx, config.train, data, loss=loss)
    return tree_size(state.params)


_UNNAMED = ("arrays", "folder")
"""Names of data sets of the user's own, which `load_dataset` explains."""
Rows = list[dict[str, Any]]


class TrainedModel(NamedTuple):
    """A run with states on disk, as `load_trained_model` reads it.

    Attributes:
      folder: folder of the run.
      config: config of the run.
      data: data set that the run used.
      model: network of the config.
      states: states by step, in ascending order. The first is the start, step 0. It is computed
        again from the seed, with the same bits. The others are from checkpoints.
      rows: rows of `metrics.jsonl`.
    """

    folder: Path
    config: ExperimentConfig
    data: Dataset
    model: Any
    states: dict[int, State]
    rows: Rows

    @property
    def first(self) -> State:
        """State before the first step."""
        return self.states[0]

    @property
    def last(self) -> State:
        """The newest state."""
        return next(reversed(self.states.values()))


def load_trained_model(
    folder: str | Path,
    *,
    data: Dataset | None = None,
    data_dir: str | Path | None = None,
    path: bool = False,
    loss: str | Loss | None = None,
    build: Build | None = None,
) -> TrainedModel:
    """Load the run in a folder, with its start and newest checkpoint.

    Args:
      folder: of a run, with `config.json` and `checkpoints`. The run need not be finished, but no
        process may train there now.
      data: that it was trained on. None loads `config.dataset` from `data_dir` (see
        `jaxcnn.load_dataset`).
      data_dir: folder that is searched for data first.
      path: load all checkpoints, oldest first, and not only the newest.
      loss: the loss that it was trained with, if that is not the library's. None is the config's.
      build: the function that made its model and its optimizer, as in `run`.

    Raises:
      ArgumentError: the folder has no run, or a run without checkpoints. The message names runs in
        its subfolders.
      DataError: there are no data.
      CheckpointError: there is no good checkpoint, or another process trains there.

    Example:
      >>> import tempfile
      >>> from jaxcnn import runs
      >>> from jaxcnn import TrainConfig
      >>> train = TrainConfig(num_steps=2)
      >>> config = ExperimentConfig(dataset="digits", model="mlp", train=train)
      >>> folder = tempfile.mkdtemp()
      >>> result = runs.run(config, load_dataset("digits"), folder)
      >>> run = load_trained_model(folder)
      >>> run.config.model, list(run.states), run.data.classes[-1]
      ('mlp', [0, 2], '9')
    """
    folder = check_path("folder", folder)
    check_boolean("path", path)
    if not (folder / "config.json").is_file() or not (folder / "checkpoints").is_dir():
        raise ArgumentError(_missing_run_message(folder))
    config = ExperimentConfig.load(folder)
    if data is None:
        if config.dataset not in (*DATASETS, *_UNNAMED):
            raise ArgumentError(
                f"{folder} was trained on data of your own, {config.dataset!r}; expected them here "
                "too. Write load_trained_model(folder, data=data)."
            )
        data = load_dataset(config.dataset, data_dir, validation=config.num_validation)
    data = subset_for(config, data)
    if loss is None and config.loss not in LOSSES:
        raise ArgumentError(
            f"{folder} was trained with a loss of your own, {config.loss}; expected it here too. "
            "Write load_trained_model(folder, loss=loss)."
        )
    loss = create_loss(config.loss, **config.loss_kwargs) if loss is None else as_loss(loss)
    facts = read_json(folder / "run.json") if (folder / "run.json").is_file() else {}
    if are_valid_facts(facts):
        if "build" in facts:
            config = builder_config(config, facts)
        if build is None and (facts.get("model") or facts.get("optimizer")):
            maker = f", made by {facts['build']['function']}" if "build" in facts else ""
            example = "build" if maker else "lambda config, data: (model, tx)"
            raise ArgumentError(
                f"{folder} was trained with a model or an optimizer of your own{maker}; expected a "
                f"function that makes them here too. Write load_trained_model(folder, "
                f"build={example})."
            )
    model, tx = build_pieces(config, data, build)
    # Shapes are compared first: a stranger's config may have a network that no memory can hold.
    like = state_shapes(model, tx, config.train, data, loss=loss)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        steps = checkpoints.steps() if path else [None]
        restored = [checkpoints.restore(like, step) for step in steps]
    states = {0: init_state(model, tx, config.train, data, loss=loss)} if any(restored) else {}
    for state in filter(None, restored):
        states[int(state.step)] = state
    if not set(states) - {0}:
        raise ArgumentError(
            f"{folder} has no checkpoint of a step yet; "
            "let it train on, or write another run's folder"
        )
    return TrainedModel(folder, config, data, model, states, read_metrics(folder))


def _missing_run_message(folder: Path) -> str:
    """Return the error for a folder without a run that has checkpoints."""
    runs = [path.parent.parent for path in folder.glob("*/checkpoints/lock")]
    return missing_run_message(folder, "run", runs) or (
        f"{folder} holds no run; write a run's folder, with config.json and checkpoints, "
        "such as runs/depth/resnet20-seed0"
    )
