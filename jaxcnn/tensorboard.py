"""Event files of a run's rows, which TensorBoard shows.

TensorboardX has their format, without TensorFlow or PyTorch. Its `SummaryWriter` is not used. That
writes from a thread, which a full disk ends without an error that a run could report.
"""

from __future__ import annotations

import contextlib
import math
import os
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxcnn.arguments import ArgumentError, format_value

PREFIX = "events.out.tfevents."
"""Start of the name of an event file, by which TensorBoard recognizes it."""
MAX_FILE_BYTES = 1 << 30
"""Maximum bytes of an event file that is read. A row has some 300."""
Row = Mapping[str, Any]


def check_tensorboard(tensorboard: Any) -> None:
    """Check that `tensorboard` is True or False, and that its package is installed.

    Raises:
      ArgumentError: it is another value, or True without the package.

    Example:
      >>> check_tensorboard("yes")
      Traceback (most recent call last):
      jaxcnn.arguments.ArgumentError: tensorboard is 'yes'; expected True or False. ...
    """
    if not isinstance(tensorboard, bool):
        raise ArgumentError(
            f"tensorboard is {format_value(tensorboard)}; expected True or False. "
            "Write tensorboard=True."
        )
    if not tensorboard:
        return
    try:
        _event()
    # TypeError is that of generated code that is too old for the installed protobuf.
    except (ImportError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ArgumentError(
            f"tensorboard is True, but tensorboardX cannot be imported ({reason}); "
            "expected it installed. Run pip install 'jaxcnn[tensorboard]', "
            "or write tensorboard=False."
        ) from None


def scalars(row: Row) -> dict[str, float]:
    """Return the numbers of a row, as event files hold them: finite, in float32.

    Example:
      >>> scalars({"step": 3, "eval_loss": 0.5, "eval_split": "test", "rate": None})
      {'eval_loss': 0.5}
    """
    numbers = {key: value for key, value in row.items() if type(value) in (int, float)}
    return {
        key: _float32(value)
        for key, value in numbers.items()
        if key != "step" and math.isfinite(_float32(value))
    }


class EventFile:
    """Event file that has the scalars of a run's rows, each step once.

    Its steps are always those of the rows. Where a run is resumed from an earlier step, or was
    killed while it wrote, a new file replaces the old one, which is emptied. The times of its rows
    are kept.

    Nothing stays open between two rows.

    Args:
      folder: of event files, created if it does not exist.
      rows: rows that are written already.

    Raises:
      OSError: a file cannot be read or written.

    Example:
      >>> import tempfile
      >>> folder = tempfile.mkdtemp()
      >>> events = EventFile(folder, [{"step": 1, "eval_loss": 0.5}])
      >>> events.append({"step": 2, "eval_loss": 0.25})
      >>> [event.step for event in read_events(events.path) if event.summary.value]
      [1, 2]
    """

    def __init__(self, folder: str | Path, rows: Sequence[Row]):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.synchronize(rows)

    def append(self, row: Row) -> None:
        """Append the scalars of a row."""
        content = _record(_row_event(row, time.time()))
        with open(self.path, "ab", opener=_open_without_links) as file:
            file.write(content)

    def synchronize(self, rows: Sequence[Row]) -> None:
        """Make the scalars those of `rows`.

        A file that has them already is continued.
        """
        files = sorted(path for path in self.folder.glob(f"{PREFIX}*") if path.is_file())
        paths = [path for path in files if path.stat().st_size]
        expected = [(row["step"], scalars(row)) for row in rows]
        recorded, times, is_complete = [], {}, False
        for path in paths:
            recorded, events = [], list(_read_records(path))
            is_complete = bool(events) and events[-1][1]
            for event, _ in events:
                if not event.HasField("summary"):
                    continue
                values = {value.tag: value.simple_value for value in event.summary.value}
                recorded.append((event.step, values))
                times[event.step] = event.wall_time
        if len(paths) == 1 and recorded == expected and is_complete:
            self.path = paths[0]
            return
        now = time.time()
        # TensorBoard reads the files of a folder in the order of their names.
        self.path = self.folder / f"{PREFIX}{now:017.6f}.jaxcnn"
        events = [_event()(wall_time=now, file_version="brain.Event:2")]
        # A TensorBoard that is open drops the steps that it has read from the old file.
        if paths:
            start = _event()(wall_time=now, step=0)
            start.session_log.status = start.session_log.START
            events.append(start)
        events += [_row_event(row, times.get(row["step"], now)) for row in rows]
        with open(self.path, "xb") as file:
            file.write(b"".join(map(_record, events)))
        for path in files:
            # A TensorBoard that is open reads on in its file, and in a next one only while the
            # file exists.
            if path in paths:
                with open(path, "wb", opener=_open_without_links):
                    pass
            else:
                path.unlink()


def read_events(path: Path) -> Iterator[Any]:
    """Yield the events of a file, up to the first that is damaged or incomplete.

    Args:
      path: of the file.
    """
    for event, _ in _read_records(path):
        yield event


def _read_records(path: Path) -> Iterator[tuple[Any, bool]]:
    """Yield each event as `read_events` does, and if the file ends with it."""
    content, position = _read(path), 0
    while (end := _record_end(content, position)) is not None:
        event = _event()()
        # The decoder's error has a class of its own, in protobuf.
        try:
            event.ParseFromString(content[position + 12 : end - 4])
        except Exception:
            return
        yield event, end == len(content)
        position = end


def _read(path: Path) -> bytes:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise OSError(0, f"it has more than {MAX_FILE_BYTES} bytes", str(path))
    return path.read_bytes()


def _record(event: Any) -> bytes:
    """Return an event as a TFRecord: length, its checksum, the bytes, their checksum."""
    content = event.SerializeToString()
    length = struct.pack("<Q", len(content))
    return b"".join([length, _checksum(length), content, _checksum(content)])


def _record_end(content: bytes, position: int) -> int | None:
    """Return the position after the record at `position`; None if it is damaged or incomplete."""
    length = content[position : position + 8]
    if len(length) < 8 or content[position + 8 : position + 12] != _checksum(length):
        return None
    end = position + 12 + struct.unpack("<Q", length)[0]
    if content[end : end + 4] != _checksum(content[position + 12 : end]):
        return None
    return end + 4


def _checksum(content: bytes) -> bytes:
    from tensorboardX.record_writer import masked_crc32c

    return struct.pack("<I", masked_crc32c(content))


def _row_event(row: Row, wall_time: float) -> Any:
    event = _event()(wall_time=wall_time, step=row["step"])
    # Also without scalars, so that each row has its event.
    event.summary.SetInParent()
    for key, value in scalars(row).items():
        event.summary.value.add(tag=key, simple_value=value)
    return event


def _event() -> Any:
    """Return the class of events."""
    from tensorboardX.proto import event_pb2

    module: Any = event_pb2
    return module.Event


def _float32(value: float) -> float:
    with contextlib.suppress(OverflowError):
        return struct.unpack("<f", struct.pack("<f", value))[0]
    return math.inf


def _open_without_links(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)
