"""playbooks/enroll.yml and the module ssh_enroll, run by ansible-playbook against an emulated ssh server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest
from ssh_server_emulation import USER, Account, ed25519, ssh_server

from bramble.enroll import read_public_key

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "correct horse battery staple"
ANSIBLE = str(Path(sys.executable).parent / "ansible-playbook")
# The inventory is one of this machine and no cluster; what needs sudo on a node is not emulated.
FIRST_PLAY = ("--skip-tags", "always,ssh_access")

type Play = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def account(tmp_path: Path) -> Account:
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    return Account(home, PASSWORD)


@pytest.fixture
def node(tmp_path: Path, account: Account) -> Iterator[Path]:
    """An inventory with the node pi1, whose user has a password and no key."""
    for name in ("host", "owner"):
        ed25519(tmp_path / name)
    with ssh_server(account, tmp_path / "host") as port:
        here = {
            "ansible_host": "127.0.0.1",
            "ansible_port": port,
            "ansible_user": USER,
            "ansible_ssh_private_key_file": str(tmp_path / "owner"),
            "ansible_ssh_common_args": f"-F /dev/null -o UserKnownHostsFile={tmp_path}/known_hosts",
            "ansible_python_interpreter": "/nonexistent/python",
        }
        path = tmp_path / "hosts.yml"
        path.write_text(json.dumps({"cluster": {"hosts": {"pi1": here}}}))
        yield path


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """All that Ansible writes goes below tmp_path/ansible, where it can be searched."""
    scratch = tmp_path / "ansible"
    scratch.mkdir()
    own = {
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_HOME": str(scratch),
        "ANSIBLE_LOCAL_TEMP": str(scratch / "local"),
        "ANSIBLE_REMOTE_TEMP": str(scratch / "remote"),
        "ANSIBLE_LOG_PATH": str(scratch / "ansible.log"),
        "ANSIBLE_NOCOLOR": "1",
        "TMPDIR": str(scratch),
    }
    dropped = ("SSH_AUTH_SOCK", "ANSIBLE_KEEP_REMOTE_FILES")
    return {name: value for name, value in os.environ.items() if name not in dropped} | own


@pytest.fixture
def play(node: Path, environment: dict[str, str]) -> Play:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [ANSIBLE, "playbooks/enroll.yml", "-i", str(node), *FIRST_PLAY, *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )

    return call


def recap(text: str) -> dict[str, int]:
    """The counts of pi1's line in the recap."""
    line = next(line for line in text.splitlines() if line.startswith("pi1 ") and "changed=" in line)
    return {name: int(count) for name, count in (word.split("=") for word in line.split(":")[1].split())}


def test_a_prediction_shows_the_host_key_and_touches_nothing(tmp_path: Path, account: Account, play: Play) -> None:
    done = play("--check", "--diff")
    assert done.returncode == 0, done.stdout + done.stderr
    assert account.log == []
    assert not (tmp_path / "known_hosts").exists()
    key = read_public_key(tmp_path / "host.pub")
    assert key.encoded in done.stdout
    assert recap(done.stdout)["changed"] == 1


def test_without_somebody_who_confirms_nothing_is_pinned(tmp_path: Path, account: Account, play: Play) -> None:
    done = play()
    assert done.returncode != 0
    assert read_public_key(tmp_path / "host.pub").described("").split()[1] in done.stdout
    assert "nobody has confirmed its host key" in done.stdout
    assert (account.log, (tmp_path / "known_hosts").exists()) == ([], False)


def test_a_changed_host_key_ends_the_run(tmp_path: Path, account: Account, node: Path, play: Play) -> None:
    port = json.loads(node.read_text())["cluster"]["hosts"]["pi1"]["ansible_port"]
    other = ed25519(tmp_path / "somebody")
    (tmp_path / "known_hosts").write_text(f"[127.0.0.1]:{port} {other.with_suffix('.pub').read_text()}")
    done = play()
    assert done.returncode != 0
    for name in ("host", "somebody"):
        assert read_public_key(tmp_path / f"{name}.pub").fingerprint in done.stdout
    assert f"-R '[127.0.0.1]:{port}'" in done.stdout
    assert account.log == []


def found_below(directory: Path, text: str) -> list[str]:
    """The files that hold ``text``."""
    found = []
    for path in directory.rglob("*"):
        try:
            if path.is_file() and text.encode() in path.read_bytes():
                found.append(str(path))
        except OSError:
            continue
    return found


def processes_with(text: str) -> list[str]:
    """The command lines and environments of this machine's processes that hold ``text``."""
    found = []
    for path in [*Path("/proc").glob("[0-9]*/cmdline"), *Path("/proc").glob("[0-9]*/environ")]:
        try:
            if text.encode() in path.read_bytes():
                found.append(str(path))
        except OSError:
            continue
    return found


# The emulated server is a thread of this process.
@pytest.mark.filterwarnings("ignore:.*forkpty:DeprecationWarning")
def test_by_prompt_from_password_to_key(
    tmp_path: Path, account: Account, node: Path, environment: dict[str, str], play: Play
) -> None:
    leaks: list[str] = []
    # The moment at which every process that has to know the password knows it.
    account.on_password = lambda: leaks.extend(
        [*found_below(tmp_path / "ansible", PASSWORD), *processes_with(PASSWORD)]
    )
    arguments = ["playbooks/enroll.yml", "-i", str(node), *FIRST_PLAY, "-vvv", "--diff"]
    child: Any = pexpect.spawn(ANSIBLE, arguments, cwd=str(ROOT), env=environment, encoding="utf-8", timeout=60)
    said = ""
    child.expect("Password of the nodes' user.*:")
    said += child.before + child.after
    child.sendline(PASSWORD)
    child.expect("Type yes if they are the nodes'")
    said += child.before + child.after
    child.sendline("yes")
    child.expect(pexpect.EOF)
    said += child.before
    child.close()
    assert child.exitstatus == 0, said
    assert read_public_key(tmp_path / "host.pub").described("x").split()[1] in said
    assert recap(said)["changed"] == 1
    assert account.authorized == (tmp_path / "owner.pub").read_text()
    assert account.log.count("password accepted") == 1
    assert (leaks, PASSWORD in said, found_below(tmp_path / "ansible", PASSWORD)) == ([], False, [])
    # The search finds what is there.
    assert found_below(tmp_path / "ansible", "Install your key")

    # Again, with nobody to ask: nothing to do.
    again = play()
    assert again.returncode == 0, again.stdout + again.stderr
    assert recap(again.stdout)["changed"] == 0
    assert account.log.count("password accepted") == 1


def test_with_fingerprints_nobody_is_asked(tmp_path: Path, account: Account, play: Play) -> None:
    account.home.joinpath(".ssh").mkdir(mode=0o700)
    account.home.joinpath(".ssh/authorized_keys").write_text((tmp_path / "owner.pub").read_text())
    right = read_public_key(tmp_path / "host.pub").fingerprint
    wrong = play("-e", json.dumps({"enroll_fingerprints": [right[:-1] + ("A" if right[-1] != "A" else "B")]}))
    assert wrong.returncode != 0
    assert "not the expected one" in wrong.stdout
    assert account.log == []
    done = play("-e", json.dumps({"enroll_fingerprints": [right]}))
    assert done.returncode == 0, done.stdout + done.stderr
    assert recap(done.stdout)["changed"] == 1
    assert read_public_key(tmp_path / "host.pub").encoded in (tmp_path / "known_hosts").read_text()
