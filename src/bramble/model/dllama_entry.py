"""What `bramble model convert` says of the files that it wrote, as the role dllama_api wants it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class EntryError(ValueError):
    """The file is not what `bramble model convert` writes. The message says which, and what to do."""


def read_entry(path: Path) -> dict[str, Any]:
    """`dllama_api_model_entry` of a `.dllama.json` and the two files beside it.

    Raises:
        EntryError: it cannot be read, or is something else.
    """
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        entry: dict[str, Any] = {}
        for kind in ("model", "tokenizer"):
            entry[f"{kind}_path"] = str(path.absolute().parent / about[kind]["file"])
            entry[f"{kind}_sha256"] = about[kind]["sha256"]
            entry[f"{kind}_bytes"] = about[kind]["bytes"]
        return entry | {key: about[key] for key in ("name", "kv_heads", "context")}
    except OSError as error:
        raise EntryError(f"{path}: {error.strerror}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise EntryError(
            f"{path} is not what bramble model convert writes ({type(error).__name__}: {error}): make it anew"
        ) from error
