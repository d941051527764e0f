"""`python -m experiments.scaling`: do the parts asked for, then draw what is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

import experiments.scaling as about
import jaxcnn as jc
from experiments.scaling import compiled, paper, wire
from experiments.scaling.arithmetic import Norm, traffic
from experiments.scaling.options import Options, check
from jaxcnn import cli, plots, tables
from jaxcnn.run_log import read_json, write_text


def main(args: list[str] | None = None) -> int:
    """Do what is asked for, then draw; returns the exit code."""
    with cli.cli_errors():
        options = cli.parse({"quick": Options()}, args, about=about.__doc__)
        check(options)
        options.out.mkdir(parents=True, exist_ok=True)
        if not options.plot_only:
            if "compiled" in options.parts:
                simulate(max(options.devices))
                cli.enable_compilation_cache()
                keep(options.out / "compiled.json", compiled.run(options))
            if "wire" in options.parts:
                keep(options.out / "wire.json", on_the_wire(options))
        with cli.reading(options.out):
            draw(options)
    return 0


def simulate(devices: int) -> None:
    """So many devices on the CPU, unless the user's flags say how many, or JAX runs already."""
    flags = os.environ.get("XLA_FLAGS", "")
    if "device_count" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={devices}".strip()
    jax.config.update("jax_platforms", "cpu")


def keep(path: Path, value: Any) -> None:
    """Write it as JSON."""
    write_text(path, json.dumps(value, indent=0) + "\n")


def on_the_wire(options: Options) -> dict[str, Any]:
    """The settings and the rows that `wire.measure` gives in a network namespace of its own."""
    names = ("network", "width", "batch", "devices", "steps", "rounds")
    settings = {name: getattr(options, name) for name in names}
    prefix = wire.isolated()
    told = [*prefix, sys.executable, "-m", "experiments.scaling.wire", json.dumps(settings)]
    done = subprocess.run(told, stdout=subprocess.PIPE, text=True, check=True)
    return {"settings": settings, "own_loopback": bool(prefix), "rows": json.loads(done.stdout.splitlines()[-1])}


def draw(options: Options) -> None:
    """Tables and figures of the arithmetic, and tables of what was measured before or just now."""
    out = options.out
    lines = paper.limits(options)
    tables.write_table(out, lines, paper.assumed())
    written = ["table"]
    table_rows = {
        "counts": (paper.counts(options.depths), ["Float32, under jit; an epoch is 391 steps of 128 images."])
    }
    table_rows |= {"growth": (paper.growth(options), paper.assumed())}
    if (out / "compiled.json").exists():
        table_rows["compiled"] = (read_json(out / "compiled.json", list), ["Programs that XLA compiled for CPUs."])
    if (out / "wire.json").exists():
        table_rows |= measured(read_json(out / "wire.json"))
    for name, (rows, notes) in table_rows.items():
        (out / name).mkdir(exist_ok=True)
        tables.write_table(out / name, rows, notes)
        written.append(f"{name}/table")
    plots.save(paper.share(options), out / "share.png")
    plots.save(paper.volume(options), out / "bytes.png")
    print(tables.markdown(lines))
    print(f"wrote {', '.join(written)} (.md and .csv), share.png and bytes.png in {out}")


def measured(found: dict[str, Any]) -> dict[str, tuple[list[dict[str, Any]], list[str]]]:
    """The tables of what went over loopback: bytes and seconds, each beside the arithmetic."""
    settings, rows = found["settings"], found["rows"]
    model = jc.create_model(settings["network"], 10, width=settings["width"])
    norms: tuple[Norm, ...] = ("batch", "device")
    sent = {norm: traffic(model, (8, 8, 1), "jit", norm) for norm in norms}
    what = (
        f"{settings['network']}, width {settings['width']}, {settings['batch']} images; {settings['rounds']} rounds of "
    )
    what += f"{settings['steps']} steps. Loopback was {'' if found['own_loopback'] else 'not '}the processes' own."
    byte_notes = [
        what,
        f"Ring: 2 (N - 1) b over all wires. Gloo adds {wire.HEADERS} bytes a message, TCP/IP {wire.PACKET} a packet.",
    ]
    time_notes = [
        what,
        "All processes share this machine's cores: a step on more of them is no faster. Seconds are medians.",
    ]
    return {"bytes": (wire.sizes(rows, sent), byte_notes), "seconds": (wire.paces(rows, sent), time_notes)}


if __name__ == "__main__":
    sys.exit(main())
