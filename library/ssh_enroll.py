#!/usr/bin/python
"""Ansible module: first contact with a node, from the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ssh_enroll
short_description: Pin a node's host key and install your public key
description:
  - Fetches the host keys that a node offers, without logging in, and compares them with known_hosts as ssh itself would
    look at it. A key that is another than the one on record ends the task.
  - Pins an unknown host key if its fingerprint is among O(fingerprints); without one the task ends and tells them.
  - Logs in by key, else by password (C(password) or C(keyboard-interactive)), appends the public key to
    C(~/.ssh/authorized_keys) and proves by a new connection that it lets in. Other keys stay.
  - Runs on the controller, with its Python. Delegate it to localhost.
options:
  name:
    description: What the inventory calls the node, for messages.
    type: str
    required: true
  host:
    description: The node's address or name.
    type: str
    required: true
  port:
    description: The port of its ssh. By default what ssh's own configuration says.
    type: int
  user:
    description: The account to log in to. By default what ssh's own configuration says.
    type: str
  password:
    description: The account's password, if no key lets in yet. It is written nowhere.
    type: str
  private_key_file:
    description: The key that Ansible uses for the node.
    type: path
  public_key_file:
    description: The public key to install. By default that of the first key which ssh would try.
    type: path
  ssh_args:
    description: Options of ssh, as in C(ansible_ssh_common_args).
    type: str
    default: ""
  known_hosts:
    description: The file to pin in. By default the first one that ssh would read, given O(ssh_args).
    type: path
  fingerprints:
    description: Fingerprints of host keys to accept, C(SHA256:...) or lines of C(ssh-keygen -lf).
    type: list
    elements: str
    default: []
  look_only:
    description: Only fetch and compare the host keys.
    type: bool
    default: false
  timeout:
    description: Seconds for which the node may stay silent.
    type: int
    default: 15
attributes:
  check_mode:
    description: Fetches the host keys and says what it would pin. It pins nothing and does not log in.
    support: full
  diff_mode:
    description: Shows the lines for known_hosts and authorized_keys.
    support: full
  idempotent:
    description: A second run logs in by key and changes nothing.
    support: full
notes:
  - Needs paramiko on the controller, and the programs ssh and ssh-keygen.
author: The Bramble authors
"""

EXAMPLES = r"""
- name: Look at the host keys
  ssh_enroll:
    name: pi1
    host: 192.168.1.11
    user: pi
    look_only: true
  delegate_to: localhost

- name: Enrol
  ssh_enroll:
    name: pi1
    host: 192.168.1.11
    user: pi
    password: "{{ typed }}"
    fingerprints: [SHA256:uNiVztksCsDhcc0u9e8BrSXcx2CZQaPq5nHL3RT2yrU]
  delegate_to: localhost
"""

RETURN = r"""
state:
  description: What known_hosts said of the host keys - C(pinned) or C(unknown). Others end the task.
  returned: success
  type: str
confirmed:
  description: Whether a host key is on record or among O(fingerprints).
  returned: success
  type: bool
host_keys:
  description: The host keys that the node offers - C(type), C(fingerprint), C(shown) as C(ssh-keygen -lf) prints it.
  returned: success
  type: list
  elements: dict
record_name:
  description: The node's name in known_hosts.
  returned: success
  type: str
login:
  description: What let in first - C(the key), C(another key), C(the password) - or null where nobody logged in.
  returned: success
  type: str
public_key:
  description: The fingerprint of the key that lets in now, or null where nobody logged in.
  returned: success
  type: str
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

try:
    from bramble import enroll, ssh_keys
    from bramble.secret import Secret
except ImportError as error:  # not the controller's environment
    MISSING: ImportError | None = error
else:
    MISSING = None

ARGUMENTS: dict[str, dict[str, Any]] = {
    "name": {"type": "str", "required": True},
    "host": {"type": "str", "required": True},
    "port": {"type": "int"},
    "user": {"type": "str"},
    "password": {"type": "str", "no_log": True},
    "private_key_file": {"type": "path", "no_log": False},
    "public_key_file": {"type": "path", "no_log": False},
    "ssh_args": {"type": "str", "default": ""},
    "known_hosts": {"type": "path"},
    "fingerprints": {"type": "list", "elements": "str", "default": []},
    "look_only": {"type": "bool", "default": False},
    "timeout": {"type": "int", "default": 15},
}


def run(params: dict[str, Any], check: bool) -> dict[str, Any]:
    """The module's result.

    Raises:
        SshError: the node cannot or must not be enrolled.
    """
    target = enroll.settings(
        params["name"],
        params["host"],
        port=params["port"],
        user=params["user"] or None,
        private_key_file=params["private_key_file"],
        ssh_args=params["ssh_args"],
        known_hosts=Path(params["known_hosts"]) if params["known_hosts"] else None,
    )
    sight = enroll.look(target, params["timeout"])
    expected = [ssh_keys.parse_fingerprint(text) for text in params["fingerprints"]]
    trusted = ssh_keys.choose_trusted(target.record_name, sight.verdict, sight.offered, expected)
    shown = [key.described(target.record_name) for key in sight.offered]
    result: dict[str, Any] = {
        "changed": False,
        "state": sight.verdict.state,
        "confirmed": bool(trusted),
        "record_name": target.record_name,
        "host_keys": [
            {"type": key.type, "fingerprint": key.fingerprint, "shown": text}
            for key, text in zip(sight.offered, shown, strict=True)
        ],
        "login": None,
        "public_key": None,
    }
    if params["look_only"]:
        return result
    if not trusted:
        if not check:
            raise ssh_keys.SshError(
                f"{target.place}: nobody has confirmed its host key. Compare with the node's own screen, then give one "
                "of these in enroll_fingerprints, or use `bramble enroll`:" + "".join(f"\n    {text}" for text in shown)
            )
        trusted = sight.offered
    unpinned = trusted if sight.verdict.state == "unknown" else ()
    identity, others = enroll.choose_identity(
        target, Path(params["public_key_file"]) if params["public_key_file"] else None
    )
    if check:
        lines = "".join(f"{target.record_name} {key.type} {key.encoded}\n" for key in unpinned)
        result["msg"] = f"would log in as {target.user} and see that {identity.public.fingerprint} lets in"
    else:
        lines = enroll.pin(target, unpinned) if unpinned else ""
        password = Secret(params["password"]) if params["password"] else None
        done = enroll.enroll(target, trusted, identity, others, lambda: password, params["timeout"])
        result |= {"login": done.login, "public_key": identity.public.fingerprint}
        result["changed"] = done.installed or done.tightened
        lines += f"~/.ssh/authorized_keys: {identity.public.line}\n" if done.installed else ""
    if lines:
        result["changed"] = True
        header = str(target.known_hosts[0])
        result["diff"] = {"before": "", "after": lines, "before_header": header, "after_header": header}
    return result


def main() -> None:
    module: Any = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    if MISSING is not None:
        module.fail_json(
            msg=missing_required_lib(MISSING.name or "bramble") + " The task runs on the controller: delegate it to "
            "localhost, and run `make setup` in the checkout."
        )
    try:
        module.exit_json(**run(module.params, module.check_mode))
    except ssh_keys.SshError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
