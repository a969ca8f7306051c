#!/usr/bin/env python3
"""PyTorch's scaled_dot_product_attention by each of its kernels, the peer of the family `flash`."""
from common import Unsupported, serve, torch_repeat

DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def load():
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kernels = {
        "cuda": {
            "flash": SDPBackend.FLASH_ATTENTION,
            "cudnn": SDPBackend.CUDNN_ATTENTION,
            "efficient": SDPBackend.EFFICIENT_ATTENTION,
        },
        "cpu": {"flash": SDPBackend.FLASH_ATTENTION, "math": SDPBackend.MATH},
    }[device]

    def error(out, q, k, v, causal):
        """The largest difference from f64 in some rows of the first head."""
        n = q.shape[2]
        rows = torch.tensor(sorted({0, n // 3, n // 2, n - 1}), device=device)
        q, k, v = (x[:1, :1].double() for x in (q, k, v))
        scores = q[:, :, rows] @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if causal:
            later = torch.arange(n, device=device)[None, :] > rows[:, None]
            scores = scores.masked_fill(later, float("-inf"))
        wanted = torch.softmax(scores, -1) @ v
        return (out[:1, :1, rows].double() - wanted).abs().max().item()

    def measure(case, seconds):
        dtype = getattr(torch, DTYPES[case["dtype"]])
        make = lambda heads: torch.randn(
            case["batch"], heads, case["len"], case["head_dim"], device=device, dtype=dtype
        )
        q, k, v = make(case["heads"]), make(case["kv_heads"]), make(case["kv_heads"])
        group = case["heads"] // case["kv_heads"]
        k, v = (x.repeat_interleave(group, 1) if group > 1 else x for x in (k, v))
        run = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=case["causal"])
        for name, backend in kernels.items():
            program = f"torch {torch.__version__} {name}"
            with torch.inference_mode(), sdpa_kernel(backend):
                try:
                    found = error(run(), q, k, v, case["causal"])
                except RuntimeError as refused:
                    reason = (str(refused).splitlines() or ["refused"])[0]
                    yield Unsupported(f"{program} does not compute it: {reason[:120]}")
                    continue
                times, steady, clock = torch_repeat(torch, device, run, seconds)
            yield program, times, steady, clock, found

    return measure


def wanted(case):
    return case["family"] == "flash" and case["dtype"] in DTYPES


serve(__doc__, wanted, load)
