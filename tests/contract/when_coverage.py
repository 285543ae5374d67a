#!/usr/bin/env python3
"""Which conditions of the roles no recorded run evaluated. Exit code 0: none; 1: some, or nothing was recorded.

    BRAMBLE_WHEN_COVERAGE=.bramble/when.txt ansible-playbook …    # records, see plugins/callback/when_coverage.py
    tests/contract/when_coverage.py .bramble/when.txt

No linter finds a condition that ansible-core refuses (`when: list | length`); only evaluating it does. Ansible merges a
condition with an equal one of the enclosing block: the inner one is then reported here, and can go.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]


def conditions(file: Path) -> Iterator[tuple[int, str]]:
    """Line (from 1) and text of each `when` condition in a file of tasks or handlers; each item of a list is one."""
    document = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    if document is not None:
        yield from _tasks(document)


def _tasks(node: yaml.Node) -> Iterator[tuple[int, str]]:
    if not isinstance(node, yaml.SequenceNode):
        return
    for task in node.value:
        if not isinstance(task, yaml.MappingNode):
            continue
        for key, value in task.value:
            if key.value in ("block", "rescue", "always"):
                yield from _tasks(value)
            elif key.value == "when":
                for item in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    # `when: true` is no expression: nothing to evaluate.
                    if item.tag != "tag:yaml.org,2002:bool":
                        yield item.start_mark.line + 1, item.value


def declared(root: Path) -> dict[str, str]:
    """`path:line` → text of each condition in the roles of a checkout."""
    return {
        f"{file.relative_to(root)}:{line}": text
        for kind in ("tasks", "handlers")
        for file in sorted(root.glob(f"roles/*/{kind}/**/*.yml"))
        for line, text in conditions(file)
    }


def report(declared: dict[str, str], record: str) -> tuple[int, str]:
    """Exit code and text, from the conditions that there are and the record of the runs."""
    outcomes: dict[str, set[str]] = {}
    for line in record.splitlines():
        place, _, outcome = line.partition("\t")
        outcomes.setdefault(place, set()).add(outcome)
    if not outcomes:
        return (
            1,
            "the record is empty: set BRAMBLE_WHEN_COVERAGE for the runs, and callback_plugins to plugins/callback",
        )
    reached = declared.keys() & outcomes.keys()
    lines = [f"{place}: no run evaluated: when: {text}" for place, text in declared.items() if place not in reached]
    one_way = sum(len(outcomes[place]) == 1 for place in reached)
    summary = f"{len(reached)} of {len(declared)} conditions evaluated, {one_way} of them always with the same outcome"
    return int(bool(lines)), "\n".join([*lines, summary])


def main() -> int:
    parser = argparse.ArgumentParser(description="Conditions of the roles that no recorded run evaluated.")
    parser.add_argument("record", type=Path, help="what runs with BRAMBLE_WHEN_COVERAGE=<file> wrote")
    file: Path = parser.parse_args().record
    code, text = report(declared(ROOT), file.read_text(encoding="utf-8") if file.exists() else "")
    print(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
