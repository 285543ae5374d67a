#!/bin/sh
# Builds llama.cpp in DIR from DIR/source.tar.gz, checks the binaries and packs them into DIR/build.tar.gz.
# Usage: build.sh DIR RECIPE_JSON JOBS, with CROSS, PROCESSOR, OPTIONS (one a line) and TARGETS in the environment.
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
set --
if [ -n "$CROSS" ]; then
    command -v "${CROSS}g++" >/dev/null || { echo "no ${CROSS}g++ here: install it (Debian: g++-$(echo "${CROSS%-}" | tr _ -))" >&2; exit 1; }
    set -- -DCMAKE_SYSTEM_NAME=Linux "-DCMAKE_SYSTEM_PROCESSOR=$PROCESSOR" "-DCMAKE_C_COMPILER=${CROSS}gcc" "-DCMAKE_CXX_COMPILER=${CROSS}g++"
fi
old_ifs=$IFS
IFS='
'
# shellcheck disable=SC2086 # one option a line
cmake -S source -B build "$@" $OPTIONS >configure.log 2>&1 || { tail -n 20 configure.log >&2; exit 1; }
IFS=$old_ifs
[ "$jobs" -gt 0 ] || jobs=$(nproc)
# shellcheck disable=SC2086 # a list of words
nice cmake --build build --parallel "$jobs" --target $TARGETS >build.log 2>&1 || { grep -m 20 -E 'error|Error|Killed' build.log >&2 || tail -n 20 build.log >&2; exit 1; }

rm -rf release
mkdir -p release/bin
checksums=
for target in $TARGETS; do
    "${CROSS}strip" -o "release/bin/$target" "build/bin/$target"
    checksums="$checksums${checksums:+, }\"$target\": \"$(sha256sum "release/bin/$target" | cut -d' ' -f1)\""
done

# The binary must use the instructions of the processor that was named, and none beyond.
count() { "${CROSS}objdump" --disassemble --no-show-raw-insn release/bin/ggml-rpc-server | grep -cE "$1" || true; }
case $PROCESSOR in
aarch64) wanted='\ssdot\s' unwanted='\s(smmla|whilelo)\s' ;;
x86_64) wanted='\svfmadd[0-9]+ps\s.*%ymm' unwanted='%zmm' ;;
*) wanted=. unwanted='$.' ;; # anything goes: no line matches $.
esac
found=$(count "$wanted") beyond=$(count "$unwanted")
[ "$found" -gt 0 ] || { echo "the build lacks the instructions of its processor ($wanted): check llama_cpp_cpu_target" >&2; exit 1; }
[ "$beyond" -eq 0 ] || { echo "the build has $beyond instructions beyond its processor ($unwanted): check llama_cpp_cmake_options" >&2; exit 1; }

compiler=$("${CROSS}g++" --version | head -n 1)
printf '%s, "compiler": "%s", "instructions": {"wanted": %s, "beyond": %s}, "sha256": {%s}}\n' \
    "${recipe%\}}" "$compiler" "$found" "$beyond" "$checksums" >release/build.json
tar -czf build.tar.gz.part -C release .
mv build.tar.gz.part build.tar.gz
