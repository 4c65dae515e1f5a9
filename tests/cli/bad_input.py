# SPDX-License-Identifier: Apache-2.0
"""Wrong input to every command: one line on standard error that says what was expected, what was
found and what to do, the right exit code, nothing on standard output (with --json, the same as an
object), and no file changed.

Usage: bad_input.py PROGRAM [NAME...]
"""
import contextlib
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile

import bad_files

USAGE, INPUT, MACHINE = 2, 3, 4
PROGRAM = os.path.abspath(sys.argv[1])


GENERATE = ["generate", "-m", "good", "-n", "2"]
IDS = GENERATE + ["--prompt-ids", "1,2"]
TRAIN = ["train", "--model-config", "good/config.json", "--data", "text", "--output-dir", "new",
         "--seq-len", "16", "--lr-scheduler-type", "constant"]
RUN = [*TRAIN[:6], "run", *TRAIN[7:], "--batch-size", "1"]  # as make_run() did
PPL = ["eval", "ppl", "-m", "good", "-f", "text"]
KL = ["eval", "kl", "good", "other", "-f", "text"]
TASKS = ["eval", "tasks", "-m", "good", "--data", "evals", "--tasks"]

BENCH = ["bench", "-m", "good"]

# name, arguments, exit code, what the message must contain
CASES = [
    ("unknown_command", ["genrate"], USAGE, ["genrate", "did you mean 'generate'"]),
    ("unknown_flag", GENERATE + ["--tmep", "1"], USAGE, ["--tmep", "did you mean '--temp'"]),
    ("missing_required", ["generate", "-p", "x"], USAGE,
     ["[generate] expected --model FOLDER, got none"]),
    ("unknown_flag_nested", ["bench", "model", "good", "--prompt", "1"], USAGE,
     ["[bench model]", "did you mean '--prompt-length'", "mamba-cpp bench model --help"]),
    ("backend_unknown", IDS + ["--backend", "fast"], USAGE,
     ["[--backend]", "auto, reference, fused", "'fast'"]),
    ("backend_fused_cpu", IDS + ["--backend", "fused"], USAGE,
     ["[--backend]", "mamba1_step", "use --backend auto"]),
    ("backend_fused_ref", PPL + ["--isa", "ref", "--backend", "fused"], USAGE,
     ["[--backend]", "got ref", "use --backend auto"]),
    ("backend_fused_bench", BENCH + ["--backend", "fused"], USAGE, ["[--backend]", "mamba1_step"]),
    ("tune_cpu", ["tune", "--device", "cpu"], USAGE, ["[tune] expected a GPU", "nothing to choose"]),
    ("tune_model", ["tune", "mamba-131m"], USAGE, ["mamba-131m"]),
    ("tune_dtype", ["tune", "--dtype", "bf17"], USAGE, ["bf17"]),
    ("tune_source", ["tune", "--to", "source"], USAGE, ["--to", "--output"]),
    ("extra_word", IDS + ["word"], USAGE, ["[generate] expected flags, got 'word'"]),
    ("extra_short_flag", ["bench", "model", "good", "-m", "x"], USAGE,
     ["[bench model] expected a known flag, got '-m'"]),
    ("flag_twice", GENERATE + ["--temp", "1", "--temp", "x"], USAGE, ["[--temp]", "got 'x'"]),
    ("flag_nothing_like_it", GENERATE + ["-fa"], USAGE, ["'-fa': these models have no attention"]),
    ("flag_do_sample", GENERATE + ["--do_sample"], USAGE, ["tokens are drawn anyway"]),
    ("flag_without_value", GENERATE + ["--temp"], USAGE, ["[--temp] expected a value, got none"]),
    ("state_out_over_text", IDS + ["--state-out", "text"], USAGE,
     ["[--state-out] expected a new file, or a saved state", "text"]),
    ("gguf_card_over_text", ["convert", "good", "notes.gguf", "--to", "gguf"], USAGE,
     ["notes.md", "model card"]),
    ("missing_subcommand", ["bench"], USAGE,
     ["[bench] expected --model MODEL or one of the commands kernel, model, train, roofline"]),
    ("missing_positional", ["verify"], USAGE, ["[verify] expected MODEL, got none"]),
    ("missing_model", ["generate", "-m", "nowhere", "-p", "x"], INPUT,
     ["nowhere", "neither a folder nor a file"]),
    ("model_is_text", ["generate", "-m", "text", "-p", "x"], INPUT, ["text"]),
    ("no_weights", ["generate", "-m", "no_weights", "-p", "x"], INPUT, ["model.safetensors"]),
    ("truncated", ["generate", "-m", "truncated", "-p", "x"], INPUT, ["truncated", "byte"]),
    ("no_header", ["generate", "-m", "no_header", "-p", "x"], INPUT, ["no_header"]),
    ("lying_header", ["generate", "-m", "lying_header", "-p", "x"], INPUT, ["lying_header", "header"]),
    ("lying_offsets", ["generate", "-m", "lying_offsets", "-p", "x"], INPUT, ["lying_offsets"]),
    ("wrong_shape", ["generate", "-m", "turned", "-p", "x"], INPUT,
     ["A_log", "[32, 16]", "[16, 32]"]),
    ("missing_tensor", ["generate", "-m", "missing", "-p", "x"], INPUT, ["A_log"]),
    ("extra_tensor", ["generate", "-m", "extra", "-p", "x"], INPUT, ["layers.9"]),
    ("wrong_dtype", ["generate", "-m", "integers", "-p", "x"], INPUT, ["A_log"]),
    ("config_not_json", ["generate", "-m", "not_json", "-p", "x"], INPUT, ["not_json"]),
    ("config_key_twice", ["generate", "-m", "twice", "-p", "x"], INPUT, ["d_model"]),
    ("config_absurd", ["generate", "-m", "absurd", "-p", "x"], INPUT, ["d_model", "1000000000000000"]),
    ("config_negative", ["generate", "-m", "negative", "-p", "x"], INPUT, ["n_layer", "-3"]),
    ("config_key_missing", ["generate", "-m", "no_width", "-p", "x"], INPUT, ["d_model"]),
    ("config_foreign", ["generate", "-m", "foreign", "-p", "x"], INPUT, ["llama", "mamba"]),
    ("config_key_of_the_file", ["generate", "-m", "taps", "-p", "x"], INPUT,
     ["d_conv from 1 to 256, got 300"]),
    ("config_unknown_key", ["inspect", "unknown_key"], INPUT, ["d_convolution"]),
    ("pickle_hostile", ["generate", "-m", "hostile", "-p", "x"], INPUT,
     ["posix.system", "nothing of it was executed"]),
    ("pickle_truncated", ["inspect", "pickle_cut"], INPUT, ["pickle_cut", "byte"]),
    ("pickle_of_numbers", ["inspect", "pickle_number"], INPUT, ["an int under", "w"]),
    ("torch_legacy", ["generate", "-m", "legacy", "-p", "x"], INPUT, ["since version 1.6"]),
    ("torch_zip_truncated", ["inspect", "zip_cut"], INPUT, ["zip directory"]),
    ("gguf_truncated", ["generate", "-m", "cut.gguf", "-p", "x"], INPUT,
     ["cut.gguf", "the end of the file", "fetch it again"]),
    ("gguf_magic", ["inspect", "magic.gguf"], INPUT, ["starts with \"GGUF\"", "GGML"]),
    ("gguf_version", ["inspect", "version.gguf"], INPUT, ["version 2 or 3", "got 1"]),
    ("gguf_counts", ["inspect", "counts.gguf"], INPUT, ["counts of tensors", "18446744073709551615"]),
    ("gguf_architecture", ["generate", "-m", "llama.gguf", "-p", "x"], INPUT, ["mamba2", "llama"]),
    ("gguf_key_missing", ["generate", "-m", "no_state.gguf", "-p", "x"], INPUT,
     ["mamba.ssm.state_size", "found none"]),
    ("gguf_key_lies", ["inspect", "wide.gguf"], INPUT,
     ["blk.0.ssm_in.weight", "[64, 16]", "[96, 16]", "the file's metadata and weights"]),
    ("gguf_key_type", ["inspect", "text_size.gguf"], INPUT, ["mamba.block_count", "string \"two\""]),
    ("gguf_tensor_type", ["inspect", "old_type.gguf"], INPUT, ["ssm_in", "Q2_K", "Q4_K_M"]),
    ("gguf_rows", ["inspect", "rows.gguf"], INPUT, ["ssm_in", "multiple of 32", "q8_0"]),
    ("gguf_tensor_missing", ["generate", "-m", "no_tensor.gguf", "-p", "x"], INPUT,
     ["a tensor \"blk.1.ssm_d\"", "blk.0.ssm_d", "the file's metadata"]),
    ("gguf_growing_state", ["generate", "-m", "growing.gguf", "-p", "x"], INPUT,
     ["blk.0.ssm_a", "negative", "got 1"]),
    ("gguf_key_range", ["inspect", "taps.gguf"], INPUT,
     ["[taps.gguf] expected mamba.ssm.conv_kernel from 1 to 256, got 300"]),
    ("gguf_tensor_more_run", ["generate", "-m", "more.gguf", "-p", "x"], INPUT,
     ["got also 'blk.9.ssm_d' [32]", "the file's metadata and weights do not belong together"]),
    ("gguf_key_lies_run", ["generate", "-m", "wide.gguf", "-p", "x"], INPUT,
     ["\"blk.0.ssm_in.weight\" of shape [96, 16], got [64, 16]", "the file's metadata"]),
    ("gguf_tensor_more", ["inspect", "more.gguf"], INPUT,
     ["'blk.9.ssm_d' [32] belongs to no layer", "the file's metadata and weights do not belong together"]),
    ("gguf_tokenizer", ["tokenize", "--tokenizer", "pieces.gguf", "-f", "text"], INPUT,
     ["tokenizer.ggml.model", "gpt2", "llama"]),
    ("gguf_second_shard", ["inspect", "second-00002-of-00002.gguf"], INPUT,
     ["the first of 2 shards", "got shard 2"]),
    ("gguf_renamed_shard", ["inspect", "renamed.gguf"], INPUT,
     ["a name that ends in -00001-of-00002.gguf", "got 'renamed.gguf'", "-0000I-of-00002.gguf back"]),
    ("gguf_missing", ["generate", "-m", "nowhere.gguf", "-p", "x"], INPUT, ["nowhere.gguf"]),
    # Files of other kinds than text, and files that are the user's own.
    ("text_is_xz", ["eval", "ppl", "-m", "good", "-f", "packed.txt.xz"], INPUT,
     ["packed by xz", "xz -dk 'packed.txt.xz'"]),
    ("text_is_lines", ["eval", "ppl", "-m", "good", "-f", "bad.jsonl"], INPUT,
     ["lines of JSON", "jq -r .text"]),
    ("kl_text_is_zip", [*KL[:-1], "packed.zip"], INPUT, ["zip archive", "unzip"]),
    ("imatrix_text_is_gguf", ["imatrix", "good", "-f", "good.gguf", "-o", "new.gguf"], INPUT,
     ["a GGUF file", "name a text file"]),
    ("imatrix_empty", ["imatrix", "good", "-f", "empty", "-o", "new.gguf"], INPUT, ["512 tokens"]),
    ("eval_text_is_gzip", ["quantize", "good", "new.gguf", "q8_0", "--eval-text", "packed.gz"], INPUT,
     ["[--eval-text]", "gzip -dk"]),
    ("eval_text_missing", ["quantize", "good", "new.gguf", "q8_0", "--eval-text", "nowhere"], INPUT,
     ["[--eval-text]", "nowhere"]),
    ("eval_text_empty", ["quantize", "good", "new.gguf", "q8_0", "--eval-text", "empty"], INPUT,
     ["[--eval-text]", "2 tokens", "empty"]),
    ("prompt_is_weights", GENERATE + ["-f", "good/model.safetensors"], INPUT, ["a safetensors file"]),
    ("prompt_is_lines", GENERATE + ["-f", "bad.jsonl"], INPUT, ["lines of JSON", "--jsonl"]),
    ("prompt_is_empty", GENERATE + ["-f", "empty"], INPUT, ["empty", "-p ''"]),
    ("train_data_is_zstd", [*TRAIN[:4], "packed.zst", *TRAIN[5:]], INPUT,
     ["[--data]", "packed by zstd", "zstd -d"]),
    ("train_valid_is_bzip2", TRAIN + ["--valid", "packed.bz2"], INPUT,
     ["[--valid]", "packed by bzip2", "bzip2 -dk"]),
    ("train_data_is_zeros", [*TRAIN[:4], "zeros", *TRAIN[5:]], INPUT,
     ["no text", "tokenize --tokenizer bytes"]),
    ("train_folder_of_packed", [*TRAIN[:4], "packed", *TRAIN[5:]], INPUT,
     ["[--data packed]", "packed by xz (2)", "xz -dk"]),
    ("train_over_card", [*TRAIN[:6], "mine-README.md", *TRAIN[7:]], USAGE,
     ["[--output-dir mine-README.md]", "without README.md", "another folder"]),
    ("train_over_log", [*TRAIN[:6], "mine-metrics.jsonl", *TRAIN[7:]], USAGE, ["metrics.jsonl"]),
    ("train_over_curves", [*TRAIN[:6], "mine-curves.svg", *TRAIN[7:]], USAGE, ["curves.svg"]),
    ("train_over_config", [*TRAIN[:6], "mine-config.json", *TRAIN[7:]], USAGE, ["config.json"]),
    ("train_over_tokenizer", [*TRAIN[:6], "mine-tokenizer_config.json", *TRAIN[7:]], USAGE,
     ["tokenizer_config.json"]),
    ("train_over_template", [*TRAIN[:6], "mine-chat_template.jinja", *TRAIN[7:]], USAGE,
     ["chat_template.jinja", "part of the model"]),
    ("train_eval_batches", TRAIN + ["--eval-batches", "3"], USAGE, ["[--eval-batches] expected --valid"]),
    ("tokenizer_train_xz", ["tokenizer", "train", "--data", "packed.txt.xz", "--vocab-size", "300", "--out",
                            "new"], INPUT, ["packed by xz"]),
    ("tokenizer_train_bin", ["tokenizer", "train", "--data", "told.bin", "--vocab-size", "300", "--out",
                             "new"], INPUT, ["told.bin", "a file of tokens"]),
    ("tokenizer_train_line", ["tokenizer", "train", "--data", "bad.jsonl", "--vocab-size", "300",
                              "--out", "new"], INPUT, ["bad.jsonl, line 2", "body"]),
    ("tokenize_over_input", ["tokenize", "--tokenizer", "bytes", "--jsonl", "-f", "data.json",
                             "--out", "data.bin"], USAGE, ["the input", "data.bin", "description"]),
    ("tokenize_over_itself", ["tokenize", "--tokenizer", "bytes", "-f", "text", "--out", "text"],
     USAGE, ["the input"]),
    ("tokenize_over_text", ["tokenize", "--tokenizer", "bytes", "-f", "short", "--out", "text"],
     USAGE, ["[--out]", "text, which is something else"]),
    ("tokenize_over_json", ["tokenize", "--tokenizer", "bytes", "-f", "short", "--out", "data.bin"],
     USAGE, ["data.json, which is something else"]),
    ("tasks_over_file", TASKS + ["piqa", "-o", "evals/piqa.jsonl"], USAGE,
     ["[--output] expected a new file, or results", "give another name"]),
    ("state_over_weights", IDS + ["--state-out", "good/model.safetensors"], USAGE,
     ["[--state-out]", "model.safetensors"]),
    ("resume_over_a_line", ["generate", "-m", "good", "--jsonl", "-f", "asked.jsonl", "-o", "one.jsonl",
                            "--resume"], INPUT, ["one.jsonl", "results of an earlier run"]),
    ("logit_bias_letters", IDS + ["--logit-bias", "\u65e5\u672c=5"], USAGE, ["'\u65e5\u672c=5'"]),
    ("config_json_key", IDS + ["--config", "settings.json"], USAGE,
     ["[settings.json, 'generate.temp']", "-7"]),
    ("convert_says_convert", ["convert", "good", "out.bin", "--to", "gguf"], USAGE, ["[convert]", ".gguf"]),
    ("quantize_type", ["quantize", "good", "new.gguf", "q3_k"], USAGE, ["q3_k", "q4_k_m"]),
    ("quantize_output", ["quantize", "good", "new.bin", "q8_0"], USAGE, [".gguf", "new.bin"]),
    ("quantize_over_a_file", ["quantize", "good", "good.gguf", "q8_0"], USAGE, ["good.gguf", "--force"]),
    ("quantize_own_file", ["quantize", "good.gguf", "good.gguf", "q8_0", "--force"], USAGE, ["own"]),
    ("quantize_nothing", ["quantize", "nowhere", "new.gguf", "q8_0"], INPUT, ["nowhere"]),
    ("quantize_rule", ["quantize", "good", "new.gguf", "q8_0", "--tensor-type", "ssm_in"], USAGE,
     ["REGEX=TYPE", "ssm_in"]),
    ("quantize_rule_regex", ["quantize", "good", "new.gguf", "q8_0", "--tensor-type", "ssm_(=f16"],
     USAGE, ["[--tensor-type] expected a regular expression", "'ssm_('", "); correct it\n"]),
    ("quantize_rule_file", ["quantize", "good", "new.gguf", "q8_0", "--tensor-type-file", "text"],
     USAGE, ["[--tensor-type-file]", "REGEX=TYPE"]),
    ("quantize_rule_no_file", ["quantize", "good", "new.gguf", "q8_0", "--tensor-type-file", "nowhere"],
     INPUT, ["[--tensor-type-file]", "nowhere"]),
    ("quantize_head_type", ["quantize", "good", "new.gguf", "q8_0", "--output-tensor-type", "q9"],
     USAGE, ["[--output-tensor-type] expected a type", "'q9'"]),
    ("quantize_embedding_type", ["quantize", "good", "new.gguf", "q8_0", "--token-embedding-type",
                                 "q4_k_m"], USAGE, ["[--token-embedding-type]", "q4_k_m"]),
    ("quantize_head_both", ["quantize", "good", "new.gguf", "q8_0", "--leave-output-tensor",
                            "--output-tensor-type", "f16"], USAGE,
     ["--leave-output-tensor", "--output-tensor-type", "leave one out"]),
    ("quantize_keep_split", ["quantize", "good", "new.gguf", "q8_0", "--keep-split"], USAGE,
     ["[quantize] expected no flag --keep-split", "--max-shard-mb"]),
    ("quantize_override", ["quantize", "good", "new.gguf", "q8_0", "--override-kv", "a=int:1"], USAGE,
     ["'--override-kv a=int:1'", "config.json"]),
    ("quantize_rule_type", ["quantize", "good", "new.gguf", "q8_0", "--tensor-type", "ssm=q4_k_m"],
     USAGE, ["--tensor-type", "q4_k_m"]),
    ("quantize_rule_unused", ["quantize", "good", "new.gguf", "q8_0", "--tensor-type", "attn_q=f16"],
     USAGE, ["--tensor-type", "attn_q", "matches none"]),
    ("quantize_imatrix_text", ["quantize", "good", "new.gguf", "q8_0", "--imatrix", "text"], INPUT,
     ["text", "mamba-cpp imatrix"]),
    ("quantize_imatrix_model", ["quantize", "good", "new.gguf", "q8_0", "--imatrix", "good.gguf"],
     INPUT, ["good.gguf", "general.type", "imatrix"]),
    ("quantize_imatrix_other", ["quantize", "good", "new.gguf", "q8_0", "--imatrix", "imatrix.gguf",
                                "--tensor-type", "ssm_in=q8_0"], INPUT, ["16 columns", "got 8"]),
    ("quantize_eval_dry", ["quantize", "good", "new.gguf", "q8_0", "--dry-run", "--eval-text", "text"],
     USAGE, ["--eval-text", "--dry-run"]),
    ("imatrix_short", ["imatrix", "good", "-f", "short", "-o", "new.gguf"], INPUT,
     ["512 tokens", "--chunk"]),
    ("imatrix_output", ["imatrix", "good", "-f", "text", "-o", "new.bin"], USAGE, [".gguf", "new.bin"]),
    ("convert_gguf_name", ["convert", "good", "new", "--to", "gguf"], USAGE, [".gguf", "'new'"]),
    ("convert_blocks_in_a_folder", ["convert", "good", "new", "--to", "hf", "--dtype", "q4_0"], USAGE,
     ["--dtype", "q4_0", "--to gguf"]),
    ("convert_without_form", ["convert", "good", "new"], USAGE, ["--to"]),
    ("convert_unknown_form", ["convert", "good", "new", "--to", "onnx"], USAGE, ["onnx", "hf"]),
    ("convert_nothing", ["convert", "nowhere", "new", "--to", "hf"], INPUT, ["nowhere"]),
    ("convert_into_files", ["convert", "good", "other", "--to", "ssm"], USAGE, ["--force"]),
    ("convert_into_itself", ["convert", "good", "good", "--to", "hf", "--force"], USAGE,
     ["own"]),
    ("convert_over_a_file", ["convert", "good", "text", "--to", "hf"], USAGE, ["text", "a file"]),
    ("convert_nowhere", ["convert", "good", "nowhere/new", "--to", "hf"], INPUT, ["nowhere/new"]),
    ("convert_hostile", ["convert", "hostile", "new", "--to", "hf"], INPUT, ["posix.system"]),
    ("convert_tolerance_alone", ["convert", "good", "new", "--to", "hf", "--tolerance", "0.1"], USAGE,
     ["--tolerance", "--verify"]),
    ("convert_dtype", ["convert", "good", "new", "--to", "hf", "--dtype", "f8"], USAGE, ["f8"]),
    ("id_out_of_range", GENERATE + ["--prompt-ids", "1,256"], USAGE, ["0..255", "256"]),
    ("ids_empty", GENERATE + ["--prompt-ids", ""], USAGE, ["--prompt-ids", "empty list"]),
    ("id_no_number", GENERATE + ["--prompt-ids", "1,,2"], USAGE, ["--prompt-ids"]),
    ("temp_nan", IDS + ["--temp", "nan"], USAGE, ["--temp", "nan"]),
    ("temp_infinite", IDS + ["--temp", "inf"], USAGE, ["--temp", "inf"]),
    ("temp_text", IDS + ["--temp", "warm"], USAGE, ["--temp", "warm"]),
    ("top_p_too_large", IDS + ["--top-p", "1.5"], USAGE, ["--top-p", "1.5"]),
    ("tokens_negative", ["generate", "-m", "good", "-p", "x", "-n", "-5"], USAGE,
     ["--max-new-tokens", "-5"]),
    ("seed_too_large", IDS + ["--seed", "99999999999999999999"], USAGE, ["--seed"]),
    ("two_prompts", GENERATE + ["-p", "x", "-f", "text"], USAGE, ["--prompt", "--file"]),
    ("prompt_file_missing", GENERATE + ["-f", "nowhere"], INPUT, ["nowhere"]),
    ("prompt_is_folder", GENERATE + ["-f", "good"], INPUT, ["good"]),
    ("stop_empty", GENERATE + ["-p", "x", "--stop", ""], USAGE, ["stop"]),
    ("text_without_tokenizer", ["generate", "-m", "words", "-p", "x"], USAGE, ["--prompt-ids"]),
    ("stop_without_tokenizer", ["generate", "-m", "words", "--prompt-ids", "1", "--stop", "x"],
     USAGE, ["tokenizer"]),
    ("state_of_samples", IDS + ["--n", "2", "--state-out", "new"], USAGE, ["--state-out", "--n 2"]),
    ("state_of_another_model", ["generate", "-m", "other", "--state-in", "state"], INPUT,
     ["model_fingerprint"]),
    ("state_of_another_dtype", GENERATE + ["--state-in", "state", "--dtype", "bf16"], INPUT,
     ["'bf16'", "'f32'"]),
    ("state_truncated", GENERATE + ["--state-in", "state_short"], INPUT, ["state_short"]),
    ("state_is_weights", GENERATE + ["--state-in", "good/model.safetensors"], INPUT, ["format"]),
    ("state_missing", GENERATE + ["--state-in", "nowhere"], INPUT, ["nowhere"]),
    ("state_is_folder", ["generate", "-m", "nowhere", "-p", "x", "--state-out", "good"], USAGE,
     ["[good] expected a file name, got a folder"]),
    ("state_nowhere", IDS + ["--state-out", "nowhere/state"], INPUT, ["nowhere"]),
    ("unknown_isa", IDS + ["--isa", "sse9"], USAGE, ["--isa", "sse9", "avx2"]),
    ("unknown_dtype", IDS + ["--dtype", "f8"], USAGE, ["--dtype", "f8", "bf16"]),
    ("threads", IDS + ["--threads", "5000"], USAGE, ["--threads", "0..1024", "5000"]),
    ("ppl_text_missing", PPL[:-1] + ["nowhere"], INPUT, ["nowhere"]),
    ("ppl_text_short", PPL[:-1] + ["short"], INPUT, ["2 tokens", "got 1"]),
    ("ppl_text_empty", PPL[:-1] + ["empty", "--carry-state"], INPUT, ["2 tokens", "got 0"]),
    ("ppl_window", PPL + ["--window", "1"], USAGE, ["--window", "2.."]),
    ("ppl_stride", PPL + ["--window", "8", "--stride", "9"], USAGE, ["--stride", "8", "9"]),
    ("ppl_contradiction", PPL + ["--carry-state", "--stride", "9"], USAGE, ["--carry-state"]),
    ("ppl_without_tokenizer", ["eval", "ppl", "-m", "words", "-f", "text"], INPUT, ["64"]),
    ("eval_unknown", ["eval", "pppl"], USAGE, ["pppl", "ppl"]),
    ("ppl_tail_carried", PPL + ["--carry-state", "--drop-tail"], USAGE, ["--drop-tail"]),
    ("ppl_windows", PPL + ["--windows", "0"], USAGE, ["--windows", "1.."]),
    ("ppl_no_full_window", PPL + ["--window", "5000", "--drop-tail"], INPUT, ["5000 tokens"]),
    ("kl_one_model", ["eval", "kl", "good", "-f", "text"], USAGE, ["MODEL"]),
    ("kl_other_vocabulary", ["eval", "kl", "good", "words", "-f", "text"], INPUT, ["64"]),
    ("kl_text_missing", KL[:-1] + ["nowhere"], INPUT, ["[eval kl]", "nowhere"]),
    ("kl_text_short", KL[:-1] + ["short"], INPUT, ["[eval kl]", "2 tokens"]),
    ("kl_contradiction", KL + ["--carry-state", "--window", "9"], USAGE, ["--carry-state"]),
    ("tasks_none", TASKS[:-1], USAGE, ["--tasks"]),
    ("tasks_short_name", TASKS + ["lambada"], USAGE, ["did you mean 'lambada_openai'"]),
    ("tasks_unknown", TASKS + ["hellaswagg"], USAGE, ["did you mean 'hellaswag'", "winogrande"]),
    ("tasks_empty_name", TASKS + ["piqa,"], USAGE, ["--tasks", "got ''"]),
    ("tasks_twice", TASKS + ["piqa,boolq,piqa"], USAGE, ["'piqa' twice"]),
    ("tasks_limit_zero", TASKS + ["piqa", "--limit", "0"], USAGE, ["--limit", "1.."]),
    ("tasks_batch_zero", TASKS + ["piqa", "--batch-size", "0"], USAGE, ["--batch-size", "1.."]),
    ("tasks_no_folder", TASKS[:5] + ["nowhere", "--tasks", "piqa"], INPUT, ["nowhere"]),
    ("tasks_data_is_file", TASKS[:5] + ["text", "--tasks", "piqa"], INPUT, ["folder", "text"]),
    ("tasks_no_file", TASKS + ["wsc273"], INPUT, ["wsc273.jsonl", "no such file"]),
    ("tasks_packed_file", TASKS + ["lambada_openai"], INPUT, ["xz -dk"]),
    ("tasks_empty_file", TASKS + ["arc_challenge"], INPUT, ["arc_challenge.jsonl", "empty"]),
    ("tasks_not_json", TASKS + ["openbookqa"], INPUT, ["openbookqa.jsonl, line 2"]),
    ("tasks_not_object", TASKS + ["hellaswag"], INPUT, ["hellaswag.jsonl, line 2", "object"]),
    ("tasks_wrong_gold", TASKS + ["boolq"], INPUT, ["boolq.jsonl, line 2", "gold"]),
    ("tasks_missing_field", TASKS + ["arc_easy"], INPUT, ["arc_easy.jsonl, line 2", "choices"]),
    ("tasks_wrong_type", TASKS + ["winogrande"], INPUT, ["winogrande.jsonl, line 2", "target"]),
    ("tasks_long_continuation", TASKS + ["piqa", "--max-length", "3"], USAGE,
     ["at most 3 tokens", "got one of 4", "piqa.jsonl, line 1"]),
    ("tasks_without_tokenizer", ["eval", "tasks", "-m", "words", *TASKS[4:], "piqa"], INPUT,
     ["[eval tasks]", "64"]),
    ("tasks_output_nowhere", TASKS + ["piqa", "--output", "nowhere/out"], INPUT, ["nowhere"]),
    ("tasks_output_is_folder", TASKS + ["piqa", "--output", "good"], USAGE, ["good"]),
    ("golden_missing", ["verify", "good", "nowhere"], INPUT, ["nowhere"]),
    ("golden_is_text", ["verify", "good", "text"], INPUT, ["text"]),
    ("golden_part", ["verify", "good", "golden_part"], INPUT, ["logits"]),
    ("golden_far", ["verify", "good", "golden_far"], INPUT, ["input_ids", "0..255", "300"]),
    ("golden_shape", ["verify", "good", "golden_shape"], INPUT, ["[2, 3, 256]", "[3, 2, 256]"]),
    ("tolerance_nan", ["verify", "good", "golden", "--tolerance", "nan"], USAGE, ["--tolerance"]),
    ("dump_is_folder", ["verify", "nowhere", "golden", "--dump", "good"], USAGE,
     ["[good] expected a file name, got a folder"]),
    ("dump_nowhere", ["verify", "good", "golden", "--dump", "nowhere/out"], INPUT, ["nowhere"]),
    ("inspect_nothing", ["inspect", "mamba-131m"], USAGE, ["mamba-131m", "mamba-130m"]),
    ("inspect_other_weights", ["inspect", "turned"], INPUT, ["A_log", "[32, 16]", "[16, 32]"]),
    ("inspect_missing_tensor", ["inspect", "missing"], INPUT, ["A_log", "missing"]),
    ("inspect_truncated", ["inspect", "truncated"], INPUT, ["truncated"]),
    ("inspect_truncated_json", ["inspect", "truncated", "--json"], INPUT, ["truncated"]),
    ("inspect_deep_json", ["inspect", "deep.json"], INPUT, ["deep.json"]),
    ("inspect_absurd", ["inspect", "absurd"], INPUT, ["d_model"]),
    ("bench_kernel_unknown", ["bench", "kernel", "scan_forwards"], USAGE, ["scan_forward'"]),
    ("bench_size_unknown", ["bench", "kernel", "scan_step", "--shape", "Q=3"], USAGE, ["Q", "N=16"]),
    ("bench_size_text", ["bench", "kernel", "scan_step", "--shape", "B=x"], USAGE, ["--shape", "x"]),
    ("bench_size_alone", ["bench", "kernel", "all", "--shape", "B=2"], USAGE, ["--shape"]),
    ("bench_preset", ["bench", "model", "nothing"], USAGE, ["nothing", "mamba-130m"]),
    ("bench_model", ["bench", "-m", "nothing"], USAGE, ["nothing", "mamba-130m"]),
    ("bench_list", [*BENCH, "-p", "8,x"], USAGE, ["--n-prompt", "'x'"]),
    ("bench_list_empty", [*BENCH, "-p", ""], USAGE, ["--n-prompt", "''"]),
    ("bench_range_back", [*BENCH, "-n", "8-4"], USAGE, ["--n-gen", "smaller", "'8-4'"]),
    ("bench_range_step", [*BENCH, "-n", "1-4+0"], USAGE, ["--n-gen", "1..", "'0'"]),
    ("bench_range_times", [*BENCH, "-p", "0-4*2"], USAGE, ["--n-prompt", "above 0"]),
    ("bench_range_open", [*BENCH, "-d", "4-"], USAGE, ["--n-depth", "''"]),
    ("bench_range_long", [*BENCH, "-p", "1-100000"], USAGE, ["--n-prompt", "at most 1000"]),
    ("bench_no_test", [*BENCH, "-p", "0", "-n", "0"], USAGE, ["--train", "no tokens"]),
    ("bench_pairs", [*BENCH, "-pg", "512"], USAGE, ["--pg", "'512,128'", "'512'"]),
    ("bench_train_pair", [*BENCH, "--train", "8"], USAGE, ["--train", "'8x256'", "'8'"]),
    ("bench_dtype", [*BENCH, "--dtype", "f32,bf61"], USAGE, ["--dtype", "did you mean 'bf16'"]),
    ("bench_batch_zero", [*BENCH, "-npl", "0"], USAGE, ["--batch-sizes", "1..", "'0'"]),
    ("bench_form", [*BENCH, "-o", "xml"], USAGE, ["md, csv, json, jsonl, sql", "xml"]),
    ("bench_form_err", [*BENCH, "-oe", "xml"], USAGE, ["[--output-err]", "none, md", "xml"]),
    ("bench_delay", [*BENCH, "--delay", "-1"], USAGE, ["[--delay]", "'-1'"]),
    ("bench_kv_type", [*BENCH, "-ctk", "q8_0"], USAGE,
     ["[bench] expected no flag -ctk, got '-ctk q8_0'", "KV cache", "--state-dtype"]),
    ("bench_kv_type_equals", [*BENCH, "--cache_type_v=q8_0"], USAGE, ["--cache-type-v q8_0", "KV cache"]),
    ("bench_flash", [*BENCH, "-fa", "1"], USAGE, ["'-fa 1'", "no attention"]),
    ("bench_mmap", [*BENCH, "-mmp", "0"], USAGE, ["'-mmp 0'", "always mapped"]),
    ("bench_mask", [*BENCH, "-C", "0xff"], USAGE, ["'-C 0xff'", "taskset"]),
    ("bench_prio", [*BENCH, "--prio", "2"], USAGE, ["'--prio 2'", "nice"]),
    ("bench_split", [*BENCH, "-sm", "row", "-mg", "1"], USAGE, ["'-sm row'", "one device"]),
    ("bench_device", [*BENCH, "--device", "cuda:99"], MACHINE, ["'cuda:99'"]),
    ("bench_device_name", [*BENCH, "--device", "tpu"], USAGE, ["[--device]", "got 'tpu'"]),
    ("bench_fetch", ["bench", "-hf", "someone/model"], USAGE, ["'-hf someone/model'", "download"]),
    ("bench_cache_alone", [*BENCH, "-ctv"], USAGE, ["got '-ctv'", "KV cache"]),
    ("generate_flash", IDS + ["-fa", "on"], USAGE, ["[generate] expected no flag -fa, got '-fa on'"]),
    ("bench_broken", ["bench", "-m", "truncated"], INPUT, ["truncated"]),
    ("roofline_model", ["bench", "roofline", "-m", "nothing"], USAGE, ["nothing", "mamba-130m"]),
    ("roofline_dtype", ["bench", "roofline", "--dtype", "f8"], USAGE, ["--dtype", "'f8'"]),
    ("roofline_svg", ["bench", "roofline", "--svg", "no/such/folder.svg"], INPUT, ["no/such"]),
    ("bench_output", ["bench", "train", "good", "-o", "xml"], USAGE, ["xml", "json"]),
    ("train_data_missing", [*TRAIN[:4], "nowhere", *TRAIN[5:]], INPUT, ["nowhere"]),
    ("train_data_empty", [*TRAIN[:4], "empty", *TRAIN[5:]], INPUT, ["empty"]),
    ("train_jsonl_line", [*TRAIN[:4], "bad.jsonl", *TRAIN[5:]], INPUT,
     ["bad.jsonl, line 2", "the keys body"]),
    ("train_jsonl_broken", [*TRAIN[:4], "broken.jsonl", *TRAIN[5:]], INPUT,
     ["broken.jsonl, line 1", "byte"]),
    ("train_jsonl_empty", [*TRAIN[:4], "blank.jsonl", *TRAIN[5:]], INPUT,
     ["blank.jsonl", "without a token"]),
    ("train_messages_unanswered", [*TRAIN[:4], "messages.jsonl", *TRAIN[5:]], INPUT,
     ["messages.jsonl, line 1", "answer of the assistant"]),
    ("train_messages_role", [*TRAIN[:4], "role.jsonl", *TRAIN[5:]], INPUT,
     ["role.jsonl, line 1, message 2", "assistant", "'bot'"]),
    ("train_messages_content", [*TRAIN[:4], "parts.jsonl", *TRAIN[5:]], INPUT,
     ["parts.jsonl, line 2, message 1", "content"]),
    ("train_messages_refused", [*TRAIN[:4], "talk.jsonl", *TRAIN[5:], "--chat-template",
                                "{{ raise_exception('roles must alternate') }}"], INPUT,
     ["talk.jsonl, line 1", "chat template", "roles must alternate"]),
    ("train_template_unknown", TRAIN + ["--chat-template", "chat-ml"], USAGE,
     ["chat template", "chatml", "'chat-ml'"]),
    ("train_template_broken", TRAIN + ["--chat-template", "{% if %}"], INPUT, ["template"]),
    ("tokenize_messages_broken", ["tokenize", "--tokenizer", "bytes", "--jsonl", "-f", "role.jsonl"],
     INPUT, ["role.jsonl line 1, message 2", "'bot'"]),
    ("tokenize_template_alone", ["tokenize", "--tokenizer", "bytes", "-f", "text", "--chat-template",
                                 "plain"], USAGE, ["--chat-template", "--jsonl"]),
    ("train_no_loss", [*TRAIN[:4], "prompts.jsonl", *TRAIN[5:]], INPUT,
     ["prompts.jsonl", "with a loss"]),
    ("train_bin_ids", [*TRAIN[:4], "far.bin", *TRAIN[5:]], INPUT,
     ["far.bin", "0..255", "got 300 at token 1"]),
    ("train_bin_odd", [*TRAIN[:4], "odd.bin", *TRAIN[5:]], INPUT, ["odd.bin", "2 bytes", "1 too many"]),
    ("train_bin_sidecar", [*TRAIN[:4], "told.bin", *TRAIN[5:]], INPUT, ["told.bin", "got 4"]),
    ("train_bin_dtype", TRAIN + ["--data-dtype", "int8"], USAGE, ["--data-dtype", "uint32", "int8"]),
    ("train_packing", TRAIN + ["--packing", "rows"], USAGE, ["--packing", "documents", "rows"]),
    ("train_weights_count", TRAIN + ["--data-weights", "1,2"], USAGE,
     ["--data-weights", "each of the 1 paths", "got 2"]),
    ("train_weights_text", TRAIN + ["--data-weights", "1,,2"], USAGE, ["--data-weights", "'1,,2'"]),
    ("train_weights_negative", TRAIN + ["--data-weights", "-1"], USAGE, ["--data-weights", "-1"]),
    ("train_weights_zero", TRAIN + ["--data-weights", "0"], USAGE, ["--data-weights", "above 0"]),
    ("train_data_short", [*TRAIN[:4], "short", *TRAIN[5:]], INPUT, ["--data"]),
    ("train_valid_missing", TRAIN + ["--valid", "nowhere"], INPUT, ["nowhere"]),
    ("train_config_missing", ["train", "--model-config", "nowhere", *TRAIN[3:]], USAGE, ["nowhere"]),
    ("train_config_absurd", ["train", "--model-config", "absurd", *TRAIN[3:]], INPUT, ["d_model"]),
    ("train_config_negative", ["train", "--model-config", "negative", *TRAIN[3:]], INPUT,
     ["n_layer"]),
    ("train_rate_nan", TRAIN + ["--learning-rate", "nan"], USAGE, ["--learning-rate", "nan"]),
    ("train_rate_negative", TRAIN + ["--learning-rate", "-1"], USAGE, ["--learning-rate"]),
    ("train_beta", TRAIN + ["--adam-beta1", "1"], USAGE, ["beta1"]),
    ("train_batch_zero", TRAIN + ["--batch-size", "0"], USAGE, ["--batch-size"]),
    ("train_warmup", TRAIN + ["--warmup-steps", "100", "--max-steps", "9"], USAGE, ["--warmup-steps"]),
    ("train_tokenizer", TRAIN + ["--tokenizer", "words"], INPUT, ["words", "tokenizer.json"]),
    ("train_vocabulary", ["train", "--model-config", "words", *TRAIN[3:]], USAGE, ["256", "64"]),
    ("train_two_starts", ["train", "--model-config", "mamba-130m", "--init-from", "good", *TRAIN[3:]],
     INPUT, ["[256, 768]", "[256, 16]"]),
    ("train_segments_zero", TRAIN + ["--bptt-segments", "0"], USAGE, ["--bptt-segments", "1.."]),
    ("train_segments_many", TRAIN + ["--bptt-segments", "17"], USAGE,
     ["--bptt-segments", "1..16", "got 17"]),
    ("train_recompute", TRAIN + ["--recompute", "all"], USAGE, ["--recompute", "all", "block"]),
    ("train_freeze_nothing", TRAIN + ["--freeze", "backbone.embedding.*"], USAGE,
     ["--freeze", "backbone.embeddings.weight"]),
    ("train_freeze_all", TRAIN + ["--freeze", "*"], USAGE, ["--freeze", "something to train"]),
    ("train_freeze_empty", TRAIN + ["--freeze", ""], USAGE, ["--freeze", "1..256"]),
    ("train_vocab_text", TRAIN + ["--vocab-size", "many"], USAGE, ["--vocab-size", "many"]),
    ("train_vocab_zero", TRAIN + ["--vocab-size", "0"], USAGE, ["--vocab-size", "1.."]),
    ("train_vocab_small", TRAIN + ["--vocab-size", "255"], USAGE, ["256", "255"]),
    ("train_vocab_shrinks", ["train", "--init-from", "good", "--vocab-size", "64", *TRAIN[3:]], USAGE,
     ["--vocab-size", "256", "64", "only grow"]),
    ("train_output_is_file", [*TRAIN[:6], "text", *TRAIN[7:]], USAGE, ["text"]),
    ("train_output_nowhere", [*TRAIN[:6], "/proc/nowhere", *TRAIN[7:]], INPUT, ["/proc/nowhere"]),
    ("train_resume_nothing", TRAIN + ["--resume"], INPUT, ["new"]),
    ("train_resume_missing", RUN + ["--resume", "nowhere"], INPUT, ["nowhere"]),
    ("train_resume_differs", RUN + ["--resume", "--seed", "5", "--max-steps", "3"], USAGE,
     ["--seed"]),
]


def snapshot():
    """Every file below the current folder with the hash of its content."""
    found = {}
    for folder, _, names in os.walk("."):
        found[folder] = None
        for name in names:
            path = os.path.join(folder, name)
            with open(path, "rb") as file:
                found[path] = hashlib.sha256(file.read()).hexdigest()
    return found


def saved(files):
    """Without what a training run extends as it goes."""
    return {p: h for p, h in files.items() if h and not p.endswith("metrics.jsonl")}


def wrong_output(output, lines, code, as_json):
    """Standard output is empty or, with --json, an object that says what the last line says."""
    if not as_json or not output:
        return [f"standard output: {output[:80]!r}"] if output or as_json else []
    try:
        error = json.loads(output)["error"]
        if lines and lines[-1] == f"error: {error['message']}\n" and error["code"] == code:
            return []
    except (ValueError, KeyError, TypeError):
        pass
    return [f"standard output is not the error as JSON: {output[:200]!r}"]


def check(name, arguments, code, parts, running=False, **options):
    """Runs one case; returns what is wrong with it. `running`: the failure comes after work has begun,
    so other lines may stand before the error's and files may have been added."""
    before = snapshot()
    stdout = options.pop("stdout", subprocess.PIPE)
    result = subprocess.run([PROGRAM, *arguments], stdin=subprocess.DEVNULL, stdout=stdout,
                            stderr=subprocess.PIPE, timeout=120, **options)
    error = result.stderr.decode()
    wrong = []
    if result.returncode != code:
        wrong.append(f"exit code {result.returncode}, expected {code}")
    lines = error.splitlines(keepends=True)
    if not lines or not lines[-1].startswith("error: ") or not lines[-1].endswith("\n"):
        wrong.append("the last line does not start with 'error: '")
    if len(lines) != 1 and not running:
        wrong.append(f"{len(lines)} lines instead of one")
    wrong += [f"no {part!r} in it" for part in parts if part not in error]
    # Of broken weights inspect shows what the configuration says.
    shown = f"{arguments[1]} (".encode() if arguments[0] == "inspect" else None
    if stdout == subprocess.PIPE and not (shown and result.stdout.startswith(shown)):
        wrong += wrong_output(result.stdout, lines, code, "--json" in arguments)
    changed = set(before.items()) ^ set(snapshot().items())
    if running:
        changed = set(saved(before).items()) - set(snapshot().items())
    if changed:
        wrong.append(f"files changed: {sorted({path for path, _ in changed})}")
    return [f"{name}: {w}\n    {error.strip()[-500:]}" for w in wrong]


def limit_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))


def limit_memory():
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))


@contextlib.contextmanager
def small_disk(size):
    """A file system of this size mounted on ./disk, or None where that is not allowed."""
    os.makedirs("disk", exist_ok=True)
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", "disk"],
        capture_output=True).returncode == 0
    try:
        yield "disk" if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "disk"], check=True)


def machine_cases():
    """Cases that need more than arguments: full disks, limits, permissions."""
    wrong, ran = [], []

    def case(*arguments, **options):
        ran.append(arguments[0])
        wrong.extend(check(*arguments, **options))

    with open("/dev/full", "wb") as full:
        for name, arguments in [("full_output", ["inspect", "good"]), ("full_stream", IDS),
                                ("full_json", IDS + ["--json"]), ("full_version", ["version"])]:
            case(name, arguments, INPUT, ["stdout", "No space"], stdout=full)
    case("state_too_large", IDS + ["--json", "--state-out", "state"], INPUT, ["state"], preexec_fn=limit_files)
    case("dump_too_large", ["verify", "good", "golden", "--dump", "dumped", "--tolerance", "1e6"],
         INPUT, ["dumped"], preexec_fn=limit_files)
    case("train_too_large", RUN + ["--max-steps", "4", "--resume"], INPUT, ["run"], running=True,
         preexec_fn=limit_files)
    # AddressSanitizer itself needs more than the limit: its builds leave this one out.
    starts = subprocess.run([PROGRAM, "version"], capture_output=True, preexec_fn=limit_memory)
    if starts.returncode == 0:
        case("no_memory", ["bench", "model", "mamba-2.8b"], MACHINE, ["memory"],
             preexec_fn=limit_memory)
    else:
        print("no_memory: left out, the program does not start under the limit")
    with small_disk("24k") as disk:
        if disk:
            with open("disk/filler", "wb") as file:
                file.write(bytes(20000))
            case("disk_full_state", IDS + ["--json", "--state-out", "disk/state"], INPUT,
                 ["No space"])
            case("disk_full_train", [*TRAIN[:6], "disk/run", *TRAIN[7:], "--max-steps", "1"], INPUT,
                 ["No space"], running=True)
    if os.geteuid() != 0:  # root may write anywhere
        os.makedirs("locked")
        os.chmod("locked", 0o555)
        case("locked_state", IDS + ["--state-out", "locked/state"], INPUT, ["Permission"])
        case("locked_train", [*TRAIN[:6], "locked/run", *TRAIN[7:]], INPUT, ["Permission"])
    available = json.loads(subprocess.run([PROGRAM, "version", "--json"], capture_output=True,
                                          check=True).stdout)["available"]
    for isa in ("avx2", "avx512", "avx512_bf16"):
        if f"cpu:{isa}" not in available:
            case(f"absent_{isa}", IDS + ["--isa", isa], MACHINE, [isa, "cpu:base"])
    return wrong, ran


def main():
    chosen = set(sys.argv[2:])
    with tempfile.TemporaryDirectory() as root:
        bad_files.Files(root, PROGRAM, RUN)
        wrong, ran = [], []
        for name, arguments, code, parts in CASES:
            if not chosen or name in chosen:
                ran.append(name)
                wrong += check(name, arguments, code, parts)
        if not chosen:
            more_wrong, more_ran = machine_cases()
            wrong += more_wrong
            ran += more_ran
        os.chdir("/")
    print("\n".join(wrong))
    print(f"{len(ran)} wrong inputs, {len(wrong)} complaints")
    return 1 if wrong or len(ran) < (1 if chosen else 25) else 0


if __name__ == "__main__":
    sys.exit(main())
