"""Augmentations that mix two examples, or erase a part of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxcnn.arguments import ArgumentError, check_integer, check_positive
from jaxcnn.augment.functions import Augmentation

MAX_ALPHA = 1e6
"""Maximum parameter of the Beta distribution."""


def shares_of_classes(name: str, target: Any, num_classes: int | None) -> jax.Array:
    """Return the shares of the classes of a target, float32 [num_classes].

    Args:
      name: of the augmentation, for messages.
      target: the number of a class, or float32 [num_classes] already.
      num_classes: the number of classes.

    Raises:
      ArgumentError: while tracing, if the target is anything else.
    """
    if not hasattr(target, "dtype"):
        raise ArgumentError(
            f"labels are a {type(target).__name__}, which {name} cannot mix; expected the number "
            "of a class, or float32 shares of the classes. Write a function of your own."
        )
    target = jnp.asarray(target)
    if target.ndim == 1 and jnp.issubdtype(target.dtype, jnp.floating):
        return target
    if target.ndim or not jnp.issubdtype(target.dtype, jnp.integer):
        raise ArgumentError(
            f"a label is {target.dtype} {list(target.shape)}, which {name} cannot mix; expected "
            "the number of a class, or float32 shares of the classes. "
            + (
                "Write labels.astype(np.float32) for several labels of an image."
                if target.ndim
                else "Write a function of your own."
            )
        )
    if num_classes is None:
        raise ArgumentError(
            f"labels are numbers of classes, and {name} has no num_classes; expected as many as "
            f"the data has. Write {name}(..., num_classes=data.num_classes)."
        )
    return jax.nn.one_hot(target, num_classes, dtype=jnp.float32)


def _mix_targets(name, target, other, num_classes, weight) -> jax.Array:
    own, others = (shares_of_classes(name, label, num_classes) for label in (target, other))
    return weight * own + (1 - weight) * others


def _check_mixing(name: str, alpha: Any, num_classes: Any) -> tuple[float, int | None]:
    alpha = check_positive("alpha", alpha, example=1.0 if name == "cutmix" else 0.2)
    # Far larger ones have no float32, and the weight is 1/2 long before.
    if alpha > MAX_ALPHA:
        raise ArgumentError(
            f"alpha is {alpha:g}; expected at most {MAX_ALPHA:g}. Write {name}(1.0, ...)."
        )
    if num_classes is not None:
        num_classes = check_integer("num_classes", num_classes, 2, example=10)
    return alpha, num_classes


@dataclass(frozen=True)
class _Mixup:
    """Convex combination of two examples. See `mixup`."""

    alpha: float
    num_classes: int | None
    needs_partner: ClassVar[bool] = True

    def __call__(self, rng, image, target, other_image, other_target) -> tuple[Any, Any]:
        weight = jax.random.beta(rng, self.alpha, self.alpha, dtype=jnp.float32)
        mixed = weight * image + (1 - weight) * other_image
        return mixed, _mix_targets("mixup", target, other_target, self.num_classes, weight)


def mixup(alpha: float, num_classes: int | None = None) -> Augmentation:
    """Return the augmentation that mixes two images and their targets.

    With a weight from Beta(alpha, alpha), drawn for each example, the result is `weight * image +
    (1 - weight) * other_image`. The target is the same mean of the one-hot labels (Zhang et al.
    2017, arXiv:1710.09412, section 2). The paper's alpha is 1 for CIFAR and 0.2 for ImageNet.

    The training error in rows is against the class of the larger share.

    Args:
      alpha: parameter of the Beta distribution, above 0. Small ones mix little.
      num_classes: length of the targets, for integer labels. Float targets [k] need none.

    Raises:
      ArgumentError: an argument is invalid.

    Example:
      >>> function = mixup(0.2, num_classes=10)
      >>> zero, one = jnp.zeros((4, 4, 1)), jnp.ones((4, 4, 1))
      >>> image, target = function(jax.random.key(0), zero, jnp.int32(3), one, jnp.int32(7))
      >>> bool(jnp.allclose(image.mean(), target[7])), bool(jnp.allclose(target[3], 1 - target[7]))
      (True, True)
    """
    return _Mixup(*_check_mixing("mixup", alpha, num_classes))


@dataclass(frozen=True)
class _Cutmix:
    """Box of another image. See `cutmix`."""

    alpha: float
    num_classes: int | None
    needs_partner: ClassVar[bool] = True

    def __call__(self, rng, image, target, other_image, other_target) -> tuple[Any, Any]:
        weight_key, place_key = jax.random.split(rng)
        weight = jax.random.beta(weight_key, self.alpha, self.alpha, dtype=jnp.float32)
        side = jnp.sqrt(1 - weight)
        height, width = image.shape[:2]
        y, x = _uniform_pixel(place_key, height, width)
        halves = [(size * side).astype(jnp.int32) // 2 for size in (height, width)]
        box = _box(image, y - halves[0], y + halves[0], x - halves[1], x + halves[1])
        area = box.sum(dtype=jnp.int32).astype(jnp.float32)
        share = 1 - area / (height * width)
        mixed = jnp.where(box[..., None], other_image, image)
        return mixed, _mix_targets("cutmix", target, other_target, self.num_classes, share)


def cutmix(alpha: float = 1.0, num_classes: int | None = None) -> Augmentation:
    """Return the augmentation that pastes a box of another image.

    A weight is drawn from Beta(alpha, alpha) for each example. The box has 1 - weight of the area,
    the image's ratio of sides and a center that is uniform over the pixels. It is cut at the
    borders. The share of the other target is the area of what was pasted (Yun et al. 2019,
    arXiv:1905.04899, section 3.1 and appendix A). Half sides are whole pixels, as in the paper's
    code.

    The training error in rows is against the class of the larger share. The paper applies it to
    half of the batches; here every example has a box.

    Args:
      alpha: parameter of the Beta distribution, above 0. The paper's is 1.
      num_classes: length of the targets, for integer labels. Float targets [k] need none.

    Raises:
      ArgumentError: an argument is invalid.

    Example:
      >>> function = cutmix(1.0, num_classes=10)
      >>> zero, one = jnp.zeros((8, 8, 1)), jnp.ones((8, 8, 1))
      >>> image, target = function(jax.random.key(0), zero, jnp.int32(3), one, jnp.int32(7))
      >>> bool(image.mean() == target[7])
      True
    """
    return _Cutmix(*_check_mixing("cutmix", alpha, num_classes))


@dataclass(frozen=True)
class _Cutout:
    """Square of zeros. See `cutout`."""

    size: int

    def __call__(self, rng, image, target) -> tuple[Any, Any]:
        y, x = _uniform_pixel(rng, *image.shape[:2])
        top, left = y - self.size // 2, x - self.size // 2
        box = _box(image, top, top + self.size, left, left + self.size)
        return jnp.where(box[..., None], jnp.zeros_like(image), image), target


def cutout(size: int) -> Augmentation:
    """Return the augmentation that sets a square of the image to zero.

    Zero is the mean after normalization. The center of the square is uniform over the pixels, so
    parts of it may lie outside the image (DeVries and Taylor 2017, arXiv:1708.04552, section 3.2).
    The paper's size is 16 for CIFAR-10, 8 for CIFAR-100 and 20 for SVHN.

    Args:
      size: side of the square in pixels, at least 1.

    Raises:
      ArgumentError: `size` is no such number.

    Example:
      >>> image, target = cutout(16)(jax.random.key(0), jnp.ones((32, 32, 3)), 3)
      >>> 64 <= int((image == 0).all(-1).sum()) <= 256, target
      (True, 3)
    """
    return _Cutout(check_integer("size", size, example=16))


def _uniform_pixel(key: Any, height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """Return row and column of a pixel, each equally likely, int32 []."""
    flat = jax.random.randint(key, (), 0, height * width)
    return flat // width, flat % width


def _box(image: Any, top: Any, bottom: Any, left: Any, right: Any) -> jax.Array:
    """Return which pixels lie in a box, bool [h, w]. Its last row and column are excluded."""
    rows, columns = (jnp.arange(size) for size in image.shape[:2])
    return ((rows >= top) & (rows < bottom))[:, None] & ((columns >= left) & (columns < right))[
        None
    ]
