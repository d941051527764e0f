"""Names of the scripts' options: groups and descriptions in `--help`, and bounds of integers."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from jaxcnn import cli

T = TypeVar("T")
GROUPS: dict[str, tuple[str, ...]] = {
    "model": (
        *("width", "widths", "hidden", "depth", "code", "shortcut", "bn_group", "kernel_init"),
        *("dropout", "freeze", "shortcut_padding", "convolutions"),
    ),
    "optimizer": (
        *("optimizer", "schedule", "momentum", "milestones", "warmup_depth", "warmup_lr"),
        *("weight_decay", "decoupled_decay", "decay_mask", "ema_decay", "lr_1998", "bias_rate"),
        *("backbone_rate", "class_weight", "smoothing", "whitening_epochs", "whitening_images"),
        *("optimizers", "lowest_rate", "highest_rate"),
    ),
    "images and augmentation": (
        *("subtract_mean", "divide_std", "size", "resize", "interpolation", "crop", "min_area"),
        *("padding", "paddings", "pad_value", "flip", "translate", "skip_broken"),
    ),
    "evaluation": (
        *("validation", "num_validation", "test", "eval_split", "eval_every", "epoch"),
        *("train_metrics", "recompute_batch_stats", "test_batch", "views", "target", "worst"),
        "beam_widths",
    ),
    "devices": ("strategy", "devices", "dtype", "memory"),
    "several hosts": ("coordinator", "num_processes", "process_id"),
    "files": ("data_dir", "out", "format", "keep_every", "tensorboard", "plot_only"),
}
"""Names of the options in each group, for all scripts. Others are everyday options."""
DESCRIPTIONS: dict[str, str] = {
    "batch_size": "Images a step, over all devices.",
    "data_dir": "Folder in which data are looked for first; None is the default folders alone.",
    "dataset": "Data set: digits, mnist, fashion_mnist, cifar10, cifar100 or svhn_cropped.",
    "divide_std": "Divide images by the standard deviation of each channel.",
    "dtype": "Numbers of activations and products. Parameters are float32.",
    "eval_every": "Steps between evaluations, rows and checkpoints; None is an epoch.",
    "flip": "Mirror training images left to right, each with probability 1/2.",
    "learning_rate": "Learning rate, before its schedule lowers it.",
    "momentum": "Momentum, the share of the last step that is kept.",
    "num_steps": "Training steps of a run.",
    "out": "Folder for tables, figures and runs.",
    "plot_only": "Draw tables and figures from the runs in --out, and train nothing.",
    "preset": "Set of defaults.",
    "tensorboard": "Write event files for TensorBoard too, in the folder of each run.",
    "weight_decay": "Coefficient of weight decay (L2), added to the gradient.",
    "width": "Filters of the first stage.",
}
"""Descriptions of options whose fields have none, by name, for all scripts."""
_SEED = (0, 2**32 - 1)
_STEPS = (1, 10**8)
_COUNT = (1, 10**7)
BOUNDS: dict[str, tuple[int, int]] = {
    "animals": _COUNT,
    "batch": (1, 2**20),
    "batch_size": (1, 2**20),
    "batches": (1, 2**20),
    "beam_widths": (1, 4096),
    "blocks": (1, 1_000),
    "bn_group": (0, 2**20),
    "classifier_steps": _STEPS,
    "code": (1, 2**16),
    "common": _STEPS,
    # A network halves its images so often.
    "convolutions": (1, 8),
    # Ten images of each class, so that each has some of both splits.
    "count": (100, 10**7),
    # A U-Net halves the image so often.
    "depth": (1, 8),
    # The deepest network of He et al. 2015 has 1202 layers.
    "depths": (8, 1202),
    "devices": (1, 2**16),
    "directions": (1, 1000),
    "draw_seed": _SEED,
    # Some scripts allow a fraction.
    "epochs": (0, 10**5),
    "eta": (2, 1000),
    # The order of the examples of so many steps is drawn at once.
    "eval_every": (1, 10**5),
    "first": (0, 10**8),
    "first_steps": _STEPS,
    "flips": (0, 10**5),
    "held": _COUNT,
    "held_out": (0, 10**5),
    "gan_steps": (1, 10**5),
    "hidden": (1, 2**16),
    "images": _COUNT,
    "keep_every": (0, 10**8),
    "kills": (0, 10**4),
    # A fifth as many are test lines.
    "lines": (5, 10**6),
    "max_train_examples": _COUNT,
    "megabytes": (0, 10**5),
    "memory": (1, 2**50),
    "milestones": _STEPS,
    "min_steps": (1, 10**5),
    "most": (1, 10**6),
    "new": (0, 10**4),
    "num_batches": (1, 2**20),
    "num_processes": (1, 2**16),
    "num_seeds": (1, 1000),
    "num_steps": _STEPS,
    "num_validation": (0, 10**7),
    "padding": (0, 1024),
    "paddings": (0, 1024),
    "points": (2, 1001),
    "process_id": (0, 2**16),
    "recompute_batch_stats": (0, 10**7),
    "resize": (1, 4096),
    # Stages of prediction after the first; the paper has five.
    "refinements": (0, 100),
    "rounds": (1, 10**4),
    "runs": (1, 10**5),
    # A fifth as many are test scenes.
    "scenes": (5, 10**6),
    "seconds": (0, 10**6),
    "seed": _SEED,
    "seeds": _SEED,
    "shared": (0, 10**4),
    "signals": (0, 10**4),
    "size": (1, 4096),
    "start_depths": (8, 1202),
    "states": (1, 10**4),
    "steps": _STEPS,
    "test_batch": (1, 2**20),
    "top": (1, 10**5),
    "translate": (0, 1024),
    "trial_steps": _STEPS,
    "tune_seeds": (1, 1000),
    "validation": (0, 10**7),
    "warmup_depth": (0, 10**5),
    "whitening_images": _COUNT,
    "width": (1, 2**14),
    "widths": (1, 2**14),
    "worst": (0, 10**4),
}
"""Minimum and maximum of every integer option, by its name.

They hold for all scripts. The upper bounds are beyond what anybody trains. Above them a script
would fill the memory, or compute for hours before its first line. Scripts also check what they
cannot use themselves.
"""
SHARED = cli.SharedOptions(GROUPS, DESCRIPTIONS, BOUNDS, exclusive=(("seeds", "num_seeds"),))


def parse_options(
    presets: Mapping[str, T],
    args: Sequence[str] | None = None,
    description: str | None = None,
    implied: Mapping[str, str] | None = None,
) -> T:
    """Parse the options of a script, as `jaxcnn.cli.parse` does.

    A schedule keeps its shape: milestones that the user has not chosen are scaled to his number of
    steps.

    Args:
      presets: instances of the dataclass of options by name; the first is the default.
      args: arguments instead of `sys.argv[1:]`.
      description: docstring of the script.
      implied: option -> preset that it selects, where `--preset` is missing.

    Raises:
      ArgumentError: an option is invalid.
    """
    args = list(sys.argv[1:] if args is None else args)
    options: Any = cli.parse(presets, args, description, SHARED, implied)
    if hasattr(options, "milestones") and "--milestones" not in cli.given_flags(args):
        options = replace(options, milestones=scaled_milestones(options, presets[options.preset]))
    return options


def scaled_milestones(options: Any, preset: Any) -> tuple[int, ...]:
    """Return the milestones of a preset, in proportion to the number of steps of the options.

    Example:
      >>> from types import SimpleNamespace
      >>> preset = SimpleNamespace(num_steps=300, milestones=(150, 225))
      >>> scaled_milestones(SimpleNamespace(num_steps=40), preset)
      (20, 30)
    """
    if options.num_steps == preset.num_steps:
        return preset.milestones
    factor = options.num_steps / preset.num_steps
    steps = {max(1, round(step * factor)) for step in preset.milestones}
    return tuple(sorted(step for step in steps if step < options.num_steps))


def print_milestones(options: Any, preset: Any) -> None:
    """Print a line on stderr if milestones were scaled, or are beyond the end of the run.

    Args:
      options: of the script, with `num_steps` and `milestones`.
      preset: the options of its preset.
    """
    steps, milestones = options.num_steps, options.milestones
    if unreached := [str(step) for step in milestones if step >= steps]:
        print(
            f"{steps} steps end before milestone {' and '.join(unreached)}: the learning rate does "
            "not fall there; --milestones chooses others",
            file=sys.stderr,
        )
    elif steps != preset.num_steps and milestones == scaled_milestones(options, preset):
        usual = " ".join(map(str, preset.milestones))
        falls = f"falls at {' '.join(map(str, milestones))}" if milestones else "does not fall"
        print(
            f"{steps} steps: the learning rate {falls}, in proportion to {usual} of "
            f"{preset.num_steps}; --milestones chooses others",
            file=sys.stderr,
        )
