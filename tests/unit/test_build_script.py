"""The build of llama.cpp with tools that only pretend: what it asks of them, what it refuses, what it leaves."""

import fcntl
import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from by_path import ROOT

SCRIPT = ROOT / "roles/llama_cpp/files/build.sh"
RECIPE = {"commit": "0c1e57098", "options": {"GGML_RPC": "ON"}, "key": "0c1e57098-0123456789"}
TARGETS = ["ggml-rpc-server", "llama-server"]
OPTIONS = ["-DGGML_RPC=ON", "-DCMAKE_C_FLAGS=-mtune=cortex-a76 -g0"]

# Each prints what the real one would of a binary; empty lines as objdump has them.
SDOT = "\n0000000000001000 <f>:\n    1000:\tsdot\tv0.4s, v1.16b, v2.16b\n    1004:\tret\n\n"
SMMLA = SDOT + "    1008:\tsmmla\tv0.4s, v1.16b, v2.16b\n"
PLAIN_ARM = "\n    1000:\tfmla\tv0.4s, v1.4s, v2.4s\n"
AVX2 = "\n    1000:\tvfmadd231ps %ymm1,%ymm2,%ymm0\n"
SSE = "\n    1000:\tmulps  %xmm1,%xmm0\n"
AVX512 = AVX2 + "    1008:\tvaddps %zmm1,%zmm2,%zmm0\n"

CMAKE = r"""#!/bin/sh
printf '%s\n' "$@" >>"$STUBS/cmake.arguments"
case $1 in
--build)
    # Cut off, as by a lost connection, in the middle of the compiling.
    if [ -e "$STUBS/cut" ]; then
        rm "$STUBS/cut"
        kill -KILL "$PPID"
        exit 1
    fi
    if [ -e "$STUBS/broken" ]; then
        echo "ggml.c:1:1: error: expected identifier"
        exit 2
    fi
    mkdir -p build/bin
    while [ "$1" != --target ]; do shift; done
    shift
    for target; do echo "binary of $target" >"build/bin/$target"; done
    ;;
*) cat source/CMakeLists.txt >/dev/null && mkdir -p build ;;
esac
"""
STRIP = '#!/bin/sh\ncp "$3" "$2"\n'
OBJDUMP = '#!/bin/sh\n[ -f "$3" ] && cat "$STUBS/disassembly"\n'
COMPILER = "#!/bin/sh\necho 'g++ (Debian 14.2.0-19) 14.2.0'\necho 'Copyright'\n"


class Build:
    """A build directory as the role lays it out, and the stubs on PATH."""

    def __init__(self, root: Path) -> None:
        self.directory = root / "build-key"
        self.stubs = root / "stubs"
        self.directory.mkdir()
        self.stubs.mkdir()
        with tarfile.open(self.directory / "source.tar.gz", "w:gz") as tar:
            member = tarfile.TarInfo("llama.cpp/CMakeLists.txt")
            tar.addfile(member, io.BytesIO())

    def stub(self, cross: str = "") -> None:
        programs = {
            "cmake": CMAKE,
            f"{cross}strip": STRIP,
            f"{cross}objdump": OBJDUMP,
            f"{cross}g++": COMPILER,
        }
        for name, text in programs.items():
            (self.stubs / name).write_text(text)
            (self.stubs / name).chmod(0o755)

    def start(
        self, disassembly: str, processor: str = "aarch64", cross: str = "", jobs: int = 3
    ) -> subprocess.Popen[str]:
        (self.stubs / "disassembly").write_text(disassembly)
        (self.stubs / "cmake.arguments").unlink(missing_ok=True)
        return subprocess.Popen(
            ["sh", str(SCRIPT), str(self.directory), json.dumps(RECIPE), str(jobs)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                "PATH": f"{self.stubs}:{os.environ['PATH']}",
                "STUBS": str(self.stubs),
                "CROSS": cross,
                "PROCESSOR": processor,
                "OPTIONS": "\n".join(OPTIONS),
                "TARGETS": " ".join(TARGETS),
            },
        )

    def run(self, disassembly: str, *arguments: Any, **settings: Any) -> subprocess.CompletedProcess[str]:
        process = self.start(disassembly, *arguments, **settings)
        stdout, stderr = process.communicate(timeout=30)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def cmake_arguments(self) -> list[str]:
        return (self.stubs / "cmake.arguments").read_text().splitlines()

    @property
    def archive(self) -> Path:
        return self.directory / "build.tar.gz"

    def packed(self) -> dict[str, bytes]:
        """The files of the release."""
        with tarfile.open(self.archive) as tar:
            return {m.name: tar.extractfile(m).read() for m in tar if m.isreg()}  # type: ignore[union-attr]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    build = Build(tmp_path)
    build.stub()
    return build


def test_a_build(build: Build) -> None:
    done = build.run(SDOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    files = build.packed()
    assert set(files) == {"./build.json", "./bin/ggml-rpc-server", "./bin/llama-server"}
    assert json.loads(files["./build.json"]) == {
        **RECIPE,
        "compiler": "g++ (Debian 14.2.0-19) 14.2.0",
        "instructions": {"wanted": 1, "beyond": 0},
        "sha256": {target: hashlib.sha256(files[f"./bin/{target}"]).hexdigest() for target in TARGETS},
    }
    # Options with a space in them stay one argument.
    assert build.cmake_arguments() == (
        ["-S", "source", "-B", "build", *OPTIONS, "--build", "build", "--parallel", "3", "--target", *TARGETS]
    )


def test_one_job_per_core(build: Build) -> None:
    assert build.run(SDOT, jobs=0).returncode == 0
    arguments = build.cmake_arguments()
    cores = subprocess.run(["nproc"], capture_output=True, text=True, check=True).stdout.strip()
    assert arguments[arguments.index("--parallel") + 1] == cores


def test_a_cross_build_uses_the_cross_tools(tmp_path: Path) -> None:
    build = Build(tmp_path)
    build.stub("aarch64-test-gnu-")
    done = build.run(SDOT, cross="aarch64-test-gnu-")
    assert (done.returncode, done.stderr) == (0, "")
    assert {
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        "-DCMAKE_C_COMPILER=aarch64-test-gnu-gcc",
        "-DCMAKE_CXX_COMPILER=aarch64-test-gnu-g++",
    } < set(build.cmake_arguments())


def test_a_cross_compiler_that_is_not_there(build: Build) -> None:
    done = build.run(SDOT, cross="riscv64-test-gnu-")
    assert done.returncode == 1
    assert done.stderr == "no riscv64-test-gnu-g++ here: install it (Debian: g++-riscv64-test-gnu)\n"


@pytest.mark.parametrize(
    ("processor", "disassembly", "message"),
    [
        ("aarch64", PLAIN_ARM, "the build lacks the instructions of its processor"),
        ("aarch64", SMMLA, "the build has 1 instructions beyond its processor"),
        ("x86_64", SSE, "the build lacks the instructions of its processor"),
        ("x86_64", AVX512, "the build has 1 instructions beyond its processor"),
        ("aarch64", "", "the build lacks the instructions of its processor"),
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


@pytest.mark.parametrize(("processor", "disassembly"), [("x86_64", AVX2), ("riscv64", "\n  10:\tret\n\n")])
def test_other_processors(build: Build, processor: str, disassembly: str) -> None:
    done = build.run(disassembly, processor)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(build.packed()["./build.json"])["instructions"] == {"wanted": 1, "beyond": 0}


def test_what_the_compiler_said_is_shown(build: Build) -> None:
    (build.stubs / "broken").touch()
    done = build.run(SDOT)
    assert done.returncode == 1
    assert done.stderr == "ggml.c:1:1: error: expected identifier\n"
    assert not build.archive.exists()


def test_a_build_that_was_cut_off_while_it_compiled_goes_on(build: Build) -> None:
    (build.stubs / "cut").touch()
    assert build.run(SDOT).returncode == -9
    assert not build.archive.exists()
    done = build.run(SDOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert "./bin/llama-server" in build.packed()


def test_a_build_that_was_cut_off_while_it_unpacked_goes_on(build: Build) -> None:
    (build.directory / "source.part").mkdir()
    (build.directory / "source.part" / "half").touch()
    done = build.run(SDOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in (build.directory / "source").iterdir()) == ["CMakeLists.txt"]


def test_a_build_waits_for_a_compiler_that_is_still_at_work(build: Build) -> None:
    """The compiler of a run that was cut off holds the lock that it inherited; here the test does."""
    with (build.directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # /proc/locks marks those who wait with an arrow: proc_locks(5).
        waiting = re.compile(rf"-> FLOCK .*:{os.fstat(lock.fileno()).st_ino} ")
        process = build.start(SDOT)
        deadline = time.monotonic() + 10
        while not waiting.search(Path("/proc/locks").read_text()):
            assert process.poll() is None, "it did not wait"
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 0
    assert build.archive.exists()
