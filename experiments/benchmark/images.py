"""Speed of reading many images: decoding a folder, and feeding a step from an array on disk.

    python -m experiments.benchmark.images                20,000 JPEGs that it makes, 5 minutes on
                                                          a busy machine
    python -m experiments.benchmark.images --images DIR   your own folder, one directory a class

The first command needs 4 GB in OUT. It measures:

- decode: `image_folder` of a folder that is not cached, in processes of 1, 2, 4, ... cores. Each
  image is read, decoded, resized, cropped and stored, and statistics of the pixels are taken.
- reopen: the same folder again, from the cache.
- feed: batches of random images, as training takes them, from an array that is larger than
  `memory`. Cached means that the system has the file in memory. Otherwise every image comes from
  the disk, as it does if the file is much larger than the memory. Each is measured with
  `jaxcnn.input_pipeline.read_ahead` and without.
- wait: the same batches for steps that take as long as those of a fast GPU. The seconds are those
  that the steps wait for their images.

To feed from a file that does not fit into memory, limit the memory:

    systemd-run --scope -p MemoryMax=1G python -m experiments.benchmark.images

It writes OUT/table.md and OUT/table.csv. The folder that it makes stays in OUT, and is used again.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

import jaxcnn as jc
from experiments._options import parse_options
from experiments.benchmark import report
from jaxcnn import cli, input_pipeline, tables
from jaxcnn.parallel import Strategy
from jaxcnn.progress import Progress

CLASSES = 10
"""Directories of the folder that is made."""
SIDES = (256, 384)
"""Smallest and largest side of its images, in pixels."""
STEP_RATE = 3_000
"""Images a second of the assumed steps: ResNet-50 in bfloat16 on one fast GPU."""
FEEDING = {"feed": math.inf, "wait": STEP_RATE}
"""Measurement of feeding -> images a second of the steps that are fed."""
NOTES = (
    "decode: image_folder without a cache (read, decode, resize, crop, store, SHA-256, statistics)"
    " in a process of that many cores. reopen: the same from the cache. feed: random batches from "
    "an array on disk; cached: the file is in memory; read_ahead: with "
    "jaxcnn.input_pipeline.read_ahead, as the library reads. MB are of decoded images. wait: the "
    f"same for steps of {STEP_RATE:,} images a second; seconds is how long they wait in all, after "
    "the first chunk of steps.",
)


@dataclass(frozen=True)
class Options:
    """Options of the measurement."""

    preset: Literal["quick"] = "quick"
    images: Path | None = None
    """Folder of images, one directory a class; None is a folder that is made from photographs."""
    count: int = 20_000
    """Images of the folder that is made."""
    size: int = 224
    """Side of the decoded images, in pixels."""
    batch_size: int = 128
    """Images of a batch."""
    num_batches: int = 32
    """Batches of a measurement of feeding, at most a pass over the images."""
    rounds: int = 3
    """Measurements of each kind of feeding, in turns."""
    out: Path = Path("runs/benchmark-images")
    """Folder for the tables and the folder that is made."""


def make_folder(folder: Path, count: int) -> Generator[int, None, None]:
    """Make JPEGs of random crops of scikit-learn's two photographs.

    Files that are there already are left. They are named after their crop, which depends on nothing
    but the number of the image.

    Args:
      folder: receives a directory for each of `CLASSES` classes.
      count: images.

    Yields:
      The number of files made since the last time.
    """
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(image) for image in load_sample_images().images]

    def make(number: int) -> int:
        path = folder / f"class{number % CLASSES}" / f"{number:06d}.jpg"
        if path.exists():
            return 1
        rng = np.random.default_rng(number)
        photograph = photographs[int(rng.integers(len(photographs)))]
        width, height = (int(side) for side in rng.integers(SIDES[0], SIDES[1] + 1, 2))
        left = int(rng.integers(photograph.width - width + 1))
        top = int(rng.integers(photograph.height - height + 1))
        crop = photograph.crop((left, top, left + width, top + height))
        temporary = path.with_suffix(".part")
        crop.save(temporary, "JPEG", quality=90)
        temporary.rename(path)
        return 1

    for label in range(CLASSES):
        (folder / f"class{label}").mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(make, range(count))


def time_decoding(folder: str, size: int, cores: int, cache: str) -> tuple[int, float, float]:
    """Time `image_folder` in this process, on some of its cores.

    Args:
      folder: of images.
      size: of the decoded images, in pixels.
      cores: the process is bound to that many.
      cache: an empty folder, for the library's cache.

    Returns:
      Number of images, seconds without a cache, seconds with one.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    os.environ["JAXCNN_CACHE"] = cache
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        data = jc.image_folder(folder, size, memory=0)
        seconds.append(time.perf_counter() - start)
    return sum(len(split.labels) for split in (data.train, data.validation, data.test)), *seconds


def core_counts() -> list[int]:
    """Return 1, 2, 4, ... up to the cores of this process, and all of them."""
    if not hasattr(os, "sched_setaffinity"):
        return [os.cpu_count() or 1]
    cores = len(os.sched_getaffinity(0))
    return [*(2**i for i in range(cores.bit_length()) if 2**i < cores), cores]


def time_feeding(
    images: np.memmap,
    index: np.ndarray,
    read_ahead: bool,
    strategy: Strategy,
    step_rate: float = math.inf,
) -> float:
    """Time reading batches, and return the seconds that their user waits for them.

    Args:
      images: [n, ...], on disk.
      index: int32 [batches, batch].
      read_ahead: whether to read as the library does, or by NumPy alone.
      strategy: of the devices, which divides the batches into chunks.
      step_rate: images that the user works on each second, between two chunks. If it is finite, the
        first chunk is not counted, for which every training waits.
    """
    split = jc.Split(images, np.zeros(len(images), np.int32))
    start, waited = time.perf_counter(), 0.0
    if read_ahead:
        chunks = input_pipeline.input_pipeline(split, strategy).chunks(index)
    else:
        pieces = strategy.chunks(index, images[:1].nbytes)
        chunks = input_pipeline.prefetch(lambda rows: (rows, split.take(rows)), pieces)
    for number, (rows, _) in enumerate(chunks):
        if number or math.isinf(step_rate):
            waited += time.perf_counter() - start
        time.sleep(rows.size / step_rate)
        start = time.perf_counter()
    return waited


def drop_from_memory(path: Path) -> None:
    """Make the system forget what it has of a file in memory. No process may have it mapped."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def feed_rows(options: Options, path: Path, stop: Any, progress: Progress) -> list[dict[str, Any]]:
    """Return the rows of feeding: median over the rounds.

    Args:
      options: of the command line.
      path: of the array, `.npy`.
      stop: true once the user interrupts.
      progress: advances by one for each measurement.
    """
    rng = np.random.default_rng(0)
    strategy = jc.strategy("jit", devices=1)
    n, size = len(np.load(path, mmap_mode="r")), 3 * options.size**2
    batches = min(options.num_batches, n // options.batch_size)
    if not batches:
        raise jc.ArgumentError(
            f"batch_size is {options.batch_size}; expected at most {n}, the number of images: "
            f"write --batch-size {n}"
        )
    can_drop = hasattr(os, "posix_fadvise")
    kinds = [
        (name, cached, read_ahead)
        for name in FEEDING
        for cached in ((False, True) if can_drop else (True,))
        for read_ahead in (True, False)
    ]
    seconds: dict[tuple[str, bool, bool], list[float]] = {kind: [] for kind in kinds}
    for _ in range(options.rounds):
        order = rng.permutation(n)[: batches * options.batch_size].astype(np.int32)
        index = order.reshape(batches, options.batch_size)
        for name, cached, read_ahead in kinds:
            if stop():
                return []
            if not cached:
                drop_from_memory(path)
            images = np.load(path, mmap_mode="r")
            if cached:
                time_feeding(images, index, True, strategy)
            spent = time_feeding(images, index, read_ahead, strategy, FEEDING[name])
            seconds[name, cached, read_ahead].append(spent)
            del images
            progress.advance(1, "feeding")
    rows = []
    for (name, cached, read_ahead), values in seconds.items():
        spent, n = float(np.median(values)), index.size
        rate = n / (spent if name == "feed" else spent + n / STEP_RATE)
        rates = {"images_per_second": rate, "mb_per_second": rate * size / 1e6}
        row = {"measurement": name, "cores": core_counts()[-1], "cached": cached}
        rows.append(row | {"read_ahead": read_ahead, "images": n, "seconds": spent} | rates)
    return rows


def decode_rows(
    options: Options, folder: Path, cache: Path, stop: Any, progress: Progress
) -> list[dict[str, Any]]:
    """Return the rows of decoding and reopening, for each number of cores.

    Args:
      options: of the command line.
      folder: of images.
      cache: an empty folder. The last cache stays in it, in `all`.
      stop: true once the user interrupts.
      progress: advances by one for each number of cores.
    """
    rows = []
    for cores in core_counts():
        own = cache / ("all" if cores == core_counts()[-1] else f"cores{cores}")
        # A process of its own: threads that run already would keep their cores.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            arguments = str(folder), options.size, cores, str(own)
            n, first, again = pool.submit(time_decoding, *arguments).result()
        for name, seconds in (("decode", first), ("reopen", again)):
            rates = {"images_per_second": n / seconds}
            rates["mb_per_second"] = rates["images_per_second"] * 3 * options.size**2 / 1e6
            row = {"measurement": name, "cores": cores, "cached": name == "reopen"}
            rows.append(row | {"read_ahead": None, "images": n, "seconds": seconds} | rates)
        progress.advance(1, f"decoding on {cores} core{'s' * (cores > 1)}")
        if stop():
            return []
    return rows


def main(args: list[str] | None = None) -> int:
    """Measure, write the table, and return the exit code."""
    with cli.cli_errors(), cli.GracefulShutdown() as stop:
        options = parse_options({"quick": Options()}, args, description=__doc__)
        options.out.mkdir(parents=True, exist_ok=True)
        folder = options.images
        if folder is None:
            folder = options.out / f"jpegs-{options.count}"
            with Progress(options.count) as progress:
                for made in make_folder(folder, options.count):
                    progress.advance(made, "making images")
                    if stop():
                        return stop.exit_code
        machine = report.describe_machine(jc.strategy("jit", devices=1))
        print(machine)
        with (
            tempfile.TemporaryDirectory(dir=options.out, prefix="cache-") as cache,
            Progress(len(core_counts()) + 8 * options.rounds) as progress,
        ):
            rows = decode_rows(options, folder, Path(cache), stop, progress)
            if rows:
                (path,) = (Path(cache) / "all").rglob("images.npy")
                feeding = feed_rows(options, path, stop, progress)
                rows = [*rows, *feeding] if feeding else []
        if not rows:
            return stop.exit_code
        tables.write_table(options.out, rows, [machine, *NOTES])
        print(tables.compact_markdown(rows), end="")
        print(f"wrote table.md and table.csv in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
