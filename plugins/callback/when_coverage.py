"""Records which conditions of tasks a run evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Private to ansible-core, which is pinned: where in which file a condition was written.
from ansible._internal._datatag._tags import Origin
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: when_coverage
type: notification
short_description: records which conditions of tasks a run evaluated
description:
  - Appends a line to a file for each C(when) that a run evaluated, the first time that it was true and the first time
    that it was false.
  - A line is C(path:line), where the condition is written, and C(true) or C(false), with a tab between.
  - Conditions are evaluated in order, those of enclosing blocks and imports first, and the first false one ends that.
    What was not evaluated is not recorded, nor is a task whose loop had no items.
  - tests/contract/when_coverage.py says which conditions of the roles no recorded run evaluated.
options:
  record:
    description: File to append to. Nothing is recorded without it.
    type: path
    env: [{name: BRAMBLE_WHEN_COVERAGE}]
"""

ROOT = Path(__file__).resolve().parents[2]


def evaluated(conditions: Sequence[object], result: dict[str, Any], skipped: bool) -> list[tuple[object, bool]]:
    """The conditions that were evaluated, with their outcome, from all conditions of a task in order and its result."""
    if not skipped:
        return [(condition, True) for condition in conditions]
    if "false_condition" not in result:  # skipped for another reason: a loop over nothing, check mode
        return []
    # By value: the result comes from another process, without the tag that says where it was written.
    position = list(conditions).index(result["false_condition"])
    return [*((condition, True) for condition in conditions[:position]), (conditions[position], False)]


class CallbackModule(CallbackBase):  # type: ignore[misc]
    """Ansible's entry point: one object per run, called in the controller's main process only."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "when_coverage"

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()
        self._meta: Any = None

    def set_options(self, task_keys: Any = None, var_options: Any = None, direct: Any = None) -> None:
        super().set_options(task_keys=task_keys, var_options=var_options, direct=direct)
        record = self.get_option("record")
        self.disabled = not record
        self._record = Path(record or "/dev/null")

    def _write(self, outcomes: Sequence[tuple[object, bool]]) -> None:
        for condition, outcome in outcomes:
            origin = Origin.get_tag(condition)
            if origin is None or not origin.path:
                continue  # `when: true`, or not from a file
            path = Path(origin.path).resolve()
            shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
            line = f"{shown}:{origin.line_num}\t{str(outcome).lower()}\n"
            if line not in self._seen:
                self._seen.add(line)
                self._record.parent.mkdir(parents=True, exist_ok=True)
                # Several runs may append at once; a run may be killed: a short line at a time, nothing held back.
                with self._record.open("a", encoding="utf-8") as file:
                    file.write(line)

    def _result(self, result: Any, **_: Any) -> None:
        if result.task.when:
            self._write(evaluated(result.task.when, result.result, result.is_skipped()))

    v2_runner_on_ok = _result
    v2_runner_on_failed = _result
    v2_runner_on_unreachable = _result
    v2_runner_item_on_ok = _result
    v2_runner_item_on_failed = _result
    v2_runner_item_on_skipped = _result

    def v2_runner_on_skipped(self, result: Any) -> None:
        if self._meta is not None and result.task._uuid == self._meta._uuid:
            # A skipped meta task does not say which condition was false; the first was evaluated at any rate.
            self._write([(self._meta.when[0], False)])
            self._meta = None
        else:
            self._result(result)

    def _start(self, task: Any = None, **_: Any) -> None:
        """Meta tasks report nothing when they run: what has not been skipped until the next task starts has run."""
        if self._meta is not None:
            self._write([(condition, True) for condition in self._meta.when])
        is_meta = task is not None and task.action in ("meta", "ansible.builtin.meta", "ansible.legacy.meta")
        self._meta = task if is_meta and task.when else None

    v2_playbook_on_task_start = _start
    v2_playbook_on_handler_task_start = _start

    def v2_playbook_on_stats(self, *_: Any) -> None:
        self._start()
