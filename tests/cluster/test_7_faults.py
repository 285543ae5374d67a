"""Boards and HATs at fault (emulated): what a run says of them, and that it says it before anything is changed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest

from lab import BIN, Lab, recap, run

pytestmark = pytest.mark.lab
NODES = ("pi1", "pi2", "pi3")
HAT = "pi1"
# Node, fault, what the run says of it, and what it says is to be done.
BOARDS = [
    ("pi1", "no-device", "no Hailo device is on the PCIe bus", "press the PCIe ribbon cable home at both ends"),
    ("pi1", "old-eeprom", "the bootloader is of 2024-04-20", "sudo rpi-eeprom-update -a, then sudo reboot"),
    ("pi2", "slow-link", "eth0 runs at 100 Mbit/s, less than 1000", "use a cable with all 8 wires"),
    ("pi2", "small-card", "mmcblk0 has 7.9 GB", "use a card or an SSD of 32 GB or more"),
    ("pi3", "weak-supply", "the supply gives 3000 mA", "use Raspberry Pi's 27 W supply"),
    ("pi3", "under-voltage", "under voltage; 4.59 V come in", "use the 27 W supply with its own cable"),
]
# What the HAT's faults end in.
HATS = {
    "no-device": ("no Hailo device is on the PCIe bus", "press the PCIe ribbon cable home at both ends"),
    "version-mismatch": ("the versions differ: library 5.1.1, driver 5.2.0", "bring the packages to one version"),
    "device-lost": ("the device is lost", "unplug the supply for 10 seconds"),
    "busy": ("another program holds it", "sudo systemctl restart bramble-hailo-ollama, and run again"),
}


def said(done: subprocess.CompletedProcess[str]) -> str:
    """All that a run said, whatever the lines it was broken into."""
    return " ".join((done.stdout + done.stderr).split())


def state(lab: Lab, node: str) -> str:
    """What a run may change on a node: files with their contents or times, packages, units, the firewall, the boot."""
    told = lab.shell(
        node,
        "find /etc /boot/firmware -xdev -type f -exec sha256sum {} + | sort -k2;"
        "find /etc /boot/firmware /opt /usr /root /home/pi/.ssh /var/lib/bramble /var/lib/dpkg/info -xdev"
        " -printf '%p %m %u %g %l %T@\\n' | grep -v -e '/__pycache__' -e '^/root ' | sort;"
        "dpkg-query --show --showformat '${Package} ${Version} ${Status}\\n';"
        "systemctl list-unit-files --no-legend --no-pager;"
        "systemctl show --property=Id,ActiveState,MainPID,NRestarts 'bramble-*' ssh.service nftables.service;"
        "nft list ruleset; cat /proc/sys/kernel/random/boot_id; ls /run/bramble/reboot.d 2>&1",
        timeout=120,
    ).stdout
    assert told.count("\n") > 5000
    return told


@pytest.fixture
def mended(cluster: Lab) -> Iterator[Lab]:
    """The lab; whatever a test breaks is mended afterwards."""
    yield cluster
    for node in NODES:
        cluster.break_("mend", node)


def test_preflight_tells_six_faults_on_three_nodes_at_once_and_changes_nothing(mended: Lab) -> None:
    lab = mended
    (node, fault, *_), *others = BOARDS
    by_command = run(str(BIN / "bramble"), "lab", "break", node, "--how", fault, "--name", lab.name)
    assert by_command.returncode == 0, by_command.stderr
    for node, fault, *_ in others:
        lab.break_(fault, node)
    before = {node: state(lab, node) for node in NODES}
    # All of phase 1, which begins with it.
    done = lab.play("playbooks/phase1_foundation.yml")
    assert done.returncode != 0
    after = {node: state(lab, node) for node in NODES}
    for node in NODES:
        changed = set(before[node].splitlines()) ^ set(after[node].splitlines())
        assert not changed, (node, sorted(changed)[:20])
    assert all(counts["changed"] == 0 for counts in recap(done.stdout).values())
    assert "nothing was changed, the nodes have problems" in done.stdout
    told = said(done)
    for node, fault, what, fix in BOARDS:
        lines = [line for line in told.split("- pi") if f"pi{line}".startswith(f"{node}:") and what in line]
        assert lines, (fault, told)
        assert all(fix in line for line in lines), (fault, lines)
    assert "Traceback" not in told
    # Mended, the same nodes are fit.
    for node in NODES:
        lab.break_("mend", node)
    again = lab.play("playbooks/preflight.yml")
    assert again.returncode == 0, again.stdout[-3000:]


def hat(lab: Lab) -> subprocess.CompletedProcess[str]:
    return lab.play("playbooks/phase1_foundation.yml", "--tags", "hailo,hailo_ollama", "--limit", HAT)


@pytest.mark.parametrize("fault", HATS)
def test_a_fault_of_the_hat_ends_in_a_clear_message(mended: Lab, fault: str) -> None:
    lab = mended
    lab.break_(fault, HAT)
    if fault == "busy":
        # A server that has its model on the HAT already would notice nothing.
        lab.shell(HAT, "systemctl restart bramble-hailo-ollama")
    broken = hat(lab)
    told = said(broken)
    assert broken.returncode == 2, broken.stdout[-3000:]
    assert recap(broken.stdout)[HAT]["failed"] == 1
    assert HAT in told
    for words in HATS[fault]:
        assert words in told, told[-3000:]
    assert "Traceback" not in told
    lab.break_("mend", HAT)
    # What the message says is to be done.
    if "systemctl restart bramble-hailo-ollama" in told:
        lab.shell(HAT, "systemctl restart bramble-hailo-ollama")
    elif "sudo poweroff" in told:
        lab.break_("stop", HAT)
        lab.break_("mend", HAT)
        lab.wait_until_up(HAT)
    good = hat(lab)
    assert good.returncode == 0, good.stdout[-3000:]
    assert recap(good.stdout)[HAT]["changed"] == 0, good.stdout


def decode(lab: Lab) -> float:
    """Tokens per second of the HAT's server, as the project measures it."""
    options = {
        "url": f"http://{lab.address(HAT)}:8000",
        "api": "ollama",
        "model": "qwen2.5-instruct:1.5b",
        "requests": 1,
        "allow_few": True,
        "max_tokens": 5,
        "extra": {"ignore_eos": True},
    }
    done = run(str(BIN / "ansible"), HAT, "-i", lab.inventory, "-o", "-m", "http_bench", "-a", json.dumps(options))
    assert done.returncode == 0, done.stdout + done.stderr
    (record,) = json.loads(done.stdout.partition("=>")[2])["records"]
    return float(record["result"]["decode"]["mean"])


def test_a_slow_hat_is_no_error_and_shows_when_it_is_measured(mended: Lab) -> None:
    lab = mended
    usual = decode(lab)
    lab.break_("slow", HAT)
    done = hat(lab)
    assert done.returncode == 0, done.stdout[-3000:]
    slow = decode(lab)
    print(f"the emulated HAT: {usual:.2f} tokens/s, slow {slow:.2f}")
    assert slow < usual / 4
    lab.break_("mend", HAT)
    assert decode(lab) > usual / 2
