"""The configs: the paper's numbers by default, JSON and back, and no impossible value gets in."""

import copy
import dataclasses
import json
import math
import pickle
from dataclasses import FrozenInstanceError, fields
from typing import Any

import numpy as np
import pytest

import jaxcnn as jc
from jaxcnn.config import (
    ArgumentError,
    AugmentConfig,
    ExperimentConfig,
    OptimizerConfig,
    TrainConfig,
    as_dict,
    check_choice,
    field_names,
    override,
    verify_config,
)

# He et al. 2015, section 4.2: 32k and 48k of 64k steps of 128 images, 45k/5k only while choosing,
# no division by std.
PAPER = {
    "dataset": "cifar10",
    "model": "resnet20",
    "model_kwargs": {},
    "num_validation": 0,
    "max_train_examples": None,
    "loss": "cross-entropy",
    "loss_kwargs": {},
    "augmentation": None,
    "optimizer": {
        "name": "momentum",
        "learning_rate": 0.1,
        "schedule": "step",
        "milestones": (32_000, 48_000),
        "gamma": 0.1,
        "warmup_lr": None,
        "warmup_error": 0.8,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "decay_mask": "kernels",
        "lr_multipliers": {},
        "optimizer_kwargs": {},
        "ema_decay": 0.0,
    },
    "train": {
        "num_steps": 64_000,
        "batch_size": 128,
        "eval_every": None,
        "eval_split": "test",
        "augment": {
            "padding": 0,
            "flip": False,
            "pad_value": "mean",
            "crop": "pad",
            "min_area": None,
        },
        "subtract_mean": "pixel",
        "divide_std": False,
        "order": "shuffled",
        "freeze": (),
        "recompute_batch_stats": 0,
        "train_metrics": "running",
        "seed": 0,
    },
}
OTHER = ExperimentConfig(
    dataset="digits",
    model="resnet110",
    model_kwargs={"width": 8, "shortcut": "B", "dtype": "bfloat16", "hidden": [[1], {"a": [2]}]},
    num_validation=5000,
    max_train_examples=1000,
    loss="cross-entropy",
    loss_kwargs={"label_smoothing": 0.1},
    optimizer=OptimizerConfig(
        name="adam",
        optimizer_kwargs={"b1": 0.8, "b2": 0.99},
        schedule="cosine",
        milestones=(1, 2, 3),
        warmup_lr=0.01,
        momentum=0.0,
        weight_decay=0.0,
        lr_multipliers={"stage1": 0.1},
    ),
    train=TrainConfig(
        eval_split="validation",
        order="sorted",
        augment=AugmentConfig(crop="resized", min_area=0.5, padding=0, flip=True),
        subtract_mean=(0.5, 0.25, 0.125),
        divide_std=True,
        freeze=("stem", "stage2"),
        eval_every=391,
        seed=2**32 - 1,
    ),
)
SECTIONS = [AugmentConfig, OptimizerConfig, TrainConfig, ExperimentConfig]
EACH = [
    *(kind() for kind in SECTIONS),
    OTHER.train.augment,
    OTHER.optimizer,
    OTHER.train,
    OTHER,
]


def test_the_defaults_are_the_papers_without_its_augmentation():
    config = ExperimentConfig()
    assert dataclasses.asdict(config) == PAPER
    assert AugmentConfig() == AugmentConfig(padding=0, flip=False)
    assert config.train.num_steps * config.train.batch_size == 8_192_000  # images


def types_of(config: Any) -> Any:
    """The type of each value, at every depth."""
    if dataclasses.is_dataclass(config):
        return type(config), {f.name: types_of(getattr(config, f.name)) for f in fields(config)}
    if isinstance(config, dict):
        return type(config), {name: types_of(value) for name, value in config.items()}
    if isinstance(config, (list, tuple)):
        return type(config), [types_of(value) for value in config]
    return type(config)


@pytest.mark.parametrize("config", EACH, ids=lambda config: type(config).__name__)
def test_json_gives_back_the_same_config(config, tmp_path):
    again = type(config).from_json(config.to_json())
    assert again == config
    assert types_of(again) == types_of(config)
    assert again.to_json() == config.to_json()
    assert config.to_json().endswith("}\n")
    assert as_dict(config) == json.loads(config.to_json())
    assert type(config).from_dict(as_dict(config)) == config
    if isinstance(config, ExperimentConfig):
        (tmp_path / "config.json").write_text(config.to_json())
        assert ExperimentConfig.load(tmp_path) == config


@pytest.mark.parametrize("config", EACH, ids=lambda config: type(config).__name__)
def test_a_copy_and_a_pickle_are_the_same_config(config):
    for again in (copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert again == config
        assert types_of(again) == types_of(config)


def test_numbers_of_training_can_be_keys():
    assert hash(TrainConfig()) == hash(TrainConfig(augment=AugmentConfig()))
    assert {OTHER.train: 1}[TrainConfig.from_json(OTHER.train.to_json())] == 1


def test_plain_values_share_nothing_with_the_config():
    values = as_dict(OTHER)
    values["model_kwargs"]["width"] = 9
    values["train"]["freeze"].append("head")
    values["train"]["augment"]["flip"] = None
    assert as_dict(OTHER) != values
    assert OTHER.train.freeze == ("stem", "stage2")


def test_sequences_are_stored_as_tuples():
    config = override(
        ExperimentConfig(),
        subtract_mean=[0.4914, 0.4822, 0.4465],  # type: ignore[arg-type]
        divide_std=0.5,
        milestones=[1, 2],
        freeze=["stem"],
    )
    assert (config.train.subtract_mean, config.train.divide_std) == (
        (0.4914, 0.4822, 0.4465),
        (0.5,),
    )
    assert (config.optimizer.milestones, config.train.freeze) == ((1, 2), ("stem",))
    assert ExperimentConfig.from_json(config.to_json()) == config
    assert hash(config.train.subtract_mean) == hash((0.4914, 0.4822, 0.4465))


def test_json_of_some_fields_leaves_the_others_at_their_defaults():
    text = '{"optimizer": {"learning_rate": 0.5, "milestones": [7]}, "train": {"augment": {"flip": true}}}'
    assert ExperimentConfig.from_json(text) == override(
        ExperimentConfig(), learning_rate=0.5, milestones=(7,), flip=True
    )
    for kind in SECTIONS:
        assert kind.from_json("{}") == kind.from_dict({}) == kind()


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        # Unknown, at every depth: the nearest of the section's own fields.
        (TrainConfig, '{"num_stepz": 3}', ("TrainConfig field is 'num_stepz'", "'num_steps'?")),
        (
            ExperimentConfig,
            '{"optimizer": {"momentun": 0.5}}',
            ("OptimizerConfig field is 'momentun'", "'momentum'?"),
        ),
        (
            ExperimentConfig,
            '{"train": {"augment": {"paddin": 4}}}',
            ("AugmentConfig field is 'paddin'", "'padding'?"),
        ),
        # Of another section.
        (
            ExperimentConfig,
            '{"learning_rate": 0.5}',
            ("ExperimentConfig field is 'learning_rate'", "one of augmentation, dataset, "),
        ),
        (
            ExperimentConfig,
            '{"train": {"padding": 4}}',
            ("TrainConfig field is 'padding'", "one of augment, "),
        ),
        (
            ExperimentConfig,
            '{"optimizer": {"train": {}}}',
            ("OptimizerConfig field is 'train'", "one of decay_mask, "),
        ),
        (OptimizerConfig, '{"seed": 1}', ("OptimizerConfig field is 'seed'", "weight_decay")),
        (AugmentConfig, '{"train": {}}', ("AugmentConfig field is 'train'", "padding")),
        # Sections that are no objects.
        (ExperimentConfig, '{"train": 3}', ("TrainConfig is 3 in JSON", "an object of fields")),
        (
            ExperimentConfig,
            '{"optimizer": "adam"}',
            ("OptimizerConfig is 'adam' in JSON", "an object of fields"),
        ),
        (
            ExperimentConfig,
            '{"train": {"augment": null}}',
            ("AugmentConfig is None in JSON", "an object of fields"),
        ),
        (
            ExperimentConfig,
            '{"train": {"augment": []}}',
            ("AugmentConfig is [] in JSON", "an object of fields"),
        ),
        *((kind, "[]", (f"{kind.__name__} is [] in JSON", "an object")) for kind in SECTIONS),
        *((kind, "{", ("the config is not JSON", f"{kind.__name__}(...)")) for kind in SECTIONS),
        # Values.
        (ExperimentConfig, '{"train": {"seed": -1}}', ("seed is -1", "at least 0")),
        (ExperimentConfig, '{"optimizer": {"milestones": null}}', ("milestones is None", "tuple")),
        (TrainConfig, '{"freeze": "stem"}', ("freeze is 'stem'", "write freeze=('stem',)")),
    ],
)
def test_wrong_json_is_refused_in_one_line_that_names_the_place(kind, text, says):
    with pytest.raises(ArgumentError) as error:
        kind.from_json(text)
    for words in says:
        assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_field_is_named_with_the_nearest():
    with pytest.raises(ArgumentError) as error:
        TrainConfig.from_json('{"num_stepz": 3}')
    assert str(error.value).startswith(
        "TrainConfig field is 'num_stepz'; expected one of augment, "
    )
    assert str(error.value).endswith("did you mean 'num_steps'?")
    assert "\n" not in str(error.value)


def test_override_changes_fields_of_every_depth():
    config = override(
        ExperimentConfig(),
        dataset="digits",
        optimizer="adam",
        learning_rate=0.3,
        num_steps=60,
        padding=4,
    )
    assert config == ExperimentConfig(
        dataset="digits",
        optimizer=OptimizerConfig(name="adam", learning_rate=0.3),
        train=TrainConfig(num_steps=60, augment=AugmentConfig(padding=4)),
    )
    assert override(config) == config
    assert override(config.train, padding=2, seed=1) == TrainConfig(
        num_steps=60, seed=1, augment=AugmentConfig(padding=2)
    )
    assert override(config.optimizer, momentum=0.5).name == "adam"
    assert override(AugmentConfig(), flip=True) == AugmentConfig(flip=True)
    assert override(ExperimentConfig(), name="sgd").optimizer.name == "sgd"
    # What is not changed is the same object, and the base is as it was.
    assert override(config, seed=1).optimizer is config.optimizer
    assert config.train.seed == 0


def test_override_takes_whole_sections_and_fields_within_them():
    config = override(OTHER, optimizer=OptimizerConfig("sgd", gamma=0.5), learning_rate=0.3)
    assert config.optimizer == OptimizerConfig("sgd", gamma=0.5, learning_rate=0.3)
    assert config.train == OTHER.train
    train = TrainConfig(num_steps=7)
    config = override(OTHER, train=train, augment=AugmentConfig(flip=True), padding=3, batch_size=5)
    assert config.train == TrainConfig(
        num_steps=7, batch_size=5, augment=AugmentConfig(flip=True, padding=3)
    )
    assert override(OTHER.train, augment=AugmentConfig(), flip=True).augment.flip


def test_override_sets_fields_that_depend_on_one_another_at_once():
    config = override(ExperimentConfig(), num_validation=300, eval_split="validation")
    assert (config.num_validation, config.train.eval_split) == (300, "validation")
    assert override(ExperimentConfig(), padding=4) != override(
        override(ExperimentConfig(), padding=4), crop="resized", padding=0, min_area=0.5
    )
    with pytest.raises(ArgumentError, match="none is held out"):
        override(config, num_validation=0)


@pytest.mark.parametrize(
    ("config", "name", "nearest"),
    [
        (ExperimentConfig(), "num_stepz", "num_steps"),
        (ExperimentConfig(), "learning_rat", "learning_rate"),
        (ExperimentConfig(), "pading", "padding"),
        (ExperimentConfig(), "modl_kwargs", "model_kwargs"),
        (TrainConfig(), "pading", "padding"),
        (OptimizerConfig(), "momentun", "momentum"),
        (AugmentConfig(), "flipp", "flip"),
    ],
)
def test_override_names_the_nearest_field_of_any_depth(config, name, nearest):
    with pytest.raises(ArgumentError) as error:
        override(config, **{name: 1})
    kind = type(config).__name__
    assert str(error.value).startswith(f"{kind} field is {name!r}; expected one of ")
    assert str(error.value).endswith(f"did you mean {nearest!r}?")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [
        (TrainConfig(), "learning_rate", 0.1),
        (TrainConfig(), "optimizer", "adam"),
        (OptimizerConfig(), "seed", 1),
        (OptimizerConfig(), "optimizer", 3),
        (AugmentConfig(), "num_steps", 1),
        (AugmentConfig(), "augment", AugmentConfig()),
    ],
)
def test_override_refuses_a_field_of_another_section_by_its_name(config, name, value):
    with pytest.raises(ArgumentError, match=f"{type(config).__name__} field is {name!r}"):
        override(config, **{name: value})


@pytest.mark.parametrize(
    "changes",
    [
        {"train": 3, "seed": 1},
        {"train": None, "padding": 1},
        {"optimizer": None, "learning_rate": 0.1},
        {"optimizer": TrainConfig(), "learning_rate": 0.1},
        {"augment": {"padding": 1}, "flip": True},
    ],
)
def test_override_refuses_a_wrong_section_also_with_fields_within_it(changes):
    with pytest.raises(ArgumentError, match=f"^{next(iter(changes))} is .*; expected .*Config"):
        override(ExperimentConfig(), **changes)


def test_override_sets_an_optimizers_name_once():
    with pytest.raises(ArgumentError, match="optimizer and name"):
        override(ExperimentConfig(), optimizer="adam", name="sgd")
    assert override(OptimizerConfig(), optimizer="adam") == OptimizerConfig("adam")


def test_override_refuses_what_is_no_config():
    for wrong in ({"seed": 1}, None, 3, TrainConfig):
        with pytest.raises(ArgumentError, match=r"; expected a config\. Use jaxcnn\.Exp"):
            override(wrong, seed=1)  # type: ignore[reportArgumentType]


def test_no_name_is_that_of_two_fields():
    """Else `override` could not tell which is meant."""
    names = [f.name for kind in SECTIONS for f in fields(kind)]
    assert len(set(names)) == len(names)
    assert field_names(ExperimentConfig()) == set(names)
    assert field_names(TrainConfig()) == {
        f.name for kind in (TrainConfig, AugmentConfig) for f in fields(kind)
    }


def test_a_config_cannot_be_changed_and_does_not_share_its_mappings():
    model_kwargs, method = {"width": 8, "hidden": [1, {"a": 2}]}, {"b2": 0.99}
    multipliers = {"stem": 0.5}
    config = override(
        ExperimentConfig(),
        model_kwargs=model_kwargs,
        optimizer_kwargs=method,
        lr_multipliers=multipliers,
    )
    model_kwargs["width"], method["b2"], multipliers["stem"] = 9, 0.9, 1.0
    model_kwargs["hidden"][1]["a"] = 3  # type: ignore[reportIndexIssue]
    assert config.model_kwargs == {"width": 8, "hidden": [1, {"a": 2}]}
    assert config.optimizer.optimizer_kwargs == {"b2": 0.99}
    assert config.optimizer.lr_multipliers == {"stem": 0.5}
    with pytest.raises(FrozenInstanceError):
        config.optimizer.learning_rate = 1.0  # type: ignore[reportAttributeAccessIssue]
    with pytest.raises(FrozenInstanceError):
        config.train = TrainConfig()  # type: ignore[reportAttributeAccessIssue]
    kept: Any = config.model_kwargs
    for change in (
        lambda: kept.update(width=9),
        lambda: kept.pop("width"),
        lambda: kept.__setitem__("width", 9),
        lambda: kept["hidden"].append(3),
        lambda: kept["hidden"].__setitem__(0, 3),
        lambda: kept["hidden"][1].clear(),
        lambda: config.optimizer.lr_multipliers.setdefault("head", 1.0),  # type: ignore[reportAttributeAccessIssue]
        lambda: config.optimizer.optimizer_kwargs.__delitem__("b2"),  # type: ignore[reportAttributeAccessIssue]
    ):
        with pytest.raises(TypeError, match="cannot be changed"):
            change()
    assert override(config, seed=1).model_kwargs == {"width": 8, "hidden": [1, {"a": 2}]}
    assert type(kept.copy()) is dict


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_validation", -1),
        ("num_validation", 0.1),
        ("max_train_examples", 0),
        ("max_train_examples", 1000.0),
        ("max_train_examples", True),
        ("eval_split", "train"),
        ("num_steps", 0),
        ("num_steps", 64e3),
        ("num_steps", True),
        ("num_steps", "64000"),
        ("batch_size", 0),
        ("batch_size", 128.0),
        ("order", "random"),
        ("order", None),
        ("schedule", None),
        ("schedule", 3),
        ("optimizer_kwargs", None),
        ("optimizer_kwargs", "b2"),
        ("optimizer_kwargs", {"b2": {8}}),
        ("optimizer_kwargs", {"b2": math.nan}),
        ("lr_multipliers", None),
        ("lr_multipliers", {"stem": -1}),
        ("lr_multipliers", {"stem": 0}),
        ("lr_multipliers", {"stem": 0.0}),
        ("lr_multipliers", {"stem": True}),
        ("freeze", None),
        ("freeze", "stem"),
        ("freeze", {"stem": 0}),
        ("freeze", (1,)),
        ("lr_multipliers", {"stem": math.nan}),
        ("lr_multipliers", {"stem": "slow"}),
        ("lr_multipliers", {1: 0.1}),
        ("crop", "random"),
        ("min_area", 0),
        ("min_area", 1.1),
        ("learning_rate", 0),
        ("learning_rate", -0.1),
        ("learning_rate", math.nan),
        ("learning_rate", math.inf),
        ("learning_rate", 1e39),  # infinite in float32
        ("learning_rate", "0.1"),
        ("learning_rate", None),
        ("learning_rate", True),
        ("milestones", (0,)),
        ("milestones", (48_000, 32_000)),
        ("milestones", (5, 5)),
        ("milestones", (0.5,)),
        ("milestones", (True,)),
        ("milestones", "32"),
        ("milestones", 32_000),
        ("milestones", None),
        ("gamma", 0),
        ("gamma", 1.5),
        ("gamma", math.nan),
        ("warmup_lr", 0),
        ("warmup_lr", math.inf),
        ("warmup_error", 0),
        ("warmup_error", 80),
        ("momentum", -0.1),
        ("momentum", -1e-10),
        ("momentum", 1.0),
        ("momentum", math.nan),
        ("weight_decay", -1e-4),
        ("weight_decay", -1e-10),
        ("weight_decay", math.inf),
        ("decay_mask", "kernel"),
        ("subtract_mean", "image"),
        ("subtract_mean", None),
        ("subtract_mean", True),
        ("subtract_mean", 125.3),
        ("subtract_mean", ("0.5", 0.5, 0.5)),
        ("subtract_mean", (-0.1, 0.5, 0.5)),
        ("subtract_mean", ()),
        ("divide_std", None),
        ("divide_std", "yes"),
        ("divide_std", 0.0),
        ("divide_std", (63.0, 62.1, 66.7)),
        ("divide_std", (0.2, math.nan, 0.2)),
        ("padding", -4),
        ("padding", 4.0),
        ("pad_value", "zero"),
        ("flip", "no"),
        ("recompute_batch_stats", -1),
        ("train_metrics", "augmented"),
        ("eval_every", 0),
        ("eval_every", 1.5),
        ("seed", -1),
        ("seed", 0.0),
        ("seed", None),
        ("seed", 2**32),  # JAX keeps 32 bits: the same key as seed 0
        ("dataset", None),
        ("model", 20),
        ("name", None),
        ("optimizer", None),
        ("optimizer", {"name": "adam"}),
        ("optimizer", TrainConfig()),
        ("train", None),
        ("train", {"num_steps": 3}),
        ("train", OptimizerConfig()),
        ("augment", None),
        ("augment", {"padding": 4}),
        ("augment", (4, True)),
        ("model_kwargs", None),
        ("model_kwargs", "width"),
        ("model_kwargs", {"width": {8}}),  # not JSON: the run could not be recorded
    ],
)
def test_an_impossible_value_is_refused_in_one_line_that_names_the_field(name, value):
    with pytest.raises(ArgumentError) as error:
        override(ExperimentConfig(), **{name: value})
    assert name in str(error.value).split(";")[0]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "values",
    [
        {"momentum": 0},
        {"weight_decay": 0},
        {"padding": 0},
        {"crop": "resized"},
        {"milestones": ()},
        {"milestones": [1, 2]},
        {"gamma": 1},
        {"learning_rate": 1},
        {"eval_every": 1},
        {"max_train_examples": 1},
        {"optimizer_kwargs": {"b2": 0}},
        {"lr_multipliers": {"stem": 1e-9}},
        {"freeze": ()},
        {"freeze": ["stem"]},
        {"crop": "resized", "padding": 0, "min_area": 1},
    ],
)
def test_values_at_the_edge_are_accepted(values):
    override(ExperimentConfig(), **values)


def test_reporting_on_validation_needs_images_held_out():
    with pytest.raises(
        ArgumentError, match=r"eval_split is 'validation'.*write num_validation=100"
    ):
        override(ExperimentConfig(), eval_split="validation")


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("momentun", "'momentun'; expected one of caffe, momentum; did you mean 'momentum'?"),
        ("xyz", "momentum"),
    ],
)
def test_one_of_names_the_choices_and_the_nearest(value, hint):
    with pytest.raises(ArgumentError) as error:
        check_choice("optimizer", value, ("momentum", "caffe"))
    assert str(error.value).endswith(hint)
    assert check_choice("optimizer", "caffe", ("momentum", "caffe")) == "caffe"


@pytest.mark.parametrize(
    ("values", "mend"),
    [
        ({"crop": "resized", "padding": 4}, "write padding=0"),
        ({"min_area": 0.5}, "write crop='resized' and padding=0"),
    ],
)
def test_the_two_crops_have_settings_of_their_own(values, mend):
    with pytest.raises(ArgumentError, match=mend):
        override(ExperimentConfig(), **values)


def test_a_rate_of_zero_names_what_freezes_a_stage():
    with pytest.raises(ArgumentError) as error:
        OptimizerConfig(lr_multipliers={"head": 2, "stem": 0})
    assert str(error.value) == (
        "lr_multipliers of stem is 0; expected a number above 0. "
        "Freeze the stage: TrainConfig(freeze=('stem',))."
    )


@pytest.mark.parametrize("schedule", sorted(jc.SCHEDULES))
def test_only_schedules_that_need_the_length_of_the_run_ask_for_it(schedule):
    config = OptimizerConfig(schedule=schedule)
    jc.create_optimizer(config, 10)
    if schedule in ("step", "constant"):
        jc.create_optimizer(config)
        return
    with pytest.raises(ArgumentError) as error:
        jc.create_optimizer(config)
    assert f"the schedule {schedule!r} depends on the length of the run" in str(error.value)
    assert str(error.value).endswith("Use create_optimizer(config, num_steps=1000).")


@pytest.mark.parametrize(
    ("kind", "hint"),
    [(TrainConfig, "Use config.train."), (OptimizerConfig, "Use config.optimizer.")],
)
def test_a_whole_config_where_a_section_belongs_is_told_which(kind, hint):
    with pytest.raises(ArgumentError) as error:
        verify_config(ExperimentConfig(), kind)
    assert str(error.value).startswith("config is an ExperimentConfig, ExperimentConfig(")
    assert f"{kind.__name__}. {hint}" in str(error.value)


def test_the_hint_of_a_section_is_where_it_is():
    with pytest.raises(ArgumentError, match=r"Use config\.train\.augment\.$"):
        verify_config(ExperimentConfig(), AugmentConfig)
    with pytest.raises(ArgumentError, match=r"Use config\.augment\.$"):
        verify_config(TrainConfig(), AugmentConfig)
    with pytest.raises(ArgumentError, match=r"Use jaxcnn\.ExperimentConfig\(\.\.\.\)\.$"):
        verify_config(TrainConfig(), ExperimentConfig)
    verify_config(TrainConfig(), TrainConfig)


def test_functions_that_take_a_section_say_so_of_a_whole_config():
    data, config = jc.load_dataset("digits"), ExperimentConfig(dataset="digits")
    model, tx = jc.create_model("mlp", 10), jc.create_optimizer(OptimizerConfig())
    wrong: Any = config
    for call in (
        lambda: jc.train(model, tx, data, wrong),
        lambda: jc.init_state(model, tx, wrong, data),
    ):
        with pytest.raises(ArgumentError, match=r"expected a TrainConfig\. Use config\.train\."):
            call()
    with pytest.raises(ArgumentError, match=r"expected an OptimizerConfig\. Use config\.optimizer"):
        jc.create_optimizer(wrong)


def test_numbers_of_numpy_are_pythons():
    """As in `create_model(name, labels.max() + 1)`, or a loop over `np.logspace`."""
    optimizer: Any = {"learning_rate": np.float64(0.1), "momentum": np.float32(0.5)}
    optimizer |= {"milestones": (np.int64(3), np.int32(4))}
    train: Any = {"seed": np.int64(3), "batch_size": np.uint8(8), "divide_std": np.True_}
    config = jc.ExperimentConfig(
        optimizer=jc.OptimizerConfig(**optimizer), train=jc.TrainConfig(**train)
    )
    assert config == jc.ExperimentConfig.from_json(config.to_json())
    assert config.optimizer.milestones == (3, 4)
    assert type(config.train.seed) is int
    assert config.train.divide_std is True
    num_classes: Any = np.int64(9) + 1
    model = jc.create_model("mlp", num_classes, hidden=[np.int64(4)])
    assert model == jc.create_model("mlp", 10, hidden=[4])
    wide = jc.create_model("resnet8", 10, width=np.int32(4))
    assert wide == jc.create_model("resnet8", 10, width=4)
