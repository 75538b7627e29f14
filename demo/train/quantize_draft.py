#!/usr/bin/env python3
"""Stores a DFlash draft at 8 bits in MLX's affine form: quantize_draft.py DRAFT OUT [GROUP]. No packages needed.

Matrices become codes with a bfloat16 scale and bias for each GROUP (128) columns; norms stay as they are. Of each
group, the value of larger magnitude at an edge is hit, and zero stays zero where the codes allow it."""

import json
import pathlib
import struct
import sys
from array import array

FLOATS = [struct.unpack("<f", struct.pack("<I", bits << 16))[0] for bits in range(1 << 16)]


def bf16(value):
    """The nearest bfloat16, ties to even."""
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16


def quantize(values):
    """Codes, and the bits of scale and bias."""
    most, least = max(values), min(values)
    step = max((most - least) / 255, 1e-7)
    scale, edge = (step, least) if abs(least) > abs(most) else (-step, most)
    zero, bias = round(edge / scale), 0.0
    if zero:
        scale, bias = edge / zero, edge
    scale, bias = bf16(scale), bf16(bias)
    # Against what is stored, so that the rounding of scale and bias costs nothing more.
    codes = bytes(min(max(round((value - FLOATS[bias]) / FLOATS[scale]), 0), 255) for value in values)
    return codes, scale, bias


def main():
    source, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    group = int(sys.argv[3]) if len(sys.argv) > 3 else 128
    data = (source / "model.safetensors").read_bytes()
    length = struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8 : 8 + length])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        raw, shape = data[8 + length + start : 8 + length + end], entry["shape"]
        if len(shape) != 2 or shape[1] % group or not name.endswith(".weight"):
            tensors[name] = entry["dtype"], shape, raw
            continue
        assert entry["dtype"] == "BF16", name
        words = array("H", raw)
        parts = [quantize([FLOATS[w] for w in words[i : i + group]]) for i in range(0, len(words), group)]
        module, groups = name.removesuffix("weight"), [shape[0], shape[1] // group]
        tensors[name] = "U32", [shape[0], shape[1] // 4], b"".join(codes for codes, _, _ in parts)
        tensors[module + "scales"] = "BF16", groups, array("H", [scale for _, scale, _ in parts]).tobytes()
        tensors[module + "biases"] = "BF16", groups, array("H", [bias for _, _, bias in parts]).tobytes()
    header, offset = {"__metadata__": {"format": "mlx"}}, 0
    for name, (dtype, shape, raw) in sorted(tensors.items()):
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(raw)]}
        offset += len(raw)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    config = json.loads((source / "config.json").read_text())
    config["quantization"] = {"group_size": group, "bits": 8, "mode": "affine"}
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(raw for _, (_, _, raw) in sorted(tensors.items()))
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main()
