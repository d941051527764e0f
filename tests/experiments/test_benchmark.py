"""`python -m experiments.benchmark`: its arithmetic by hand, its programs against NumPy, what it leaves behind, mistakes."""

import csv
import os
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scripts import refuses

import jaxcnn as jc
from experiments.benchmark import pytorch, report, timing, workload
from experiments.benchmark.__main__ import PRESETS, Options, batch_size, check_options, main
from experiments.benchmark.pytorch import pytorch_model
from experiments.benchmark.workload import NETWORKS
from jaxcnn.augment import AugmentConfig, augment, normalize
from jaxcnn.state import AUGMENT, fold_in
from jaxcnn.training import epoch_order

FEW = [
    "--networks",
    "lenet5-relu",
    "--batch-size",
    "4",
    "--devices",
    "1",
    "--seconds",
    "0.01",
    "--rounds",
    "2",
]
BEGAN = {
    "imports_s": 1.0,
    "initialise_s": 0.5,
    "first_step_cold_s": 4.0,
    "first_step_warm_s": 1.0,
    "peak_mib": None,
}
KNOWN = BEGAN | {"later_step_s": 0.005, "plan": {"memory": 3 << 20, "traffic": 4e6}}
PEAK = timing.Peak(gflops=100.0, bandwidth=10.0)
COUNTS = report.StepCounts(
    batch_size=10, num_steps=2, devices=1, flop=10**9, memory=2 << 20, traffic=5e9
)


@pytest.fixture
def quick(monkeypatch):
    """Nothing but the rounds takes time."""
    monkeypatch.setattr(timing, "measure_startup", lambda **settings: dict(KNOWN))
    monkeypatch.setattr(timing, "measure_peak", lambda strategy, dtype: PEAK)


def job(name="lenet5-relu", kind="jit", devices=1, steps=1, batch=8):
    return workload.create_workload(name, batch, "float32", jc.strategy(kind, devices), steps)


def table(folder):
    with (folder / "table.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_the_script_leaves_its_tables_and_figure(quick, tmp_path, capsys):
    assert main([*FEW, "--no-torch", "--out", str(tmp_path)]) == 0
    (row,) = table(tmp_path)
    found = {
        name: float(row[name])
        for name in row
        if name.endswith(("_second", "flops", "percent", "an_image", "_s"))
    }
    assert (row["network"], row["image"], row["parameters"], row["rounds"]) == (
        "lenet5-relu",
        "28x28x1",
        "61706",
        "2",
    )
    assert (row["batch_size"], row["steps_a_round"], row["strategy"], row["devices"]) == (
        "4",
        "2",
        "jit",
        "1",
    )
    assert found["gflop_an_image"] == pytest.approx(6e-9 * 416_520, rel=1e-5)
    assert found["gflops"] == pytest.approx(
        found["images_per_second"] * found["gflop_an_image"], rel=1e-5
    )
    assert found["peak_percent"] == pytest.approx(found["gflops"], rel=1e-5)
    assert float(row["q25"]) <= found["images_per_second"] <= float(row["q75"])
    assert 0 < found["inputs_percent"] < 100
    assert {name: row[name] for name in BEGAN} == {
        name: f"{v:g}" if v else "" for name, v in BEGAN.items()
    }
    assert not [name for name in row if "torch" in name]
    assert "later_step_s" not in row
    said = report.describe_machine(jc.strategy("jit", 1))
    assert row["machine"] == said
    assert said in (tmp_path / "table.md").read_text()
    assert "PyTorch" not in (tmp_path / "table.md").read_text()
    assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == said
    assert lines[-2].split()[0] == "lenet5-relu"
    assert len(lines[-3]) == len(lines[-2])


def test_ctrl_c_ends_it_and_leaves_no_half_a_row(quick, monkeypatch, tmp_path, capfd):
    def asked(**settings):
        os.kill(os.getpid(), signal.SIGINT)
        return dict(KNOWN)

    monkeypatch.setattr(timing, "measure_startup", asked)
    monkeypatch.setattr(timing, "time_train", lambda *a: pytest.fail("it went on"))
    assert main([*FEW, "--no-torch", "--out", str(tmp_path)]) == 130
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--networks", "resnet21"], "network is 'resnet21'; expected one of"),
        (["--networks"], "networks is empty; write --networks resnet20"),
        (["--forms"], "forms is empty"),
        (["--rounds", "0"], "--rounds is 0; expected a whole number of 1 to 10000. Use --rounds 5"),
        (["--seconds", "nan"], "seconds is nan"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (
            ["--batch-size", "7", "--devices", "2"],
            "--batch-size is 7, which 2 devices cannot share equally",
        ),
        (["--devices", "99"], "devices is 99"),
        (["--dtype", "float16"], "float16"),
    ],
)
def test_mistakes_are_one_line(args, says, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(timing, "measure_peak", lambda *a: pytest.fail("it measured"))
    refuses(main, [*args, "--out", str(tmp_path / "out")], says, capsys, monkeypatch)
    assert not (tmp_path / "out").exists()


def test_the_presets_are_sound():
    for options in PRESETS.values():
        check_options(options, jc.strategy("jit", 1))
    assert PRESETS["full"].networks == tuple(NETWORKS)
    assert [
        batch_size(Options(), name, jc.strategy("jit", 1)) for name in ("resnet20", "resnet50")
    ] == [128, 16]
    assert batch_size(Options(batch_size=8), "resnet50", jc.strategy("jit", 1)) == 8


def test_a_line_is_the_arithmetic_of_its_seconds():
    """Two rounds of 2 steps of 10 images: 20 images in so many seconds."""
    took = {
        "train": [2.0, 4.0],
        "bare": [1.0, 4.0],
        "inputs": [0.1, 0.2],
        "eager": [4.0, 4.0],
        "compile": [1.0, 3.0],
    }
    row = report.timing_columns(took, COUNTS, PEAK)
    assert (row["images_per_second"], row["q25"], row["q75"]) == (7.5, 6.25, 8.75)
    assert row["bare_images_per_second"] == 12.5
    assert row["overhead_percent"] == pytest.approx((100 + 0) / 2)
    assert row["inputs_percent"] == pytest.approx((10 + 5) / 2)
    assert (row["pytorch_eager"], row["pytorch_compile"]) == pytest.approx((5.0, (20 + 20 / 3) / 2))
    assert (row["best_form"], row["over_pytorch"]) == (
        "compile",
        (1 / 2 + 3 / 4) / 2,
    )  # eager: (4/2 + 4/4) / 2
    assert row["gflops"] == 7.5
    assert row["peak_percent"] == 7.5
    assert row["flop_a_byte"] == 2.0  # so that the copy allows 20
    assert row["roof_percent"] == 37.5
    assert row["planned_mib"] == 2


def test_the_flat_roof_holds_beyond_the_ridge_and_what_nobody_tells_is_none():
    took = {"train": [1.0], "bare": [1.0], "inputs": [0.1]}
    assert report.timing_columns(took, COUNTS._replace(traffic=1e8), PEAK)["roof_percent"] == 20.0
    assert (
        report.timing_columns(took, COUNTS._replace(devices=2), PEAK)["flop_a_byte"] == 1.0
    )  # traffic is each device's
    row = report.timing_columns(took, COUNTS._replace(traffic=None, memory=None), PEAK)
    assert [
        row[name] for name in ("flop_a_byte", "roof_percent", "traffic_mib", "planned_mib")
    ] == [None] * 4
    assert not [name for name in row if "pytorch" in name]


def test_rounds_are_in_turns_and_the_first_does_not_count():
    calls = []
    works = {
        name: lambda k, name=name: calls.append((name, k)) or float(len(calls)) for name in "ab"
    }
    settle = {
        name: lambda k, name=name: calls.append(("settle " + name, k)) or 0.0 for name in "ab"
    }
    took = timing.time_alternately(works, 3, 2, settle)
    once = [("settle a", 1), ("a", 3), ("settle b", 1), ("b", 3)]
    assert calls == [("a", 3), ("b", 3), *once, *once]
    assert took == {"a": [4.0, 8.0], "b": [6.0, 10.0]}
    assert timing.time_alternately(works, 3, 2, should_stop=lambda: True) is None


def test_a_measurement_of_fit_is_a_pass_over_the_data_by_its_own_clock(monkeypatch):
    given = job(steps=3)
    assert len(given.data.train.labels) == 3 * 8
    asked = {}

    def fake(model, tx, data, config, strategy, progress):
        assert progress is False  # a bar takes time
        asked.update(
            num_steps=config.num_steps, eval_every=config.eval_every, n=len(data.train.labels)
        )
        yield from ((None, {"images_per_second": rate}) for rate in (12.0, 24.0))

    monkeypatch.setattr(jc, "train", fake)
    run = timing.time_train(given, 3)
    assert [run(3), run(3)] == [2.0, 1.0]
    assert asked == {"num_steps": jc.TrainConfig().num_steps, "eval_every": 3, "n": 24}


@pytest.mark.slow
def test_the_bare_step_is_the_step_that_fit_takes():
    given = job(batch=4, steps=2)
    state, _ = next(
        jc.train(
            *given[:3], given.config.train, strategy=given.strategy, should_stop=lambda step: True
        )
    )
    placed = given.strategy.replicate(workload.initial_state(given))
    index = epoch_order(jnp.asarray(state.rng), 0, 1, 4, 8)
    run = given.strategy.compile_steps(
        workload.train_step(given), workload.should_rewrite_for_cpu(given)
    )
    after = run(placed, given.strategy.replicate(given.data.train), index)
    for one, other in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(after.params), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "devices"), [("jit", 1), ("pmap", 2)])
def test_the_inputs_are_those_of_a_step(kind, devices):
    """Without crop and flip: bytes less the mean image. With them: what `augment` makes of each."""
    given = job(kind=kind, devices=devices)
    plain = given._replace(config=jc.override(given.config, padding=0, flip=False))
    images, strategy, index = (
        given.data.train.images,
        given.strategy,
        np.arange(8, dtype=np.int32)[None],
    )
    less = images.astype(np.float64) / 255 - given.data.mean
    for one, expected in ((plain, less.sum()), (given, float(views(given).sum()))):
        carry = strategy.replicate(
            (jnp.int32(0), workload.initial_state(given).normalizer, jnp.float32(0))
        )
        number, _, total = strategy.fetch(
            strategy.compile_steps(timing.input_step(one))(
                carry, strategy.replicate(given.data.train), index
            )
        )
        assert number == 1
        np.testing.assert_allclose(total, expected, rtol=1e-4, atol=0.02)
    assert abs(less.sum() - float(views(given).sum())) > 1


def views(given):
    """What the first step of training makes of the first eight images."""
    state = workload.initial_state(given)
    inputs = normalize(given.data.train.images, state.normalizer)
    keys = [jax.random.fold_in(fold_in(jnp.asarray(state.rng), AUGMENT, 0), i) for i in range(8)]
    return np.stack(
        [
            augment(key, x, state.normalizer, AugmentConfig(padding=4, flip=True))
            for key, x in zip(keys, inputs, strict=True)
        ]
    )


@pytest.mark.slow
def test_a_process_of_its_own_tells_and_leaves_its_programs(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "other"))
    settings = {
        "name": "lenet5-relu",
        "batch_size": 8,
        "dtype": "float32",
        "strategy": "jit",
        "devices": 1,
        "plan": True,
    }
    found = timing._run_startup_process(settings, str(tmp_path / "cache"))
    assert list((tmp_path / "cache" / "programs").iterdir())
    assert not (tmp_path / "other").exists()
    assert found["imports"] > 0
    assert 0 < found["initialise"] < found["first"]
    assert 0 < found["later"] < found["first"]
    assert found["peak"] is None  # CPUs do not tell
    least = (
        8 * 4 * (28 * 28 * 6 + 14 * 14 * 6 + 10 * 10 * 16) + 2 * 4 * 61_706
    )  # maps, parameters and momentum
    assert least / 4 < found["plan"]["memory"] < 100 * least
    assert found["plan"]["traffic"] > 4 * 61_706


def test_cold_is_the_first_process_and_warm_the_second(monkeypatch):
    folders = []

    def told(settings, cache):
        folders.append(cache)
        n = len(folders)
        assert settings == {"name": "resnet20", "plan": n == 2}
        return {
            "imports": n,
            "initialise": 10 * n,
            "first": 100 * n,
            "later": n,
            "peak": n,
            "plan": n,
        }

    monkeypatch.setattr(timing, "_run_startup_process", told)
    found = timing.measure_startup(name="resnet20")
    assert folders[0] == folders[1]
    assert not os.path.exists(folders[0])
    assert (found["initialise_s"], found["first_step_cold_s"], found["first_step_warm_s"]) == (
        10,
        100,
        200,
    )


def test_flop_are_six_a_multiply_add():
    assert workload.training_flop(job()) == 6 * 416_520
    assert workload.training_flop(job("resnet20", batch=2)) == pytest.approx(6 * 40.6e6, rel=4e-3)


@pytest.mark.slow
def test_a_peak_is_the_fastest(monkeypatch):
    waits, now = iter([0.03, 0.02, 0.002, 0.02] + [0.02] * 100), [0.0]
    with monkeypatch.context() as patch:
        patch.setattr(timing, "REPEAT_SECONDS", 0.01)
        patch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now[0]))
        assert timing.min_seconds(lambda: now.append(now.pop() + next(waits))) == pytest.approx(
            0.002
        )
        assert (
            next(waits) == 0.02
        )  # one call to compile and three, though the time is over after the first of these
        assert len(list(waits)) == 99
    monkeypatch.setattr(timing, "min_seconds", lambda call: call() is None or 0.5)
    assert timing.matmul_gflops(10, "bfloat16") == pytest.approx(2e-9 * 1000 / 0.5)
    assert timing.copy_bandwidth(4000) == pytest.approx(2e-9 * 4000 / 0.5)
    monkeypatch.setattr(timing, "MATRIX_SIZES", {"cpu": (10, 20)})
    monkeypatch.setattr(timing, "COPY_BYTES", {"cpu": (4000, 400)})
    assert timing.measure_peak(jc.strategy("jit", 1), "float32") == pytest.approx(
        (2e-9 * 8000 / 0.5, 2e-9 * 4000 / 0.5)
    )


def test_without_pytorch_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(pytorch, "find_spec", lambda name: None)
    said = pytorch.unavailable_reason("cpu", 1)
    assert said is not None
    assert "pip install torch" in said
    assert "\n" not in said


@pytest.mark.parametrize("name", NETWORKS)
def test_the_counterparts_are_the_same_networks(name):
    """As many parameters, and as many multiply-adds: so strides and sizes of maps are those of the library's too."""
    torch = pytest.importorskip("torch")
    shape = NETWORKS[name]
    model = pytorch_model(name).eval()
    found = jc.summary(jc.create_model(name, model[-1].out_features), shape)
    assert sum(p.numel() for p in model.parameters()) == found.params
    macs = []

    def count(layer, given, made):
        macs.append(made.numel() * layer.weight[0].numel())

    for layer in model.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            layer.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, shape[2], *shape[:2]))
    assert sum(macs) == found.macs


def test_pytorch_is_timed_and_a_form_that_fails_is_a_line(quick, monkeypatch, tmp_path):
    pytest.importorskip("torch")

    def fails(model, form, device):
        if form == "compile":
            raise RuntimeError("no compiler\nat all")
        return model

    monkeypatch.setattr(pytorch, "_compile", fails)
    assert main([*FEW, "--out", str(tmp_path)]) == 0
    (row,) = table(tmp_path)
    assert row["best_form"] in ("eager", "channels_last")
    assert float(row["pytorch_eager"]) > 0
    assert "pytorch_compile" not in row
    assert (
        "lenet5-relu in PyTorch's form compile failed: no compiler at all"
        in (tmp_path / "table.md").read_text()
    )


def test_pytorch_trains():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = pytorch_model("lenet5-relu")
    before = [p.detach().clone() for p in model.parameters()]
    run = pytorch.time_training(
        model, "channels_last", 4, "bfloat16", NETWORKS["lenet5-relu"], "cpu"
    )
    assert run(2) > 0
    assert all(bool((p != old).any()) for p, old in zip(model.parameters(), before, strict=True))
