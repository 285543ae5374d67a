"""Arguments that several modules take. They are documented in plugins/doc_fragments, under the same names.

Each call gives new ones: AnsibleModule fills in what it is given, defaults that are dictionaries among it.
"""

from __future__ import annotations

from typing import Any


def board() -> dict[str, Any]:
    return {
        "sysfs": {"type": "path", "default": "/sys"},
        "device_tree": {"type": "path", "default": "/proc/device-tree"},
    }


def llm_address() -> dict[str, Any]:
    return {
        "url": {"type": "str", "required": True},
        "api": {"type": "str", "choices": ["auto", "ollama", "openai"], "default": "auto"},
        "model": {"type": "str", "required": True},
        "engine": {
            "type": "dict",
            "default": {},
            "options": {name: {"type": "str"} for name in ("name", "version", "commit", "build_key")},
        },
        "model_facts": {
            "type": "dict",
            "default": {},
            "options": {"sha256": {"type": "str"}, "quant": {"type": "str"}, "bytes": {"type": "int"}},
        },
        "build": {"type": "path", "default": "/opt/llama.cpp/current/build.json"},
    }
