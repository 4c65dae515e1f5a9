#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""One process of a rival in PyTorch; prints what was measured as JSON. Started by compare_cpu.py.

    torch_rival.py mamba.py|transformers FOLDER DTYPE THREADS TEST
TEST: prefill (512 tokens), decode (1 sequence), batch (8 sequences)
"""

import json
import resource
import statistics
import sys
import time

import torch

PROMPT, STEPS = 512, 16


def mambapy_functions(folder, dtype):
    """mamba.py at the shapes of the folder, with weights of its own: speed does not depend on them."""
    from mambapy.mamba import Mamba, MambaConfig, RMSNorm
    config = json.load(open(f"{folder}/config.json"))
    if config["model_type"] != "mamba" or dtype != "float32":
        raise SystemExit("mamba.py is compared with Mamba-1 in f32 alone")
    width, layers, vocab = (config[k] for k in ("hidden_size", "num_hidden_layers", "vocab_size"))
    stack = Mamba(MambaConfig(d_model=width, n_layers=layers)).eval()
    norm, embedding = RMSNorm(width), torch.nn.Embedding(vocab, width)
    head = torch.nn.Linear(width, vocab, bias=False)
    head.weight = embedding.weight

    def prefill(ids):
        return head(norm(stack(embedding(ids)))[:, -1])

    def start(sequences):
        inner = stack.layers[0].mixer.config
        caches = [(None, torch.zeros(sequences, inner.d_inner, inner.d_conv - 1))
                  for _ in range(layers)]

        def step(ids):
            nonlocal caches
            hidden, caches = stack.step(embedding(ids), caches)
            return head(norm(hidden)).argmax(-1)
        return step
    return prefill, start


def transformers_functions(folder, dtype):
    import transformers
    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype)).eval()

    def prefill(ids):
        return model(ids, use_cache=True, logits_to_keep=1).logits

    def start(sequences):
        cache = model(torch.zeros(sequences, 4, dtype=torch.long), use_cache=True).cache_params

        def step(ids):
            nonlocal cache
            out = model(ids[:, None], use_cache=True, cache_params=cache)
            cache = out.cache_params
            return out.logits[:, -1].argmax(-1)
        return step
    return prefill, start


def main():
    engine, folder, dtype, threads, test = sys.argv[1:]
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    make = mambapy_functions if engine == "mamba.py" else transformers_functions
    seconds = []
    with torch.no_grad():
        begin = time.perf_counter()
        prefill, start = make(folder, dtype)
        load = time.perf_counter() - begin
        if test == "prefill":
            ids = torch.randint(0, 50000, (1, PROMPT))
            tokens = PROMPT
            for _ in range(3):
                begin = time.perf_counter()
                prefill(ids)
                seconds.append(time.perf_counter() - begin)
        else:
            tokens = 8 if test == "batch" else 1
            step = start(tokens)
            ids = torch.randint(0, 50000, (tokens,))
            for _ in range(STEPS + 1):
                begin = time.perf_counter()
                ids = step(ids)
                seconds.append(time.perf_counter() - begin)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"tokens_per_s": tokens / statistics.median(seconds[1:]), "load_seconds": load,
                      "peak_rss": peak}))


if __name__ == "__main__":
    main()
