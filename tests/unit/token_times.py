"""Records of the kind `token_time` to test with, invented: one model of 36 layers under strategies of splitting it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from record_values import partial

from bramble.records import Record, complete

INVENTED = "invented for the tests of the report: no measurement"
LLAMA_CPP = {"name": "llama.cpp", "commit": None, "build_key": "0fcb3760b2b9-1a2b3c4d", "version": "b7501"}
DISTRIBUTED = {"name": "distributed-llama", "commit": None, "build_key": "a7d6e5f4c3b2-5e6f7a8b", "version": "0.16.4"}
IPERF = {"name": "iperf3", "commit": None, "build_key": None, "version": "3.18"}
MODEL = {"name": "qwen3-4b-q4_k_m", "sha256": "b" * 64, "quant": "Q4_K_M", "bytes": 2_497_280_256}
CONVERTED = {"name": "Qwen3-4B-Q4_0", "sha256": "c" * 64, "quant": "Q4_0", "bytes": 2_950_000_000}
MEMORY = {"pi1": 5.7, "pi2": 5.72, "pi3": 6.3}
"""ms for each layer."""


def value(number: float, unit: str) -> dict[str, Any]:
    return {"value": number, "unit": unit}


def mean(number: float, unit: str, sd: float = 0.02) -> dict[str, Any]:
    return {"mean": number, "sd": round(sd * number, 6), "n": 5, "unit": unit}


def made(host: str, kind: str, *, minute: int = 0, notes: Iterable[str] = (), **fields: Any) -> Record:
    """A record of any kind, whole and valid."""
    started = f"2026-11-22T{10 + minute // 60:02d}:{minute % 60:02d}:00Z"
    told = partial(started_at=started, kind=kind, conditions__notes=[INVENTED, *notes], **fields)
    return complete(told, host, "kept")


def run(
    strategy: str,
    placement: str,
    layers: Mapping[str, int],
    result: Mapping[str, Any],
    *,
    nodes: Iterable[str] | None = None,
    logits: str = "head",
    link: str = "",
    minute: int = 0,
    **more: Any,
) -> Record:
    """A record of where a token's time goes."""
    names = [*(layers if nodes is None else nodes)]
    params = {
        "strategy": strategy,
        "placement": placement,
        "nodes": names,
        "layers": dict(layers),
        "logits": logits,
        "link": link,
        "n_prompt": 64,
        "n_gen": 64,
        "repetitions": 5,
    }
    fields = {"engine": LLAMA_CPP, "model": MODEL} | more
    return made(names[0], "token_time", minute=minute, params=params, result=dict(result), **fields)


def pipeline(
    strategy: str, layers: Mapping[str, int], *, logits: str = "head", link: str = "", minute: int = 0, **more: Any
) -> Record:
    """A run over RPC, or on one node: its figures follow from its layers, the link's rate and its delay."""
    head, *workers = layers
    mbit = {"100 Mbit/s": 94.1, "1 Gbit/s": 938.0}.get(link, 940.8)
    turn = 0.42 + (2.0 if link == "+1 ms" else 0.0)
    compute = {node: MEMORY[node] * count + (0.4 if node == head else 0.1) for node, count in layers.items()}
    compute[workers[-1] if logits == "worker" else head] += 16.1
    sent = {node: 16940.0 if place == 0 else 6500.0 for place, node in enumerate(workers)}
    received = dict.fromkeys(workers, 10248.0)
    if logits == "worker":
        received[workers[-1]] = 607752.0
    wire = sum(sent[node] + received[node] for node in workers) * 8 / (mbit * 1e3)
    network = wire + turn * len(workers)
    waited = dict.fromkeys(layers, 0.31)
    token = sum(compute.values()) + sum(waited.values()) + (network if workers else 0.9)
    result = {
        "decode": mean(1000 / token, "tok/s", 0.004),
        "prefill": mean(21.0 / max(len(workers), 1) ** 0.5, "tok/s"),
        "token": mean(token, "ms", 0.004),
        **{f"compute_{node}": value(each, "ms") for node, each in compute.items()},
        **{f"waited_{node}": value(each, "ms") for node, each in waited.items()},
    }
    if workers:
        result["network"] = value(network, "ms")
    for node in workers:
        result |= {
            f"sent_{node}": value(sent[node], "B"),
            f"received_{node}": value(received[node], "B"),
            f"messages_{node}": value(22.0 + received[node] // 1448, "segments"),
            f"rtt_{node}": value(round(0.19 + turn - 0.42, 3), "ms"),
            f"retransmitted_{node}": value(0, "segments"),
            f"interface_sent_{node}": value(round(received[node] * 1.06), "B"),
            f"interface_received_{node}": value(round(sent[node] * 1.09), "B"),
        }
    placement = "rpc" if workers else "replica"
    return run(strategy, placement, layers, result, logits=logits, link=link, minute=minute, **more)


def tensor(nodes: Iterable[str], *, link: str = "", minute: int = 0, **more: Any) -> Record:
    """A run over distributed-llama: its engine tells of the root alone."""
    names = [*nodes]
    carried = 2 * 36 * (len(names) - 1) * 2560 * 34 / 32
    logits = 151936 / len(names) * 4 * (len(names) - 1)
    mbit = 94.1 if link == "100 Mbit/s" else 940.8
    network = (carried + logits) * 8 / (mbit * 1e3) + 74 * 0.19
    compute = 238.0 / len(names)
    result = {
        "decode": mean(1000 / (compute + network), "tok/s", 0.006),
        "prefill": mean(27.0, "tok/s"),
        "token": mean(compute + network, "ms", 0.006),
        f"compute_{names[0]}": value(compute, "ms"),
        "network": value(network, "ms"),
        "sent": value(carried, "B"),
        "received": value(carried + logits, "B"),
    }
    fields = {"engine": DISTRIBUTED, "model": CONVERTED} | more
    return run("tensor", "tensor", {}, result, nodes=names, link=link, minute=minute, **fields)


def pair(one: str, other: str, mbit: float = 940.8, ping: float = 0.19, **more: Any) -> Record:
    result = {
        "ping_min": value(0.8 * ping, "ms"),
        "ping_avg": value(ping, "ms"),
        "ping_p99": value(1.6 * ping, "ms"),
        "ping_loss": value(0.0, "%"),
        "send": value(mbit, "Mbit/s"),
        "receive": value(mbit - 2.6, "Mbit/s"),
        "retransmits": value(0, "count"),
    }
    params = {"peer": other, "peer_address": "192.168.1.9", "seconds": 5}
    return made(one, "net_pair", engine=IPERF, model=None, params=params, result=result, **more)


def single(host: str, **more: Any) -> list[Record]:
    """The same model on one node, by llama-bench and over HTTP."""
    speed = 1000 / (MEMORY[host] * 36 + 17)
    bench = {"prefill": mean(21.4, "tok/s"), "decode": mean(speed, "tok/s", 0.004)}
    http = {
        "ttft": mean(3.1, "s") | {"p50": 3.09, "p95": 3.2},
        "decode": mean(speed * 0.99, "tok/s", 0.004),
        "throughput": value(speed * 0.9, "tok/s"),
    }
    asked = {"api": "openai", "prompt_tokens": 64, "max_tokens": 64, "concurrency": 1, "requests": 5}
    return [
        made(host, "llama_bench", engine=LLAMA_CPP, model=MODEL, result=bench, **more),
        made(host, "http_generate", engine=LLAMA_CPP, model=MODEL, params=asked, result=http, **more),
    ]


def sample() -> dict[str, list[Record]]:
    """Three nodes, pi1 the head. pi3 is somewhat slower."""
    planned = {"pi1": 13, "pi2": 13, "pi3": 10}
    found = [
        pipeline("planned", planned, minute=1),
        pipeline("even", {"pi1": 12, "pi2": 12, "pi3": 12}, minute=2),
        pipeline("by memory", {"pi1": 6, "pi2": 10, "pi3": 20}, minute=3),
        pipeline("head excluded", {"pi1": 0, "pi2": 18, "pi3": 18}, minute=4),
        pipeline("logits from the worker", planned, logits="worker", minute=5),
        pipeline("two nodes", {"pi1": 18, "pi2": 18}, minute=6),
        pipeline("one node", {"pi1": 36}, minute=7),
        tensor(["pi1", "pi2"], minute=8),
        pipeline("planned", planned, link="100 Mbit/s", minute=9),
        pipeline("planned", planned, link="+1 ms", minute=10),
        pipeline("logits from the worker", planned, logits="worker", link="100 Mbit/s", minute=11),
        tensor(["pi1", "pi2"], link="100 Mbit/s", minute=12),
        *(pair(one, other) for one in MEMORY for other in MEMORY if one != other),
        *single("pi1"),
        *single("pi3"),
    ]
    return {host: [record for record in found if record["host"] == host] for host in MEMORY}
