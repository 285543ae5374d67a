"""What every node has after os_base, ssh_access and cluster_network."""

from __future__ import annotations

import re

import pytest
from testinfra.host import Host

from lab import HOSTS, Lab

pytestmark = pytest.mark.lab


def test_names_resolve_on_every_node(host: Host, lab: Lab) -> None:
    for name in HOSTS[lab.name]:
        assert lab.address(name) in host.check_output("getent hosts %s", name)


def test_nodes_reach_each_other_by_key_and_know_each_others_host_keys(host: Host, lab: Lab) -> None:
    for name in HOSTS[lab.name]:
        command = f"ssh -o BatchMode=yes -o StrictHostKeyChecking=yes {name} hostname"
        assert host.check_output(command).strip() == name


def test_passwords_open_no_session(host: Host) -> None:
    effective = host.check_output("sudo sshd -T").splitlines()
    assert "passwordauthentication no" in effective
    assert "permitrootlogin no" in effective


def test_the_time_zone_is_set(host: Host) -> None:
    assert host.file("/etc/localtime").linked_to == "/usr/share/zoneinfo/Europe/Berlin"


def test_what_is_not_opened_is_dropped(host: Host) -> None:
    rules = host.check_output("sudo nft list chain inet bramble input")
    assert "policy drop" in rules
    assert re.search(r"@ssh_sources tcp dport (\{ )?22\b", rules)


def test_the_firewall_comes_back_after_a_boot(host: Host) -> None:
    assert host.service("nftables").is_enabled


def test_private_keys_are_private(host: Host) -> None:
    assert host.file("/home/pi/.ssh/id_ed25519").mode == 0o600
    assert host.file("/home/pi/.ssh").mode == 0o700
