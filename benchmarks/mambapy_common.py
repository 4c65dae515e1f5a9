# SPDX-License-Identifier: Apache-2.0
"""What the comparisons with mamba.py share: its language model and its weights as a model folder."""

import json
import pathlib

import torch
from mambapy.mamba import Mamba, MambaConfig, RMSNorm
from safetensors.torch import save_file


class LanguageModel(torch.nn.Module):
    """mamba.py's stack with a tied byte embedding, as its training example uses it."""

    def __init__(self, d_model, n_layers, vocab=256):
        super().__init__()
        self.embedding = torch.nn.Embedding(vocab, d_model)
        torch.nn.init.normal_(self.embedding.weight, 0, 0.02)
        self.stack = Mamba(MambaConfig(d_model=d_model, n_layers=n_layers, pscan=True))
        self.norm = RMSNorm(d_model)

    def forward(self, ids):
        return self.norm(self.stack(self.embedding(ids))) @ self.embedding.weight.T


def write_folder(model, folder):
    """The model's weights in the transformers form, readable with --init-from."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = model.stack.config
    tensors = {"backbone.embeddings.weight": model.embedding.weight,
               "backbone.norm_f.weight": model.norm.weight}
    for name, p in model.stack.named_parameters():
        tensors["backbone." + name] = p
    save_file({k: v.detach().clone().contiguous() for k, v in tensors.items()},
              folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({
        "model_type": "mamba", "vocab_size": model.embedding.num_embeddings,
        "hidden_size": config.d_model, "num_hidden_layers": config.n_layers,
        "state_size": config.d_state, "conv_kernel": config.d_conv, "expand": config.expand_factor,
        "intermediate_size": config.d_inner, "time_step_rank": config.dt_rank,
        "layer_norm_epsilon": config.rms_norm_eps, "use_bias": config.bias,
        "use_conv_bias": config.conv_bias, "hidden_act": "silu", "residual_in_fp32": True,
        "tie_word_embeddings": True, "rescale_prenorm_residual": False,
        "time_step_min": 0.001, "time_step_max": 0.1, "time_step_floor": 1e-4,
        "time_step_scale": 1.0, "time_step_init_scheme": "random", "initializer_range": 0.1,
        "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}, indent=2))
