"""Arguments that several modules take. They are documented in plugins/doc_fragments, under the same names."""

from __future__ import annotations

from typing import Any

BOARD: dict[str, Any] = {
    "sysfs": {"type": "path", "default": "/sys"},
    "device_tree": {"type": "path", "default": "/proc/device-tree"},
}

LLM_ADDRESS: dict[str, Any] = {
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
