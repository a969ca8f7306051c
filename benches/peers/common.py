"""What the peers share: the cases of `wgpu-attention bench --peers`, and times in its format.

A peer reads one JSON object from stdin, `{"seconds": 1.0, "cases": [...]}`, whose cases are rows of
the program's record (label, family, dtype, batch, heads, kv_heads, len, head_dim, causal, detail). It
prints one line of JSON a time, or `{"skipped": "a sentence"}`.
"""
import argparse
import json
import statistics
import sys
import time

# As in the program: a GPU that idled needs a second of load, and the clock is steady when the medians
# of two successive batches agree.
WARM_UP, PATIENCE, STEADY = 1.0, 5.0, 0.02


class Unsupported(Exception):
    """Why a peer has no time for a case, as a sentence."""


def say(**line):
    print(json.dumps(line), flush=True)


def serve(description, wanted, load):
    """Answers for all cases that are `wanted(case)`.

    `load()` imports the peer and gives `measure(case, seconds)`, which yields for each way in which the
    peer computes the case: program, milliseconds of the repetitions, whether they were steady, what
    measured them, the largest error. It may yield an Unsupported in place of a time.
    """
    parser = argparse.ArgumentParser(
        description=description,
        epilog="Reads the cases as JSON from stdin; `wgpu-attention bench --peers` sends them.",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say which cases would be timed")
    dry_run = parser.parse_args().dry_run
    request = json.load(sys.stdin)
    cases = [case for case in request["cases"] if wanted(case)]
    if dry_run:
        for case in cases:
            say(would_time=case["label"])
        return
    if not cases:
        return say(skipped="none of the cases is for it")
    try:
        measure = load()
    except (ImportError, Unsupported) as missing:
        return say(skipped=str(missing))
    # Kernels of ours that compute the same share the peer's time.
    known = {}
    for case in cases:
        facts = ("family", "dtype", "batch", "heads", "kv_heads", "len", "head_dim", "causal", "detail")
        key = tuple(case[fact] for fact in facts)
        if key not in known:
            known[key] = list(attempts(measure, case, request["seconds"]))
        for line in known[key]:
            say(**line, **({} if "skipped" in line else {"label": case["label"]}))


def attempts(measure, case, seconds):
    try:
        for found in measure(case, seconds):
            if isinstance(found, Unsupported):
                yield {"skipped": f"{case['label']}: {found}"}
                continue
            program, times, steady, clock, error = found
            yield {
                "program": program,
                "median_ms": statistics.median(times),
                "min_ms": min(times),
                "max_ms": max(times),
                "repetitions": len(times),
                "steady": steady,
                "clock": clock,
                "max_error": error,
            }
    except Exception as failure:
        first_line = (str(failure).splitlines() or [type(failure).__name__])[0]
        yield {"skipped": f"{case['label']}: {first_line[:200]}"}


def repeat(batch, seconds):
    """Times of `batch(runs)`, a list of milliseconds, once the clock is steady; and whether it was."""
    median = lambda runs: max(statistics.median(batch(runs)), 1e-6)
    started = time.monotonic()
    last = median(1)
    while True:
        now = median(int(min(max(100 / last, 3), 1000)))
        steady = abs(now / last - 1) <= STEADY
        last = now
        elapsed = time.monotonic() - started
        if elapsed >= WARM_UP and (steady or elapsed >= PATIENCE):
            return batch(int(min(max(1e3 * seconds / last, 10), 1000))), steady


def torch_repeat(torch, device, run, seconds):
    """Times of `run()` by CUDA events, or on a CPU by the wall clock; steadiness; the clock's name."""

    def by_events(runs):
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(runs)]
        for begin, end in events:
            begin.record()
            run()
            end.record()
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) for begin, end in events]

    def by_wall_clock(runs):
        times = []
        for _ in range(runs):
            started = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - started))
        return times

    on_gpu = device == "cuda"
    times, steady = repeat(by_events if on_gpu else by_wall_clock, seconds)
    return times, steady, "CUDA events" if on_gpu else "wall clock"
