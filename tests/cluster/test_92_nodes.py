"""A node goes and comes back: one run of site.yml each, while somebody asks."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import yaml

from lab import ROOT, Asker, Lab, other_inventory

pytestmark = pytest.mark.lab
MODEL = "bramble-synth"
# All of it but the measurements, the HAT, and what a node's own system needs, to be short.
SITE = ("site.yml", "--skip-tags", "step_1_4,hailo,hailo_ollama,preflight,os_base,pi_firmware")


@pytest.fixture(scope="module")
def nodes(cluster: Lab) -> Iterator[Lab]:
    with other_inventory(cluster, "nodes") as lab:
        yield lab


def write(lab: Lab, *, pi3: str) -> None:
    """The inventory with pi3 as a worker, in no group but `cluster`, or not at all."""
    hosts = yaml.safe_load((ROOT / "inventory/lab-cluster/hosts.yml").read_text())
    groups = hosts["all"]["children"]
    if pi3 != "worker":
        del groups["rpc_worker"]["hosts"]["pi3"]
    if pi3 == "gone":
        del groups["cluster"]["hosts"]["pi3"]
    lab.declare(hosts)


def started(lab: Lab) -> dict[tuple[str, str], str]:
    """Of each of Bramble's services on the nodes that stay, but for the head: its process and since when."""
    show = "systemctl show --property MainPID,ActiveState,ActiveEnterTimestampMonotonic"
    found = {}
    for host in ("pi1", "pi2"):
        for path in lab.shell(host, "ls /etc/systemd/system/bramble-*.service").stdout.split():
            unit = path.rpartition("/")[2]
            if not unit.startswith(("bramble-lab-", "bramble-rpc-head")):
                found[host, unit] = lab.shell(host, f"{show} {unit}").stdout
    return found


def run_while_somebody_asks(lab: Lab, url: str) -> str:
    """What one run of site.yml prints. Services that it has no cause to touch go on."""
    before = started(lab)
    assert {("pi1", "bramble-gateway.service"), ("pi2", "bramble-rpc-worker.service")} <= before.keys()
    assert all("ActiveState=active" in state for state in before.values()), before
    asker = Asker(url, MODEL)
    asker.start()
    done = lab.play(*SITE)
    asker.end()
    assert done.returncode == 0, done.stdout[-3000:]
    assert started(lab) == before
    return done.stdout


def layers(lab: Lab) -> dict[str, int]:
    status = json.loads(lab.bramble("status", "--json").stdout)
    assert status["problems"] == []
    assert {name: node["layers"] for name, node in status["nodes"].items()} == status["model"]["layers"]
    found: dict[str, int] = status["model"]["layers"]
    return found


def test_a_node_that_leaves_is_replaced_by_the_others(nodes: Lab, cluster: Lab, url: str) -> None:
    assert layers(cluster) == {"pi1": 4, "pi2": 4, "pi3": 4}
    write(nodes, pi3="gone")
    said = run_while_somebody_asks(nodes, url)
    assert layers(nodes) == {"pi1": 6, "pi2": 6}
    assert f"pi3 ({cluster.address('pi3')}) left the inventory" in said
    # It is nobody's friend any more, and nobody uses its worker, which still runs.
    for host in ("pi1", "pi2"):
        assert "bramble:pi3" not in nodes.shell(host, "cat /home/pi/.ssh/authorized_keys").stdout
        assert cluster.address("pi3") not in nodes.shell(host, "nft list table inet bramble; cat /etc/hosts").stdout
    assert nodes.shell("pi3", "systemctl is-active bramble-rpc-worker").returncode == 0
    assert nodes.shell("pi3", "ss --no-header --tcp --numeric state established sport = :50052").stdout == ""


def test_what_still_runs_on_it_is_ended_as_the_page_says(nodes: Lab) -> None:
    write(nodes, pi3="idle")
    done = nodes.play("playbooks/absent.yml", "--limit", "pi3")
    assert done.returncode == 0, done.stdout[-3000:]
    assert nodes.shell("pi3", "ls /etc/systemd/system/bramble-* /etc/bramble/firewall.d/*").stdout == ""
    assert "dport" not in nodes.shell("pi3", "nft list chain inet bramble services").stdout
    assert nodes.shell("pi3", "pidof ggml-rpc-server").returncode != 0


def test_a_node_that_joins_takes_its_share(nodes: Lab, url: str) -> None:
    write(nodes, pi3="worker")
    run_while_somebody_asks(nodes, url)
    assert layers(nodes) == {"pi1": 4, "pi2": 4, "pi3": 4}
