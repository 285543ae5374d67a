#!/bin/sh
# Breaks or mends one lab node (a container). Usage: lab/break.sh stop|freeze|cut|FAULT|mend CONTAINER
#   stop    the power goes: every process is killed at once
#   freeze  every process stops (SIGSTOP); the kernel goes on answering for its sockets
#   cut     the network cable is pulled: the host's end of the node's link goes down
#   FAULT   its emulated hardware is at fault: a name that lab/hardware/lab_hardware.py knows, such as under-voltage
#   mend    brings it back from any of these
set -eu
podman=$(cd "$(dirname "$0")" && pwd)/podman
how=${1:?usage: lab/break.sh stop|freeze|cut|FAULT|mend CONTAINER}
container=${2:?usage: lab/break.sh stop|freeze|cut|FAULT|mend CONTAINER}

pid() { "$podman" inspect --format '{{.State.Pid}}' "$container"; }

# The processes of the node are those in the PID namespace of its init. (No cgroup freezer: the lab runs without cgroups.)
signal() {
    namespace=$(readlink "/proc/$(pid)/ns/pid")
    for process in /proc/[0-9]*; do
        [ "$(readlink "$process/ns/pid" 2>/dev/null)" = "$namespace" ] && kill "-$1" "${process#/proc/}" 2>/dev/null
    done
    return 0
}

# The host's end of the node's eth0, by the index that the node's end names.
link() {
    index=$(nsenter --target "$(pid)" --net ip -o link show eth0 | sed 's/.*eth0@if\([0-9]*\):.*/\1/')
    ip -o link 2>/dev/null | awk -F'[ :@]+' -v index_="$index" '$1 == index_ { print $2 }'
}

case $how in
stop) "$podman" kill --signal KILL "$container" >/dev/null ;;
freeze) signal STOP ;;
cut) ip link set "$(link)" down ;;
mend)
    if [ "$(pid)" = 0 ]; then
        "$podman" start "$container" >/dev/null
    else
        signal CONT
        ip link set "$(link)" up
    fi
    "$podman" exec "$container" /usr/lib/bramble-lab/hardware mend
    ;;
*) "$podman" exec "$container" /usr/lib/bramble-lab/hardware fault "$how" ;;
esac
