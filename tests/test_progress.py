"""Progress: what it says of the share done and the time left, on a terminal and elsewhere; the clock is the test's."""

import io
from types import SimpleNamespace

import pytest

from jaxcnn.progress import Progress, format_duration


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
        clock.seconds += 500
        # It includes the compilation, and says nothing of the others.
        progress.advance(50, "quarter")
        clock.seconds += 50
        progress.advance(50, "half")
        progress.write("row")
        progress.advance(100, "end")
        progress.write("end")
    assert out.getvalue().splitlines() == [
        "  0%     estimating  starting",
        " 25%     estimating  quarter",
        " 50%     01:40 left  half",
        " 50%     01:40 left  row",
        "100%     00:00 left  end",
    ]


def test_work_done_before_does_not_count_in_the_rate(clock):
    progress = Progress(100, file=io.StringIO())
    progress.skip(50)
    assert progress.remaining_time() is None
    progress.advance(2, "here")
    clock.seconds += 20
    progress.advance(8, "here")
    # 40 units at 8 in 20 seconds; with the skipped ones it would be 14 seconds
    assert progress.remaining_time() == "01:40"


def test_hours_are_told_too(clock):
    progress = Progress(4, file=io.StringIO())
    for _ in range(2):
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
    said = [line[21:] for line in out.getvalue().splitlines()]
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
        clock.seconds += 1
        progress.advance(5, "epoch 2")
        assert out.getvalue().split("\r")[-1].endswith("elapsed, estimating, epoch 2")
        clock.seconds += 19 - skipped_after
        progress.advance(10, "epoch 3")
        last = out.getvalue().split("\r")[-1]
        assert last.startswith(" 65% |")
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


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "00:00"),
        (0, "00:00"),
        (59.4, "00:59"),
        (59.6, "01:00"),
        (3599.6, "1:00:00"),
        (7384, "2:03:04"),
        (86_399, "23:59:59"),
        (86_400, "1d 00:00"),
        (1_116_000, "12d 22:00"),
        (3 * 86_400 - 1, "2d 23:59"),
    ],
)
def test_durations_are_in_days_where_they_are_days(seconds, text):
    assert format_duration(seconds) == text


def test_the_time_left_leaves_out_the_compilation_before_the_first_unit(clock):
    """A first step of 100 s among 640,000 is no reason to announce two years."""
    progress = Progress(640_000, file=io.StringIO())
    said = []
    for seconds in (100, *[0.5] * 30):
        clock.seconds += seconds
        progress.advance(1, "here")
        said.append(progress.remaining_time())
    assert said[:20] == [None] * 20
    # Half a second for each of the other steps.
    assert said[20:] == [format_duration(0.5 * (640_000 - n)) for n in range(21, 32)]
    assert said[20] == "3d 16:53"


def test_a_hundredth_of_the_work_is_enough_for_an_estimate(clock):
    progress = Progress(100, file=io.StringIO())
    for units in (0.5, 0.6, 0.6):
        clock.seconds += 6
        progress.advance(units, "here")
    assert progress.remaining_time() == format_duration(98.3 * 12 / 1.2)
