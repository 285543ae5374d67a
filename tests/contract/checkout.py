"""What the contract tests look at, found by globbing, and the rules as functions: each returns the defects it found.

The rules are functions so that `test_rules.py` can show that each finds what it is there for.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

# The least that there must be: a glob that finds nothing must not pass. Raise them as the project grows.
ROLES_AT_LEAST = 25
MODULES_AT_LEAST = 17


def roles() -> list[str]:
    return sorted(path.name for path in (ROOT / "roles").glob("*") if path.is_dir() and any(path.rglob("*.yml")))


def modules() -> list[str]:
    return sorted(path.stem for path in (ROOT / "library").glob("*.py"))


def tables() -> list[str]:
    """Files of versions, addresses and checksums."""
    names = ("checksums.yml", "catalogue.yml")
    return sorted(str(path.relative_to(ROOT)) for name in names for path in ROOT.glob(f"roles/**/{name}"))


def tracked() -> list[str]:
    """The files in git, those about to be added included."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return [name for name in listed if (ROOT / name).is_file()]


def run(*command: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a program of this environment, with nothing of the caller's Ansible settings."""
    base = {"PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(Path.home()), "LC_ALL": "C.UTF-8", "ANSIBLE_NOCOLOR": "1"}
    return subprocess.run(
        [str(BIN / command[0]), *command[1:]], cwd=cwd, env=base | env, capture_output=True, text=True, check=False
    )


def load(path: Path) -> dict[str, Any]:
    """A YAML mapping; a file that is absent or empty is an empty one."""
    loaded = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None
    if loaded is not None and not isinstance(loaded, dict):
        raise TypeError(f"{path} holds no mapping")
    return loaded or {}


# Roles: defaults/main.yml, meta/argument_specs.yml, vars/*.yml.


def role_defects(role: Path) -> list[str]:
    """Whatever makes a role's variables differ from what its argument_specs promise."""
    options = load(role / "meta/argument_specs.yml").get("argument_specs", {}).get("main", {}).get("options", {})
    defaults = load(role / "defaults/main.yml")
    return [
        *_parity(options, defaults),
        *(f"meta/argument_specs.yml: {defect}" for name, option in options.items() for defect in _option(name, option)),
        *_uncommented(role / "defaults/main.yml"),
        *_unprefixed(role, options.keys() | defaults.keys()),
    ]


def _parity(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted(defaults.keys() - options.keys()):
        yield f"{name} is in defaults/main.yml, and not in meta/argument_specs.yml"
    for name, option in options.items():
        required = option.get("required", False)
        if required and name in defaults:
            yield f"{name} is required, and has a default"
        if not required and name not in defaults:
            yield f"{name} is in meta/argument_specs.yml, and neither required nor in defaults/main.yml"
        if "default" in option and name in defaults and option["default"] != defaults[name]:
            yield f"{name}: its default is {defaults[name]!r}, and {option['default']!r} in meta/argument_specs.yml"


def _option(path: str, option: Mapping[str, Any]) -> Iterator[str]:
    for key in ("type", "description"):
        if not option.get(key):
            yield f"{path} has no {key}"
    if option.get("type") == "list" and "elements" not in option:
        yield f"{path} is a list and does not say of what: elements"
    for name, inner in (option.get("options") or {}).items():
        yield from _option(f"{path}.{name}", inner)


def _uncommented(file: Path) -> Iterator[str]:
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    for before, line in zip(["", *lines], lines, strict=False):
        name = re.match(r"(\w+):", line)
        if name and not before.startswith("#"):
            yield f"defaults/main.yml: {name[1]} has no comment in the line above"


def _unprefixed(role: Path, public: set[str]) -> Iterator[str]:
    allowed = (f"{role.name}_", f"__{role.name}_")
    internal = {name for file in sorted(role.glob("vars/**/*.yml")) for name in load(file)}
    for name in sorted(public):
        if not name.startswith(allowed[0]):
            yield f"{name} does not start with {allowed[0]}"
    for name in sorted(internal):
        if not name.startswith(allowed):
            yield f"{name} does not start with {' or '.join(allowed)}"


# Tables of checksums.

_HASH = re.compile(r"(?:\w+:)?[0-9a-f]{32,}")


def table_defects(text: str) -> list[str]:
    """Keys out of order, and versions or checksums that YAML may read as numbers.

    Each mapping below a variable is a table, sorted as people sort versions, down to the entries: mappings with a
    `sha256`, and items of a list, whose fields have the order of their author.
    """
    document = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(document, yaml.MappingNode):
        return ["holds no mapping"]
    return [defect for _, value in document.value for defect in _table(value)]


def _natural(text: str) -> list[tuple[int, int, str]]:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]


def _table(node: yaml.Node, entry: bool = False) -> Iterator[str]:
    if isinstance(node, yaml.ScalarNode) and _HASH.fullmatch(node.value) and node.style not in ("'", '"'):
        yield f"line {node.start_mark.line + 1}: {node.value[:16]}… is a checksum without quotes"
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _table(item, entry=True)
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        if not entry and "sha256" not in keys and keys != sorted(keys, key=_natural):
            yield f"line {node.start_mark.line + 1}: the keys are not sorted: {', '.join(keys)}"
        for key, value in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                yield f"line {key.start_mark.line + 1}: the key {key.value} is no text: put it in quotes"
            if key.value == "sha256" and value.style not in ("'", '"'):
                yield f"line {value.start_mark.line + 1}: sha256 without quotes"
            elif key.value != "sha256":
                yield from _table(value)


# Modules: DOCUMENTATION against argument_spec.


class _Started(Exception):  # noqa: N818 - it is no error: main() got as far as its arguments
    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.spec = spec


def _load(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"contract_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def module_defects(file: Path) -> list[str]:
    """Where a module's documentation differs from the arguments that it takes."""
    module = _load(file)

    def start(*_: Any, argument_spec: Mapping[str, Any], **__: Any) -> None:
        raise _Started(argument_spec)

    module.__dict__["AnsibleModule"] = start
    said = yaml.safe_load(module.DOCUMENTATION)
    documented = said.get("options") or {}
    for name in said.get("extends_documentation_fragment", []):
        # Others are Ansible's own, of which module_utils.basic knows the arguments.
        if (fragment := ROOT / f"plugins/doc_fragments/{name}.py").exists():
            documented |= yaml.safe_load(_load(fragment).ModuleDocFragment.DOCUMENTATION)["options"]
    try:
        module.main()
    except _Started as started:
        return list(_differences("", documented, started.spec))
    return ["main() makes no AnsibleModule"]


_DEFAULTS: dict[str, Any] = {
    "type": "str",
    "required": False,
    "default": None,
    "choices": None,
    "elements": None,
    "aliases": None,
}


def _differences(path: str, documented: Mapping[str, Any], taken: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted(documented.keys() - taken.keys()):
        yield f"{path}{name} is documented, and not taken"
    for name in sorted(taken.keys() - documented.keys()):
        yield f"{path}{name} is taken, and not documented"
    for name in sorted(taken.keys() & documented.keys()):
        for key, default in _DEFAULTS.items():
            said, done = documented[name].get(key, default), taken[name].get(key, default)
            if said != (list(done) if isinstance(done, tuple) else done):
                yield f"{path}{name}: {key} is {done!r}, and {said!r} in the documentation"
        inner = documented[name].get("options") or documented[name].get("suboptions") or {}
        yield from _differences(f"{path}{name}.", inner, taken[name].get("options") or {})


# Locks.

_REQUIREMENT = re.compile(r"[a-z0-9._-]+==[^\s;]+( ; .+)?", re.IGNORECASE)
_HASH_OPTION = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def lock_defects(text: str) -> list[str]:
    """Lines of a requirements file that name a host, leave a version open or carry no hash."""
    defects = []
    for line in text.replace("\\\n", "").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if "://" in line:
            defects.append(f"{line[:60]}: names a host")
        requirement, *hashes = re.split(r"\s+(?=--hash)", line.strip())
        if not _REQUIREMENT.fullmatch(requirement):
            defects.append(f"{requirement[:60]}: is not of the form name==version")
        if not hashes or not all(_HASH_OPTION.fullmatch(item) for item in hashes):
            defects.append(f"{requirement[:60]}: has no hash")
    return defects


_REGISTRY = re.compile(
    r"\b(?:pypi|pythonhosted|npmjs|rubygems|crates|galaxy\.ansible|proxy\.golang)\.(?:org|com|io)\b", re.IGNORECASE
)


def registry_defects(text: str) -> list[str]:
    """Lines that name the host of a package registry: which one is used is the machine's setting, not the project's."""
    return [
        f"line {number}: {line.strip()[:80]}"
        for number, line in enumerate(text.splitlines(), 1)
        if _REGISTRY.search(line)
    ]
