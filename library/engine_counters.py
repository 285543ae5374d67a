#!/usr/bin/python
"""Ansible module: what the kernel has counted of an engine so far."""

from __future__ import annotations

DOCUMENTATION = r"""
module: engine_counters
short_description: Read what the kernel has counted of an engine so far
description:
  - Reads how long each thread of a service's engine was on a core and how long it waited for one, what its connections
    to other nodes have carried, and what the node's interface has.
  - Two readings with generated tokens between them tell what a token takes. The module C(token_time) generates them.
  - Reads only, and connects to nothing.
options:
  service:
    description: The service, as the role C(service_unit) names it, such as V(rpc-head).
    type: str
    required: true
  program:
    description: The engine's program, such as V(llama-server).
    type: str
    required: true
  address:
    description: This node's address, by which its interface is found. Empty, no interface is read.
    type: str
    default: ""
  peers:
    description: The far ends of the connections that are read, C(address:port).
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description: Reads only.
    support: full
  diff_mode:
    description: Changes nothing.
    support: none
notes:
  - Needs root, to see other users' processes.
author: The Bramble authors
"""

EXAMPLES = r"""
- name: Read what the head and its connections have done so far
  engine_counters:
    service: rpc-head
    program: llama-server
    address: 192.168.1.11
    peers: ["192.168.1.12:50052"]
  become: true
  register: before
"""

RETURN = r"""
threads:
  description: The engine's threads, the oldest first.
  returned: success
  type: list
  elements: dict
  sample: [{process: 812, thread: 812, started: 5120, ran_ns: 91002003, waited_ns: 40000}]
connections:
  description: Its connections to O(peers), as tcp_info has them.
  returned: success
  type: list
  elements: dict
  sample:
    - {peer: "192.168.1.12:50052", port: 40112, bytes_acked: 9000, bytes_received: 8200, data_segs_out: 8,
       data_segs_in: 6, retransmitted: 0, rtt_ms: 0.2, least_rtt_ms: 0.1}
interface:
  description: The interface with O(address), and the bytes that it has sent and received; null if there is none.
  returned: success
  type: dict
  sample: {name: eth0, sent: 120000, received: 4500000}
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.bramble.conditions import run_command
from ansible.module_utils.bramble.engine_counters import CountersError, snapshot


def main() -> None:
    module: Any = AnsibleModule(
        argument_spec={
            "service": {"type": "str", "required": True},
            "program": {"type": "str", "required": True},
            "address": {"type": "str", "default": ""},
            "peers": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    try:
        found = snapshot(run_command, **module.params)
    except CountersError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, **found)


if __name__ == "__main__":
    main()
