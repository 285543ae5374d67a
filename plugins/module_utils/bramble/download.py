"""Get one large file of known size and SHA-256 onto this machine, and know later that it is still the same.

A file grows under `<directory>/.incoming/<sha256>.part`, is checked while it arrives, and takes its name in one step
when it is whole. An interrupted transfer goes on where it stopped. Beside the finished file stands a stamp,
`<file>.sha256` with `sha256 bytes mtime_ns`, so that the next run need not read gigabytes to know what they are.

The first half decides over values; the second half does what was decided.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

CHUNK = 1 << 20  # bytes read and hashed at a time
LONGEST_PAUSE = 30.0  # seconds between two attempts
# Answers that another attempt may turn into success: RFC 9110 section 15, RFC 6585 section 4, RFC 8470 section 5.2.
TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


class DownloadError(Exception):
    """The file could not be had; the message says which, where, why, and what to do."""


class _TransientError(Exception):
    """This attempt failed; another one may succeed."""


@dataclass(frozen=True)
class Wanted:
    """A file as it shall be: its final place, size in bytes and SHA-256 in lower-case hex."""

    path: Path
    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise DownloadError(f"sha256 of {self.path.name}: expected 64 lower-case hex digits, got {self.sha256!r}")
        if self.bytes < 1:
            raise DownloadError(f"bytes of {self.path.name}: expected the size of the file, got {self.bytes}")
        if not self.path.is_absolute():
            raise DownloadError(f"path: must be absolute, got {self.path}")

    @property
    def incoming(self) -> Path:
        return self.path.parent / ".incoming"

    @property
    def part(self) -> Path:
        return self.incoming / f"{self.sha256}.part"

    @property
    def stamp(self) -> Path:
        return self.path.with_name(self.path.name + ".sha256")


@dataclass(frozen=True)
class Stamp:
    """What was once found out by reading the whole file, and the signs that it has not been touched since."""

    sha256: str
    bytes: int
    mtime_ns: int

    def __str__(self) -> str:
        return f"{self.sha256} {self.bytes} {self.mtime_ns}\n"


def parse_stamp(text: str) -> Stamp | None:
    """Read a stamp; None for anything that is not one (it only costs a reading of the file)."""
    match = re.fullmatch(r"([0-9a-f]{64}) (\d+) (\d+)\n?", text)
    return Stamp(match[1], int(match[2]), int(match[3])) if match else None


Verdict = Literal["same", "different", "unknown"]


def judge(wanted: Wanted, size: int | None, mtime_ns: int, stamp: Stamp | None, *, trust_stamp: bool) -> Verdict:
    """Compare the file under the final name with what is wanted. `size` is None if there is no file.

    `unknown` means that only reading the file can tell.
    """
    if size != wanted.bytes:
        return "different"
    if trust_stamp and stamp is not None and (stamp.bytes, stamp.mtime_ns) == (size, mtime_ns):
        return "same" if stamp.sha256 == wanted.sha256 else "different"
    return "unknown"


def gib(number: int) -> str:
    return f"{number / 2**30:.2f} GiB"


def shortage(wanted: Wanted, arrived: int, free: int, keep_free: int) -> str | None:
    """Say why the rest of the file does not fit, or None if it does. All in bytes.

    `arrived` bytes lie in the part file already, and `keep_free` must stay free for everybody else.
    """
    needed = max(0, wanted.bytes - arrived)
    if free >= needed + keep_free:
        return None
    return (
        f"not enough space in {wanted.path.parent} for {wanted.path.name}: {gib(needed)} to come and "
        f"{gib(keep_free)} to stay free, but only {gib(free)} are free. "
        "Remove something there or choose another directory."
    )


def judge_answer(
    status: int, content_length: str | None, content_range: str | None, asked: int, total: int
) -> int | None:
    """Decide what an HTTP answer means for a request of the bytes from `asked` on, of a file of `total` bytes.

    Returns the offset at which its body belongs, or None if the transfer must start again without a range.
    Raises DownloadError if no further attempt can help, and _TransientError if one may.
    """
    if status in TRANSIENT_STATUS:
        raise _TransientError(f"the server answers {status}")
    if status == 416:
        # The part is longer than what the server has, or the file behind the address has changed.
        if asked:
            return None
        raise DownloadError("the server refuses to send the file from its beginning (416)")
    if status == 206:
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", content_range or "")
        if match is None or int(match[1]) != asked:
            return None
        if match[3] not in ("*", str(total)):
            raise DownloadError(_wrong_size(int(match[3]), total))
        return asked
    if status == 200:  # also the answer of a server that does not know ranges
        if content_length is not None and content_length.isdecimal() and int(content_length) != total:
            raise DownloadError(_wrong_size(int(content_length), total))
        return 0
    hint = {401: " (needs a login)", 403: " (not allowed, or a licence to accept first)", 404: " (not there)"}
    raise DownloadError(f"the server answers {status}{hint.get(status, '')}")


def _wrong_size(found: int, wanted: int) -> str:
    return f"the server has {found} bytes where {wanted} are expected: another file, or a wrong size in the catalogue"


def pause_before(attempt: int) -> float:
    """Seconds to wait before attempt 1, 2, 3 … after the first: 1, 2, 4 … up to LONGEST_PAUSE."""
    return float(min(LONGEST_PAUSE, 2.0 ** (attempt - 1)))


def local_path(source: str) -> Path | None:
    """The file that an absolute path or a file:// URL names; None for other URLs."""
    if source.startswith("/"):
        return Path(source)
    parts = urllib.parse.urlsplit(source)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise DownloadError(f"{source}: a file URL has three slashes and an absolute path: file:///srv/model.gguf")
        return Path(urllib.parse.unquote(parts.path))
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise DownloadError(f"{source}: expected an http, https or file URL or an absolute path")
    return None


# ---------------------------------------------------------------------------------------------------------------------


def free_space(directory: Path) -> int:
    """Bytes that this user may still write in `directory`, or where it will be created."""
    while not directory.exists():
        directory = directory.parent
    return shutil.disk_usage(directory).free


def size_of(path: Path) -> int | None:
    """Size of a regular file; None if there is nothing. A link or a directory in its place is an error."""
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not path.is_file() or path.is_symlink():
        raise DownloadError(f"{path}: is not a regular file; move it away")
    return found.st_size


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass
class Fetcher:
    """Brings one file into place. What touches the world beyond the file system can be replaced in tests.

    `timeout`: seconds that a connection, or another process at work on the same store, may stay silent.
    `attempts`: how often to try without receiving a single new byte.
    `keep_free`: bytes that must stay free on the file system.
    """

    wanted: Wanted
    timeout: float = 60.0
    attempts: int = 5
    keep_free: int = 0
    trust_stamp: bool = True
    free: Callable[[Path], int] = free_space
    sleep: Callable[[float], None] = time.sleep

    def is_present(self) -> bool:
        """Whether the file stands under its final name with the wanted content. Reads it all only if it must."""
        path = self.wanted.path
        size = size_of(path)
        mtime_ns = path.stat().st_mtime_ns if size is not None else 0
        verdict = judge(self.wanted, size, mtime_ns, self._read_stamp(), trust_stamp=self.trust_stamp)
        return verdict == "same" or (verdict == "unknown" and sha256_of(path) == self.wanted.sha256)

    def arrived(self) -> int:
        """Bytes in the part file."""
        return size_of(self.wanted.part) or 0

    def require_space(self) -> None:
        problem = shortage(self.wanted, self.arrived(), self.free(self.wanted.path.parent), self.keep_free)
        if problem:
            raise DownloadError(problem)

    def require_source(self, source: str) -> None:
        """Refuse a source that cannot work, as far as that shows without a connection."""
        local = local_path(source)
        if local is None:
            return
        size = size_of(local.resolve())
        if size is None:
            raise DownloadError(f"{local}: there is no such file on this machine")
        if size != self.wanted.bytes:
            raise DownloadError(f"{local}: has {size} bytes where {self.wanted.bytes} are expected: another file")

    def fetch(self, source: str) -> bool:
        """Get the file from a URL or path, unless it is there. Returns whether anything was done."""
        if self.is_present():
            self.write_stamp()
            return False
        self.require_source(source)
        with self._store():
            # Another process may have brought it while this one waited.
            if self.is_present():
                self.write_stamp()
                return False
            self.require_space()
            local = local_path(source)
            digest = self._copy(local) if local is not None else self._download(source)
            self._put_in_place(digest, source)
        return True

    def receive(self, origin: str) -> bool:
        """Put in place what something else has written to the part file. Returns whether anything was done."""
        if self.is_present():
            self.write_stamp()
            return False
        with self._store():
            arrived = size_of(self.wanted.part)
            if arrived is None:
                raise DownloadError(f"{self.wanted.part}: nothing has arrived from {origin}")
            if arrived < self.wanted.bytes:
                raise DownloadError(
                    f"{self.wanted.part}: only {arrived} of {self.wanted.bytes} bytes have arrived from {origin}; "
                    "run again to get the rest"
                )
            self._put_in_place(sha256_of(self.wanted.part), origin)
        return True

    def write_stamp(self) -> None:
        """Note that the file, as it stands, has the wanted content."""
        stat = self.wanted.path.stat()
        stamp = Stamp(self.wanted.sha256, stat.st_size, stat.st_mtime_ns)
        if stamp == self._read_stamp():
            return
        with self._os_errors():
            temporary = self.wanted.stamp.with_name(self.wanted.stamp.name + ".new")
            temporary.write_text(str(stamp), encoding="ascii")
            temporary.replace(self.wanted.stamp)

    def _read_stamp(self) -> Stamp | None:
        try:
            return parse_stamp(self.wanted.stamp.read_text(encoding="ascii", errors="replace"))
        except (FileNotFoundError, NotADirectoryError):
            return None

    @contextlib.contextmanager
    def _os_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise DownloadError(
                    f"the disk of {self.wanted.path.parent} became full while {self.wanted.path.name} arrived; "
                    "what has arrived is kept: make room and run again"
                ) from error
            place = error.filename or self.wanted.path
            raise DownloadError(f"{place}: {error.strerror or error}") from error

    @contextlib.contextmanager
    def _store(self) -> Iterator[None]:
        """Hold the store for this process alone.

        When the controller dies its module may live on, and two writers would spoil the part file. So the second waits,
        as long as the part still grows.
        """
        with self._os_errors():
            self.wanted.incoming.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.wanted.incoming, os.O_RDONLY | os.O_DIRECTORY)
        try:
            waited, seen = 0.0, self.arrived()
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    pass
                if waited >= self.timeout:
                    raise DownloadError(
                        f"{self.wanted.incoming}: another process has held this directory for {waited:.0f} s "
                        f"while no byte of {self.wanted.path.name} arrived; stop it and run again"
                    )
                self.sleep(1.0)
                waited += 1.0
                if (now := self.arrived()) != seen:
                    waited, seen = 0.0, now
            yield
        finally:
            os.close(handle)

    def _copy(self, source: Path) -> str:
        with self._os_errors(), source.open("rb") as reader, _Part(self.wanted.part) as part:
            part.clear()
            while chunk := reader.read(CHUNK):
                part.write(chunk)
            return part.sha256

    def _download(self, url: str) -> str:
        """Bring the part file to its full size; returns the SHA-256 of what is in it."""
        with self._os_errors(), _Part(self.wanted.part) as part:
            if part.size > self.wanted.bytes:
                part.clear()  # left by a run with another idea of the size
            most, failures = part.size, 0
            while part.size < self.wanted.bytes:
                try:
                    self._attempt(url, part)
                except DownloadError as error:
                    raise DownloadError(f"{url}: {error}") from error
                except _TransientError as error:
                    # Progress is what goes beyond all earlier attempts: a server that cannot resume and always cuts at
                    # the same place must not keep us for ever.
                    failures = 1 if part.size > most else failures + 1
                    most = max(most, part.size)
                    if failures >= self.attempts:
                        raise DownloadError(
                            f"{url}: {error}; gave up after {failures} attempts without progress. "
                            f"{part.size} of {self.wanted.bytes} bytes are kept: run again to go on"
                        ) from error
                    self.sleep(pause_before(failures))
            return part.sha256

    def _attempt(self, url: str, part: _Part) -> None:
        """Ask for what is missing and write what comes."""
        headers = {"User-Agent": "bramble", "Accept-Encoding": "identity"}
        if part.size:
            headers["Range"] = f"bytes={part.size}-"
        try:
            try:
                response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=self.timeout)
            except urllib.error.HTTPError as error:
                response = error
            with response:
                length, content_range = response.headers["Content-Length"], response.headers["Content-Range"]
                offset = judge_answer(response.status, length, content_range, part.size, self.wanted.bytes)
                if offset != part.size:
                    part.clear()
                if offset is None:
                    raise _TransientError("the server cannot go on where the transfer stopped")
                # read1 gives what is there, so that a cut loses nothing that has come over the wire.
                while chunk := response.read1(CHUNK):
                    if part.size + len(chunk) > self.wanted.bytes:
                        part.clear()
                        raise DownloadError(f"the server sends more than the expected {self.wanted.bytes} bytes")
                    part.write(chunk)
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
            raise _TransientError(str(reason)) from error
        if part.size < self.wanted.bytes:
            raise _TransientError(f"the connection ended after {part.size} of {self.wanted.bytes} bytes")

    def _put_in_place(self, sha256: str, origin: str) -> None:
        wanted = self.wanted
        with self._os_errors():
            if sha256 != wanted.sha256:
                wanted.part.unlink()
                raise DownloadError(
                    f"wrong checksum of {wanted.path.name} from {origin}: expected sha256 {wanted.sha256}, "
                    f"got {sha256}. What arrived is deleted. Run again if it may have been damaged on its way; "
                    "otherwise correct the source or the checksum"
                )
            # First the content must be on the disk, then the name: a power cut in between leaves the old state.
            _sync(wanted.part)
            wanted.part.replace(wanted.path)
            _sync(wanted.path.parent)
        self.write_stamp()


class _Part:
    """The part file, open at its end, with the SHA-256 of its content so far. Held by one process at a time."""

    def __init__(self, path: Path) -> None:
        # No following of links: the directory may belong to the login user, and root writes here.
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        self._path = path
        self._file = os.fdopen(handle, "r+b")
        self._digest = hashlib.sha256()
        self.size = 0
        while chunk := self._file.read(CHUNK):
            self._digest.update(chunk)
            self.size += len(chunk)

    def __enter__(self) -> _Part:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self.size == 0:
            self._path.unlink(missing_ok=True)

    @property
    def sha256(self) -> str:
        self._file.flush()
        return self._digest.hexdigest()

    def write(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self._digest.update(chunk)
        self.size += len(chunk)

    def clear(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._digest = hashlib.sha256()
        self.size = 0


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
