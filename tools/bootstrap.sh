#!/bin/sh
# Makes .venv with the locked packages. Usage: tools/bootstrap.sh controller|dev
# Installs nothing outside the checkout, except Debian's python3-venv where python3 cannot make an environment.
set -eu
cd "$(dirname "$0")/.."
level=${1:?usage: tools/bootstrap.sh controller|dev}
lock=requirements/$level.txt
key() { cat "requirements/$1.txt" requirements/bootstrap.txt pyproject.toml | sha256sum | cut -d' ' -f1; }
# dev holds all that controller holds.
for have in "$level" dev; do
    [ "$(cat ".venv/.$have.stamp" 2>/dev/null || true)" = "$(key "$have")" ] && exit 0
done

say() { printf 'bootstrap: %s\n' "$*" >&2; }

tools=.bramble/bootstrap
if ! [ -x "$tools/bin/uv" ] || ! cmp -s requirements/bootstrap.txt "$tools/bootstrap.txt"; then
    say "installing uv into $tools"
    rm -rf "$tools"
    if ! python3 -m venv "$tools" >/dev/null 2>&1; then
        rm -rf "$tools"
        say "python3 has no venv module: installing Debian's python3-venv"
        sudo=""
        [ "$(id -u)" -eq 0 ] || sudo=sudo
        if ! { $sudo apt-get update -qq && $sudo apt-get install -y -qq --no-install-recommends python3-venv >/dev/null; }; then
            say "could not; run: apt-get install python3-venv"
            exit 1
        fi
        python3 -m venv "$tools"
    fi
    "$tools/bin/pip" --quiet --disable-pip-version-check install --require-hashes -r requirements/bootstrap.txt
    cp requirements/bootstrap.txt "$tools/"
fi

# The first Python >= 3.12 that runs: a pyenv shim on PATH may exist and not run. Else uv brings one.
find_python() {
    for python in python3 python3.13 python3.12 python3.14 "$(pyenv root 2>/dev/null)"/versions/3.1[2-9]*/bin/python3; do
        if "$python" -c 'import sys; sys.exit(not (3, 12) <= sys.version_info < (3, 15))' 2>/dev/null; then
            "$python" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    echo 3.13
}

export UV_SYSTEM_CERTS=1
if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then
    python=$(find_python)
    say "making .venv with Python $python"
    rm -rf .venv
    "$tools/bin/uv" venv --quiet --python "$python" .venv ||
        { say "no Python >= 3.12: install one (Debian 13: python3, Ubuntu 24.04: python3), then run this again"; exit 1; }
fi
say "installing the locked packages ($level)"
rm -f .venv/.*.stamp
"$tools/bin/uv" pip sync --quiet --python .venv/bin/python --require-hashes "$lock"
"$tools/bin/uv" pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
key "$level" >".venv/.$level.stamp"
