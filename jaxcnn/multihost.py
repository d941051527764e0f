"""The processes of one job: how they find each other, what one of them does for all, and how they end together.

Every process runs the same program; together they are one run over all their devices (`jaxcnn.parallel`). Process 0 alone
has files. What it reads from them, and what goes wrong with them, it tells the others, so that no disk need be shared and
all of them end with the same line. A job of one process is not a special case: it has nobody to tell.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar, cast

import jax
import numpy as np
from flax import serialization

from jaxcnn.recipe import ArgumentError

T = TypeVar("T")
PATIENCE = 120
"""Seconds that the processes wait for each other at the start."""
HEARTBEAT = 20
"""Seconds of silence after which a process counts as dead."""
_CLUSTERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
_DEAD = 1


class MultihostError(ValueError):
    """What process 0 could not do, as the others learn it; one line."""


def initialize(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Make this process one of a job of several, through JAX's own distributed runtime; before JAX is first used.

    With no argument the cluster is asked: under Slurm's `srun`, Open MPI's `mpirun` and on the hosts of a TPU slice JAX
    finds all three by itself, and elsewhere this process stays alone.

    Args:
      coordinator: `HOST:PORT` of process 0, with a port that the others reach; or "auto", for JAX to find all three in any
        environment that it knows.
      num_processes: how many there are.
      process_id: which of them this is, from 0.

    Raises:
      ArgumentError: one of the three is missing or cannot be, or the port is taken.

    Processes that do not find each other within `PATIENCE` seconds end with one line and exit code 2.
    """
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    if coordinator == "auto" or (all(value is None for value in given.values()) and _in_a_cluster()):
        given = {}
    elif all(value is None for value in given.values()):
        return
    else:
        _check(**given)
    # JAX's own way to stop a job swallows SIGTERM; here the processes agree on it between steps (`most`).
    jax.config.update("jax_enable_preemption_service", False)
    late = threading.Timer(PATIENCE, _give_up, [given])
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            coordinator_address=given.get("coordinator"),
            num_processes=given.get("num_processes"),
            process_id=given.get("process_id"),
            initialization_timeout=2 * PATIENCE,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=PATIENCE,
        )
    except (ValueError, RuntimeError) as error:
        raise ArgumentError(
            f"this process cannot join a job: {' '.join(str(error).split())}; write --coordinator HOST:PORT "
            "--num-processes N --process-id 0 (to N - 1)"
        ) from None
    finally:
        late.cancel()


def _in_a_cluster() -> bool:
    """Whether the environment speaks of several processes."""
    counts = [os.environ.get(name, "") for name in _CLUSTERS]
    workers = os.environ.get("TPU_WORKER_HOSTNAMES", "").count(",") + 1
    return workers > 1 or any(count.isdecimal() and int(count) > 1 for count in counts)


def _check(coordinator, num_processes, process_id):
    for name, value in (("coordinator", coordinator), ("num_processes", num_processes), ("process_id", process_id)):
        if value is None:
            like = {"coordinator": "10.0.0.1:9876", "num_processes": 2, "process_id": 0}[name]
            raise ArgumentError(f"{name} is not given, but the job has several hosts: write --{_option(name)} {like}")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ArgumentError(f"coordinator is {coordinator!r}; expected HOST:PORT: write --coordinator 10.0.0.1:9876")
    if num_processes < 1:
        raise ArgumentError(f"num_processes is {num_processes}; expected at least 1: write --num-processes 2")
    if not 0 <= process_id < num_processes:
        raise ArgumentError(f"process_id is {process_id}; expected 0 to {num_processes - 1}, each of them once")
    if process_id == 0:
        _check_port(int(port))


def _check_port(port):
    with socket.socket() as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
        except OSError as error:
            raise ArgumentError(
                f"coordinator's port {port} cannot be had: {error.strerror}; write another one"
            ) from None


def _option(name: str) -> str:
    return name.replace("_", "-")


def _give_up(given):
    what = f"at {given['coordinator']} " if given else ""
    abort(
        2, f"the processes did not find each other {what}within {PATIENCE} s; start all of them, with the same address"
    )


def is_multihost() -> bool:
    """Whether the job has more than one process."""
    return jax.distributed.is_initialized() and jax.process_count() > 1  # the latter alone would start the devices


def is_primary() -> bool:
    """Whether this is process 0, the one that has files and speaks."""
    return not is_multihost() or jax.process_index() == 0


def global_max(number: int) -> int:
    """The largest of the numbers that the processes bring; all must ask at the same point of the program.

    Example:
      >>> global_max(3)
      3
    """
    if not is_multihost():
        return number
    from jax.experimental import multihost_utils

    return int(multihost_utils.process_allgather(np.int32(number)).max())


def all_equal(text: str) -> bool:
    """Whether all processes bring this text; all must ask at the same point of the program.

    Example:
      >>> all_equal("lr 0.1")
      True
    """
    if not is_multihost():
        return True
    from jax.experimental import multihost_utils

    digests = multihost_utils.process_allgather(np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8))
    return bool((digests == digests[0]).all())


def broadcast_from_primary(work: Callable[[], T]) -> T:
    """What `work` gives on process 0, on every process; it is plain JSON. Process 0 alone does the work.

    Raises:
      HostError: on the other processes, where process 0 raises.

    Example:
      >>> broadcast_from_primary(lambda: {"step": 3})
      {'step': 3}
    """
    if not is_multihost():
        return work()
    return json.loads(_broadcast(lambda: json.dumps(work()).encode()))


def broadcast_arrays_from_primary(work: Callable[[], T | None], like: T) -> T | None:
    """The same for None or a pytree of arrays built like `like`, bit for bit."""
    if not is_multihost():
        return work()

    def encoded():
        found = work()
        return b"" if found is None else serialization.to_bytes(found)

    text = _broadcast(encoded)
    return cast(T, serialization.from_bytes(like, text)) if text else None


def _broadcast(work: Callable[[], bytes]) -> bytes:
    """The bytes that `work` makes on process 0: first how it went and how long they are, then the bytes."""
    error, text = None, b""
    if is_primary():
        try:
            text = work()
        except Exception as failure:
            error, text = failure, " ".join(str(failure).split()).encode()
    failed, size = _spread(np.array([error is not None, len(text)], np.int32))
    # In whole pages, so that texts of like lengths share what is compiled.
    page = np.zeros(-(-size // 4096) * 4096, np.uint8)
    page[: len(text)] = np.frombuffer(text, np.uint8)
    text = _spread(page).tobytes()[:size]
    if error is not None:
        raise error
    if failed:
        raise MultihostError(text.decode())
    return text


def _spread(array):
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.broadcast_one_to_all(array))


def abort(code: int, line: str) -> None:
    """End this process at once with one line on stderr: at an orderly end JAX would wait for processes that do not come."""
    sys.stdout.flush()
    print(f"error: {line}", file=sys.stderr, flush=True)
    os._exit(code)


@contextlib.contextmanager
def abort_all_on_error() -> Iterator[None]:
    """In a job of several processes, an error of any of them ends all: this one at once, the others when they miss it."""
    try:
        yield
    except SystemExit as exit:
        if is_multihost() and exit.code:
            sys.stderr.flush()
            os._exit(exit.code if isinstance(exit.code, int) else _DEAD)
        raise
    except BaseException as error:
        # Not only JaxRuntimeError: the same words have come in another type once, by where the other's end was noticed.
        if is_multihost() and isinstance(error, Exception) and any(word in str(error) for word in _PEER):
            what = " ".join(str(error).split())[:200]
            abort(_DEAD, f"another process of this job has ended, start all of them again to go on: {what}")
        if is_multihost():
            sys.excepthook(type(error), error, error.__traceback__)
            sys.stderr.flush()
            os._exit(_DEAD)
        raise


_PEER = ("Gloo", "gloo", "NCCL", "peer", "heartbeat", "coordination")
"""Words by which the errors of a collective are known whose other side is gone."""
