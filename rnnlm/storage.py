"""Folders on any filesystem, and the one way in which files become visible.

The commit protocol for every store (object stores have no rename): write files, then one small manifest that names them,
in one write. What no manifest names does not exist. On a local folder each write goes to a temporary name, is flushed to
the disk and renamed, so that a reader never sees half a file.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnnlm import faults
from rnnlm.errors import RnnlmError, UnreachableError, UsageError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

CACHE_VARIABLE = "RNNLM_CACHE"
_CHUNK_BYTES = 1 << 20
_READS = 20
"""How often a file of an object store is read until it did not change meanwhile."""


class Store:
    """A folder: a local path, or a URI that `pyarrow.fs` knows (`s3://bucket/folder`).

    Args:
        uri: an absolute local path, a `file://` URI or another URI.

    Raises:
        UsageError: a relative path, or a scheme without a filesystem.
    """

    def __init__(self, uri: str) -> None:
        self._folder: Path | None = None
        self._remote: tuple[FileSystem, str] | None = None
        if uri.startswith("file://"):
            uri = uri.removeprefix("file://")
        if "://" not in uri:
            if not Path(uri).is_absolute():
                raise UsageError(f"{uri}: a store is an absolute path or a URI")
            self._folder = Path(os.path.normpath(uri))
            uri = str(self._folder)
        self.uri = uri.rstrip("/") or "/"

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    def __reduce__(self) -> tuple[type["Store"], tuple[str]]:
        return Store, (self.uri,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Store) and other.uri == self.uri

    def __hash__(self) -> int:
        return hash(self.uri)

    def child(self, *parts: str) -> "Store":
        """The folder below this one."""
        return Store("/".join([self.uri, *parts]))

    def path(self, name: str) -> str:
        """The full path or URI of a file."""
        return f"{self.uri}/{name}"

    def local(self, name: str = "") -> Path | None:
        """The path of a file or of the folder itself where the store is a local folder, else None."""
        return None if self._folder is None else self._folder / name

    @property
    def exclusive(self) -> bool:
        """Whether `create` is exclusive. Object stores could do it, but `pyarrow.fs` has no conditional write."""
        return self._folder is not None

    def exists(self, name: str) -> bool:
        """Whether a file or folder is there."""
        if self._folder is not None:
            return (self._folder / name).exists()
        from pyarrow.fs import FileType

        return bool(self._info(name).type != FileType.NotFound)

    def read_bytes(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            FileNotFoundError: there is none.
            UnreachableError: the store does not answer.
        """
        if self._folder is not None:
            return (self._folder / name).read_bytes()
        filesystem, base = self._filesystem()
        for _ in range(_READS):
            with self._reaching(name), filesystem.open_input_stream(f"{base}/{name}") as stream:
                data = bytes(stream.read())
            # The stream asks for the size first: of a file that is written anew in between it gives only so many bytes.
            if self._info(name).size in (len(data), None):
                return data
        raise UnreachableError(f"{self.path(name)}: changes all the time while it is read")

    def read_json(self, name: str) -> Any:
        """The content of a JSON file.

        Raises:
            FileNotFoundError: there is none.
            RnnlmError: it is not JSON.
        """
        try:
            return json.loads(self.read_bytes(name))
        except ValueError as error:
            raise RnnlmError(f"{self.path(name)}: not valid JSON ({error})") from None

    def write_bytes(self, name: str, data: bytes | memoryview) -> None:
        """Write a file in one go: a reader sees the old content or the new, never a part."""
        if self._folder is not None:
            target = self._folder / name
            with self._reaching(name), _temporary_beside(target) as temporary:
                _write_through(temporary, data)
                faults.point("store.write")
                temporary.replace(target)
                _sync_folder(target.parent)
        else:
            with self._reaching(name):
                _uninterrupted(self._write_object, name, data)
        faults.point("store.written")

    def write_json(self, name: str, value: Any) -> None:
        """Write a value as JSON, keys sorted, in one go."""
        self.write_bytes(name, (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode())

    def create(self, name: str, data: bytes) -> bool:
        """Write a file only where none is; False where one is.

        A local folder does this exclusively. Elsewhere it is a look followed by a write, so two writers may both succeed.
        """
        if self._folder is None:
            if self.exists(name):
                return False
            self.write_bytes(name, data)
            return True
        target = self._folder / name
        with self._reaching(name), _temporary_beside(target) as temporary:
            _write_through(temporary, data)
            try:
                _link(temporary, target)
            except FileExistsError:
                return False
            _sync_folder(target.parent)
        return True

    def files(self, prefix: str = "") -> list[str]:
        """The files below a folder of the store, as sorted names relative to the store."""
        if self._folder is not None:
            top = self._folder / prefix
            files = (path for path in top.rglob("*") if path.is_file() and not path.name.startswith(_TEMPORARY_PREFIX))
            return sorted(path.relative_to(self._folder).as_posix() for path in files)
        from pyarrow.fs import FileSelector, FileType

        filesystem, base = self._filesystem()
        selector = FileSelector(f"{base}/{prefix}".rstrip("/"), recursive=True, allow_not_found=True)
        with self._reaching():
            infos = filesystem.get_file_info(selector)
        return sorted(info.path[len(base) + 1 :] for info in infos if info.type == FileType.File)

    def changes(self) -> dict[str, float]:
        """When each file was last changed, in seconds since 1970."""
        if self._folder is not None:
            found = {}
            for name in self.files():
                with contextlib.suppress(FileNotFoundError):  # somebody else may be deleting
                    found[name] = (self._folder / name).stat().st_mtime
            return found
        from pyarrow.fs import FileSelector, FileType

        filesystem, base = self._filesystem()
        with self._reaching():
            infos = filesystem.get_file_info(FileSelector(base, recursive=True, allow_not_found=True))
        return {info.path[len(base) + 1 :]: info.mtime_ns / 1e9 for info in infos if info.type == FileType.File}

    def delete(self, name: str) -> None:
        """Delete a file or a tree; nothing happens where there is none."""
        if self._folder is not None:
            target = self._folder / name
            with self._reaching(name):
                if target.is_dir():
                    shutil.rmtree(target)
                else:
                    target.unlink(missing_ok=True)
            return
        from pyarrow.fs import FileType

        filesystem, base = self._filesystem()
        kind = self._info(name).type
        with self._reaching(name):
            if kind == FileType.Directory:
                filesystem.delete_dir(f"{base}/{name}")
            elif kind == FileType.File:
                filesystem.delete_file(f"{base}/{name}")

    def upload(self, local: Path, name: str) -> None:
        """Copy a local file or tree into the store, file by file, in the order of their names."""
        files = [local] if local.is_file() else sorted(path for path in local.rglob("*") if path.is_file())
        for file in files:
            inner = name if file == local else f"{name}/{file.relative_to(local).as_posix()}"
            self._upload_file(file, inner)

    def fetch(self, name: str, *, anew: bool = False) -> Path:
        """A local path with the content of a file or tree: the thing itself, or a copy in this node's cache.

        A copy from before is used where it has the size and the time of the file in the store.

        Args:
            name: the file or tree.
            anew: that is not good enough, as the file may have been written twice in a second.

        Raises:
            FileNotFoundError: there is nothing of that name.
        """
        if self._folder is not None:
            path = self._folder / name
            if not path.exists():
                raise FileNotFoundError(str(path))
            return path
        target = cache_folder() / hashlib.sha256(self.path(name).encode()).hexdigest()[:32] / Path(name).name
        if anew:
            shutil.rmtree(target.parent, ignore_errors=True)
        infos = self._infos_of(name)
        wanted = {target if file == name else target / file[len(name) :].lstrip("/"): file for file in infos}
        for inner, file in wanted.items():
            self._fetch_file(file, infos[file], inner)
        for path in target.rglob("*"):
            if path.is_file() and path not in wanted and not path.name.startswith(_TEMPORARY_PREFIX):
                path.unlink(missing_ok=True)
        return target

    def size_bytes(self, prefix: str = "") -> int:
        """Bytes of all files below a folder."""
        if self._folder is not None:
            total = 0
            for name in self.files(prefix):
                with contextlib.suppress(FileNotFoundError):  # somebody else may be deleting
                    total += (self._folder / name).stat().st_size
            return total
        from pyarrow.fs import FileSelector

        filesystem, base = self._filesystem()
        selector = FileSelector(f"{base}/{prefix}".rstrip("/"), recursive=True, allow_not_found=True)
        return sum(info.size or 0 for info in filesystem.get_file_info(selector))

    def check_there(self) -> None:
        """Whether the store could be written, as far as shows without writing anything.

        Raises:
            UnreachableError: it could not, or does not answer.
        """
        if self._folder is not None:
            folder = self._folder
            while not folder.exists():
                folder = folder.parent
            if not os.access(folder, os.W_OK) or not folder.is_dir():
                raise UnreachableError(f"store {self.uri}: {folder} cannot be written")
            return
        from pyarrow.fs import FileType

        filesystem, base = self._filesystem()
        bucket = base.split("/")[0]
        with self._reaching():
            if filesystem.get_file_info(bucket).type == FileType.NotFound:
                raise UnreachableError(f"store {self.uri}: there is no {bucket}")

    def check_writable(self) -> None:
        """Write, read and delete a small file.

        Raises:
            UnreachableError: that does not work; the message says why.
        """
        name = f".probe-{uuid.uuid4().hex}"
        self.write_bytes(name, name.encode())
        if self.read_bytes(name) != name.encode():
            raise UnreachableError(f"store {self.uri}: what was written did not come back")
        self.delete(name)

    def _upload_file(self, local: Path, name: str) -> None:
        if self._folder is not None:
            target = self._folder / name
            with self._reaching(name), _temporary_beside(target) as temporary:
                shutil.copyfile(local, temporary)
                with temporary.open("rb+") as stream:
                    os.fsync(stream.fileno())
                temporary.replace(target)
            return
        with self._reaching(name):
            _uninterrupted(self._upload_object, local, name)

    def _write_object(self, name: str, data: bytes | memoryview) -> None:
        filesystem, base = self._filesystem()
        with filesystem.open_output_stream(f"{base}/{name}") as stream:
            faults.point("store.write")
            stream.write(data)

    def _upload_object(self, local: Path, name: str) -> None:
        filesystem, base = self._filesystem()
        try:
            with local.open("rb") as source, filesystem.open_output_stream(f"{base}/{name}") as stream:
                while chunk := source.read(_CHUNK_BYTES):
                    stream.write(chunk)
        except OSError:
            with contextlib.suppress(OSError):  # closing the stream has made a file of what there was
                filesystem.delete_file(f"{base}/{name}")
            raise

    def _filesystem(self) -> "tuple[FileSystem, str]":
        if self._remote is None:
            from pyarrow.fs import FileSystem

            try:
                self._remote = FileSystem.from_uri(self.uri)
            except ValueError as error:
                raise UsageError(f"store {self.uri}: no filesystem for this URI ({error})") from None
            except OSError as error:  # it asks where the bucket is
                raise UnreachableError(f"store {self.uri}: {error}") from None
        return self._remote

    def _fetch_file(self, name: str, info: Any, target: Path) -> None:
        """Copy a file into the cache unless it is there."""
        times_ns = (info.mtime_ns or 0, info.mtime_ns or 0)
        with contextlib.suppress(FileNotFoundError):
            found = target.stat()
            if (found.st_size, found.st_mtime_ns) == (info.size, times_ns[1]):
                return
        data = self.read_bytes(name)
        with _caching(target), _temporary_beside(target) as temporary:
            temporary.write_bytes(data)
            os.utime(temporary, ns=times_ns)
            temporary.replace(target)

    def _infos_of(self, name: str) -> dict[str, Any]:
        """What the store knows of a file, or of each in a tree.

        Raises:
            FileNotFoundError: there is nothing of that name.
        """
        from pyarrow.fs import FileSelector, FileType

        info = self._info(name)
        if info.type == FileType.NotFound:
            raise FileNotFoundError(self.path(name))
        if info.type == FileType.File:
            return {name: info}
        filesystem, base = self._filesystem()
        with self._reaching(name):
            infos = filesystem.get_file_info(FileSelector(f"{base}/{name}", recursive=True))
        return {each.path[len(base) + 1 :]: each for each in infos if each.type == FileType.File}

    def _info(self, name: str) -> Any:
        filesystem, base = self._filesystem()
        with self._reaching(name):
            return filesystem.get_file_info(f"{base}/{name}")

    @contextlib.contextmanager
    def _reaching(self, name: str = "") -> Iterator[None]:
        """Turn errors of the filesystem into ours; a file that is not there stays a FileNotFoundError."""
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            where = f": {name}" if name else ""
            raise UnreachableError(f"store {self.uri}{where}: {error.strerror or error}") from error


@contextlib.contextmanager
def _caching(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UnreachableError(f"{path}: {error.strerror or error} ({CACHE_VARIABLE} says where copies go)") from error


@contextlib.contextmanager
def trusting(place: str) -> Iterator[None]:
    """Around code that relies on what a file says: where the file says something else, that is our error, naming it."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()
        raise RnnlmError(
            f"{place}: is damaged ({type(error).__name__}: {reason[0] if reason else 'no reason'})"
        ) from error


_TEMPORARY_PREFIX = ".writing-"
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP}
"""What filesystems without hard links answer."""


@contextlib.contextmanager
def _temporary_beside(target: Path) -> Iterator[Path]:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f"{_TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _uninterrupted(work: Callable[..., None], *arguments: Any) -> None:
    """Do something to its end in a thread of its own: signals raise in the main thread.

    A stream into an object store that is left early becomes an object all the same, of what was written until then.
    """
    begun, ended = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def run() -> None:
        begun.set()
        try:
            work(*arguments)
        except BaseException as error:
            errors.append(error)
        finally:
            ended.set()

    try:
        threading.Thread(target=run).start()
        ended.wait()
    except BaseException:
        if begun.wait(1.0):  # else it was cut off before there was a thread
            ended.wait()
        raise
    if errors:
        raise errors[0]


def _write_through(path: Path, data: bytes | memoryview) -> None:
    """Write a file down to the disk."""
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _link(source: Path, target: Path) -> None:
    """Give a file a second name that nobody has yet; where there are no links, copy it to such a name.

    Raises:
        FileExistsError: the name is taken.
    """
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with target.open("xb") as stream:
            stream.write(source.read_bytes())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cache_folder() -> Path:
    """The folder on this node for copies of what lies in remote stores (`RNNLM_CACHE`, else the user's temporary one)."""
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given) if given else Path(tempfile.gettempdir()) / f"rnnlm-cache-{os.getuid()}"


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_tree(folder: Path) -> str:
    """SHA-256 over the sorted names and contents of all files below a folder."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(f"{path.relative_to(folder).as_posix()}\0{sha256_file(path)}\n".encode())
    return total.hexdigest()
