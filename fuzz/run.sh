#!/bin/sh
# Fuzzes each target for some seconds: `fuzz/run.sh [SECONDS] [TARGET…]`. Needs no nightly Rust: the instrumentation is
# LLVM's own pass, which stable can be told to run, and the fuzzer is linked in (libfuzzer-sys, which a C++ compiler builds).
#
# What it generates stays in the target directory. A finding is written to fuzz/corpus/TARGET and so replayed by the
# protocol crate's tests from then on: keep it, small, with the fix.
set -eu
cd "$(dirname "$0")"

seconds=${1:-60}
[ $# -gt 0 ] && shift

command -v c++ >/dev/null 2>&1 || {
    echo "c++ is missing, which builds the fuzzer. Debian, Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++" >&2
    exit 1
}

work=${CARGO_TARGET_DIR:-target}/fuzz
host=$(rustc -vV | sed -n 's/^host: //p')
# With --target, build scripts and macros are not instrumented: they would not link.
CARGO_TARGET_DIR=$work RUSTFLAGS="-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing" \
    cargo build --quiet --release --target "$host"

targets=${*:-$(sed -n 's/^    ("\([a-z_]*\)", [a-z_]*),$/\1/p' src/targets.rs)}
found=
for target in $targets; do
    mkdir -p "$work/corpus/$target" "corpus/$target"
    echo "== $target, $seconds s"
    # Inputs are small: what parses is found by structure, not by size.
    FUZZ_TARGET=$target "$work/$host/release/fuzz" -max_total_time="$seconds" -max_len=4096 -timeout=10 \
        -artifact_prefix="corpus/$target/" -print_final_stats=1 -verbosity=0 \
        "$work/corpus/$target" "corpus/$target" ../protocol/tests/golden >"$work/$target.log" 2>&1 ||
        found="$found $target"
    grep -E 'number_of_executed_units|panicked|SUMMARY|Test unit' "$work/$target.log" || true
done
[ -z "$found" ] || {
    echo "findings in:$found; all of it is in $work/TARGET.log" >&2
    exit 1
}
