"""What is told to systemd, by sd_notify(3) over the datagram socket named by NOTIFY_SOCKET, and what it keeps from one
process of the service to the next: the listening socket."""

from __future__ import annotations

import os
import socket

LISTENER = "listener"
BACKLOG = 128
# sd_listen_fds(3)
FIRST_DESCRIPTOR = 3


def notify(state: str, *sockets: socket.socket) -> bool:
    """Sends a state such as "READY=1". False when not started by systemd; a notification never stops the service."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):  # Linux abstract namespace
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.connect(address)
            if sockets:
                socket.send_fds(sender, [state.encode()], [one.fileno() for one in sockets])
            else:
                sender.send(state.encode())
    except OSError:
        return False
    return True


def listen(host: str, port: int) -> socket.socket:
    """The socket that the process before this one listened on, or a new one, which the next gets in its turn. Who
    connects between the two waits, and is not refused.

    Raises:
        OSError: nobody can listen there.
    """
    kept = _kept()
    if kept is not None:
        if kept.getsockname()[:2] == (host, port):
            return kept
        kept.close()
        notify(f"FDSTOREREMOVE=1\nFDNAME={LISTENER}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    notify(f"FDSTORE=1\nFDNAME={LISTENER}", listener)
    return listener


def _kept() -> socket.socket | None:
    """What systemd kept."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDNAMES") != LISTENER:
        return None
    return socket.socket(fileno=FIRST_DESCRIPTOR)
