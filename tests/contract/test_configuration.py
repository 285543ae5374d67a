"""ansible.cfg, the locks, and what no file may hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from checkout import ROOT, lock_defects, registry_defects, run, tracked

VALID = "All configurations seem valid!"


def test_both_ansible_cfg_are_the_same_but_for_their_place() -> None:
    root = (ROOT / "ansible.cfg").read_text(encoding="utf-8")
    shown = re.sub(r"(?<== )(?=(?:inventory/|roles$|library$|plugins/|\.bramble/))", "../", root, flags=re.MULTILINE)
    assert shown.count("= ../") >= 6
    assert (ROOT / "playbooks/ansible.cfg").read_text(encoding="utf-8") == shown


@pytest.mark.parametrize("directory", [".", "playbooks"])
def test_ansible_cfg_has_no_dead_keys(directory: str) -> None:
    done = run("ansible-config", "validate", "-t", "all", ANSIBLE_CONFIG=str(ROOT / directory / "ansible.cfg"))
    assert (done.returncode, VALID in done.stdout) == (0, True), done.stdout + done.stderr


def test_a_dead_key_would_be_found(tmp_path: Path) -> None:
    config = tmp_path / "ansible.cfg"
    config.write_text(
        (ROOT / "ansible.cfg").read_text(encoding="utf-8").replace("forks =", "callback_whitelist = x\nforks =")
    )
    done = run("ansible-config", "validate", "-t", "all", ANSIBLE_CONFIG=str(config))
    assert done.returncode != 0
    assert "callback_whitelist" in done.stdout + done.stderr


LOCKS = sorted(path.name for path in (ROOT / "requirements").glob("*.txt"))


def test_there_are_locks() -> None:
    assert {"bootstrap.txt", "controller.txt", "dev.txt", "gateway.txt"} <= set(LOCKS)


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_is_pinned_hashed_and_names_no_host(lock: str) -> None:
    text = (ROOT / "requirements" / lock).read_text(encoding="utf-8")
    assert "==" in text
    assert lock_defects(text) == []


def test_no_file_names_a_package_registrys_host() -> None:
    files = tracked()
    assert "ansible.cfg" in files
    found = {
        name: defects
        for name in files
        if (defects := registry_defects((ROOT / name).read_text(encoding="utf-8", errors="replace")))
    }
    assert found == {}
