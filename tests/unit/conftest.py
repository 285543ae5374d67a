"""Makes the nodes' code importable as Ansible does: `ansible.module_utils.bramble`, and modules by their names."""

import os
import sys
from pathlib import Path

import ansible.module_utils
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[2]
ansible.module_utils.__path__.append(str(ROOT / "plugins" / "module_utils"))
sys.path.insert(0, str(ROOT / "library"))

# The same examples in each run, so that what fails fails again; BRAMBLE_TEST_EXPLORE=1 looks for others. No deadlines:
# machines that run other things too are slow.
settings.register_profile(
    "bramble",
    deadline=None,
    derandomize=not os.environ.get("BRAMBLE_TEST_EXPLORE"),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("bramble")
