import contextlib
import errno
import io
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rnnlm.errors import RnnlmError, UnreachableError, UsageError
from rnnlm.storage import Store, cache_folder, sha256_file, sha256_tree


@pytest.fixture(params=["local", "remote"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A local folder, and the same through `pyarrow.fs` as any other URI would go."""
    monkeypatch.setenv("RNNLM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "base").mkdir()
    if request.param == "local":
        return Store(str(tmp_path / "base"))
    from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

    remote = Store("s3://bucket/folder")
    filesystem = SubTreeFileSystem(str(tmp_path / "base"), LocalFileSystem())
    for folder in ("folder", "folder/a", "folder/tree", "folder/tree/deep"):
        filesystem.create_dir(folder)
    remote._remote = (filesystem, "folder")
    return remote


def test_write_read_list_delete(store: Store) -> None:
    store.write_bytes("a/x.bin", b"one")
    store.write_bytes("a/x.bin", b"two")
    store.write_json("b.json", {"k": ["ü", 1]})
    assert store.read_bytes("a/x.bin") == b"two"
    assert store.read_json("b.json") == {"k": ["ü", 1]}
    assert store.files() == ["a/x.bin", "b.json"]
    assert store.files("a") == ["a/x.bin"]
    assert store.files("nowhere") == []
    assert store.exists("a/x.bin")
    assert not store.exists("a/y.bin")
    assert store.size_bytes() == 3 + len(store.read_bytes("b.json"))
    store.delete("b.json")
    store.delete("b.json")
    store.delete("a")
    assert store.files() == []


def test_create_is_exclusive(store: Store) -> None:
    assert store.create("lock", b"mine")
    assert not store.create("lock", b"yours")
    assert store.read_bytes("lock") == b"mine"


def test_what_is_fetched_anew_is_what_is_there_now(store: Store) -> None:
    for text in ("old", "new"):
        store.write_bytes("tree/file", text.encode())
        store.write_bytes("alone", text.encode())
        assert (store.fetch("tree", anew=True) / "file").read_text() == text
        assert store.fetch("alone", anew=True).read_text() == text


def test_upload_and_fetch_a_tree(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "one.txt").write_text("1")
    (source / "deep" / "two.txt").write_text("2")
    store.upload(source, "tree")
    store.upload(source / "one.txt", "alone.txt")
    assert store.files() == ["alone.txt", "tree/deep/two.txt", "tree/one.txt"]
    for _ in range(2):
        fetched = store.fetch("tree")
        assert sha256_tree(fetched) == sha256_tree(source)
    assert store.fetch("alone.txt").read_text() == "1"


def test_what_is_not_there(store: Store) -> None:
    with pytest.raises(FileNotFoundError):
        store.read_bytes("absent")
    with pytest.raises(FileNotFoundError):
        store.fetch("absent")


def test_bad_json_names_the_file(store: Store) -> None:
    store.write_bytes("bad.json", b"{")
    with pytest.raises(RnnlmError, match=r"bad\.json: not valid JSON"):
        store.read_json("bad.json")


def test_probe_leaves_nothing_behind(store: Store) -> None:
    store.check_writable()
    assert store.files() == []


def test_places(tmp_path: Path) -> None:
    local = Store(f"file://{tmp_path}")
    assert local == Store(str(tmp_path) + "/")
    assert local.local("x") == tmp_path / "x"
    assert local.child("a", "b").uri == f"{tmp_path}/a/b"
    assert local.path("f") == f"{tmp_path}/f"
    assert Store("s3://bucket/a").local() is None
    assert pickle.loads(pickle.dumps(local)) == local
    assert len({local, Store(str(tmp_path))}) == 1
    assert "Store(" in repr(local)
    with pytest.raises(UsageError, match="absolute path or a URI"):
        Store("relative/path")
    with pytest.raises(UsageError, match="no filesystem"):
        Store("nonsense://host/path").read_bytes("x")


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UnreachableError, match="store"):
        Store(str(tmp_path / "file")).write_bytes("x", b"")


def test_a_failed_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    store.write_bytes("x", b"old")

    def broken(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(UnreachableError, match="No space left"):
        store.write_bytes("x", b"new")
    assert store.read_bytes("x") == b"old"
    assert store.files() == ["x"]


def _race(folder: str, results: "multiprocessing.Queue[bool]") -> None:
    results.put(Store(folder).create("lock", str(os.getpid()).encode()))


def test_only_one_process_creates(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[bool] = context.Queue()
    processes = [context.Process(target=_race, args=(str(tmp_path), results)) for _ in range(8)]
    for process in processes:
        process.start()
    wins = [results.get(timeout=20) for _ in processes]
    for process in processes:
        process.join()
    assert sum(wins) == 1


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RNNLM_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("RNNLM_CACHE")
    assert "rnnlm-cache" in cache_folder().name


def test_digests(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a").startswith("ba7816bf")
    before = sha256_tree(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert sha256_tree(tmp_path) != before


def test_a_local_folder_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))

    def refused(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "link", refused)
    assert store.create("lock", b"mine")
    assert not store.create("lock", b"yours")
    assert store.read_bytes("lock") == b"mine"


def test_errors_name_store_and_file(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("rnnlm.storage._write_through", full)
    monkeypatch.setattr(store, "_write_object", full)
    with pytest.raises(UnreachableError, match=f"store {store.uri}: some.json: No space left on device"):
        store.write_json("some.json", {})


def remote_store(store: Store) -> Store:
    if store.local() is not None:
        pytest.skip("of remote stores")
    return store


def test_a_copy_in_the_cache_is_used_while_it_is_that_of_the_store(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = remote_store(store)
    read: list[str] = []
    original = remote.read_bytes
    monkeypatch.setattr(remote, "read_bytes", lambda name: read.append(name) or original(name))
    remote.write_bytes("tree/one", b"1")
    remote.write_bytes("tree/deep/two", b"2")
    for _ in range(2):
        assert sorted(path.name for path in remote.fetch("tree").rglob("*") if path.is_file()) == ["one", "two"]
    assert sorted(read) == ["tree/deep/two", "tree/one"]
    remote.write_bytes("tree/one", b"another")
    assert (remote.fetch("tree") / "one").read_bytes() == b"another"
    assert read[2:] == ["tree/one"]
    remote.delete("tree/one")
    assert not (remote.fetch("tree") / "one").exists()


def test_a_signal_does_not_cut_a_file_off(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = remote_store(store)
    original = remote._write_object

    def slow(name: str, data: bytes) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)
        original(name, data)

    monkeypatch.setattr(remote, "_write_object", slow)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a command that ran before has its own
    try:
        with pytest.raises(KeyboardInterrupt):
            remote.write_bytes("a/whole", b"all of it")
    finally:
        signal.signal(signal.SIGINT, before)
    assert remote.read_bytes("a/whole") == b"all of it"


def test_an_upload_that_fails_leaves_no_part(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = remote_store(store)
    (tmp_path / "large").write_bytes(b"x" * 100)
    monkeypatch.setattr("rnnlm.storage._CHUNK_BYTES", 10)
    filesystem, base = remote._filesystem()

    class Broken:
        """A stream that fails after a few chunks, and then closes as any other."""

        def __init__(self, stream: Any) -> None:
            self.stream, self.chunks = stream, 0

        def write(self, data: bytes) -> None:
            self.chunks += 1
            if self.chunks > 3:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            self.stream.write(data)

    class Breaking:
        def __getattr__(self, name: str) -> Any:
            return getattr(filesystem, name)

        @contextlib.contextmanager
        def open_output_stream(self, name: str) -> Iterator[Broken]:
            with filesystem.open_output_stream(name) as stream:
                yield Broken(stream)

    remote._remote = (Breaking(), base)
    with pytest.raises(UnreachableError, match="Input/output error"):
        remote.upload(tmp_path / "large", "a/large")
    assert not remote.exists("a/large")


def test_a_full_cache_says_where_it_is(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = remote_store(store)
    remote.write_bytes("a/x", b"1")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "utime", full)
    with pytest.raises(UnreachableError, match=r"cache/.*No space left on device \(RNNLM_CACHE says"):
        remote.fetch("a/x")


def test_whether_a_store_is_there(store: Store) -> None:
    store.check_there()
    if store.local() is None:
        store._remote = (store._filesystem()[0], "absent/folder")
        with pytest.raises(UnreachableError, match="there is no absent"):
            store.check_there()


def test_a_file_that_is_written_while_it_is_read_is_never_torn(store: Store) -> None:
    remote = remote_store(store)
    filesystem, base = remote._filesystem()
    rewrites = [b"a longer one"]

    class Slow:
        """Gives as many bytes as the file had when it was opened, of what it holds by then: as a stream of S3 does."""

        def __getattr__(self, name: str) -> Any:
            return getattr(filesystem, name)

        @contextlib.contextmanager
        def open_input_stream(self, path: str) -> Iterator[Any]:
            size = filesystem.get_file_info(path).size
            if rewrites:
                with filesystem.open_output_stream(path) as stream:
                    stream.write(rewrites.pop())
            with filesystem.open_input_stream(path) as stream:
                yield io.BytesIO(stream.read()[:size])

    remote.write_bytes("a/x", b"short")
    remote._remote = (Slow(), base)
    assert remote.read_bytes("a/x") == b"a longer one"
    rewrites.extend(b"x" * size for size in range(200, 100, -1))  # the last comes first
    with pytest.raises(UnreachableError, match="a/x: changes all the time"):
        remote.read_bytes("a/x")
