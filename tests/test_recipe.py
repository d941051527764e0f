"""The recipe: the paper's numbers by default, JSON and back, and no impossible value gets in."""

import math
from dataclasses import FrozenInstanceError, asdict, fields, replace

import pytest

from jaxcnn.augment import AugmentConfig
from jaxcnn.recipe import ArgumentError, Recipe, check_choice

# He et al. 2015, section 4.2: 32k and 48k of 64k steps of 128 images, 45k/5k only while choosing, no division by std.
PAPER = {
    "dataset": "cifar10",
    "model": "resnet20",
    "options": {},
    "validation": 0,
    "examples": None,
    "report": "test",
    "steps": 64_000,
    "batch": 128,
    "order": "shuffled",
    "optimizer": "momentum",
    "method": {},
    "lr": 0.1,
    "loss": "cross-entropy",
    "schedule": "step",
    "stage_rates": {},
    "drops": (32_000, 48_000),
    "factor": 0.1,
    "warmup_lr": None,
    "warmup_error": 0.8,
    "momentum": 0.9,
    "decay": 1e-4,
    "decay_on": "kernels",
    "mean": "pixel",
    "std": False,
    "crop": "shift",
    "least_area": None,
    "pad": 0,
    "fill": "mean",
    "flip": False,
    "precise_bn": 0,
    "train_error": "running",
    "every": None,
    "seed": 0,
}
OTHER = Recipe(
    dataset="digits",
    model="resnet110",
    options={"width": 8, "shortcut": "B", "dtype": "bfloat16"},
    validation=5000,
    examples=1000,
    report="validation",
    order="sorted",
    optimizer="adam",
    method={"b1": 0.8, "b2": 0.99},
    schedule="cosine",
    drops=(1, 2, 3),
    warmup_lr=0.01,
    momentum=0.0,
    decay=0.0,
    stage_rates={"stem": 0, "stage1": 0.1},
    std=True,
    crop="resized",
    least_area=0.5,
    pad=0,
    flip=True,
    every=391,
    seed=2**32 - 1,
)


def test_the_defaults_are_the_papers_without_its_augmentation():
    assert asdict(Recipe()) == PAPER
    assert AugmentConfig() == AugmentConfig(pad=0, flip=False)
    assert Recipe().steps * Recipe().batch == 8_192_000  # images


@pytest.mark.parametrize("recipe", [Recipe(), OTHER], ids=["default", "other"])
def test_json_gives_back_the_same_recipe(recipe, tmp_path):
    again = Recipe.from_json(recipe.to_json())
    assert again == recipe
    assert {f.name: type(getattr(again, f.name)) for f in fields(again)} == {
        f.name: type(getattr(recipe, f.name)) for f in fields(recipe)
    }
    (tmp_path / "config.json").write_text(recipe.to_json())
    assert Recipe.load(tmp_path) == recipe


def test_channel_constants_are_stored_as_tuples():
    recipe = Recipe(mean=[0.4914, 0.4822, 0.4465], std=0.5)  # type: ignore[arg-type]
    assert (recipe.mean, recipe.std) == ((0.4914, 0.4822, 0.4465), (0.5,))
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert hash(recipe.mean) == hash((0.4914, 0.4822, 0.4465))


def test_json_of_some_fields_leaves_the_others_at_their_defaults():
    assert Recipe.from_json('{"lr": 0.5, "drops": [7]}') == Recipe(lr=0.5, drops=(7,))


def test_an_unknown_field_is_named_with_the_nearest():
    with pytest.raises(ArgumentError) as error:
        Recipe.from_json('{"stepz": 3}')
    assert str(error.value).startswith("recipe field is 'stepz'; expected one of batch, ")
    assert str(error.value).endswith("did you mean 'steps'?")
    assert "\n" not in str(error.value)


def test_a_recipe_cannot_be_changed_and_does_not_share_its_options():
    options, method = {"width": 8}, {"b2": 0.99}
    recipe = Recipe(options=options, method=method)
    options["width"], method["b2"] = 9, 0.9
    assert (recipe.options, recipe.method) == ({"width": 8}, {"b2": 0.99})
    with pytest.raises(FrozenInstanceError):
        recipe.lr = 1.0  # type: ignore[reportAttributeAccessIssue]
    assert replace(recipe, seed=1).options == {"width": 8}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("validation", -1),
        ("validation", 0.1),
        ("examples", 0),
        ("examples", 1000.0),
        ("examples", True),
        ("report", "train"),
        ("steps", 0),
        ("steps", 64e3),
        ("steps", True),
        ("steps", "64000"),
        ("batch", 0),
        ("batch", 128.0),
        ("order", "random"),
        ("order", None),
        ("schedule", None),
        ("schedule", 3),
        ("method", None),
        ("method", "b2"),
        ("method", {"b2": {8}}),
        ("method", {"b2": math.nan}),
        ("stage_rates", None),
        ("stage_rates", {"stem": -1}),
        ("stage_rates", {"stem": math.nan}),
        ("stage_rates", {"stem": "slow"}),
        ("stage_rates", {1: 0.1}),
        ("crop", "random"),
        ("least_area", 0),
        ("least_area", 1.1),
        ("lr", 0),
        ("lr", -0.1),
        ("lr", math.nan),
        ("lr", math.inf),
        ("lr", 1e39),  # infinite in float32
        ("lr", "0.1"),
        ("lr", None),
        ("lr", True),
        ("drops", (0,)),
        ("drops", (48_000, 32_000)),
        ("drops", (5, 5)),
        ("drops", (0.5,)),
        ("drops", (True,)),
        ("drops", "32"),
        ("drops", 32_000),
        ("drops", None),
        ("factor", 0),
        ("factor", 1.5),
        ("factor", math.nan),
        ("warmup_lr", 0),
        ("warmup_lr", math.inf),
        ("warmup_error", 0),
        ("warmup_error", 80),
        ("momentum", -0.1),
        ("momentum", -1e-10),
        ("momentum", 1.0),
        ("momentum", math.nan),
        ("decay", -1e-4),
        ("decay", -1e-10),
        ("decay", math.inf),
        ("decay_on", "kernel"),
        ("mean", "image"),
        ("mean", None),
        ("mean", True),
        ("mean", 125.3),
        ("mean", ("0.5", 0.5, 0.5)),
        ("mean", (-0.1, 0.5, 0.5)),
        ("mean", ()),
        ("std", None),
        ("std", "yes"),
        ("std", 0.0),
        ("std", (63.0, 62.1, 66.7)),
        ("std", (0.2, math.nan, 0.2)),
        ("pad", -4),
        ("pad", 4.0),
        ("fill", "zero"),
        ("flip", "no"),
        ("precise_bn", -1),
        ("train_error", "augmented"),
        ("every", 0),
        ("every", 1.5),
        ("seed", -1),
        ("seed", 0.0),
        ("seed", None),
        ("seed", 2**32),  # JAX keeps 32 bits: the same key as seed 0
        ("dataset", None),
        ("model", 20),
        ("optimizer", None),
        ("options", None),
        ("options", "width"),
        ("options", {"width": {8}}),  # not JSON: the run could not be recorded
    ],
)
def test_an_impossible_value_is_refused_in_one_line_that_names_the_field(name, value):
    with pytest.raises(ArgumentError) as error:
        Recipe(**{name: value})
    assert name in str(error.value).split(";")[0]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "values",
    [
        {"momentum": 0},
        {"decay": 0},
        {"pad": 0},
        {"crop": "resized"},
        {"drops": ()},
        {"drops": [1, 2]},
        {"factor": 1},
        {"lr": 1},
        {"every": 1},
        {"examples": 1},
        {"method": {"b2": 0}},
        {"stage_rates": {"stem": 0}},
        {"crop": "resized", "pad": 0, "least_area": 1},
    ],
)
def test_values_at_the_edge_are_accepted(values):
    Recipe(**values)


def test_reporting_on_validation_needs_images_held_out():
    with pytest.raises(ArgumentError, match=r"report is 'validation'.*validation=100 as well"):
        Recipe(report="validation")


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
        ({"crop": "resized", "pad": 4}, "write pad=0"),
        ({"least_area": 0.5}, "write crop='resized' and pad=0"),
    ],
)
def test_the_two_crops_have_settings_of_their_own(values, mend):
    with pytest.raises(ArgumentError, match=mend):
        Recipe(**values)
