"""A small byte-level BPE tokenizer, trained on the text that ships with this package."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from importlib import resources

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

BOS, TURN_START, TURN_END = "<|bos|>", "<|im_start|>", "<|im_end|>"
CONTROL_TOKENS = (BOS, TURN_START, TURN_END)  # their ids are 0, 1, 2
VOCABULARY_SIZE = 2048  # three control tokens, 256 bytes, 1789 merges

# ChatML, https://github.com/openai/openai-python/blob/release-v0.28.0/chatml.md
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A byte-level BPE vocabulary as GGUF stores it.

    `tokens[i]` is token i in GPT-2's printable alphabet of bytes; `merges` are pairs joined by a space, most frequent
    first; `log_frequency[i]` is the natural logarithm of token i's share in the training text.
    """

    tokens: tuple[str, ...]
    merges: tuple[str, ...]
    log_frequency: tuple[float, ...]


def corpus() -> str:
    return resources.files("bramble.model").joinpath("corpus.txt").read_text(encoding="utf-8")


@cache
def train() -> Vocabulary:
    """Train on `corpus()`. The result depends on the text alone: BPE breaks ties by token id."""
    text = corpus()
    tokenizer = Tokenizer(models.BPE())
    # The regular expression of GPT-2, which llama.cpp applies for `tokenizer.ggml.pre = gpt-2`: both cut text alike.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(CONTROL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = tuple(sorted(model["vocab"], key=model["vocab"].__getitem__))
    if len(tokens) != VOCABULARY_SIZE:
        raise RuntimeError(f"corpus.txt gives {len(tokens)} tokens instead of {VOCABULARY_SIZE}: it is too short")

    counts = [0] * len(tokens)
    for token_id in tokenizer.encode(text).ids:
        counts[token_id] += 1
    total = sum(counts)
    # A token that the text does not use alone (such as half of a UTF-8 character) counts as a hundredth of a token.
    log_frequency = tuple(math.log(max(count, 0.01) / total) for count in counts)
    merges = tuple(merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
    return Vocabulary(tokens, merges, log_frequency)
