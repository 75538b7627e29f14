"""Tokenises 200 odd strings with real vocabularies, in mach and with Python's tokenizers: ids, bytes and streamed text.

Usage: compare_tokenizers.py RENDERER DIRECTORY...
RENDERER is the built example `tokenize` of mach-engine. A directory holds a `tokenizer.json`, or the ranks of a byte
pair encoding as `*.tiktoken`, from which one is made. Exit code 1 if anything differs.
"""

import base64
import json
import pathlib
import random
import subprocess
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
NOT_SPECIAL = ["<tool_call>", "</tool_call>", "<think>", "</think>"]

ODD = [
    "", " ", "  ", "   ", "\t", "\n", "\n\n", "\n\n\n", "\r\n", "\r", " \n ", "\u00a0", "\u2028", "\u200b", "\ufeff", "\x00", "\x7f",
    "a", " a", "a ", "  a  ", "a  b   c    d     e", " " * 17 + "x" + " " * 33, "\t\tx\t", "x\n\n\n\ny", "    return x\n",
    "Hello, world!", "it's we're I'LL don't", "naïve café", "e\u0301 é", "Ångström ﬁ ﬂ", "ÀÉÎÕÜ", "ß ẞ", "İı", "ǅ",
    "日本語のテキスト", "中文，全角！", "한국어 텍스트", "ภาษาไทย", "العربية مرحبا", "עברית", "हिन्दी देवनागरी", "தமிழ்", "ខ្មែរ",
    "😀", "👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇦🇹", "😀😀😀", "a😀b", "\U0001f9ff\U000e0067", "𝔘𝔫𝔦", "𐍈", "\U0010ffff", "\ue000",
    "▁", "▁▁", "a▁b", "▁ a ▁", "Ġ", "Ċ", "<0x41>", "<0xE2>", "<0x0A>", "<unk>", "<s>", "</s>", "<pad>", "<bos>", "<eos>",
    "<|endoftext|>", "<|im_start|>user\n", "a<|im_end|>b", "<|im_start|><|im_start|>", "<think>", "</think>\n\n", "<tool_call>\n{}",
    "<start_of_turn>model\n", "<end_of_turn>", "<unused0><unused1>", "[multimodal]", "<mask>", "<｜User｜>hi<｜Assistant｜>",
    "<｜end▁of▁sentence｜>", "<｜tool▁calls▁begin｜>", "<|start|>assistant<|channel|>final<|message|>x<|return|>", "<|call|>", "<table>",
    "<|im_start", "|im_end|>", "< |im_end|>", "<<think>>", "<think", "1", "12", "123", "1234", "1234567890", "3.14159", "1,000,000.00", "-42",
    "1e16", "0x1F", "٣٤", "½²³", "Ⅷ", "x+y=z", "a->b", "!=", "===", "/* c */", "// c", "#!/bin/sh", "{\"a\": [1, 2.5, null]}",
    "<b>x</b>", "&amp;", "\\n\\t\\\\", "'\"`", "$$x^2$$", "%20", "C:\\dir\\file", "https://example.org/a?b=c#d", "a@b.c", "a_b-c.d/e",
    "camelCaseAndPascalCase", "snake_case_name", "SCREAMING_CASE", "kebab-case", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "ABCABCABCABC",
    "....", "----", "====", "____", "****", "~~~~", "!!!", "???", "…", "—", "“quoted” ‘text’", "«x»", "•", "→", "≤≥≠", "∑∫√", "€£¥",
    "def f(x):\n    if x:\n        return 1\n\n\n", "for (int i = 0; i < 10; i++) {\n\t\tx += i;\n\t}\n", "SELECT * FROM t WHERE a = 'b';",
    "| a | b |\n|---|---|\n| 1 | 2 |\n", "1. one\n2. two\n   - three\n", "> quote\n>\n> more", "```python\nprint(1)\n```", "# Title\n\nText.\n",
    "The quick brown fox jumps over the lazy dog.", "Donaudampfschifffahrtsgesellschaft", "antidisestablishmentarianism",
    "a\u0300\u0301\u0302\u0303", "z̷̢̛a̶l̵g̶o̸", "\u202eabc", "x\u00ady", "\u3000全", "ﾊﾝｶｸ", "①②③", "㍿", "\u1100\u1161\u11a8", "각",
]


def texts():
    """The odd strings, and random ones of their pieces up to 200."""
    rng = random.Random(7)
    out = list(dict.fromkeys(ODD))
    while len(out) < 200:
        out.append("".join(rng.choice(ODD) for _ in range(rng.randint(2, 6))))
    return out


def byte_alphabet():
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {b: chr(b) for b in plain}
    for b in range(256):
        table.setdefault(b, chr(0x100 + len(table) - len(plain)))
    return table


def from_ranks(path):
    """A tokenizer of byte pairs: the merge that makes a token is the one that its ranks would end with."""
    ranks = {}
    for line in path.read_text().splitlines():
        if line:
            token, rank = line.split()
            ranks[base64.b64decode(token)] = int(rank)
    table = byte_alphabet()
    name = lambda token: "".join(table[b] for b in token)  # noqa: E731
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [bytes([b]) for b in token]
        while len(parts) > 2:
            pairs = [(ranks.get(a + b, rank), i) for i, (a, b) in enumerate(zip(parts, parts[1:]))]
            best, at = min(pairs)
            if best >= rank:
                break
            parts[at:at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            merges.append((name(parts[0]), name(parts[1])))
    vocab = {name(token): rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in NOT_SPECIAL])
    out = path.with_suffix(".tokenizer.json")
    tokenizer.save(str(out))
    return out


def main():
    renderer, *directories = sys.argv[1:]
    found = []
    for directory in map(pathlib.Path, directories):
        found += [(directory.name, p) for p in sorted(directory.rglob("tokenizer.json"))]
        found += [(f"{directory.name} {p.stem}", from_ranks(p)) for p in sorted(directory.rglob("*.tiktoken"))]
    strings = texts()
    jobs = "".join(json.dumps({"tokenizer": str(path), "texts": strings}) + "\n" for _, path in found)
    done = subprocess.run([renderer], input=jobs, capture_output=True, text=True, check=True)
    wrong = 0
    for (name, path), line in zip(found, done.stdout.split("\n")):
        tokenizer = Tokenizer.from_file(str(path))
        special = {i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
        bad = []
        for text, got in zip(strings, json.loads(line)):
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            want = tokenizer.decode(ids, skip_special_tokens=True)
            shown = b"".join(bytes.fromhex(b) for i, b in zip(got["ids"], got["bytes"]) if i not in special)
            if got["ids"] != ids:
                bad.append((text, "ids", ids, got["ids"]))
            elif shown.decode("utf-8", "replace") != want:
                bad.append((text, "bytes", want, shown))
            elif got["text"] != want:
                bad.append((text, "streamed text", want, got["text"]))
        print(f"{name}: {len(strings) - len(bad)} of {len(strings)} equal")
        for text, what, want, got in bad[:10]:
            print(f"    {text!r}: {what}: wanted {want!r}, got {got!r}")
        wrong += len(bad)
    return 1 if wrong or not found else 0


if __name__ == "__main__":
    sys.exit(main())
