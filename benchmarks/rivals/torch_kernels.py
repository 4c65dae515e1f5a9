# SPDX-License-Identifier: Apache-2.0
"""Times of the kernels of mamba_ssm and causal-conv1d, as sequence_cuda takes ours: bf16 or f32, all
inputs of the layer, the L2 cache flushed before every run, without the time that launches take."""

import statistics

import torch

FLUSH_BYTES = 256 << 20
SLEEP_CYCLES = 6_000_000  # 3 ms: the host has launched everything before the first kernel starts
RUNS = 20


def median_ms(call):
    """Between two events; the GPU waits in front of the first until all is launched."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    times = []
    for _ in range(RUNS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        torch.cuda._sleep(SLEEP_CYCLES)
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def uniform(*shape, low=-1.0, high=1.0, dtype=torch.float32):
    return torch.empty(shape, device="cuda").uniform_(low, high).to(dtype).requires_grad_()


def scan(B, D, N, L, dtype):
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    u, delta, z = (uniform(B, D, L, low=low, high=high, dtype=dtype)
                   for low, high in ((-1, 1), (-6, -2), (-4, 4)))
    Bm, Cm = (uniform(B, 1, N, L, dtype=dtype) for _ in range(2))
    A, skip = uniform(D, N, low=-8, high=-0.25), uniform(D)
    bias = uniform(D, low=-0.5, high=0.5)
    inputs = (u, delta, A, Bm, Cm, skip, z, bias)
    return inputs, lambda: selective_scan_fn(*inputs, delta_softplus=True)


def ssd(B, L, H, P, N, dtype):
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
    x, dt = uniform(B, L, H, P, dtype=dtype), uniform(B, L, H, low=-6, high=-2, dtype=dtype)
    Bm, Cm = (uniform(B, L, 1, N, dtype=dtype) for _ in range(2))
    A, skip, bias = uniform(H, low=-8, high=-0.25), uniform(H), uniform(H, low=-0.5, high=0.5)
    inputs = (x, dt, A, Bm, Cm, skip, bias)
    return inputs, lambda: mamba_chunk_scan_combined(x, dt, A, Bm, Cm, 256, D=skip, dt_bias=bias,
                                                     dt_softplus=True)


def conv1d(B, L, C, K, dtype, tokens_together):
    from causal_conv1d import causal_conv1d_fn
    x = uniform(B, L, C, dtype=dtype) if tokens_together else uniform(B, C, L, dtype=dtype)
    weight, bias = uniform(C, K, dtype=dtype), uniform(C, dtype=dtype)

    def call():
        return causal_conv1d_fn(x.transpose(1, 2) if tokens_together else x, weight, bias,
                                activation="silu")
    return (x, weight, bias), call


def cases(job):
    shape, dtype = job["shape"], getattr(torch, job["dtype"])
    if job["kernel"] == "conv1d":  # both of its layouts; the faster one counts
        return [conv1d(**shape, dtype=dtype, tokens_together=together) for together in (True, False)]
    return [{"scan": scan, "ssd": ssd}[job["kernel"]](**shape, dtype=dtype)]


def measure(job):
    """{"forward": ms, "both": ms}: the faster one of the case's forms."""
    results = []
    for inputs, forward in cases(job):
        with torch.no_grad():
            once = median_ms(forward)
        dy = torch.rand_like(forward())

        def both(inputs=inputs, forward=forward, dy=dy):
            return torch.autograd.grad(forward(), inputs, dy)
        results.append((once, median_ms(both)))
    return {"forward": min(r[0] for r in results), "both": min(r[1] for r in results)}
