#!/usr/bin/env python3
"""SmolLM2-135M out of a GGUF file, as a checkpoint; and mach beside transformers on it.

    smollm2.py convert FILE.gguf DIRECTORY     safetensors (bfloat16), tokenizer.json, config.json
    smollm2.py compare MACH DIRECTORY          greedy text of both on the same weights, token by token
"""

import json
import os
import re
import subprocess
import sys
import urllib.request

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n",
    "The three laws of thermodynamics are:\n1.",
    "Q: What is 7 times 8?\nA:",
]
CHATS = ["What is the capital of Japan?", "Write a short poem about the moon.", "How do I boil an egg?"]
TOKENS = 48


def convert(source, out):
    import numpy as np
    import torch
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from safetensors.torch import save_file
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    reader = GGUFReader(source)
    field = {name: value.contents() for name, value in reader.fields.items()}
    of = lambda name: field["llama." + name]
    heads, kv_heads = of("attention.head_count"), of("attention.head_count_kv")
    names = {
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }
    top = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}

    tensors = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        stem = tensor.name.removesuffix(".weight")
        if stem.startswith("blk."):
            _, layer, part = stem.split(".")
            name = f"model.layers.{layer}.{names[part]}"
            if part in ("attn_q", "attn_k"):
                # GGUF keeps the pairs of a rotation side by side; here they are half a head apart.
                n = heads if part == "attn_q" else kv_heads
                rows, columns = values.shape
                values = values.reshape(n, rows // n // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
        else:
            name = top[stem]
        tensors[name + ".weight"] = torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16)

    os.makedirs(out, exist_ok=True)
    save_file(tensors, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
    hidden = of("embedding_length")
    put(out, "config.json", {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False,
        "bos_token_id": field["tokenizer.ggml.bos_token_id"], "eos_token_id": field["tokenizer.ggml.eos_token_id"],
        "head_dim": hidden // heads, "hidden_act": "silu", "hidden_size": hidden,
        "intermediate_size": of("feed_forward_length"), "max_position_embeddings": of("context_length"),
        "mlp_bias": False, "num_attention_heads": heads, "num_hidden_layers": of("block_count"),
        "num_key_value_heads": kv_heads, "rms_norm_eps": float(f"{of('attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_scaling": None, "rope_theta": of("rope.freq_base"),
        "tie_word_embeddings": "lm_head.weight" not in tensors, "torch_dtype": "bfloat16",
        "vocab_size": of("vocab_size"),
    })
    put(out, "generation_config.json", {"eos_token_id": field["tokenizer.ggml.eos_token_id"], "do_sample": False})

    tokens, kinds = field["tokenizer.ggml.tokens"], field["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in field["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.save(os.path.join(out, "tokenizer.json"))
    text = lambda name: tokens[field[f"tokenizer.ggml.{name}_token_id"]]
    put(out, "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": text("bos"), "eos_token": text("eos"),
        "unk_token": text("unknown"), "pad_token": text("padding"), "clean_up_tokenization_spaces": False,
        "chat_template": field["tokenizer.chat_template"],
    })


def put(out, name, value):
    with open(os.path.join(out, name), "w") as file:
        json.dump(value, file, indent=1)
        file.write("\n")


def compare(mach, folder):
    import torch
    import transformers

    torch.set_num_threads(2)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.eval()

    def reference(ids):
        with torch.inference_mode():
            out = model.generate(torch.tensor([ids]), max_new_tokens=TOKENS, do_sample=False)
        return out[0, len(ids):].tolist()

    with Server(mach, folder) as server:
        different = 0
        cases = [("completion", prompt, tokenizer.encode(prompt)) for prompt in PROMPTS]
        for said in CHATS:
            messages = [{"role": "user", "content": said}]
            text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            cases.append(("chat", said, tokenizer.encode(text)))
        for kind, prompt, ids in cases:
            expected = reference(ids)
            stopped = bool(expected) and expected[-1] == tokenizer.eos_token_id
            wanted = tokenizer.decode(expected[:-1] if stopped else expected)
            found = server.say(kind, prompt)
            ok = found == (wanted, len(ids), len(expected))
            different += not ok
            print(f"{'ok   ' if ok else 'WRONG'} {kind} {prompt[:40]!r}: {len(ids)} tokens, then {len(expected)}")
            if not ok:
                print(f"   transformers {wanted!r}, {len(ids)}, {len(expected)}\n   mach         {found!r}")
    print(f"smollm2: {len(cases) - different} of {len(cases)} answers equal those of transformers")
    return different


class Server:
    """mach-serve on a free port, with exact activations."""

    def __init__(self, mach, folder):
        command = [mach, "serve", folder, "--port", "0", "--activations", "f32", "--no-response-store", "--log-level", "warn",
                   "--served-model-name", "smollm2"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.address, ready = None, False
        for line in self.process.stdout:
            if line.startswith("startup listening"):
                self.address = re.search(r"url=(\S+)", line).group(1)
            if line.startswith("startup ready"):
                ready = True
                break
        if not ready or self.address is None:
            sys.exit("mach serve has not started")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.communicate(timeout=60)

    def say(self, kind, prompt):
        body = {"model": "smollm2", "max_tokens": TOKENS, "temperature": 0}
        if kind == "chat":
            path, body["messages"] = "/v1/chat/completions", [{"role": "user", "content": prompt}]
        else:
            path, body["prompt"] = "/v1/completions", prompt
        request = urllib.request.Request(
            self.address + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as response:
            answer = json.load(response)
        choice, usage = answer["choices"][0], answer["usage"]
        text = choice["message"]["content"] if kind == "chat" else choice["text"]
        return text, usage["prompt_tokens"], usage["completion_tokens"]


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] == "convert":
        convert(*sys.argv[2:])
    elif len(sys.argv) == 4 and sys.argv[1] == "compare":
        sys.exit(1 if compare(*sys.argv[2:]) else 0)
    else:
        sys.exit(__doc__)
