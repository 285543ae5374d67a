"""A GGUF's byte-level BPE vocabulary as distributed-llama's `.t` file.

Read at distributed-llama 8d624a7 (src/tokenizer.cpp). Its encoder knows no merges and no pre-tokenizer:

- Token ids below `bos_id` are text, those from it on are special. Special tokens are found in the text as they stand.
- Text starts as single bytes. Of all neighbours whose concatenation is a token, the pair with the highest score of the
  result becomes one, the leftmost first, until no pair is left. A result below -1e10 is never made.

So the score of a token is minus the rank of the first merge that makes it, and ids are those of `tokenizers` and
llama.cpp wherever the pre-tokenizer's regular expression decides nothing: words with single spaces between them, and
punctuation. They can differ, in where they cut and not in what they say, where it does: runs of spaces or line breaks
before a word (indented code), numbers of four digits and more (Llama 3), some signs beside letters; and where a token
is the sum of two tokens that no merge joins. Of the lines of corpus.txt that are not indented, with the vocabularies in
llama.cpp's models/, all have the same ids for Qwen, and all but two, with such numbers, for Llama 3. Text has to be
valid UTF-8 without NUL.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import gguf

from bramble.model.gguf_info import GgufError, GgufFile

MAGIC = 0x567124
VERSION = 1
# src/tokenizer.hpp, enum TokenizerHeaderKey
KEY_VERSION, KEY_VOCAB_SIZE, KEY_MAX_TOKEN_LENGTH, KEY_BOS_ID = 0, 1, 2, 3
KEY_CHAT_TEMPLATE, KEY_N_EOS_TOKENS, KEY_ADD_BOS = 7, 9, 10

NEVER = -1e11  # below the -1e10 at which the encoder starts to look for the best pair

# What llama.cpp takes for the end of a turn, whatever eos_token_id says (src/llama-vocab.cpp, special_eog_ids). In this
# order: with some templates distributed-llama closes each message by the first end token of the file.
TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>")
OTHER_ENDS = ("<|eom_id|>", "<|end_of_text|>", "<|endoftext|>")
# Pre-tokenizers with which llama.cpp begins a text by BOS if the file does not say (src/llama-vocab.cpp).
BOS_BY_DEFAULT = ("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "tekken")
# By what src/tokenizer.cpp knows a template, of which it reads nothing else.
TEMPLATE_MARKS = ("[INST]", "<|start_header_id|>", "<｜Assistant｜>", "<|im_start|>")  # noqa: RUF001
# Bytes that no UTF-8 text has, so that a vocabulary may lack them.
NOT_UTF8 = frozenset({0, 0xC0, 0xC1, *range(0xF5, 0x100)})


@dataclass(frozen=True, slots=True)
class DllamaTokenizer:
    """A vocabulary in distributed-llama's order.

    `order[i]` is the id that token i of the `.t` has in the GGUF: text first, then BOS, then the other special tokens.
    For Llama 3 and Qwen3 that is how they stand. `end_ids` are ids of the `.t`.
    """

    texts: tuple[bytes, ...]
    scores: tuple[float, ...]
    order: tuple[int, ...]
    bos_id: int
    add_bos: bool
    end_ids: tuple[int, ...]
    chat_template: str

    @property
    def reordered(self) -> bool:
        return self.order != tuple(range(len(self.order)))

    @property
    def template_known(self) -> bool:
        return any(mark in self.chat_template for mark in TEMPLATE_MARKS)

    def as_bytes(self) -> bytes:
        """The `.t` file."""
        template = self.chat_template.encode()
        fields = [
            (KEY_VERSION, VERSION),
            (KEY_VOCAB_SIZE, len(self.texts)),
            (KEY_MAX_TOKEN_LENGTH, max(map(len, self.texts))),
            (KEY_BOS_ID, self.bos_id),
            *([(KEY_CHAT_TEMPLATE, len(template))] if template else []),
            (KEY_N_EOS_TOKENS, len(self.end_ids)),
            (KEY_ADD_BOS, int(self.add_bos)),
        ]
        header = b"".join(struct.pack("<ii", *field) for field in fields)
        parts = [struct.pack("<ii", MAGIC, 8 + len(header)), header, template]
        parts += [struct.pack("<i", end) for end in self.end_ids]
        for score, text in zip(self.scores, self.texts, strict=True):
            parts += [struct.pack("<fi", score, len(text)), text]
        return b"".join(parts)


def read_tokenizer(file: GgufFile) -> DllamaTokenizer:
    """Turn the vocabulary of an open GGUF. Raises GgufError if it is of another kind or lacks what a `.t` needs."""
    kind = str(file.value("tokenizer.ggml.model"))
    if kind != "gpt2":
        raise GgufError(
            f"{file.path}: its tokenizer is of the kind {kind}; only byte-level BPE (gpt2) can be converted, which "
            "Llama 3, SmolLM and Qwen3 have"
        )
    tokens = [str(token) for token in file.value("tokenizer.ggml.tokens")]
    kinds = [int(found) for found in file.value("tokenizer.ggml.token_type", [])]
    if len(kinds) != len(tokens):
        raise GgufError(
            f"{file.path}: tokenizer.ggml.token_type has {len(kinds)} entries for {len(tokens)} tokens: "
            "which tokens are special cannot be told. Get a newer file of this model"
        )
    ids = {token: i for i, token in enumerate(tokens)}
    bos = file.number("tokenizer.ggml.bos_token_id", -1)
    named = [file.number(f"tokenizer.ggml.{key}_token_id", -1) for key in ("eot", "eos")]
    ends = [ids[name] for name in TURN_ENDS if name in ids]
    ends += [i for i in named if i >= 0]
    ends += [ids[name] for name in OTHER_ENDS if name in ids]
    ends = list(dict.fromkeys(ends))
    if bad := [i for i in (bos, *ends) if i >= len(tokens)]:
        raise GgufError(f"{file.path}: names token {bad[0]} as special and has {len(tokens)} tokens")
    if not ends:
        raise GgufError(f"{file.path}: names no token that ends a text (tokenizer.ggml.eos_token_id)")

    special = {i for i, found in enumerate(kinds) if found != gguf.TokenType.NORMAL} | set(ends)
    if bos >= 0:
        special.add(bos)
    order = sorted(range(len(tokens)), key=lambda i: (i in special, i in special and i != bos, i))
    new_ids = {old: new for new, old in enumerate(order)}

    from_alphabet = _alphabet()
    texts = [_text(tokens[i], None if i in special else from_alphabet) for i in order]
    if b"" in texts:
        raise GgufError(f"{file.path}: token {order[texts.index(b'')]} is empty, which distributed-llama cannot read")
    text_tokens = set(texts[: len(tokens) - len(special)])
    if missing := [byte for byte in range(256) if byte not in NOT_UTF8 and bytes([byte]) not in text_tokens]:
        raise GgufError(f"{file.path}: no token for the byte {missing[0]:#04x}: distributed-llama would stop at it")

    ranks: dict[str, int] = {}
    for rank, merge in enumerate(map(str, file.value("tokenizer.ggml.merges"))):
        # The first character belongs to the left half even if it is a space.
        space = merge.find(" ", 1)
        ranks.setdefault(merge[:space] + merge[space + 1 :], rank)
    scores = [NEVER if i in special or tokens[i] not in ranks else -1.0 - ranks[tokens[i]] for i in order]

    default = bos >= 0 and file.value("tokenizer.ggml.pre", "default") in BOS_BY_DEFAULT
    return DllamaTokenizer(
        texts=tuple(texts),
        scores=tuple(scores),
        order=tuple(order),
        # Without a BOS the first special token stands for it: it still marks where text ends.
        bos_id=len(tokens) - len(special),
        add_bos=bos >= 0 and bool(file.value("tokenizer.ggml.add_bos_token", default)),
        end_ids=tuple(new_ids[i] for i in ends),
        chat_template=str(file.value("tokenizer.chat_template", "")),
    )


def _text(token: str, alphabet: dict[str, int] | None) -> bytes:
    """The bytes that a token stands for; a special token is written as it reads (`alphabet` is None)."""
    if alphabet is None:
        text = token.encode()
    else:
        text = b"".join(bytes([alphabet[c]]) if c in alphabet else c.encode() for c in token)
    # The engine compares C strings: "a\0" would pass for "a". A lone NUL is in no text.
    return b"\0" if b"\0" in text else text


def _alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes: those that print are themselves, the others follow from 256 on.

    https://github.com/openai/gpt-2/blob/master/src/encoder.py, bytes_to_unicode
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
