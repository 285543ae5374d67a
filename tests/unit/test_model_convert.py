"""GGUF to distributed-llama's files: every tensor and header field in its place, the tokenizer's ids, and refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Reference
from tokenizers import models, pre_tokenizers

from bramble.model import ConvertReport, GgufError, convert, synthesize, tokenizer
from bramble.model.dllama import llama3_factors
from bramble.model.dllama_tokenizer import DllamaTokenizer
from dllama_files import Tokenizer, q40_values, read_model, read_tokenizer
from gguf_files import altered, vary_norms

KINDS = {
    "llama": ("llama", False),
    "llama-tied": ("llama", True),
    "qwen3": ("qwen3", False),
    "qwen3-tied": ("qwen3", True),
}
CONTROL = len(tokenizer.CONTROL_TOKENS)
# From the id in the .t to the id in the stand-in's GGUF, whose control tokens come first.
ORDER = [*range(CONTROL, tokenizer.VOCABULARY_SIZE), *range(CONTROL)]


def make(path: Path, kind: str = "llama", quantization: str = "Q4_0", layers: int = 2) -> Path:
    architecture, tied = KINDS[kind]
    synthesize(
        path,
        parameters=3_000_000,
        layers=layers,
        quantization=quantization,
        architecture=architecture,
        tied=tied,
        context=128,
    )
    vary_norms(path)
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("source") / "Tiny-1.5-Q4_0.gguf")


@pytest.fixture(scope="module")
def converted(source: Path) -> ConvertReport:
    return convert(source, source.parent)


@pytest.fixture(scope="module")
def dllama(converted: ConvertReport) -> Tokenizer:
    return read_tokenizer(converted.tokenizer.path)


def names(layers: int, tied: bool, qwen3: bool) -> Iterator[tuple[str, str]]:
    """Tensors of the .m, each with where it comes from in the GGUF."""
    yield "embedding", "token_embd"
    yield "logits", "token_embd" if tied else "output"
    yield "final_norm", "output_norm"
    pairs = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "wo": "attn_output", "w1": "ffn_gate", "w2": "ffn_down"}
    pairs |= {"w3": "ffn_up", "norm_0": "attn_norm", "norm_1": "ffn_norm"}
    if qwen3:
        pairs |= {"norm_q": "attn_q_norm", "norm_k": "attn_k_norm"}
    for i in range(layers):
        for there, here in pairs.items():
            yield f"{i} {there}", f"blk.{i}.{here}"


# --- The .m


@pytest.mark.parametrize(
    ("kind", "quantization"),
    [*((kind, "Q4_0") for kind in KINDS), ("llama", "Q8_0"), ("llama", "F16"), ("qwen3-tied", "F32")],
)
def test_every_tensor_is_in_its_place(tmp_path: Path, kind: str, quantization: str) -> None:
    source = make(tmp_path / "model.gguf", kind, quantization)
    model = read_model(convert(source, tmp_path).model.path)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(source).tensors}
    architecture, tied = KINDS[kind]
    expected = dict(names(2, tied, architecture == "qwen3"))
    assert expected.keys() == model.tensors.keys()
    for name, origin in expected.items():
        tensor = stored[f"{origin}.weight"]
        raw, values = np.array(tensor.data), gguf.dequantize(tensor.data, tensor.tensor_type)
        if name in ("embedding", "logits"):
            raw, values = raw[ORDER], values[ORDER]
        if name == "embedding" or "norm" in name:
            assert (np.frombuffer(model.tensors[name], "<f4") == values.reshape(-1)).all(), name
        elif quantization == "Q4_0":
            assert model.tensors[name] == raw.tobytes(), name
            assert (q40_values(model.tensors[name]) == values.reshape(-1)).all(), name
        else:
            # Q4_0 has steps of an eighth of a block's largest weight; that one's sign has an end 1/8 nearer.
            blocks = values.reshape(-1, 32)
            error = np.abs(q40_values(model.tensors[name]).reshape(-1, 32) - blocks).max(axis=1)
            assert (error <= np.abs(blocks).max(axis=1) * 0.1256 + 1e-6).all(), name


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("llama", {1: 0xABCD00, 2: 256, 5: 4, 6: 1, 18: 0, 19: 64}),
        ("qwen3", {1: 0xABCD01, 2: 256, 5: 4, 6: 1, 18: 1, 19: 128}),
    ],
)
def test_header(tmp_path: Path, kind: str, expected: dict[int, int]) -> None:
    report = convert(make(tmp_path / "model.gguf", kind), tmp_path)
    header = read_model(report.model.path).header
    common = {0: 0, 4: 2, 7: 0, 8: 0, 9: 2048, 10: 128, 11: 1, 12: 10_000, 13: 2, 20: 5}
    assert header.items() >= (expected | common).items()
    assert set(header) == {*range(14), 18, 19, 20}  # no RoPE scaling
    assert (report.source.layers, report.source.kv_heads) == (header[4], header[6])


@pytest.mark.parametrize("scaling", [(8, 1, 4, 8192), (32, 1, 4, 8192), (16, 1, 8, 4096)])
def test_rope_scaling_is_recovered(source: Path, tmp_path: Path, scaling: tuple[int, int, int, int]) -> None:
    """What the factors were made of, as Llama 3.1 (8) and 3.2 (32) have it."""
    factors = llama3_factors(500_000, 64, *scaling).astype(np.float32)
    assert factors[0] == 1 < factors[-1]
    path = altered(source, tmp_path / "a.gguf", {"llama.rope.freq_base": 5e5}, {"rope_freqs.weight": factors})
    header = read_model(convert(path, tmp_path).model.path).header
    assert (header[12], header[18]) == (500_000, 2)
    assert tuple(header[key] for key in (14, 15, 16, 17)) == scaling


def test_llama3_factors_are_those_of_the_published_model() -> None:
    """By the formula's own branches, at Llama 3.2's values: https://huggingface.co/meta-llama/Llama-3.2-1B."""
    factors = llama3_factors(500_000, 64, 32, 1, 4, 8192)
    wavelengths = 2 * np.pi * 500_000 ** (np.arange(0, 64, 2) / 64)
    assert (factors[wavelengths < 2048] == 1).all()
    assert (factors[wavelengths > 8192] == 32).all()
    between = factors[(wavelengths > 2048) & (wavelengths < 8192)]
    assert len(between) > 1
    assert ((between > 1) & (between < 32)).all()
    assert (np.diff(factors) >= 0).all()


def test_a_scaling_of_ones_is_none(source: Path, tmp_path: Path) -> None:
    path = altered(source, tmp_path / "a.gguf", {}, {"rope_freqs.weight": np.ones(32, np.float32)})
    assert read_model(convert(path, tmp_path).model.path).header[18] == 0


def test_epsilon(source: Path, tmp_path: Path) -> None:
    path = altered(source, tmp_path / "a.gguf", {"llama.attention.layer_norm_rms_epsilon": 1e-6})
    assert read_model(convert(path, tmp_path).model.path).header[20] == 6


def test_same_file_same_bytes_and_what_is_reported(source: Path, converted: ConvertReport, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    again = convert(source, tmp_path / "new" / "directory", progress=lambda *step: steps.append(step))
    assert (again.model.sha256, again.tokenizer.sha256) == (converted.model.sha256, converted.tokenizer.sha256)
    assert again.model.path == tmp_path / "new/directory/Tiny-1.5-Q4_0.m"
    assert again.model.bytes == again.model.path.stat().st_size
    assert steps == sorted(steps)
    assert steps[-1] == (again.model.bytes, again.model.bytes)


def test_chunks_do_not_show(source: Path, converted: ConvertReport, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("bramble.model.dllama.CHUNK", 1000)  # three rows and a rest
    assert convert(source, tmp_path).model.sha256 == converted.model.sha256


# --- The .t


def test_special_tokens_come_last(converted: ConvertReport, dllama: Tokenizer) -> None:
    vocabulary = tokenizer.train()
    assert dllama.texts[dllama.bos :] == [token.encode() for token in tokenizer.CONTROL_TOKENS]
    assert (dllama.bos, dllama.add_bos, dllama.ends) == (2045, True, [2047])
    assert dllama.template.decode() == tokenizer.CHAT_TEMPLATE
    assert dllama.max_length == max(map(len, dllama.texts))
    assert len(vocabulary.tokens) == len(dllama.texts)
    assert converted.notes == ("Token ids differ from the GGUF's: distributed-llama wants special tokens last.",)


def special_last(source: Path, target: Path, **fields: Any) -> Path:
    """As Llama 3 and Qwen3 have it: BOS is the first id after text."""
    vocabulary = tokenizer.train()
    tokens = [vocabulary.tokens[i] for i in ORDER]
    kinds = [gguf.TokenType.NORMAL] * (len(tokens) - CONTROL) + [gguf.TokenType.CONTROL] * CONTROL
    own = {"tokens": tokens, "token_type": [int(kind) for kind in kinds], "bos_token_id": 2045, "eos_token_id": 2047}
    return altered(source, target, {f"tokenizer.ggml.{key}": value for key, value in (own | fields).items()})


def test_ids_stay_where_special_tokens_are_last(source: Path, tmp_path: Path) -> None:
    path = special_last(source, tmp_path / "a.gguf")
    report = convert(path, tmp_path)
    assert report.notes == ()
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert read_model(report.model.path).tensors["logits"] == np.array(stored["output.weight"].data).tobytes()


@pytest.mark.parametrize(
    ("fields", "bos", "add_bos", "ends"),
    [
        ({"bos_token_id": None}, 2045, False, [2047]),  # what begins the special tokens, and begins no text
        ({"add_bos_token": False}, 2045, False, [2047]),
        ({"add_bos_token": None}, 2045, False, [2047]),
        ({"add_bos_token": None, "pre": "llama-bpe"}, 2045, True, [2047]),
        ({"eos_token_id": 2046}, 2045, True, [2047, 2046]),  # <|im_end|> closes messages whatever the EOS is
        ({"eot_token_id": 2046}, 2045, True, [2047, 2046]),
    ],
)
def test_bos_and_ends(
    source: Path, tmp_path: Path, fields: dict[str, Any], bos: int, add_bos: bool, ends: list[int]
) -> None:
    found = read_tokenizer(convert(special_last(source, tmp_path / "a.gguf", **fields), tmp_path).tokenizer.path)
    assert (found.bos, found.add_bos, found.ends) == (bos, add_bos, ends)


def test_unknown_chat_template_is_told(source: Path, tmp_path: Path) -> None:
    path = altered(source, tmp_path / "a.gguf", {"tokenizer.chat_template": "{{ messages }}"})
    assert "does not know the chat template" in convert(path, tmp_path).notes[-1]


def reference() -> Reference:
    vocabulary = tokenizer.train()
    merges = [tuple(merge.split(" ")) for merge in vocabulary.merges]
    made = Reference(models.BPE({token: i for i, token in enumerate(vocabulary.tokens)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    made.add_special_tokens(list(tokenizer.CONTROL_TOKENS))
    return made


REFERENCE = reference()
WORDS = sorted(set(tokenizer.corpus().split()))


@given(
    words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=8), end=st.sampled_from([".", "?", "", "<|im_end|>"])
)
def test_words_become_the_same_ids(dllama: Tokenizer, words: list[str], end: str) -> None:
    text = " ".join(words) + end
    ids, _ = dllama.encode(text)
    assert [ORDER[i] for i in ids] == [0, *REFERENCE.encode(text).ids]


@given(text=st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=20))
def test_no_text_is_lost(dllama: Tokenizer, text: str) -> None:
    ids, _ = dllama.encode(text)
    assert b"".join(dllama.texts[i] for i in ids[1:]) == text.encode()


def test_ids_of_text_are_the_same_and_those_of_indented_lines_often_not(dllama: Tokenizer) -> None:
    """The known limit: before a word, the regular expression keeps its own space from the run of spaces."""
    differ = [
        line
        for line in tokenizer.corpus().splitlines()
        if [ORDER[i] for i in dllama.encode(line)[0][1:]] != REFERENCE.encode(line).ids
    ]
    assert differ
    assert all(line.startswith("  ") for line in differ)


# --- Refusals


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"general.architecture": "qwen2"}, "architecture qwen2 cannot be converted; .* llama and qwen3"),
        ({"llama.expert_count": 8}, "mixture of 8 experts"),
        ({"llama.attention.layer_norm_rms_epsilon": 1e-4}, "epsilon is 0.0001"),
        ({"llama.rope.freq_base": 10_000.5}, r"freq_base is 10000\.5"),
        ({"llama.rope.freq_base": 1e10}, "freq_base is"),
        ({"llama.rope.dimension_count": 32}, "rope.dimension_count is 32"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}, "scaling of the type yarn"),
        ({"llama.attention.key_length": 128}, "rope.dimension_count is 64"),
        (
            {"llama.attention.head_count_kv": 2},
            r"attn_k\.weight has the shape \(64, 256\), its header makes it \(128, 256\)",
        ),
        ({"llama.attention.head_count": 0}, "makes no model"),
        ({"llama.context_length": None}, "llama.context_length is missing"),
        ({"split.count": 2}, "one of 2 parts"),
        ({"tokenizer.ggml.model": "llama"}, "of the kind llama; only byte-level BPE"),
        ({"tokenizer.ggml.token_type": None}, "token_type has 0 entries for 2048"),
        ({"tokenizer.ggml.eos_token_id": 5000}, "token 5000"),
        ({"tokenizer.ggml.token_type": [3] * 2048}, "no token for the byte 0x01"),
    ],
)
def test_refuses(source: Path, tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    path = altered(source, tmp_path / "a.gguf", fields)
    with pytest.raises(GgufError, match=message) as caught:
        convert(path, tmp_path / "out")
    assert str(path) in str(caught.value)
    assert not (tmp_path / "out").exists()


Q4_K, Q5_K, IQ1 = (gguf.GGMLQuantizationType[name] for name in ("Q4_K", "Q5_K", "TQ1_0"))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"blk.1.ffn_up.weight": None}, r"blk\.1\.ffn_up\.weight is missing"),
        ({"token_embd.weight": None}, r"token_embd\.weight is missing"),
        ({"blk.0.attn_q.bias": np.ones(256, np.float32)}, r"has the tensor blk\.0\.attn_q\.bias"),
        ({"rope_freqs.weight": np.linspace(1, 9, 32, dtype=np.float32)}, "no RoPE scaling of Llama 3's kind"),
        ({"rope_freqs.weight": np.full(8, 2, np.float32)}, "no RoPE scaling of Llama 3's kind"),
        ({"blk.0.ffn_up.weight": Q4_K}, "1 matrix is Q4_K; .* as Q4_0 .*, Q8_0 or F16, or ask to requantize"),
        (
            {"blk.0.ffn_up.weight": Q4_K, "blk.1.ffn_up.weight": Q4_K, "output.weight": Q5_K},
            "2 matrices are Q4_K and 1 matrix is Q5_K",
        ),
    ],
)
def test_refuses_tensors(source: Path, tmp_path: Path, tensors: dict[str, Any], message: str) -> None:
    path = altered(source, tmp_path / "a.gguf", {}, tensors)
    with pytest.raises(GgufError, match=message):
        convert(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_output_matrix_of_llama_quantize_is_taken(source: Path, tmp_path: Path) -> None:
    path = altered(source, tmp_path / "a.gguf", {}, {"output.weight": gguf.GGMLQuantizationType.Q6_K})
    assert not any(q40_values(read_model(convert(path, tmp_path).model.path).tensors["logits"]))


def test_requantizes_when_asked(source: Path, tmp_path: Path) -> None:
    path = altered(source, tmp_path / "a.gguf", {}, {"output.weight": Q4_K})
    report = convert(path, tmp_path, requantize=True)
    assert "costs quality: 1 matrix is Q4_K." in report.notes[0]
    # f32 quantizes nothing, so there is nothing to ask for.
    assert not any("quality" in note for note in convert(path, tmp_path, weights="f32", overwrite=True).notes)


def test_replaces_files_only_when_asked(source: Path, converted: ConvertReport, tmp_path: Path) -> None:
    (tmp_path / "Tiny-1.5-Q4_0.t").write_text("precious")
    with pytest.raises(GgufError, match=r"Tiny-1\.5-Q4_0\.t: exists already"):
        convert(source, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["Tiny-1.5-Q4_0.t"]
    assert convert(source, tmp_path, overwrite=True).tokenizer.sha256 == converted.tokenizer.sha256


def test_a_failure_leaves_nothing_behind(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DllamaTokenizer, "as_bytes", no_space)  # when the .m is there already
    with pytest.raises(GgufError, match="No space left on device"):
        convert(source, tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(GgufError, match="cannot be written"):
        convert(source, source / "directory")


# --- The command


def test_command(source: Path, converted: ConvertReport, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from bramble.cli.app import app

    done = CliRunner().invoke(app, ["model", "convert", str(source), "--output", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert converted.model.sha256 in done.output
    entry = json.loads((tmp_path / "Tiny-1.5-Q4_0.dllama.json").read_text())
    assert entry["model"] == {
        "file": "Tiny-1.5-Q4_0.m",
        "bytes": converted.model.bytes,
        "sha256": converted.model.sha256,
    }
    assert entry["tokenizer"]["sha256"] == converted.tokenizer.sha256
    assert (entry["family"], entry["layers"], entry["kv_heads"], entry["weights"]) == ("llama", 2, 1, "q40")
