#!/bin/sh
# Runs parts of the suite, in the order given. Usage: tools/test.sh [lint] [fast] [roles] [cluster]
#   lint     ruff, mypy, ansible-lint, yamllint, shellcheck
#   fast     unit, contract and gateway tests
#   roles    molecule scenarios on the nodes of the lab "lab-roles": check, converge, idempotence, verify
#   cluster  site.yml on the lab "lab-cluster", and what it must withstand
# What cluster needs of Debian's packages and finds missing (chromium, mtools) it installs, by sudo if need be.
# KEEP=1 leaves the labs up afterwards.
set -eu
cd "$(dirname "$0")/.."
root=$PWD
PATH=$root/.venv/bin:$PATH
export PATH
# Where each run on a lab notes which conditions it evaluated (plugins/callback/when_coverage.py).
BRAMBLE_WHEN_COVERAGE=$root/.bramble/when-coverage
ANSIBLE_CALLBACK_PLUGINS=$root/plugins/callback
export BRAMBLE_WHEN_COVERAGE ANSIBLE_CALLBACK_PLUGINS
began=$(date +%s)

say() { printf '\n=== %s (%d s)\n' "$*" $(($(date +%s) - began)); }
down() { [ -n "${KEEP:-}" ] || bramble lab down --name "$1"; }

# A program, or the package that has it.
need() {
    command -v "$1" >/dev/null && return
    say "$1 is missing: installing Debian's package $2"
    if [ "$(id -u)" = 0 ]; then as_root=; else as_root=sudo; fi
    $as_root apt-get update -q
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "$2"
}

count() { wc -l <"$BRAMBLE_WHEN_COVERAGE" 2>/dev/null || echo 0; }

lint() {
    say "lint"
    ruff check .
    ruff format --check .
    # Two packages are named bramble: the one on the controller and the one that modules import.
    mypy src/bramble
    mypy plugins/module_utils/bramble
    mypy roles/llama_service/files/llama_supervisor.py
    MYPYPATH=roles/llama_service/files mypy roles/dllama_api/files/dllama_supervisor.py
    mypy roles/llama_cpp/files/fetch_source.py
    mypy tools/variables.py
    for program in lab/hardware/lab_hardware.py lab/packages/*.py lab/packages/dllama/*.py; do mypy "$program"; done
    yamllint --strict .
    git ls-files '*.sh' lab/podman lab/hardware .ci/run | xargs grep -l '^#!/bin/sh' | xargs shellcheck
    ansible-lint --offline --nocolor
}

fast() {
    # What writes into image files, makes keys, builds the emulated distributed-llama, and shows the report.
    need mcopy mtools
    need ssh-keygen openssh-client
    need g++ g++
    need make make
    need chromium chromium
    say "unit, contract and gateway tests"
    pytest tests/unit tests/contract tests/gateway
}

roles() {
    say "roles on a lab"
    rm -f "$BRAMBLE_WHEN_COVERAGE"
    # What a run that failed left behind is no node that was never set up.
    bramble lab down --name lab-roles
    bramble lab up --name lab-roles --nodes 2
    for scenario in foundation model_store engine services dllama hat measure; do
        say "scenario $scenario"
        tasks=$(count)
        # Molecule remembers, by the directory's name, what it prepared: on other nodes, perhaps for another checkout.
        rm -rf "$root/.bramble/molecule/$scenario"
        (cd tests && MOLECULE_EPHEMERAL_DIRECTORY="$root/.bramble/molecule/$scenario" BRAMBLE_TEST_LAB=lab-roles molecule test --scenario-name "$scenario")
        # A scenario that runs no task is "successful" too.
        [ "$(count)" -gt "$tasks" ] || { echo "scenario $scenario ran no task" >&2; exit 1; }
    done
    down lab-roles
}

cluster() {
    # The report's browser.
    need chromium chromium
    say "the cluster on a lab"
    # -rP: the figures that passing tests print (exposure of each unit, seconds to recover, the seed).
    pytest -rP tests/cluster
    down lab-cluster
    case $parts in *roles*)
        say "conditions that no run evaluated"
        tests/contract/when_coverage.py "$BRAMBLE_WHEN_COVERAGE"
        ;;
    esac
}

[ $# -gt 0 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2; }
parts=$*
for part in "$@"; do
    case $part in
    lint | fast | roles | cluster) "$part" ;;
    *) echo "tools/test.sh: there is no part $part" >&2; exit 2 ;;
    esac
done
say "done: $*"
