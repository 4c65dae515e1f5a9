#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A golden file for a model folder that this program wrote, made by transformers.

    python3 golden_of_folder.py MODEL golden.safetensors && mamba-cpp verify MODEL golden.safetensors
"""

import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
ids = torch.randint(0, model.config.vocab_size, (2, 75), generator=torch.Generator().manual_seed(1))
with torch.no_grad():
    save_file({"input_ids": ids, "logits": model(ids, use_cache=False).logits}, sys.argv[2])
