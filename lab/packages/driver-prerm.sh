#!/bin/sh
# EMULATION for the lab: takes the driver out of dkms's tree. What is loaded stays loaded until the next boot.
set -e
rm -rf /var/lib/dkms/@MODULE@ /usr/lib/modules/*/updates/dkms/@MODULE@.ko
