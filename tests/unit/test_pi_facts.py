"""What a Raspberry Pi's programs and files say, and what is made of it. Outputs as recorded on Raspberry Pi OS."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from ansible.module_utils.bramble import pi_facts as pf
from ansible.module_utils.bramble.probe import FILE_LIMIT, Answer, Files, Question, ask, first_line
from ansible.module_utils.testing import patch_module_args
from hypothesis import given
from hypothesis import strategies as st

import pi_facts as module

REFUSED = 'error=1 error_msg="Command not registered"\n'

BOOTLOADER = """\
2025/05/08 15:13:17
version 69471177f52eb7dc8ac2f3f7b6f1a3f3d4a3e1b2 (release)
timestamp 1746713597
update-time 1746800000
capabilities 0x0000007f
"""

PMIC = """\
 3V7_WL_SW_A current(0)=0.10247270A
   3V3_SYS_A current(1)=0.10832820A
  VDD_CORE_A current(7)=1.42880000A
 3V7_WL_SW_V volt(8)=3.71091200V
   3V3_SYS_V volt(9)=3.31078200V
  VDD_CORE_V volt(15)=0.90659250V
     EXT5V_V volt(24)=5.05716000V
      BATT_V volt(25)=0.00000000V
"""

MOUNTS = """\
21 26 0:20 / /proc rw,nosuid - proc proc rw
26 1 179:2 / / rw,noatime shared:1 - ext4 /dev/mmcblk0p2 rw
60 26 179:1 / /boot/firmware rw,relatime shared:30 - vfat /dev/mmcblk0p1 rw
"""

ROUTES = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0
eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
eth0\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0
"""


@pytest.mark.parametrize(
    ("text", "raw", "now", "since_boot"),
    [
        ("throttled=0x0\n", "0x0", [], []),
        ("throttled=0x50000\n", "0x50000", [], ["under_voltage", "throttled"]),
        ("throttled=0x50005\r\n", "0x50005", ["under_voltage", "throttled"], ["under_voltage", "throttled"]),
        ("throttled=0xe0008", "0xe0008", ["soft_temperature_limit"], [*list(pf.THROTTLED_BITS.values())[1:]]),
        ("throttled=0xF000F", "0xf000f", [*pf.THROTTLED_BITS.values()], [*pf.THROTTLED_BITS.values()]),
        ("throttled=0x100020\n", "0x100020", [], []),
        ("VCHI warning\nthrottled=0x2\n", "0x2", ["frequency_capped"], []),
        ("throttled=0x\n", None, [], []),
        ("throttled=", None, [], []),
        ("throttled=0xfffffffff", None, [], []),
        (REFUSED, None, [], []),
        ("gedrosselt=0x0\n", None, [], []),
        ("", None, [], []),
    ],
)
def test_throttled(text: str, raw: str | None, now: list[str], since_boot: list[str]) -> None:
    assert pf.parse_throttled(text) == {"raw": raw, "now": now, "since_boot": since_boot}


@given(st.integers(0, 0xFFFFFFFF))
def test_each_bit_of_throttled_is_told_where_it_belongs(bits: int) -> None:
    parsed = pf.parse_throttled(f"throttled={bits:#x}\n")
    assert parsed["raw"] == hex(bits)
    for bit, name in pf.THROTTLED_BITS.items():
        assert (name in parsed["now"]) == bool(bits & 1 << bit)
        assert (name in parsed["since_boot"]) == bool(bits & 0x10000 << bit)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("temp=42.8'C\n", 42.8),
        ("temp=86.2'C\r\n", 86.2),
        ("temp=-3.5'C", -3.5),
        ("temp=100'C", 100.0),
        ("temp=4", None),
        ("temp=42.", None),
        ("temp=42,8'C", None),
        ("temp=٤٢.٨'C", None),
        ("temp=nan'C", None),
        (REFUSED, None),
        ("", None),
    ],
)
def test_temperature(text: str, expected: float | None) -> None:
    assert pf.parse_temperature(text) == expected


def test_pmic_power_is_the_sum_over_rails_with_amperes_and_volts() -> None:
    power = pf.parse_pmic(PMIC)
    assert power["rails"]["VDD_CORE"] == {"volts": 0.9065925, "amperes": 1.4288}
    assert set(power["rails"]) == {"3V7_WL_SW", "3V3_SYS", "VDD_CORE"}
    assert power["watts"] == pytest.approx(0.1024727 * 3.710912 + 0.1083282 * 3.310782 + 1.4288 * 0.9065925, abs=1e-3)
    assert power["input_volts"] == 5.05716


@pytest.mark.parametrize(
    ("text", "rails"),
    [
        ("".join(PMIC.splitlines(keepends=True)[:5]), 2),  # cut off: VDD_CORE has no volts
        (PMIC.replace("0.90659250V", "0.906"), 2),
        ("VDD_CORE_A current(7)=1.42880000A\n", 0),
        (REFUSED, 0),
        ("", 0),
    ],
)
def test_pmic_tells_no_power_from_a_part_of_the_rails(text: str, rails: int) -> None:
    assert pf.parse_pmic(text)["watts"] is None
    assert len(pf.parse_pmic(text)["rails"]) == rails


def test_pmic_with_windows_line_ends_is_the_same() -> None:
    assert pf.parse_pmic(PMIC.replace("\n", "\r\n")) == pf.parse_pmic(PMIC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("frequency(0)=2400000000\n", 2400000000),
        ("frequency(48)=600117184\r\n", 600117184),
        ("frequency(0)=", None),
        (REFUSED, None),
        ("", None),
    ],
)
def test_clock(text: str, expected: int | None) -> None:
    assert pf.parse_clock(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("usb_max_current_enable=1\n", True),
        ("usb_max_current_enable=0\r\n", False),
        ("usb_max_current_enable is unknown\n", None),
        ("usb_max_current_enable=", None),
        ("", None),
    ],
)
def test_setting(text: str, expected: bool | None) -> None:
    assert pf.parse_setting(text, "usb_max_current_enable") is expected


@pytest.mark.parametrize(
    ("text", "day", "version"),
    [
        (BOOTLOADER, "2025-05-08", "69471177f52eb7dc8ac2f3f7b6f1a3f3d4a3e1b2"),
        (BOOTLOADER.replace("\n", "\r\n"), "2025-05-08", "69471177f52eb7dc8ac2f3f7b6f1a3f3d4a3e1b2"),
        # The first line of a bootloader of 2020: the time stamp tells the same.
        (
            "Sep  3 2020 13:11:43\nversion c305221a6d7e532693cc7ff57fddfc8649def167 (release)\ntimestamp 1599135103\n",
            "2020-09-03",
            "c305221a6d7e532693cc7ff57fddfc8649def167",
        ),
        ("2025/02/31 15:13:17\n", None, None),
        ("timestamp 0\n", None, None),
        ("2025/05/08\n", None, None),
        (REFUSED, None, None),
        ("", None, None),
    ],
)
def test_bootloader(text: str, day: str | None, version: str | None) -> None:
    assert pf.parse_bootloader(text) == {"date": day, "version": version}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ROUTES, "eth0"),
        (ROUTES.replace("100\t00000000", "700\t00000000"), "wlan0"),
        (ROUTES.replace("0003", "0002"), None),  # not up
        ("Iface\tDestination\n", None),
        ("../x\t00000000\t0\t0003\t0\t0\t1\t00000000\t0\t0\t0\n", None),
        ("", None),
    ],
)
def test_default_route(text: str, expected: str | None) -> None:
    assert pf.parse_default_route(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (MOUNTS, "mmcblk0"),
        (MOUNTS.replace("mmcblk0p2", "nvme0n1p2"), "nvme0n1"),
        (MOUNTS.replace("mmcblk0p2", "sda2"), "sda"),
        (MOUNTS.replace("/dev/mmcblk0p2", "overlay"), None),
        (MOUNTS + "99 26 0:50 / / rw - overlay overlay rw\n", None),  # mounted over it
        ("26 1 179:2 / /\n", None),
        ("", None),
    ],
)
def test_root_disk(text: str, expected: str | None) -> None:
    assert pf.parse_root_disk(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t0\t90\t1\nmemory\t0\t90\t1\n", True),
        ("cpu\t0\t90\t1\nmemory\t0\t90\t0\n", False),
        ("cpu\t0\t90\t1\n", None),
        ("", None),
    ],
)
def test_cgroups(text: str, expected: bool | None) -> None:
    assert pf.parse_cgroups(text) is expected


@pytest.mark.parametrize(
    ("model", "revision", "expected"),
    [
        ("Raspberry Pi 5 Model B Rev 1.0", 0xD04170, True),
        ("Raspberry Pi Compute Module 5 Rev 1.0", 0xD04180, True),
        ("Raspberry Pi 500 Rev 1.0", 0xD04190, True),
        ("Raspberry Pi 4 Model B Rev 1.5", 0xD03115, False),
        ("Raspberry Pi Model B Rev 2", 0x000E, False),
        ("Raspberry Pi 5 Model B Rev 1.1", None, True),
        ("Raspberry Pi 400", None, False),
        (None, None, False),
    ],
)
def test_the_processor_makes_a_pi5(model: str | None, revision: int | None, expected: bool) -> None:
    assert pf.is_pi5(model, revision) is expected


PARSERS = [
    pf.parse_throttled,
    pf.parse_temperature,
    pf.parse_pmic,
    pf.parse_clock,
    lambda text: pf.parse_setting(text, "a(b"),
    pf.parse_bootloader,
    pf.parse_meminfo,
    pf.parse_cgroups,
    pf.parse_cmdline_cgroup,
    pf.parse_default_route,
    pf.parse_root_disk,
    lambda text: pf.vcgencmd_fault(Answer(1, text, text)),
    first_line,
]
RECORDED = ["throttled=0x50005", "temp=42.8'C", "frequency(0)=2400000000", REFUSED, BOOTLOADER, PMIC, MOUNTS, ROUTES]

broken = st.builds(
    lambda text, place, junk: text[:place] + junk + text[place + len(junk) :],
    st.sampled_from(RECORDED),
    st.integers(0, 400),
    st.text(max_size=20),
)


@given(st.one_of(st.text(), broken, st.binary().map(lambda content: content.decode("utf-8", "replace"))))
def test_no_text_is_too_odd(text: str) -> None:
    for parse in PARSERS:
        json.dumps(parse(text), allow_nan=False)


# Files and programs.


def write(root: Path, path: str, content: bytes | str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(content if isinstance(content, bytes) else content.encode())


def places(root: Path) -> pf.Places:
    return pf.Places(
        device_tree=root / "device-tree", sysfs=root / "sys", boot=root / "boot", proc=root / "proc", root=root
    )


def lay_out_pi5(root: Path) -> None:
    write(root, "device-tree/model", b"Raspberry Pi 5 Model B Rev 1.1\0")
    write(root, "device-tree/system/linux,revision", bytes.fromhex("00d04171"))
    write(root, "device-tree/chosen/power/max_current", (5000).to_bytes(4, "big"))
    write(root, "device-tree/chosen/power/usbpd_power_data_objects", bytes.fromhex("0a0191f4") + bytes(24))
    write(root, "sys/class/thermal/thermal_zone0/temp", "48800\n")
    write(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "ondemand\n")
    write(root, "sys/class/hwmon/hwmon0/name", "rp1_adc\n")
    write(root, "sys/class/hwmon/hwmon2/name", "pwmfan\n")
    write(root, "sys/class/hwmon/hwmon2/fan1_input", "2820\n")
    write(root, "sys/class/net/eth0/speed", "1000\n")
    write(root, "sys/class/net/eth0/duplex", "full\n")
    write(root, "sys/class/block/mmcblk0/size", "124735488\n")
    write(root, "sys/fs/cgroup/cgroup.controllers", "cpuset cpu io pids\n")
    write(root, "proc/meminfo", "MemTotal:        8257488 kB\n")
    write(root, "proc/net/route", ROUTES)
    write(root, "proc/self/mountinfo", MOUNTS)
    write(root, "boot/cmdline.txt", "console=tty1 rootwait cgroup_enable=memory\n")


ANSWERS: Mapping[str, Answer] = {
    "throttled": Answer(0, "throttled=0x0\n"),
    "clock": Answer(0, "frequency(0)=2400000000\n"),
    "pmic": Answer(0, PMIC),
    "bootloader": Answer(0, BOOTLOADER),
    "usb_current": Answer(0, "usb_max_current_enable=0\n"),
    "temperature": Answer(0, "temp=42.8'C\n"),
    "update": Answer(1, "*** UPDATE AVAILABLE ***\n"),
}


def answering(**changed: Answer):
    def answer(questions: Mapping[str, Question]) -> dict[str, Answer]:
        return {name: {**ANSWERS, **changed}[name] for name in questions}

    return answer


def silent(questions: Mapping[str, Question]) -> dict[str, Answer]:
    """A machine that has none of the programs."""
    return dict.fromkeys(questions, Answer())


def test_a_pi5_tells_all(tmp_path: Path) -> None:
    lay_out_pi5(tmp_path)
    facts = pf.read_pi(places(tmp_path), answering())
    assert facts["model"] == "Raspberry Pi 5 Model B Rev 1.1"
    assert facts["is_pi5"] is True
    assert facts["revision"] == "d04171"
    assert facts["memory_bytes"] == 8257488 * 1024
    assert facts["kernel"] == os.uname().release
    assert facts["page_size"] == os.sysconf("SC_PAGE_SIZE")
    assert (facts["memory_cgroup"], facts["memory_cgroup_next_boot"]) == (False, True)
    assert facts["bootloader"] == {
        "date": "2025-05-08",
        "version": "69471177f52eb7dc8ac2f3f7b6f1a3f3d4a3e1b2",
        "update_available": True,
    }
    assert facts["throttled"] == {"raw": "0x0", "now": [], "since_boot": []}
    assert facts["temperature_c"] == 48.8
    assert facts["clock_arm_hz"] == 2_400_000_000
    assert facts["governor"] == "ondemand"
    assert facts["supply"] == {"max_current_ma": 5000, "usb_power_delivery": True, "usb_max_current_enable": False}
    assert facts["power"]["input_volts"] == 5.05716
    assert "AI HAT+ 2" in facts["power"]["blind_to"]
    assert facts["cooling"] == {"fan": True, "rpm": 2820}
    assert facts["storage"]["device"] == "mmcblk0"
    assert facts["storage"]["bytes"] == 124735488 * 512
    assert facts["storage"]["free_bytes"] > 0
    assert facts["link"] == {"interface": "eth0", "wired": True, "speed_mbps": 1000, "duplex": "full"}
    assert facts["unreadable"] == []


def test_a_machine_that_is_no_pi_is_described_and_nothing_fails(tmp_path: Path) -> None:
    facts = pf.read_pi(places(tmp_path), silent)
    assert facts["is_pi5"] is False
    assert facts["unreadable"] == []
    known = {"is_pi5", "kernel", "page_size", "unreadable"}
    assert {name for name, value in facts.items() if value is not None and not isinstance(value, dict)} == known
    assert facts["throttled"] == {"raw": None, "now": [], "since_boot": []}
    assert facts["cooling"] == {"fan": None, "rpm": None}
    assert facts["link"] == {"interface": None, "wired": None, "speed_mbps": None, "duplex": None}
    assert facts["storage"]["device"] is None
    assert facts["storage"]["bytes"] >= facts["storage"]["free_bytes"] > 0  # of the file system


def test_sysfs_spares_a_question_to_the_firmware(tmp_path: Path) -> None:
    asked: list[set[str]] = []

    def answer(questions: Mapping[str, Question]) -> dict[str, Answer]:
        asked.append(set(questions))
        return answering()(questions)

    assert pf.read_pi(places(tmp_path), answer)["temperature_c"] == 42.8
    lay_out_pi5(tmp_path)
    assert pf.read_pi(places(tmp_path), answer)["temperature_c"] == 48.8
    assert asked[0] - asked[1] == {"temperature"}
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("name", "answer", "unreadable"),
    [
        ("pmic", Answer(0, REFUSED), "vcgencmd pmic_read_adc: the firmware refused: Command not registered"),
        ("pmic", Answer(0, PMIC[:150]), "vcgencmd pmic_read_adc: not understood: '3V7_WL_SW_A current(0)=0.10247270A'"),
        ("throttled", Answer(0, ""), "vcgencmd get_throttled: it printed nothing"),
        ("throttled", Answer(0, "throttled=0x\n"), "vcgencmd get_throttled: not understood: 'throttled=0x'"),
        ("throttled", Answer(fault="no answer within 5 s"), "vcgencmd get_throttled: no answer within 5 s"),
        (
            "clock",
            Answer(255, "", "Can't open device file: /dev/vcio\nTry creating a device file\n"),
            "vcgencmd measure_clock arm: exit code 255: Can't open device file: /dev/vcio",
        ),
        ("bootloader", Answer(0, 'error=2 error_msg="Inva'), "vcgencmd bootloader_version: the firmware refused: Inva"),
        ("update", Answer(2, "", "EEPROM updates directory not found.\n"), "exit code 2: EEPROM updates directory"),
        ("update", Answer(fault="no answer within 5 s"), "rpi-eeprom-update: no answer within 5 s"),
    ],
)
def test_an_answer_that_is_none_is_named_and_the_rest_is_read(
    tmp_path: Path, name: str, answer: Answer, unreadable: str
) -> None:
    lay_out_pi5(tmp_path)
    facts = pf.read_pi(places(tmp_path), answering(**{name: answer}))
    assert len(facts["unreadable"]) == 1
    assert unreadable in facts["unreadable"][0]
    value = {
        "pmic": facts["power"]["watts"],
        "throttled": facts["throttled"]["raw"],
        "clock": facts["clock_arm_hz"],
        "bootloader": facts["bootloader"]["version"],
        "update": facts["bootloader"]["update_available"],
    }[name]
    assert value is None
    assert facts["governor"] == "ondemand"


def test_the_device_tree_has_the_bootloaders_date_too(tmp_path: Path) -> None:
    write(tmp_path, "device-tree/chosen/bootloader/build-timestamp", (1746713597).to_bytes(4, "big"))
    facts = pf.read_pi(places(tmp_path), silent)
    assert facts["bootloader"] == {"date": "2025-05-08", "version": None, "update_available": None}


@pytest.mark.parametrize(
    ("path", "content", "read"),
    [
        ("device-tree/system/linux,revision", b"\0\0", lambda facts: facts["revision"]),
        ("device-tree/chosen/power/max_current", b"\0\0\0\0\0", lambda facts: facts["supply"]["max_current_ma"]),
        ("device-tree/chosen/power/usbpd_power_data_objects", b"", lambda f: f["supply"]["usb_power_delivery"]),
        ("sys/class/net/eth0/speed", b"-1\n", lambda facts: facts["link"]["speed_mbps"]),
        ("sys/class/net/eth0/duplex", b"unknown\n", lambda facts: facts["link"]["duplex"]),
        ("sys/class/hwmon/hwmon2/fan1_input", b"\xff\xfe", lambda facts: facts["cooling"]["rpm"]),
        ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", b"\n", lambda facts: facts["governor"]),
        ("device-tree/model", b"\0", lambda facts: facts["model"]),
    ],
)
def test_a_file_that_says_nothing_is_not_known(tmp_path: Path, path: str, content: bytes, read) -> None:
    lay_out_pi5(tmp_path)
    assert read(pf.read_pi(places(tmp_path), answering())) is not None
    write(tmp_path, path, content)
    assert read(pf.read_pi(places(tmp_path), answering())) is None


def test_no_power_delivery_is_not_the_same_as_not_knowing(tmp_path: Path) -> None:
    lay_out_pi5(tmp_path)
    write(tmp_path, "device-tree/chosen/power/usbpd_power_data_objects", bytes(28))
    assert pf.read_pi(places(tmp_path), answering())["supply"]["usb_power_delivery"] is False


def test_a_board_without_a_fan_has_none(tmp_path: Path) -> None:
    write(tmp_path, "sys/class/thermal/thermal_zone0/temp", "48800\n")
    assert pf.read_pi(places(tmp_path), silent)["cooling"] == {"fan": False, "rpm": None}


def test_wifi_is_not_wired_and_its_speed_is_not_asked(tmp_path: Path) -> None:
    lay_out_pi5(tmp_path)
    (tmp_path / "sys/class/net/wlan0/wireless").mkdir(parents=True)
    write(tmp_path, "proc/net/route", ROUTES.replace("eth0\t00000000", "eth0\t00000001"))
    link = pf.read_pi(places(tmp_path), answering())["link"]
    assert link == {"interface": "wlan0", "wired": False, "speed_mbps": None, "duplex": None}


def test_without_a_default_route_the_link_that_is_up_is_told(tmp_path: Path) -> None:
    for name, state in (("lo", "up"), ("eth0", "down"), ("eth1", "up")):
        write(tmp_path, f"sys/class/net/{name}/operstate", f"{state}\n")
    assert pf.read_pi(places(tmp_path), silent)["link"]["interface"] == "eth1"


@pytest.mark.parametrize(
    ("mounts", "sizes", "expected"),
    [
        (MOUNTS, {"mmcblk0": 100, "nvme0n1": 200}, ("mmcblk0", 51200)),
        (MOUNTS.replace("mmcblk0p2", "nvme0n1p2"), {"mmcblk0": 100, "nvme0n1": 200}, ("nvme0n1", 102400)),
        (MOUNTS.replace("/dev/mmcblk0p2", "overlay"), {"nvme0n1": 200}, ("nvme0n1", 102400)),
        (MOUNTS.replace("/dev/mmcblk0p2", "overlay"), {"mmcblk0": 0, "nvme0n1": 200}, ("nvme0n1", 102400)),
    ],
)
def test_the_disk_is_that_of_the_root(
    tmp_path: Path, mounts: str, sizes: dict[str, int], expected: tuple[str, int]
) -> None:
    write(tmp_path, "proc/self/mountinfo", mounts)
    for name, sectors in sizes.items():
        write(tmp_path, f"sys/class/block/{name}/size", f"{sectors}\n")
    storage = pf.read_pi(places(tmp_path), silent)["storage"]
    assert (storage["device"], storage["bytes"]) == expected


def test_what_may_not_be_read_is_named(tmp_path: Path) -> None:
    # A directory in a file's place fails to be read for everybody, root included.
    (tmp_path / "device-tree/model").mkdir(parents=True)
    (tmp_path / "sys/class").mkdir(parents=True)
    (tmp_path / "sys/class/hwmon").symlink_to("hwmon")
    facts = pf.read_pi(places(tmp_path), silent)
    assert [line.split(": ")[0] for line in facts["unreadable"]] == [
        str(tmp_path / "device-tree/model"),
        str(tmp_path / "sys/class/hwmon"),
    ]


TREE = [
    *("device-tree/model", "device-tree/system/linux,revision", "device-tree/chosen/power/max_current"),
    *("device-tree/chosen/bootloader/build-timestamp", "sys/class/thermal/thermal_zone0/temp"),
    *("sys/class/hwmon/hwmon2/fan1_input", "sys/class/net/eth0/speed", "sys/class/block/mmcblk0/size"),
    *("sys/fs/cgroup/cgroup.controllers", "proc/meminfo", "proc/net/route", "proc/self/mountinfo", "boot/cmdline.txt"),
]


@given(path=st.sampled_from(TREE), content=st.binary(max_size=60), said=st.binary(max_size=60))
def test_no_bytes_are_too_odd(tmp_path_factory: pytest.TempPathFactory, path: str, content: bytes, said: bytes) -> None:
    root = tmp_path_factory.getbasetemp() / "fuzz"
    lay_out_pi5(root)
    write(root, path, content)
    text = said.decode("utf-8", "replace")
    facts = pf.read_pi(places(root), lambda questions: dict.fromkeys(questions, Answer(0, text, text)))
    json.dumps(facts, allow_nan=False)


# The programs themselves. These are emulations, as short as they can be.


def install(root: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    for name, script in scripts.items():
        path = root / "bin" / name.replace("_", "-")
        write(root, str(path.relative_to(root)), f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{root}/bin:/usr/bin:/bin")


def test_programs_are_asked_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, slow="sleep 0.4; echo $1")
    began = time.monotonic()
    answers = ask({str(number): Question(("slow", str(number)), 5) for number in range(6)})
    assert [answer.output for answer in answers.values()] == [f"{number}\n" for number in range(6)]
    assert time.monotonic() - began < 2  # one after another: 2.4


def test_a_program_that_hangs_is_stopped_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, hangs=f"sleep 60 & echo $! >{tmp_path}/child; wait")
    began = time.monotonic()
    answer = ask({"it": Question(("hangs",), 0.5)})["it"]
    assert time.monotonic() - began < 5
    assert answer.fault == "no answer within 0.5 s"
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 5
    while Path(f"/proc/{child}/stat").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline, "the child of the stopped program still runs"


def test_a_child_that_went_its_own_way_does_not_hold_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # It keeps the output open in a session of its own, as what cannot be killed does.
    install(tmp_path, monkeypatch, hangs="setsid sleep 8 & sleep 8")
    began = time.monotonic()
    assert ask({"it": Question(("hangs",), 0.3)})["it"].fault == "no answer within 0.3 s"
    assert time.monotonic() - began < 5


def test_what_is_not_installed_is_absent_and_what_cannot_be_started_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch)
    write(tmp_path, "bin/broken", b"#!/no/such/interpreter\n")
    (tmp_path / "bin/broken").chmod(0o755)
    answers = ask({"gone": Question(("no-such-program",), 1), "broken": Question(("broken",), 1)})
    assert answers["gone"].absent
    assert not answers["broken"].absent
    assert str(answers["broken"].fault).startswith("cannot be started")


def test_programs_speak_english_and_may_say_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    install(tmp_path, monkeypatch, odd=r"echo $LC_ALL; printf '\377\376'; echo oh >&2; exit 3")
    assert ask({"it": Question(("odd",), 5)})["it"] == Answer(3, "C\n\ufffd\ufffd", "oh\n")


def test_nobody_is_asked_nothing() -> None:
    assert ask({}) == {}


def test_of_a_long_file_the_beginning_is_read(tmp_path: Path) -> None:
    write(tmp_path, "long", b"x" * (FILE_LIMIT + 1))
    assert Files(tmp_path, []).content("long") == b"x" * FILE_LIMIT


@pytest.mark.parametrize("check", [False, True])
def test_the_module_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], check: bool
) -> None:
    lay_out_pi5(tmp_path)
    install(tmp_path, monkeypatch, vcgencmd="echo throttled=0x50000", rpi_eeprom_update="exit 1")
    options = {"device_tree": "device-tree", "sysfs": "sys", "boot": "boot"}
    arguments = {name: str(tmp_path / directory) for name, directory in options.items()}
    with patch_module_args({**arguments, "_ansible_check_mode": check}), pytest.raises(SystemExit) as exit_:
        module.main()
    result = json.loads(capsys.readouterr().out)
    assert exit_.value.code == 0
    assert result["changed"] is False
    facts = result["ansible_facts"]["pi"]
    assert facts["model"] == "Raspberry Pi 5 Model B Rev 1.1"
    assert facts["throttled"]["since_boot"] == ["under_voltage", "throttled"]
    assert facts["bootloader"]["update_available"] is True
