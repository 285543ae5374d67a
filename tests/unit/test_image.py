"""First-boot settings: what is written, where, and that it is read as it was meant."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tomllib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bramble import image as i
from bramble.cli.app import CliError
from bramble.cli.image import image
from bramble.secret import Secret
from bramble.ssh_keys import PublicKey, SshError, parse_public_key

BLOB = b"\x00\x00\x00\x0bssh-ed25519" + b"\x00\x00\x00\x20" + b"k" * 32
KEY = PublicKey("ssh-ed25519", BLOB, "owner@desk")
HASH = "$6$saltsalt$" + "h" * 86

# As pi-gen writes them (stage1/00-boot-files, stage2/04-cloud-init), shortened.
CMDLINE = (
    b"console=serial0,115200 console=tty1 root=PARTUUID=4d3ee428-02 rootfstype=ext4 fsck.repair=yes rootwait resize\n"
)
TRIXIE: dict[str, bytes] = {
    "config.txt": b"dtparam=audio=on\n",
    "cmdline.txt": CMDLINE,
    "issue.txt": b"Raspberry Pi reference 2026-06-18\nGenerated using pi-gen\n",
    "user-data": b"#cloud-config\n\n# This is the user-data configuration file\n#hostname: raspberrypi\n",
    "meta-data": b"# the meta-data\ndsmode: local\n\ninstance_id: rpios-image\n",
    "network-config": b"#network:\n#  version: 2\n",
}
BOOKWORM: dict[str, bytes] = {
    "config.txt": b"",
    "cmdline.txt": CMDLINE.replace(b"resize", b"quiet init=/usr/lib/raspberrypi-sys-mods/firstboot"),
    "issue.txt": b"Raspberry Pi reference 2025-05-13\n",
}
WANTED = i.FirstBoot(
    "pi1", "pi", (KEY,), timezone="Europe/Berlin", locale="de_DE.UTF-8", keyboard="de", wifi_country="DE"
)
FIXED = replace(WANTED, static=i.parse_static("192.168.1.11", "192.168.1.1/24"))


def written(files: dict[str, bytes], wanted: i.FirstBoot = WANTED, **options: Any) -> dict[str, bytes]:
    """The boot partition after the plan."""
    return {**files, **i.plan(files, wanted, **options).files}


# --- cloud-init


def test_cloud_init_gets_the_settings() -> None:
    after = written(TRIXIE)
    assert after["user-data"].startswith(b"#cloud-config\n")
    data = yaml.safe_load(after["user-data"])
    assert data == {
        "hostname": "pi1",
        "manage_etc_hosts": "localhost",
        "user": {
            "name": "pi",
            "shell": "/bin/bash",
            "lock_passwd": True,
            "ssh_authorized_keys": [f"ssh-ed25519 {KEY.encoded} owner@desk"],
            "sudo": "ALL=(ALL) NOPASSWD:ALL",
        },
        "ssh_pwauth": False,
        "timezone": "Europe/Berlin",
        "locale": "de_DE.UTF-8",
        "keyboard": {"model": "pc105", "layout": "de"},
        "write_files": [
            {
                "path": "/etc/sudoers.d/010_pi-nopasswd",
                "content": "pi ALL=(ALL) NOPASSWD: ALL\n",
                "owner": "root:root",
                "permissions": "0440",
            }
        ],
        "runcmd": [["usermod", "--shell", "/bin/bash", "pi"], ["systemctl", "enable", "--now", "ssh"]],
    }
    meta = yaml.safe_load(after["meta-data"])
    assert after["cmdline.txt"] == CMDLINE.replace(
        b"\n", f" cfg80211.ieee80211_regdom=DE ds=nocloud;i={meta['instance-id']}\n".encode()
    )
    assert after["network-config"] == TRIXIE["network-config"]


def test_a_password_is_a_hash_and_sudo_may_ask_for_it() -> None:
    data = yaml.safe_load(written(TRIXIE, replace(WANTED, password_hash=HASH, passwordless_sudo=False))["user-data"])
    assert (data["user"]["hashed_passwd"], data["user"]["lock_passwd"], data["user"]["sudo"]) == (HASH, False, None)
    assert "write_files" not in data
    assert data["ssh_pwauth"] is False


def test_a_fixed_address_is_netplans() -> None:
    after = written(TRIXIE, FIXED)
    assert yaml.safe_load(after["network-config"])["network"] == {
        "version": 2,
        "ethernets": {
            "eth0": {
                "dhcp4": False,
                "addresses": ["192.168.1.11/24"],
                "routes": [{"to": "default", "via": "192.168.1.1"}],
                "nameservers": {"addresses": ["192.168.1.1"]},
                "optional": True,
            }
        },
    }
    # Without it again: our file says nothing any more, and the instance is another.
    back = written(after)
    assert yaml.safe_load(back["network-config"]) is None
    assert back["meta-data"] != after["meta-data"]


def test_a_second_time_nothing_changes_and_other_settings_are_another_instance() -> None:
    after = written(TRIXIE, FIXED)
    assert i.plan(after, FIXED).changed == ()
    other = i.plan(after, replace(FIXED, hostname="pi2"))
    assert other.changed == ("user-data", "meta-data", "cmdline.txt")
    assert other.files["cmdline.txt"].count(b"ds=nocloud") == 1


# --- custom.toml


def test_custom_toml_gets_the_settings() -> None:
    planned = i.plan(BOOKWORM, replace(WANTED, password_hash=HASH))
    assert planned.detected.format == "custom.toml"
    assert "2025-05-13" in planned.detected.why
    assert tomllib.loads(planned.files["custom.toml"].decode()) == {
        "config_version": 1,
        "system": {"hostname": "pi1"},
        "user": {"name": "pi", "password": HASH, "password_encrypted": True},
        "ssh": {"enabled": True, "password_authentication": False, "authorized_keys": [i.authorized_line(KEY)]},
        "locale": {"keymap": "de", "timezone": "Europe/Berlin"},
    }
    assert planned.files["cmdline.txt"].endswith(b"/firstboot cfg80211.ieee80211_regdom=DE\n")
    assert planned.notes == ("custom.toml knows no locale: the node keeps the image's.",)
    assert i.plan(written(BOOKWORM), WANTED).changed == ()


def test_what_custom_toml_cannot_do_is_told() -> None:
    with pytest.raises(i.ImageError, match=r"custom\.toml, which knows no fixed address"):
        i.plan(BOOKWORM, FIXED)


# --- Which it is


def without(files: dict[str, bytes], *names: str) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if name not in names}


UNFIT = [
    ({}, "There is no config.txt and no cmdline.txt"),
    (without(TRIXIE, "cmdline.txt"), "There is no cmdline.txt"),
    (without(TRIXIE, "user-data"), r"Nothing here reads first-boot settings \(image of 2026-06-18\)"),
    (without(TRIXIE, "meta-data"), "Nothing here reads first-boot settings"),
    ({**BOOKWORM, "cmdline.txt": CMDLINE}, "this card has booted before"),
    ({**TRIXIE, "firstrun.sh": b"#!/bin/sh\n"}, "Imager has left settings"),
    (
        {**BOOKWORM, "cmdline.txt": BOOKWORM["cmdline.txt"] + b"systemd.run=/boot/firstrun.sh"},
        "Imager has left settings",
    ),
]


@pytest.mark.parametrize(("files", "message"), UNFIT)
def test_a_partition_that_reads_nothing_is_refused(files: dict[str, bytes], message: str) -> None:
    with pytest.raises(i.ImageError, match=message):
        i.plan(files, WANTED, force=True)


FOREIGN = [
    ({"user-data": b"#cloud-config\nhostname: theirs\n"}, "user-data"),
    ({"meta-data": b"instance-id: rpi-imager-1764547200000\n"}, "meta-data"),
    ({"network-config": b"network:\n  version: 2\n"}, "network-config"),
    ({"user-data": b"\xff\xfe: ["}, "user-data"),
    ({"user-data": b"#!/bin/sh\necho"}, "user-data"),
    ({"user-data": b"!!bool x"}, "user-data"),
    ({"user-data": b"!!timestamp x"}, "user-data"),
    ({"user-data": b"[" * 5000}, "user-data"),
    # The marker in a value, and not in the first lines, does not make it ours.
    ({"user-data": b"#cloud-config\na: 1\n# Written by `bramble image`.\n"}, "user-data"),
]


@pytest.mark.parametrize(("files", "name"), FOREIGN)
def test_files_of_others_are_kept(files: dict[str, bytes], name: str) -> None:
    with pytest.raises(i.ImageError, match=f"{name} has been filled in by somebody else"):
        i.plan({**TRIXIE, **files}, FIXED)
    assert name in i.plan({**TRIXIE, **files}, FIXED, force=True).changed


# --- Values


WRONG = [
    ({"hostname": "Pi1"}, "hostname"),
    ({"hostname": "-pi"}, "hostname"),
    ({"hostname": "p" * 64}, "hostname"),
    ({"hostname": "pi1\n"}, "hostname"),
    ({"hostname": ""}, "hostname"),
    ({"user": "root"}, "user"),
    ({"user": "pi ALL"}, "user"),
    ({"user": "../x"}, "user"),
    ({"timezone": "Europe/Berlim"}, "did you mean Europe/Berlin"),
    ({"timezone": "../../etc/passwd"}, "timezone"),
    ({"locale": "de_DE"}, "locale"),
    ({"keyboard": "de;reboot"}, "keyboard"),
    ({"wifi_country": "de"}, "wifi country"),
    ({"wifi_country": "DE init=/bin/sh"}, "wifi country"),
    ({"password_hash": "secret"}, "password hash"),
    ({"keys": ()}, "no public key"),
    ({"passwordless_sudo": False}, "sudo would ask pi for a password"),
]


@pytest.mark.parametrize(("values", "message"), WRONG)
def test_values_that_a_first_boot_would_stumble_over_are_refused(values: dict[str, Any], message: str) -> None:
    for files in (TRIXIE, BOOKWORM):
        with pytest.raises(i.ImageError, match=message) as error:
            i.plan(files, replace(WANTED, **values))
        assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("address", "gateway"),
    [
        ("192.168.1.11", "192.168.1.1"),
        ("192.168.1.11", "192.168.1.1/33"),
        ("192.168.1.11", "192.168.1.1/-1"),
        ("pi1", "192.168.1.1/24"),
        ("192.168.1.11", "10.0.0.1/24"),
        ("192.168.1.1", "192.168.1.1/24"),
        ("192.168.1.0", "192.168.1.1/24"),
        ("192.168.1.255", "192.168.1.1/24"),
        ("fe80::1", "fe80::2/64"),
    ],
)
def test_addresses_that_cannot_work_are_refused(address: str, gateway: str) -> None:
    with pytest.raises(i.ImageError):
        i.check(replace(WANTED, static=i.parse_static(address, gateway)))


@given(st.text(), st.text())
def test_no_address_ends_in_a_traceback(address: str, gateway: str) -> None:
    with pytest.raises(i.ImageError):
        i.parse_static(address, gateway)


printable = st.text(st.characters(exclude_categories=["C", "Z"]) | st.just(" "))


@given(printable)
def test_a_keys_comment_breaks_out_of_nothing(comment: str) -> None:
    line = f"ssh-ed25519 {KEY.encoded} {comment}"
    try:
        key = parse_public_key(line)
    except SshError:
        return
    wanted = replace(WANTED, keys=(key, KEY))
    user = yaml.safe_load(written(TRIXIE, wanted)["user-data"])
    toml = tomllib.loads(written(BOOKWORM, wanted)["custom.toml"].decode())
    lines = [i.authorized_line(each) for each in (key, KEY)]
    assert user["user"]["ssh_authorized_keys"] == toml["ssh"]["authorized_keys"] == lines
    assert parse_public_key(lines[0]).blob == KEY.blob
    # A shell script of the image gives it to `echo`.
    assert "\\" not in lines[0]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_yaml_and_toml(text: str) -> None:
    assert tomllib.loads(f"a = {i.toml_value([text, text])}\nb = {i.toml_value(True)}\n") == {
        "a": [text, text],
        "b": True,
    }
    assert yaml.safe_load(i.dump_yaml({"a": text, "b": [text]})) == {"a": text, "b": [text]}


@given(st.binary())
@settings(max_examples=40)
def test_no_partition_ends_in_a_traceback(content: bytes) -> None:
    for files in (TRIXIE, BOOKWORM):
        for name in [*files, "custom.toml"]:
            with suppress(i.ImageError):
                i.plan({**files, name: content}, WANTED)


@given(
    st.lists(st.from_regex(r"[a-z]+(\.[a-z]+)?(=[a-z0-9,;/-]*)?", fullmatch=True)), st.sampled_from(["", "\n", "\nx\n"])
)
def test_the_command_line_keeps_all_else(words: list[str], end: str) -> None:
    words = [word for word in words if not word.startswith("ds=nocloud")]
    before = " ".join(words) + end
    once = i.edit_cmdline(before, {"ds=nocloud": "ds=nocloud;i=1"})
    assert once.split("\n")[0].split() == [*words, "ds=nocloud;i=1"]
    assert once.endswith(end)
    assert i.edit_cmdline(once, {"ds=nocloud": "ds=nocloud;i=1"}) == once
    twice = i.edit_cmdline(once, {"ds=nocloud": "ds=nocloud;i=2"})
    assert twice.split("\n")[0].split() == [*words, "ds=nocloud;i=2"]


def test_the_hash_is_one_that_linux_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    made = i.hash_password(Secret("correct horse"))
    salt = made.split("$")[2]
    known = subprocess.run(
        ["openssl", "passwd", "-6", "-salt", salt, "-stdin"],
        input="correct horse",
        text=True,
        capture_output=True,
        check=True,
    )
    assert known.stdout.strip() == made
    i.check(replace(WANTED, password_hash=made))
    for wrong in ("", "two\nlines"):
        with pytest.raises(i.ImageError):
            i.hash_password(Secret(wrong))
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(i.ImageError, match="install the package openssl"):
        i.hash_password(Secret("correct horse"))


def test_the_diff_shows_no_hash() -> None:
    planned = i.plan(TRIXIE, replace(WANTED, password_hash=HASH))
    shown = i.diff(TRIXIE, planned)
    assert "+hostname: pi1" in shown
    assert HASH not in shown
    assert "$6$…" in shown


# --- Where


def test_a_mounted_partition(tmp_path: Path) -> None:
    for name, content in TRIXIE.items():
        (tmp_path / name).write_bytes(content)
    boot = i.open_boot(tmp_path)
    planned = i.plan(i.read_all(boot), FIXED)
    i.apply(boot, planned)
    assert i.read_all(boot) == {**TRIXIE, **planned.files}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({**TRIXIE, **planned.files})
    assert i.plan(i.read_all(boot), FIXED).changed == ()


def test_a_partition_that_loses_what_is_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in TRIXIE.items():
        (tmp_path / name).write_bytes(content)
    boot = i.MountedBoot(tmp_path)
    planned = i.plan(i.read_all(boot), WANTED)
    monkeypatch.setattr(i.MountedBoot, "write", lambda *_: None)
    with pytest.raises(i.ImageError, match="is not what was just written"):
        i.apply(boot, planned)


def refusals(directory: Path) -> dict[str, tuple[Path, str]]:
    """Kinds of targets that must not be written to."""
    os.mkfifo(directory / "pipe")
    (directory / "link").symlink_to("/dev/null")
    (directory / "shm").symlink_to("/dev/shm")
    (directory / "loop").symlink_to("loop")
    (directory / "os.img.xz").write_bytes(b"")
    (directory / "empty.img").write_bytes(b"")
    return {
        "device": (Path("/dev/null"), "Bramble writes to none"),
        "link to a device": (directory / "link", "a link to /dev/null, a device"),
        "under /dev": (Path("/dev/shm"), "Bramble writes to none"),
        "link to under /dev": (directory / "shm", "Bramble writes to none"),
        "by ..": (Path("/dev/../dev/null"), "Bramble writes to none"),
        "pipe": (directory / "pipe", "neither a directory nor a file"),
        "circle": (directory / "loop", "cannot be opened"),
        "gone": (directory / "gone", "cannot be opened"),
        "packed": (directory / "os.img.xz", "unxz --keep"),
        "empty": (directory / "empty.img", "has no partition table"),
    }


@pytest.mark.parametrize(
    "kind",
    [
        "device",
        "link to a device",
        "under /dev",
        "link to under /dev",
        "by ..",
        "pipe",
        "circle",
        "gone",
        "packed",
        "empty",
    ],
)
def test_what_is_no_card_is_refused(tmp_path: Path, kind: str) -> None:
    path, message = refusals(tmp_path)[kind]
    with pytest.raises(i.ImageError, match=message):
        i.open_boot(path)


def test_this_machines_own_boot_partition_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    link = tmp_path / "boot"
    link.symlink_to("/boot")
    if Path("/boot").is_dir():
        with pytest.raises(i.ImageError, match="of this machine itself"):
            i.open_boot(link)


def test_a_block_device_outside_dev_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    node = tmp_path / "mmcblk0"
    try:
        os.mknod(node, 0o600 | 0o060000, os.makedev(7, 250))
    except PermissionError:
        pytest.skip("only root makes device nodes")
    with pytest.raises(i.ImageError, match="Bramble writes to none"):
        i.open_boot(node)


# --- Image files


def entry(kind: int, start: int, sectors: int) -> bytes:
    return struct.pack("<4xB3xII", kind, start, sectors)


def mbr(*entries: bytes) -> bytes:
    table = b"".join(entries).ljust(64, b"\0")
    return bytes(446) + table + b"\x55\xaa"


TABLES = [
    (bytes(512), "has no partition table"),
    (b"", "has no partition table"),
    (mbr(entry(0xEE, 1, 100)), "has a GPT"),
    (mbr(entry(0x83, 8192, 100)), "has no FAT partition"),
    (mbr(entry(0x0C, 8192, 100000)), "is cut off"),
    (mbr(entry(0x0C, 0, 100)), "is cut off"),
]


@pytest.mark.parametrize(("sector", "message"), TABLES)
def test_an_image_without_a_boot_partition_is_refused(sector: bytes, message: str) -> None:
    with pytest.raises(i.ImageError, match=message):
        i.parse_mbr(sector, 8192 * 512 + 51200, "os.img")


def test_the_first_fat_partition_is_the_boot_partition() -> None:
    table = mbr(entry(0x83, 1, 5), entry(0x0C, 8192, 100), entry(0x0C, 9000, 5))
    assert i.parse_mbr(table, 1 << 30, "os.img") == 8192 * 512


@given(st.binary(min_size=512, max_size=512), st.integers(0, 1 << 40))
def test_no_sector_ends_in_a_traceback(sector: bytes, size: int) -> None:
    for each in (sector, sector[:510] + b"\x55\xaa"):
        with suppress(i.ImageError):
            assert 0 < i.parse_mbr(each, size, "os.img") < size


START = 2048


@pytest.fixture
def card(tmp_path: Path) -> Callable[[dict[str, bytes]], Path]:
    """Makes an image with a FAT32 boot partition that holds files, and a second partition that must not change."""
    if shutil.which("mformat") is None:
        pytest.fail("This test makes images with mtools: `sudo apt-get install mtools`.")

    def make(files: dict[str, bytes]) -> Path:
        path = tmp_path / "raspios lite.img"
        sectors = 40 * 2048
        table = mbr(entry(0x0C, START, sectors), entry(0x83, START + sectors, 2048))
        with path.open("wb") as file:
            file.write(table)
            file.truncate((START + sectors) * 512)
            file.seek(0, os.SEEK_END)
            file.write(b"R" * 2048 * 512)
        at = f"{path}@@{START * 512}"
        environment = os.environ | {"MTOOLSRC": "/dev/null"}
        mformat = ["mformat", "-i", at, "-F", "-T", str(sectors), "-h", "64", "-s", "32", "-v", "bootfs", "::"]
        subprocess.run(mformat, check=True, env=environment)
        for name, content in files.items():
            (tmp_path / "one").write_bytes(content)
            subprocess.run(["mcopy", "-i", at, str(tmp_path / "one"), f"::/{name}"], check=True, env=environment)
        return path

    return make


def test_an_image_file_is_written_and_read_back(card: Callable[[dict[str, bytes]], Path]) -> None:
    more = {**TRIXIE, "kernel_2712.img": os.urandom(300_000)}
    path = card(more)
    boot = i.open_boot(path)
    planned = i.plan(i.read_all(boot), replace(FIXED, password_hash=HASH))
    i.apply(boot, planned)
    again = i.open_boot(path)
    assert i.read_all(again) == {**TRIXIE, **planned.files}
    assert again.read("kernel_2712.img") == more["kernel_2712.img"]
    assert again.read("nothing") is None
    assert i.plan(i.read_all(again), replace(FIXED, password_hash=HASH)).changed == ()
    assert path.read_bytes().endswith(b"R" * 2048 * 512)
    # What the firmware and Linux need to find is the whole name, and one of it.
    listed = subprocess.run(
        ["mdir", "-b", "-i", f"{path}@@{START * 512}", "::"], capture_output=True, text=True, check=True
    )
    assert sorted(listed.stdout.split()) == sorted(f"::/{name}" for name in {**more, **planned.files})


def test_a_bookworm_image_file(card: Callable[[dict[str, bytes]], Path]) -> None:
    boot = i.open_boot(card(BOOKWORM))
    i.apply(boot, i.plan(i.read_all(boot), WANTED))
    content = boot.read("custom.toml")
    assert content is not None
    assert tomllib.loads(content.decode())["system"]["hostname"] == "pi1"


def test_an_image_whose_partition_is_no_fat_is_refused(card: Callable[[dict[str, bytes]], Path]) -> None:
    path = card({})
    with path.open("r+b") as file:
        file.seek(START * 512)
        file.write(bytes(512))
    with pytest.raises(i.ImageError, match="says it is FAT and is not"):
        i.open_boot(path)


def test_a_damaged_fat_is_told(card: Callable[[dict[str, bytes]], Path]) -> None:
    path = card(TRIXIE)
    with path.open("r+b") as file:
        file.seek(START * 512 + 11)
        file.write(b"\xff" * 20)
    with pytest.raises(i.ImageError, match="cannot be read"):
        i.read_all(i.open_boot(path))


def test_without_mtools_it_says_what_to_install(
    card: Callable[[dict[str, bytes]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = card(TRIXIE)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(i.ImageError, match="apt-get install mtools"):
        i.open_boot(path)


# --- The command

type Run = Callable[..., tuple[int, str]]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with an inventory that is not filled in but for pi1."""
    root = tmp_path / "checkout"
    (root / "inventory/pi").mkdir(parents=True)
    (root / "site.yml").write_text("[]\n")
    (root / "ansible.cfg").write_text("[defaults]\n")
    (root / "inventory/pi/hosts.yml").write_text(
        "cluster:\n  vars: {ansible_user: alice, os_base_timezone: Europe/Berlin}\n  hosts:\n"
        "    pi1: {ansible_host: 192.168.1.11}\n    pi2: {ansible_host: CHANGE_ME, ansible_user: CHANGE_ME}\n"
    )
    (root / "bootfs").mkdir()
    for name, content in TRIXIE.items():
        (root / "bootfs" / name).write_bytes(content)
    (root / "key.pub").write_text(f"{KEY.line}\n")
    monkeypatch.chdir(root)
    monkeypatch.delenv("BRAMBLE_INVENTORY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return root


@pytest.fixture
def run(project: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """Calls `bramble image bootfs`: arguments → exit code, all output."""

    def call(*arguments: str) -> tuple[int, str]:
        app = typer.Typer(pretty_exceptions_enable=False)
        app.command()(image)
        code: Any = 0
        try:
            code = app([*arguments, "bootfs"], standalone_mode=False)
        except CliError as error:
            print(error)
            code = error.code
        captured = capfd.readouterr()
        return code or 0, captured.out + captured.err

    return call


def test_a_card_for_a_node_of_the_inventory(project: Path, run: Run) -> None:
    arguments = ("--host", "pi1", "--key", "key.pub", "--static", "192.168.1.1/24")
    code, said = run(*arguments, "--check")
    assert (code, "+hostname: pi1" in said) == (0, True), said
    assert (project / "bootfs/user-data").read_bytes() == TRIXIE["user-data"]
    code, said = run(*arguments)
    assert code == 0, said
    data = yaml.safe_load((project / "bootfs/user-data").read_bytes())
    assert (data["hostname"], data["user"]["name"], data["timezone"]) == ("pi1", "alice", "Europe/Berlin")
    assert b"192.168.1.11/24" in (project / "bootfs/network-config").read_bytes()
    assert "Unmount it" in said
    assert "is there already" in run(*arguments)[1]


def test_the_key_is_the_owners(project: Path, run: Run, tmp_path: Path) -> None:
    code, said = run("--hostname", "pi7", "--user", "bob")
    assert (code, "no public key in ~/.ssh" in said) == (2, True), said
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/id_ed25519.pub").write_text(f"{KEY.line}\n")
    code, said = run("--hostname", "pi7", "--user", "bob")
    assert code == 0, said
    assert KEY.encoded.encode() in (project / "bootfs/user-data").read_bytes()


def test_a_password_is_asked_for_twice(project: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("--hostname", "pi7", "--user", "bob", "--key", "key.pub", "--password", "--sudo-asks")
    code, said = run(*arguments)
    assert (code, "no terminal" in said) == (2, True), said
    typed = ["correct horse", "wrong horse", "correct horse", "correct horse"]
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("getpass.getpass", lambda _: typed.pop(0))
    assert "are not the same" in run(*arguments)[1]
    code, said = run(*arguments)
    assert code == 0, said
    user = yaml.safe_load((project / "bootfs/user-data").read_bytes())["user"]
    assert user["hashed_passwd"].startswith("$6$")
    assert b"horse" not in b"".join(path.read_bytes() for path in (project / "bootfs").iterdir())
    assert "horse" not in said


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--user", "bob", "--key", "key.pub"), 2, "Give --host or --hostname"),
        (("--host", "pi2", "--key", "key.pub"), 2, "Give --user, or ansible_user in the inventory"),
        (("--host", "pi2", "--user", "bob", "--key", "key.pub", "--static", "192.168.1.1/24"), 2, "an ansible_host"),
        (("--host", "pi9", "--key", "key.pub"), 2, "tells nothing of pi9"),
        (("--host", "pi1", "-i", "inventory/gone"), 2, "inventory/gone does not exist"),
        (("--hostname", "Pi 7", "--user", "bob", "--key", "key.pub"), 1, "hostname: 'Pi 7' is not of the form"),
        (("--hostname", "pi7", "--user", "bob", "--key", "gone.pub"), 2, "gone.pub cannot be read"),
        (("--hostname", "pi7", "--user", "bob", "--key", "site.yml"), 1, "site.yml does not begin with a type of key"),
        (("--hostname", "pi7", "--user", "bob", "--key", "key.pub", "--sudo-asks"), 1, "sudo would ask bob"),
    ],
)
def test_what_is_missing_or_wrong_is_told(
    project: Path, run: Run, arguments: tuple[str, ...], code: int, message: str
) -> None:
    got, said = run(*arguments)
    assert (got, message in said) == (code, True), said
    assert (project / "bootfs/user-data").read_bytes() == TRIXIE["user-data"]
