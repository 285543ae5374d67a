#!/usr/bin/python
"""Ansible module: the network from this node to others, by ping and iperf3."""

from __future__ import annotations

DOCUMENTATION = r"""
module: net_bench
short_description: Measure the network to other nodes
description:
  - For each peer, one after the other, runs C(ping) (average, 99th percentile, loss) and C(iperf3) in both directions.
  - On each peer an iperf3 server must be listening at O(port). The role C(net_bench) starts and stops them.
  - What fails is named in RV(problems) and in the record's notes; the other figures stand. The module fails if there is
    a peer of which nothing could be measured.
options:
  peers:
    description: The other nodes.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: The peer's name in the inventory.
        type: str
        required: true
      address:
        description: The IP address at which it is measured.
        type: str
        required: true
  address:
    description: This node's own address, to which both programs bind. Empty, the system chooses.
    type: str
    default: ""
  port:
    description: The servers' TCP port.
    type: int
    default: 5201
  seconds:
    description: For how long iperf3 sends, in each direction.
    type: int
    default: 5
  ping_count:
    description: How many pings are sent, five each second.
    type: int
    default: 50
extends_documentation_fragment: [board]
attributes:
  check_mode:
    description: Measures nothing in check mode, and returns no records.
    support: full
  diff_mode:
    description: Changes nothing.
    support: none
author: The Bramble authors
"""

EXAMPLES = r"""
- name: Measure the network to pi1
  net_bench:
    address: 192.168.1.12
    peers:
      - name: pi1
        address: 192.168.1.11
"""

RETURN = r"""
records:
  description:
    - One for each peer of which anything was measured - a benchmark record of kind C(net_pair), but for C(schema),
      C(id), C(host), C(raw) and C(suspect). C(send) is from this node to the peer.
  returned: always
  type: list
  elements: dict
raw:
  description: What the programs wrote.
  returned: always
  type: str
problems:
  description: What could not be measured, and why, one line each.
  returned: always
  type: list
  elements: str
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.bramble.conditions import Node, Observation
from ansible.module_utils.bramble.net_bench import NetworkError, Peer, Plan, measure, record, run_command
from ansible.module_utils.bramble.options import board

ARGUMENTS: dict[str, dict[str, Any]] = {
    "peers": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {"name": {"type": "str", "required": True}, "address": {"type": "str", "required": True}},
    },
    "address": {"type": "str", "default": ""},
    "port": {"type": "int", "default": 5201},
    "seconds": {"type": "int", "default": 5},
    "ping_count": {"type": "int", "default": 50},
    **board(),
}


def main() -> None:
    module: Any = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    params = module.params
    try:
        peers = [Peer(**peer) for peer in params["peers"]]
        plan = Plan(params["address"], params["port"], params["seconds"], params["ping_count"])
    except NetworkError as error:
        module.fail_json(msg=str(error), records=[], raw="", problems=[str(error)])
    node = Node(sysfs=Path(params["sysfs"]), device_tree=Path(params["device_tree"]))
    answer: dict[str, Any] = {"records": [], "raw": "", "problems": []}
    nothing = False
    for peer in [] if module.check_mode else peers:
        with Observation(node) as seen:
            measured = measure(peer, plan, run_command)
        answer["raw"] += measured.raw
        answer["problems"] += measured.problems
        if measured.anything:
            conditions = seen.conditions(measured.notes())
            answer["records"].append(record(peer, plan, measured, seen.started_at, seen.duration_s, conditions))
        else:
            nothing = True
    if nothing:
        module.fail_json(msg="; ".join(answer["problems"]), **answer)
    module.exit_json(changed=False, **answer)


if __name__ == "__main__":
    main()
