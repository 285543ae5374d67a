"""The cluster on the lab lab-cluster: three nodes and one bystander. Test files run in the order of their names."""

from __future__ import annotations

import os

import pytest

from lab import BIN, ROOT, Lab, run


@pytest.fixture(scope="session")
def cluster() -> Lab:
    """Never-provisioned nodes, and a stand-in model. Left up: tools/test.sh takes the lab down."""
    model = ROOT / ".bramble/models/bramble-synth.gguf"
    told = model.with_suffix(".json")
    if not told.exists() or "kv_heads" not in told.read_text():
        done = run(str(BIN / "bramble"), "model", "synth", "--output", str(model), "--force")
        assert done.returncode == 0, done.stderr
    lab = Lab("lab-cluster")
    # The lab of an earlier run as that left it, for running one file again.
    if os.environ.get("BRAMBLE_TEST_REUSE") and (ROOT / lab.inventory / "hosts.yml").exists():
        return lab
    variables = (
        "-e",
        "lab_name=lab-cluster",
        "-e",
        "lab_nodes=3",
        "-e",
        "lab_bystanders=1",
        "-e",
        "lab_link_delay=0.1ms",
    )
    run(str(BIN / "bramble"), "lab", "down", "--name", lab.name)
    done = run(str(BIN / "ansible-playbook"), "-i", ",", "playbooks/lab_up.yml", *variables)
    assert done.returncode == 0, done.stdout[-3000:]
    return lab


@pytest.fixture(scope="session")
def url(cluster: Lab) -> str:
    """The gateway's address."""
    return f"http://{cluster.address('pi1')}:11434"
