from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from ansible.module_utils.bramble import conditions as c
from hypothesis import given
from hypothesis import strategies as st

# `vcgencmd pmic_read_adc` of a Pi 5, two of its rails: 0.1·3.3 + 2·0.9 = 2.13 W.
PMIC = """\
   3V3_SYS_A current(1)=0.10000000A
  VDD_CORE_A current(7)=2.00000000A
   3V3_SYS_V volt(9)=3.30000000V
  VDD_CORE_V volt(15)=0.90000000V
     EXT5V_V volt(24)=5.05716000V
"""
BOOTLOADER = "2025/05/08 15:13:17\nversion 69471177f9bd0ba0d09d2f18f4a9b5e5dd3b4ee7 (release)\n"
TICKS = os.sysconf("SC_CLK_TCK")


class Firmware:
    """An emulation of vcgencmd and systemctl: answers from a table, and remembers what was asked."""

    def __init__(self, **answers: str) -> None:
        self.answers = {
            "get_throttled": "throttled=0x0\n",
            "pmic_read_adc": PMIC,
            "measure_temp": "temp=41.0'C\n",
            "bootloader_version": BOOTLOADER,
        } | answers
        self.asked: list[str] = []

    def __call__(self, command: Sequence[str]) -> tuple[int, str]:
        self.asked.append(command[1])
        if command[0] == "vcgencmd":
            return 0, self.answers[command[1]]
        return 0, self.answers.get("services", "")


def nothing(_command: Sequence[str]) -> tuple[int, str]:
    return 127, ""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def stat(busy_seconds: float, cores: int = 4) -> str:
    lines = [f"cpu  {int(busy_seconds * TICKS)} 0 0 999 5 0 0 7 0 0"]
    return "\n".join([*lines, *(f"cpu{number} 1 0 0 9 0 0 0 0 0 0" for number in range(cores)), "ctxt 1"]) + "\n"


@pytest.fixture
def pi(tmp_path: Path) -> Callable[..., c.Node]:
    """Lays out a Pi 5 below the test's directory."""
    write(tmp_path / "sys/class/thermal/thermal_zone0/temp", "48312\n")
    for core in range(4):
        write(tmp_path / f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor", "ondemand\n")
    write(tmp_path / "tree/model", "Raspberry Pi 5 Model B Rev 1.0\0")
    write(tmp_path / "proc/loadavg", "0.10 0.20 0.30 1/100 42\n")
    write(tmp_path / "proc/stat", stat(100))

    def make(run: c.Run | None = None) -> c.Node:
        run = run or Firmware()
        return c.Node(run=run, sysfs=tmp_path / "sys", device_tree=tmp_path / "tree", root=tmp_path)

    return make


@pytest.mark.parametrize(
    ("text", "expected"),
    [(BOOTLOADER, "2025-05-08"), ("2024-12-07 10:00\n", "2024-12-07"), ("", None), ("error=1", None), ("20/1/1", None)],
)
def test_parse_bootloader(text: str, expected: str | None) -> None:
    assert c.parse_bootloader(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("1.25 0.9 0.3 2/99 7\n", 1.25), ("", None), ("x y", None), ("1.25", None)]
)
def test_parse_load(text: str, expected: float | None) -> None:
    assert c.parse_load(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"cpu  {TICKS} {TICKS} {TICKS} 50 60 {TICKS} {TICKS} 70 80 90\ncpu0 1 2\ncpu1 1 2\n", (5.0, 2.0)),
        ("cpu  1 2 3\ncpu0 1 2\n", None),
        ("cpu  a b c d e f g h\ncpu0 1\n", None),
        ("cpu  1 2 3 4 5 6 7\n", None),
        ("", None),
    ],
)
def test_parse_busy(text: str, expected: tuple[float, float] | None) -> None:
    assert c.parse_busy(text) == expected


@given(
    st.text()
    | st.lists(st.sampled_from(["cpu", "cpu0", " ", "\n", "1", "99999999999999999999", "²", "x"])).map("".join)
)
def test_parsers_take_any_text(text: str) -> None:
    c.parse_bootloader(text)
    c.parse_load(text)
    c.parse_busy(text)


def test_a_node_tells_its_conditions(pi: Callable[..., c.Node]) -> None:
    with c.Observation(pi()) as seen:
        pass
    assert seen.conditions(["a note"]) == {
        "temp_c": {"before": 48.312, "after": 48.312, "max": 48.312},
        "throttled": {"before": "0x0", "after": "0x0"},
        "governor": "ondemand",
        "kernel": platform.release(),
        "bootloader": "2025-05-08",
        "board": "Raspberry Pi 5 Model B Rev 1.0",
        "power_w": None,  # it was over before the first sample
        "power_source": None,
        "notes": ["a note"],
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", seen.started_at)
    assert seen.duration_s >= 0


def test_a_machine_that_tells_nothing_has_all_conditions_as_none(tmp_path: Path) -> None:
    node = c.Node(run=nothing, sysfs=tmp_path, device_tree=tmp_path, root=tmp_path)
    with c.Observation(node, node.load()) as seen:
        seen.sampler.sample()
    assert seen.conditions((), 1.0) == {
        "temp_c": {"before": None, "after": None, "max": None},
        "throttled": {"before": None, "after": None},
        "governor": None,
        "kernel": platform.release(),
        "bootloader": None,
        "board": None,
        "power_w": None,
        "power_source": None,
        "notes": [],
    }


def test_temperature_comes_from_the_firmware_where_the_kernel_has_none(tmp_path: Path) -> None:
    assert c.Node(run=Firmware(), sysfs=tmp_path).temperature() == 41.0


def test_governors_that_differ_are_all_named(pi: Callable[..., c.Node], tmp_path: Path) -> None:
    write(tmp_path / "sys/devices/system/cpu/cpu2/cpufreq/scaling_governor", "powersave\n")
    assert pi().governor() == "ondemand,powersave"


def test_firmware_that_does_not_answer_is_asked_once() -> None:
    asked = []

    def run(command: Sequence[str]) -> tuple[int, str]:
        asked.append(command)
        return 255, ""

    node = c.Node(run=run)
    assert [node.watts() for _ in range(3)] == [None] * 3
    assert asked == [["vcgencmd", "pmic_read_adc"]]


def test_the_sampler_gives_mean_power_and_greatest_temperature(pi: Callable[..., c.Node], tmp_path: Path) -> None:
    firmware = Firmware()
    sampler = c.Sampler(pi(firmware))
    for milli, amperes, throttled in (("50000", "2.0", "0x0"), ("81500", "4.0", "0x50005"), ("60000", "", "0x50000")):
        write(tmp_path / "sys/class/thermal/thermal_zone0/temp", milli)
        firmware.answers["pmic_read_adc"] = PMIC.replace("2.00000000A", f"{amperes}A") if amperes else ""
        firmware.answers["get_throttled"] = f"throttled={throttled}\n"
        sampler.sample()
    assert sampler.power_w == pytest.approx((2.13 + 3.93) / 2)  # the third could not be read
    assert sampler.max_temp_c == 81.5
    assert sampler.throttled == {"under_voltage", "throttled"}
    assert sampler.samples == 3


def test_the_sampler_samples_in_the_background_and_stops(pi: Callable[..., c.Node]) -> None:
    limit = time.monotonic() + 20
    with c.Observation(pi(), interval=0.001) as seen:
        while seen.sampler.samples < 5 and time.monotonic() < limit:
            time.sleep(0.001)
    after = seen.sampler.samples
    assert after >= 5
    told = seen.conditions()
    assert (told["power_w"], told["power_source"]) == (2.13, "pmic")
    assert not seen.sampler._thread.is_alive()


@pytest.mark.parametrize(
    ("before", "sampled", "after", "expected"),
    [
        ("0x0", "0x0", "0x0", []),
        ("0x0", "0x0", "0x50000", ["under_voltage", "throttled"]),
        ("0x0", "0x0", "0x80008", ["soft_temperature_limit"]),
        # It had been so before: nobody knows of the time between, but for the samples.
        ("0x50000", "0x50000", "0x50000", []),
        ("0x50000", "0x50005", "0x50000", ["under_voltage", "throttled"]),
        ("0x20002", "0x20000", "0x20000", ["frequency_capped"]),
        ("", "", "", []),
    ],
)
def test_throttling_during_the_run(
    pi: Callable[..., c.Node], before: str, sampled: str, after: str, expected: list[str]
) -> None:
    firmware = Firmware(get_throttled=f"throttled={before}\n")
    with c.Observation(pi(firmware), interval=1000) as seen:
        firmware.answers["get_throttled"] = f"throttled={sampled}\n"
        seen.sampler.sample()
        firmware.answers["get_throttled"] = f"throttled={after}\n"
    assert seen.during() == expected
    told = seen.conditions()
    assert told["throttled"] == {"before": before or None, "after": after or None}
    assert told["notes"] == ([f"throttled during the run: {', '.join(expected)}"] if expected else [])


def test_what_else_ran_is_noted(pi: Callable[..., c.Node], tmp_path: Path) -> None:
    write(tmp_path / "etc/systemd/system/bramble-llama-server.service", "")
    write(tmp_path / "etc/systemd/system/bramble-firewall.service", "")
    running = "Id=bramble-llama-server.service\nActiveState=active\nSubState=running\n"
    done = "Id=bramble-firewall.service\nActiveState=active\nSubState=exited\n"
    with c.Observation(pi(Firmware(services=f"{running}\n{done}")), load=1.5) as seen:
        write(tmp_path / "proc/stat", stat(130))
    seen.duration_s = 10.0
    # 30 s of processor time in 10 s, 20 of them the benchmark's own.
    assert seen.others(20.0) == pytest.approx(1.0)
    assert seen.conditions((), 20.0)["notes"] == [
        "the load average was 1.50 before the run",
        "others used 1.0 of 4 cores during the run",
        "services that ran on this node: bramble-llama-server",
    ]
    assert seen.conditions((), 29.0)["notes"][1:] == ["services that ran on this node: bramble-llama-server"]


def test_an_error_of_the_measurement_is_not_swallowed(pi: Callable[..., c.Node]) -> None:
    seen = c.Observation(pi())
    with pytest.raises(ZeroDivisionError), seen:
        _ = 1 / 0
    assert not seen.sampler._thread.is_alive()


def test_commands_that_do_not_exist_or_fail_are_answers() -> None:
    assert c.run_command(["/does/not/exist"]) == (127, "")
    assert c.run_command(["sh", "-c", "echo out; echo err >&2; exit 3"]) == (3, "out\n")
