#!/usr/bin/env python3
"""onnxruntime's WebGPU provider on MultiHeadAttention, the peer of the family `flash`.

Needs onnxruntime, onnx, numpy and onnxruntime-ep-webgpu; ONNXRUNTIME_PROVIDER=cpu times the CPU
provider instead. Copies between host and device do not count: a model is a chain of attentions, each
of whose queries are the last one's result, and the time of one is what a longer chain takes more.
"""
import os
import time

from common import Unsupported, repeat, serve

# Attentions in the short chain and in the long one.
SHORT, LONG = 1, 5


def provider(ort):
    """The name of the provider, and options for sessions on it alone."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if os.environ.get("ONNXRUNTIME_PROVIDER") == "cpu":
        return "cpu", options
    import onnxruntime_ep_webgpu as plugin

    ort.register_execution_provider_library("webgpu", plugin.get_library_path())
    devices = [d for d in ort.get_ep_devices() if d.ep_name == plugin.get_ep_name()]
    if not devices:
        raise Unsupported("onnxruntime's WebGPU provider finds no device")
    options.add_provider_for_devices(devices[:1], {})
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return "webgpu", options


def load():
    import numpy as np
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    name, options = provider(ort)
    program = f"onnxruntime {ort.__version__} {name}"
    numbers = np.random.default_rng(0)

    def session(case, query, key, value, attentions):
        """A chain of attentions over [batch, len, heads * dim]."""
        kind = {"f32": TensorProto.FLOAT, "f16": TensorProto.FLOAT16}[case["dtype"]]
        node = lambda n: helper.make_node(
            "MultiHeadAttention",
            [f"x{n}", "key", "value"],
            [f"x{n + 1}"],
            domain="com.microsoft",
            num_heads=case["heads"],
            unidirectional=int(case["causal"]),
        )
        info = lambda name: helper.make_tensor_value_info(name, kind, list(query.shape))
        graph = helper.make_graph(
            [node(n) for n in range(attentions)],
            "chain",
            [info("x0")],
            [info(f"x{attentions}")],
            [numpy_helper.from_array(key, "key"), numpy_helper.from_array(value, "value")],
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        return ort.InferenceSession(model.SerializeToString(), options)

    def error(out, query, key, value, case):
        """The largest difference from f64 in some rows of the first head."""
        n, dim = case["len"], case["head_dim"]
        rows = np.array(sorted({0, n // 3, n // 2, n - 1}))
        q, k, v = (x[0, :, :dim].astype(np.float64) for x in (query, key, value))
        scores = q[rows] @ k.T / dim**0.5
        if case["causal"]:
            scores = np.where(np.arange(n)[None, :] > rows[:, None], -np.inf, scores)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        wanted = weights / weights.sum(-1, keepdims=True) @ v
        return float(np.abs(out[0, rows, :dim].astype(np.float64) - wanted).max())

    def measure(case, seconds):
        if case["heads"] != case["kv_heads"]:
            yield Unsupported(f"{program} is timed with as many heads of keys as of queries")
            return
        dtype = {"f32": np.float32, "f16": np.float16}[case["dtype"]]
        size = (case["batch"], case["len"], case["heads"] * case["head_dim"])
        query, key, value = (numbers.standard_normal(size).astype(dtype) for _ in range(3))
        chains = [session(case, query, key, value, count) for count in (SHORT, LONG)]
        found = error(chains[0].run(None, {"x0": query})[0], query, key, value, case)

        def elapsed(chain):
            started = time.perf_counter()
            chain.run(None, {"x0": query})
            return 1e3 * (time.perf_counter() - started)

        def batch(runs):
            one = lambda: (elapsed(chains[1]) - elapsed(chains[0])) / (LONG - SHORT)
            return [max(one(), 1e-6) for _ in range(min(runs, 100))]

        times, steady = repeat(batch, seconds)
        yield program, times, steady, "wall clock of chains", found

    return measure


def wanted(case):
    return case["family"] == "flash" and case["dtype"] in ("f32", "f16")


serve(__doc__, wanted, load)
