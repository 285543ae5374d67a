#!/usr/bin/python
"""Ansible module: one model file, fetched with resume, verified, and put in place in one step."""

DOCUMENTATION = r"""
module: model_file
short_description: Keep one large, checksummed file in place
description:
  - Fetches a file of known size and SHA-256 and puts it in place only when it is whole and right.
  - The file grows under C(.incoming/<sha256>.part) in the directory of O(path). An interrupted transfer goes on where
    it stopped, also in the next run. A wrong checksum deletes the part.
  - Before anything is transferred, the free space is compared with what is still to come.
  - Beside the file a stamp, C(<path>.sha256), notes checksum, size and time of change, so that later runs need not read
    the whole file.
options:
  path:
    description: Where the file shall be. Its directory is created if it is missing.
    type: path
    required: true
  name:
    description: What to call the file in messages. The last part of O(path) if not given.
    type: str
  sha256:
    description: The SHA-256 of the whole file, 64 hex digits.
    type: str
    required: true
  bytes:
    description: The size of the whole file.
    type: int
    required: true
  state:
    description:
      - V(present) fetches the file from O(url) or O(src).
      - V(received) takes what another program has written to the part file, whose place is RV(part). The part must be
        whole. In check mode it only tells, as RV(present), whether the file has still to be brought, and fails if it
        would not fit.
    type: str
    choices: [present, received]
    default: present
  url:
    description: Where to fetch the file, an C(http), C(https) or C(file) URL.
    type: str
  src:
    description: A file on this host to copy.
    type: path
  origin:
    description: Where a received file came from, for messages.
    type: str
    default: another program
  verify:
    description:
      - V(stamp) trusts the stamp as long as size and time of change of the file agree with it.
      - V(always) reads the whole file.
    type: str
    choices: [stamp, always]
    default: stamp
  timeout:
    description: Seconds for which a connection, or another run at work in the same directory, may stay silent.
    type: int
    default: 60
  attempts:
    description: How often to try in succession without receiving anything new.
    type: int
    default: 5
  keep_free_bytes:
    description: What must stay free on the file system after the file has arrived.
    type: int
    default: 0
extends_documentation_fragment:
  - files
attributes:
  check_mode:
    description: Can run in check mode and says what it would do. It does not look whether the URL answers.
    support: full
  diff_mode:
    description: Shows checksum and size before and after.
    support: full
  idempotent:
    description: A second run does nothing.
    support: full
notes:
  - Proxies are taken from the environment, as usual (C(https_proxy) and others).
author:
  - Bramble
"""

EXAMPLES = r"""
- name: Fetch a model
  model_file:
    path: /var/lib/bramble/models/example.gguf
    url: https://models.example/example.gguf
    sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    bytes: 1117320736
    keep_free_bytes: 1073741824
    mode: "0644"

- name: Take what rsync has brought
  model_file:
    path: /var/lib/bramble/models/example.gguf
    state: received
    origin: pi1
    sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    bytes: 1117320736
"""

RETURN = r"""
path:
  description: The final place of the file.
  returned: success
  type: str
  sample: /var/lib/bramble/models/example.gguf
part:
  description: Where the file grows until it is whole.
  returned: success
  type: str
  sample: /var/lib/bramble/models/.incoming/9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08.part
sha256:
  description: The checksum of the file.
  returned: success
  type: str
bytes:
  description: The size of the file.
  returned: success
  type: int
present:
  description: Whether the file was in place, whole and right, when the module began.
  returned: success
  type: bool
arrived_bytes:
  description: What lay in the part file when the module began.
  returned: success
  type: int
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.bramble.download import DownloadError, Fetcher, Wanted, local_path, size_of

ARGUMENTS: dict[str, dict[str, Any]] = {
    "path": {"type": "path", "required": True},
    "name": {"type": "str"},
    "sha256": {"type": "str", "required": True},
    "bytes": {"type": "int", "required": True},
    "state": {"type": "str", "choices": ["present", "received"], "default": "present"},
    "url": {"type": "str"},
    "src": {"type": "path"},
    "origin": {"type": "str", "default": "another program"},
    "verify": {"type": "str", "choices": ["stamp", "always"], "default": "stamp"},
    "timeout": {"type": "int", "default": 60},
    "attempts": {"type": "int", "default": 5},
    "keep_free_bytes": {"type": "int", "default": 0},
}


def run(module: AnsibleModule) -> dict[str, Any]:
    params = module.params
    wanted = Wanted(Path(params["path"]), params["sha256"].lower(), params["bytes"])
    fetcher = Fetcher(
        wanted,
        timeout=params["timeout"],
        attempts=params["attempts"],
        keep_free=params["keep_free_bytes"],
        trust_stamp=params["verify"] == "stamp",
    )
    source = params["src"] or params["url"]
    old_size = size_of(wanted.path)
    result: dict[str, Any] = {
        "path": str(wanted.path),
        "part": str(wanted.part),
        "sha256": wanted.sha256,
        "bytes": wanted.bytes,
        "arrived_bytes": fetcher.arrived(),
    }

    if module.check_mode:
        changed = not fetcher.is_present()
        if changed:
            fetcher.require_space()
            if source and local_path(source):
                fetcher.require_source(source)
    elif params["state"] == "received":
        changed = fetcher.receive(params["origin"])
    else:
        changed = fetcher.fetch(source)

    result["present"] = not changed
    if changed:
        before = "absent\n" if old_size is None else f"{old_size} bytes, another content\n"
        after = f"{wanted.bytes} bytes, sha256 {wanted.sha256}\n"
        result["diff"] = {
            "before": before,
            "after": after,
            "before_header": str(wanted.path),
            "after_header": str(wanted.path),
        }
    attributes = module.load_file_common_arguments(params)
    result["changed"] = module.set_fs_attributes_if_different(attributes, changed)
    return result


def main() -> None:
    module = AnsibleModule(
        argument_spec=ARGUMENTS,
        mutually_exclusive=[("url", "src")],
        required_if=[("state", "present", ("url", "src"), True)],
        add_file_common_args=True,
        supports_check_mode=True,
    )
    name = module.params["name"] or Path(module.params["path"]).name
    try:
        result = run(module)
    except (DownloadError, OSError) as error:
        module.fail_json(msg=f"model {name}: {error}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
