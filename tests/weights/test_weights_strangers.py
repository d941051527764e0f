"""Files of weights from strangers run nothing and take no memory that they do not have.

As in `test_strangers.py` a payload is opened the unsafe way first, by Python's own unpickler, and is seen to act: it makes
the folder `marker`.
"""

import collections
import io
import json
import os
import pickle
import struct
import sys
import time
import tracemalloc
import types
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save

from jaxcnn.models import create_model
from jaxcnn.weights import WeightsError, load_weights, read_metadata, read_weights
from jaxcnn.weights._torch_pickle import DTYPES, MAX_PICKLE_BYTES, Storage, load_pickle, make_tensor

MAGIC = 0x1950A86A20F9469CFC6C
SYSTEM = {
    "protocol_version": 1001,
    "little_endian": True,
    "type_sizes": {"short": 2, "int": 4, "long": 4},
}


@pytest.fixture
def marker(tmp_path):
    folder = tmp_path / "marker"
    yield folder
    assert not folder.exists()


def refused(file, *words):
    """One line, soon, and in little memory; for the reader of the header too, if there is one."""
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(WeightsError) as caught:
        read_weights(file)
    took, (_, most) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 64 << 20, f"{most} bytes"
    assert took < 10
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    assert str(file) in message
    for word in words:
        assert word in message, message


# Pickles as torch writes them, without torch: the names are those of modules made here, and gone
# again


class Pid:
    """What becomes a persistent id."""

    def __init__(self, *parts):
        self.parts = parts


class Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        return obj.parts if isinstance(obj, Pid) else None


@pytest.fixture
def torch(monkeypatch):
    """Modules called torch, with just the names that pickles of weights have."""
    names = {"torch": types.ModuleType("torch"), "torch._utils": types.ModuleType("torch._utils")}
    for name, module in names.items():
        monkeypatch.setitem(sys.modules, name, module)

    def define(module, name):
        made = type(
            name,
            (),
            {
                "__module__": module,
                "__qualname__": name,
                "__new__": lambda cls, *a: object.__new__(cls),
            },
        )
        setattr(sys.modules[module], name, made)
        return made

    for name in ("FloatStorage", "LongStorage", "load"):
        define("torch", name)
    define("torch._utils", "_rebuild_tensor_v2")
    monkeypatch.setattr(names["torch"], "_utils", names["torch._utils"], raising=False)
    return names["torch"]


class Call:
    """An object that is pickled as a call, with anything that a `__reduce__` may give."""

    def __init__(self, *parts):
        self.parts = parts

    def __reduce__(self):
        return tuple(iter(part) if at == 4 else part for at, part in enumerate(self.parts))


def dumped(obj, protocol=2):
    out = io.BytesIO()
    Pickler(out, protocol).dump(obj)
    return out.getvalue()


def a_tensor(
    torch,
    shape=(2, 3),
    stride=(3, 1),
    offset=0,
    size=6,
    key="0",
    kind="FloatStorage",
    legacy=False,
    view=None,
):
    pid = Pid("storage", getattr(torch, kind), key, "cpu", size, *([view] if legacy else []))
    return Call(
        torch._utils._rebuild_tensor_v2,
        (pid, offset, shape, stride, False, collections.OrderedDict()),
    )


def write_zip(
    file,
    tree,
    storages=None,
    compression=zipfile.ZIP_STORED,
    name="archive/data.pkl",
    byteorder=b"little",
):
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr(name, tree if isinstance(tree, bytes) else dumped(tree))
        archive.writestr("archive/byteorder", byteorder)
        for key, data in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", data)
    return file


def write_legacy(file, tree, storages=None, system=SYSTEM, sizes=None):
    body = tree if isinstance(tree, bytes) else dumped(tree)
    parts = [dumped(MAGIC), dumped(1001), dumped(system), body, dumped(list(storages or {}))]
    for key, data in (storages or {}).items():
        parts.append(struct.pack("<q", (sizes or {}).get(key, len(data) // 4)) + data)
    file.write_bytes(b"".join(parts))
    return file


SIX = np.arange(6, dtype="<f4")
WRITERS = {"zip": write_zip, "legacy": write_legacy}


@pytest.mark.parametrize("kind", WRITERS)
def test_the_fakes_are_read(kind, torch, tmp_path):
    """Or else all that follows would prove nothing."""
    legacy = kind == "legacy"
    tree = {"a": a_tensor(torch, legacy=legacy), "b": a_tensor(torch, (2,), (2,), 1, legacy=legacy)}
    for wrapped in (
        tree,
        {"state_dict": tree, "epoch": 3},
        {"model": {f"module.{k}": v for k, v in tree.items()}},
    ):
        found, _ = read_weights(WRITERS[kind](tmp_path / "x.pth", wrapped, {"0": SIX.tobytes()}))
        np.testing.assert_array_equal(found["a"], SIX.reshape(2, 3))
        np.testing.assert_array_equal(found["b"], [1, 3])
        assert not found["a"].flags.writeable


def test_a_view_of_a_storage(torch, tmp_path):
    """As PyTorch before 0.4 wrote them."""
    tree = {"a": a_tensor(torch, (2,), (1,), 1, legacy=True, view=("1", 2, 3))}
    found, _ = read_weights(write_legacy(tmp_path / "x.pth", tree, {"0": SIX.tobytes()}))
    np.testing.assert_array_equal(found["a"], [3, 4])
    for view in (("1", 4, 3), ("1", -1, 3), ("1", 0, 2**70), ("1",), 7):
        tree = {"a": a_tensor(torch, (2,), (1,), 1, legacy=True, view=view)}
        refused(write_legacy(tmp_path / "x.pth", tree, {"0": SIX.tobytes()}))


# Payloads that run when Python unpickles them


def payloads(marker):
    """name -> (an object whose unpickling makes the folder, what the refusal names)."""
    make = Call(os.mkdir, (str(marker),))
    state = Call(collections.OrderedDict, (), make)
    return {
        "mkdir": (make, "posix.mkdir"),
        "system": (Call(os.system, (f"mkdir {marker}",)), "posix.system"),
        "eval": (Call(eval, (f"__import__('os').mkdir({str(marker)!r})",)), ".eval"),
        "in a list": ([1, [make]], "posix.mkdir"),
        "as a key": ({Call(os.mkdir, (str(marker),)): 1}, "posix.mkdir"),
        "state of an allowed class": (state, "posix.mkdir"),
        "items of an allowed class": (
            Call(collections.OrderedDict, (), None, None, [("a", make)]),
            "posix.mkdir",
        ),
        "argument of an allowed class": (
            Call(collections.OrderedDict, ([["a", make]],)),
            "posix.mkdir",
        ),
    }


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", payloads(""))
def test_payloads(name, protocol, marker, tmp_path):
    """In a bare pickle, in both formats, and wrapped as a checkpoint is."""
    payload, says = payloads(marker)[name]
    data = dumped(payload, protocol)
    pickle.loads(data)
    assert marker.exists(), "the payload is none"
    marker.rmdir()
    (tmp_path / "bare.pth").write_bytes(data)
    refused(tmp_path / "bare.pth", says)
    for write in WRITERS.values():
        refused(write(tmp_path / "x.pth", data), says, "nothing of it was run")
        refused(write(tmp_path / "x.pth", dumped({"state_dict": {"a": payload}}, protocol)), says)
    assert read_metadata(tmp_path / "x.pth") == {}


@pytest.mark.parametrize("at", range(5))
def test_payloads_in_every_pickle_of_the_legacy_format(at, marker, tmp_path):
    parts = [dumped(MAGIC), dumped(1001), dumped(SYSTEM), dumped({}), dumped([])]
    parts[at] = dumped(Call(os.mkdir, (str(marker),)))
    (tmp_path / "x.pth").write_bytes(b"".join(parts))
    refused(tmp_path / "x.pth", "posix.mkdir" if at < 3 else "")


def test_tricks_through_names_that_are_allowed(marker, torch, tmp_path):
    """Foreign callables where a tensor, a storage or a size should be; names of names; states and new objects."""
    rebuild, storage = "ctorch._utils\n_rebuild_tensor_v2\n", "ctorch\nFloatStorage\n"
    make = f"cposix\nmkdir\n(V{marker}\ntR"
    tricks = {
        "nested": f"{rebuild}({make}I0\n(t(tI00\nNtR.",
        "storage called": f"{storage}(V{marker}\ntR.",
        "dotted": f"ctorch\nload.__globals__\n(V{marker}\ntR.",
        "through collections": "ccollections\nOrderedDict.fromkeys\n(]tR.",
        "dunder": "ccollections\n__builtins__\n.",
        "instance": f"(V{marker}\niposix\nmkdir\n.",
        "object": f"(cposix\nmkdir\nV{marker}\no.",
        "module of a storage": "ctorch\nload\n(Vhttp://example.com\ntR.",
        "extension": "\x82\x01.",
        "build": f"ccollections\nOrderedDict\n)R(dVpopitem\n{make}sb.",
        "id in text": "Pstorage\n.",
    }
    for name, text in tricks.items():
        if make in text or name in ("instance", "object"):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch._utils, "_rebuild_tensor_v2", lambda *a: None)
                pickle.loads(b"\x80\x02" + text.encode("latin-1"))
            assert marker.exists(), name
            marker.rmdir()
        for write in WRITERS.values():
            refused(write(tmp_path / "x.pth", b"\x80\x02" + text.encode("latin-1")))


# Pickles that would take all memory, or all time


def bytes_of(*parts):
    return b"".join(part if isinstance(part, bytes) else part.encode("latin-1") for part in parts)


def greedy():
    """name -> a pickle: a few kB that make Python's own unpickler, or a naive one, work for ever."""
    doubled = b"".join(b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(60))
    pairs = b"]q\x00(" + b"".join(b"K\x01K\x02\x86" for _ in range(20_000)) + b"e"
    ordered = b"ccollections\nOrderedDict\nq\x01"
    return {
        "a memo of 17 GB": bytes_of(b"\x80\x04N", b"r\xff\xff\xff\x7f."),
        "a text of 4 GB": b"\x80\x02X\xff\xff\xff\xff.",
        "bytes of 2^60": b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b".",
        "a key of 2^60 parts": bytes_of(b"\x80\x02})q\x00", doubled, b"K\x01s."),
        "a key in itself": bytes_of(b"\x80\x02}", b")", b"\x85" * 50_000, b"K\x01s."),
        "lists in lists": bytes_of(b"\x80\x02", b"]" * 50_000, b"a" * 49_999, b"."),
        "one list, a thousand dicts": bytes_of(
            b"\x80\x02]", pairs, ordered, b"h\x01h\x00\x85R" * 5000, b"."
        ),
        "what weights do not need": b"\x80\x02" + b"N0" * MAX_PICKLE_BYTES + b"N.",
        "digits": b"\x80\x02L" + b"9" * 500_000 + b"L\n.",
        "no end": b"\x80\x02Nq\x00",
        "nothing on the stack": b"\x80\x02R.",
        "no mark": b"\x80\x02t.",
    }


@pytest.mark.parametrize("name", greedy())
def test_pickles_that_take_all_there_is(name, tmp_path):
    for write in WRITERS.values():
        refused(write(tmp_path / "x.pth", greedy()[name]))


def test_a_key_of_many_parts_is_greedy_indeed():
    """Its hash takes twice as long with each part more: with 60, a thousand years."""

    def seconds(parts):
        key = ()
        for _ in range(parts):
            key = (key, key)
        began = time.process_time()
        hash(key)
        return time.process_time() - began

    assert seconds(20) > 3 * seconds(16)


# Tensors that are not where they say


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    "lie",
    [
        {"shape": (3, 3)},
        {"offset": 1},
        {"offset": -1},
        {"shape": (2, -3)},
        {"stride": (-3, 1)},
        {"stride": (4, 1)},
        {"shape": (10**15,), "stride": (1,)},
        {"shape": (10**15,), "stride": (0,)},
        {"shape": (7,), "stride": (0,)},
        {"shape": (2**62, 2**62, 0), "stride": (1, 1, 1), "offset": 7},
        {"shape": (2**40, 2**40), "stride": (2**63, 0)},
        {"shape": (1,) * 100, "stride": (1,) * 100},
        {"shape": (2, 3), "stride": (3,)},
        {"shape": [2, 3]},
        {"shape": (2.0, 3)},
        {"shape": (True, 3)},
        {"size": 7},
        {"size": 10**15},
        {"size": -6},
        {"kind": "LongStorage"},
        {"key": "../../etc/passwd"},
        {"key": 0},
    ],
    ids=str,
)
def test_tensors_that_lie(lie, kind, torch, tmp_path):
    tree = {"a": a_tensor(torch, legacy=kind == "legacy", **lie)}
    refused(WRITERS[kind](tmp_path / "x.pth", tree, {"0": SIX.tobytes()}))


def test_what_fits_fits_exactly():
    """The bound is the storage: one step further is refused."""
    storage = Storage("0", DTYPES["torch.FloatStorage"], 10)
    assert make_tensor(storage, 1, (2, 3), (6, 1)).shape == (2, 3)
    for offset, shape, stride in ((2, (2, 3), (6, 1)), (1, (2, 3), (7, 1)), (10, (), ())):
        with pytest.raises(ValueError, match="does not fit"):
            make_tensor(storage, offset, shape, stride)


def test_storages_that_lie_in_the_legacy_format(torch, tmp_path):
    tree = {"a": a_tensor(torch, legacy=True)}
    for size in (5, 7, -1, 2**62):
        refused(
            write_legacy(tmp_path / "x.pth", tree, {"0": SIX.tobytes()}, sizes={"0": size}),
            "as long as",
        )
    refused(write_legacy(tmp_path / "x.pth", tree, {}), "damaged")
    refused(write_legacy(tmp_path / "x.pth", tree, {"1": SIX.tobytes()}), "damaged")
    refused(
        write_legacy(tmp_path / "x.pth", tree, {"0": SIX.tobytes()[:-1]}, sizes={"0": 6}), "damaged"
    )
    refused(
        write_legacy(tmp_path / "x.pth", tree, system=SYSTEM | {"little_endian": False}),
        "big-endian",
    )
    refused(write_legacy(tmp_path / "x.pth", tree, system=3), "big-endian")


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRITERS)
def test_files_cut_short_anywhere(kind, torch, tmp_path):
    tree = {"a": a_tensor(torch, legacy=kind == "legacy")}
    whole = WRITERS[kind](tmp_path / "x.pth", tree, {"0": SIX.tobytes()}).read_bytes()
    for end in range(len(whole)):
        (tmp_path / "x.pth").write_bytes(whole[:end])
        with pytest.raises(WeightsError):
            read_weights(tmp_path / "x.pth")


def test_a_flipped_byte_of_a_zip_is_found(torch, tmp_path):
    file = write_zip(tmp_path / "x.pth", {"a": a_tensor(torch)}, {"0": SIX.tobytes()})
    data = bytearray(file.read_bytes())
    data[data.find(SIX.tobytes()) + 5] ^= 1
    file.write_bytes(data)
    refused(file, "CRC")


@pytest.mark.parametrize("kind", WRITERS)
def test_files_that_hold_something_else(kind, torch, tmp_path):
    legacy = kind == "legacy"
    for tree in (
        [1, 2],
        3,
        {},
        {"epoch": 3},
        {"state_dict": {}},
        {"model": a_tensor(torch, legacy=legacy), "x": 3},
    ):
        refused(WRITERS[kind](tmp_path / "x.pth", tree, {"0": SIX.tobytes()}))
    refused(
        WRITERS[kind](tmp_path / "x.pth", {"a": a_tensor(torch, legacy=legacy), 3: None}),
        "is no tensor",
    )


# Archives


@pytest.mark.slow
def test_zip_bombs(torch, tmp_path):
    """300 MiB in 300 kB: what is compressed is not unpacked, be it a storage or the pickle."""
    file, size = tmp_path / "x.pth", 300 << 20
    tree = {"a": a_tensor(torch, (size // 4,), (1,), size=size // 4)}
    write_zip(file, tree, {"0": bytes(size)}, zipfile.ZIP_DEFLATED)
    assert file.stat().st_size < 1 << 20
    refused(file, "compressed")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", dumped(tree))
        archive.writestr("archive/data/0", bytes(size), zipfile.ZIP_DEFLATED)
    refused(file, "not in the file")
    write_zip(file, b"\x80\x02" + b"N0" * MAX_PICKLE_BYTES + b"N.")
    refused(file, "data.pkl")


def test_a_member_read_a_thousand_times(torch, tmp_path):
    """Many names of one piece of the file: together they may not be larger than it is."""
    data, count = bytes(1 << 20), 200
    tree = {
        f"a{i}": a_tensor(torch, (1 << 18,), (1,), size=1 << 18, key=str(i)) for i in range(count)
    }
    file = write_zip(tmp_path / "x.pth", tree, {"0": data})
    with zipfile.ZipFile(file, "a") as archive:
        first = archive.getinfo("archive/data/0")
        for i in range(1, count):
            info = zipfile.ZipInfo(f"archive/data/{i}")
            info.file_size = info.compress_size = 1 << 20
            info.CRC, info.header_offset = first.CRC, first.header_offset
            archive.filelist.append(info)
        archive._didModify = True  # type: ignore[attr-defined]
    refused(file)


def test_a_list_of_a_million_members(tmp_path):
    file = tmp_path / "x.pth"
    entry = (
        struct.pack(
            "<4s4B4HL2L5H2L", b"PK\1\2", 20, 3, 20, 0, 0, 0, 0, 33, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0
        )
        + b"a"
    )
    count = 1_000_000
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, len(entry) * count, 4, 0)
    file.write_bytes(b"PK\3\4" + entry * count + end)
    refused(file, "list of members")


def test_archives_that_are_none_of_torchs(torch, tmp_path):
    file = tmp_path / "x.pth"
    refused(write_zip(file, {"a": 1}, name="archive/other.pkl"), "not one of torch.save")
    refused(write_zip(file, {"a": a_tensor(torch)}, {"0": SIX.tobytes()}, byteorder=b"big"))
    with zipfile.ZipFile(file, "w") as archive:
        for root in ("a", "b"):
            archive.writestr(f"{root}/data.pkl", dumped({}))
    refused(file, "not one of torch.save")
    file.write_bytes(b"PK\x03\x04" + bytes(100))
    refused(file, "damaged")


# Safetensors


def safe(header, data=b"", size=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def entry(dtype="F32", shape=(6,), offsets=(0, 24)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


DATA = SIX.tobytes()
HEADERS = {
    "longer than the file": safe({"a": entry()}, DATA, 2**31),
    "of 2^63 bytes": safe({"a": entry()}, DATA, 2**63 - 1),
    "of 9 MB": safe(b"{" + b" " * (9 << 20) + json.dumps({"a": entry()}).encode()[1:], DATA),
    "a petabyte": safe({"a": entry(shape=(10**15,), offsets=(0, 4 * 10**15))}, DATA),
    "more than there is": safe({"a": entry(shape=(2**62, 2**62))}, DATA),
    "negative": safe({"a": entry(shape=(-6,))}, DATA),
    "backwards": safe({"a": entry(offsets=(24, 0))}, DATA),
    "overlapping": safe({"a": entry(), "b": entry()}, DATA),
    "a hole": safe({"a": entry(offsets=(4, 28))}, DATA + b"1234"),
    "too short": safe({"a": entry()}, DATA[:-1]),
    "more behind": safe({"a": entry()}, DATA + b"1"),
    "deep": safe(b"{" + b'"a":{' * 100_000, DATA),
    "no type": safe({"a": entry(dtype="__import__('os')")}, DATA),
    "metadata": safe({"__metadata__": {"a": ["b"]}, "a": entry()}, DATA),
    "no JSON": safe(b"{]", DATA),
    "nothing": safe(b"{", b""),
    "text of a list": safe(b"{}[]", DATA),
}


@pytest.mark.parametrize("data", HEADERS.values(), ids=HEADERS)
def test_headers_that_lie(data, tmp_path):
    file = tmp_path / "x.safetensors"
    file.write_bytes(data)
    refused(file)
    with pytest.raises(WeightsError):
        read_metadata(file)


def test_safetensors_cut_short_anywhere(tmp_path):
    whole = save({"a": SIX, "b": SIX.astype("<f2")})
    for end in range(len(whole)):
        (tmp_path / "x").write_bytes(whole[:end])
        refused_soon(tmp_path / "x")


def refused_soon(file):
    with pytest.raises(WeightsError):
        read_weights(file)


# What is no file of weights


@pytest.mark.parametrize(
    "data", [b"", b"\x80", b"PK\x03\x04", b"\x89PNG\r\n\x1a\n", b"\x93NUMPY", b"{}", bytes(99)]
)
def test_other_files(data, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(data)
    refused(tmp_path / "x.safetensors")


def test_folders_pipes_devices_and_links(tmp_path):
    """A pipe would be read for ever; a link is as good as what it points to."""
    refused(tmp_path / "none.pth", "there is no such file")
    refused(tmp_path, "no plain file")
    os.mkfifo(tmp_path / "pipe.pth")
    refused(tmp_path / "pipe.pth", "no plain file")
    (tmp_path / "zero.pth").symlink_to("/dev/zero")
    refused(tmp_path / "zero.pth", "no plain file")
    (tmp_path / "round.pth").symlink_to("round.pth")
    refused(tmp_path / "round.pth")
    (tmp_path / "good").write_bytes(save({"a": SIX}))
    (tmp_path / "link.pth").symlink_to("good")
    np.testing.assert_array_equal(read_weights(tmp_path / "link.pth")[0]["a"], SIX)


def test_a_file_of_a_petabyte(tmp_path):
    """Holes take no disk, and would take memory."""
    with (tmp_path / "x.pth").open("wb") as file:
        file.write(safe({"a": entry()}, DATA))
        file.truncate(2**40)
    refused(tmp_path / "x.pth", "more than any network")


def test_names_that_would_fill_the_screen(tmp_path):
    """What a stranger wrote is shown on one line, and cut."""
    (tmp_path / "x").write_bytes(save({"a\nb" * 10_000: SIX, "\x1b[2J": SIX}))
    with pytest.raises(WeightsError) as caught:
        load_weights(create_model("perceptron", 3), tmp_path / "x", (2, 2, 1))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
    refused(write_zip(tmp_path / "x", b"\x80\x02c" + b"os\x1b" * 50_000 + b"\nsystem\n."))


def test_an_allowed_class_is_not_called_either():
    """The name of an ordered dict makes a dict, whatever that name means here."""
    with pytest.MonkeyPatch.context() as patch:
        data = dumped(collections.OrderedDict(a=1))
        patch.setattr(collections, "OrderedDict", lambda *parts: pytest.fail("it was called"))
        assert load_pickle(data) == ({"a": 1}, len(data))
