#!/usr/bin/python
"""Ansible module: the state of a node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: node_status
short_description: The state of a node
description:
  - Reads what a node can say of itself - the machine, Bramble's services, the build of llama.cpp, the models, and what
    the RPC head has loaded where.
  - Reads only, needs no privileges, and does not fail because something is absent.
attributes:
  check_mode:
    description: Runs as without check mode.
    support: full
options: {}
author: The Bramble authors
"""

EXAMPLES = r"""
- name: Read the node's state
  node_status:
"""

RETURN = r"""
host:
  description: The machine - C(model), C(arch), C(kernel), C(os), C(memory) in bytes, C(load), C(temperature_c).
  returned: always
  type: dict
services:
  description:
    - For each C(/etc/systemd/system/bramble-*.service) its C(active), C(sub), C(result), C(type), C(enabled),
      C(restarts), C(since).
  returned: always
  type: dict
  sample:
    bramble-rpc-worker.service:
      active: active
      sub: running
      result: success
      type: exec
      enabled: enabled
      restarts: 0
      since: "2026-11-21T02:40:00Z"
llama_cpp:
  description: C(build) is the content of the current build's C(build.json), or null.
  returned: always
  type: dict
models:
  description: The descriptions of the models in the node's store.
  returned: always
  type: list
  elements: dict
rpc_head:
  description: What the RPC head says of itself (state, model, URL, layers per host), or null where there is none.
  returned: always
  type: dict
unreadable:
  description: Files and directories that exist and could not be read or understood.
  returned: always
  type: list
  elements: str
"""

from collections.abc import Sequence
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.bramble.node_status import read_node


def main() -> None:
    module: Any = AnsibleModule(argument_spec={}, supports_check_mode=True)

    def run(command: Sequence[str]) -> tuple[int, str]:
        if not module.get_bin_path(command[0]):
            return 127, ""  # A node without systemd is an answer, not a failure.
        code, output, _ = module.run_command(list(command))
        return code, output

    module.exit_json(changed=False, **read_node(run))


if __name__ == "__main__":
    main()
