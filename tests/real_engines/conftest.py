"""The engines themselves: distributed-llama built from its source, and the llama.cpp that the lab built."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

CACHE = Path.home() / ".cache" / "bramble"
COMMIT = "8d624a7b1f9acc0855d71a32519b22fe51e0bd86"
NICE = ("nice", "-n", "10")


@pytest.fixture(scope="session")
def dllama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program `dllama` at COMMIT, built once (a minute) and kept."""
    kept = CACHE / "distributed-llama" / COMMIT / "dllama"
    if kept.exists():
        return kept
    source = os.environ.get("DISTRIBUTED_LLAMA_GIT")
    if not source:
        pytest.skip("no distributed-llama: set DISTRIBUTED_LLAMA_GIT to its git repository, a URL or a path")
    checkout = tmp_path_factory.mktemp("distributed-llama") / "source"
    for command in (
        ["git", "clone", "--quiet", "--no-checkout", source, str(checkout)],
        ["git", "-C", str(checkout), "checkout", "--quiet", COMMIT],
        [*NICE, "make", "-j1", "-C", str(checkout), "dllama"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    kept.parent.mkdir(parents=True, exist_ok=True)
    new = kept.with_name(f"dllama.{os.getpid()}")
    shutil.copy2(checkout / "dllama", new)
    new.replace(kept)
    return kept


@pytest.fixture(scope="session")
def llama_server(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that starts llama-server.

    The lab's build is for its nodes' Debian. If this machine's C library is older, it runs on that of the node's image.
    """
    architecture = os.uname().machine
    builds = sorted((CACHE / "llama.cpp").glob(f"build-*-{architecture}.tar.gz"), key=lambda path: path.stat().st_mtime)
    if not builds:
        pytest.skip(f"no llama.cpp: ~/.cache/bramble/llama.cpp has no build for {architecture}; the lab makes one")
    directory = tmp_path_factory.mktemp("llama.cpp")
    with tarfile.open(builds[-1]) as archive:
        archive.extractall(directory, filter="data")
    command = [str(directory / "bin" / "llama-server")]
    if not _runs(command):
        images = sorted((CACHE / "lab").glob("node-*.tar"), key=lambda path: path.stat().st_mtime)
        if not images:
            pytest.skip(f"no llama.cpp: {builds[-1].name} does not run here, and there is no image of a node")
        command = [*_loader(images[-1], directory / "libraries"), *command]
        if not _runs(command):
            pytest.skip(f"no llama.cpp: {builds[-1].name} runs neither on this machine nor with {images[-1].name}")
    return [*NICE, *command]


def _runs(command: list[str]) -> bool:
    return subprocess.run([*command, "--version"], capture_output=True, check=False).returncode == 0


def _loader(image: Path, directory: Path) -> list[str]:
    """The image's dynamic loader, with the C and C++ libraries beside it."""
    wanted = ("ld-linux-", "libc.so", "libm.so", "libstdc++.so", "libgcc_s.so", "libgomp.so")
    directory.mkdir()
    with tarfile.open(image) as archive:
        for member in archive:
            path = Path(member.name)
            if path.parent.name.endswith("-linux-gnu") and path.name.startswith(wanted):
                member.name = path.name
                archive.extract(member, directory, filter="data")
    loader = next(directory.glob("ld-linux-*"), directory / "ld-linux")
    return [str(loader), "--library-path", str(directory)]
