"""One build on all nodes, for the processor that was named."""

from __future__ import annotations

import hashlib
import json

import pytest
from testinfra.host import Host

from lab import HOSTS, Lab

pytestmark = pytest.mark.lab
BUILD = "/opt/llama.cpp/current/build.json"


def test_every_binary_is_the_one_that_was_built(host: Host) -> None:
    build = json.loads(host.file(BUILD).content_string)
    assert build["sha256"].keys() == {"ggml-rpc-server"}
    for name, wanted in build["sha256"].items():
        assert host.file(f"/opt/llama.cpp/current/bin/{name}").sha256sum == wanted


def test_it_uses_the_instructions_that_were_named_and_none_beyond(host: Host) -> None:
    instructions = json.loads(host.file(BUILD).content_string)["instructions"]
    assert instructions["wanted"] > 0
    assert instructions["beyond"] == 0


def test_all_nodes_carry_the_same_build(lab: Lab) -> None:
    builds = {hashlib.sha256(lab.host(name).file(BUILD).content).hexdigest() for name in HOSTS[lab.name]}
    assert len(builds) == 1


def test_only_the_builder_has_a_compiler(lab: Lab) -> None:
    assert not lab.host("pi2").exists("g++")
