"""The commands: what they take, what they call, how they end.

Results go to standard output, everything else to standard error. Exit codes: 0 well, 1 not well, 2 not started (a usage
error, no project, no inventory), 130 interrupted.
"""

from __future__ import annotations

import getpass
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from bramble.cli.convert import model_convert
from bramble.cli.enroll import enroll
from bramble.cli.image import image
from bramble.plan.what_if import HELP as WHAT_IF
from bramble.runner import RunnerError, RunResult, find_root, run_playbook

LOCALHOST = ","  # An inventory without hosts: plays on implicit localhost, and the owner's inventory is not even read.
LAB_NAME = re.compile(r"lab(-[a-z0-9]{1,16})?")
NODE_NAME = re.compile(r"[a-z][a-z0-9-]*")
BECOME_PROMPT = r"BECOME password.*:\s*$"
# A dead node shall cost seconds when all that is wanted is a look.
QUICK = {"ANSIBLE_SSH_RETRIES": "0", "ANSIBLE_TIMEOUT": "5"}

# How somebody in the checkout who has activated nothing calls this program.
COMMAND = ".venv/bin/bramble"

DEMO_MODEL = Path(".bramble/models/bramble-synth.gguf")
DEMO_QUESTION = "Which three fruits grow on brambles?"
DEMO_TOKENS = 64
DEMO_LAYERS = 12

# The tags of site.yml. Ansible ends well on any other, with nothing done.
TAGS = (
    *("phase1", "step_1_1", "preflight", "os_base", "ssh_access", "cluster_network", "pi_firmware", "reboot"),
    *("step_1_2", "llama_cpp", "llama_server", "ollama", "step_1_3", "hailo", "hailo_ollama"),
    *("step_1_4", "benchmark", "node_bench", "net_bench", "split_strategies", "report"),
    *("phase2", "plan", "rpc_worker", "rpc_head", "distributed_llama", "dllama_worker", "dllama_api"),
    *("phase3", "gateway"),
)
# What lies in an inventory's directory and names no hosts.
NO_HOSTS = ("group_vars", "host_vars", "measured", "measured.yml", "plan.json", "planned.yml", "report")
PLACEHOLDER = re.compile(r"^[^#\n]*\bCHANGE_ME\b", re.MULTILINE)  # In a value, not in a comment.

app = typer.Typer(
    name="bramble",
    help="One LLM service out of a shelf of Raspberry Pis.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
lab_app = typer.Typer(name="lab", help="Nodes in containers, for a cluster with no Pi at all.", no_args_is_help=True)
model_app = typer.Typer(name="model", help="Model files.", no_args_is_help=True)
app.add_typer(lab_app)
app.add_typer(model_app)


class CliError(Exception):
    """Ends the command with one message and an exit code."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class Break(StrEnum):
    """What can be done to a lab's node (lab/break.sh). First of the node itself, then of its board, then of its HAT."""

    STOP = "stop"
    FREEZE = "freeze"
    CUT = "cut"
    UNDER_VOLTAGE = "under-voltage"
    THROTTLED = "throttled"
    HOT = "hot"
    WEAK_SUPPLY = "weak-supply"
    OLD_EEPROM = "old-eeprom"
    SLOW_LINK = "slow-link"
    WIFI = "wifi"
    SMALL_CARD = "small-card"
    NO_FAN = "no-fan"
    NO_DEVICE = "no-device"
    VERSION_MISMATCH = "version-mismatch"
    DEVICE_LOST = "device-lost"
    BUSY = "busy"
    SLOW = "slow"


Inventory = Annotated[
    str, typer.Option("--inventory", "-i", envvar="BRAMBLE_INVENTORY", help="The inventory: a directory or a file.")
]
LabName = Annotated[str, typer.Option("--name", help="The lab: `lab`, or `lab-` and a word.")]
LabNodes = Annotated[int, typer.Option("--nodes", min=1, max=64, help="How many nodes.")]
# A head needs a worker, and each node holds a layer of the stand-in model.
DemoNodes = Annotated[int, typer.Option("--nodes", min=2, max=DEMO_LAYERS, help="How many nodes.")]
AskBecomePass = Annotated[bool, typer.Option("--ask-become-pass", "-K", help="Ask for the password that sudo wants.")]
Verbose = Annotated[int, typer.Option("--verbose", "-v", count=True, help="More detail in the log.")]

DEFAULT_INVENTORY = "inventory/pi"


def main() -> None:
    """The entry point."""
    try:
        app(prog_name="bramble")
    except CliError as error:
        print(f"bramble: {error}", file=sys.stderr)
        sys.exit(error.code)
    except RunnerError as error:
        print(f"bramble: {error}", file=sys.stderr)
        sys.exit(2)


# --- Commands


def print_version(wanted: bool) -> None:
    if wanted:
        print(f"bramble {importlib.metadata.version('bramble')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """One LLM service out of a shelf of Raspberry Pis."""


@app.command()
def up(
    inventory: Inventory = DEFAULT_INVENTORY,
    limit: Annotated[str | None, typer.Option("--limit", help="Only these hosts.")] = None,
    tags: Annotated[
        str | None, typer.Option("--tags", help=f"Only tasks with one of these tags: {', '.join(TAGS)}.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Predict; change nothing but apt's lists.")] = False,
    ask_become_pass: AskBecomePass = False,
    verbose: Verbose = 0,
) -> None:
    """Make the nodes what the inventory says: runs site.yml."""
    check_tags(tags)
    root = find_root()
    passwords = become_passwords("The nodes want a password for sudo.") if ask_become_pass else None
    play(
        root,
        "site.yml",
        inventory=inventory_path(root, inventory),
        limit=limit,
        tags=tags,
        check=check,
        passwords=passwords,
        verbosity=verbose,
        require_hosts=True,
    )


@app.command()
def status(
    inventory: Inventory = DEFAULT_INVENTORY,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Look at the nodes and the gateway.

    Exit code 0: all is well. 1: something is not; each problem is one line. 2: could not look.

    The JSON has: ok, problems, gateway {url, reachable, version, backends}, nodes {NAME: {reachable, address, services,
    build_key, models, layers, ...}}, model {name, state, layers {NAME: number}}, build_keys, last_tokens_per_second.
    """
    root = find_root()
    report = look(root, inventory_path(root, inventory))
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        show(report)
    raise typer.Exit(0 if report["ok"] else 1)


@app.command()
def ask(
    prompt: Annotated[list[str], typer.Argument(help="The question, in one word or several.")],
    inventory: Inventory = DEFAULT_INVENTORY,
    url: Annotated[str | None, typer.Option("--url", help="The gateway, if not the inventory's.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="The model, if not the gateway's first.")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, help="Stop after so many tokens.")] = None,
) -> None:
    """Ask the cluster a question. The answer streams to standard output, its speed to standard error."""
    advice = "Is the URL right, and is this machine among its gateway_clients?"
    if url is None:
        root = find_root()
        url = gateway_url(root, inventory_path(root, inventory))
        advice = status_advice(inventory)
    ask_gateway(url.rstrip("/"), " ".join(prompt), model=model, max_tokens=max_tokens, advice=advice)


@app.command()
def bench(
    inventory: Inventory = DEFAULT_INVENTORY,
    limit: Annotated[str | None, typer.Option("--limit", help="Only these hosts.")] = None,
    kind: Annotated[
        list[str] | None, typer.Option("--kind", help="Only this kind of record. May be given several times.")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Measure also what has a record of the same build and model.")
    ] = False,
    ask_become_pass: AskBecomePass = False,
    verbose: Verbose = 0,
) -> None:
    """Measure the nodes, which takes minutes for each, and keep the records: runs playbooks/benchmark.yml."""
    from bramble.cli.measured import bench_tags, bench_variables

    with measured_errors():
        variables, tags = bench_variables(kind or [], again), bench_tags(kind or [])
    root = find_root()
    passwords = become_passwords("The nodes want a password for sudo.") if ask_become_pass else None
    play(
        root,
        "playbooks/benchmark.yml",
        inventory=inventory_path(root, inventory),
        limit=limit,
        tags=tags,
        extra_vars=variables,
        passwords=passwords,
        verbosity=verbose,
        require_hosts=True,
    )


@app.command()
def history(
    host: Annotated[str | None, typer.Argument(help="Only this host.")] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="Only this kind of record, such as llama_bench.")] = None,
    inventory: Inventory = DEFAULT_INVENTORY,
    as_json: Annotated[bool, typer.Option("--json", help="Print the records as a JSON list.")] = False,
) -> None:
    """List what was measured, the newest last."""
    from bramble.cli.measured import show_history

    directory = Path(inventory_path(find_root(), inventory))
    with measured_errors():
        show_history(directory, host, kind, as_json=as_json, console=stdout_console(), errors=stderr_console())


@app.command()
def compare(
    a: Annotated[
        str, typer.Argument(help="`first`, `latest`, a time (UTC), a record's id, or a directory with records.")
    ],
    b: Annotated[str, typer.Argument(help="The same, for the other side.")] = "latest",
    floor: Annotated[
        float, typer.Option("--floor", min=0, help="Relative differences up to this are never told.")
    ] = 0.05,
    inventory: Inventory = DEFAULT_INVENTORY,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare what was measured: B against A, the newest record of each series.

    Exit code 0: nothing became worse beyond noise. 1: something did. 2: there is nothing to compare.
    """
    from bramble.cli.measured import show_compare

    directory = Path(inventory_path(find_root(), inventory))
    with measured_errors():
        good = show_compare(
            directory, a, b, floor=floor, as_json=as_json, console=stdout_console(), errors=stderr_console()
        )
    raise typer.Exit(0 if good else 1)


@app.command()
def report(
    inventory: Inventory = DEFAULT_INVENTORY,
    output: Annotated[
        Path | None, typer.Option("--output", help="The directory to write it to, if not the inventory's report/.")
    ] = None,
    network: Annotated[
        bool,
        typer.Option(
            "--network", help="Print where a token's time goes, by strategy of splitting: the findings of network.html."
        ),
    ] = False,
) -> None:
    """Write what was measured as a page, baseline.html, and its twin in Markdown.

    With records of where a token's time goes, network.html too: strategies of splitting a model, links, engines.
    """
    from bramble.cli.report import ReportError, show_report

    directory = Path(inventory_path(find_root(), inventory))
    try:
        show_report(directory, output, network=network, console=stdout_console(), errors=stderr_console())
    except ReportError as error:
        raise CliError(str(error)) from error


@app.command()
def plan(
    inventory: Inventory = DEFAULT_INVENTORY,
    details: Annotated[
        bool, typer.Option("--explain", help="Also memory, milliseconds, and what else there was and why not.")
    ] = False,
    what_if: Annotated[
        list[str] | None,
        typer.Option("--what-if", help=f"Change something first and compare; may be repeated. {WHAT_IF}"),
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Keep it as the inventory's plan.json, which the next run deploys.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Run the plan and its runners-up on the nodes, measure each, and go back to the plan."
        ),
    ] = False,
    tokens: Annotated[int, typer.Option("--tokens", min=2, help="With --verify: tokens of each answer.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    verbose: Verbose = 0,
) -> None:
    """Say which node runs which model, by what was measured. Connects to no node, but for --verify.

    Exit code 0: each model of plan_models has a place. 1: one has none. 2: the inventory does not say what is wanted.
    3: a node was not measured yet.
    """
    from bramble.cli.plan import PlanningError, show_plan, verify_plan

    if what_if and (write or verify):
        raise CliError("--what-if only looks: leave out --write and --verify.", 2)
    root = find_root()
    source = inventory_path(root, inventory)

    def run(playbook: str, variables: Mapping[str, object]) -> bool:
        try:
            play(root, playbook, inventory=source, extra_vars=variables, verbosity=verbose, require_hosts=True)
        except typer.Exit as ended:
            if ended.exit_code == 130:
                raise
            return False
        return True

    try:
        if verify:
            well = verify_plan(root, Path(source), run, tokens=tokens, console=stdout_console())
            raise typer.Exit(0 if well else 1)
        good = show_plan(
            root,
            Path(source),
            details=details,
            what_if=what_if or [],
            write=write,
            as_json=as_json,
            console=stdout_console(),
        )
    except PlanningError as error:
        raise CliError(str(error), 2 if error.measured else 3) from error
    raise typer.Exit(0 if good else 1)


@lab_app.command("up")
def lab_up(name: LabName = "lab", nodes: LabNodes = 3, verbose: Verbose = 0) -> None:
    """Boot the nodes and write their inventory."""
    play_lab("lab_up", name, {"lab_nodes": nodes}, verbosity=verbose)
    print(f"The lab's inventory is inventory/{name}. Next: bramble up -i inventory/{name}")


@lab_app.command("down")
def lab_down(name: LabName = "lab", verbose: Verbose = 0) -> None:
    """Remove the lab and all that it made."""
    play_lab("lab_down", name, {}, verbosity=verbose)


@lab_app.command("break")
def lab_break(
    node: Annotated[str, typer.Argument(help="The node, such as pi2.")],
    how: Annotated[
        Break,
        typer.Option(
            "--how",
            help="Off, frozen, cut off the network, or a fault of its emulated board or HAT.",
        ),
    ],
    name: LabName = "lab",
    verbose: Verbose = 0,
) -> None:
    """Break a node, to see what the cluster does."""
    play_lab("lab_break", name, break_vars(node, how.value), verbosity=verbose)


@lab_app.command("mend")
def lab_mend(
    node: Annotated[str, typer.Argument(help="The node, such as pi2.")], name: LabName = "lab", verbose: Verbose = 0
) -> None:
    """Undo `lab break`."""
    play_lab("lab_break", name, break_vars(node, "mend"), verbosity=verbose)


@model_app.command("synth")
def model_synth(
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    name: Annotated[str, typer.Option("--name", help="The model's name.")] = "bramble-synth",
    size: Annotated[str, typer.Option("--size", help="Parameters: 60M, 1.5B.")] = "60M",
    layers: Annotated[int | None, typer.Option("--layers", min=1, help="Transformer layers.")] = 12,
    quantization: Annotated[str, typer.Option("--quantization", help="The weights' type.")] = "Q8_0",
    context: Annotated[int, typer.Option("--context", min=1, help="Context length in tokens.")] = 4096,
    seed: Annotated[int, typer.Option("--seed", help="The same seed gives the same file.")] = 0,
    architecture: Annotated[str, typer.Option("--architecture", help="llama or qwen3.")] = "llama",
    tied: Annotated[bool, typer.Option("--tied", help="The embedding serves as output matrix too.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Make a stand-in model: real format and tokenizer, RANDOM weights. Its answers are noise."""
    synthesize_model(
        output,
        name=name,
        size=size,
        layers=layers,
        quantization=quantization,
        context=context,
        seed=seed,
        architecture=architecture,
        tied=tied,
        overwrite=force,
    )


@model_app.command("info")
def model_info(
    file: Annotated[Path, typer.Argument(help="A GGUF file.")],
    as_json: Annotated[bool, typer.Option("--json", help="All facts, as JSON.")] = False,
) -> None:
    """Show what is in a model's file, and what a catalogue's entry for it tells."""
    show_model(file, as_json=as_json)


@app.command()
def demo(name: LabName = "lab", nodes: DemoNodes = 3, verbose: Verbose = 0) -> None:
    """The whole of it on this machine: boot a lab, set it up, ask it a question."""
    check_lab_name(name)
    root = find_root()
    inventory = f"inventory/{name}"
    heading(f"1/5  Boot the lab: {nodes} nodes")
    play_lab("lab_up", name, {"lab_nodes": nodes}, verbosity=verbose)
    heading("2/5  Make a stand-in model")
    if is_whole(root / DEMO_MODEL):
        print(f"{DEMO_MODEL} is there. Its weights are random: what it answers is noise.", flush=True)
    else:
        synthesize_model(
            root / DEMO_MODEL,
            name="bramble-synth",
            size="60M",
            layers=DEMO_LAYERS,
            quantization="Q8_0",
            context=4096,
            seed=0,
            overwrite=True,
        )
    heading("3/5  Set up the nodes")
    play(root, "site.yml", inventory=inventory, verbosity=verbose, require_hosts=True)
    heading("4/5  Look at them")
    report = look(root, inventory)
    show(report)
    gateway = report["gateway"]["url"]
    if gateway is None:
        raise CliError("The inventory has no host in the group gateway: there is nobody to ask.")
    heading(f"5/5  Ask: {DEMO_QUESTION}")
    model = ask_gateway(
        gateway,
        DEMO_QUESTION,
        model=report["model"]["name"],
        max_tokens=DEMO_TOKENS,
        advice=status_advice(inventory),
    )
    split = ", ".join(f"{node} {layers}" for node, layers in report["model"]["layers"].items()) or "not told"
    page = f"{inventory}/report/baseline.html"
    print(f"\nGateway:          {gateway}\nLayers per node:  {split}\nWhat it measured: {page}\n\nAsk it yourself:\n")
    print(f"  {curl_line(gateway, model)}\n  {COMMAND} ask -i {inventory} 'Hello'\n")
    print(f"Remove it all:  {COMMAND} lab down --name {name}")
    raise typer.Exit(0 if report["ok"] else 1)


model_app.command("convert")(model_convert)
app.command()(enroll)
app.command()(image)


# --- What they call


@contextmanager
def measured_errors() -> Iterator[None]:
    """What `bramble.cli.measured` cannot do ends the command (exit code 2)."""
    from bramble.cli.measured import MeasuredError

    try:
        yield
    except MeasuredError as error:
        raise CliError(str(error), 2) from error


def stderr_console() -> Console:
    return Console(stderr=True, highlight=False)


def stdout_console() -> Console:
    # A pipe has no width; a table cut to 80 columns would lose what a script looks for.
    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)


def show(report: dict[str, Any]) -> None:
    """Print the report of `bramble status` for people. A problem is one line, however narrow the terminal."""
    from bramble.cli.status import render, render_verdict

    console = stdout_console()
    console.print(render(report))
    console.print()
    console.print(render_verdict(report), soft_wrap=True)


def is_whole(model: Path) -> bool:
    """Whether the stand-in model is there, with an entry for the catalogue that tells all that is read of it today."""
    try:
        return model.exists() and "kv_heads" in json.loads(model.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def heading(text: str) -> None:
    stderr_console().print(f"\n[bold]{text}[/]", soft_wrap=True)


def inventory_path(root: Path, inventory: str) -> str:
    """The inventory as `run_playbook` wants it: what the user named from where he is, else from the project's root."""
    if inventory.endswith(","):
        return inventory
    path = Path(inventory).absolute()
    if not path.exists():
        path = root / inventory
    if not path.exists():
        raise CliError(
            f"The inventory {inventory} does not exist. Name one with -i, or make a lab with `bramble lab up`.", 2
        )
    try:
        names = [each.name for each in path.iterdir()] if path.is_dir() else None
    except OSError as error:
        raise CliError(f"The inventory {inventory} cannot be read: {error.strerror}.", 2) from error
    if names is not None and all(name in NO_HOSTS or name.startswith(".") for name in names):
        lab = path.name if path.parent == root / "inventory" and LAB_NAME.fullmatch(path.name) else None
        boot = f"make lab-up{'' if lab == 'lab' else f' LAB={lab}'}"
        raise CliError(
            f"{inventory} has no hosts.yml: "
            + (f"boot the lab first with `{boot}`." if lab else "write one, or name another inventory with -i."),
            2,
        )
    return str(path)


def refuse_placeholders(root: Path, inventory: str) -> None:
    """End the command if the inventory is not filled in: its CHANGE_ME would be looked up as a host's name.

    Raises:
        CliError: a file of the inventory has a placeholder (exit code 2).
    """
    path = root / inventory
    for file in [path] if path.is_file() else sorted(path.rglob("*.yml")):
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # Ansible says it better.
        if PLACEHOLDER.search(text):
            shown = file.relative_to(root) if file.is_relative_to(root) else file
            raise CliError(f"{shown} still has CHANGE_ME: run `ansible-playbook playbooks/validate.yml`.", 2)


def check_tags(tags: str | None) -> None:
    """Refuse a tag that site.yml does not have."""
    unknown = [tag for tag in (tags or "").split(",") if tags is not None and tag.strip() not in TAGS]
    if unknown:
        raise CliError(f"site.yml has no tag {', '.join(map(repr, unknown))}; it has {', '.join(TAGS)}.", 2)


def check_lab_name(name: str) -> None:
    if not LAB_NAME.fullmatch(name):
        raise CliError(f"A lab is named `lab`, or `lab-` and up to 16 small letters or digits, not {name!r}.", 2)


def status_advice(inventory: str) -> str:
    """Where to look if the inventory's gateway does not answer."""
    return f"`bramble status{'' if inventory == DEFAULT_INVENTORY else f' -i {shlex.quote(inventory)}'}` tells why."


def play(
    root: Path,
    playbook: str,
    *,
    inventory: str,
    limit: str | None = None,
    tags: str | None = None,
    check: bool = False,
    extra_vars: Mapping[str, object] | None = None,
    passwords: Mapping[str, str] | None = None,
    verbosity: int = 0,
    require_hosts: bool = False,
) -> RunResult:
    """Run a playbook under people's eyes; if it does not end well, so does the command."""
    from bramble.cli.progress import report_end, shown

    console = stderr_console()
    with shown(console) as listener:
        result = run_playbook(
            playbook,
            root=root,
            inventory=inventory,
            limit=limit,
            tags=tags,
            check=check,
            extra_vars=extra_vars,
            passwords=passwords,
            verbosity=verbosity,
            require_hosts=require_hosts,
            listener=listener,
        )
    report_end(console, result, root)
    if not result.ok:
        raise typer.Exit(130 if result.status == "interrupted" else 1)
    return result


def play_lab(playbook: str, name: str, extra_vars: Mapping[str, object], *, verbosity: int) -> None:
    """Run one of the lab's playbooks on this machine."""
    check_lab_name(name)
    root = find_root()
    play(
        root,
        f"playbooks/{playbook}.yml",
        inventory=LOCALHOST,
        extra_vars={"lab_name": name, **extra_vars},
        passwords=lab_passwords(),
        verbosity=verbosity,
    )


def break_vars(node: str, how: str) -> dict[str, object]:
    if not NODE_NAME.fullmatch(node):
        raise CliError(f"{node!r} is no name of a node; a lab's nodes are pi1, pi2, …", 2)
    return {"lab_break_node": node, "lab_break_how": how}


def lab_passwords() -> dict[str, str] | None:
    """What sudo wants to know before the lab may start podman as root; None if it wants nothing."""
    if os.geteuid() == 0:
        return None
    why = "The lab boots containers with podman, which needs root: networks of its own, systemd inside."
    if shutil.which("sudo") is None:
        raise CliError(f"{why} There is no sudo here; run this as root.", 2)
    # With -k no earlier login counts: Ansible has a terminal of its own, where it would not count either.
    if subprocess.run(["sudo", "-k", "-n", "true"], capture_output=True, check=False).returncode == 0:
        return None
    return become_passwords(why)


def become_passwords(why: str) -> dict[str, str]:
    """Ask for sudo's password, once, for ``ansible-playbook --ask-become-pass``."""
    if not sys.stdin.isatty():
        raise CliError(f"{why} There is no terminal to ask for sudo's password on.", 2)
    print(why, file=sys.stderr)
    return {BECOME_PROMPT: getpass.getpass("Password for sudo: ")}


def look(root: Path, inventory: str) -> dict[str, Any]:
    """The report of `bramble status`.

    Raises:
        CliError: the inventory is not filled in, or the nodes could not be looked at (exit code 2).
    """
    from bramble.cli.progress import waiting
    from bramble.cli.status import Collector, build_report, fetch_gateway

    refuse_placeholders(root, inventory)
    collector = Collector()
    with waiting(stderr_console(), "Looking at the nodes…", collector) as listener:
        result = run_playbook(
            "playbooks/status.yml", root=root, inventory=inventory, environment=QUICK, listener=listener
        )
    if result.status == "interrupted" or not collector.nodes:
        could_not_look(result, root, inventory)
    return build_report(collector.nodes, fetch_gateway(collector.gateway_url))


def gateway_url(root: Path, inventory: str) -> str:
    """The gateway's URL by the inventory.

    Raises:
        CliError: the inventory is not filled in, cannot be read, or has no gateway (exit code 2).
    """
    from bramble.cli.status import Collector

    refuse_placeholders(root, inventory)
    collector = Collector()
    result = run_playbook("playbooks/status.yml", root=root, inventory=inventory, tags="inventory", listener=collector)
    if not result.ok or not collector.nodes:
        could_not_look(result, root, inventory)
    if collector.gateway_url is None:
        raise CliError(f"The inventory {inventory} has no host in the group gateway. Name the gateway with --url.", 2)
    return collector.gateway_url


def could_not_look(result: RunResult, root: Path, inventory: str) -> NoReturn:
    from bramble.cli.progress import report_end

    if result.ok:
        raise CliError(f"The inventory {inventory} has no host in the group cluster.", 2)
    report_end(stderr_console(), result, root)
    raise typer.Exit(130 if result.status == "interrupted" else 2)


def ask_gateway(url: str, prompt: str, *, model: str | None, max_tokens: int | None, advice: str) -> str:
    """Stream an answer to standard output; the name of the model that gave it.

    ``advice``: what to try if no answer comes, or no whole one.
    """
    from bramble.cli.chat import ChatError, choose_model, open_client
    from bramble.cli.chat import ask as ask_model

    def write(piece: str) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()

    try:
        with open_client() as client:
            model = model or choose_model(client, url)
            answer = ask_model(client, url, model, prompt, write=write, max_tokens=max_tokens)
    except ChatError as error:
        raise CliError(f"{error} {advice}" if error.by_nodes else str(error)) from error
    if not answer.text.endswith("\n"):
        write("\n")
    speed = f"{answer.tokens_per_second:.1f} tokens/s" if answer.tokens_per_second is not None else "speed not measured"
    print(f"{answer.model}: {answer.tokens} tokens, {speed}", file=sys.stderr, flush=True)
    return model


def curl_line(url: str, model: str) -> str:
    """A command to paste into a shell."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "stream": True}
    return shlex.join(["curl", "-N", f"{url}/api/chat", "-d", json.dumps(body)])


def synthesize_model(
    output: Path,
    *,
    name: str,
    size: str,
    layers: int | None,
    quantization: str,
    context: int,
    seed: int,
    overwrite: bool,
    architecture: str = "llama",
    tied: bool = False,
) -> None:
    """Write a stand-in model and say what it is."""
    from bramble.model import SynthError, catalogue_fields, parse_parameters, synthesize

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        report = synthesize(
            output,
            parameters=parse_parameters(size),
            layers=layers,
            quantization=quantization,
            context=context,
            seed=seed,
            name=name,
            architecture=architecture,
            tied=tied,
            overwrite=overwrite,
        )
    except SynthError as error:
        raise CliError(str(error)) from error
    except OSError as error:
        raise CliError(f"{output} cannot be written: {error.strerror}.") from error
    model = report.model
    # What model_store_catalogue wants to know of it; the lab's inventory reads it from here.
    entry = {
        "file": str(output.resolve()),
        "sha256": report.sha256,
        "bytes": model.bytes,
        **catalogue_fields(model),
    }
    output.with_suffix(".json").write_text(json.dumps(entry, indent=2) + "\n")
    print(f"{output}: {model.parameters / 1e6:.1f} M parameters, {model.layers} layers, {model.quantization}")
    print(f"  {model.bytes} bytes, sha256 {report.sha256}")
    print(
        "  The weights are RANDOM: what this model answers is noise. It stands in until a trained one is there.",
        flush=True,
    )


def show_model(path: Path, *, as_json: bool) -> None:
    """Print a model's facts: as JSON all of them, for people the bytes of its parts and its catalogue entry."""
    from rich.table import Table

    from bramble.model import GgufError, catalogue_fields, read_shape

    try:
        shape = read_shape(path)
    except GgufError as error:
        raise CliError(str(error)) from error
    if as_json:
        print(json.dumps(shape.as_dict(), indent=2))
        return
    least, most = min(shape.layer_bytes), max(shape.layer_bytes)
    each = f"{least / 1e6:.1f}" + (f" to {most / 1e6:.1f}" if least != most else "")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("part")
    table.add_column("MB", justify="right")
    parts = [
        ("input embedding", shape.embedding_bytes),
        ("output matrix", shape.output_bytes),
        (f"{shape.layers} layers, {each} MB each", sum(shape.layer_bytes)),
        ("the rest", shape.other_bytes),
        ("header", shape.bytes - shape.weight_bytes),
        ("file", shape.bytes),
        ("read for each token", shape.active_bytes),
        ("KV cache of 1000 tokens, f16", round(1000 * shape.layers * shape.kv_bytes_per_token_per_layer())),
    ]
    for part, size in parts:
        shown = "is the embedding" if part == "output matrix" and shape.tied else f"{size / 1e6:.1f}"
        table.add_row(part, shown)
    print(f"{shape.name}: {shape.parameters / 1e6:.1f} M parameters, {shape.architecture}, {shape.quantization}\n")
    Console().print(table)
    print("\nFor its entry in model_store_catalogue:\n")
    entry = {"bytes": shape.bytes, **catalogue_fields(shape)}
    print("\n".join(f"  {key}: {json.dumps(value)}" for key, value in entry.items()))
