"""Published CIFAR-10 weights of plain and residual networks, evaluated on the test images.

    python -m experiments.published --weights DIR    about 2 minutes for six files on two CPU cores

DIR and the folders in it hold files of PyTorch weights or `.safetensors`. Files of two public
repositories are recognized by their SHA-256, whatever their names: a-martyn/resnet and
akamaster/pytorch_resnet_cifar10. Any other file needs a name with its family and depth, such as
`plain20.pt` or `resnet56.safetensors`, and is evaluated with --subtract-mean,
--divide-std and --shortcut-padding.

Expected: test errors within 0.4 points of the published ones. Plain-56 is worse than plain-20, and
ResNet-56 better than ResNet-20, as in He et al. 2015 (arXiv:1512.03385), section 4.2.

It writes OUT/table.md, OUT/table.csv and OUT/depth.png.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from matplotlib.figure import Figure
from scipy import stats

import jaxcnn as jc
from experiments._common import FigureOptions
from experiments._options import parse_options
from experiments.depth import PAPER
from jaxcnn import cli, plots, tables
from jaxcnn.progress import Progress

SUFFIXES = (".pt", ".pth", ".th", ".bin", ".ckpt", ".safetensors")
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Channel means and standard deviations of ImageNet, for images in 0..1."""


class Source(NamedTuple):
    """A repository that published weights, and the inputs that they were trained with.

    Attributes:
      name: owner/name, and the commit of the files.
      mean: subtracted from images in 0..1, by channel.
      std: divisor, by channel.
      shortcut_padding: where shortcut A adds its channels of zeros.
      note: what its published errors are.
    """

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shortcut_padding: str
    note: str


MARTYN = Source(
    "a-martyn/resnet at a977915",
    (0.4918687901200927, 0.49185976472299225, 0.4918583862227116),
    (0.24697121702736, 0.24696766978537033, 0.2469719877121087),
    "end",
    "published errors are those of the best epoch, and the files are of the last",
)
AKAMASTER = Source(
    "akamaster/pytorch_resnet_cifar10 at d5489e8",
    *IMAGENET,
    "both",
    "published errors are those of the files",
)


class Published(NamedTuple):
    """A published file.

    Attributes:
      family: "plain" or "residual".
      depth: number of layers.
      error: published test error, percent; None where nobody published one.
      source: None for a file that is not recognized.
    """

    family: str
    depth: int
    error: float | None
    source: Source | None


KNOWN: dict[str, Published] = {
    "0f77669a030c3ed8": Published("plain", 20, 9.5, MARTYN),
    "1d7483c8dc8f8006": Published("plain", 56, 12.76, MARTYN),
    "690e7b7665ec4848": Published("residual", 20, 8.0, MARTYN),
    "2d3b6e685714119c": Published("residual", 56, 7.33, MARTYN),
    "12fca82f0bebc413": Published("residual", 20, 8.27, AKAMASTER),
    "014dd6541728a1c7": Published("residual", 44, 6.90, AKAMASTER),
}
"""Published files by the first 16 digits of their SHA-256."""


@dataclass(frozen=True)
class Options(FigureOptions):
    """Where the weights are, and how their inputs were normalized."""

    weights: Path | None = None
    """Folder with the files, which may be in folders of it; None is refused."""
    preset: Literal["published"] = "published"
    subtract_mean: tuple[float, ...] = (0.4914, 0.4822, 0.4465)
    """Means of the channels, of images in 0..1, for files that are not recognized."""
    divide_std: tuple[float, ...] = (0.247, 0.2435, 0.2616)
    """Standard deviations of the channels, for files that are not recognized."""
    shortcut_padding: Literal["end", "both"] | None = None
    """Where shortcut A adds zeros, in residual files that are not recognized: behind the channels
    or on both sides; None is what the names in the file tell."""
    data_dir: Path | None = None
    """Folder in which CIFAR-10 is looked for first; None is the default folders alone."""
    out: Path = Path("runs/depth-published")
    """Folder for the table and the figure."""


def find_files(folder: Path | None) -> list[Path]:
    """Return the files of weights in a folder and the folders in it, sorted by path.

    Raises:
      ArgumentError: no folder is named, it does not exist, or it has no such file.
    """
    usage = "write --weights DIR, a folder of .pt, .pth, .th or .safetensors files"
    if folder is None:
        raise jc.ArgumentError(f"weights is missing; {usage}")
    if not folder.is_dir():
        raise jc.ArgumentError(f"weights is {folder}, which is no folder; {usage}")
    files = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    if not files:
        raise jc.ArgumentError(f"weights is {folder}, which has no file of weights; {usage}")
    return files


def identify(path: Path) -> Published:
    """Return the family, depth and published error of a file.

    Raises:
      ArgumentError: the file is not recognized, and its name does not have its family and depth.
    """
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    if digest in KNOWN:
        return KNOWN[digest]
    match = re.match(r"(plain|resnet)[a-z_-]*(\d+)", path.stem.lower())
    depth = int(match[2]) if match else 0
    if match is None or depth < 8 or depth % 6 != 2:
        raise jc.ArgumentError(
            f"{path} is not recognized, and its name has no family and depth; "
            "expected a name such as plain20.pt or resnet56.pt, with a depth of 6 n + 2. Rename it."
        )
    return Published("plain" if match[1] == "plain" else "residual", depth, None, None)


def evaluate_file(
    path: Path, published: Published, options: Options, data: jc.Dataset
) -> dict[str, Any]:
    """Return the table's row of one file.

    Args:
      path: the file of weights.
      published: as `identify` returns it.
      options: constants for a file that is not recognized.
      data: CIFAR-10; only its test images are used.
    """
    name = f"{'plain' if published.family == 'plain' else 'resnet'}{published.depth}"
    source = published.source
    if source:
        config = jc.TrainConfig(subtract_mean=source.mean, divide_std=source.std)
    else:
        config = jc.TrainConfig(subtract_mean=options.subtract_mean, divide_std=options.divide_std)
    model = jc.create_model(name, data.num_classes)
    padding = source.shortcut_padding if source else options.shortcut_padding
    variables = jc.load_weights(
        model, path, shortcut_padding=padding if published.family == "residual" else None
    )
    state = jc.init_state(model, jc.create_optimizer(jc.OptimizerConfig()), config, data)
    metrics = jc.evaluate(model, jc.with_variables(state, variables), data.test)
    wrong, count = int(metrics.num_wrong), int(metrics.num_examples)
    interval = stats.binomtest(wrong, count).proportion_ci(0.95, "wilson")
    return {
        "file": path.name,
        "source": source.name.split(" at ")[0] if source else None,
        "family": published.family,
        "depth": published.depth,
        "test_error": 100 * wrong / count,
        "test_error_low": 100 * float(interval.low),
        "test_error_high": 100 * float(interval.high),
        "published_test_error": published.error,
        "paper_test_error": PAPER.get((published.family, published.depth)),
    }


def draw(rows: Sequence[dict[str, Any]]) -> Figure:
    """Return the figure of error against depth, a panel for each family.

    Every source has a line with its 95% intervals, next to the paper's numbers.
    """
    panels = []
    for family, title in (("plain", "plain networks"), ("residual", "residual networks")):
        lines = []
        for source in dict.fromkeys(row["source"] for row in rows):
            points = sorted(
                (row for row in rows if (row["source"], row["family"]) == (source, family)),
                key=lambda row: row["depth"],
            )
            if points:
                depths, errors, low, high = (
                    [row[key] for row in points]
                    for key in ("depth", "test_error", "test_error_low", "test_error_high")
                )
                label = source or "files without a source"
                lines.append(plots.Line(depths, errors, low, high, label=label, marker="o"))
        paper = {
            depth: error for (kind, depth), error in PAPER.items() if kind == family and depth <= 56
        }
        lines.append(
            plots.Line(
                list(paper),
                list(paper.values()),
                label="He et al. 2015",
                dashed=True,
                marker="s",
                color="gray",
            )
        )
        panels.append(plots.Panel(title, lines, xlabel="layers", ylabel="test error (%)"))
    title = "Published weights on CIFAR-10: test error against depth, 95% intervals"
    return plots.panels(panels, share="y", title=title)


def _rounded(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(round(value, 4) for value in values)


def main(args: list[str] | None = None) -> int:
    """Evaluate every file, then write the table and the figure; return the exit code."""
    with cli.cli_errors():
        options = parse_options({"published": Options()}, args, description=__doc__)
        files = {path: identify(path) for path in find_files(options.weights)}
        cli.enable_compilation_cache()
        data = jc.load_dataset("cifar10", options.data_dir)
        rows = []
        with Progress(sum(published.depth for published in files.values())) as progress:
            for path, published in files.items():
                rows.append(evaluate_file(path, published, options, data))
                progress.advance(published.depth, path.name)
                progress.write(f"{path.name}: {rows[-1]['test_error']:.2f}%")
        rows.sort(key=lambda row: (row["family"], row["depth"], row["source"] or ""))
        sources = dict.fromkeys(
            published.source for published in files.values() if published.source
        )
        notes = [
            f"{len(data.test.labels):,} test images of CIFAR-10. Errors in percent; low and high "
            "are the 95% interval (Wilson). The paper's plain networks are read off its figure 6.",
            *(
                f"{source.name}: mean {source.mean}, standard deviation {source.std}; "
                f"{source.note}."
                for source in sources
            ),
        ]
        options.out.mkdir(parents=True, exist_ok=True)
        tables.write_table(options.out, rows, notes)
        options.save(draw(rows), options.out / "depth")
        print(tables.compact_markdown(rows), end="")
        print(f"wrote {options.out}/table.md, table.csv and depth.{options.format}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
