"""The documentation names only what there is: pages, make targets, commands, playbooks, variables and files."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from checkout import ROOT, load, roles

from bramble.cli.app import app

PAGES = sorted(str(page.relative_to(ROOT)) for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
SCRIPT = ROOT / "tools/variables.py"


# The parts of a page.

_FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def prose(text: str) -> str:
    """A page without its code."""
    return _SPAN.sub("", re.sub(r"^ {4}.*$", "", _FENCE.sub("", text), flags=re.MULTILINE))


def code(text: str) -> Iterator[str]:
    """Each line of the code blocks, and each piece of code within a line."""
    for block in _FENCE.findall(text):
        yield from (line.strip() for line in block.splitlines()[1:-1])
    rest = _FENCE.sub("", text)
    yield from (line.strip() for line in re.findall(r"^ {4}(.*)$", rest, flags=re.MULTILINE))
    yield from _SPAN.findall(re.sub(r"^ {4}.*$", "", rest, flags=re.MULTILINE))


def commands(text: str, program: str) -> Iterator[list[str]]:
    """The arguments of each call of a program, comments left out."""
    for line in code(text):
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # an apostrophe: no shell
            continue
        if words and words[0].removeprefix(".venv/bin/") == program:
            yield words[1:]


def anchors(text: str) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    titles = re.findall(r"^#+ (.*)$", _FENCE.sub("", text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


# The rules: each gives the defects that it finds.


def link_defects(page: Path) -> Iterator[str]:
    for target in _LINK.findall(prose(page.read_text(encoding="utf-8"))):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists():
            yield f"{target}: there is no {path}"
        elif anchor and anchor not in anchors(file.read_text(encoding="utf-8")):
            yield f"{target}: {file.name} has no such heading"


def make_defects(text: str, targets: set[str]) -> Iterator[str]:
    for words in commands(text, "make"):
        for word in words:
            if "=" not in word and word not in targets:
                yield f"make {word}: the Makefile has no such target"


def bramble_defects(text: str, root: Any) -> Iterator[str]:
    """Commands, their sub-commands and their options, against the tree of click commands."""
    for words in commands(text, "bramble"):
        command, left = root, list(words)
        while left and hasattr(command, "commands"):
            name = left.pop(0)
            if name not in command.commands:
                yield f"bramble {' '.join(words)}: there is no {name}"
                break
            command = command.commands[name]
        else:
            known = {"-h", "--help"}.union(*(parameter.opts for parameter in command.params))
            for word in left:
                if word.startswith("-") and word.split("=")[0] not in known:
                    yield f"bramble {' '.join(words)}: {command.name} has no {word}"


def playbook_defects(text: str, root: Path) -> Iterator[str]:
    for words in commands(text, "ansible-playbook"):
        for word in words:
            if word.endswith(".yml") and not (root / word).is_file():
                yield f"ansible-playbook {word}: there is no such file"


def variable_defects(text: str, names: set[str], variables: set[str]) -> Iterator[str]:
    """Words in code that begin like a role's variable, and are none. `names` are the roles'."""
    for line in code(text):
        for word in re.findall(r"(?<![\w/.])[a-z]\w*_\w+(?![\w/.(*])", line):
            ours = word.startswith(tuple(f"{name}_" for name in names))
            if ours and word not in variables and word not in names:
                yield f"{word}: no role has such a variable"


def path_defects(text: str, root: Path) -> Iterator[str]:
    """Files and directories of the checkout; those with a placeholder in their name are anybody's."""
    for piece in _SPAN.findall(_FENCE.sub("", text)):
        if re.fullmatch(r"(?:roles|playbooks|inventory/pi|tools|docs|lab|src|plugins|library)/[\w./-]*", piece):
            name = piece.rstrip("/")
            if not (root / name).exists():
                yield f"{piece}: is not in the checkout"


# What is there.


@pytest.fixture(scope="session")
def targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))


@pytest.fixture(scope="session")
def variables() -> set[str]:
    specs = [load(ROOT / "roles" / role / "meta/argument_specs.yml")["argument_specs"] for role in roles()]
    return {name for spec in specs for entry in spec.values() for name in entry.get("options") or {}}


@pytest.fixture(scope="session")
def words(variables: set[str]) -> set[str]:
    """What may look like a role's variable: those, the modules, and what roles set for others to read."""
    modules = {path.stem for path in (ROOT / "library").glob("*.py")}
    tasks = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("roles/*/tasks/*.yml"))
    return variables | modules | set(re.findall(r"^ +([a-z]\w*_(?:records|problems|raw|predicted)):", tasks, re.M))


# The tests.


def test_the_pages_are_found() -> None:
    assert {"README.md", "CONTRIBUTING.md", "docs/variables.md", "docs/lab.md"} <= set(PAGES)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert min(len(list(commands(readme, name))) for name in ("make", "bramble", "ansible-playbook")) >= 3
    assert len(_LINK.findall(prose(readme))) >= 10


@pytest.mark.parametrize("page", PAGES)
def test_page_names_only_what_there_is(page: str, targets: set[str], words: set[str]) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert [
        *link_defects(ROOT / page),
        *make_defects(text, targets),
        *bramble_defects(text, typer.main.get_command(app)),
        *playbook_defects(text, ROOT),
        *variable_defects(text, set(roles()), words),
        *path_defects(text, ROOT),
    ] == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen, left = set(), [ROOT / "README.md"]
    while left:
        page = left.pop()
        seen.add(page)
        for target in _LINK.findall(prose(page.read_text(encoding="utf-8"))):
            file = (page.parent / target.partition("#")[0]).resolve()
            if file.suffix == ".md" and file.is_file() and file not in seen:
                left.append(file)
    assert set(PAGES) - {str(page.relative_to(ROOT)) for page in seen} == set()


def test_the_page_of_variables_is_current() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_page_of_variables_has_each_variable(variables: set[str]) -> None:
    text = (ROOT / "docs/variables.md").read_text(encoding="utf-8")
    assert {name for name in variables if f"\n| `{name}`" not in text} == set()


def test_a_stale_page_of_variables_is_found(tmp_path: Path) -> None:
    page = tmp_path / "variables.md"

    def check() -> int:
        command = [sys.executable, SCRIPT, "--check", "--output", page]
        return subprocess.run(command, capture_output=True, check=False).returncode

    assert check() == 1
    subprocess.run([sys.executable, SCRIPT, "--output", page], check=True)
    assert check() == 0
    page.write_text(page.read_text(encoding="utf-8").replace("gateway_port", "gateway_door"), encoding="utf-8")
    assert check() == 1


WRONG = """\
# A page
[here](#a-page) [gone](gone.md) [nowhere](#nowhere) [web](https://example.org/) `[code](also-gone.md)`

    make demo NODES=4   # make nothing
    .venv/bin/bramble status --jsno

`make dmeo` and `bramble lab brake pi2`, `ansible-playbook playbooks/phase9.yml`,
`gateway_prot`, `gateway_port`, `roles/gone/`

```sh
bramble lab break pi2 --how stop
make tset
```
"""


def test_each_rule_finds_what_it_is_there_for(tmp_path: Path, targets: set[str], variables: set[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text(WRONG)
    root = typer.main.get_command(app)
    assert list(link_defects(page)) == ["gone.md: there is no gone.md", "#nowhere: page.md has no such heading"]
    assert sorted(make_defects(WRONG, targets)) == [
        "make dmeo: the Makefile has no such target",
        "make tset: the Makefile has no such target",
    ]
    assert sorted(bramble_defects(WRONG, root)) == [
        "bramble lab brake pi2: there is no brake",
        "bramble status --jsno: status has no --jsno",
    ]
    assert list(playbook_defects(WRONG, ROOT)) == ["ansible-playbook playbooks/phase9.yml: there is no such file"]
    assert list(variable_defects(WRONG, set(roles()), variables)) == ["gateway_prot: no role has such a variable"]
    assert list(path_defects(WRONG, ROOT)) == ["roles/gone/: is not in the checkout"]
