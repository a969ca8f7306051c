#!/usr/bin/env python3
"""fla-core's `chunk_simple_gla` (Triton), causal linear attention with a constant decay per head, the
peer of the family `linear` with the rule `decay`."""
from common import Unsupported, serve, torch_repeat

DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}

# Tokens that are compared with the recurrence in f64.
CHECKED = 256


def load():
    import torch

    if not torch.cuda.is_available():
        raise Unsupported("fla-core's kernels need a CUDA device, and PyTorch sees none")
    from importlib.metadata import version

    from fla.ops.simple_gla import chunk_simple_gla

    torch.manual_seed(0)
    program = f"fla-core {version('fla-core')} chunk_simple_gla"

    def recurrence(q, k, v, decay):
        """One head of one sequence in f64: q, k [tokens, dk], v [tokens, dv]."""
        state = torch.zeros(q.shape[-1], v.shape[-1], dtype=torch.float64, device="cuda")
        rows = []
        for token in range(q.shape[0]):
            state = decay * state + torch.outer(k[token], v[token])
            rows.append(q[token] @ state)
        return torch.stack(rows)

    def measure(case, seconds):
        if case["heads"] != case["kv_heads"]:
            yield Unsupported(f"{program} is timed with as many heads of keys as of queries")
            return
        dtype = getattr(torch, DTYPES[case["dtype"]])
        size = (case["batch"], case["len"], case["heads"], case["head_dim"])
        q, k, v = (torch.randn(size, device="cuda", dtype=dtype) for _ in range(3))
        # Lightning attention's released slopes of the first of many layers.
        heads = case["heads"]
        slopes = [2 ** (-8 * (head + 1) / heads) for head in range(heads)]
        log_decay = -torch.tensor(slopes, device="cuda", dtype=torch.float32)
        run = lambda: chunk_simple_gla(q, k, v, g_gamma=log_decay, scale=1.0)[0]
        with torch.inference_mode():
            first = [x[0, :CHECKED, 0].double() for x in (q, k, v)]
            wanted = recurrence(*first, torch.exp(log_decay[0].double()))
            error = (run()[0, :CHECKED, 0].double() - wanted).abs().max().item()
            times, steady, clock = torch_repeat(torch, "cuda", run, seconds)
        yield program, times, steady, clock, error

    return measure


def wanted(case):
    return case["family"] == "linear" and case["detail"] == "decay" and case["dtype"] in DTYPES


serve(__doc__, wanted, load)
