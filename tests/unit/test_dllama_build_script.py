"""The build of distributed-llama with tools that only pretend: what it asks of them, refuses and leaves."""

import hashlib
import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from by_path import ROOT

FILES = ROOT / "roles/distributed_llama/files"
TARGETS = ["dllama", "dllama-api"]
FLAGS = "-std=c++11 -O3 -mcpu=cortex-a76"

# As objdump prints them; empty lines as it has them.
SDOT = "\n0000000000001000 <f>:\n    1000:\tsdot\tv0.4s, v1.16b, v2.16b\n    1004:\tret\n\n"
SMMLA = SDOT + "    1008:\tsmmla\tv0.4s, v1.16b, v2.16b\n"
PLAIN_ARM = "\n    1000:\tfmla\tv0.4s, v1.4s, v2.4s\n"
AVX2 = "\n    1000:\tvfmadd231ps %ymm1,%ymm2,%ymm0\n"
AVX512 = AVX2 + "    1008:\tvaddps %zmm1,%zmm2,%zmm0\n"

MAKE = r"""#!/bin/sh
printf '%s\n' "$@" >"$STUBS/make.arguments"
[ ! -e "$STUBS/broken" ] || { echo "src/app.cpp:1:1: error: expected identifier"; exit 2; }
for target in dllama dllama-api; do echo "binary of $target" >"source/$target"; done
"""
TOOLS = {
    "make": MAKE,
    "strip": '#!/bin/sh\ncp "$3" "$2"\n',
    # As if only the second program lacked what the first one has.
    "objdump": '#!/bin/sh\nf="$STUBS/disassembly.$(basename "$3")"; [ -f "$f" ] || f="$STUBS/disassembly"; cat "$f"\n',
    "g++": "#!/bin/sh\n[ \"$1\" = --version ] && echo 'g++ (Debian 14.2.0-19) 14.2.0' || touch keepalive.o\n",
}


class Build:
    """A build directory as the role lays it out, and the stubs on PATH."""

    def __init__(self, root: Path) -> None:
        self.directory, self.stubs = root / "build-key", root / "stubs"
        self.directory.mkdir()
        self.stubs.mkdir()
        with tarfile.open(self.directory / "source.tar.gz", "w:gz") as tar:
            tar.addfile(tarfile.TarInfo("distributed-llama/Makefile"), io.BytesIO())
        for name, text in TOOLS.items():
            (self.stubs / name).write_text(text)
            (self.stubs / name).chmod(0o755)

    def run(self, disassembly: str, processor: str = "aarch64") -> subprocess.CompletedProcess[str]:
        (self.stubs / "disassembly").write_text(disassembly)
        return subprocess.run(
            ["sh", str(FILES / "build.sh"), str(self.directory), '{"key": "k"}', "3"],
            capture_output=True,
            text=True,
            check=False,
            env={
                "PATH": f"{self.stubs}:{os.environ['PATH']}",
                "STUBS": str(self.stubs),
                "PROCESSOR": processor,
                "FLAGS": FLAGS,
                "TARGETS": " ".join(TARGETS),
            },
        )

    @property
    def archive(self) -> Path:
        return self.directory / "build.tar.gz"


@pytest.fixture
def build(tmp_path: Path) -> Build:
    return Build(tmp_path)


def test_a_build(build: Build) -> None:
    done = build.run(SDOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with tarfile.open(build.archive) as tar:
        files = {m.name: tar.extractfile(m).read() for m in tar if m.isreg()}  # type: ignore[union-attr]
    assert json.loads(files["./build.json"]) == {
        "key": "k",
        "compiler": "g++ (Debian 14.2.0-19) 14.2.0",
        "instructions": {"wanted": 2, "beyond": 0},
        "sha256": {target: hashlib.sha256(files[f"./bin/{target}"]).hexdigest() for target in TARGETS},
    }
    # The Makefile's own flags would say -march=native.
    assert (build.stubs / "make.arguments").read_text().splitlines() == [
        *("-C", "source", "-j", "3", "CXX=g++", f"CXXFLAGS={FLAGS}"),
        f"LIBS=-lpthread {build.directory}/keepalive.o -Wl,--wrap=accept,--wrap=connect",
        *TARGETS,
    ]


@pytest.mark.parametrize(
    ("processor", "disassembly", "message"),
    [
        ("aarch64", PLAIN_ARM, "dllama lacks the instructions of its processor"),
        ("aarch64", "", "dllama lacks the instructions of its processor"),
        ("aarch64", SMMLA, "dllama has 1 instructions beyond its processor"),
        ("x86_64", SDOT, "dllama lacks the instructions of its processor"),
        ("x86_64", AVX512, "dllama has 1 instructions beyond its processor"),
    ],
)
def test_a_binary_for_another_processor_is_refused(
    build: Build, processor: str, disassembly: str, message: str
) -> None:
    done = build.run(disassembly, processor)
    assert done.returncode == 1
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
    assert not build.archive.exists()


def test_each_binary_is_looked_at(build: Build) -> None:
    (build.stubs / "disassembly.dllama-api").write_text(PLAIN_ARM)
    done = build.run(SDOT)
    assert (done.returncode, done.stderr.startswith("dllama-api lacks")) == (1, True)


@pytest.mark.parametrize(("processor", "disassembly"), [("x86_64", AVX2), ("riscv64", "\n  10:\tret\n\n")])
def test_other_processors(build: Build, processor: str, disassembly: str) -> None:
    done = build.run(disassembly, processor)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_the_compiler_said_is_shown(build: Build) -> None:
    (build.stubs / "broken").touch()
    done = build.run(SDOT)
    assert (done.returncode, done.stderr) == (1, "src/app.cpp:1:1: error: expected identifier\n")
    assert not build.archive.exists()


def test_a_build_that_was_cut_off_goes_on(build: Build) -> None:
    (build.directory / "source.part").mkdir()
    (build.directory / "source.part" / "half").touch()
    done = build.run(SDOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (build.directory / "source" / "half").exists()
