"""What `bramble status` reports: from the events of ``playbooks/status.yml`` and the gateway's answer to one report.

The report's shape is a contract for those who read ``bramble status --json``; `build_report` states it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from bramble.runner import Event, Progress, cause

type Json = dict[str, Any]

GATEWAY_TIMEOUT = 5.0
# Groups whose hosts run one of Bramble's services.
SERVICE_GROUPS = frozenset({"dllama_api", "dllama_worker", "gateway", "llama_server", "rpc_head", "rpc_worker"})


@dataclass(slots=True)
class NodeFacts:
    """What a run of ``playbooks/status.yml`` told about one node. ``error``: why `state` is not there."""

    address: str | None = None
    groups: tuple[str, ...] = ()
    state: Mapping[str, Any] | None = None
    error: str | None = None
    reachable: bool = True


@dataclass(slots=True)
class Collector:
    """Takes the results of ``playbooks/status.yml`` from the run's events."""

    nodes: dict[str, NodeFacts] = field(default_factory=dict)
    gateway_url: str | None = None

    def __call__(self, _progress: Progress, event: Event) -> None:
        data = event.get("event_data") or {}
        result = data.get("res") or {}
        kind = event.get("event")
        if kind not in ("runner_on_ok", "runner_on_failed", "runner_on_unreachable"):
            return
        node = self.nodes.setdefault(str(data.get("host")), NodeFacts())
        message = result.get("msg")
        if isinstance(message, Mapping) and "bramble_node" in message:
            told = message["bramble_node"]
            node.address = str(told["address"])
            node.groups = tuple(told["groups"])
            if told["gateway"]["address"]:
                self.gateway_url = url(str(told["gateway"]["address"]), str(told["gateway"]["port"]))
        elif data.get("task_action") == "node_status":
            if kind == "runner_on_ok":
                node.state = result
            else:
                node.error = " ".join(cause(result))
                node.reachable = kind != "runner_on_unreachable"


def url(host: str, port: str) -> str:
    """The address of an HTTP service; an IPv6 address goes into brackets."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def fetch_gateway(address: str | None, client: httpx.Client | None = None) -> Json:
    """The gateway's part of the report: ``GET /bramble/status``, or why there is no answer."""
    report: Json = {"url": address, "reachable": False, "version": None, "backends": [], "error": None}
    if address is None:
        return {**report, "error": "the inventory has no host in the group gateway"}
    try:
        with client or httpx.Client(timeout=GATEWAY_TIMEOUT, trust_env=False) as http:
            response = http.get(f"{address}/bramble/status")
        response.raise_for_status()
        answer = response.json()
        if not isinstance(answer, dict):
            raise ValueError("not a JSON object")
    except httpx.HTTPStatusError as error:
        return {**report, "error": f"HTTP status {error.response.status_code}"}
    except httpx.HTTPError as error:
        return {**report, "error": str(error) or type(error).__name__}
    except ValueError as error:
        return {**report, "error": f"no valid answer: {error}"}
    return {**report, "reachable": True, "version": answer.get("version"), "backends": answer.get("backends") or []}


def build_report(nodes: Mapping[str, NodeFacts], gateway: Json) -> Json:
    """The report, JSON values only:

    | key | value |
    |---|---|
    | ok | true if there is no problem |
    | problems | a list of sentences, each naming its place |
    | gateway | url, reachable, version, backends (as the gateway tells them), error |
    | nodes | by name: reachable, error, address, groups, host, services, build_key, models, layers, head, unreadable |
    | model | name, state (waiting, loading, ready), url, layers by node, bytes by node: what the RPC head has loaded |
    | build_keys | the different builds of llama.cpp on the nodes; more than one is a problem |
    | last_tokens_per_second | of the gateway's last answer; null before the first |

    Keys are added to it, never renamed or removed.
    """
    model = _model(nodes)
    report: Json = {
        "ok": False,
        "problems": [],
        "gateway": gateway,
        "nodes": {name: _node(facts, model["layers"].get(name, 0)) for name, facts in sorted(nodes.items())},
        "model": model,
        "build_keys": [],
        "last_tokens_per_second": last_tokens_per_second(gateway["backends"]),
    }
    report["build_keys"] = sorted({node["build_key"] for node in report["nodes"].values() if node["build_key"]})
    report["problems"] = find_problems(report)
    report["ok"] = not report["problems"]
    return report


def _node(facts: NodeFacts, layers: int) -> Json:
    state = facts.state or {}
    build = (state.get("llama_cpp") or {}).get("build") or {}
    return {
        "reachable": facts.reachable,
        "error": facts.error,
        "address": facts.address,
        "groups": list(facts.groups),
        "host": state.get("host"),
        "services": state.get("services") or {},
        "build_key": build.get("key"),
        "models": state.get("models") or [],
        "layers": layers,
        "head": state.get("rpc_head"),
        "unreadable": state.get("unreadable") or [],
    }


def _model(nodes: Mapping[str, NodeFacts]) -> Json:
    for _, facts in sorted(nodes.items()):
        head = (facts.state or {}).get("rpc_head")
        if head:
            layers: dict[str, int] = {}
            size: dict[str, int] = {}
            # A host appears once for each of its devices.
            for part in head.get("layers") or []:
                layers[part["host"]] = layers.get(part["host"], 0) + int(part.get("layers") or 0)
                size[part["host"]] = size.get(part["host"], 0) + int(part.get("bytes") or 0)
            keys = {key: head.get(key) for key in ("state", "url")}
            return {"name": head.get("model"), **keys, "layers": layers, "bytes": size}
    return {"name": None, "state": None, "url": None, "layers": {}, "bytes": {}}


def last_tokens_per_second(backends: list[Json]) -> float | None:
    """The generation rate of the most recent answer of any backend."""
    last = [b["last"] for b in backends if b.get("last") and b["last"].get("tokens_per_second") is not None]
    newest = max(last, key=lambda measured: str(measured.get("at") or ""), default=None)
    return float(newest["tokens_per_second"]) if newest else None


def find_problems(report: Json) -> list[str]:
    """What is not well, one sentence each, from the rest of the report."""
    problems: list[str] = []
    nodes: dict[str, Json] = report["nodes"]
    for name, node in nodes.items():
        if not node["reachable"]:
            problems.append(f"{name} ({node['address']}): cannot be reached: {node['error']}")
        elif node["error"]:
            problems.append(f"{name}: its state cannot be read: {node['error']}")
        else:
            problems += _node_problems(name, node)
    if len(report["build_keys"]) > 1:
        builds = "; ".join(
            f"{key} on {', '.join(name for name, node in nodes.items() if node['build_key'] == key)}"
            for key in report["build_keys"]
        )
        problems.append(f"The nodes have different builds of llama.cpp: {builds}. Run `bramble up`.")
    model = report["model"]
    if model["state"] is not None and model["state"] != "ready":
        problems.append(f"The RPC head is not ready: {model['state']} (model {model['name']})")
    gateway = report["gateway"]
    if not gateway["reachable"]:
        problems.append(f"The gateway {gateway['url'] or ''} does not answer: {gateway['error']}".replace("  ", " "))
    return problems


def _node_problems(name: str, node: Json) -> list[str]:
    problems = []
    services: dict[str, Json] = node["services"]
    for unit, service in services.items():
        # A oneshot that has done its work is inactive and well.
        done = service["type"] == "oneshot" and service["active"] == "inactive" and service["result"] == "success"
        if service["active"] != "active" and not done:
            why = f", {service['result']}" if service["result"] not in ("success", "unknown") else ""
            problems.append(
                f"{name}: {unit} is {service['active']} ({service['sub']}{why}, {service['restarts']} restarts): "
                f"`journalctl -u {unit}` there says why"
            )
    if not services and SERVICE_GROUPS.intersection(node["groups"]):
        problems.append(f"{name}: none of Bramble's services is installed. Run `bramble up`.")
    elif "rpc_head" in node["groups"] and not node["head"]:
        problems.append(f"{name}: the RPC head has not said what it loads")
    problems += [f"{name}: {path} cannot be read or understood" for path in node["unreadable"]]
    return problems


def render(report: Json) -> RenderableType:
    """The report for people, but for its problems."""
    nodes = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("node", "address", "machine", "services", "build", "models", "layers"):
        nodes.add_column(title, justify="right" if title == "layers" else "left", overflow="fold")
    for name, node in report["nodes"].items():
        if not node["reachable"] or node["error"]:
            nodes.add_row(name, node["address"], "[red]not reachable[/]" if not node["reachable"] else "[red]error[/]")
            continue
        services = "\n".join(
            f"[{'green' if service['active'] == 'active' else 'yellow'}]"
            f"{escape(unit.removeprefix('bramble-').removesuffix('.service'))} {service['sub']}[/]"
            for unit, service in node["services"].items()
        )
        nodes.add_row(
            escape(name),
            escape(str(node["address"])),
            escape(_machine(node["host"] or {})),
            services or "-",
            escape(node["build_key"] or "-"),
            escape("\n".join(str(model.get("name")) for model in node["models"]) or "-"),
            str(node["layers"]),
        )
    model = report["model"]
    gateway = report["gateway"]
    rate = report["last_tokens_per_second"]
    lines = Table.grid(padding=(0, 2))
    lines.add_row(
        "gateway", escape(f"{gateway['url']} ({gateway['version'] if gateway['reachable'] else 'no answer'})")
    )
    lines.add_row("model", escape(f"{model['name']} ({model['state']})" if model["name"] else "none loaded"))
    lines.add_row("last answer", f"{rate:.1f} tokens/s" if rate is not None else "none yet")
    return Group(nodes, "", lines)


def render_verdict(report: Json) -> str:
    """The report's problems, a line each, in rich's markup."""
    if report["ok"]:
        return "[green]All is well.[/]"
    return "\n".join(f"[red]✗[/] {escape(problem)}" for problem in report["problems"])


def _machine(host: Json) -> str:
    memory = (host.get("memory") or {}).get("total_bytes")
    temperature = host.get("temperature_c")
    parts = [
        host.get("model") or host.get("arch"),
        f"{memory / 2**30:.1f} GiB" if memory else None,
        f"{temperature:.0f} °C" if temperature is not None else None,
    ]
    return ", ".join(str(part) for part in parts if part)
