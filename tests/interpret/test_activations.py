"""Feature maps, receptive fields and what excites a channel, against NumPy, published numbers and known optima."""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from figures import overlapping

import jaxcnn as jc
from experiments.inspect_run import channels, features
from experiments.inspect_run.context import RunContext
from jaxcnn import plots, runs
from jaxcnn.augment import Normalizer
from jaxcnn.data.types import assemble
from jaxcnn.interpret import gradcam, stage_shapes
from jaxcnn.interpret.activations import feature_maps, first_kernels, map_shapes, top_activations
from jaxcnn.interpret.feature_visualization import maximize_activation
from jaxcnn.interpret.receptive_field import ReceptiveField, receptive_fields, receptive_patch
from jaxcnn.models.layers import max_pool, pool_2x2, stage
from jaxcnn.plots.image_grid import Strip, mosaic
from jaxcnn.state import State, init_state

RNG = np.random.default_rng(0)
PARTS = features.first_filters_section, features.feature_maps_section, channels.channels_section


class Small(nn.Module):
    """A convolution of stride 2, pooling, another convolution: what a place sees can be written down."""

    num_classes: int = 3
    axis_name: str | None = None
    linear: bool = False

    @nn.compact
    def __call__(self, x, train=False, stages=False):
        seen: dict[str, jax.Array] = {}
        act = (lambda x: x) if self.linear else nn.relu
        first = nn.Conv(4, (3, 3), 2, padding=((1, 1), (1, 1)), use_bias=False, name="one")
        x = stage(self, seen, "first", act(first(x)))
        x = stage(
            self,
            seen,
            "second",
            act(nn.Conv(3, (3, 2), padding="VALID", name="two")(pool_2x2(x, jnp.max))),
        )
        x = stage(self, seen, "pool", x.mean((1, 2)))
        logits = nn.Dense(self.num_classes, name="head")(x)
        return (logits, seen) if stages else logits


class Odd(nn.Module):
    """All that a rule is for: dilation, overlapping pooling, picked pixels, branches, axes that are split and merged."""

    @nn.compact
    def __call__(self, x, train=False, stages=False):
        seen: dict[str, jax.Array] = {}
        x = jnp.pad(x, ((0, 0), (2, 1), (0, 3), (0, 0)))
        x = nn.Conv(2, (3, 2), kernel_dilation=(2, 2), padding=((2, 0), (1, 1)))(x)
        x = stage(self, seen, "dilated", max_pool(jnp.tanh(x), 3, 2, 1))
        wide = nn.Conv(2, (5, 1), padding="SAME")(x)
        x = stage(self, seen, "branches", jnp.concatenate([x, wide], -1)[:, :, 1::2])
        x = (x @ jnp.ones((4, 2))).reshape(len(x), 2, 3, x.shape[2], 2).transpose(0, 3, 1, 2, 4)
        x = stage(self, seen, "thirds", x.sum(3).transpose(0, 2, 1, 3))
        return (x, seen) if stages else x


@pytest.fixture(scope="module")
def small():
    images = np.random.default_rng(7).integers(0, 256, (7, 16, 12, 2), dtype=np.uint8)
    model, tx = Small(), jc.create_optimizer(jc.OptimizerConfig())
    return model, init_state(model, tx, jc.TrainConfig(), own_data(images)), images


def own_data(images):
    split = jc.Split(images, np.arange(7, dtype=np.int32) % 3)
    return assemble("own", split, split, (16, 12, 2), ("a", "b", "c"))


def convolved(x, kernel, stride=1, padding=0):
    """[h, w, c] with [a, b, c, k], in loops."""
    x = np.pad(x.astype(np.float64), ((padding, padding), (padding, padding), (0, 0)))
    a, b, _, k = kernel.shape
    out = np.zeros(((len(x) - a) // stride + 1, (x.shape[1] - b) // stride + 1, k))
    for i, j in np.ndindex(out.shape[:2]):
        out[i, j] = np.tensordot(
            x[i * stride : i * stride + a, j * stride : j * stride + b], kernel, 3
        )
    return out


def by_hand(state, images):
    p, found = state.params, {"first": [], "second": []}
    for image in images:
        x = np.maximum(convolved(image / 255 - state.normalizer.mean, p["one"]["kernel"], 2, 1), 0)
        found["first"].append(x)
        h, w = x.shape[0] // 2, x.shape[1] // 2
        x = x.reshape(h, 2, w, 2, -1).max((1, 3))
        found["second"].append(np.maximum(convolved(x, p["two"]["kernel"]) + p["two"]["bias"], 0))
    return {name: np.stack(maps) for name, maps in found.items()}


@pytest.mark.slow
def test_feature_maps_are_those_of_an_independent_convolution(small):
    model, state, images = small
    found = feature_maps(model, state, images, batch_size=3)
    assert list(found) == ["first", "second"]
    for name, maps in by_hand(state, images).items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], maps, rtol=0, atol=1e-5)
    assert list(feature_maps(model, state, images[:1], ["second"])) == ["second"]


def square(size, stride, first):
    return ReceptiveField((size, size), (stride, stride), (first, first))


@pytest.mark.slow
def test_fields_are_those_of_the_papers():
    """LeNet's by the formula; plain-20: 3, + 6 of 2, then of 4 and of 8; Araujo et al. 2019 have ResNet-50 at 483."""
    lenet = receptive_fields(
        jc.create_model("lenet5", 10), (28, 28, 1)
    )  # two pixels of zeros around
    assert lenet == {
        "c1": square(5, 1, -2),
        "c3": square(5 + 1 + 4 * 2, 2, -2),
        "c5": square(16 + 4 * 4, 4, -2),
    }
    sizes = 3, 3 + 6 * 2, 15 + 2 + 5 * 4, 37 + 4 + 5 * 8
    expected = [
        square(size, stride, -(size // 2)) for size, stride in zip(sizes, (1, 1, 2, 4), strict=True)
    ]
    for name in ("plain20", "resnet20"):  # shortcuts see less than what they pass
        found = receptive_fields(jc.create_model(name, 10), (32, 32, 3))
        assert found == dict(zip(("stem", "stage1", "stage2", "stage3"), expected, strict=True))
    assert receptive_fields(jc.create_model("resnet50", 10), (224, 224, 3))["stage4"].size == (
        483,
        483,
    )
    assert receptive_fields(jc.create_model("vgg16", 10), (224, 224, 3))["stage5"].size == (
        196,
        196,
    )  # 212 with the last pooling
    assert receptive_fields(jc.create_model("mlp", 10), (8, 8, 1)) == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "shape"), [(Small(linear=True), (16, 12, 2)), (Odd(), (11, 19, 2))]
)
def test_fields_are_what_a_spike_reaches(model, shape):
    """A row far above or far below all others, one of which wins every maximum, changes the places that depend on it alone."""
    variables = model.lazy_init(jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    fields = receptive_fields(model, shape)
    assert len(fields) == len(map_shapes(model, shape)) >= 2
    lines = sum(shape[:2])  # every row, then every column
    probes = np.tile(RNG.normal(size=shape).astype(np.float32), (2 * lines + 1, 1, 1, 1))
    for i in range(lines):
        at = (i,) if i < shape[0] else (slice(None), i - shape[0])
        probes[(i, *at)] += 50
        probes[(lines + i, *at)] -= 50
    _, seen = jax.jit(lambda x: model.apply(variables, x, stages=True))(probes)
    for name, field in fields.items():
        values = np.asarray(seen[name])
        changed = (np.abs(values[:-1] - values[-1]) > 1e-4).any(3)
        maps = changed[:lines] | changed[lines:]
        for axis, reached in enumerate(
            (maps[: shape[0]].any(2), maps[shape[0] :].any(1))
        ):  # [pixels, places]
            for place in range(reached.shape[1]):
                first = field.start[axis] + field.stride[axis] * place
                within = list(range(max(first, 0), min(first + field.size[axis], shape[axis])))
                assert np.flatnonzero(reached[:, place]).tolist() == within, (name, axis, place)


def test_patches_are_cut_and_filled_with_grey():
    image, field = (
        RNG.integers(0, 256, (6, 7, 3), dtype=np.uint8),
        ReceptiveField((3, 5), (2, 1), (-1, -4)),
    )
    around = np.pad(image, ((9, 9), (9, 9), (0, 0)), constant_values=128)
    for place in np.ndindex(4, 11):
        y, x = 9 - 1 + 2 * place[0], 9 - 4 + place[1]
        np.testing.assert_array_equal(
            receptive_patch(image, field, place), around[y : y + 3, x : x + 5]
        )
    tall = receptive_patch(image, ReceptiveField((8, 3), (1, 1), (-4, 0)), (2, 1))
    np.testing.assert_array_equal(tall, image[:, 1:4])


@pytest.mark.slow
def test_the_maximiser_of_a_linear_unit_is_its_kernels_sign(small):
    """With pixels in 0..1 a weighted sum is greatest where pixels are 1 under positive weights, and 0 under negative ones."""
    _, state, _ = small
    (made,) = maximize_activation(
        Small(linear=True), state, {"first": [0, 3]}, aim="centre", smooth=0, jitter=0, num_steps=80
    ).values()
    y, x = receptive_fields(Small(), (16, 12, 2))["first"].corner((4, 3))
    for image, channel in zip(made, (0, 3), strict=True):
        kernel = np.asarray(state.params["one"]["kernel"])[..., channel]
        clear = np.abs(kernel) > 0.02
        np.testing.assert_allclose(
            image[y : y + 3, x : x + 3][clear], (kernel > 0)[clear], atol=0.05
        )


@pytest.mark.slow
def test_ascent_beats_all_images_keeps_to_its_seed_and_is_smoother_where_asked(small):
    model, state, images = small
    asked = {"second": [2, 1], "first": [2]}
    made, again, calm = (
        maximize_activation(model, state, asked, smooth=weight, seed=3)
        for weight in (0.1, 0.1, 8.0)
    )
    assert list(made) == ["second", "first"]
    for name, numbers in asked.items():
        assert made[name].shape == (len(numbers), 16, 12, 2)
        assert made[name].min() >= 0
        assert made[name].max() <= 1
        np.testing.assert_array_equal(made[name], again[name])
        for i, channel in enumerate(numbers):
            tiles = np.round(255 * made[name][i : i + 1]).astype(np.uint8)
            own = feature_maps(model, state, tiles, [name])[name][..., channel].mean()
            others = feature_maps(model, state, images, [name])[name][..., channel].mean((1, 2))
            assert own > 1.3 * others.max()
        assert (
            np.abs(np.diff(calm[name], axis=1)).mean()
            < 0.5 * np.abs(np.diff(made[name], axis=1)).mean()
        )


def test_the_strongest_are_those_of_brute_force(small):
    model, state, images = small
    images = np.concatenate([images, images[2:4]])  # ties: the earlier counts
    found = top_activations(model, state, images, 4, batch_size=4)
    for name, maps in by_hand(state, images).items():
        for channel in range(maps.shape[-1]):
            peaks = maps[..., channel].max((1, 2))
            order = sorted(range(len(images)), key=lambda i: (-round(peaks[i], 5), i))[:4]
            assert found[name].images[channel].tolist() == order
            np.testing.assert_allclose(found[name].responses[channel], peaks[order], atol=1e-5)
            for i, place in zip(order, found[name].places[channel], strict=True):
                assert maps[i, place[0], place[1], channel] == pytest.approx(peaks[i], abs=1e-5)


KERNELS = {
    "lenet5": ((28, 28, 1), "c1"), "lenet5-1998": ((28, 28, 1), "c1"), "convnet": ((28, 28, 1), "conv1"),
    "autoencoder": ((28, 28, 1), "conv1"), "cifar-resnet8": ((32, 32, 3), "stem"), "preresnet20": ((32, 32, 3), "stem"),
    "vgg11-32": ((32, 32, 3), "stage1_conv1"), "alexnet-groups": ((224, 224, 3), "conv1"),
    "unet": ((32, 32, 3), "down1_conv1"), "pspnet": ((32, 32, 3), "stem"),
    "deeplabv3plus": ((32, 32, 3), "stem"), "googlenet": ((224, 224, 3), "conv1"), "resnet18": ((224, 224, 3), "stem"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_the_first_kernels_are_found_in_every_family(name):
    shape, layer = KERNELS[name]
    model = jc.create_model(name, 10)
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    shapes: Any = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
    params = jax.tree.map(
        lambda leaf: np.full(leaf.shape, np.nan, np.float32), dict(shapes["params"])
    )
    params[layer]["kernel"][:] = 7
    state: Any = blank(params, shape)
    kernels = first_kernels(model, state)
    assert kernels.shape[2] == shape[2]
    assert (kernels == 7).all()


def blank(params, shape) -> Any:
    norm = Normalizer(jnp.zeros(shape, jnp.float32), jnp.ones(shape[-1], jnp.float32))
    none: Any = ()
    return State(np.int32(0), params, {}, (), np.zeros(2, np.uint32), norm, none)


@pytest.mark.slow
def test_kernels_are_followed_through_casts_and_not_taken_from_what_meets_other_things():
    class Late(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            own = self.param("own", nn.initializers.ones, (1, 4, 4, 1))
            extra = nn.Conv(1, (3, 3), name="decoy")(own)  # sees no image
            x = nn.Conv(2, (2, 2), dtype="bfloat16", name="real")(2 * x[:, 1:] + 1)
            return x.mean() + extra.astype("bfloat16").mean()

    params = Late().init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))["params"]
    kernels = first_kernels(Late(), blank(params, (4, 4, 1)))
    np.testing.assert_array_equal(kernels, params["real"]["kernel"])
    assert kernels.dtype == np.float32


def test_mistakes_are_named_in_one_line(small):
    model, state, images = small
    mlp = jc.create_model("mlp", 3)
    tries = [
        (
            lambda: feature_maps(model, state, images, ["frist"]),
            "stage is 'frist'; expected one of first, second",
        ),
        (lambda: feature_maps(model, state, images, ["pool"]), "expected one of first, second"),
        (
            lambda: maximize_activation(model, state, {"third": [0]}),
            "expected one of first, second",
        ),
        (
            lambda: maximize_activation(model, state, {"second": [3]}),
            r"channels of second are \[3\]; expected one or more of 0 to 2",
        ),
        (
            lambda: maximize_activation(model, state, {"second": []}),
            "expected one or more of 0 to 2",
        ),
        (lambda: maximize_activation(model, state, {}), "no channels are asked for"),
        (
            lambda: maximize_activation(model, state, {"first": [0]}, aim="middle"),
            "expected one of centre, mean",
        ),
        (
            lambda: top_activations(model, state, images, 8),
            "n is 8; expected a whole number from 1 to 7",
        ),
        (
            lambda: top_activations(model, state, images, 2, ["third"]),
            "expected one of first, second",
        ),
        (lambda: feature_maps(mlp, state, images), "MLP has no stage whose output is maps"),
        (lambda: first_kernels(mlp, state), "MLP has no convolution that sees the image"),
    ]
    for call, said in tries:
        with pytest.raises(jc.ArgumentError, match=said) as error:
            call()
        assert "\n" not in str(error.value)
    for call in (
        lambda: feature_maps(model, state, images / 255),
        lambda: top_activations(model, state, images[:, :3], 1),
    ):
        with pytest.raises(jc.DataError):
            call()


WRONG_LISTS = [
    ("first", r"stages is 'first'; expected a list of names. Write stages=\['first'\]\.$"),
    ("fisrt", r"stages is 'fisrt'; expected a list of names. Write stages=\['first'\]\.$"),
    (3, r"stages is 3; expected a list of names. Write stages=\['first'\]\.$"),
]
WRONG_CHANNELS = [
    (
        "second",
        r"channels is 'second'; expected values by name. Write channels={'second': \[0\]}\.$",
    ),
    (None, r"channels is None; .* Write channels={'first': \[0\]}\.$"),
    ({"second": 0}, r"channels of second are 0; .* 0 to 2. Write channels={'second': \[0\]}\.$"),
    ({"second": "0"}, r"channels of second are '0'; .* Write channels={'second': \[0\]}\.$"),
    ({"second": np.zeros((1, 1), int)}, r"Write channels={'second': \[0\]}\.$"),
    ({"second": [0.5]}, r"channels of second are \[0.5\]; expected one or more of 0 to 2"),
    ({"second": [True]}, r"channels of second are \[True\]; expected one or more of 0 to 2"),
    ({"second": ["0"]}, r"channels of second are \['0'\]; expected one or more of 0 to 2"),
]
WRONG_NUMBERS = [
    ({"num_steps": 2.5}, r"num_steps is 2.5; .* Write num_steps=64\.$"),
    ({"num_steps": -1}, r"num_steps is -1; .* at least 0. Write num_steps=64\.$"),
    ({"jitter": 0.5}, r"jitter is 0.5; .* Write jitter=0\.$"),
    ({"jitter": -1}, r"jitter is -1; .* Write jitter=0\.$"),
    ({"smooth": "much"}, r"smooth is 'much'; .* Write smooth=3.0\.$"),
    ({"smooth": float("nan")}, r"smooth is nan; expected a finite number."),
    ({"seed": 0.5}, r"seed is 0.5; .* Write seed=0\.$"),
    ({"seed": 2**64}, r"seed is 18446744073709551616; .* Write seed=0\.$"),
]


@pytest.mark.parametrize(("stages", "said"), WRONG_LISTS)
def test_stages_that_are_no_list_are_refused(small, stages, said):
    model, state, images = small
    with pytest.raises(jc.ArgumentError, match=said):
        feature_maps(model, state, images, stages)
    with pytest.raises(jc.ArgumentError, match=said):
        top_activations(model, state, images, 1, stages)


@pytest.mark.parametrize("batch", [0, -3, 2.5, "all"])
def test_a_batch_of_no_images_is_refused(small, batch):
    model, state, images = small
    said = r"batch_size is .*; expected a whole number of at least 1. Write batch_size=100\.$"
    with pytest.raises(jc.ArgumentError, match=said):
        feature_maps(model, state, images, batch_size=batch)
    with pytest.raises(jc.ArgumentError, match=said):
        top_activations(model, state, images, 1, batch_size=batch)


@pytest.mark.parametrize(("channels", "said"), WRONG_CHANNELS)
def test_channels_that_are_no_lists_are_refused(small, channels, said):
    model, state, _ = small
    with pytest.raises(jc.ArgumentError, match=said) as error:
        maximize_activation(model, state, channels)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("options", "said"), WRONG_NUMBERS)
def test_wrong_numbers_of_the_ascent_are_refused(small, options, said):
    model, state, _ = small
    with pytest.raises(jc.ArgumentError, match=said):
        maximize_activation(model, state, {"second": [0]}, **options)


@pytest.mark.parametrize("shape", [(16, 12), (16, 12, 2.0), (16, 12, 0), 16, (1, 16, 12, 2)])
def test_a_shape_of_no_image_is_refused(shape):
    for function in (receptive_fields, stage_shapes, map_shapes):
        with pytest.raises(jc.ArgumentError, match="expected the height, width and channels"):
            function(Small(), shape)


def staged(module, x, stages):
    seen: dict[str, jax.Array] = {}
    x = stage(module, seen, "first", nn.relu(nn.Conv(4, (3, 3), name="one")(x)))
    logits = nn.Dense(3, name="head")(x.mean((1, 2)))
    return (logits, seen) if stages else logits


class FlagOfTraining(nn.Module):
    @nn.compact
    def __call__(self, x, train=False, stages=False):
        return staged(self, x, stages)


class FlagOfTestMode(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic, stages=False):
        return staged(self, x, stages)


class NoFlag(nn.Module):
    @nn.compact
    def __call__(self, x, stages=False):
        return staged(self, x, stages)


@pytest.mark.slow
@pytest.mark.parametrize("other", [FlagOfTestMode(), NoFlag()])
def test_stages_of_a_model_are_the_same_whatever_its_flag_is_called(small, other):
    _, _, images = small
    model = FlagOfTraining()
    state = init_state(model, optax.sgd(0.1), jc.TrainConfig(), own_data(images))
    for method in (feature_maps, gradcam):
        found, expected = (method(m, state, images) for m in (other, model))
        assert jax.tree.all(jax.tree.map(np.array_equal, found, expected))
    assert receptive_fields(other, (16, 12, 2)) == receptive_fields(model, (16, 12, 2))


@pytest.mark.slow
def test_a_mosaic_has_its_images_at_their_places_and_its_texts_apart():
    colour, map_ = RNG.random((5, 5, 3)), np.array([[0.0, 2.0], [4.0, np.nan]])
    strips = [
        Strip([colour, colour], "an image", ["channel 1", "channel 2"]),
        Strip([map_], "stage1\n2x2x1", limits=(0.0, 4.0), marks=[(1, 0)]),
    ]
    figure = mosaic(
        strips, heads=["left", "right"], title="Maps", note="Every map by its own range. " * 6
    )
    axis = figure.axes[0]
    assert len(axis.images) == 3
    np.testing.assert_allclose(np.asarray(axis.images[1].get_array(), float), colour)
    arrays: list[Any] = [image.get_array() for image in axis.images]
    drawn = np.asarray(arrays[2])
    np.testing.assert_allclose(drawn[..., :3][1, 1], 1)  # nan is white
    assert drawn[1, 0, 0] > drawn[0, 0, 0]
    boxes = [image.get_extent() for image in axis.images]
    assert boxes[0][1] < boxes[1][0]  # left of each other, with a gap
    assert boxes[0][2] < boxes[2][3]
    ring = np.asarray(axis.lines[0].get_xdata(), float)
    assert boxes[2][0] < ring[0] < sum(boxes[2][:2]) / 2
    assert not overlapping(figure)
    barred = mosaic([Strip([map_], limits=(0.0, 4.0))], bar="response")
    assert barred.axes[1].get_ylabel() == "response"


@pytest.mark.parametrize(
    ("strips", "options"),
    [([], {}), ([Strip([])], {}), ([Strip([np.ones(3)])], {}), ([Strip([np.ones((2, 2, 2))])], {}),
     ([Strip([np.eye(2)], "a", ["x", "y"])], {}), ([Strip([np.eye(2)], marks=[None, None])], {}),
     ([Strip([np.eye(2)])], {"bar": "response"})],
)  # fmt: skip
def test_a_mosaic_of_nothing_or_of_other_things_is_refused(strips, options):
    with pytest.raises(ValueError, match=r"expected|limits"):
        mosaic(strips, **options)


def seen(data, model, first):
    """A network at its start and after steps that double the parameters."""
    last = first._replace(
        step=np.int32(5), params=jax.tree.map(lambda x: np.float32(2) * x, first.params)
    )
    run: Any = runs.TrainedModel(
        Path("own"), jc.ExperimentConfig(), data, model, {0: first, 5: last}, []
    )
    return RunContext(
        run, data.test.images, data.test.labels, np.full((7, 3), 1 / 3), ("first", "second"), None
    )


@pytest.mark.slow
def test_the_parts_of_the_page_show_what_they_say(small, tmp_path):
    model, state, images = small
    what = seen(own_data(images), model, state)
    first, maps, wanted = (part(what) for part in PARTS)
    assert first and maps and wanted  # noqa: PT018
    assert "correlation of a filter with its own start is 1.00 at the median" in first.text
    norms = [float(row["norm, median"]) for row in first.table]
    assert norms[1] == pytest.approx(2 * norms[0], rel=0.01)
    assert [drawn.name for drawn in maps.figures] == ["features-0", "features-1"]
    names = ["channels", *(f"channels-{stage}" for stage in what.stages)]
    assert [drawn.name for drawn in wanted.figures] == names
    assert [row["stage"] for row in wanted.table] == list(what.stages)
    for drawn in (*first.figures, *maps.figures, *wanted.figures):
        plots.save(drawn.figure, tmp_path / f"{drawn.name}.png")
        assert not overlapping(drawn.figure), drawn.name
        assert drawn.alt
    own = features.feature_maps_section(what._replace(user_image=what.images[3]))
    assert own
    assert [drawn.name for drawn in own.figures] == ["features-own"]


def test_a_network_without_maps_has_no_such_parts(small):
    _, state, images = small
    what = seen(own_data(images), jc.create_model("mlp", 3), state)._replace(stages=())
    assert [part(what) for part in PARTS] == [None] * 3


def test_the_numbers_of_filters_are_what_they_are_called():
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(5, 5, 3, 400))
    assert features.low_frequency_share(noise) == pytest.approx(
        np.pi / 16, abs=0.01
    )  # the disc's share of all frequencies
    assert features.filter_statistics(noise)["energy that is grey"] == "33%"
    assert (
        features.filter_statistics(np.repeat(noise[:, :, :1], 3, 2))["energy that is grey"]
        == "100%"
    )
    checks = np.where(np.indices((6, 6)).sum(0) % 2, 1.0, -1.0)[..., None, None]
    assert features.low_frequency_share(checks) < 0.01
    np.testing.assert_allclose(features.filter_similarity(noise, -2 * noise), -1)
