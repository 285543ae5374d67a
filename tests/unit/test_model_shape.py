"""A model's shape: from a file, by both readers; from published figures; and what is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import yaml
from ansible.module_utils.bramble import gguf as under_test
from ansible.module_utils.testing import patch_module_args
from by_path import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

import gguf_info as module
from bramble.model import (
    GgufError,
    ModelShape,
    ShapeError,
    catalogue_fields,
    known_shape,
    read_shape,
    synthesize,
)
from bramble.model.published import PUBLISHED, published_shape

CATALOGUE = yaml.safe_load((ROOT / "roles/model_store/vars/catalogue.yml").read_text())["__model_store_catalogue"]
ENTRY = CATALOGUE["llama-3.2-3b-instruct-q4_k_m"]
SHAPE = known_shape(ENTRY)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shape") / "tiny.gguf"
    synthesize(path, parameters=3_000_000, layers=2, quantization="Q4_0", context=256)
    return path


def mixture(path: Path, **changes: Any) -> Path:
    """A small mixture of experts with a tied embedding; `changes` of its metadata, None to leave a key out."""
    writer = gguf.GGUFWriter(path, "qwen3moe")
    values: dict[str, Any] = {
        "block_count": 2,
        "context_length": 64,
        "embedding_length": 64,
        "feed_forward_length": 96,
        "expert_feed_forward_length": 32,
        "expert_count": 4,
        "expert_used_count": 2,
        "attention.head_count": 4,
        "attention.head_count_kv": [2, 2],
        "attention.key_length": 32,
        "attention.value_length": 32,
        "vocab_size": 96,
    }
    for key, value in (values | changes).items():
        if isinstance(value, list):
            writer.add_array(f"qwen3moe.{key}", value)
        elif value is not None:
            writer.add_uint32(f"qwen3moe.{key}", value)
    writer.add_name("mixture")
    quantized = gguf.GGMLQuantizationType.Q8_0

    def add(name: str, *shape: int, plain: bool = False) -> None:
        data = np.zeros(shape, dtype=np.float32)
        if plain:
            writer.add_tensor(name, data)
        else:
            writer.add_tensor(name, gguf.quants.quantize(data, quantized), raw_dtype=quantized)

    add("token_embd.weight", 96, 64)
    for i in range(2):
        add(f"blk.{i}.attn_norm.weight", 64, plain=True)
        add(f"blk.{i}.attn_q.weight", 128, 64)
        add(f"blk.{i}.ffn_gate_inp.weight", 4, 64, plain=True)
        for part in ("gate", "up"):
            add(f"blk.{i}.ffn_{part}_exps.weight", 4, 32, 64)
        add(f"blk.{i}.ffn_down_exps.weight", 4, 64, 32)
    add("output_norm.weight", 64, plain=True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# --- Files


def test_a_files_parts_add_up(synthetic: Path) -> None:
    shape = read_shape(synthetic)
    reader = gguf.GGUFReader(synthetic)
    assert shape.weight_bytes == sum(int(tensor.n_bytes) for tensor in reader.tensors)
    assert shape.parameters == sum(int(tensor.n_elements) for tensor in reader.tensors)
    assert (shape.layers, shape.quantization, shape.tied, shape.bytes) == (2, "Q4_0", False, synthetic.stat().st_size)
    assert shape.layer_active_bytes == shape.layer_bytes
    # Of the weights, one token leaves out all but a row of the input embedding.
    assert shape.active_bytes == shape.weight_bytes - shape.embedding_bytes


def test_of_a_mixture_one_token_reads_its_experts_only(tmp_path: Path) -> None:
    shape = read_shape(mixture(tmp_path / "m.gguf"))
    experts = 3 * 4 * 32 * 64 * 34 // 32
    attention, gates, norm = 128 * 64 * 34 // 32, 4 * 64 * 4, 64 * 4
    assert shape.layer_bytes == (experts + attention + gates + norm,) * 2
    assert shape.layer_active_bytes == (experts // 2 + attention + gates + norm,) * 2
    assert (shape.feed_forward, shape.kv_heads, shape.key_length, shape.tied) == (32, 2, 32, True)
    assert shape.quantization == "Q8_0"
    assert dict(shape.type_bytes) == {"Q8_0": 2 * (experts + attention), "F32": 2 * gates}


@pytest.mark.parametrize("quantization", ["F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"])
def test_both_readers_agree(tmp_path: Path, quantization: str) -> None:
    path = tmp_path / "m.gguf"
    synthesize(path, parameters=1_500_000, layers=1, quantization=quantization)
    assert under_test.model_facts(path) == read_shape(path).as_dict()


def test_both_readers_agree_on_a_mixture(tmp_path: Path) -> None:
    path = mixture(tmp_path / "m.gguf")
    assert under_test.model_facts(path) == read_shape(path).as_dict()


def test_the_readers_know_the_same_types() -> None:
    known = {kind.value: (kind.name, *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGMLQuantizationType}
    assert {number: known[number] for number in under_test.TYPES} == under_test.TYPES
    mixes = {kind.value: kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in gguf.LlamaFileType}
    assert {number: mixes[number] for number in under_test.MIXES} == under_test.MIXES


def test_the_other_byte_order(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_block_count(7)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header, _ = under_test.read_header(path)
    assert header.metadata["llama.block_count"] == 7
    assert header.tensors == [under_test.Tensor("token_embd.weight", "F32", 128, 512, 2)]


BAD_MIXTURES: list[tuple[dict[str, Any], str]] = [
    ({"block_count": 3}, "no tensor of layer 2 of 3"),
    ({"block_count": 2_000_000_000}, "2000000000 layers, and holds 1"),
    ({"block_count": None}, "the key qwen3moe.block_count is missing"),
    ({"attention.head_count": 0}, "head"),
    ({"expert_used_count": 5}, "5 of 4 experts"),
    ({"context_length": 0}, "context"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_MIXTURES)
def test_a_file_that_contradicts_itself(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = mixture(tmp_path / "m.gguf", **changes)
    with pytest.raises(GgufError, match=message):
        read_shape(path)
    with pytest.raises(under_test.GgufError, match=message) as error:
        under_test.model_facts(path)
    assert str(error.value).startswith(f"{path}: ")


def header(*, values: int = 0, tensors: int = 0, version: int = 3, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, values) + rest


def text(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value


BAD_FILES = [
    (b"", "is no GGUF file"),
    (b"GG", "is no GGUF file"),
    (b"not a model at all", "is no GGUF file"),
    (b"GGUF", "ends in the middle"),
    (header(version=1), "version 1; known are 2 and 3"),
    (header(values=2**64 - 1), "cannot hold the 18446744073709551615 values"),
    (header(tensors=2**63, rest=bytes(64)), "cannot hold the 0 values and 9223372036854775808 tensors"),
    (header(values=1, rest=text(b"k", 2**60) + bytes(64)), "ends in the middle"),
    (header(values=1, rest=text(b"k") + struct.pack("<I", 77) + bytes(64)), "unknown type 77"),
    (header(values=1, rest=text(b"k") + struct.pack("<IIQ", 9, 4, 2**60) + bytes(64)), "ends in the middle"),
    (header(values=1, rest=text(b"k") + struct.pack("<IIQ", 9, 8, 2**60) + bytes(64)), "ends in the middle"),
    (header(values=1, rest=text(b"k") + struct.pack("<IIQ", 9, 9, 1) + bytes(64)), "array of the type 9"),
    (header(tensors=1, rest=text(b"t" * 65) + bytes(64)), "name has 65 bytes"),
    (header(tensors=1, rest=text(b"t") + struct.pack("<I", 5) + bytes(64)), "5 dimensions"),
    (header(tensors=1, rest=text(b"t") + struct.pack("<IQIQ", 1, 32, 4, 0) + bytes(64)), "unknown type 4"),
    (header(tensors=1, rest=text(b"t") + struct.pack("<IQIQ", 1, 33, 2, 0) + bytes(64)), "no blocks of 32"),
    (header(tensors=1, rest=text(b"t") + struct.pack("<IQIQ", 1, 2**50, 0, 0) + bytes(64)), "tensors end at"),
    (header(tensors=1, rest=text(b"t") + struct.pack("<IQIQ", 1, 8, 0, 2**62) + bytes(64)), "tensors end at"),
    (header(), "general.architecture is missing"),
    (
        header(values=1, rest=text(b"general.alignment") + struct.pack("<II", 4, 0) + bytes(32)),
        "aligned to 0",
    ),
]


@pytest.mark.parametrize(("content", "message"), BAD_FILES)
def test_a_file_that_is_none(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(under_test.GgufError, match=message):
        under_test.model_facts(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(under_test.GgufError, match=r"absent\.gguf: cannot be read: No such file"):
        under_test.model_facts(tmp_path / "absent.gguf")
    with pytest.raises(under_test.GgufError, match="cannot be read: Is a directory"):
        under_test.model_facts(tmp_path)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path = mixture(tmp_path_factory.mktemp("fuzz") / "m.gguf")
    return path.with_name("changed.gguf"), path.read_bytes()


@given(data=st.data())
@settings(max_examples=300)
def test_a_damaged_file_gives_facts_or_an_error(small: tuple[Path, bytes], data: st.DataObject) -> None:
    path, whole = small
    changed = bytearray(whole[: data.draw(st.one_of(st.just(len(whole)), st.integers(0, 2000)))])
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, 1500))
        changed[at : at + 8] = data.draw(st.binary(min_size=1, max_size=8))
    path.write_bytes(changed)
    try:
        facts = under_test.model_facts(path)
    except under_test.GgufError:
        return
    assert len(facts["layer_bytes"]) == facts["layers"]
    assert sum(facts["layer_bytes"]) <= facts["bytes"] * max(1, len(facts["layer_bytes"]))
    json.dumps(facts)


@given(content=st.binary(max_size=400))
def test_any_bytes_behind_the_magic(small: tuple[Path, bytes], content: bytes) -> None:
    path, _ = small
    path.write_bytes(b"GGUF" + content)
    with pytest.raises(under_test.GgufError):
        under_test.model_facts(path)


def test_the_module(synthetic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with patch_module_args({"path": str(synthetic)}), pytest.raises(SystemExit) as exit_:
        module.main()
    assert exit_.value.code == 0
    result = json.loads(capsys.readouterr().out)
    assert result["changed"] is False
    assert ModelShape.from_dict(result["model"]) == read_shape(synthetic)
    with patch_module_args({"path": str(tmp_path / "absent")}), pytest.raises(SystemExit) as exit_:
        module.main()
    assert exit_.value.code == 1
    assert json.loads(capsys.readouterr().out)["msg"].endswith("absent: cannot be read: No such file or directory")


def test_the_modules_documentation_names_every_fact() -> None:
    documented = yaml.safe_load(module.RETURN)["model"]["contains"]
    assert set(documented) == set(SHAPE.as_dict())


# --- Published figures


@pytest.mark.parametrize("name", CATALOGUE)
def test_the_catalogues_figures_give_the_files_size(name: str) -> None:
    shape = known_shape(CATALOGUE[name] | {"name": name})
    # The rest is the header with its vocabulary: about 60 bytes a token.
    assert 0 <= shape.bytes - shape.weight_bytes < 64 * shape.vocabulary
    assert shape.weight_bytes == pytest.approx(shape.bytes, rel=0.01)
    apart = 0 if shape.tied else shape.vocabulary * shape.embedding
    assert shape.parameters - apart == pytest.approx(CATALOGUE[name]["parameters"], rel=0.001)


# Bytes of files of others, as their pages list them, in GB.
LISTED = {
    "tinyllama-1.1b": 0.669,
    "llama-2-13b": 7.87,
    "llama-3.1-8b": 4.92,
    "llama-3.3-70b": 42.52,
    "qwen3-8b": 5.03,
    "qwen3-14b": 9.00,
    "qwen3-30b-a3b": 18.56,
    "deepseek-r1-distill-llama-8b": 4.92,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models(name: str) -> None:
    shape = published_shape(name)
    assert shape.weight_bytes / 1e9 == pytest.approx(LISTED[name], rel=0.01)
    assert published_shape(name, "Q4_0").weight_bytes < shape.weight_bytes < published_shape(name, "Q8_0").weight_bytes


def test_a_mixtures_token_reads_a_tenth() -> None:
    shape = published_shape("qwen3-30b-a3b")
    assert shape.parameters == pytest.approx(30.5e9, rel=0.01)
    assert shape.active_bytes / shape.weight_bytes == pytest.approx(0.104, abs=0.005)


def test_an_unknown_published_model() -> None:
    with pytest.raises(ShapeError, match="'gpt' is not one of tinyllama"):
        published_shape("gpt")


# Of Q4_0 the stand-in's output is no wider than the rest, as in a file of `llama-quantize --pure`.
@pytest.mark.parametrize("quantization", ["F16", "Q8_0", "Q4_0"])
def test_figures_give_the_shape_again(tmp_path: Path, quantization: str) -> None:
    path = tmp_path / "m.gguf"
    synthesize(path, parameters=3_000_000, layers=2, quantization=quantization)
    shape = read_shape(path)
    assert known_shape(catalogue_fields(shape) | {"name": shape.name, "bytes": shape.bytes}) == shape


def test_a_row_that_is_no_block() -> None:
    # Qwen2.5-0.5B's width of 896 is no multiple of 256: llama.cpp then takes types with blocks of 32.
    shape = known_shape({**ENTRY, "embedding": 896, "heads": 14, "kv_heads": 2, "key_length": 64}, {"bytes": 10**10})
    assert set(dict(shape.type_bytes)) == {"Q5_0", "Q8_0", "Q4_K", "Q6_K"}


BAD_ENTRIES: list[tuple[dict[str, Any], str]] = [
    ({"heads": 0}, "heads: is 0, not a whole number of 1 or more"),
    ({"layers": 10**9}, "layers: is 1000000000, more than any model has"),
    ({"tied": "yes"}, "tied: is 'yes', neither true nor false"),
    ({"quantization": "Q3_X"}, "quantization: 'Q3_X' is not one of BF16"),
    ({"kv_heads": 7}, "kv_heads: is 7, which does not divide the 24 heads"),
    ({"bytes": 1000}, "bytes: is 1000, less than"),
    ({"experts": 8}, "experts_used: is 0 of 8"),
    ({"embedding": None, "vocabulary": True}, "embedding: is None, .*; vocabulary: is True, not a whole"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_ENTRIES)
def test_wrong_figures(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        known_shape(ENTRY, changes)


def test_figures_that_are_missing() -> None:
    with pytest.raises(ShapeError) as error:
        known_shape({"family": "llama", "layers": 2, "context": 1, "quantization": "Q4_0"})
    for name in ("embedding", "feed_forward", "heads", "kv_heads", "key_length", "vocabulary", "tied"):
        assert f"{name}: is missing" in str(error.value)


# --- The shape as a value


def test_there_and_back() -> None:
    assert ModelShape.from_dict(json.loads(json.dumps(SHAPE.as_dict()))) == SHAPE


BAD_SHAPES: list[tuple[dict[str, Any], str]] = [
    ({"layers": 27}, "layer_bytes: has 28 numbers for 27 layers"),
    ({"layer_bytes": [1, "x"]}, "layer_bytes: is .*, not a list of whole numbers"),
    ({"layer_bytes": []}, "layer_bytes: is"),
    ({"name": ""}, "name: is '', not a text"),
    ({"bytes": -1}, "bytes: is -1, not a whole number of 1"),
    ({"context": 1.5, "heads": True}, "context: is 1.5, .*; heads: is True"),
    ({"tied": False}, "output_bytes: is 0, and tied is false"),
    ({"type_bytes": {"Q4_K": -1}}, "type_bytes: is"),
    ({"layer_active_bytes": [10**12] * 28}, "more is read than it holds"),
    ({"color": "red"}, "color: is not a field"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_SHAPES)
def test_a_wrong_shape(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        ModelShape.from_dict(SHAPE.as_dict() | changes)


@pytest.mark.parametrize("value", [None, [], "text", {}])
def test_no_shape_at_all(value: object) -> None:
    with pytest.raises(ShapeError):
        ModelShape.from_dict(value)


@given(
    st.dictionaries(
        st.sampled_from(list(SHAPE.as_dict())), st.none() | st.integers() | st.text() | st.lists(st.integers())
    )
)
def test_any_values_give_a_shape_or_name_what_is_wrong(changes: dict[str, Any]) -> None:
    try:
        ModelShape.from_dict(SHAPE.as_dict() | changes)
    except ShapeError as error:
        named = [part.split(":")[0] for part in str(error).split("; ")]
    else:
        named = []
    assert set(named) <= set(SHAPE.as_dict())


@pytest.mark.parametrize(
    ("types", "size"), [(("f16", "f16"), 4096), (("q8_0", "q8_0"), 2176), (("q8_0", "q4_0"), 1664)]
)
def test_kv_cache_of_a_token(types: tuple[str, str], size: float) -> None:
    assert SHAPE.kv_bytes_per_token_per_layer(*types) == size
    with pytest.raises(ShapeError, match="cache type: 'q3' is not one of f32"):
        SHAPE.kv_bytes_per_token_per_layer("f16", "q3")
