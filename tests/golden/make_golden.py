#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Golden models: tiny random transformers models with their logits, greedy tokens and gradients.

    pip install torch==2.15.0 transformers==5.23.0 safetensors
    python3 make_golden.py [folder of this file]

Each model becomes a folder: config.json and model.safetensors as transformers writes them, and
golden.safetensors with input_ids (B, L) i64, logits (B, L, V), greedy (64) i64 (continuation of row
0, from full forwards without a cache), loss () and grad.<parameter> (mean next-token cross-entropy).

transformers' step (its cached decode) ignores time_step_limit; its full forward does not, so greedy
tokens come from full forwards alone. What it cannot express (D per channel, norm before the gate,
LayerNorm, the gated MLP part, learned initial states) is checked against the f64 recurrence instead.
"""

import json
import pathlib
import sys

import torch
import transformers
from safetensors.torch import save_file
from transformers import (FalconMambaConfig, FalconMambaForCausalLM, Mamba2Config, Mamba2ForCausalLM,
                          MambaConfig, MambaForCausalLM)

BATCH, LENGTH, GREEDY = 2, 37, 64

MODELS = {
    "mamba1": (MambaForCausalLM, MambaConfig(
        vocab_size=61, hidden_size=23, num_hidden_layers=2, state_size=16, conv_kernel=4, expand=2,
        time_step_rank=3, use_bias=False, use_conv_bias=True, tie_word_embeddings=True)),
    "mamba1_bias_untied": (MambaForCausalLM, MambaConfig(
        vocab_size=37, hidden_size=20, num_hidden_layers=2, state_size=5, conv_kernel=3, expand=3,
        time_step_rank=2, use_bias=True, use_conv_bias=False, tie_word_embeddings=False)),
    "mamba2": (Mamba2ForCausalLM, Mamba2Config(
        vocab_size=61, hidden_size=21, num_hidden_layers=2, state_size=19, conv_kernel=4, expand=2,
        num_heads=6, head_dim=7, n_groups=1, chunk_size=16, tie_word_embeddings=True)),
    "mamba2_groups_bias_untied": (Mamba2ForCausalLM, Mamba2Config(
        vocab_size=37, hidden_size=20, num_hidden_layers=2, state_size=8, conv_kernel=3, expand=2,
        num_heads=8, head_dim=5, n_groups=4, chunk_size=8, use_bias=True, use_conv_bias=False,
        time_step_limit=(0.02, 0.6), tie_word_embeddings=False)),
    "falcon_mamba": (FalconMambaForCausalLM, FalconMambaConfig(
        vocab_size=50, hidden_size=18, num_hidden_layers=2, state_size=16, conv_kernel=4, expand=2,
        intermediate_size=34, time_step_rank=5, use_bias=False, use_conv_bias=True,
        tie_word_embeddings=False)),
}


def randomize(model, generator):
    """Moves every parameter off its tidy start, so that none can be dropped unnoticed."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if name.endswith("A_log"):
                p.copy_(torch.rand(p.shape, generator=generator) * 2.5 - 1.0)
            elif name.endswith(("dt_bias", "dt_proj.bias")):
                p.copy_(noise * 0.7 - 2.0)
            elif name.endswith("norm_f.weight") and model.config.tie_word_embeddings:
                p.copy_(10 + 3 * noise)
            elif name.endswith(("norm.weight", "norm_f.weight", ".D")):
                p.copy_(1 + 0.3 * noise)
            elif "embeddings" in name or "lm_head" in name:
                # A tied head of full size would only repeat its input.
                p.copy_(noise * (0.1 if model.config.tie_word_embeddings else 1.0))
            elif p.ndim == 1:
                p.copy_(0.2 * noise)
            else:
                p.copy_(noise * (1.2 / max(1, p.shape[-1]) ** 0.5))


def make(name, folder):
    model_class, config = MODELS[name]
    generator = torch.Generator().manual_seed(sum(map(ord, name)) + 5)
    torch.manual_seed(0)
    model = model_class(config).float().eval()
    randomize(model, generator)
    ids = torch.randint(0, config.vocab_size, (BATCH, LENGTH), generator=generator)
    logits = model(ids, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, config.vocab_size), ids[:, 1:].reshape(-1))
    loss.backward()
    tensors = {"input_ids": ids, "logits": logits.detach(), "loss": loss.detach().reshape(1)}
    for parameter, p in model.named_parameters():
        tensors["grad." + parameter] = p.grad.clone()
    row, greedy, margin = ids[:1], [], float("inf")
    with torch.no_grad():
        for _ in range(GREEDY):
            last = model(row, use_cache=False).logits[0, -1]
            top = last.topk(2).values
            margin = min(margin, (top[0] - top[1]).item())
            greedy.append(last.argmax().item())
            row = torch.cat([row, torch.tensor([[greedy[-1]]])], dim=1)
    tensors["greedy"] = torch.tensor(greedy)
    target = folder / name
    model.save_pretrained(target)
    (target / "generation_config.json").unlink(missing_ok=True)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    save_file({k: v.contiguous() for k, v in tensors.items()}, target / "golden.safetensors", versions)
    size = sum(f.stat().st_size for f in target.iterdir())
    print(f"{name}: {size} bytes, loss {loss.item():.4f}, greedy margin {margin:.4f}, "
          f"{len(set(greedy))} different tokens", json.dumps(versions))


if __name__ == "__main__":
    where = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent)
    for model_name in MODELS:
        make(model_name, where)
