"""The record of a run, and the report of what no run evaluated."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT, run
from when_coverage import declared, report

MAIN = """\
- name: Always
  ansible.builtin.debug: {msg: "{{ yes_ }}"}
  changed_when: true
  notify: Handle
  when: yes_

- name: The second is false, the third is never reached
  ansible.builtin.debug: {msg: ""}
  when:
    - yes_
    - not yes_
    - third

- name: A block that is left out
  when: no_
  block:
    - name: Never reached
      ansible.builtin.debug: {msg: ""}
      when: inner

- name: Folded
  ansible.builtin.debug: {msg: ""}
  when: >-
    yes_
    and not no_

- name: Both ways
  ansible.builtin.debug: {msg: ""}
  loop: [1, 2]
  when: item == 2

- name: Over nothing
  ansible.builtin.debug: {msg: ""}
  loop: []
  when: item == 2

- name: Included
  ansible.builtin.include_tasks: more.yml
  when: yes_

- name: Imported
  ansible.builtin.import_tasks: more.yml
  when: no_

- name: Failing
  when: yes_
  block:
    - name: Fail
      ansible.builtin.fail: {msg: ""}
      when: yes_ | bool
  rescue:
    - name: Rescue
      ansible.builtin.debug: {msg: ""}
      when: not no_

- name: Handlers now
  ansible.builtin.meta: flush_handlers
  when: yes_

- name: Not yet
  ansible.builtin.meta: end_host
  when: no_

- name: End
  ansible.builtin.meta: end_host
  when: yes_

- name: After the end
  ansible.builtin.debug: {msg: ""}
  when: late
"""
MORE = '- name: More\n  ansible.builtin.debug: {msg: ""}\n  when: yes_\n'
HANDLERS = (
    '- name: Handle\n  ansible.builtin.debug: {msg: ""}\n  when: yes_\n- name: Constant\n  when: true\n  block: []\n'
)
PLAY = """\
- name: Play
  hosts: localhost
  gather_facts: false
  vars: {yes_: true, no_: false}
  roles: [demo]
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with one role, and the record of a run of it."""
    root = tmp_path_factory.mktemp("checkout")
    for name, text in {
        "roles/demo/tasks/main.yml": MAIN,
        "roles/demo/tasks/more.yml": MORE,
        "roles/demo/handlers/main.yml": HANDLERS,
        "play.yml": PLAY,
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    plugin = root / "plugins/callback/when_coverage.py"
    plugin.parent.mkdir(parents=True)
    plugin.write_text((ROOT / "plugins/callback/when_coverage.py").read_text())
    done = run(
        "ansible-playbook", "-i", "localhost,", "-c", "local", str(root / "play.yml"),
        cwd=root, ANSIBLE_CALLBACK_PLUGINS=str(plugin.parent), BRAMBLE_WHEN_COVERAGE=str(root / "out/record.txt"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Callback dispatch" not in done.stdout + done.stderr
    return root


def line_of(text: str, part: str) -> int:
    return text[: text.index(part)].count("\n") + 1


def test_the_report_names_what_the_run_did_not_reach_and_nothing_else(checkout: Path) -> None:
    code, text = report(declared(checkout), (checkout / "out/record.txt").read_text())
    main = "roles/demo/tasks/main.yml"
    assert code == 1
    assert text.splitlines() == [
        f"{main}:{line_of(MAIN, '- third')}: no run evaluated: when: third",
        f"{main}:{line_of(MAIN, 'when: inner')}: no run evaluated: when: inner",
        f"{main}:{line_of(MAIN, 'when: item == 2') + 5}: no run evaluated: when: item == 2",
        f"{main}:{line_of(MAIN, 'when: late')}: no run evaluated: when: late",
        "16 of 20 conditions evaluated, 15 of them always with the same outcome",
    ]


def test_outcomes_are_recorded_once_each(checkout: Path) -> None:
    lines = (checkout / "out/record.txt").read_text().splitlines()
    assert len(lines) == len(set(lines))
    loop = f"roles/demo/tasks/main.yml:{line_of(MAIN, 'when: item == 2')}"
    assert {f"{loop}\ttrue", f"{loop}\tfalse"} <= set(lines)
    assert f"roles/demo/tasks/main.yml:{line_of(MAIN, 'when: no_')}\tfalse" in lines


def test_all_evaluated_is_a_success(checkout: Path) -> None:
    record = "".join(f"{place}\ttrue\n" for place in declared(checkout))
    assert report(declared(checkout), record) == (
        0,
        "20 of 20 conditions evaluated, 20 of them always with the same outcome",
    )


def test_an_empty_record_is_a_failure(checkout: Path) -> None:
    code, text = report(declared(checkout), "")
    assert (code, text.split(":")[0]) == (1, "the record is empty")
    script = str(ROOT / "tests/contract/when_coverage.py")
    done = subprocess.run([sys.executable, script, str(checkout / "none")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split(":")[0]) == (1, "the record is empty")


def test_nothing_is_recorded_unless_asked_for(checkout: Path) -> None:
    before = (checkout / "out/record.txt").read_text()
    done = run(
        "ansible-playbook", "-i", "localhost,", "-c", "local", str(checkout / "play.yml"),
        cwd=checkout, ANSIBLE_CALLBACK_PLUGINS=str(checkout / "plugins/callback"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (checkout / "out/record.txt").read_text() == before
    assert [path.name for path in (checkout / "out").iterdir()] == ["record.txt"]
