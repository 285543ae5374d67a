"""A single-node server behind a gateway on another node, and Ollama there."""

from __future__ import annotations

import json
import re
import urllib.request

import pytest

from lab import Lab, run

pytestmark = pytest.mark.lab
# GET, or POST of the second argument.
ASK = """
import sys, urllib.request as r
data = sys.argv[2].encode() if len(sys.argv) > 2 else None
print(r.urlopen(r.Request(sys.argv[1], data, {"Content-Type": "application/json"}), timeout=60).read().decode())
"""
UNITS = [("pi1", "bramble-llama-server"), ("pi2", "bramble-gateway"), ("pi2", "bramble-ollama")]


@pytest.mark.parametrize(("node", "unit"), UNITS)
def test_the_service_runs_and_not_as_root(lab: Lab, node: str, unit: str) -> None:
    host = lab.host(node)
    assert host.service(unit).is_running
    assert host.service(unit).is_enabled
    pid = host.service(unit).systemd_properties["MainPID"]
    assert host.check_output("ps -o user:32= -p %s", pid).strip() == unit


@pytest.mark.parametrize(("node", "unit"), UNITS)
def test_the_unit_is_confined(lab: Lab, node: str, unit: str) -> None:
    last = lab.host(node).check_output("systemd-analyze security --no-pager %s", f"{unit}.service").splitlines()[-1]
    print(f"{unit}: {last}")
    found = re.search(r"exposure level for \S+: ([0-9.]+)", last)
    assert found is not None, last
    assert float(found[1]) <= 3.0


def test_the_server_knows_its_commit(lab: Lab) -> None:
    host = lab.host("pi1")
    commit = json.loads(host.file("/opt/llama.cpp/current/build.json").content_string)["commit"]
    done = host.run("/opt/llama.cpp/current/bin/llama-server --version")
    assert commit in done.stdout + done.stderr


def test_the_gateway_answers_from_the_other_node(lab: Lab) -> None:
    body = {"model": "bramble-synth", "prompt": "a", "stream": False, "options": {"num_predict": 4}}
    request = urllib.request.Request(
        f"http://{lab.address('pi2')}:11434/api/generate",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        answer = json.load(response)
    assert answer["done"] is True
    assert answer["eval_count"] == 4


def test_only_the_gateway_reaches_the_server(lab: Lab) -> None:
    target = f"{lab.address('pi1')}/8081"
    probe = f"timeout 3 bash -c 'exec 3<>/dev/tcp/{target}'"
    assert lab.shell("pi2", probe).returncode == 0
    # This machine may ssh in, and is no client of the server.
    assert run("bash", "-c", probe).returncode != 0


def test_ollama_has_its_model_and_answers(lab: Lab) -> None:
    """Asked from the one node that may ask it, as other nodes do."""
    url = f"http://{lab.address('pi2')}:11435"
    host = lab.host("pi1")
    tags = json.loads(host.check_output(f"python3 -c '{ASK}' {url}/api/tags"))
    assert [model["name"] for model in tags["models"]] == ["bramble-synth:latest"]
    body = json.dumps({"model": "bramble-synth", "prompt": "a", "stream": False, "options": {"num_predict": 4}})
    answer = json.loads(host.check_output(f"python3 -c '{ASK}' {url}/api/generate '{body}'"))
    assert answer["done"] is True
    assert answer["eval_count"] == 4
    assert run("bash", "-c", f"timeout 3 bash -c 'exec 3<>/dev/tcp/{lab.address('pi2')}/11435'").returncode != 0


def test_ollamas_archive_is_gone(lab: Lab) -> None:
    host = lab.host("pi2")
    assert host.check_output("find /var/cache/bramble -name 'ollama-*'") == ""
    assert host.check_output("find /opt/ollama -name installed | wc -l") == "1"
