"""Which container of a lab is which node, and whether an address is in a network."""

import ipaddress
from itertools import combinations

import jinja2
import pytest
import yaml
from ansible.module_utils.bramble.lab import MAXIMUM_NODES, LabError, layout, subnet_of
from ansible.module_utils.bramble.network import in_networks
from by_path import ROOT
from hypothesis import given
from hypothesis import strategies as st

USUAL_NAMES = [
    "lab",
    *(f"lab-{number}" for number in range(1, 21)),
    *(f"lab-{name}" for name in ("a", "b", "c", "ci", "dev", "demo", "test", "tests", "roles", "cluster", "main")),
]
NAMES = st.from_regex(r"lab(-[a-z0-9]{1,16})?", fullmatch=True)
# Podman's default network, Docker's, and what home routers hand out.
TAKEN = [ipaddress.ip_network(n) for n in ("10.88.0.0/16", "172.17.0.0/16", "192.168.0.0/16", "10.0.0.0/16")]


def test_labs_with_usual_names_do_not_share_a_subnet() -> None:
    for one, other in combinations(USUAL_NAMES, 2):
        assert subnet_of(one) != subnet_of(other), (one, other)


@given(name=NAMES)
def test_a_subnet_depends_on_the_name_alone_and_is_clear_of_usual_ones(name: str) -> None:
    network = ipaddress.IPv4Network(subnet_of(name))
    assert subnet_of(name) == str(network)
    assert network.prefixlen == 24
    assert network.is_private
    assert not any(network.overlaps(taken) for taken in TAKEN)


@given(name=NAMES, nodes=st.integers(1, MAXIMUM_NODES), bystanders=st.integers(0, MAXIMUM_NODES))
def test_each_node_has_an_address_of_its_own(name: str, nodes: int, bystanders: int) -> None:
    lab = layout(name, nodes, bystanders)
    network = ipaddress.IPv4Network(lab["subnet"])
    addresses = [ipaddress.IPv4Address(node["address"]) for node in lab["nodes"]]
    assert len(set(addresses)) == nodes + bystanders
    assert set(addresses) <= set(network.hosts()) - {ipaddress.IPv4Address(lab["gateway"])}
    assert ipaddress.IPv4Address(lab["gateway"]) in network
    assert len({node["container"] for node in lab["nodes"]}) == nodes + bystanders
    assert [node["member"] for node in lab["nodes"]] == [True] * nodes + [False] * bystanders


@given(nodes=st.integers(1, MAXIMUM_NODES - 1))
def test_a_node_keeps_its_address_when_the_lab_grows(nodes: int) -> None:
    assert layout("lab", nodes + 1)["nodes"][:nodes] == layout("lab", nodes)["nodes"]


def test_a_lab() -> None:
    assert layout("lab-x", 2, 1, "10.77.0.0/24") == {
        "name": "lab-x",
        "subnet": "10.77.0.0/24",
        "gateway": "10.77.0.1",
        "nodes": [
            {"name": "pi1", "container": "lab-x-pi1", "address": "10.77.0.11", "member": True},
            {"name": "pi2", "container": "lab-x-pi2", "address": "10.77.0.12", "member": True},
            {"name": "outsider1", "container": "lab-x-outsider1", "address": "10.77.0.121", "member": False},
        ],
    }


@pytest.mark.parametrize("hats", [[], ["pi1"], ["pi2", "pi3"]])
def test_the_inventory_has_the_hats(hats: list[str]) -> None:
    text = (ROOT / "roles/lab/templates/hosts.yml.j2").read_text()
    template = jinja2.Environment(trim_blocks=True).from_string(text)
    written = template.render(lab_name="lab-x", lab_hat_nodes=hats, __lab_layout=layout("lab-x", 3))
    groups = yaml.safe_load(written)["all"]["children"]
    assert groups["hailo"]["hosts"] == dict.fromkeys(hats)
    assert list(groups["cluster"]["hosts"]) == ["pi1", "pi2", "pi3"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("Lab", 3), "lab_name 'Lab'"),
        (("lab-", 3), "lab_name 'lab-'"),
        (("lab-a_b", 3), "lab_name 'lab-a_b'"),
        (("lab\n", 3), "lab_name 'lab\\n'"),
        (("lab-" + "x" * 17, 3), "up to 16"),
        (("lab", 0), "lab_nodes 0: from 1 to 100"),
        (("lab", 101), "lab_nodes 101"),
        (("lab", 3, -1), "lab_bystanders -1: from 0 to 100"),
        (("lab", 3, 101), "lab_bystanders 101"),
        (("lab", 3, 0, "10.77.0.5/24"), "lab_subnet '10.77.0.5/24'"),
        (("lab", 3, 0, "10.77.0.0/16"), "must be a /24"),
        (("lab", 3, 0, "home"), "lab_subnet 'home'"),
        (("lab", 3, 0, "fd00::/24"), "lab_subnet 'fd00::/24'"),
    ],
)
def test_a_lab_that_cannot_be(arguments: tuple[str, int], message: str) -> None:
    with pytest.raises(LabError) as raised:
        layout(*arguments)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("address", "networks", "inside"),
    [
        ("10.0.0.5", ["10.0.0.5"], True),
        ("10.0.0.5", ["10.0.0.6"], False),
        ("10.0.0.5", ["192.168.1.0/24", "10.0.0.0/24"], True),
        # A host's address with the length of its network, as `ip address` shows it.
        ("10.0.0.5", ["10.0.0.1/24"], True),
        ("10.0.1.5", ["10.0.0.1/24"], False),
        ("10.0.0.5", [], False),
        ("10.0.0.5", ["0.0.0.0/0"], True),
        ("10.0.0.5", ["::/0"], False),
        ("fd00::5", ["fd00::/64", "10.0.0.0/8"], True),
    ],
)
def test_in_networks(address: str, networks: list[str], inside: bool) -> None:
    assert in_networks(address, networks) is inside


@pytest.mark.parametrize(
    ("address", "networks", "wrong"),
    [
        ("pi1", ["10.0.0.0/8"], "pi1"),
        ("pi1", [], "pi1"),
        ("10.0.0.5", ["10.0.0.0/33"], "10.0.0.0/33"),
        ("10.0.0.5", ["10.0.0.0/8", "home"], "home"),
    ],
)
def test_what_is_no_address_or_network(address: str, networks: list[str], wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        in_networks(address, networks)
