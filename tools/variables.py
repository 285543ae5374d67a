#!/usr/bin/env python3
"""Writes docs/variables.md from the roles' meta/argument_specs.yml and defaults/main.yml.

Usage: tools/variables.py [--check]
Exit code 0: written, or current. 1: with --check, the file differs from what would be written, or is not there.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = "docs/variables.md"

HEAD = """\
<!-- Written by tools/variables.py from roles/*/meta/argument_specs.yml and roles/*/defaults/main.yml. Do not edit. -->
# Variables

Every variable that a role takes, with its default. Set what you want to change in
`inventory/pi/group_vars/all/<role>.yml` for all nodes, or in `inventory/pi/host_vars/<host>.yml` for one.
`playbooks/validate.yml` refuses a name that is not in this list and a value of the wrong type.

Variables marked † are computed by the playbooks, or passed by another role: leave them alone.
"""


def load(file: Path) -> dict[str, Any]:
    """A YAML mapping; {} if the file is not there or is empty."""
    return (yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else None) or {}


def passed(root: Path) -> set[str]:
    """Names that a `vars` of a playbook's play, role or task, or of a role's task, gives a value."""
    files = [*root.glob("playbooks/*.yml"), *root.glob("roles/*/tasks/*.yml")]
    return {name for file in files for name in _given(yaml.safe_load(file.read_text(encoding="utf-8")))}


def _given(node: object) -> Iterator[str]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key == "vars" and isinstance(value, Mapping):
                yield from map(str, value)
            else:
                yield from _given(value)
    elif isinstance(node, list):
        for item in node:
            yield from _given(item)


def markup(text: str | list[str]) -> str:
    """Ansible's C(x), V(x) and O(x) as Markdown, on one line, safe inside a table."""
    joined = " ".join([text] if isinstance(text, str) else text)
    return re.sub(r"\b[CVO]\(([^)]*)\)", r"`\1`", " ".join(joined.split())).replace("|", "\\|")


def shown(default: object) -> str:
    """A default as the owner would write it: YAML, on one line."""
    text = default if isinstance(default, str) and default else json.dumps(default, ensure_ascii=False)
    return f"`{' '.join(text.split())}`".replace("|", "\\|")


def rows(options: Mapping[str, Any], defaults: Mapping[str, Any], given: set[str], path: str = "") -> Iterator[str]:
    """A table row per option; the keys of a dictionary follow it as `name.key`."""
    for name, option in options.items():
        kind = str(option.get("type", "str"))
        if elements := option.get("elements"):
            kind += f" of {elements}"
        if choices := option.get("choices"):
            kind += ": " + ", ".join(f"`{choice}`" for choice in choices)
        default = shown(defaults[name]) if name in defaults else "required" if option.get("required") else "-"
        mark = " †" if name in given else ""
        yield f"| `{path}{name}`{mark} | {kind} | {default} | {markup(option['description'])} |"
        yield from rows(option.get("options") or {}, {}, set(), f"{path}{name}.")


def render(root: Path) -> str:
    """The whole page."""
    given = passed(root)
    parts = [HEAD]
    for specs in sorted(root.glob("roles/*/meta/argument_specs.yml")):
        role = specs.parents[1]
        entries = load(specs)["argument_specs"]
        # Other entry points (tasks_from) may take variables that `main` does not.
        options = {name: option for entry in entries.values() for name, option in (entry.get("options") or {}).items()}
        main = entries["main"]
        parts.append(
            f"\n## {role.name}\n\n{markup(main['short_description'])}. {markup(main.get('description', ''))}".rstrip()
        )
        parts.append("\n")
        if options:
            parts.append("\n| variable | type | default | what it is |\n|---|---|---|---|\n")
            parts += [f"{row}\n" for row in rows(options, load(role / "defaults/main.yml"), given)]
    return "".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes docs/variables.md from the roles' argument_specs.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the file is not current")
    parser.add_argument("--output", type=Path, default=ROOT / OUTPUT, help=f"the file (default: {OUTPUT})")
    arguments = parser.parse_args()
    output: Path = arguments.output
    text = render(ROOT)
    if arguments.check:
        if output.is_file() and output.read_text(encoding="utf-8") == text:
            return 0
        print(
            f"{output} is not current: run tools/variables.py with .venv/bin/python and commit the result",
            file=sys.stderr,
        )
        return 1
    output.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
