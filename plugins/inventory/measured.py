"""Gives each host of the inventory what was measured on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin

try:
    from bramble.records import latest, load
except ImportError as error:
    MISSING: ImportError | None = error
else:
    MISSING = None

DOCUMENTATION = """
name: measured
short_description: what was measured on each host
description:
  - Reads C(measured/<host>.jsonl) beside its configuration file, and sets for each host that has records the variable
    C(measured), a list of the newest record of each series, sorted by kind, engine, model and parameters.
  - A series is what measures the same thing - host, kind, engine, model and parameters are equal.
  - It adds no hosts. Sources in a directory are read in the order of their names, so the hosts must come from files
    whose names sort before C(measured.yml), as C(hosts.yml) does.
  - The values are data - text in them is never taken as a template.
  - A line that is no valid record is a warning, and the others are read.
options:
  plugin:
    description: Says that the file is for this plugin.
    type: str
    required: true
    choices: [measured]
"""

EXAMPLES = """
# inventory/<name>/measured.yml
plugin: measured
"""

WARNINGS_AT_MOST = 5


class InventoryModule(BaseInventoryPlugin):
    """Ansible's entry point."""

    NAME = "measured"

    # Of the class above too, and to be kept so: what a model or a tool has printed may hold braces.
    trusted_by_default = False

    def verify_file(self, path: str) -> bool:
        return bool(super().verify_file(path)) and Path(path).name in ("measured.yml", "measured.yaml")

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        if MISSING is not None:
            raise AnsibleParserError(
                f"the Python that runs Ansible has no package bramble ({MISSING}): run `make setup`, "
                "then `. .venv/bin/activate`"
            )
        records, problems = load(shown(Path(path).with_name("measured")))
        for problem in problems[:WARNINGS_AT_MOST]:
            self.display.warning(problem)
        if len(problems) > WARNINGS_AT_MOST:
            self.display.warning(f"{len(problems) - WARNINGS_AT_MOST} more lines of measured/ are no valid records")
        for host, measured in records.items():
            if host in inventory.hosts:
                inventory.set_variable(host, "measured", latest(measured))
            else:
                self.display.v(f"measured/{host}.jsonl: the inventory has no host {host}: its records are not read")


def shown(path: Path) -> Path:
    """The path as people would write it from here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
