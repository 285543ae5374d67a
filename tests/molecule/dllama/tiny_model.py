"""Writes a tiny model of random weights for distributed-llama: OUTPUT.m, OUTPUT.t, and facts about them, OUTPUT.json.

Formats: src/llm.cpp (loadLlmHeader, loadLlmNetWeight) and src/tokenizer.cpp (Tokenizer) of distributed-llama 8d624a7.
"""

from __future__ import annotations

import hashlib
import json
import random
import struct
import sys
from pathlib import Path

LLAMA, Q40 = 0xABCD00, 2
DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, CONTEXT = 128, 256, 2, 4, 2, 512
# Each byte is a token, and some pairs are: dllama-api reads one token past a prompt in which nothing was merged, and
# dies of it (dllama-api.cpp, `token = promptTokens[i + 1]`). Then what the chat template uses, and some to fill up.
REGULAR = [bytes([byte]) for byte in range(256)] + [b"us", b"er", b"as", b"st", b"an", b"nt"]
SPECIAL = [b"<s>", b"<|im_start|>", b"<|im_end|>"]
VOCABULARY = [*REGULAR, *SPECIAL, *(f"<|pad{n}|>".encode() for n in range(320 - len(REGULAR) - len(SPECIAL)))]
BOS, EOS = len(REGULAR), len(REGULAR) + 2


def pairs(values: dict[int, int], magic: int) -> bytes:
    """A header: magic, its whole size, keys and values."""
    content = b"".join(struct.pack("<ii", key, value) for key, value in values.items())
    return struct.pack("<ii", magic, 8 + len(content)) + content


def model(source: random.Random) -> bytes:
    """The weights, each row in blocks of 32: a scale of 16 bits and 16 bytes."""
    header = {0: 1, 1: LLAMA, 2: DIM, 3: HIDDEN, 4: LAYERS, 5: HEADS, 6: KV_HEADS, 7: 0, 8: 0, 9: len(VOCABULARY)}
    header |= {10: CONTEXT, 11: 1, 12: 10000, 13: Q40, 18: 0}
    scale = struct.pack("<e", 0.02)

    def q40(rows: int, columns: int) -> bytes:
        return b"".join(scale + source.randbytes(16) for _ in range(rows * columns // 32))

    def f32(count: int, low: float, high: float) -> bytes:
        return struct.pack(f"<{count}f", *(source.uniform(low, high) for _ in range(count)))

    kv = DIM // HEADS * KV_HEADS
    shapes = [(DIM, DIM), (kv, DIM), (kv, DIM), (DIM, DIM), (HIDDEN, DIM), (DIM, HIDDEN), (HIDDEN, DIM)]
    layer = [b"".join(q40(*shape) for shape in shapes) + f32(2 * DIM, 1, 1) for _ in range(LAYERS)]
    embedding = f32(len(VOCABULARY) * DIM, -1, 1)
    return pairs(header, 0xA00ABCD) + embedding + b"".join(layer) + f32(DIM, 1, 1) + q40(len(VOCABULARY), DIM)


def tokenizer() -> bytes:
    """The bytes, and a chat template by which the engine knows ChatML."""
    template = b"<|im_start|>"
    longest = max(map(len, VOCABULARY))
    header = {0: 1, 1: len(VOCABULARY), 2: longest, 7: len(template), 3: BOS, 10: 1, 9: 1}
    words = b"".join(struct.pack("<fi", 0, len(word)) + word for word in VOCABULARY)
    return pairs(header, 0x567124) + template + struct.pack("<i", EOS) + words


def main() -> None:
    output = Path(sys.argv[1])
    output.parent.mkdir(parents=True, exist_ok=True)
    about: dict[str, object] = {"name": output.name, "kv_heads": KV_HEADS, "context": CONTEXT}
    for kind, suffix, content in (("model", ".m", model(random.Random(1))), ("tokenizer", ".t", tokenizer())):
        path = output.with_name(output.name + suffix)
        path.write_bytes(content)
        about |= {
            f"{kind}_path": str(path.absolute()),
            f"{kind}_sha256": hashlib.sha256(content).hexdigest(),
            f"{kind}_bytes": len(content),
        }
    output.with_name(output.name + ".json").write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
