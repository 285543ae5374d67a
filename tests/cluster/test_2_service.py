"""What people get: an answer, by every client, and a cluster that says what it is."""

from __future__ import annotations

import json
import re
import subprocess

import ollama
import openai
import pytest

from lab import Lab

pytestmark = pytest.mark.lab
MODEL = "bramble-synth"
QUESTION = [{"role": "user", "content": "Which fruits grow on brambles?"}]
UNITS = [
    ("pi1", "bramble-rpc-head"),
    ("pi1", "bramble-gateway"),
    ("pi2", "bramble-rpc-worker"),
    ("pi3", "bramble-rpc-worker"),
]


def test_status_shows_three_nodes_with_layers_of_one_build(cluster: Lab) -> None:
    done = cluster.bramble("status", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    status = json.loads(done.stdout)
    assert status["ok"] is True
    assert status["problems"] == []
    assert {name: node["layers"] for name, node in status["nodes"].items()} == {"pi1": 4, "pi2": 4, "pi3": 4}
    assert status["model"]["layers"] == {"pi1": 4, "pi2": 4, "pi3": 4}
    assert len(status["build_keys"]) == 1
    assert {node["build_key"] for node in status["nodes"].values()} == set(status["build_keys"])


def test_each_worker_holds_what_the_head_gave_it(cluster: Lab) -> None:
    state = json.loads(cluster.shell("pi1", "cat /run/bramble-rpc-head/state.json").stdout)
    held = {entry["host"]: entry["bytes"] for entry in state["layers"]}
    assert held["pi2"] == held["pi3"] > 10_000_000
    assert held["pi1"] > held["pi2"]  # the embedding and the output besides its layers


def test_curl_gets_ndjson_and_a_final_object(url: str) -> None:
    body = {"model": MODEL, "messages": QUESTION, "stream": True, "options": {"num_predict": 12}}
    done = subprocess.run(
        ["curl", "-sSN", f"{url}/api/chat", "-d", json.dumps(body)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    *chunks, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(chunks) >= 10
    assert all(chunk["done"] is False for chunk in chunks)
    assert last["done"] is True
    assert last["eval_count"] == 12
    assert last["eval_duration"] > 0


def test_the_ollama_client_chats(url: str) -> None:
    client = ollama.Client(host=url)
    assert f"{MODEL}:latest" in [model.model for model in client.list().models]
    pieces = list(client.chat(MODEL, messages=QUESTION, stream=True, options={"num_predict": 12}))
    assert pieces[-1].done is True
    assert "".join(piece.message.content or "" for piece in pieces).strip()


def test_the_openai_client_chats(url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    whole = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=12)  # type: ignore[arg-type]
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 12
    stream = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,  # type: ignore[arg-type]
        max_tokens=12,
        stream=True,
    )
    assert sum(bool(chunk.choices and chunk.choices[0].delta.content) for chunk in stream) >= 10


def test_bramble_ask_streams_the_answer(cluster: Lab) -> None:
    done = cluster.bramble("ask", "Hello", "--max-tokens", "12")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert re.search(r"12 tokens, [0-9.]+ tokens/s", done.stderr)


@pytest.mark.parametrize(("node", "unit"), UNITS)
def test_the_service_runs_confined_and_not_as_root(cluster: Lab, node: str, unit: str) -> None:
    host = cluster.host(node)
    service = host.service(unit)
    assert service.is_running
    assert service.is_enabled
    assert host.check_output("ps -o user:32= -p %s", service.systemd_properties["MainPID"]).strip() == unit
    for name, wanted in {"NoNewPrivileges": "yes", "ProtectSystem": "strict", "PrivateTmp": "yes"}.items():
        assert service.systemd_properties[name] == wanted
    last = host.check_output("systemd-analyze security --no-pager %s", f"{unit}.service").splitlines()[-1]
    print(f"{node} {last}")
    found = re.search(r"exposure level for \S+: ([0-9.]+)", last)
    assert found is not None, last
    assert float(found[1]) <= 3.0


def test_the_confinement_is_in_force_and_not_only_written(cluster: Lab) -> None:
    host = cluster.host("pi2")
    pid = host.service("bramble-rpc-worker").systemd_properties["MainPID"]
    mounts = host.check_output("sudo cat /proc/%s/mounts", pid)
    assert re.search(r"^\S+ / \S+ ro,", mounts, re.MULTILINE), "the root file system is not read-only for the service"
    assert "Seccomp:\t2" in host.check_output("sudo cat /proc/%s/status", pid)


def test_no_prompt_reaches_the_journal(cluster: Lab, url: str) -> None:
    secret = "xylophone-4711"
    ollama.Client(host=url).chat(MODEL, messages=[{"role": "user", "content": secret}], options={"num_predict": 4})
    journal = cluster.shell("pi1", "journalctl --no-pager -u bramble-gateway -u bramble-rpc-head").stdout
    assert "bramble-gateway" in journal or "backend=" in journal
    assert secret not in journal


def test_what_does_not_map_its_weights_asks_for_huge_pages(cluster: Lab) -> None:
    for node, unit in (("pi1", "bramble-rpc-head"), ("pi2", "bramble-rpc-worker"), ("pi3", "bramble-rpc-worker")):
        # Of the processes that compute: the head's is a child of its supervisor.
        seen = cluster.shell(
            node,
            f"for pid in $(cat /sys/fs/cgroup/system.slice/{unit}.service/cgroup.procs); do"
            " grep --quiet --null-data '^GLIBC_TUNABLES=glibc.malloc.hugetlb=1$' /proc/$pid/environ"
            " && cat /proc/$pid/comm; done",
        ).stdout
        assert "llama-server" in seen or "ggml-rpc-server" in seen, seen
