#!/bin/sh
# Builds the root file system of a lab node: what Raspberry Pi OS Lite has after the Imager's first boot (Debian trixie,
# systemd, sshd, python3, a user "pi" with sudo), the emulated firmware tools and archives (lab/hardware, lab/packages), and
# nothing that the roles ought to install.
# Usage: lab/image.sh key GGUF         prints the recipe's key
#        lab/image.sh build GGUF TAR   writes the root file system to TAR
# GGUF is the model that the emulated processor of the HAT runs.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
suite=trixie
packages=systemd,systemd-sysv,dbus,python3,python3-apt,openssh-server,sudo,iproute2,iputils-ping,ca-certificates,procps,kmod
# Certificates that this machine's owner trusts (a company's proxy): nodes download through the same network.
authorities=/usr/local/share/ca-certificates

case ${1:-} in
key)
    gguf=${2:?usage: lab/image.sh key GGUF}
    {
        (cd "$here" && find . -type f ! -name '*.pyc' -exec sha256sum {} + | sort)
        sha256sum <"$gguf"
        dpkg --print-architecture
        find "$authorities" -name '*.crt' -type f -exec sha256sum {} + 2>/dev/null | sort
    } | sha256sum | cut -c1-12
    ;;
build)
    gguf=${2:?usage: lab/image.sh build GGUF TAR}
    tar=${3:?usage: lab/image.sh build GGUF TAR}
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    mkdir -p "$work$authorities" "$work/etc/systemd/system/ssh.service.d" "$work/etc/sudoers.d" "$work/etc/ssh"
    find "$authorities" -name '*.crt' -type f -exec cp {} "$work$authorities/" \; 2>/dev/null || true
    # Each node makes host keys of its own at its first boot, as on a Pi.
    cat >"$work/etc/systemd/system/regenerate-ssh-host-keys.service" <<UNIT
[Unit]
Description=Make this node's SSH host keys
Before=ssh.service
ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key
[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -A
[Install]
WantedBy=multi-user.target
UNIT
    printf '127.0.0.1\tlocalhost\n::1\t\tlocalhost ip6-localhost ip6-loopback\n' >"$work/etc/hosts"
    echo 'pi ALL=(ALL) NOPASSWD: ALL' >"$work/etc/sudoers.d/010_pi-nopasswd"
    chmod 0440 "$work/etc/sudoers.d/010_pi-nopasswd"
    python3 "$here/packages/build.py" "$gguf" "$work"
    install -D -m 0755 "$here/hardware/lab_hardware.py" "$work/usr/lib/bramble-lab/hardware"
    install -D -m 0755 -t "$work/usr/lib/bramble-lab" "$here/hardware/init"
    install -D -m 0755 -t "$work/usr/bin" "$here/hardware/vcgencmd" "$here/hardware/rpi-eeprom-update" "$here/hardware/raspi-config"
    install -D -m 0644 -t "$work/boot/firmware" "$here/hardware/config.txt" "$here/hardware/cmdline.txt"
    install -D -m 0644 -t "$work/usr/lib/systemd/system" "$here"/hardware/*.service
    # shellcheck disable=SC2016 # $1 in the hooks is mmdebstrap's: the new root
    mmdebstrap --quiet --format=tar --variant=minbase --include="$packages" \
        --aptopt='Acquire::Retries "3"' \
        --customize-hook="cp -a --no-preserve=ownership $work/. \"\$1/\"" \
        --customize-hook='chroot "$1" update-ca-certificates >/dev/null 2>&1' \
        --customize-hook='chroot "$1" useradd --create-home --shell /bin/bash pi' \
        --customize-hook='chroot "$1" systemctl --quiet enable regenerate-ssh-host-keys.service ssh.service bramble-lab-hardware.service bramble-lab-files.service' \
        --customize-hook='chroot "$1" systemctl --quiet mask systemd-networkd-wait-online.service systemd-resolved.service' \
        --customize-hook='rm -f "$1"/etc/ssh/ssh_host_*_key* "$1"/etc/machine-id "$1"/etc/resolv.conf "$1"/etc/hostname; : >"$1/etc/machine-id"' \
        "$suite" "$tar.part" >&2
    mv "$tar.part" "$tar"
    ;;
*)
    echo "usage: lab/image.sh key GGUF | build GGUF TAR" >&2
    exit 2
    ;;
esac
