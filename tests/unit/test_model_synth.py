"""The stand-in model: sizes, bytes, refusals, and that its tokenizer and its end-of-turn behave."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bramble.model import (
    QUANTIZATIONS,
    GgufError,
    SynthError,
    SynthReport,
    parse_parameters,
    read_shape,
    synthesize,
    tokenizer,
)
from bramble.model.synth import BIAS_CHANNELS, HEAD_DIM, WIDTH_MULTIPLE, choose_shape

TINY = {"parameters": 1_500_000, "layers": 1, "context": 128, "seed": 7, "name": "tiny"}


def make(path: Path, **changes: object) -> SynthReport:
    return synthesize(path, **{**TINY, "quantization": "Q4_0", **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> SynthReport:
    return make(tmp_path_factory.mktemp("model") / "tiny.gguf", quantization="F32")


def tensors(path: Path) -> dict[str, np.ndarray]:
    return {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("60M", 60_000_000),
        ("1.5B", 1_500_000_000),
        ("800k", 800_000),
        ("60000000", 60_000_000),
        (" 3 b ", 3_000_000_000),
    ],
)
def test_parse_parameters(text: str, number: int) -> None:
    assert parse_parameters(text) == number


@pytest.mark.parametrize("text", ["", "M", "0", "0M", "-60M", "60T", "60 MB", "1e9", "sixty"])
def test_parse_parameters_refuses(text: str) -> None:
    with pytest.raises(SynthError, match="expected something like 60M"):
        parse_parameters(text)


def test_sixty_million_has_twelve_layers() -> None:
    assert choose_shape(60_000_000).layers == 12


@given(parameters=st.integers(50_000_000, 20_000_000_000), layers=st.none() | st.integers(4, 48))
def test_shape_meets_the_size_and_the_widths_can_be_quantized(parameters: int, layers: int | None) -> None:
    shape = choose_shape(parameters, layers)
    assert layers is None or shape.layers == layers
    assert shape.embedding % WIDTH_MULTIPLE == 0
    assert shape.feed_forward % WIDTH_MULTIPLE == 0
    assert shape.heads % shape.kv_heads == 0
    assert shape.kv_heads * HEAD_DIM < shape.embedding
    assert shape.parameters == pytest.approx(parameters, rel=0.10 if layers is None else 0.16)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_the_file_says_what_it_is(tmp_path: Path, quantization: str) -> None:
    path = tmp_path / "model.gguf"
    report = make(path, quantization=quantization)
    info = report.model
    assert (info.architecture, info.layers, info.context) == ("llama", 1, 128)
    assert info.quantization == quantization
    assert info.vocabulary == tokenizer.VOCABULARY_SIZE
    assert info.parameters == choose_shape(TINY["parameters"], 1).parameters  # type: ignore[arg-type]
    assert info.bytes == path.stat().st_size
    assert report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert "random weights: not a trained model" in info.name
    assert b"synthetic, random weights: not a trained model (seed 7)" in path.read_bytes()


def test_output_head_is_its_own_tensor(tiny: SynthReport) -> None:
    assert "output.weight" in tensors(tiny.path)


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_tied_model(tmp_path: Path, architecture: str) -> None:
    report = make(tmp_path / "model.gguf", quantization="F32", architecture=architecture, tied=True)
    values = tensors(report.path)
    assert "output.weight" not in values
    assert report.model.parameters == sum(value.size for value in values.values())
    assert report.model.parameters == choose_shape(1_500_000, 1, architecture=architecture, tied=True).parameters
    # Whichever text token was last, the bias channels are for text and against control tokens.
    bias = values["token_embd.weight"][:, :BIAS_CHANNELS]
    control = len(tokenizer.CONTROL_TOKENS)
    assert (bias[control:] > 0).all()
    assert (bias[:control] @ bias[control:].T < -15).all()
    assert (values["output_norm.weight"][:BIAS_CHANNELS] == 1).all()


def test_qwen3_has_norms_of_heads_whose_width_is_their_own(tmp_path: Path) -> None:
    report = make(tmp_path / "model.gguf", quantization="F32", architecture="qwen3")
    info, values = report.model, tensors(report.path)
    assert (info.architecture, info.embedding, info.heads, info.kv_heads) == ("qwen3", 256, 4, 1)
    assert values["blk.0.attn_q.weight"].shape == (512, 256)
    assert values["blk.0.attn_output.weight"].shape == (256, 512)
    assert values["blk.0.attn_q_norm.weight"].shape == values["blk.0.attn_k_norm.weight"].shape == (128,)
    assert info.parameters == sum(value.size for value in values.values())
    assert info.parameters == choose_shape(1_500_000, 1, architecture="qwen3").parameters


def test_same_arguments_same_bytes(tmp_path: Path) -> None:
    reports = [make(tmp_path / name) for name in ("a.gguf", "b.gguf")]
    # Another process has other hash seeds and trains its own tokenizer.
    program = (
        "import sys; from bramble.model import synthesize; "
        f"print(synthesize(sys.argv[1], quantization='Q4_0', **{TINY!r}).sha256)"
    )
    other = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "c.gguf")], check=True, capture_output=True, text=True
    )
    assert {report.sha256 for report in reports} == {other.stdout.strip()}
    assert make(tmp_path / "d.gguf", seed=8).sha256 != reports[0].sha256


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization": "Q4_K_M"}, "Q4_K_M cannot be made here; choose one of F32, .*Q8_0"),
        ({"architecture": "gemma"}, "gemma cannot be made here; choose one of llama, qwen3"),
        ({"context": 0}, "context: must be 1 or more"),
        ({"layers": 0}, "layers: must be 1 or more"),
        ({"seed": -1}, "seed: must be 0 or more"),
        ({"parameters": 100_000}, "too few for 1 layers .* smallest such model has 1,"),
        ({"parameters": 1_500_000, "layers": 12}, "fewer layers"),
    ],
)
def test_refuses(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(SynthError, match=message):
        make(tmp_path / "model.gguf", **changes)
    assert list(tmp_path.iterdir()) == []


def test_replaces_a_file_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_text("precious")
    with pytest.raises(SynthError, match="exists already"):
        make(path)
    assert path.read_text() == "precious"
    make(path, overwrite=True)
    assert path.read_bytes()[:4] == b"GGUF"


def test_refuses_a_directory_and_a_file_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(SynthError, match="is a directory"):
        make(tmp_path, overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(SynthError, match="cannot be written"):
        make(tmp_path / "file" / "model.gguf")


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(self: object, tensor: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", no_space)
    with pytest.raises(SynthError, match="No space left on device"):
        make(tmp_path / "model.gguf")
    assert list(tmp_path.iterdir()) == []


def test_tokenizer_keeps_words_whole_and_bytes_possible() -> None:
    vocabulary = tokenizer.train()
    assert len(set(vocabulary.tokens)) == len(vocabulary.tokens) == tokenizer.VOCABULARY_SIZE
    assert vocabulary.tokens[:3] == ("<|bos|>", "<|im_start|>", "<|im_end|>")
    assert sum(len(token) == 1 for token in vocabulary.tokens) == 256
    assert {"Ġthe", "Ġbramble", "Ġnetwork", "ĠThen"} & set(vocabulary.tokens) >= {"Ġthe", "Ġbramble"}
    # llama.cpp looks each merge up as two known tokens that make a third.
    known = set(vocabulary.tokens)
    for merge in vocabulary.merges:
        left, right = merge.split(" ")
        assert {left, right, left + right} <= known


def test_bias_channels_pass_through_every_layer(tiny: SynthReport) -> None:
    values = tensors(tiny.path)
    assert (values["token_embd.weight"][:, :BIAS_CHANNELS] == 1).all()
    assert (values["blk.0.attn_output.weight"][:BIAS_CHANNELS] == 0).all()
    assert (values["blk.0.ffn_down.weight"][:BIAS_CHANNELS] == 0).all()


@pytest.mark.parametrize("quantization", ["F32", "Q8_0", "Q4_0"])
def test_control_tokens_are_all_but_impossible(tmp_path: Path, quantization: str) -> None:
    """At temperature 1 the chance of any control token stays below one in a million, whatever the hidden state."""
    values = tensors(make(tmp_path / "model.gguf", quantization=quantization).path)
    hidden = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
    hidden[:, :BIAS_CHANNELS] = 1
    # The rest of the stream grows by what the layers add; twice its initial size is more than twelve layers reach.
    hidden[:, BIAS_CHANNELS:] *= 2
    hidden /= np.sqrt((hidden**2).mean(axis=1, keepdims=True))
    logits = hidden @ values["output.weight"].T
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    assert probabilities[:, : len(tokenizer.CONTROL_TOKENS)].sum(axis=1).max() < 1e-6
    # And it is no machine that says one word: the mean entropy is that of a choice among at least twenty.
    entropy = -(probabilities * np.log(probabilities + 1e-30)).sum(axis=1).mean()
    assert entropy > math.log(20)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model at all", b"GGUF\x03\x00\x00\x00" + b"\xff" * 64])
def test_reading_something_else(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(GgufError, match=r"model\.gguf: not a whole GGUF file"):
        read_shape(path)


def test_reading_a_cut_file(tiny: SynthReport, tmp_path: Path) -> None:
    whole = tiny.path.read_bytes()
    for share in (0.001, 0.5, 0.99):
        path = tmp_path / "cut.gguf"
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(GgufError, match="not a whole GGUF file"):
            read_shape(path)


def test_reading_nothing(tmp_path: Path) -> None:
    with pytest.raises(GgufError, match="No such file"):
        read_shape(tmp_path / "absent.gguf")
    writer = gguf.GGUFWriter(tmp_path / "empty.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(GgufError, match=r"the key llama\.attention\.head_count is missing"):
        read_shape(tmp_path / "empty.gguf")
