"""First contact with a node that knows only a password: the bystander, as a card of the Imager's comes up."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from lab import BIN, ROOT, Lab, recap, run, sudo

pytestmark = pytest.mark.lab
NODE = "outsider1"
STATE = "cat /home/pi/.ssh/authorized_keys; sha256sum /etc/ssh/sshd_config /etc/ssh/sshd_config.d/*; sshd -T"
# What the node's own screen shows.
SCREEN = "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub"


@dataclass(frozen=True)
class Card:
    """A node as it comes up from its card, its inventory with a key of its owner's, and the password."""

    lab: Lab
    address: str
    directory: Path
    password: str

    @property
    def inventory(self) -> str:
        return str(self.directory / "inventory")

    @property
    def known_hosts(self) -> Path:
        return self.directory / "known_hosts"

    def fingerprint(self) -> str:
        return self.lab.shell(NODE, SCREEN).stdout.split()[1]

    def state(self) -> str:
        """What an enrolment may change."""
        return self.lab.shell(NODE, STATE).stdout

    def enroll(self, *arguments: str, password: str | None = None) -> subprocess.CompletedProcess[str]:
        """bramble enroll; the password through its standard input."""
        options = [] if password is None else ["--password-stdin"]
        told = None if password is None else f"{password}\n"
        return run(str(BIN / "bramble"), "enroll", "-i", self.inventory, "--yes", *options, *arguments, input=told)

    def play(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """playbooks/enroll.yml with nobody at the terminal."""
        return run(str(BIN / "ansible-playbook"), "-i", self.inventory, "playbooks/enroll.yml", *arguments)

    def ssh(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Whether somebody gets in, by ssh itself and by nothing that an earlier connection left open."""
        own = ["-F", "none", "-o", f"UserKnownHostsFile={self.known_hosts}", "-o", "StrictHostKeyChecking=yes"]
        common = ["-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "ControlPath=none"]
        return run("ssh", "-v", *own, *common, *options, f"pi@{self.address}", "true")


@pytest.fixture(scope="module")
def card(cluster: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Card]:
    """The bystander without anybody's key and with a password. Afterwards it is what it was."""
    keep = "/var/tmp/before-enrolment"
    made = cluster.shell(
        NODE,
        f"rm -rf {keep} && mkdir -p {keep} && cp -a /home/pi/.ssh {keep}/dot-ssh && cp -a /etc/ssh {keep}/ssh"
        " && rm -f /home/pi/.ssh/* /etc/ssh/sshd_config.d/* /etc/ssh/ssh_known_hosts"
        " && echo 'PasswordAuthentication yes' >/etc/ssh/sshd_config.d/50-imager.conf && systemctl restart ssh",
    )
    assert made.returncode == 0, made.stderr
    directory = tmp_path_factory.mktemp("enroll")
    password = secrets.token_urlsafe(12)
    podman = [*sudo(), str(ROOT / "lab/podman"), "exec", "-i", f"{cluster.name}-{NODE}"]
    assert run(*podman, "chpasswd", input=f"pi:{password}\n").returncode == 0
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "owner", "-f", str(directory / "key"))
    subnet = cluster.address("pi1").rsplit(".", 1)[0]
    listing = cluster.podman("inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}",
                             f"{cluster.name}-{NODE}")  # fmt: skip
    address = listing.stdout.strip()
    assert address.startswith(f"{subnet}."), listing
    (directory / "inventory").mkdir()
    (directory / "inventory/hosts.yml").write_text(
        yaml.safe_dump(
            {
                "cluster": {
                    "hosts": {NODE: {"ansible_host": address}},
                    "vars": {
                        "ansible_user": "pi",
                        "ansible_ssh_private_key_file": str(directory / "key"),
                        "ansible_ssh_common_args": f"-o UserKnownHostsFile={directory}/known_hosts"
                        " -o StrictHostKeyChecking=yes -o IdentitiesOnly=yes",
                    },
                },
                # A cluster of one.
                "llama_server": {"hosts": {NODE: {}}},
                "gateway": {"hosts": {NODE: {}}},
            }
        )
    )
    yield Card(cluster, address, directory, password)
    cluster.shell(
        NODE,
        f"cp -a {keep}/dot-ssh/. /home/pi/.ssh/ && rm -rf /etc/ssh && cp -a {keep}/ssh /etc/ssh && rm -rf {keep}"
        " && usermod --lock pi && systemctl restart ssh",
    )


def test_it_lets_in_by_password_only(card: Card) -> None:
    key = card.lab.shell(NODE, "cat /etc/ssh/ssh_host_ed25519_key.pub").stdout
    card.known_hosts.write_text(f"{card.address} {key}")
    refused = card.ssh("-i", str(card.directory / "key"))
    card.known_hosts.unlink()
    assert refused.returncode == 255
    assert "Authentications that can continue: publickey,password" in refused.stderr


def test_a_prediction_shows_the_host_key_and_changes_nothing(card: Card) -> None:
    before = card.state()
    looked = card.enroll("--check")
    assert looked.returncode == 0, looked.stdout + looked.stderr
    # Whatever the width that its table has.
    assert card.fingerprint()[:30] in looked.stderr
    played = card.play("--check", "--diff")
    assert played.returncode == 0, played.stdout + played.stderr
    assert recap(played.stdout)[NODE]["changed"] == 1
    assert (card.state(), card.known_hosts.exists()) == (before, False)


def test_a_host_key_that_nobody_confirmed_is_refused(card: Card) -> None:
    before = card.state()
    done = card.enroll(password=card.password)
    assert done.returncode == 2
    assert "Nobody has confirmed the host keys" in done.stderr
    assert (card.state(), card.known_hosts.exists()) == (before, False)


def test_a_wrong_password_is_told_and_changes_nothing_on_the_node(card: Card) -> None:
    before = card.state()
    done = card.enroll("--fingerprint", card.fingerprint(), password="not-" + card.password)
    assert done.returncode == 1
    assert "password" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert card.state() == before


def test_from_password_to_key(card: Card) -> None:
    done = card.enroll("--fingerprint", f"{NODE}={card.fingerprint()}", password=card.password)
    told = done.stdout + done.stderr
    assert done.returncode == 0, told
    assert "installed by the password" in told
    owner = (card.directory / "key.pub").read_text().strip()
    assert owner in card.lab.shell(NODE, "cat /home/pi/.ssh/authorized_keys").stdout
    # It lets in by the key, and offers nobody to type a password.
    assert card.ssh("-i", str(card.directory / "key")).returncode == 0
    others = card.ssh("-o", "PubkeyAuthentication=no", "-o", "PreferredAuthentications=password,keyboard-interactive")
    assert others.returncode == 255
    offered = [line for line in others.stderr.splitlines() if "Authentications that can continue" in line]
    assert offered, others.stderr
    assert all(line.endswith(": publickey") for line in offered)
    # The password went to the node and stayed nowhere: not on the screen, in a log, or on either machine's disk.
    assert card.password not in told
    logs = [path for path in (ROOT / ".bramble/logs").glob("*") if path.is_file()]
    kept = [path for path in [*card.directory.rglob("*"), *logs] if path.is_file()]
    assert logs
    assert not [path for path in kept if card.password.encode() in path.read_bytes()]
    search = f"journalctl --no-pager | grep -c -e {card.password}; grep -rIlse {card.password} /home /tmp /etc /var/log"
    assert card.lab.shell(NODE, search).stdout.strip() == "0"


def test_again_it_changes_nothing(card: Card) -> None:
    before, pinned = card.state(), card.known_hosts.read_text()
    done = card.enroll()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lets in" in done.stderr + done.stdout
    played = card.play()
    assert played.returncode == 0, played.stdout + played.stderr
    assert recap(played.stdout)[NODE]["changed"] == 0, played.stdout
    assert (card.state(), card.known_hosts.read_text()) == (before, pinned)


def test_a_changed_host_key_is_refused(card: Card) -> None:
    was = card.fingerprint()
    card.lab.shell(NODE, "rm /etc/ssh/ssh_host_*; ssh-keygen -A && systemctl restart ssh")
    now = card.fingerprint()
    assert now != was
    before, pinned = card.state(), card.known_hosts.read_text()
    # Whoever answers there now must not get the password either, not even with the new key confirmed.
    done = card.enroll("--fingerprint", now, password=card.password)
    told = done.stdout + done.stderr
    assert done.returncode == 1, told
    for expected in ("the host key is not the one on record", was, now, f"ssh-keygen -f {card.known_hosts} -R"):
        assert expected in told, told
    assert "Traceback" not in told
    assert (card.state(), card.known_hosts.read_text()) == (before, pinned)
