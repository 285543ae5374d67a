"""Asking a node's programs and reading its files, with limits, and with absence as an answer. Standard library only."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

FILE_LIMIT = 1 << 16
"""Bytes that are read of a file at most. What is read of procfs, sysfs, the device tree and /boot is shorter."""
_SYSTEM_DIRECTORIES = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_AFTER_KILL = 1.0


@dataclass(frozen=True)
class Question:
    """A program with its arguments, and the seconds that it may take."""

    command: tuple[str, ...]
    seconds: float

    def __str__(self) -> str:
        return " ".join(self.command)


@dataclass(frozen=True)
class Answer:
    """What a program said. `code` is None if it did not end by itself: then `fault` says why, or it is not there."""

    code: int | None = None
    output: str = ""
    errors: str = ""
    fault: str | None = None

    @property
    def absent(self) -> bool:
        return self.code is None and self.fault is None


Ask = Callable[[Mapping[str, Question]], dict[str, Answer]]


def ask(questions: Mapping[str, Question]) -> dict[str, Answer]:
    """Runs all the programs at the same time: it takes as long as the slowest, and at most its limit and a second."""
    if not questions:
        return {}
    with ThreadPoolExecutor(max_workers=len(questions)) as pool:
        return dict(zip(questions, pool.map(_ask_one, questions.values()), strict=True))


def _ask_one(question: Question) -> Answer:
    path = f"{os.environ.get('PATH', '')}:{_SYSTEM_DIRECTORIES}"
    program = shutil.which(question.command[0], path=path)
    if program is None:
        return Answer()
    try:
        process = subprocess.Popen(
            [program, *question.command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"PATH": path, "LC_ALL": "C", "LANGUAGE": ""},
            start_new_session=True,
        )
    except OSError as error:
        return Answer(fault=f"cannot be started: {error.strerror}")
    try:
        output, errors = process.communicate(timeout=question.seconds)
    except subprocess.TimeoutExpired:
        _stop(process)
        return Answer(fault=f"no answer within {question.seconds:g} s")
    return Answer(process.returncode, output.decode("utf-8", "replace"), errors.decode("utf-8", "replace"))


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Kills the program with all that it started. One that waits for a device cannot be killed: it is left behind."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=_AFTER_KILL)
    except (OSError, subprocess.TimeoutExpired):
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()


def first_line(text: str) -> str:
    """The first line with something on it, at most 200 characters; empty if there is none."""
    return next((line.strip()[:200] for line in text.splitlines() if line.strip()), "")


class Files:
    """Reads small files below a directory. Those that exist and cannot be read are added to `unreadable`."""

    def __init__(self, root: Path, unreadable: list[str]) -> None:
        self.root = root
        self.unreadable = unreadable

    def content(self, path: str) -> bytes | None:
        """The bytes, None without the file. sysfs says "invalid argument" where a value makes no sense: None too."""
        try:
            with (self.root / path).open("rb") as file:
                return file.read(FILE_LIMIT)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENODEV, errno.EOPNOTSUPP):
                self.unreadable.append(f"{self.root / path}: {error.strerror}")
            return None

    def text(self, path: str) -> str | None:
        """The text without the NUL bytes and white space around it; None without the file, or with an empty one."""
        content = self.content(path)
        return (content or b"").decode("utf-8", "replace").strip("\0 \t\r\n") or None

    def number(self, path: str) -> int | None:
        """A whole number in decimal digits; None for anything else."""
        text = self.text(path) or ""
        digits = text.removeprefix("-")
        return int(text) if digits.isascii() and digits.isdigit() and len(digits) < 20 else None

    def names(self, path: str) -> list[str] | None:
        """The names in a directory, sorted; None without the directory."""
        try:
            return sorted(entry.name for entry in (self.root / path).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self.unreadable.append(f"{self.root / path}: {error.strerror}")
            return None

    def has(self, path: str) -> bool:
        return os.path.exists(self.root / path)  # noqa: PTH110 - Path.exists raises for a path that may not be searched
