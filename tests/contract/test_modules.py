"""Every module's documentation can be read and says what the module takes."""

from __future__ import annotations

import json
from typing import Any

import ansible.module_utils
import pytest
from checkout import MODULES_AT_LEAST, ROOT, module_defects, modules, run

if (path := str(ROOT / "plugins/module_utils")) not in ansible.module_utils.__path__:
    ansible.module_utils.__path__.append(path)


def test_there_are_modules() -> None:
    assert len(modules()) >= MODULES_AT_LEAST, f"only these modules were found: {modules()}"


@pytest.fixture(scope="module")
def documented() -> dict[str, Any]:
    """What `ansible-doc` reads of all modules."""
    done = run("ansible-doc", "-t", "module", "-M", "library", "--json", *modules())
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("module", modules())
def test_ansible_doc_reads_the_module(module: str, documented: dict[str, Any]) -> None:
    assert documented[module]["doc"]["short_description"]
    assert documented[module]["examples"], "no EXAMPLES"
    assert documented[module]["return"], "no RETURN"


def test_ansible_doc_prints_every_module() -> None:
    # Text is refused where JSON is not: a colon in a sentence makes a table of it.
    printed = run("ansible-doc", "--type", "module", *modules())
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout.count("MODULE ") == len(modules())


@pytest.mark.parametrize("module", modules())
def test_documentation_and_arguments_agree(module: str) -> None:
    assert module_defects(ROOT / "library" / f"{module}.py") == []
