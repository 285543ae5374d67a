#!/usr/bin/env python3
"""What a run costs on nodes where nothing is to be done: seconds, and modules that ran on each node.

    .venv/bin/python tests/benchmarks/rerun.py -i inventory/lab [--playbook FILE] [--facts-rounds N]

Runs pi_facts and hailo_facts on every node and times each, then the playbook (phase 1) and counts. Prints a summary,
and writes the same with each task's figures to tests/benchmarks/results/ (--output for another place). Asserts nothing.

A module that ran on a node is one remote call: with pipelining it is one command over the connection that is open
already. Calls that are delegated to the controller, and actions without a module (debug, assert, set_fact), are none.
They are counted by the lines `EXEC ssh` of ansible-playbook -vvv, not guessed from the tasks' names.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
FACTS = ("pi_facts", "hailo_facts")
# `<10.183.17.11> SSH: EXEC ssh -vvv … 10.183.17.11 '…'`: one program on the node. `(0, …)` is what it returned.
EXEC = re.compile(r"^<(?P<address>[^>]+)> SSH: EXEC (?P<what>ssh|sftp|scp|dd)\b", re.MULTILINE)
TASK = re.compile(r"^TASK \[(?P<name>.*)\] \*+$", re.MULTILINE)


def run(*command: str) -> tuple[float, subprocess.CompletedProcess[str]]:
    """A command in the checkout, and the seconds that it took."""
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "ANSIBLE_NOCOLOR": "1"}
    began = time.monotonic()
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    return time.monotonic() - began, done


def nodes(inventory: str) -> dict[str, dict[str, Any]]:
    """The cluster's hosts with their variables."""
    _, done = run(str(BIN / "ansible-inventory"), "-i", inventory, "--list")
    if done.returncode != 0:
        sys.exit(done.stderr)
    told = json.loads(done.stdout)
    variables = told["_meta"]["hostvars"]
    return {name: variables[name] for name in told["cluster"]["hosts"]}


def time_facts(inventory: str, found: dict[str, dict[str, Any]], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of the command `ansible` with a module, module → node → one value a round.

    Each node is asked alone: those that share a machine would wait for each other.
    """
    seconds: dict[str, dict[str, list[float]]] = {}
    for module in FACTS:
        for name, variables in found.items():
            paths = {
                option: variables[f"pi_firmware_{option}"]
                for option in ("device_tree", "sysfs", "boot")
                if f"pi_firmware_{option}" in variables
            }
            values = []
            for _ in range(rounds + 1):
                taken, done = run(
                    str(BIN / "ansible"), name, "-i", inventory, "-m", module, "-a", json.dumps(paths), "-o"
                )
                if done.returncode != 0:
                    sys.exit(done.stdout + done.stderr)
                values.append(taken)
            # The first one opens the connection.
            seconds.setdefault(module, {})[name] = values[1:]
    return seconds


def time_nothing(inventory: str, name: str, rounds: int) -> float:
    """Seconds of the same command without a remote call: what starting Ansible costs."""
    values = [run(str(BIN / "ansible"), name, "-i", inventory, "-m", "debug", "-o")[0] for _ in range(rounds + 1)]
    return statistics.median(values[1:])


def count_calls(text: str, found: dict[str, dict[str, Any]]) -> tuple[Counter[str], Counter[tuple[str, str]]]:
    """Remote programs by node, and by (task, node), from the output of ansible-playbook -vvv."""
    by_address = {str(variables.get("ansible_host", name)): name for name, variables in found.items()}
    starts = [(each.start(), each["name"]) for each in TASK.finditer(text)]
    by_node: Counter[str] = Counter()
    by_task: Counter[tuple[str, str]] = Counter()
    position, task = 0, ""
    for each in EXEC.finditer(text):
        while position < len(starts) and starts[position][0] < each.start():
            task, position = starts[position][1], position + 1
        node = by_address.get(each["address"])
        if node is not None:
            by_node[node] += 1
            by_task[task, node] += 1
    return by_node, by_task


def main() -> int:
    parser = argparse.ArgumentParser(description="What a run costs where nothing is to be done.")
    parser.add_argument("--inventory", "-i", default="inventory/lab")
    parser.add_argument("--playbook", default="playbooks/phase1_foundation.yml")
    parser.add_argument("--facts-rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=ROOT / "tests/benchmarks/results")
    options = parser.parse_args()
    found = nodes(options.inventory)
    lines = [
        f"# {datetime.now(UTC):%Y-%m-%dT%H:%MZ}, {options.inventory}, {len(found)} nodes; "
        f"{platform.machine()}, {os.cpu_count()} processors, load average {os.getloadavg()[0]:.1f} before",
    ]
    facts = time_facts(options.inventory, found, options.facts_rounds)
    nothing = time_nothing(options.inventory, next(iter(found)), options.facts_rounds)
    lines.append(f"the command ansible without a remote call (debug): {nothing:.2f} s")
    for name in found:
        medians = {module: statistics.median(facts[module][name]) for module in FACTS}
        parts = ", ".join(f"{module} {median:.2f} s" for module, median in medians.items())
        above = sum(median - nothing for median in medians.values())
        lines.append(f"{name}: {parts} with that; both without it: {above:.2f} s")
    seconds, done = run(str(BIN / "ansible-playbook"), "-vvv", "-i", options.inventory, options.playbook)
    by_node, by_task = count_calls(done.stdout, found)
    lines.append(f"{options.playbook}: {seconds:.1f} s, exit code {done.returncode}")
    lines += done.stdout.partition("PLAY RECAP")[2].partition("\n")[2].strip().splitlines()
    lines.append("remote calls: " + ", ".join(f"{name} {by_node[name]}" for name in found))
    print("\n".join(lines))
    options.output.mkdir(parents=True, exist_ok=True)
    raw = options.output / f"rerun-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.txt"
    detail = [f"{count} {task} ({node})" for (task, node), count in by_task.items()]
    values = [
        f"{module} {name}: {' '.join(f'{value:.3f}' for value in each)}"
        for module in FACTS
        for name, each in facts[module].items()
    ]
    raw.write_text(
        "\n".join([*lines, "", "# seconds of each round", *values, "", "# remote calls by task", *detail]) + "\n"
    )
    print(f"written to {raw}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
