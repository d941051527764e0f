"""`python -m experiments.search`: search with all methods, then draw tables and figures."""

from __future__ import annotations

import sys

import experiments.search as about
from experiments._common import display_names, run_study
from experiments.search.figures import bracket_panels, budget_panel, space_panels
from experiments.search.options import PRESETS, Options
from experiments.search.results import chosen_rows, notes, table_rows
from experiments.search.study import read_study, train
from jaxcnn import plots, tables


def draw(options: Options) -> None:
    """Write the tables and the figures of the finished study in `options.out`."""
    out, study = options.out, read_study(options.out)
    table = table_rows(study)
    tables.write_table(out, table, notes(study))
    tables.write_table(out, chosen_rows(study), name="chosen")
    data = display_names(study.config.dataset)
    count = len(study.trials)
    over = f"mean and range over {count} seeds" if count > 1 else "1 seed"
    title = f"Search on {data}: {over}"
    options.save(plots.panels([budget_panel(study)], title=title, size=(7.0, 4.2)), out / "budget")
    seed = min(study.trials)
    written = ["budget"]
    if {"halving", "hyperband"} & study.searches.keys():
        figure = plots.panels(
            bracket_panels(study, seed),
            columns=2,
            size=(4.3, 3.0),
            title=f"Learning curves on {data}, by the rung that stopped them (seed {seed})",
        )
        options.save(figure, out / "brackets")
        figure = plots.panels(
            space_panels(study),
            size=(4.3, 3.4),
            title=f"Configurations on {data} when they were stopped, all seeds",
        )
        options.save(figure, out / "space")
        written += ["brackets", "space"]
    print(tables.compact_markdown(table))
    names = ", ".join(f"{name}.{options.format}" for name in written)
    print(f"wrote {out}/table.md, table.csv, chosen.md, chosen.csv and {names}")


def main(args: list[str] | None = None) -> int:
    """Search with all methods, then draw; return the exit code."""
    return run_study(PRESETS, args, about.__doc__, train, draw)


if __name__ == "__main__":
    sys.exit(main())
