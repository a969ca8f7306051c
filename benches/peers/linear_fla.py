#!/usr/bin/env python3
"""Times fla-core's `chunk_simple_gla` (Triton) on causal linear attention with a constant decay per
head, the peer of `wgpu-attention bench --op linear`. One JSON line per shape.

usage: linear_fla.py B,H,N,D ...      needs PyTorch, Triton, fla-core and a CUDA device
"""
import json
import statistics
import sys
import time

try:
    import torch
    from fla.ops.simple_gla import chunk_simple_gla
except ImportError as missing:
    sys.exit(f"skipped: {missing}")


def slopes(heads):
    """Lightning attention's released slopes of the first of many layers."""
    return torch.tensor([2 ** (-8 * (h + 1) / heads) for h in range(heads)], device="cuda")


def timed(run, seconds=1.0):
    start = time.time()
    while time.time() - start < seconds:
        run()
        torch.cuda.synchronize()
    times = []
    for _ in range(30):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return times


def recurrence(q, k, v, decay):
    """The first head of the first sequence in f64."""
    state = torch.zeros(q.shape[-1], v.shape[-1], dtype=torch.float64, device="cuda")
    rows = []
    for t in range(q.shape[0]):
        state = decay * state + torch.outer(k[t], v[t])
        rows.append(q[t] @ state)
    return torch.stack(rows)


torch.manual_seed(0)
for shape in sys.argv[1:]:
    batch, heads, length, dim = map(int, shape.split(","))
    q, k, v = (
        torch.randn(batch, length, heads, dim, device="cuda", dtype=torch.float16) for _ in range(3)
    )
    log_decay = -slopes(heads).float()
    run = lambda: chunk_simple_gla(q, k, v, g_gamma=log_decay, scale=1.0)[0]
    rows = min(length, 512)
    first = [x[0, :rows, 0].double() for x in (q, k, v)]
    want = recurrence(*first, torch.exp(log_decay[0].double()))
    got = run()[0, :rows, 0].double()
    error = ((got - want).norm() / want.norm()).item()
    times = timed(run)
    print(json.dumps({
        "peer": "fla-core chunk_simple_gla",
        "device": torch.cuda.get_device_name(),
        "shape": {"batch": batch, "heads": heads, "len": length, "head_dim": dim, "dtype": "f16"},
        "median_ms": statistics.median(times), "min_ms": min(times), "max_ms": max(times),
        "relative_error": error,
    }), flush=True)
