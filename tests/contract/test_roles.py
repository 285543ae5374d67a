"""What every role promises, and what is true of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from checkout import ROLES_AT_LEAST, ROOT, load, role_defects, roles, run, table_defects, tables


def test_there_are_roles() -> None:
    assert len(roles()) >= max(1, ROLES_AT_LEAST), f"only these roles were found: {roles()}"


@pytest.mark.parametrize("role", roles())
def test_variables_and_argument_specs_agree(role: str) -> None:
    specs = ROOT / "roles" / role / "meta/argument_specs.yml"
    assert specs.exists(), f"{specs} is missing: a role without variables has one too, with its short_description"
    assert "main" in load(specs)["argument_specs"]
    assert role_defects(ROOT / "roles" / role) == []


@pytest.fixture(scope="module")
def documented() -> dict[str, Any]:
    """What `ansible-doc` reads of all roles."""
    done = run("ansible-doc", "-t", "role", "-r", "roles", "--json", *roles())
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("role", roles())
def test_ansible_doc_reads_the_role(role: str, documented: dict[str, Any]) -> None:
    assert documented[role]["entry_points"]["main"]["short_description"]


@pytest.mark.parametrize("table", tables())
def test_table_is_sorted_and_quoted(table: str) -> None:
    assert table_defects((ROOT / table).read_text(encoding="utf-8")) == []
