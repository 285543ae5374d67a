"""Fetching one large file: what is decided, and what really happens against servers with every bad habit."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.server
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from ansible.module_utils.bramble.download import (
    DownloadError,
    Fetcher,
    Stamp,
    Wanted,
    _TransientError,
    judge,
    judge_answer,
    local_path,
    parse_stamp,
    pause_before,
    shortage,
)
from hypothesis import given
from hypothesis import strategies as st

CONTENT = bytes(range(256)) * 4096  # 1 MiB
SHA = hashlib.sha256(CONTENT).hexdigest()
OTHER_SHA = hashlib.sha256(b"other").hexdigest()
GIB = 2**30


# Decisions -----------------------------------------------------------------------------------------------------------


def wanted(**changes: object) -> Wanted:
    return Wanted(**{"path": Path("/models/m.gguf"), "sha256": SHA, "bytes": 100, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": "abc"}, "sha256 of m.gguf: expected 64"),
        ({"sha256": SHA.upper()}, "expected 64 lower-case"),
        ({"bytes": 0}, "bytes of m.gguf"),
        ({"path": Path("models/m.gguf")}, "must be absolute"),
    ],
)
def test_wanted_refuses(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DownloadError, match=message):
        wanted(**changes)


@pytest.mark.parametrize(
    ("size", "mtime_ns", "stamp", "trust", "verdict"),
    [
        (None, 0, None, True, "different"),
        (None, 0, Stamp(SHA, 100, 0), True, "different"),
        (99, 5, Stamp(SHA, 99, 5), True, "different"),
        (100, 5, None, True, "unknown"),
        (100, 5, Stamp(SHA, 100, 5), True, "same"),
        (100, 5, Stamp(SHA, 100, 5), False, "unknown"),
        (100, 6, Stamp(SHA, 100, 5), True, "unknown"),
        (100, 5, Stamp(SHA, 101, 5), True, "unknown"),
        (100, 5, Stamp(OTHER_SHA, 100, 5), True, "different"),
    ],
)
def test_judge(size: int | None, mtime_ns: int, stamp: Stamp | None, trust: bool, verdict: str) -> None:
    assert judge(wanted(), size, mtime_ns, stamp, trust_stamp=trust) == verdict


@given(st.binary(min_size=32, max_size=32), st.integers(0, 2**63), st.integers(0, 2**63))
def test_stamp_survives_writing_and_reading(digest: bytes, size: int, mtime_ns: int) -> None:
    stamp = Stamp(digest.hex(), size, mtime_ns)
    assert parse_stamp(str(stamp)) == stamp


@pytest.mark.parametrize("text", ["", "garbage", SHA, f"{SHA} 5", f"{SHA} 5 x", f"{SHA}  5 6", f"{SHA} 5 6 7"])
def test_no_stamp(text: str) -> None:
    assert parse_stamp(text) is None


@pytest.mark.parametrize(
    ("size", "arrived", "free", "keep_free", "fits"),
    [
        (10, 0, 10, 0, True),
        (10, 0, 9, 0, False),
        (10, 4, 6, 0, True),
        (10, 4, 6, 1, False),
        (10, 12, 0, 0, True),
        (10, 12, 0, 1, False),
    ],
)
def test_shortage(size: int, arrived: int, free: int, keep_free: int, fits: bool) -> None:
    assert (shortage(wanted(bytes=size), arrived, free, keep_free) is None) == fits


def test_shortage_says_how_much_and_where() -> None:
    message = shortage(wanted(bytes=3 * GIB), GIB, GIB, GIB // 2)
    assert message is not None
    assert re.search(
        r"in /models for m\.gguf: 2\.00 GiB to come and 0\.50 GiB to stay free, but only 1\.00 GiB", message
    )


@pytest.mark.parametrize(
    ("status", "length", "content_range", "asked", "offset"),
    [
        (200, "100", None, 0, 0),
        (200, None, None, 0, 0),
        (200, "100", None, 40, 0),  # the server does not know ranges
        (206, "60", "bytes 40-99/100", 40, 40),
        (206, "60", "bytes 40-99/*", 40, 40),
        (206, "60", "bytes 0-99/100", 40, None),
        (206, "60", None, 40, None),
        (206, "60", "nonsense", 40, None),
        (416, None, "bytes */100", 40, None),
    ],
)
def test_judge_answer(
    status: int, length: str | None, content_range: str | None, asked: int, offset: int | None
) -> None:
    assert judge_answer(status, length, content_range, asked, 100) == offset


@pytest.mark.parametrize(
    ("status", "length", "content_range", "asked", "message"),
    [
        (200, "99", None, 0, "has 99 bytes where 100 are expected"),
        (206, "1", "bytes 40-99/120", 40, "has 120 bytes where 100 are expected"),
        (416, None, None, 0, "416"),
        (404, None, None, 0, "404 .not there"),
        (401, None, None, 0, "401 .needs a login"),
        (304, None, None, 0, "304"),
    ],
)
def test_judge_answer_gives_up(
    status: int, length: str | None, content_range: str | None, asked: int, message: str
) -> None:
    with pytest.raises(DownloadError, match=message):
        judge_answer(status, length, content_range, asked, 100)


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_judge_answer_tries_again(status: int) -> None:
    with pytest.raises(_TransientError, match=str(status)):
        judge_answer(status, None, None, 0, 100)


def test_pauses_grow_to_a_limit() -> None:
    assert [pause_before(n) for n in range(1, 8)] == [1, 2, 4, 8, 16, 30, 30]


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("/srv/m.gguf", "/srv/m.gguf"),
        ("file:///srv/a%20b.gguf", "/srv/a b.gguf"),
        ("file://localhost/srv/m", "/srv/m"),
        ("https://example.org/m.gguf", None),
        ("http://127.0.0.1:8000/m", None),
    ],
)
def test_local_path(source: str, path: str | None) -> None:
    assert local_path(source) == (None if path is None else Path(path))


@pytest.mark.parametrize("source", ["", "m.gguf", "ftp://example.org/m", "file://host/m", "https:///m", "file:m"])
def test_local_path_refuses(source: str) -> None:
    with pytest.raises(DownloadError, match="URL"):
        local_path(source)


# A server ------------------------------------------------------------------------------------------------------------


@dataclass
class Habits:
    """How the server behaves; `requests` is what it was asked: the Range header of each request."""

    content: bytes = CONTENT
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)  # close after so many bytes of the body, one entry per request
    statuses: list[int] = field(default_factory=list)  # answer so first, one entry per request
    announce: bool = True
    requests: list[str | None] = field(default_factory=list)


@contextlib.contextmanager
def serving(habits: Habits) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
            pass

        def do_GET(self) -> None:
            asked = self.headers["Range"]
            habits.requests.append(asked)
            if habits.statuses:
                status = habits.statuses.pop(0)
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and habits.ranges else 0
            if start and start >= len(habits.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(habits.content)}")
                self.end_headers()
                return
            body = habits.content[start:]
            self.send_response(206 if start else 200)
            if habits.announce:
                self.send_header("Content-Length", str(len(body)))
            if start:
                end = len(habits.content) - 1
                self.send_header("Content-Range", f"bytes {start}-{end}/{len(habits.content)}")
            self.end_headers()
            self.wfile.write(body[: habits.cuts.pop(0)] if habits.cuts else body)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/m.gguf"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Clock:
    """Stands in for time.sleep, and remembers."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.pauses.append(seconds)


@pytest.fixture
def fetcher(tmp_path: Path) -> Fetcher:
    return Fetcher(Wanted(tmp_path / "store" / "m.gguf", SHA, len(CONTENT)), timeout=5, sleep=Clock())


def names(fetcher: Fetcher) -> set[str]:
    """Everything in the store that is not a directory."""
    return {path.name for path in fetcher.wanted.path.parent.rglob("*") if not path.is_dir()}


WHOLE = {"m.gguf", "m.gguf.sha256"}


def put_part(fetcher: Fetcher, content: bytes) -> None:
    fetcher.wanted.incoming.mkdir(parents=True)
    fetcher.wanted.part.write_bytes(content)


def test_fetches_once(fetcher: Fetcher) -> None:
    habits = Habits()
    with serving(habits) as url:
        assert fetcher.fetch(url) is True
        assert fetcher.wanted.path.read_bytes() == CONTENT
        assert names(fetcher) == WHOLE
        assert fetcher.fetch(url) is False
    assert habits.requests == [None]


def test_goes_on_after_cuts(fetcher: Fetcher) -> None:
    habits = Habits(cuts=[1000, 500_000])
    with serving(habits) as url:
        fetcher.fetch(url)
    assert habits.requests == [None, "bytes=1000-", "bytes=501000-"]
    assert fetcher.wanted.path.read_bytes() == CONTENT
    assert fetcher.sleep.pauses == [1, 1]  # type: ignore[attr-defined]


def test_goes_on_in_the_next_run(fetcher: Fetcher) -> None:
    put_part(fetcher, CONTENT[:777])
    habits = Habits()
    with serving(habits) as url:
        fetcher.fetch(url)
    assert habits.requests == ["bytes=777-"]
    assert fetcher.wanted.path.read_bytes() == CONTENT


def test_a_whole_part_needs_no_request(fetcher: Fetcher) -> None:
    put_part(fetcher, CONTENT)
    habits = Habits()
    with serving(habits) as url:
        assert fetcher.fetch(url) is True
    assert habits.requests == []
    assert names(fetcher) == WHOLE


def test_server_without_ranges_restarts(fetcher: Fetcher) -> None:
    put_part(fetcher, b"x" * 777)  # wrong bytes: they must not stay in the file
    habits = Habits(ranges=False)
    with serving(habits) as url:
        fetcher.fetch(url)
    assert habits.requests == ["bytes=777-"]
    assert fetcher.wanted.path.read_bytes() == CONTENT


def test_server_that_has_less_restarts_and_then_says_so(fetcher: Fetcher) -> None:
    put_part(fetcher, CONTENT[:900_000])
    habits = Habits(content=CONTENT[:800_000])
    with serving(habits) as url, pytest.raises(DownloadError, match="has 800000 bytes where 1048576 are expected"):
        fetcher.fetch(url)
    assert habits.requests == ["bytes=900000-", None]


def test_a_part_that_is_too_long_is_dropped(fetcher: Fetcher) -> None:
    put_part(fetcher, CONTENT + b"x")
    with serving(Habits()) as url:
        fetcher.fetch(url)
    assert fetcher.wanted.path.read_bytes() == CONTENT


def test_server_that_sends_too_much(fetcher: Fetcher) -> None:
    with (
        serving(Habits(content=CONTENT + b"x", announce=False)) as url,
        pytest.raises(DownloadError, match="more than the expected"),
    ):
        fetcher.fetch(url)
    assert fetcher.arrived() == 0


def test_passing_faults_are_waited_out(fetcher: Fetcher) -> None:
    with serving(Habits(statuses=[503, 429, 500])) as url:
        fetcher.fetch(url)
    assert fetcher.sleep.pauses == [1, 2, 4]  # type: ignore[attr-defined]
    assert names(fetcher) == WHOLE


def test_lasting_faults_end_and_keep_what_came(fetcher: Fetcher) -> None:
    habits = Habits(cuts=[1000], statuses=[])
    with serving(habits) as url:

        def then_fail(seconds: float) -> None:
            habits.statuses[:] = [503]

        fetcher.sleep = then_fail
        with pytest.raises(DownloadError, match=r"503; gave up after 5 attempts .* 1000 of 1048576 bytes are kept"):
            fetcher.fetch(url)
    assert fetcher.arrived() == 1000
    assert names(fetcher) == {f"{SHA}.part"}


def test_a_server_that_always_cuts_and_cannot_resume_does_not_keep_us(fetcher: Fetcher) -> None:
    habits = Habits(ranges=False, cuts=[1000] * 100)
    with serving(habits) as url, pytest.raises(DownloadError, match="gave up after 5 attempts"):
        fetcher.fetch(url)
    assert len(habits.requests) <= 6


def test_a_fault_of_the_request_ends_at_once(fetcher: Fetcher) -> None:
    habits = Habits(statuses=[404])
    with serving(habits) as url, pytest.raises(DownloadError, match=re.escape(f"{url}: the server answers 404")):
        fetcher.fetch(url)
    assert len(habits.requests) == 1
    assert names(fetcher) == set()


def test_nobody_answers(fetcher: Fetcher) -> None:
    with serving(Habits()) as url:
        pass  # the port is free again
    with pytest.raises(DownloadError, match=r"refused.*gave up after 5 attempts"):
        fetcher.fetch(url)


def test_wrong_checksum_deletes_the_part_and_keeps_the_old_file(fetcher: Fetcher) -> None:
    fetcher.wanted.path.parent.mkdir()
    fetcher.wanted.path.write_text("old")
    wrong = CONTENT[:-1] + b"x"
    got = hashlib.sha256(wrong).hexdigest()
    with serving(Habits(content=wrong)) as url, pytest.raises(DownloadError) as caught:
        fetcher.fetch(url)
    for part in (SHA, got, url, "m.gguf"):
        assert part in str(caught.value)
    assert fetcher.wanted.path.read_text() == "old"
    assert names(fetcher) == {"m.gguf"}


def test_no_space_means_no_request(fetcher: Fetcher) -> None:
    habits = Habits()
    fetcher.free, fetcher.keep_free = lambda _: len(CONTENT), 1
    with serving(habits) as url, pytest.raises(DownloadError, match=r"not enough space in .*store for m\.gguf"):
        fetcher.fetch(url)
    assert habits.requests == []
    assert names(fetcher) == set()


def test_space_for_the_rest_is_enough(fetcher: Fetcher) -> None:
    put_part(fetcher, CONTENT[:-10])
    fetcher.free = lambda _: 10
    with serving(Habits()) as url:
        assert fetcher.fetch(url) is True


def test_free_space_is_asked_where_the_directory_will_be(tmp_path: Path) -> None:
    fetcher = Fetcher(Wanted(tmp_path / "not" / "yet" / "m.gguf", SHA, 2**62))
    with pytest.raises(DownloadError, match="not enough space"):
        fetcher.require_space()


# Files, stamps, company ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_copies_a_file(fetcher: Fetcher, tmp_path: Path, prefix: str) -> None:
    source = tmp_path / "source.gguf"
    source.write_bytes(CONTENT)
    put_part(fetcher, b"left over")
    assert fetcher.fetch(f"{prefix}{source}") is True
    assert fetcher.wanted.path.read_bytes() == CONTENT
    assert source.exists()
    assert names(fetcher) == WHOLE


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file on this machine"),
        (b"short", "has 5 bytes where 1048576"),
        ("dir", "not a regular"),
    ],
)
def test_refuses_a_source(fetcher: Fetcher, tmp_path: Path, content: bytes | str | None, message: str) -> None:
    source = tmp_path / "source.gguf"
    if isinstance(content, bytes):
        source.write_bytes(content)
    elif content:
        source.mkdir()
    with pytest.raises(DownloadError, match=message):
        fetcher.fetch(str(source))
    assert not fetcher.wanted.path.parent.exists()


def test_receives_a_part(fetcher: Fetcher) -> None:
    put_part(fetcher, CONTENT)
    assert fetcher.receive("pi1") is True
    assert names(fetcher) == WHOLE
    assert fetcher.receive("pi1") is False


@pytest.mark.parametrize(
    ("content", "message", "left"),
    [
        (None, "nothing has arrived from pi1", set()),
        (CONTENT[:10], "only 10 of 1048576 bytes have arrived from pi1", {f"{SHA}.part"}),
        (CONTENT[:-1] + b"x", "wrong checksum of m.gguf from pi1", set()),
        (CONTENT + b"x", "wrong checksum of m.gguf from pi1", set()),
    ],
)
def test_refuses_a_part(fetcher: Fetcher, content: bytes | None, message: str, left: set[str]) -> None:
    if content is not None:
        put_part(fetcher, content)
    with pytest.raises(DownloadError, match=message):
        fetcher.receive("pi1")
    assert names(fetcher) == left


def test_the_stamp_saves_the_reading(fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    put_part(fetcher, CONTENT)
    fetcher.receive("pi1")
    monkeypatch.setattr("ansible.module_utils.bramble.download.sha256_of", lambda path: pytest.fail(f"reads {path}"))
    assert fetcher.is_present()


def test_without_a_good_stamp_the_file_is_read(fetcher: Fetcher) -> None:
    put_part(fetcher, CONTENT)
    fetcher.receive("pi1")
    path, stamp = fetcher.wanted.path, fetcher.wanted.stamp
    stamp.unlink()
    assert fetcher.is_present()
    fetcher.receive("pi1")
    assert parse_stamp(stamp.read_text()) == Stamp(SHA, len(CONTENT), path.stat().st_mtime_ns)
    # The same size, another content, a later time of change.
    path.write_bytes(CONTENT[:-1] + b"x")
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000_000))
    assert not fetcher.is_present()


def test_always_reading_finds_what_the_stamp_hides(fetcher: Fetcher) -> None:
    put_part(fetcher, CONTENT)
    fetcher.receive("pi1")
    path = fetcher.wanted.path
    before = path.stat().st_mtime_ns
    path.write_bytes(CONTENT[:-1] + b"x")
    os.utime(path, ns=(before, before))
    assert fetcher.is_present()
    fetcher.trust_stamp = False
    assert not fetcher.is_present()


def test_a_link_in_place_of_the_part_is_not_followed(fetcher: Fetcher, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    fetcher.wanted.incoming.mkdir(parents=True)
    fetcher.wanted.part.symlink_to(victim)
    with serving(Habits()) as url, pytest.raises(DownloadError, match="not a regular file"):
        fetcher.fetch(url)
    assert victim.read_text() == "precious"


@contextlib.contextmanager
def held(directory: Path) -> Iterator[int]:
    directory.mkdir(parents=True)
    handle = os.open(directory, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield handle
    finally:
        os.close(handle)


def test_waits_for_another_run_and_uses_what_it_brought(fetcher: Fetcher) -> None:
    habits = Habits()
    with serving(habits) as url, held(fetcher.wanted.incoming) as handle:

        def other_run_ends(seconds: float) -> None:
            fetcher.wanted.path.write_bytes(CONTENT)
            fcntl.flock(handle, fcntl.LOCK_UN)

        fetcher.sleep = other_run_ends
        assert fetcher.fetch(url) is False
    assert habits.requests == []


def test_another_run_that_does_nothing_is_not_waited_for_for_ever(fetcher: Fetcher) -> None:
    with (
        serving(Habits()) as url,
        held(fetcher.wanted.incoming),
        pytest.raises(DownloadError, match="another process has held this directory for 5 s"),
    ):
        fetcher.fetch(url)


def test_another_run_that_moves_is_waited_for(fetcher: Fetcher) -> None:
    """Twenty steps of one second with five seconds of patience: each new byte renews it."""
    steps = 0
    with serving(Habits()) as url, held(fetcher.wanted.incoming) as handle:

        def other_run_moves(seconds: float) -> None:
            nonlocal steps
            steps += 1
            fetcher.wanted.part.write_bytes(CONTENT[: steps * 10])
            if steps == 20:
                fcntl.flock(handle, fcntl.LOCK_UN)

        fetcher.sleep = other_run_moves
        assert fetcher.fetch(url) is True
    assert steps == 20
