#!/bin/sh
# Tests and benchmarks of wgpu-attention on a machine without Rust or the sources.
#
# usage: run.sh RESULTS                  all tests, then `wgpu-attention bench --quick`
#        run.sh RESULTS tests            all tests
#        run.sh RESULTS bench [OPTION]   `wgpu-attention bench` with peers and these options
#
# RESULTS is a folder. It gets DATE-tests.txt, the summary to keep as benches/records/GPU/DATE-tests.txt,
# one text a test binary, info.txt, and of the benchmark record.json, record.csv, bench.txt and
# report/index.html. The exit status is 0 if everything passed.
#
# VK_DRIVER_FILES chooses a driver as usual. TESTS="attention sparse" chooses tests.
# JOBS=8 is how many test binaries run at a time (default: half of the CPU's cores).
# LIMIT=450 is how many seconds all tests may take together; a test binary that has not ended then fails.
# WGPU_ATTENTION_CHECKED_SHADERS=1 tests with the compiler's bounds checks on, and
# WGPU_ATTENTION_SMALL_PIECES=1 with every workgroup in a submission of its own.
set -u
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
tab=$(printf '\t')

# count PATTERN FILE: how many lines match.
count() {
    grep -c "$1" "$2" || true
}

# Runs one test binary and writes its line of the summary: run.sh --one RESULTS NAME.
if [ "${1-}" = --one ]; then
    results=$2
    text=$results/$3.txt
    start=$(date +%s)
    left=$((DEADLINE - start))
    status=124
    : >"$text"
    if [ "$left" -gt 0 ]; then
        # Tests may write files beside them, so they run in a folder of the results.
        if command -v timeout >/dev/null; then
            (cd "$results" && timeout "$left" "$here/tests/$3") >"$text" 2>&1
        else
            (cd "$results" && "$here/tests/$3") >"$text" 2>&1
        fi
        status=$?
    fi
    seconds=$(($(date +%s) - start))
    counts=$(sed -n 's/^test result: [A-Za-z]*\. \([0-9]*\) passed; \([0-9]*\) failed; \([0-9]*\) ignored;.*/\1\t\2\t\3/p' "$text")
    # A binary that did not end says no result.
    [ -n "$counts" ] || counts="$(count '^test .* ok$' "$text")$tab$(count '^test .* FAILED$' "$text")$tab$(count '^test .* ignored' "$text")"
    verdict=ok
    if [ "$status" -ne 0 ]; then
        verdict=FAILED
        # One message, so that those of tests side by side do not mix.
        end=$(tail -n 40 "$text")
        printf 'FAILED  %s, status %s (124: out of time)\n%s\n' "$3" "$status" "$end"
    fi
    printf 'test\t%s\t%s\t%s\t%s\n' "$3" "$verdict" "$counts" "$seconds" | tee "$results/rows/$3"
    exit 0
fi

if [ $# -lt 1 ]; then
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0" | sed '/^set/d'
    exit 2
fi
mkdir -p "$1" || exit 2
results=$(CDPATH= cd -- "$1" && pwd)
shift
what=all
case "${1-}" in tests|bench) what=$1; shift ;; esac
case $what in
    bench) set -- --peers "$here/peers" "$@" ;;
    *) [ $# -gt 0 ] || set -- --quick ;;
esac

begin=$(date +%s)
date=$(date -u +%Y-%m-%dT%H:%MZ)
summary=$results/${date%T*}-tests.txt
rm -rf "$results/rows" "$results/records"
mkdir -p "$results/rows" "$results/records"
export DEADLINE=$((begin + ${LIMIT:-450}))
export WGPU_ATTENTION_REQUIRE_ADAPTER=1
export WGPU_ATTENTION_TEST_DATA="$here/data"
export WGPU_ATTENTION_FUZZ_CORPUS="$here/corpus"
export WGPU_ATTENTION_TEST_RECORDS="$results/records"
export WGPU_ATTENTION_PROGRAM="$here/wgpu-attention"

cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
jobs=${JOBS:-$(((cores + 1) / 2))}
all=$(ls "$here/tests")
tests=${TESTS:-$all}
scope=all
[ -z "${TESTS-}" ] || scope=$(echo $TESTS)
[ "$what" != bench ] || scope=bench
ways=plain
[ -z "${WGPU_ATTENTION_CHECKED_SHADERS+set}" ] || ways="checked shaders"
[ -z "${WGPU_ATTENTION_SMALL_PIECES+set}" ] || ways="$ways, small pieces"
bench=

# Writes the summary of all that has ended so far.
summarise() {
    {
        echo "# wgpu-attention: tests on a GPU, by run.sh of \`cargo xtask gpu-bundle\`. Fields are parted by tabs."
        echo "# test: name, verdict, passed, failed, ignored, seconds. conformance: suite, device, passed, of."
        cat "$here/commit.tsv"
        printf 'date\t%s\nscope\t%s\nways\t%s\n' "$date" "$scope" "$ways"
        cat "$results/records/device.tsv" 2>/dev/null
        for test in $tests; do cat "$results/rows/$test" 2>/dev/null; done
        cat "$results"/records/conformance/*.tsv 2>/dev/null | sed "s/^/conformance$tab/"
        [ -z "$bench" ] || echo "$bench"
        failed=$(cat "$results"/rows/* 2>/dev/null | grep -c "${tab}FAILED$tab" || true)
        case "$bench" in *FAILED*) failed=$((failed + 1)) ;; esac
        verdict=ok
        [ "$failed" -eq 0 ] || verdict=FAILED
        [ -z "${1-}" ] || printf 'result\t%s\t%s\n' "$verdict" $(($(date +%s) - begin))
    } >"$summary"
}

"$here/wgpu-attention" info >"$results/info.txt" 2>&1 || echo "FAILED  info"
cat "$results/info.txt"
if [ "$what" != bench ]; then
    # Those that hold times against each other run alone, after all others; the longest come first.
    side= alone=
    for test in llama property fuzz $tests; do
        case " $side $alone " in *" $test "*) continue ;; esac
        case " $(echo $tests) " in *" $test "*) ;; *) continue ;; esac
        case $test in pieces|tune|cli_bench) alone="$alone $test" ;; *) side="$side $test" ;; esac
    done
    [ -z "$side" ] || printf '%s\n' $side | xargs -n 1 -P "$jobs" sh "$here/run.sh" --one "$results"
    summarise
    for test in $alone; do sh "$here/run.sh" --one "$results" "$test"; done
fi
if [ "$what" != tests ]; then
    summarise
    start=$(date +%s)
    verdict=ok
    "$here/wgpu-attention" bench --json "$results/record.json" --csv "$results/record.csv" \
        --report "$results/report" "$@" >"$results/bench.txt" 2>&1 || verdict=FAILED
    bench="bench$tab$verdict$tab$(($(date +%s) - start))"
    cat "$results/bench.txt"
fi
summarise end
cat "$summary"
tail -n 1 "$summary" | grep -q "^result${tab}ok"
