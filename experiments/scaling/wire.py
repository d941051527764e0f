"""The arithmetic against the wire: N processes of one device each on loopback; the kernel counts bytes, a clock the seconds.

    python -m experiments.scaling.wire '{"network": "resnet8", "width": 4, "batch": 8, "devices": [2], "steps": 5, "rounds": 3}'

prints what it measured as JSON. It is run in a network namespace of its own where the system grants one, so that the counters
of its loopback are its own.

Gloo (jaxlib's library for CPUs) sends every tensor round a ring by itself, in 2 N segments or fewer. N - 1 times to sum and
N - 1 times to share, each segment goes to the next process in a message of its own, announced and asked for in two more.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from experiments.scaling.arithmetic import Traffic
from jaxcnn.progress import Progress

CHAIN = 32
"""All-reduces in one call of "small": each waits for the one before."""
LARGE = 1 << 18
"""Numbers (float32) in the tensor of "large"."""
HEADERS = 3 * 48
"""Bytes of gloo's own for a message: it is announced, asked for and sent, each with six words of 8 (struct Op of
gloo/transport/tcp/pair.h)."""
PACKET = 20 + 32
"""Bytes of IP and of TCP (with time stamps) around what a packet carries; loopback does not count the 14 of Ethernet."""
Group = list[subprocess.Popen[str]]
Rows = Sequence[Mapping[str, Any]]


def messages(tensors: Sequence[int], devices: int) -> int:
    """Messages of all processes together, for tensors of so many numbers of 4 bytes.

    A tensor of b bytes is cut into segments of b / (2 N) bytes, rounded up to whole numbers; empty ones are not sent
    (gloo/allreduce.cc, `ring`; it is so up to 2 N MiB).

    Example:
      >>> messages([1], 2), messages([4], 2), messages([1000], 2), messages([1000], 4)
      (2, 8, 8, 48)
    """
    each = [math.ceil(size / math.ceil(size / (2 * devices))) for size in tensors]
    return 2 * (devices - 1) * sum(each)


def expected(tensors: Sequence[int], devices: int) -> int:
    """Bytes over all wires, packets' headers not counted: the ring's, and gloo's own.

    Example:
      >>> expected([1000], 2) - 2 * 4000
      1152
    """
    return 2 * (devices - 1) * 4 * sum(tensors) + HEADERS * messages(tensors, devices)


def isolated() -> list[str]:
    """What to put before a command so that it has a loopback of its own; nothing where the system does not grant it."""
    prefix = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    if not all(shutil.which(tool) for tool in ("unshare", "ip")):
        return []
    return prefix if subprocess.run([*prefix, "true"], capture_output=True).returncode == 0 else []


def counters() -> tuple[int, int]:
    """Bytes and packets that loopback has carried."""
    with Path("/proc/net/dev").open() as file:
        (line,) = (line for line in file if line.strip().startswith("lo:"))
    size, packets = line.split(":")[1].split()[:2]
    return int(size), int(packets)


@contextmanager
def group(settings: Mapping[str, Any], devices: int) -> Iterator[Group]:
    """The processes of one ring, compiled and waiting."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1", "JAX_PLATFORMS": "cpu"}
    workers: Group = []
    try:
        for me in range(devices):
            told = json.dumps({**settings, "port": port, "processes": devices, "me": me})
            command = [sys.executable, "-m", "experiments.scaling.worker", told]
            pipe = subprocess.PIPE
            workers.append(
                subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
            )
        _until(workers[0], "ready")
        for worker in workers[1:]:  # they find in the cache what the first has compiled
            _tell(worker, "go")
        for worker in workers[1:]:
            _until(worker, "ready")
        yield workers
    finally:
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.communicate()


def _until(worker: subprocess.Popen[str], word: str) -> str:
    """What stands after the word, on the next line that begins with it."""
    assert worker.stdout
    for line in worker.stdout:  # gloo says there, too, whom it has found
        if line.startswith(word):
            return line.removeprefix(word)
    raise RuntimeError("a process of the ring has ended; run the worker's command by hand to see why")


def _tell(worker: subprocess.Popen[str], line: str) -> None:
    assert worker.stdin
    worker.stdin.write(f"{line}\n")
    worker.stdin.flush()


def ask(workers: Group, name: str, times: int) -> dict[str, float]:
    """Let all do something so often; seconds each (the slowest process's), and bytes and packets each over loopback."""
    before = counters()
    for worker in workers:
        _tell(worker, f"{name} {times}")
    seconds = max(float(_until(worker, "took ")) for worker in workers)
    size, packets = (after - first for after, first in zip(counters(), before, strict=True))
    return {"seconds": seconds / times, "bytes": size / times, "packets": packets / times}


def measure(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each reading: all of them in turn, round after round, so that what else the machine does falls on all alike."""
    rows, groups, processes = [], {}, sum(settings["devices"])
    with ExitStack() as stack, Progress(processes * (1 + settings["rounds"])) as progress:
        for n in settings["devices"]:
            groups[n] = stack.enter_context(group(settings, n))
            progress.advance(n, f"wire: {n} processes wait")
        works = [(n, name) for n in groups for name in (("batch", "device", "small", "large") if n > 1 else ("batch",))]
        for n, name in works:
            ask(groups[n], name, 2)  # connections are made, memory is taken
        for turn in range(settings["rounds"]):
            for n, name in works:
                rows.append({"round": turn, "devices": n, "work": name} | ask(groups[n], name, settings["steps"]))
            progress.advance(processes, f"wire: round {turn + 1}")
    return rows


def median(rows: Rows, work: str, devices: int, key: str) -> float:
    """Over the rounds."""
    return statistics.median(row[key] for row in rows if (row["work"], row["devices"]) == (work, devices))


def sizes(rows: Rows, sent: Mapping[str, Traffic]) -> list[dict[str, Any]]:
    """A line for each kind of BN and number of processes: bytes of a step over all wires, on paper and counted."""
    lines = []
    for devices in sorted({row["devices"] for row in rows} - {1}):
        for norm, traffic in sent.items():
            size, packets = (median(rows, norm, devices, key) for key in ("bytes", "packets"))
            paper, counted = expected(traffic.tensors, devices), size - PACKET * packets
            line: dict[str, Any] = {"processes": devices, "bn": norm, "reduced": traffic.bytes}
            line |= {"ring": 2 * (devices - 1) * traffic.bytes, "messages": messages(traffic.tensors, devices)}
            line |= {
                "ring_and_gloo": paper,
                "counted_without_tcp": round(counted),
                "counted_over_paper": counted / paper,
            }
            lines.append(line | {"counted": round(size), "packets": round(packets)})
    return lines


def paces(rows: Rows, sent: Mapping[str, Traffic]) -> list[dict[str, Any]]:
    """A line for each kind of BN and number of processes: milliseconds of a step, measured, and predicted from one
    process's step and from all-reduces alone. Gloo's latency is of every tensor, since it takes them one by one."""
    alone = 1e3 * median(rows, "batch", 1, "seconds") if any(row["devices"] == 1 for row in rows) else None
    lines = []
    for devices in sorted({row["devices"] for row in rows} - {1}):
        each = 1e3 * median(rows, "small", devices, "seconds") / CHAIN
        rate = (1e3 * median(rows, "large", devices, "seconds") - each) / (4 * LARGE)  # milliseconds a byte
        for norm, traffic in sent.items():
            seconds = [1e3 * row["seconds"] for row in rows if (row["work"], row["devices"]) == (norm, devices)]
            wire = len(traffic.tensors) * each + traffic.bytes * max(rate, 0.0)
            line: dict[str, Any] = {"processes": devices, "bn": norm, "tensors": len(traffic.tensors)}
            line |= {"ms_per_tensor": each, "wire_ms": wire, "one_process_ms": alone}
            line |= {"predicted_ms": None if alone is None else alone + wire, "step_ms": statistics.median(seconds)}
            lines.append(line | {"least_ms": min(seconds), "most_ms": max(seconds)})
    return lines


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
