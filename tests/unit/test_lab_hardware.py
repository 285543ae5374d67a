"""The lab's emulated hardware: what each fault switch shows, and what the firmware's tools answer."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

import pytest
import yaml
from by_path import ROOT, load
from hypothesis import given
from hypothesis import strategies as st

hardware = load("lab/hardware/lab_hardware.py")
SYS = "run/bramble-lab/sys"
TREE = "run/bramble-lab/device-tree"
PCI = f"{SYS}/bus/pci/devices/0001:01:00.0"
DRIVER = f"{SYS}/module/hailo1x_pci/version"
CHARACTER = f"{SYS}/class/hailo_chardev/hailo0"


class Node:
    """A node's file system below a directory, with the programs of the checkout."""

    def __init__(self, root: Path, *, hat: bool) -> None:
        self.root = root
        self.write("proc/1/environ", f"PATH=/bin\0BRAMBLE_LAB_HAT={int(hat)}\0")
        self.write("boot/firmware/config.txt", (ROOT / "lab/hardware/config.txt").read_text())
        (root / "sys/class/net/eth0").mkdir(parents=True)
        (root / "sys/class/net/lo").mkdir()
        (root / "sys/class/net/dummy0").mkdir()

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def read(self, path: str) -> str:
        return (self.root / path).read_text()

    def has(self, path: str) -> bool:
        return (self.root / path).exists()

    def call(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ["PATH"], "BRAMBLE_LAB_ROOT": str(self.root)}
        command = [str(ROOT / "lab/hardware" / program), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def hardware(self, *arguments: str) -> None:
        done = self.call("lab_hardware.py", *arguments)
        assert done.returncode == 0, done.stderr

    def vcgencmd(self, *arguments: str) -> str:
        done = self.call("vcgencmd", *arguments)
        assert done.returncode == 0
        return done.stdout

    def install(self, module: str = "hailo1x_pci", version: str = "5.1.1") -> None:
        self.write("usr/src/hailort-pcie-driver/MODULE", f"{module} {version}\n")

    def files(self) -> dict[str, bytes]:
        base = self.root / "run/bramble-lab"
        return {str(path.relative_to(base)): path.read_bytes() for path in base.rglob("*") if path.is_file()}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node with a HAT and its driver, after its boot."""
    made = Node(tmp_path, hat=True)
    made.install()
    made.hardware("boot")
    return made


def test_a_node_without_faults(node: Node) -> None:
    assert node.read(f"{TREE}/model") == "Raspberry Pi 5 Model B Rev 1.0\0"
    assert (node.root / f"{TREE}/system/linux,revision").read_bytes() == bytes.fromhex("00d04170")
    assert struct.unpack(">I", (node.root / f"{TREE}/chosen/power/max_current").read_bytes()) == (5000,)
    assert node.read(f"{SYS}/class/net/eth0/speed") == "1000\n"
    assert node.read(f"{SYS}/class/net/eth0/operstate") == "up\n"
    assert node.read(f"{PCI}/vendor") + node.read(f"{PCI}/device") == "0x1e60\n0x45c4\n"
    assert node.read(f"{PCI}/current_link_speed") == "8.0 GT/s PCIe\n"
    assert node.read(DRIVER) == "5.1.1\n"
    assert (node.root / "dev/hailo0").readlink() == Path("/dev/null")
    assert node.vcgencmd("get_throttled") == "throttled=0x0\n"
    assert node.vcgencmd("measure_temp") == "temp=48.8'C\n"
    assert node.vcgencmd("get_config", "usb_max_current_enable") == "usb_max_current_enable=1\n"
    assert node.vcgencmd("measure_clock", "arm") == "frequency(0)=2400000000\n"
    assert node.vcgencmd("bootloader_version").startswith("2025/05/08 15:13:17\nversion ")
    assert node.vcgencmd("../../etc") == 'error=1 error_msg="Command not registered"\n'
    lines = node.vcgencmd("pmic_read_adc").splitlines()
    assert lines[0] == " 3V7_WL_SW_A current(0)=0.10247270A"
    assert lines[12] == " 3V7_WL_SW_V volt(8)=3.71091200V"
    assert lines[-2:] == ["     EXT5V_V volt(24)=5.05716000V", "      BATT_V volt(25)=0.00000000V"]
    assert node.vcgencmd("pmic_read_adc", "EXT5V_V") == "     EXT5V_V volt(24)=5.05716000V\n"
    assert node.call("rpi-eeprom-update").returncode == 0


def test_a_node_without_a_hat(tmp_path: Path) -> None:
    node = Node(tmp_path, hat=False)
    node.install()
    node.hardware("boot")
    assert not any(node.has(path) for path in (PCI, DRIVER, CHARACTER, f"{TREE}/hat", "dev/hailo0"))


FAULTS: dict[str, dict[str, str | None]] = {
    # What the path holds then; None: it is not there.
    "under-voltage": {"vcgencmd/get_throttled": "throttled=0x10001\n"},
    "throttled": {
        "vcgencmd/get_throttled": "throttled=0x60006\n",
        "sys/devices/system/cpu/cpu3/cpufreq/scaling_cur_freq": "1500000\n",
        "vcgencmd/measure_clock arm": "frequency(0)=1500000000\n",
    },
    "hot": {
        "vcgencmd/get_throttled": "throttled=0x80008\n",
        "vcgencmd/measure_temp": "temp=86.2'C\n",
        "sys/class/thermal/thermal_zone0/temp": "86200\n",
    },
    "weak-supply": {
        "device-tree/chosen/power/max_current": "\0\0\x0b\xb8",
        "device-tree/chosen/power/usbpd_power_data_objects": "\0" * 28,
        "vcgencmd/get_config usb_max_current_enable": "usb_max_current_enable=0\n",
    },
    "old-eeprom": {"eeprom/current": "1713606810\n"},
    "slow-link": {"sys/class/net/eth0/speed": "100\n"},
    "wifi": {"sys/class/net/eth0/speed": None, "sys/class/net/eth0/duplex": None},
    "small-card": {"sys/class/block/mmcblk0/size": "15523840\n"},
    "no-fan": {"sys/class/hwmon/hwmon2/name": None, "sys/class/hwmon/hwmon2/fan1_input": None},
    "no-device": {
        "sys/bus/pci/devices/0001:01:00.0/vendor": None,
        "sys/class/hailo_chardev/hailo0/board_location": None,
        "device-tree/hat/vendor": "Raspberry Pi Ltd.\0",
    },
    "version-mismatch": {"sys/module/hailo1x_pci/version": "5.2.0\n"},
    # These show in the device's programs only.
    "device-lost": {"sys/bus/pci/devices/0001:01:00.0/vendor": "0x1e60\n"},
    "busy": {"sys/bus/pci/devices/0001:01:00.0/vendor": "0x1e60\n"},
    "slow": {"sys/bus/pci/devices/0001:01:00.0/vendor": "0x1e60\n"},
}


def test_each_fault_is_tried() -> None:
    assert set(FAULTS) == set(hardware.FAULTS)


def test_the_role_takes_each_fault() -> None:
    specs = yaml.safe_load((ROOT / "roles/lab/meta/argument_specs.yml").read_text())
    choices = specs["argument_specs"]["break"]["options"]["lab_break_how"]["choices"]
    assert choices == ["stop", "freeze", "cut", *hardware.FAULTS, "mend"]


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_a_fault_and_its_mending(node: Node, fault: str) -> None:
    whole = node.files()
    node.hardware("fault", fault)
    assert node.has(f"etc/bramble-lab/faults/{fault}")
    for path, content in FAULTS[fault].items():
        if content is None:
            assert not node.has(f"run/bramble-lab/{path}")
        else:
            assert (node.root / "run/bramble-lab" / path).read_bytes() == content.encode("latin-1")
    assert node.has(f"{SYS}/class/net/eth0/wireless") is (fault == "wifi")
    assert node.has("dev/hailo0") is (fault != "no-device")
    assert (node.call("rpi-eeprom-update").returncode == 1) is (fault == "old-eeprom")
    node.hardware("layout")
    node.hardware("mend")
    assert node.files() == whole
    assert node.has("dev/hailo0")


@given(st.sets(st.sampled_from(sorted(FAULTS))))
def test_faults_add_up(faults: set[str]) -> None:
    node = hardware.Node(hat=True, faults=frozenset(faults), driver=("hailo1x_pci", "5.1.1"))
    files = hardware.layout(node)
    bits = {"under-voltage": 0x1, "throttled": 0x6, "hot": 0x8}
    now = sum(bit for fault, bit in bits.items() if fault in faults)
    assert files["vcgencmd/get_throttled"] == f"throttled=0x{now | now << 16:x}\n".encode()
    # No path is a file and a directory at once.
    assert not any(f"{path}/" in other for path in files for other in files if files[path] is not None)


def test_a_name_that_is_no_fault(node: Node) -> None:
    done = node.call("lab_hardware.py", "fault", "flood")
    assert done.returncode == 2
    assert "there is no fault 'flood'; there are under-voltage, throttled" in done.stderr
    assert not node.has("etc/bramble-lab/faults/flood")


def test_a_staged_bootloader_takes_effect_at_the_next_boot(node: Node) -> None:
    node.hardware("fault", "old-eeprom")
    assert node.vcgencmd("bootloader_version").startswith("2024/04/20 ")
    found = node.call("rpi-eeprom-update")
    assert (found.returncode, found.stdout.splitlines()[0]) == (1, "*** UPDATE AVAILABLE ***")
    assert node.call("rpi-eeprom-update", "-a").returncode == 0
    assert node.vcgencmd("bootloader_version").startswith("2024/04/20 ")
    node.hardware("boot")
    assert node.vcgencmd("bootloader_version").startswith("2025/05/08 ")
    assert node.call("rpi-eeprom-update").returncode == 0
    assert not node.has("boot/firmware/pieeprom.upd")


def test_a_driver_is_loaded_at_boot_or_by_modprobe(tmp_path: Path) -> None:
    node = Node(tmp_path, hat=True)
    node.hardware("boot")
    assert node.call("lab_hardware.py", "load", "hailo1x_pci").returncode == 1
    node.install()
    node.hardware("layout")
    assert not node.has(DRIVER)
    node.hardware("load", "hailo1x_pci")
    assert node.read(DRIVER) == "5.1.1\n"
    # A newer one beside the loaded one: the loaded one stays until the next boot.
    node.install(version="5.3.0")
    node.hardware("load", "hailo1x_pci")
    assert node.read(DRIVER) == "5.1.1\n"
    node.hardware("boot")
    assert node.read(DRIVER) == "5.3.0\n"
    node.hardware("unload", "hailo1x_pci")
    assert not node.has(DRIVER)
    assert not node.has("dev/hailo0")


def test_the_driver_of_the_other_line_does_not_claim_the_device(tmp_path: Path) -> None:
    node = Node(tmp_path, hat=True)
    node.install("hailo_pci", "4.23.0")
    node.hardware("boot")
    assert not node.has(f"{SYS}/module")
    assert not node.has("dev/hailo0")


def test_the_governor_of_the_command_line_is_in_force_after_a_boot(node: Node) -> None:
    node.write("boot/firmware/cmdline.txt", "root=/dev/x cpufreq.default_governor=performance rootwait\n")
    node.hardware("boot")
    assert node.read(f"{SYS}/devices/system/cpu/cpu0/cpufreq/scaling_governor") == "performance\n"


def test_a_governor_stays_until_the_next_boot(node: Node) -> None:
    path = f"{SYS}/devices/system/cpu/cpu0/cpufreq/scaling_governor"
    node.write(path, "performance\n")
    node.hardware("fault", "hot")
    assert node.read(path) == "performance\n"
    node.hardware("boot")
    assert node.read(path) == "ondemand\n"


def test_config_txt_is_read_at_boot(node: Node) -> None:
    node.hardware("fault", "weak-supply")
    asked = ("get_config", "usb_max_current_enable")
    assert node.call("raspi-config", "nonint", "get_usb_current").stdout == "1\n"
    assert node.call("raspi-config", "nonint", "do_usb_current", "0").returncode == 0
    assert node.call("raspi-config", "nonint", "get_usb_current").stdout == "0\n"
    assert node.vcgencmd(*asked) == "usb_max_current_enable=0\n"
    node.hardware("boot")
    assert node.vcgencmd(*asked) == "usb_max_current_enable=1\n"
    node.call("raspi-config", "nonint", "do_usb_current", "1")
    assert node.call("raspi-config", "nonint", "get_usb_current").stdout == "1\n"


def test_raspi_config(node: Node) -> None:
    before = node.read("boot/firmware/config.txt")
    assert node.call("raspi-config", "nonint", "get_pci").stdout == "1\n"
    for _ in range(2):
        node.call("raspi-config", "nonint", "do_pci", "0")
        assert node.read("boot/firmware/config.txt") == before + "dtparam=pciex1_gen=3\n"
    assert node.call("raspi-config", "nonint", "get_pci").stdout == "0\n"
    node.call("raspi-config", "nonint", "do_pci", "1")
    assert node.read("boot/firmware/config.txt") == before
    assert node.call("raspi-config", "nonint", "get_pi_type").stdout == "5\n"
    assert node.call("raspi-config", "nonint", "is_pifive").returncode == 0
    assert node.call("raspi-config", "nonint", "do_magic").returncode == 127
    assert node.call("raspi-config").returncode == 1


def test_fresh_boot_files() -> None:
    command_line = (ROOT / "lab/hardware/cmdline.txt").read_text()
    assert command_line.count("\n") == 1
    assert "root=PARTUUID=" in command_line
    assert (ROOT / "lab/hardware/config.txt").read_text().splitlines()[-1] == "[all]"
