"""What is made of the HAT's programs and files. Outputs as recorded on an AI HAT+ 2 with HailoRT 5.1.1."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.bramble import hailo_facts as hf
from ansible.module_utils.bramble.pi_facts import Places
from ansible.module_utils.bramble.probe import Answer, Ask, Question
from ansible.module_utils.testing import patch_module_args
from hypothesis import given
from hypothesis import strategies as st

import hailo_facts as module

VERSION = "HailoRT-CLI version 5.1.1\n"
SCAN = "Hailo Devices:\n[-] Device: 0001:01:00.0\n"
NOT_FOUND = "Hailo devices not found\n"
IDENTIFY = """\
Executing on device: 0001:01:00.0
Identifying board
Control Protocol Version: 2
Firmware Version: 5.1.1 (release,app)
Logger Version: 0
Device Architecture: HAILO10H

"""
# A Hailo-8 with an older library, whose attributes 10H does not print.
IDENTIFY_8 = """\
Executing on device: 0000:01:00.0
Identifying board
Control Protocol Version: 2
Firmware Version: 4.20.0 (release,app,extended context switch buffer)
Logger Version: 0
Board Name: Hailo-8
Device Architecture: HAILO8L
Serial Number: <N/A>
"""
MISMATCH = (
    "[HailoRT] [error] CHECK failed - Driver version (5.2.0) is different from library version (5.1.1)\n"
    "[HailoRT] [error] Driver version mismatch, status HAILO_INVALID_DRIVER_VERSION(76)\n"
)
NO_FREE = (
    "[HailoRT] [error] Failed to create vdevice. there are not enough free devices. requested: 1, found: 0\n"
    "[HailoRT CLI] [error] CHECK_SUCCESS failed with status=HAILO_OUT_OF_PHYSICAL_DEVICES(74)\n"
)
PACKAGES = (
    "ii \tdkms\t3.1.8-1\n"
    "ii \th10-hailort\t5.1.1\n"
    "hi \th10-hailort-pcie-driver\t5.1.1\n"
    "un \thailo-all\t\n"
    "rc \thailort\t4.23.0\n"
    "ii \tpython3-h10-hailort\t5.1.1-1\n"
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (VERSION, "5.1.1"),
        ("HailoRT-CLI version 4.23.0\r\n", "4.23.0"),
        ("warning\nHailoRT-CLI version 5.3.0\n", "5.3.0"),
        ("HailoRT-CLI version\n", None),
        ("HailoRT-CLI Version 5.1.1 von Hailo\n", None),
        ("", None),
    ],
)
def test_version(text: str, expected: str | None) -> None:
    assert hf.parse_version(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SCAN, ["0001:01:00.0"]),
        (SCAN.replace("\n", "\r\n"), ["0001:01:00.0"]),
        (SCAN + "[-] Device: 0000:02:00.0\n", ["0001:01:00.0", "0000:02:00.0"]),
        (NOT_FOUND, []),
        ("Hailo Devices:\n", []),
        ("Hailo Devices:\n[-] Dev", []),
        ("[HailoRT] [error] something\n", None),
        ("", None),
    ],
)
def test_scan(text: str, expected: list[str] | None) -> None:
    assert hf.parse_scan(text) == expected


@pytest.mark.parametrize(
    ("text", "firmware", "architecture"),
    [
        (IDENTIFY, "5.1.1", "HAILO10H"),
        (IDENTIFY.replace("\n", "\r\n"), "5.1.1", "HAILO10H"),
        (IDENTIFY_8, "4.20.0", "HAILO8L"),
        (IDENTIFY[: IDENTIFY.index("5.1.1")], None, None),
        (IDENTIFY[: IDENTIFY.index("Device Arch")], "5.1.1", None),
        ("", None, None),
    ],
)
def test_identify(text: str, firmware: str | None, architecture: str | None) -> None:
    assert hf.parse_identify(text) == {"firmware_version": firmware, "architecture": architecture}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            PACKAGES,
            {
                "dkms": "3.1.8-1",
                "h10-hailort": "5.1.1",
                "h10-hailort-pcie-driver": "5.1.1",  # on hold, and installed
                "python3-h10-hailort": "5.1.1-1",
            },
        ),
        ("ii \th10-hailort\t5.1.1\r\n", {"h10-hailort": "5.1.1"}),
        ("iU \th10-hailort\t5.1.1\n", {}),  # unpacked, not set up
        ("ii \th10-hailort\t\n", {}),
        ("ii \tH10 hailort\t1\n", {}),
        ("dpkg-query: kein Paket gefunden, das auf dkms passt\n", {}),
        ("", {}),
    ],
)
def test_packages(text: str, expected: dict[str, str]) -> None:
    assert hf.parse_packages(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("8.0 GT/s PCIe\n", 8.0), ("2.5 GT/s PCIe", 2.5), ("5 GT/s", 5.0), ("Unknown", None), ("8.0", None), ("", None)],
)
def test_link_speed(text: str, expected: float | None) -> None:
    assert hf.parse_link_speed(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[all]\ndtparam=pciex1_gen=3\n", 3),
        ("dtparam=pciex1_gen=3\r\n  dtparam=pciex1_gen=2\r\n", 2),
        ("dtparam=pciex1,pciex1_gen=3\n", 3),
        ("#dtparam=pciex1_gen=3\n", None),
        ("dtparam=audio=on # ,pciex1_gen=3\n", None),
        ("dtparam=pciex1_gen=30\n", None),
        ("", None),
    ],
)
def test_pcie_generation(text: str, expected: int | None) -> None:
    assert hf.parse_pcie_generation(text) == expected


PARSERS: list[Callable[[str], Any]] = [
    *(hf.parse_version, hf.parse_scan, hf.parse_identify, hf.parse_packages, hf.parse_link_speed),
    hf.parse_pcie_generation,
]
RECORDED = [VERSION, SCAN, NOT_FOUND, IDENTIFY, IDENTIFY_8, MISMATCH, PACKAGES, "8.0 GT/s PCIe\n"]
broken = st.builds(
    lambda text, place, junk: text[:place] + junk + text[place + len(junk) :],
    st.sampled_from(RECORDED),
    st.integers(0, 200),
    st.text(max_size=20),
)
anything = st.one_of(st.text(), broken, st.binary().map(lambda content: content.decode("utf-8", "replace")))


@given(anything)
def test_no_text_is_too_odd(text: str) -> None:
    for parse in PARSERS:
        json.dumps(parse(text), allow_nan=False)


# A node.


def write(root: Path, path: str, content: bytes | str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(content if isinstance(content, bytes) else content.encode())


def places(root: Path) -> Places:
    return Places(device_tree=root / "device-tree", sysfs=root / "sys", boot=root / "boot")


DEVICE = "sys/bus/pci/devices/0001:01:00.0"


def lay_out_hat(root: Path) -> None:
    write(root, "device-tree/hat/product", b"AI HAT+ 2\0")
    write(root, "sys/bus/pci/devices/0001:00:00.0/vendor", "0x14e4\n")
    write(root, f"{DEVICE}/vendor", "0x1e60\n")
    write(root, f"{DEVICE}/device", "0x45c4\n")
    write(root, f"{DEVICE}/current_link_speed", "8.0 GT/s PCIe\n")
    write(root, f"{DEVICE}/current_link_width", "1\n")
    write(root, "sys/module/hailo1x_pci/version", "5.1.1\n")
    write(root, "sys/class/hailo_chardev/hailo0/dev", "510:0\n")
    write(root, "boot/config.txt", "[all]\n")


ANSWERS: Mapping[str, Answer] = {
    "version": Answer(0, VERSION),
    "scan": Answer(0, SCAN),
    "identify": Answer(0, IDENTIFY),
    "packages": Answer(0, PACKAGES),
}


def answering(**changed: Answer) -> Ask:
    return lambda questions: {name: {**ANSWERS, **changed}[name] for name in questions}


def silent(questions: Mapping[str, Question]) -> dict[str, Answer]:
    """A machine that has none of the programs."""
    return dict.fromkeys(questions, Answer())


def test_a_hat_that_works_has_no_problems(tmp_path: Path) -> None:
    lay_out_hat(tmp_path)
    assert hf.read_hailo(places(tmp_path), answering()) == {
        "present": True,
        "pci_address": "0001:01:00.0",
        "pci_id": "1e60:45c4",
        "link_speed_gts": 8.0,
        "link_width": 1,
        "pcie_generation_set": None,
        "hat": "AI HAT+ 2",
        "driver": {"module": "hailo1x_pci", "version": "5.1.1", "loaded": True},
        "node": "/dev/hailo0",
        "devices": ["0001:01:00.0"],
        "library_version": "5.1.1",
        "firmware_version": "5.1.1",
        "architecture": "HAILO10H",
        "identify_error": None,
        "temperature_c": None,
        "packages": hf.parse_packages(PACKAGES),
        "dkms": True,
        "problems": [],
        "unreadable": [],
    }


def test_a_node_without_a_hat_is_described_and_nothing_fails(tmp_path: Path) -> None:
    facts = hf.read_hailo(places(tmp_path), silent)
    assert facts["present"] is False
    assert facts["driver"] == {"module": None, "version": None, "loaded": False}
    assert facts["unreadable"] == []
    assert len(facts["problems"]) == 1
    assert "no Hailo device is on the PCIe bus" in facts["problems"][0]


def test_the_newer_driver_has_another_node(tmp_path: Path) -> None:
    lay_out_hat(tmp_path)
    (tmp_path / "sys/class/hailo_chardev").rename(tmp_path / "sys/class/hailo1x")
    (tmp_path / "sys/class/hailo1x/hailo0").rename(tmp_path / "sys/class/hailo1x/h1x-0")
    assert hf.read_hailo(places(tmp_path), answering())["node"] == "/dev/h1x-0"


def test_a_10h_goes_before_another_device(tmp_path: Path) -> None:
    lay_out_hat(tmp_path)
    write(tmp_path, "sys/bus/pci/devices/0000:01:00.0/vendor", "0x1e60\n")
    write(tmp_path, "sys/bus/pci/devices/0000:01:00.0/device", "0x2864\n")
    assert hf.read_hailo(places(tmp_path), answering())["pci_address"] == "0001:01:00.0"


def test_nobody_asks_a_device_that_the_scan_does_not_find(tmp_path: Path) -> None:
    lay_out_hat(tmp_path)
    asked: list[str] = []

    def answer(questions: Mapping[str, Question]) -> dict[str, Answer]:
        asked.extend(questions)
        return answering(scan=Answer(fault="no answer within 10 s"))(questions)

    facts = hf.read_hailo(places(tmp_path), answer)
    assert asked == ["version", "scan", "packages"]
    assert facts["unreadable"] == ["hailortcli scan: no answer within 10 s"]


def remove(path: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        for file in sorted((root / path).rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        (root / path).rmdir() if (root / path).is_dir() else (root / path).unlink()

    return change


def put(path: str, content: str) -> Callable[[Path], None]:
    return lambda root: write(root, path, content)


NO_NODE, NO_MODULE = remove("sys/class/hailo_chardev"), remove("sys/module/hailo1x_pci")


def packages(*names: str, version: str = "5.1.1") -> Answer:
    return Answer(1, "".join(f"ii \t{name}\t{version}\n" for name in names))


@pytest.mark.parametrize(
    ("changes", "answers", "kinds", "seen", "fix"),
    [
        pytest.param(
            [remove(DEVICE), NO_NODE],
            {"scan": Answer(0, NOT_FOUND)},
            ["absent"],
            ["the HAT (AI HAT+ 2) is there", "no Hailo device is on the PCIe bus"],
            ["ribbon cable", "rpi-eeprom-update -a"],
            id="no device, and the HAT answers",
        ),
        pytest.param(
            [remove(DEVICE), NO_NODE, remove("device-tree/hat")],
            {"scan": Answer(0, NOT_FOUND)},
            ["absent"],
            ["no HAT tells its name"],
            ["40 pins"],
            id="no device, no HAT",
        ),
        pytest.param(
            [put(f"{DEVICE}/device", "0x2864\n")],
            {},
            ["not_hailo_10h"],
            ["1e60:2864", "1e60:45c4"],
            ["AI HAT+ 2"],
            id="a Hailo-8",
        ),
        pytest.param(
            [NO_NODE, NO_MODULE],
            {"version": Answer(), "scan": Answer(), "packages": packages("rpicam-apps-hailo-postprocess")},
            ["not_installed"],
            ["h10-hailort-pcie-driver is not installed"],
            ["apt-get install dkms hailo-h10-all"],
            id="nothing installed yet",
        ),
        pytest.param(
            [NO_NODE, NO_MODULE],
            {"scan": Answer(0, NOT_FOUND)},
            ["not_loaded"],
            ["no driver is loaded"],
            ["modprobe hailo1x_pci", "dkms status"],
            id="driver not loaded",
        ),
        pytest.param(
            [NO_NODE, NO_MODULE],
            {"scan": Answer(0, NOT_FOUND), "packages": packages("h10-hailort", "h10-hailort-pcie-driver")},
            ["driver_lost"],
            ["without dkms its module is lost when the kernel is upgraded"],
            ["apt-get install dkms", "--reinstall h10-hailort-pcie-driver"],
            id="kernel upgraded without dkms",
        ),
        pytest.param(
            [NO_NODE, NO_MODULE, put("sys/module/hailo_pci/version", "4.20.0\n")],
            {"scan": Answer(0, NOT_FOUND)},
            ["wrong_driver"],
            ["hailo_pci 4.20.0", "needs hailo1x_pci"],
            ["hailo-h10-all"],
            id="wrong module",
        ),
        pytest.param(
            [NO_NODE],
            {"scan": Answer(0, NOT_FOUND)},
            ["no_node"],
            ["hailo1x_pci 5.1.1 is loaded, and made no node"],
            ["dmesg", "rpi-eeprom-update -a", "unplug"],
            id="firmware did not come up",
        ),
        pytest.param(
            [],
            {"scan": Answer(0, NOT_FOUND)},
            ["device_lost"],
            ["/dev/hailo0 is there, and hailortcli scan finds no device"],
            ["unplug", "a reboot does not reset"],
            id="device lost",
        ),
        pytest.param(
            [put("sys/module/hailo1x_pci/version", "5.2.0\n")],
            {"identify": Answer(76, "", MISMATCH)},
            ["version_mismatch"],
            ["library 5.1.1", "driver 5.2.0", "firmware not known"],
            ["--reinstall h10-hailort h10-hailort-pcie-driver", "poweroff"],
            id="driver of another version",
        ),
        pytest.param(
            [],
            {"identify": Answer(0, IDENTIFY.replace("5.1.1", "5.0.0"))},
            ["version_mismatch"],
            ["library 5.1.1", "driver 5.1.1", "firmware 5.0.0"],
            ["poweroff"],
            id="firmware of another version",
        ),
        pytest.param(
            [put("sys/module/hailo1x_pci/version", "5.2.0\n")],
            {"scan": Answer(76, "", MISMATCH)},
            ["version_mismatch"],
            ["driver 5.2.0"],
            ["poweroff"],
            id="the scan fails of the versions already",
        ),
        pytest.param(
            [],
            {"packages": Answer(0, PACKAGES + "ii \thailo-gen-ai-model-zoo\t5.2.0\n")},
            ["server_mismatch"],
            ["hailo-ollama", "5.2.0", "5.1.1"],
            ["hailo-gen-ai-model-zoo 5.1.1"],
            id="hailo-ollama of another version",
        ),
        pytest.param(
            [NO_NODE, NO_MODULE],
            {
                "version": Answer(0, "HailoRT-CLI version 4.23.0\n"),
                "scan": Answer(0, NOT_FOUND),
                "packages": packages("dkms", "hailo-all", "hailort", "hailort-pcie-driver", version="4.23.0"),
            },
            ["wrong_packages", "not_installed"],
            ["hailo-all 4.23.0, hailort 4.23.0, hailort-pcie-driver 4.23.0 is of the Hailo-8's line"],
            ["apt-get remove hailo-all hailort hailort-pcie-driver", "hailo-h10-all"],
            id="wrong line of packages",
        ),
        pytest.param(
            [put(f"{DEVICE}/current_link_speed", "5.0 GT/s PCIe\n")],
            {},
            ["slow_link"],
            ["5 GT/s"],
            ["dtparam=pciex1_gen=3", "config.txt"],
            id="PCIe Gen 2",
        ),
        pytest.param(
            [put(f"{DEVICE}/current_link_speed", "5.0 GT/s PCIe\n"), put("boot/config.txt", "dtparam=pciex1_gen=3\n")],
            {},
            ["slow_link"],
            ["5 GT/s"],
            ["ribbon cable"],
            id="PCIe Gen 2, though Gen 3 is set",
        ),
        pytest.param(
            [],
            {"identify": Answer(fault="no answer within 10 s")},
            ["no_answer"],
            ["identify fails (no answer within 10 s)"],
            ["fuser -v /dev/hailo0", "unplug"],
            id="identify hangs",
        ),
        pytest.param(
            [],
            {"identify": Answer(0, "")},
            ["no_answer"],
            ["exit code 0, and it printed nothing"],
            ["unplug"],
            id="identify prints nothing",
        ),
        pytest.param(
            [],
            {"identify": Answer(36, "", "[HailoRT] [error] Device disconnected while opening device\n")},
            ["no_answer"],
            ["Device disconnected while opening device"],
            ["unplug"],
            id="identify fails",
        ),
        pytest.param(
            [],
            {"identify": Answer(74, "", NO_FREE)},
            ["busy"],
            ["another program holds /dev/hailo0"],
            ["fuser -v /dev/hailo0"],
            id="another program has it",
        ),
        pytest.param(
            [],
            {"scan": Answer(fault="no answer within 10 s")},
            ["no_answer"],
            ["hailortcli scan gives no answer"],
            ["fuser"],
            id="scan hangs",
        ),
        pytest.param(
            [],
            {"version": Answer(), "scan": Answer()},
            ["no_library"],
            ["no hailortcli answers"],
            ["h10-hailort"],
            id="driver without library",
        ),
        pytest.param(
            [],
            {"packages": packages("h10-hailort", "h10-hailort-pcie-driver")},
            ["no_dkms"],
            ["the next kernel upgrade loses the driver's module"],
            ["apt-get install dkms"],
            id="no dkms, not yet upgraded",
        ),
    ],
)
def test_each_failure_is_named_with_its_fix(
    tmp_path: Path,
    changes: list[Callable[[Path], None]],
    answers: dict[str, Answer],
    kinds: list[str],
    seen: list[str],
    fix: list[str],
) -> None:
    lay_out_hat(tmp_path)
    for change in changes:
        change(tmp_path)
    facts = hf.read_hailo(places(tmp_path), answering(**answers))
    found = hf.find_problems(facts)
    assert [problem.kind for problem in found] == kinds
    assert facts["problems"] == [f"{problem.seen}: {problem.fix}" for problem in found]
    assert [text for text in seen if text not in found[0].seen] == []
    assert [text for text in fix if text not in found[0].fix] == []
    assert all("\n" not in line for line in facts["problems"])


def test_a_list_of_packages_that_fails_is_named(tmp_path: Path) -> None:
    lay_out_hat(tmp_path)
    failed = Answer(2, "", "dpkg-query: error: failed to open package info file\n")
    facts = hf.read_hailo(places(tmp_path), answering(packages=failed))
    assert facts["unreadable"] == ["dpkg-query: exit code 2, dpkg-query: error: failed to open package info file"]
    assert facts["packages"] == {}


TREE = [
    *(f"{DEVICE}/vendor", f"{DEVICE}/device", f"{DEVICE}/current_link_speed", f"{DEVICE}/current_link_width"),
    *("sys/module/hailo1x_pci/version", "device-tree/hat/product", "boot/config.txt"),
]


@given(
    path=st.sampled_from(TREE), content=st.binary(max_size=60), said=st.binary(max_size=60), code=st.integers(-9, 99)
)
def test_no_bytes_are_too_odd(
    tmp_path_factory: pytest.TempPathFactory, path: str, content: bytes, said: bytes, code: int
) -> None:
    root = tmp_path_factory.getbasetemp() / "fuzz"
    lay_out_hat(root)
    write(root, path, content)
    answer = Answer(code, said.decode("utf-8", "replace"), said.decode("latin-1"))
    for changed in ("version", "scan", "identify", "packages"):
        json.dumps(hf.read_hailo(places(root), answering(**{changed: answer})), allow_nan=False)


def test_a_program_that_hangs_does_not_hang_the_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # An emulation: it scans, and hangs when it opens the device.
    lay_out_hat(tmp_path)
    write(
        tmp_path,
        "bin/hailortcli",
        "#!/bin/sh\ncase $1 in\n"
        f"--version) echo '{VERSION.strip()}' ;;\nscan) printf '{SCAN}' ;;\n*) sleep 60 ;;\nesac\n",
    )
    (tmp_path / "bin/hailortcli").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setattr(hf, "IDENTIFY", Question(hf.IDENTIFY.command, 0.5))
    options = {"device_tree": "device-tree", "sysfs": "sys", "boot": "boot"}
    arguments = {name: str(tmp_path / directory) for name, directory in options.items()}
    began = time.monotonic()
    with patch_module_args(arguments), pytest.raises(SystemExit) as exit_:
        module.main()
    assert time.monotonic() - began < 6
    assert exit_.value.code == 0
    result = json.loads(capsys.readouterr().out)
    assert result["changed"] is False
    facts = result["ansible_facts"]["hailo"]
    assert facts["library_version"] == "5.1.1"
    assert "hailortcli fw-control identify: no answer within 0.5 s" in facts["unreadable"]
    assert any("identify fails (no answer within 0.5 s)" in problem for problem in facts["problems"])


def test_the_limits_are_those_that_are_documented() -> None:
    assert hf.IDENTIFY.seconds == 10
    assert "10 seconds" in module.DOCUMENTATION
