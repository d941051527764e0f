"""Compiler options for NVIDIA GPUs: only there, only after a trial, never over the user's; and accepted by this jaxlib."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

import jaxcnn as jc
from jaxcnn import nvidia, parallel

# Numbers of xla.proto: the field of `DebugOptions`, and the values of `CommandBufferCmdType`.
FIELD = 258
NUMBERS = {
    "FUSION": 1, "CUBLAS": 2, "CUDNN": 3, "CONDITIONAL": 5, "CUSTOM_CALL": 7, "CUBLASLT": 8,
    "DYNAMIC_SLICE_FUSION": 9, "CONVOLUTION": 11, "COLLECTIVES_KERNEL": 13,
}  # fmt: skip


def gpu(version):
    return SimpleNamespace(platform="gpu", client=SimpleNamespace(platform_version=version))


CUDA, ROCM = gpu("PJRT C API\ncuda 12090"), gpu("PJRT C API\nrocm 60300")
TPU = SimpleNamespace(platform="tpu", client=SimpleNamespace(platform_version="libtpu cuda-free"))
DEVICE = jax.devices()[0]
SETTING = {nvidia.OPTION: "FUSION,CONVOLUTION"}


@pytest.fixture(autouse=True)
def no_user_flags(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    monkeypatch.delenv(nvidia.PLAIN, raising=False)
    clear = nvidia.options.cache_clear
    clear()
    yield
    clear()


def strategy_on(device, kind="jit"):
    strategy = parallel.Strategy(kind, jax.devices()[:1])
    strategy.devices = (device,)
    return strategy


@pytest.mark.parametrize(
    ("device", "kind", "expected"),
    [
        (CUDA, "jit", SETTING),
        (CUDA, "pmap", None),
        (ROCM, "jit", None),
        (TPU, "jit", None),
    ],
)
def test_only_jit_on_nvidia_gets_them(device, kind, expected, monkeypatch):
    monkeypatch.setattr(nvidia, "options", lambda device: dict(SETTING))
    assert strategy_on(device, kind).compiler_options() == expected


def test_several_hosts_get_none(monkeypatch):
    monkeypatch.setattr(nvidia, "options", lambda device: dict(SETTING))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert strategy_on(CUDA).compiler_options() is None


def test_a_cpu_keeps_its_own(monkeypatch):
    monkeypatch.setattr(nvidia, "options", lambda device: pytest.fail("asked on a CPU"))
    assert jc.strategy("jit", 1).compiler_options() == parallel.cpu_options()
    assert jc.strategy("pmap", 1).compiler_options() is None


@pytest.mark.parametrize("options", [SETTING, None])
def test_programs_are_compiled_with_them(options, monkeypatch):
    passed = []
    monkeypatch.setattr(jax, "jit", lambda f, **kwargs: passed.append(kwargs["compiler_options"]))
    strategy = parallel.Strategy("jit", jax.devices()[:1])
    monkeypatch.setattr(strategy, "compiler_options", lambda: options)
    strategy.compile_steps(lambda carry, fixed, index: carry)
    assert passed == [options]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("XLA_FLAGS", "--xla_gpu_enable_command_buffer="),
        ("XLA_FLAGS", "--xla_dump_to=a --xla_gpu_enable_command_buffer=+WHILE"),
        ("XLA_FLAGS", "--xla_gpu_graph_min_graph_size=1"),
        ("XLA_FLAGS", "--xla_gpu_command_buffer_scheduling_mode=SERIALIZE"),
        (nvidia.PLAIN, "1"),
    ],
)
def test_the_users_flags_have_precedence(name, value, monkeypatch):
    monkeypatch.setattr(nvidia, "_passes_trial", lambda candidate, device: True)
    assert nvidia.options(DEVICE) is not None
    nvidia.options.cache_clear()
    monkeypatch.setenv(name, value)
    assert nvidia.options(DEVICE) is None


def test_flags_about_other_things_do_not_matter(monkeypatch):
    monkeypatch.setattr(nvidia, "_passes_trial", lambda candidate, device: True)
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_autotune_level=2")
    assert nvidia.options(DEVICE) is not None


def test_what_fails_the_trial_is_left_out(monkeypatch):
    tried = []

    def older_jaxlib(candidate, device):
        tried.append(candidate[nvidia.OPTION].split(","))
        return "COLLECTIVES_KERNEL" not in tried[-1]

    monkeypatch.setattr(nvidia, "_passes_trial", older_jaxlib)
    assert nvidia.options(DEVICE) == {nvidia.OPTION: ",".join(nvidia.COMMANDS)}
    assert [len(commands) for commands in tried] == [9, 8]
    nvidia.options.cache_clear()
    monkeypatch.setattr(nvidia, "_passes_trial", lambda candidate, device: False)
    assert nvidia.options(DEVICE) is None


def test_the_trial_knows_its_values():
    """Right results pass; an unknown option, a wrong number and an error do not."""
    assert nvidia._passes_trial({}, DEVICE)
    assert not nvidia._passes_trial({"xla_gpu_no_such_option": "1"}, DEVICE)
    assert not nvidia._passes_trial({nvidia.OPTION: "FUSION,NO_SUCH_COMMAND"}, DEVICE)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_the_trial_finds_a_wrong_number(part, monkeypatch):
    trial = nvidia._trial

    def wrong(images, kernel):
        results = list(trial(images, kernel))
        last = (-1,) * results[part].ndim
        results[part] = results[part].at[last].add(1.0)
        return tuple(results)

    monkeypatch.setattr(nvidia, "_trial", wrong)
    assert not nvidia._passes_trial({}, DEVICE)


def test_this_jaxlib_accepts_an_option():
    """An unknown one would be none: then the list has to follow XLA's."""
    chosen = nvidia.options(DEVICE)
    assert chosen is not None
    assert "CONVOLUTION" in chosen[nvidia.OPTION].split(",")


def fields(message):
    """Pairs of field number and value of a serialized protocol buffer."""

    def varint(at):
        value = shift = 0
        while True:
            byte = message[at]
            value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
            if byte < 128:
                return value, at

    at = 0
    while at < len(message):
        tag, at = varint(at)
        if tag & 7 == 0:
            value, at = varint(at)
        else:
            size, at = varint(at) if tag & 7 == 2 else ({1: 8, 5: 4}[tag & 7], at)
            value, at = message[at : at + size], at + size
        yield tag >> 3, value


def test_xlas_own_commands_are_all_in_the_list(monkeypatch):
    """The option replaces XLA's list, so that one which XLA adds must be added here."""
    from jax._src.lib import xla_client  # pyright: ignore[reportPrivateImportUsage]

    compile_options = xla_client.CompileOptions()
    build = compile_options.executable_build_options
    # A message that nobody touched is not serialized.
    build.debug_options.xla_cpu_enable_fast_math = False
    messages = [value for _, value in fields(compile_options.SerializeAsString())]
    inner = [v for m in messages if isinstance(m, bytes) for _, v in fields(m)]
    debug_options = max((v for v in inner if isinstance(v, bytes)), key=len)
    values = [value for number, value in fields(debug_options) if number == FIELD]
    defaults = set(b"".join(values))
    assert {1, 2, 3} <= defaults, "the field has another number"
    chosen = {NUMBERS[name] for name in (nvidia.options(DEVICE) or {})[nvidia.OPTION].split(",")}
    assert chosen - defaults == {NUMBERS["CONVOLUTION"]}
    assert defaults <= chosen


def test_the_trial_runs_on_the_device_that_is_asked_for(monkeypatch):
    last, get = jax.devices()[-1], jax.device_get
    seen = []
    monkeypatch.setattr(jax, "device_get", lambda x: seen.extend(x) or get(x))
    with jax.default_device(jax.devices()[0]), jax.transfer_guard("disallow"):
        assert nvidia.options(last) is not None
    assert {device for array in seen for device in array.devices()} == {last}


def test_records_have_them(monkeypatch):
    strategy = jc.strategy("jit", 1)
    monkeypatch.setattr(parallel, "cpu_options", lambda: {"xla_cpu_something": "1"})
    assert parallel.describe(strategy)["compiler_options"] == {"xla_cpu_something": "1"}
    monkeypatch.setattr(type(strategy), "compiler_options", lambda self: SETTING)
    assert parallel.describe(strategy)["compiler_options"] == SETTING


def test_the_trial_runs_its_convolutions_in_the_loop():
    """Otherwise it would not try what a scan of steps does."""
    images, kernel = np.ones(nvidia.TRIAL_SHAPE, np.float32), np.ones((3, 3, 16, 16), np.float32)
    (loop,) = [
        eqn for eqn in jax.make_jaxpr(nvidia._trial)(images, kernel).eqns if "scan" in str(eqn)
    ]
    assert str(loop.params["jaxpr"]).count("conv_general_dilated[") == 3
