#!/bin/sh
# Makes DIRECTORY, a git repository of the emulated distributed-llama (lab/packages/dllama), and prints its commit.
# The same files give the same commit. Usage: emulation.sh DIRECTORY
set -eu
directory=${1:?directory}
source=$(dirname "$0")/../../../lab/packages/dllama
rm -rf "$directory"
mkdir -p "$(dirname "$directory")"
cp -r "$source" "$directory"
cd "$directory"
git init --quiet
git add .
GIT_AUTHOR_DATE="1768694400 +0000" GIT_COMMITTER_DATE="1768694400 +0000" \
    git -c user.name=bramble -c user.email=bramble@localhost commit --quiet --message=Emulation
git rev-parse HEAD
