"""The configuration: what is accepted, and that every problem is named with its place."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from bramble.gateway.__main__ import main
from bramble.gateway.backends.kinds import ADAPTERS
from bramble.gateway.config import BACKEND_KINDS, Config, ConfigError, Listen, QueueConfig, Timeouts, parse_config

FULL: dict[str, Any] = {
    "listen": {"host": "0.0.0.0", "port": 11434},
    "backends": [
        {
            "name": "pi1",
            "kind": "llama_server",
            "url": "http://10.1.1.11:8080",
            "slots": 1,
            "models": [
                {
                    "name": "bramble-synth",
                    "context": 4096,
                    "bytes": 62000000,
                    "sha256": "0" * 64,
                    "family": "llama",
                    "parameters": "60M",
                    "quantization": "Q8_0",
                }
            ],
        }
    ],
    "queue": {"max_waiting": 64, "max_wait_s": 60},
    "timeouts": {"connect_s": 3, "first_token_s": 300, "between_tokens_s": 60},
    "limits": {"body_bytes": 4194304},
}
MODEL = {"name": "m", "context": 1}
BACKEND = {"name": "a", "kind": "llama_server", "url": "http://a", "models": [MODEL]}
DELETE = object()


def changed(path: str, value: Any) -> str:
    """FULL with one value changed; the path is written as in a message."""
    data = copy.deepcopy(FULL)
    keys: list[Any] = [int(key) if key.isdigit() else key for key in path.replace("]", "").replace("[", ".").split(".")]
    place: Any = data
    for key in keys[:-1]:
        place = place[key]
    if value is DELETE:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    return json.dumps(data)


def test_a_full_file() -> None:
    config = parse_config(json.dumps(FULL))
    assert (config.listen.host, config.backends[0].models[0].parameters) == ("0.0.0.0", "60M")


def test_only_backends_are_required() -> None:
    config = parse_config(json.dumps({"backends": [BACKEND]}))
    assert config == Config(backends=config.backends, listen=Listen(), queue=QueueConfig(), timeouts=Timeouts())
    assert (config.backends[0].slots, config.queue.max_wait_s, config.timeouts.first_token_s) == (1, 60.0, 300.0)


def test_a_cluster_without_a_model_behind_the_gateway_has_no_backends() -> None:
    assert parse_config('{"backends": []}').backends == ()


def test_every_kind_has_an_adapter() -> None:
    assert set(ADAPTERS) == set(BACKEND_KINDS)


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("colour", "red", "colour: unknown key; known are backends, listen, queue, timeouts, limits"),
        ("listen.prot", 1, "listen.prot: unknown key; known are host, port"),
        ("listen", [], "listen: must be an object, not []"),
        ("listen.host", "", 'listen.host: must be a non-empty string, not ""'),
        ("listen.port", "11434", 'listen.port: must be an integer from 1 to 65535, not "11434"'),
        ("listen.port", True, "listen.port: must be an integer from 1 to 65535, not true"),
        ("listen.port", 65536, "listen.port: must be an integer from 1 to 65535, not 65536"),
        ("backends", DELETE, "backends: is required"),
        ("backends", {}, "backends: must be a list, not {}"),
        ("backends[0]", "pi1", 'backends[0]: must be an object, not "pi1"'),
        ("backends[0].name", DELETE, "backends[0].name: is required"),
        ("backends[0].kind", "vllm", 'backends[0].kind: must be one of dllama_api, llama_server, not "vllm"'),
        ("backends[0].slots", 0, "backends[0].slots: must be an integer from 1 to 1024, not 0"),
        ("backends[0].slots", 1.5, "backends[0].slots: must be an integer from 1 to 1024, not 1.5"),
        ("backends[0].url", "10.1.1.11:8080", "backends[0].url: must be a base URL such as"),
        ("backends[0].url", "ftp://pi1", "backends[0].url: must be a base URL such as"),
        ("backends[0].url", "http://pi1:99999", "backends[0].url: must be a base URL such as"),
        ("backends[0].url", "http://pi1/v1", "backends[0].url: must be a base URL such as"),
        ("backends[0].url", "http://user:word@pi1", "backends[0].url: must be a base URL such as"),
        ("backends[0].models", {}, "backends[0].models: must be a list with at least one entry, not {}"),
        ("backends[0].models[0].context", None, "backends[0].models[0].context: must be an integer of at least 1"),
        ("backends[0].models[0].sha256", "…", "backends[0].models[0].sha256: must be 64 lower-case hexadecimal"),
        ("backends[0].models[0].capabilities", ["magic"], "backends[0].models[0].capabilities: must be a list of"),
        ("queue.max_waiting", -1, "queue.max_waiting: must be an integer of at least 0, not -1"),
        ("queue.max_wait_s", 0, "queue.max_wait_s: must be a number of seconds above 0 and at most 3600, not 0"),
        ("timeouts.connect_s", "3", 'timeouts.connect_s: must be a number of seconds above 0 and at most 60, not "3"'),
        ("timeouts.first_token_s", False, "timeouts.first_token_s: must be a number of seconds"),
        ("limits.body_bytes", 1, "limits.body_bytes: must be an integer of at least 1024, not 1"),
    ],
)
def test_a_problem_is_named_with_its_place(path: str, value: Any, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(changed(path, value))
    assert [found.startswith(problem) for found in caught.value.problems] == [True], caught.value.problems


@pytest.mark.parametrize(
    ("second", "problem"),
    [
        ({**BACKEND, "url": "http://b"}, 'backends[1].name: "a" is already that of backends[0]'),
        ({**BACKEND, "name": "b", "url": "http://a/"}, 'backends[1].url: "http://a" is already that of backends[0]'),
        (
            {**BACKEND, "name": "b", "url": "http://b", "models": [MODEL, {**MODEL, "name": "M:latest"}]},
            'backends[1].models[1].name: "M:latest" is already that of backends[1].models[0]',
        ),
        (
            {**BACKEND, "name": "b", "url": "http://b", "models": [{**MODEL, "sha256": "1" * 64}]},
            "backends[1].models[0].sha256: differs from that of backends[0].models[0], which has the same model name",
        ),
    ],
)
def test_contradictions(second: dict[str, Any], problem: str) -> None:
    first = {**BACKEND, "models": [{**MODEL, "sha256": "0" * 64}]}
    with pytest.raises(ConfigError) as caught:
        parse_config(json.dumps({"backends": [first, second]}))
    assert caught.value.problems == [problem]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"backends": [\n  }', "line 2, column 3: not JSON"),
        ('{"queue": {}, "queue": {}}', 'file: the key "queue" stands twice in one object'),
        ("[]", "file: must be an object, not []"),
        (b"\xff\xfe\xff", "file: not JSON"),
        ("[" * 100_000, "file: not JSON"),
    ],
)
def test_a_file_that_is_no_configuration(text: str | bytes, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    assert caught.value.problems[0].startswith(problem)


def test_all_problems_are_found_at_once() -> None:
    data = {"listen": {"port": 0}, "backends": [{"name": "", "kind": "x", "url": "x", "models": [{}]}], "q": 1}
    with pytest.raises(ConfigError) as caught:
        parse_config(json.dumps(data))
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "q",
        "backends[0].name",
        "backends[0].kind",
        "backends[0].url",
        "backends[0].models[0].name",
        "backends[0].models[0].context",
        "listen.port",
    ]


def test_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "gateway.json"
    file.write_text(json.dumps(FULL))
    assert main(["--config", str(file), "--check"]) == 0
    assert capsys.readouterr() == ("", "")
    file.write_text(changed("backends[0].slots", 0))
    assert main(["--config", str(file), "--check"]) == 2
    assert f"{file}: backends[0].slots: must be" in capsys.readouterr().err
    assert main(["--config", str(tmp_path / "none"), "--check"]) == 2
    assert "cannot be read: No such file or directory" in capsys.readouterr().err
