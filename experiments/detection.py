"""Object detection by SSD, YOLO, Faster R-CNN and Mask R-CNN, on scenes of digits.

    python -m experiments.detection                  digits, no download: 95 seconds on two cores
    python -m experiments.detection --preset mnist   MNIST's digits: not yet measured

A scene has one to three digits of several sizes, cut out of one photograph, on a background cut out
of another. Boxes and masks are exact to the pixel. SSD (Liu et al. 2016, arXiv:1512.02325) predicts
classes and offsets for anchors on three maps. YOLO (Redmon et al. 2016, arXiv:1506.02640) predicts
them for the cells of one grid. Faster R-CNN (Ren et al. 2015, arXiv:1506.01497) first proposes
places of objects, then classifies them. Mask R-CNN (He et al. 2017, arXiv:1703.06870) predicts
their masks too. All have residual stages of He et al. 2015. Training scenes have training digits
and patches of the upper halves of the photographs. Test scenes have test digits and patches of the
lower halves.

The measure is COCO's mean average precision (mAP), over classes and over overlaps from 0.5 to 0.95,
and that at an overlap of 0.5 (mAP50).

Expected (3 seeds): an mAP of 52.4 +- 3.9% for Faster R-CNN, 43.0 +- 4.2% for SSD, 21.2 +- 1.2% for
YOLO. Mask R-CNN has 52.8 +- 3.4%, and its masks 30.4 +- 3.6%.

It writes OUT/table.md, OUT/table.csv, OUT/curves.csv, OUT/curves.png, OUT/images.png,
OUT/speed.json and a folder for every run. The same command resumes a study that was stopped.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

import jaxcnn as jc
from experiments._common import (
    DeviceOptions,
    DtypeName,
    FigureOptions,
    SeedOptions,
    check_each_once,
    check_new_runs,
    divergence_notes,
    grouped_runs,
    measured_rows,
    restored_state,
    run_all,
    run_optimizer,
    run_study,
    sweep_options,
    write_results,
)
from experiments.scenes.objects import MAX_OBJECTS, compose_several
from experiments.scenes.parts import load_objects, photographs, scene_data
from jaxcnn import boxes, cli, metrics, plots, runs, tables
from jaxcnn.models.faster_rcnn import FasterRCNN, FasterRCNNLoss, rcnn_detections, rcnn_masks
from jaxcnn.models.ssd import SSD, SSDLoss, ssd_detections
from jaxcnn.models.yolo import YOLO, YOLOLoss, yolo_detections
from jaxcnn.run_log import LogError, read_json, write_text
from jaxcnn.state import State

SIDE = 48
"""Height and width of a scene, pixels."""
SIZES = (14, 28)
"""Least and greatest side of the square that a digit is resized to, pixels."""
MAX_DETECTIONS = 30
"""Most detections of a scene, which has at most three digits."""
BATCH = 100
"""Scenes of a batch of inference."""
SHOWN_SCORE = 0.3
"""Least score of a detection in the figure."""
DetectorName = Literal["ssd", "yolo", "faster_rcnn", "mask_rcnn"]


class Detector(NamedTuple):
    """A network, its loss and its detections."""

    title: str
    network: Any
    """Class of the network."""
    loss: Any
    detect: Any
    """Function of the network's outputs that returns `Detections`."""
    model_kwargs: Mapping[str, Any] = {}
    """Fields of the network that belong to the detector."""


DETECTORS: dict[str, Detector] = {
    "ssd": Detector(
        "SSD",
        SSD,
        SSDLoss(),
        lambda outputs: ssd_detections(
            outputs, SSD.anchors, (SIDE, SIDE), max_outputs=MAX_DETECTIONS
        ),
    ),
    "yolo": Detector(
        "YOLO",
        YOLO,
        YOLOLoss(),
        lambda outputs: yolo_detections(outputs, (SIDE, SIDE), max_outputs=MAX_DETECTIONS),
    ),
    "faster_rcnn": Detector(
        "Faster R-CNN",
        FasterRCNN,
        FasterRCNNLoss(),
        lambda outputs: rcnn_detections(outputs, (SIDE, SIDE), max_outputs=MAX_DETECTIONS),
    ),
    "mask_rcnn": Detector(
        "Mask R-CNN",
        FasterRCNN,
        FasterRCNNLoss(),
        lambda outputs: rcnn_detections(outputs, (SIDE, SIDE), max_outputs=MAX_DETECTIONS),
        {"masks": True},
    ),
}
"""Detectors by their name in options and runs."""


@dataclass(frozen=True)
class Options(SeedOptions, DeviceOptions, FigureOptions):
    """Every setting of the experiment; `--preset` chooses the defaults."""

    preset: Literal["quick", "mnist"] = "quick"
    """quick: scenes of digits. mnist: scenes of MNIST."""
    detectors: tuple[DetectorName, ...] = ("ssd", "yolo", "faster_rcnn")
    """Detectors to compare; mask_rcnn takes as long as all others."""
    dataset: str = "digits"
    """Source of the scenes' objects: digits, mnist or fashion_mnist."""
    scenes: int = 5_000
    """Training scenes; a fifth as many are test scenes."""
    width: int = 16
    blocks: int = 1
    """Residual blocks of a stage of the backbone."""
    num_steps: int = 900
    batch_size: int = 16
    learning_rate: float = 3e-3
    """Learning rate of Adam, which falls to 0 as a cosine."""
    dtype: DtypeName = "float32"
    data_dir: Path | None = None
    out: Path = Path("runs/detection")
    tensorboard: bool = False
    plot_only: bool = False


PRESETS = {
    "quick": Options(),
    "mnist": Options(
        preset="mnist",
        dataset="mnist",
        scenes=20_000,
        width=32,
        blocks=2,
        num_steps=10_000,
        batch_size=32,
        out=Path("runs/detection-mnist"),
    ),
}


def compose_all(options: Options) -> jc.Dataset:
    """Return the data set of scenes, the same for the same options."""
    digits = load_objects(options.dataset, options.data_dir)
    upper, lower = photographs()
    train = compose_several(digits.train, options.scenes, upper, 0, SIDE, SIZES)
    test = compose_several(digits.test, options.scenes // 5, lower, 1, SIDE, SIZES)
    return scene_data(dataset_name(options), train, test, digits.classes)


def dataset_name(options: Options) -> str:
    """Return the name of the data set of scenes, also in configs."""
    return f"{options.dataset}-scenes-boxes"


def configs(options: Options, detector: str) -> dict[str, jc.ExperimentConfig]:
    """Return the runs of a detector: name -> config."""
    return {
        f"{detector}-seed{seed}": jc.ExperimentConfig(
            dataset=dataset_name(options),
            max_train_examples=options.scenes,
            model=detector,
            model_kwargs={
                "width": options.width,
                "blocks": options.blocks,
                "dtype": options.dtype,
                **DETECTORS[detector].model_kwargs,
            },
            optimizer=jc.OptimizerConfig(
                "adam", learning_rate=options.learning_rate, schedule="cosine"
            ),
            train=jc.TrainConfig(
                num_steps=options.num_steps,
                batch_size=options.batch_size,
                eval_every=-(-options.num_steps // 6),
                subtract_mean="channel",
                divide_std=True,
                seed=seed,
            ),
        )
        for seed in options.run_seeds()
    }


def build(config: jc.ExperimentConfig, data: jc.Dataset) -> tuple[Any, Any]:
    """Return the network and the optimizer of a run."""
    network = DETECTORS[config.model].network
    model = network(data.num_classes, **config.model_kwargs)
    return model, run_optimizer(config)


def detect(
    model: Any, state: State, images: np.ndarray
) -> tuple[boxes.Detections, np.ndarray | None]:
    """Return the detections of scenes.

    Returns:
      `Detections` of NumPy arrays with a first axis of n, and their masks bool [n, m, SIDE, SIDE],
      or None for a detector of boxes.
    """
    detector = next(item for item in DETECTORS.values() if item.network is type(model))
    outputs = jc.predict(model, state, images, batch_size=BATCH)
    found = detector.detect(outputs)
    masks = None
    if "masks" in outputs:
        masks = np.asarray(rcnn_masks(outputs, found, (SIDE, SIDE)))
    return jax.tree.map(np.asarray, found), masks


def measure(model: Any, state: State, data: jc.Dataset) -> Mapping[str, float]:
    """Return the mean average precision on the test scenes, in percent.

    They are more columns of a row: `map` and `map50`, and with masks `mask_map` and `mask_map50`.
    """
    found, masks = detect(model, state, data.test.images)
    truth = data.test.labels
    overlaps: dict[str, Any] = {"map": jax.vmap(boxes.iou)(found.boxes, truth["boxes"])}
    if masks is not None:
        numbers = np.arange(1, MAX_OBJECTS + 1).reshape(1, -1, 1, 1)
        true_masks = truth["instances"][:, None] == numbers
        # In parts, as the masks of all scenes take a gigabyte as numbers.
        parts = [
            jax.vmap(boxes.mask_iou)(masks[i : i + BATCH], true_masks[i : i + BATCH])
            for i in range(0, len(masks), BATCH)
        ]
        overlaps["mask_map"] = np.concatenate(parts)
    columns = {}
    for name, ious in overlaps.items():
        values = metrics.average_precision(
            ious, found.scores, found.classes, truth["classes"], num_classes=data.num_classes
        )
        columns[name] = 100 * float(np.nanmean(values))
        columns[f"{name}50"] = 100 * float(np.nanmean(values[0]))
    return columns


def trained_networks(options: Options, data: jc.Dataset) -> dict[str, tuple[Any, State]]:
    """Return the network and the last state of each detector's first run.

    A detector without a checkpoint is left out. One that an earlier command trained is there.
    """
    networks = {}
    for detector in DETECTORS:
        name = next(iter(configs(options, detector)))
        folder = options.out / name
        if not (folder / "checkpoints").is_dir():
            continue
        # Of an earlier command, whose network may have another width.
        config = jc.override(jc.ExperimentConfig.load(folder), model=detector)
        model, tx = build(config, data)
        loss = DETECTORS[detector].loss
        state = restored_state(folder, (model, tx), config.train, data, loss)
        if state is not None:
            networks[detector] = model, state
    return networks


def write_speeds(
    out: Path, networks: Mapping[str, tuple[Any, State]], images: np.ndarray, rounds: int = 5
) -> None:
    """Write OUT/speed.json, the scenes a second that each detector takes to boxes and masks.

    The detectors take turns, and each has the median of its rounds, so that other work on the
    machine meets all of them.

    Args:
      out: folder of the study.
      networks: as `trained_networks` returns them.
      images: scenes, uint8 [n, h, w, 3].
      rounds: times that each is measured, after one for compilation.
    """
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(rounds + 1):
        for name, (model, state) in networks.items():
            start = time.perf_counter()
            detect(model, state, images)
            seconds[name].append(time.perf_counter() - start)
    speeds = {name: len(images) / float(np.median(times[1:])) for name, times in seconds.items()}
    write_text(out / "speed.json", json.dumps(speeds, indent=2) + "\n")


def read_speeds(out: Path) -> dict[str, float]:
    """Return the contents of OUT/speed.json; {} where there is none.

    Raises:
      LogError: it is damaged.
    """
    path = out / "speed.json"
    if not path.exists():
        return {}
    speeds = read_json(path)
    for name, value in speeds.items():
        if not isinstance(value, float) or not 0 < value < math.inf:
            raise LogError(
                f"{path} has {value!r} for {name!r}; expected scenes a second. Delete the file and "
                "repeat the command"
            )
    return speeds


def write_predictions(
    options: Options, networks: Mapping[str, tuple[Any, State]], data: jc.Dataset, n: int = 6
) -> None:
    """Write OUT/images: test scenes, with true boxes and those of each detector's first run."""
    images, truth = data.test.images[:n], data.test.labels
    n = len(images)
    objects = [
        [
            (box, int(label))
            for box, label in zip(truth["boxes"][i], truth["classes"][i], strict=True)
            if label >= 0
        ]
        for i in range(n)
    ]
    true_boxes = [[plots.Box(tuple(box), str(label)) for box, label in row] for row in objects]
    strips = [plots.Strip(list(images), "truth", boxes=true_boxes)]
    for detector, (model, state) in networks.items():
        found, masks = detect(model, state, images)
        drawn = [
            _drawn_boxes(found.boxes[i], found.scores[i], found.classes[i], objects[i])
            for i in range(n)
        ]
        shown = list(images)
        if masks is not None:
            shown = [
                tinted(image, masks[i][found.scores[i] >= SHOWN_SCORE])
                for i, image in enumerate(images)
            ]
        strips.append(plots.Strip(shown, DETECTORS[detector].title, boxes=drawn))
    note = (
        f"Detections with a score of at least {SHOWN_SCORE}, with class and score. Blue: the right "
        "class on an overlap of at least 0.5. Orange, dashed: wrong. White, dashed: missed."
    )
    if "mask_rcnn" in networks:
        note += " Green: predicted masks."
    figure = plots.mosaic(strips, title="Test scenes and detections", note=note, side=1.7)
    options.save(figure, options.out / "images")


def tinted(image: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return an image whose masked pixels are half green.

    Args:
      image: uint8 [h, w, 3].
      masks: bool [n, h, w].
    """
    green = np.array([0, 255, 120])
    mixed = np.where(np.any(masks, axis=0)[..., None], (image.astype(int) + green) // 2, image)
    return mixed.astype(np.uint8)


def _drawn_boxes(found: Any, scores: Any, classes: Any, objects: Any) -> list[plots.Box]:
    """Return the boxes of a scene to draw: missed objects, then detections, the best on top."""
    drawn, taken = [], set()
    for box, score, label in zip(found, scores, classes, strict=True):
        if score < SHOWN_SCORE:
            continue
        overlaps = {
            j: float(boxes.iou(box[None], np.asarray(true_box)[None])[0, 0])
            for j, (true_box, true_label) in enumerate(objects)
            if true_label == label and j not in taken
        }
        best = max(overlaps, key=lambda j: overlaps[j], default=None)
        is_right = best is not None and overlaps[best] >= 0.5
        taken |= {best} if is_right else set()
        color = plots.COLORS[0] if is_right else plots.COLORS[1]
        name = f"{label} {score:.2f}"
        drawn.append(plots.Box(tuple(box), name, color, not is_right, below=not is_right))
    missed = [
        plots.Box(tuple(box), dashed=True) for j, (box, _) in enumerate(objects) if j not in taken
    ]
    return [*missed, *drawn[::-1]]


def train(options: Options, stop: cli.GracefulShutdown) -> bool:
    """Train the missing runs and draw detections; return False if some are not finished."""
    check_each_once("detectors", options.detectors, "detector", "ssd yolo")
    all_configs = {name: configs(options, name) for name in options.detectors}
    for new_runs in all_configs.values():
        check_new_runs(new_runs, options.out)
    cli.enable_compilation_cache()
    data = compose_all(options)
    for name, detector_configs in all_configs.items():
        sweep_kwargs = sweep_options(options, stop)
        sweep_kwargs |= {"measure": measure, "build": build, "loss": DETECTORS[name].loss}
        if not run_all(detector_configs, data, options.out, **sweep_kwargs):
            return False
    networks = trained_networks(options, data)
    write_predictions(options, networks, data)
    if networks.keys() - read_speeds(options.out).keys():
        write_speeds(options.out, networks, data.test.images[:300])
    return True


def draw(options: Options) -> None:
    """Write the table and the curves of the finished runs in `options.out`."""
    groups = grouped_runs(options.out, DETECTORS)
    keys, speeds = ("map", "map50", "mask_map", "mask_map50"), read_speeds(options.out)
    table = [
        {
            "detector": DETECTORS[name].title,
            "params": group[0].result["params"],
            "multiply_adds": multiply_adds(name, group[0].config),
            "scenes_per_second": speeds.get(name),
        }
        | runs.aggregate_seeds([with_all_keys(run, keys) for run in group], keys)
        for name, group in groups.items()
    ]
    all_runs = [run for group in groups.values() for run in group]
    config = all_runs[0].config
    protocol = (
        f"{config.dataset}, {config.train.num_steps} steps of {config.train.batch_size} scenes "
        f"of {SIDE}x{SIDE}. COCO's mean average precision in percent of the test scenes at the "
        "last step: over overlaps of 0.5 to 0.95 (map), and at 0.5 (map50). The same of masks "
        "(mask_map, mask_map50). Multiply-adds are of "
        f"one scene. Scenes a second are those of inference in batches of {BATCH}, suppression "
        "included, of all detectors in turns."
    )
    notes = divergence_notes(all_runs)
    lines = [
        plots.band(
            [measured_rows(run) for run in group], "step", "map", label=DETECTORS[name].title
        )
        for name, group in groups.items()
    ]
    title = "Detectors on test scenes: mean and range of seeds"
    panel = plots.Panel("", lines, xlabel="step", ylabel="mAP (%)")
    figure = plots.panels([panel], title=title, size=(6.0, 3.9))
    written = write_results(options, table, [protocol, *notes], all_runs, figure)
    print("\n".join([tables.compact_markdown(table), *notes, written]))


def with_all_keys(run: runs.Run, keys: tuple[str, ...]) -> runs.Run:
    """Return a run with None for the figures that its detector does not have."""
    return run._replace(result=dict.fromkeys(keys) | run.result)


def multiply_adds(detector: str, config: jc.ExperimentConfig) -> int:
    """Return the multiply-adds of a run's network for one scene."""
    model = DETECTORS[detector].network(10, **config.model_kwargs)
    return jc.summary(model, (SIDE, SIDE, 3)).macs


def main(args: list[str] | None = None) -> int:
    """Train the missing runs, then draw; return the exit code."""
    return run_study(PRESETS, args, __doc__, train, draw)


if __name__ == "__main__":
    sys.exit(main())
