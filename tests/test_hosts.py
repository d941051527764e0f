"""Several hosts, as two processes on loopback under JAX's own runtime: the same losses as one process."""

import json
import os
import socket
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
import jax
port, count, me = map(int, sys.argv[1:])
if count > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", count, me)
import jaxcnn as jc
assert jax.process_count() == count and len(jax.devices()) == 4
data, recipe = jc.load("digits"), jc.Recipe(dataset="digits", model="resnet8", batch=32, steps=4, every=2, pad=1)
model = jc.build("resnet8", 10, width=4)
rows = [row for _, row in jc.fit(model, jc.optimizer(recipe), data, recipe)]
print(json.dumps([[row[k] for k in ("train_loss", "test_loss", "test_error", "grad_norm")] for row in rows]))
"""


def losses(processes):
    """What each of `processes` processes, with four devices together, says of the same run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={4 // processes}"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    commands = [[sys.executable, "-c", SCRIPT, str(port), str(processes), str(i)] for i in range(processes)]
    pipe = subprocess.PIPE
    running = [subprocess.Popen(c, env=env, stdout=pipe, stderr=pipe, text=True) for c in commands]
    said = [process.communicate(timeout=180) for process in running]
    assert all(process.returncode == 0 for process in running), said[0][1][-2000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in said]


def test_two_processes_say_what_one_says():
    (alone,) = losses(1)
    first, second = losses(2)
    assert first == second
    for mine, theirs in zip(first, alone, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
