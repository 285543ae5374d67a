"""First contact, against an emulated ssh server on loopback; keys and known_hosts against ssh-keygen."""

from __future__ import annotations

import base64
import logging
import os
import pickle
import shlex
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ssh_server_emulation import USER, Account, ed25519, rsa, ssh_server, talker

from bramble import enroll as e
from bramble.secret import Secret
from bramble.ssh_keys import (
    PublicKey,
    SshError,
    choose_trusted,
    hashed_name,
    host_id,
    judge,
    names_match,
    parse_fingerprint,
    parse_known_hosts,
    parse_public_key,
    printable,
    with_pins,
)

PASSWORD = "correct horse battery staple"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key files, made once: host keys h1, h2 (ED25519), r1 (RSA); users' keys owner, other, locked (passphrase)."""
    path = tmp_path_factory.mktemp("keys")
    for name in ("h1", "h2", "owner", "other"):
        ed25519(path / name)
    rsa(path / "r1")
    ed25519(path / "locked", passphrase="a passphrase")
    return path


@pytest.fixture(autouse=True)
def no_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


@pytest.fixture
def account(tmp_path: Path) -> Account:
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    return Account(home, PASSWORD)


@pytest.fixture
def everything_logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """All loggers at DEBUG, paramiko's too; at the end the password is in none of them."""
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="paramiko")
    yield caplog
    records = caplog.get_records("call")
    assert "paramiko" in {record.name.partition(".")[0] for record in records}
    assert PASSWORD not in "\n".join(f"{record.getMessage()} {record.exc_text} {record.args}" for record in records)


def target(tmp_path: Path, port: int, key: Path | None = None, **more: object) -> e.Target:
    found = e.settings(
        "pi1",
        "127.0.0.1",
        port=port,
        user=USER,
        private_key_file=str(key) if key else None,
        ssh_args=f"-F /dev/null -o UserKnownHostsFile={tmp_path / 'known_hosts'} -o IdentitiesOnly=yes",
    )
    return replace(found, global_known_hosts=(), **more)  # type: ignore[arg-type]


def identity(key: Path) -> e.Identity:
    found, _ = e.choose_identity(replace(PLAIN, identities=(key,)))
    return found


PLAIN = e.Target("pi1", "127.0.0.1", 22, USER, "127.0.0.1", (Path("/nowhere"),))


# --- Keys, against ssh-keygen


def keygen(*arguments: str) -> str:
    return subprocess.run(["ssh-keygen", *arguments], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", ["h1", "r1"])
def test_a_fingerprint_is_ssh_keygens(keys: Path, name: str) -> None:
    key = e.read_public_key(keys / f"{name}.pub")
    shown = keygen("-lf", str(keys / f"{name}.pub")).strip()
    assert key.described(key.comment) == shown
    assert parse_fingerprint(shown) == key.fingerprint
    assert key.line == (keys / f"{name}.pub").read_text().strip()


def test_an_ecdsa_key_is_shown_with_its_size(tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", str(tmp_path / "k")], check=True)
    key = e.read_public_key(tmp_path / "k.pub")
    assert key.described(key.comment) == keygen("-lf", str(tmp_path / "k.pub")).strip()


def wrong_keys(keys: Path) -> dict[str, tuple[str, str]]:
    line = (keys / "h1.pub").read_text()
    return {
        "private": ((keys / "h1").read_text(), "is a private key"),
        "two": (line + line, "has 2 keys"),
        "empty": ("\n# nothing\n", "has 0 keys"),
        "cut": (line[:40], "is damaged"),
        "another type": (line.replace("ssh-ed25519", "ssh-rsa"), "is damaged"),
        "dsa": (line.replace("ssh-ed25519", "ssh-dss"), "does not begin with a type"),
        "escape": (line.rstrip() + "\x1b[2J", "cannot be printed"),
    }


@pytest.mark.parametrize("case", ["private", "two", "empty", "cut", "another type", "dsa", "escape"])
def test_what_is_no_public_key_is_refused(keys: Path, case: str) -> None:
    text, message = wrong_keys(keys)[case]
    with pytest.raises(SshError, match=message) as error:
        parse_public_key(text, "mine.pub")
    assert str(error.value).startswith("mine.pub ")
    assert "PRIVATE" not in str(error.value)


@given(st.text())
@settings(max_examples=200)
def test_no_text_is_too_strange_for_the_parsers(text: str) -> None:
    for parse in (parse_public_key, parse_fingerprint):
        with suppress(SshError):
            parse(text)
    for entry in parse_known_hosts(f"{text}\n* ssh-ed25519 {text}"):
        names_match(entry.names, text)
    names_match(text, text)
    assert "\x1b" not in printable(text)
    with suppress(e.EnrollError):
        e.parse_settings("pi1", text, Path("/home/me"))


# --- known_hosts, against ssh-keygen


def test_hashed_and_plain_pins_are_found_by_ssh_keygen(tmp_path: Path, keys: Path) -> None:
    key = e.read_public_key(keys / "h1.pub")
    for number, salts in enumerate([None, iter([b"x" * 20])]):
        path = tmp_path / f"known{number}"
        path.write_text(with_pins("", "[10.0.0.1]:2222", [key], salts))
        assert key.encoded in keygen("-F", "[10.0.0.1]:2222", "-f", str(path))
        assert ("10.0.0.1" in path.read_text()) == (salts is None)


def test_what_ssh_keygen_hashes_is_recognised(tmp_path: Path, keys: Path) -> None:
    key = e.read_public_key(keys / "h1.pub")
    path = tmp_path / "known"
    path.write_text(f"pi1,10.0.0.1 {key.type} {key.encoded}\n")
    keygen("-H", "-f", str(path))
    entries = parse_known_hosts(path.read_text(), str(path))
    assert [judge([key], entries, name).state for name in ("pi1", "10.0.0.1", "pi2")] == ["pinned", "pinned", "unknown"]


NAMES = [
    ("pi1", "pi1", True),
    ("PI1", "pi1", True),
    ("pi1,10.0.0.1", "10.0.0.1", True),
    ("10.0.0.*", "10.0.0.77", True),
    ("pi?", "pi1", True),
    ("pi?", "pi10", False),
    ("*,!pi1", "pi1", False),
    ("!pi1", "pi2", False),
    ("[10.0.0.1]:2222", "[10.0.0.1]:2222", True),
    ("10.0.0.1", "[10.0.0.1]:2222", False),
    ("[10.0.0.1]:2222", "1", False),
    ("[1]", "1", False),
    (hashed_name("pi1", b"s" * 20), "pi1", True),
    (hashed_name("pi1", b"s" * 20), "pi2", False),
    ("|1|???|???", "pi1", False),
    ("|2|a|b", "pi1", False),
    ("", "pi1", False),
]


@pytest.mark.parametrize(("names", "host", "expected"), NAMES)
def test_names_are_matched_as_ssh_matches_them(names: str, host: str, expected: bool) -> None:
    assert names_match(names, host) is expected


def key_of(number: int, type_: str = "ssh-ed25519") -> PublicKey:
    name = type_.encode()
    blob = len(name).to_bytes(4) + name + (32).to_bytes(4) + bytes([number]) * 32
    return PublicKey(type_, blob)


def line(key: PublicKey, names: str = "pi1", marker: str = "") -> str:
    return f"{marker} {names} {key.type} {key.encoded}".strip()


ONE, TWO, ECDSA = key_of(1), key_of(2), key_of(3, "ecdsa-sha2-nistp256")

VERDICTS = [
    ([], [ONE], "unknown", []),
    ([line(ONE)], [ONE], "pinned", [ONE]),
    ([line(ONE)], [ONE, ECDSA], "pinned", [ONE]),
    ([line(ONE), line(ECDSA)], [ONE, ECDSA], "pinned", [ONE, ECDSA]),
    ([line(ONE)], [TWO], "changed", []),
    ([line(ONE), line(ECDSA)], [TWO, ECDSA], "changed", []),
    # The one on record is no longer offered: ssh asks again, and so must somebody who can tell.
    ([line(ECDSA)], [ONE], "changed", []),
    ([line(ONE), line(TWO)], [TWO], "pinned", [TWO]),
    ([line(TWO, "pi2")], [ONE], "unknown", []),
    ([line(ONE, marker="@revoked")], [ONE], "revoked", []),
    ([line(ONE, "*", "@revoked"), line(ONE)], [ONE], "revoked", []),
    ([line(TWO, marker="@cert-authority")], [ONE], "unknown", []),
    (["rubbish", "pi1 ssh-ed25519 AAAA", "# pi1 " + line(TWO), ""], [ONE], "unknown", []),
]


@pytest.mark.parametrize(("record", "offered", "state", "trusted"), VERDICTS)
def test_the_offered_keys_are_judged(
    record: list[str], offered: list[PublicKey], state: str, trusted: list[PublicKey]
) -> None:
    verdict = judge(offered, parse_known_hosts("\n".join(record)), "pi1")
    assert (verdict.state, list(verdict.trusted)) == (state, trusted)


@given(st.lists(st.integers(0, 3), max_size=4), st.integers(0, 3), st.booleans())
def test_what_was_pinned_is_pinned(numbers: list[int], extra: int, hashed: bool) -> None:
    host = [key_of(number) for number in {*numbers, extra}]
    salts = iter(lambda: os.urandom(20), None) if hashed else None
    before = line(TWO, "other") + "\n# a comment without an end"
    after = with_pins(before, "pi1", host, salts)
    assert after.startswith(before + "\n")
    assert judge(host, parse_known_hosts(after), "pi1").state == "pinned"
    assert with_pins(after, "pi1", host, salts) == after


def test_a_changed_key_is_refused_with_both_fingerprints_and_the_way_out() -> None:
    verdict = judge(
        [TWO], parse_known_hosts(f"\n{line(ONE, '[10.0.0.1]:22')}", "/home/me/known hosts"), "[10.0.0.1]:22"
    )
    with pytest.raises(SshError) as error:
        choose_trusted("[10.0.0.1]:22", verdict, [TWO], [])
    text = str(error.value)
    assert ONE.fingerprint in text
    assert TWO.fingerprint in text
    assert "/home/me/known hosts:2" in text
    assert "ssh-keygen -f '/home/me/known hosts' -R '[10.0.0.1]:22'" in text


def test_only_expected_keys_are_trusted() -> None:
    unknown = judge([ONE, ECDSA], [], "pi1")
    assert choose_trusted("pi1", unknown, [ONE, ECDSA], []) == ()
    assert choose_trusted("pi1", unknown, [ONE, ECDSA], [ECDSA.fingerprint]) == (ECDSA,)
    with pytest.raises(SshError, match="not the expected one"):
        choose_trusted("pi1", unknown, [ONE], [TWO.fingerprint])
    # What is on record does not outrank what the owner expects.
    pinned = judge([ONE], parse_known_hosts(line(ONE)), "pi1")
    assert choose_trusted("pi1", pinned, [ONE], [ONE.fingerprint]) == (ONE,)
    with pytest.raises(SshError, match="not the expected one"):
        choose_trusted("pi1", pinned, [ONE], [TWO.fingerprint])


def test_a_revoked_key_is_refused_even_if_expected() -> None:
    verdict = judge([ONE], parse_known_hosts(line(ONE, "*", "@revoked")), "pi1")
    with pytest.raises(SshError, match="revoked in known_hosts:1"):
        choose_trusted("pi1", verdict, [ONE], [ONE.fingerprint])


# --- Settings


def test_settings_are_those_of_ssh(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host 10.0.0.1\n  HostName 10.0.0.9\n  Port 2200\n  User me\n  HashKnownHosts yes\n")
    found = e.settings("pi1", "10.0.0.1", ssh_args=f"-F {config} -o UserKnownHostsFile='{tmp_path}/a {tmp_path}/b'")
    assert (found.host, found.port, found.user, found.record_name) == ("10.0.0.9", 2200, "me", "[10.0.0.9]:2200")
    assert found.known_hosts == (tmp_path / "a", tmp_path / "b")
    assert found.hash_names
    assert host_id("PI1", 22) == "pi1"
    aliased = e.settings("pi1", "10.0.0.1", ssh_args="-F /dev/null -o HostKeyAlias=node-one", port=2222)
    assert aliased.record_name == "node-one"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-o ProxyJump=gate", "reached through gate"),
        ("-o UserKnownHostsFile=/dev/null", "keep no record of host keys"),
        ("-o NoSuchOption=1", "ssh refuses its settings"),
        ("-o 'unclosed", "cannot be taken apart"),
    ],
)
def test_settings_that_cannot_work_are_told(arguments: str, message: str) -> None:
    with pytest.raises(e.EnrollError, match=message):
        e.settings("pi1", "10.0.0.1", ssh_args=f"-F /dev/null {arguments}")


def test_a_secret_does_not_show_itself() -> None:
    secret = Secret(PASSWORD)
    assert PASSWORD not in f"{secret} {secret!r} {[secret]} {vars(e).get('x')}"
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    assert secret
    assert not Secret("")


# --- Pinning


def test_a_pin_is_written_for_its_owner_only_and_once(tmp_path: Path) -> None:
    where = replace(PLAIN, known_hosts=(tmp_path / "ssh" / "known_hosts",), record_name="[127.0.0.1]:2222")
    assert e.pin(where, [ONE, ECDSA]).count("\n") == 2
    path = where.known_hosts[0]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    before = path.read_bytes()
    assert e.pin(where, [ONE, ECDSA]) == ""
    assert path.read_bytes() == before
    assert [entry.names for entry in e.read_known_hosts(where)] == ["[127.0.0.1]:2222"] * 2


def test_a_pin_keeps_the_rest_of_the_file_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "real"
    path.write_bytes(b"# caf\xe9\nother ssh-ed25519 AAAA")
    link = tmp_path / "known_hosts"
    link.symlink_to(path)
    e.pin(replace(PLAIN, known_hosts=(link,)), [ONE])
    assert path.read_bytes().startswith(b"# caf\xe9\nother ssh-ed25519 AAAA\n127.0.0.1 ssh-ed25519 ")
    assert link.is_symlink()


def test_pins_at_the_same_time_lose_none(tmp_path: Path) -> None:
    nodes = [
        replace(PLAIN, known_hosts=(tmp_path / "k",), record_name=f"pi{n}", hash_names=n % 2 == 0) for n in range(16)
    ]
    threads = [threading.Thread(target=e.pin, args=(node, [ONE, TWO])) for node in nodes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entries = e.read_known_hosts(nodes[0])
    assert len(entries) == 32
    assert all(judge([ONE], entries, node.record_name).state == "pinned" for node in nodes)


def test_a_place_where_nothing_can_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(e.EnrollError, match="cannot be written"):
        e.pin(replace(PLAIN, known_hosts=(tmp_path / "file" / "known_hosts",)), [ONE])


# --- Which key


def test_the_key_is_the_inventorys(keys: Path) -> None:
    where = replace(PLAIN, identities=(keys / "nothing", keys / "locked", keys / "owner", keys / "other"))
    first, found = e.choose_identity(where)
    assert first.public.line == (keys / "owner.pub").read_text().strip()
    assert [each.source for each in found] == [str(keys / "owner"), str(keys / "other")]
    chosen, _ = e.choose_identity(where, keys / "other.pub")
    assert chosen.source == str(keys / "other")


def test_a_key_that_cannot_be_proved_is_not_installed(keys: Path, tmp_path: Path) -> None:
    with pytest.raises(e.EnrollError, match=r"locked has a passphrase and is not in the agent: `ssh-add "):
        e.choose_identity(PLAIN, keys / "locked.pub")
    with pytest.raises(e.EnrollError, match="There is no ssh key here"):
        e.choose_identity(PLAIN)
    (tmp_path / "lonely.pub").write_text((keys / "h1.pub").read_text())
    with pytest.raises(e.EnrollError, match="neither beside it nor in the agent"):
        e.choose_identity(PLAIN, tmp_path / "lonely.pub")
    (tmp_path / "broken").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n")
    found, notes = e.identities(replace(PLAIN, identities=(tmp_path / "broken",)))
    assert (found, len(notes)) == ([], 1)


def test_an_agents_key_is_used(keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sock = tmp_path / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(sock)], stdout=subprocess.DEVNULL)
    try:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(sock))
        deadline = 50
        while not sock.exists() and deadline:
            deadline -= 1
            threading.Event().wait(0.05)
        subprocess.run(["ssh-add", "-q", str(keys / "other")], check=True)
        found, _ = e.choose_identity(PLAIN, keys / "other.pub")
        assert found.source == "the agent"
        # IdentitiesOnly: the agent's keys count only where a file names them.
        assert e.identities(replace(PLAIN, identities_only=True))[0] == []
        named = replace(PLAIN, identities_only=True, identities=(keys / "owner", keys / "other"))
        assert [each.source for each in e.identities(named)[0]] == [str(keys / "owner"), "the agent"]
    finally:
        agent.terminate()
        agent.wait()


# --- Enrolling


def test_a_node_with_a_password_only(tmp_path: Path, keys: Path, account: Account, everything_logged: object) -> None:
    with ssh_server(account, keys / "h1", keys / "r1") as port:
        node = target(tmp_path, port, keys / "owner")
        seen = e.look(node)
        assert [key.family for key in seen.offered] == ["ED25519", "RSA"]
        assert seen.offered[0].fingerprint == e.read_public_key(keys / "h1.pub").fingerprint
        assert (seen.verdict.state, account.log) == ("unknown", [])
        e.pin(node, seen.offered)
        mine, others = e.choose_identity(node)
        done = e.enroll(node, e.look(node).verdict.trusted, mine, others, lambda: Secret(PASSWORD))
        assert done == e.Enrolled("the password", installed=True)
        assert account.log == ["key refused", "password accepted", "command, exit 0", "key accepted", "command, exit 0"]
        assert account.authorized == (keys / "owner.pub").read_text()
        modes = [stat.S_IMODE((account.home / name).stat().st_mode) for name in (".ssh", ".ssh/authorized_keys")]
        assert modes == [0o700, 0o600]
        assert not any(PASSWORD.encode() in seen for seen in account.seen)
        # Again: the key lets in, no password is needed, nothing changes.
        account.log.clear()
        again = e.enroll(node, e.look(node).verdict.trusted, mine, others)
        assert (again, account.log) == (e.Enrolled("the key", installed=False), ["key accepted"])


@pytest.mark.parametrize("hashed", [False, True])
def test_ssh_itself_trusts_what_was_pinned_and_gets_in(
    tmp_path: Path, keys: Path, account: Account, hashed: bool
) -> None:
    with ssh_server(account, keys / "h1", keys / "r1") as port:
        node = target(tmp_path, port, keys / "owner", hash_names=hashed)
        sight = e.look(node)
        e.pin(node, sight.offered)
        mine, others = e.choose_identity(node)
        e.enroll(node, sight.offered, mine, others, lambda: Secret(PASSWORD))
        options = f"-F /dev/null -o UserKnownHostsFile={node.known_hosts[0]} -o GlobalKnownHostsFile=/dev/null"
        command = ["ssh", *options.split(), "-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes", "-p", str(port)]
        command += ["-i", str(keys / "owner"), f"{USER}@127.0.0.1", "echo hello"]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=30
        )
    assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr
    assert ("127.0.0.1" in node.known_hosts[0].read_text()) is not hashed


def run(tmp_path: Path, keys: Path, account: Account, password: str | None = PASSWORD, **more: object) -> e.Enrolled:
    """Enrols the owner's key at a server with host key h1."""
    with ssh_server(account, keys / "h1") as port:
        node = target(tmp_path, port, keys / "owner")
        trusted = e.scan(node)
        mine, others = e.choose_identity(replace(node, **more) if more else node)  # type: ignore[arg-type]
        secret = None if password is None else Secret(password)
        return e.enroll(node, trusted, mine, others, lambda: secret, timeout=5)


def test_by_keyboard_interactive(tmp_path: Path, keys: Path, account: Account, everything_logged: object) -> None:
    account.ways = ("keyboard-interactive",)
    assert run(tmp_path, keys, account).login == "the password"
    assert account.authorized


def test_another_key_that_lets_in_is_used_before_the_password(tmp_path: Path, keys: Path, account: Account) -> None:
    (account.home / ".ssh").mkdir(mode=0o700)
    other = (keys / "other.pub").read_text().rstrip()
    (account.home / ".ssh/authorized_keys").write_text(f"# mine\n{other}")  # no newline at the end
    done = run(tmp_path, keys, account, None, identities=(keys / "owner", keys / "other"))
    assert done.login == "another key"
    assert account.authorized == f"# mine\n{other}\n{(keys / 'owner.pub').read_text()}"
    assert not [entry for entry in account.log if entry.startswith("password")]


def test_a_key_that_is_there_is_not_written_twice(tmp_path: Path, keys: Path, account: Account) -> None:
    (account.home / ".ssh").mkdir(mode=0o755)
    there = f"no-pty {(keys / 'owner.pub').read_text().replace('owner@desk', 'old comment')}"
    path = account.home / ".ssh/authorized_keys"
    path.write_text(there)
    path.chmod(0o644)
    account.ignore_keys = True
    with pytest.raises(e.EnrollError, match="sshd does not take it"):
        run(tmp_path, keys, account)
    assert account.authorized == there
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_comment_with_the_key_is_no_key(tmp_path: Path, keys: Path, account: Account) -> None:
    (account.home / ".ssh").mkdir(mode=0o700)
    commented = f"  # {(keys / 'owner.pub').read_text()}"
    (account.home / ".ssh/authorized_keys").write_text(commented)
    account.ignore_keys = True  # the emulation does not know comments
    with pytest.raises(e.EnrollError, match="sshd does not take it"):
        run(tmp_path, keys, account)
    assert account.authorized == commented + (keys / "owner.pub").read_text()


def test_a_linked_authorized_keys_stays_a_link(tmp_path: Path, keys: Path, account: Account) -> None:
    (account.home / ".ssh").mkdir(mode=0o700)
    (account.home / "elsewhere").write_text("")
    (account.home / ".ssh/authorized_keys").symlink_to("../elsewhere")
    run(tmp_path, keys, account)
    assert (account.home / ".ssh/authorized_keys").is_symlink()
    assert (account.home / "elsewhere").read_text() == (keys / "owner.pub").read_text()


def test_hostile_names_reach_no_shell(tmp_path: Path, account: Account) -> None:
    home = account.home.with_name("a 'home' $(touch broken) \"x\"")
    account.home.rename(home)
    account.home = home
    private = ed25519(tmp_path / "mine", comment="$(touch broken) `touch broken` '; touch broken; \" \\n")
    with ssh_server(account, private) as port:
        node = target(tmp_path, port, private)
        mine, others = e.choose_identity(node)
        e.enroll(node, e.scan(node), mine, others, lambda: Secret(PASSWORD))
    assert account.authorized == private.with_suffix(".pub").read_text()
    assert list(tmp_path.rglob("broken*")) == []


FAULTS = [
    ({}, "a wrong one", e.RejectedPassword, "does not take this password"),
    ({}, None, e.RejectedPassword, "there is no password"),
    ({"ways": ("keyboard-interactive",)}, "a wrong one", e.RejectedPassword, "does not take this password"),
    ({"password": None}, PASSWORD, e.EnrollError, "takes keys only, and none of those here"),
    ({"expired": True}, PASSWORD, e.EnrollError, "the password has expired"),
    (
        {"ways": ("keyboard-interactive",), "more_prompts": ("New password: ",)},
        PASSWORD,
        e.EnrollError,
        "the password has expired",
    ),
    (
        {"ways": ("keyboard-interactive",), "more_prompts": ("Verification code: ",)},
        PASSWORD,
        e.EnrollError,
        "asks for more than a password: 'Verification code:'",
    ),
    (
        {"ways": ("keyboard-interactive",), "more_prompts": ("Password: ",)},
        PASSWORD,
        e.RejectedPassword,
        "does not take this password",
    ),
    (
        {"shell_says": "Password change required but no TTY available."},
        PASSWORD,
        e.EnrollError,
        "the password has expired",
    ),
    (
        {"shell_says": "This account is currently not available."},
        PASSWORD,
        e.EnrollError,
        r"runs no commands for that user \(This account is currently not available.\)",
    ),
    ({"commands": False}, PASSWORD, e.EnrollError, "runs no commands for that user"),
    ({"ignore_keys": True}, PASSWORD, e.EnrollError, "sshd does not take it"),
]


@pytest.mark.parametrize(("faults", "password", "kind", "message"), FAULTS, ids=[case[3][:40] for case in FAULTS])
def test_each_fault_ends_in_a_message(
    tmp_path: Path,
    keys: Path,
    account: Account,
    everything_logged: object,
    faults: dict[str, object],
    password: str | None,
    kind: type[Exception],
    message: str,
) -> None:
    for name, value in faults.items():
        setattr(account, name, value)
    with pytest.raises(kind, match=message) as error:
        run(tmp_path, keys, account, password)
    assert "pi1 (pi@127.0.0.1" in str(error.value)
    chain: BaseException | None = error.value
    while chain is not None:
        assert PASSWORD not in repr(chain) + str(chain)
        chain = chain.__cause__ or chain.__context__
    assert "more answers" not in account.log


def test_a_home_that_others_may_write_is_told(tmp_path: Path, keys: Path, account: Account) -> None:
    account.home.chmod(0o775)
    with pytest.raises(e.EnrollError, match=r"home directory .* may be written by others.*chmod go-w ~"):
        run(tmp_path, keys, account)
    assert account.authorized == ""


def test_a_file_where_the_directory_should_be_is_told(tmp_path: Path, keys: Path, account: Account) -> None:
    (account.home / ".ssh").write_text("")
    with pytest.raises(e.EnrollError, match="cannot be made a directory of pi alone"):
        run(tmp_path, keys, account)


def test_a_session_that_falls_silent_is_told(tmp_path: Path, keys: Path, account: Account) -> None:
    account.hang_after_login = True
    with ssh_server(account, keys / "h1") as port:
        node = target(tmp_path, port, keys / "owner")
        mine, others = e.choose_identity(node)
        with pytest.raises(e.EnrollError, match="fell silent for 1 s"):
            e.enroll(node, e.scan(node), mine, others, lambda: Secret(PASSWORD), timeout=1)


def test_nothing_is_sent_to_a_server_with_another_host_key(tmp_path: Path, keys: Path, account: Account) -> None:
    with ssh_server(account, keys / "h2") as port:
        node = target(tmp_path, port, keys / "owner")
        mine, others = e.choose_identity(node)
        confirmed = e.read_public_key(keys / "h1.pub")
        with pytest.raises(e.EnrollError, match="shows another host key than a moment ago"):
            e.enroll(node, [confirmed], mine, others, lambda: Secret(PASSWORD))
        with pytest.raises(e.EnrollError, match="no longer offers the host key"):
            e.enroll(node, [e.read_public_key(keys / "r1.pub")], mine, others, lambda: Secret(PASSWORD))
        with pytest.raises(e.EnrollError, match="nobody has confirmed its host key"):
            e.enroll(node, [], mine, others, lambda: Secret(PASSWORD))
    assert account.log == []


def test_a_changed_host_key_is_refused(tmp_path: Path, keys: Path, account: Account) -> None:
    with ssh_server(account, keys / "h2") as port:
        node = target(tmp_path, port)
        e.pin(node, [e.read_public_key(keys / "h1.pub")])
        seen = e.look(node)
        with pytest.raises(SshError) as error:
            choose_trusted(node.record_name, seen.verdict, seen.offered, [])
    text = str(error.value)
    for name in ("h1", "h2"):
        assert e.read_public_key(keys / f"{name}.pub").fingerprint in text
    # The command that it gives does what it says.
    command = next(line.strip() for line in text.splitlines() if "ssh-keygen -f" in line)
    subprocess.run(shlex.split(command), check=True, capture_output=True)
    assert e.read_known_hosts(node) == []


@pytest.mark.parametrize(
    ("says", "message"),
    [
        (b"", "does not answer as an ssh server within 1 s"),
        (b"220 smtp.example ESMTP\r\n", "does not answer as an ssh server"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n" * 200, "does not answer as an ssh server"),
        (b"SSH-2.0-silent\r\n", "fell silent for 1 s|does not answer"),
        (b"SSH-2.0-noise\r\n" + b"\x00" * 64, "ssh broke off|closed"),
        (None, "closed the connection|does not answer as an ssh server"),
    ],
)
def test_what_is_no_ssh_server_is_told(tmp_path: Path, says: bytes | None, message: str) -> None:
    with talker(says) as port, pytest.raises(e.EnrollError, match=message) as error:
        e.scan(target(tmp_path, port), timeout=1)
    assert str(error.value).startswith("pi1 (pi@127.0.0.1, port ")


def test_a_closed_port_is_told(tmp_path: Path) -> None:
    with talker(b"") as port:
        pass
    with pytest.raises(e.EnrollError, match="refuses the connection"):
        e.scan(target(tmp_path, port), timeout=1)


@given(st.binary(max_size=300))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_from_a_server_end_in_a_traceback(tmp_path: Path, noise: bytes) -> None:
    with talker(b"SSH-2.0-x\r\n" + noise) as port, pytest.raises(e.EnrollError):
        e.scan(replace(PLAIN, port=port, known_hosts=(tmp_path / "k",)), timeout=0.2)


def test_no_thread_is_left_behind(tmp_path: Path, keys: Path, account: Account) -> None:
    before = set(threading.enumerate())
    run(tmp_path, keys, account)
    with talker(b"SSH-2.0-silent\r\n") as port, pytest.raises(e.EnrollError):
        e.scan(target(tmp_path, port), timeout=0.5)
    # A timer that was stopped is a thread for another moment; one that was not, for 15 s.
    left = set(threading.enumerate()) - before
    for thread in left:
        thread.join(2)
    assert [thread for thread in left if thread.is_alive()] == []


def test_base64_of_a_key_is_what_the_server_gets(keys: Path) -> None:
    key = e.read_public_key(keys / "owner.pub")
    assert base64.b64decode(key.encoded) == key.blob
    assert identity(keys / "owner").public.blob == key.blob
