"""What a step sends: the paper against XLA's programs, a ring and gloo by hand, multiply-adds against what is published."""

import csv
import json
import math

import numpy as np
import pytest
from scripts import refuses

import jaxcnn as jc
from experiments.scaling import compiled, projections, traffic
from experiments.scaling.__main__ import main
from experiments.scaling.analytic import (
    LINKS,
    Link,
    NormScope,
    StepTime,
    StrategyKind,
    all_reduce_latency,
    communication_volume,
    multiply_adds,
    ring_bytes,
    step_time,
    steps_per_epoch,
)

PUBLISHED = {20: 40.6e6, 56: 1.25e8, 110: 2.53e8}
"""Multiply-adds: 20 by hand from table 6 of He et al. 2015; 56 and 110 Li et al. 2017 (arXiv:1608.08710), table 1."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jit", "pmap"])
@pytest.mark.parametrize("devices", [1, 2, 8])
def test_the_program_sends_what_the_paper_says(kind, devices):
    line = compiled.compare_program("resnet8", 2, kind, "batch", devices)
    assert line["every_tensor_equal"], line
    assert line["bytes_in_program"] == line["bytes_on_paper"]


@pytest.mark.slow
def test_bn_within_a_device_leaves_two_collectives():
    line = compiled.compare_program("resnet8", 2, "jit", "device", 4)
    assert line["every_tensor_equal"], line
    assert line["collectives_in_program"] == 2


@pytest.mark.slow
def test_the_count_grows_with_depth_as_on_paper():
    line = compiled.compare_program("resnet20", 2, "jit", "batch", 2)
    assert line["every_tensor_equal"], line
    assert line["collectives_in_program"] == 2 * 19 + 2


def test_every_kind_of_collective_is_read():
    text = """
      %a = (f32[1,4]{1,0}, /*index=1*/s32[]) all-reduce(%x, %y), channel_id=1
      %b = f32[8]{0} all-gather-start(%z), dimensions={0}
      ROOT %c = f32[2,3]{1,0} add(%all-reduce.1, %b)
    """
    assert compiled.parse_collectives(text) == [("all-reduce", (4, 1)), ("all-gather", (8,))]
    with pytest.raises(NotImplementedError, match="bf16"):
        compiled.parse_collectives("  %a = bf16[4]{0} all-reduce(%x)")


@pytest.mark.parametrize("devices", [1, 2, 3, 8])
def test_a_ring_sums_with_the_bytes_of_the_formula(devices):
    """Every device sends a part to the next N - 1 times, adding, and N - 1 times, copying."""
    held = (
        np.random.default_rng(0).normal(size=(devices, devices, 5)).astype(np.float32)
    )  # device, part, numbers
    total, sent = held.sum(0), np.zeros(devices, int)
    for turn in range(2 * (devices - 1)):
        before = held.copy()
        for me in range(devices):
            part, to = (me - turn) % devices, (me + 1) % devices
            held[to, part] = before[me, part] + (before[to, part] if turn < devices - 1 else 0)
            sent[me] += before[me, part].nbytes
    np.testing.assert_allclose(held, np.broadcast_to(total, held.shape), rtol=1e-5)
    assert (sent == ring_bytes(total.nbytes, devices)).all()


@pytest.mark.parametrize("devices", [2, 4])
def test_gloo_cuts_tensors_as_counted(devices):
    """The offsets of 2 N segments of equal bytes, rounded up to numbers: those that begin inside the tensor are sent."""
    sizes = [1, 3, 4, 8, 10, 144, 1001]
    whole = 0
    for size in sizes:
        each = 4 * math.ceil(math.ceil(4 * size / (2 * devices)) / 4)
        whole += sum(i * each < 4 * size for i in range(2 * devices))
    assert traffic.num_messages(sizes, devices) == 2 * (devices - 1) * whole
    carried = 2 * (devices - 1) * 4 * sum(sizes)
    assert traffic.expected_bytes(sizes, devices) == carried + 144 * traffic.num_messages(
        sizes, devices
    )


@pytest.mark.slow
@pytest.mark.parametrize("depth", PUBLISHED)
def test_multiply_adds_are_the_published(depth):
    model, n = jc.create_model(f"cifar-resnet{depth}", 10), (depth - 2) // 6
    assert multiply_adds(model) == pytest.approx(PUBLISHED[depth], rel=4e-3)
    stages = [
        (32 >> s) ** 2 * 9 * c * (2 * n * c - (c // 2 if s else 0))
        for s, c in enumerate((16, 32, 64))
    ]
    assert multiply_adds(model) == 32**2 * 9 * 3 * 16 + sum(stages) + 640


def test_bytes_are_those_of_parameters_and_channels():
    model = jc.create_model("resnet20", 10)
    channels = 7 * 16 + 6 * 32 + 6 * 64
    assert sum(communication_volume(model).gradient) == 269_722
    each: dict[tuple[StrategyKind, NormScope], int] = {
        ("jit", "batch"): 2,
        ("pmap", "batch"): 6,
        ("jit", "device"): 2,
        ("pmap", "device"): 2,
    }
    for (kind, norm), count in each.items():
        assert sum(communication_volume(model, kind=kind, norm=norm).bn) == count * channels
    assert [steps_per_epoch(128), steps_per_epoch(128 * 1024)] == [391, 1]


def test_a_step_is_the_sum_of_its_parts():
    link = Link("", 1e9, 3e-6, 2e-6, "")
    assert all_reduce_latency(link, 1) == 0
    assert [all_reduce_latency(link, n) for n in (2, 5, 1024)] == pytest.approx(
        [7e-6, 15e-6, 43e-6]
    )
    found = step_time(link, 4, size=10**6, collectives=10, flops=1e9, rate=1e12)
    assert found == pytest.approx(StepTime(1e-3, 110e-6, 1.5e-3))
    assert found.communication_share == pytest.approx(1.61 / 2.61)
    assert step_time(link, 1, 10**6, 10, 1e9).communication_share == 0


def test_a_limit_is_where_the_share_is_crossed():
    line = projections.device_limit(20, "device", projections.PLANS[0], LINKS[0], 128)
    shares = {
        n: found.communication_share
        for n in (2, 4)
        if (found := projections.resnet_step_time(20, "device", projections.PLANS[0], LINKS[0], n))
    }
    assert shares[2] < 0.1 < shares[4]
    assert (line["devices_below_10_percent"], line["beyond"]) == (2, 4)
    assert line["wire_percent_there"] == pytest.approx(100 * shares[4])
    assert (
        projections.resnet_step_time(20, "device", projections.PLANS[0], LINKS[0], 256) is None
    )  # 128 images do not reach


def readings():
    """Rows as `traffic.measure` gives them, made so that paper and counters agree and a step takes what is predicted."""
    model, rows = jc.create_model("resnet8", 10, width=4), []
    for turn in range(3):
        rows.append(
            {
                "round": turn,
                "devices": 1,
                "work": "batch",
                "seconds": 0.002,
                "bytes": 0,
                "packets": 0,
            }
        )
        for norm in ("batch", "device"):
            sent = communication_volume(model, (8, 8, 1), "jit", norm)
            size = traffic.expected_bytes(sent.tensors, 2) + 52 * 100
            seconds = 0.002 + len(sent.tensors) * 1e-4 + sent.bytes * 1e-9 + 1e-3 * (turn - 1)
            rows.append(
                {
                    "round": turn,
                    "devices": 2,
                    "work": norm,
                    "seconds": seconds,
                    "bytes": size,
                    "packets": 100,
                }
            )
        for name, seconds in (("small", 32 * 1e-4), ("large", 1e-4 + 2**20 * 1e-9)):
            rows.append(
                {
                    "round": turn,
                    "devices": 2,
                    "work": name,
                    "seconds": seconds,
                    "bytes": 0,
                    "packets": 0,
                }
            )
    return rows


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_script_leaves_tables_and_figures(tmp_path):
    settings = {
        "network": "resnet8",
        "width": 4,
        "batch_size": 32,
        "devices": [1, 2],
        "num_steps": 1,
        "rounds": 3,
    }
    (tmp_path / "wire.json").write_text(
        json.dumps({"settings": settings, "own_loopback": True, "rows": readings()})
    )
    assert (
        main(
            ["--parts", "arithmetic", "--depths", "8", "20", "--most", "4", "--out", str(tmp_path)]
        )
        == 0
    )
    for name in ("share.png", "bytes.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert {line["network"] for line in table(tmp_path / "table.csv")} == {"ResNet-8", "ResNet-20"}
    assert "Assumed" in (tmp_path / "table.md").read_text()
    assert len(table(tmp_path / "growth" / "table.csv")) == 2 * 2 * 2 * 3 * 3
    for line in table(tmp_path / "bytes" / "table.csv"):
        assert float(line["counted_over_paper"]) == 1
        assert int(line["ring"]) == 2 * int(line["reduced"])
    for line in table(tmp_path / "seconds" / "table.csv"):
        assert float(line["step_ms"]) == pytest.approx(float(line["predicted_ms"]), rel=1e-4)
        assert float(line["most_ms"]) - float(line["least_ms"]) == pytest.approx(2)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--depths", "21"], "depth is 21; expected 6 n + 2"),
        (["--depths"], "depths is empty"),
        (["--devices", "3"], "devices has 3, which does not divide the batch of 32"),
        (["--rounds", "0"], "--rounds is 0; expected a whole number of 1 to 10000"),
        (["--network", "resnet9"], "depth is 9"),
    ],
)
def test_mistakes_are_one_line(args, says, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compiled, "compare_programs", lambda *a: pytest.fail("it compiled"))
    refuses(main, [*args, "--out", str(tmp_path / "out")], says, capsys, monkeypatch)
    assert not (tmp_path / "out").exists()
