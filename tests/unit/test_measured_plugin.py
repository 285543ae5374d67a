"""The inventory plugin, run by ansible-inventory with the project's ansible.cfg and the lines that it needs there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from record_values import partial

from bramble.records import append, complete, latest

ROOT = Path(__file__).resolve().parents[2]
HOSTS = "cluster: {hosts: {pi1: {ansible_connection: local}, pi2: , pi3: {ansible_host: 192.0.2.3}}}\n"
# Without the second one, Ansible takes all that lies in measured/ for inventories, and fails.
NEEDED = {"[defaults]": "inventory_plugins = plugins/inventory", "[inventory]": "ignore_patterns = ^(measured|report)$"}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A checkout with an inventory of three hosts."""
    text = (ROOT / "ansible.cfg").read_text()
    for section, line in NEEDED.items():
        if line.partition(" ")[0] not in text:
            text = text.replace(section, f"{section}\n{line}")
    (tmp_path / "ansible.cfg").write_text(text)
    for name in ("plugins", "library", "roles"):
        (tmp_path / name).symlink_to(ROOT / name)
    inventory = tmp_path / "inventory/pi"
    inventory.mkdir(parents=True)
    (inventory / "hosts.yml").write_text(HOSTS)
    (inventory / "measured.yml").write_text("plugin: measured\n")
    return tmp_path


def ansible(project: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / program), "-i", "inventory/pi", *arguments]
    # No width: warnings are not folded.
    env = {**os.environ, "ANSIBLE_NOCOLOR": "1", "COLUMNS": "1000"}
    return subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, check=False)


def variables(project: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """The hosts' variables, and what was said beside them."""
    done = ansible(project, "ansible-inventory", "--list", "--export", *arguments)
    assert done.returncode == 0, done.stderr
    hosts: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])["_meta"]["hostvars"]
    return hosts, done.stdout[: done.stdout.index("{")] + done.stderr


def plain(value: Any) -> Any:
    """What ansible-inventory prints, without its mark for text that is never a template."""
    if isinstance(value, dict):
        return (
            value["__ansible_unsafe"]
            if "__ansible_unsafe" in value
            else {key: plain(item) for key, item in value.items()}
        )
    return [plain(item) for item in value] if isinstance(value, list) else value


def test_each_host_gets_its_latest_records(project: Path) -> None:
    measured = project / "inventory/pi/measured"
    old, new = complete(partial(), "pi1"), complete(partial(started_at="2026-11-22T12:00:00Z"), "pi1", "raw text")
    deep = complete(partial(params__depth=4096), "pi1")
    other = complete(partial(), "pi2", "[all]\nthis is no inventory\n")
    gone = complete(partial(), "pi9")
    for record in (old, new, deep, gone):
        append(measured, record, "raw text" if record["raw"] else None)
    append(measured, other, "[all]\nthis is no inventory\n")
    (project / "inventory/pi/report").mkdir()
    (project / "inventory/pi/report/baseline.html").write_text("[all]\nnor is this\n")

    hosts, said = variables(project)
    assert plain(hosts["pi1"]["measured"]) == latest([old, new, deep]) == [new, deep]
    assert plain(hosts["pi2"]["measured"]) == [other]
    assert "measured" not in hosts["pi3"]
    assert "pi9" not in hosts
    assert said == ""
    assert "measured/pi9.jsonl: the inventory has no host pi9" in variables(project, "-v")[1]


def test_text_in_records_is_never_a_template(project: Path) -> None:
    trap = "{{ lookup('ansible.builtin.pipe', 'touch trapped') }}"
    record = complete(partial(conditions__notes=[trap], params__note="{{ 1 + 1 }}"), "pi1")
    append(project / "inventory/pi/measured", record)
    done = ansible(
        project, "ansible", "pi1", "-m", "ansible.builtin.debug", "-a", json.dumps({"msg": "{{ measured }}"})
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "touch trapped" in done.stdout
    assert "{{ 1 + 1 }}" in done.stdout
    assert not (project / "trapped").exists()
    assert plain(variables(project)[0]["pi1"]["measured"]) == [record]


def test_bad_lines_are_warnings_with_their_place(project: Path) -> None:
    measured = project / "inventory/pi/measured"
    append(measured, complete(partial(), "pi1"))
    path = measured / "pi1.jsonl"
    path.write_bytes(b"\xff\n" + path.read_bytes() + b'{"schema":')
    hosts, said = variables(project)
    assert len(hosts["pi1"]["measured"]) == 1
    assert "inventory/pi/measured/pi1.jsonl:1: no valid record: not UTF-8: remove the line" in said
    assert "inventory/pi/measured/pi1.jsonl:3: no valid record" in said
    assert "its writing was cut off; the next measurement removes it" in said
    path.write_text("bad\n" * 100)
    said = variables(project)[1]
    assert said.count("no valid record: not JSON") == 5
    assert "95 more lines of measured/ are no valid records" in said


@pytest.mark.parametrize("made", [False, True])
def test_no_records_are_no_problem(project: Path, made: bool) -> None:
    if made:
        (project / "inventory/pi/measured/raw").mkdir(parents=True)
    hosts, said = variables(project)
    assert all("measured" not in each for each in hosts.values())
    assert said == ""


def test_a_wrong_configuration_file_is_told(project: Path) -> None:
    (project / "inventory/pi/other.yml").write_text("plugin: measured\n")
    done = ansible(project, "ansible-inventory", "--list")
    assert done.returncode != 0
    assert "could not be verified by inventory plugin 'measured'" in done.stderr


def test_the_plugin_is_documented(project: Path) -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "ansible-doc"), "-t", "inventory", "--json", "measured"],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["measured"]["doc"]["options"]["plugin"]["choices"] == ["measured"]


def test_a_play_skips_what_was_measured(project: Path) -> None:
    """The variable in the hands of a filter: what `has_record` sees in a run is what was kept."""
    append(project / "inventory/pi/measured", complete(partial(), "pi1"))
    (project / "filters").mkdir()
    (project / "filters/has.py").write_text(
        "from bramble.records import has_record\n"
        "class FilterModule:\n    def filters(self):\n        return {'has_record': has_record}\n"
    )
    (project / "play.yml").write_text(
        """
- hosts: pi1
  gather_facts: false
  vars: {key: 0fcb3760b2b9-1a2b3c4d, engine: {name: llama.cpp, build_key: "{{ key }}"}}
  tasks:
    - ansible.builtin.assert:
        that:
          - "measured | has_record('llama_bench', engine, {'sha256': 'a' * 64}, {'threads': 4, 'depth': 0})"
          - "not (measured | has_record('llama_bench', engine | combine({'build_key': 'x'}), {'sha256': 'a' * 64}))"
          - not (hostvars.pi2.measured | default([]) | has_record('llama_bench', engine))
"""
    )
    config = (project / "ansible.cfg").read_text()
    (project / "ansible.cfg").write_text(config.replace("filter_plugins = ", "filter_plugins = filters:"))
    done = ansible(project, "ansible-playbook", "play.yml")
    assert done.returncode == 0, done.stdout + done.stderr
