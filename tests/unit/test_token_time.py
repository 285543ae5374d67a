"""What a token takes, out of what was counted while some were generated."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.bramble import token_time as tt
from ansible.module_utils.bramble.conditions import Node
from ansible.module_utils.bramble.http_bench import AnswerError
from ansible.module_utils.bramble.llama_bench import BenchError, Finished
from hypothesis import given
from hypothesis import strategies as st

from bramble.records import partial_defects

# --- Links


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("100 Mbit/s", "tbf rate 100000000bit burst 2000 limit 5002000"),
        ("1 Gbit/s", "tbf rate 1000000000bit burst 12500 limit 50012500"),
        ("2.5 Gbit/s", "tbf rate 2500000000bit burst 31250 limit 125031250"),
        ("500 kbit/s", "tbf rate 500000bit burst 2000 limit 27000"),
        ("+1 ms", "netem delay 500us limit 10000"),
        ("+0.2 ms", "netem delay 100us limit 10000"),
    ],
)
def test_a_link_as_tc_takes_it(text: str, words: str) -> None:
    assert " ".join(tt.qdisc(text)) == words


@pytest.mark.parametrize(
    "text", ["100", "100 MBit/s", "99 kbit/s", "-1 ms", "1 ms", "+0 ms", "$(reboot)", "1 Gbit/s\n"]
)
def test_another_link_is_refused(text: str) -> None:
    with pytest.raises(tt.TokenTimeError, match="is not known: write a rate"):
        tt.parse_link(text)


def test_a_link_as_it_is_needs_nothing() -> None:
    assert tt.parse_link("") == tt.Link()
    with pytest.raises(tt.TokenTimeError, match="needs no qdisc"):
        tt.qdisc("")


# --- llama-server generates


class Server:
    """llama-server's words, as far as they are read."""

    url = "http://127.0.0.1:8080"

    def __init__(self, **timings: Any) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.timings = timings

    def ask(self, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        self.asked.append((path, body))
        if path == "/tokenize":
            return 200, json.dumps({"tokens": [ord(letter) for letter in body["content"][:40]]}).encode()
        told = {"prompt_n": len(body["prompt"]), "prompt_ms": 20, "predicted_n": body["n_predict"], "predicted_ms": 9.5}
        return 200, json.dumps({"content": "…", "timings": told | self.timings}).encode()


def quiet(*_: Any) -> tuple[int, str]:
    return 127, ""


def generate(server: Any, tmp_path: Path, **changes: Any) -> dict[str, Any]:
    wanted = tt.Wanted(**{"requests": 5, "prompt": 64, "generated": 18, "salt": "123"} | changes)
    return tt.generate(server, wanted, Node(run=quiet, root=tmp_path, sysfs=tmp_path, device_tree=tmp_path))


def test_answers_have_the_tokens_that_were_asked_for(tmp_path: Path) -> None:
    server = Server()
    found = generate(server, tmp_path)
    assert found["timings"] == [{"prompt_n": 64, "prompt_ms": 20, "predicted_n": 18, "predicted_ms": 9.5}] * 5
    assert len(found["raw"].splitlines()) == 5
    bodies = [body for path, body in server.asked if path == "/completion"]
    assert all(body["ignore_eos"] and not body["cache_prompt"] for body in bodies)
    # No prompt begins as another does.
    assert len({tuple(body["prompt"][:8]) for body in bodies}) == 5


@pytest.mark.parametrize(
    ("timings", "message"),
    [
        ({"predicted_n": 17}, "64 tokens of the prompt and generated 17, and not 64 and 18"),
        ({"prompt_n": 3}, "computed 3 tokens"),
        ({"predicted_ms": None}, "have no predicted_ms"),
        ({"prompt_ms": -1}, "have no prompt_ms"),
        ({"prompt_ms": True}, "have no prompt_ms"),
    ],
)
def test_an_answer_of_another_length_is_an_error(tmp_path: Path, timings: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        generate(Server(**timings), tmp_path)


def test_what_a_server_refuses_is_told(tmp_path: Path) -> None:
    class Other(Server):
        def __init__(self, status: int, content: bytes) -> None:
            super().__init__()
            self.other = status, content

        def ask(self, *_: Any) -> tuple[int, bytes]:
            if not self.other[0]:
                raise AnswerError("Connection refused")
            return self.other

    for server, message in (
        (Other(503, b'{"error": {"message": "Loading model"}}'), "/tokenize: status 503: Loading model"),
        (Other(0, b""), "Connection refused"),
        (Other(200, b"[]"), "which is no JSON object"),
        (Other(200, b'{"tokens": []}'), "gave no tokens"),
    ):
        with pytest.raises(BenchError, match=message):
            generate(server, tmp_path)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (tt.Wanted(4, 32, 16, ""), "requests: a figure is of 5 or more"),
        (tt.Wanted(5, 0, 16, ""), "prompt_tokens: must be 1"),
        (tt.Wanted(5, 32, 0, ""), "generated_tokens: must be 1"),
    ],
)
def test_wishes_that_make_no_figure(wanted: tt.Wanted, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        wanted.check()


# --- The record of llama.cpp

PEERS = {"pi2": "10.0.0.2:50052", "pi3": "10.0.0.3:50052"}
STRATEGY = {
    "name": "even",
    "placement": "rpc",
    "nodes": ["pi1", "pi2", "pi3"],
    "layers": {"pi1": 4, "pi2": 4, "pi3": 4},
    "logits": "head",
    "same_as": [],
}
ABOUT = {
    "engine": {"name": "llama.cpp", "commit": "0c1e57098", "build_key": "0c1e57098-1a2b", "version": None},
    "model": {"name": "m", "sha256": "a" * 64, "quant": "Q8_0", "bytes": 67_407_680},
    "n_prompt": 32,
    "n_gen": 16,
}
CONDITIONS: dict[str, Any] = {
    **dict.fromkeys(("governor", "kernel", "bootloader", "board", "power_w", "power_source")),
    "temp_c": {"before": None, "after": None},
    "throttled": {"before": None, "after": None},
    "notes": ["services that ran on this node: bramble-rpc-head"],
}


def answers(count: int, tokens: int, ms: float) -> dict[str, Any]:
    timing = {"prompt_n": 32.0, "prompt_ms": 64.0, "predicted_n": float(tokens), "predicted_ms": ms}
    return {
        "timings": [timing] * count,
        "started_at": "2026-11-21T12:00:00Z",
        "duration_s": 2.0,
        "conditions": CONDITIONS,
        "raw": "{}\n",
    }


def counted(host: str, ran: Sequence[float], waited: Sequence[float], traffic: int = 4104) -> list[dict[str, Any]]:
    """Snapshots before, between and after: `ran` and `waited` in ms."""
    found = []
    for place in range(3):
        # In the first span 10 tokens were generated, in the second 90.
        tokens = (0, 10, 100)[place]
        found.append(
            {
                "threads": [
                    {
                        "process": 1,
                        "thread": 1,
                        "started": 1,
                        "ran_ns": ran[place] * 1e6,
                        "waited_ns": waited[place] * 1e6,
                    }
                ],
                "connections": [
                    {
                        "peer": peer,
                        "port": 4000 + number,
                        "bytes_acked": 999 + 6500 * tokens,
                        "bytes_received": traffic * tokens,
                        "data_segs_out": 5 * tokens,
                        "data_segs_in": 3 * tokens,
                        "retransmitted": place,
                        "rtt_ms": 0.3,
                        "least_rtt_ms": 0.1,
                    }
                    for number, peer in enumerate(PEERS.values())
                ]
                if host == "pi1"
                else [],
                "interface": {"name": "eth0", "sent": 7000 * tokens, "received": 5000 * tokens},
            }
        )
    return found


def llama_record(**changes: Any) -> dict[str, Any]:
    whole = {
        "strategy": STRATEGY,
        "link": "",
        # 5 ms, 6 ms and 4 ms of each of the 80 tokens that the long answers have more; 1000 ms for each prompt.
        "counted": {
            "pi1": counted("pi1", [0, 1000, 2400], [0, 0, 40]),
            "pi2": counted("pi2", [0, 1000, 2480], [0, 0, 80]),
            "pi3": counted("pi3", [0, 1000, 2320], [0, 0, 0]),
        },
        "short": answers(5, 2, 20.0),
        "long": answers(5, 18, 340.0),
        "peers": PEERS,
        "about": ABOUT,
    }
    record, raw = tt.llama_record(**(whole | changes))
    assert partial_defects(record) == []
    assert raw.startswith("# short answers\n{}\n# long answers\n")
    return record


def test_a_tokens_time_and_its_parts() -> None:
    record = llama_record()
    result = {name: metric.get("mean", metric.get("value")) for name, metric in record["result"].items()}
    assert result == {
        "decode": pytest.approx(50),
        "prefill": pytest.approx(500),
        "token": pytest.approx(20),
        "compute_pi1": pytest.approx(5),
        "waited_pi1": pytest.approx(0.5),
        "compute_pi2": pytest.approx(6),
        "waited_pi2": pytest.approx(1),
        "compute_pi3": pytest.approx(4),
        "waited_pi3": pytest.approx(0),
        "network": pytest.approx(20 - 5 - 0.5 - 6 - 1 - 4),
        **{f"sent_{worker}": pytest.approx(6500) for worker in PEERS},
        **{f"received_{worker}": pytest.approx(4104) for worker in PEERS},
        **{f"messages_{worker}": pytest.approx(8) for worker in PEERS},
        **{f"retransmitted_{worker}": 2.0 for worker in PEERS},
        **{f"rtt_{worker}": 0.1 for worker in PEERS},
        **{f"interface_sent_{host}": pytest.approx(7000) for host in STRATEGY["nodes"]},
        **{f"interface_received_{host}": pytest.approx(5000) for host in STRATEGY["nodes"]},
    }
    assert record["params"] == {
        **{name: STRATEGY[name] for name in ("placement", "nodes", "layers", "logits")},
        "strategy": "even",
        "link": "",
        "n_prompt": 32,
        "n_gen": 16,
        "repetitions": 5,
    }


def test_one_node_has_no_network() -> None:
    alone = STRATEGY | {"placement": "replica", "nodes": ["pi1"], "layers": {"pi1": 12}, "same_as": ["planned"]}
    record = llama_record(strategy=alone)
    assert set(record["result"]) == {"decode", "prefill", "token", "compute_pi1", "waited_pi1"}
    assert record["conditions"]["notes"][-1] == "the same split as: planned"


def test_on_a_link_made_worse_the_least_round_trip_is_of_before() -> None:
    assert llama_record(link="100 Mbit/s")["result"]["rtt_pi2"] == {"value": 0.3, "unit": "ms"}


def test_parts_never_make_less_than_nothing() -> None:
    whole = {host: counted(host, [0, 1000, 5000], [0, 0, 0]) for host in STRATEGY["nodes"]}
    record = llama_record(counted=whole)
    assert record["result"]["network"]["value"] == 0
    assert "some of it was at the same time" in record["conditions"]["notes"][-1]
    # An engine that did more for the short answers.
    fewer = {host: counted(host, [0, 1000, 1500], [0, 90, 100]) for host in STRATEGY["nodes"]}
    assert llama_record(counted=fewer)["result"]["compute_pi1"]["value"] == 0


def changed(host: str, place: int, **what: Any) -> dict[str, Any]:
    whole = {name: counted(name, [0, 1000, 2400], [0, 0, 0]) for name in STRATEGY["nodes"]}
    whole[host][place] |= what
    return whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"counted": {"pi1": []}}, "the counters of pi1, pi2, pi3 were not read"),
        ({"counted": changed("pi2", 0) | {"pi3": [{"failed": True, "msg": "…"}] * 3}}, "the counters of pi3 were not"),
        ({"counted": changed("pi1", 2, connections=[])}, r"connection to pi2 \(10.0.0.2:50052\) did not last"),
        ({"counted": changed("pi2", 1, threads=[])}, "pi2: the engine was started again"),
        ({"short": answers(4, 2, 20.0)}, "4 short answers and 5 long ones"),
        ({"long": answers(5, 18, 20.0)}, "is not to be had. Generate more tokens"),
        ({"long": answers(5, 2, 340.0)}, "is not to be had"),
        ({"short": answers(0, 2, 20.0), "long": answers(0, 18, 1.0)}, "0 short answers"),
    ],
)
def test_what_does_not_belong_together_makes_no_record(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(tt.TokenTimeError, match=message):
        llama_record(**changes)


@given(
    ran=st.lists(st.integers(0, 10**4), min_size=3, max_size=3).map(sorted),
    waited=st.lists(st.integers(0, 10**4), min_size=3, max_size=3).map(sorted),
    ms=st.floats(21, 10**6),
)
def test_whatever_was_counted_parts_and_token_agree(ran: list[int], waited: list[int], ms: float) -> None:
    record = llama_record(
        counted={host: counted(host, ran, waited) for host in STRATEGY["nodes"]}, long=answers(5, 18, ms)
    )
    result = record["result"]
    on_cores = sum(metric["value"] for name, metric in result.items() if name.startswith(("compute_", "waited_")))
    assert min(metric.get("value", 0) for metric in result.values()) >= 0
    assert result["network"]["value"] == pytest.approx(max(0.0, result["token"]["mean"] - on_cores), abs=1e-6)
    assert result["token"]["mean"] * result["decode"]["mean"] == pytest.approx(1000)


# --- distributed-llama

# dllama of 8d624a7 with two nodes; a token of its answers may hold a line of its own.
OUTPUT = """\
💡 Arch: Llama
Hello
🔷️ Eval   40 ms Sync   10 ms | Sent   100 kB Recv    50 kB | (24 tokens)
🔶 Pred   10 ms Sync    4 ms | Sent    12 kB Recv     6 kB |  a
🔶 Pred   11 ms Sync    5 ms | Sent    12 kB Recv     6 kB | b
c
🔶 Pred   12 ms Sync    3 ms | Sent    12 kB Recv     6 kB | ~

Evaluation
   nBatches: 32
    nTokens: 24
   tokens/s: 480.00 (2.08 ms/tok)
Prediction
    nTokens: 3
   tokens/s: 62.50 (16.00 ms/tok)
"""
TENSOR = {
    "name": "tensor",
    "placement": "tensor",
    "nodes": ["pi1", "pi2"],
    "layers": {},
    "logits": "head",
    "same_as": [],
}
SEEN = {"started_at": "2026-11-21T12:00:00Z", "duration_s": 9.0, "conditions": CONDITIONS}
DLLAMA = {"engine": {**ABOUT["engine"], "name": "distributed-llama"}, "model": ABOUT["model"]}  # type: ignore[dict-item]


def test_what_dllama_prints() -> None:
    # The lines have 15 ms a token, and the summary 16: each part lost half of the one that is missing.
    assert tt.parse_inference(OUTPUT) == tt.Inference(
        prompt=25, predicted=3, prefill=480.0, token=16.0, compute=11.5, sync=4.5, sent=12288.0, received=6144.0
    )


def test_tokens_too_short_to_tell_the_parts() -> None:
    text = OUTPUT.replace("16.00 ms", "0.40 ms")
    for number in ("10", "11", "12"):
        text = text.replace(f"Pred   {number} ms", "Pred    0 ms")
    for number in ("3", "4", "5"):
        text = text.replace(f"Sync    {number} ms", "Sync    0 ms")
    found = tt.parse_inference(text)
    assert (found.token, found.compute, found.sync) == (0.4, None, None)
    record, _ = tt.dllama_record(TENSOR, "", [text] * 5, SEEN, DLLAMA)
    assert partial_defects(record) == []
    assert not {"network", "compute_pi1"} & set(record["result"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("🔶", "🔷", "printed no tokens"),
        ("Prediction", "Prodection", "printed no tokens"),
        ("62.50 (16.00 ms/tok)", "inf (-nan ms/tok)", "printed no tokens"),
        ("16.00", "0.00", "took no time"),
    ],
)
def test_other_output_is_an_error(old: str, new: str, message: str) -> None:
    with pytest.raises(tt.TokenTimeError, match=message):
        tt.parse_inference(OUTPUT.replace(old, new))


@given(st.text() | st.text(alphabet="🔶🔷 Pred0123456789msSync|kBRecvEvaluationTokens/:().\n"))
def test_no_output_ends_in_a_traceback(text: str) -> None:
    for whole in (text, OUTPUT + text, text + OUTPUT):
        try:
            found = tt.parse_inference(whole)
        except tt.TokenTimeError:
            continue
        assert found.token > 0
        assert found.compute is None or min(found.compute, found.sync or 0) >= 0


COMMAND = [
    *("/usr/bin/stdbuf", "--output=L", "/opt/distributed-llama/current/bin/dllama-api", "--model", "/m.m"),
    *("--tokenizer", "/m.t", "--host", "127.0.0.1", "--port", "9992", "--nthreads", "4", "--workers", "10.0.0.2:9990"),
]


def test_the_command_is_the_services_own() -> None:
    assert tt.inference_command(COMMAND, "Hello there", 40) == [
        *("/usr/bin/stdbuf", "--output=L", "/opt/distributed-llama/current/bin/dllama", "inference"),
        *("--prompt", "Hello there", "--steps", "40", "--model", "/m.m", "--tokenizer", "/m.t"),
        *("--nthreads", "4", "--workers", "10.0.0.2:9990"),
    ]
    with pytest.raises(tt.TokenTimeError, match="does not run dllama-api"):
        tt.inference_command(["/bin/true"], "", 1)


def test_the_prompt_has_that_many_words() -> None:
    assert len(tt.inference_prompt(40).split()) == 40
    assert len(tt.inference_prompt(2000).split()) == 2000


class Dllama:
    """Answers in turn; keeps what it was called with."""

    def __init__(self, *answers: Finished) -> None:
        self.answers = list(answers)
        self.commands: list[list[str]] = []
        self.slept: list[float] = []

    def __call__(self, command: Sequence[str], _limit: float) -> Finished:
        self.commands.append(list(command))
        return self.answers.pop(0)

    def infer(self, tmp_path: Path) -> dict[str, Any]:
        node = Node(run=quiet, root=tmp_path, sysfs=tmp_path, device_tree=tmp_path)
        return tt.infer_all(COMMAND, ["run"], 2, (8, 16), 60, node, self, self.slept.append)


WELL = Finished(0, OUTPUT, "")
ABSENT = Finished(1, "🚨 Critical error: Cannot connect to 10.0.0.2:9990 (refused)\n", "")


def test_the_first_run_tells_the_prompts_tokens(tmp_path: Path) -> None:
    program = Dllama(WELL, WELL, WELL)
    found = program.infer(tmp_path)
    assert found["runs"] == [OUTPUT, OUTPUT]
    steps = [command[command.index("--steps") + 1] for command in program.commands]
    prompt = program.commands[0][program.commands[0].index("--prompt") + 1]
    # 25 tokens in the prompt: 24 are evaluated, 16 predicted.
    assert steps == [str(len(prompt) + 2), "40", "40"]
    assert all(command[0] == "run" for command in program.commands)


def test_workers_that_lost_their_root_are_waited_for(tmp_path: Path) -> None:
    program = Dllama(ABSENT, ABSENT, WELL, WELL, WELL)
    program.infer(tmp_path)
    assert len(program.slept) == 2
    with pytest.raises(BenchError, match="dllama failed with code 1"):
        Dllama(*[ABSENT] * tt.CONNECT_ATTEMPTS).infer(tmp_path)
    crashed = Dllama(Finished(-6, "", "terminate called"))
    with pytest.raises(BenchError, match="ended by signal 6"):
        crashed.infer(tmp_path)
    assert crashed.slept == []


def test_the_record_of_dllama() -> None:
    record, raw = tt.dllama_record(TENSOR, "100 Mbit/s", [OUTPUT] * 5, SEEN, DLLAMA)
    assert partial_defects(record) == []
    assert raw.count("Prediction") == 5
    assert record["engine"]["name"] == "distributed-llama"
    assert {name: metric.get("mean", metric.get("value")) for name, metric in record["result"].items()} == {
        "decode": 62.5,
        "token": 16.0,
        "compute_pi1": 11.5,
        "network": 4.5,
        "prefill": 480.0,
        "sent": 12288.0,
        "received": 6144.0,
    }
    assert {name: record["params"][name] for name in ("n_prompt", "n_gen", "layers", "link", "repetitions")} == {
        "n_prompt": 25,
        "n_gen": 3,
        "layers": {},
        "link": "100 Mbit/s",
        "repetitions": 5,
    }


def test_an_emulation_says_so() -> None:
    record, _ = tt.dllama_record(TENSOR, "", ["EMULATION of distributed-llama\n" + OUTPUT] * 5, SEEN, DLLAMA)
    assert record["conditions"]["notes"][-1].startswith("emulation")
    with pytest.raises(tt.TokenTimeError, match="did not compute the same number"):
        tt.dllama_record(TENSOR, "", [OUTPUT, OUTPUT.replace("nTokens: 3", "nTokens: 4")], SEEN, DLLAMA)


def test_the_engine_is_what_its_build_says(tmp_path: Path) -> None:
    release = tmp_path / "8d624a7-abc"
    (release / "bin").mkdir(parents=True)
    (release / "build.json").write_text('{"commit": "8d624a7"}')
    assert tt.dllama_engine([str(release / "bin/dllama-api")]) == {
        "name": "distributed-llama",
        "commit": "8d624a7",
        "build_key": "8d624a7-abc",
        "version": None,
    }
    assert tt.dllama_engine(["/bin/true"])["commit"] is None
