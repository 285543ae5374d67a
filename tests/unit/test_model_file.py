"""The module around the fetcher: arguments, check mode, diff, messages."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

import model_file

CONTENT = b"weights" * 1000
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.gguf"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "store" / "m.gguf"


def run(capsys: pytest.CaptureFixture[str], target: Path, **arguments: Any) -> dict[str, Any]:
    merged = {"path": str(target), "sha256": SHA, "bytes": len(CONTENT), **arguments}
    with patch_module_args(merged), pytest.raises(SystemExit):
        model_file.main()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_present_from_a_file(capsys: pytest.CaptureFixture[str], target: Path, source: Path) -> None:
    first = run(capsys, target, src=str(source), mode="0640")
    assert (first["changed"], first["present"]) == (True, False)
    assert target.read_bytes() == CONTENT
    assert target.stat().st_mode & 0o777 == 0o640
    assert first["diff"]["before"] == "absent\n"
    assert SHA in first["diff"]["after"]
    second = run(capsys, target, src=str(source), mode="0640")
    assert (second["changed"], second["present"]) == (False, True)
    assert "diff" not in second


def test_mode_alone_is_a_change(capsys: pytest.CaptureFixture[str], target: Path, source: Path) -> None:
    run(capsys, target, src=str(source), mode="0644")
    assert run(capsys, target, src=str(source), mode="0600")["changed"] is True
    assert target.stat().st_mode & 0o777 == 0o600


def test_present_from_a_file_url(capsys: pytest.CaptureFixture[str], target: Path, source: Path) -> None:
    assert run(capsys, target, url=source.as_uri())["changed"] is True
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("source_argument", [{"url": "https://models.invalid/m.gguf"}, {"state": "received"}])
def test_check_mode_says_what_it_would_do(
    capsys: pytest.CaptureFixture[str], target: Path, source_argument: dict[str, str]
) -> None:
    answer = run(capsys, target, **source_argument, mode="0644", owner="root", _ansible_check_mode=True)
    assert answer["changed"] is True
    assert answer["present"] is False
    assert answer["part"] == str(target.parent / ".incoming" / f"{SHA}.part")
    assert not target.parent.parent.exists()


def test_check_mode_of_what_is_there(capsys: pytest.CaptureFixture[str], target: Path, source: Path) -> None:
    run(capsys, target, src=str(source))
    assert run(capsys, target, state="received", _ansible_check_mode=True)["changed"] is False
    target.write_bytes(b"spoilt")
    answer = run(capsys, target, state="received", _ansible_check_mode=True)
    assert answer["changed"] is True
    assert answer["diff"]["before"] == "6 bytes, another content\n"
    assert target.read_bytes() == b"spoilt"


def test_received(capsys: pytest.CaptureFixture[str], target: Path) -> None:
    part = target.parent / ".incoming" / f"{SHA}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT)
    answer = run(capsys, target, state="received", origin="pi1")
    assert answer["changed"] is True
    assert answer["arrived_bytes"] == len(CONTENT)
    assert target.read_bytes() == CONTENT
    assert not part.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "state is present but any of the following are missing: url, src"),
        ({"url": "https://a.invalid/m", "src": "/m"}, "mutually exclusive"),
        ({"url": "m.gguf"}, "model m.gguf: m.gguf: expected an http"),
        ({"src": "/nowhere/m.gguf", "name": "tiny"}, "model tiny: /nowhere/m.gguf: there is no such file"),
        ({"src": "/nowhere/m.gguf", "_ansible_check_mode": True}, "there is no such file"),
        ({"state": "received", "sha256": "123"}, "expected 64 lower-case hex digits, got '123'"),
        ({"state": "received", "origin": "pi1"}, "nothing has arrived from pi1"),
        ({"state": "received", "keep_free_bytes": 2**62, "_ansible_check_mode": True}, "not enough space in"),
    ],
)
def test_refuses(capsys: pytest.CaptureFixture[str], target: Path, arguments: dict[str, Any], message: str) -> None:
    answer = run(capsys, target, **arguments)
    assert answer["failed"] is True
    assert message in answer["msg"]
    assert "exception" not in answer
    assert not target.exists()


def test_verify_always(capsys: pytest.CaptureFixture[str], target: Path, source: Path) -> None:
    run(capsys, target, src=str(source))
    stamp = target.with_name("m.gguf.sha256")
    target.write_bytes(b"x" * len(CONTENT))
    # A stamp that lies: as after a restore of the file's time of change.
    stamp.write_text(f"{SHA} {len(CONTENT)} {target.stat().st_mtime_ns}\n")
    assert run(capsys, target, src=str(source))["changed"] is False
    assert run(capsys, target, src=str(source), verify="always")["changed"] is True
    assert target.read_bytes() == CONTENT
