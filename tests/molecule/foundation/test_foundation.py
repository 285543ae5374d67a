"""What every node has after preflight, os_base, ssh_access, cluster_network, pi_firmware and reboot."""

from __future__ import annotations

import json
import re

import pytest
from testinfra.host import Host

from lab import HOSTS, ROOT, Lab

pytestmark = pytest.mark.lab
CONFIG = "/boot/firmware/config.txt"


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


def test_the_journal_is_limited_where_that_was_asked_for(lab: Lab) -> None:
    file = "/etc/systemd/journald.conf.d/50-bramble.conf"
    assert "SystemMaxUse=50M" in lab.host("pi1").file(file).content_string
    assert "SystemMaxUse" not in lab.host("pi2").file(file).content_string


@pytest.mark.parametrize("timer", ["apt-daily.timer", "apt-daily-upgrade.timer"])
def test_nothing_wakes_in_the_middle_of_a_measurement(host: Host, timer: str) -> None:
    assert not host.service(timer).is_running
    assert not host.service(timer).is_enabled


def test_rpi_swap_is_told(lab: Lab) -> None:
    settings = lab.host("pi1").file("/etc/rpi/swap.conf.d/50-bramble.conf").content_string
    assert "[Main]\nMechanism=none\n" in settings
    assert not lab.host("pi2").file("/etc/rpi").exists


def test_the_older_swap_file_is_not_used_any_more(lab: Lab) -> None:
    service = lab.host("pi2").service("dphys-swapfile")
    assert not service.is_running
    assert not service.is_enabled


def test_names_come_back_where_cloud_init_writes_them_anew(lab: Lab) -> None:
    node = lab.host("pi1")
    assert node.file("/etc/cloud/cloud.cfg.d/99-bramble.cfg").content_string == "preserve_hostname: true\n"
    assert f"{lab.address('pi2')} pi2" in node.file("/etc/cloud/templates/hosts.debian.tmpl").content_string
    assert not lab.host("pi2").file("/etc/cloud").exists


def test_network_manager_holds_the_address_where_it_is_to_be_static(lab: Lab) -> None:
    node = lab.host("pi2")
    assert node.check_output("nmcli --get-values GENERAL.CONNECTION device show eth0") == "bramble"
    assert node.check_output("nmcli --get-values ipv4.method connection show bramble") == "manual"
    addresses = json.loads(node.check_output("ip -json -4 address show eth0"))[0]["addr_info"]
    assert [entry["local"] for entry in addresses] == [lab.address("pi2")]
    assert node.check_output("ip -4 route show default").split()[2] == lab.address("pi2").rpartition(".")[0] + ".1"
    assert not lab.host("pi1").exists("nmcli")


def test_the_node_answers_to_its_name_in_the_lan(host: Host) -> None:
    assert host.service("avahi-daemon").is_running
    assert host.service("avahi-daemon").is_enabled


def test_pcie_runs_at_full_speed_where_that_was_asked_for(lab: Lab) -> None:
    setting = "dtparam=pciex1_gen=3"
    assert setting in lab.host("pi1").file(CONFIG).content_string.splitlines()
    assert setting not in lab.host("pi2").file(CONFIG).content_string


def test_the_rest_of_the_boot_configuration_is_as_it_came(lab: Lab) -> None:
    came = (ROOT / "lab/hardware/config.txt").read_text(encoding="utf-8").splitlines()
    for name in HOSTS[lab.name]:
        found = lab.host(name).file(CONFIG).content_string.splitlines()
        assert [line for line in found if line in came and line] == [line for line in came if line]


def test_the_kernel_is_told_of_memory_and_clock_in_one_line(host: Host) -> None:
    line = host.file("/boot/firmware/cmdline.txt").content_string
    assert line.count("\n") <= 1
    assert {"cgroup_enable=memory", "cpufreq.default_governor=performance", "rootwait"} <= set(line.split())


def test_the_clock_is_at_its_highest(host: Host) -> None:
    cores = "/run/bramble-lab/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor"
    assert set(host.check_output(f"cat {cores}").split()) == {"performance"}


def test_a_boot_came_where_it_was_due_and_allowed_only(lab: Lab) -> None:
    """Both nodes had what waits for a boot; only one was allowed to reboot."""
    booted, waiting = lab.host("pi1"), lab.host("pi2")
    assert not booted.file("/run/first-boot").exists
    assert not booted.file("/run/bramble/reboot.d").exists
    assert waiting.file("/run/first-boot").exists
    assert waiting.file("/run/bramble/reboot.d/boot-config").exists


def test_the_boot_brought_the_new_bootloader(lab: Lab) -> None:
    assert "BOOTLOADER: up to date" in lab.host("pi1").check_output("sudo rpi-eeprom-update")


def test_nothing_sets_another_governor_at_each_boot(lab: Lab) -> None:
    node = lab.host("pi2")
    assert node.file("/etc/init.d/raspi-config").exists
    assert node.check_output("find /etc/rc2.d /etc/rc3.d -name 'S*raspi-config'") == ""
