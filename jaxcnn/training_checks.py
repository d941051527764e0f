"""Checks that the pieces of a run fit together, before a step is compiled."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from jaxcnn import parallel
from jaxcnn.augment import Augmentation, as_augmentation, augmented_shapes, needs_partner
from jaxcnn.config import ArgumentError, AugmentConfig, TrainConfig
from jaxcnn.data import Dataset, verify_dataset
from jaxcnn.data.types import label_arrays, place_names
from jaxcnn.evaluation import check_norms, is_library_model, with_axis_name
from jaxcnn.losses import (
    Loss,
    Reconstruction,
    are_soft,
    as_loss,
    check_all_labels,
    check_class_numbers,
    has_class_labels,
    is_library_loss,
)
from jaxcnn.models import IMAGE_NETWORKS, Autoencoder
from jaxcnn.models.calling import batch_shapes, check_normalizer, check_once, check_outputs
from jaxcnn.models.norm import batch_moments, frozen_batch_norm, non_batch_norm_statistic
from jaxcnn.optim import config_of, trainable_params
from jaxcnn.optim.transforms import check_update, in_any_stage
from jaxcnn.state import State, normalizer_of


def check_config(
    config: TrainConfig,
    data: Dataset,
    strategy: parallel.Strategy,
    loss: str | Loss = "cross-entropy",
) -> None:
    """Check that `config` can be trained on `data` with `strategy` and `loss`.

    Nothing is compiled.

    Raises:
      ArgumentError: the config does not fit the data or the devices.
      DataError: the data are invalid.
    """
    loss = as_loss(loss)
    verify_dataset(data, are_classes=has_class_labels(loss))
    n = len(data.train.images)
    strategy.check(config.batch_size)
    if config.batch_size > n:
        count = len(strategy.devices)
        fitting = min(128, n) // count * count
        raise ArgumentError(
            f"batch_size is {config.batch_size}, more than the {n} training images; "
            + (f"write batch_size={fitting}" if fitting else f"use {n} devices at most")
        )
    _check_masks(config, data, loss)
    if isinstance(loss, Reconstruction):
        _check_count(config, data, data.train.images.shape)
    elif has_class_labels(loss):
        labels = data.train.labels
        _check_count(config, data, labels.shape[:1] if are_soft(labels) else labels.shape)
    weights = getattr(loss, "class_weights", None)
    if weights is not None and is_library_loss(loss) and len(weights) != data.num_classes:
        raise ArgumentError(
            f"class_weights has {len(weights)} numbers and the data {data.num_classes} classes; "
            "expected one for each class"
        )
    if config.order == "sorted" and not _have_one_class_each(data.train.labels):
        raise ArgumentError(
            "order is 'sorted', but the labels are not a class for each image; "
            "write order='shuffled'"
        )
    if not len(getattr(data, config.eval_split).images):
        others = [name for name in ("validation", "test") if len(getattr(data, name).images)]
        fix = f"eval_split={others[0]!r}" if others else "data = jaxcnn.hold_out(data, n, seed=0)"
        fix += "" if others else " and eval_split='validation'"
        raise ArgumentError(
            f"the {config.eval_split} split is empty; expected at least one image. Write {fix}."
        )
    # Constants of another number of channels are an error.
    jax.eval_shape(partial(normalizer_of, config, data))
    if config.recompute_batch_stats and not config.batch_size <= config.recompute_batch_stats <= n:
        raise ArgumentError(
            f"recompute_batch_stats is {config.recompute_batch_stats}; "
            f"expected {config.batch_size} (one batch) to {n} images, or 0"
        )
    if config.divide_std is True and not data.std.all():
        raise ArgumentError(
            "divide_std is True, but a channel of the training images never changes; "
            "write divide_std=False"
        )


def check_augment(
    augment: Any, config: TrainConfig, data: Dataset, loss: str | Loss = "cross-entropy"
) -> None:
    """Check that an augmentation can take the place of the config's.

    Its result for an example of the data is traced. Nothing is compiled.

    Raises:
      ArgumentError: it is no function of an example, changes a shape or a dtype, or the config has
        an augmentation of its own.
    """
    if augment is None:
        return
    if isinstance(augment, AugmentConfig):
        raise ArgumentError(
            "augment is an AugmentConfig; expected a function, or None. Write "
            "augment=jaxcnn.augment.from_config(...), or jaxcnn.override(config, augment=...)."
        )
    as_augmentation(augment)
    if config.augment != AugmentConfig():
        raise ArgumentError(
            f"augment is a function, and the config has {config.augment}; expected one of them. "
            "Write augment=jaxcnn.augment.chain(jaxcnn.augment.from_config(config.augment), "
            "function), and leave augment out of the config."
        )
    if needs_partner(augment) and config.batch_size < 2:
        raise ArgumentError(
            "batch_size is 1, and augment mixes the examples of a batch; expected at least 2. "
            "Write batch_size=128."
        )
    _, targets = augmented_shapes(augment, data.train, config.batch_size)
    labels = data.train.labels
    if not has_class_labels(as_loss(loss)) or not are_soft(targets):
        return
    num_outputs = targets.shape[-1]
    if targets.ndim != labels.ndim + (not are_soft(labels)) or num_outputs != data.num_classes:
        raise ArgumentError(
            f"augment returns shares of {num_outputs} classes, and the data has "
            f"{data.num_classes}; expected as many. Write num_classes=data.num_classes."
        )


def _have_one_class_each(labels: Any) -> bool:
    return isinstance(labels, np.ndarray) and labels.ndim == 1 and labels.dtype.kind in "iu"


def check_warmup(tx: Any, state: State) -> None:
    """Check that the loss counts the training error that a warm-up waits for.

    Raises:
      ArgumentError: it does not.
    """
    made_from = config_of(tx)
    is_waiting = made_from is not None and made_from[0].warmup_lr is not None
    if is_waiting and "error" not in state.metrics.sums:
        raise ArgumentError(
            "warmup_lr waits for the training error, which the loss does not count; expected a "
            "bool metric 'error'. Write warmup_lr=None."
        )


def check_optimizer(
    tx: optax.GradientTransformationExtraArgs,
    state: State,
    config: TrainConfig,
    strategy: parallel.Strategy,
) -> None:
    """Check that an optimizer of the user's own works, before anything is compiled.

    Raises:
      ArgumentError: its update fails, or what it returns does not fit.
    """
    if config_of(tx) is not None:
        return
    params = trainable_params(state.params, config.freeze)
    key = ("update", tx.update, config.freeze, strategy.axis_name)
    check = partial(check_update, tx, state.opt_state, params, strategy.axis_name)
    check_once(key, (state.opt_state, params), check)


def check_model(
    model: nn.Module,
    state: State,
    data: Dataset,
    config: TrainConfig,
    strategy: parallel.Strategy,
    loss: str | Loss = "cross-entropy",
    augment: Augmentation | None = None,
) -> None:
    """Check that the outputs of `model` fit the data and the loss.

    Training and test mode are both checked. Nothing is compiled.

    Raises:
      ArgumentError: they do not, the model refuses the normalization, `config.freeze` freezes
        statistics that are not of a BN, or under pmap there are such statistics that the model does
        not average.
    """
    loss = as_loss(loss)
    # The model may read the constants. They are computed again, because the state of
    # `check_pieces` has shapes only.
    if hasattr(model, "check_normalizer"):
        check_normalizer(model, normalizer_of(config, data))
    is_classifier, num_classes = has_class_labels(loss), data.num_classes
    count = getattr(model, "num_classes", num_classes)
    if is_classifier and count != num_classes:
        raise ArgumentError(
            f"the model gives {count} output{'s' * (count != 1)} and the data has {num_classes} "
            f"classes; expected as many. Build the model with {num_classes} outputs."
        )
    if config.recompute_batch_stats:
        check_norms(model, state, (config.batch_size, *data.train.images.shape[1:]))
    # A network of the library has an output for each class, and no statistics but those of BN.
    if has_known_outputs(model, data, loss):
        return
    variables = {"params": state.params, **state.model_state}
    frozen, is_frozen = config.freeze, partial(in_any_stage, stages=config.freeze)
    local_batch = config.batch_size // (len(strategy.devices) if strategy.axis_name else 1)

    def trace() -> tuple[str | None, str | None, tuple[int, ...], Any]:
        norms, frozen_norms, losses, outputs = set(), set(), None, None
        # The batch of test mode is a size that is not the number of classes.
        for train, n, axis in (
            (False, 97 + (num_classes == 97), None),
            (True, local_batch, strategy.axis_name),
        ):
            images, labels = batch_shapes(data.train, n)
            if train and augment is not None:
                images, labels = augmented_shapes(augment, data.train, n)
            with frozen_batch_norm(is_frozen, frozen_norms), batch_moments(norms):
                network = with_axis_name(model, axis)
                outputs, losses, _ = check_outputs(
                    network,
                    variables,
                    images,
                    labels,
                    loss,
                    num_classes,
                    train=train,
                    axis_name=axis,
                )
        frozen_statistic = non_batch_norm_statistic(state.model_state, frozen_norms, is_frozen)
        statistic = non_batch_norm_statistic(state.model_state, norms, lambda _: True)
        return frozen_statistic, statistic, np.shape(losses), outputs

    shapes = batch_shapes(data.train, 1)
    key = ("fit", model, frozen, local_batch, shapes, loss, num_classes, strategy.axis_name)
    key += () if augment is None else (augment,)
    frozen_statistic, statistic, losses_shape, outputs = check_once(key, variables, trace)
    _check_count(config, data, losses_shape)
    for name in ("train", config.eval_split):
        check_all_labels(loss, getattr(data, name).labels, outputs, name)
        # An augmentation may give the training images other labels.
        if augment is None or name != "train":
            check_class_numbers(loss, getattr(data, name), outputs, name)
    if statistic and strategy.axis_name and not hasattr(model, "axis_name"):
        raise ArgumentError(
            f"{type(model).__name__} has no field `axis_name`, and {statistic} is not of a "
            "BatchNorm, so under pmap it would be of one device's share only; add the field and "
            "average over that axis, or write strategy=jaxcnn.strategy('jit')"
        )
    if frozen_statistic:
        raise ArgumentError(
            f"freeze has {', '.join(frozen)}, but {frozen_statistic} is not of a BatchNorm, "
            "and would keep moving; expected flax.linen.BatchNorm or a subclass there. "
            "Leave the stage out of freeze."
        )


def has_known_outputs(model: nn.Module, data: Dataset, loss: Loss) -> bool:
    """Check if the outputs of a library model are known to fit the data and the loss.

    The library's models are tested to return what their fields say, and tracing takes seconds. What
    remains is an answer for each image where the data has one for each pixel, or vice versa.

    Args:
      model: of the library or of the user.
      data: images and labels.
      loss: function of outputs and batch.
    """
    if not is_library_model(model) or getattr(loss, "class_weights", None) is not None:
        return False
    if isinstance(loss, Reconstruction):
        return isinstance(model, Autoencoder)
    if not has_class_labels(loss):
        return False
    has_masks = data.train.labels.ndim > 1 and not are_soft(data.train.labels)
    return isinstance(model, IMAGE_NETWORKS) == has_masks


def _check_masks(config, data, loss) -> None:
    """Check that images whose labels are pixels or places are not moved.

    Changes of an image would have to be those of its mask or its boxes.
    """
    images, labels = data.train
    has_masks = not isinstance(loss, Reconstruction) and any(
        array.shape[:3] == images.shape[:3] for _, array in label_arrays(labels)
    )
    places = place_names(labels)
    augment = config.augment
    moves = augment.padding or augment.flip or augment.crop != "pad"
    if moves and (has_masks or places):
        kind = f"have {places[0]}" if places else "are masks"
        raise ArgumentError(
            f"labels {kind}, which augmentation would leave where they are; "
            "write padding=0 and flip=False, or augment= a function that moves both"
        )


def _check_count(config, data, losses: tuple[int, ...]) -> None:
    """Check that the number of losses in a row fits into int32.

    Args:
      config: of the run.
      data: images and labels.
      losses: shape [b, ...] of the losses of b images.
    """
    per_image, name = math.prod(losses[1:]), config.eval_split
    # So many images fit.
    limit = (2**31 - 1) // max(per_image, 1)
    num_train, num_eval = len(data.train.images), len(getattr(data, name).images)
    batches = config.eval_every or math.ceil(num_train / config.batch_size)
    if num_eval > limit:
        count, fix = num_eval, f"data = data._replace({name}=data.{name}.take(slice({limit})))"
    elif config.train_metrics == "clean" and num_train > limit:
        count, fix = num_train, "train_metrics='running'"
    elif batches * config.batch_size > limit:
        count, every = batches * config.batch_size, limit // config.batch_size
        fix = f"eval_every={every}" if every else f"batch_size={limit}, or smaller images"
    else:
        return
    raise ArgumentError(
        f"a row would count {per_image} answers for each of {count} images; expected less than "
        f"2^31 in all. Write {fix}."
    )
