"""Makes the nodes' code importable as Ansible does: `ansible.module_utils.bramble`, and modules by their names."""

import sys
from pathlib import Path

import ansible.module_utils
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[2]
ansible.module_utils.__path__.append(str(ROOT / "plugins" / "module_utils"))
sys.path.insert(0, str(ROOT / "library"))

# Machines that run other things too are slow: what a property takes says nothing about it.
settings.register_profile("bramble", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("bramble")
