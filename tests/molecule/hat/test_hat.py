"""The driver of the (emulated) HAT and hailo-ollama on it."""

from __future__ import annotations

import json
import re

import pytest
from testinfra.host import Host

from lab import Lab, run

pytestmark = pytest.mark.lab
UNIT = "bramble-hailo-ollama"
MODEL = "qwen2.5-instruct:1.5b"
PROMPT = "a-secret-of-the-asker-7391"
# POST of the second argument.
ASK = """
import sys, urllib.request as r
request = r.Request(sys.argv[1], sys.argv[2].encode(), {"Content-Type": "application/json"})
print(r.urlopen(request, timeout=60).read().decode())
"""


@pytest.fixture
def hat(lab: Lab) -> Host:
    return lab.host("pi1")


def test_library_driver_and_server_are_of_one_version_and_stay_so(hat: Host) -> None:
    for package in ("h10-hailort", "h10-hailort-pcie-driver", "hailo-gen-ai-model-zoo"):
        assert hat.package(package).version.startswith("5.1.1")
    assert hat.package("dkms").is_installed
    held = hat.check_output("apt-mark showhold").split()
    assert {"hailo-h10-all", "h10-hailort", "h10-hailort-pcie-driver", "python3-h10-hailort"} <= set(held)


def test_nothing_for_the_hailo_8_is_there(hat: Host) -> None:
    for package in ("hailo-all", "hailort", "hailort-pcie-driver"):
        assert not hat.package(package).is_installed


def test_a_node_without_the_hat_has_none_of_it(lab: Lab) -> None:
    other = lab.host("pi2")
    assert not other.exists("hailortcli")
    assert not other.service(UNIT).exists


def test_the_driver_is_loaded_and_waits_for_no_boot(hat: Host) -> None:
    assert hat.file("/dev/hailo0").exists
    assert not hat.file("/run/bramble/reboot.d").exists
    assert "HAILO10H" in hat.check_output("hailortcli fw-control identify")


@pytest.mark.parametrize(("file", "module"), [("hailo_pci", "hailo_pci"), ("bramble-hailo1x", "hailo1x_pci")])
def test_the_drivers_descriptor_pages_are_limited(hat: Host, file: str, module: str) -> None:
    content = hat.file(f"/etc/modprobe.d/{file}.conf").content_string
    assert f"options {module} force_desc_page_size=4096" in content.splitlines()


def test_gstreamer_finds_libgomp_in_a_login_shell_and_looks_again(hat: Host) -> None:
    # The node's own programs need it anyway; what counts is that login shells still start, and name it.
    assert hat.check_output("bash -lc 'echo $LD_PRELOAD'").endswith("/libgomp.so.1")
    assert not hat.file("/home/pi/.cache/gstreamer-1.0/registry.aarch64.bin").exists


def test_the_service_runs_confined_and_sees_the_hat_alone(hat: Host) -> None:
    service = hat.service(UNIT)
    assert service.is_running
    assert service.is_enabled
    properties = service.systemd_properties
    assert hat.check_output("ps -o user:32= -p %s", properties["MainPID"]).strip() == UNIT
    assert properties["Restart"] == "always"
    assert properties["DevicePolicy"] == "closed"
    assert properties["DeviceAllow"] == "/dev/hailo0 rw"
    last = hat.check_output("systemd-analyze security --no-pager %s", f"{UNIT}.service").splitlines()[-1]
    print(f"{UNIT}: {last}")
    found = re.search(r"exposure level for \S+: ([0-9.]+)", last)
    assert found is not None, last
    assert float(found[1]) <= 3.5


def test_it_answers_its_client_and_writes_no_prompt_anywhere(lab: Lab, hat: Host) -> None:
    body = json.dumps({"model": MODEL, "prompt": PROMPT, "stream": False, "options": {"num_predict": 4}})
    url = f"http://{lab.address('pi1')}:8000/api/generate"
    answer = json.loads(lab.host("pi2").check_output(f"python3 -c '{ASK}' {url} '{body}'"))
    assert answer["done"] is True
    assert answer["eval_count"] > 0
    assert hat.run("sudo journalctl --no-pager | grep -v sudo | grep -c %s", PROMPT).stdout.strip() == "0"


def test_only_its_client_reaches_it(lab: Lab) -> None:
    assert run("bash", "-c", f"timeout 3 bash -c 'exec 3<>/dev/tcp/{lab.address('pi1')}/8000'").returncode != 0


def test_the_model_is_there_and_the_download_is_gone(lab: Lab, hat: Host) -> None:
    blobs = hat.check_output("sudo find /var/lib/bramble-hailo-ollama/hailo-ollama/models/blob/ -type f").split()
    assert len(blobs) == 1
    assert hat.check_output("find /var/cache/bramble -name '*.deb'") == ""
