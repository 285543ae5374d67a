"""site.yml on nodes that it never saw: checked, cut off in the middle, finished, run again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time

import pytest

from lab import BIN, ROOT, Lab, recap

pytestmark = pytest.mark.lab


def test_every_node_has_a_tree_of_control_groups_of_its_own(cluster: Lab) -> None:
    # In a tree for all, the systemd of one node removes the directory into which another is starting the same service.
    trees = {cluster.shell(node, "stat -c %i /sys/fs/cgroup/system.slice").stdout for node in ("pi1", "pi2", "pi3")}
    assert len(trees) == 3


def test_check_mode_before_the_first_run(cluster: Lab) -> None:
    done = cluster.play("site.yml", "--check", "--diff")
    assert done.returncode == 0, done.stdout[-3000:]
    assert all(counts["failed"] == 0 for counts in recap(done.stdout).values())
    # It said what it would do, and did nothing.
    assert any(counts["changed"] > 0 for counts in recap(done.stdout).values())
    assert cluster.shell("pi1", "test -e /etc/bramble").returncode != 0


def play_and_kill(lab: Lab, tasks: int) -> str:
    """Starts site.yml and kills the whole controller when so many tasks have begun. Returns the last task's name."""
    process = subprocess.Popen(
        [str(BIN / "ansible-playbook"), "-i", lab.inventory, "site.yml"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1", "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    last, seen = "", 0
    for line in process.stdout:
        if line.startswith("TASK ["):
            last, seen = line.strip(), seen + 1
            if seen == tasks:
                # A little way into the task, so that it is cut off and not merely not begun.
                time.sleep(random.uniform(0.2, 1.5))
                break
    assert process.poll() is None, f"the run ended by itself after {seen} tasks"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert seen == tasks
    return last


def test_a_run_that_is_cut_off_is_mended_by_the_next(cluster: Lab) -> None:
    seed = int(os.environ.get("BRAMBLE_TEST_SEED", time.time()))
    random.seed(seed)
    # One in the system, one in the HAT's driver, the reboot or the engine, one in the services or the measurements.
    points = [random.randint(8, 70), random.randint(71, 115), random.randint(116, 190)]
    cut = []
    for point in points:
        cut.append(play_and_kill(cluster, point))
        # A run that ended in the reboot leaves nodes on their way: people wait for them too.
        cluster.wait_until_up("pi1", "pi2", "pi3")
    print(f"BRAMBLE_TEST_SEED={seed}: cut off in {cut}")
    done = cluster.play("site.yml")
    print(f"the last run had {done.stdout.count('TASK [')} tasks")
    assert done.returncode == 0, f"seed {seed}, after {cut}: {done.stdout[-3000:]}"


def test_the_second_run_changes_nothing(cluster: Lab) -> None:
    done = cluster.play("site.yml")
    assert done.returncode == 0, done.stdout[-3000:]
    changed = {host: counts["changed"] for host, counts in recap(done.stdout).items()}
    # localhost writes the report.
    assert changed == {"localhost": 0, "pi1": 0, "pi2": 0, "pi3": 0}, done.stdout


def test_check_mode_after_it_has_nothing_to_say(cluster: Lab) -> None:
    done = cluster.play("site.yml", "--check", "--diff")
    assert done.returncode == 0, done.stdout[-3000:]
    assert all(counts["changed"] == 0 for counts in recap(done.stdout).values())


def test_a_service_of_a_group_that_the_node_left_is_removed(cluster: Lab) -> None:
    left = cluster.shell(
        "pi3",
        "printf '[Service]\\nExecStart=/bin/sleep infinity\\n' >/etc/systemd/system/bramble-gateway.service;"
        "echo 'add rule inet bramble services tcp dport 11434 accept' >/etc/bramble/firewall.d/gateway.nft;"
        "systemctl daemon-reload; systemctl start bramble-gateway; nft -f /etc/nftables.conf",
    )
    assert left.returncode == 0, left.stderr
    done = cluster.play("playbooks/phase1_foundation.yml", "--limit", "pi3", "--tags", "step_1_1")
    assert done.returncode == 0, done.stdout[-3000:]
    assert cluster.shell("pi3", "systemctl is-active bramble-gateway").stdout.strip() == "inactive"
    assert "11434" not in cluster.shell("pi3", "nft list chain inet bramble services").stdout
