"""First-boot settings on a flashed card's boot partition, or in an image file: user, key, host name, locale.

How Raspberry Pi OS reads them depends on the image, and the image says which:

- **cloud-init**: ``user-data`` and ``meta-data`` are on the boot partition. Raspberry Pi OS trixie since November 2025
  (pi-gen, stage2/04-cloud-init; Raspberry Pi Imager, doc/os_customisation_formats.md). Its NoCloud source is
  /boot/firmware.
- **custom.toml**: ``cmdline.txt`` starts /usr/lib/raspberrypi-sys-mods/firstboot, which reads that file once and
  deletes it. Raspberry Pi OS bookworm (raspberrypi-sys-mods, init_config).

The parts, from pure to not: `FirstBoot` and the checks of its values; `detect`, `render`, `plan`: files in, files out;
`open_boot`: a mounted directory or an image file, never a device; `apply`: writes and reads back.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import ipaddress
import os
import re
import shlex
import shutil
import stat
import struct
import subprocess
import tempfile
import tomllib
import zoneinfo
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import yaml

from bramble.secret import Secret
from bramble.ssh_keys import PublicKey

type Format = Literal["cloud-init", "custom.toml"]
type Files = Mapping[str, bytes]

MARKER = "# Written by `bramble image`."
FIRSTBOOT = "init=/usr/lib/raspberrypi-sys-mods/firstboot"
# All that is looked at on the boot partition.
NAMES = (
    "config.txt",
    "cmdline.txt",
    "issue.txt",
    "user-data",
    "meta-data",
    "network-config",
    "custom.toml",
    "firstrun.sh",
)
# A file of settings is not longer; a longer one is not read to its end.
FILE_LIMIT = 1 << 20

SECTOR = 512
# Types of an MBR's partition that hold FAT (Raspberry Pi OS uses 0x0c).
_FAT_TYPES = (0x0B, 0x0C, 0x0E, 0x06)
_MTOOLS_TIMEOUT = 60.0


class ImageError(Exception):
    """The message names the place, says what is wrong and what to change."""


# --- What is wanted


@dataclass(frozen=True, slots=True)
class Static:
    """A fixed IPv4 address of the wired interface, with the gateway, which is asked for names too."""

    interface: ipaddress.IPv4Interface
    gateway: ipaddress.IPv4Address


@dataclass(frozen=True, slots=True)
class FirstBoot:
    """The settings. ``password_hash`` None: no password at all, the key is the only way in.

    ``passwordless_sudo``: without a password it must be so, for sudo could never be answered.
    """

    hostname: str
    user: str
    keys: tuple[PublicKey, ...]
    timezone: str | None = None
    locale: str | None = None
    keyboard: str | None = None
    wifi_country: str | None = None
    password_hash: str | None = None
    passwordless_sudo: bool = True
    static: Static | None = None


# Value → form, and how to say it. The forms are those of the programs that get the values in the end.
_FORMS: Mapping[str, tuple[re.Pattern[str], str]] = {
    # RFC 1123, 2.1; the inventory's names are the same.
    "hostname": (
        re.compile(r"(?=.{1,63}\Z)[a-z0-9]([a-z0-9-]*[a-z0-9])?"),
        "small letters, digits and dashes, 63 at most, no dash at the ends",
    ),
    # userconf-pi, userconf-service: validate_user.
    "user": (re.compile(r"(?!root\Z)[a-z][a-z0-9-]{0,31}"), "small letters, digits and dashes, and not root"),
    "timezone": (re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,2}"), "as `timedatectl list-timezones` names it"),
    "locale": (re.compile(r"[a-z]{2,3}_[A-Z]{2}\.UTF-8|C\.UTF-8"), "such as en_GB.UTF-8"),
    "keyboard": (re.compile(r"[a-z]{2,12}"), "such as gb, de or us"),
    "wifi_country": (re.compile(r"[A-Z]{2}"), "two capital letters, such as GB"),
    "password_hash": (re.compile(r"\$(6|y)\$[A-Za-z0-9./$=,]{20,200}"), "a hash of crypt(5), $6$ or $y$"),
}


def check(wanted: FirstBoot) -> None:
    """Refuse values that a first boot would stumble over.

    Raises:
        ImageError: the first such value.
    """
    for name, (form, told) in _FORMS.items():
        value = getattr(wanted, name)
        if value is not None and not form.fullmatch(value):
            shown = "the hash" if name == "password_hash" else repr(value)
            raise ImageError(f"{name.replace('_', ' ')}: {shown} is not of the form that it must have: {told}.")
    if not wanted.keys:
        raise ImageError("There is no public key: nobody could log in.")
    if wanted.password_hash is None and not wanted.passwordless_sudo:
        raise ImageError(
            f"sudo would ask {wanted.user} for a password, and there is none: set one, or let sudo ask nothing."
        )
    zones = _time_zones()
    if wanted.timezone is not None and zones and wanted.timezone not in zones:
        close = difflib.get_close_matches(wanted.timezone, zones, n=1)
        raise ImageError(f"timezone: there is no {wanted.timezone}" + (f"; did you mean {close[0]}?" if close else "."))
    static = wanted.static
    if static is not None:
        network = static.interface.network
        if static.gateway not in network or static.gateway == static.interface.ip:
            raise ImageError(
                f"The gateway {static.gateway} is not another machine of {static.interface.ip}'s network {network}."
            )
        if static.interface.ip in (network.network_address, network.broadcast_address):
            raise ImageError(f"{static.interface.ip} names the network {network} itself, and no machine in it.")


@functools.cache
def _time_zones() -> frozenset[str]:
    """All that this machine knows; none where it has no zone data."""
    return frozenset(zoneinfo.available_timezones())


def parse_static(address: str, gateway: str) -> Static:
    """``192.168.1.11`` and ``192.168.1.1/24``.

    Raises:
        ImageError: they are no IPv4 addresses, or there is no prefix.
    """
    host, separator, prefix = gateway.partition("/")
    try:
        if not separator or not prefix.isascii() or not prefix.isdigit() or not 1 <= int(prefix) <= 30:
            raise ValueError
        return Static(
            ipaddress.IPv4Interface(f"{ipaddress.IPv4Address(address)}/{prefix}"), ipaddress.IPv4Address(host)
        )
    except ValueError:
        raise ImageError(
            "A fixed address needs the node's IPv4 address, and the router's with the length of the network's prefix, "
            f"such as 192.168.1.11 and 192.168.1.1/24; these are {address!r} and {gateway!r}."
        ) from None


def hash_password(password: Secret) -> str:
    """SHA-512 crypt by openssl, which gets the password on its standard input.

    Raises:
        ImageError: it is empty or has line ends, or there is no openssl.
    """
    text = password.reveal()
    if not text or not text.isprintable():
        raise ImageError("The password is empty or has characters that cannot be typed.")
    try:
        done = subprocess.run(
            ["openssl", "passwd", "-6", "-stdin"],
            input=f"{text}\n",
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    except FileNotFoundError as error:
        raise ImageError(
            "There is no openssl here to make the password's hash: install the package openssl."
        ) from error
    except (subprocess.SubprocessError, OSError):
        raise ImageError("openssl did not make a hash of the password.") from None
    return done.stdout.strip()


# --- Which way the image reads


@dataclass(frozen=True, slots=True)
class Detected:
    """``format``, and ``why`` it is that one, in a sentence."""

    format: Format
    why: str


def detect(files: Files) -> Detected:
    """Which first-boot settings the image on this boot partition reads.

    Raises:
        ImageError: it is no boot partition of Raspberry Pi OS, or one that reads nothing any more.
    """
    missing = [name for name in ("config.txt", "cmdline.txt") if name not in files]
    if missing:
        raise ImageError(
            f"There is no {' and no '.join(missing)}: this is not the boot partition of a Raspberry Pi card. It is the "
            "small one, named bootfs, on which config.txt lies."
        )
    tokens = _text(files["cmdline.txt"]).split()
    issued = re.search(r"\d{4}-\d{2}-\d{2}", _text(files.get("issue.txt", b"")))
    of = f" (image of {issued[0]})" if issued else ""
    if "firstrun.sh" in files or any(token.startswith("systemd.run=") for token in tokens):
        raise ImageError(
            f"Raspberry Pi Imager has left settings of its own here (firstrun.sh){of}, and two sets would fight. Write "
            "the card anew, and let the Imager change nothing."
        )
    if "user-data" in files and "meta-data" in files:
        return Detected("cloud-init", f"user-data and meta-data are there{of}: the image runs cloud-init")
    if FIRSTBOOT in tokens:
        return Detected("custom.toml", f"cmdline.txt starts {FIRSTBOOT.partition('=')[2]}{of}, which reads custom.toml")
    raise ImageError(
        f"Nothing here reads first-boot settings{of}: there is neither user-data with meta-data (Raspberry Pi OS "
        f"trixie since November 2025) nor {FIRSTBOOT} in cmdline.txt (bookworm). "
        "Either this card has booted before, or the image is another: write a current Raspberry Pi OS Lite (64-bit) "
        "to it."
    )


def _text(content: bytes) -> str:
    return content.decode("utf-8", "replace")


# --- What is written


def authorized_line(key: PublicKey) -> str:
    """The key without a comment that a shell script of the image's first boot might trip over."""
    comment = key.comment if re.fullmatch(r"[A-Za-z0-9@._+-]+", key.comment) else ""
    return f"{key.type} {key.encoded} {comment}".rstrip()


def render_user_data(wanted: FirstBoot) -> str:
    """cloud-init's ``user-data``.

    ``user`` and not ``users``: it extends the image's own default user, with its groups (cloud-init, ug_util.py).
    ``sudo`` is said in either case, since the default user's is without a password; the file beside it is what
    Raspberry Pi Imager adds, as not every version heeds the key.
    """
    user: dict[str, Any] = {
        "name": wanted.user,
        "shell": "/bin/bash",
        "lock_passwd": wanted.password_hash is None,
        "ssh_authorized_keys": [authorized_line(key) for key in wanted.keys],
        "sudo": "ALL=(ALL) NOPASSWD:ALL" if wanted.passwordless_sudo else None,
    }
    if wanted.password_hash is not None:
        # And not "passwd", which is ignored for a user that the image has already (cloud-init, create_user).
        user["hashed_passwd"] = wanted.password_hash
    data: dict[str, Any] = {
        "hostname": wanted.hostname,
        # "localhost" keeps the line of 127.0.1.1 only; true would write /etc/hosts anew at each boot.
        "manage_etc_hosts": "localhost",
        "user": user,
        "ssh_pwauth": False,
    }
    if wanted.timezone:
        data["timezone"] = wanted.timezone
    if wanted.locale:
        data["locale"] = wanted.locale
    if wanted.keyboard:
        data["keyboard"] = {"model": "pc105", "layout": wanted.keyboard}
    if wanted.passwordless_sudo:
        data["write_files"] = [
            {
                "path": f"/etc/sudoers.d/010_{wanted.user}-nopasswd",
                "content": f"{wanted.user} ALL=(ALL) NOPASSWD: ALL\n",
                "owner": "root:root",
                "permissions": "0440",
            }
        ]
    data["runcmd"] = [
        # A user of the image that has this name keeps its shell, which is nologin (pi-gen, stage1/01-sys-tweaks).
        ["usermod", "--shell", "/bin/bash", wanted.user],
        # sshd is off in the image, and nothing else in here turns it on.
        ["systemctl", "enable", "--now", "ssh"],
    ]
    return f"#cloud-config\n{MARKER}\n" + dump_yaml(data)


def render_network_config(static: Static) -> str:
    """cloud-init's ``network-config``, version 2: the wired interface with a fixed address."""
    wired = {
        "dhcp4": False,
        "addresses": [str(static.interface)],
        "routes": [{"to": "default", "via": str(static.gateway)}],
        "nameservers": {"addresses": [str(static.gateway)]},
        "optional": True,
    }
    return f"{MARKER}\n" + dump_yaml({"network": {"version": 2, "ethernets": {"eth0": wired}}})


def instance_id(*parts: str) -> str:
    """A name that is another when the settings are: cloud-init applies settings once for each."""
    return "bramble-" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def dump_yaml(data: object) -> str:
    return yaml.safe_dump(data, sort_keys=False, default_flow_style=False, width=1000)


def render_custom_toml(wanted: FirstBoot) -> str:
    """The ``custom.toml`` that raspberrypi-sys-mods' init_config reads."""
    user: dict[str, object] = {"name": wanted.user}
    if wanted.password_hash is not None:
        user |= {"password": wanted.password_hash, "password_encrypted": True}
    locale = {"keymap": wanted.keyboard, "timezone": wanted.timezone}
    sections: dict[str, Mapping[str, object]] = {
        "system": {"hostname": wanted.hostname},
        "user": user,
        "ssh": {
            "enabled": True,
            "password_authentication": False,
            "authorized_keys": [authorized_line(key) for key in wanted.keys],
        },
        "locale": {name: value for name, value in locale.items() if value},
    }
    return f"{MARKER}\nconfig_version = 1\n" + "".join(
        f"\n[{name}]\n" + "".join(f"{key} = {toml_value(value)}\n" for key, value in section.items())
        for name, section in sections.items()
        if section
    )


def toml_value(value: object) -> str:
    """A boolean, a text or a list of them in TOML 1.0.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda match: f"\\u{ord(match[0]):04x}", escaped) + '"'
    if isinstance(value, list):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    raise TypeError(f"{type(value).__name__} has no form here")


def edit_cmdline(text: str, tokens: Mapping[str, str]) -> str:
    """The kernel's command line with ``tokens`` set: what a token begins with → the whole token. The rest stays."""
    line, newline, after = text.partition("\n")
    for begin, token in tokens.items():
        if token in line.split():
            continue
        line = re.sub(rf"(?:^|(?<=\s)){re.escape(begin)}\S*\s*", "", line).rstrip()
        line = f"{line} {token}".lstrip()
    return line + newline + after


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be written: name → content, in this order. ``notes``: what this image cannot be told."""

    detected: Detected
    files: Mapping[str, bytes]
    changed: tuple[str, ...]
    notes: tuple[str, ...] = ()


def plan(files: Files, wanted: FirstBoot, *, force: bool = False) -> Plan:
    """What to write on a boot partition that holds ``files``.

    A file that somebody else filled in is kept from harm unless ``force``; templates of the image count as empty.

    Raises:
        ImageError: the image cannot be told, a value is wrong, or a file is somebody's.
    """
    check(wanted)
    detected = detect(files)
    notes: list[str] = []
    tokens: dict[str, str] = {}
    new: dict[str, str]
    if wanted.wifi_country:
        tokens["cfg80211.ieee80211_regdom="] = f"cfg80211.ieee80211_regdom={wanted.wifi_country}"
    if detected.format == "cloud-init":
        new = {"user-data": render_user_data(wanted)}
        if wanted.static:
            new["network-config"] = render_network_config(wanted.static)
        elif _is_ours(files.get("network-config", b"")):
            new["network-config"] = f"{MARKER}\n"
        name = instance_id(*new.values())
        new["meta-data"] = f"{MARKER}\n" + dump_yaml({"instance-id": name, "dsmode": "local"})
        # As Raspberry Pi Imager does: without it cloud-init looks its source up anew at each boot.
        tokens["ds=nocloud"] = f"ds=nocloud;i={name}"
    else:
        if wanted.static:
            raise ImageError("This image reads custom.toml, which knows no fixed address: reserve it in the router.")
        if wanted.locale:
            notes.append("custom.toml knows no locale: the node keeps the image's.")
        if not wanted.passwordless_sudo:
            notes.append("This image's user may use sudo without a password, whatever is said here.")
        new = {"custom.toml": render_custom_toml(wanted)}
    for name in new:
        if not force and name in files and not (_is_ours(files[name]) or is_template(name, files[name])):
            raise ImageError(
                f"{name} has been filled in by somebody else, perhaps by Raspberry Pi Imager. Write the card anew, or "
                "replace it with --force."
            )
    cmdline = files["cmdline.txt"].decode("utf-8", "surrogateescape")
    contents = {name: text.encode() for name, text in new.items()}
    if tokens:
        contents["cmdline.txt"] = edit_cmdline(cmdline, tokens).encode("utf-8", "surrogateescape")
    verify(contents, detected.format)
    changed = tuple(name for name, content in contents.items() if files.get(name) != content)
    return Plan(detected, contents, changed, tuple(notes))


def _is_ours(content: bytes) -> bool:
    return MARKER.encode() in content.split(b"\n", 2)[:2]


def is_template(name: str, content: bytes) -> bool:
    """Whether a file of cloud-init is as the image brought it: comments, and in ``meta-data`` the image's own name."""
    try:
        data = yaml.safe_load(content)
    except Exception:  # PyYAML lets out whatever its constructors raise: KeyError, AttributeError, RecursionError, …
        return False
    if data is None:
        return True
    return name == "meta-data" and isinstance(data, dict) and data.get("instance_id") == "rpios-image"


def verify(files: Files, form: Format) -> None:
    """See that what is written says what it must, read as the node will read it.

    Raises:
        ImageError: it does not. That is a defect of this program.
    """
    if form == "cloud-init":
        user = _yaml(files, "user-data")
        meta = _yaml(files, "meta-data")
        whole = (
            files["user-data"].startswith(b"#cloud-config\n")
            and isinstance(user.get("hostname"), str)
            and isinstance(user.get("user"), dict)
            and bool(user["user"].get("name"))
            and bool(user["user"].get("ssh_authorized_keys"))
            and user.get("ssh_pwauth") is False
            and bool(meta.get("instance-id"))
            and f"ds=nocloud;i={meta['instance-id']}".encode() in files["cmdline.txt"].split()
        )
    else:
        data = tomllib.loads(_text(files["custom.toml"]))
        whole = (
            data.get("config_version") == 1
            and bool(data["system"]["hostname"])
            and bool(data["user"]["name"])
            and data["ssh"]["enabled"] is True
            and data["ssh"]["password_authentication"] is False
            and bool(data["ssh"]["authorized_keys"])
        )
    if not whole:
        raise ImageError("What would be written lacks something that the first boot needs. Nothing was written.")


def _yaml(files: Files, name: str) -> dict[str, Any]:
    data = yaml.safe_load(files[name])
    return data if isinstance(data, dict) else {}


def diff(before: Files, planned: Plan) -> str:
    """The change of each file, for people: a password's hash is not shown."""
    lines: list[str] = []
    for name in planned.changed:
        old, new = (_text(files.get(name, b"")).splitlines() for files in (before, planned.files))
        lines += difflib.unified_diff(old, new, name, name, lineterm="")
    return re.sub(r"\$(6|y)\$[^\s\"']+", r"$\1$…", "\n".join(lines))


# --- Where it is written


class Boot(Protocol):
    """A boot partition."""

    @property
    def shown(self) -> str: ...

    def read(self, name: str) -> bytes | None: ...

    def write(self, name: str, content: bytes) -> None: ...


def open_boot(path: Path) -> Boot:
    """The boot partition at ``path``: a directory where it is mounted, or the first one in an image file.

    Raises:
        ImageError: it is a device or leads to one, this machine's own boot partition, or nothing of the kind.
    """
    try:
        real = path.resolve(strict=True)
        mode = real.stat().st_mode
    except (OSError, RuntimeError) as error:
        raise ImageError(f"{path} cannot be opened: {getattr(error, 'strerror', None) or error}.") from error
    under_dev = any(Path("/dev") in (each, *each.parents) for each in (path.absolute(), real))
    if stat.S_ISBLK(mode) or stat.S_ISCHR(mode) or under_dev:
        link = f"a link to {real}, " if real != path.absolute() else ""
        raise ImageError(
            f"{path} is {link}a device, and Bramble writes to none: one letter wrong, and this machine's disk is gone. "
            "Write the card with Raspberry Pi Imager or dd, mount its boot partition, and give the directory; or give "
            "the image file before it is written."
        )
    if stat.S_ISDIR(mode):
        if real in (Path("/boot"), Path("/boot/firmware")):
            raise ImageError(f"{path} is the boot partition of this machine itself. Give that of the card.")
        return MountedBoot(real)
    if not stat.S_ISREG(mode):
        raise ImageError(f"{path} is neither a directory nor a file.")
    if real.suffix in (".xz", ".gz", ".zip", ".zst"):
        raise ImageError(f"{path} is packed: unpack it first, such as with `unxz --keep {shlex.quote(str(path))}`.")
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if backing.read_text().rstrip("\n") == str(real):
                raise ImageError(f"{path} is in use as {backing.parts[3]}: detach it, or give where it is mounted.")
    return ImageBoot(real, boot_offset(real))


class MountedBoot:
    """A boot partition that is mounted at a directory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.shown = str(path)

    def read(self, name: str) -> bytes | None:
        try:
            with (self._path / name).open("rb") as file:
                return file.read(FILE_LIMIT)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ImageError(f"{self._path / name} cannot be read: {error.strerror}.") from error

    def write(self, name: str, content: bytes) -> None:
        """In one step: FAT has the old file or the new one."""
        temporary: str | None = None
        try:
            descriptor, temporary = tempfile.mkstemp(prefix="bramble-", dir=self._path)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(self._path / name)
            directory = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
            hint = " It is mounted for root only: call this with sudo." if isinstance(error, PermissionError) else ""
            raise ImageError(f"{self._path / name} cannot be written: {error.strerror}.{hint}") from error


def boot_offset(image: Path) -> int:
    """Where the first FAT partition of an image begins, in bytes: from its MBR and the FAT's own first sector.

    Raises:
        ImageError: there is none.
    """
    try:
        size = image.stat().st_size
        with image.open("rb") as file:
            start = parse_mbr(file.read(SECTOR), size, str(image))
            file.seek(start)
            first = file.read(SECTOR)
    except OSError as error:
        raise ImageError(f"{image} cannot be read: {error.strerror}.") from error
    # Microsoft's FAT specification: FilSysType, and the signature.
    if first[510:512] != b"\x55\xaa" or (first[82:87] != b"FAT32" and first[54:57] != b"FAT"):
        raise ImageError(f"{image}: its first partition says it is FAT and is not. Unpack or download the image anew.")
    return start


def parse_mbr(sector: bytes, size: int, place: str) -> int:
    """The offset in bytes of the first partition of a FAT type in a master boot record.

    ``size``: of the whole image, in bytes.

    Raises:
        ImageError: there is none, or it lies outside; the message begins with ``place``.
    """
    if len(sector) < SECTOR or sector[510:512] != b"\x55\xaa":
        raise ImageError(f"{place} has no partition table: it is not the image of a card.")
    for number in range(4):
        kind, start, sectors = struct.unpack_from("<4xB3xII", sector, 446 + 16 * number)
        if kind == 0xEE:
            raise ImageError(f"{place} has a GPT, which images of Raspberry Pi OS do not: is it another system's?")
        if kind in _FAT_TYPES and sectors:
            if not start or (start + sectors) * SECTOR > size:
                raise ImageError(f"{place} is cut off: its boot partition ends behind it. Unpack or download it anew.")
            return int(start) * SECTOR
    raise ImageError(f"{place} has no FAT partition, and so no boot partition.")


class ImageBoot:
    """The boot partition inside an image file, by way of mtools.

    mtools and not a Python library: Debian maintains it, and it needs neither root nor a loop device.
    """

    def __init__(self, path: Path, offset: int) -> None:
        if shutil.which("mcopy") is None:
            raise ImageError(
                "Files in an image are written by mtools, which is not here: `sudo apt-get install mtools`."
            )
        if "@@" in str(path):
            raise ImageError(f"{path}: mtools takes what follows @@ for a number: rename the file.")
        self._path = path
        self._at = f"{path}@@{offset}"
        self.shown = f"{path} (boot partition at byte {offset})"

    def read(self, name: str) -> bytes | None:
        done = self._call("mcopy", "-n", f"::/{name}", "-")
        if done.returncode == 0:
            return done.stdout[:FILE_LIMIT]
        if b"not found" in done.stderr:
            return None
        raise ImageError(f"{name} in {self._path} cannot be read: {self._said(done)}.")

    def write(self, name: str, content: bytes) -> None:
        with tempfile.NamedTemporaryFile(prefix="bramble-") as file:
            file.write(content)
            file.flush()
            done = self._call("mcopy", "-o", "-D", "o", file.name, f"::/{name}")
        if done.returncode != 0:
            raise ImageError(f"{name} in {self._path} cannot be written: {self._said(done)}.")
        with self._path.open("rb") as image:
            os.fsync(image.fileno())

    def _call(self, program: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "MTOOLSRC": os.devnull}
        try:
            return subprocess.run(
                [program, "-i", self._at, *arguments],
                capture_output=True,
                stdin=subprocess.DEVNULL,
                env=environment,
                timeout=_MTOOLS_TIMEOUT,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ImageError(f"mtools does not work on {self._path}: {error}.") from error

    @staticmethod
    def _said(done: subprocess.CompletedProcess[bytes]) -> str:
        return " ".join(_text(done.stderr).split())[:200] or f"exit code {done.returncode}"


def read_all(boot: Boot) -> dict[str, bytes]:
    """The files that `plan` looks at."""
    return dict(_present(boot))


def _present(boot: Boot) -> Iterator[tuple[str, bytes]]:
    for name in NAMES:
        content = boot.read(name)
        if content is not None:
            yield name, content


def apply(boot: Boot, planned: Plan) -> None:
    """Write what the plan changes, and read it back.

    Repeatable: what was cut off is found and finished by the next call.

    Raises:
        ImageError: a file could not be written, or is not there as it was written.
    """
    for name in planned.changed:
        boot.write(name, planned.files[name])
    for name in planned.changed:
        if boot.read(name) != planned.files[name]:
            raise ImageError(f"{name} on {boot.shown} is not what was just written: the card or the disk is faulty.")
