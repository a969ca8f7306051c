#!/bin/sh
# Tests and benchmarks of wgpu-attention on a machine without Rust or the sources.
#
# usage: run.sh RESULTS [tests|bench] [arguments of `wgpu-attention bench`]
#
# RESULTS is a folder: one text a test binary, summary.txt, info.txt, and of the benchmark
# record.json, record.csv, bench.txt and report/index.html. Ends with 0 if everything passed.
# VK_DRIVER_FILES chooses a driver as usual; TESTS="attention sparse" chooses tests;
# WGPU_ATTENTION_CHECKED_SHADERS=1 tests with the compiler's bounds checks on, and
# WGPU_ATTENTION_SMALL_PIECES=1 with every workgroup in a submission of its own.
set -u
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
if [ $# -lt 1 ]; then
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
    exit 2
fi
mkdir -p "$1" || exit 2
results=$(CDPATH= cd -- "$1" && pwd)
shift
what=all
case "${1-}" in tests|bench) what=$1; shift ;; esac

export WGPU_ATTENTION_REQUIRE_ADAPTER=1
export WGPU_ATTENTION_TEST_DATA="$here/data"
export WGPU_ATTENTION_PROGRAM="$here/wgpu-attention"
failed=0
: >"$results/summary.txt"
say() {
    echo "$*" | tee -a "$results/summary.txt"
}

# verdict NAME STATUS SECONDS TEXT: a line of the summary, and all that was said of a failure.
verdict() {
    if [ "$2" -eq 0 ]; then
        say "ok      $1  $3 s  $(grep '^test result:' "$4" | sed 's/^test result: ok. //; s/; finished.*//')"
    else
        failed=1
        say "FAILED  $1  $3 s  status $2"
        tail -n 40 "$4"
    fi
}

"$here/wgpu-attention" info >"$results/info.txt" 2>&1 || say "FAILED  info"
cat "$results/info.txt"
if [ "$what" != bench ]; then
    for test in ${TESTS:-$(ls "$here/tests")}; do
        start=$(date +%s)
        # Tests may write files beside them, so they run in a folder of the results.
        (cd "$results" && "$here/tests/$test") >"$results/$test.txt" 2>&1
        verdict "$test" $? $(($(date +%s) - start)) "$results/$test.txt"
    done
fi
if [ "$what" != tests ]; then
    start=$(date +%s)
    "$here/wgpu-attention" bench --json "$results/record.json" --csv "$results/record.csv" \
        --report "$results/report" --peers "$here/peers" "$@" >"$results/bench.txt" 2>&1
    verdict bench $? $(($(date +%s) - start)) "$results/bench.txt"
    cat "$results/bench.txt"
fi
exit $failed
