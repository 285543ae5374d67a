"""Where the time of a generated token goes: has tokens generated, and makes a record of what was counted meanwhile.

What llama-server and its workers counted while short answers were generated is taken from what they counted while long
ones were. Prompt, request and reading the counters cost both the same, so what is left is decoding alone. Standard
library only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .conditions import Node, Observation
from .engine_counters import COUNTED, CountersError, leader
from .http_bench import PROMPTS, AnswerError, Server, parse_error_page, parse_object
from .llama_bench import (
    BenchError,
    Execute,
    Finished,
    last_words,
    read_json,
    require_enough,
    require_success,
    text_or_none,
)
from .statistics import mean, summary

SHORT_TOKENS = 2
"""Of a short answer. The first comes of the prompt; with the second, the workers are told how a token is computed."""

MS = 1e-6
"""ms in a nanosecond."""


class TokenTimeError(Exception):
    """There is no figure. The message says why."""


# --- Links


@dataclass(frozen=True)
class Link:
    """How a link is made worse. `rate`: bit/s; `delay_ms`: added to the round trip."""

    rate: int = 0
    delay_ms: float = 0.0


_UNITS = {"kbit/s": 10**3, "Mbit/s": 10**6, "Gbit/s": 10**9}
FRAME = 2000
"""Bytes: more than the largest frame of Ethernet without jumbo frames (1500 and its headers)."""
BURST_S = 0.0001
"""Seconds' worth of bytes that may pass at once. With more, the few kB of a token would pass an idle link unshaped."""
QUEUE_S = 0.4
"""Seconds that bytes may wait in the queue. A prompt's activations, MB at once, should not be dropped."""


def parse_link(text: str) -> Link:
    """`100 Mbit/s`, `+1 ms`, or nothing for the link as it is.

    Raises:
        TokenTimeError: it is none of these.
    """
    if text == "":
        return Link()
    rate = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?) (kbit/s|Mbit/s|Gbit/s)", text, re.ASCII)
    if rate and round(float(rate[1]) * _UNITS[rate[2]]) >= 10**5:
        return Link(rate=round(float(rate[1]) * _UNITS[rate[2]]))
    delay = re.fullmatch(r"\+(\d{1,4}(?:\.\d{1,3})?) ms", text, re.ASCII)
    if delay and float(delay[1]) > 0:
        return Link(delay_ms=float(delay[1]))
    raise TokenTimeError(
        f"the link {text!r} is not known: write a rate from 100 kbit/s on, such as '100 Mbit/s', a delay, such as "
        "'+1 ms', or nothing for the link as it is"
    )


def qdisc(text: str) -> list[str]:
    """The link as `tc` takes it, for one end: `tbf` for a rate, `netem` for half of a delay.

    Raises:
        TokenTimeError: as of parse_link, and for a link that is to be left as it is.
    """
    link = parse_link(text)
    if link.rate:
        burst = max(FRAME, round(link.rate / 8 * BURST_S))
        limit = burst + round(link.rate / 8 * QUEUE_S)
        return ["tbf", "rate", f"{link.rate}bit", "burst", str(burst), "limit", str(limit)]
    if link.delay_ms:
        return ["netem", "delay", f"{round(link.delay_ms * 500)}us", "limit", "10000"]
    raise TokenTimeError("a link that is left as it is needs no qdisc")


# --- llama-server generates


@dataclass(frozen=True)
class Wanted:
    """`requests` answers of exactly `generated` tokens to prompts of exactly `prompt` tokens. `salt`: ever another."""

    requests: int
    prompt: int
    generated: int
    salt: str

    def check(self, *, allow_few: bool = False) -> None:
        """Raises BenchError."""
        for name, value in (("prompt_tokens", self.prompt), ("generated_tokens", self.generated)):
            if not 1 <= value <= 10**6:
                raise BenchError(f"{name}: must be 1 or more, got {value}")
        require_enough(self.requests, "requests", allow_few)


def ask(server: Server, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The JSON object that a server answers with. Raises BenchError."""
    try:
        status, content = server.ask(path, body)
        if status != 200:
            raise BenchError(f"url: {server.url}{path}: status {status}: {parse_error_page(content)}")
        return parse_object(content)
    except AnswerError as error:
        raise BenchError(f"url: {server.url}{path}: {error}") from None


def prompt_tokens(server: Server, salt: str, count: int) -> list[int]:
    """A text's first `count` tokens, by the model's own tokenizer. Raises BenchError."""
    text = f"{salt}. {' '.join(PROMPTS)}"
    tokens: list[int] = []
    while len(tokens) < count:
        answer = ask(server, "/tokenize", {"content": text})
        found = answer.get("tokens")
        if not isinstance(found, list) or not found or not all(isinstance(token, int) for token in found):
            raise BenchError(f"url: {server.url}/tokenize gave no tokens: is it llama-server?")
        tokens += found
    return tokens[:count]


def parse_timings(answer: Mapping[str, Any], wanted: Wanted) -> dict[str, float]:
    """`timings` of an answer of `/completion`: {"prompt_n", "prompt_ms", "predicted_n", "predicted_ms"}.

    Raises BenchError: they are not there, or not of so many tokens as were asked for.
    """
    told = answer.get("timings")
    told = told if isinstance(told, dict) else {}
    found: dict[str, float] = {}
    for name in ("prompt_n", "prompt_ms", "predicted_n", "predicted_ms"):
        value = told.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
            raise BenchError(f"/completion: its timings have no {name}: is it llama-server?")
        found[name] = float(value)
    if (found["prompt_n"], found["predicted_n"]) != (wanted.prompt, wanted.generated):
        raise BenchError(
            f"/completion computed {found['prompt_n']:.0f} tokens of the prompt and generated "
            f"{found['predicted_n']:.0f}, and not {wanted.prompt} and {wanted.generated}: is there room for them "
            "in the context (rpc_head_context)?"
        )
    return found


def generate(server: Server, wanted: Wanted, node: Node) -> dict[str, Any]:
    """{"timings" (of each answer), "started_at", "duration_s", "conditions", "raw"}. Raises BenchError."""
    timings = []
    load = node.load()
    with Observation(node, load) as seen:
        for number in range(wanted.requests):
            body = {
                "prompt": prompt_tokens(server, f"{wanted.salt}{number:03d}", wanted.prompt),
                "n_predict": wanted.generated,
                "cache_prompt": False,
                "ignore_eos": True,
                "temperature": 0,
                "stream": False,
            }
            timings.append(parse_timings(ask(server, "/completion", body), wanted))
    return {
        "timings": timings,
        "started_at": seen.started_at,
        "duration_s": seen.duration_s,
        "conditions": seen.conditions(),
        "raw": "".join(f"{json.dumps(one)}\n" for one in timings),
    }


# --- The record of llama.cpp


def rates(short: Sequence[Mapping[str, float]], long: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """`token`, `decode` and `prefill` by the timings of short and long answers, taken in pairs.

    Raises:
        TokenTimeError: they are no pairs, or the long ones took no longer.
    """
    if not short or len(short) != len(long):
        raise TokenTimeError(f"there are {len(short)} short answers and {len(long)} long ones, which makes no pairs")
    times = []
    for one, other in zip(short, long, strict=True):
        tokens = other["predicted_n"] - one["predicted_n"]
        taken = other["predicted_ms"] - one["predicted_ms"]
        if tokens <= 0 or taken <= 0:
            raise TokenTimeError(
                f"{other['predicted_n']:.0f} tokens took {other['predicted_ms']:.1f} ms and {one['predicted_n']:.0f} "
                f"took {one['predicted_ms']:.1f} ms: what the others took is not to be had. Generate more tokens"
            )
        times.append(taken / tokens)
    prompts = [one["prompt_n"] / one["prompt_ms"] * 1000 for one in (*short, *long) if one["prompt_ms"] > 0]
    found = {"decode": summary([1000 / time for time in times], "tok/s"), "token": summary(times, "ms")}
    return found | ({"prefill": summary(prompts, "tok/s")} if prompts else {})


def per_token(values: Sequence[int], tokens: int) -> float:
    """A counter's values before, between and after → what a token adds to it."""
    before, between, after = values
    return ((after - between) - (between - before)) / tokens


def compute_figures(host: str, snapshots: Sequence[Mapping[str, Any]], tokens: int) -> dict[str, float]:
    """`compute_<host>` and `waited_<host>`, ms per token. CountersError: as of leader."""
    seen = leader(*snapshots)
    return {
        f"{what}_{host}": max(0.0, per_token([one[name] for one in seen], tokens) * MS)
        for what, name in (("compute", "ran_ns"), ("waited", "waited_ns"))
    }


def traffic_figures(
    worker: str, peer: str, snapshots: Sequence[Mapping[str, Any]], tokens: int, *, shaped: bool
) -> dict[str, dict[str, Any]]:
    """What the head's connection to a worker carried.

    Raises:
        TokenTimeError: the head has no connection to the worker, or another one than before.
    """
    rows = [[row for row in each["connections"] if row["peer"] == peer] for each in snapshots]
    ports = [[row["port"] for row in each] for each in rows]
    if not ports[0] or any(each != ports[0] for each in ports):
        raise TokenTimeError(f"the head's connection to {worker} ({peer}) did not last: measure again")
    counted = {name: per_token([sum(row[name] for row in each) for each in rows], tokens) for name in COUNTED}
    found = {
        f"sent_{worker}": {"value": max(0.0, counted["bytes_acked"]), "unit": "B"},
        f"received_{worker}": {"value": max(0.0, counted["bytes_received"]), "unit": "B"},
        f"messages_{worker}": {
            "value": max(0.0, counted["data_segs_out"] + counted["data_segs_in"]),
            "unit": "segments",
        },
    }
    first, last = rows[0], rows[-1]
    again = sum(row["retransmitted"] for row in last) - sum(row["retransmitted"] for row in first)
    found[f"retransmitted_{worker}"] = {"value": float(max(0, again)), "unit": "segments"}
    # The kernel keeps the least for minutes, so that on a link just made worse it is that of before.
    times = [
        row["rtt_ms" if shaped else "least_rtt_ms"] for row in last if ("rtt_ms" if shaped else "least_rtt_ms") in row
    ]
    if times:
        found[f"rtt_{worker}"] = {"value": min(times), "unit": "ms"}
    return found


def interface_figures(host: str, snapshots: Sequence[Mapping[str, Any]], tokens: int) -> dict[str, dict[str, Any]]:
    """`interface_sent_<host>`, `interface_received_<host>`; nothing where the node's interface is not known."""
    seen = [each["interface"] for each in snapshots]
    if not all(seen) or len({one["name"] for one in seen}) != 1:
        return {}
    found = {}
    for way in ("sent", "received"):
        value = per_token([one[way] for one in seen], tokens)
        if value >= 0:
            found[f"interface_{way}_{host}"] = {"value": value, "unit": "B"}
    return found


def llama_record(
    strategy: Mapping[str, Any],
    link: str,
    counted: Mapping[str, Sequence[Mapping[str, Any]]],
    short: Mapping[str, Any],
    long: Mapping[str, Any],
    peers: Mapping[str, str],
    about: Mapping[str, Any],
) -> tuple[dict[str, Any], str]:
    """The partial record of one strategy on one link, and what was read.

    Args:
        strategy: {"name", "placement", "nodes" (the head first), "layers", "logits", "same_as"}.
        counted: host → its snapshots before, between and after the answers.
        short, long: what `generate` returned for the short and the long answers.
        peers: worker → `address:port`.
        about: {"engine", "model", "n_prompt", "n_gen"}.

    Raises:
        TokenTimeError: figures are missing or do not belong together.
    """
    nodes = list(strategy["nodes"])
    missing = [host for host in nodes if [("threads" in each) for each in counted.get(host, ())] != [True] * 3]
    if missing:
        raise TokenTimeError(f"the counters of {', '.join(missing)} were not read: there is no record without them")
    times = rates(short["timings"], long["timings"])
    tokens = round(
        sum(one["predicted_n"] for one in long["timings"]) - sum(one["predicted_n"] for one in short["timings"])
    )
    result: dict[str, dict[str, Any]] = {name: times[name] for name in ("decode", "prefill", "token") if name in times}
    on_cores = 0.0
    for host in nodes:
        try:
            for name, value in compute_figures(host, counted[host], tokens).items():
                result[name] = {"value": value, "unit": "ms"}
                on_cores += value
        except CountersError as error:
            raise TokenTimeError(f"{host}: {error}") from error
    if len(nodes) > 1:
        result["network"] = {"value": max(0.0, times["token"]["mean"] - on_cores), "unit": "ms"}
        for host in nodes[1:]:
            result |= traffic_figures(host, peers[host], counted[nodes[0]], tokens, shaped=link != "")
        for host in nodes:
            result |= interface_figures(host, counted[host], tokens)
    conditions = dict(long["conditions"])
    conditions["notes"] = [*conditions["notes"], *_same(strategy)]
    if on_cores > times["token"]["mean"] * 1.02:
        conditions["notes"].append(
            f"computing and waiting for a core are {on_cores:.1f} ms for a token of {times['token']['mean']:.1f} ms: "
            "some of it was at the same time, as where nodes share a processor"
        )
    record = {
        "started_at": short["started_at"],
        "kind": "token_time",
        "engine": dict(about["engine"]),
        "model": dict(about["model"]),
        "params": _params(strategy, link, about["n_prompt"], about["n_gen"], len(long["timings"])),
        "result": result,
        "conditions": conditions,
        "duration_s": round(short["duration_s"] + long["duration_s"], 3),
    }
    raw = "".join(
        f"# {host}, {when}\n{json.dumps(each, sort_keys=True)}\n"
        for host in nodes
        for when, each in zip(("before", "between", "after"), counted[host], strict=True)
    )
    return record, f"# short answers\n{short['raw']}# long answers\n{long['raw']}{raw}"


def _same(strategy: Mapping[str, Any]) -> list[str]:
    same = list(strategy.get("same_as") or ())
    return [f"the same split as: {', '.join(same)}"] if same else []


def _params(strategy: Mapping[str, Any], link: str, n_prompt: int, n_gen: int, repetitions: int) -> dict[str, Any]:
    return {
        "strategy": strategy["name"],
        "placement": strategy["placement"],
        "nodes": list(strategy["nodes"]),
        "layers": dict(strategy["layers"]),
        "logits": strategy["logits"],
        "link": link,
        "n_prompt": n_prompt,
        "n_gen": n_gen,
        "repetitions": repetitions,
    }


# --- distributed-llama


@dataclass(frozen=True)
class Inference:
    """What one run of `dllama inference` printed. Times in ms for each token, bytes for each token, of the root.

    `compute`, `sync`: the two parts of `token`, None where tokens take too short to tell them apart. `prompt`,
    `predicted`: tokens that were evaluated and predicted.
    """

    prompt: int
    predicted: int
    prefill: float | None
    token: float
    compute: float | None
    sync: float | None
    sent: float
    received: float


_PRED = re.compile(
    r"^🔶 Pred\s*(\d{1,9}) ms Sync\s*(\d{1,9}) ms \| Sent\s*(\d{1,12}) kB Recv\s*(\d{1,12}) kB \|", re.M | re.A
)
_SUMMARY = (
    r"^{head}\n(?:   nBatches: \d{{1,6}}\n)?    nTokens: (\d{{1,9}})\n"
    r"   tokens/s: (?:-?nan|inf|(\d{{1,9}}\.\d\d)) \((?:-?nan|inf|(\d{{1,9}}\.\d\d)) ms/tok\)$"
)


def parse_inference(text: str) -> Inference:
    """The output of `dllama inference` (src/dllama.cpp, `inference`, at 8d624a7).

    Its lines have whole milliseconds, cut off; its summary is exact. What the cutting took away is given back to both
    parts alike: each lost half a millisecond a line, on average.

    Raises:
        TokenTimeError: it has no such lines, or no summary.
    """
    lines = [tuple(map(int, found.groups())) for found in _PRED.finditer(text)]
    parts = {name: re.search(_SUMMARY.format(head=name), text, re.M | re.A) for name in ("Evaluation", "Prediction")}
    evaluation, prediction = parts["Evaluation"], parts["Prediction"]
    if not lines or evaluation is None or prediction is None or prediction[3] is None:
        raise TokenTimeError(f"dllama printed no tokens with their times. Its last words: {last_words(text) or 'none'}")
    token = float(prediction[3])
    if token <= 0:
        raise TokenTimeError("dllama says that its tokens took no time")
    compute, sync = (sum(line[place] for line in lines) / len(lines) for place in (0, 1))
    lost = token - compute - sync
    told = abs(lost) <= compute + sync
    return Inference(
        prompt=int(evaluation[1]) + 1,
        predicted=int(prediction[1]),
        prefill=float(evaluation[2]) if evaluation[2] else None,
        token=token,
        compute=max(0.0, compute + lost / 2) if told else None,
        sync=max(0.0, sync + lost / 2) if told else None,
        sent=1024 * sum(line[2] for line in lines) / len(lines),
        received=1024 * sum(line[3] for line in lines) / len(lines),
    )


def inference_command(command: Sequence[str], prompt: str, steps: int) -> list[str]:
    """The command line of `dllama inference` with the arguments of that of `dllama-api`.

    Raises:
        TokenTimeError: it is not one of dllama-api.
    """
    place = next((number for number, word in enumerate(command) if word.rpartition("/")[2] == "dllama-api"), None)
    if place is None:
        raise TokenTimeError(f"{' '.join(command)}: does not run dllama-api")
    program = command[place].removesuffix("dllama-api") + "dllama"
    rest = list(command[place + 1 :])
    # It reads its options in pairs. Those of the server's own address mean nothing here.
    for option in ("--host", "--port"):
        if option in rest:
            del rest[rest.index(option) : rest.index(option) + 2]
    return [*command[:place], program, "inference", "--prompt", prompt, "--steps", str(steps), *rest]


def inference_steps(prompt: int, generated: int) -> int:
    """`--steps` after which so many tokens were generated: the position at which it stops."""
    return prompt - 1 + generated


def inference_prompt(tokens: int) -> str:
    """A text of some `tokens` tokens, whatever the tokenizer: words of four letters and a space."""
    words = " ".join(PROMPTS).split()
    return " ".join((words * (tokens // len(words) + 1))[:tokens])


def dllama_record(
    strategy: Mapping[str, Any],
    link: str,
    runs: Sequence[str],
    seen: Mapping[str, Any],
    about: Mapping[str, Any],
) -> tuple[dict[str, Any], str]:
    """The partial record of runs of `dllama inference`, and what they printed.

    Args:
        strategy: as of llama_record; `nodes` has the root first.
        seen: {"started_at", "duration_s", "conditions"}.
        about: {"engine", "model"}.

    Raises:
        TokenTimeError: as of parse_inference; or the runs differ in their tokens.
    """
    found = [parse_inference(run) for run in runs]
    if not found or len({(one.prompt, one.predicted) for one in found}) != 1:
        raise TokenTimeError("the runs of dllama did not compute the same number of tokens")
    root = strategy["nodes"][0]
    result: dict[str, dict[str, Any]] = {
        "decode": summary([1000 / one.token for one in found], "tok/s"),
        "token": summary([one.token for one in found], "ms"),
    }
    parts = [(one.compute, one.sync) for one in found if one.compute is not None and one.sync is not None]
    if len(parts) == len(found):
        result[f"compute_{root}"] = {"value": mean([part[0] for part in parts]), "unit": "ms"}
        if len(strategy["nodes"]) > 1:
            result["network"] = {"value": mean([part[1] for part in parts]), "unit": "ms"}
    prefills = [one.prefill for one in found if one.prefill]
    if prefills:
        result["prefill"] = summary(prefills, "tok/s")
    if len(strategy["nodes"]) > 1:
        result["sent"] = {"value": mean([one.sent for one in found]), "unit": "B"}
        result["received"] = {"value": mean([one.received for one in found]), "unit": "B"}
    conditions = dict(seen["conditions"])
    conditions["notes"] = [*conditions["notes"], *_same(strategy)]
    if any("EMULATION" in run for run in runs):
        conditions["notes"].append("emulation: the engine computes nothing")
    record = {
        "started_at": seen["started_at"],
        "kind": "token_time",
        "engine": dict(about["engine"]),
        "model": dict(about["model"]),
        "params": _params(strategy, link, found[0].prompt, found[0].predicted, len(found)),
        "result": result,
        "conditions": conditions,
        "duration_s": seen["duration_s"],
    }
    return record, "\n".join(runs)


def dllama_engine(command: Sequence[str]) -> dict[str, Any]:
    """The record's ``engine`` of a command line of dllama-api: what its build says of itself."""
    program = next((word for word in command if word.rpartition("/")[2] == "dllama-api"), "")
    release = Path(program).resolve().parent.parent
    commit = text_or_none(read_json(release / "build.json").get("commit"))
    return {
        "name": "distributed-llama",
        "commit": commit,
        "build_key": release.name if commit else None,
        "version": None,
    }


def unit_command(user: str, limit: int) -> list[str]:
    """What runs a program as the service's user, and ends it if nobody is left who waits for it."""
    properties = (
        *(f"User={user}", "LimitMEMLOCK=infinity", f"RuntimeMaxSec={limit}", "NoNewPrivileges=yes"),
        *("ProtectSystem=strict", "ProtectHome=yes", "PrivateDevices=yes", "OOMScoreAdjust=200"),
    )
    options = [f"--property={one}" for one in properties]
    return ["systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--unit=bramble-token-time", *options]


CONNECT_ATTEMPTS, CONNECT_PAUSE = 10, 3.0
"""A worker that lost its root listens again within seconds; `dllama inference` itself tries once."""


def infer(command: Sequence[str], limit: float, execute: Execute, sleep: Callable[[float], object]) -> Finished:
    """One run of `dllama inference`. Raises BenchError: it did not end well."""
    for attempt in range(CONNECT_ATTEMPTS):
        done = execute(command, limit)
        if done.code == 0 or "Cannot connect" not in done.stdout + done.stderr or attempt == CONNECT_ATTEMPTS - 1:
            break
        sleep(CONNECT_PAUSE)
    require_success(done, "dllama", limit)
    return done


def infer_all(
    command: Sequence[str],
    wrap: Sequence[str],
    requests: int,
    tokens: tuple[int, int],
    limit: float,
    node: Node,
    execute: Execute,
    sleep: Callable[[float], object],
) -> dict[str, Any]:
    """{"runs" (their output), "started_at", "duration_s", "conditions"} of `requests` runs.

    `command`: of dllama-api. `wrap`: what runs it, as another user. `tokens`: of the prompt, about, and generated.

    Raises BenchError, TokenTimeError.
    """
    prompt = inference_prompt(tokens[0])
    # How many tokens the prompt has, only the engine can tell: a byte is one at most, and it adds two.
    first = inference_command(command, prompt, len(prompt.encode()) + 2)
    evaluated = parse_inference(infer([*wrap, *first], limit, execute, sleep).stdout).prompt
    counted = [*wrap, *inference_command(command, prompt, inference_steps(evaluated, tokens[1]))]
    load = node.load()
    with Observation(node, load) as seen:
        runs = [infer(counted, limit, execute, sleep) for _ in range(requests)]
    return {
        "runs": [run.stdout + run.stderr for run in runs],
        "started_at": seen.started_at,
        "duration_s": seen.duration_s,
        "conditions": seen.conditions(),
    }
