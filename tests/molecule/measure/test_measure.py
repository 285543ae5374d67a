"""What was measured is in the inventory, whole and once, and nothing of the measuring is left on the nodes."""

from __future__ import annotations

from collections import Counter

import pytest
from testinfra.host import Host

from bramble.records import Record, load
from lab import ROOT, Lab

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def records(lab: Lab) -> dict[str, list[Record]]:
    """host → its records, each of which has been checked."""
    found, problems = load(ROOT / lab.inventory / "measured")
    assert problems == []
    return found


def counted(records: list[Record]) -> Counter[tuple[str, str]]:
    return Counter((record["kind"], record["engine"]["name"]) for record in records)


def test_each_figure_of_each_engine_was_kept_once(records: dict[str, list[Record]]) -> None:
    assert counted(records["pi1"]) == {
        ("llama_bench", "llama.cpp"): 1,
        ("perplexity", "llama.cpp"): 1,
        ("http_generate", "llama.cpp"): 1,
        ("quality", "llama.cpp"): 1,
        ("http_generate", "hailo-ollama"): 1,
        ("quality", "hailo-ollama"): 1,
    }


def test_what_was_to_be_measured_again_has_a_second_record(records: dict[str, list[Record]]) -> None:
    assert counted(records["pi2"]) == {("http_generate", "ollama"): 2, ("net_pair", "iperf3"): 1}


def test_speeds_are_speeds(records: dict[str, list[Record]]) -> None:
    for record in [*records["pi1"], *records["pi2"]]:
        if record["kind"] in ("llama_bench", "http_generate"):
            assert record["result"]["decode"]["mean"] > 0
            assert record["result"]["decode"]["unit"] == "tok/s"


def test_a_pair_of_nodes_is_measured_once_and_both_ways(lab: Lab, records: dict[str, list[Record]]) -> None:
    [pair] = [record for record in records["pi2"] if record["kind"] == "net_pair"]
    assert (pair["params"]["peer"], pair["params"]["peer_address"]) == ("pi1", lab.address("pi1"))
    # The lab shapes each node's link to 1 Gbit/s; what this machine gives may be less.
    for way in ("send", "receive"):
        assert 0 < pair["result"][way]["value"] < 1100
    assert pair["result"]["ping_loss"]["value"] == 0


def test_records_say_that_the_board_is_an_emulation(records: dict[str, list[Record]]) -> None:
    for record in [*records["pi1"], *records["pi2"]]:
        assert any(note.startswith("emulation") for note in record["conditions"]["notes"])
        assert record["conditions"]["board"] == "Raspberry Pi 5 Model B Rev 1.0"
        assert record["conditions"]["governor"] == "performance"


def test_what_the_tools_printed_is_kept(lab: Lab, records: dict[str, list[Record]]) -> None:
    for record in [*records["pi1"], *records["pi2"]]:
        assert record["raw"] is not None
        assert (ROOT / lab.inventory / "measured" / record["raw"]).stat().st_size > 0


def test_no_server_and_no_opening_is_left(host: Host) -> None:
    units = host.check_output(
        "systemctl list-units --all --plain --no-legend 'bramble-net-bench*' 'bramble-benchmark*' iperf3.service"
    )
    assert [line for line in units.splitlines() if " not-found " not in line and " inactive " not in line] == []
    assert host.run("pgrep -x iperf3").rc == 1
    rules = host.check_output("sudo nft list table inet bramble")
    assert "net-bench" not in rules
    assert "net_bench" not in rules
    assert not host.socket("tcp://127.0.0.1:8095").is_listening


def test_the_packages_own_server_is_off(host: Host) -> None:
    assert not host.service("iperf3").is_enabled
