"""After training: figure 7 of the paper, and what became of gradient and rank since the start."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from experiments.signal_propagation import figures, measure, reading, without
from experiments.signal_propagation.figures import Measured
from experiments.signal_propagation.networks import Net
from experiments.signal_propagation.options import Options
from jaxcnn import plots, tables

check = reading.check
FLAT = 5
"""A linear axis holds so many times the median."""


def run(options: Options, stop: Any) -> bool:
    """Measure the start and the end of every run; False when stopped on the way."""
    rows = partial(measure.signals, train=options.mode == "train")
    return reading.run(options, stop, "end", rows, path=False)


def draw(options: Options) -> list[dict[str, Any]]:
    """`std.png`, `gradient.png`, `rank.png` and the table, from what is measured."""
    folder = options.out / "end"
    found = list(measure.everything(folder).values())
    ends = [(head, last(rows)) for head, rows in found]
    firsts = [one for one in found if one[0]["net"]["seed"] == min(head["net"]["seed"] for head, _ in found)]
    firsts.sort(key=lambda one: not one[0]["net"]["batch_norm"])
    asked = found[0][0]["asked"]
    mode = "their own moments" if asked["mode"] == "train" else "moving averages"
    n, images = found[0][0]["what"], f"measured on {asked['images']} training images, responses with BN by {mode}"
    plots.save(responses([(head, last(rows)) for head, rows in firsts], f"After training: {n}"), folder / "std.png")
    for key in ("gradient", "rank"):
        plots.save(change(firsts, key, n), folder / f"{key}.png")
    lines = [figures.line(head, rows) for head, rows in ends]
    tables.write_table(
        folder, lines, [*figures.notes(f"{n}; {images}"), *said(ends), *without.told(options.out / "trials")]
    )
    return lines


def last(rows: Sequence[measure.Row]) -> list[measure.Row]:
    """The rows of the newest step."""
    newest = max(row["step"] for row in rows)
    return [row for row in rows if row["step"] == newest]


def responses(found: Sequence[Measured], title: str) -> Any:
    """Figure 7: std of responses by layer, in order above and ranked below; without BN on the right, on axes of its own."""
    panels = []
    for ranked in (False, True):
        for norm in (True, False):
            lines = [_line(head, rows, ranked) for head, rows in found if head["net"]["batch_norm"] == norm]
            name = f"{'with' if norm else 'without'} BN, {'ranked by magnitude' if ranked else 'in order'}"
            x = "layer (sorted by magnitude)" if ranked else "layer"
            axes: dict[str, Any] = {"xlabel": x, "ylabel": "std of responses"}
            panels += [plots.Panel(name, lines, **axes, **_scale(lines))] if lines else []
    return plots.panels(panels, columns=2, share="none", size=(5.4, 3.4), title=title)


def _scale(lines: Sequence[plots.Line]) -> dict[str, Any]:
    """From 0, as in the paper; or logarithmic, where the largest would press the others flat."""
    values = [value for line in lines for value in line.y if value]
    if values and max(values) < FLAT * float(np.median(values)):
        return {"ylim": (0, 1.08 * max(values))}
    return {"ylog": True}


def _line(head: measure.Row, rows: Sequence[measure.Row], ranked: bool) -> plots.Line:
    kind, values = Net(**head["net"]), figures.positive(rows, "std")
    values = sorted(values, key=lambda value: -(value or 0)) if ranked else values
    return plots.Line(range(1, len(values) + 1), values, label=kind.label, dashed=not kind.residual)


def change(found: Sequence[Measured], key: str, title: str) -> Any:
    """A quantity by layer at the start and at the end of training, a panel for each network."""
    panels = []
    for name in dict.fromkeys(Net(**head["net"]).label for head, _ in found):
        lines = []
        for head, rows in (one for one in found if Net(**one[0]["net"]).label == name):
            norm = head["net"]["batch_norm"]
            for part, dashed in ((rows[: len(last(rows))], True), (last(rows), False)):
                label = f"{'with' if norm else 'without'} BN, {'before' if dashed else 'after'} training"
                style: dict[str, Any] = {"dashed": dashed, "color": plots.COLORS[0 if norm else 1]}
                x, y = [row["index"] for row in part], figures.positive(part, key)
                lines.append(plots.Line(x, y, label=label, **style))
        panels.append(plots.Panel(name, lines, (), "layer", figures.QUANTITIES[key], ylog=True))
    return plots.panels(panels, columns=2, share="y", size=(5.0, 3.2), title=title)


def said(ends: Sequence[Measured]) -> list[str]:
    """Whether the responses are as the paper has them, in its words and these numbers; and who diverged."""
    heads = [(Net(**head["net"]), head) for head, _ in ends]
    gone = [f"{kind.label} without BN diverged at step {head['diverged']}." for kind, head in heads if head["diverged"]]
    mean: dict[bool, dict[int, list[float]]] = {True: {}, False: {}}
    for head, rows in ends:
        kind, stds = Net(**head["net"]), [row["std"] for row in rows]
        if kind.batch_norm and None not in stds:
            mean[kind.residual].setdefault(kind.depth, []).append(float(np.mean(stds)))
    means = {kind: {depth: float(np.mean(seeds)) for depth, seeds in part.items()} for kind, part in mean.items()}
    return [*_compared(means[False], means[True]), *gone]


def _compared(plain: dict[int, float], residual: dict[int, float]) -> list[str]:
    both = sorted(plain.keys() & residual.keys())
    sentences = [
        f"Mean std of responses at depth {depth}: plain {plain[depth]:.3f}, residual {residual[depth]:.3f}; smaller in the "
        f"residual network, as in the paper: {'yes' if residual[depth] < plain[depth] else 'no'}."
        for depth in both
    ]
    if len(residual) > 1:
        few, many = min(residual), max(residual)
        sentences.append(
            f"Smaller in the deeper residual network, as in the paper ({residual[many]:.3f} at depth {many}, "
            f"{residual[few]:.3f} at depth {few}): {'yes' if residual[many] < residual[few] else 'no'}."
        )
    return sentences
