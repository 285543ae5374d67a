"""What the preflight finds on nodes, and what it says to do about it."""

import copy
import json
from collections.abc import Mapping
from typing import Any

import pytest
from ansible.module_utils.bramble import preflight as pre
from ansible.module_utils.bramble.hailo_facts import find_problems
from hypothesis import given
from hypothesis import strategies as st

PI: dict[str, Any] = {
    "model": "Raspberry Pi 5 Model B Rev 1.1",
    "is_pi5": True,
    "kernel": "6.18.50+rpt-rpi-2712",
    "memory_cgroup": True,
    "memory_cgroup_next_boot": True,
    "bootloader": {"date": "2025-05-08", "version": "69471177", "update_available": False},
    "throttled": {"raw": "0x0", "now": [], "since_boot": []},
    "temperature_c": 48.8,
    "supply": {"max_current_ma": 5000, "usb_power_delivery": True, "usb_max_current_enable": True},
    "power": {"watts": 3.2, "rails": {}, "input_volts": 5.06, "blind_to": "USB"},
    "cooling": {"fan": True, "rpm": 2820},
    "storage": {"device": "mmcblk0", "bytes": 63864569856, "free_bytes": 50_000_000_000},
    "link": {"interface": "eth0", "wired": True, "speed_mbps": 1000, "duplex": "full"},
    "unreadable": [],
}
OS: dict[str, Any] = {
    "distribution": "Debian",
    "version": "13.2",
    "codename": "trixie",
    "architecture": "aarch64",
    "kernel": "6.18.50+rpt-rpi-2712",
}
HAILO: dict[str, Any] = {
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
    "packages": {"dkms": "3.1.8-1", "h10-hailort": "5.1.1", "h10-hailort-pcie-driver": "5.1.1"},
    "dkms": True,
    "problems": [],
    "unreadable": [],
}
# As a HAT is on a card that was just written.
BARE_HAILO: dict[str, Any] = {
    **HAILO,
    "driver": {"module": None, "version": None, "loaded": False},
    "node": None,
    "devices": None,
    "library_version": None,
    "firmware_version": None,
    "architecture": None,
    "packages": {},
    "dkms": False,
}


def node(distributed: bool = True, hailo: bool = False, **changes: Any) -> dict[str, Any]:
    """A node in order, with changes by path: `pi__link__speed_mbps=100`."""
    made: dict[str, Any] = copy.deepcopy(
        {
            "pi": PI,
            "hailo": HAILO if hailo else None,
            "os": OS,
            "roles": {"distributed": distributed, "hailo": hailo},
        }
    )
    for path, value in changes.items():
        *way, last = path.split("__")
        place = made
        for name in way:
            place = place[name]
        place[last] = value
    return made


def found(one: Mapping[str, Any], **requirements: Any) -> list[pre.Problem]:
    return pre.preflight_problems({"pi1": one}, requirements)


def throttled(raw: str, now: list[str], since_boot: list[str]) -> dict[str, Any]:
    return {"raw": raw, "now": now, "since_boot": since_boot}


@pytest.mark.parametrize("one", [node(), node(distributed=False), node(hailo=True), node(os__version="12.11")])
def test_nodes_in_order_have_no_problems(one: dict[str, Any]) -> None:
    assert found(one) == []


def test_a_card_that_was_just_written_is_in_order() -> None:
    assert found(node(hailo=True) | {"hailo": BARE_HAILO}) == []


@pytest.mark.parametrize(
    ("changes", "severity", "check", "what", "fix"),
    [
        ({"os__version": "12.11", "hailo": True}, "error", "release", "the AI HAT+ 2 needs Debian 13", "trixie|13"),
        ({"os__version": "11.9"}, "error", "release", "runs Debian 11", "Raspberry Pi OS Lite (64-bit)"),
        ({"os__version": None, "os__codename": "bookworm", "hailo": True}, "error", "release", "Debian 12", "anew"),
        ({"os__distribution": "Ubuntu", "os__version": "24.04"}, "error", "release", "runs Ubuntu", "anew"),
        ({"os__architecture": "armv7l"}, "error", "release", "32-bit system (armv7l)", "64-bit"),
        ({"os__userspace_bits": "32"}, "error", "release", "aarch64 with 32-bit programs", "64-bit"),
        ({"os__kernel": "6.6.62+rpt-rpi-2712"}, "error", "kernel", "6.12 or newer", "full-upgrade"),
        ({"os__kernel": None, "pi__kernel": "5.15.0"}, "error", "kernel", "kernel 5.15.0", "full-upgrade"),
        (
            {"pi__bootloader": {"date": "2024-04-20", "update_available": True}},
            "error",
            "bootloader",
            "of 2024-04-20",
            "sudo rpi-eeprom-update -a, then sudo reboot",
        ),
        (
            {"pi__bootloader": {"date": "2024-12-06", "update_available": False}},
            "error",
            "bootloader",
            "2024-12-07",
            "full-upgrade, then sudo rpi-eeprom-update -a",
        ),
        ({"pi__storage__bytes": 7948206080}, "error", "card", "mmcblk0 has 7.9 GB", "32 GB"),
        ({"pi__storage__free_bytes": 10**9}, "error", "card", "1.0 GB free", "larger card"),
        (
            {"pi__supply": {"max_current_ma": 3000, "usb_power_delivery": False}},
            "error",
            "supply",
            "3000 mA",
            "PSU_MAX_CURRENT=5000",
        ),
        (
            {
                "pi__throttled": throttled("0x10001", ["under_voltage"], ["under_voltage"]),
                "pi__power__input_volts": 4.59,
            },
            "error",
            "throttled",
            "under voltage; 4.59 V",
            "27 W supply",
        ),
        (
            {"pi__throttled": throttled("0x4", ["throttled"], ["throttled"])},
            "error",
            "throttled",
            "now (throttled",
            "supply and at the cooling",
        ),
        (
            {
                "pi__throttled": throttled("0x80008", ["soft_temperature_limit"], ["soft_temperature_limit"]),
                "pi__temperature_c": 86.2,
            },
            "error",
            "throttled",
            "soft temperature limit; 86 °C",
            "Active Cooler",
        ),
        (
            {"pi__throttled": throttled("0x50000", [], ["under_voltage", "throttled"])},
            "warning",
            "throttled_before",
            "since boot (under voltage, throttled)",
            "27 W supply",
        ),
        (
            {"pi__throttled": throttled("0x80000", [], ["soft_temperature_limit"])},
            "warning",
            "throttled_before",
            "soft temperature limit",
            "Active Cooler",
        ),
        ({"pi__temperature_c": 80.0}, "error", "temperature", "80 °C", "Active Cooler"),
        ({"pi__cooling": {"fan": False, "rpm": None}}, "warning", "cooling", "no fan", "Active Cooler"),
        (
            {"pi__memory_cgroup": False, "pi__memory_cgroup_next_boot": False},
            "warning",
            "memory_cgroup",
            "memory controller is off",
            "cgroup_enable=memory",
        ),
        (
            {"pi__memory_cgroup": False},
            "warning",
            "memory_cgroup",
            "memory controller is off",
            "sudo reboot: cmdline.txt",
        ),
        ({"pi__link__speed_mbps": 100}, "error", "link", "eth0 runs at 100 Mbit/s", "8 wires"),
        ({"pi__link__speed_mbps": 100, "distributed": False}, "warning", "link", "100 Mbit/s", "8 wires"),
        ({"pi__link": {"interface": "wlan0", "wired": False}}, "error", "link", "Wi-Fi (wlan0)", "Ethernet"),
        (
            {"pi__link": {"interface": "wlan0", "wired": False}, "distributed": False},
            "warning",
            "link",
            "Wi-Fi",
            "Ethernet",
        ),
        ({"hailo": True, "hailo__present": False}, "error", "hailo", "no Hailo device is on the PCIe bus", "ribbon"),
        ({"hailo": True, "hailo__pci_id": "1e60:2864"}, "error", "hailo", "1e60:2864", "AI HAT+ 2"),
        ({"hailo": True, "hailo__devices": []}, "error", "hailo", "the device is lost", "unplug"),
        (
            {"hailo": True, "hailo__packages": {"dkms": "3", "hailo-all": "4.23.0"}},
            "error",
            "hailo",
            "hailo-all 4.23.0",
            "hailo-h10-all",
        ),
        ({"hailo": True, "hailo__driver__version": "5.2.0"}, "warning", "hailo", "driver 5.2.0", "poweroff"),
        ({"hailo": True, "hailo__link_speed_gts": 5.0}, "warning", "hailo", "5 GT/s", "pciex1_gen=3"),
    ],
)
def test_each_problem_alone_is_one_line_with_its_fix(
    changes: dict[str, Any], severity: str, check: str, what: str, fix: str
) -> None:
    roles = {name: changes.pop(name) for name in ("distributed", "hailo") if name in changes}
    problems = found(node(**roles, **changes))
    assert [(problem.severity, problem.check) for problem in problems] == [(severity, check)]
    assert what in problems[0].what
    assert any(part in problems[0].fix for part in fix.split("|"))
    assert pre.render(problems[0]) == f"pi1: {problems[0].what}: {problems[0].fix}"


def test_six_faults_on_three_nodes_are_six_lines_with_fixes_at_once() -> None:
    nodes = {
        "pi3": node(
            pi__storage__bytes=7948206080,
            pi__throttled=throttled("0x80008", ["soft_temperature_limit"], ["soft_temperature_limit"]),
            pi__temperature_c=86.2,
        ),
        "pi1": node(
            pi__supply={"max_current_ma": 3000, "usb_power_delivery": False},
            pi__bootloader={"date": "2024-04-20", "update_available": True},
        ),
        "pi2": node(
            pi__link__speed_mbps=100,
            pi__throttled=throttled("0x10001", ["under_voltage"], ["under_voltage"]),
            pi__power__input_volts=4.592,
        ),
    }
    lines = pre.preflight(nodes, {})
    assert lines == {
        "errors": [
            "pi1: the bootloader is of 2024-04-20, and that of 2024-12-07 or a newer one is needed for full memory "
            "speed: sudo rpi-eeprom-update -a, then sudo reboot",
            "pi1: the supply gives 3000 mA as far as the firmware knows, and 5000 are needed: use Raspberry Pi's 27 W "
            "supply; if yours gives that and cannot say so: sudo rpi-eeprom-config -e, PSU_MAX_CURRENT=5000",
            "pi2: the firmware holds the processor back now (under voltage; 4.59 V come in): use the 27 W supply with "
            "its own cable, and take power-hungry USB devices off",
            "pi2: eth0 runs at 100 Mbit/s, less than 1000, and it shares a model with others over it: use a cable with "
            "all 8 wires (Cat 5e or better) and a gigabit port of the switch",
            "pi3: mmcblk0 has 7.9 GB, and 15.0 GB are needed: use a card or an SSD of 32 GB or more",
            "pi3: the firmware holds the processor back now (soft temperature limit; 86 °C): fit the Active Cooler, "
            "let air in, or lower the load",
        ],
        "warnings": [],
        "notes": [],
    }
    assert pre.preflight(dict(sorted(nodes.items())), {}) == lines


def test_errors_come_first_and_pi10_after_pi2() -> None:
    faulty = node(pi__cooling={"fan": False}, pi__link__speed_mbps=100)
    problems = pre.preflight_problems({"pi10": faulty, "pi2": faulty, "a": faulty}, {})
    assert [(problem.host, problem.severity) for problem in problems] == [
        (host, severity) for host in ("a", "pi2", "pi10") for severity in ("error", "warning")
    ]
    lines = [*pre.error_lines(problems), *pre.warning_lines(problems), *pre.note_lines(problems)]
    assert sorted(lines) == sorted(map(pre.render, problems))


def test_another_cause_since_boot_is_told_beside_what_is_now() -> None:
    everything = ["under_voltage", "frequency_capped", "throttled", "soft_temperature_limit"]
    problems = found(node(pi__throttled=throttled("0xf0001", ["under_voltage"], everything)))
    assert [(problem.check, problem.severity) for problem in problems] == [
        ("throttled", "error"),
        ("throttled_before", "warning"),
    ]
    assert "(soft temperature limit)" in problems[1].what


def nothing_known(value: Any) -> Any:
    """The same facts with every value null, and the Pi still a Pi."""
    if isinstance(value, dict):
        return {name: True if name == "is_pi5" else nothing_known(item) for name, item in value.items()}
    return [] if isinstance(value, list) else None


def test_what_is_not_known_is_one_note() -> None:
    one = node() | {"pi": nothing_known(PI), "os": nothing_known(OS)}
    problems = found(one)
    assert [(problem.severity, problem.check) for problem in problems] == [("note", "unknown")]
    for name in ("operating system", "kernel", "bootloader", "supply", "throttling", "temperature", "cooling", "link"):
        assert name in problems[0].what


@pytest.mark.parametrize(
    ("one", "what"),
    [
        ({}, "pi_facts has not been read"),
        (node() | {"pi": None}, "pi_facts has not been read"),
        (node(hailo=True) | {"hailo": None}, "hailo_facts has not been read"),
        (node(pi__is_pi5=False, pi__model=None, pi__supply={}), "is no Raspberry Pi 5"),
        (node(pi__unreadable=["vcgencmd get_throttled: no answer within 5 s"]), "no answer within 5 s"),
        (node() | {"hailo": HAILO}, "has a Hailo device, and is not to use it"),
    ],
)
def test_what_was_not_looked_at_is_noted(one: dict[str, Any], what: str) -> None:
    problems = found(one)
    assert {problem.severity for problem in problems} == {"note"}
    assert any(what in problem.what for problem in problems)


def test_a_machine_that_is_no_pi_is_still_checked_for_what_is_common() -> None:
    one = node(pi__is_pi5=False, pi__supply={"max_current_ma": 100}, pi__link__speed_mbps=100, os__kernel="5.10")
    assert {problem.check for problem in found(one) if problem.severity == "error"} == {"kernel", "link"}


@pytest.mark.parametrize(
    ("requirements", "changes"),
    [
        ({"minimum_kernel": "6.1"}, {"os__kernel": "6.1.0-28-amd64"}),
        ({"minimum_bootloader_date": "2024-01-01"}, {"pi__bootloader__date": "2024-04-20"}),
        ({"minimum_card_bytes": 7e9}, {"pi__storage__bytes": 7948206080}),
        ({"minimum_free_bytes": 0}, {"pi__storage__free_bytes": 0}),
        ({"supply_ma": 3000}, {"pi__supply__max_current_ma": 3000}),
        ({"releases": ["11", 12]}, {"os__version": "11"}),
        ({"hailo_releases": [12, 13]}, {"os__version": "12", "hailo": True}),
        ({"minimum_link_mbps": 100}, {"pi__link__speed_mbps": 100}),
        ({"temperature_limit_c": 85}, {"pi__temperature_c": 84.9}),
    ],
)
def test_each_requirement_can_be_lowered(requirements: dict[str, Any], changes: dict[str, Any]) -> None:
    roles = {name: changes.pop(name) for name in ("hailo",) if name in changes}
    one = node(**roles, **changes)
    assert pre.error_lines(found(one)) != []
    assert pre.error_lines(found(one, **requirements)) == []


def test_an_error_can_be_made_a_warning() -> None:
    one = node(pi__supply__max_current_ma=3000, pi__link__speed_mbps=100)
    problems = found(one, warn_only=["supply"])
    assert [(problem.check, problem.severity) for problem in problems] == [("link", "error"), ("supply", "warning")]


@pytest.mark.parametrize(
    ("requirements", "message"),
    [
        ({"minimum_kernal": "6.12"}, "minimum_kernal: no such requirement; there are .*minimum_kernel"),
        ({"minimum_kernel": "new"}, "minimum_kernel is 'new'"),
        ({"minimum_bootloader_date": "2024-13-01"}, "minimum_bootloader_date is '2024-13-01'"),
        ({"supply_ma": "much"}, "supply_ma is 'much'"),
        ({"temperature_limit_c": True}, "temperature_limit_c is True"),
        ({"releases": []}, "releases is not a list"),
        ({"releases": ["trixie"]}, "releases is not a list"),
        ({"hailo_releases": 13}, "hailo_releases is not a list"),
        ({"warn_only": ["suply"]}, "warn_only is .*supply"),
        ({"warn_only": "supply"}, "warn_only is"),
    ],
)
def test_a_wrong_requirement_is_refused_with_what_to_write(requirements: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        found(node(), **requirements)


def test_a_node_is_made_of_ansibles_facts() -> None:
    facts = {
        "distribution": "Debian",
        "distribution_version": "12.11",
        "distribution_release": "bookworm",
        "architecture": "aarch64",
        "userspace_bits": "64",
        "kernel": "6.12.34+rpt-rpi-2712",
        "pi": PI,
        "hailo": HAILO,
    }
    assert found(pre.preflight_node(facts, distributed=True, hailo=False)) != []  # the note on the HAT
    problems = found(pre.preflight_node(facts, distributed=True, hailo=True))
    assert [problem.check for problem in problems] == ["release"]
    assert all(problem.severity == "note" for problem in found(pre.preflight_node({}, distributed=True, hailo=True)))


def test_the_hats_problems_are_those_of_the_facts() -> None:
    broken = HAILO | {"devices": []}
    told = [problem.what for problem in found(node(hailo=True) | {"hailo": broken})]
    assert told == [problem.seen for problem in find_problems(broken)]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def leaves(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    deeper = (
        [leaf for name, item in value.items() for leaf in leaves(item, (*path, name))]
        if isinstance(value, dict)
        else []
    )
    return [*([path] if path else []), *deeper]


PATHS = leaves(node(hailo=True))


@given(st.lists(st.tuples(st.sampled_from(PATHS), json_values), min_size=1, max_size=4), st.text(max_size=8))
def test_no_facts_are_too_odd(changes: list[tuple[tuple[str, ...], Any]], host: str) -> None:
    one = node(hailo=True)
    for path, value in changes:
        place: Any = one
        for name in path[:-1]:
            place = place.get(name) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place[path[-1]] = value
    problems = pre.preflight_problems({host: one}, {})
    assert all(len(pre.render(problem).splitlines()) <= 1 for problem in problems)
    assert all(problem.fix for problem in problems if problem.severity != "note")
    assert problems == pre.preflight_problems({host: one}, {})
    json.dumps(pre.preflight({host: one}, {}))


@given(st.dictionaries(st.sampled_from([*pre.REQUIREMENTS, "x"]), json_values, max_size=3))
def test_no_requirement_is_too_odd(requirements: dict[str, Any]) -> None:
    try:
        found(node(hailo=True), **requirements)
    except ValueError as error:
        assert any(name in str(error) for name in requirements)  # noqa: PT017 - a right value is no error


@given(st.sampled_from(["pi", "hailo", "os", "roles"]), json_values)
def test_no_part_of_a_node_is_too_odd(part: str, value: Any) -> None:
    for one in (node(hailo=True) | {part: value}, {part: value}):
        pre.preflight({"pi1": one}, {})
