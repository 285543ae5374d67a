"""Fixtures of the scenarios' tests: each test runs on each node of the lab."""

from __future__ import annotations

import os

import pytest
from testinfra.host import Host

from lab import HOSTS, Lab

NAME = os.environ.get("BRAMBLE_TEST_LAB", "lab-roles")


@pytest.fixture(scope="session")
def lab() -> Lab:
    return Lab(NAME)


@pytest.fixture(scope="session", params=HOSTS.get(NAME, ["pi1", "pi2"]))
def node(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def host(lab: Lab, node: str) -> Host:
    return lab.host(node)
