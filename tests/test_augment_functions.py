"""Augmentations as functions: each against its paper in NumPy, and in training on any devices."""

import functools
import json
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, stats
from scipy.special import log_softmax

import jaxcnn as jc
from jaxcnn import augment
from jaxcnn.augment.rand_augment import affine_maps, warp
from jaxcnn.input_pipeline import gather_batch, input_pipeline, pair, paired
from jaxcnn.losses import Batch
from jaxcnn.provenance import augmentation_facts

RNG = np.random.default_rng(0)
DATA = jc.load_dataset("digits")
SMALL = DATA._replace(train=DATA.train.take(np.arange(0, 1437, 15)))


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def many(function, n, image, target, *partner):
    """Results of one example with n keys."""
    return jax.jit(lambda keys: jax.vmap(lambda key: function(key, image, target, *partner))(keys))(
        keys(n)
    )


def labels(a, b):
    return jnp.int32(a), jnp.int32(b)


# ---------------------------------------------------------------- mixup


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_the_weights_of_mixup_are_of_a_beta_distribution(alpha):
    own, other = labels(3, 7)
    zero, one = jnp.zeros((2, 3, 1)), jnp.ones((2, 3, 1))
    images, targets = many(augment.mixup(alpha, 10), 4000, one, own, zero, other)
    # Image one has the weight, image zero none.
    weights = np.asarray(images)[:, 0, 0, 0].astype(np.float64)
    assert stats.kstest(weights, stats.beta(alpha, alpha).cdf).pvalue > 0.01
    np.testing.assert_array_equal(targets[:, 3], images[:, 0, 0, 0])
    assert (np.asarray(images) == np.asarray(images)[:, :1, :1]).all()


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [None, 4])
def test_mixup_is_the_papers_equation(num_classes):
    a, b = RNG.normal(size=(2, 5, 4, 3)).astype(np.float32)
    own, other = labels(1, 2) if num_classes else RNG.dirichlet(np.ones(4), 2).astype(np.float32)
    shares = np.eye(4, dtype=np.float32)[[1, 2]] if num_classes else np.stack([own, other])
    function = augment.mixup(1.0, num_classes)
    images, targets = many(function, 50, jnp.asarray(a), jnp.asarray(own), b, jnp.asarray(other))
    weight = np.asarray(
        jax.jit(jax.vmap(lambda key: jax.random.beta(key, 1.0, 1.0, dtype=jnp.float32)))(keys(50))
    )
    for image, target, w in zip(images, targets, weight.astype(np.float64), strict=True):
        np.testing.assert_allclose(image, w * a + (1 - w) * b, atol=1e-6)
        np.testing.assert_allclose(target, w * shares[0] + (1 - w) * shares[1], atol=1e-6)


# ---------------------------------------------------------------- cutmix and cutout


def pasted_box(mask):
    """Rows and columns of the box of True in a mask, which must be a full one."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    box = np.zeros_like(mask)
    box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    np.testing.assert_array_equal(mask, box)
    return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(8, 8, 1), (16, 9, 3), (5, 32, 2)])
def test_the_area_that_cutmix_pastes_is_the_share_of_the_other_target(shape):
    own, other = labels(3, 7)
    images, targets = many(
        augment.cutmix(1.0, 10), 500, jnp.zeros(shape), own, jnp.ones(shape), other
    )
    masks = np.asarray(images)[..., 0] == 1
    assert (np.asarray(images) == masks[..., None]).all()
    np.testing.assert_allclose(targets[:, 7], masks.mean((1, 2)), atol=1e-6)
    np.testing.assert_allclose(np.asarray(targets).sum(1), 1, atol=1e-6)
    for mask in masks:
        pasted_box(mask)
    assert masks.any((1, 2)).mean() > 0.8


@pytest.mark.slow
def test_cutmix_is_the_papers_code_in_numpy():
    """Box and share from the weight and the center that the key draws."""
    h, w = 12, 20
    own, other = labels(0, 1)
    images, targets = many(
        augment.cutmix(1.0, 2), 300, jnp.zeros((h, w, 1)), own, jnp.ones((h, w, 1)), other
    )
    clipped = 0

    @jax.jit
    @jax.vmap
    def drawn(key):
        weight_key, place_key = jax.random.split(key)
        return jax.random.beta(weight_key, 1.0, 1.0), jax.random.randint(place_key, (), 0, h * w)

    made = zip(*map(np.asarray, (*drawn(keys(300)), images, targets)), strict=True)
    for weight, place, image, target in made:
        weight = float(weight)
        cy, cx = divmod(int(place), w)
        cut_w, cut_h = int(w * np.sqrt(1 - weight)), int(h * np.sqrt(1 - weight))
        x1, x2 = np.clip(cx - cut_w // 2, 0, w), np.clip(cx + cut_w // 2, 0, w)
        y1, y2 = np.clip(cy - cut_h // 2, 0, h), np.clip(cy + cut_h // 2, 0, h)
        want = np.zeros((h, w))
        want[y1:y2, x1:x2] = 1
        np.testing.assert_array_equal(image[..., 0], want)
        share = 1 - (x2 - x1) * (y2 - y1) / (w * h)
        np.testing.assert_allclose(target, [share, 1 - share], atol=1e-6)
        clipped += (x2 - x1) * (y2 - y1) < (cut_w // 2 * 2) * (cut_h // 2 * 2)
    assert clipped > 50  # the clipping is tried


@pytest.mark.slow
def test_the_weight_of_cutmix_has_the_papers_area_where_nothing_is_clipped():
    """With small boxes in a large image the mean share is that of Beta(1, 1), but for the border."""
    side = 64
    own, other = labels(0, 1)
    images, _ = many(
        augment.cutmix(1.0, 2),
        3000,
        jnp.zeros((side, side, 1)),
        own,
        jnp.ones((side, side, 1)),
        other,
    )
    boxes = [pasted_box(mask) for mask in np.asarray(images)[..., 0] == 1]
    inside = [
        (y2 - y1) * (x2 - x1) / side**2
        for y1, y2, x1, x2 in filter(None, boxes)
        if min(y1, x1) > 0 and max(y2, x2) < side
    ]
    # A box of side s lies inside for (1 - s)^2 of the centers; its area s^2 is uniform.
    assert len(inside) > 300
    area = np.linspace(0, 1, 100_001)
    density = (1 - np.sqrt(area)) ** 2
    cdf = np.cumsum(density) / density.sum()
    # Sides are whole pixels, in steps of 2 of 64: areas differ by less than 2 * 2 / 64.
    dodged = np.array(inside) + RNG.uniform(0, 1, len(inside)) * 4 * np.sqrt(inside) / side
    distance = stats.kstest(dodged, lambda x: np.interp(x, area, cdf)).statistic
    assert distance < 0.08


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 4, 5, 40])
def test_cutout_is_a_square_of_zeros_around_a_uniform_center(size):
    h, w, n = 12, 10, 2400
    images, targets = many(augment.cutout(size), n, jnp.ones((h, w, 2)), jnp.int32(3))
    assert (np.asarray(targets) == 3).all()
    zero = np.asarray(images) == 0
    assert (zero == zero[..., :1]).all()
    centers = np.zeros((h, w), int)
    for key, mask in zip(keys(n), zero[..., 0], strict=True):
        y, x = divmod(int(jax.random.randint(key, (), 0, h * w)), w)
        top, left = y - size // 2, x - size // 2
        want = np.zeros((h, w), bool)
        want[max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)] = True
        np.testing.assert_array_equal(mask, want)
        centers[y, x] += 1
    assert stats.chisquare(centers.ravel()).pvalue > 0.001
    if size == 1:
        assert stats.chisquare(zero[..., 0].sum(0).ravel()).pvalue > 0.001


# ---------------------------------------------------------------- RandAugment


def reference_warp(image, matrix):
    """SciPy's resampling, channel by channel."""
    out = [
        ndimage.affine_transform(
            np.pad(image[..., c].astype(np.float64), 1), matrix[:, :2],
            # One pixel of zeros around it: SciPy does not interpolate towards the outside.
            matrix[:, 2] + 1 - matrix[:, :2] @ [1, 1] + 0 * matrix[:, 2],
            order=1, mode="constant", output_shape=tuple(np.array(image.shape[:2]) + 2),
        )[1:-1, 1:-1]
        for c in range(image.shape[-1])
    ]  # fmt: skip
    return np.stack(out, -1)


@pytest.mark.parametrize("strength", [-1.0, -0.3, 0.0, 0.5, 1.0])
def test_operations_of_rand_augment_are_scipys_resampling(strength):
    h, w = 11, 14
    image = RNG.normal(size=(h, w, 2)).astype(np.float32)
    maps = np.asarray(affine_maps(h, w, jnp.float32(strength)))
    angle = np.radians(30 * strength)
    center = np.array([(h - 1) / 2, (w - 1) / 2])
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    identity = np.eye(2)
    want = [
        (identity, [0, 0]),
        (rotation, center - rotation @ center),
        (np.array([[1, 0], [0.3 * strength, 1]]), [0, 0]),
        (np.array([[1, 0.3 * strength], [0, 1]]), [0, 0]),
        (identity, [0, strength * 150 / 331 * w]),
        (identity, [strength * 150 / 331 * h, 0]),
    ]
    assert len(want) == len(augment.OPERATIONS)
    for matrix, (linear, offset) in zip(maps, want, strict=True):
        full = np.concatenate([linear, np.reshape(offset, (2, 1))], 1)
        np.testing.assert_allclose(matrix, full, atol=1e-5)
        got = jax.jit(warp)(jnp.asarray(image), jnp.asarray(matrix))
        np.testing.assert_allclose(got, reference_warp(image, full), atol=2e-4)


def test_rotations_keep_the_center_and_whole_shifts_the_pixels():
    image = RNG.normal(size=(9, 9, 1)).astype(np.float32)
    turned = warp(jnp.asarray(image), affine_maps(9, 9, jnp.float32(1))[1])
    np.testing.assert_allclose(turned[4, 4], image[4, 4], atol=1e-5)
    shift = jnp.array([[1.0, 0.0, 2.0], [0.0, 1.0, -3.0]])
    moved = np.asarray(warp(jnp.asarray(image), shift))
    np.testing.assert_array_equal(moved[:7, 3:], image[2:, :6])
    assert (moved[7:] == 0).all()
    assert (moved[:, :3] == 0).all()


@pytest.mark.slow
def test_rand_augment_draws_operations_and_signs_with_equal_chances():
    h, w, n, magnitude = 16, 16, 6000, 10 * 331 / 150 * 3 / 16
    image = jnp.asarray(RNG.normal(size=(h, w, 1)).astype(np.float32))
    seen, targets = many(augment.rand_augment(1, magnitude), n, image, jnp.int32(5))
    assert (np.asarray(targets) == 5).all()
    candidates = np.stack(
        [
            np.asarray(warp(image, matrix))
            for sign in (-1, 1)
            for matrix in affine_maps(h, w, jnp.float32(sign * magnitude / 10))
        ]
    )
    far = np.abs(np.asarray(seen)[:, None] - candidates).max((2, 3, 4))
    assert far.min(1).max() < 1e-4
    counts = np.bincount(far.argmin(1), minlength=12)
    counts = np.array([counts[0] + counts[6], *counts[1:6], *counts[7:]])
    expected = n * np.array([2, *[1] * 10]) / 12
    assert stats.chisquare(counts, expected).pvalue > 0.001


def test_two_operations_are_applied_one_after_another():
    image = jnp.asarray(RNG.normal(size=(8, 8, 1)).astype(np.float32))
    key = jax.random.key(5)
    got, _ = augment.rand_augment(2, 7)(key, image, 0)
    want = image
    for part in jax.random.split(key, 2):
        operation_key, sign_key = jax.random.split(part)
        number = int(jax.random.randint(operation_key, (), 0, 6))
        sign = 1 if jax.random.bernoulli(sign_key) else -1
        want = warp(want, affine_maps(8, 8, jnp.float32(sign * 0.7))[number])
    np.testing.assert_allclose(got, want, atol=1e-5)


# ---------------------------------------------------------------- chain, config, names


@pytest.mark.quick_compilation
@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        jc.AugmentConfig(padding=2, flip=True),
        jc.AugmentConfig(padding=1, pad_value="reflect"),
        jc.AugmentConfig(padding=2, pad_value="black"),
        jc.AugmentConfig(crop="resized", flip=True),
    ],
    ids=lambda config: f"{config.crop}-{config.pad_value}",
)
def test_a_config_as_a_function_gives_the_images_of_the_config(config):
    normalizer = augment.make_normalizer(DATA.mean, DATA.std, divide=0.5)
    images = augment.normalize(DATA.train.images[:20], normalizer)
    function = augment.from_config(config, normalizer)
    got, targets = jax.vmap(function)(keys(20), images, jnp.arange(20))
    want = jax.vmap(partial(augment.augment, normalizer=normalizer, config=config))(
        keys(20), images
    )
    np.testing.assert_array_equal(got, want)
    assert np.asarray(targets).tolist() == list(range(20))


@pytest.mark.parametrize("pad_value", ["black", "mean"])
def test_functions_of_equal_configs_and_constants_are_one_static_argument(pad_value):
    config = jc.AugmentConfig(padding=1, pad_value=pad_value)
    constants = [augment.make_normalizer(DATA.mean + shift, DATA.std) for shift in (0, 0, 0.25)]
    # Of a run's state and of a user's own arrays.
    constants[1] = augment.Normalizer(*map(np.asarray, constants[1]))  # type: ignore[arg-type]
    one, same, other = (augment.from_config(config, normalizer) for normalizer in constants)
    traces = []

    @partial(jax.jit, static_argnums=0)
    def apply(function, image):
        traces.append(function)
        return function(jax.random.key(0), image, 0)[0]

    images = [apply(function, jnp.ones((8, 8, 1))) for function in (one, same, other)]
    assert one == same
    assert hash(one) == hash(same)
    assert one != 3
    assert augmentation_facts(one) == augmentation_facts(same)
    np.testing.assert_array_equal(images[0], images[1])
    # Other padding does not depend on the constants.
    is_black = pad_value == "black"
    assert (one != other) == is_black
    assert (augmentation_facts(one) != augmentation_facts(other)) == is_black
    assert len(traces) == 1 + is_black
    assert bool((images[0] != images[2]).any()) == is_black
    assert one != augment.from_config(jc.override(config, padding=2), constants[0])


@pytest.mark.quick_compilation
@pytest.mark.slow
def test_a_run_with_black_padding_as_a_function_is_resumed(tmp_path):
    """With the constants of its own state, which are other arrays at every call."""
    config = jc.TrainConfig(num_steps=4, batch_size=16, eval_every=2)

    def train(shift=0.0, **options):
        normalizer = augment.make_normalizer(DATA.mean + np.float32(shift), DATA.std)
        crops = jc.AugmentConfig(padding=1, pad_value="black")
        function = augment.from_config(crops, normalizer)
        return last_row(config, function, run_dir=tmp_path, **options)

    train(should_stop=lambda step: step == 2)
    assert train()["step"] == 4
    with pytest.raises(jc.ArgumentError, match=r"holds .*augment"):
        train(shift=0.25)


@pytest.mark.slow
def test_a_run_with_a_config_as_a_function_has_the_numbers_of_the_config():
    crops = jc.AugmentConfig(padding=1, flip=True)
    rows = []
    for config, function in (
        (jc.TrainConfig(num_steps=3, batch_size=16, augment=crops), None),
        (jc.TrainConfig(num_steps=3, batch_size=16), augment.from_config(crops)),
    ):
        rows.append(last_row(config, function))
    for name in ("train_loss", "eval_loss", "grad_norm"):
        assert rows[0][name] == rows[1][name], name


def test_a_chain_augments_the_partner_with_another_key():
    add = lambda rng, image, target: (image + jax.random.normal(rng, image.shape), target)  # noqa: E731
    image = jnp.zeros((4, 4, 1))

    def subtract(rng, image, target, other_image, other_target):
        return other_image - image, target

    function = augment.chain(add, subtract)
    assert augment.needs_partner(function)
    assert not augment.needs_partner(augment.chain(add, add))
    difference = function(jax.random.key(0), image, 0, image, 0)[0]
    # Two independent draws, not one twice. Both examples are augmented.
    shift = augment.chain(lambda rng, image, target: (image + 1, target), subtract)
    assert float(jnp.abs(shift(jax.random.key(0), image, 0, image, 0)[0]).max()) == 0
    assert 0.5 < float(jnp.std(difference)) < 3
    one = augment.chain(add)(jax.random.key(0), image, 0)[0]
    two = augment.chain(add, add)(jax.random.key(0), image, 0)[0]
    assert float(jnp.abs(two - one).max()) > 0
    np.testing.assert_array_equal(augment.chain()(jax.random.key(0), image, 0)[0], image)


def test_standard_augmentations():
    crop, both = jc.AugmentConfig(padding=4), jc.AugmentConfig(padding=4, flip=True)
    assert augment.standard_augmentation("cifar10") == both
    assert augment.standard_augmentation("cifar100") == both
    assert augment.standard_augmentation("svhn_cropped") == crop
    assert augment.standard_augmentation("mnist") == jc.AugmentConfig()
    assert augment.standard_augmentation("digits") == jc.AugmentConfig()
    with pytest.raises(jc.ArgumentError, match=r"'cifar11'.*did you mean 'cifar1"):
        augment.standard_augmentation("cifar11")


# ---------------------------------------------------------------- training


ONE = jc.strategy("jit", 1)
MODEL = jc.create_model("mlp", 10)
TX = jc.create_optimizer(jc.OptimizerConfig("momentum", learning_rate=0.1))
MIXED = augment.chain(
    augment.from_config(jc.AugmentConfig(padding=1)),
    augment.rand_augment(1, 5),
    augment.cutout(2),
    augment.mixup(0.5, 10),
    augment.cutmix(1.0, 10),
)


def last_row(config, function, data=SMALL, **options) -> dict[str, Any]:
    kwargs: Any = {"strategy": ONE} | options
    *_, (_, row) = jc.train(MODEL, TX, data, config, augment=function, **kwargs)
    assert row is not None
    return row


@pytest.mark.slow
@pytest.mark.quick_compilation
def test_mixing_is_the_same_on_any_devices():
    """On 1 and 8, by jit and pmap; a batch of 24 is 3 images on each of 8 devices."""
    config = jc.TrainConfig(num_steps=6, batch_size=24, eval_every=3, train_metrics="clean")
    states = []
    for strategy in (jc.strategy("jit", 1), jc.strategy("jit"), jc.strategy("pmap")):
        results = list(jc.train(MODEL, TX, SMALL, config, augment=MIXED, strategy=strategy))
        states.append((results[-1][0].params, cast(Any, results[-1][1])["grad_norm"]))
    for other in states[1:]:
        jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-6), states[0], other)
    without = last_row(config, None)
    assert abs(without["grad_norm"] - states[0][1]) > 0.01


def test_the_partner_is_the_example_before_it_in_the_whole_batch():
    order = np.arange(12, dtype=np.int32).reshape(2, 6)
    got = pair(order)
    np.testing.assert_array_equal(got.partner, [[5, 0, 1, 2, 3, 4], [11, 6, 7, 8, 9, 10]])
    pipeline = paired(input_pipeline(SMALL.train, jc.strategy("jit", 1)))
    chunks = list(pipeline.chunks(order))
    assert sum(len(chunk.own) for chunk in chunks) == 2
    rows = [gather_batch(pipeline.split, chunk.partner[0])[0] for chunk in chunks]
    assert np.concatenate(rows).tolist() == got.partner.ravel().tolist()


@pytest.mark.slow
@pytest.mark.quick_compilation
def test_streamed_images_have_the_partners_of_those_in_memory(tmp_path):
    config = jc.TrainConfig(num_steps=4, batch_size=16, eval_every=4)
    images = np.memmap(tmp_path / "images", np.uint8, "w+", shape=SMALL.train.images.shape)
    images[:] = SMALL.train.images
    streamed = SMALL._replace(train=SMALL.train._replace(images=images))
    rows = [last_row(config, MIXED, data) for data in (SMALL, streamed)]
    for name in ("train_loss", "eval_loss", "grad_norm"):
        assert rows[0][name] == rows[1][name]


@pytest.mark.quick_compilation
@pytest.mark.slow
def test_a_run_stopped_in_an_epoch_resumes_with_the_same_bits(tmp_path):
    config = jc.TrainConfig(num_steps=9, batch_size=16, eval_every=9)
    whole = list(jc.train(MODEL, TX, SMALL, config, augment=MIXED, strategy=ONE))[-1][0]
    options: Any = {"augment": MIXED, "run_dir": tmp_path / "run", "strategy": ONE}
    stopped = list(
        jc.train(MODEL, TX, SMALL, config, should_stop=lambda step: step == 4, **options)
    )
    assert int(stopped[-1][0].step) == 4
    resumed = list(jc.train(MODEL, TX, SMALL, config, **options))[-1][0]
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)


@pytest.mark.slow
def test_draws_depend_on_seed_step_and_example_alone():
    """An example has the same draws in any batch, and others at another step, seed or example."""
    draw = lambda rng, image, target: (0 * image + jax.random.uniform(rng), target)  # noqa: E731
    captured = []

    def loss(outputs, batch):
        jax.debug.callback(lambda x: captured.append(np.asarray(x)), batch.inputs[:, 0, 0, 0])
        return jnp.square(outputs).sum(-1), {}

    train_step = jax.jit(jc.make_train_step(MODEL, TX, loss=loss, augment=draw))

    def draws(index, seed=0, step=0):
        config = jc.TrainConfig(seed=seed)
        state = jc.init_state(MODEL, TX, config, SMALL, loss=loss)._replace(step=np.int32(step))
        captured.clear()
        jax.block_until_ready(train_step(state, SMALL.train, jnp.asarray(index, jnp.int32)))
        jax.effects_barrier()
        return captured[0]

    whole = draws([5, 9, 2, 7])
    np.testing.assert_array_equal(draws([7, 5, 3])[:2], whole[[3, 0]])
    assert len({*whole.tolist(), *draws([5], seed=1).tolist(), *draws([5], step=1).tolist()}) == 6


def test_the_training_error_is_against_the_larger_share():
    logits = jnp.array([[5.0, 0.0], [5.0, 0.0], [5.0, 0.0]])
    shares = jnp.array([[0.6, 0.4], [0.4, 0.6], [0.51, 0.49]])
    batch = Batch(jnp.zeros((3, 1, 1, 1)), shares)
    assert jc.create_loss("cross-entropy")(logits, batch)[1]["error"].tolist() == [
        False,
        True,
        False,
    ]


@pytest.mark.slow
def test_mixup_learns():
    config = jc.TrainConfig(num_steps=300, batch_size=64, eval_every=300)
    row = last_row(config, augment.mixup(0.2, 10), DATA)
    assert row["eval_error"] < 15
    assert row["train_loss"] > row["eval_loss"]


@pytest.mark.slow
@pytest.mark.quick_compilation
def test_a_step_of_ones_own_needs_no_pairs():
    state = jc.init_state(MODEL, TX, jc.TrainConfig(), SMALL)
    step = jax.jit(jc.make_train_step(MODEL, TX, augment=augment.mixup(0.5, 10)))
    index = np.array([4, 8, 15, 16], np.int32)
    alone = step(state, SMALL.train, jnp.asarray(index))
    both = step(state, SMALL.train, jax.tree.map(lambda x: x[0], pair(index[None])))
    jax.tree.map(np.testing.assert_array_equal, alone, both)
    mapped = jc.make_train_step(
        jc.create_model("mlp", 10), TX, augment=augment.mixup(0.5, 10), axis_name="batch"
    )
    with pytest.raises(jc.ArgumentError, match=r"only those of one device.*pair\(index\)"):
        jax.vmap(mapped, (None, None, 0), axis_name="batch")(
            state, SMALL.train, jnp.asarray(index).reshape(2, 2)
        )


def own(rng, image, target):
    return image * 2, target


@pytest.mark.slow
def test_an_own_function_is_recorded_and_another_refused(tmp_path):
    config = jc.TrainConfig(num_steps=2, batch_size=16, eval_every=1)
    folder = tmp_path / "run"
    last_row(config, own, run_dir=folder)
    assert json.loads((folder / "config.json").read_text())["augmentation"].endswith(
        "test_augment_functions.own(constants=[2])"
    )
    for function, here in ((augment.cutout(2), "cutout\\(size=2\\)"), (None, "None")):
        with pytest.raises(jc.ArgumentError, match=f"functions.own.*there, '?{here}'? here"):
            last_row(config, function, run_dir=folder)


def train_in_own_loop(folder, function):
    config = jc.ExperimentConfig(
        dataset="digits", model="mlp", optimizer=jc.OptimizerConfig("momentum", learning_rate=0.1),
        train=jc.TrainConfig(num_steps=2, batch_size=16, eval_every=1),
    )  # fmt: skip
    with jc.RunLog(folder, config) as log:
        for _, row in jc.train(MODEL, TX, SMALL, config.train, augment=function, strategy=ONE):
            log.write(**cast(Any, row))


@pytest.mark.slow
@pytest.mark.quick_compilation
def test_a_loop_of_ones_own_records_it_at_the_first_row(tmp_path):
    run = functools.partial(train_in_own_loop, tmp_path)
    run(augment.cutout(3))
    assert json.loads((tmp_path / "run.json").read_text())["augmentation"] == "cutout(size=3)"
    run(augment.cutout(3))
    with pytest.raises(
        jc.ArgumentError, match=r"augmentation is cutout\(size=3\) there and cutout\(size=4\) here"
    ):
        run(augment.cutout(4))
    with pytest.raises(jc.ArgumentError, match=r"cutout\(size=3\) there and the config's Augment"):
        run(None)


@pytest.mark.quick_compilation
@pytest.mark.slow
def test_a_folder_of_a_run_without_a_function_refuses_one(tmp_path):
    """Records that are older than the fact have no function."""
    run = functools.partial(train_in_own_loop, tmp_path)
    run(None)
    facts = json.loads((tmp_path / "run.json").read_text())
    del facts["augmentation"]
    (tmp_path / "run.json").write_text(json.dumps(facts))
    assert "augmentation" not in json.loads((tmp_path / "config.json").read_text())
    run(None)
    with pytest.raises(jc.ArgumentError, match=r"Config\(.*there and cutout\(size=4\) here"):
        run(augment.cutout(4))


@pytest.mark.slow
@pytest.mark.quick_compilation
def test_equal_functions_share_a_program_and_others_have_their_own(monkeypatch):
    from jaxcnn import training

    made = []
    monkeypatch.setattr(
        training, "make_train_step",
        lambda *args, **kwargs: made.append(kwargs["augment"]) or training_step(*args, **kwargs),
    )  # fmt: skip
    config = jc.TrainConfig(num_steps=1, batch_size=16, eval_every=1)
    rows = [last_row(config, augment.mixup(alpha, 10)) for alpha in (0.31, 0.31, 0.32)]
    assert made == [augment.mixup(0.31, 10), augment.mixup(0.32, 10)]
    assert rows[0]["train_loss"] == rows[1]["train_loss"] != rows[2]["train_loss"]


training_step = jc.make_train_step


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (augment.mixup(0.2, 9), "shares of 9 classes, and the data has 10"),
        (augment.mixup(0.2), r"mixup has no num_classes.*Write mixup\(..., num_classes="),
        (augment.cutmix, r"augment is cutmix itself.*Write augment=jaxcnn.augment.cutmix\(...\)"),
        (lambda a: a, "does not take three arguments"),
        (lambda rng, image, target: (image[1:], target), r"float32 \[7, 8, 1\]; expected float32"),
        (
            lambda rng, image, target: (image.astype(jnp.bfloat16), target),
            r"an image bfloat16 \[8, 8, 1\]; expected float32 \[8, 8, 1\]",
        ),
        (lambda rng, image, target: image, "expected a pair of an image and its target"),
        (lambda rng, image, target: ([image], target), "returned an image a list of 1"),
        (
            augment.chain(lambda rng, image, target: image, augment.mixup(0.2, 10)),
            "expected a pair of an image and its target",
        ),
        (
            augment.chain(
                lambda rng, image, target: (image[1:], target),
                lambda rng, image, target: (jnp.zeros((8, 8, 1)), target),
            ),
            r"float32 \[7, 8, 1\]; expected float32",
        ),
        (lambda rng, image, target: (image, {"a": target}), "returned a target a dict of 1"),
        (
            lambda rng, image, target: (image, target.astype(jnp.float32)),
            r"a target float32 \[\]; expected int32 \[\]",
        ),
        (jc.AugmentConfig(padding=1), "augment is an AugmentConfig; expected a function"),
        ("mixup", "augment is 'mixup'; expected a function of a key"),
        (dict, "augment is <class 'dict'>"),
    ],
)
def test_what_does_not_fit_is_one_line_when_train_is_called(function, says, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(jc.ArgumentError, match=says) as caught:
        jc.train(MODEL, TX, SMALL, jc.TrainConfig(batch_size=32), augment=function, run_dir=folder)
    assert "\n" not in str(caught.value)
    assert not folder.exists()


def test_more_that_does_not_fit():
    config = jc.TrainConfig(batch_size=32, augment=jc.AugmentConfig(padding=1))
    with pytest.raises(jc.ArgumentError, match=r"the config has AugmentConfig\(padding=1.*chain"):
        jc.train(MODEL, TX, SMALL, config, augment=augment.cutout(2))
    config = jc.TrainConfig(batch_size=1)
    with pytest.raises(jc.ArgumentError, match=r"batch_size is 1, and augment mixes"):
        jc.train(MODEL, TX, SMALL, config, augment=augment.mixup(1, 10), strategy=ONE)
    masks = np.zeros(SMALL.train.images.shape[:3], np.int32)
    masks[::2, :4] = 1
    data = SMALL._replace(
        train=jc.Split(SMALL.train.images, masks), test=jc.Split(SMALL.train.images, masks),
        classes=("a", "b"),
    )  # fmt: skip
    model = jc.create_model("unet", 2, width=2, depth=1)
    for function in (augment.rand_augment(), augment.from_config(jc.AugmentConfig(flip=True))):
        with pytest.raises(jc.ArgumentError, match="labels are masks"):
            jc.train(model, TX, data, jc.TrainConfig(batch_size=16), augment=function, strategy=ONE)


def squared_corner(outputs, batch):
    return jnp.square(outputs[:, :4] - batch.labels["boxes"]).mean(-1), {}


def test_boxes_are_not_left_where_they_are():
    """A function of the user may move them; what moves no pixel may stay."""
    boxes = {"boxes": np.zeros((len(SMALL.train.images), 4), np.float32)}
    split = jc.Split(SMALL.train.images, boxes)
    data = jc.dataset(split, split)

    def attempt(augmentation=None, **options):
        config = jc.TrainConfig(batch_size=16, augment=jc.AugmentConfig(**options))
        loss = squared_corner
        jc.train(MODEL, TX, data, config, augment=augmentation, strategy=ONE, loss=loss)

    for kind in ({"padding": 1}, {"flip": True}, {"crop": "resized"}):
        with pytest.raises(jc.ArgumentError, match="labels have boxes, which augmentation would"):
            attempt(**kind)
    with pytest.raises(jc.ArgumentError, match="labels have boxes, which rand_augment would"):
        attempt(augment.rand_augment())
    attempt(augment.cutout(2))
    attempt(lambda rng, image, target: (image[:, ::-1], target))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: augment.mixup(0, 10), "alpha is 0; expected a finite number above 0"),
        (lambda: augment.mixup(0.2, 1), "num_classes is 1"),
        (lambda: augment.cutmix(float("nan")), "alpha is nan"),
        (lambda: augment.cutout(0), "size is 0"),
        (lambda: augment.mixup(1e39, 3), "alpha is 1e\\+39; expected at most 1e\\+06"),
        (lambda: augment.rand_augment(0), "num_ops is 0"),
        (lambda: augment.rand_augment(2, 31), "magnitude is 31; expected a number from 0 to 30"),
        (lambda: augment.rand_augment(2, float("nan")), "magnitude is nan"),
        (lambda: augment.chain(cast(Any, jc.AugmentConfig())), "chain has an AugmentConfig"),
        (lambda: augment.chain(cast(Any, 3)), "augment is 3"),
        (lambda: augment.from_config(cast(Any, {"padding": 1})), "expected an AugmentConfig"),
        (
            lambda: augment.from_config(jc.AugmentConfig(padding=1, pad_value="black")),
            "pad_value is 'black'.*normalizer=state.normalizer",
        ),
    ],
)
def test_invalid_arguments_are_one_line(make, says):
    with pytest.raises(jc.ArgumentError, match=says) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.quick_compilation
@pytest.mark.slow
def test_soft_labels_of_the_data_are_mixed_and_learned():
    """Shares of classes in the data itself, as of a teacher."""

    def soft(split):
        return split._replace(labels=(np.eye(10)[split.labels] * 0.9 + 0.01).astype(np.float32))

    data = SMALL._replace(train=soft(SMALL.train), test=soft(SMALL.test))
    config = jc.TrainConfig(num_steps=60, batch_size=16, eval_every=60)
    *_, (state, row) = jc.train(MODEL, TX, data, config, augment=augment.mixup(0.2), strategy=ONE)
    assert row is not None
    # The likeliest class of a soft label is the class.
    hard = jc.evaluate(MODEL, state, SMALL.test, strategy=ONE)
    assert (hard.num_examples, hard.error_percent) == (360, row["eval_error"])
    # Chance is 90%.
    assert row["eval_error"] < 30
    logits = np.float64(jc.predict(MODEL, state, SMALL.test.images))
    losses = -(data.test.labels * log_softmax(logits, axis=1)).sum(1)
    np.testing.assert_allclose(row["eval_loss"], losses.mean(), rtol=1e-5)
    # The labels were mixed too: at step 1 the loss is that of the partners' shares.
    first = jc.override(config, num_steps=1, eval_every=1)
    plain, mixed = (last_row(first, function, data) for function in (None, augment.mixup(0.2)))
    assert abs(plain["train_loss"] - mixed["train_loss"]) > 1e-3


@pytest.mark.slow
@pytest.mark.quick_compilation
def test_the_finder_takes_an_augmentation():
    mixed, plain = (
        jc.lr_finder(
            MODEL, jc.OptimizerConfig("sgd"), SMALL, jc.TrainConfig(batch_size=32),
            augment=function, num_steps=20, strategy=jc.strategy("jit", 1),
        )
        for function in (augment.mixup(0.2, 10), None)
    )  # fmt: skip
    assert len(mixed.losses) > 5
    assert np.abs(np.subtract(mixed.losses[:5], plain.losses[:5])).min() > 1e-4
