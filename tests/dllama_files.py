"""Reads distributed-llama's files and encodes as it does: written from its source, not from Bramble's converter."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass
class Model:
    header: dict[int, int]
    tensors: dict[str, bytes]


def read_model(path: Path) -> Model:
    """The header by its numeric keys, and each tensor's bytes by the name of the operation that loads it."""
    data = path.read_bytes()
    magic, size = struct.unpack_from("<ii", data)
    assert magic == 0xA00ABCD
    pairs = struct.unpack_from(f"<{(size - 8) // 4}i", data, 8)
    header = dict(zip(pairs[::2], pairs[1::2], strict=True))
    assert len(header) == len(pairs) // 2, "a key stands twice"
    tensors, at = {}, size
    for name, length in _lengths(header):
        tensors[name] = data[at : at + length]
        at += length
    assert at == len(data)
    return Model(header, tensors)


def _lengths(header: dict[int, int]) -> Iterator[tuple[str, int]]:
    dim, hidden, layers, heads, kv_heads, vocabulary = (header[key] for key in (2, 3, 4, 5, 6, 9))
    q, kv = header[19] * heads, header[19] * kv_heads

    def matrix(rows: int, columns: int) -> int:
        return {2: rows * columns // 32 * 18, 0: rows * columns * 4}[header[13]]

    yield "embedding", vocabulary * dim * 4
    for i in range(layers):
        yield f"{i} q", matrix(q, dim)
        yield f"{i} k", matrix(kv, dim)
        yield f"{i} v", matrix(kv, dim)
        yield f"{i} wo", matrix(dim, q)
        yield f"{i} w1", matrix(hidden, dim)
        yield f"{i} w2", matrix(dim, hidden)
        yield f"{i} w3", matrix(hidden, dim)
        if header[1] == 0xABCD01:
            yield f"{i} norm_q", header[19] * 4
            yield f"{i} norm_k", header[19] * 4
        yield f"{i} norm_0", dim * 4
        yield f"{i} norm_1", dim * 4
    yield "final_norm", dim * 4
    yield "logits", matrix(vocabulary, dim)


def q40_values(data: bytes) -> np.ndarray:
    """What the blocks of a q40 tensor come to, in order."""
    blocks = np.frombuffer(data, dtype=np.dtype([("scale", "<f2"), ("halves", "u1", 16)]))
    low, high = blocks["halves"] & 15, blocks["halves"] >> 4
    whole = np.concatenate([low, high], axis=1).astype(np.int8) - 8
    return (blocks["scale"].astype(np.float32)[:, None] * whole).reshape(-1)


@dataclass
class Tokenizer:
    texts: list[bytes]
    scores: list[float]
    bos: int
    add_bos: bool
    ends: list[int]
    max_length: int
    template: bytes

    def encode(self, text: str) -> tuple[list[int], int]:
        """The ids, and what the array holds behind the last of them: what `dllama` feeds first by mistake."""
        regular = {t: i for i, t in enumerate(self.texts[: self.bos])}
        ids = [self.bos] if self.add_bos else []
        rest = text.encode()
        while rest:
            special = next((i for i in range(self.bos, len(self.texts)) if rest.startswith(self.texts[i])), None)
            if special is not None:
                ids.append(special)
                rest = rest[len(self.texts[special]) :]
                continue
            length = next(n for n in range(1, len(rest) + 1) if rest[:n] in regular)
            ids.append(regular[rest[:length]])
            rest = rest[length:]
        behind = 0
        while True:
            best, at = -1e10, None
            for i in range(len(ids) - 1):
                token = regular.get(self.texts[ids[i]] + self.texts[ids[i + 1]])
                if token is not None and self.scores[token] > best:
                    best, at, merged = self.scores[token], i, token
            if at is None:
                return ids, behind
            behind = ids[-1]
            ids[at : at + 2] = [merged]


def read_tokenizer(path: Path) -> Tokenizer:
    data = path.read_bytes()
    magic, size = struct.unpack_from("<ii", data)
    assert magic == 0x567124
    pairs = struct.unpack_from(f"<{(size - 8) // 4}i", data, 8)
    header = dict(zip(pairs[::2], pairs[1::2], strict=True))
    assert header[0] == 1
    at = size
    template = data[at : at + header.get(7, 0)]
    at += len(template)
    ends = list(struct.unpack_from(f"<{header[9]}i", data, at))
    at += 4 * len(ends)
    texts, scores = [], []
    for _ in range(header[1]):
        score, length = struct.unpack_from("<fi", data, at)
        assert 0 < length <= header[2]
        texts.append(data[at + 8 : at + 8 + length])
        scores.append(score)
        at += 8 + length
    assert at == len(data)
    return Tokenizer(texts, scores, header[3], header[10] == 1, ends, header[2], template)
