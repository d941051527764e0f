"""Views of images against NumPy's slices, and the odds of each against their distribution."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxcnn.augment import (
    IMAGENET_NORMALIZER,
    AugmentConfig,
    Normalizer,
    augment,
    make_normalizer,
    normalize,
    random_crop,
    random_flip,
    random_resized_crop,
)
from jaxcnn.config import ArgumentError

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (6, 8, 6, 3), dtype=np.uint8)
MEAN, STD = (
    RNG.uniform(0.2, 0.8, (8, 6, 3)).astype(np.float32),
    np.array([0.2, 0.3, 0.4], np.float32),
)
PLAIN = Normalizer(jnp.zeros((1, 1, 1)), jnp.ones(1))


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def views(images, norm, **options):
    """One view of every image, each with its own key."""
    view = partial(augment, config=AugmentConfig(**options))
    return np.asarray(jax.jit(jax.vmap(view, (0, 0, None)))(keys(len(images)), images, norm))


@pytest.mark.slow
def test_the_81_crops_and_two_flips_are_equally_likely_and_independent():
    n, side = 16_200, 17
    image = jnp.arange(side**2, dtype=jnp.float32).reshape(side, side, 1)
    seen = views(jnp.broadcast_to(image, (n, *image.shape)), PLAIN, padding=4, flip=True)[
        ..., 0
    ].astype(int)
    middle, right = (
        seen[:, 8, 8],
        seen[:, 8, 9],
    )  # never padding: the pixel 4 + y, 4 + x of the image and its neighbour
    y, x, flipped = middle // side - 4, middle % side - 4, (middle - right + 1) // 2
    counts = np.zeros((9, 9, 2), int)
    np.add.at(counts, (y, x, flipped), 1)
    assert counts.sum() == n
    assert counts.min() > 0
    assert 0.001 < stats.chisquare(counts.ravel()).pvalue < 0.999


@pytest.mark.slow
@pytest.mark.parametrize("padding", [1, 2])
@pytest.mark.parametrize("subtract", ["pixel", "channel", "none"])
@pytest.mark.parametrize("pad_value", ["mean", "black", "reflect"])
def test_a_view_is_numpys_slice_of_the_padded_image(pad_value, subtract, padding):
    scale = make_normalizer(MEAN, STD, subtract=subtract, divide=True)
    images = normalize(jnp.asarray(np.repeat(BYTES[:1], 400, 0)), scale)
    around = ((padding, padding), (padding, padding), (0, 0))
    if pad_value == "black":  # a zero byte, where the mean image is its mean over pixels
        zero = -(MEAN * (subtract != "none")).mean((0, 1)) / STD
        padded = np.stack(
            [np.pad(images[0, ..., c], padding, constant_values=zero[c]) for c in range(3)], -1
        )
    else:
        padded = np.pad(images[0], around, mode="constant" if pad_value == "mean" else "reflect")
    slices = [
        padded[y : y + 8, x : x + 6] for y in range(2 * padding + 1) for x in range(2 * padding + 1)
    ]
    far = np.abs(
        views(images, scale, padding=padding, pad_value=pad_value)[:, None] - np.stack(slices)
    ).max((2, 3, 4))
    assert far.min(1).max() < 1e-6 * np.abs(padded).max()
    assert set(far.argmin(1)) == set(range(len(slices)))  # all of them within 400 draws


@pytest.mark.slow
def test_padding_after_the_mean_is_subtracted_is_zero():
    white = normalize(jnp.full((50, 8, 6, 3), 255, jnp.uint8), make_normalizer(MEAN, STD))
    seen = views(white, make_normalizer(MEAN, STD), padding=4, pad_value="mean")
    assert 0.2 < np.mean(seen == 0) < 0.8
    assert seen[seen != 0].min() == white.min() > 0  # nothing else is near


def test_every_image_has_its_own_crop():
    image = jnp.arange(289, dtype=jnp.float32).reshape(17, 17, 1)
    seen = views(jnp.broadcast_to(image, (40, 17, 17, 1)), PLAIN, padding=4)
    assert len(np.unique(seen[:, 8, 8])) > 20


@pytest.mark.slow
def test_a_batch_is_the_same_as_its_images_one_by_one():
    scale = make_normalizer(MEAN, STD, divide=True)
    images = normalize(jnp.asarray(BYTES), scale)
    view = jax.jit(partial(augment, config=AugmentConfig(padding=2, pad_value="black", flip=True)))
    alone = [view(key, image, scale) for key, image in zip(keys(len(images)), images, strict=True)]
    np.testing.assert_array_equal(
        views(images, scale, padding=2, pad_value="black", flip=True), np.stack(alone)
    )


def test_without_crop_and_flip_the_view_is_the_image():
    images = normalize(jnp.asarray(BYTES), PLAIN)
    np.testing.assert_array_equal(views(images, PLAIN), images)
    np.testing.assert_array_equal(
        random_crop(jax.random.key(0), images[0], 0, jnp.zeros(3)), images[0]
    )


def test_flip_mirrors_left_and_right_half_of_the_time():
    n, image = 10_000, jnp.arange(12.0).reshape(2, 3, 2)
    seen = np.asarray(jax.vmap(random_flip, (0, None))(keys(n, seed=1), image))
    mirrored = (seen == np.asarray(image)[:, ::-1]).all((1, 2, 3))
    assert (mirrored | (seen == np.asarray(image)).all((1, 2, 3))).all()
    assert mirrored.mean() == pytest.approx(0.5, abs=4 * 0.5 / n**0.5)


@pytest.mark.parametrize("divide", [False, True])
@pytest.mark.parametrize(
    ("subtract", "mean"),
    [("pixel", MEAN), ("channel", MEAN.mean((0, 1), dtype=np.float64)), ("none", np.zeros(3))],
)
def test_normalise_subtracts_and_divides_what_it_is_told(subtract, mean, divide):
    want = (BYTES / 255 - mean) / (STD if divide else 1)
    scale = make_normalizer(MEAN, STD, subtract=subtract, divide=divide)
    assert (scale.mean.shape, scale.std.shape) == (MEAN.shape, STD.shape)
    for images, expected in ((BYTES, want), (BYTES[0], want[0])):
        got = normalize(jnp.asarray(images), scale)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


def test_an_unknown_mean_is_refused():
    with pytest.raises(ArgumentError, match=r"subtract_mean is 'pixels'.*did you mean 'pixel'"):
        make_normalizer(MEAN, STD, subtract="pixels")


def test_imagenets_means_are_the_published_ones_and_need_three_channels():
    scale = make_normalizer(MEAN, STD, subtract="imagenet", divide=True)
    want = (BYTES / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(normalize(jnp.asarray(BYTES), scale), want, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(
        IMAGENET_NORMALIZER.mean, np.array([0.485, 0.456, 0.406], np.float32)
    )
    with pytest.raises(
        ArgumentError, match=r"of 3 channels, but images have 1; write subtract_mean='channel'"
    ):
        make_normalizer(MEAN[..., :1], STD[:1], subtract="imagenet")


def parts(n, least, h=60, w=40):
    """(y, x, height, width) in pixels of `n` resized crops: on two ramps they are straight lines to read off."""
    y, x = np.mgrid[:h, :w].astype(np.float32)
    ramps = jnp.broadcast_to(jnp.stack([jnp.asarray(y), jnp.asarray(x)], -1), (n, h, w, 2))
    seen = np.asarray(
        jax.jit(jax.vmap(partial(random_resized_crop, min_area=least)))(keys(n), ramps)
    )
    down, across = seen[:, :, w // 2, 0], seen[:, h // 2, :, 1]
    height = (
        (down[:, h // 2 + 5] - down[:, h // 2 - 5]) / 10 * h
    )  # the middle, far from the image's own borders
    width = (across[:, w // 2 + 5] - across[:, w // 2 - 5]) / 10 * w
    # Pixel i of a view is at corner + (i + 1/2) part/whole - 1/2 of the image.
    top = down[:, h // 2] + 0.5 - (h // 2 + 0.5) * height / h
    left = across[:, w // 2] + 0.5 - (w // 2 + 0.5) * width / w
    return top, left, height, width


@pytest.mark.slow
def test_resized_crops_have_the_papers_areas_and_ratios_and_lie_inside():
    n, least = 4000, 0.08
    y, x, height, width = parts(n, least)
    assert (height <= 60 * 1.001).all()
    assert (width <= 40 * 1.001).all()
    assert min(y.min(), x.min()) > -0.1
    assert (y + height < 60.1).all()
    assert (x + width < 40.1).all()
    whole = (height < 59) & (width < 39)  # neither side was cut
    area, ratio = (height * width / 2400)[whole], (width / height)[whole]
    assert (least * 0.99 < area).all()
    assert (ratio > 0.749).all()
    assert (ratio < 1.335).all()
    small = area < 0.4  # no ratio sticks out there: 40^2 / 2400 * 3/4 > 0.4
    assert stats.kstest((area[small] - least) / (0.4 - least), "uniform").pvalue > 0.001
    assert stats.kstest(np.log(ratio[small]) / np.log(4 / 3) / 2 + 0.5, "uniform").pvalue > 0.001


@pytest.mark.slow
def test_a_resized_crop_of_the_whole_is_the_image_and_keeps_constants():
    images = normalize(jnp.asarray(BYTES), PLAIN)
    square = jnp.asarray(RNG.uniform(size=(1, 9, 9, 1)).astype(np.float32))
    flat = jnp.full_like(images, 0.3)
    np.testing.assert_allclose(views(flat, PLAIN, crop="resized"), flat, atol=1e-6)
    near = np.asarray(jax.vmap(partial(random_resized_crop, min_area=1.0))(keys(1), square))
    assert near.shape == square.shape


def test_channel_constants_of_the_users_own():
    """One number a channel, or one for all, on either side; they are independent of each other."""
    own, scales = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.262)
    got = normalize(jnp.asarray(BYTES), make_normalizer(MEAN, STD, subtract=own, divide=scales))
    np.testing.assert_allclose(got, (BYTES / 255 - own) / np.array(scales), rtol=0, atol=1e-5)
    got = normalize(jnp.asarray(BYTES), make_normalizer(MEAN, STD, subtract=0.5, divide=(0.25,)))
    np.testing.assert_allclose(got, (BYTES / 255 - 0.5) / 0.25, rtol=0, atol=1e-5)
    got = normalize(jnp.asarray(BYTES), make_normalizer(MEAN, STD, subtract=own, divide=True))
    np.testing.assert_allclose(got, (BYTES / 255 - own) / STD, rtol=0, atol=1e-5)
    got = normalize(
        jnp.asarray(BYTES), make_normalizer(MEAN, STD, subtract="channel", divide=scales)
    )
    np.testing.assert_allclose(
        got, (BYTES / 255 - MEAN.mean((0, 1))) / np.array(scales), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"subtract": (0.5, 0.5)},
            r"subtract_mean has 2 numbers, but images have 3 channels.*Use subtract_mean=\(0.5, 0.5, 0.5\)",
        ),
        ({"divide": (0.5, 0.5, 0.5, 0.5)}, r"std has 4 numbers, but images have 3 channels"),
        (
            {"subtract": (125.3, 123.0, 113.9)},
            r"mean is \(125.3, 123.0, 113.9\); .*Divide them by 255\.",
        ),
        (
            {"divide": (0.2, 0.0, 0.2)},
            r"std is \(0.2, 0.0, 0.2\); expected True, False or numbers above 0",
        ),
        ({"subtract": (0.5, float("nan"), 0.5)}, r"subtract_mean is .*Use subtract_mean="),
        ({"subtract": ()}, r"mean is \(\)"),
    ],
)
def test_channel_constants_that_do_not_fit(settings, says):
    with pytest.raises(ArgumentError, match=says) as caught:
        make_normalizer(MEAN, STD, **settings)
    assert "\n" not in str(caught.value)
