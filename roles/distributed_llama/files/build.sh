#!/bin/sh
# Builds distributed-llama in DIR from DIR/source.tar.gz, checks the binaries and packs them into DIR/build.tar.gz.
# Usage: build.sh DIR RECIPE_JSON JOBS, with PROCESSOR, FLAGS and TARGETS in the environment.
set -eu
dir=$1 recipe=$2 jobs=$3
cd "$dir"
# A run that was cut off may have left a compiler at work: wait for it, then go on where it got to.
exec 9>lock
flock 9

if ! [ -d source ]; then
    rm -rf source.part
    mkdir source.part
    tar -xzf source.tar.gz -C source.part --strip-components=1
    mv source.part source
fi
[ "$jobs" -gt 0 ] || jobs=$(nproc)
# shellcheck disable=SC2086 # a list of words
g++ $FLAGS -c keepalive.cpp -o keepalive.o
# CXXFLAGS of one's own: the Makefile's say -march=native, which runs on the node that compiled it and on its like.
# shellcheck disable=SC2086 # a list of words
nice make -C source -j "$jobs" CXX=g++ CXXFLAGS="$FLAGS" LIBS="-lpthread $PWD/keepalive.o -Wl,--wrap=accept,--wrap=connect" \
    $TARGETS >build.log 2>&1 || { grep -m 20 -E 'error|Error|Killed' build.log >&2 || tail -n 20 build.log >&2; exit 1; }

rm -rf release
mkdir -p release/bin
checksums=
for target in $TARGETS; do
    strip -o "release/bin/$target" "source/$target"
    checksums="$checksums${checksums:+, }\"$target\": \"$(sha256sum "release/bin/$target" | cut -d' ' -f1)\""
done

# Each binary must use the instructions of the processor that was named, and none beyond. Without dot products it is several times slower.
count() { objdump --disassemble --no-show-raw-insn "$2" | grep -cE "$1" || true; }
case $PROCESSOR in
aarch64) wanted='\ssdot\s' unwanted='\s(smmla|whilelo)\s' ;;
x86_64) wanted='\svfmadd[0-9]+ps\s.*%ymm' unwanted='%zmm' ;;
*) wanted=. unwanted='$.' ;; # anything goes: no line matches $.
esac
total=0
for target in $TARGETS; do
    found=$(count "$wanted" "release/bin/$target") beyond=$(count "$unwanted" "release/bin/$target")
    [ "$found" -gt 0 ] || { echo "$target lacks the instructions of its processor ($wanted): check distributed_llama_cpu_target" >&2; exit 1; }
    [ "$beyond" -eq 0 ] || { echo "$target has $beyond instructions beyond its processor ($unwanted): check distributed_llama_cpu_target" >&2; exit 1; }
    total=$((total + found))
done

compiler=$(g++ --version | head -n 1)
printf '%s, "compiler": "%s", "instructions": {"wanted": %s, "beyond": 0}, "sha256": {%s}}\n' \
    "${recipe%\}}" "$compiler" "$total" "$checksums" >release/build.json
tar -czf build.tar.gz.part -C release .
mv build.tar.gz.part build.tar.gz
