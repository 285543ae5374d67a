"""Each rule of `checkout.py` finds what it is there for, and nothing in what is right."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkout import lock_defects, module_defects, registry_defects, role_defects, table_defects

SPECS = """
argument_specs:
  main:
    short_description: A demo.
    options:
      demo_port: {type: int, description: A port., default: 80}
      demo_peers: {type: list, elements: str, description: Addresses., required: true}
      demo_tree:
        type: dict
        description: A tree.
        options: {leaf: {type: str, description: A leaf.}}
"""
DEFAULTS = "---\n# The port.\ndemo_port: 80\n\n# A tree.\ndemo_tree: {}\n"
VARS = "demo_checksums: {}\n__demo_user: demo\n"


def role(directory: Path, specs: str = SPECS, defaults: str = DEFAULTS, variables: str = VARS) -> Path:
    path = directory / "demo"
    for name, text in (("meta/argument_specs", specs), ("defaults/main", defaults), ("vars/main", variables)):
        file = path / f"{name}.yml"
        file.parent.mkdir(parents=True)
        file.write_text(text)
    return path


def test_a_right_role_has_no_defects(tmp_path: Path) -> None:
    assert role_defects(role(tmp_path)) == []


ROLES = [
    ("specs", "demo_port: {type: int,", "demo_prot: {type: int,", "demo_port is in defaults/main.yml, and not in"),
    (
        "specs",
        "required: true",
        "required: false",
        "demo_peers is in meta/argument_specs.yml, and neither required nor",
    ),
    ("specs", "default: 80", "required: true", "demo_port is required, and has a default"),
    ("specs", "default: 80", 'default: "80"', "demo_port: its default is 80, and '80' in meta/argument_specs.yml"),
    ("specs", "type: int, ", "", "meta/argument_specs.yml: demo_port has no type"),
    ("specs", "description: A port., ", "", "meta/argument_specs.yml: demo_port has no description"),
    ("specs", ", description: A leaf.", "", "meta/argument_specs.yml: demo_tree.leaf has no description"),
    ("specs", "elements: str, ", "", "meta/argument_specs.yml: demo_peers is a list and does not say of what"),
    ("defaults", "# The port.\n", "", "defaults/main.yml: demo_port has no comment in the line above"),
    ("defaults", "# A tree.\n", "# A tree.\n\n", "defaults/main.yml: demo_tree has no comment in the line above"),
    ("variables", "__demo_user", "user", "user does not start with demo_ or __demo_"),
]


@pytest.mark.parametrize(("part", "old", "new", "defect"), ROLES, ids=[case[3] for case in ROLES])
def test_a_wrong_role_has_its_defect(tmp_path: Path, part: str, old: str, new: str, defect: str) -> None:
    whole = {"specs": SPECS, "defaults": DEFAULTS, "variables": VARS}
    assert old in whole[part]
    found = role_defects(role(tmp_path, **whole | {part: whole[part].replace(old, new)}))
    assert any(line.startswith(defect) for line in found), found


def test_a_public_variable_needs_the_prefix_without_underscores(tmp_path: Path) -> None:
    specs, defaults = (text.replace("demo_port", "__demo_port") for text in (SPECS, DEFAULTS))
    assert role_defects(role(tmp_path, specs, defaults)) == ["__demo_port does not start with demo_"]


HASH = "ab" * 32


@pytest.mark.parametrize(
    "text",
    [
        f'x_checksums:\n  "1.9": "{HASH}"\n  "1.10": "{HASH}"\n',
        f'x_checksums:\n  arm64:\n    "1": "sha256:{HASH}"\n',
        f'x_catalogue:\n  a:\n    url: u\n    sha256: "{HASH}"\n    size: 5\n  b:\n    sha256: "{HASH}"\n',
    ],
)
def test_a_right_table_has_no_defects(text: str) -> None:
    assert table_defects(text) == []


@pytest.mark.parametrize(
    ("text", "defect"),
    [
        (f'x:\n  "1.10": "{HASH}"\n  "1.9": "{HASH}"\n', "line 2: the keys are not sorted: 1.10, 1.9"),
        (f'x:\n  1.10: "{HASH}"\n', "line 2: the key 1.10 is no text: put it in quotes"),
        (f'x:\n  "1.10": {HASH}\n', "line 2: abababababababab… is a checksum without quotes"),
        (f"x:\n  a:\n    sha256: {HASH}\n", "line 3: sha256 without quotes"),
        (f'x:\n  - name: a\n    more:\n      "1": {HASH}\n', "line 4: abababababababab… is a checksum without quotes"),
        (f'x:\n  b: {{sha256: "{HASH}"}}\n  a: {{sha256: "{HASH}"}}\n', "line 2: the keys are not sorted: b, a"),
        ("- x\n", "holds no mapping"),
    ],
)
def test_a_wrong_table_has_its_defect(text: str, defect: str) -> None:
    assert table_defects(text) == [defect]


MODULE = '''
from ansible.module_utils.basic import AnsibleModule
DOCUMENTATION = """
options:
  path: {type: path, required: true}
  mode: {choices: [a, b], default: a}
  parts: {type: list, elements: dict, suboptions: {name: {type: str}}}
"""
def main():
    AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "mode": {"choices": ("a", "b"), "default": "a"},
            "parts": {"type": "list", "elements": "dict", "options": {"name": {"type": "str"}}},
        },
        supports_check_mode=True,
    )
'''


@pytest.mark.parametrize(
    ("old", "new", "defects"),
    [
        ("", "", []),
        ('"type": "path", ', "", ["path: type is 'str', and 'path' in the documentation"]),
        ("required: true", "required: false", ["path: required is True, and False in the documentation"]),
        ("default: a", "default: b", ["mode: default is 'a', and 'b' in the documentation"]),
        ("[a, b]", "[a]", ["mode: choices is ('a', 'b'), and ['a'] in the documentation"]),
        (
            '"options": {"name"',
            '"options": {"nome"',
            ["parts.name is documented, and not taken", "parts.nome is taken, and"],
        ),
        ("    AnsibleModule(", "    dict(", ["main() makes no AnsibleModule"]),
    ],
)
def test_a_modules_documentation_is_held_against_its_arguments(
    tmp_path: Path, old: str, new: str, defects: list[str]
) -> None:
    file = tmp_path / "demo.py"
    file.write_text(MODULE.replace(old, new) if old else MODULE)
    found = module_defects(file)
    assert len(found) == len(defects)
    assert all(line.startswith(defect) for line, defect in zip(found, defects, strict=True)), found


@pytest.mark.parametrize(
    ("text", "defects"),
    [
        (f"a==1.0 \\\n    --hash=sha256:{HASH} \\\n    --hash=sha256:{HASH}\n", []),
        (f"a==1.0 ; os_name == 'nt' \\\n    --hash=sha256:{HASH}\n# why\n\n", []),
        (f"a>=1.0 \\\n    --hash=sha256:{HASH}\n", ["a>=1.0: is not of the form name==version"]),
        ("a==1.0\n", ["a==1.0: has no hash"]),
        ("a==1.0 \\\n    --hash=md5:00\n", ["a==1.0: has no hash"]),
        (
            f"a==https://h/a \\\n    --hash=sha256:{HASH}\n",
            [f"a==https://h/a     --hash=sha256:{HASH}"[:60] + ": names a host"],
        ),
    ],
)
def test_a_lock_is_pinned_hashed_and_names_no_host(text: str, defects: list[str]) -> None:
    assert lock_defects(text) == defects


def test_a_registrys_host_is_found() -> None:
    host = ".".join(["https://files", "pythonhosted", "org"])
    assert registry_defects(f"nothing here\nsee {host}/packages\n") == [f"line 2: see {host}/packages"]
    assert registry_defects("the Python package index; pypi; https://example.org") == []
