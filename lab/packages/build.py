#!/usr/bin/env python3
"""Builds what the lab's nodes install and download: emulated packages, a file server's files, an apt repository.

Usage: lab/packages/build.py GGUF ROOT

GGUF is the stand-in that the emulated Hailo-10H runs. Below ROOT, a root file system, it writes:

    usr/share/bramble-lab/apt/      an apt repository with the packages that the Raspberry Pi archive has
    usr/share/bramble-lab/files/    what is fetched by URL: the gen-AI model zoo's package, models, ollama's release
    etc/apt/sources.list.d/         the source that names the repository

The same inputs give the same bytes on each machine: archives are written here, uncompressed, with fixed times and
owners, so that no compressor's version is in them. Names, versions and relations of the packages: Raspberry Pi archive,
Debian trixie, 2026-09. Standard library only, Python >= 3.11.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import sys
import tarfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
# All files carry this time: 2026-01-01 00:00 UTC.
EPOCH = 1767225600
NOTE = "EMULATION for the lab of Bramble"
MAINTAINER = "Bramble's lab <lab@localhost>"

APT = "usr/share/bramble-lab/apt"
OLLAMA = "0.13.3"
FILES = "usr/share/bramble-lab/files"
SOURCE = f"""Types: deb
URIs: file:/{APT}
Suites: ./
Trusted: yes
"""

CHAT_TEMPLATE = (
    "{%- if tools %}\n    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<tools>' + (tools | tojson) + "
    "'</tools><|im_end|>\\n' }}\n{%- endif %}\n{%- for message in messages %}\n    {{- '<|im_start|>' + message.role + "
    "'\\n' + message.content + '<|im_end|>\\n' }}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    "
    "{{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n"
)
# name, tag, family, parameters: what 5.1.1 of the zoo has.
MODELS = (
    ("deepseek_r1_distill_qwen", "1.5b", "deepseek_r1_distill_qwen", "1.5B"),
    ("llama3.2", "3b", "llama3.2", "3B"),
    ("qwen2", "1.5b", "qwen2", "1.5B"),
    ("qwen2.5-coder", "1.5b", "qwen2.5-coder", "1.5B"),
    ("qwen2.5-instruct", "1.5b", "qwen2.5", "1.5B"),
)
# The model whose blob is the GGUF itself; the others have their name behind it, so that each is a file of its own.
PLAIN_MODEL = "qwen2.5-instruct:1.5b"


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a package or archive."""

    content: bytes
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class Package:
    """A Debian package; `fields` are more lines of its control file."""

    name: str
    version: str
    summary: str
    fields: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Entry] = field(default_factory=dict)
    scripts: Mapping[str, str] = field(default_factory=dict)
    conffiles: Sequence[str] = ()
    section: str = "misc"

    @property
    def filename(self) -> str:
        return f"{self.name}_{self.version}_all.deb"

    def control(self) -> str:
        size = sum(-(-len(entry.content) // 1024) for entry in self.files.values())
        lines = {
            "Package": self.name,
            "Version": self.version,
            "Architecture": "all",
            "Maintainer": MAINTAINER,
            "Installed-Size": str(size),
            **self.fields,
            "Section": self.section,
            "Priority": "optional",
            "Description": f"{self.summary} ({NOTE})\n No code of the vendor's is in this package.",
        }
        return "".join(f"{key}: {value}\n" for key, value in lines.items())

    def build(self) -> bytes:
        """The package's bytes: an ar archive of two tar archives, as deb(5) has it."""
        documentation = f"usr/share/doc/{self.name}/README.lab"
        files = {**self.files, documentation: Entry(f"{self.name} {self.version}: {NOTE}.\n".encode())}
        sums = "".join(
            f"{hashlib.md5(entry.content, usedforsecurity=False).hexdigest()}  {name}\n"
            for name, entry in sorted(files.items())
        )
        control = {"control": Entry(self.control().encode()), "md5sums": Entry(sums.encode())}
        control |= {name: Entry(text.encode(), 0o755) for name, text in self.scripts.items()}
        if self.conffiles:
            control["conffiles"] = Entry("".join(f"/{name}\n" for name in self.conffiles).encode())
        return ar([("debian-binary", b"2.0\n"), ("control.tar", tar(control)), ("data.tar", tar(files))])


def ar(members: Iterable[tuple[str, bytes]]) -> bytes:
    """An ar archive, as deb(5) wants it."""
    archive = b"!<arch>\n"
    for name, content in members:
        archive += f"{name:<16}{EPOCH:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content
        archive += b"\n" * (len(content) % 2)
    return archive


def tar(files: Mapping[str, Entry]) -> bytes:
    """A tar archive of root's files, with each directory before what it holds."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        seen: set[str] = set()
        for name, entry in sorted(files.items()):
            for parent in [".", *(f"./{path}" for path in reversed(Path(name).parents) if str(path) != ".")]:
                if parent not in seen:
                    seen.add(parent)
                    archive.addfile(_info(f"{parent}/", tarfile.DIRTYPE, 0o755, 0))
            archive.addfile(
                _info(f"./{name}", tarfile.REGTYPE, entry.mode, len(entry.content)), io.BytesIO(entry.content)
            )
    return buffer.getvalue()


def _info(name: str, kind: bytes, mode: int, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.size, info.mtime = kind, mode, size, EPOCH
    info.uname = info.gname = "root"
    return info


def gzip(content: bytes) -> bytes:
    """A gzip file of stored blocks (RFC 1951 3.2.4, RFC 1952)."""
    blocks = [content[start : start + 0xFFFF] for start in range(0, len(content), 0xFFFF)] or [b""]
    body = b"".join(
        struct.pack("<BHH", number == len(blocks), len(block), len(block) ^ 0xFFFF) + block
        for number, block in enumerate(blocks, 1)
    )
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + body + struct.pack("<II", zlib.crc32(content), len(content) & 0xFFFFFFFF)


def program(name: str, **replace: str) -> Entry:
    """A program beside this file, with @NAME@ replaced."""
    text = (HERE / name).read_text(encoding="utf-8")
    for key, value in replace.items():
        text = text.replace(f"@{key}@", value)
    return Entry(text.encode(), 0o755)


def driver(name: str, version: str, module: str, conflicts: str) -> Package:
    """A driver package: it notes its module, registers it with dkms, and lets modprobe call the emulation."""
    load = f"/usr/lib/bramble-lab/hardware load {module}"
    return Package(
        name,
        version,
        f"PCIe driver {module}",
        # The original depends on build-essential, which Raspberry Pi OS has from the start; nothing is compiled here.
        {"Conflicts": conflicts, "Replaces": conflicts},
        {
            "usr/src/hailort-pcie-driver/MODULE": Entry(f"{module} {version}\n".encode()),
            "usr/src/hailort-pcie-driver/README": Entry(f"{NOTE}: no source of a driver is here.\n".encode()),
            f"usr/src/{module}-{version}/dkms.conf": Entry(
                f'PACKAGE_NAME="{module}"\nPACKAGE_VERSION="{version}"\nBUILT_MODULE_NAME[0]="{module}"\n'
                'DEST_MODULE_LOCATION[0]="/updates/dkms"\nMAKE[0]="true"\nCLEAN="true"\nAUTOINSTALL="no"\n'.encode()
            ),
            f"usr/lib/modprobe.d/bramble-lab-{module}.conf": Entry(
                f"# {NOTE}: a container has no modules of its own.\n"
                f"install {module} {load}\nremove {module} /usr/lib/bramble-lab/hardware unload {module}\n".encode()
            ),
            "usr/lib/udev/rules.d/51-hailo-udev.rules": Entry(b'SUBSYSTEM=="hailo_chardev", MODE="0666"\n'),
        },
        {
            name: program(f"driver-{name}.sh", MODULE=module, VERSION=version).content.decode()
            for name in ("postinst", "prerm")
        },
        section="kernel",
    )


def runtime(name: str, version: str, conflicts: str) -> Package:
    """The library's package, with hailortcli. Programs that link the library look for its version in `libhailort`."""
    return Package(
        name,
        version,
        "HailoRT library and hailortcli",
        {"Depends": "python3", "Conflicts": conflicts, "Replaces": conflicts},
        {
            "usr/bin/hailortcli": program("hailortcli.py", VERSION=version),
            "usr/lib/bramble-lab/libhailort": Entry(f"{version}\n".encode()),
        },
        section="libs",
    )


def bindings(name: str, version: str, library: str, conflicts: str) -> Package:
    return Package(
        name,
        version,
        "Python bindings of HailoRT",
        {"Depends": f"python3, {library}", "Conflicts": conflicts, "Replaces": conflicts},
        {"usr/lib/python3/dist-packages/hailo_platform/__init__.py": Entry(program("hailo_platform.py").content)},
        section="python",
    )


def plain(
    name: str, version: str, summary: str, depends: str = "", files: Mapping[str, Entry] | None = None
) -> Package:
    return Package(name, version, summary, {"Depends": depends} if depends else {}, files or {})


def archive_packages() -> list[Package]:
    """What the Raspberry Pi archive has for Hailo, as of 2026-09."""
    return [
        Package(
            "hailo-h10-all",
            "5.1.1",
            "All that the AI HAT+ 2 needs",
            {
                "Depends": "h10-hailort (>= 5.1.1), hailo-tappas-core (>= 5.1.0), h10-hailort-pcie-driver (>= 5.1.1), "
                "rpicam-apps-hailo-postprocess (>= 1.10.0), python3-h10-hailort (>= 4.23.0), "
                "python3-hailo-tappas (>= 0:5.1.0)",
                "Conflicts": "hailo-all, hailo-meta",
                "Replaces": "hailo-all",
            },
        ),
        Package(
            "hailo-all",
            "5.1.1",
            "All that the AI Kit and the AI HAT+ need",
            {
                "Depends": "hailort (>= 4.23.0), hailo-tappas-core (>= 5.1.0), hailort-pcie-driver (>= 4.23.0), "
                "rpicam-apps-hailo-postprocess (>= 1.10.0), python3-hailort (>= 4.23.0), "
                "python3-hailo-tappas (>= 0:5.1.0)",
                "Conflicts": "hailo-h10-all, hailo-meta",
                "Replaces": "hailo-h10-all",
            },
        ),
        runtime("h10-hailort", "5.1.1", "hailort"),
        driver("h10-hailort-pcie-driver", "5.1.1", "hailo1x_pci", "hailort-pcie-driver"),
        bindings("python3-h10-hailort", "5.1.1-1", "h10-hailort (>= 5.1.1)", "python3-hailort"),
        runtime("hailort", "4.23.0", "h10-hailort"),
        driver("hailort-pcie-driver", "4.23.0", "hailo_pci", "h10-hailort-pcie-driver"),
        bindings("python3-hailort", "4.23.0-1", "hailort (>= 4.23.0)", "python3-h10-hailort"),
        plain("hailo-tappas-core", "5.1.0", "TAPPAS core"),
        plain("python3-hailo-tappas", "5.1.0", "Python bindings of TAPPAS", "python3, hailo-tappas-core (>= 5.1.0)"),
        plain(
            "hailo-models",
            "1.0.0-2",
            "Compiled vision models",
            files={"usr/share/hailo-models/yolov8m_h10.hef": Entry(f"{NOTE}: no model\n".encode())},
        ),
        plain("rpicam-apps-core", "1.13.0-1", "Camera programs' core"),
        plain(
            "rpicam-apps-hailo-postprocess",
            "1.13.0-1",
            "Camera stages for Hailo",
            "rpicam-apps-core (>= 1.13.0), hailo-tappas-core (>= 5.1.0), hailo-models",
        ),
    ]


def manifest(sha256: str, family: str, parameters: str) -> bytes:
    """A model's manifest with the keys of 5.1.1."""
    content = {
        "hef_h10h": sha256,
        "template_params": {"chat_template": CHAT_TEMPLATE, "bos_token": "", "eos_token": "<|im_end|>"},
        "generation_params": {
            "stop_tokens": ["<|im_end|>", "<|endoftext|>"],
            "repetition_penalty": 1.1,
            "temperature": 0.7,
            "top_p": 0.8,
            "top_k": 20,
            "frequency_penalty": 1.1,
        },
        "license": None,
        "system_prompt": None,
        "details": {
            "parent_model": "",
            "format": "hef",
            "family": family,
            "families": [family],
            "parameter_size": parameters,
            "quantization_level": "Q4_0",
        },
    }
    return json.dumps(content, indent=2).encode() + b"\n"


def zoo(blobs: Mapping[str, bytes]) -> Package:
    """The gen-AI model zoo's package: hailo-ollama, its configuration and the manifests of `blobs` (model → blob)."""
    files = {
        "usr/bin/hailo-ollama": program("hailo_ollama.py"),
        "etc/xdg/hailo-ollama/hailo-ollama.json": Entry(
            json.dumps(
                {
                    "server": {"host": "0.0.0.0", "port": 8000},
                    "library": {"host": "dev-public.hailo.ai", "port": 443},
                    "main_poll_time_ms": 200,
                },
                indent=4,
            ).encode()
            + b"\n"
        ),
    }
    for name, tag, family, parameters in MODELS:
        digest = hashlib.sha256(blobs[f"{name}:{tag}"]).hexdigest()
        path = f"usr/share/hailo-ollama/models/manifests/{name}/{tag}/manifest.json"
        files[path] = Entry(manifest(digest, family, parameters))
    return Package(
        "hailo-gen-ai-model-zoo",
        "5.1.1",
        "hailo-ollama and the manifests of its models",
        # The libraries of llama-server, which stands in for the processor.
        {"Depends": "python3, libgomp1, libstdc++6"},
        files,
        conffiles=["etc/xdg/hailo-ollama/hailo-ollama.json"],
    )


def repository(packages: Iterable[Package]) -> dict[str, bytes]:
    """A flat apt repository: the packages, the index and a Release file."""
    files: dict[str, bytes] = {}
    index = ""
    for package in sorted(packages, key=lambda package: package.name):
        content = package.build()
        files[package.filename] = content
        control = package.control()
        head, description = control[: control.index("Description:")], control[control.index("Description:") :]
        index += (
            f"{head}Filename: ./{package.filename}\nSize: {len(content)}\n"
            f"MD5sum: {hashlib.md5(content, usedforsecurity=False).hexdigest()}\n"
            f"SHA256: {hashlib.sha256(content).hexdigest()}\n{description}\n"
        )
    files["Packages"] = index.encode()
    files["Release"] = (
        f"Origin: {NOTE}\nLabel: {NOTE}\nSuite: stable\nDate: Thu, 01 Jan 2026 00:00:00 UTC\nArchitectures: all\n"
        f"SHA256:\n {hashlib.sha256(files['Packages']).hexdigest()} {len(files['Packages'])} Packages\n"
    ).encode()
    return files


def downloads(gguf: bytes) -> dict[str, bytes]:
    """The file server's files by their paths, SHA256SUMS among them."""
    blobs = {
        f"{name}:{tag}": gguf if f"{name}:{tag}" == PLAIN_MODEL else gguf + f"{name}:{tag}".encode()
        for name, tag, _, _ in MODELS
    }
    files = {f"blob/sha256_{hashlib.sha256(blob).hexdigest()}": blob for blob in blobs.values()}
    files["hailo_gen_ai_model_zoo_5.1.1_arm64.deb"] = zoo(blobs).build()
    # The release that the role installs, and its checksum beside it. The emulation runs on any architecture.
    release = tar({"bin/ollama": program("ollama.py")})
    for architecture in ("amd64", "arm64"):
        files[f"v{OLLAMA}/ollama-linux-{architecture}.tgz"] = gzip(release)
    files["ollama-model.gguf"] = gguf
    files["SHA256SUMS"] = "".join(
        f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(files.items())
    ).encode()
    return files


def build(gguf: bytes, root: Path) -> None:
    """Writes all of it below `root`."""
    files = {f"{APT}/{name}": content for name, content in repository(archive_packages()).items()}
    files |= {f"{FILES}/{name}": content for name, content in downloads(gguf).items()}
    files["etc/apt/sources.list.d/bramble-lab.sources"] = SOURCE.encode()
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o644)


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 2:
        print("usage: lab/packages/build.py GGUF ROOT", file=sys.stderr)
        return 2
    try:
        gguf = Path(arguments[0]).read_bytes()
        if gguf[:4] != b"GGUF":
            print(f"build.py: {arguments[0]} is no GGUF file", file=sys.stderr)
            return 1
        build(gguf, Path(arguments[1]))
    except OSError as error:
        print(f"build.py: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
