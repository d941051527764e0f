"""Which networks are looked at: those of the depths asked for, and the runs that the depth study left."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jaxcnn as jc
from experiments.depth import MAKES
from experiments.signal_propagation.options import Options


class Net(NamedTuple):
    """A network as the figures know it; in the order of their legends."""

    residual: bool
    depth: int
    batch_norm: bool
    seed: int

    @property
    def label(self) -> str:
        """Its name in the paper."""
        return f"{'ResNet' if self.residual else 'plain'}-{self.depth}"

    @property
    def kind(self) -> str:
        """What the networks of all depths have in common."""
        return f"{'residual' if self.residual else 'plain'}, {'with' if self.batch_norm else 'without'} BN"


def net(recipe: jc.Recipe) -> Net | None:
    """What a recipe trains; None if that is no plain or residual network of section 4.2 of the paper."""
    found = re.fullmatch(r"(?:cifar-)?(plain|resnet)(\d+)", recipe.model)
    if not found or not hasattr(jc.create_model(recipe.model, 2), "blocks"):
        return None
    return Net(found[1] == "resnet", int(found[2]), recipe.options.get("batch_norm", True), recipe.seed)


def fresh(options: Options) -> dict[str, jc.Recipe]:
    """Name -> recipe of every network to look at before training."""
    recipes = {}
    for depth in options.start_depths:
        for family in ("plain", "resnet"):
            for norm in (True, False):
                for seed in range(options.seeds):
                    given: dict[str, Any] = {"width": options.width, "batch_norm": norm}
                    name = f"{family}{depth}{'' if norm else '-without'}-seed{seed}"
                    model = {"model": f"cifar-{family}{depth}", "options": given, "seed": seed}
                    recipes[name] = jc.Recipe(dataset=options.dataset, pad=4, flip=True, **model)
    return recipes


def trained(options: Options) -> dict[Path, jc.Recipe]:
    """Folder -> recipe of every run to look at: the depths asked for, the first seeds.

    Raises:
      ArgumentError: if there is none; it has the command that makes them.
    """
    make = f"{MAKES[options.preset]} --out {options.runs}"
    folders = [path.parent for path in options.runs.glob("*/config.json") if (path.parent / "checkpoints").is_dir()]
    recipes = {folder: jc.Recipe.load(folder) for folder in folders}
    nets = {folder: kind for folder, recipe in recipes.items() if (kind := net(recipe)) and kind.batch_norm}
    if not nets:
        raise jc.ArgumentError(f"{options.runs} holds no run of a plain or residual network; make them: {make}")
    there = sorted({kind.depth for kind in nets.values()})
    for depth in set(options.depths) - set(there):
        found = ", ".join(map(str, there))
        raise jc.ArgumentError(f"{options.runs} has depths {found}, not {depth}; make it: {make} --depths {depth}")
    seeds: dict[Any, list[int]] = {}
    for kind in sorted(nets.values()):
        seeds.setdefault(kind.label, []).append(kind.seed)
    return {
        folder: recipes[folder]
        for folder, kind in sorted(nets.items(), key=lambda item: item[1])
        if kind.depth in (options.depths or there) and kind.seed in seeds[kind.label][: options.seeds]
    }


def counterpart(recipe: jc.Recipe, rate: float) -> jc.Recipe:
    """The same run without BN, at another rate, from its first step on."""
    plain: dict[str, Any] = {"options": dict(recipe.options) | {"batch_norm": False}, "precise_bn": 0}
    return replace(recipe, **plain, lr=rate, warmup_lr=None)
