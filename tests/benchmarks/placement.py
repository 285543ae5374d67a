#!/usr/bin/env python3
"""The planner's placement against llama.cpp's own split, HSM-DIF's rule and even layers: measured, in one run.

    .venv/bin/python tests/benchmarks/placement.py [--rounds N] [--only SCENARIO]

Four nodes of unequal speed on this machine, each a llama-server (head) or ggml-rpc-server (worker) with one thread.
Each node's bandwidth is measured by llama-bench as the product does, the planner plans with that, and each arrangement
answers the same prompt, in rounds, so that what else the machine does hits all alike. A round starts with another
arrangement each time. Ratios are to the first row, round by round. `waited`: the share of the time in which an
arrangement was ready to run and other programs had the cores. A generation with more than QUIET of that is done again,
at most TRIES times in all, and of these the one that waited least counts, whatever its speed.

Emulated:
- Speed: a thread stops and continues a node's process, for about PERIOD seconds each time. llama-bench runs under the
  same duty cycle. A process that is stopped when its turn comes waits: about (1 - speed)^2 x PERIOD / 2 a token, which
  no real node would, and which the prediction does not know.
- Memory: declared to the planner and the rules, and not enforced. An arrangement that takes more than was declared runs
  here, and on real nodes would not: it is marked `over`.
- Network: loopback, its round trip measured by a TCP echo.
- The workers of llama.cpp's default all say that they have this machine's memory. `by memory` is the same rule with
  the declared memory, which it would see on real nodes.

HSM-DIF never ran. Its rule is taken as it stands in its source, applied to layers as its successors do: nodes by free
memory, the largest first; the shortest prefix whose free memory together suffices (by our estimate, which is closer);
shares in proportion to free memory x speed, which is 2 x cores and so the same for all; the remainder to the fastest.
Of equals the first in the inventory goes first, and that is the fastest: in its favour.

Workers, and heads with `--load-mode none`, have their weights in anonymous memory, and llama-bench maps the file.
Both ask for huge pages as the product's units do (service_unit_huge_pages). Without them, in a run of its own six
minutes later, the same two nodes were 0.84 times as fast.

Needs a build in ~/.cache/bramble/llama.cpp, as memory.py does.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import platform
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from memory import Programs, running

from bramble.model import ModelShape, read_shape, synthesize
from bramble.plan import memory, place, speed
from bramble.plan.choose import Wish, choose
from bramble.plan.cluster import Cluster, Link, Node
from bramble.plan.place import Need, Placement

RESULTS = Path(__file__).parent / "results"
SPEEDS = {"pi1": 1.0, "pi2": 0.5, "pi3": 0.25, "pi4": 0.5}
FAST = "pi1"
PERIOD = 0.003
PARAMETERS, LAYERS = 240_000_000, 20
CONTEXT, TOKENS = 512, 32
QUIET, TRIES = 0.05, 3
LOOPBACK_THROUGHPUT = 1e9
FIRST_PORT = 18600
NEED = Need(CONTEXT)
SCENARIOS = {
    "ample": ("each node could hold the model twice", dict.fromkeys(SPEEDS, 2.0)),
    "two": ("each node could hold 0.7 of the model", dict.fromkeys(SPEEDS, 0.7)),
    "spill": ("the fast node could hold 0.3 of the model, the others 0.6", dict.fromkeys(SPEEDS, 0.6) | {FAST: 0.3}),
}


# --- A node's speed


class DutyCycle:
    """While it is entered, each process runs only its share of the time. Lengths vary, so that no two keep step."""

    def __init__(self, shares: Mapping[int, float]) -> None:
        self.shares = {pid: share for pid, share in shares.items() if share < 1}
        self.ran = dict.fromkeys(self.shares, 0.0)
        self.seconds = 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> DutyCycle:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        dice = random.Random(0)
        began = time.monotonic()
        due = dict.fromkeys(self.shares, began)
        runs = dict.fromkeys(self.shares, True)
        since = dict.fromkeys(self.shares, began)
        # Seconds that each must still be stopped for what it ran: what comes late, as it does where the machine is
        # busy, is made up for.
        owed = dict.fromkeys(self.shares, 0.0)
        try:
            while not self._end.is_set() and due:
                pid = min(due, key=due.__getitem__)
                if (left := due[pid] - time.monotonic()) > 0:
                    time.sleep(left)
                try:
                    os.kill(pid, signal.SIGSTOP if runs[pid] else signal.SIGCONT)
                except ProcessLookupError:  # It ended.
                    del due[pid]
                    continue
                now = time.monotonic()
                share, passed, since[pid] = self.shares[pid], now - since[pid], now
                if runs[pid]:
                    self.ran[pid] += passed
                    owed[pid] += passed * (1 - share) / share
                    due[pid] = now + owed[pid]
                else:
                    owed[pid] -= passed
                    due[pid] = now + PERIOD * share * dice.uniform(0.7, 1.3)
                runs[pid] = not runs[pid]
        finally:
            self.seconds = time.monotonic() - began
            for pid in self.shares:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


# --- What the planner must know


def measure_node(name: str, path: Path, shape: ModelShape, programs: Programs) -> tuple[float, float, list[str]]:
    """Bytes/s while decoding, parameters x tokens/s of a prompt, and what llama-bench said.

    Of three runs the one that decodes fastest, as the planner takes the best record of a model."""
    return max((bench(name, path, shape, programs) for _ in range(3)), key=lambda found: found[0])


def bench(name: str, path: Path, shape: ModelShape, programs: Programs) -> tuple[float, float, list[str]]:
    command = programs.command(
        *("llama-bench", "-m", path, "-t", 1, "-ngl", 0, "-p", 32, "-n", 16, "-r", 5, "-o", "json")
    )
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    with DutyCycle({process.pid: SPEEDS[name]}) as cycle:
        output, _ = process.communicate(timeout=300)
    if process.returncode:
        sys.exit(f"llama-bench ended with {process.returncode}.")
    tests = {("prefill" if test["n_prompt"] else "decode"): test for test in json.loads(output)}
    lines = [f"{name}: {what} {test['samples_ts']} tokens/s" for what, test in tests.items()]
    lines += [f"{name}: ran {ran / cycle.seconds:.3f} of the time" for ran in cycle.ran.values()]
    bandwidth = tests["decode"]["avg_ts"] * shape.active_bytes
    prefill = tests["prefill"]["avg_ts"] * sum(shape.layer_parameters) * speed.active_share(shape)
    return bandwidth, prefill, lines


def round_trip() -> float:
    """Seconds, the median of a one-byte TCP echo on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as near:
        far, _ = listener.accept()
        with far:

            def echo() -> None:
                while byte := far.recv(1):
                    far.sendall(byte)

            thread = threading.Thread(target=echo, daemon=True)
            thread.start()
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            seen = []
            for _ in range(500):
                began = time.monotonic()
                near.sendall(b".")
                near.recv(1)
                seen.append(time.monotonic() - began)
            near.shutdown(socket.SHUT_WR)
            thread.join()
    return statistics.median(seen)


# --- The rules


@dataclass
class Arrangement:
    """Which layers are where. `arguments`: how llama.cpp is told, if not as roles/llama_service does; then the output
    is on the last worker."""

    label: str
    head: str
    layers: Mapping[str, range]
    arguments: tuple[str, ...] | None = None
    predicted: float = 0.0
    over: tuple[str, ...] = ()
    measured: list[float] = field(default_factory=list)
    duty: dict[float, list[float]] = field(default_factory=dict)
    waited: list[float] = field(default_factory=list)
    tries: list[tuple[float, float]] = field(default_factory=list)

    @property
    def workers(self) -> tuple[str, ...]:
        return tuple(name for name in self.layers if name != self.head)


def consecutive(counts: Mapping[str, int]) -> dict[str, range]:
    """Layers in the order of the nodes."""
    stops = list(itertools.accumulate(counts.values()))
    return {name: range(stop - counts[name], stop) for name, stop in zip(counts, stops, strict=True)}


def of_placement(label: str, placement: Placement) -> Arrangement:
    return Arrangement(label, placement.head, placement.layers)


def llama_default(label: str, cluster: Cluster, head: str, arguments: tuple[str, ...], by_memory: bool) -> Arrangement:
    """All layers and the output to the workers, in proportion to memory (src/llama-model.cpp)."""
    workers = [node for node in cluster.nodes if node.name != head]
    shares = [float(node.memory) if by_memory else 1.0 for node in workers]
    bounds = [stop / sum(shares) for stop in itertools.accumulate(shares)]
    held = [bisect_right(bounds, layer / (LAYERS + 1)) for layer in range(LAYERS)]
    counts = {head: 0} | {node.name: held.count(place) for place, node in enumerate(workers)}
    if by_memory:
        arguments = ("--fit", "off", "--n-gpu-layers", str(LAYERS + 1))
        arguments += ("--tensor-split", ",".join(f"{share:.0f}" for share in shares))
    return Arrangement(label, head, consecutive(counts), arguments)


def hsm_dif(cluster: Cluster, needed: int) -> Arrangement:
    by_memory = sorted(cluster.nodes, key=lambda node: -node.usable)
    count = next(n for n in range(1, len(by_memory) + 1) if sum(node.usable for node in by_memory[:n]) >= needed)
    chosen = [node for node in cluster.nodes if node in by_memory[:count]]
    speeds = {node.name: 2 * (os.cpu_count() or 1) for node in chosen}
    weights = {node.name: node.usable * speeds[node.name] for node in chosen}
    counts = {name: LAYERS * weight // sum(weights.values()) for name, weight in weights.items()}
    counts[max(speeds, key=speeds.__getitem__)] += LAYERS - sum(counts.values())
    return Arrangement("HSM-DIF", chosen[0].name, consecutive(counts))


def even(head: str) -> Arrangement:
    names = [head, *(name for name in SPEEDS if name != head)]
    counts = {name: LAYERS // len(names) + (place < LAYERS % len(names)) for place, name in enumerate(names)}
    return Arrangement("even layers", head, consecutive(counts))


def arrangements(shape: ModelShape, cluster: Cluster) -> list[Arrangement]:
    """The planner's first. What two rules agree on is there once."""
    plan = choose(cluster, {shape.name: shape}, [Wish(shape.name, NEED)], sliceable=())
    fewest = place.rpc(shape, cluster, NEED)
    fastest = place.rpc(shape, cluster, NEED, fewest=False)
    if not plan.chosen or not isinstance(fewest, list) or not isinstance(fastest, list):
        sys.exit("The planner finds no placement.")
    needed = memory.llama_server(shape, range(LAYERS), context=CONTEXT, slots=1, remote=False).peak
    head = fastest[0].head
    slowest = min(cluster.nodes, key=lambda node: node.bandwidth).name
    found = [
        of_placement("planner", plan.chosen[0].placements[0]),
        of_placement("planner, layers, few nodes", fewest[0]),
        of_placement("planner, layers, fastest", fastest[0]),
        llama_default("llama.cpp's default", cluster, head, (), False),
        llama_default("the same, slowest is head", cluster, slowest, (), False),
        hsm_dif(cluster, needed),
        even(head),
    ]
    if len({node.memory for node in cluster.nodes}) > 1:
        found.insert(5, llama_default("llama.cpp's, by memory", cluster, head, (), True))
    kept: list[Arrangement] = []
    for one in found:
        same = [
            other
            for other in kept
            if (other.head, other.layers, other.arguments is None) == (one.head, one.layers, one.arguments is None)
        ]
        if same:
            same[0].label += f" = {one.label}"
            continue
        foresee(one, shape, cluster)
        kept.append(one)
    return kept


def foresee(one: Arrangement, shape: ModelShape, cluster: Cluster) -> None:
    """What the planner says of it: tokens/s, and who has too little memory."""
    if not one.workers:
        one.predicted = 1 / sum(speed.decode_layers(shape, cluster, one.head, one.layers).values())
        return
    placement = place.layered(shape, cluster, NEED, one.head, one.layers)
    seconds = sum(placement.parts.values())
    if one.arguments is not None:
        last = one.workers[-1]
        seconds += shape.head_bytes * (1 / cluster.node(last).bandwidth - 1 / cluster.node(one.head).bandwidth)
        seconds += 4 * shape.vocabulary / cluster.link(one.head, last).throughput
    one.predicted = 1 / seconds
    one.over = tuple(name for name, wanted in placement.memory.items() if wanted > cluster.node(name).usable)


# --- Running


@contextlib.contextmanager
def serving(
    one: Arrangement, port: int, path: Path, programs: Programs, directory: Path
) -> Iterator[tuple[dict[int, float], Path]]:
    """Yields the speed of each process, and the head's log."""
    ports = {name: port + 1 + place for place, name in enumerate(one.workers)}
    log = directory / f"{port}.log"
    with contextlib.ExitStack() as stack:
        speeds = {}
        for name, own in ports.items():
            command = programs.command("ggml-rpc-server", "--host", "127.0.0.1", "--port", own, "--threads", 1)
            process = stack.enter_context(running(command, directory / f"{own}.log", huge_pages=True))
            speeds[process.pid] = SPEEDS[name]
        for own in ports.values():
            wait_for_port(own)
        arguments = [*("--model", path, "--host", "127.0.0.1", "--port", port, "--no-ui", "--offline")]
        arguments += [*("--ctx-size", CONTEXT, "--parallel", 1, "--threads", 1, "--batch-size", 512)]
        arguments += [*("--cache-ram", 0, "--log-verbosity", 4)]
        if ports:
            arguments += ["--rpc", ",".join(f"127.0.0.1:{own}" for own in ports.values())]
        arguments += one.arguments if one.arguments is not None else product_arguments(one)
        command = programs.command("llama-server", *arguments)
        process = stack.enter_context(running(command, log, huge_pages=bool(ports)))
        speeds[process.pid] = SPEEDS[one.head]
        wait_for_server(process, port, log)
        yield speeds, log


def product_arguments(one: Arrangement) -> list[str]:
    """As __llama_service_rpc_arguments in roles/llama_service/vars/main.yml."""
    if not one.workers:
        return ["--fit", "off", "--n-gpu-layers", "0"]
    shares = [len(one.layers[name]) for name in one.workers]
    shares[-1] += 1
    return [
        *("--fit", "off", "--n-gpu-layers", str(sum(shares)), "--tensor-split", ",".join(map(str, shares))),
        *("--override-tensor", "^(output|token_embd).*=CPU", "--load-mode", "none"),
    ]


def wait_for_port(port: int) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        # A connection would be taken for a client; only look.
        if re.search(rf"^\s*\d+: 0100007F:{port:04X} 0+:0+ 0A", Path("/proc/net/tcp").read_text(), re.M):
            return
        time.sleep(0.05)
    sys.exit(f"No worker listens on port {port}.")


def wait_for_server(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
            return
        time.sleep(0.1)
    sys.exit(f"llama-server did not load the model:\n{log.read_text('utf-8', 'replace')[-2000:]}")


def check_layers(one: Arrangement, port: int, log: Path) -> str:
    """Holds where the layers are, by the sizes of the KV cache's parts, against where they should be."""
    # A worker's is called RPC0[127.0.0.1:18601].
    sizes = re.findall(r"(?:CPU|RPC\d+\[\S+:(\d+)\]) KV buffer size = +([\d.]+) MiB", log.read_text("utf-8", "replace"))
    names = {str(port + 1 + place): name for place, name in enumerate(one.workers)} | {"": one.head}
    whole = sum(float(size) for _, size in sizes)
    seen = {names[own]: round(LAYERS * float(size) / whole) for own, size in sizes}
    wanted = {name: len(held) for name, held in one.layers.items() if held}
    if seen != wanted:
        sys.exit(f"{one.label}: llama.cpp placed {seen}, and it should be {wanted}.")
    return f"{one.label}: KV cache {', '.join(f'{names[own]} {size} MiB' for own, size in sizes)}"


def waited(processes: Iterable[int]) -> float:
    """Seconds that the busiest thread of each process was ready to run and other work had the cores."""
    found = 0
    for pid in processes:
        threads = [(task / "schedstat").read_text().split() for task in Path(f"/proc/{pid}/task").iterdir()]
        found += max((int(ran), int(waited_for)) for ran, waited_for, _ in threads)[1]
    return found / 1e9


def generate(port: int, tokens: int) -> float:
    """Tokens/s, as the server counts them."""
    body = {"prompt": "The bramble and the network of its roots", "n_predict": tokens, "temperature": 0.0}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/completion",
        json.dumps(body | {"ignore_eos": True, "cache_prompt": False}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        timings = json.load(answer)["timings"]
    if timings["predicted_n"] != tokens:
        sys.exit(f"{timings['predicted_n']} tokens came, and {tokens} were asked for.")
    return float(timings["predicted_per_second"])


def run_scenario(
    found: Sequence[Arrangement], rounds: int, path: Path, programs: Programs, directory: Path
) -> Iterator[str]:
    """Measures each; yields what is kept beside the table."""
    with contextlib.ExitStack() as stack:
        servers = []
        for place_, one in enumerate(found):
            port = FIRST_PORT + 10 * place_
            speeds, log = stack.enter_context(serving(one, port, path, programs, directory))
            yield check_layers(one, port, log)
            generate(port, 8)
            servers.append((one, port, speeds))
        for number in range(rounds):
            first = number % len(servers)
            for one, port, speeds in servers[first:] + servers[:first]:
                tries: list[tuple[float, float]] = []
                while len(tries) < TRIES and min(tries, default=(1.0,))[0] > QUIET:
                    before = waited(speeds), time.monotonic()
                    with DutyCycle(speeds) as cycle:
                        rate = generate(port, TOKENS)
                    tries.append(((waited(speeds) - before[0]) / (time.monotonic() - before[1]), rate))
                    for pid, ran in cycle.ran.items():
                        one.duty.setdefault(speeds[pid], []).append(ran / cycle.seconds)
                one.tries += tries
                quietest = min(tries)
                one.waited.append(quietest[0])
                one.measured.append(quietest[1])
    for one in found:
        every = " ".join(f"{rate:.2f} ({share:.3f})" for share, rate in one.tries)
        yield f"{one.label}: all tries, tokens/s (waited): {every}"
        for share, seen in one.duty.items():
            yield f"{one.label}: nodes of speed {share} ran {statistics.mean(seen):.3f} of the time"
        yield f"{one.label}: {' '.join(f'{value:.2f}' for value in one.measured)} tokens/s"


def table(found: Sequence[Arrangement]) -> Iterator[str]:
    width = max(len(one.label) for one in found)
    columns = (
        f"{'layers (* head)':<25} {'predicted':>9} {'measured':>9} {'sd':>5} {'ratio':>6} {'sd':>5} {'waited':>6}  over"
    )
    yield f"{'':<{width}}  {columns}"
    for one in found:
        held = " ".join(
            f"{name}{'*' * (name == one.head)}:{len(one.layers.get(name, ()))}" for name in SPEEDS if name in one.layers
        )
        ratios = [own / base for own, base in zip(one.measured, found[0].measured, strict=True)]
        yield (
            f"{one.label:<{width}}  {held:<25} {one.predicted:>9.2f} {statistics.mean(one.measured):>9.2f} "
            f"{statistics.stdev(one.measured):>5.2f} {statistics.mean(ratios):>6.3f} {statistics.stdev(ratios):>5.3f} "
            f"{statistics.mean(one.waited):>6.3f}  "
            f"{' '.join(one.over)}"
        ).rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="generations of each arrangement")
    parser.add_argument("--only", choices=SCENARIOS, help="one scenario; nothing is kept")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds: 2 or more, or there is no spread")
    began = datetime.now(UTC)
    load = os.getloadavg()[0]
    lines: list[str] = []
    raw: list[str] = []
    with tempfile.TemporaryDirectory(prefix="bramble-placement-", dir="/var/tmp") as name:
        directory = Path(name)
        programs = Programs(directory)
        path = directory / "model.gguf"
        synthesize(path, parameters=PARAMETERS, layers=LAYERS, quantization="Q8_0", context=CONTEXT, name="synthetic")
        shape = read_shape(path)
        rtt = round_trip()
        rates = {}
        for node, share in SPEEDS.items():
            bandwidth, prefill, more = measure_node(node, path, shape, programs)
            rates[node] = bandwidth, prefill
            raw += more
            lines.append(f"{node}: speed {share}, {bandwidth / 1e9:.2f} GB/s by llama-bench")
            print(lines[-1], flush=True)
        lines.append(f"round trip {rtt * 1e6:.0f} us")
        print(lines[-1], flush=True)
        whole = memory.llama_server(shape, range(LAYERS), context=CONTEXT, slots=1, remote=False).peak
        for scenario, (what, shares) in SCENARIOS.items():
            if options.only not in (None, scenario):
                continue
            nodes = tuple(
                Node(node, int(shares[node] * whole), reserved=0, headroom=0.0, bandwidth=rate, prefill=prefill)
                for node, (rate, prefill) in rates.items()
            )
            cluster = Cluster(nodes, default_link=Link(rtt, LOOPBACK_THROUGHPUT, assumed=False))
            found = arrangements(shape, cluster)
            raw += [f"{scenario}: {line}" for line in run_scenario(found, options.rounds, path, programs, directory)]
            part = ["", f"{scenario}: {what}", *table(found)]
            print(*part, sep="\n", flush=True)
            lines += part
    if options.only:
        return
    RESULTS.mkdir(exist_ok=True)
    result = RESULTS / f"placement-{began:%Y%m%dT%H%M%SZ}.txt"
    head = [f"{began:%Y-%m-%dT%H:%M:%SZ}, {programs.build}, {shape.parameters:,} parameters Q8_0, {LAYERS} layers"]
    head += [
        f"{platform.machine()}, {os.cpu_count()} cores, load {load:.2f} before, {datetime.now(UTC) - began} in all"
    ]
    head += [f"{options.rounds} generations of {TOKENS} tokens each; tokens/s, ratio to the first row.", ""]
    result.write_text("\n".join([*head, *lines, "", *raw]) + "\n")
    print(result)


if __name__ == "__main__":
    main()
