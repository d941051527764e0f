"""Processes of one job: their start, their communication, and their common end.

Every process runs the same program, and together they are one run over all their devices
(`jaxcnn.parallel`). Only process 0 reads and writes files. It sends what it reads, and errors of
its files, to the others. So no disk need be shared, and all processes end with the same line. A job
of one process needs no special case: it has no other process to send to.
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

from jaxcnn._util import to_one_line
from jaxcnn.config import ArgumentError

T = TypeVar("T")
CONNECT_TIMEOUT = 120
"""Seconds that the processes wait for each other at the start."""
HEARTBEAT_TIMEOUT = 20
"""Seconds of silence after which a process counts as dead."""
_CLUSTERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
"""Environment variables with the number of processes, of Slurm and Open MPI."""
_DEAD = 1
"""Exit code after an error of any process."""
_PEER_ERRORS = ("Gloo", "gloo", "NCCL", "peer", "heartbeat", "coordination")
"""Words in the errors of a collective whose other process is gone."""


class MultihostError(ValueError):
    """An error of process 0, raised on the others; one line."""


def initialize(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Make this process one of a job of several.

    This must run before JAX is first used. It starts JAX's own distributed runtime. Without
    arguments, JAX finds all three in a cluster: under Slurm's `srun`, Open MPI's `mpirun`, and on
    the hosts of a TPU slice. Elsewhere this process stays alone.

    Processes that do not find each other within `CONNECT_TIMEOUT` seconds end with one line and
    exit code 2.

    Args:
        coordinator: `HOST:PORT` of process 0, with a port that the others can reach. "auto" lets
            JAX find all three in any environment that it supports.
        num_processes: number of processes.
        process_id: index of this process, from 0.

    Raises:
        ArgumentError: one of the three is missing or invalid, or the port is in use.
    """
    arguments = {
        "coordinator": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    if coordinator == "auto" or (
        all(value is None for value in arguments.values()) and _is_in_cluster()
    ):
        arguments = {}
    elif all(value is None for value in arguments.values()):
        return
    else:
        _check(**arguments)
    # JAX's own way to stop a job ignores SIGTERM. Here the processes agree on a stop between steps,
    # with `global_max`.
    jax.config.update("jax_enable_preemption_service", False)
    timer = threading.Timer(CONNECT_TIMEOUT, _abort_connection, [arguments])
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            coordinator_address=arguments.get("coordinator"),
            num_processes=arguments.get("num_processes"),
            process_id=arguments.get("process_id"),
            initialization_timeout=2 * CONNECT_TIMEOUT,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
            shutdown_timeout_seconds=CONNECT_TIMEOUT,
        )
    except (ValueError, RuntimeError) as error:
        raise ArgumentError(
            f"this process cannot join a job: {to_one_line(error)}; "
            "write coordinator='HOST:PORT' and num_processes=2 and process_id=0 (or 1)"
        ) from None
    finally:
        timer.cancel()


def _is_in_cluster() -> bool:
    """Check if the environment describes several processes."""
    counts = [os.environ.get(name, "") for name in _CLUSTERS]
    workers = os.environ.get("TPU_WORKER_HOSTNAMES", "").count(",") + 1
    return workers > 1 or any(count.isdecimal() and int(count) > 1 for count in counts)


def _check(coordinator, num_processes, process_id):
    arguments = (
        ("coordinator", coordinator),
        ("num_processes", num_processes),
        ("process_id", process_id),
    )
    for name, value in arguments:
        if value is None:
            examples = {"coordinator": "10.0.0.1:9876", "num_processes": 2, "process_id": 0}
            raise ArgumentError(
                f"{name} is not given, but the job has several hosts: "
                f"write {name}={examples[name]!r}"
            )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ArgumentError(
            f"coordinator is {coordinator!r}; expected HOST:PORT: write coordinator='10.0.0.1:9876'"
        )
    if num_processes < 1:
        raise ArgumentError(
            f"num_processes is {num_processes}; expected at least 1: write num_processes=2"
        )
    if not 0 <= process_id < num_processes:
        raise ArgumentError(
            f"process_id is {process_id}; expected 0 to {num_processes - 1}, each of them once"
        )
    if process_id == 0:
        _check_port(int(port))


def _check_port(port):
    """Check that this process can listen on a port."""
    with socket.socket() as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
        except OSError as error:
            raise ArgumentError(
                f"coordinator's port {port} cannot be had: {error.strerror}; write another one"
            ) from None


def _abort_connection(arguments):
    address = f"at {arguments['coordinator']} " if arguments else ""
    abort(
        2,
        f"the processes did not find each other {address}within {CONNECT_TIMEOUT} s; "
        "start all of them, with the same address",
    )


def is_multihost() -> bool:
    """Check if the job has more than one process."""
    # `process_count` alone would start the devices.
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_primary() -> bool:
    """Check if this is process 0, which has files and output."""
    return not is_multihost() or jax.process_index() == 0


def global_max(number: int) -> int:
    """Return the largest of the processes' numbers.

    All processes must call this at the same point of the program.

    Example:
        >>> global_max(3)
        3
    """
    if not is_multihost():
        return number
    from jax.experimental import multihost_utils

    return int(multihost_utils.process_allgather(np.int32(number)).max())


def all_equal(text: str) -> bool:
    """Check if the texts of all processes are equal.

    All processes must call this at the same point of the program.

    Example:
        >>> all_equal("lr 0.1")
        True
    """
    if not is_multihost():
        return True
    from jax.experimental import multihost_utils

    digests = multihost_utils.process_allgather(
        np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    )
    return bool((digests == digests[0]).all())


def broadcast_from_primary(fn: Callable[[], T]) -> T:
    """Call `fn` on process 0, and return its result on every process.

    Args:
        fn: returns values of JSON. Only process 0 calls it.

    Raises:
        MultihostError: on the other processes, where `fn` raises on process 0.

    Example:
        >>> broadcast_from_primary(lambda: {"step": 3})
        {'step': 3}
    """
    if not is_multihost():
        return fn()
    return json.loads(_broadcast(lambda: json.dumps(fn()).encode()))


def broadcast_arrays_from_primary(fn: Callable[[], T | None], like: T) -> T | None:
    """Call `fn` on process 0, and return its arrays on every process.

    Args:
        fn: returns None or a pytree of arrays. Only process 0 calls it.
        like: a pytree with the same structure.

    Returns:
        The result, bit for bit.

    Raises:
        MultihostError: on the other processes, where `fn` raises on process 0.
    """
    if not is_multihost():
        return fn()

    def encode():
        tree = fn()
        return b"" if tree is None else serialization.to_bytes(tree)

    data = _broadcast(encode)
    return cast(T, serialization.from_bytes(like, data)) if data else None


def _broadcast(fn: Callable[[], bytes]) -> bytes:
    """Broadcast the bytes that `fn` returns on process 0.

    The first message has its success and the number of bytes, the second has the bytes.
    """
    error, data = None, b""
    if is_primary():
        try:
            data = fn()
        except Exception as failure:
            error, data = failure, to_one_line(failure).encode()
    failed, size = _broadcast_array(np.array([error is not None, len(data)], np.int32))
    # In whole pages, so that data of similar length use the same compiled program.
    page = np.zeros(-(-size // 4096) * 4096, np.uint8)
    page[: len(data)] = np.frombuffer(data, np.uint8)
    data = _broadcast_array(page).tobytes()[:size]
    if error is not None:
        raise error
    if failed:
        raise MultihostError(data.decode())
    return data


def _broadcast_array(array):
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.broadcast_one_to_all(array))


def abort(code: int, line: str) -> None:
    """End this process at once with one line on stderr.

    At an orderly end, JAX would wait for processes that no longer exist.
    """
    sys.stdout.flush()
    print(f"error: {line}", file=sys.stderr, flush=True)
    os._exit(code)


@contextlib.contextmanager
def abort_all_on_error() -> Iterator[None]:
    """End all processes of a job on an error in any.

    An error in the `with` block ends this process at once. The others end when they detect that
    it is gone.
    """
    try:
        yield
    except SystemExit as request:
        if is_multihost() and request.code:
            sys.stderr.flush()
            os._exit(request.code if isinstance(request.code, int) else _DEAD)
        raise
    except BaseException as error:
        # Not only JaxRuntimeError. The same words may come in another type, which depends on where
        # the end of the other process is detected.
        if (
            is_multihost()
            and isinstance(error, Exception)
            and any(word in str(error) for word in _PEER_ERRORS)
        ):
            reason = to_one_line(error, 200)
            abort(
                _DEAD,
                "another process of this job has ended, start all of them again to resume: "
                f"{reason}",
            )
        if is_multihost():
            sys.excepthook(type(error), error, error.__traceback__)
            sys.stderr.flush()
            os._exit(_DEAD)
        raise
