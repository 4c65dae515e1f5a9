#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""One process of a rival in PyTorch, alive for all rounds: a job a line in JSON on standard input, its
figures or {"error": ...} a line on standard output. Started by compare_gpu.py.

    gpu_worker.py mamba_ssm|causal-conv1d|transformers DEVICE      the jobs are the functions below
    gpu_worker.py probe DEVICE                                     what this Python has, and ends
"""

import importlib
import json
import os
import pathlib
import signal
import statistics
import sys
import time
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
PROMPT, STEPS = 16, 32         # of decode: the prompt before, and steps between two looks at the clock
LONG_CALL = 5  # seconds from which on one call of a round is enough
SAMPLE_PREFILL, SAMPLE_TRAIN = 256, 512  # tokens of the call that an estimate is made from


def probe(device):
    """Versions, or why there are none."""
    found = {}
    for name in ("torch", "transformers", "mamba_ssm", "causal_conv1d"):
        try:
            found[name] = {"version": getattr(importlib.import_module(name), "__version__", "?")}
        except Exception as error:  # noqa: BLE001  a package may fail to load in any way
            found[name] = {"error": (str(error).splitlines() or [type(error).__name__])[0]}
    if "version" in found["torch"] and device != "cpu":
        import torch
        try:
            found["device"] = (torch.cuda.get_device_name(device) if torch.cuda.is_available()
                               else None)
        except Exception as error:  # noqa: BLE001
            found["device_error"] = str(error).splitlines()[0]
    return found


class Skipped(Exception):
    """A call that would take too long."""


class Worker:
    def __init__(self, name, device):
        import torch
        self.torch, self.device = torch, device
        if device == "cpu":
            torch.set_num_threads(1)
        else:
            torch.cuda.set_device(device)
        torch.manual_seed(0)
        torch.set_float32_matmul_precision("highest")  # f32 means f32, as on our side
        torch.backends.cudnn.allow_tf32 = False
        self.models = {}
        if name != "causal-conv1d":
            from rivals import torch_models
            self.engine = torch_models.ENGINES[name]

    # ---- time ----

    def sync(self):
        if self.device != "cpu":
            self.torch.cuda.synchronize()

    def seconds_of(self, call):
        self.sync()
        begin = time.perf_counter()
        call()
        self.sync()
        return time.perf_counter() - begin

    def samples(self, call, seconds):
        """Calls behind a warm-up, for so long; at least three, but one where a call takes longer."""
        first = self.seconds_of(call)
        if first < LONG_CALL:
            self.seconds_of(call)
        taken = []
        while len(taken) < 3 or sum(taken) < seconds:
            taken.append(self.seconds_of(call))
            if taken[-1] > max(LONG_CALL, seconds) or len(taken) == 1000:
                break
        return taken

    def refuse_if_slow(self, job, call_of, length, sample, power):
        """Skips a call that grows at most with this power of its length, measured at a small one."""
        if length <= sample:
            return
        call = call_of(sample)
        call()
        estimate = self.seconds_of(call) * (length / sample) ** power
        if estimate > job["max_call_seconds"]:
            raise Skipped(f"a call would take up to {estimate:,.0f} s, by one of {sample} tokens; "
                          f"--max-call-seconds {job['max_call_seconds']:g}")

    # ---- jobs ----

    def model(self, job, dtype):
        """Random weights at our sizes, kept for the next jobs; as many parameters as ours."""
        key = json.dumps([job["sizes"], str(dtype)])
        if key not in self.models:
            for other in list(self.models):
                if json.loads(other)[0] != job["sizes"]:
                    del self.models[other]
            model = self.engine.create(job["sizes"], dtype, self.device)
            count = sum(p.numel() for p in model.model.parameters())
            if count != job["parameters"]:
                raise ValueError(f"{count} parameters, ours has {job['parameters']}: not equal models")
            self.models[key] = model
        return self.models[key]

    def ids(self, job, batch, length):
        return self.torch.randint(0, job["sizes"]["vocab_size"], (batch, length),
                                  device=self.device)

    def check(self, job):
        """Logits of a checkpoint that we saved, for `mamba-cpp verify`; and how far prefill and a
        step behind a prompt are from them."""
        from safetensors.torch import save_file
        torch = self.torch
        model = self.engine.load(job["folder"], torch.float32, self.device)
        ids = torch.arange(job["batch"] * job["length"], device=self.device)
        ids = (ids * 7919 % job["vocab_size"]).reshape(job["batch"], job["length"])
        with torch.inference_mode():
            logits = model.logits(ids).float()
            last = model.prefill(ids).float()
            step = model.start(ids[:, :-1], 2)(ids[:, -1]).float()
        save_file({"input_ids": ids.cpu(), "logits": logits.cpu().contiguous()}, job["file"])
        return {"largest": logits.abs().max().item(),
                "prefill_error": (last - logits[:, -1]).abs().max().item(),
                "step_error": (step - logits[:, -1]).abs().max().item()}

    def prefill(self, job):
        with self.torch.inference_mode():
            model = self.model(job, getattr(self.torch, job["dtype"]))

            def call_of(length):
                ids = self.ids(job, job["batch"], length)
                return lambda: model.prefill(ids)
            if model.slow:
                self.refuse_if_slow(job, call_of, job["tokens"], SAMPLE_PREFILL, 1)
            taken = self.samples(call_of(job["tokens"]), job["seconds"])
        return {"ms": statistics.median(taken) * 1e3, "calls": len(taken)}

    def decode(self, job):
        batch = job["batch"]
        with self.torch.inference_mode():
            model = self.model(job, getattr(self.torch, job["dtype"]))
            step = model.start(self.ids(job, batch, PROMPT), STEPS)
            tokens = self.ids(job, batch, 1)[:, 0]

            def steps():  # the tokens stay on the device: nothing is waited for between steps
                nonlocal tokens
                for _ in range(STEPS):
                    tokens = step(tokens).argmax(-1)
            taken = self.samples(steps, job["seconds"])
        return {"tokens_per_s": batch * STEPS / statistics.median(taken), "calls": len(taken)}

    def train(self, job):
        """f32 weights, products in the job's type (autocast), AdamW in one kernel; a batch that does
        not fit is halved."""
        torch = self.torch
        self.models.clear()
        batch, dtype = job["batch"], getattr(torch, job["dtype"])
        while True:
            try:
                result = self.train_batch(job, batch, dtype)
                break
            except torch.OutOfMemoryError:
                if batch == 1:
                    raise
                batch //= 2
            self.models.clear()  # here, where the error no longer holds what it was computing
        note = f"theirs at batch {batch}: {job['batch']} does not fit" if batch < job["batch"] else None
        return dict(result, note=note)

    def train_batch(self, job, batch, dtype):
        torch, cuda = self.torch, self.device != "cpu"
        kind = "cuda" if cuda else "cpu"
        self.release()
        model = self.model(job, torch.float32)
        model.model.train()
        optimizer = torch.optim.AdamW(model.model.parameters(), lr=1e-4, fused=cuda)

        def call_of(length):
            ids = self.ids(job, batch, length + 1)

            def step():
                with torch.autocast(kind, dtype, enabled=dtype != torch.float32):
                    logits = model.logits(ids[:, :-1])
                    loss = torch.nn.functional.cross_entropy(
                        logits.flatten(0, 1).float(), ids[:, 1:].flatten())
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            return step
        if model.slow:
            self.refuse_if_slow(job, call_of, job["length"], SAMPLE_TRAIN, 2)
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        taken = self.samples(call_of(job["length"]), job["seconds"])
        self.models.clear()
        return {"tokens_per_s": batch * job["length"] / statistics.median(taken),
                "gib": torch.cuda.max_memory_allocated() / 2 ** 30 if cuda else None,
                "calls": len(taken)}

    def kernel(self, job):
        from rivals import torch_kernels
        self.models.clear()
        return torch_kernels.measure(job)

    def release(self):
        if self.device != "cpu":
            self.torch.cuda.empty_cache()

    def answer(self, job):
        try:
            return getattr(self, job["kind"])(job)
        except Skipped as skipped:
            return {"error": str(skipped)}
        except self.torch.OutOfMemoryError:
            self.models.clear()
            return {"error": "does not fit into the memory of the card"}
        except Exception as error:  # noqa: BLE001  whatever a rival throws is a row's reason
            traceback.print_exc()
            words = (str(error).strip() or "no message").splitlines()[0]
            return {"error": f"{type(error).__name__}: {words[:200]}"}


def main():
    name, device = sys.argv[1:]
    device = "cuda:0" if device == "cuda" else device
    # What packages print does not belong among the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if name == "probe":
        print(json.dumps(probe(device)), file=answers, flush=True)
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    worker = Worker(name, device)
    for line in sys.stdin:
        result = worker.answer(json.loads(line))
        worker.release()
        print(json.dumps(result), file=answers, flush=True)


if __name__ == "__main__":
    main()
