"""Runs that cannot end well: one clear message that names the place, and nothing half-done."""

from __future__ import annotations

import json
import subprocess

import pytest

from lab import BIN, ROOT, Lab, run

pytestmark = pytest.mark.lab


def catalogue(**changes: object) -> str:
    """An extra variable: the stand-in's entry under another name, with something wrong."""
    entry = json.loads((ROOT / ".bramble/models/bramble-synth.json").read_text())
    return json.dumps({"rpc_head_model": "other", "model_store_catalogue": {"other": {**entry, **changes}}})


def refused(lab: Lab, *arguments: str) -> str:
    """What `ansible-playbook` says, without a traceback, of a run that must fail."""
    done = lab.play("playbooks/phase2_distributed.yml", *arguments)
    assert done.returncode != 0
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout + done.stderr


def lab_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run(str(BIN / "bramble"), "lab", *arguments)


def assert_nothing_changed(lab: Lab) -> None:
    assert lab.shell("pi1", "ls /var/lib/bramble/models/other*").returncode != 0
    assert lab.shell("pi1", "systemctl is-active bramble-rpc-head").stdout.strip() == "active"
    assert "bramble-synth" in lab.shell("pi1", "cat /etc/bramble/rpc-head.json").stdout


def test_a_wrong_checksum(cluster: Lab) -> None:
    said = refused(cluster, "-e", catalogue(sha256="0" * 64))
    assert "0" * 64 in said
    assert "other" in said
    assert_nothing_changed(cluster)


def test_a_full_disk(cluster: Lab) -> None:
    made = cluster.shell("pi1", "mkdir -p /mnt/small && mount -t tmpfs -o size=20m,mode=755 tmpfs /mnt/small")
    assert made.returncode == 0, made.stderr
    try:
        said = refused(cluster, "-e", json.dumps({"model_store_path": "/mnt/small", "model_store_keep_free_bytes": 0}))
        assert "pi1" in said
        assert "/mnt/small" in said
        assert "free" in said
        assert cluster.shell("pi1", "find /mnt/small -type f").stdout == ""
    finally:
        cluster.shell("pi1", "umount /mnt/small")
    assert_nothing_changed(cluster)


def test_a_model_that_is_not_in_the_catalogue(cluster: Lab) -> None:
    said = refused(cluster, "-e", "rpc_head_model=nonsuch")
    assert "nonsuch" in said
    assert "model_store_catalogue" in said


def test_layers_that_do_not_add_up(cluster: Lab) -> None:
    said = refused(cluster, "-e", json.dumps({"rpc_head_layers": {"pi1": 4, "pi2": 4, "pi3": 5}}))
    assert "rpc_head_layers" in said
    assert "12 layers" in said


def test_an_owner_without_a_key_is_not_locked_out(cluster: Lab) -> None:
    # The way in of the test itself is a key: it is taken for that of a node, as if only the nodes' keys were there.
    keys = "/home/pi/.ssh/authorized_keys"
    renamed = f"cp -p {keys} {keys}.kept && sed -i 's/bramble lab-cluster$/bramble:laptop/' {keys}"
    assert cluster.shell("pi2", renamed).returncode == 0
    try:
        done = cluster.play("playbooks/phase1_foundation.yml", "--limit", "pi2", "--tags", "ssh_access")
    finally:
        cluster.shell("pi2", f"mv {keys}.kept {keys}")
    assert done.returncode != 0
    assert "ssh-copy-id pi@" in done.stdout


def test_a_node_that_cannot_be_reached(cluster: Lab) -> None:
    assert lab_command("break", "pi3", "--how", "cut", "--name", cluster.name).returncode == 0
    try:
        done = cluster.bramble("up", "--tags", "os_base", timeout=300)
    finally:
        mended = lab_command("mend", "pi3", "--name", cluster.name)
    assert mended.returncode == 0, mended.stderr
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    assert "pi3" in said
    assert "does not answer on ssh" in said
    # It ended there, before anything was changed anywhere.
    assert "os_base" not in said.replace("--tags os_base", "")


def test_a_node_that_the_lab_does_not_have(cluster: Lab) -> None:
    done = lab_command("break", "pi9", "--how", "stop", "--name", cluster.name)
    assert done.returncode == 1
    assert "has no node" in done.stderr
    assert "pi9" in done.stderr


def test_a_flag_that_llama_server_does_not_know_ends_with_its_words(cluster: Lab) -> None:
    said = refused(cluster, "-e", json.dumps({"rpc_head_arguments": ["--nonsuch"], "rpc_head_load_timeout": 5}))
    assert "nonsuch" in said
    assert "bramble-rpc-head" in said
    done = cluster.play("playbooks/phase2_distributed.yml")
    assert done.returncode == 0, done.stdout[-2000:]
