#!/usr/bin/env python3
"""Writes the tensors of a synthetic checkpoint (mach synth) as GGUF for llama.cpp, value for value.

MLX 4-bit groups of 64 become pairs of Q4_1 blocks with the same scale and minimum, which `mach synth` makes exact in
f16; the 8-bit router and shared gate, norms and small vectors become F32. So another engine multiplies by the same
weights and routes alike. Streams tensor by tensor. Needs numpy and the PyPI package gguf.

    mach synth qwen3.6-35b-a3b --layers 8 synth/
    python3 bench/gguf_from_synth.py synth/ synth.gguf
"""

import argparse
import json
import math
import pathlib
import sys

import gguf
import numpy as np

Q4_1 = gguf.GGMLQuantizationType.Q4_1
BLOCK = 32  # elements of a Q4_1 block
BLOCK_BYTES = 20  # f16 scale, f16 minimum, 16 bytes of codes
PART = 1 << 19  # bytes of codes converted at a time: a part and its temporaries stay in cache


class Checkpoint:
    """The safetensors shards of a directory, mapped."""

    def __init__(self, directory):
        self.directory = directory
        index = json.loads((directory / "model.safetensors.index.json").read_text())
        self.tensors = {}
        for shard in sorted(set(index["weight_map"].values())):
            data = np.memmap(directory / shard, dtype=np.uint8, mode="r")
            length = int(data[:8].view("<u8")[0])
            header = json.loads(data[8 : 8 + length].tobytes())
            for name, entry in header.items():
                if name != "__metadata__":
                    start, end = (8 + length + offset for offset in entry["data_offsets"])
                    self.tensors[name] = (entry["dtype"], entry["shape"], data[start:end])

    def raw(self, name):
        """Shape and bytes."""
        _, shape, data = self.tensors[name]
        return shape, data

    def floats(self, name):
        dtype, shape, data = self.tensors[name]
        if dtype == "F32":
            return data.view("<f4").reshape(shape)
        if dtype != "BF16":
            sys.exit(f"{name}: floats expected, found {dtype}")
        return widen(data).reshape(shape)


def widen(halves):
    """bf16 bytes as f32."""
    return (halves.view("<u2").astype(np.uint32) << 16).view(np.float32)


def spread(words):
    """The low four bytes of each word, moved to its even bytes."""
    words = words & np.uint64(0xFFFFFFFF)
    words = (words | words << np.uint64(16)) & np.uint64(0x0000FFFF0000FFFF)
    return (words | words << np.uint64(8)) & np.uint64(0x00FF00FF00FF00FF)


def q4_1(weight, scales, biases):
    """Q4_1 blocks, [rows, bytes], of MLX rows: packed codes u8 [rows, cols / 2], bf16 scales and biases
    u8 [rows, 2 * cols / 64]."""
    rows, half = weight.shape
    blocks = 2 * half // BLOCK
    out = np.empty((rows, blocks, BLOCK_BYTES), np.uint8)
    for column, halves in ((0, scales), (2, biases)):
        values = widen(np.ascontiguousarray(halves)).reshape(rows, -1)
        exact = values.astype(np.float16)
        if not np.array_equal(exact.astype(np.float32), values):
            sys.exit("a scale or zero point is not exact in f16: this is not a checkpoint of mach synth")
        out[:, :, column : column + 2] = np.repeat(exact.view(np.uint8).reshape(rows, -1, 2), 2, axis=1)
    # MLX: byte i holds elements 2i and 2i + 1. Q4_1: byte i holds elements i and i + 16 of its block.
    words = np.ascontiguousarray(weight).view("<u8").reshape(rows, blocks, 2)
    first, second = words[:, :, 0], words[:, :, 1]
    low = np.uint64(0x0F0F0F0F0F0F0F0F)
    even = (first & low) | (second & low) << np.uint64(4)
    odd = (first >> np.uint64(4)) & low | (second & ~low)
    codes = np.empty((rows, blocks, 2), "<u8")
    for half, shift in ((0, np.uint64(0)), (1, np.uint64(32))):
        codes[:, :, half] = spread(even >> shift) | spread(odd >> shift) << np.uint64(8)
    out[:, :, 4:] = codes.view(np.uint8).reshape(rows, blocks, 16)
    return out.reshape(rows, blocks * BLOCK_BYTES)


def check_rows(blocks, weight, scales, biases):
    """Decodes rows both ways; they must agree to the bit."""
    codes = np.stack((weight & 15, weight >> 4), axis=-1).reshape(weight.shape[0], -1).astype(np.float32)
    values = [np.repeat(widen(np.ascontiguousarray(h)).reshape(len(h), -1), 64, axis=1) for h in (scales, biases)]
    if not np.array_equal(gguf.quants.dequantize(blocks, Q4_1), codes * values[0] + values[1]):
        sys.exit("Q4_1 blocks differ from the checkpoint")


class Heads:
    """llama.cpp broadcasts key heads over value heads in tiles (0 1 2 0 1 2) where checkpoints group them (0 0 1 1
    2 2), so its files hold the value heads of Gated DeltaNet layers in the order 0 2 4 1 3 5."""

    def __init__(self, text):
        self.key = text["linear_num_key_heads"]
        self.value = text["linear_num_value_heads"]
        self.dim = text["linear_value_head_dim"]
        self.key_width = self.key * text["linear_key_head_dim"]
        self.order = np.arange(self.value).reshape(self.key, -1).T.reshape(-1)

    def elements(self, width):
        """Source index of every element of value heads `width` wide."""
        return (self.order[:, None] * width + np.arange(width)).reshape(-1)

    def mixed(self):
        """The same behind the queries and keys, which stay."""
        fixed = 2 * self.key_width
        return np.concatenate((np.arange(fixed), fixed + self.elements(self.dim)))


class Writer:
    """Announces all tensors, then writes them in the same order."""

    def __init__(self, checkpoint, writer):
        self.checkpoint = checkpoint
        self.writer = writer
        self.jobs = []

    def floats(self, name, make):
        shape = make().shape
        self.writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * math.prod(shape))
        self.jobs.append((name, lambda: np.ascontiguousarray(make(), dtype=np.float32)))

    def vector(self, name, source, order=None, apply=lambda values: values):
        def make():
            values = self.checkpoint.floats(source)
            return apply(values if order is None else values[order])

        self.floats(name, make)

    def eight_bit(self, name, module):
        """An 8-bit affine matrix as F32; one row as a vector."""

        def make():
            (rows, words), codes = self.checkpoint.raw(f"{module}.weight")
            scales = self.checkpoint.floats(f"{module}.scales")
            biases = self.checkpoint.floats(f"{module}.biases")
            codes = codes.reshape(rows, words * 4).astype(np.float32)
            group = codes.shape[1] // scales.shape[1]
            values = codes * np.repeat(scales, group, axis=1) + np.repeat(biases, group, axis=1)
            return values[0] if rows == 1 else values

        self.floats(name, make)

    def linear(self, name, module, rows=None, groups=None):
        """A 4-bit matrix or stack as Q4_1; `rows` and `groups` are orders to take rows and groups of columns in."""
        shape, _ = self.checkpoint.raw(f"{module}.weight")
        cols = shape[-1] * 8
        outer = shape[:-1]
        byte_shape = (*outer, cols // BLOCK * BLOCK_BYTES)
        self.writer.add_tensor_info(name, byte_shape, np.dtype(np.uint8), math.prod(byte_shape), raw_dtype=Q4_1)

        def parts():
            count = math.prod(outer)
            sources = []
            for suffix, group_bytes in (("weight", 32), ("scales", 2), ("biases", 2)):
                _, data = self.checkpoint.raw(f"{module}.{suffix}")
                sources.append(data.reshape(count, cols // 64, group_bytes))
            step = max(1, PART // (cols // 2))
            for start in range(0, count, step):
                pick = slice(start, start + step) if rows is None else rows[start : start + step]
                taken = [np.asarray(s[pick] if groups is None else s[pick][:, groups]) for s in sources]
                taken = [t.reshape(len(t), -1) for t in taken]
                yield start, q4_1(*taken), taken

        def make():
            out = np.empty((math.prod(outer), byte_shape[-1]), np.uint8)
            for start, blocks, taken in parts():
                if start == 0:
                    check_rows(blocks[:2], *(t[:2] for t in taken))
                out[start : start + len(blocks)] = blocks
            return out

        self.jobs.append((name, make))

    def run(self):
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_ti_data_to_file()
        for number, (name, make) in enumerate(self.jobs):
            if sys.stderr.isatty():
                print(f"\r{number + 1}/{len(self.jobs)} {name:<40}", end="", file=sys.stderr)
            self.writer.write_tensor_data(make())
        if sys.stderr.isatty():
            print(file=sys.stderr)
        self.writer.close()


def metadata(writer, config, text, family):
    writer.add_name("synthetic")
    writer.add_description("random weights in the shape of a real model, written by mach synth")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_1)
    writer.add_block_count(text["num_hidden_layers"])
    writer.add_context_length(text["max_position_embeddings"])
    writer.add_embedding_length(text["hidden_size"])
    writer.add_feed_forward_length(text.get("intermediate_size", text["moe_intermediate_size"]))
    writer.add_head_count(text["num_attention_heads"])
    writer.add_head_count_kv(text["num_key_value_heads"])
    writer.add_key_length(text["head_dim"])
    writer.add_value_length(text["head_dim"])
    writer.add_layer_norm_rms_eps(text["rms_norm_eps"])
    writer.add_expert_count(text["num_experts"])
    writer.add_expert_used_count(text["num_experts_per_tok"])
    writer.add_expert_feed_forward_length(text["moe_intermediate_size"])
    rope = text.get("rope_parameters") or {}
    writer.add_rope_freq_base(rope.get("rope_theta", text.get("rope_theta")))
    if family == "qwen35moe":
        rotary = int(text["head_dim"] * rope["partial_rotary_factor"])
        writer.add_rope_dimension_count(rotary)
        # Text has one position on all three axes, so how the frequencies are shared out among them changes nothing.
        pairs = rotary // 2
        writer.add_rope_dimension_sections([pairs - 2 * (pairs // 3), pairs // 3, pairs // 3, 0])
        writer.add_expert_shared_feed_forward_length(text["shared_expert_intermediate_size"])
        writer.add_full_attention_interval(text["full_attention_interval"])
        writer.add_ssm_conv_kernel(text["linear_conv_kernel_dim"])
        writer.add_ssm_state_size(text["linear_key_head_dim"])
        writer.add_ssm_group_count(text["linear_num_key_heads"])
        writer.add_ssm_time_step_rank(text["linear_num_value_heads"])
        writer.add_ssm_inner_size(text["linear_num_value_heads"] * text["linear_value_head_dim"])
    eos = config.get("eos_token_id", text.get("eos_token_id"))
    writer.add_eos_token_id(eos[0] if isinstance(eos, list) else eos)


def vocabulary(writer, directory, size):
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [int(gguf.TokenType.UNUSED)] * size
    for token, number in tokenizer["model"]["vocab"].items():
        tokens[number], types[number] = token, int(gguf.TokenType.NORMAL)
    for added in tokenizer["added_tokens"]:
        kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        tokens[added["id"]], types[added["id"]] = added["content"], int(kind)
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    template = directory / "chat_template.jinja"
    if template.is_file():
        writer.add_chat_template(template.read_text())


def attention(out, block, base):
    for name, module in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("output", "o_proj")):
        out.linear(f"{block}attn_{name}.weight", f"{base}self_attn.{module}")
    out.vector(f"{block}attn_q_norm.weight", f"{base}self_attn.q_norm.weight")
    out.vector(f"{block}attn_k_norm.weight", f"{base}self_attn.k_norm.weight")


def gated_delta(out, block, base, heads):
    base = f"{base}linear_attn."
    mixed = heads.mixed()
    out.linear(f"{block}attn_qkv.weight", f"{base}in_proj_qkv", rows=mixed)
    out.linear(f"{block}attn_gate.weight", f"{base}in_proj_z", rows=heads.elements(heads.dim))
    out.linear(f"{block}ssm_beta.weight", f"{base}in_proj_b", rows=heads.order)
    out.linear(f"{block}ssm_alpha.weight", f"{base}in_proj_a", rows=heads.order)
    out.linear(f"{block}ssm_out.weight", f"{base}out_proj", groups=heads.elements(heads.dim // 64))
    out.vector(f"{block}ssm_conv1d.weight", f"{base}conv1d.weight", mixed, lambda w: w.reshape(len(w), -1))
    out.vector(f"{block}ssm_dt.bias", f"{base}dt_bias", heads.order)
    out.vector(f"{block}ssm_a", f"{base}A_log", heads.order, lambda a: -np.exp(a))
    out.vector(f"{block}ssm_norm.weight", f"{base}norm.weight")


def moe(out, block, base, shared):
    out.eight_bit(f"{block}ffn_gate_inp.weight", f"{base}mlp.gate")
    for part in ("gate", "up", "down"):
        out.linear(f"{block}ffn_{part}_exps.weight", f"{base}mlp.switch_mlp.{part}_proj")
    if shared:
        out.eight_bit(f"{block}ffn_gate_inp_shexp.weight", f"{base}mlp.shared_expert_gate")
        for part in ("gate", "up", "down"):
            out.linear(f"{block}ffn_{part}_shexp.weight", f"{base}mlp.shared_expert.{part}_proj")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=pathlib.Path, help="directory that mach synth wrote")
    parser.add_argument("gguf", type=pathlib.Path, help="file to write")
    args = parser.parse_args()
    config = json.loads((args.checkpoint / "config.json").read_text())
    if not config.get("synthetic"):
        sys.exit(f"{args.checkpoint}: not a checkpoint of mach synth")
    hybrid = config["model_type"] == "qwen3_5_moe"
    text = config["text_config"] if hybrid else config
    family = "qwen35moe" if hybrid else "qwen3moe"
    prefix = "language_model." if hybrid else ""

    writer = gguf.GGUFWriter(args.gguf, family)
    metadata(writer, config, text, family)
    vocabulary(writer, args.checkpoint, text["vocab_size"])
    out = Writer(Checkpoint(args.checkpoint), writer)
    out.linear("token_embd.weight", f"{prefix}model.embed_tokens")
    for layer in range(text["num_hidden_layers"]):
        base, block = f"{prefix}model.layers.{layer}.", f"blk.{layer}."
        out.vector(f"{block}attn_norm.weight", f"{base}input_layernorm.weight")
        norm = "post_attention_norm" if hybrid else "ffn_norm"
        out.vector(f"{block}{norm}.weight", f"{base}post_attention_layernorm.weight")
        if hybrid and text["layer_types"][layer] == "linear_attention":
            gated_delta(out, block, base, Heads(text))
        else:
            attention(out, block, base)
        moe(out, block, base, shared=hybrid)
    out.vector("output_norm.weight", f"{prefix}model.norm.weight")
    out.linear("output.weight", f"{prefix}lm_head")
    out.run()
    print(f"{args.gguf}: {args.gguf.stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
