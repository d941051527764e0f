"""Lines of digits, whose text is known."""

from __future__ import annotations

import numpy as np
from PIL import Image

import jaxcnn as jc
from experiments.scenes.parts import bounding_box, resized_shape

HEIGHT, WIDTH = 32, 128
"""Of the image of a line, pixels."""
MAX_LENGTH = 8
"""Most digits of a line."""
SIZES = (14, 26)
"""Least and greatest mean side of the squares that a line's digits are resized to, pixels."""
JITTER = 2
"""Greatest differences of a digit's size and height from those of its line, pixels."""
GAPS = (-1, 6)
"""Least and greatest number of columns between two digits."""
MAX_INK, MIN_BACKGROUND = 110, 120
"""Greatest value of ink, and least value of a background, of 255."""


def texture_strip(texture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a random strip of a texture, uint8 [HEIGHT, WIDTH, 3], zoomed and mirrored or not.

    Args:
      texture: uint8 [h, w, 3], at least as large as the strip.
      rng: draws the part.
    """
    limits = texture.shape[0] / HEIGHT, texture.shape[1] / WIDTH
    zoom = rng.uniform(1, min(*limits, 4))
    height, width = int(zoom * HEIGHT), int(zoom * WIDTH)
    y = int(rng.integers(0, texture.shape[0] - height + 1))
    x = int(rng.integers(0, texture.shape[1] - width + 1))
    part = texture[y : y + height, x : x + width][:, :: int(rng.choice([-1, 1]))]
    image = Image.fromarray(np.ascontiguousarray(part))
    return np.asarray(image.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR))


def surfaces(textures: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return images of a background and of ink, uint8 [HEIGHT, WIDTH, 3] each.

    Half of them are plain. Ink is darker than its background in every channel of every pixel, so
    that each line can be read.

    Args:
      textures: uint8 [2, h, w, 3]: of backgrounds, and of ink.
      rng: draws colors and parts of textures.
    """
    if rng.random() < 0.5:
        light, dark = (np.tile(rng.integers(0, 256, 3), (HEIGHT, WIDTH, 1)) for _ in range(2))
    else:
        light, dark = (texture_strip(texture, rng).astype(int) for texture in textures)
    background = 255 - (255 - light) * (255 - MIN_BACKGROUND) // 255
    return background.astype(np.uint8), (dark * MAX_INK // 255).astype(np.uint8)


def placed_shapes(
    digits: jc.Split, index: np.ndarray, rng: np.random.Generator
) -> list[tuple[int, int, np.ndarray]]:
    """Return row, column and pixels of each digit of a line, from the left.

    Digits that do not fit into the line get smaller, and so do their gaps.

    Args:
      digits: images [n, h, w, 1].
      index: the digits of the line, at most `MAX_LENGTH`.
      rng: draws sizes, gaps and heights.

    Returns:
      A list of (row, column, bool [h, w]).
    """
    size, widest = int(rng.integers(SIZES[0], SIZES[1] + 1)), GAPS[1]
    while True:
        shapes = []
        for i in index:
            side = size + int(rng.integers(-JITTER, JITTER + 1))
            shape = resized_shape(digits.images[i, ..., 0], side)
            x1, y1, x2, y2 = bounding_box(shape)
            shapes.append(shape[y1:y2, x1:x2])
        gaps = rng.integers(GAPS[0], widest + 1, len(index))
        gaps[0] = 0
        free = WIDTH - sum(shape.shape[1] for shape in shapes) - int(gaps.sum())
        if free >= 0:
            break
        size, widest = size - 1, max(0, widest - 1)
    column, placed = int(rng.integers(0, free + 1)), []
    highest = max(shape.shape[0] for shape in shapes)
    middle = int(rng.integers(highest // 2, HEIGHT - highest // 2 + 1))
    for gap, shape in zip(gaps, shapes, strict=True):
        column += int(gap)
        height, width = shape.shape
        row = middle - height // 2 + int(rng.integers(-JITTER, JITTER + 1))
        placed.append((int(np.clip(row, 0, HEIGHT - height)), column, shape))
        column += width
    return placed


def compose_lines(digits: jc.Split, n: int, textures: np.ndarray, seed: int) -> jc.Split:
    """Return `n` lines, each with one to `MAX_LENGTH` digits drawn at random.

    Args:
      digits: images [m, h, w, 1], bright on dark, and their classes.
      n: number of lines.
      textures: uint8 [2, h, w, 3]: of backgrounds, and of digits.
      seed: draws all of it.

    Returns:
      Images uint8 [n, HEIGHT, WIDTH, 3], and as labels the digits from the left, int32
      [n, MAX_LENGTH], padded with -1.
    """
    rng = np.random.default_rng(seed)
    images = np.zeros((n, HEIGHT, WIDTH, 3), np.uint8)
    labels = np.full((n, MAX_LENGTH), -1, np.int32)
    for line in range(n):
        index = rng.integers(0, len(digits.labels), int(rng.integers(1, MAX_LENGTH + 1)))
        placed = placed_shapes(digits, index, rng)
        background, ink = surfaces(textures, rng)
        mask = np.zeros((HEIGHT, WIDTH), bool)
        for row, column, shape in placed:
            mask[row : row + shape.shape[0], column : column + shape.shape[1]] |= shape
        images[line] = np.where(mask[..., None], ink, background)
        labels[line, : len(index)] = digits.labels[index]
    return jc.Split(images, labels)
