"""Augmentations as functions of one example, and their application to a batch.

An augmentation is a function `(rng, image, target) -> (image, target)`. The image is normalized,
float32 [h, w, c]. The target is the image's entry of the labels, such as int32 []. A function of
five arguments, `(rng, image, target, other_image, other_target)`, also gets another example of the
batch. The keys come from the seed, the step and the example.

Those of the library are frozen dataclasses. Equal ones share what is compiled for them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn._util import bare_name
from jaxcnn.arguments import ArgumentError, accepts, check_choice, format_value
from jaxcnn.augment.images import AugmentConfig, Normalizer
from jaxcnn.augment.images import augment as augment_image
from jaxcnn.config import verify_config
from jaxcnn.data import Split
from jaxcnn.data.registry import DATASETS
from jaxcnn.data.types import place_names

Augmentation = Callable[..., tuple[Any, Any]]
"""Function of a random key, an image, its target and, if it takes one, a partner."""
_MAKERS = ("chain", "cutmix", "cutout", "from_config", "mixup", "rand_augment")
"""Functions of this package that return an augmentation."""
_CONFIG = "jaxcnn.augment.from_config(jaxcnn.AugmentConfig({}))"
_SUGGESTIONS = {bare_name(maker): f"jaxcnn.augment.{maker}(...)" for maker in _MAKERS} | {
    "crop": _CONFIG.format("padding=4"),
    "randomcrop": _CONFIG.format("padding=4"),
    "flip": _CONFIG.format("flip=True"),
    "randomflip": _CONFIG.format("flip=True"),
}
"""Names without underscores -> what to write for them."""
_EXAMPLE = "lambda rng, image, target: (image[:, ::-1], target)"


def needs_partner(function: Any) -> bool:
    """Return whether an augmentation is called with another example of the batch.

    It is if it has an attribute `needs_partner` that is true. Without one, it is if it takes five
    arguments and cannot be called with three.

    Example:
      >>> needs_partner(lambda rng, image, target, other_image, other_target: (image, target))
      True
    """
    declared = getattr(function, "needs_partner", None)
    if declared is not None:
        return bool(declared)
    return not accepts(function, 3) and accepts(function, 5)


def as_augmentation(augment: Any) -> AugmentConfig | Augmentation:
    """Return an `AugmentConfig` or an augmentation, checked.

    Raises:
      ArgumentError: it is neither, or does not take three or five arguments.

    Example:
      >>> as_augmentation(AugmentConfig(padding=4)).padding
      4
    """
    if isinstance(augment, AugmentConfig):
        return augment
    if isinstance(augment, type) or not callable(augment):
        name = bare_name(augment) if isinstance(augment, str) else ""
        suggestion = _SUGGESTIONS.get(name, _CONFIG.format("padding=4, flip=True"))
        if isinstance(augment, (list, tuple)):
            suggestion = "jaxcnn.augment.chain(function, another)"
        raise ArgumentError(
            f"augment is {format_value(augment)}; expected a function of a key, an image and its "
            f"target. Write augment={suggestion}."
        )
    function: Any = augment
    module, name = (getattr(augment, key, None) or "" for key in ("__module__", "__name__"))
    if module.startswith("jaxcnn.augment.") and name in _MAKERS:
        raise ArgumentError(
            f"augment is {name} itself, which makes an augmentation; expected its result. "
            f"Write augment=jaxcnn.augment.{name}(...)."
        )
    if not accepts(function, 5 if needs_partner(augment) else 3):
        suggestion = _EXAMPLE
        if module.startswith("jaxcnn.augment."):
            suggestion = _SUGGESTIONS.get(bare_name(name), _EXAMPLE)
        raise ArgumentError(
            f"augment is {format_value(augment)}, which does not take three arguments; expected a "
            f"function of a key, an image and its target. Write augment={suggestion}."
        )
    return function


def augment_batch(
    function: Augmentation, keys: jax.Array, images: Any, targets: Any, *partners: Any
) -> tuple[Any, Any]:
    """Apply an augmentation to each example of a batch.

    Args:
      function: the augmentation.
      keys: a key for each example, [b, ...].
      images: normalized, float32 [b, h, w, c].
      targets: an array [b, ...], or a tree of them.
      partners: other images and their targets, if the function needs them.

    Returns:
      Images float32 [b, h, w, c] and targets.

    Raises:
      ArgumentError: while tracing, if the function changes a shape or a dtype. Integer targets
        [...] may become shares of classes, float32 [..., num_classes].

    Example:
      >>> keys = jax.random.split(jax.random.key(0), 2)
      >>> images, targets = jnp.ones((2, 4, 4, 1)), jnp.arange(2)
      >>> halve = lambda rng, image, target: (image / 2, target)
      >>> float(augment_batch(halve, keys, images, targets)[0].max())
      0.5
    """
    return jax.vmap(functools.partial(_apply, function))(keys, images, targets, *partners)


def _apply(
    function: Augmentation, key: jax.Array, image: Any, target: Any, *partner: Any
) -> tuple[Any, Any]:
    """Return what an augmentation makes of one example, checked."""
    result = function(key, image, target, *partner)
    _check_result(result, image, target)
    return result


def augmented_shapes(function: Augmentation, split: Split, n: int) -> tuple[Any, Any]:
    """Return the shapes and dtypes of n augmented images and their targets.

    Nothing is computed.

    Raises:
      ArgumentError: the function changes a shape or a dtype. Errors inside a function of the
        user's are raised as they are.

    Example:
      >>> split = Split(np.zeros((9, 8, 8, 1), np.uint8), np.zeros(9, np.int32))
      >>> keep = lambda rng, image, target: (image, target)
      >>> augmented_shapes(keep, split, 4)[0].shape
      (4, 8, 8, 1)
    """
    images = jax.ShapeDtypeStruct((n, *split.images.shape[1:]), jnp.float32)
    targets = jax.tree.map(
        lambda array: jax.ShapeDtypeStruct((n, *array.shape[1:]), array.dtype), split.labels
    )
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.PRNGKey(0), n))
    partners = (images, targets) if needs_partner(function) else ()
    return jax.eval_shape(
        lambda *args: augment_batch(function, *args), keys, images, targets, *partners
    )


def _check_result(result: Any, image: Any, target: Any) -> None:
    """Check what an augmentation returned for one example."""
    if not isinstance(result, tuple) or len(result) != 2:
        raise ArgumentError(
            f"augment returned {_describe(result)}; expected a pair of an image and its target. "
            "Write return image, target."
        )
    new_image, new_target = result
    if _kind(new_image) != _kind(image):
        raise ArgumentError(
            f"augment returned an image {_describe(new_image)}; expected {_describe(image)}, as it "
            "was. Keep its size, and write image.astype(np.float32)."
        )
    old, new = jax.tree.structure(target), jax.tree.structure(new_target)
    if old != new:
        raise ArgumentError(
            f"augment returned a target {_describe(new_target)}; expected one like the labels of "
            f"the data, {_describe(target)}. Write return image, target."
        )
    for before, after in zip(jax.tree.leaves(target), jax.tree.leaves(new_target), strict=True):
        are_shares = (
            jnp.issubdtype(jnp.result_type(before), jnp.integer)
            and getattr(after, "dtype", None) == jnp.float32
            and after.shape[:-1] == np.shape(before)
            and after.ndim == np.ndim(before) + 1
        )
        if _kind(after) != _kind(before) and not are_shares:
            raise ArgumentError(
                f"augment returned a target {_describe(after)}; expected {_describe(before)}, as "
                "the data has it, or float32 shares of the classes for the number of one. "
                "Write return image, target."
            )


def _kind(value: Any) -> tuple[Any, ...]:
    return getattr(value, "shape", None), getattr(value, "dtype", None)


def _describe(value: Any) -> str:
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, (tuple, list, dict)):
        return f"a {type(value).__name__} of {len(value)}"
    return format_value(value)


def check_moves_no_mask(name: str, image: Any, target: Any) -> None:
    """Check that no target has an entry for each pixel of its image, or places in it.

    Raises:
      ArgumentError: one has, and the augmentation would not move it.
    """
    if places := place_names(target):
        raise ArgumentError(
            f"labels have {places[0]}, which {name} would leave where they are; "
            "write a function of your own that moves an image and its labels alike"
        )
    if any(np.shape(leaf)[:2] == image.shape[:2] for leaf in jax.tree.leaves(target)):
        raise ArgumentError(
            f"labels are masks, which {name} would leave where they are; "
            "write a function of your own that moves an image and its mask alike"
        )


@dataclass(frozen=True)
class _Chain:
    """Augmentations, one after another. See `chain`."""

    functions: tuple[Augmentation, ...]

    @property
    def needs_partner(self) -> bool:
        """Return whether one of the functions needs a partner."""
        return any(map(needs_partner, self.functions))

    def __call__(self, rng: Any, image: Any, target: Any, *partner: Any) -> tuple[Any, Any]:
        for number, function in enumerate(self.functions):
            key = jax.random.fold_in(rng, number)
            if needs_partner(function):
                image, target = _apply(function, key, image, target, *partner)
                continue
            if partner:
                key, partner_key = jax.random.split(key)
                partner = _apply(function, partner_key, *partner)
            image, target = _apply(function, key, image, target)
        return image, target


def chain(*functions: Augmentation) -> Augmentation:
    """Return the augmentation that applies others one after another.

    Each function has a key of its own. If one of them needs a partner, the functions before it
    are applied to the partner too, with other keys.

    Args:
      functions: augmentations. Images are not augmented if there are none.

    Raises:
      ArgumentError: one of them is no such function.

    Example:
      >>> halve = lambda rng, image, target: (image / 2, target)
      >>> image, _ = chain(halve, halve)(jax.random.key(0), jnp.ones((4, 4, 1)), 0)
      >>> float(image.max())
      0.25
    """
    for function in functions:
        if isinstance(function, AugmentConfig):
            raise ArgumentError(
                "chain has an AugmentConfig; expected functions. "
                "Write chain(jaxcnn.augment.from_config(config), ...)."
            )
        as_augmentation(function)
    return _Chain(functions)


@dataclass(frozen=True, eq=False)
class _FromConfig:
    """Crops and flips of a config. See `from_config`.

    Functions of equal configs and constants are equal.
    """

    config: AugmentConfig
    normalizer: Normalizer | None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _FromConfig) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        # Arrays are compared by their bits.
        arrays = [np.asarray(array) for array in self.normalizer or ()]
        return self.config, *((a.shape, a.dtype.str, a.tobytes()) for a in arrays)

    def __call__(self, rng: Any, image: Any, target: Any) -> tuple[Any, Any]:
        check_moves_no_mask("from_config", image, target)
        constants = self.normalizer
        if constants is None:
            # The padding is the mean color or a reflection, which need no constants.
            channels = image.shape[-1]
            constants = Normalizer(jnp.zeros((1, 1, channels)), jnp.ones(channels))
        return augment_image(rng, image, constants, self.config), target


def from_config(config: AugmentConfig, normalizer: Normalizer | None = None) -> Augmentation:
    """Return the crops and flips of an `AugmentConfig` as an augmentation.

    With the same key it gives the images of `TrainConfig(augment=config)`.

    Args:
      config: the distribution of crops and flips.
      normalizer: constants that images are normalized by, for `pad_value="black"` alone.

    Raises:
      ArgumentError: `config` is no AugmentConfig, or black padding has no normalizer.

    Example:
      >>> function = from_config(AugmentConfig(padding=1))
      >>> image, target = function(jax.random.key(0), jnp.ones((8, 8, 1)), 3)
      >>> image.shape, target
      ((8, 8, 1), 3)
    """
    verify_config(config, AugmentConfig)
    if normalizer is not None and not isinstance(normalizer, Normalizer):
        raise ArgumentError(
            f"normalizer is {format_value(normalizer)}; expected a Normalizer. "
            "Write normalizer=state.normalizer."
        )
    needs_constants = config.pad_value == "black" and config.padding > 0
    if needs_constants and normalizer is None:
        raise ArgumentError(
            "pad_value is 'black', which depends on the constants of normalization; expected them. "
            "Write from_config(config, normalizer=state.normalizer)."
        )
    # Other padding does not depend on the constants, and equal functions share a program.
    return _FromConfig(config, normalizer if needs_constants else None)


_STANDARD = {
    "digits": AugmentConfig(),
    "mnist": AugmentConfig(),
    "fashion_mnist": AugmentConfig(padding=4, flip=True),
    "cifar10": AugmentConfig(padding=4, flip=True),
    "cifar100": AugmentConfig(padding=4, flip=True),
    "svhn_cropped": AugmentConfig(padding=4, flip=False),
}


def standard_augmentation(name: str) -> AugmentConfig:
    """Return the usual augmentation of a named data set.

    - CIFAR-10 and 100: crops of the image padded by 4 pixels, and flips (He et al. 2015,
      arXiv:1512.03385, section 4.2).
    - SVHN: such crops alone, because a mirrored digit is no digit (Sohn et al. 2020,
      arXiv:2001.07685, section 2.3: shifts of up to 12.5% and no flips).
    - Fashion-MNIST: crops and flips (Zhong et al. 2017, arXiv:1708.04896, section 5.1).
    - MNIST and digits: none.

    Args:
      name: a key of `jaxcnn.DATASETS`.

    Raises:
      ArgumentError: the data set has no usual augmentation. The message has the nearest name.

    Example:
      >>> config = standard_augmentation("cifar10")
      >>> config.padding, config.flip
      (4, True)
    """
    return _STANDARD[check_choice("data set", name, _STANDARD.keys() & DATASETS.keys())]
