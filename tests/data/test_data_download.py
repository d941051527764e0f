"""Archives put there by hand, downloads from a server on this machine, and no network at all."""

import functools
import hashlib
import http.server
import shutil
import socket
import threading
import time

import pytest
from data_fakes import (
    NAMES,
    REACH,
    assert_same,
    bare_machine,  # noqa: F401
    fake,
    flip,
    one_line,
    register,
    write_archives,
)

from jaxcnn.data import DATASETS, DataError, archives, load_dataset

pytestmark = pytest.mark.usefixtures("bare_machine")


def test_archives_by_hand_are_found_by_data_set(tmp_path, monkeypatch):
    for name, seed in (("mnist", 1), ("fashion_mnist", 2)):
        folder = tmp_path / "home/tensorflow_datasets/manual" / name
        write_archives(folder, name, *fake(name, seed))
        register(monkeypatch, folder)
        data = load_dataset(name)
        assert_same((data.train, data.test), fake(name, seed))


def test_archive_by_hand_with_wrong_bytes(tmp_path, monkeypatch):
    good, manual = tmp_path / "good", tmp_path / "own/manual/cifar10"
    write_archives(good, "cifar10", *fake("cifar10"))
    register(monkeypatch, good)
    shutil.copytree(good, manual)
    path = manual / "cifar-10-binary.tar.gz"
    size = path.stat().st_size
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    flip(path, size // 2)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(DataError, match=f"^{path} has SHA-256 {found}; expected {digest}.*$"):
        load_dataset("cifar10", tmp_path / "own")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=f"^{path} has 1000 bytes; expected {size}.*$"):
        load_dataset("cifar10", tmp_path / "own")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server of the folder `served`; the download may reach it."""
    monkeypatch.setattr(archives, "unreachable_reason", REACH)
    served = tmp_path / "served"
    served.mkdir()
    handler = functools.partial(_Quiet, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield served, f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["mnist", "svhn_cropped"])
def test_download_is_kept_for_the_next_time(name, server, tmp_path, monkeypatch):
    served, url = server
    splits = fake(name)
    write_archives(served, name, *splits)
    register(monkeypatch, served, url)
    data = load_dataset(name, tmp_path / "own")
    assert_same((data.train, data.test), splits)
    assert sorted(path.name for path in (tmp_path / "own/manual" / name).iterdir()) == sorted(
        DATASETS[name].archives
    )
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(archives, "unreachable_reason", None)  # not even asked
    data = load_dataset(name, tmp_path / "own")
    assert_same((data.train, data.test), splits)


def test_download_without_a_folder_to_keep_it(server, tmp_path, monkeypatch):
    served, url = server
    splits = fake("mnist")
    write_archives(served, "mnist", *splits)
    register(monkeypatch, served, url)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "file"))
    data = load_dataset("mnist")
    assert_same((data.train, data.test), splits)


def test_download_with_wrong_checksum_is_refused_and_removed(server, tmp_path, monkeypatch):
    served, url = server
    write_archives(served, "cifar100", *fake("cifar100"))
    register(monkeypatch, served, url)
    expected = archives.registered_sources("cifar100", DATASETS["cifar100"].archives)
    monkeypatch.setattr(archives, "registered_sources", lambda name, files: expected)
    flip(served / expected[0].filename, 100)
    with pytest.raises(
        DataError, match=r"^cifar100: the download failed: .*wrong checksum"
    ) as caught:
        load_dataset("cifar100", tmp_path / "own")
    found = hashlib.sha256((served / expected[0].filename).read_bytes()).hexdigest()
    message = one_line(caught)
    assert expected[0].sha256 in message
    assert found in message
    assert list((tmp_path / "own/manual/cifar100").iterdir()) == []
    assert not (tmp_path / "cache").exists()


def test_missing_page_is_told(server, tmp_path, monkeypatch):
    source = archives.Source(server[1] + "gone.tar.gz", "gone.tar.gz", 5, "0")
    monkeypatch.setattr(archives, "registered_sources", lambda name, files: [source])
    with pytest.raises(DataError, match="the server answered 404"):
        load_dataset("cifar10")


def test_registered_archives_are_those_of_tfds():
    from tensorflow_datasets.core.download.checksums import get_all_url_infos

    infos = get_all_url_infos()
    for name in NAMES:
        sources = archives.registered_sources(name, DATASETS[name].archives)
        assert tuple(source.filename for source in sources) == DATASETS[name].archives
        for source in sources:
            assert source.url.endswith("/" + source.filename)
            assert len(source.sha256) == 64
            if name != "svhn_cropped":  # registered with its builder, not in the common table
                assert (infos[source.url].size, infos[source.url].checksum) == (
                    source.size,
                    source.sha256,
                )
    with pytest.raises(DataError, match=r"registers no checksum of x\.zip for mnist"):
        archives.registered_sources("mnist", ("x.zip",))


@pytest.mark.slow
@pytest.mark.parametrize("network", ["refused", "silent name server"])
def test_without_data_and_network_one_error_says_all(network, tmp_path, monkeypatch):
    over = threading.Event()
    asked = []

    def refused(*args, **options):
        asked.append(args[0])
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    def silent(*args, **options):
        asked.append(args[0])
        over.wait(20)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", refused if network == "refused" else silent)
    monkeypatch.setattr(archives, "unreachable_reason", REACH)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    (tmp_path / "own/manual/svhn_cropped").mkdir(parents=True)
    (tmp_path / "own/manual/svhn_cropped/test_32x32.mat").write_bytes(b"")
    start = time.monotonic()
    with pytest.raises(DataError) as caught:
        load_dataset("svhn_cropped", tmp_path / "own")
    seconds = time.monotonic() - start
    over.set()
    assert asked == ["ufldl.stanford.edu"]
    assert seconds < 5
    message = one_line(caught)
    home = tmp_path / "home/tensorflow_datasets"
    places = [
        root / part
        for root in (tmp_path / "own", tmp_path / "tfds", home)
        for part in ("svhn_cropped", "manual/")
    ]
    for text in (
        *map(str, places),
        str(tmp_path / "cache/data/svhn_cropped"),
        "own/manual/svhn_cropped (lacks train_32x32.mat)",
        "http://ufldl.stanford.edu/housenumbers/train_32x32.mat, http://ufldl.stanford.edu/housenumbers/test_32x32.mat",
        "246.3 MB",
        f"into {tmp_path / 'own/manual/svhn_cropped'} by hand",
        "load_dataset('digits')",
        "no answer within 3 s" if network != "refused" else "no connection",
    ):
        assert text in message
