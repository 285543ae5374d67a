"""The files: `measured/<host>.jsonl`, a record a line, and `measured/raw/<host>/<id>.txt`, what the tool printed.

A line is written in one step, under a lock, and reaches the disk before the next one. A crash can leave the last line
unfinished: it is no record, `load` says so, and the next `append` takes it away.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast

from bramble.records.physics import suspicions
from bramble.records.schema import (
    SCHEMA,
    Record,
    RecordError,
    canonical,
    check,
    check_host,
    identify,
    partial_defects,
)

LOCK = ".lock"


class Appended(NamedTuple):
    """What `append` did. `written`: false if the record was there. `warnings`: what it found and mended."""

    written: bool
    warnings: list[str]


def complete(partial: Mapping[str, Any], host: str, raw_text: str | None = None) -> Record:
    """A whole record out of what a module measured on `host`. With `raw_text`, it names the file for it.

    The same measurement gives the same record, id included.

    Raises:
        RecordError: the partial record is not valid; the message names each field that is wrong.
    """
    check_host(host)
    found = partial_defects(partial)
    if found:
        raise RecordError("; ".join(found))
    measured = {"schema": SCHEMA, "host": host, **partial}
    record_id = identify(measured)
    raw = f"raw/{host}/{record_id}.txt" if raw_text is not None else None
    record = cast(Record, {**measured, "id": record_id, "raw": raw})
    reasons = suspicions(record)
    if reasons:
        record["suspect"] = reasons
    return record


def contains(directory: Path, record: Record) -> bool:
    """Whether the record stands in the directory's file of its host."""
    return _holds(_read(directory / f"{record['host']}.jsonl"), record)


def append(directory: Path, record: Record, raw_text: str | None = None) -> Appended:
    """Add a record to `directory`: an inventory's `measured/`, made if it is missing. One that is there is not added.

    Raises:
        RecordError: the record is not valid, or its `raw` and `raw_text` do not go together.
        OSError: a file cannot be written.
    """
    check(record)
    if (record["raw"] is None) != (raw_text is None):
        raise RecordError(f"raw: is {record['raw']!r}, and {'no' if raw_text is None else 'a'} raw text was given")
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{record['host']}.jsonl"
    with _locked(directory):
        content = _read(path)
        if _holds(content, record):
            return Appended(False, [])
        if raw_text is not None and record["raw"] is not None:
            _write_whole(directory / record["raw"], raw_text)
        warnings = _mend_end(path, content)
        _write_line(path, canonical(dict(record)))
    return Appended(True, warnings)


def load(directory: Path) -> tuple[dict[str, list[Record]], list[str]]:
    """All records in `directory`, by host in the order of the lines, and a sentence for each line that is none.

    A directory that is missing has no records. Nothing that the files hold raises. A record that stands there twice
    counts once.
    """
    records: dict[str, list[Record]] = {}
    problems: list[str] = []
    try:
        paths = sorted(path for path in directory.iterdir() if path.suffix == ".jsonl")
    except FileNotFoundError:
        return {}, []
    except OSError as error:
        return {}, [_unreadable(directory, error)]
    for path in paths:
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            problems.append(_unreadable(path, error))
            continue
        seen: set[str] = set()
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = _parse(line, path.stem)
            except RecordError as error:
                # What follows the last end of a line is a line that has none.
                torn = number == len(lines) and _is_torn(line)
                advice = "its writing was cut off; the next measurement removes it" if torn else "remove the line"
                problems.append(f"{_shown(path)}:{number}: no valid record: {error}: {advice}")
                continue
            if record["id"] not in seen:
                seen.add(record["id"])
                records.setdefault(path.stem, []).append(record)
    return records, problems


def _unreadable(path: Path, error: OSError) -> str:
    return f"{_shown(path)}: cannot be read: {error.strerror}; check what it is and its permissions"


def _shown(path: Path) -> str:
    """A path as text that can be printed: a name may be no UTF-8."""
    return os.fsencode(path).decode("utf-8", errors="backslashreplace")


# --- Lines


def _parse(line: bytes, host: str) -> Record:
    value = _json(line)
    record = check(value)
    if record["host"] != host:
        raise RecordError(f"host: is {record['host']!r}, and the file is that of {host!a}")
    if record["id"] != identify(record):
        raise RecordError("id: is not that of the rest of the line, which was changed after it was measured")
    return record


def _json(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"), parse_constant=_refuse)
    except RecordError:
        raise
    except UnicodeDecodeError as error:
        raise RecordError("not UTF-8") from error
    except json.JSONDecodeError as error:
        raise RecordError(f"not JSON: {error.msg} (column {error.colno})") from error
    except RecursionError as error:
        raise RecordError("not JSON: nested too deeply") from error
    except ValueError as error:  # a number of thousands of digits
        raise RecordError("not JSON: a number too long to read") from error


def _refuse(constant: str) -> NoReturn:
    raise RecordError(f"not JSON: {constant} is no number")


def _is_torn(line: bytes) -> bool:
    """Whether the line is the beginning of a JSON object and not a whole one."""
    if not line.startswith(b"{"):
        return False
    try:
        _json(line)
    except RecordError:
        return True
    return False


def _holds(content: bytes, record: Record) -> bool:
    """Whether one of the lines is the record."""
    record_id = record["id"].encode("ascii")
    return any(_is(line, record) for line in content.split(b"\n") if record_id in line)


def _is(line: bytes, record: Record) -> bool:
    try:
        return _parse(line, record["host"])["id"] == record["id"]
    except RecordError:
        return False


# --- Files


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Nobody else writes in the directory meanwhile. The kernel lets go of the lock when the process ends."""
    descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _mend_end(path: Path, content: bytes) -> list[str]:
    """Make the file end with a whole line: cut off what a crash left, give a line that somebody wrote its end."""
    if not content or content.endswith(b"\n"):
        return []
    kept, _, rest = content.rpartition(b"\n")
    with path.open("r+b") as file:
        if _is_torn(rest):
            file.truncate(len(kept) + 1 if kept or content.startswith(b"\n") else 0)
            said = f"{path}: its last line was cut off while it was written, and is removed ({len(rest)} bytes)"
        else:
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
            said = f"{path}: its last line had no end, and has one now"
        file.flush()
        os.fsync(file.fileno())
    return [said]


def _write_line(path: Path, line: str) -> None:
    new = not path.exists()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        data = line.encode("ascii") + b"\n"
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if new:
        _sync_directory(path.parent)


def _write_whole(path: Path, text: str) -> None:
    """Write a file so that it is either there and whole, or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    with unfinished.open("wb") as file:
        file.write(text.encode("utf-8", errors="backslashreplace"))
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
