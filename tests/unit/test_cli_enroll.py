"""`bramble enroll`, in this process, against emulated ssh servers on loopback."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import typer
from ssh_server_emulation import USER, Account, ed25519, ssh_server

from bramble.cli import app as cli
from bramble.cli.enroll import Node, confirm, enroll, expected_fingerprints
from bramble.enroll import read_public_key

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "correct horse battery staple"
# The emulated servers are threads of this process, and a run forks.
pytestmark = pytest.mark.filterwarnings("ignore:.*forkpty:DeprecationWarning")
type Run = Callable[..., tuple[int, str]]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def accounts(tmp_path: Path) -> dict[str, Account]:
    found = {}
    for name in ("pi1", "pi2"):
        (tmp_path / name).mkdir(mode=0o755)
        found[name] = Account(tmp_path / name, PASSWORD)
    return found


@pytest.fixture
def cluster(tmp_path: Path, accounts: dict[str, Account], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A checkout with the real playbook, and an inventory of two nodes that know a password only."""
    project = tmp_path / "checkout"
    (project / "playbooks").mkdir(parents=True)
    (project / "site.yml").write_text("[]\n")
    for name in ("library", "plugins", "roles", "playbooks/enroll.yml", "playbooks/validate.yml"):
        (project / name).symlink_to(ROOT / name)
    (project / "ansible.cfg").write_text((ROOT / "ansible.cfg").read_text())
    monkeypatch.chdir(project)
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.delenv("BRAMBLE_INVENTORY", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    ed25519(tmp_path / "owner")
    with ExitStack() as stack:
        hosts = {}
        for number, (name, account) in enumerate(accounts.items(), 1):
            port = stack.enter_context(ssh_server(account, ed25519(tmp_path / f"host-{name}")))
            hosts[name] = {"ansible_host": f"192.0.2.{number}", "ansible_port": port}
        variables = {
            "ansible_user": USER,
            "ansible_ssh_private_key_file": str(tmp_path / "owner"),
            # An inventory names no loopback address; ssh's own settings lead there.
            "ansible_ssh_common_args": "-F /dev/null -o HostName=127.0.0.1 "
            "-o UserKnownHostsFile={{ inventory_dir }}/../known_hosts",
        }
        groups = {"cluster": {"hosts": hosts, "vars": variables}, "gateway": {"hosts": {"pi1": None}}}
        (project / "hosts.yml").write_text(json.dumps(groups))
        yield project / "hosts.yml"


@pytest.fixture
def rest(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stands in for the run that needs sudo on the nodes; the calls of it."""
    calls: list[dict[str, Any]] = []

    def play(_root: Path, playbook: str, **options: Any) -> None:
        calls.append({"playbook": playbook, **options})

    monkeypatch.setattr(cli, "play", play)
    return calls


@pytest.fixture
def run(cluster: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Calls the command: arguments, what is typed in answer to questions, passwords typed → exit code, all output."""

    def inventory(_root: Path, path: str, limit: str | None) -> dict[str, dict[str, Any]]:
        """What the playbook's tag `inventory` tells, without the seconds that it takes."""
        group = json.loads(Path(path).read_text())["cluster"]
        return {
            name: {
                "host": host["ansible_host"],
                "port": host["ansible_port"],
                "user": USER,
                "private_key_file": group["vars"]["ansible_ssh_private_key_file"],
                "ssh_args": group["vars"]["ansible_ssh_common_args"].replace(
                    "{{ inventory_dir }}", str(cluster.parent)
                ),
            }
            for name, host in group["hosts"].items()
            if limit in (None, name)
        }

    def call(
        *arguments: str,
        ansible: bool = False,
        typed: str | None = None,
        passwords: tuple[str, ...] = (),
        stdin: str = "",
    ) -> tuple[int, str]:
        if not ansible:
            monkeypatch.setattr("bramble.cli.enroll.reachable_by", inventory)
        app = typer.Typer(pretty_exceptions_enable=False)
        app.command()(enroll)
        left = list(passwords)
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin) if typed is None else Terminal(typed))

        def getpass(prompt: str) -> str:
            print(prompt, file=sys.stderr)
            return left.pop(0)

        monkeypatch.setattr("getpass.getpass", getpass)
        code: Any = 0
        try:
            code = app(["-i", str(cluster), *arguments], standalone_mode=False)
        except cli.CliError as error:
            print(error, file=sys.stderr)
            code = error.code
        captured = capfd.readouterr()
        assert left == [], captured
        return code or 0, captured.out + captured.err

    return call


def logs(cluster: Path) -> str:
    return "\n".join(path.read_text() for path in (cluster.parent / ".bramble/logs").glob("*.log"))


def test_two_nodes_with_one_password(
    tmp_path: Path, cluster: Path, accounts: dict[str, Account], run: Run, rest: list[dict[str, Any]]
) -> None:
    code, said = run(ansible=True, typed="yes\n", passwords=(PASSWORD,))
    assert code == 0, said
    for name, account in accounts.items():
        assert f"{read_public_key(tmp_path / f'host-{name}.pub').fingerprint} (ED25519)" in said
        assert account.authorized == (tmp_path / "owner.pub").read_text()
    assert (tmp_path / "known_hosts").read_text().count("ssh-ed25519") == 2
    assert [(call["playbook"], call["limit"], call["tags"]) for call in rest] == [
        ("playbooks/enroll.yml", "pi1,pi2", "ssh_access")
    ]
    assert PASSWORD not in said + logs(cluster) + repr(rest)

    # Again: nothing is asked, nothing changes.
    before = (tmp_path / "known_hosts").read_bytes()
    code, said = run(typed="")
    assert code == 0, said
    assert "lets in" in said
    assert (tmp_path / "known_hosts").read_bytes() == before
    assert [account.log.count("password accepted") for account in accounts.values()] == [1, 1]


def test_a_node_with_another_password_is_asked_about_again(
    accounts: dict[str, Account], run: Run, rest: list[dict[str, Any]]
) -> None:
    accounts["pi2"].password = "another"
    code, said = run(typed="yes\n", passwords=(PASSWORD, "another"))
    assert code == 0, said
    assert "pi2 (pi@127.0.0.1" in said
    assert all(account.authorized for account in accounts.values())


def test_a_node_that_cannot_be_enrolled_holds_up_no_other(
    tmp_path: Path, cluster: Path, accounts: dict[str, Account], run: Run, rest: list[dict[str, Any]]
) -> None:
    port = json.loads(cluster.read_text())["cluster"]["hosts"]["pi1"]["ansible_port"]
    (tmp_path / "known_hosts").write_text(f"[127.0.0.1]:{port} {(tmp_path / 'owner.pub').read_text()}")
    code, said = run(typed="yes\n", passwords=(PASSWORD,))
    assert code == 1
    assert "the host key is not the one on record" in said
    assert "ssh-keygen -f" in said
    assert "1 of 2 nodes are not enrolled" in said
    assert (accounts["pi1"].log, [call["limit"] for call in rest]) == ([], ["pi2"])


@pytest.mark.parametrize(
    ("arguments", "typed", "message"),
    [
        ((), "no\n", "Not confirmed"),
        ((), "", "Not confirmed"),
        ((), None, "no terminal to ask on"),
        (("--yes",), "yes\n", "--yes needs them in --fingerprint"),
        (("--fingerprint", "pi9=SHA256:x"), "yes\n", "there is no node pi9"),
        (("--fingerprint", "MD5:00"), "yes\n", "is no fingerprint"),
    ],
)
def test_nothing_is_done_that_nobody_confirmed(
    tmp_path: Path,
    accounts: dict[str, Account],
    run: Run,
    rest: list[dict[str, Any]],
    arguments: tuple[str, ...],
    typed: str | None,
    message: str,
) -> None:
    code, said = run(*arguments, typed=typed)
    assert (code, message in said) == (2, True), said
    assert ([account.log for account in accounts.values()], rest) == ([[], []], [])
    assert not (tmp_path / "known_hosts").exists()


def test_with_fingerprints_and_the_password_on_standard_input(
    tmp_path: Path, accounts: dict[str, Account], run: Run, rest: list[dict[str, Any]]
) -> None:
    given = [f"--fingerprint={name}={read_public_key(tmp_path / f'host-{name}.pub').fingerprint}" for name in accounts]
    code, said = run(*given, "--yes", "--password-stdin", "-K", stdin=f"{PASSWORD}\n")
    assert code == 0, said
    assert all(account.authorized for account in accounts.values())
    assert list(rest[0]["passwords"].values()) == [PASSWORD]


def test_check_only_looks(tmp_path: Path, accounts: dict[str, Account], run: Run, rest: list[dict[str, Any]]) -> None:
    code, said = run("--check", "--limit", "pi2", ansible=True)
    assert code == 0, said
    assert "pi1" not in said
    assert read_public_key(tmp_path / "host-pi2.pub").fingerprint in said
    assert ([account.log for account in accounts.values()], rest) == ([[], []], [])
    assert not (tmp_path / "known_hosts").exists()


def test_an_inventory_with_mistakes_is_told_first(cluster: Path, run: Run, accounts: dict[str, Account]) -> None:
    cluster.write_text(cluster.read_text().replace('"ansible_user"', '"gateway_prot": 1, "ansible_user"'))
    code, said = run(ansible=True)
    assert (code, "gateway_prot is not a variable of any role" in said) == (2, True), said
    assert accounts["pi1"].log == []


def test_fingerprints_belong_to_their_nodes() -> None:
    one, two = ("SHA256:" + letter * 43 for letter in "ab")
    nodes: dict[str, object] = {"pi1": None, "pi2": None}
    assert expected_fingerprints([f"pi1={one}", two], nodes) == {"pi1": [one, two], "pi2": [two]}
    assert expected_fingerprints([f"256 {one} comment (ED25519)"], nodes) == {"pi1": [one], "pi2": [one]}


def test_nodes_that_were_not_seen_need_no_confirmation() -> None:
    confirm([Node("pi1", "10.0.0.1")], yes=True, interactive=False)
