"""Edit Raspberry Pi's config.txt and cmdline.txt by what they mean, and touch nothing else in them.

The grammar is that of Raspberry Pi's documentation, `config_txt/what_is_config_txt.adoc` and `conditional.adoc`:
one `name=value` a line, `#` at the beginning of a line makes a comment, filters in brackets hold for the lines below
them until they are replaced or reset by `[all]`, the last line for a name wins. `dtparam` lines belong to the overlay
that was loaded last; what that overlay does not know goes to the base device tree (`configuration/device-tree.adoc`
part 3.2, and the README of raspberrypi/utils' dtapply).

Some filters depend on what only the firmware sees (a GPIO, a monitor, the partition). Lines below those neither count
as being in force nor are they changed; they are told instead.

Everything down to `apply` is pure. `apply` reads and writes.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

LINE_LIMIT = 98
"""Bytes of a line that the firmware reads; it ignores the rest (what_is_config_txt.adoc, "File Format")."""

COMMAND_LINE_LIMIT = 2047
"""Bytes of a kernel command line on arm64: COMMAND_LINE_SIZE less the NUL (arch/arm64/include/uapi/asm/setup.h)."""

SIZE_LIMIT = 1 << 20
"""Bytes. What is larger is not a boot configuration."""

_INCLUDE_DEPTH = 8
_LINES_LIMIT = 100_000  # of all files together, each as often as it is included

# Board type, bits 4 to 11 of a new-style revision code → the model filters that hold on it. From the documentation's
# tables "Revision codes" and "Model filters".
_MODELS: Mapping[int, frozenset[str]] = {
    code: frozenset(models.split())
    for code, models in {
        0x00: "pi1",
        0x01: "pi1",
        0x02: "pi1",
        0x03: "pi1",
        0x04: "pi2",
        0x06: "pi1 cm1",
        0x08: "pi3",
        0x09: "pi0",
        0x0A: "pi3 cm3",
        0x0C: "pi0 pi0w",
        0x0D: "pi3 pi3+",
        0x0E: "pi3 pi3+",
        0x10: "pi3 pi3+ cm3+",
        0x11: "pi4",
        0x12: "pi0 pi0w pi02",
        0x13: "pi4 pi400",
        0x14: "pi4 cm4",
        0x15: "pi4 cm4s",
        0x17: "pi5",
        0x18: "pi5 cm5",
        0x19: "pi5 pi500",
        0x1A: "pi5 cm5",
    }.items()
}

MODEL_FILTERS = tuple(sorted(frozenset().union(*_MODELS.values())))

# Names that add up instead of replacing each other, or have no `=`: the last one does not simply win.
_ACCUMULATING = frozenset(
    {"dtoverlay", "dtparam", "device_tree_overlay", "device_tree_param", "gpio", "include", "initramfs"}
)

# Kernel parameters that may be given several times, each with an effect of its own.
_REPEATABLE = frozenset({"console", "earlycon", "video", "module_blacklist", "modprobe.blacklist", "dyndbg"})

# What finds the root file system: a mistake there leaves the node without a boot.
_PROTECTED = frozenset({"root", "rootfstype", "rootflags", "rootwait", "rootdelay", "ro", "rw", "init", "rdinit"})


class BootConfigError(Exception):
    """The files cannot be edited; the message says where, why, and what to change."""


@dataclass(frozen=True)
class Board:
    """What the filters of this board are decided by. None: unknown.

    `models`: the model filters that hold, `board_type`: see `_MODELS`, `serial`: its last 32 bits.
    """

    models: frozenset[str] | None = None
    board_type: int | None = None
    serial: int | None = None


@dataclass(frozen=True)
class Setting:
    """A wish for config.txt: `name` is a plain name or `dtparam=<parameter>` of the base device tree.

    `value` None: it shall not be set. `section`: `all`, or a model filter.
    """

    name: str
    value: str | None
    section: str = "all"


@dataclass(frozen=True)
class Parameter:
    """A wish for cmdline.txt. `value` None: the bare name, or with `present` False whatever its value."""

    name: str
    value: str | None = None
    present: bool = True


@dataclass(frozen=True)
class Result:
    """Edited texts by file name (bytes), and one sentence for each change and each thing worth knowing."""

    files: Mapping[str, bytes]
    changes: tuple[str, ...]
    notes: tuple[str, ...]


# Board


def board_from_device_tree(revision: bytes | None, serial: bytes | None) -> Board:
    """The board of `system/linux,revision` (4 bytes, big endian) and `serial-number` (hex digits, NUL-terminated)."""
    number = None
    if serial is not None and re.fullmatch(rb"[0-9a-fA-F]{8,16}\0?", serial):
        number = int(serial.rstrip(b"\0")[-8:], 16)
    if revision is None or len(revision) != 4:
        return Board(serial=number)
    (code,) = struct.unpack(">I", revision)
    if not code >> 23 & 1:  # Codes of before the Raspberry Pi 2 carry no type.
        return Board(frozenset({"pi1"}), None, number)
    board_type = code >> 4 & 0xFF
    return Board(_MODELS.get(board_type), board_type, number)


def _board_of_section(section: str, board: Board) -> Board:
    """The board itself if the section holds on it, else the plainest board on which it does."""
    if section == "all" or (board.models is not None and section in board.models):
        return board
    fitting = [models for models in _MODELS.values() if section in models]
    return Board(min(fitting, key=len))


def overlay_parameters(blob: bytes) -> frozenset[str]:
    """The parameters that a compiled overlay (.dtbo) takes: the properties of its node `__overrides__`.

    Devicetree specification 0.4, section 5. What is no flattened device tree has none.
    """
    if len(blob) < 40 or blob[:4] != b"\xd0\x0d\xfe\xed":
        return frozenset()
    structure, strings = struct.unpack_from(">II", blob, 8)
    found: set[str] = set()
    path: list[bytes] = []
    at = structure
    with contextlib.suppress(struct.error, ValueError, IndexError):
        while True:
            (token,) = struct.unpack_from(">I", blob, at)
            at += 4
            if token == 1:  # FDT_BEGIN_NODE
                end = blob.index(b"\0", at)
                path.append(blob[at:end])
                at = (end + 4) & ~3
            elif token == 2:  # FDT_END_NODE
                path.pop()
            elif token == 3:  # FDT_PROP
                length, name = struct.unpack_from(">II", blob, at)
                at = (at + 8 + length + 3) & ~3
                if path == [b"", b"__overrides__"]:
                    start = strings + name
                    found.add(blob[start : blob.index(b"\0", start)].decode("ascii", "replace"))
            elif token != 4:  # FDT_NOP; else FDT_END, or damage
                break
    return frozenset(found)


# config.txt: lines and filters


@dataclass(frozen=True)
class _Line:
    """A line of a file: `text` without its end, `end` as it stands in the file."""

    text: str
    end: str

    @property
    def entry(self) -> str:
        """What the firmware reads of it: its beginning, without the indentation that the documentation uses."""
        return self.text.encode("utf-8", "surrogateescape")[:LINE_LIMIT].decode("utf-8", "surrogateescape").strip(" \t")


def _lines(name: str, content: bytes) -> list[_Line]:
    if len(content) > SIZE_LIMIT:
        raise BootConfigError(f"{name}: {len(content)} bytes are no boot configuration. Put back the real file.")
    lines = []
    for number, raw in enumerate(content.decode("utf-8", "surrogateescape").split("\n"), 1):
        text, end = (raw[:-1], "\r\n") if raw.endswith("\r") else (raw, "\n")
        found = re.search(r"[\x00-\x08\x0a-\x1f\x7f]", text)
        if found:
            raise BootConfigError(
                f"{name}, line {number}: there is a byte 0x{ord(found[0]):02x}, so this is no text, or a damaged one. "
                "Put back a good file, or remove the byte."
            )
        lines.append(_Line(text, end))
    last = lines.pop()
    if last.text or last.end == "\r\n":
        # No end of line: a lone carriage return counts as text of an empty last line.
        lines.append(_Line(last.text, "\r" if last.end == "\r\n" else ""))
    return lines


@dataclass(frozen=True)
class _Filter:
    kind: str
    label: str
    holds: bool | None
    """None: it depends on what only the firmware knows."""


_RESET = _Filter("all", "all", True)


def _number(text: str) -> int | None:
    try:
        return int(text, 0)
    except ValueError:
        return None


def _filter(label: str, board: Board) -> _Filter:
    """What a filter's content, such as `pi5` or `gpio4=1`, means on a board."""
    if label == "all":
        return _RESET
    if label == "none":
        return _Filter("none", label, False)
    if label == "tryboot":  # Holds in the one boot that was asked for in this way, and not in those that follow.
        return _Filter("tryboot", label, False)
    if label in MODEL_FILTERS:
        return _Filter("model", label, None if board.models is None else label in board.models)
    if re.fullmatch(r"(pi|cm)[0-9].*", label):
        return _Filter("model", label, None)
    if label.startswith("board-type="):
        wanted = _number(label.partition("=")[2])
        known = wanted is not None and board.board_type is not None
        return _Filter("board-type", label, wanted == board.board_type if known else None)
    if re.fullmatch(r"0x[0-9a-fA-F]+", label):
        serial = int(label, 16) & 0xFFFFFFFF
        return _Filter("serial", label, None if board.serial is None else serial == board.serial)
    if label.startswith("EDID="):
        return _Filter("edid", label, None)
    if label.startswith("HDMI:"):
        return _Filter("hdmi", label, None)
    if re.fullmatch(r"gpio[0-9]+=[01]", label):
        return _Filter("gpio", label, None)
    # [ARG=VALUE], [ARG&MASK], [ARG&MASK=VALUE], [ARG<VALUE], [ARG>VALUE] over boot variables such as `partition`.
    if re.fullmatch(r"[A-Za-z_]\w*[=&<>].*", label):
        return _Filter("expression", label, None)
    return _Filter("unknown", label, None)


def _holds(filters: Sequence[_Filter]) -> bool | None:
    """Whether lines below these filters count. Of one kind there is one, the last."""
    # The documentation lists board types among the models, and does not say whether [none] outlasts a model: where the
    # answer depends on that, it is unknown.
    family = [item.holds for item in filters if item.kind in ("model", "board-type", "none")]
    rest = [item.holds for item in filters if item.kind not in ("model", "board-type", "none")]
    if False in rest:
        return False
    if False in family:
        return None if True in family or None in family else False
    return None if None in rest or None in family else True


@dataclass(frozen=True)
class _Place:
    """Where a line stands: file, its index in it, the filters above it, and whether it counts on the board."""

    file: str
    index: int
    line: _Line
    filters: tuple[_Filter, ...]
    counts: bool | None

    def __str__(self) -> str:
        return f"{self.file}, line {self.index + 1}" + _below(self.filters)


def _below(filters: Sequence[_Filter]) -> str:
    return f" (below {''.join(f'[{item.label}]' for item in filters)})" if filters else ""


@dataclass(frozen=True)
class _Reading:
    """A file and what it includes, in the order in which the firmware reads it."""

    places: tuple[_Place, ...]
    filters: tuple[_Filter, ...]
    """In force at the end."""
    notes: tuple[str, ...]


class _Reader:
    def __init__(self, files: Mapping[str, bytes], board: Board) -> None:
        self._files = files
        self._board = board
        self._filters: list[_Filter] = []
        self._notes: list[str] = []
        self._count = 0

    def read(self, name: str) -> _Reading:
        return _Reading(tuple(self._file(name, ())), tuple(self._filters), tuple(self._notes))

    def _file(self, name: str, above: tuple[str, ...]) -> Iterator[_Place]:
        for index, line in enumerate(_lines(name, self._files[name])):
            where = f"{name}, line {index + 1}"
            self._count += 1
            if self._count > _LINES_LIMIT:
                raise BootConfigError(f"{where}: more than {_LINES_LIMIT} lines are no boot configuration.")
            entry = line.entry
            if entry.startswith("["):
                self._enter(_label(where, entry))
            elif index == 0 and entry.startswith("\ufeff"):
                self._mark(where, entry)
            yield _Place(name, index, line, tuple(self._filters), _holds(self._filters))
            if re.match(r"include[ \t]", entry) and _holds(self._filters) is not False:
                yield from self._include(where, entry.split(None, 1)[1].strip(), (*above, name))

    def _enter(self, label: str) -> None:
        entered = _filter(label, self._board)
        if entered.kind == "all":
            self._filters.clear()
        else:
            self._filters[:] = [*(item for item in self._filters if item.kind != entered.kind), entered]

    def _mark(self, where: str, entry: str) -> None:
        if entry[1:].lstrip().startswith(("[", "include")):
            raise BootConfigError(
                f"{where}: a byte order mark stands before {entry[1:].strip()}, so that the firmware does not see it. "
                "Save the file as UTF-8 without a mark."
            )
        if entry[1:].strip() and not entry[1:].lstrip().startswith("#"):
            self._notes.append(f"{where}: a byte order mark keeps the firmware from reading {entry[1:].strip()}")

    def _include(self, where: str, target: str, above: tuple[str, ...]) -> Iterator[_Place]:
        reason = outside(target)
        if reason:
            self._notes.append(f"{where}: includes {target}, which {reason}: it is not looked at")
        elif target in above or len(above) >= _INCLUDE_DEPTH:
            raise BootConfigError(f"{where}: {target} includes itself, by way of {', '.join(above)}. Remove a line.")
        elif target not in self._files:
            self._notes.append(f"{where}: includes {target}, which is not there")
        else:
            sure, filters = _holds(self._filters), [*self._filters]
            yield from self._file(target, above)
            if not sure and self._filters != filters:
                self._filters[:] = [*filters, _Filter("unknown", f"include {target}", None)]


def outside(target: str) -> str | None:
    """Why a file named in config.txt cannot lie beside it, or None if it can."""
    if target.startswith("/") or ".." in target.split("/"):
        return "leads out of the directory of config.txt"
    return None


def _label(where: str, entry: str) -> str:
    match = re.fullmatch(r"\[([^\[\]]*)\][ \t]*(#.*)?", entry)
    if match is None:
        problem = "is not closed by ]" if "]" not in entry else "is followed by something"
        raise BootConfigError(
            f"{where}: the filter {entry} {problem}. Write one filter on a line, such as [pi5], and nothing else."
        )
    return match[1].strip()


def includes(files: Mapping[str, bytes], name: str) -> list[str]:
    """The files that a file names in `include` lines and that may lie beside it, whatever the filters say."""
    targets = []
    for line in _lines(name, files[name]):
        match = re.match(r"include[ \t]+(.*)", line.entry)
        if match and match[1].strip() and not outside(match[1].strip()):
            targets.append(match[1].strip())
    return targets


# config.txt: what is set where


@dataclass(frozen=True)
class _Assignment:
    """Something that a line sets: in `line.text[start:end]` stands the whole of it, `name=value` or `parameter=value`.

    `counts` None: perhaps, if a filter holds that only the firmware can decide, or if an overlay takes it.
    """

    place: _Place
    start: int
    end: int
    value: str
    counts: bool | None
    list_item: bool = False


Owns = Callable[[str, str], bool]
"""Whether an overlay (name) takes a parameter (name) itself, instead of leaving it to the base device tree."""

_DEVICE_TREE = re.compile(r"(?P<what>dtparam|dtoverlay|device_tree_param|device_tree_overlay)=(?P<rest>.*)")


def _and(first: bool | None, second: bool | None) -> bool | None:
    if first is False or second is False:
        return False
    return None if first is None or second is None else True


def _visible(place: _Place) -> tuple[int, str]:
    """Offset and text of what the firmware reads of a line."""
    text = place.line.text
    return len(text) - len(text.lstrip(" \t")), place.line.entry


def _assignments(reading: _Reading, name: str, owns: Owns) -> tuple[list[_Assignment], frozenset[str]]:
    """Where `name` is set, but not where a filter certainly fails; and the overlays that the end may belong to."""
    parameter = name.partition("=")[2] if name.startswith("dtparam=") else None
    found: list[_Assignment] = []
    scopes = frozenset({""})  # Overlays that the next dtparam may belong to; "" is the base device tree.
    for place in reading.places:
        offset, entry = _visible(place)
        if place.counts is False or not entry or entry[0] in "#[":
            continue
        if parameter is None:
            if entry.startswith(f"{name}="):
                value = entry[len(name) + 1 :]
                found.append(_Assignment(place, offset, offset + len(entry), value, place.counts))
            continue
        match = _DEVICE_TREE.fullmatch(entry)
        if match is None:
            continue
        if match["what"] in ("dtoverlay", "device_tree_overlay"):
            overlay = match["rest"].partition(",")[0].strip()
            loaded = frozenset({"" if overlay == "none" else overlay})
            scopes = loaded if place.counts else scopes | loaded
            continue
        taken = {bool(scope) and owns(scope, parameter) for scope in scopes}
        belongs = None if len(taken) == 2 else not taken.pop()
        at = offset + match.start("rest")
        for item in match["rest"].split(","):
            key, separator, value = item.strip().partition("=")
            if key == parameter and belongs is not False:
                start = at + len(item) - len(item.lstrip())
                # The documentation: a boolean parameter without a value means `on`.
                value = value if separator else "on"
                found.append(
                    _Assignment(place, start, start + len(item.strip()), value, _and(place.counts, belongs), True)
                )
            at += len(item) + 1
    return found, scopes


def effective(files: Mapping[str, bytes], main: str, name: str, board: Board, owns: Owns) -> str | None:
    """The value that certainly counts for `name` on a board, or None if nothing certainly sets it."""
    found, _ = _assignments(_Reader(files, board).read(main), name, owns)
    values = [item.value for item in found if item.counts]
    return values[-1] if values else None


# config.txt: edits


def _check_setting(setting: Setting) -> None:
    plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_:.]*", setting.name)
    if not plain and not re.fullmatch(r"dtparam=[A-Za-z0-9_][A-Za-z0-9_.+-]*", setting.name):
        raise BootConfigError(
            f"settings: {setting.name!r} is no name. Write one such as usb_max_current_enable, or dtparam=pciex1_gen."
        )
    if setting.name in _ACCUMULATING:
        raise BootConfigError(
            f"settings: {setting.name} lines add to each other and cannot be set by name. For a parameter of the base "
            "device tree write dtparam=<parameter>; others are for you to write into the file."
        )
    if setting.section != "all" and setting.section not in MODEL_FILTERS:
        raise BootConfigError(
            f"settings: {setting.name} has the section {setting.section!r}. "
            f"Use all, or one of {', '.join(MODEL_FILTERS)}."
        )
    if setting.value is not None:
        forbidden = r"[\x00-\x1f\x7f,]" if setting.name.startswith("dtparam=") else r"[\x00-\x1f\x7f]"
        if setting.value in ("True", "False"):
            raise BootConfigError(
                f"settings: {setting.name} has the value {setting.value}. "
                "Write what shall stand in the file, in quotes: '1', '0', 'on' or 'off'."
            )
        if re.search(forbidden, setting.value) or setting.value != setting.value.strip():
            raise BootConfigError(f"settings: {setting.name} cannot have the value {setting.value!r}: write one word.")


def _text(setting: Setting) -> str:
    return f"{setting.name}={setting.value}"


def edit_config(
    files: Mapping[str, bytes], main: str, settings: Sequence[Setting], board: Board, owns: Owns | None = None
) -> Result:
    """Bring settings into force in the file `main` of `files` (names as in `include`) and what it includes.

    Where a setting is in force already, nothing changes. Where a line that counts sets another value, the last such
    line is edited. Where no line does, one is added at the end of `main`, below `[all]` or the setting's section.
    """
    owns = owns or (lambda _overlay, _parameter: False)
    seen: dict[tuple[str, str], Setting] = {}
    for setting in settings:
        _check_setting(setting)
        key = (setting.name, setting.section)
        if key in seen and seen[key] != setting:
            raise BootConfigError(f"settings: {setting.name} is there twice for {setting.section}. Remove one of them.")
        seen[key] = setting
    edited = dict(files)
    changes: list[str] = []
    notes = list(_Reader(edited, board).read(main).notes)
    # Those of one model come last: for their model they override the ones for all.
    for setting in sorted(settings, key=lambda item: item.section != "all"):
        others = frozenset(section for name, section in seen if name == setting.name) - {"all", setting.section}
        done = _edit_one(edited, main, setting, others, _board_of_section(setting.section, board), owns)
        edited.update(done.files)
        changes += done.changes
        notes += done.notes
    for setting in settings:
        there = _board_of_section(setting.section, board)
        value = effective(edited, main, setting.name, there, owns)
        if setting.value is not None and value not in _acceptable(setting, settings, there):
            raise BootConfigError(
                f"{main}: {_text(setting)} for {setting.section} cannot be brought into force: it stays {value}. "
                "Remove what sets it otherwise."
            )
    return Result(edited, tuple(changes), tuple(dict.fromkeys(notes)))


def _acceptable(setting: Setting, settings: Sequence[Setting], board: Board) -> set[str | None]:
    """The values that may count on the setting's board: its own, and those that are wanted for a part of its boards."""
    models = board.models or frozenset()
    narrower = {item.value for item in settings if item.name == setting.name and item.section in models}
    return {setting.value, *narrower} if setting.section == "all" else {setting.value}


def _edit_one(
    files: Mapping[str, bytes], main: str, setting: Setting, others: frozenset[str], board: Board, owns: Owns
) -> Result:
    """Handle one setting. `others`: sections for which there is another wish; their lines are its business."""
    reading = _Reader(files, board).read(main)
    found, scopes = _assignments(reading, setting.name, owns)
    found = [item for item in found if not any(_is_below(item.place.filters, section) for section in others)]
    sure = [item for item in found if item.counts]
    # What stands below wider filters than the setting's own is not for this setting to change.
    own = [item for item in sure if setting.section == "all" or _is_below(item.place.filters, setting.section)]
    notes = _doubtful(found, sure, setting)
    if setting.value is None:
        return _remove(files, own, setting, notes)
    if sure and sure[-1].value == setting.value:
        return Result({}, (), notes)
    if own and own[-1] is sure[-1]:
        item = own[-1]
        text = _text(setting).removeprefix("dtparam=") if item.list_item else _text(setting)
        line = item.place.line
        _check_length(line.text, str(item.place), "has")
        new = replace(line, text=line.text[: item.start] + text + line.text[item.end :])
        _check_length(new.text, str(item.place))
        change = f"{item.place}: {setting.name} from {item.value or 'nothing'} to {setting.value}"
        return Result(_put(files, item.place, new), (change,), notes)
    return _append(files, main, setting, reading, scopes, owns, notes)


def _is_below(filters: Sequence[_Filter], section: str) -> bool:
    return any(item.kind == "model" and item.label == section for item in filters)


def _doubtful(found: Sequence[_Assignment], sure: Sequence[_Assignment], setting: Setting) -> tuple[str, ...]:
    # Whatever comes before a line that counts is overridden by it, unless all shall go.
    last = found.index(sure[-1]) if sure and setting.value is not None else -1
    return tuple(
        f"{item.place}: sets {setting.name} to {item.value} where this cannot be judged from here, and is left alone. "
        f"Remove it if {setting.name} shall always be {setting.value or 'unset'}."
        for item in found[last + 1 :]
        if item.counts is None and item.value != setting.value
    )


def _check_length(text: str, where: str, verb: str = "would have") -> None:
    length = len(text.encode("utf-8", "surrogateescape"))
    if length > LINE_LIMIT:
        raise BootConfigError(
            f"{where}: the line {verb} {length} bytes, of which the firmware reads {LINE_LIMIT}. "
            "Divide it into several lines, or shorten it."
        )


def _put(files: Mapping[str, bytes], place: _Place, line: _Line | None) -> dict[str, bytes]:
    lines: list[_Line] = _lines(place.file, files[place.file])
    lines[place.index : place.index + 1] = [] if line is None else [line]
    return {place.file: _join(lines)}


def _join(lines: Sequence[_Line]) -> bytes:
    return "".join(line.text + line.end for line in lines).encode("utf-8", "surrogateescape")


def _remove(files: Mapping[str, bytes], own: Sequence[_Assignment], setting: Setting, notes: tuple[str, ...]) -> Result:
    edited = dict(files)
    # From the end, so that what comes before keeps its index and its offsets; a file may be included twice.
    unique = {(item.place.file, item.place.index, item.start): item for item in own}
    for _, item in sorted(unique.items(), key=lambda entry: entry[0], reverse=True):
        text = _lines(item.place.file, edited[item.place.file])[item.place.index].text
        if item.list_item:
            _check_length(item.place.line.text, str(item.place), "has")
        left, right = text[: item.start], text[item.end :].lstrip(" \t")
        if right.startswith(","):  # The comma that parted it from its neighbour goes too.
            right = right[1:].lstrip(" \t")
        else:
            left = left.rstrip(" \t").removesuffix(",")
        rest = left + right
        keep = item.list_item and re.fullmatch(r"[ \t]*(dtparam|device_tree_param)=[ \t]*", rest) is None
        edited.update(_put(edited, item.place, replace(item.place.line, text=rest) if keep else None))
    changes = tuple(f"{item.place}: {setting.name}={item.value} removed" for item in unique.values())
    return Result({item.place.file: edited[item.place.file] for item in own}, changes, notes)


def _append(
    files: Mapping[str, bytes],
    main: str,
    setting: Setting,
    reading: _Reading,
    scopes: frozenset[str],
    owns: Owns,
    notes: tuple[str, ...],
) -> Result:
    wanted = [] if setting.section == "all" else [setting.section]
    new = []
    if [item.label for item in reading.filters] != wanted:
        new += ["[all]"] if reading.filters else []
        new += [f"[{section}]" for section in wanted]
    parameter = setting.name.partition("=")[2]
    if parameter and any(scope and owns(scope, parameter) for scope in scopes):
        new.append("dtoverlay=")  # Ends the scope of the last overlay, which would take the parameter for its own.
    new.append(_text(setting))
    new += ["[all]"] if wanted else []
    _check_length(_text(setting), main)
    lines = _lines(main, files[main])
    ends = [line.end for line in lines if line.end.endswith("\n")]
    end = "\r\n" if ends.count("\r\n") * 2 > len(ends) else "\n"
    if lines and not lines[-1].end.endswith("\n"):
        # A carriage return at the very end is the first half of the line's end.
        lines[-1] = replace(lines[-1], end="\r\n" if lines[-1].end else end)
    first = len(lines) + 1
    lines += [_Line(text, end) for text in new]
    where = f"{main}, line {first + new.index(_text(setting))}"
    section = f" below [{setting.section}]" if wanted or "[all]" in new else ""
    return Result({main: _join(lines)}, (f"{where}: {_text(setting)} added{section}",), notes)


# cmdline.txt


@dataclass(frozen=True)
class _Word:
    """A kernel parameter as it stands in the file, and the white space before it."""

    before: str
    raw: str

    @property
    def name(self) -> str:
        """As the kernel compares it: `-` and `_` are the same (kernel/params.c, parameq)."""
        return self.raw.replace('"', "").partition("=")[0].replace("-", "_")

    @property
    def value(self) -> str | None:
        _, separator, value = self.raw.replace('"', "").partition("=")
        return value if separator else None


def _words(name: str, content: bytes) -> tuple[list[_Word], str, str]:
    """Kernel parameters, what follows them in their line (`--` and what is for init), and the end of the file."""
    if len(content) > SIZE_LIMIT:
        raise BootConfigError(f"{name}: {len(content)} bytes are no kernel command line. Put back the real file.")
    text = content.decode("utf-8", "surrogateescape")
    line, newline, below = text.partition("\n")
    if below.strip():
        raise BootConfigError(
            f"{name}, line 2: there is a second line, and the kernel command line is one. Join them, or remove one."
        )
    line, carriage = (line[:-1], "\r") if line.endswith("\r") else (line, "")
    found = re.search(r"[\x00-\x08\x0b-\x1f\x7f]", line)
    if found:
        raise BootConfigError(
            f"{name}, line 1: there is a byte 0x{ord(found[0]):02x}, so this is no text, or a damaged one. "
            "Put back a good file, or remove the byte."
        )
    if line.startswith("\ufeff"):
        raise BootConfigError(f"{name}, line 1: starts with a byte order mark. Save it as UTF-8 without one.")
    if line.count('"') % 2:
        raise BootConfigError(f'{name}, line 1: a quotation mark (") is not closed. Close it, or remove it.')
    words = [_Word(match[1], match[2]) for match in re.finditer(r'([ \t]*)((?:[^ \t"]|"[^"]*")+)', line)]
    used = sum(len(word.before) + len(word.raw) for word in words)
    rest = line[used:]
    for index, word in enumerate(words):
        if word.raw == "--":  # kernel/params.c, parse_args: what follows is for init
            rest = "".join(item.before + item.raw for item in words[index:]) + rest
            words = words[:index]
            break
    return words, rest, carriage + newline + below


def _check_parameter(parameter: Parameter) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.,-]*", parameter.name):
        raise BootConfigError(f"cmdline: {parameter.name!r} is no name of a kernel parameter.")
    if parameter.name.replace("-", "_") in _PROTECTED:
        raise BootConfigError(
            f"cmdline: {parameter.name} decides whether the node still boots, and is not changed from here. "
            "Edit the file yourself if you must."
        )
    if parameter.value is not None and re.search(r'[\x00-\x1f\x7f"]', parameter.value):
        raise BootConfigError(f"cmdline: {parameter.name} cannot have the value {parameter.value!r}.")


def _word(parameter: Parameter, before: str) -> _Word:
    if parameter.value is None:
        return _Word(before, parameter.name)
    quote = '"' if " " in parameter.value else ""
    return _Word(before, f"{parameter.name}={quote}{parameter.value}{quote}")


def edit_cmdline(content: bytes, parameters: Sequence[Parameter], name: str = "cmdline.txt") -> Result:
    """Bring kernel parameters into force. Others keep their place, and the white space between them.

    A parameter given with another value is changed where it stands; a new one goes to the end, but before `--`.
    `console` and the like may stand several times: each value counts alone. `cgroup_enable` and `cgroup_disable`
    hold lists and undo each other in the order in which they stand (raspberrypi/linux issue 6980): enabling removes
    what disables, and the other way round.
    """
    words, rest, end = _words(name, content)
    changes: list[str] = []
    seen: dict[str, Parameter] = {}
    for parameter in parameters:
        _check_parameter(parameter)
        key = parameter.name.replace("-", "_")
        if key in seen and seen[key] != parameter and not _is_list(key):
            raise BootConfigError(f"cmdline: {parameter.name} is wanted twice. Remove one of them.")
        seen[key] = parameter
    for parameter in parameters:
        words, change = _edit_parameter(words, parameter)
        changes += [f"{name}: {item}" for item in change]
    text = "".join(word.before + word.raw for word in words)
    text += (" " if text and rest[:1] not in ("", " ", "\t") else "") + rest
    edited = text.encode("utf-8", "surrogateescape")
    if changes and len(edited) > COMMAND_LINE_LIMIT:
        raise BootConfigError(
            f"{name}: the line would have {len(edited)} bytes, and the kernel takes {COMMAND_LINE_LIMIT}. Shorten it."
        )
    return Result({name: edited + end.encode("utf-8", "surrogateescape")}, tuple(changes), ())


_CGROUP = {"cgroup_enable": "cgroup_disable", "cgroup_disable": "cgroup_enable"}


def _is_list(name: str) -> bool:
    return name in _REPEATABLE or name in _CGROUP


def _edit_parameter(words: list[_Word], parameter: Parameter) -> tuple[list[_Word], list[str]]:
    name = parameter.name.replace("-", "_")
    label = parameter.name if parameter.value is None else f"{parameter.name}={parameter.value}"
    if name in _CGROUP and parameter.value is not None:
        return _edit_cgroup(words, name, parameter)
    same = [index for index, word in enumerate(words) if word.name == name]
    if not parameter.present:
        wanted = [index for index in same if parameter.value is None or words[index].value == parameter.value]
        return _without(words, wanted), [f"{words[index].raw} removed" for index in wanted]
    if name in _REPEATABLE:
        if any(words[index].value == parameter.value for index in same):
            return words, []
    elif same:
        old = words[same[-1]]
        if old.value == parameter.value:
            return words, []
        words = [*words]
        words[same[-1]] = _word(parameter, old.before)
        return words, [f"{old.raw} changed to {label}"]
    return [*words, _word(parameter, " " if words else "")], [f"{label} added"]


def _edit_cgroup(words: list[_Word], name: str, parameter: Parameter) -> tuple[list[_Word], list[str]]:
    controller = parameter.value or ""
    mentions = [word.name for word in words if word.name in _CGROUP and controller in (word.value or "").split(",")]
    if parameter.present and mentions and mentions[-1] == name:
        return words, []
    changes: list[str] = []
    undo = _CGROUP[name] if parameter.present else name
    kept: list[_Word] = []
    gone: list[int] = []
    for index, word in enumerate(words):
        controllers = (word.value or "").split(",")
        if word.name == undo and controller in controllers:
            left = [item for item in controllers if item != controller]
            changes.append(f"{undo}={controller} removed")
            if not left:
                gone.append(index)
            word = _Word(word.before, f"{undo}={','.join(left)}")
        kept.append(word)
    kept = _without(kept, gone)
    if parameter.present and name not in mentions:
        kept.append(_word(parameter, " " if kept else ""))
        changes.append(f"{name}={controller} added")
    return kept, changes


def _without(words: list[_Word], indices: Sequence[int]) -> list[_Word]:
    """Without some words and the white space before them; the first that stays takes over the first's."""
    kept = [word for index, word in enumerate(words) if index not in indices]
    if kept and 0 in indices:
        kept[0] = _Word(words[0].before, kept[0].raw)
    return kept


# Files


@dataclass
class Outcome:
    """What `apply` did, or would do: before and after by path, and a sentence for each change and oddity."""

    before: dict[str, bytes] = field(default_factory=dict)
    after: dict[str, bytes] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def diff(self) -> list[dict[str, str]]:
        return [
            {
                "before": self.before[path].decode("utf-8", "replace"),
                "after": content.decode("utf-8", "replace"),
                "before_header": path,
                "after_header": path,
            }
            for path, content in self.after.items()
        ]


def apply(
    path: Path,
    settings: Sequence[Setting],
    parameters: Sequence[Parameter],
    *,
    cmdline: Path | None = None,
    device_tree: Path = Path("/proc/device-tree"),
    stamp: Path | None = None,
    dry_run: bool = False,
) -> Outcome:
    """Edit the config.txt at `path` and the kernel command line that it names, or `cmdline`.

    If anything changes, `stamp` is written first, and says what. Raises BootConfigError, and then nothing has changed.
    """
    outcome = Outcome()
    files = _read_all(path)
    tree = device_tree
    board = board_from_device_tree(_read_bytes(tree / "system/linux,revision"), _read_bytes(tree / "serial-number"))
    owns = _owner(path.parent / "overlays")
    edited = edit_config(files, path.name, settings, board, owns)
    outcome.changes += edited.changes
    outcome.notes += edited.notes
    for name, content in edited.files.items():
        if content != files[name]:
            outcome.before[str(path.parent / name)] = files[name]
            outcome.after[str(path.parent / name)] = content
    if parameters:
        place = cmdline or _cmdline_of(path, files, board, owns)
        old = _read(place)
        line = edit_cmdline(old, parameters, place.name)
        outcome.changes += line.changes
        if line.files[place.name] != old:
            outcome.before[str(place)] = old
            outcome.after[str(place)] = line.files[place.name]
    if outcome.after and not dry_run:
        if stamp is not None:
            _write_stamp(stamp, outcome.changes)
        for name, content in outcome.after.items():
            _write(Path(name), content)
        os.sync()
    return outcome


def _read_all(path: Path) -> dict[str, bytes]:
    files = {path.name: _read(path)}
    waiting = [path.name]
    while waiting:
        for target in includes(files, waiting.pop()):
            if target not in files and (path.parent / target).is_file():
                files[target] = _read(path.parent / target)
                waiting.append(target)
    return files


def _cmdline_of(path: Path, files: Mapping[str, bytes], board: Board, owns: Owns) -> Path:
    """The kernel command line that a config.txt names by `cmdline` and `os_prefix` (documentation, `boot.adoc`)."""
    name = effective(files, path.name, "cmdline", board, owns) or "cmdline.txt"
    prefix = effective(files, path.name, "os_prefix", board, owns) or ""
    prefixed = path.parent / (name.lstrip("/") if name.startswith("/") else prefix.lstrip("/") + name)
    # The firmware, too, ignores a prefix where the files are not there.
    found = prefixed if prefixed.is_file() else path.parent / name.lstrip("/")
    if outside(str(found.relative_to(path.parent))):
        raise BootConfigError(f"{path}: cmdline={name} leads out of {path.parent}. Correct that line.")
    return found


def _owner(overlays: Path) -> Owns:
    known: dict[str, frozenset[str]] = {}

    def owns(overlay: str, parameter: str) -> bool:
        if overlay not in known:
            found: frozenset[str] = frozenset()
            if "/" not in overlay:
                # overlay_map.dts: on a Pi 5 the firmware takes <name>-pi5 where there is one.
                for name in (f"{overlay}.dtbo", f"{overlay}-pi5.dtbo"):
                    found |= overlay_parameters(_read_bytes(overlays / name) or b"")
            known[overlay] = found
        return parameter in known[overlay]

    return owns


def _read_bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (OSError, ValueError):
        return None


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(SIZE_LIMIT + 1)
    except FileNotFoundError:
        raise BootConfigError(
            f"{path}: there is no such file. Is the boot partition mounted, and is this a Raspberry Pi?"
        ) from None
    except OSError as error:
        raise BootConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _write_stamp(stamp: Path, changes: Sequence[str]) -> None:
    try:
        stamp.parent.mkdir(parents=True, exist_ok=True)
        with stamp.open("a", encoding="utf-8", errors="replace") as file:
            file.writelines(f"{change}\n" for change in changes)
    except OSError as error:
        raise BootConfigError(f"{stamp}: cannot be written: {error.strerror}. Nothing was changed.") from None


def _write(path: Path, content: bytes) -> None:
    """Put a file in place in one step: a power cut leaves the old one or the new one, on FAT too."""
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.bramble")
    try:
        mode = target.stat().st_mode & 0o7777
        temporary.unlink(missing_ok=True)  # of a run that was cut off
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            with contextlib.suppress(PermissionError):  # FAT has no modes of its own.
                os.fchmod(handle, mode)
            os.fsync(handle)
        temporary.replace(target)
        directory = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise BootConfigError(
            f"{path}: cannot be written: {error.strerror}. Look whether the boot partition is full or read-only."
        ) from None


# Options of the module


def settings_from(items: Sequence[Mapping[str, Any]]) -> list[Setting]:
    """Settings of the module's option `settings`."""
    return [
        Setting(item["name"], item["value"] if item["state"] == "present" else None, item["section"]) for item in items
    ]


def parameters_from(items: Sequence[Mapping[str, Any]]) -> list[Parameter]:
    """Parameters of the module's option `cmdline`."""
    return [Parameter(item["name"], item["value"], item["state"] == "present") for item in items]
