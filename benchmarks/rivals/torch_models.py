# SPDX-License-Identifier: Apache-2.0
"""Language models of transformers and of mamba_ssm behind one face: prefill, steps with the state kept,
logits for training. Imported by processes of rivals alone: needs torch."""

import importlib.util
import inspect

import torch

# `sizes` below is the "config" of `mamba-cpp inspect --json`.


def transformers_config(sizes):
    import transformers
    common = {"vocab_size": sizes["vocab_size"], "hidden_size": sizes["d_model"],
              "num_hidden_layers": sizes["n_layer"], "state_size": sizes["d_state"],
              "conv_kernel": sizes["d_conv"], "expand": sizes["d_inner"] // sizes["d_model"],
              "layer_norm_epsilon": sizes["norm_eps"], "use_bias": sizes["use_bias"],
              "use_conv_bias": sizes["conv_bias"], "residual_in_fp32": sizes["residual_in_fp32"],
              "tie_word_embeddings": sizes["tie_embeddings"]}
    if sizes["mixer"] == "mamba1":
        return transformers.MambaConfig(time_step_rank=sizes["dt_rank"], **common)
    return transformers.Mamba2Config(
        num_heads=sizes["d_inner"] // sizes["headdim"], head_dim=sizes["headdim"],
        n_groups=sizes["n_groups"], chunk_size=sizes["chunk_size"], **common)


def mamba_ssm_config(sizes):
    from mamba_ssm.models.config_mamba import MambaConfig
    layer = {"layer": "Mamba1", "d_state": sizes["d_state"], "d_conv": sizes["d_conv"],
             "expand": sizes["d_inner"] // sizes["d_model"]}
    if sizes["mixer"] == "mamba2":
        layer.update(layer="Mamba2", headdim=sizes["headdim"], ngroups=sizes["n_groups"],
                     chunk_size=sizes["chunk_size"])
    return MambaConfig(d_model=sizes["d_model"], n_layer=sizes["n_layer"],
                       vocab_size=sizes["vocab_size"], ssm_cfg=layer, rms_norm=True,
                       residual_in_fp32=sizes["residual_in_fp32"], fused_add_norm=True,
                       pad_vocab_size_multiple=1, tie_embeddings=sizes["tie_embeddings"])


def transformers_has_kernels():
    """transformers takes the kernels of these packages where they are, and plain torch elsewhere."""
    return all(importlib.util.find_spec(name) for name in ("mamba_ssm", "causal_conv1d"))


class Transformers:
    form = "hf"

    def __init__(self, model):
        self.model = model
        self.takes_position = "cache_position" in inspect.signature(model.forward).parameters
        self.slow = not transformers_has_kernels()

    @classmethod
    def load(cls, folder, dtype, device):
        import transformers
        transformers.logging.set_verbosity_error()
        return cls(transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
                   .to(device).eval())

    @classmethod
    def create(cls, sizes, dtype, device):
        import transformers
        transformers.logging.set_verbosity_error()
        with torch.device(device):
            model = transformers.AutoModelForCausalLM.from_config(transformers_config(sizes))
        return cls(model.to(device=device, dtype=dtype).eval())

    def prefill(self, ids):
        return self.model(ids, use_cache=True, logits_to_keep=1).logits[:, -1]

    def start(self, ids, steps):
        """Reads ids; returns step(tokens (B)) -> logits (B, V), which goes on behind them."""
        cache = self.model(ids, use_cache=True, logits_to_keep=1).cache_params
        more = {}
        if self.takes_position:  # before transformers 5: any position behind the prompt
            more["cache_position"] = torch.tensor([ids.shape[1]], device=ids.device)

        def step(tokens):
            nonlocal cache
            out = self.model(tokens[:, None], use_cache=True, cache_params=cache, **more)
            cache = out.cache_params
            return out.logits[:, -1]
        return step

    def logits(self, ids):
        return self.model(ids, use_cache=False).logits


class MambaSsm:
    form = "ssm"
    slow = False

    def __init__(self, model):
        self.model = model

    @classmethod
    def load(cls, folder, dtype, device):
        from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
        return cls(MambaLMHeadModel.from_pretrained(str(folder), device=device, dtype=dtype).eval())

    @classmethod
    def create(cls, sizes, dtype, device):
        from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
        return cls(MambaLMHeadModel(mamba_ssm_config(sizes), device=device, dtype=dtype).eval())

    def prefill(self, ids):
        from mamba_ssm.utils.generation import InferenceParams
        state = InferenceParams(max_seqlen=ids.shape[1] + 1, max_batch_size=ids.shape[0])
        return self.model(ids, inference_params=state, num_last_tokens=1).logits[:, -1]

    def start(self, ids, steps):
        """As Transformers.start; a step is a CUDA graph, as in generate(cg=True)."""
        from mamba_ssm.utils.generation import update_graph_cache
        batch, length = ids.shape
        most = length + steps + 1
        cache = update_graph_cache(self.model, None, batch, length, most)
        state = cache.inference_params
        state.reset(most, batch)
        self.model(ids, inference_params=state, num_last_tokens=1)
        state.seqlen_offset = length
        position = torch.full((batch, 1), length, dtype=torch.long, device=ids.device)

        def step(tokens):
            logits = cache.run(tokens[:, None], position, state.seqlen_offset)
            state.seqlen_offset += 1
            return logits[:, -1]
        return step

    def logits(self, ids):
        return self.model(ids).logits


ENGINES = {"transformers": Transformers, "mamba_ssm": MambaSsm}
