"""Training that is seen while it runs: its progress, an interrupt in a notebook, TensorBoard."""

import builtins
import io
import os
import signal
import sys
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

import jaxcnn as jc
from jaxcnn import progress as progress_module
from jaxcnn import runs
from jaxcnn.progress import QUEUE, Progress, TrainProgress, format_duration
from jaxcnn.shutdown import GracefulShutdown, interactive_interrupt

pytestmark = pytest.mark.usefixtures("one_device")
CONFIG = jc.TrainConfig(num_steps=12, eval_every=5, batch_size=16)
train: Any = jc.train
NOT_REPEATED = ("seconds", "images_per_second")


@pytest.fixture
def notebook(monkeypatch):
    """An interactive interpreter, in which Ctrl-C is Python's own."""
    monkeypatch.setattr(sys, "ps1", "In [1]: ", raising=False)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_at(steps):
    """A function of the step that sends Ctrl-C after these."""

    def after_step(step):
        if step in steps:
            os.kill(os.getpid(), signal.SIGINT)
        return False

    return after_step


def repeated(rows):
    return [{k: v for k, v in row.items() if k not in NOT_REPEATED} for row in rows]


def equal(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool(np.array_equal(x, y)), a, b))


# ------------------------------------------------------------------ interrupts


@pytest.fixture(scope="module")
def whole(model, tx, data, tmp_path_factory):
    """The states and the rows of a run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    states = [state for state, _ in train(model, tx, data, CONFIG, run_dir=folder)]
    return states, jc.read_metrics(folder)


@pytest.mark.parametrize("step", [1, 3, 5, 7, 10, 11])
def test_an_interrupted_run_resumes_to_the_bits_of_a_whole_one(
    step, whole, model, tx, data, tmp_path, notebook
):
    seen = list(train(model, tx, data, CONFIG, run_dir=tmp_path, should_stop=interrupt_at([step])))
    state, row = seen[-1]
    assert (int(state.step), row["step"], row["interrupted"]) == (step, step, True)
    assert np.isfinite(row["train_loss"])
    assert np.isfinite(row["eval_error"])
    assert not any("interrupted" in row for _, row in seen[:-1])
    written = jc.read_metrics(tmp_path)
    assert [row["step"] for row in written] == [s for s in (5, 10) if s <= step]
    assert not any("interrupted" in row for row in written)
    with jc.Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps()[-1] == step
    rest = list(train(model, tx, data, CONFIG, run_dir=tmp_path))
    assert equal(rest[-1][0], whole[0][-1])
    assert repeated(jc.read_metrics(tmp_path)) == repeated(whole[1])


def test_without_a_folder_the_state_of_an_interrupt_can_be_resumed(
    whole, model, tx, data, notebook
):
    *_, (state, row) = train(model, tx, data, CONFIG, should_stop=interrupt_at([7]))
    assert row["interrupted"]
    # The sums since step 5 go on.
    assert int(state.metrics.num_examples) == 2 * CONFIG.batch_size
    *_, (last, _) = train(model, tx, data, CONFIG, resume=lambda initial: state)
    assert equal(last, whole[0][-1])


@pytest.mark.parametrize("step", [5, 7])
def test_a_log_of_the_users_own_has_the_rows_of_a_whole_run(
    step, whole, model, tx, data, tmp_path, notebook
):
    config = jc.ExperimentConfig(dataset="digits", model="mlp", train=CONFIG)
    config = jc.override(config, optimizer="adam", learning_rate=0.01)
    state = None
    for stop in (interrupt_at([step]), None):
        log = jc.RunLog(tmp_path, config)
        resume = lambda _, state=state: state  # noqa: E731
        rows = train(model, tx, data, CONFIG, should_stop=stop, resume=resume)
        for state, row in rows:  # noqa: B007
            log.write(**row)
    assert repeated(log.rows()) == repeated(whole[1])


@pytest.mark.parametrize("step", [5, 7])
def test_a_run_of_a_study_stops_and_resumes(step, whole, data, tmp_path, notebook):
    config = jc.ExperimentConfig(
        dataset="digits", model="mlp", train=CONFIG, max_train_examples=128
    )
    config = jc.override(config, optimizer="adam", learning_rate=0.01)
    stop = interrupt_at([step])

    def on_step(at, row):
        if row is None:
            stop(at)

    assert runs.run(config, data, tmp_path, on_step=on_step) is None
    with jc.Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps()[-1] == step
    result = runs.run(config, data, tmp_path)
    assert result is not None
    assert result["status"] == "finished"
    assert repeated(jc.read_metrics(tmp_path)) == repeated(whole[1])


def test_a_second_interrupt_raises_and_loses_nothing(
    whole, model, tx, data, tmp_path, notebook, monkeypatch
):
    from jaxcnn import training

    evaluate = training._row_function
    interrupt = lambda *states: os.kill(os.getpid(), signal.SIGINT)  # noqa: E731
    monkeypatch.setattr(training, "_row_function", lambda *pieces: interrupt)
    rows = train(model, tx, data, CONFIG, run_dir=tmp_path, should_stop=interrupt_at([3]))
    with pytest.raises(KeyboardInterrupt):
        list(rows)
    monkeypatch.setattr(training, "_row_function", evaluate)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with jc.Checkpoints(tmp_path / "checkpoints") as saved:
        assert saved.steps() == [3]
    first, *_, last = train(model, tx, data, CONFIG, run_dir=tmp_path)
    assert equal(last[0], whole[0][-1])
    assert repeated(jc.read_metrics(tmp_path)) == repeated(whole[1])
    assert first[1]["step"] == 5


def test_between_two_rows_an_interrupt_is_the_callers(model, tx, data, notebook):
    rows = train(model, tx, data, CONFIG)
    next(rows)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert next(rows)[1]["step"] == 10


def test_in_a_script_an_interrupt_raises_at_once(model, tx, data):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(train(model, tx, data, CONFIG, should_stop=interrupt_at([3])))
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_handles_interrupts_already_goes_on_doing_so(model, tx, data, notebook):
    with GracefulShutdown() as stop:
        *_, (state, row) = train(model, tx, data, CONFIG, should_stop=interrupt_at([3]))
        assert stop()
    assert (int(state.step), "interrupted" in row) == (12, False)
    with interactive_interrupt() as is_interrupted:
        assert not is_interrupted()


# ------------------------------------------------------------------ progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=1000.0)
    fake = SimpleNamespace(monotonic=lambda: now.seconds)
    monkeypatch.setattr(progress_module, "time", fake)
    monkeypatch.setattr("tqdm.std.time", lambda: now.seconds)
    return now


def last_line(terminal):
    return terminal.getvalue().split("\r")[-1].rstrip()


def test_the_bar_says_compiling_then_steps_rate_and_time_left(clock):
    out = Terminal()
    with TrainProgress(0, 600, file=out) as progress:
        assert last_line(out).startswith("  0% |")
        assert last_line(out).endswith("| 0/600 steps, compiling")
        clock.seconds += 40
        progress.advance(1)
        # No rate is known yet, and that of the compilation never counts.
        assert last_line(out).endswith("| 1/600 steps")
        clock.seconds += 1.8
        progress.advance(10)
        assert last_line(out).endswith("| 10/600 steps")
        progress.wait()
        # The first evaluation is compiled too.
        clock.seconds += 20
        progress.pause()
        clock.seconds += 0.2
        progress.advance(11)
        assert last_line(out).endswith("| 11/600 steps, 5 steps/s, 01:58 left")
        clock.seconds += 1.8
        progress.advance(20)
        progress.wait()
        # An evaluation takes a third of the time.
        clock.seconds += 1
        progress.pause()
        clock.seconds += 1
        progress.advance(30)
        assert last_line(out).endswith("| 30/600 steps, 3.33 steps/s, 02:51 left")


@pytest.mark.parametrize("is_asynchronous", [True, False])
def test_steps_in_the_queue_are_no_rate(clock, is_asynchronous):
    """XLA accepts 32 steps before it computes the first one, which took the rate of a second."""
    out = Terminal()
    with TrainProgress(0, 1000, file=out) as progress:
        clock.seconds += 40
        for step in range(1, 101):
            clock.seconds += 2 if step > QUEUE + 1 or not is_asynchronous else 0.01
            progress.advance(step)
            text = last_line(out).split("steps, ")[1:]
            assert text == (
                [] if step < 34 else [f"2 s/step, {format_duration(2 * (1000 - step))} left"]
            )


def test_a_resumed_run_counts_from_where_it_began(clock):
    out = io.StringIO()
    with TrainProgress(100, 200, file=out, every=0) as progress:
        for step in (101, 102):
            clock.seconds += 8
            progress.advance(step)
            progress.wait()
        clock.seconds += 8
        progress.advance(103)
    assert out.getvalue().splitlines() == [
        "100/200 steps, compiling",
        "101/200 steps",
        "102/200 steps",
        "103/200 steps, 8 s/step, 12:56 left",
    ]


def test_days_are_days():
    assert format_duration(98_400) == "1d 03:20"
    assert format_duration(86_399) == "23:59:59"
    assert format_duration(86_400 * 1000 + 59) == "1000d 00:00"


def test_plain_lines_are_rare(clock):
    out = io.StringIO()
    with TrainProgress(0, 100, file=out) as progress:
        for step in range(1, 41):
            clock.seconds += 1
            progress.advance(step)
    assert [line.split()[0] for line in out.getvalue().splitlines()] == [
        "0/100",
        "15/100",
        "30/100",
    ]


def test_the_callers_lines_have_a_line_of_their_own(model, tx, data, monkeypatch):
    out = Terminal()
    monkeypatch.setattr(sys, "stderr", out)
    for _, row in train(model, tx, data, CONFIG):
        print("row", row["step"], file=out)
    for line in out.getvalue().split("\n")[:-1]:
        assert line.split("\r")[-1] in ("row 5", "row 10", "row 12")
        # What was there before is covered by spaces.
        assert line.split("\r")[-2].strip() == ""
    assert "compiling" in out.getvalue()
    assert "/12 steps" in out.getvalue()


@pytest.mark.parametrize(
    ("progress", "stream", "shown"),
    [
        (None, io.StringIO, False),
        (None, Terminal, True),
        (True, io.StringIO, True),
        (False, Terminal, False),
    ],
)
def test_it_is_shown_on_a_terminal_or_as_chosen(
    progress, stream, shown, model, tx, data, monkeypatch
):
    out = stream()
    monkeypatch.setattr(sys, "stderr", out)
    list(train(model, tx, data, CONFIG, progress=progress))
    assert bool(out.getvalue()) == shown


def test_another_value_is_refused(model, tx, data):
    with pytest.raises(
        jc.ArgumentError, match=r"progress is 'yes'; expected True, False or None\."
    ):
        train(model, tx, data, CONFIG, progress="yes")


def test_a_study_has_one_bar(data, tmp_path, monkeypatch):
    out = Terminal()
    monkeypatch.setattr(sys, "stderr", out)
    config = jc.ExperimentConfig(
        dataset="digits", model="mlp", train=CONFIG, max_train_examples=128
    )
    runs.sweep({"a": config}, data, tmp_path)
    assert "elapsed" in out.getvalue()
    assert "steps," not in out.getvalue()


@pytest.fixture
def kernel(monkeypatch):
    """The kernel of a notebook."""
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setattr(builtins, "get_ipython", lambda: shell, raising=False)


class FakeDisplay:
    """IPython's `display`, which lists what is shown."""

    def __init__(self, shown):
        self.shown = shown

    def display(self, content, raw, display_id):
        assert raw
        assert display_id
        self.shown.append(("new", content["text/plain"]))
        return SimpleNamespace(update=self._update)

    def _update(self, content, raw):
        assert raw
        self.shown.append(("update", content["text/plain"]))


def test_a_notebook_without_widgets_has_a_bar_of_text(kernel, model, tx, data, monkeypatch):
    find = progress_module.importlib.util.find_spec
    monkeypatch.setattr(
        progress_module.importlib.util,
        "find_spec",
        lambda name: None if name == "ipywidgets" else find(name),
    )
    out, shown = io.StringIO(), []
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setitem(sys.modules, "IPython.display", FakeDisplay(shown))
    list(train(model, tx, data, CONFIG))
    # One output, which is replaced.
    assert [kind for kind, _ in shown] == ["new"] + ["update"] * (len(shown) - 1)
    texts = [text for _, text in shown]
    assert any(text.endswith("0/12 steps, compiling") for text in texts)
    assert texts[-1].startswith("100% |█")
    assert max(map(len, texts)) <= 80
    assert all(text.strip() for text in texts)
    # Where a notebook has a red box.
    assert out.getvalue() == ""


def test_a_study_in_a_notebook_writes_its_lines_below_the_bar(kernel, monkeypatch, capsys):
    monkeypatch.setattr(progress_module, "_widget_bar", lambda options: None)
    shown = []
    monkeypatch.setitem(sys.modules, "IPython.display", FakeDisplay(shown))
    with Progress(10) as progress:
        progress.advance(5, "half")
        progress.write("a row")
        progress.advance(5, "whole")
    assert capsys.readouterr() == ("a row\n", "")
    assert shown[-1][1].startswith("100% |█")
    assert shown[-1][1].endswith("whole")


def test_a_notebook_with_widgets_has_the_bar_of_tqdm_notebook(kernel, monkeypatch):
    shown = []

    class Bar:
        def __init__(self, **options):
            self.n = options["initial"]

        def set_postfix_str(self, text, refresh):
            shown.append((self.n, text))

        def update(self, steps):
            self.n += steps

        def close(self):
            shown.append("closed")

    monkeypatch.setattr(progress_module.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "tqdm.notebook", SimpleNamespace(tqdm=Bar))
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    with TrainProgress(3, 5) as progress:
        progress.advance(4)
        progress.pause()
        progress.advance(5)
    assert shown[0] == (3, "compiling")
    assert shown[-1] == "closed"
    assert shown[-2][0] == 4
    assert out.getvalue() == ""
