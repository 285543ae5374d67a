"""The memory of a node, by the kernel's own words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.bramble import node_memory
from ansible.module_utils.bramble.conditions import Node
from hypothesis import given
from hypothesis import strategies as st

from bramble.records import partial_defects

# Raspberry Pi OS Lite on a Pi 5 with 8 GB (the lines that are not read are left out).
MEMINFO = """\
MemTotal:        8256400 kB
MemFree:         7123456 kB
MemAvailable:    7575552 kB
Buffers:           35000 kB
"""
STATUS = """\
Name:\tllama-server
Uid:\t{user}\t{user}\t{user}\t{user}
VmRSS:\t 2500000 kB
RssAnon:\t  400000 kB
RssFile:\t 2000000 kB
RssShmem:\t  100000 kB
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for pid, text in (("1", STATUS.format(user=0)), ("20", STATUS.format(user=991)), ("21", "Name:\tkthreadd\n")):
        (tmp_path / "proc" / pid).mkdir(parents=True)
        (tmp_path / "proc" / pid / "status").write_text(text)
    (tmp_path / "proc/meminfo").write_text(MEMINFO)
    (tmp_path / "proc/22").mkdir()  # It ended meanwhile.
    return tmp_path


def quiet(*_: Any) -> tuple[int, str]:
    return 127, ""


def test_what_models_hold_is_not_the_systems(root: Path) -> None:
    record, raw = node_memory.measure(Node(run=quiet, root=root, sysfs=root, device_tree=root), {991})
    assert {name: metric["value"] for name, metric in record["result"].items()} == {
        "total": pytest.approx(8062.9, abs=0.1),
        "available": pytest.approx(7398.0, abs=0.1),
        "models": pytest.approx(488.3, abs=0.1),
        "system": pytest.approx(8062.9 - 7398.0 - 488.3, abs=0.2),
    }
    assert partial_defects(record) == []
    assert "MemAvailable" in raw


def test_without_its_line_there_is_an_error(root: Path) -> None:
    (root / "proc/meminfo").write_text("MemTotal:        8256400 kB\n")
    with pytest.raises(node_memory.MemoryUnknownError, match="no line MemAvailable"):
        node_memory.measure(Node(run=quiet, root=root), set())
    (root / "proc/meminfo").unlink()
    with pytest.raises(node_memory.MemoryUnknownError, match="cannot be read"):
        node_memory.measure(Node(run=quiet, root=root), set())


def test_only_users_that_there_are() -> None:
    assert node_memory.users(["root", "bramble-no-such-user"]) == {0}


@given(
    st.text(alphabet=st.characters(codec="utf-8"))
    | st.from_regex(r"(MemTotal|MemAvailable|Uid|RssAnon):\s+\d* ?(kB)?\n")
)
def test_no_text_ends_in_a_traceback(text: str) -> None:
    try:
        total, available = node_memory.parse_meminfo(text)
    except node_memory.MemoryUnknownError:
        pass
    else:
        assert total >= 0
        assert available >= 0
    assert node_memory.parse_status(text)[1] >= 0
