"""An emulated ssh server on loopback, made of paramiko: one account, whose commands run here in a home of its own.

What it does not emulate: sshd's StrictModes, PAM, penalties. Its authorized_keys is read at each login, as sshd does.
"""

# ruff: noqa: ARG002 (the signatures are paramiko's)
from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paramiko

USER = "pi"


def ed25519(path: Path, comment: str = "owner@desk", passphrase: str = "") -> Path:
    """Makes a key with ssh-keygen; the private file."""
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", comment, "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path


def rsa(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", str(path)], check=True)
    return path


@dataclass
class Account:
    """The account and its faults. ``log`` says what happened, in order; a password is never in it."""

    home: Path
    password: str | None = None
    # Ways of giving the password: "password", "keyboard-interactive".
    ways: Sequence[str] = ("password",)
    # Prompts of keyboard-interactive after the right password.
    more_prompts: Sequence[str] = ()
    # sshd demands a new password by message 60 of RFC 4252.
    expired: bool = False
    # False: the session opens and no command can be run.
    commands: bool = True
    shell_says: str | None = None
    # Keys are in the file and are not taken, as with StrictModes.
    ignore_keys: bool = False
    hang_after_login: bool = False
    log: list[str] = field(default_factory=list)
    seen: list[bytes] = field(default_factory=list)
    # Called when a password arrives.
    on_password: Any = None

    @property
    def authorized(self) -> str:
        path = self.home / ".ssh/authorized_keys"
        return path.read_text() if path.exists() else ""


class _Server(paramiko.ServerInterface):
    def __init__(self, account: Account) -> None:
        self.account = account
        self.rounds = 0

    def get_allowed_auths(self, username: str) -> str:
        ways = list(self.account.ways) if self.account.password is not None else []
        return ",".join(["publickey", *ways])

    def check_auth_none(self, username: str) -> int:
        return paramiko.AUTH_FAILED

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        known = not self.account.ignore_keys and key.get_base64() in self.account.authorized
        self.account.log.append(f"key {'accepted' if known and username == USER else 'refused'}")
        return paramiko.AUTH_SUCCESSFUL if known and username == USER else paramiko.AUTH_FAILED

    def _check(self, username: str, password: str) -> bool:
        if self.account.on_password:
            self.account.on_password()
        right = username == USER and password == self.account.password
        self.account.log.append(f"password {'accepted' if right else 'refused'}")
        return right

    def check_auth_password(self, username: str, password: str) -> int:
        if "password" not in self.account.ways:
            return paramiko.AUTH_FAILED
        right = self._check(username, password)
        return paramiko.AUTH_SUCCESSFUL if right else paramiko.AUTH_FAILED

    def check_auth_interactive(self, username: str, submethods: str) -> Any:
        if "keyboard-interactive" not in self.account.ways:
            return paramiko.AUTH_FAILED
        self.username = username
        return paramiko.InteractiveQuery("", "", ("Password: ", False))

    def check_auth_interactive_response(self, responses: list[str]) -> Any:
        self.rounds += 1
        if self.rounds == 1:
            if not self._check(self.username, responses[0] if responses else ""):
                return paramiko.AUTH_FAILED
            if self.account.more_prompts:
                return paramiko.InteractiveQuery("", "", *((prompt, False) for prompt in self.account.more_prompts))
            return paramiko.AUTH_SUCCESSFUL
        self.account.log.append("more answers" if any(responses) else "no more answers")
        return paramiko.AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED if kind == "session" else paramiko.OPEN_FAILED_UNKNOWN_CHANNEL_TYPE

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        if not self.account.commands:
            return False
        threading.Thread(target=self._execute, args=(channel, command), daemon=True).start()
        return True

    def _execute(self, channel: paramiko.Channel, command: bytes) -> None:
        if self.account.hang_after_login:
            return
        self.account.seen.append(command)
        # The client sends once the request is granted; before that, a closed channel would be no answer to it.
        given = channel.recv(1)
        if self.account.shell_says is not None:
            channel.sendall(self.account.shell_says.encode() + b"\n")
            channel.send_exit_status(1)
            channel.close()
            return
        while chunk := channel.recv(4096):
            given += chunk
        self.account.seen.append(given)
        done = subprocess.run(
            ["/bin/sh", "-c", command.decode()],
            input=given,
            capture_output=True,
            cwd=self.account.home,
            env={"HOME": str(self.account.home), "PATH": "/usr/bin:/bin"},
            check=False,
        )
        self.account.log.append(f"command, exit {done.returncode}")
        channel.sendall(done.stdout)
        channel.sendall_stderr(done.stderr)
        channel.send_exit_status(done.returncode)
        channel.close()


class _ExpiredHandler(paramiko.auth_handler.AuthHandler):
    """Answers a password with SSH_MSG_USERAUTH_PASSWD_CHANGEREQ (60)."""

    def _send_auth_result(self, username: str, method: str, result: Any) -> None:
        if method == "password":
            message = paramiko.Message()
            message.add_byte(bytes([60]))
            message.add_string("Your password has expired.")
            message.add_string("")
            self.transport._send_message(message)
            return
        super()._send_auth_result(username, method, result)


@contextmanager
def ssh_server(account: Account, *host_keys: Path) -> Iterator[int]:
    """The server; its port on 127.0.0.1."""
    keys = [paramiko.PKey.from_path(path) for path in host_keys]
    transports: list[paramiko.Transport] = []
    stopped = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while not stopped.is_set():
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                transport = paramiko.Transport(connection)
                transport.daemon = True
                transports.append(transport)
                for key in keys:
                    transport.add_server_key(key)
                try:
                    if account.expired:
                        transport.auth_handler = _ExpiredHandler(transport)
                    transport.start_server(event=threading.Event(), server=_Server(account))
                except (paramiko.SSHException, EOFError, OSError):
                    transport.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            _stop(listener, stopped)
            thread.join(5)
            # Tests that come after fork, and a process with threads should not.
            for transport in transports:
                transport.close()
                transport.join(5)
                transport.packetizer.complete_handshake()


def _stop(listener: socket.socket, stopped: threading.Event) -> None:
    stopped.set()
    # Wakes the thread that accepts.
    listener.shutdown(socket.SHUT_RDWR)


@contextmanager
def talker(says: bytes | None) -> Iterator[int]:
    """A server that is no ssh server: says something and waits (None: closes at once)."""
    held: list[socket.socket] = []
    stopped = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while not stopped.is_set():
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                if says is None:
                    connection.close()
                else:
                    connection.sendall(says)
                    held.append(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            _stop(listener, stopped)
            thread.join(5)
            for connection in held:
                connection.close()
