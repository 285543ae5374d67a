"""config.txt and cmdline.txt: what is in force, what an edit changes, and that nothing else moves."""

from __future__ import annotations

import contextlib
import itertools
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from ansible.module_utils.bramble import boot_config as under_test
from ansible.module_utils.bramble.boot_config import (
    Board,
    BootConfigError,
    Parameter,
    Setting,
    board_from_device_tree,
    edit_cmdline,
    edit_config,
    effective,
    overlay_parameters,
)
from ansible.module_utils.testing import patch_module_args
from hypothesis import given, settings
from hypothesis import strategies as st

import boot_config

SAMPLES = Path(__file__).with_name("boot_config_samples")
PI5 = Board(frozenset({"pi5"}), 0x17, 0x1A2B3C4D)
PI4 = Board(frozenset({"pi4"}), 0x11, 0xDEADBEEF)
CM5 = Board(frozenset({"pi5", "cm5"}), 0x18, 1)
GEN3 = Setting("dtparam=pciex1_gen", "3")
USB = Setting("usb_max_current_enable", "1")
MEMORY = Parameter("cgroup_enable", "memory")
GOVERNOR = Parameter("cpufreq.default_governor", "performance")


def sample(name: str) -> bytes:
    return (SAMPLES / name).read_bytes()


def edited(content: bytes, *wanted: Setting, board: Board = PI5, **files: bytes) -> tuple[bytes, tuple[str, ...]]:
    done = edit_config({"config.txt": content, **files}, "config.txt", wanted, board)
    return done.files["config.txt"], done.notes


def difference(before: bytes, after: bytes) -> list[str]:
    """The lines that an edit replaced, as `number: text`, and those that it added, as `+text`."""
    old, new = before.decode().splitlines(), after.decode().splitlines()
    changed = [f"{n}: {b}" for n, (a, b) in enumerate(zip(old, new, strict=False), 1) if a != b]
    return changed + [f"+{line}" for line in new[len(old) :]]


# Samples


@pytest.mark.parametrize(
    ("name", "wanted", "expected"),
    [
        ("trixie-lite", GEN3, ["+dtparam=pciex1_gen=3"]),
        ("trixie-lite", USB, ["+usb_max_current_enable=1"]),
        ("trixie-lite", Setting("arm_boost", "1"), []),
        ("trixie-lite", Setting("dtparam=audio", "off"), ["10: dtparam=audio=off"]),
        ("trixie-lite", Setting("otg_mode", "1"), ["+otg_mode=1"]),  # there, but below [cm4]
        ("trixie-pcie-by-raspi-config", GEN3, []),
        ("trixie-pcie-by-raspi-config", USB, []),
        ("pciex1-without-gen", GEN3, ["+dtparam=pciex1_gen=3"]),
        ("pciex1-without-gen", Setting("dtparam=pciex1", "on"), []),  # a boolean parameter without a value is on
        ("last-section-pi4", GEN3, ["+[all]", "+dtparam=pciex1_gen=3"]),
        ("last-section-pi4", Setting("arm_boost", "1", "pi4"), []),
        ("last-section-pi4", Setting("arm_freq", "2000", "pi4"), ["+arm_freq=2000", "+[all]"]),
        ("pi5-overrides-all", GEN3, ["8: dtparam=pciex1_gen=3"]),
        ("pi5-overrides-all", USB, []),
        ("cm5-and-pi500", GEN3, ["2: dtparam=pciex1_gen=3"]),
        ("crlf-from-windows", USB, ["4: usb_max_current_enable=1"]),
        ("no-final-newline", Setting("dtparam=audio", "on"), ["2: dtparam=audio=on"]),
        ("no-final-newline", USB, ["+usb_max_current_enable=1"]),
        ("byte-order-mark", USB, ["+[all]", "+usb_max_current_enable=1"]),
        ("byte-order-mark-before-setting", USB, ["+usb_max_current_enable=1"]),
        ("many-parameters-in-a-line", GEN3, ["1: dtparam=audio=off,i2c_arm=on,pciex1_gen=3,spi=on"]),
        ("many-parameters-in-a-line", Setting("dtparam=i2c_arm", "on"), []),
        ("gpio-switch", GEN3, []),
        ("serial-numbers", USB, []),
        ("serial-numbers", Setting("arm_freq", "2400"), ["4: arm_freq=2400"]),
        ("board-types", USB, ["2: usb_max_current_enable=1"]),
        ("none-parked", USB, ["+[all]", "+usb_max_current_enable=1"]),
        ("ab-boot", Setting("kernel", "kernel8.img"), ["6: kernel=kernel8.img"]),
        ("ab-boot", Setting("cmdline", "cmdline.txt"), ["+cmdline=cmdline.txt"]),
        ("tryboot", GEN3, ["+dtparam=pciex1_gen=3"]),
        ("monitors", Setting("hdmi_mode", "4"), ["+[all]", "+hdmi_mode=4"]),
        ("filters-combined", USB, ["+usb_max_current_enable=1"]),
        ("initramfs", Setting("cmdline", "other.txt"), ["7: cmdline=other.txt"]),
        ("ubuntu-os-prefix", GEN3, ["+dtparam=pciex1_gen=3"]),
        ("overclock", Setting("arm_freq", "2400"), ["6: arm_freq=2400"]),
        ("overclock", Setting("dtparam=fan_temp0_speed", "75"), [
            "8: dtparam=fan_temp0=45000,fan_temp0_hyst=5000,fan_temp0_speed=75"
        ]),
        ("overclock", Setting("arm_freq", "2000", "pi4"), ["+[pi4]", "+arm_freq=2000", "+[all]"]),
        ("indented-and-odd", USB, ["2:    usb_max_current_enable=1"]),
        ("indented-and-odd", Setting("arm_freq", "2400"), ["+arm_freq=2400"]),  # blanks belong to name and value
        ("overlong-line", Setting("dtparam=audio", "off"), []),
        ("overlong-line", Setting("dtparam=watchdog", "on"), ["+dtparam=watchdog=on"]),  # there, but beyond the limit
        ("include-outside", Setting("arm_64bit", "1"), []),
        ("empty", GEN3, ["+dtparam=pciex1_gen=3"]),
    ],
)  # fmt: skip
def test_config_samples(name: str, wanted: Setting, expected: list[str]) -> None:
    before = sample(f"config-{name}.txt")
    after, _ = edited(before, wanted)
    assert difference(before, after) == expected
    assert edited(after, wanted)[0] == after


@pytest.mark.parametrize(
    ("name", "wanted", "expected"),
    [
        ("trixie", MEMORY, b"ieee80211_regdom=DE cgroup_enable=memory\n"),
        ("trixie", GOVERNOR, b"ieee80211_regdom=DE cpufreq.default_governor=performance\n"),
        ("trixie", Parameter("console", "tty1"), None),
        ("trixie", Parameter("console", "ttyAMA0,115200"), b"regdom=DE console=ttyAMA0,115200\n"),
        ("trixie", Parameter("console", "serial0,115200", False), b"console=tty1 root=PARTUUID=4d8097e2-02 "),
        ("trixie-first-boot", MEMORY, b"i=rpi-imager-1763700000 cgroup_enable=memory\n"),
        ("bookworm-desktop", Parameter("quiet"), None),
        ("bookworm-desktop", Parameter("quiet", present=False), b"rootwait splash"),
        ("disabled-after-enabled", MEMORY, b"console=tty1 cgroup_enable=cpuset,memory root=/dev/mmcblk0p2 rootwait\n"),
        ("enabled-after-disabled", MEMORY, None),
        ("disabled-with-others", MEMORY, b"cgroup_disable=pressure,hugetlb quiet cgroup_enable=memory\n"),
        ("quotes", Parameter("dyndbg", "module x +p"), b'rootwait "acpi_osi=Pi 5" dyndbg="module x +p"\n'),
        ("quotes", Parameter("acpi_osi", "Pi 5"), None),
        ("for-init", GOVERNOR, b"quiet cpufreq.default_governor=performance -- --log-level=debug"),
        ("governor-twice", GOVERNOR, b"governor=ondemand root=/dev/mmcblk0p2 rootwait cpufreq.default_governor=perf"),
        ("spaces-no-newline", MEMORY, b"  console=tty1   root=/dev/mmcblk0p2\trootwait cgroup_enable=memory  "),
        ("no-newline", MEMORY, b"rootwait cgroup_enable=memory"),
        ("crlf", MEMORY, b"rootwait cgroup_enable=memory\r\n"),
        ("network-root", MEMORY, b"ip=dhcp rootwait cgroup_enable=memory\n"),
    ],
)
def test_cmdline_samples(name: str, wanted: Parameter, expected: bytes | None) -> None:
    before = sample(f"cmdline-{name}.txt")
    done = edit_cmdline(before, [wanted])
    after = done.files["cmdline.txt"]
    assert bool(done.changes) == (expected is not None)
    assert (expected or before) in after
    assert edit_cmdline(after, [wanted]).files["cmdline.txt"] == after


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config-filter-not-closed.txt", r"line 2: the filter \[pi5 is not closed"),
        ("config-two-filters-in-a-line.txt", r"line 1: the filter .* followed by something.*one filter on a line"),
        ("config-binary.txt", "line 2: there is a byte 0x00"),
        ("config-old-mac-line-ends.txt", "line 1: there is a byte 0x0d"),
        ("config-include-loop.txt", "line 1: config-include-loop.txt includes itself"),
        ("cmdline-two-lines.txt", "line 2: there is a second line"),
        ("cmdline-quote-not-closed.txt", "a quotation mark .* is not closed"),
        ("cmdline-binary.txt", "line 1: there is a byte 0x00"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(name: str, message: str) -> None:
    def edit() -> None:
        if name.startswith("cmdline"):
            edit_cmdline(sample(name), [MEMORY], name)
        else:
            edit_config({name: sample(name)}, name, [USB], PI5)

    with pytest.raises(BootConfigError, match=f"^{name}, .*{message}"):
        edit()


def test_every_sample_is_used() -> None:
    """Each is read here without a traceback; the tables say what comes of the ones that can be edited."""
    names = sorted(path.name for path in SAMPLES.iterdir())
    assert len(names) >= 40
    text = Path(__file__).read_text(encoding="utf-8")
    unused = [name for name in names if f'"{name.removesuffix(".txt").partition("-")[2]}"' not in text]
    assert [name for name in unused if f'"{name}"' not in text] == []


# What has gone wrong elsewhere


def test_a_name_that_begins_like_another_is_another() -> None:
    """Two regular expressions, ^#?dtparam=pciex1 and ^#?dtparam=pciex1_gen, made a file grow by a line each run."""
    both = [Setting("dtparam=pciex1", "on"), GEN3]
    before = b"#dtparam=pciex1\n#dtparam=pciex1_gen=3\ndtparam=pciex1_gen=2\n"
    once, _ = edited(before, *both)
    assert once == b"#dtparam=pciex1\n#dtparam=pciex1_gen=3\ndtparam=pciex1_gen=3\ndtparam=pciex1=on\n"
    assert edited(once, *both)[0] == edited(once, *reversed(both))[0] == once


def test_a_line_at_the_end_does_not_fall_into_the_last_section() -> None:
    once, _ = edited(b"[pi4]\ndtoverlay=disable-bt\n", GEN3)
    assert once == b"[pi4]\ndtoverlay=disable-bt\n[all]\ndtparam=pciex1_gen=3\n"
    assert edited(once, GEN3)[0] == once


def test_an_overlay_keeps_the_parameters_that_are_its_own() -> None:
    def owns(overlay: str, parameter: str) -> bool:
        return (overlay, parameter) == ("vc4-kms-v3d", "audio")

    before = {"config.txt": sample("config-overlay-parameters.txt")}
    off = edit_config(before, "config.txt", [Setting("dtparam=audio", "off")], PI5, owns)
    assert difference(before["config.txt"], off.files["config.txt"]) == ["1: dtparam=audio=off"]
    # Line 3 is the overlay's: without looking at overlays, it would be the base device tree's.
    assert effective(before, "config.txt", "dtparam=audio", PI5, owns) == "on"
    assert effective(before, "config.txt", "dtparam=audio", PI5, lambda *_: False) == "off"
    # A new line behind an overlay that would take it ends the overlay's scope first.
    short = {"config.txt": b"dtoverlay=vc4-kms-v3d\n"}
    done = edit_config(short, "config.txt", [Setting("dtparam=audio", "off")], PI5, owns).files["config.txt"]
    assert done == b"dtoverlay=vc4-kms-v3d\ndtoverlay=\ndtparam=audio=off\n"


def test_what_only_the_firmware_can_judge_is_told_and_left_alone() -> None:
    before = sample("config-gpio-switch.txt")
    after, notes = edited(before, GEN3)
    assert after == before
    assert notes == (
        "config.txt, line 5 (below [gpio17=0]): sets dtparam=pciex1_gen to 1 where this cannot be judged from here, "
        "and is left alone. Remove it if dtparam=pciex1_gen shall always be 3.",
    )


def test_an_unknown_board_takes_no_model_for_granted() -> None:
    after, notes = edited(sample("config-pi5-overrides-all.txt"), GEN3, board=Board())
    assert after == sample("config-pi5-overrides-all.txt")
    assert len(notes) == 1


def test_a_mark_before_a_setting_is_told() -> None:
    _, notes = edited(sample("config-byte-order-mark-before-setting.txt"), USB)
    assert "a byte order mark keeps the firmware from reading usb_max_current_enable=1" in notes[0]
    with pytest.raises(BootConfigError, match=r"byte order mark stands before \[pi4\]"):
        edited("\ufeff[pi4]\narm_boost=1\n".encode(), USB)


def test_includes() -> None:
    files = {"config.txt": sample("config-with-include.txt"), "usercfg.txt": b"[pi4]\nx=1\n[pi5]\narm_boost=0\n"}
    done = edit_config(files, "config.txt", [Setting("arm_boost", "1")], PI5)
    assert done.files["usercfg.txt"] == b"[pi4]\nx=1\n[pi5]\narm_boost=1\n"
    assert done.files["config.txt"] == files["config.txt"]
    assert done.changes == ("usercfg.txt, line 4 (below [pi5]): arm_boost from 0 to 1",)
    # A filter that the included file leaves behind holds on in the one that includes it.
    files = {"config.txt": b"include a\n", "a": b"[pi4]\n"}
    assert (
        edit_config(files, "config.txt", [USB], PI5)
        .files["config.txt"]
        .endswith(b"\n[all]\n" + b"usb_max_current_enable=1\n")
    )
    # One that is perhaps included, and says [all], does not make certain what follows.
    files = {"config.txt": b"[gpio4=1]\ninclude a\nusb_max_current_enable=1\n", "a": b"[all]\n"}
    assert (
        edit_config(files, "config.txt", [USB], PI5)
        .files["config.txt"]
        .endswith(b"=1\n[all]\nusb_max_current_enable=1\n")
    )
    notes = edit_config({"config.txt": sample("config-include-outside.txt")}, "config.txt", [], PI5).notes
    assert [note.partition(": ")[2] for note in notes] == [
        "includes ../secrets.txt, which leads out of the directory of config.txt: it is not looked at",
        "includes missing.txt, which is not there",
    ]


def test_absent_removes_what_counts_here_and_nothing_else() -> None:
    before = (
        b"#arm_freq=1\narm_freq=2\n[pi4]\narm_freq=3\n[gpio4=1]\narm_freq=4\n[pi5]\narm_freq=5\n[all]\narm_freq=6\n"
    )
    after, notes = edited(before, Setting("arm_freq", None))
    assert after == b"#arm_freq=1\n[pi4]\narm_freq=3\n[gpio4=1]\narm_freq=4\n[pi5]\narm_freq=5\n[all]\n"
    assert [note.partition(":")[0] for note in notes] == ["config.txt, line 8 (below [gpio4=1][pi5])"]
    line = b"dtparam=a=1,pciex1_gen=3,b=2\ndtparam=pciex1_gen=2\n  dtparam=pciex1_gen\ndtparam=pciex1_gen=1,c\n"
    assert edited(line, Setting("dtparam=pciex1_gen", None))[0] == b"dtparam=a=1,b=2\ndtparam=c\n"


def test_a_wish_for_a_model_and_one_for_all_get_along() -> None:
    wanted = [Setting("arm_freq", "2600", "pi5"), Setting("arm_freq", "2000"), Setting("arm_freq", "1800", "pi4")]
    once, _ = edited(b"[pi5]\narm_freq=2400\n", *wanted)
    assert edited(once, *wanted)[0] == once
    assert effective({"c": once}, "c", "arm_freq", PI5, lambda *_: False) == "2600"
    assert effective({"c": once}, "c", "arm_freq", PI4, lambda *_: False) == "1800"
    assert effective({"c": once}, "c", "arm_freq", Board(frozenset({"pi3"})), lambda *_: False) == "2000"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Setting("dtoverlay", "vc4-kms-v3d"), "dtoverlay lines add to each other"),
        (Setting("gpio", "4=op"), "gpio lines add to each other"),
        (Setting("a b", "1"), "'a b' is no name"),
        (Setting("dtparam=", "1"), "'dtparam=' is no name"),
        (Setting("x", "1\ny=2"), "cannot have the value"),
        (Setting("dtparam=x", "1,y=2"), "cannot have the value"),
        (Setting("x", "True"), "Write what shall stand in the file"),
        (Setting("x", "1", "gpio4=1"), "has the section 'gpio4=1'. Use all, or one of "),
        (Setting("x", "y" * 97), "would have 99 bytes, of which the firmware reads 98"),
    ],
)
def test_wishes_that_make_no_sense_are_refused(wanted: Setting, message: str) -> None:
    with pytest.raises(BootConfigError, match=message):
        edited(b"", wanted)


def test_two_wishes_for_one_thing_are_refused() -> None:
    with pytest.raises(BootConfigError, match="usb_max_current_enable is there twice for all"):
        edited(b"", USB, Setting(USB.name, "0"))
    with pytest.raises(BootConfigError, match="quiet is wanted twice"):
        edit_cmdline(b"", [Parameter("quiet"), Parameter("quiet", present=False)])


def test_an_overlong_line_is_not_edited() -> None:
    with pytest.raises(BootConfigError, match=r"line 1: the line has 120 bytes, of which the firmware reads 98"):
        edited(sample("config-overlong-line.txt"), Setting("dtparam=spi", "off"))


@pytest.mark.parametrize("name", ["root", "rootwait", "init", "root_wait x", ""])
def test_the_root_file_system_is_not_touched(name: str) -> None:
    with pytest.raises(BootConfigError, match=r"whether the node still boots|is no name"):
        edit_cmdline(b"root=/dev/sda2", [Parameter(name, "/dev/sdb1")])


def test_a_command_line_that_the_kernel_would_cut_is_refused() -> None:
    with pytest.raises(BootConfigError, match="the kernel takes 2047"):
        edit_cmdline(b"x" * 2040, [MEMORY])


# Boards and overlays


@pytest.mark.parametrize(
    ("revision", "models", "board_type"),
    [
        (0x00D04170, {"pi5"}, 0x17),
        (0x00C04180, {"pi5", "cm5"}, 0x18),
        (0x00D04190, {"pi5", "pi500"}, 0x19),
        (0x00C03112, {"pi4"}, 0x11),
        (0x0000000E, {"pi1"}, None),
        (0x00FFFFF0, None, 0xFF),
    ],
)
def test_boards(revision: int, models: set[str] | None, board_type: int | None) -> None:
    board = board_from_device_tree(struct.pack(">I", revision), b"10000000abcdef01\0")
    assert board == Board(None if models is None else frozenset(models), board_type, 0xABCDEF01)


def test_a_device_tree_that_says_nothing() -> None:
    assert board_from_device_tree(None, None) == board_from_device_tree(b"xx", b"\xff") == Board()


def overlay(*parameters: str) -> bytes:
    """A flattened device tree with an `__overrides__` node, as dtc would write it."""
    strings = b"target\0" + b"".join(name.encode() + b"\0" for name in parameters)

    def node(name: bytes) -> bytes:
        return struct.pack(">I", 1) + name + b"\0" * (4 - len(name) % 4)

    def prop(name: str) -> bytes:
        return struct.pack(">III", 3, 5, strings.index(name.encode() + b"\0")) + b"value\0\0\0"

    fragment = node(b"fragment@0") + prop("target") + struct.pack(">I", 2)
    overrides = node(b"__overrides__") + b"".join(prop(name) for name in parameters) + struct.pack(">I", 2)
    structure = node(b"") + fragment + struct.pack(">I", 4) + overrides + struct.pack(">II", 2, 9)
    header = struct.pack(">10I", 0xD00DFEED, 0, 40, 40 + len(structure), 0, 17, 16, 0, len(strings), len(structure))
    return header + structure + strings


def test_the_parameters_of_an_overlay() -> None:
    assert overlay_parameters(overlay("audio", "nohdmi")) == {"audio", "nohdmi"}
    assert overlay_parameters(b"not an overlay") == frozenset()


@given(st.binary(max_size=200), st.integers(0, 400))
@settings(max_examples=300, deadline=None)
def test_a_damaged_overlay_ends_in_no_traceback(noise: bytes, cut: int) -> None:
    blob = overlay("audio", "nohdmi")
    overlay_parameters(noise)
    overlay_parameters(blob[:cut])
    overlay_parameters(blob[: 40 + cut % 60] + noise + blob[40 + cut % 60 :])


# Properties, against an interpreter of its own that knows the future: it is told what each filter is in a given world.


class World(NamedTuple):
    """What only the firmware knows, and what the documentation leaves open. `gpio`: None, and neither filter holds."""

    gpio: bool | None
    partition: bool
    one_family: bool


NOTHING_UNCERTAIN_HOLDS = World(None, False, False)
WORLDS = [World(*state) for state in itertools.product((None, False, True), (False, True), (False, True))]


def interpret(text: str, name: str, models: set[str], world: World) -> str | None:
    """The value that the firmware would use: straightforward, line by line."""
    state: dict[str, bool] = {}
    overlay_name = ""
    value = None
    for line in text.replace("\r\n", "\n").split("\n"):
        line = line.strip()
        if line.startswith("["):
            label = line[1:-1]
            kind, holds = {
                "all": ("all", True),
                "none": ("model" if world.one_family else "none", False),
                "tryboot": ("tryboot", False),
                "gpio4=1": ("gpio", world.gpio is True),
                "gpio4=0": ("gpio", world.gpio is False),
                "partition=2": ("expression", world.partition),
                "0x1a2b3c4d": ("serial", True),
                "0x11111111": ("serial", False),
                "board-type=0x17": ("model" if world.one_family else "type", models == {"pi5"}),
            }.get(label, ("model", label in models))
            if kind == "all":
                state.clear()
            else:
                state[kind] = holds
        elif not all(state.values()) or line.startswith("#"):
            continue
        elif line.startswith("dtoverlay="):
            overlay_name = line.removeprefix("dtoverlay=").split(",")[0]
        elif line.startswith("dtparam="):
            for item in line.removeprefix("dtparam=").split(","):
                key, _, word = item.partition("=")
                if f"dtparam={key}" == name and not (overlay_name == "greedy" and key == "gen"):
                    value = word or "on"
        elif line.startswith(f"{name}="):
            value = line.removeprefix(f"{name}=")
    return value


FILTERS = (
    "[all]", "[none]", "[pi5]", "[pi4]", "[cm5]", "[gpio4=1]", "[gpio4=0]", "[partition=2]", "[tryboot]",
    "[0x1a2b3c4d]", "[0x11111111]", "[board-type=0x17]",
)  # fmt: skip
OTHER_LINES = (
    "", "# gen", "#dtparam=gen=3", "#usb=1", "usb_max=1", "dtparam=gene=3", "dtoverlay=greedy",
    "dtoverlay=modest,gen=1", "dtoverlay=", "initramfs a followkernel", "nonsense", "über=1", "usb",
)  # fmt: skip
SETTING_LINES = (
    "usb=0", "usb=1", "  usb=2", "dtparam=gen=1", "dtparam=gen=2", "dtparam=gen=3", "dtparam=spi=on,gen=1,i2s",
    "dtparam=gen", "dtparam=gen=2,gen=3", "arm=1800",
)  # fmt: skip
LINES = FILTERS * 2 + OTHER_LINES + SETTING_LINES * 2
WISHES = [
    Setting(name, value, section)
    for name, values in {"usb": "12", "dtparam=gen": "23", "arm": "9"}.items()
    for value in (*values, None)
    for section in ("all", "all", "pi5", "pi4")
]


def greedy(overlay_name: str, parameter: str) -> bool:
    return (overlay_name, parameter) == ("greedy", "gen")


def sets(line: str, name: str) -> bool:
    line = line.strip()
    if name.startswith("dtparam="):
        words = line.removeprefix("dtparam=").split(",") if line.startswith("dtparam=") else []
        return any(word.partition("=")[0] == name.removeprefix("dtparam=") for word in words)
    return line.startswith(f"{name}=")


@given(
    st.lists(st.integers(0, len(LINES) - 1), max_size=14),
    st.integers(0, len(WISHES) - 1),
    st.sampled_from([PI5, CM5]),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
@settings(max_examples=7000, deadline=None, database=None)
def test_generated_configs(indices: Sequence[int], wish: int, board: Board, end: str, whole: bool) -> None:
    lines = [LINES[index] for index in indices]
    text = end.join(lines) + (end if whole and lines else "")
    wanted = WISHES[wish]
    board = Board(board.models, board.board_type, 0x1A2B3C4D)
    done = edit_config({"config.txt": text.encode()}, "config.txt", [wanted], board, greedy)
    after = done.files["config.txt"].decode()

    # Again: nothing.
    again = edit_config({"config.txt": after.encode()}, "config.txt", [wanted], board, greedy)
    assert again.files["config.txt"].decode() == after
    assert again.changes == ()
    assert bool(done.changes) == (after != text)

    # Nothing else moved.
    old, new = (content.replace("\r\n", "\n").split("\n") for content in (text, after))
    if end in text:
        assert after.count("\n") == after.count(end)
    if wanted.value is None:
        rest = [line for line in new if line in old]
        assert [line for line in rest if line and not sets(line, wanted.name)] == [
            line for line in old if line and not sets(line, wanted.name)
        ]
        shortened = {"dtparam=spi=on,i2s", "dtparam=gen=3", "dtparam=gen=2"}
        assert set(new) <= {*old, "", *(shortened if any("," in line for line in old) else ())}
    else:
        body = old[:-1] if old[-1] == "" else old
        assert len(new) >= len(body)
        for before, now in zip(body, new, strict=False):
            assert before == now or (sets(before, wanted.name) and sets(now, wanted.name))
        added = [line for line in new[len(body) :] if line]
        assert added in (
            [],
            *(
                [*filters, *scope, f"{wanted.name}={wanted.value}", *closing]
                for filters in ([], ["[all]"], [f"[{wanted.section}]"], ["[all]", f"[{wanted.section}]"])
                for scope in ([], ["dtoverlay="])
                for closing in ([], ["[all]"])
            ),
        )

    # In force: for certain in the world where nothing uncertain holds, and in the others unless it was told.
    models = set(board.models or ())
    foreign = wanted.section != "all" and wanted.section not in models
    if foreign:
        models = {wanted.section}
    if wanted.value is not None or wanted.section == "all":
        uncertain = any(mark in text for mark in ("[gpio", "[partition", "[none]", "[board-type"))
        for world in WORLDS if uncertain else [NOTHING_UNCERTAIN_HOLDS]:
            value = interpret(after, wanted.name, models, world)
            # A serial number of this board says nothing about one of another model. And what may be an overlay's own
            # parameter is not removed.
            unsure = world != NOTHING_UNCERTAIN_HOLDS or (foreign and "[0x" in text) or wanted.value is None
            assert value == wanted.value or (unsure and done.notes), world


WORDS = (
    "console=tty1", "console=serial0,115200", "root=/dev/mmcblk0p2", "rootwait", "quiet", "cgroup_enable=memory",
    "cgroup_disable=memory", "cgroup_enable=cpuset,memory", "cgroup_disable=pids,memory", "cgroup_memory=1",
    "cpufreq.default_governor=ondemand", "cpufreq.default-governor=performance", 'dyndbg="file x +p"', '"a b=c d"',
    "--", "ro", "über=1",
)  # fmt: skip
CMDLINE_WISHES = [
    MEMORY,
    GOVERNOR,
    Parameter("cgroup_disable", "memory"),
    Parameter("cgroup_disable", "memory", False),
    Parameter("cgroup_enable", present=False),
    Parameter("console", "tty1"),
    Parameter("console", "ttyAMA0"),
    Parameter("console", "tty1", False),
    Parameter("quiet"),
    Parameter("quiet", present=False),
    Parameter("panic", "10"),
]


def kernel(text: str, name: str) -> list[str | None]:
    """All values of a kernel parameter, in order; the words of the generated lines have no blanks but in quotes."""
    words = []
    for word in text.replace('"a b=c d"', "abcd").replace('"file x +p"', "filex").split():
        if word == "--":
            break
        words.append(word)
    split = [word.partition("=") for word in words]
    return [value if sep else None for key, sep, value in split if key.replace("-", "_") == name]


def memory_accounted(text: str) -> bool:
    on = False
    for word in text.split():
        if word == "--":
            break
        key, _, value = word.partition("=")
        if key in ("cgroup_enable", "cgroup_disable") and "memory" in value.split(","):
            on = key == "cgroup_enable"
    return on


@given(
    st.lists(st.integers(0, len(WORDS) - 1), max_size=9),
    st.integers(0, len(CMDLINE_WISHES) - 1),
    st.sampled_from([" ", "  ", "\t"]),
    st.sampled_from(["", "\n", "\r\n"]),
)
@settings(max_examples=4000, deadline=None, database=None)
def test_generated_cmdlines(indices: Sequence[int], wish: int, blank: str, end: str) -> None:
    text = blank.join(WORDS[index] for index in indices)
    wanted = CMDLINE_WISHES[wish]
    done = edit_cmdline((text + end).encode(), [wanted])
    after = done.files["cmdline.txt"].decode()
    again = edit_cmdline(after.encode(), [wanted])
    assert (again.files["cmdline.txt"].decode(), again.changes) == (after, ())
    assert bool(done.changes) == (after != text + end)
    assert after.endswith(end)
    assert "\n" not in after.removesuffix(end)
    for name in ("root", "rootwait", "ro", "console", "cgroup_memory", "dyndbg", "abcd"):
        if name != wanted.name:
            assert kernel(after, name) == kernel(text, name)
    values = kernel(after, wanted.name)
    if wanted == MEMORY:
        assert memory_accounted(after)
    elif wanted.name == "cgroup_disable" and wanted.value and wanted.present:
        assert any("memory" in (value or "").split(",") for value in values)
        assert not memory_accounted(after)
    elif wanted.name == "cgroup_disable":
        assert not any("memory" in (value or "").split(",") for value in values)
    elif not wanted.present:
        assert values == [] if wanted.value is None else wanted.value not in values
    elif wanted.name == "console":
        assert wanted.value in values
    else:
        assert values[-1] == wanted.value


@given(st.binary(max_size=120) | st.text(max_size=120).map(lambda text: text.encode("utf-8", "surrogatepass")))
@settings(max_examples=700, deadline=None, database=None)
def test_any_bytes_end_in_an_edit_or_a_message(noise: bytes) -> None:
    for content in (noise, b"usb=0\n[" + noise, b"dtparam=" + noise, b"include " + noise):
        with contextlib.suppress(BootConfigError):
            done = edit_config({"config.txt": content}, "config.txt", [Setting("usb", "1"), GEN3], PI5)
            assert edit_config(done.files, "config.txt", [Setting("usb", "1"), GEN3], PI5).changes == ()
    with contextlib.suppress(BootConfigError):
        done = edit_cmdline(noise, [MEMORY, GOVERNOR])
        assert edit_cmdline(done.files["cmdline.txt"], [MEMORY, GOVERNOR]).changes == ()


# Files, and the module


@pytest.fixture
def boot(tmp_path: Path) -> Path:
    directory = tmp_path / "firmware"
    directory.mkdir()
    (directory / "config.txt").write_bytes(sample("config-trixie-lite.txt"))
    (directory / "cmdline.txt").write_bytes(sample("cmdline-trixie.txt"))
    tree = tmp_path / "device-tree"
    (tree / "system").mkdir(parents=True)
    (tree / "system/linux,revision").write_bytes(struct.pack(">I", 0x00D04170))
    (tree / "serial-number").write_bytes(b"100000001a2b3c4d\0")
    return directory


def run(capsys: pytest.CaptureFixture[str], boot: Path, **arguments: Any) -> dict[str, Any]:
    merged = {
        "path": str(boot / "config.txt"),
        "settings": [{"name": GEN3.name, "value": "3"}],
        "cmdline": [{"name": "cgroup_enable", "value": "memory"}],
        "device_tree": str(boot.parent / "device-tree"),
        "stamp": str(boot.parent / "run/reboot.d/boot-config"),
        **arguments,
    }
    with patch_module_args(merged), pytest.raises(SystemExit):
        boot_config.main()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_the_module_edits_both_files_once(capsys: pytest.CaptureFixture[str], boot: Path) -> None:
    stamp = boot.parent / "run/reboot.d/boot-config"
    (boot / ".config.txt.bramble").write_bytes(b"of a run that was cut off")
    (boot / "config.txt").chmod(0o640)
    first = run(capsys, boot)
    assert first["changed"] is True
    assert len(first["changes"]) == 2
    assert [Path(item["after_header"]).name for item in first["diff"]] == ["config.txt", "cmdline.txt"]
    assert first["diff"][0]["after"].endswith("[all]\ndtparam=pciex1_gen=3\n")
    assert (boot / "config.txt").read_bytes().endswith(b"[all]\ndtparam=pciex1_gen=3\n")
    assert (boot / "cmdline.txt").read_bytes().endswith(b" cgroup_enable=memory\n")
    assert stamp.read_text().splitlines() == first["changes"]
    assert sorted(path.name for path in boot.iterdir()) == ["cmdline.txt", "config.txt"]
    assert (boot / "config.txt").stat().st_mode & 0o777 == 0o640
    stamp.unlink()
    second = run(capsys, boot)
    assert (second["changed"], second["changes"], second["diff"]) == (False, [], [])
    assert not stamp.exists()


def test_check_mode_predicts_and_writes_nothing(capsys: pytest.CaptureFixture[str], boot: Path) -> None:
    predicted = run(capsys, boot, _ansible_check_mode=True)
    assert predicted["changed"] is True
    assert (boot / "config.txt").read_bytes() == sample("config-trixie-lite.txt")
    assert not (boot.parent / "run").exists()
    done = run(capsys, boot)
    assert (predicted["changes"], predicted["diff"]) == (done["changes"], done["diff"])


def test_the_stamp_is_written_before_the_change(
    capsys: pytest.CaptureFixture[str], boot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise BootConfigError(f"{path}: cannot be written: No space left on device.")

    monkeypatch.setattr(under_test, "_write", full)
    assert run(capsys, boot)["msg"].endswith("No space left on device.")
    assert (boot.parent / "run/reboot.d/boot-config").exists()
    assert (boot / "config.txt").read_bytes() == sample("config-trixie-lite.txt")


def test_a_write_that_fails_leaves_the_old_file(
    capsys: pytest.CaptureFixture[str], boot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(under_test.os, "fsync", fail)
    answer = run(capsys, boot)
    assert "cannot be written: No space left on device. Look whether the boot partition is full" in answer["msg"]
    assert (boot / "config.txt").read_bytes() == sample("config-trixie-lite.txt")
    assert sorted(path.name for path in boot.iterdir()) == ["cmdline.txt", "config.txt"]


def test_a_link_stays_a_link(capsys: pytest.CaptureFixture[str], boot: Path) -> None:
    (boot / "config.txt").rename(boot / "real.txt")
    (boot / "config.txt").symlink_to("real.txt")
    run(capsys, boot)
    assert (boot / "config.txt").is_symlink()
    assert b"pciex1_gen=3" in (boot / "real.txt").read_bytes()


def test_the_device_tree_says_which_filters_hold(capsys: pytest.CaptureFixture[str], boot: Path) -> None:
    (boot / "config.txt").write_bytes(b"[pi5]\ndtparam=pciex1_gen=1\n[0x1a2b3c4d]\ndtparam=pciex1_gen=2\n")
    assert run(capsys, boot, cmdline=[])["changes"] == [
        "config.txt, line 4 (below [pi5][0x1a2b3c4d]): dtparam=pciex1_gen from 2 to 3"
    ]


def test_overlays_beside_the_file_are_looked_into(capsys: pytest.CaptureFixture[str], boot: Path) -> None:
    (boot / "overlays").mkdir()
    (boot / "overlays/vc4-kms-v3d-pi5.dtbo").write_bytes(overlay("audio"))
    (boot / "config.txt").write_bytes(b"dtoverlay=vc4-kms-v3d\ndtparam=audio=off\n")
    run(capsys, boot, settings=[{"name": "dtparam=audio", "value": "off"}], cmdline=[])
    assert (boot / "config.txt").read_bytes() == (
        b"dtoverlay=vc4-kms-v3d\ndtparam=audio=off\ndtoverlay=\ndtparam=audio=off\n"
    )


def test_included_files_are_edited_too(capsys: pytest.CaptureFixture[str], boot: Path) -> None:
    (boot / "config.txt").write_bytes(sample("config-with-include.txt"))
    (boot / "usercfg.txt").write_bytes(b"dtparam=pciex1_gen=1\n")
    assert run(capsys, boot, cmdline=[])["changes"] == ["usercfg.txt, line 1: dtparam=pciex1_gen from 1 to 3"]
    assert (boot / "usercfg.txt").read_bytes() == b"dtparam=pciex1_gen=3\n"


@pytest.mark.parametrize(
    ("line", "file"),
    [
        (b"cmdline=other.txt\n", "other.txt"),
        (b"os_prefix=current/\n", "current/cmdline.txt"),
        (b"os_prefix=gone/\n", "cmdline.txt"),
        (b"os_prefix=current/\ncmdline=/other.txt\n", "other.txt"),
    ],
)
def test_the_command_line_that_the_firmware_reads_is_edited(
    capsys: pytest.CaptureFixture[str], boot: Path, line: bytes, file: str
) -> None:
    (boot / "current").mkdir()
    for name in ("other.txt", "current/cmdline.txt"):
        (boot / name).write_bytes(b"root=/dev/sda2\n")
    (boot / "config.txt").write_bytes(line)
    run(capsys, boot, settings=[])
    touched = [
        name for name in ("other.txt", "current/cmdline.txt", "cmdline.txt") if b"cgroup" in (boot / name).read_bytes()
    ]
    assert touched == [file]


def test_messages(capsys: pytest.CaptureFixture[str], boot: Path) -> None:
    assert "there is no such file. Is the boot partition mounted" in run(capsys, boot, path=str(boot / "no"))["msg"]
    assert "cannot be read: Is a directory" in run(capsys, boot, path=str(boot))["msg"]
    (boot / "cmdline.txt").write_bytes(b"root=x\ny\n")
    before = (boot / "config.txt").read_bytes()
    assert "cmdline.txt, line 2: there is a second line" in run(capsys, boot)["msg"]
    assert (boot / "config.txt").read_bytes() == before
    assert "value" in run(capsys, boot, settings=[{"name": "x"}])["msg"]
    (boot / "run").write_bytes(b"")
    answer = run(capsys, boot, cmdline=[], stamp=str(boot / "run/boot-config"))
    assert "Nothing was changed" in answer["msg"]


def test_what_thwarts_a_setting_is_a_warning(capsys: pytest.CaptureFixture[str], boot: Path) -> None:
    (boot / "config.txt").write_bytes(sample("config-gpio-switch.txt"))
    answer = run(capsys, boot, cmdline=[])
    assert answer["changed"] is False
    assert "line 5 (below [gpio17=0])" in answer["notes"][0]
