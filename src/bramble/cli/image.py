"""`bramble image`: first-boot settings onto a flashed card's mounted boot partition, or into an image file."""

from __future__ import annotations

import getpass
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bramble.runner import find_root

# As ssh-copy-id looks for it.
KEY_NAMES = ("id_ed25519.pub", "id_ecdsa.pub", "id_rsa.pub")
INVENTORY_SECONDS = 60


def image(
    target: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="The card's mounted boot partition, or an image file. Never a device."),
    ],
    host: Annotated[str | None, typer.Option("--host", help="The node of the inventory that the card is for.")] = None,
    inventory: Annotated[
        str, typer.Option("--inventory", "-i", envvar="BRAMBLE_INVENTORY", help="The inventory: a directory or a file.")
    ] = "inventory/pi",
    hostname: Annotated[str | None, typer.Option("--hostname", help="The node's name, without --host.")] = None,
    user: Annotated[str | None, typer.Option("--user", help="The user to make, if not ansible_user.")] = None,
    key: Annotated[
        list[Path] | None, typer.Option("--key", help="A public key that lets that user in. Repeatable.")
    ] = None,
    timezone: Annotated[str | None, typer.Option("--timezone", help="If not os_base_timezone.")] = None,
    locale: Annotated[str | None, typer.Option("--locale", help="Such as en_GB.UTF-8.")] = None,
    keyboard: Annotated[str | None, typer.Option("--keyboard", help="The keyboard's layout, such as gb.")] = None,
    wifi_country: Annotated[str | None, typer.Option("--wifi-country", help="Two letters, such as GB.")] = None,
    static: Annotated[
        str | None,
        typer.Option("--static", metavar="GATEWAY/PREFIX", help="Fix the address to the node's ansible_host."),
    ] = None,
    password: Annotated[bool, typer.Option("--password", help="Ask for a password for the user's console.")] = False,
    sudo_asks: Annotated[bool, typer.Option("--sudo-asks", help="With --password: sudo asks for it.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that somebody else filled in.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Show what would be written, and write nothing.")] = False,
) -> None:
    """Prepare a card: user, your key, host name and more, read at the first boot. Password login by ssh is off."""
    from bramble import image as cards
    from bramble.cli.app import CliError
    from bramble.ssh_keys import SshError

    try:
        boot = cards.open_boot(target)
        known = from_inventory(inventory, host) if host else {}
        address = known.get("ansible_host")
        if static and not address:
            raise CliError(
                "--static takes the address from the inventory: give --host, and the host an ansible_host.", 2
            )
        wanted = cards.FirstBoot(
            hostname=_needed(hostname or host, "--host or --hostname"),
            user=_needed(user or known.get("ansible_user"), "--user, or ansible_user in the inventory"),
            keys=_keys(key, known.get("ansible_ssh_private_key_file")),
            timezone=timezone or known.get("os_base_timezone"),
            locale=locale,
            keyboard=keyboard,
            wifi_country=wifi_country,
            password_hash=cards.hash_password(_typed_twice()) if password else None,
            passwordless_sudo=not sudo_asks,
            static=cards.parse_static(str(address), static) if static else None,
        )
        before = cards.read_all(boot)
        planned = cards.plan(before, wanted, force=force)
        print(f"{boot.shown}: {planned.detected.format}, for {planned.detected.why}.", file=sys.stderr)
        for note in planned.notes:
            print(note, file=sys.stderr)
        if check:
            print(cards.diff(before, planned) or "Nothing would change.")
            return
        if not planned.changed:
            print("All of it is there already.", file=sys.stderr)
            return
        cards.apply(boot, planned)
    except (cards.ImageError, SshError) as error:
        raise CliError(str(error)) from error
    print(f"Written and read back: {', '.join(planned.changed)}.", file=sys.stderr)
    last = "Unmount it before you take the card out." if target.is_dir() else "Write the image to a card."
    print(f"{last} The first boot takes some minutes; then: bramble enroll", file=sys.stderr)


def _needed(value: str | None, what: str) -> str:
    from bramble.cli.app import CliError

    if not value:
        raise CliError(f"Give {what}.", 2)
    return value


def _keys(given: list[Path] | None, private_key_file: str | None) -> tuple[Any, ...]:
    """The public keys: those given, else the inventory's, else the first of ``~/.ssh``."""
    from bramble.cli.app import CliError
    from bramble.ssh_keys import parse_public_key

    paths = list(given or [])
    if not paths and private_key_file:
        paths = [Path(f"{Path(private_key_file).expanduser()}.pub")]
    if not paths:
        paths = [path for name in KEY_NAMES if (path := Path.home() / ".ssh" / name).is_file()][:1]
    if not paths:
        raise CliError("There is no public key in ~/.ssh: make one with `ssh-keygen -t ed25519`, or give --key.", 2)
    found = []
    for path in paths:
        try:
            found.append(parse_public_key(path.read_text(encoding="utf-8", errors="replace"), str(path)))
        except OSError as error:
            raise CliError(f"{path} cannot be read: {error.strerror}.", 2) from error
    return tuple(found)


def _typed_twice() -> Any:
    from bramble.cli.app import CliError
    from bramble.secret import Secret

    if not sys.stdin.isatty():
        raise CliError("There is no terminal to ask for the password on.", 2)
    first = getpass.getpass("Password for the new user: ")
    if getpass.getpass("Again: ") != first:
        raise CliError("The two are not the same.", 2)
    return Secret(first)


def from_inventory(inventory: str, host: str) -> dict[str, str]:
    """The variables of a host that its card needs, if they are plain text and filled in.

    The inventory is not validated: a card is written before the node's address is known, and before others exist.

    Raises:
        CliError: the inventory cannot be read or has no such host (exit code 2).
    """
    from bramble.cli.app import CliError, inventory_path

    root = find_root()
    path = inventory_path(root, inventory)
    environment = os.environ | {"ANSIBLE_CONFIG": str(root / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    command = [str(Path(sys.executable).parent / "ansible-inventory"), "-i", path, "--host", host]
    try:
        done = subprocess.run(
            command,
            cwd=root,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INVENTORY_SECONDS,
            check=False,
        )
        variables = json.loads(done.stdout) if done.returncode == 0 else None
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        raise CliError(f"The inventory {inventory} cannot be read: {error}.", 2) from error
    if not isinstance(variables, dict):
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise CliError(
            f"The inventory {inventory} tells nothing of {host}: {said[-1] if said else 'no reason given'}", 2
        )
    wanted = ("ansible_host", "ansible_user", "os_base_timezone", "ansible_ssh_private_key_file")
    return {
        name: value
        for name in wanted
        if isinstance(value := variables.get(name), str) and value and "CHANGE_ME" not in value and "{{" not in value
    }
