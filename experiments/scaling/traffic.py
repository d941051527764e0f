r"""Loopback traffic of N processes against the analytic model.

    python -m experiments.scaling.traffic \
        '{"network": "resnet8", "width": 4, "batch_size": 8, "devices": [2], "num_steps": 5,
          "rounds": 3}'

Processes of one device each train together. The command prints its measurements as JSON. The kernel
counts bytes, and a clock the seconds. It is run in a network namespace of its own where the system
permits one. The loopback's counters are then those of this measurement alone.

Gloo (jaxlib's library for CPUs) sends every tensor round a ring by itself, in 2 N segments or
fewer. It takes N - 1 turns to sum and N - 1 turns to share. In each turn a segment goes to the next
process in a message of its own, which is announced and requested in two more.
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

from experiments.scaling.analytic import CommunicationVolume
from jaxcnn.progress import Progress

CHAIN_LENGTH = 32
"""All-reduces in one call of "small". Each waits for the previous one."""
LARGE_SIZE = 1 << 18
"""Numbers (float32) in the tensor of "large"."""
GLOO_HEADER_BYTES = 3 * 48
"""Bytes that gloo adds to a message.

A message is announced, requested and sent, each with six words of 8 bytes (struct Op of
gloo/transport/tcp/pair.h).
"""
PACKET_HEADER_BYTES = 20 + 32
"""Bytes of IP and of TCP (with time stamps) in each packet.

Loopback does not count the 14 of Ethernet.
"""
Workers = list[subprocess.Popen[str]]
Rows = Sequence[Mapping[str, Any]]


def num_messages(tensors: Sequence[int], devices: int) -> int:
    """Return the number of messages of all processes together.

    A tensor of b bytes is split into segments of b / (2 N) bytes, rounded up to whole numbers.
    Empty segments are not sent (gloo/allreduce.cc, `ring`; it is so up to 2 N MiB).

    Args:
      tensors: numbers of 4 bytes in each.
      devices: N.

    Example:
      >>> [num_messages([n], 2) for n in (1, 4, 1000)], num_messages([1000], 4)
      ([2, 8, 8], 48)
    """
    segments = [math.ceil(size / math.ceil(size / (2 * devices))) for size in tensors]
    return 2 * (devices - 1) * sum(segments)


def expected_bytes(tensors: Sequence[int], devices: int) -> int:
    """Return the bytes that all processes send, without the headers of packets.

    They are the ring's and gloo's own. The arguments are those of `num_messages`.

    Example:
      >>> expected_bytes([1000], 2) - 2 * 4000
      1152
    """
    ring = 2 * (devices - 1) * 4 * sum(tensors)
    return ring + GLOO_HEADER_BYTES * num_messages(tensors, devices)


def namespace_prefix() -> list[str]:
    """Return the command that runs another one in its own network namespace.

    The loopback there is up. The list is empty where the system does not permit namespaces.
    """
    start_loopback = 'ip link set lo up && exec "$@"'
    prefix = ["unshare", "--map-root-user", "--net", "sh", "-c", start_loopback, "sh"]
    if not all(shutil.which(tool) for tool in ("unshare", "ip")):
        return []
    is_permitted = subprocess.run([*prefix, "true"], capture_output=True).returncode == 0
    return prefix if is_permitted else []


def loopback_counters() -> tuple[int, int]:
    """Read the bytes and packets that loopback has carried."""
    with Path("/proc/net/dev").open() as file:
        (line,) = (line for line in file if line.strip().startswith("lo:"))
    size, packets = line.split(":")[1].split()[:2]
    return int(size), int(packets)


@contextmanager
def start_workers(settings: Mapping[str, Any], devices: int) -> Iterator[Workers]:
    """Start the processes of one ring, and wait until they have compiled.

    They are killed at the end.
    """
    with socket.socket() as free_socket:
        free_socket.bind(("127.0.0.1", 0))
        port = free_socket.getsockname()[1]
    flags = "--xla_force_host_platform_device_count=1"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    workers: Workers = []
    try:
        for process_id in range(devices):
            ring = {"port": port, "processes": devices, "process_id": process_id}
            argument = json.dumps({**settings, **ring})
            workers.append(
                subprocess.Popen(
                    [sys.executable, "-m", "experiments.scaling.worker", argument],
                    env=env,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
            )
        _read_reply(workers[0], "ready")
        # The others read from the cache what the first one has compiled.
        for worker in workers[1:]:
            _send(worker, "go")
        for worker in workers[1:]:
            _read_reply(worker, "ready")
        yield workers
    finally:
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.communicate()


def _read_reply(worker: subprocess.Popen[str], word: str) -> str:
    """Return the remainder of the next line that begins with the word."""
    assert worker.stdout
    # Gloo prints there, too, which processes it is connected with.
    for line in worker.stdout:
        if line.startswith(word):
            return line.removeprefix(word)
    raise RuntimeError(
        "a process of the ring has ended; run the worker's command by hand to see why"
    )


def _send(worker: subprocess.Popen[str], line: str) -> None:
    assert worker.stdin
    worker.stdin.write(f"{line}\n")
    worker.stdin.flush()


def measure_work(workers: Workers, work: str, times: int) -> dict[str, float]:
    """Run a work in all processes, and measure one repetition of it.

    Args:
      workers: the processes of a ring.
      work: batch, device, small or large; see `experiments.scaling.worker`.
      times: repetitions.

    Returns:
      Seconds of the slowest process, and bytes and packets over loopback, each divided by the
      number of repetitions.
    """
    before = loopback_counters()
    for worker in workers:
        _send(worker, f"{work} {times}")
    seconds = max(float(_read_reply(worker, "took ")) for worker in workers)
    after = loopback_counters()
    size, packets = (last - first for last, first in zip(after, before, strict=True))
    return {"seconds": seconds / times, "bytes": size / times, "packets": packets / times}


def measure(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Measure all works of all rings, in turns.

    Other load on the machine then affects all of them alike.

    Args:
      settings: network, width, batch_size, devices (a list), num_steps and rounds.

    Returns:
      A row for each measurement, with "round", "devices", "work" and the result of `measure_work`.
    """
    rows, rings, processes = [], {}, sum(settings["devices"])
    with ExitStack() as stack, Progress(processes * (1 + settings["rounds"])) as progress:
        for n in settings["devices"]:
            rings[n] = stack.enter_context(start_workers(settings, n))
            progress.advance(n, f"wire: {n} processes wait")
        works = [
            (n, work)
            for n in rings
            for work in (("batch", "device", "small", "large") if n > 1 else ("batch",))
        ]
        # Connections are made and memory is allocated before the first round.
        for n, work in works:
            measure_work(rings[n], work, 2)
        for turn in range(settings["rounds"]):
            for n, work in works:
                measurement = measure_work(rings[n], work, settings["num_steps"])
                rows.append({"round": turn, "devices": n, "work": work} | measurement)
            progress.advance(processes, f"wire: round {turn + 1}")
    return rows


def _values(rows: Rows, work: str, devices: int, key: str) -> list[float]:
    return [row[key] for row in rows if (row["work"], row["devices"]) == (work, devices)]


def _median(rows: Rows, work: str, devices: int, key: str) -> float:
    return statistics.median(_values(rows, work, devices, key))


def byte_rows(rows: Rows, volumes: Mapping[str, CommunicationVolume]) -> list[dict[str, Any]]:
    """Return the bytes of a step, as expected and as counted.

    They are those of all processes together.

    Args:
      rows: of `measure`.
      volumes: communication volume by scope of BN.

    Returns:
      A row for each number of processes and scope of BN.
    """
    table = []
    for devices in sorted({row["devices"] for row in rows} - {1}):
        for norm, volume in volumes.items():
            size, packets = (_median(rows, norm, devices, key) for key in ("bytes", "packets"))
            expected = expected_bytes(volume.tensors, devices)
            counted = size - PACKET_HEADER_BYTES * packets
            row: dict[str, Any] = {
                "processes": devices,
                "bn": norm,
                "reduced": volume.bytes,
                "ring": 2 * (devices - 1) * volume.bytes,
                "messages": num_messages(volume.tensors, devices),
                "ring_and_gloo": expected,
                "counted_without_tcp": round(counted),
                "counted_over_paper": counted / expected,
                "counted": round(size),
                "packets": round(packets),
            }
            table.append(row)
    return table


def time_rows(rows: Rows, volumes: Mapping[str, CommunicationVolume]) -> list[dict[str, Any]]:
    """Return the milliseconds of a step, as measured and as predicted.

    The prediction is from one process's step and from all-reduces alone. Gloo's latency is that of
    every tensor, since it sends them one by one.

    Args:
      rows: of `measure`.
      volumes: communication volume by scope of BN.

    Returns:
      A row for each number of processes and scope of BN.
    """
    one_process = None
    if any(row["devices"] == 1 for row in rows):
        one_process = 1e3 * _median(rows, "batch", 1, "seconds")
    table = []
    for devices in sorted({row["devices"] for row in rows} - {1}):
        latency = 1e3 * _median(rows, "small", devices, "seconds") / CHAIN_LENGTH
        large = 1e3 * _median(rows, "large", devices, "seconds")
        ms_per_byte = (large - latency) / (4 * LARGE_SIZE)
        for norm, volume in volumes.items():
            times = [1e3 * seconds for seconds in _values(rows, norm, devices, "seconds")]
            communication = len(volume.tensors) * latency + volume.bytes * max(ms_per_byte, 0.0)
            row: dict[str, Any] = {
                "processes": devices,
                "bn": norm,
                "tensors": len(volume.tensors),
                "ms_per_tensor": latency,
                "wire_ms": communication,
                "one_process_ms": one_process,
                "predicted_ms": None if one_process is None else one_process + communication,
                "step_ms": statistics.median(times),
                "least_ms": min(times),
                "most_ms": max(times),
            }
            table.append(row)
    return table


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
