#!/bin/sh
# Writes requirements/*.txt from pyproject.toml: versions and hashes, no addresses.
set -eu
cd "$(dirname "$0")/.."
export UV_SYSTEM_CERTS=1
uv=.bramble/bootstrap/bin/uv
compile() { "$uv" pip compile --quiet --universal --generate-hashes --no-annotate --no-header --no-emit-index-url --python-version 3.12 "$@"; }
compile pyproject.toml --all-extras --group test --group lint -o requirements/dev.txt
compile pyproject.toml --extra controller -c requirements/dev.txt -o requirements/controller.txt
compile pyproject.toml --extra gateway -c requirements/dev.txt -o requirements/gateway.txt
