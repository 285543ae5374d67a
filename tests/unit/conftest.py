"""Makes the nodes' code importable as Ansible does: `ansible.module_utils.bramble`, and modules by their names."""

import sys
from pathlib import Path

import ansible.module_utils

ROOT = Path(__file__).resolve().parents[2]
ansible.module_utils.__path__.append(str(ROOT / "plugins" / "module_utils"))
sys.path.insert(0, str(ROOT / "library"))
