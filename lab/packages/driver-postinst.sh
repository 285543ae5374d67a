#!/bin/sh
# EMULATION for the lab: registers the driver with dkms, as the package of the Raspberry Pi archive does. Nothing is compiled:
# a container has no kernel of its own, so the tree says "installed" of a module that is not there.
set -e
[ "$1" = configure ] || exit 0
if command -v dkms >/dev/null 2>&1; then
    kernel=$(uname -r)
    machine=$(uname -m)
    tree=/var/lib/dkms/@MODULE@
    dkms status -m @MODULE@ -v @VERSION@ 2>/dev/null | grep -q . || dkms add -m @MODULE@ -v @VERSION@ >/dev/null
    mkdir -p "$tree/@VERSION@/$kernel/$machine/module"
    echo "EMULATION for the lab" >"$tree/@VERSION@/$kernel/$machine/module/@MODULE@.ko"
    mkdir -p "/usr/lib/modules/$kernel/updates/dkms"
    cp "$tree/@VERSION@/$kernel/$machine/module/@MODULE@.ko" "/usr/lib/modules/$kernel/updates/dkms/"
    ln -sfn "@VERSION@/$kernel/$machine" "$tree/kernel-$kernel-$machine"
else
    echo "Failed to install PCIe driver to the DKMS tree. Trying to install PCIe driver without DKMS" >&2
fi
echo "Please reboot your computer for the installation to take effect."
