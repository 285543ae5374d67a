"""ssh's public keys, fingerprints and ``known_hosts``, as values.

Nothing here reads a file, asks the network or needs a library.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import hmac
import re
import shlex
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

ED25519 = ("ssh-ed25519",)
ECDSA = ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521")
RSA = ("rsa-sha2-512", "rsa-sha2-256")
# What a user's key may be. The names are those in a key itself; RSA has others for its signatures.
_USER_KEY_TYPES = (
    *("ssh-ed25519", *ECDSA, "ssh-rsa"),
    *("sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com"),
)
_SHOWN = {"ssh-ed25519": "ED25519", "ssh-rsa": "RSA", **dict.fromkeys(ECDSA, "ECDSA")}
_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")


class SshError(Exception):
    """The message says which key, file or node, what is wrong with it, and what to change."""


# --- Keys


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key: ``type`` is its name in the wire format, ``blob`` the wire format itself (RFC 4253, 6.6)."""

    type: str
    blob: bytes
    comment: str = ""

    @property
    def fingerprint(self) -> str:
        """As ``ssh-keygen -l`` writes it: SHA256, base64 without padding."""
        return "SHA256:" + base64.b64encode(hashlib.sha256(self.blob).digest()).decode().rstrip("=")

    @property
    def encoded(self) -> str:
        return base64.b64encode(self.blob).decode()

    @property
    def line(self) -> str:
        """The line of an ``.pub`` or ``authorized_keys`` file."""
        return f"{self.type} {self.encoded} {self.comment}".rstrip()

    @property
    def family(self) -> str:
        """``ED25519``, ``ECDSA``, ``RSA``; of other keys the type."""
        return _SHOWN.get(self.type, self.type)

    @property
    def bits(self) -> int | None:
        """The size as ``ssh-keygen -l`` shows it; None where it is not known."""
        fields = _fields(self.blob)
        if self.type == "ssh-rsa" and len(fields) == 3:
            return int.from_bytes(fields[2]).bit_length()
        sizes = {"ssh-ed25519": 256} | {name: int(name[-3:]) for name in ECDSA}
        return sizes.get(self.type)

    def described(self, name: str) -> str:
        """The line that ``ssh-keygen -lf`` prints."""
        return f"{self.bits or '?'} {self.fingerprint} {name} ({self.family})"

    def same(self, other: PublicKey) -> bool:
        return self.blob == other.blob


def _fields(blob: bytes) -> list[bytes]:
    """The length-prefixed strings of a wire format; what is cut off is left out."""
    fields, rest = [], blob
    while len(rest) >= 4:
        (length,) = struct.unpack(">I", rest[:4])
        if len(rest) < 4 + length:
            break
        fields.append(rest[4 : 4 + length])
        rest = rest[4 + length :]
    return fields if not rest else []


def _decode(type_: str, text: str) -> bytes | None:
    """The wire format in ``text``, or None if it is none of this type."""
    try:
        blob = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    fields = _fields(blob)
    return blob if len(fields) >= 2 and fields[0] == type_.encode(errors="replace") else None


def parse_public_key(text: str, place: str = "the public key") -> PublicKey:
    """The one public key of an ``.pub`` file.

    Raises:
        SshError: it is none, it is several, or it is a private key; the message begins with ``place``.
    """
    if "PRIVATE KEY" in text or text.startswith("PuTTY-User-Key-File"):
        raise SshError(
            f"{place} is a private key, which must never leave its machine: give the file of the same name that ends "
            "in .pub."
        )
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if len(lines) != 1:
        raise SshError(f"{place} has {len(lines)} keys: give a file with one line, as ssh-keygen writes it.")
    type_, _, rest = lines[0].partition(" ")
    encoded, _, comment = rest.strip().partition(" ")
    if type_ not in _USER_KEY_TYPES:
        raise SshError(
            f"{place} does not begin with a type of key that is in use today, such as ssh-ed25519: make one with "
            "`ssh-keygen -t ed25519`."
        )
    blob = _decode(type_, encoded)
    if blob is None:
        raise SshError(f"{place} is damaged: what follows {type_} is no such key. Copy the file again.")
    if not comment.isprintable():
        raise SshError(f"{place} has characters in its comment that cannot be printed: remove them.")
    return PublicKey(type_, blob, comment.strip())


# --- known_hosts


@dataclass(frozen=True, slots=True)
class KnownHost:
    """A line of a ``known_hosts`` file (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT)."""

    names: str
    key: PublicKey
    marker: str = ""
    place: str = ""


def parse_known_hosts(text: str, path: str = "known_hosts") -> list[KnownHost]:
    """The lines that can be read; ssh skips the others, and so does this."""
    entries = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        marker = words.pop(0) if words and words[0].startswith("@") else ""
        if len(words) < 3 or words[0].startswith("#"):
            continue
        blob = _decode(words[1], words[2])
        if blob is not None:
            entries.append(KnownHost(words[0], PublicKey(words[1], blob), marker, f"{path}:{number}"))
    return entries


def names_match(names: str, host: str) -> bool:
    """Whether the first field of a line is about ``host`` (as `host_id` gives it)."""
    host = host.lower()
    if names.startswith("|"):
        parts = names.split("|")
        if len(parts) != 4 or parts[1] != "1":
            return False
        try:
            salt, wanted = base64.b64decode(parts[2]), base64.b64decode(parts[3])
        except (binascii.Error, ValueError):
            return False
        return hmac.compare_digest(hmac.digest(salt, host.encode(), "sha1"), wanted)
    found = False
    for pattern in names.lower().split(","):
        # fnmatch knows [sets]; ssh does not, and writes [host]:port.
        plain = pattern.removeprefix("!").replace("[", "[[]")
        if fnmatch.fnmatchcase(host, plain):
            if pattern.startswith("!"):
                return False
            found = True
    return found


def host_id(host: str, port: int) -> str:
    """The name under which ssh looks a host up: ``host``, or ``[host]:port``."""
    return host.lower() if port == 22 else f"[{host.lower()}]:{port}"


def hashed_name(host: str, salt: bytes) -> str:
    """``host`` as ``HashKnownHosts yes`` writes it. ``salt``: 20 random bytes."""
    digest = hmac.digest(salt, host.encode(), "sha1")
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


def with_pins(text: str, host: str, keys: Iterable[PublicKey], salts: Iterator[bytes] | None) -> str:
    """``text`` of a ``known_hosts`` file with a line for each of ``keys`` that it does not have yet.

    ``salts``: for hashed names, one for each line; None for plain ones.
    """
    known = [entry.key for entry in parse_known_hosts(text) if not entry.marker and names_match(entry.names, host)]
    new = [key for key in keys if not any(key.same(old) for old in known)]
    lines = [f"{hashed_name(host, next(salts)) if salts else host} {key.type} {key.encoded}\n" for key in new]
    return text + ("\n" if lines and text and not text.endswith("\n") else "") + "".join(lines)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What ``known_hosts`` says of the keys that a server offers.

    ``state``: ``pinned`` (what it offers is what is on record), ``unknown`` (nothing is), ``changed`` (something else
    is), ``revoked`` (a key of it is marked as stolen). ``trusted``: the offered keys that are on record.
    ``on_record``: the lines about this host.
    """

    state: Literal["pinned", "unknown", "changed", "revoked"]
    trusted: tuple[PublicKey, ...] = ()
    on_record: tuple[KnownHost, ...] = ()


def judge(offered: Sequence[PublicKey], entries: Sequence[KnownHost], host: str) -> Verdict:
    """Compare the ``offered`` host keys with the record. Certificate authorities are not looked at."""
    about = [entry for entry in entries if names_match(entry.names, host)]
    revoked = tuple(e for e in about if e.marker == "@revoked" and any(e.key.same(key) for key in offered))
    if revoked:
        return Verdict("revoked", on_record=revoked)
    record = tuple(entry for entry in about if not entry.marker)
    if not record:
        return Verdict("unknown")
    trusted = tuple(key for key in offered if any(key.same(entry.key) for entry in record))
    types = {entry.key.type for entry in record}
    # One key of a type that is on record and is another there: whoever answers is not who was pinned.
    strange = [key for key in offered if key.type in types and key not in trusted]
    if strange or not trusted:
        return Verdict("changed", on_record=record)
    return Verdict("pinned", trusted, record)


def parse_fingerprint(text: str) -> str:
    """A fingerprint, out of itself or out of a line of ``ssh-keygen -lf``.

    Raises:
        SshError: there is none in it.
    """
    found = _FINGERPRINT.search(text)
    if not found:
        raise SshError(
            f"{printable(text)!r} is no fingerprint of a host key: it has the form SHA256:… and 43 characters; "
            "on the node, `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` shows it."
        )
    return found[0]


def choose_trusted(
    name: str, verdict: Verdict, offered: Sequence[PublicKey], expected: Sequence[str]
) -> tuple[PublicKey, ...]:
    """The host keys to go on with: those on record, else those whose fingerprints are ``expected``.

    Empty if the host is unknown and nothing is expected: somebody must look at the fingerprints.

    Raises:
        SshError: the key is not the one on record, it is revoked, or it is not the expected one.
    """
    shown = "".join(f"\n    {key.described(name)}" for key in offered)
    if verdict.state == "revoked":
        places = ", ".join(entry.place for entry in verdict.on_record)
        raise SshError(
            f"{name}: the host key that it offers is marked as revoked in {places}.{shown}\n  Make new ones at the "
            "node's keyboard: `sudo rm /etc/ssh/ssh_host_*; sudo dpkg-reconfigure openssh-server`."
        )
    if verdict.state == "changed":
        return _refuse_changed(name, verdict, shown)
    if expected:
        matching = tuple(key for key in offered if key.fingerprint in expected)
        if not matching:
            wanted = "".join(f"\n    {text}" for text in expected)
            raise SshError(
                f"{name}: the host key is not the expected one. Expected:{wanted}\n  Offered:{shown}\n  Either the "
                "fingerprint is of another node, or somebody stands between here and the node. Compare at the node's "
                "own screen: `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub`."
            )
        if verdict.state == "unknown":
            return matching
    return verdict.trusted


def _refuse_changed(name: str, verdict: Verdict, shown: str) -> tuple[PublicKey, ...]:
    record = "".join(f"\n    {entry.key.described(name)}, {entry.place}" for entry in verdict.on_record)
    files = dict.fromkeys(entry.place.rpartition(":")[0] for entry in verdict.on_record)
    remove = "".join(f"\n    ssh-keygen -f {shlex.quote(file)} -R {shlex.quote(name)}" for file in files)
    raise SshError(
        f"{name}: the host key is not the one on record. On record:{record}\n  Offered:{shown}\n"
        "  Either the node's card was written anew (that makes new host keys), or another machine has its address, or "
        "somebody stands between here and the node. If you wrote the card, remove the old key and repeat:" + remove
    )


def printable(text: str, limit: int = 200) -> str:
    """``text`` on one line, without what steers a terminal: it comes from a machine that is not trusted yet."""
    line = "".join(character if character.isprintable() else " " for character in text)
    line = " ".join(line.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
