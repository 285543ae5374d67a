"""The lab's packages and downloads: their bytes, their relations, and the programs in them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from by_path import ROOT, load
from hypothesis import given
from hypothesis import strategies as st

build = load("lab/packages/build.py")
GGUF = b"GGUF" + bytes(range(256)) * 100
APT = "usr/share/bramble-lab/apt"
FILES = "usr/share/bramble-lab/files"
ZOO = f"{FILES}/hailo_gen_ai_model_zoo_5.1.1_arm64.deb"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system with all that the builder makes."""
    directory = tmp_path_factory.mktemp("root")
    (directory / "model.gguf").write_bytes(GGUF)
    done = run(sys.executable, ROOT / "lab/packages/build.py", directory / "model.gguf", directory)
    assert done.returncode == 0, done.stderr
    return directory


def field(deb: Path, name: str) -> str:
    done = run("dpkg-deb", "--field", deb, name)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_same_inputs_give_the_same_bytes(root: Path, tmp_path: Path) -> None:
    build.build(GGUF, tmp_path)
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert len(made) > 20
    for path in made:
        assert (tmp_path / path).read_bytes() == (root / path).read_bytes(), path


def test_the_index_has_each_package_and_its_hash(root: Path) -> None:
    index = (root / APT / "Packages").read_text()
    paragraphs = [dict(re.findall(r"^(\S+): (.*)$", text, re.M)) for text in index.strip().split("\n\n")]
    assert {p["Package"] for p in paragraphs} >= {"hailo-h10-all", "hailo-all", "h10-hailort", "hailo-models"}
    assert len(paragraphs) == len(list((root / APT).glob("*.deb")))
    for paragraph in paragraphs:
        deb = root / APT / paragraph["Filename"]
        assert sha256(deb.read_bytes()) == paragraph["SHA256"]
        assert deb.stat().st_size == int(paragraph["Size"])
        assert field(deb, "Package") == paragraph["Package"]
        assert field(deb, "Version") == paragraph["Version"]
        assert "EMULATION for the lab" in field(deb, "Description")
    assert "hailo-gen-ai-model-zoo" not in index
    release = (root / APT / "Release").read_text()
    assert f" {sha256(index.encode())} {len(index)} Packages\n" in release


def test_dpkg_unpacks_each_package(root: Path, tmp_path: Path) -> None:
    for deb in [*(root / APT).glob("*.deb"), root / ZOO]:
        done = run("dpkg-deb", "--extract", deb, tmp_path)
        assert done.returncode == 0, done.stderr
        control = run("dpkg-deb", "--control", deb, tmp_path / f"control-{deb.stem}")
        assert control.returncode == 0, control.stderr
    assert os.access(tmp_path / "usr/bin/hailortcli", os.X_OK)
    assert os.access(tmp_path / "usr/bin/hailo-ollama", os.X_OK)
    for script in tmp_path.glob("control-*/p*"):
        assert run("sh", "-n", script).returncode == 0


def test_the_two_lines_exclude_each_other(root: Path) -> None:
    for one, other in (
        ("hailo-h10-all_5.1.1", "hailo-all"),
        ("hailo-all_5.1.1", "hailo-h10-all"),
        ("h10-hailort_5.1.1", "hailort"),
        ("hailort_4.23.0", "h10-hailort"),
        ("h10-hailort-pcie-driver_5.1.1", "hailort-pcie-driver"),
        ("python3-h10-hailort_5.1.1-1", "python3-hailort"),
    ):
        assert other in field(root / APT / f"{one}_all.deb", "Conflicts").split(", ")
    # It is no dependency of the driver: whoever forgets it loses the module at the next kernel.
    assert "dkms" not in field(root / APT / "h10-hailort-pcie-driver_5.1.1_all.deb", "Depends")


def test_the_file_servers_sums(root: Path) -> None:
    lines = (root / FILES / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    there = {str(path.relative_to(root / FILES)) for path in (root / FILES).rglob("*") if path.is_file()}
    assert set(sums) == there - {"SHA256SUMS"}
    for name, digest in sums.items():
        assert sha256((root / FILES / name).read_bytes()) == digest


def test_each_manifest_names_a_blob_of_its_own(root: Path, tmp_path: Path) -> None:
    assert run("dpkg-deb", "--extract", root / ZOO, tmp_path).returncode == 0
    manifests = sorted((tmp_path / "usr/share/hailo-ollama/models/manifests").glob("*/*/manifest.json"))
    assert [f"{path.parent.parent.name}:{path.parent.name}" for path in manifests] == [
        "deepseek_r1_distill_qwen:1.5b",
        "llama3.2:3b",
        "qwen2:1.5b",
        "qwen2.5-coder:1.5b",
        "qwen2.5-instruct:1.5b",
    ]
    digests = [json.loads(path.read_text())["hef_h10h"] for path in manifests]
    assert len(set(digests)) == 5
    assert sha256(GGUF) in digests
    for digest in digests:
        assert sha256((root / FILES / f"blob/sha256_{digest}").read_bytes()) == digest
    config = json.loads((tmp_path / "etc/xdg/hailo-ollama/hailo-ollama.json").read_text())
    assert config["server"] == {"host": "0.0.0.0", "port": 8000}


@given(st.binary(max_size=300), st.sampled_from([0, 0xFFFF, 1 << 17, 200_000]))
def test_archives_can_be_read(content: bytes, more: int) -> None:
    content += bytes(more)
    assert gzip.decompress(build.gzip(content)) == content


def test_ollamas_release(root: Path) -> None:
    for architecture in ("amd64", "arm64"):
        plain = gzip.decompress((root / FILES / f"v{build.OLLAMA}/ollama-linux-{architecture}.tgz").read_bytes())
        with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
            member = archive.getmember("./bin/ollama")
            assert member.mode == 0o755
            assert (member.uid, member.uname, member.mtime) == (0, "root", build.EPOCH)


@pytest.mark.parametrize(("content", "message"), [(b"GGML", "is no GGUF file"), (None, "No such file or directory")])
def test_a_model_that_is_none(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "model").write_bytes(content)
    done = run(sys.executable, ROOT / "lab/packages/build.py", tmp_path / "model", tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_images_key_follows_what_is_in_it(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "lab", tmp_path / "lab", ignore=shutil.ignore_patterns("__pycache__"))
    model = tmp_path / "model"
    model.write_bytes(GGUF)

    def key() -> str:
        done = run(tmp_path / "lab/image.sh", "key", model)
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = key()
    (tmp_path / "lab/packages/__pycache__").mkdir()
    (tmp_path / "lab/packages/__pycache__/build.pyc").write_text("x")
    os.utime(model, (1, 1))
    assert key() == first
    model.write_bytes(GGUF + b"x")
    second = key()
    assert second != first
    with (tmp_path / "lab/packages/hailortcli.py").open("a") as file:
        file.write("# changed\n")
    assert key() not in (first, second)


# --- hailortcli

NOT_ENOUGH = (
    "[HailoRT] [error] Failed to create vdevice. there are not enough free devices. requested: 1, found: 0\n"
    "[HailoRT CLI] [error] CHECK_SUCCESS failed with status=HAILO_OUT_OF_PHYSICAL_DEVICES(74)\n"
)
IDENTIFIED = (
    "Executing on device: 0001:01:00.0\nIdentifying board\nControl Protocol Version: 2\n"
    "Firmware Version: 5.1.1 (release,app)\nLogger Version: 0\nDevice Architecture: HAILO10H\n\n"
)
SCANNED = "Hailo Devices:\n[-] Device: 0001:01:00.0\n"
NONE = "Hailo devices not found\n"


@pytest.fixture
def node(root: Path, tmp_path: Path) -> Path:
    """A node with the runtime's and the driver's packages, after its boot."""
    for name in ("h10-hailort", "h10-hailort-pcie-driver"):
        assert run("dpkg-deb", "--extract", root / APT / f"{name}_5.1.1_all.deb", tmp_path).returncode == 0
    (tmp_path / "proc/1").mkdir(parents=True)
    (tmp_path / "proc/1/environ").write_bytes(b"BRAMBLE_LAB_HAT=1\0")
    hardware(tmp_path, "boot")
    return tmp_path


def hardware(node: Path, *arguments: str) -> None:
    done = run(ROOT / "lab/hardware/lab_hardware.py", *arguments, BRAMBLE_LAB_ROOT=str(node))
    assert done.returncode == 0, done.stderr


def hailortcli(node: Path, *arguments: str) -> tuple[int, str, str]:
    done = run(sys.executable, node / "usr/bin/hailortcli", *arguments, BRAMBLE_LAB_ROOT=str(node))
    return done.returncode, done.stdout, done.stderr


def test_hailortcli(node: Path) -> None:
    assert hailortcli(node, "--version") == (0, "HailoRT-CLI version 5.1.1\n", "")
    assert hailortcli(node, "scan") == (0, SCANNED, "")
    assert hailortcli(node, "fw-control", "identify") == (0, IDENTIFIED, "")
    code, _, err = hailortcli(node, "run", "x.hef")
    assert code == 1
    assert 'The "run" command is not supported for this device type! Use "run2" instead.' in err
    code, out, _ = hailortcli(node, "benchmark", "x.hef")
    assert code == 0
    assert "Measurement power is not supported\n" in out
    assert "temperature: mean=33.74 min=31.85 max=34.69" in out
    assert hailortcli(node, "measure-power")[0] != 0


MISMATCH = "CHECK failed - Driver version (5.2.0) is different from library version (5.1.1)"


@pytest.mark.parametrize(
    ("fault", "scanned", "identified", "created"),
    [
        ("no-device", NONE, (0, "", ""), (74, NOT_ENOUGH)),
        ("device-lost", NONE, (36, "", "Device disconnected while opening device"), (36, "Device disconnected")),
        ("version-mismatch", SCANNED, (76, "", MISMATCH), (76, MISMATCH)),
        ("busy", SCANNED, (0, IDENTIFIED, ""), (74, NOT_ENOUGH)),
    ],
)
def test_hailortcli_at_fault(
    node: Path, fault: str, scanned: str, identified: tuple[int, str, str], created: tuple[int, str]
) -> None:
    hardware(node, "fault", fault)
    assert hailortcli(node, "scan") == (0, scanned, "")
    code, out, err = hailortcli(node, "fw-control", "identify")
    assert (code, out) == identified[:2]
    assert identified[2] in err
    code, _, err = hailortcli(node, "run2", "set-net", "x.hef")
    assert code == created[0]
    assert created[1] in err
    hardware(node, "mend")
    assert hailortcli(node, "fw-control", "identify") == (0, IDENTIFIED, "")


def test_without_a_loaded_driver_there_is_no_device(node: Path) -> None:
    hardware(node, "unload", "hailo1x_pci")
    assert hailortcli(node, "scan") == (0, NONE, "")
    assert hailortcli(node, "fw-control", "identify") == (0, "", "")


def test_one_program_at_a_time_has_the_processor(node: Path) -> None:
    flock = shutil.which("flock")
    assert flock is not None
    lock = node / "run/bramble-lab/npu.lock"
    held = run(flock, lock, sys.executable, node / "usr/bin/hailortcli", "benchmark", "x", BRAMBLE_LAB_ROOT=str(node))
    assert (held.returncode, held.stderr) == (74, NOT_ENOUGH)
