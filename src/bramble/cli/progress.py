"""Shows a run to people: live on a terminal, line by line elsewhere, and how it ended.

All of it goes to standard error: standard output is for results.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table

from bramble.runner import (
    Event,
    Listener,
    Progress,
    RunResult,
    Task,
    advise,
    advise_output,
    clock,
    error_lines,
    seconds_between,
)

# Without a terminal, a task that took this long gets a line even if it changed nothing.
LONG_TASK_SECONDS = 5.0
# Without a terminal, a task that runs on says so this often.
HEARTBEAT_SECONDS = 60.0

_STYLES = {"changed": "yellow", "ok": "green", "failed": "red", "unreachable": "red", "running": "cyan"}


@contextmanager
def shown(console: Console) -> Iterator[Listener]:
    """A listener for `run_playbook` that shows the run on ``console`` in the way that suits it.

    What draws or beats in a thread starts with the first event, not before: the run begins with a fork, and a process
    with threads should not fork.
    """
    with ExitStack() as stack:
        if console.is_terminal and not console.is_dumb_terminal:
            view = LiveView()
            live = Live(get_renderable=view.render, console=console, refresh_per_second=8, transient=True)
            yield _starting(stack, live, view)
        else:
            plain = PlainView(console)
            yield _starting(stack, plain.heartbeat(), plain)


@contextmanager
def waiting(console: Console, text: str, listener: Listener) -> Iterator[Listener]:
    """``listener``, with no more than a spinner to show for the run."""
    with ExitStack() as stack:
        yield _starting(stack, console.status(text), listener)


def _starting(stack: ExitStack, view: AbstractContextManager[object], listener: Listener) -> Listener:
    """``listener``, which enters ``view`` when the first event comes."""
    started = False

    def listen(progress: Progress, event: Event) -> None:
        nonlocal started
        if not started:
            started = True
            stack.enter_context(view)
        listener(progress, event)

    return listen


class LiveView:
    """A few lines that are drawn again and again: the play, the task and how long it runs, a line per host."""

    def __init__(self) -> None:
        self._progress = Progress()
        self._began = time.monotonic()
        self._task_began = self._began
        self._spinner = Spinner("dots")

    def __call__(self, progress: Progress, _event: Event) -> None:
        if not same_task(self._progress.task, progress.task):
            self._task_began = time.monotonic()
        self._progress = progress

    def render(self) -> RenderableType:
        now = time.monotonic()
        return self.draw(self._progress, elapsed=now - self._began, task_elapsed=now - self._task_began)

    def draw(self, progress: Progress, *, elapsed: float, task_elapsed: float) -> RenderableType:
        task = escape(progress.task.name) if progress.task else "…"
        self._spinner.update(text=f"{task}  [dim]{clock(task_elapsed)}[/]")
        hosts = Table.grid(padding=(0, 2))
        for name, host in sorted(progress.hosts.items()):
            style = _STYLES.get(host.status, "dim")
            counts = f"ok {host.ok}  changed {host.changed}  failed {host.failed}"
            hosts.add_row(f"  {escape(name)}", f"[{style}]{host.status}[/]", f"[dim]{counts}[/]")
        title = f"[bold]{escape(progress.play or 'Starting')}[/]  [dim]{clock(elapsed)}[/]"
        return Group(title, self._spinner, hosts)


class PlainView:
    """A line per play, and per task that changed something, failed or took long."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress()
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._said = self._began

    def __call__(self, progress: Progress, _event: Event) -> None:
        lines = plain_lines(self._progress, progress)
        with self._lock:
            self._progress = progress
            for line in lines:
                self._say(line)

    def _say(self, line: str) -> None:
        # The line is written past rich, whose wrapping would break it; flushed, because a pipe is read while we run.
        self._console.file.write(line + "\n")
        self._console.file.flush()
        self._said = time.monotonic()

    @contextmanager
    def heartbeat(self) -> Iterator[None]:
        """While inside, a task that runs on says so from time to time."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(1.0):
                with self._lock:
                    now = time.monotonic()
                    task = self._progress.task
                    if task and now - self._said >= HEARTBEAT_SECONDS:
                        self._say(f"{clock(now - self._began):>7}  … {task.name}")

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def same_task(one: Task | None, other: Task | None) -> bool:
    if one is None or other is None:
        return one is other
    return (one.name, one.path, one.started) == (other.name, other.path, other.started)


def plain_lines(before: Progress, after: Progress) -> list[str]:
    """What to say when the run goes from ``before`` to ``after`` by one event."""
    lines = []
    at = f"{clock(after.elapsed):>7}"
    task = before.task
    if task and not same_task(task, after.task):
        took = seconds_between(task.started, after.now)
        notes = []
        if task.failed:
            notes.append(f"failed on {', '.join(sorted(task.failed))}")
        if task.changed:
            notes.append(f"changed {', '.join(sorted(task.changed))}")
        if took >= LONG_TASK_SECONDS:
            notes.append(f"took {clock(took)}")
        if notes:
            lines.append(f"{at}  {task.name}: {'; '.join(notes)}")
    if after.begun != before.begun:
        lines.append(f"{at}  ── {after.play}")
    return lines


def report_end(console: Console, result: RunResult, root: Path) -> None:
    """The last words of a run: one line if it went well, else who failed, where, why, and what to try."""
    log = result.log.relative_to(root) if result.log.is_relative_to(root) else result.log
    if result.ok:
        ok = sum(stats.ok for stats in result.stats.values())
        changed = sum(stats.changed for stats in result.stats.values())
        hosts = f"{len(result.stats)} host{'' if len(result.stats) == 1 else 's'}"
        _print(
            console,
            f"[green]✓[/] {escape(result.playbook)}: {hosts}, tasks: {ok} ok, {changed} changed, "
            f"{clock(result.elapsed)}  [dim](log: {escape(str(log))})[/]",
        )
        return
    if result.status == "interrupted":
        _print(console, f"[yellow]Interrupted[/] after {clock(result.elapsed)}. Run it again to go on.")
        _print(console, f"  log: {escape(str(log))}")
        return
    failures = sorted(result.failures, key=lambda failure: failure.host)
    advice = advise(failures)
    for failure in failures:
        _print(console, f"[red]✗[/] [bold]{escape(failure.host)}[/]: {escape(failure.task)}")
        if failure.path:
            path = failure.path.removeprefix(f"{root}/")
            _print(console, f"  at {escape(path)}")
        for line in failure.messages:
            _print(console, f"  {escape(line)}")
    if not failures:
        lines = error_lines(result.output)
        advice = advise_output(lines)
        _print(console, f"[red]✗[/] {escape(result.playbook)} did not run")
        for line in lines:
            _print(console, f"  {escape(line)}")
    _print(console, "[bold]What to try[/]")
    for line in advice:
        _print(console, f"  {escape(line)}")
    _print(console, f"  The whole log: {escape(str(log))}")
    _print(console, f"  More detail:   {escape(result.command)} -vv")


def _print(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False)
