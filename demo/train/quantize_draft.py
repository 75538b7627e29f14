#!/usr/bin/env python3
"""Stores a DFlash draft in MLX's affine form: quantize_draft.py DRAFT OUT [GROUP] [BITS]. No packages needed.

Matrices become codes of BITS (8, or 4) with a bfloat16 scale and bias for each GROUP (128) columns; norms stay as they
are. Of each group, the value of larger magnitude at an edge is hit, and zero stays zero where the codes allow it. DRAFT
is in bfloat16, or stored at 8 bits by this script."""

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


def quantize(values, largest):
    """Codes up to `largest`, and the bits of scale and bias."""
    most, least = max(values), min(values)
    step = max((most - least) / largest, 1e-7)
    scale, edge = (step, least) if abs(least) > abs(most) else (-step, most)
    zero, bias = round(edge / scale), 0.0
    if zero:
        scale, bias = edge / zero, edge
    scale, bias = bf16(scale), bf16(bias)
    # Against what is stored, so that the rounding of scale and bias costs nothing more.
    codes = bytes(min(max(round((value - FLOATS[bias]) / FLOATS[scale]), 0), largest) for value in values)
    return codes, scale, bias


def words_of(codes, bits):
    """The codes of a group as they are stored: the first in the lowest bits."""
    return codes if bits == 8 else bytes(low | high << 4 for low, high in zip(codes[::2], codes[1::2]))


def widened(tensors):
    """Values of the matrices by name, and what is not a matrix. `tensors`: name -> dtype, shape, bytes."""
    matrices, rest = {}, {}
    for name, (dtype, shape, raw) in tensors.items():
        module = name.removesuffix("weight")
        if name.endswith(".scales") or name.endswith(".biases"):
            continue
        if module + "scales" in tensors:
            scales, biases = (array("H", tensors[module + kind][2]) for kind in ("scales", "biases"))
            rows, columns, codes = shape[0], shape[1] * 4, raw
            group = rows * columns // len(scales)
            values = [
                FLOATS[scales[i // group]] * code + FLOATS[biases[i // group]] for i, code in enumerate(codes)
            ]
            matrices[name] = [rows, columns], values
        elif dtype == "BF16" and len(shape) == 2 and name.endswith(".weight"):
            matrices[name] = shape, [FLOATS[word] for word in array("H", raw)]
        else:
            rest[name] = dtype, shape, raw
    return matrices, rest


def main():
    source, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    group = int(sys.argv[3]) if len(sys.argv) > 3 else 128
    bits = int(sys.argv[4]) if len(sys.argv) > 4 else 8
    data = (source / "model.safetensors").read_bytes()
    length = struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    stored = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        stored[name] = entry["dtype"], entry["shape"], data[8 + length + start : 8 + length + end]
    matrices, tensors = widened(stored)
    for name, ([rows, columns], values) in matrices.items():
        assert columns % group == 0, f"{name}: {columns} columns are no whole groups"
        parts = [quantize(values[i : i + group], 2**bits - 1) for i in range(0, len(values), group)]
        module, groups = name.removesuffix("weight"), [rows, columns // group]
        codes = b"".join(words_of(codes, bits) for codes, _, _ in parts)
        tensors[name] = "U32", [rows, columns * bits // 32], codes
        tensors[module + "scales"] = "BF16", groups, array("H", [scale for _, scale, _ in parts]).tobytes()
        tensors[module + "biases"] = "BF16", groups, array("H", [bias for _, _, bias in parts]).tobytes()
    header, offset = {"__metadata__": {"format": "mlx"}}, 0
    for name, (dtype, shape, raw) in sorted(tensors.items()):
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(raw)]}
        offset += len(raw)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    config = json.loads((source / "config.json").read_text())
    config["quantization"] = {"group_size": group, "bits": bits, "mode": "affine"}
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(raw for _, (_, _, raw) in sorted(tensors.items()))
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main()
