"""What a machine on the same network sees that is no member of the cluster."""

from __future__ import annotations

import pytest

from lab import Lab

pytestmark = pytest.mark.lab
PORTS = {"ssh": 22, "llama-server": 8080, "gateway": 11434, "RPC": 50052}


def reachable(lab: Lab, source: str, address: str, port: int) -> bool:
    """Whether a TCP connection is let in. A busy RPC worker's backlog answers for it: nothing is sent."""
    probe = f"timeout 3 bash -c 'exec 3<>/dev/tcp/{address}/{port}'"
    return lab.shell(source, probe).returncode == 0


def test_the_bystander_can_reach_the_network_at_all(cluster: Lab) -> None:
    assert cluster.shell("outsider1", f"ping -c 1 -W 2 {cluster.address('pi1')}").returncode == 0


def test_a_bystander_reaches_only_the_gateway(cluster: Lab) -> None:
    seen = {
        (node, name)
        for node in ("pi1", "pi2", "pi3")
        for name, port in PORTS.items()
        if reachable(cluster, "outsider1", cluster.address(node), port)
    }
    assert seen == {("pi1", "gateway")}


def test_every_listening_port_of_every_node_is_closed_to_a_bystander(cluster: Lab) -> None:
    open_ports = set()
    for node in ("pi1", "pi2", "pi3"):
        listing = cluster.shell(node, "ss --no-header --listening --tcp --numeric").stdout
        for line in listing.splitlines():
            port = int(line.split()[3].rsplit(":", 1)[1])
            if reachable(cluster, "outsider1", cluster.address(node), port):
                open_ports.add((node, port))
    assert open_ports == {("pi1", 11434)}


def test_the_head_reaches_its_workers_and_a_worker_not_the_other(cluster: Lab) -> None:
    # Asked of the rules and not by connecting: a busy worker would keep the probe in its queue.
    rules = cluster.shell("pi3", "nft list chain inet bramble services").stdout
    assert f"ip saddr {cluster.address('pi1')} tcp dport 50052 accept" in rules
    assert cluster.address("pi2") not in rules


def test_a_password_opens_no_session(cluster: Lab) -> None:
    # From a node, which the firewall lets in at sshd.
    methods = cluster.shell(
        "pi2",
        "ssh -v -o BatchMode=yes -o PubkeyAuthentication=no -o StrictHostKeyChecking=yes "
        f"pi@{cluster.address('pi1')} true 2>&1",
    )
    assert methods.returncode != 0
    assert "Authentications that can continue: publickey" in methods.stdout
    assert "password" not in methods.stdout.partition("Authentications that can continue:")[2].splitlines()[0]


def test_no_secret_is_readable_by_others(cluster: Lab) -> None:
    for node in ("pi1", "pi2", "pi3"):
        assert cluster.shell(node, "test -s /home/pi/.ssh/id_ed25519").returncode == 0
        loose = cluster.shell(node, "find /home/pi/.ssh /etc/bramble -type f -name 'id_*' ! -name '*.pub' -perm /077")
        assert (loose.returncode, loose.stdout) == (0, "")


def test_an_opening_that_is_no_longer_wanted_is_closed(cluster: Lab) -> None:
    workers = ("playbooks/phase2_distributed.yml", "--tags", "rpc_worker")
    closed = cluster.play(*workers, "-e", '{"rpc_worker_clients": []}')
    rules = cluster.shell("pi2", "nft list chain inet bramble services").stdout
    opened = cluster.play(*workers)
    assert closed.returncode == 0, closed.stdout[-2000:]
    assert "50052" not in rules
    assert opened.returncode == 0, opened.stdout[-2000:]
    assert "50052" in cluster.shell("pi2", "nft list chain inet bramble services").stdout
