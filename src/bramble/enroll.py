"""First contact with a node that knows only a password, or a key: its host key is pinned and your key installed.

The parts, from pure to not:

- `bramble.ssh_keys`: keys, fingerprints, ``known_hosts``, and what to make of a host key;
- `parse_settings` and `settings`: what ssh itself would use for a host of the inventory (``ssh -G``);
- `scan`: the host keys that a server offers, without a login; `pin` writes them down;
- `enroll`: logs in with a trusted host key only, installs the key, and proves it by a new connection.

Turning password login off is not done here: the role ``ssh_access`` does that, and refuses to lock anybody out.
A password is held in a `Secret`; it is in no message, no ``repr``, no log, no file and on no command line.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import pwd
import re
import shlex
import socket
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import paramiko

from bramble.secret import Secret
from bramble.ssh_keys import (
    ECDSA,
    ED25519,
    RSA,
    KnownHost,
    PublicKey,
    SshError,
    Verdict,
    host_id,
    judge,
    parse_known_hosts,
    parse_public_key,
    printable,
    with_pins,
)

# Without a handler Python itself would print paramiko's complaints, with tracebacks.
logging.getLogger("paramiko").addHandler(logging.NullHandler())

# Seconds that a server may stay silent, at each step.
TIMEOUT = 15.0
# sshd counts each key that it does not know as a failure: the default MaxAuthTries is 6, and 4 after role ssh_access.
KEYS_TRIED = 3
_SECONDS_TO_END = 2.0
# What a command on the node may answer, in bytes. The rest is not read.
ANSWER_LIMIT = 65536

# One connection per family: a server shows the one key that the client's list prefers (RFC 4253, 7.1).
_FAMILIES = (ED25519, ECDSA, RSA)
_EXPIRED = re.compile(
    r"password (?:has )?expired|password change required|required to change your password|new password", re.IGNORECASE
)


class EnrollError(SshError):
    """A node could not be enrolled. The message names the node, says what is wrong and what to change."""


class RejectedPassword(EnrollError):  # noqa: N818 - an answer of the server, which the caller may ask about again
    """The server takes passwords, and not this one; or a password is needed and there is none."""


# --- What ssh would do


@dataclass(frozen=True, slots=True)
class Target:
    """A node as ssh reaches it. ``name`` is the inventory's; ``record_name`` is that of its lines in known_hosts."""

    name: str
    host: str
    port: int
    user: str
    record_name: str
    known_hosts: tuple[Path, ...]
    global_known_hosts: tuple[Path, ...] = ()
    hash_names: bool = False
    identities: tuple[Path, ...] = ()
    identities_only: bool = False
    proxy: str | None = None

    @property
    def place(self) -> str:
        """For messages: which node, by which account."""
        port = "" if self.port == 22 else f", port {self.port}"
        return f"{self.name} ({self.user}@{self.host}{port})"


def parse_settings(name: str, text: str, home: Path) -> Target:
    """A `Target` from what ``ssh -G`` prints. ``home``: what ``~`` stands for.

    Raises:
        EnrollError: something that is needed is missing in it.
    """
    values: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, _, value = line.strip().partition(" ")
        values.setdefault(key.lower(), []).append(value.strip())

    def one(key: str) -> str:
        return next(iter(values.get(key, [])), "")

    def paths(key: str) -> tuple[Path, ...]:
        # A line of identityfile is one path; the others list several.
        lines = values.get(key, [])
        words = lines if key == "identityfile" else [word for line in lines for word in line.split()]
        expanded = (Path(str(home) + word[1:]) if word.startswith("~/") else Path(word) for word in words)
        return tuple(path for path, word in zip(expanded, words, strict=True) if word not in ("none", "/dev/null"))

    host, port, user = one("hostname"), one("port"), one("user")
    if not host or not port.isascii() or not port.isdigit() or not user:
        raise EnrollError(f"{name}: `ssh -G` does not say which host, port and user ssh would use.")
    proxy = next((value for value in (one("proxyjump"), one("proxycommand")) if value not in ("", "none")), None)
    alias = one("hostkeyalias")
    return Target(
        name=name,
        host=host,
        port=int(port),
        user=user,
        record_name=alias.lower() if alias and alias != "none" else host_id(host, int(port)),
        known_hosts=paths("userknownhostsfile"),
        global_known_hosts=paths("globalknownhostsfile"),
        hash_names=one("hashknownhosts") == "yes",
        identities=paths("identityfile"),
        identities_only=one("identitiesonly") == "yes",
        proxy=proxy,
    )


def settings(
    name: str,
    host: str,
    *,
    port: int | None = None,
    user: str | None = None,
    private_key_file: str | None = None,
    ssh_args: str = "",
    known_hosts: Path | None = None,
) -> Target:
    """What ssh itself would use for a host, its configuration files and ``ssh_args`` included. Connects to nothing.

    ``ssh_args`` is the inventory's ansible_ssh_common_args; ``known_hosts`` overrides the file that pins go to.

    Raises:
        EnrollError: ssh cannot tell, or reaches the host through another one.
    """
    try:
        command = ["ssh", "-G", *shlex.split(ssh_args)]
    except ValueError as error:
        raise EnrollError(f"{name}: its ansible_ssh_common_args cannot be taken apart: {error}.") from error
    command += ["-p", str(port)] if port else []
    command += ["-l", user] if user else []
    command += ["-i", private_key_file] if private_key_file else []
    try:
        done = subprocess.run(
            [*command, "--", host], capture_output=True, text=True, errors="replace", timeout=TIMEOUT, check=False
        )
    except FileNotFoundError as error:
        raise EnrollError("There is no ssh on this machine, and Ansible needs it: install openssh-client.") from error
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise EnrollError(f"{name}: `ssh -G` did not work: {printable(str(error))}.") from error
    if done.returncode != 0:
        raise EnrollError(
            f"{name}: ssh refuses its settings: {printable(done.stderr)}. Correct ansible_host, ansible_port and "
            "ansible_ssh_common_args in the inventory."
        )
    target = parse_settings(name, done.stdout, _home())
    if target.proxy:
        raise EnrollError(
            f"{target.place} is reached through {printable(target.proxy)}, which enrolling does not do. Install "
            f"the key by hand: `ssh-copy-id {target.user}@{target.host}`, with the same ssh options."
        )
    if known_hosts is not None:
        target = replace(target, known_hosts=(known_hosts,))
    if not target.known_hosts:
        raise EnrollError(
            f"{target.place}: its ssh options keep no record of host keys (UserKnownHostsFile). Name a file there."
        )
    return target


def _home() -> Path:
    # ssh asks the user database, and not HOME.
    return Path(pwd.getpwuid(os.getuid()).pw_dir)


def read_known_hosts(target: Target) -> list[KnownHost]:
    """The record that ssh would look at for ``target``: the user's files, then the machine's."""
    entries: list[KnownHost] = []
    for path in (*target.known_hosts, *target.global_known_hosts):
        try:
            entries += parse_known_hosts(path.read_text(encoding="utf-8", errors="replace"), str(path))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise EnrollError(f"{path} cannot be read: {error.strerror}.") from error
    return entries


def pin(target: Target, keys: Sequence[PublicKey]) -> str:
    """Write host keys to the first known_hosts file; the lines that were added, empty if all were there.

    The file changes in one step and only its owner may read a new one. Runs that pin at the same time wait for each
    other.
    """
    path = target.known_hosts[0]
    salts = iter(lambda: os.urandom(20), None) if target.hash_names else None
    try:
        path = path.resolve()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(path.parent):
            mode = stat.S_IMODE(path.stat().st_mode) & ~0o022 if path.exists() else 0o600
            old = path.read_bytes().decode("utf-8", "surrogateescape") if path.exists() else ""
            new = with_pins(old, target.record_name, keys, salts)
            if new != old:
                _replace(path, new.encode("utf-8", "surrogateescape"), mode)
    except OSError as error:
        raise EnrollError(f"{path} cannot be written: {error.strerror}.") from error
    return new[len(old) :]


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, content: bytes, mode: int) -> None:
    """Put ``content`` at ``path`` in one step."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise


# --- Your key


def read_public_key(path: Path) -> PublicKey:
    """`parse_public_key` of a file."""
    try:
        return parse_public_key(path.read_text(encoding="utf-8", errors="replace"), str(path))
    except OSError as error:
        raise SshError(f"{path} cannot be read: {error.strerror}.") from error


@dataclass(frozen=True, slots=True)
class Identity:
    """A key to log in with: ``signer`` is paramiko's key, of a file or of the agent."""

    public: PublicKey
    signer: Any
    source: str


def identities(target: Target) -> tuple[list[Identity], list[str]]:
    """The keys that ssh would try, the agent's first, and notes on those that cannot be used.

    A private key with a passphrase is used through the agent only.
    """
    found: list[Identity] = []
    notes: list[str] = []
    files: list[tuple[Path, bytes | None]] = []
    for path in target.identities:
        public = _public_of(path)
        files.append((path, public.blob if public else None))
    wanted = {blob for _, blob in files if blob}
    try:
        agent_keys = paramiko.Agent().get_keys()
    except (paramiko.SSHException, OSError):
        agent_keys = ()
    for key in agent_keys:
        public = PublicKey(key.get_name(), key.asbytes(), printable(getattr(key, "comment", "") or ""))
        if public.blob in wanted or not target.identities_only:
            found.append(Identity(public, key, "the agent"))
    for path, blob in files:
        if not path.is_file() or any(identity.public.blob == blob for identity in found):
            continue
        try:
            key = paramiko.PKey.from_path(path)
        except (paramiko.PasswordRequiredException, TypeError):
            notes.append(f"{path} has a passphrase and is not in the agent: `ssh-add {shlex.quote(str(path))}`")
            continue
        except OSError as error:
            notes.append(f"{path} cannot be read: {error.strerror}")
            continue
        except Exception as error:  # whatever a damaged file makes paramiko and cryptography raise
            notes.append(f"{path} is no private key that can be used: {printable(str(error)) or type(error).__name__}")
            continue
        public = _public_of(path)
        comment = public.comment if public and public.blob == key.asbytes() else ""
        if not any(identity.public.blob == key.asbytes() for identity in found):
            found.append(Identity(PublicKey(key.get_name(), key.asbytes(), comment), key, str(path)))
    # The keys that the inventory or ssh's configuration name come before whatever else the agent holds.
    order = {blob: place for place, (_, blob) in enumerate(files)}
    found.sort(key=lambda identity: order.get(identity.public.blob, len(order)))
    return found, notes


def _public_of(path: Path) -> PublicKey | None:
    try:
        return read_public_key(path.with_name(path.name + ".pub"))
    except SshError:
        return None


def choose_identity(target: Target, public_key_file: Path | None = None) -> tuple[Identity, list[Identity]]:
    """The key to install, and all that may be tried to log in.

    Without ``public_key_file`` it is the first that ssh would try: the inventory's, else one of ``~/.ssh/id_*``, else
    one of the agent's.

    Raises:
        EnrollError: there is none, or its private half cannot be used, so that nothing could be proved with it.
    """
    found, notes = identities(target)
    hint = f" ({'; '.join(notes)})" if notes else ""
    if public_key_file is None:
        if not found:
            raise EnrollError(
                f"There is no ssh key here to install on {target.name}{hint}. Make one with `ssh-keygen -t ed25519`."
            )
        return found[0], found
    public = read_public_key(public_key_file)
    if not any(identity.public.blob == public.blob for identity in found):
        private = public_key_file.with_suffix("") if public_key_file.suffix == ".pub" else public_key_file
        more, more_notes = identities(replace(target, identities=(private,)))
        found, hint = more + found, f" ({'; '.join(notes + more_notes)})" if notes + more_notes else hint
    for identity in found:
        if identity.public.blob == public.blob:
            return Identity(public, identity.signer, identity.source), found
    raise EnrollError(
        f"The private half of {public_key_file} is neither beside it nor in the agent{hint}: with it alone can be seen "
        "that the key lets you in. Add it with ssh-add."
    )


# --- Talking to the server


@dataclass(frozen=True, slots=True)
class Sight:
    """What can be seen of a node before anybody logs in."""

    offered: tuple[PublicKey, ...]
    verdict: Verdict


def look(target: Target, timeout: float = TIMEOUT) -> Sight:
    """The host keys that the node offers, and what known_hosts says of them. Changes nothing."""
    offered = scan(target, timeout)
    return Sight(offered, judge(offered, read_known_hosts(target), target.record_name))


def scan(target: Target, timeout: float = TIMEOUT) -> tuple[PublicKey, ...]:
    """The host keys that the server offers, ED25519 first. Nobody logs in.

    Raises:
        EnrollError: it does not answer, or not as an ssh server does.
    """
    keys: list[PublicKey] = []
    for family in _FAMILIES:
        try:
            with _connected(target, family, timeout) as transport:
                keys.append(_server_key(transport))
        except paramiko.ssh_exception.IncompatiblePeer as error:
            # It has no key of this family; or nothing else in common with us either.
            if "host key" not in str(error):
                raise EnrollError(
                    f"{target.place} speaks an ssh too old or too restricted for this: {printable(str(error))}."
                ) from error
    if not keys:
        raise EnrollError(f"{target.place} offers no host key of a kind that is in use today (ED25519, ECDSA, RSA).")
    return tuple(keys)


def _server_key(transport: Any) -> PublicKey:
    key = transport.get_remote_server_key()
    return PublicKey(key.get_name(), key.asbytes())


@contextmanager
def _connected(target: Target, algorithms: Sequence[str], timeout: float) -> Iterator[Any]:
    """A transport on which keys have been exchanged, with a host key of one of ``algorithms``."""
    try:
        connection = socket.create_connection((target.host, target.port), timeout)
    except socket.gaierror as error:
        raise EnrollError(
            f"{target.place}: its name does not resolve. Give its address as ansible_host in the inventory."
        ) from error
    except ConnectionRefusedError as error:
        raise EnrollError(
            f"{target.place} refuses the connection: it is on, and no sshd runs on port {target.port}. Was ssh "
            "switched on when the card was written?"
        ) from error
    except (OSError, UnicodeError, OverflowError) as error:
        raise EnrollError(
            f"{target.place} does not answer ({printable(str(error))}). Is it on, and is its address (ansible_host) "
            "right? The first boot of a new card takes some minutes."
        ) from error
    transport: Any = None
    try:
        transport = paramiko.Transport(connection)
        # A thread that a dead peer keeps waiting must not keep this process alive.
        transport.daemon = True
        transport.banner_timeout = transport.auth_timeout = timeout
        # paramiko's own limit ends in an EOFError, so start_client's comes first.
        transport.handshake_timeout = 2 * timeout
        transport.get_security_options().key_types = tuple(algorithms)
        transport.start_client(timeout=timeout)
        if not transport.initial_kex_done:
            raise (
                _no_ssh(target, timeout)
                if not transport.remote_version
                else EnrollError(f"{target.place} began to speak ssh and fell silent for {timeout:.0f} s. Try again.")
            )
        yield transport
    except paramiko.ssh_exception.IncompatiblePeer:
        raise
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise _translated(target, error, timeout) from error
    finally:
        if transport is not None:
            _end(transport)
        connection.close()


def _end(transport: Any) -> None:
    """Close a transport and leave no thread behind: who enrols forks afterwards."""
    transport.close()
    transport.join(_SECONDS_TO_END)
    # The timer of an exchange of keys that was never finished is a thread too.
    transport.packetizer.complete_handshake()


def _translated(target: Target, error: Exception, timeout: float) -> EnrollError:
    text = printable(str(error)) or type(error).__name__
    if "banner" in text.lower() or "protocol version" in text:
        return _no_ssh(target, timeout)
    if isinstance(error, EOFError | ConnectionError) or "closed" in text or "EOF" in text:
        return EnrollError(
            f"{target.place} closed the connection ({text}). sshd does that to an address for a while after failed "
            "logins, and while it starts: wait a minute, then repeat."
        )
    return EnrollError(f"{target.place}: ssh broke off: {text}.")


def _no_ssh(target: Target, timeout: float) -> EnrollError:
    return EnrollError(
        f"{target.place} takes the connection and does not answer as an ssh server within {timeout:.0f} s. Is another "
        f"service on port {target.port}? A node that is still booting does this too: wait, then repeat."
    )


@contextmanager
def _trusted(target: Target, trusted: Sequence[PublicKey], timeout: float) -> Iterator[Any]:
    """A transport to a server that has proved to hold one of the ``trusted`` keys."""
    types = {key.type for key in trusted}
    algorithms = [name for family in _FAMILIES for name in family if (name if name not in RSA else "ssh-rsa") in types]
    try:
        with _connected(target, algorithms, timeout) as transport:
            key = _server_key(transport)
            if not any(key.same(known) for known in trusted):
                raise EnrollError(
                    f"{target.place} shows another host key than a moment ago: {key.described(target.record_name)}. "
                    "Nothing was sent to it. Find out which machine answers there."
                )
            yield transport
    except paramiko.ssh_exception.IncompatiblePeer as error:
        raise EnrollError(
            f"{target.place} no longer offers the host key that it offered a moment ago. Nothing was sent to it."
        ) from error


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What `enroll` did. ``login``: what let it in first; ``installed``: whether the key is new on the node."""

    login: Literal["the key", "another key", "the password", "no password"]
    installed: bool
    tightened: bool = False


def enroll(
    target: Target,
    trusted: Sequence[PublicKey],
    identity: Identity,
    others: Sequence[Identity] = (),
    password: Callable[[], Secret | None] = lambda: None,
    timeout: float = TIMEOUT,
) -> Enrolled:
    """Install ``identity``'s public key for the target's user and prove by a new connection that it lets in.

    Tried in this order, on one connection: ``identity`` itself, up to two of ``others``, the ``password``. Other keys
    on the node stay. Interrupted anywhere, it can be repeated. ``password`` is called only if no key lets in, while the
    server waits: sshd does so for two minutes.

    Raises:
        RejectedPassword: a password is needed, and this is not it.
        EnrollError: anything else, with what to change.
    """
    if not trusted:
        raise EnrollError(f"{target.place}: nobody has confirmed its host key.")
    with _trusted(target, trusted, timeout) as transport:
        login = _log_in(transport, target, identity, others, password)
        if login == "the key":
            return Enrolled(login, installed=False)
        installed, tightened = _install(transport, target, identity.public, timeout)
    with _trusted(target, trusted, timeout) as transport:
        _prove(transport, target, identity, timeout)
    return Enrolled(login, installed, tightened)


def _log_in(
    transport: Any,
    target: Target,
    identity: Identity,
    others: Sequence[Identity],
    password: Callable[[], Secret | None],
) -> Literal["the key", "another key", "the password", "no password"]:
    allowed = _allowed(transport, target)
    if allowed is None:
        return "no password"
    if "publickey" in allowed:
        rest = [other for other in others if other.public.blob != identity.public.blob]
        for tried in [identity, *rest][:KEYS_TRIED]:
            try:
                transport.auth_publickey(target.user, tried.signer)
            except paramiko.BadAuthenticationType:
                break
            except paramiko.AuthenticationException:
                continue
            if transport.is_authenticated():
                return "the key" if tried is identity else "another key"
    ways = [way for way in ("password", "keyboard-interactive") if way in allowed]
    if not ways:
        raise EnrollError(
            f"{target.place} takes keys only, and none of those here ({_named([identity, *others])}) lets "
            f"{target.user} in. Is the user right? Else put {identity.public.fingerprint} into "
            "~/.ssh/authorized_keys at the node's own keyboard."
        )
    secret = password()
    if not secret:
        raise RejectedPassword(f"{target.place}: no key lets in yet, and there is no password.")
    # Where both are offered they lead to the same check: a wrong password would be a failure twice.
    try:
        if ways[0] == "password":
            transport.auth_password(target.user, secret.reveal(), fallback=False)
        else:
            _interactive(transport, target, secret)
    except paramiko.BadAuthenticationType as error:
        raise RejectedPassword(f"{target.place} no longer takes a password: too many failures. Try again.") from error
    except paramiko.AuthenticationException as error:
        if "timeout" in str(error).lower():
            raise EnrollError(f"{target.place} does not answer to the login in time. Try again.") from error
        raise _rejected(target) from None
    except paramiko.SSHException as error:
        # The message of RFC 4252, 8, by which a server demands a new password; paramiko does not know it.
        if "info request" in str(error):
            raise _expired(target) from None
        raise
    if not transport.is_authenticated():
        raise EnrollError(
            f"{target.place} wants something beside the password (a second factor). Install the key by hand: "
            f"`ssh-copy-id {target.user}@{target.host}`."
        )
    return "the password"


def _allowed(transport: Any, target: Target) -> list[str] | None:
    """The ways to log in that the server names; None if it let in without any."""
    try:
        transport.auth_none(target.user)
    except paramiko.BadAuthenticationType as error:
        return [str(way) for way in error.allowed_types]
    except paramiko.AuthenticationException as error:
        raise EnrollError(f"{target.place} ends the login before it begins: {printable(str(error))}.") from error
    return None


def _named(found: Sequence[Identity]) -> str:
    return ", ".join(dict.fromkeys(identity.source for identity in found))


def _interactive(transport: Any, target: Target, password: Secret) -> None:
    """Keyboard-interactive as PAM does it (RFC 4256): the one hidden question is answered with the password, once."""
    asked: str | None = None
    trouble: EnrollError | None = None

    def answer(_title: str, instructions: str, prompts: Sequence[tuple[str, bool]]) -> list[str]:
        nonlocal asked, trouble
        if not prompts or trouble is not None:
            return [""] * len(prompts)
        text = " ".join([instructions, *(prompt for prompt, _ in prompts)])
        if asked is None and len(prompts) == 1 and not prompts[0][1] and not _EXPIRED.search(text):
            asked = text
            return [password.reveal()]
        if _EXPIRED.search(text):
            trouble = _expired(target)
        elif text == asked:
            trouble = _rejected(target)
        else:
            trouble = EnrollError(
                f"{target.place} asks for more than a password: {printable(text)!r}. Install the key by hand: "
                f"`ssh-copy-id {target.user}@{target.host}`."
            )
        # To raise here would end paramiko's thread; an empty answer ends the login.
        return [""] * len(prompts)

    try:
        transport.auth_interactive(target.user, answer)
    finally:
        if trouble is not None:
            raise trouble from None


def _rejected(target: Target) -> RejectedPassword:
    return RejectedPassword(f"{target.place} does not take this password. Is it the right user?")


def _expired(target: Target) -> EnrollError:
    port = "" if target.port == 22 else f"-p {target.port} "
    return EnrollError(
        f"{target.place}: the password has expired and must be changed first: `ssh {port}{target.user}@{target.host}`, "
        "then repeat with the new one."
    )


# Reads the key's line and its base64 from standard input. Says what it did in lines that begin with `bramble:`; what a
# ~/.bashrc prints is not among them. No single quotes: whatever the login shell is, it must pass the script on to sh.
_INSTALL = r"""
umask 077
say() { echo "bramble: $*"; }
writable() { ls -ldL "$1" | cut -c6,9 | grep -q w; }
IFS= read -r line && IFS= read -r blob || { say no-input; exit 1; }
home=$(cd && pwd -P) && [ -n "$home" ] && [ -d "$home" ] || { say no-home; exit 1; }
if writable "$home"; then say home-writable "$home"; exit 1; fi
dir=$home/.ssh
file=$dir/authorized_keys
mkdir -p "$dir" || { say no-directory "$dir"; exit 1; }
if ! [ "$(ls -ldL "$dir" | cut -c1-10)" = drwx------ ]; then
    chmod 700 "$dir" || { say no-directory "$dir"; exit 1; }
    say tightened
fi
if [ -L "$file" ]; then file=$(readlink -f "$file"); fi
if [ -f "$file" ] && grep -v "^[[:space:]]*#" "$file" | grep -qF -- "$blob"; then
    if ! [ "$(ls -ld "$file" | cut -c1-10)" = -rw------- ]; then chmod 600 "$file" && say tightened; fi
    say present
    exit 0
fi
new=$(mktemp "$file.XXXXXX") || { say no-file "$file"; exit 1; }
trap "rm -f \"\$new\"" EXIT
{ if [ -f "$file" ]; then cat "$file" || exit 1; if [ -n "$(tail -c 1 "$file")" ]; then echo; fi; fi
printf "%s\n" "$line"; } > "$new" && chmod 600 "$new" && mv -f "$new" "$file" || { say no-file "$file"; exit 1; }
sync
say added
"""


def _install(transport: Any, target: Target, key: PublicKey, timeout: float) -> tuple[bool, bool]:
    """Append the key to ``authorized_keys`` unless it is there; whether it was added, whether modes were changed."""
    if "'" in _INSTALL:  # it would end the quotes below
        raise AssertionError("the script has a single quote")
    command = f"sh -c '{_INSTALL}'"
    code, output, errors = _run(transport, target, command, f"{key.line}\n{key.encoded}\n".encode(), timeout)
    said = [line.removeprefix("bramble: ").strip() for line in output.splitlines() if line.startswith("bramble: ")]
    if code == 0 and said and said[-1] in ("added", "present"):
        return said[-1] == "added", "tightened" in said
    if _EXPIRED.search(output + errors):
        raise _expired(target)
    what, _, where = (said[-1] if said else "").partition(" ")
    where = printable(where)
    reasons = {
        "home-writable": f"the home directory {where} may be written by others, so sshd ignores the keys in it: log in "
        "and run `chmod go-w ~`, then repeat.",
        "no-home": f"{target.user} has no home directory there: make one, or take another user.",
        "no-directory": f"{where} cannot be made a directory of {target.user} alone: see who owns what lies there.",
        "no-file": f"{where} cannot be written: is the disk full, or does the file belong to another user?",
    }
    if what in reasons:
        raise EnrollError(f"{target.place}: {reasons[what]}")
    text = printable(errors or output)
    raise EnrollError(
        f"{target.place} lets {target.user} in and runs no commands for that user"
        + (f" ({text})" if text else "")
        + ". Ansible needs a user with an ordinary shell."
    )


def _prove(transport: Any, target: Target, identity: Identity, timeout: float) -> None:
    """A login with the key alone, and a command."""
    try:
        transport.auth_publickey(target.user, identity.signer)
    except paramiko.AuthenticationException as error:
        raise EnrollError(
            f"{target.place}: the key {identity.public.fingerprint} is in ~/.ssh/authorized_keys, and sshd does not "
            "take it. Look for AuthorizedKeysFile, PubkeyAuthentication and AllowUsers in its configuration, and at "
            "`journalctl -u ssh` there. The password still works."
        ) from error
    code, _, errors = _run(transport, target, "true", b"", timeout)
    if code != 0:
        why = printable(errors) or f"exit code {code}"
        raise EnrollError(f"{target.place}: the key lets in, and no command runs: {why}.")


def _run(transport: Any, target: Target, command: str, given: bytes, timeout: float) -> tuple[int, str, str]:
    """Run a command: exit code (-1 where the server tells none), standard output and error, cut to `ANSWER_LIMIT`."""
    try:
        channel = transport.open_session(timeout=timeout)
        channel.settimeout(timeout)
        channel.exec_command(command)
        # A command that ends without reading has closed the channel; what it said is still there.
        with contextlib.suppress(paramiko.SSHException, OSError):
            channel.sendall(given)
            channel.shutdown_write()
        output = _read(channel.recv)
        errors = _read(channel.recv_stderr)
        channel.status_event.wait(timeout)
        code = channel.recv_exit_status() if channel.exit_status_ready() else -1
    except TimeoutError as error:
        raise EnrollError(f"{target.place} let us in and fell silent for {timeout:.0f} s. Try again.") from error
    except (paramiko.SSHException, EOFError, OSError):
        return -1, "", ""
    return code, output, errors


def _read(receive: Callable[[int], bytes]) -> str:
    chunks, size = [], 0
    while size < ANSWER_LIMIT and (chunk := receive(8192)):
        chunks.append(chunk)
        size += len(chunk)
    return b"".join(chunks).decode("utf-8", "replace")
