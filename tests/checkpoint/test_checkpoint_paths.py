"""A save in any folder comes back bit for bit, or the folder is refused at once; a save that cannot be read is not sealed."""

import os
import string
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_checkpoints import bits, one_line, state_at

from jaxcnn.checkpoint import CheckpointError, Checkpoints, checkpoints, lock_folder

SPECIAL = [
    *(
        "my runs [1]",
        "[!a]",
        "**",
        "a*b",
        "a?b",
        "a\\b",
        "\\",
        "[",
        "]",
        "{a,b}",
        "~",
        "%20",
        "#",
        ":",
        "gs:",
        "s3:",
    ),
    *(
        "日本 ünï",
        "💥",
        "a'b",
        'a"b',
        "$HOME",
        "x.orbax-checkpoint-tmp-5",
        "7",
        "state",
        "3.damaged",
        "é" * 120,
    ),
]


def comes_back(folder: Path) -> None:
    with Checkpoints(folder) as saved:
        for step in (1, 2, 3):
            saved.save(state_at(step), metric=abs(step - 1))
        saved.wait()
        assert (folder / "3" / "files.json").is_file()
    with Checkpoints(folder) as saved:
        assert saved.steps() == [1, 2, 3]
        assert bits(saved.restore(state_at(0))) == bits(state_at(3))
        assert bits(saved.best(state_at(0))) == bits(state_at(1))
    assert not [
        item.name for item in folder.iterdir() if "damaged" in item.name or "tmp" in item.name
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECIAL)
def test_a_folder_of_any_name_keeps_its_saves(tmp_path, name):
    comes_back(tmp_path / name / "checkpoints")


def opened(folder):
    """The checkpoints of a folder, or None and why it is refused."""
    try:
        return Checkpoints(folder), ""
    except CheckpointError as error:
        return None, str(error)


LETTERS = st.sampled_from(
    [*string.printable, "\\", "[", "]", "*", "?", "ü", "\u2028", "\udcff", "💥", "\x00", "/", ":"]
)


@pytest.mark.slow
@settings(max_examples=int(os.environ.get("JAXCNN_CASES", 0)) or 25, deadline=None)
@given(name=st.text(LETTERS, min_size=1, max_size=40))
def test_a_save_comes_back_or_the_folder_is_refused_before_anything_is_saved(name):
    with tempfile.TemporaryDirectory() as root:
        saved, refusal = opened(os.path.join(root, "a", name))
        if saved is None:
            assert len(refusal.splitlines()) == 1
            return
        with saved:
            saved.save(state_at(1))
            assert bits(saved.restore(state_at(0))) == bits(state_at(1))
            saved.save(state_at(2))
        with Checkpoints(saved.folder) as again:
            assert bits(again.restore(state_at(0))) == bits(state_at(2))


def test_a_long_path_works_up_to_a_limit_and_is_refused_beyond(tmp_path):
    comes_back(tmp_path.joinpath(*["x" * 250] * 8))
    with pytest.raises(
        CheckpointError, match=r"expected at most 3896. Write a shorter path"
    ) as error:
        Checkpoints(tmp_path.joinpath(*["x" * 250] * 16))
    one_line(error)
    assert not (tmp_path / ("x" * 250) / "checkpoints").exists()


@pytest.mark.parametrize("folder", ["gs://bucket/run", Path("s3://bucket"), "file:/tmp/run", "gs:"])
def test_an_address_is_refused_and_no_folder_is_made(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    for take in (lock_folder, Checkpoints):
        with pytest.raises(
            CheckpointError, match=r"an address; expected a local folder. Write"
        ) as error:
            take(folder)
        one_line(error)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", [None, 3, "a\nb", "a\0b", "\ud800", Path("a\rb"), b"bytes"])
def test_what_cannot_be_a_folder_is_one_line(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"expected a path") as error:
        Checkpoints(folder)
    one_line(error)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def no_proc(monkeypatch):
    """A system where the files of a process are not under /proc, such as macOS."""
    really = Path.is_dir
    monkeypatch.setattr(
        Path, "is_dir", lambda path: not str(path).startswith("/proc/") and really(path)
    )


def test_where_proc_is_missing_a_link_in_the_temporary_folder_serves(
    tmp_path, monkeypatch, no_proc
):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    saved = Checkpoints(tmp_path / "[1]")
    assert len(list((tmp_path / "temporary").iterdir())) == 1
    saved.close()
    assert not list((tmp_path / "temporary").iterdir())
    comes_back(tmp_path / "[1]")
    (tmp_path / "[2]").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "[2]"))
    with pytest.raises(CheckpointError, match=r"set TMPDIR") as error:
        Checkpoints(tmp_path / "[1]")
    one_line(error)
    monkeypatch.setattr(tempfile, "tempdir", None)
    Checkpoints(tmp_path / "[1]").close()  # the refused one has freed the folder


def test_an_alias_leaves_no_open_file(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        Checkpoints(tmp_path / "[1]").close()
    assert len(os.listdir("/proc/self/fd")) <= before


def unaliased(folder):
    return folder, lambda: None


def test_a_save_that_cannot_be_read_back_is_not_sealed(tmp_path, monkeypatch):
    """Without its alias such a folder shows what Orbax does: it reports a save that it has not written."""
    monkeypatch.setattr(checkpoints, "plain_alias", unaliased)
    saved = Checkpoints(tmp_path / "[1]")
    saved.save(state_at(1))
    with pytest.raises(
        CheckpointError, match=r"step 1 .*cannot be read back.* it is now 1.damaged"
    ) as error:
        saved.save(state_at(2))
    one_line(error)
    assert saved.steps() == []
    assert not list((tmp_path / "[1]").rglob("files.json"))
    saved.close()


@pytest.mark.parametrize("path", [".params['conv1']['kernel']", ".key", ".stats['mask']"])
def test_a_later_save_whose_bits_differ_is_not_sealed_and_the_one_before_stays(
    tmp_path, monkeypatch, path
):
    write = checkpoints.Checkpoints._write

    def flipped(self, step, leaves, metric):
        """Orbax is given other bits than the manifest and the verification."""
        if step != 2:
            return write(self, step, leaves, metric)
        from orbax.checkpoint import args

        def standard(given):
            wrong = given | {path: np.frombuffer(given[path].tobytes(), np.uint8).copy()}
            wrong[path][0] ^= 1
            wrong[path] = wrong[path].view(given[path].dtype).reshape(given[path].shape)
            return really(wrong)

        really = args.StandardSave
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(args, "StandardSave", standard)
            return write(self, step, leaves, metric)

    monkeypatch.setattr(checkpoints.Checkpoints, "_write", flipped)
    with Checkpoints(tmp_path) as saved:
        saved.save(state_at(1))
        saved.save(state_at(2), metric=-1.0)
        with pytest.raises(CheckpointError, match=r"step 2 .*cannot be read back.*differ") as error:
            saved.wait()
        one_line(error)
        assert saved.steps() == [1]
        assert bits(saved.restore(state_at(0))) == bits(state_at(1))
        assert saved.best(state_at(0)) is None
        saved.save(state_at(3))
    assert saved.steps() == [1, 3]


def test_later_saves_are_verified_without_restoring_them(tmp_path, monkeypatch):
    """The quick way knows the layout that Orbax writes: otherwise every save would be restored, which takes longer."""
    restored, read = [], checkpoints.Checkpoints._read
    monkeypatch.setattr(
        checkpoints.Checkpoints,
        "_read",
        lambda self, step, like: restored.append(step) or read(self, step, like),
    )
    with Checkpoints(tmp_path) as saved:
        for step in (1, 2, 3):
            saved.save(state_at(step))
    assert restored == [1]
    monkeypatch.setattr(
        checkpoints, "is_bitwise_equal", lambda state, leaves: False
    )  # another layout
    with Checkpoints(tmp_path) as saved:
        for step in (4, 5):
            saved.save(state_at(step))
    assert restored == [1, 4, 5]
    assert saved.steps() == [4, 5]


@pytest.mark.parametrize("pipe", ["lock"])
def test_a_pipe_for_a_lock_is_one_line(tmp_path, pipe):
    os.mkfifo(tmp_path / pipe)
    with pytest.raises(CheckpointError, match=r"expected a regular file") as error:
        Checkpoints(tmp_path)
    one_line(error)


def test_a_lock_of_any_bytes_is_read_as_far_as_a_line_needs(tmp_path):
    with lock_folder(tmp_path):
        (tmp_path / "lock").write_bytes(b"\xff\n" * 10**6)
        with pytest.raises(CheckpointError, match=r"in use by process") as error:
            lock_folder(tmp_path)
    assert len(one_line(error)) < 1000 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (None, "state.step is None; expected an integer"),
        (state_at(1)._replace(step=np.float32(1.5)), "state.step is .*1.5.*; expected an integer"),
        (state_at(1)._replace(step=np.int32(-1)), "expected an integer of at least 0"),
        (state_at(1)._replace(step="1"), "expected an integer of at least 0"),
        (state_at(1)._replace(key=jax.random.key(0)), "Use jax.random.key_data"),
        (
            state_at(1)._replace(key="key"),
            r"\.key of the state is 'key'; expected an array of numbers",
        ),
        (state_at(1)._replace(key=object()), r"\.key of the state is <object"),
        (state_at(1)._replace(key=[[1], [1, 2]]), None),
    ],
)
def test_a_state_that_cannot_be_saved_is_one_line_and_nothing_is_written(tmp_path, state, says):
    with Checkpoints(tmp_path) as saved:
        if says is None:  # a list is a tree of its own
            saved.save(state)
            return
        with pytest.raises(CheckpointError, match=says) as error:
            saved.save(state)
        one_line(error)
    assert saved.steps() == []


@pytest.mark.parametrize("metric", ["0.5", [1.0], object(), 1j])
def test_a_metric_that_is_no_number_is_one_line(tmp_path, metric):
    with (
        Checkpoints(tmp_path) as saved,
        pytest.raises(CheckpointError, match=r"metric is .*expected a number or None"),
    ):
        saved.save(state_at(1), metric)


def test_a_tree_without_shapes_is_one_line(tmp_path):
    with Checkpoints(tmp_path) as saved:
        saved.save(state_at(1))
        for restore in (saved.restore, saved.best):
            with pytest.raises(
                CheckpointError, match=r"\.key of like is 3; expected an array"
            ) as error:
                restore(state_at(1)._replace(key=3))
            one_line(error)


@pytest.mark.parametrize("keep_every", [-1, 1.5, True, "2", None])
def test_a_wrong_keep_every_is_one_line(tmp_path, keep_every):
    with pytest.raises(
        CheckpointError,
        match=r"keep_every is .*expected an integer of at least 0. Use keep_every=0",
    ):
        Checkpoints(tmp_path, keep_every)


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), True, "2", None])
def test_a_wrong_timeout_is_one_line(tmp_path, timeout):
    with pytest.raises(
        CheckpointError,
        match=r"timeout is .*expected a number of seconds of at least 0. Use timeout=60",
    ) as error:
        Checkpoints(tmp_path / "a", timeout=timeout)
    one_line(error)
    assert not (tmp_path / "a").exists()


def test_the_same_cell_twice_says_that_it_is_this_process_and_how_to_close(tmp_path):
    first = Checkpoints(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"which is this process: .*Call close\(\).*with Checkpoints"
    ) as error:
        Checkpoints(tmp_path)
    one_line(error)
    first.close()
    Checkpoints(tmp_path).close()
