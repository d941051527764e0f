"""Poses of several people: part affinity fields against nearest distance.

    python -m experiments.keypoints                  no download: 126 seconds on two cores
    python -m experiments.keypoints --preset long    ten times as many steps: not yet measured

A scene has one to three stick figures with random joint angles, cut out of one photograph, on a
background cut out of another. Figures cross and hide each other. Key points, their visibility and
whose they are, are exact. A network (`jaxcnn.models.pose`, after Cao et al. 2017, arXiv:1611.08050)
predicts a heat map for each joint and a part affinity field for each limb. The peaks of the heat
maps are candidates for joints. Which candidates belong to one person is decided in two ways, for
the same networks:

- fields: pairs with the greatest line integrals over the fields first (equation 10).
- distance: the nearest pairs first, up to the longest limb of the training scenes.

Both are also applied to the targets, which shows what a network without errors would reach.

Measures: a key point is correct within a tenth of the longer side of the person's box (PCK of Yang
and Ramanan 2013, with alpha = 0.1). A person is whole if all visible key points are correct. AP is
COCO's average precision with object keypoint similarity. Training scenes have patches of the upper
halves of the photographs, test scenes of the lower halves.

Expected, quick (3 seeds): 24.1 +- 6.0% whole people with fields and 8.1 +- 5.4% with distance.
Paired by seed, fields are worth 16.0 +- 1.6 points.

It writes OUT/table.md, OUT/table.csv, OUT/curves.csv, OUT/curves.png, OUT/people.png, OUT/maps.png,
OUT/limits.json and a folder for every run. The same command resumes a study that was stopped.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxcnn as jc
from experiments._common import (
    DeviceOptions,
    DtypeName,
    FigureOptions,
    SeedOptions,
    check_new_runs,
    check_same_settings,
    divergence_notes,
    measured_rows,
    paired_sentence,
    restored_state,
    run_all,
    run_optimizer,
    run_study,
    sweep_options,
    write_results,
)
from experiments.scenes.figures import ABSENT, MAX_FIGURES, SIDE, SKELETON, compose
from experiments.scenes.parts import photographs, scene_data
from jaxcnn import cli, metrics, plots, runs, tables
from jaxcnn.keypoints import (
    People,
    assemble_people,
    find_peaks,
    heat_maps,
    line_integrals,
    match_greedily,
    part_affinity_fields,
)
from jaxcnn.models.pose import PoseLoss, PoseNet
from jaxcnn.run_log import LogError, read_json, write_text
from jaxcnn.state import State

STRIDE = 2
"""Side of a cell of the network's maps, pixels."""
SIGMA, LIMB_WIDTH = 3.5, 2.0
"""Width of the Gaussians and greatest distance from a limb's line, pixels."""
LOSS = PoseLoss(SKELETON, sigma=SIGMA, limb_width=LIMB_WIDTH)
ALPHA = 0.1
"""Distance of a correct key point, in longer sides of the person's bounding box."""
MAX_PEAKS = 8
MAX_PEOPLE = 8
BATCH = 100
"""Scenes of a batch of inference."""
ASSOCIATIONS = {"fields": "part affinity fields", "distance": "nearest distance"}
"""Ways to connect key points, and their titles."""
TARGETS = {"visible": "on the targets", "all": "on targets with hidden key points"}
"""Ground-truth maps on which both associations are measured, and their titles."""
MEASURES = ("pck", "whole", "whole1", "whole2", "whole3", "ap", "ap50")
"""Measures of each way, in percent; `whole2` is that of scenes with two people."""


@dataclass(frozen=True)
class Options(SeedOptions, DeviceOptions, FigureOptions):
    """Every setting of the experiment; `--preset` chooses the defaults."""

    preset: Literal["quick", "long"] = "quick"
    """quick: 3 seeds. long: a wider network, more scenes and steps, and one seed."""
    scenes: int = 4_000
    """Training scenes; a fifth as many are test scenes."""
    width: int = 12
    blocks: int = 1
    """Residual blocks of a stage of the backbone."""
    refinements: int = 1
    """Stages of prediction after the first, each with the maps of the one before as input."""
    num_steps: int = 500
    batch_size: int = 16
    learning_rate: float = 3e-3
    """Learning rate of Adam, which falls to 0 as a cosine."""
    dtype: DtypeName = "float32"
    out: Path = Path("runs/keypoints")
    num_seeds: int = 3
    """Runs, from seeds 0, 1, ..."""
    tensorboard: bool = False
    plot_only: bool = False


PRESETS = {
    "quick": Options(),
    "long": Options(
        preset="long",
        scenes=20_000,
        width=24,
        refinements=2,
        num_steps=5_000,
        num_seeds=1,
        out=Path("runs/keypoints-long"),
    ),
}


def compose_all(options: Options) -> jc.Dataset:
    """Return the data set of scenes, the same for the same options."""
    upper, lower = photographs()
    train = compose(options.scenes, upper, 0)
    test = compose(options.scenes // 5, lower, 1)
    return scene_data("stick-figures", train, test, ("person",))


def configs(options: Options) -> dict[str, jc.ExperimentConfig]:
    """Return the study's runs: name -> config."""
    return {
        f"pose-seed{seed}": jc.ExperimentConfig(
            dataset="stick-figures",
            max_train_examples=options.scenes,
            model="pose",
            model_kwargs={
                "width": options.width,
                "blocks": options.blocks,
                "refinements": options.refinements,
                "dtype": options.dtype,
            },
            optimizer=jc.OptimizerConfig(
                "adam", learning_rate=options.learning_rate, schedule="cosine"
            ),
            train=jc.TrainConfig(
                num_steps=options.num_steps,
                batch_size=options.batch_size,
                eval_every=-(-options.num_steps // 5),
                subtract_mean="channel",
                divide_std=True,
                seed=seed,
            ),
        )
        for seed in options.run_seeds()
    }


def build(config: jc.ExperimentConfig, data: jc.Dataset) -> tuple[Any, Any]:
    """Return the network and the optimizer of a run."""
    model = PoseNet(SKELETON, **config.model_kwargs)
    return model, run_optimizer(config)


def longest_limbs(labels: Mapping[str, np.ndarray]) -> tuple[float, ...]:
    """Return the greatest length of each limb in labels, pixels."""
    points = labels["keypoints"][labels["keypoints"][..., 0, 0] != ABSENT]
    return tuple(
        float(np.linalg.norm(points[:, a] - points[:, b], axis=-1).max()) for a, b in SKELETON.limbs
    )


class Found(NamedTuple):
    """People of scenes by each association, from the same candidates."""

    fields: People
    distance: People


@partial(jax.jit, static_argnums=2)
def _decode(heat: jax.Array, fields: jax.Array, longest: tuple[float, ...]) -> Found:
    def of_image(heat, fields):
        peaks = find_peaks(heat, stride=STRIDE, max_peaks=MAX_PEAKS)
        assemble = partial(assemble_people, peaks, skeleton=SKELETON, max_people=MAX_PEOPLE)
        integrals = line_integrals(fields, peaks.points, SKELETON.limbs, stride=STRIDE)
        first, second = (
            peaks.points[jnp.array([limb[end] for limb in SKELETON.limbs])] for end in (0, 1)
        )
        distances = jnp.linalg.norm(first[:, :, None] - second[:, None], axis=-1)
        # 1 for no distance, 0 for the longest limb.
        nearness = 1 - distances / jnp.array(longest, jnp.float32)[:, None, None]
        return Found(assemble(integrals), assemble(nearness, min_affinity=0.0))

    return jax.vmap(of_image)(heat, fields)


def find_people(
    model: Any, state: State, images: np.ndarray, longest: tuple[float, ...]
) -> tuple[Found, dict[str, np.ndarray]]:
    """Return the people of scenes, and the maps of the last stage of prediction.

    Args:
      model: the network.
      state: of a run.
      images: scenes, uint8 [n, SIDE, SIDE, 3].
      longest: as `longest_limbs` returns them.

    Returns:
      `Found` of NumPy arrays with a first axis of n, and `heat_maps` and `fields` [n, h, w, ...].
    """
    outputs = jc.predict(model, state, images, batch_size=BATCH)
    maps = {name: np.asarray(values)[:, -1] for name, values in outputs.items()}
    found = _decode(maps["heat_maps"], maps["fields"], longest)
    return jax.tree.map(np.asarray, found), maps


def boxes_of(labels: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the longer sides and areas of the figures' bounding boxes.

    A box is around all key points of a figure, hidden ones too.

    Returns:
      float32 [n, m], pixels and square pixels; 0 where there is no figure.
    """
    sides = np.ptp(labels["keypoints"], axis=2)
    return sides.max(-1), sides.prod(-1)


def assign(similarity: np.ndarray) -> np.ndarray:
    """Return the predicted person of each true one, int32 [n, m], -1 for none.

    The most similar pair is taken first, then the most similar of those that are left.

    Args:
      similarity: float [n, d, m] of n scenes, d predicted and m true people.
    """
    matrices = jnp.asarray(similarity).transpose(0, 2, 1)
    return np.asarray(jax.vmap(lambda matrix: match_greedily(matrix, 0.0))(matrices))


def columns(people: People, labels: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return `MEASURES` of people, in percent.

    Args:
      people: predicted, with a first axis of n.
      labels: the truth.
    """
    points, visible = labels["keypoints"], labels["visible"]
    lengths, areas = boxes_of(labels)
    similarity = np.asarray(
        jax.vmap(metrics.keypoint_similarity)(people.points, points, visible, areas)
    )
    partner = assign(similarity)
    scene_index = np.arange(len(partner))[:, None]
    chosen = np.where((partner >= 0)[..., None, None], people.points[scene_index, partner], np.nan)
    # People without a visible key point do not count.
    is_person = visible.any(-1)
    true = (points[is_person], visible[is_person], lengths[is_person])
    right = metrics.correct_keypoints(chosen[is_person], *true, alpha=ALPHA)
    whole = (right == visible[is_person]).all(-1)
    number = np.broadcast_to(is_person.sum(1)[:, None], is_person.shape)[is_person]
    shares = metrics.pck(chosen[is_person], *true, alpha=ALPHA)
    is_found = (people.scores > 0).any(-1)
    precision = metrics.average_precision(
        similarity,
        people.scores.mean(-1),
        np.where(is_found, 0, -1),
        np.where(is_person, 0, -1),
        num_classes=1,
    )
    wholes = {
        f"whole{n}": 100 * float(whole[number == n].mean()) if (number == n).any() else math.nan
        for n in range(1, MAX_FIGURES + 1)
    }
    return {
        "pck": 100 * float(np.nanmean(shares)),
        "whole": 100 * float(whole.mean()),
        **wholes,
        "ap": 100 * float(precision.mean()),
        "ap50": 100 * float(precision[0, 0]),
    }


def measure(model: Any, state: State, data: jc.Dataset) -> Mapping[str, float]:
    """Return the measures of both associations on the test scenes, more columns of a row."""
    longest = longest_limbs(data.train.labels)
    found, _ = find_people(model, state, data.test.images, longest)
    return {
        f"{name}_{key}": value
        for name in ASSOCIATIONS
        for key, value in columns(getattr(found, name), data.test.labels).items()
    }


def target_maps(labels: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the targets of scenes: `heat_maps` [n, h, w, J] and `fields` [n, h, w, L, 2]."""
    shape = (SIDE, SIDE)
    heat = partial(heat_maps, image_shape=shape, stride=STRIDE, sigma=SIGMA)
    fields = partial(
        part_affinity_fields,
        limbs=SKELETON.limbs,
        image_shape=shape,
        stride=STRIDE,
        limb_width=LIMB_WIDTH,
    )
    arguments = labels["keypoints"], labels["visible"]
    return {
        "heat_maps": np.asarray(jax.jit(jax.vmap(heat))(*arguments)),
        "fields": np.asarray(jax.jit(jax.vmap(fields))(*arguments)),
    }


def write_limits(out: Path, data: jc.Dataset) -> None:
    """Write OUT/limits.json: measures of both associations on targets of the test scenes.

    They are what a network without errors would have. The first targets are those of the loss. The
    others have hidden key points too, so that these do not cut a person in two.
    """
    labels, longest = data.test.labels, longest_limbs(data.train.labels)
    everything = dict(labels) | {"visible": labels["keypoints"][..., 0] != ABSENT}
    limits = {}
    for suffix, source in zip(TARGETS, (labels, everything), strict=True):
        maps = target_maps(source)
        found = jax.tree.map(np.asarray, _decode(maps["heat_maps"], maps["fields"], longest))
        for name in ASSOCIATIONS:
            measures = columns(getattr(found, name), labels)
            # JSON has no NaN.
            limits[f"{name}_{suffix}"] = {
                key: None if math.isnan(value) else value for key, value in measures.items()
            }
    write_text(out / "limits.json", json.dumps(limits, indent=2) + "\n")


def read_limits(out: Path) -> dict[str, dict[str, float | None]]:
    """Return the contents of OUT/limits.json by title; {} where there is none.

    A measure is None where no scene has so many people.

    Raises:
      LogError: it is damaged.
    """
    path = out / "limits.json"
    if not path.exists():
        return {}
    limits, table = read_json(path), {}
    for suffix, targets in TARGETS.items():
        for name, title in ASSOCIATIONS.items():
            values = limits.get(f"{name}_{suffix}")
            for key in MEASURES:
                value = values.get(key, "nothing") if isinstance(values, dict) else "nothing"
                is_percent = isinstance(value, float) and 0 <= value <= 100
                if value is not None and not is_percent:
                    raise LogError(
                        f"{path} has {value!r} for {key!r} of {name}_{suffix}; expected percent. "
                        "Delete the file and repeat the command"
                    )
            table[f"{title}, {targets}"] = {key: values[key] for key in MEASURES}
    return table


# Figures


def strokes(points: np.ndarray, color: str, **style: Any) -> list[plots.Stroke]:
    """Return the limbs of a person, without those of which an end was not found."""
    return [
        plots.Stroke([tuple(points[a]), tuple(points[b])], color, dots=True, **style)
        for a, b in SKELETON.limbs
        if np.isfinite(points[[a, b]]).all()
    ]


def drawn_people(people: np.ndarray, partner: np.ndarray) -> list[plots.Stroke]:
    """Return the limbs of a scene's predicted people, in the colors of their true ones.

    Others are white and dashed.

    Args:
      people: float [d, J, 2].
      partner: int [m], as in `assign`.
    """
    drawn = []
    for i, points in enumerate(people):
        owner = np.flatnonzero(partner == i)
        style = {"color": PERSON_COLORS[owner[0]]} if len(owner) else {"color": "white"}
        drawn += strokes(points, **style, dashed=not len(owner))
    return drawn


PERSON_COLORS = ("#56b4e9", "#e69f00", "#cc79a7")
"""Colors of a scene's figures, of Okabe and Ito."""


def write_figures(options: Options, data: jc.Dataset, n: int = 6) -> None:
    """Write OUT/people and OUT/maps, of the first run and scenes with several figures."""
    counts = data.test.labels["visible"].any(-1).sum(1)
    # As many of two as of three, then of one.
    order = np.argsort(-counts, kind="stable")
    index = np.sort(np.concatenate([np.flatnonzero(counts == k)[: n // 3] for k in (1, 2, 3)]))
    index = index if len(index) else order[:n]
    test = data.test.take(index)
    name, config = next(iter(configs(options).items()))
    model, tx = build(config, data)
    state = restored_state(options.out / name, (model, tx), config.train, data, LOSS)
    if state is None:
        return
    longest = longest_limbs(data.train.labels)
    found, maps = find_people(model, state, test.images, longest)
    labels = test.labels
    _, areas = boxes_of(labels)
    true = [
        [
            stroke
            for j, points in enumerate(scene_points)
            if points[0, 0] != ABSENT
            for stroke in strokes(points, PERSON_COLORS[j])
        ]
        for scene_points in labels["keypoints"]
    ]
    images = list(test.images)
    strips = [plots.Strip(images, "scene"), plots.Strip(images, "truth", strokes=true)]
    for key, title in ASSOCIATIONS.items():
        people = getattr(found, key).points
        similarity = jax.vmap(metrics.keypoint_similarity)(
            people, labels["keypoints"], labels["visible"], areas
        )
        partner = assign(np.asarray(similarity))
        drawn = [drawn_people(people[i], partner[i]) for i in range(len(people))]
        strips.append(plots.Strip(images, title, strokes=drawn))
    figure = plots.mosaic(
        strips,
        title="Test scenes, true people and people assembled from the same key points",
        note="Each true person gives its color to one predicted person, the most similar pairs "
        "first. All others are white and dashed.",
        side=1.3,
    )
    options.save(figure, options.out / "people")
    write_maps(options, test, maps)


def write_maps(options: Options, test: jc.Split, maps: Mapping[str, np.ndarray]) -> None:
    """Write OUT/maps: heat maps and fields, targets and predictions, of scenes."""
    targets = target_maps(test.labels)
    heat, fields = (
        {"target": targets[name], "predicted": maps[name]} for name in ("heat_maps", "fields")
    )
    limits: dict[str, Any] = {"cmap": "inferno", "limits": (0.0, 1.0)}
    strips = [plots.Strip(list(test.images), "scene", **limits)]
    for key, values in heat.items():
        strips.append(plots.Strip(list(values.max(-1)), f"heat maps, {key}", **limits))
    for key, values in fields.items():
        colored = [plots.direction_colors(value.sum(-2)) for value in values]
        strips.append(plots.Strip(colored, f"fields, {key}"))
    y, x = np.mgrid[-1:1:65j, -1:1:65j]
    wheel = np.where((np.hypot(x, y) <= 1)[..., None], np.stack([x, y], -1), 0)
    disc = plots.direction_colors(wheel)
    disc[np.hypot(x, y) > 1] = 1
    strips.append(plots.Strip([disc], "colors of directions"))
    figure = plots.mosaic(
        strips,
        title="Heat maps and part affinity fields of test scenes",
        note="Heat maps: maximum over joints. Fields: sum over limbs, from the body outwards. Hue "
        "is the direction, brightness the length.",
        bar="height of the heat map",
        side=1.05,
    )
    options.save(figure, options.out / "maps")


# Study


def train(options: Options, stop: cli.GracefulShutdown) -> bool:
    """Train the missing runs and draw people; return False if some are not finished."""
    all_runs = configs(options)
    check_new_runs(all_runs, options.out)
    cli.enable_compilation_cache()
    data = compose_all(options)
    sweep_kwargs = sweep_options(options, stop)
    sweep_kwargs |= {"measure": measure, "build": build, "loss": LOSS}
    if not run_all(all_runs, data, options.out, **sweep_kwargs):
        return False
    write_limits(options.out, data)
    write_figures(options, data)
    return True


def of_association(run: runs.Run, name: str) -> runs.Run:
    """Return a run whose measures are those of one association."""
    return run._replace(result=run.result | {key: run.result[f"{name}_{key}"] for key in MEASURES})


def paired_change(all_runs: list[runs.Run]) -> str:
    """Return one sentence on the effect of fields, paired by seed; empty without two seeds."""
    pairs = [(run.result["fields_whole"], run.result["distance_whole"]) for run in all_runs]
    if None in (value for pair in pairs for value in pair):
        return ""
    changes = [fields - distance for fields, distance in pairs]
    return paired_sentence("fields change the share of whole people", changes)


def draw(options: Options) -> None:
    """Write the table and the curves of the finished runs in `options.out`."""
    out = options.out
    all_runs = list(runs.finished_runs(out))
    for run in all_runs:
        if not run.name.startswith("pose-seed"):
            raise jc.ArgumentError(
                f"{out} has a run called {run.name!r}; expected pose-seed0 and its like. "
                "Write --out with a folder of this experiment."
            )
    check_same_settings({"pose": all_runs}, out)
    converged = [run for run in all_runs if run.divergence is None]
    table = [
        {"association": title}
        | runs.aggregate_seeds([of_association(run, name) for run in converged], MEASURES)
        for name, title in ASSOCIATIONS.items()
    ]
    table += [
        dict.fromkeys(table[0]) | {"association": title} | values
        for title, values in read_limits(out).items()
    ]
    config, params = all_runs[0].config, all_runs[0].result["params"]
    protocol = (
        f"{config.train.num_steps} steps of {config.train.batch_size} scenes of {SIDE}x{SIDE} with "
        f"one to {MAX_FIGURES} figures, a network of {params:,} parameters. Percent of the test "
        f"scenes at the last step. pck: key points within {ALPHA} of the longer side of the "
        "person's box, mean over joints. whole: people whose visible key points are all "
        "correct, and in scenes of 1, 2 and 3 people. ap: COCO's average precision over keypoint "
        "similarities of 0.5 to 0.95, ap50: at 0.5. On the targets: ground-truth maps, in which "
        "hidden key points are missing, as in training."
    )
    protocol += paired_change(converged)
    notes = divergence_notes(all_runs)
    panels = [
        plots.Panel(
            title,
            [
                plots.band(
                    [measured_rows(run) for run in all_runs], "step", f"{name}_{key}", label=label
                )
                for name, label in ASSOCIATIONS.items()
            ],
            xlabel="step",
            ylabel="percent",
        )
        for key, title in (("pck", "correct key points (PCK)"), ("whole", "whole people"))
    ]
    title = "People of test scenes: mean and range of seeds"
    figure = plots.panels(panels, title=title)
    written = write_results(options, table, [protocol, *notes], all_runs, figure)
    print("\n".join([tables.compact_markdown(table), *notes, written]))


def main(args: list[str] | None = None) -> int:
    """Train the missing runs, then draw; return the exit code."""
    return run_study(PRESETS, args, __doc__, train, draw)


if __name__ == "__main__":
    sys.exit(main())
