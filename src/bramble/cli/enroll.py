"""`bramble enroll`: first contact with the nodes of an inventory, under somebody's eyes.

It pins and installs keys in this process and only then runs the rest of ``playbooks/enroll.yml``: so the password goes
from the prompt to the node and through nothing between them, no command line, file, pipe or other process.
"""

from __future__ import annotations

import getpass
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from bramble.runner import Event, Progress, find_root, run_playbook

if TYPE_CHECKING:
    from bramble.enroll import Sight, Target
    from bramble.ssh_keys import PublicKey

PLAYBOOK = "playbooks/enroll.yml"
# Answered here already; without it ansible-playbook would ask.
NO_PROMPT = {"__enroll_password": ""}
# sshd waits two minutes for a login (LoginGraceTime): somebody who types longer gets another connection.
PATIENCE = 90.0
# How often a node's password may be typed.
TRIES = 3
LOOKING_AT_ONCE = 8

Ask = Callable[[str], str]


@dataclass(slots=True)
class Collector:
    """Takes the results of the playbook's tag ``inventory`` from the run's events: host → how ssh reaches it."""

    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __call__(self, _progress: Progress, event: Event) -> None:
        data = event.get("event_data") or {}
        message = (data.get("res") or {}).get("msg")
        if event.get("event") == "runner_on_ok" and isinstance(message, Mapping) and "bramble_ssh" in message:
            self.nodes[str(data.get("host"))] = dict(message["bramble_ssh"])


def enroll(
    inventory: Annotated[
        str, typer.Option("--inventory", "-i", envvar="BRAMBLE_INVENTORY", help="The inventory: a directory or a file.")
    ] = "inventory/pi",
    limit: Annotated[str | None, typer.Option("--limit", help="Only these hosts.")] = None,
    fingerprint: Annotated[
        list[str] | None,
        typer.Option(
            "--fingerprint", help="A host key to accept: SHA256:…, or NODE=SHA256:… for one node. Repeatable."
        ),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Ask nothing: each new host key must be in --fingerprint.")
    ] = False,
    key: Annotated[
        Path | None, typer.Option("--key", help="The public key to install, if not the first that ssh would try.")
    ] = None,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password from standard input, one line.")
    ] = False,
    ask_become_pass: Annotated[
        bool, typer.Option("--ask-become-pass", "-K", help="Ask for the password that sudo wants.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Only fetch and compare the host keys.")] = False,
    verbose: Annotated[int, typer.Option("--verbose", "-v", count=True, help="More detail in the log.")] = 0,
) -> None:
    """First contact: pin the nodes' host keys, install your key, turn passwords off.

    Asks for the nodes' password once, if a node needs it. Exit code 1: a node could not be enrolled; the others are.
    """
    from bramble.cli.app import CliError, inventory_path, play, refuse_placeholders, stderr_console

    root = find_root()
    path = inventory_path(root, inventory)
    refuse_placeholders(root, path)
    console = stderr_console()
    nodes = reachable_by(root, path, limit)
    expected = expected_fingerprints(fingerprint or [], nodes)
    with console.status("Fetching host keys…"):
        seen = look_at(nodes, expected)
    console.print(render(seen))
    for each in seen:
        if each.error:
            console.print(f"[red]✗[/] {escape(each.error)}", soft_wrap=True, highlight=False)
    able = [each for each in seen if each.error is None]
    if check:
        raise typer.Exit(0 if len(able) == len(seen) else 1)
    if password_stdin:
        asker = Asker(from_stdin=sys.stdin.readline().rstrip("\r\n"))
    else:
        asker = Asker(ask=getpass.getpass if sys.stdin.isatty() else None)
    confirm(able, yes=yes, interactive=sys.stdin.isatty() and not password_stdin)
    done = []
    for each in able:
        told = introduce(each, key, asker)
        console.print(told, soft_wrap=True, highlight=False)
        if each.error is None:
            done.append(each.name)
    if done:
        play(
            root,
            PLAYBOOK,
            inventory=path,
            limit=",".join(done),
            tags="ssh_access",
            extra_vars=NO_PROMPT,
            passwords=asker.for_sudo() if ask_become_pass else None,
            verbosity=verbose,
            require_hosts=True,
        )
    if len(done) < len(seen):
        raise CliError(f"{len(seen) - len(done)} of {len(seen)} nodes are not enrolled: see above.")


# --- What it calls


@dataclass(slots=True)
class Node:
    """A node on its way. ``trusted``: the host keys to go on with; ``error``: why it goes no further."""

    name: str
    address: str
    target: Target | None = None
    sight: Sight | None = None
    trusted: tuple[PublicKey, ...] = ()
    error: str | None = None


class Asker:
    """Gives the password: of standard input, or typed once for all nodes and again for one that does not take it."""

    def __init__(self, ask: Ask | None = None, from_stdin: str | None = None) -> None:
        from bramble.secret import Secret

        self._ask = ask
        self._common = Secret(from_stdin) if from_stdin is not None else None
        self.waited = 0.0

    @property
    def can_ask(self) -> bool:
        return self._ask is not None

    def common(self, place: str) -> Any:
        """The password for all nodes; None if there is nobody to ask."""
        if self._common is None and self._ask is not None:
            self._common = self.one(f"Password for {place} and the other nodes: ")
        return self._common

    def one(self, prompt: str) -> Any:
        from bramble.secret import Secret

        if self._ask is None:
            return None
        began = time.monotonic()
        answer = Secret(self._ask(prompt))
        self.waited = time.monotonic() - began
        return answer

    def for_sudo(self) -> dict[str, str]:
        """What ``ansible-playbook --ask-become-pass`` wants to know."""
        from bramble.cli.app import BECOME_PROMPT, CliError

        if self._common and self._ask is None:
            return {BECOME_PROMPT: self._common.reveal()}
        if self._ask is None:
            raise CliError("There is no terminal to ask for sudo's password on.", 2)
        typed = self._ask("Password for sudo" + (" (nothing: the same): " if self._common else ": "))
        return {BECOME_PROMPT: typed or (self._common.reveal() if self._common else "")}


def reachable_by(root: Path, inventory: str, limit: str | None) -> dict[str, dict[str, Any]]:
    """How ssh reaches each node by the inventory, which is validated on the way. Connects to nothing.

    Raises:
        CliError: the inventory cannot be read, or has no node for ``limit`` (exit code 2).
    """
    from bramble.cli.app import CliError, stderr_console
    from bramble.cli.progress import report_end

    collector = Collector()
    result = run_playbook(
        PLAYBOOK,
        root=root,
        inventory=inventory,
        limit=limit,
        tags="inventory",
        extra_vars=NO_PROMPT,
        listener=collector,
    )
    if not result.ok:
        report_end(stderr_console(), result, root)
        raise typer.Exit(130 if result.status == "interrupted" else 2)
    if not collector.nodes:
        raise CliError(
            f"The inventory {inventory} has no host in the group cluster{f' for {limit}' if limit else ''}.", 2
        )
    return dict(sorted(collector.nodes.items()))


def expected_fingerprints(given: Sequence[str], nodes: Mapping[str, object]) -> dict[str, list[str]]:
    """``--fingerprint``'s values by node: ``SHA256:…`` is for all of them.

    Raises:
        CliError: one is none, or names a node that is not there (exit code 2).
    """
    from bramble.cli.app import CliError
    from bramble.ssh_keys import SshError, parse_fingerprint

    expected: dict[str, list[str]] = {name: [] for name in nodes}
    for text in given:
        # base64 has = at its end only, and a fingerprint has none.
        name, separator, value = text.partition("=")
        if separator and name not in nodes:
            raise CliError(f"--fingerprint {text}: there is no node {name} here; there are {', '.join(nodes)}.", 2)
        try:
            fingerprint = parse_fingerprint(value if separator else text)
        except SshError as error:
            raise CliError(f"--fingerprint: {error}", 2) from error
        for each in [name] if separator else nodes:
            expected[each].append(fingerprint)
    return expected


def look_at(nodes: Mapping[str, Mapping[str, Any]], expected: Mapping[str, Sequence[str]]) -> list[Node]:
    """Each node with its host keys, judged. All at once, and done with threads when it returns: a run forks."""
    with ThreadPoolExecutor(LOOKING_AT_ONCE) as pool:
        return list(pool.map(lambda name: _look(name, nodes[name], expected[name]), nodes))


def _look(name: str, ssh: Mapping[str, Any], expected: Sequence[str]) -> Node:
    from bramble import enroll as contact
    from bramble.ssh_keys import SshError, choose_trusted

    node = Node(name, str(ssh["host"]))
    try:
        port = int(ssh["port"]) if ssh.get("port") else None
        node.target = contact.settings(
            name,
            node.address,
            port=port,
            user=ssh.get("user") or None,
            private_key_file=ssh.get("private_key_file") or None,
            ssh_args=ssh.get("ssh_args") or "",
        )
        node.sight = contact.look(node.target)
        node.trusted = choose_trusted(node.target.record_name, node.sight.verdict, node.sight.offered, expected)
    except (SshError, ValueError) as error:
        node.error = str(error)
    return node


def render(seen: Sequence[Node]) -> RenderableType:
    """The table of fingerprints, as ``ssh-keygen -l`` shows them."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("node", "address", "host key", "known"):
        # A fingerprint in two lines cannot be compared with another.
        table.add_column(title, overflow="fold", no_wrap=title == "host key")
    for node in seen:
        if node.sight is None:
            table.add_row(escape(node.name), escape(node.address), "[red]not fetched[/]")
            continue
        for number, key in enumerate(node.sight.offered):
            if node.error:
                known = "[red]refused[/]"
            elif node.sight.verdict.state == "pinned":
                known = "[green]yes[/]" if key in node.trusted else "[dim]not needed[/]"
            else:
                known = "[green]as expected[/]" if key in node.trusted else "[yellow]no[/]"
            first = (escape(node.name), escape(node.address)) if number == 0 else ("", "")
            table.add_row(*first, escape(f"{key.fingerprint} ({key.family})"), known)
    return table


def confirm(nodes: Sequence[Node], *, yes: bool, interactive: bool) -> None:
    """Have somebody look at the host keys that nobody vouched for yet; with his yes they are trusted.

    Raises:
        CliError: he says no, or is not there (exit code 2).
    """
    from bramble.cli.app import CliError

    unknown = [node for node in nodes if node.sight is not None and not node.trusted]
    if not unknown:
        return
    names = ", ".join(node.name for node in unknown)
    if yes or not interactive:
        raise CliError(
            f"Nobody has confirmed the host keys of {names}: "
            + ("--yes needs them in --fingerprint." if yes else "there is no terminal to ask on. Give --fingerprint."),
            2,
        )
    print(
        f"\nThe host keys of {names} are new here. Each node shows its own at its screen, on the command\n"
        "`ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub`. Who says yes unseen trusts the network, this once.",
        file=sys.stderr,
    )
    print("Are they the nodes'? Type yes: ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip() != "yes":
        raise CliError("Not confirmed: nothing was changed.", 2)
    for node in unknown:
        assert node.sight is not None
        node.trusted = node.sight.offered


def introduce(node: Node, key: Path | None, asker: Asker) -> str:
    """Pin the node's host keys and install the key; a line that tells it, in rich's markup. Errors are in the node."""
    from bramble import enroll as contact
    from bramble.ssh_keys import SshError

    target, sight = node.target, node.sight
    assert target is not None
    assert sight is not None
    try:
        identity, others = contact.choose_identity(target, key)
        pinned = contact.pin(target, node.trusted) if sight.verdict.state == "unknown" else ""
        rejected = False
        for attempt in range(1, TRIES + 1):
            asker.waited = 0.0
            try:
                done = contact.enroll(target, node.trusted, identity, others, _password(asker, target.place, rejected))
                break
            except contact.RejectedPassword:
                rejected = True
                if attempt == TRIES or not asker.can_ask:
                    raise
            except contact.EnrollError:
                if asker.waited < PATIENCE or attempt == TRIES:
                    raise
    except SshError as error:
        node.error = str(error)
        return f"[red]✗[/] {escape(node.error)}"
    what = "installed by " + done.login if done.installed else "lets in" + ("" if done.login == "the key" else " now")
    notes = ", host key pinned" if pinned else ""
    return f"[green]✓[/] {escape(node.name)}: key {identity.public.fingerprint} {what}{notes}"


def _password(asker: Asker, place: str, rejected: bool) -> Callable[[], Any]:
    if rejected:
        return lambda: asker.one(f"{place} does not take it. Its password: ")
    return lambda: asker.common(place)
