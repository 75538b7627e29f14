#!/usr/bin/env python3
"""Times llama.cpp on one GGUF file through the low-level API of the PyPI package llama-cpp-python.

Loads the file once and times every requested setting in it: a prompt of `--prompt` tokens in batches, then
`--decode` single tokens, on the same pseudo-random token ids as `mach bench`, after one repeat that does not count.
Prints one JSON document on stdout.
"""

import argparse
import ctypes
import json
import sys
import time

import llama_cpp as ll
from bench_common import token_ids


@ll.llama_log_callback
def quiet(level, text, _user):
    """Drops llama.cpp's log, except for its errors (level 4)."""
    if level == 4:
        sys.stderr.write(text.decode("utf-8", "replace"))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--decode", type=int, default=128)
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--repack", action="store_true", help="let the CPU back end repack weights for its kernels")
    parser.add_argument("--mmap", action="store_true", help="map the file (small pages) instead of reading it into memory")
    parser.add_argument("--ubatch", type=int, nargs="+", default=[512], help="physical batch sizes, one setting each")
    parser.add_argument("--flash", choices=["auto", "on", "off"], nargs="+", default=["auto"])
    return parser.parse_args()


def load(args):
    ll.llama_log_set(quiet, ctypes.c_void_p(0))
    ll.llama_backend_init()
    params = ll.llama_model_default_params()
    params.n_gpu_layers = 0
    params.load_mode = ll.LLAMA_LOAD_MODE_MMAP if args.mmap else ll.LLAMA_LOAD_MODE_NONE
    params.use_extra_bufts = args.repack
    model = ll.llama_model_load_from_file(args.gguf.encode(), params)
    if not model:
        sys.exit(f"llama.cpp cannot load {args.gguf}")
    return model


def context(model, args, ubatch, flash):
    params = ll.llama_context_default_params()
    params.n_ctx = (args.prompt + args.decode + 255) // 256 * 256
    params.n_batch = max(args.prompt, ubatch)
    params.n_ubatch = ubatch
    params.n_threads = params.n_threads_batch = args.threads
    params.flash_attn_type = {"auto": -1, "on": 1, "off": 0}[flash]
    ctx = ll.llama_init_from_model(model, params)
    if not ctx:
        sys.exit(f"llama.cpp cannot make a context with ubatch {ubatch}, flash attention {flash}")
    return ctx


def decode_step(ctx, batch):
    if (code := ll.llama_decode(ctx, batch)) != 0:
        sys.exit(f"llama_decode failed with {code}")


def once(ctx, batch, ids, args):
    """Seconds of one prompt and of the decoded tokens after it."""
    ll.llama_memory_clear(ll.llama_get_memory(ctx), True)
    begin = time.perf_counter()
    fill(batch, ids[: args.prompt], 0)
    decode_step(ctx, batch)
    ll.llama_synchronize(ctx)
    prefill = time.perf_counter() - begin
    begin = time.perf_counter()
    for at in range(args.prompt, args.prompt + args.decode):
        fill(batch, ids[at : at + 1], at)
        decode_step(ctx, batch)
        ll.llama_synchronize(ctx)
    return prefill, time.perf_counter() - begin


def fill(batch, ids, start):
    """Tokens of sequence 0 from position `start`; logits for the last one."""
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i] = token
        batch.pos[i] = start + i
        batch.n_seq_id[i] = 1
        batch.seq_id[i][0] = 0
        batch.logits[i] = i + 1 == len(ids)


def main():
    args = arguments()
    model = load(args)
    vocab = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(model))
    settings = []
    for ubatch in args.ubatch:
        for flash in args.flash:
            ctx = context(model, args, ubatch, flash)
            batch = ll.llama_batch_init(args.prompt, 0, 1)
            prefill, decode = [], []
            for rep in range(args.reps + 1):
                ids = token_ids(args.seed + rep, args.prompt + args.decode, vocab)
                seconds = once(ctx, batch, ids, args)
                if rep > 0:
                    prefill.append(args.prompt / seconds[0])
                    decode.append(args.decode / seconds[1])
            ll.llama_batch_free(batch)
            ll.llama_free(ctx)
            setting = {"repack": args.repack, "mmap": args.mmap, "ubatch": ubatch, "flash": flash}
            settings.append(setting | {"prefill": prefill, "decode": decode})
    description = ctypes.create_string_buffer(256)
    ll.llama_model_desc(model, description, len(description))
    print(
        json.dumps(
            {
                "llama_cpp_python": ll.__version__,
                "system": ll.llama_print_system_info().decode().strip(),
                "model": description.value.decode(),
                "model_bytes": ll.llama_model_size(model),
                "vocab": vocab,
                "threads": args.threads,
                "prompt": args.prompt,
                "decode": args.decode,
                "reps": args.reps,
                "seed": args.seed,
                "settings": settings,
            }
        )
    )
    ll.llama_model_free(model)


if __name__ == "__main__":
    main()
