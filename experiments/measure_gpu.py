"""Measurements on one GPU in minutes: tests, benchmark, speed run and depth study, one by one.

    python -m experiments.measure_gpu                      at most 9.5 minutes of one GPU
    python -m experiments.measure_gpu --preset rehearsal   tiny, on a CPU: 16 minutes
    python -m experiments.measure_gpu --parts depth --seconds 3600

Without a GPU it ends with an error, and `--preset rehearsal` runs the same commands on the CPU.

The parts are processes of public commands, each with a log and a time limit of its own:

- device: versions, device and driver.
- tests: those marked `gpu` (one step is the CPU's, pmap is jit, a resumed run is the unbroken one).
- benchmark: ResNet-20 and -56 in turns with PyTorch, then ResNet-20 with other CUDA graphs.
- speedrun: as many runs to 94% on CIFAR-10 as fit.
- depth: plain and residual networks of 20 and 56 layers on CIFAR-10, 64,000 steps in bfloat16.

A CUDA graph is a recording of many small operations of the GPU, which then start together, not one
by one. XLA calls it a command buffer. The benchmark measures three ways of recording: the choice of
`jaxcnn.nvidia` (`chosen`), XLA's own (`xla`) and no recording (`none`). The last two parts use the
fastest of them.

A part that fails does not stop the next. At its limit a part gets SIGTERM, saves and ends; SIGKILL
comes `--grace` seconds later. Ctrl-C does that to the part under way and ends. The same command
resumes: it leaves out what is finished and repeats the rest, of which speedrun and depth continue
where they were.

It writes OUT/summary.md, OUT/logs/ and a folder for each part. OUT/results/ has the files to copy
from the machine, at most 15 MiB each: summary.md and .csv, benchmark.csv, records.zip (logs,
tables, metrics), parameters.zip (final parameters, safetensors) and states.zip (states of
unfinished runs). With records.zip and states.zip unpacked in OUT, the same command resumes on
another machine.

What it needs there: this folder, JAX for the GPU and the library's dependencies but
tensorflow-datasets and array-record, pytest, for comparison PyTorch, and CIFAR-10 as the library
stores it in $JAXCNN_CACHE (184 MB; JAXCNN_CACHE=cache and one `jaxcnn.load_dataset("cifar10")` make
it). Without a network it can travel in pieces:

    git archive HEAD | tar -x -C there
    tar -C cache -c data/cifar10 | split -b 60m - part.
    cat part.* | tar -x -C cache

Expected on one H100, by arithmetic on bytes and launches: ResNet-20 in 1 to 2 minutes, ResNet-56 in
3 to 5. Nothing of it has been measured yet.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

import experiments
import jaxcnn as jc
from experiments._common import READ_TIMEOUT, DtypeName
from experiments._options import parse_options
from jaxcnn import cli, nvidia, tables
from jaxcnn._util import write_atomically
from jaxcnn.checkpoint import CheckpointError
from jaxcnn.data import DATASETS
from jaxcnn.run_log import read_json, write_text

Part = Literal["device", "tests", "benchmark", "speedrun", "depth"]
Graphs = Literal["fastest", "chosen", "xla", "none"]
ROOT = Path(experiments.__file__).parent.parent
"""Folder of the repository, from which commands are imported."""
ENDS_WITH_PARENT = """
import ctypes, os, sys
try:
    ctypes.CDLL(None).prctl(1, 15)
except AttributeError:
    pass
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""
"""Program that becomes another one, which gets SIGTERM (15) when its parent ends (on Linux).

A parent that is killed, or stopped twice by Ctrl-C, must not leave a process on the GPU.
"""
GRAPHS: dict[str, dict[str, str]] = {
    "chosen": {},
    "xla": {nvidia.PLAIN: "1"},
    "none": {"XLA_FLAGS": f"--{nvidia.OPTION}="},
}
"""Environment of each way to record CUDA graphs. XLA_FLAGS are added to the user's."""
BACKEND = "import jax; print(jax.default_backend())"
REPORT = "import jax; jax.print_environment_info()"
DRAW_SECONDS = 60.0
MIN_SECONDS = 5.0
"""Least time in which a part is started."""
POLL_SECONDS = 0.05
MAX_FILE_BYTES = 15 << 20
"""Of a file in OUT/results."""
MAX_LOG_BYTES = 1 << 20
"""Of a log in records.zip: its end."""
RECORDS = (".json", ".jsonl", ".csv", ".md", ".png", ".log")
"""Suffixes of the files in records.zip."""


@dataclass(frozen=True)
class Options:
    """Every setting; `--preset` chooses the defaults."""

    preset: Literal["full", "rehearsal"] = "full"
    """full: the whole plan, on a GPU. rehearsal: the same commands with tiny sizes, on a CPU."""
    parts: tuple[Part, ...] = ("device", "tests", "benchmark", "speedrun", "depth")
    """Parts to run, in this order."""
    seconds: float = 540.0
    """Seconds for all parts together. Tables and results take up to three minutes more."""
    tests_seconds: float = 60.0
    """Limit of the tests, in seconds."""
    benchmark_seconds: float = 100.0
    """Limit of the comparison with PyTorch, in seconds. The other two --graphs get half of it
    each."""
    speedrun_seconds: float = 60.0
    """Limit of the speed run, in seconds."""
    depth_seconds: float = 100_000.0
    """Limit of the depth study, in seconds, if as many are left."""
    grace: float = 20.0
    """Seconds that a part has for saving at its limit, between SIGTERM and SIGKILL."""
    graphs: Graphs = "fastest"
    """CUDA graphs of speedrun and depth: recordings of many small operations, which the GPU starts
    together. chosen: recorded as jaxcnn does. xla: as XLA does by default. none: no recording.
    fastest: the fastest of these in the benchmark."""
    networks: tuple[str, ...] = ("resnet20", "resnet56")
    """Networks of the benchmark. The first one decides which --graphs are the fastest."""
    steps: int = 200
    """Training steps of one measurement of the benchmark."""
    rounds: int = 5
    """Rounds of the benchmark."""
    dtype: DtypeName = "bfloat16"
    runs: int = 50
    """Runs of the speed run, as many as its limit allows."""
    speedrun_preset: Literal["cifar10", "short", "digits"] = "cifar10"
    """Preset of the speed run."""
    depths: tuple[int, ...] = (20, 56)
    """Layers of the networks of the depth study, each 6 n + 2."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the depth study."""
    num_steps: int = 64_000
    """Training steps of a run of the depth study. The rate falls at half and at three quarters of
    them."""
    eval_every: int = 2_000
    """Steps between evaluations and checkpoints of the depth study."""
    dataset: str = "cifar10"
    """Data set of the depth study."""
    width: int = 16
    """Filters of the first stage in the depth study."""
    out: Path = Path("runs/gpu")
    """Folder for logs, tables, results and runs."""


PRESETS = {
    "full": Options(),
    "rehearsal": Options(
        preset="rehearsal",
        seconds=1800.0,
        tests_seconds=600.0,
        benchmark_seconds=300.0,
        speedrun_seconds=200.0,
        networks=("lenet5-relu", "resnet20"),
        steps=2,
        rounds=2,
        runs=2,
        speedrun_preset="digits",
        depths=(8, 14),
        num_steps=20,
        eval_every=10,
        dataset="digits",
        width=4,
        out=Path("runs/gpu-rehearsal"),
    ),
}


Files = dict[str, bytes]
"""Contents of files by their names in an archive."""


class Job(NamedTuple):
    """A process of the plan."""

    name: str
    part: str
    command: list[str]
    """Arguments of Python."""
    env: dict[str, str]
    """Variables that are added to this process's."""
    seconds: float


class Outcome(NamedTuple):
    """End of a process."""

    exit_code: int
    seconds: float
    ended_by: str
    """"itself", "its time limit" or "the user"."""


def check_options(options: Options) -> None:
    """Check the options before anything is started.

    Raises:
      ArgumentError: an option is invalid.
    """
    for name, example in (("parts", "tests depth"), ("networks", "resnet20"), ("seeds", "0")):
        if not getattr(options, name):
            raise jc.ArgumentError(f"{name} is empty; write --{name} {example}")
    names = ("seconds", "tests_seconds", "benchmark_seconds", "speedrun_seconds", "depth_seconds")
    for name in names:
        if getattr(options, name) < MIN_SECONDS:
            raise jc.ArgumentError(
                f"{name} is {getattr(options, name):g}; expected at least {MIN_SECONDS:g}: "
                f"write {cli.flag_name(name)} 60"
            )
    if options.grace < 0:
        raise jc.ArgumentError(f"grace is {options.grace:g}; expected at least 0: write --grace 20")
    for name in ("num_steps", "eval_every", "runs", "rounds", "steps"):
        if getattr(options, name) < 1:
            raise jc.ArgumentError(
                f"{name} is {getattr(options, name)}; expected at least 1: "
                f"write {cli.flag_name(name)} 4"
            )


def add_flags(env: Mapping[str, str], inherited: Mapping[str, str]) -> dict[str, str]:
    """Return `env` with the flags of the user's XLA_FLAGS in front of its own.

    Example:
      >>> add_flags({"XLA_FLAGS": "--b=2"}, {"XLA_FLAGS": "--a=1"})
      {'XLA_FLAGS': '--a=1 --b=2'}
    """
    if "XLA_FLAGS" not in env:
        return dict(env)
    return {**env, "XLA_FLAGS": f"{inherited.get('XLA_FLAGS', '')} {env['XLA_FLAGS']}".strip()}


def module(name: str, **arguments: Any) -> list[str]:
    """Return the command of a module with options.

    Example:
      >>> module("experiments.depth", num_steps=4, seeds=(0, 1))
      ['-m', 'experiments.depth', '--num-steps', '4', '--seeds', '0', '1']
    """
    command = ["-m", name]
    for key, value in arguments.items():
        values = value if isinstance(value, tuple) else (value,)
        command += [cli.flag_name(key), *map(str, values)]
    return command


def plan(options: Options) -> list[Job]:
    """Return the jobs of the chosen parts, in order.

    Those of speedrun and depth have no environment for CUDA graphs yet.
    """
    is_rehearsal = options.preset == "rehearsal"
    pytest = ["-m", "pytest", "-p", "no:cacheprovider", "-o", "addopts=", "-W", "default", "-q"]
    rehearse = {"JAXCNN_REHEARSE_GPU": "1"} if is_rehearsal else {}
    jobs = [
        Job("device", "device", ["-c", REPORT], {}, options.tests_seconds),
        Job(
            "tests",
            "tests",
            [*pytest, str(ROOT / "tests/test_gpu.py")],
            rehearse,
            options.tests_seconds,
        ),
    ]
    common = {"dtype": options.dtype, "steps": options.steps, "rounds": options.rounds}
    for graphs, env in GRAPHS.items():
        is_first = graphs == "chosen"
        command = module(
            "experiments.benchmark",
            networks=options.networks if is_first else options.networks[:1],
            **common,
            devices=1,
            forms=("channels_last", "compile"),
            out=options.out / f"benchmark-{graphs}",
        )
        command += [] if is_first else ["--no-torch"]
        seconds = options.benchmark_seconds / (1 if is_first else 2)
        jobs.append(Job(f"benchmark-{graphs}", "benchmark", command, env, seconds))
    command = module(
        "experiments.speedrun",
        preset=options.speedrun_preset,
        runs=options.runs,
        out=options.out / "speedrun",
    )
    jobs.append(Job("speedrun", "speedrun", command, {}, options.speedrun_seconds))
    command = module(
        "experiments.depth",
        preset="paper",
        dataset=options.dataset,
        depths=options.depths,
        seeds=options.seeds,
        num_steps=options.num_steps,
        milestones=(options.num_steps // 2, options.num_steps * 3 // 4),
        eval_every=options.eval_every,
        keep_every=0,
        dtype=options.dtype,
        width=options.width,
        devices=1,
        out=options.out / "depth",
    )
    jobs.append(Job("depth", "depth", command, {}, options.depth_seconds))
    return [job for job in jobs if job.part in options.parts]


def run_job(job: Job, log: Path, grace: float, stop: Callable[[], Any]) -> Outcome:
    """Run a process to its end or its time limit; write what it prints to a log.

    Args:
      job: the process.
      log: file that its output is appended to.
      grace: seconds between SIGTERM and SIGKILL.
      stop: returns true once the user interrupts.
    """
    env = os.environ | add_flags(job.env, os.environ) | {"PYTHONUNBUFFERED": "1"}
    # The working directory stays the user's, in which relative paths are meant.
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
    start, ended_by, killed = time.monotonic(), "itself", False
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        print(f"$ {command_line(job)}", file=file, flush=True)
        # A session of its own: Ctrl-C reaches it as SIGTERM, once.
        process = subprocess.Popen(
            [sys.executable, "-c", ENDS_WITH_PARENT, str(os.getpid()), *job.command],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        deadline = start + job.seconds
        try:
            while process.poll() is None:
                if ended_by == "itself" and (stop() or time.monotonic() > deadline):
                    ended_by = "the user" if stop() else "its time limit"
                    deadline = time.monotonic() + grace
                    process.send_signal(signal.SIGTERM)
                elif ended_by != "itself" and not killed and time.monotonic() > deadline:
                    killed = True
                    process.kill()
                time.sleep(POLL_SECONDS)
        finally:
            _kill_group(process.pid)
            process.wait()
        seconds = time.monotonic() - start
        print(f"[exit code {process.returncode} after {seconds:.1f} s]", file=file)
    return Outcome(process.returncode, seconds, ended_by)


def _kill_group(pid: int) -> None:
    """End what a process has started and left, such as compilers."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def command_line(job: Job) -> str:
    """Return a job's command as a shell takes it."""
    variables = [f"{key}={shlex.quote(value)}" for key, value in job.env.items()]
    return " ".join([*variables, "python", *map(shlex.quote, job.command)])


def last_line(log: Path) -> str:
    """Return the last line that a job printed, without terminal codes and shortened."""
    lines = log.read_text("utf-8", "replace").replace("\r", "\n").splitlines()
    printed = [line.strip() for line in lines if line.strip() and not line.startswith(("$ ", "["))]
    return "".join(c for c in (printed or [""])[-1] if c.isprintable())[:200]


def fastest_graphs(options: Options) -> str:
    """Return the way to record CUDA graphs with the most images a second on the first network.

    Only those whose benchmark has ended well count. Without any it is "xla", which nothing changes.
    """
    records = read_records(options.out)
    rates = {}
    for graphs in GRAPHS:
        if records.get(f"benchmark-{graphs}", {}).get("exit_code") == 0:
            for row in _read_table(options.out / f"benchmark-{graphs}" / "table.csv"):
                if row["network"] == options.networks[0]:
                    rates[graphs] = float(row["images_per_second"])
    return max(rates, key=lambda name: rates[name]) if rates else "xla"


def _read_table(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_records(out: Path) -> dict[str, dict[str, Any]]:
    """Return the records of the jobs that have ended, by name."""
    path = out / "jobs.json"
    return read_json(path) if path.exists() else {}


def write_record(out: Path, name: str, record: Mapping[str, Any]) -> None:
    """Add the record of a job."""
    out.mkdir(parents=True, exist_ok=True)
    records = read_records(out) | {name: dict(record)}
    write_text(out / "jobs.json", json.dumps(records, indent=2) + "\n")


def choose_graphs(options: Options) -> str:
    """Return the way to record CUDA graphs of speedrun and depth.

    `run_all` stores the choice of the first one that starts, because the times of a study must be
    of one kind.
    """
    if options.graphs != "fastest":
        return options.graphs
    stored = read_records(options.out).get("graphs")
    return fastest_graphs(options) if stored is None else stored["graphs"]


def default_backend() -> str:
    """Return the backend that JAX chooses in a process of its own, or why there is none."""
    command = [sys.executable, "-c", BACKEND]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    lines = (done.stdout if done.returncode == 0 else done.stderr).splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"


def check_backend(options: Options) -> None:
    """Check that there is a GPU, or print that the CPU rehearses.

    Raises:
      ArgumentError: there is none, and the preset is not the rehearsal.
    """
    backend = default_backend()
    if options.preset == "rehearsal":
        print(f"rehearsal on the {backend.upper()}: its times say nothing about a GPU", flush=True)
    elif backend != "gpu":
        raise jc.ArgumentError(
            f"no GPU found (JAX's backend is {backend}); expected an NVIDIA GPU and JAX for it, "
            "such as pip install -e '.[cuda13]'. Use --preset rehearsal for tiny sizes on the CPU"
        )


def run_all(options: Options, stop: Callable[[], Any]) -> None:
    """Run the jobs that are not finished, each within its limit and what is left of all seconds."""
    is_checked = False
    end = time.monotonic() + options.seconds
    for job in plan(options):
        graphs = choose_graphs(options) if job.part in ("speedrun", "depth") else None
        job = job._replace(env=job.env | GRAPHS[graphs]) if graphs else job
        done = read_records(options.out).get(job.name, {})
        if done.get("exit_code") == 0 and done["command"] == command_line(job):
            print(f"{job.name}: finished before, in {done['seconds']:.0f} s", flush=True)
            continue
        if stop():
            return
        # A machine without a GPU may still collect results that are finished.
        if not is_checked:
            check_backend(options)
            is_checked = True
        # What it takes to end a process is part of the time.
        seconds = min(job.seconds, end - time.monotonic() - options.grace)
        if seconds < MIN_SECONDS:
            print(f"{job.name}: not started, as no time is left", flush=True)
            continue
        if graphs and options.graphs == "fastest":
            write_record(options.out, "graphs", {"graphs": graphs})
        print(f"{job.name}: {seconds:.0f} s at most; {command_line(job)}", flush=True)
        log = options.out / "logs" / f"{job.name}.log"
        outcome = run_job(job._replace(seconds=seconds), log, options.grace, stop)
        record = {"command": command_line(job), "graphs": graphs, **outcome._asdict()}
        record |= {"last_line": last_line(log), "date": time.strftime("%Y-%m-%d %H:%M:%S")}
        write_record(options.out, job.name, record)
        print(
            f"{job.name}: exit code {outcome.exit_code} after {outcome.seconds:.0f} s, "
            f"ended by {outcome.ended_by}; {record['last_line']}",
            flush=True,
        )


def draw_parts(options: Options, stop: Callable[[], Any]) -> None:
    """Draw tables of the runs that a part finished before it was ended."""
    records = read_records(options.out)
    for job in plan(options):
        was_ended = records.get(job.name, {}).get("exit_code", 0) != 0
        if job.part in ("speedrun", "depth") and was_ended and not stop():
            env = {"JAX_PLATFORMS": "cpu"}
            draw = job._replace(
                command=[*job.command, "--plot-only"], env=env, seconds=DRAW_SECONDS
            )
            run_job(draw, options.out / "logs" / f"{job.name}-draw.log", 1.0, stop)


def summary(options: Options) -> list[dict[str, Any]]:
    """Return a row for each job of the plan."""
    records = read_records(options.out)
    rows = []
    for job in plan(options):
        record = records.get(job.name, {})
        rows.append(
            {
                "job": job.name,
                "exit_code": record.get("exit_code"),
                "seconds": record.get("seconds"),
                "ended_by": record.get("ended_by", "not started"),
                "graphs": record.get("graphs"),
                "last_line": record.get("last_line", ""),
                "command": record.get("command", command_line(job)),
            }
        )
    return rows


def benchmark_rows(options: Options) -> list[dict[str, str]]:
    """Return the rows of all benchmarks, with their way to record CUDA graphs in a first column."""
    rows = [
        {"graphs": graphs, **row}
        for graphs in GRAPHS
        for row in _read_table(options.out / f"benchmark-{graphs}" / "table.csv")
    ]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name, "") for name in columns} for row in rows]


def collect(options: Options) -> list[str]:
    """Write OUT/results but for its summary, and return a line for each thing that is not there."""
    results = options.out / "results"
    results.mkdir(parents=True, exist_ok=True)
    rows = benchmark_rows(options)
    if rows:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(results / "benchmark.csv", text.getvalue())
    failed: list[str] = []
    parameters = list(_parameter_files(options.out / "depth", failed))
    return [
        *failed,
        *write_zip(results / "records.zip", _record_files(options.out)),
        *write_zip(results / "parameters.zip", parameters),
        *write_zip(results / "states.zip", _state_files(options.out)),
    ]


def write_zip(path: Path, groups: Iterable[Files]) -> list[str]:
    """Write a zip archive of at most `MAX_FILE_BYTES`, in place of an older one.

    Args:
      path: of the archive. There is none without files.
      groups: files by their names in the archive. A group is left out whole if it does not fit.

    Returns:
      A line for each group that was left out.
    """
    left_out, buffer, count = [], io.BytesIO(), 0
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for files in groups:
            size = sum(map(len, files.values()))
            # The sizes before compression, and of the directory's entries.
            if buffer.tell() + size + 1000 * (count + len(files)) > MAX_FILE_BYTES:
                left_out.append(f"{min(files)} ({size / 2**20:.1f} MiB) is not in {path.name}")
                continue
            for name, contents in files.items():
                archive.writestr(name, contents)
            count += len(files)
    if count:
        write_atomically(path, buffer.getvalue())
    else:
        path.unlink(missing_ok=True)
    return left_out


def _record_files(out: Path) -> Iterable[Files]:
    for path in sorted(out.rglob("*")):
        parts = path.relative_to(out).parts
        if path.suffix in RECORDS and parts[0] != "results" and "checkpoints" not in parts:
            contents = path.read_bytes()
            is_log = path.suffix == ".log"
            yield {"/".join(parts): contents[-MAX_LOG_BYTES:] if is_log else contents}


def _parameter_files(depth: Path, failed: list[str]) -> Iterable[Files]:
    """Yield the parameters of each finished run as a safetensors file.

    A line for each run whose checkpoints cannot be read is added to `failed`.
    """
    for folder in sorted(path.parent for path in depth.glob("*/result.json")):
        if not (folder / "checkpoints").is_dir():
            # It was finished on another machine.
            continue
        config = jc.ExperimentConfig.load(folder)
        num_classes = len(DATASETS[config.dataset].classes)
        model = jc.create_model(config.model, num_classes, **config.model_kwargs)
        try:
            with jc.Checkpoints(folder / "checkpoints", timeout=READ_TIMEOUT) as checkpoints:
                variables = checkpoints.variables("last")
        except CheckpointError as error:
            failed.append(f"{folder.name} is not in parameters.zip: {error}")
            continue
        file = folder / "parameters.safetensors"
        jc.export_weights(model, variables, file, {"run": folder.name})
        yield {f"{folder.name}.safetensors": file.read_bytes()}


def _state_files(out: Path) -> Iterable[Files]:
    """Yield the newest checkpoint of each run that is not finished."""
    for folder in sorted((out / "depth").glob("*/checkpoints")):
        steps = [path for path in folder.iterdir() if path.name.isdigit()]
        if steps and not (folder.parent / "result.json").exists():
            newest = max(steps, key=lambda path: int(path.name))
            paths = sorted(path for path in newest.rglob("*") if path.is_file())
            yield {path.relative_to(out).as_posix(): path.read_bytes() for path in paths}


def main(args: list[str] | None = None) -> int:
    """Run the parts that are not finished, collect the results, and return the exit code.

    It is 0 if all parts have ended well, 1 if some have not, or that of the signal.
    """
    with cli.cli_errors(), cli.GracefulShutdown() as stop:
        options = parse_options(PRESETS, args, description=__doc__)
        check_options(options)
        # Only its processes use the GPU.
        jax.config.update("jax_platforms", "cpu")
        run_all(options, stop)
        draw_parts(options, stop)
        rows = summary(options)
        left_out = collect(options)
        for folder in (options.out, options.out / "results"):
            tables.write_table(folder, rows, left_out, name="summary")
        print(tables.compact_markdown(rows), *left_out, sep="\n")
        print(f"wrote {options.out}/summary.md and {options.out}/results")
        is_complete = all(row["exit_code"] == 0 for row in rows)
        return stop.exit_code or (0 if is_complete else 1)


if __name__ == "__main__":
    sys.exit(main())
