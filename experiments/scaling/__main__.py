"""Command `python -m experiments.scaling`: measure the selected parts, then draw."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax

import experiments.scaling as package
import jaxcnn as jc
from experiments._common import FigureOptions
from experiments._options import parse_options
from experiments.scaling import compiled, projections, traffic
from experiments.scaling.analytic import NormScope, communication_volume
from jaxcnn import cli, tables
from jaxcnn.run_log import read_json, write_text

Part = Literal["arithmetic", "compiled", "wire"]


@dataclass(frozen=True)
class Options(FigureOptions):
    """Options of all parts; there is one preset."""

    preset: Literal["quick"] = "quick"
    parts: tuple[Part, ...] = ("arithmetic", "compiled", "wire")
    """Parts to compute again. Results of the others in --out are kept."""
    depths: tuple[int, ...] = (20, 32, 56, 110, 152)
    """Layers of the arithmetic's ResNets, each 6 n + 2."""
    most: int = 1024
    """Most devices of the arithmetic: 1, 2, 4, ... up to this power of two."""
    network: str = "resnet8"
    """Network that is compiled and run."""
    width: int = 4
    """Filters of its first stage."""
    batch_size: int = 32
    """Images in a step of it, over all devices."""
    devices: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of simulated devices (compiled) and processes (wire), divisors of the batch."""
    num_steps: int = 10
    """Steps between two readings of the clock."""
    rounds: int = 5
    """Rounds of measurements. Each measures everything once, in turns."""
    out: Path = Path("runs/scaling")
    """Folder for tables, figures and results."""
    plot_only: bool = False
    """Draw tables and figures from the results in --out, and measure nothing."""


def check_options(options: Options) -> None:
    """Check the options before anything is compiled.

    Raises:
      ArgumentError: an option is invalid.
    """
    for name, example in (
        ("parts", "arithmetic compiled wire"),
        ("depths", "20 56"),
        ("devices", "1 2 4 8"),
    ):
        if not getattr(options, name):
            raise jc.ArgumentError(f"{name} is empty; write {cli.flag_name(name)} {example}")
    for name, example in (("num_steps", 10), ("rounds", 5), ("batch_size", 32), ("most", 1024)):
        if getattr(options, name) < 1:
            raise jc.ArgumentError(
                f"{name} is {getattr(options, name)}; expected at least 1: "
                f"write {cli.flag_name(name)} {example}"
            )
    for count in options.devices:
        if count < 1 or options.batch_size % count:
            raise jc.ArgumentError(
                f"devices has {count}, which does not divide the batch of {options.batch_size}; "
                "write --devices 1 2 4 8"
            )
    # Creating a model checks its name, depth and width.
    for depth in options.depths:
        jc.create_model(f"cifar-resnet{depth}", 10)
    jc.create_model(options.network, 10, width=options.width)


def main(args: list[str] | None = None) -> int:
    """Measure the selected parts, then draw, and return the exit code."""
    with cli.cli_errors():
        options = parse_options({"quick": Options()}, args, description=package.__doc__)
        check_options(options)
        options.out.mkdir(parents=True, exist_ok=True)
        if not options.plot_only:
            if "compiled" in options.parts:
                simulate_devices(max(options.devices))
                cli.enable_compilation_cache()
                rows = compiled.compare_programs(
                    options.network, options.width, options.batch_size, options.devices
                )
                _write_json(options.out / "compiled.json", rows)
            if "wire" in options.parts:
                _write_json(options.out / "wire.json", measure_traffic(options))
        with cli.record_errors(options.out):
            draw(options)
    return 0


def simulate_devices(devices: int) -> None:
    """Simulate devices on the CPU.

    Nothing changes where the user's flags set their number, or where JAX is initialized already.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "device_count" not in flags:
        flags = f"{flags} --xla_force_host_platform_device_count={devices}".strip()
        os.environ["XLA_FLAGS"] = flags
    jax.config.update("jax_platforms", "cpu")


def _write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=0) + "\n")


def measure_traffic(options: Options) -> dict[str, Any]:
    """Measure loopback traffic in a network namespace of its own.

    Returns:
      "settings", "rows" of `traffic.measure`, and "own_loopback", whether the system permitted the
      namespace.
    """
    names = ("network", "width", "batch_size", "devices", "num_steps", "rounds")
    settings = {name: getattr(options, name) for name in names}
    prefix = traffic.namespace_prefix()
    command = [sys.executable, "-m", "experiments.scaling.traffic", json.dumps(settings)]
    process = subprocess.run([*prefix, *command], stdout=subprocess.PIPE, text=True, check=True)
    rows = json.loads(process.stdout.splitlines()[-1])
    return {"settings": settings, "own_loopback": bool(prefix), "rows": rows}


def draw(options: Options) -> None:
    """Write the tables and figures.

    They are those of the arithmetic, and tables of the measurements in OUT.
    """
    out, depths = options.out, options.depths
    assumptions = projections.assumption_notes()
    limits = projections.limit_rows(depths, options.most)
    tables.write_table(out, limits, assumptions)
    written = ["table"]
    table_rows = {
        "counts": (
            projections.network_rows(depths),
            ["Float32, under jit; an epoch is 391 steps of 128 images."],
        ),
        "growth": (projections.growth_rows(depths, options.most), assumptions),
    }
    if (out / "compiled.json").exists():
        rows = read_json(out / "compiled.json", list)
        table_rows["compiled"] = (rows, ["Programs that XLA compiled for CPUs."])
    if (out / "wire.json").exists():
        table_rows |= traffic_tables(read_json(out / "wire.json"))
    for name, (rows, notes) in table_rows.items():
        (out / name).mkdir(exist_ok=True)
        tables.write_table(out / name, rows, notes)
        written.append(f"{name}/table")
    options.save(projections.share_figure(depths, options.most), out / "share")
    options.save(projections.volume_figure(depths), out / "bytes")
    print(tables.compact_markdown(limits))
    figures = f"share.{options.format} and bytes.{options.format}"
    print(f"wrote {', '.join(written)} (.md and .csv), {figures} in {out}")


def traffic_tables(
    measurement: dict[str, Any],
) -> dict[str, tuple[list[dict[str, Any]], list[str]]]:
    """Return rows and notes of the tables "bytes" and "seconds".

    Both compare loopback traffic with the analytic model.

    Args:
      measurement: of `measure_traffic`.
    """
    settings, rows = measurement["settings"], measurement["rows"]
    model = jc.create_model(settings["network"], 10, width=settings["width"])
    norms: tuple[NormScope, ...] = ("batch", "device")
    volumes = {norm: communication_volume(model, (8, 8, 1), "jit", norm) for norm in norms}
    description = (
        f"{settings['network']}, width {settings['width']}, {settings['batch_size']} images; "
        f"{settings['rounds']} rounds of {settings['num_steps']} steps. "
        f"Loopback was {'' if measurement['own_loopback'] else 'not '}the processes' own."
    )
    byte_notes = [
        description,
        f"Ring: 2 (N - 1) b over all wires. Gloo adds {traffic.GLOO_HEADER_BYTES} bytes a message, "
        f"TCP/IP {traffic.PACKET_HEADER_BYTES} a packet.",
    ]
    time_notes = [
        description,
        "All processes share this machine's cores: a step on more of them is no faster. "
        "Seconds are medians.",
    ]
    return {
        "bytes": (traffic.byte_rows(rows, volumes), byte_notes),
        "seconds": (traffic.time_rows(rows, volumes), time_notes),
    }


if __name__ == "__main__":
    sys.exit(main())
