#!/usr/bin/python
"""Ansible module: keep what was measured on a host in the inventory."""

from __future__ import annotations

DOCUMENTATION = r"""
module: benchmark_record
short_description: Keep what was measured on a host in the inventory
description:
  - Makes whole records of the partial ones that a measuring module returned, and appends them to
    C(<inventory_dir>/measured/<host>.jsonl), a JSON object a line. What the tool printed goes to
    C(<inventory_dir>/measured/raw/<host>/<id>.txt).
  - A figure that the hardware cannot reach is kept, and marked in the record's field C(suspect).
  - Runs on the controller, with the Python that runs Ansible. Use C(delegate_to=localhost) and C(become=false).
  - All records are checked before the first is written.
options:
  inventory_dir:
    description: The directory of the inventory. C(measured) below it is made if it is missing.
    type: path
    required: true
  host:
    description: The host that was measured, as the inventory names it.
    type: str
    required: true
  records:
    description: The partial records, as a measuring module returned them.
    type: list
    elements: dict
    required: true
  raw:
    description: What the tool printed. A text is kept for each record, a list has one text for each.
    type: raw
  notes:
    description: What else was so during the measurement, added to the notes of each record's conditions.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description: Checks the records and writes nothing.
    support: full
  diff_mode:
    description: Shows the lines that are appended.
    support: full
notes:
  - Appending changes the inventory on the controller, so it is reported as changed. A record that stands there already,
    as when a task is tried again, is not appended and changes nothing.
author: The Bramble authors
"""

EXAMPLES = r"""
- name: Keep what was measured
  benchmark_record:
    inventory_dir: "{{ inventory_dir }}"
    host: "{{ inventory_hostname }}"
    records: "{{ __benchmark.records }}"
    raw: "{{ __benchmark.raw }}"
  delegate_to: localhost
  become: false
"""

RETURN = r"""
records:
  description: The whole records, in the order of O(records), appended or there already.
  returned: success
  type: list
  elements: dict
appended:
  description: The ids of the records that were appended, or would be in check mode.
  returned: success
  type: list
  elements: str
  sample: [9f86d081884c7d65]
path:
  description: The file of the host's records.
  returned: success
  type: str
  sample: inventory/pi/measured/pi1.jsonl
"""

import sys
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

try:
    from bramble import records as bramble_records
except ImportError as error:
    MISSING: ImportError | None = error
else:
    MISSING = None

ARGUMENTS: dict[str, dict[str, Any]] = {
    "inventory_dir": {"type": "path", "required": True},
    "host": {"type": "str", "required": True},
    "records": {"type": "list", "elements": "dict", "required": True},
    "raw": {"type": "raw"},
    "notes": {"type": "list", "elements": "str", "default": []},
}


def raw_texts(raw: object, count: int) -> list[str | None]:
    """The raw text of each of `count` records. Raises ValueError if they do not match."""
    if raw is None or isinstance(raw, str):
        return [raw] * count
    if not isinstance(raw, list) or not all(isinstance(text, str) for text in raw):
        raise ValueError("raw: is neither a text nor a list of texts")
    if len(raw) != count:
        raise ValueError(f"raw: has {len(raw)} texts, and records has {count}; give one for each, or one text")
    return list(raw)


def noted(partial: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """The partial record with these notes too, where its conditions can hold any: `complete` says what is wrong."""
    conditions = partial.get("conditions")
    if not notes or not isinstance(conditions, dict) or not isinstance(conditions.get("notes"), list):
        return partial
    return {**partial, "conditions": {**conditions, "notes": [*conditions["notes"], *notes]}}


def run(module: Any) -> dict[str, Any]:
    params = module.params
    directory = Path(params["inventory_dir"]) / "measured"
    texts = raw_texts(params["raw"], len(params["records"]))
    records = []
    for number, (partial, text) in enumerate(zip(params["records"], texts, strict=True)):
        try:
            records.append(bramble_records.complete(noted(partial, params["notes"]), params["host"], text))
        except bramble_records.RecordError as error:
            raise ValueError(f"records[{number}]: {error}") from error

    added = []
    for record, text in zip(records, texts, strict=True):
        if module.check_mode:
            written = record not in added and not bramble_records.contains(directory, record)
        else:
            written, warnings = bramble_records.append(directory, record, text)
            for warning in warnings:
                module.warn(warning)
        if written:
            added.append(record)

    path = str(directory / f"{params['host']}.jsonl")
    lines = "".join(f"{bramble_records.canonical(record)}\n" for record in added)
    return {
        "changed": bool(added),
        "records": records,
        "appended": [record["id"] for record in added],
        "path": path,
        "diff": {"before": "", "after": lines, "before_header": path, "after_header": f"{path} (appended)"},
    }


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    if MISSING is not None:
        module.fail_json(
            msg=f"{sys.executable} has no package bramble ({MISSING}). This module runs on the controller, with the "
            "Python that runs Ansible: set delegate_to to localhost, and its ansible_python_interpreter, if any, to "
            "the value of ansible_playbook_python"
        )
    try:
        result = run(module)
    except ValueError as error:
        module.fail_json(msg=f"records of {module.params['host']}: {error}")
    except OSError as error:
        module.fail_json(
            msg=f"{error.filename or module.params['inventory_dir']}: cannot be written or read: {error.strerror}; "
            "the inventory's directory must be writable for the user who runs Ansible"
        )
    module.exit_json(**result)


if __name__ == "__main__":
    main()
