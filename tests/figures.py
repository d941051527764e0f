"""What tests read from a figure."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg


def boxes(figure):
    """Where the titles, labels, numbers at ticks and the legend of a figure are once it is laid out, in pixels."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    texts = [
        t
        for axis in figure.axes
        for t in (axis.title, axis.xaxis.label, axis.yaxis.label, *axis.texts)
    ]
    ticks = [
        t.label1
        for axis in figure.axes
        for one in (axis.xaxis, axis.yaxis)
        for t in one._update_ticks()
    ]
    seen = [t for t in [*texts, *ticks, *figure.texts] if t.get_text() and t.get_visible()]
    found = {f"{i} {t.get_text()}": t.get_window_extent(renderer) for i, t in enumerate(seen)}
    return found | {
        f"legend {i}": one.get_window_extent(renderer) for i, one in enumerate(figure.legends)
    }


def overlapping(figure):
    """Pairs of texts that lie over each other, and texts that leave the figure."""
    found = boxes(figure)
    names = list(found)
    over = [
        (a, b) for i, a in enumerate(names) for b in names[i + 1 :] if found[a].overlaps(found[b])
    ]
    return over + [(a, "edge") for a in names if found[a].x0 < 0 or found[a].x1 > figure.bbox.x1]


def drawn(line):
    return np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist()


def labels(figure):
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]
