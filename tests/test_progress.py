"""Progress: what it says of the share done and the time left, on a terminal and elsewhere; the clock is the test's."""

import io
from types import SimpleNamespace

import pytest

from jaxcnn.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when the test says so, for us and for tqdm."""
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr("jaxcnn.progress.time", SimpleNamespace(monotonic=lambda: now.seconds))
    monkeypatch.setattr("tqdm.std.time", lambda: now.seconds)
    return now


def test_plain_lines_say_the_share_and_the_time_left_at_the_rate_so_far(clock):
    out = io.StringIO()
    with Progress(200, file=out) as progress:
        progress.write("starting")
        clock.seconds += 50
        progress.advance(50, "quarter")
        progress.write("row")
    assert (
        out.getvalue()
        == "  0%         ? left  starting\n 25%     02:30 left  quarter\n 25%     02:30 left  row\n"
    )


def test_work_done_before_does_not_count_in_the_rate(clock):
    progress = Progress(100, file=io.StringIO())
    progress.skip(50)
    assert progress.remaining_time() == "?"
    clock.seconds += 20
    progress.advance(10, "here")
    assert (
        progress.remaining_time() == "01:20"
    )  # 40 units at 10 in 20 seconds; with the skipped ones it would be 13 seconds


def test_hours_are_told_too(clock):
    progress = Progress(3, file=io.StringIO())
    clock.seconds += 3600
    progress.advance(1, "here")
    assert progress.remaining_time() == "2:00:00"


def test_plain_lines_are_as_rare_as_asked_and_rows_are_always_written(clock):
    out = io.StringIO()
    progress = Progress(100, file=out, every=15)
    for step in range(40):
        clock.seconds += 1
        progress.advance(1, f"step {step}")
        if step == 20:
            progress.write("row")
    said = [line.split("left  ")[1] for line in out.getvalue().splitlines()]
    assert said == ["step 15", "row", "step 36"]


def test_nothing_is_drawn_where_there_is_no_terminal(clock):
    out = io.StringIO()
    with Progress(10, file=out) as progress:
        progress.advance(10, "done")
    assert progress.bar is None
    assert out.getvalue() == ""


@pytest.mark.parametrize("skipped_after", [0, 5])
def test_a_bar_says_the_same_time_left_as_lines_do(clock, skipped_after):
    out = Terminal()
    with Progress(100, file=out) as progress:
        clock.seconds += skipped_after
        progress.skip(50)
        clock.seconds += 20 - skipped_after
        progress.advance(10, "epoch 3")
        last = out.getvalue().split("\r")[-1]
        assert last.startswith(" 60% |")
        assert last.endswith(f"00:20 elapsed, {progress.remaining_time()} left, epoch 3")


def test_a_bar_keeps_lines_above_itself(clock):
    out = Terminal()
    with Progress(10, file=out) as progress:
        progress.advance(5, "half")
        progress.write("a row")
        progress.advance(5, "whole")
    assert "\ra row\n" in out.getvalue()
    assert out.getvalue().split("\r")[-1].startswith("100% |")
    assert progress.bar is not None
    assert progress.bar.disable  # closed
