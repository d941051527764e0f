"""Objects as an interpreter shows them: short and aligned, and no array in full."""

import jax
import numpy as np
import optax
import pytest

import jaxcnn as jc
from jaxcnn import AugmentConfig, ExperimentConfig, OptimizerConfig, TrainConfig, plots
from jaxcnn.learning_rate_finder import range_test
from jaxcnn.metrics import zeros
from jaxcnn.state import state_shapes

pytestmark = pytest.mark.usefixtures("one_device")

FULL = ExperimentConfig(
    "digits",
    model_kwargs={"width": 8},
    num_validation=100,
    optimizer=OptimizerConfig(
        "adam",
        learning_rate=1e-3,
        optimizer_kwargs={"b2": 0.99},
        lr_multipliers={"stem": 0.1, "stage1": 0.2},
    ),
    train=TrainConfig(num_steps=60, freeze=("stem",), augment=AugmentConfig(padding=1), seed=4),
)


@pytest.fixture(scope="module")
def data():
    return jc.load_dataset("digits")


@pytest.fixture(scope="module")
def state(data):
    model = jc.create_model("mlp", 10)
    return jc.init_state(model, optax.sgd(0.1, momentum=0.9), TrainConfig(), data)


def test_a_data_set_is_a_table_of_its_splits(data):
    assert repr(jc.hold_out(data, 37, seed=0)).splitlines() == [
        "Dataset digits",
        "  train       1,400 images  uint8[1400, 8, 8, 1]  labels int32[1400]",
        "  validation     37 images  uint8[37, 8, 8, 1]  labels int32[37]",
        "  test          360 images  uint8[360, 8, 8, 1]  labels int32[360]",
        "  classes     10: 0, 1, 2, 3, ..., 9",
        f"  mean        {jc.hold_out(data, 37, seed=0).mean.mean():.4g}",
        f"  std         {jc.hold_out(data, 37, seed=0).std[0]:.4g}",
    ]
    assert "  validation      0 images\n" in repr(data)


def test_names_of_a_data_set_are_cut_and_escaped(data):
    strange = data._replace(name="a\x1b[31m" + "b" * 1000, classes=("c" * 1000, "d\x07"))
    text = repr(strange)
    assert "a\\x1b[31mbbb" in text
    assert "classes     2: cccccccccccccccccccc..., d\\x07\n" in text
    assert max(map(len, text.splitlines())) < 100


def test_an_invalid_data_set_is_shown_too(data):
    broken = data._replace(train=None, classes=3)
    assert repr(broken).startswith("Dataset(name='digits', train=None, validation=Split(images=")
    assert len(repr(broken)) < 400


def test_a_split_has_dtypes_and_shapes(data):
    assert repr(data.test) == "Split(images=uint8[360, 8, 8, 1], labels=int32[360])"
    boxes = {"box": np.zeros((2, 4), np.float32), "heads": (np.zeros(2), np.zeros(2))}
    assert repr(jc.Split(data.test.images[:2], boxes)) == (
        "Split(images=uint8[2, 8, 8, 1], labels={'box': float32[2, 4], "
        "'heads': tuple(float64[2], float64[2])})"
    )


def test_a_state_has_the_sizes_of_its_trees(state):
    size, count = sum(leaf.size for leaf in jax.tree.leaves(state.params)), 6
    assert size == jc.count_parameters(jc.create_model("mlp", 10), (8, 8, 1))
    assert repr(state).splitlines() == [
        "State",
        "  step        0",
        f"  params      {size:,} values in {count} arrays, float32",
        f"  opt_state   {size:,} values in {count} arrays, float32",
        "  normalizer  Normalizer(mean=float32[8, 8, 1], std=float32[1])",
        "  metrics     Metrics(num_examples=0)",
    ]


def test_the_collections_of_a_state_are_named(data):
    model, tx = jc.create_model("plain8", 10), optax.sgd(0.1)
    names = [
        line.split()[0] for line in repr(jc.init_state(model, tx, TrainConfig(), data)).split("\n")
    ]
    assert names == ["State", "step", "params", "batch_stats", "opt_state", "normalizer", "metrics"]


def test_states_of_shapes_and_of_several_runs_are_shown(state, data):
    shapes = state_shapes(jc.create_model("mlp", 10), optax.sgd(0.1), TrainConfig(), data)
    assert "step        int32[]\n" in repr(shapes)
    several = jax.tree.map(lambda leaf: np.stack([leaf] * 3), state)
    assert "step        int32[3]\n" in repr(several)
    assert "Metrics(num_examples=int32[3], loss=float32[3]" in repr(several)
    traced = []
    jax.jit(lambda state: traced.append(repr(state)) or state.step)(state)
    assert "step        int32[]\n" in traced[0]


def test_metrics_are_means():
    sums = zeros()._replace(
        num_examples=np.int32(8), loss=np.float32(4), sums={"error": np.int32(2)}
    )
    assert repr(sums) == "Metrics(num_examples=8, mean_loss=0.5, error_percent=25)"
    assert sums.error_percent == 25
    trained = sums._replace(grad_norm=np.float32(2))
    assert repr(trained).endswith("error_percent=25, mean_grad_norm=0.25)")
    own = sums._replace(sums={"iou": np.float32(6)})
    assert repr(own) == "Metrics(num_examples=8, mean_loss=0.5, mean_iou=0.75)"
    assert repr(zeros()) == "Metrics(num_examples=0)"
    assert repr(jax.tree.map(lambda leaf: None, zeros())).startswith("Metrics(num_examples=None, ")


@pytest.mark.parametrize(
    "config",
    [
        AugmentConfig(),
        AugmentConfig(flip=True, crop="resized", min_area=0.25),
        OptimizerConfig("sgd", milestones=(), momentum=-0.0),
        TrainConfig(subtract_mean=(0.5, 0.25, 1.0), divide_std=True),
        FULL,
        FULL.optimizer,
    ],
    ids=lambda config: type(config).__name__,
)
def test_a_config_is_the_call_that_makes_it(config):
    copy = eval(repr(config))
    assert copy == config
    assert copy.to_json() == config.to_json()


def test_a_config_has_only_what_is_not_the_default():
    assert repr(TrainConfig()) == "TrainConfig()"
    config = TrainConfig(num_steps=60, augment=AugmentConfig(padding=1))
    assert repr(config) == "TrainConfig(num_steps=60, augment=AugmentConfig(padding=1))"


def test_a_long_config_has_a_line_for_each_field():
    lines = repr(FULL).splitlines()
    assert lines[:4] == [
        "ExperimentConfig(",
        "  dataset='digits',",
        "  model_kwargs={'width': 8},",
        "  num_validation=100,",
    ]
    assert "    lr_multipliers={'stem': 0.1, 'stage1': 0.2}," in lines
    assert max(map(len, lines)) <= 100


def test_a_summary_is_its_table():
    summary = jc.summary(jc.create_model("lenet5", 10), (28, 28, 1))
    assert repr(summary) == str(summary)
    assert repr(summary).splitlines()[0].split() == [
      "layer", "kind", "output", "parameters", "multiply-adds"
    ]  # fmt: skip


def test_a_range_test_has_its_rates():
    result = range_test(lambda w, rate: (w - rate * 8 * w, 4 * w * w), 1.0, low=1e-3, high=10)
    assert repr(result).startswith("LRFinderResult(rates=float64[")
    assert f"limit={result.limit}" in repr(result)


def test_a_strategy_names_its_devices():
    assert repr(jc.strategy("jit", 1)) == "Strategy('jit', 1 cpu)"


# Figures


def figure():
    return plots.panels([plots.Panel("", [plots.Line([1, 2], [3.0, 2.0])])])


def test_a_figure_is_shown_once_by_a_cell_and_not_when_it_is_assigned():
    """Pyplot shows all of its figures after a cell, and these are none of them."""
    import matplotlib.pyplot as plt

    assert figure()._repr_png_()[0].startswith(b"\x89PNG")  # pyright: ignore[reportAttributeAccessIssue]
    assert plt.get_fignums() == []
