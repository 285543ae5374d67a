"""The module that keeps records: what it writes, what it refuses, check mode, and that it runs on the controller."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from record_values import partial

import benchmark_record
from bramble.records import complete, load

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    return tmp_path / "inventory"


def run(capsys: pytest.CaptureFixture[str], inventory: Path, *records: Any, **arguments: Any) -> dict[str, Any]:
    merged = {"inventory_dir": str(inventory), "host": "pi1", "records": list(records), **arguments}
    with patch_module_args(merged), pytest.raises(SystemExit):
        benchmark_record.main()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_it_appends_once(capsys: pytest.CaptureFixture[str], inventory: Path) -> None:
    deep = partial(params__depth=4096, result__decode__mean=12.0)
    first = run(capsys, inventory, partial(), deep, raw="$ llama-bench\n")
    assert first["changed"] is True
    wanted = [complete(each, "pi1", "$ llama-bench\n") for each in (partial(), deep)]
    assert first["records"] == wanted
    assert wanted[1]["suspect"]
    assert first["appended"] == [record["id"] for record in wanted]
    assert first["path"] == f"{inventory}/measured/pi1.jsonl"
    assert first["diff"]["after"] == (inventory / "measured/pi1.jsonl").read_text()
    assert load(inventory / "measured") == ({"pi1": wanted}, [])
    assert [(inventory / "measured" / str(record["raw"])).read_text() for record in wanted] == ["$ llama-bench\n"] * 2

    second = run(capsys, inventory, partial(), deep, raw="$ llama-bench\n")
    assert (second["changed"], second["appended"], second["records"]) == (False, [], wanted)
    assert second["diff"]["after"] == ""


def test_a_list_of_raw_texts_has_one_for_each(capsys: pytest.CaptureFixture[str], inventory: Path) -> None:
    done = run(capsys, inventory, partial(), partial(params__depth=1), raw=["one", "two"])
    assert [(inventory / "measured" / record["raw"]).read_text() for record in done["records"]] == ["one", "two"]


def test_without_raw_text_there_is_no_file(capsys: pytest.CaptureFixture[str], inventory: Path) -> None:
    assert run(capsys, inventory, partial())["records"][0]["raw"] is None
    assert sorted(path.name for path in (inventory / "measured").iterdir()) == [".lock", "pi1.jsonl"]


def test_check_mode_checks_and_writes_nothing(capsys: pytest.CaptureFixture[str], inventory: Path) -> None:
    predicted = run(capsys, inventory, partial(), partial(), raw="raw", _ansible_check_mode=True)
    assert predicted["changed"] is True
    assert predicted["appended"] == [complete(partial(), "pi1")["id"]]
    assert not inventory.exists()
    assert run(capsys, inventory, partial(kind="x"), _ansible_check_mode=True)["failed"]
    run(capsys, inventory, partial(), raw="raw")
    assert run(capsys, inventory, partial(), raw="raw", _ansible_check_mode=True)["changed"] is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"records": [partial(), partial(params__depth=...)]},
            "records of pi1: records[1]: params.depth: is missing; a record of the kind llama_bench tells it",
        ),
        (
            {"records": [partial(), partial(), {}]},
            "records of pi1: records[2]: started_at: is missing; kind: is missing",
        ),
        ({"host": "a/b"}, "records of a/b: records[0]: host: 'a/b' is no name of a host"),
        (
            {"raw": ["one", "two"]},
            "records of pi1: raw: has 2 texts, and records has 1; give one for each, or one text",
        ),
        ({"raw": {"one": "two"}}, "records of pi1: raw: is neither a text nor a list of texts"),
    ],
)
def test_it_refuses_what_is_wrong_and_names_it(
    capsys: pytest.CaptureFixture[str], inventory: Path, arguments: dict[str, Any], message: str
) -> None:
    answer = run(capsys, inventory, partial(), **arguments)
    assert answer["failed"] is True
    assert answer["msg"].startswith(message)
    assert not inventory.exists(), "something was written before all was checked"


def test_a_directory_that_cannot_be_written_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    answer = run(capsys, tmp_path / "file", partial())
    assert answer["msg"].startswith(f"{tmp_path}/file/measured: cannot be written or read: Not a directory")


def test_a_python_without_the_package_is_told(
    capsys: pytest.CaptureFixture[str], inventory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark_record, "MISSING", ImportError("No module named 'bramble'"))
    answer = run(capsys, inventory, partial())
    assert answer["msg"].startswith(f"{sys.executable} has no package bramble (No module named 'bramble').")
    assert "delegate_to" in answer["msg"]


def test_what_a_crash_left_is_a_warning(
    capsys: pytest.CaptureFixture[str], inventory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(benchmark_record.AnsibleModule, "warn", lambda _, text, **__: told.append(text))
    run(capsys, inventory, partial())
    path = inventory / "measured/pi1.jsonl"
    path.write_bytes(path.read_bytes() + b'{"conditions"')
    answer = run(capsys, inventory, partial(params__depth=1))
    assert answer["changed"] is True
    assert "its last line was cut off while it was written" in " ".join(told)
    assert len(load(inventory / "measured")[0]["pi1"]) == 2


PLAY = """
- hosts: pi1
  gather_facts: false
  tasks:
    - name: Keep the record
      benchmark_record:
        inventory_dir: "{{ inventory_dir }}"
        host: "{{ inventory_hostname }}"
        records: "{{ measurement.records }}"
        raw: "{{ measurement.raw }}"
      vars:
        measurement: "{{ lookup('ansible.builtin.file', 'measurement.json') | from_json }}"
      delegate_to: localhost
      become: false
"""


def test_a_play_keeps_records_on_the_controller(tmp_path: Path) -> None:
    """The host cannot be reached, and need not be. What is kept is what was measured, to the last digit."""
    measurement = {"records": [partial(result__decode__mean=5.123456789012345, duration_s=7.0)], "raw": "{{ raw }}\n"}
    (tmp_path / "inventory").mkdir()
    (tmp_path / "inventory/hosts.yml").write_text("all: {hosts: {pi1: {ansible_host: 192.0.2.1}}}\n")
    (tmp_path / "measurement.json").write_text(json.dumps(measurement))
    (tmp_path / "play.yml").write_text(PLAY)
    (tmp_path / "library").symlink_to(ROOT / "library")
    (tmp_path / "ansible.cfg").write_text("[defaults]\nlibrary = library\n")

    def play(*arguments: str) -> str:
        command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "inventory", "play.yml", *arguments]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "changed=1" in play("--check")
    assert not (tmp_path / "inventory/measured").exists()
    assert "changed=1" in play()
    assert "changed=0" in play()
    wanted = complete(measurement["records"][0], "pi1", "{{ raw }}\n")
    assert load(tmp_path / "inventory/measured") == ({"pi1": [wanted]}, [])
    assert (tmp_path / "inventory/measured" / str(wanted["raw"])).read_text() == "{{ raw }}\n"
