import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from ansible.module_utils.bramble import node_status as ns
from ansible.module_utils.testing import patch_module_args

import node_status as module

# `systemctl show --timestamp=unix --property=… -- a b` of systemd 257.
SHOW = """\
Type=exec
Result=success
NRestarts=2
Id=bramble-rpc-worker.service
ActiveState=active
SubState=running
UnitFileState=enabled
ActiveEnterTimestamp=@1732156800

Type=oneshot
Result=exit-code
NRestarts=0
Id=bramble-firewall.service
ActiveState=failed
SubState=failed
UnitFileState=enabled
ActiveEnterTimestamp=
"""


def no_systemd(_command: Sequence[str]) -> tuple[int, str]:
    return 127, ""


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_parse_show_reads_each_block() -> None:
    assert ns.parse_show(SHOW) == {
        "bramble-rpc-worker.service": {
            "active": "active",
            "sub": "running",
            "result": "success",
            "type": "exec",
            "enabled": "enabled",
            "restarts": 2,
            "since": "2024-11-21T02:40:00Z",
        },
        "bramble-firewall.service": {
            "active": "failed",
            "sub": "failed",
            "result": "exit-code",
            "type": "oneshot",
            "enabled": "enabled",
            "restarts": 0,
            "since": None,
        },
    }


@pytest.mark.parametrize("text", ["", "\n\n", "garbage\n\nmore", "ActiveState=active\n"])
def test_parse_show_ignores_what_names_no_unit(text: str) -> None:
    assert ns.parse_show(text) == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MemTotal:        8257488 kB\nMemAvailable:    7000000 kB\n", (8257488 * 1024, 7000000 * 1024)),
        ("MemTotal: 1 kB\n", (1024, None)),
        ("HugePages_Total:       0\nMemTotal: x kB\n", (None, None)),
        ("", (None, None)),
    ],
)
def test_parse_meminfo(text: str, expected: tuple[int | None, int | None]) -> None:
    assert tuple(ns.parse_meminfo(text).values()) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('ID=debian\nPRETTY_NAME="Debian GNU/Linux 13 (trixie)"\n', "Debian GNU/Linux 13 (trixie)"),
        ("PRETTY_NAME=Alpine\n", "Alpine"),
        ('PRETTY_NAME=""\n', None),
        ("", None),
    ],
)
def test_parse_os_release(text: str, expected: str | None) -> None:
    assert ns.parse_os_release(text) == expected


@pytest.mark.parametrize(("text", "expected"), [("48312\n", 48.312), ("-1500", -1.5), ("", None), ("N/A", None)])
def test_parse_temperature(text: str, expected: float | None) -> None:
    assert ns.parse_temperature(text) == expected


def test_templates_and_foreign_units_are_no_services() -> None:
    names = ["bramble-a.service", "bramble-b@.service", "bramble-b@1.service", "bramble-a.timer", "ssh.service"]
    assert ns.unit_names(names) == ["bramble-a.service", "bramble-b@1.service"]


def test_a_bare_machine_is_described_and_nothing_fails(tmp_path: Path) -> None:
    node = ns.read_node(no_systemd, tmp_path)
    assert node["services"] == {}
    assert node["llama_cpp"] == {"build": None}
    assert node["models"] == []
    assert node["rpc_head"] is None
    assert node["unreadable"] == []
    assert node["host"]["memory"] == {"total_bytes": None, "available_bytes": None}
    assert node["host"]["temperature_c"] is None


def test_a_provisioned_node_tells_all(tmp_path: Path) -> None:
    build = {"key": "abc123-0f", "commit": "abc123"}
    head = {"state": "ready", "model": "m", "layers": [{"host": "pi1", "layers": 4}]}
    write(tmp_path, "opt/llama.cpp/current/build.json", json.dumps(build))
    write(tmp_path, "run/bramble-rpc-head/state.json", json.dumps(head))
    write(tmp_path, "var/lib/bramble/models/m.json", json.dumps({"sha256": "00"}))
    write(tmp_path, "var/lib/bramble/models/m.gguf", "GGUF")
    write(tmp_path, "proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0\0")
    write(tmp_path, "proc/loadavg", "0.10 0.20 0.30 1/100 42\n")
    write(tmp_path, "sys/class/thermal/thermal_zone0/temp", "51000\n")
    for unit in ("bramble-rpc-worker.service", "bramble-firewall.service", "bramble-new.service"):
        write(tmp_path, f"etc/systemd/system/{unit}", "")
    asked: list[Sequence[str]] = []

    def systemctl(command: Sequence[str]) -> tuple[int, str]:
        asked.append(command)
        return 0, SHOW

    node = ns.read_node(systemctl, tmp_path)
    assert node["llama_cpp"]["build"] == build
    assert node["rpc_head"] == head
    assert node["models"] == [{"name": "m", "sha256": "00"}]
    assert node["host"]["model"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert node["host"]["load"] == [0.1, 0.2, 0.3]
    assert node["host"]["temperature_c"] == 51.0
    states = {unit: service["active"] for unit, service in node["services"].items()}
    assert states == {
        "bramble-firewall.service": "failed",
        "bramble-new.service": "unknown",
        "bramble-rpc-worker.service": "active",
    }
    assert len(asked) == 1
    assert asked[0][-3:] == ["bramble-firewall.service", "bramble-new.service", "bramble-rpc-worker.service"]


def test_services_are_unknown_without_systemd(tmp_path: Path) -> None:
    write(tmp_path, "etc/systemd/system/bramble-gateway.service", "")
    assert ns.read_node(no_systemd, tmp_path)["services"]["bramble-gateway.service"]["active"] == "unknown"


@pytest.mark.parametrize("text", ["{", "\xff", ""])
def test_a_broken_file_is_named_and_the_rest_is_read(tmp_path: Path, text: str) -> None:
    write(tmp_path, "run/bramble-rpc-head/state.json", text)
    write(tmp_path, "opt/llama.cpp/current/build.json", '{"key": "k"}')
    node = ns.read_node(no_systemd, tmp_path)
    assert node["rpc_head"] is None
    assert node["unreadable"] == ["/run/bramble-rpc-head/state.json"]
    assert node["llama_cpp"]["build"] == {"key": "k"}


def test_what_may_not_be_read_is_named(tmp_path: Path) -> None:
    # A directory in a file's place fails to be read for everybody, root included.
    (tmp_path / "run/bramble-rpc-head/state.json").mkdir(parents=True)
    assert ns.read_node(no_systemd, tmp_path)["unreadable"] == ["/run/bramble-rpc-head/state.json"]


@pytest.mark.parametrize("check", [False, True])
def test_the_module_answers_on_this_machine(capsys: pytest.CaptureFixture[str], check: bool) -> None:
    with patch_module_args({"_ansible_check_mode": check}), pytest.raises(SystemExit) as exit_:
        module.main()
    result = json.loads(capsys.readouterr().out)
    assert exit_.value.code == 0
    assert result["changed"] is False
    assert set(result) >= {"host", "services", "llama_cpp", "models", "rpc_head", "unreadable"}
    assert result["host"]["memory"]["total_bytes"] > 0
