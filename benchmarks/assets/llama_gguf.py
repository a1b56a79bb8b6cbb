"""Reading a decoder of the Llama family, with its tokenizer, from a GGUF file into transformers' classes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.assets.source import AssetError
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
INSIDE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""GGUF's names of tensors -> those of transformers; a tensor with another name is refused."""

IN_A_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.weight")

PRE_TOKENIZERS = {
    "smollm": [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ],
}
"""``tokenizer.ggml.pre`` -> how a text is cut before pairs are merged."""

CONTROL, USER_DEFINED = 3, 4
"""The types of tokens that are found in a text before it is cut."""


def read_model(path: Path) -> LlamaForCausalLM:
    """The model with dequantised weights in float32, in evaluation mode.

    Raises:
        AssetError: the file is of another architecture, or has a tensor or a setting that is not known here.
    """
    reader = GGUFReader(path)
    config = _config(reader, path)
    weights: dict[str, Tensor] = {}
    for tensor in reader.tensors:
        name = tensor_name(tensor.name)
        if name is None:
            raise AssetError(f"the tensor {tensor.name} is not known", where=path.name)
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        if ".attn_q." in tensor.name:
            values = halves_together(values, config.num_attention_heads)
        if ".attn_k." in tensor.name:
            values = halves_together(values, config.num_key_value_heads)
        weights[name] = torch.from_numpy(np.array(values, order="C"))
    config.tie_word_embeddings = "lm_head.weight" not in weights
    if config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model = LlamaForCausalLM(config)
    model.load_state_dict(weights)
    return model.eval()


def tensor_name(name: str) -> str | None:
    """What transformers calls a tensor of GGUF; None where that is not known."""
    if found := IN_A_LAYER.fullmatch(name):
        part = INSIDE.get(found[2])
        return part and f"model.layers.{found[1]}.{part}.weight"
    return OUTSIDE.get(name)


def halves_together(rows: np.ndarray, heads: int) -> np.ndarray:
    """Undo the order of query and key rows in GGUF.

    The rotary embedding turns pairs of dimensions. GGUF keeps the two of a pair next to each other,
    transformers half a head apart: row ``h * d + 2 * i + s`` becomes row ``h * d + s * d / 2 + i``, for head
    ``h`` of size ``d``, pair ``i`` and side ``s``.

    Args:
        rows: ``[heads * d, inputs]``.
        heads: number of heads.

    Returns:
        ``[heads * d, inputs]``.

    Source: llama.cpp, ``convert_hf_to_gguf.py``, ``LlamaModel.permute``, of which this is the inverse.
    """
    size = rows.shape[0] // heads
    return rows.reshape(heads, size // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def _config(reader: GGUFReader, path: Path) -> LlamaConfig:
    def given(key: str) -> Any:
        return _given(reader, f"llama.{key}", path)

    architecture = _given(reader, "general.architecture", path)
    if architecture != "llama":
        raise AssetError(f"its architecture is {architecture}", expected="llama", where=path.name)
    if scaling := [key for key in reader.fields if key.startswith("llama.rope.scaling")]:
        raise AssetError(f"{scaling[0]} is not known", where=path.name)
    heads = given("attention.head_count")
    return LlamaConfig(
        vocab_size=len(_given(reader, "tokenizer.ggml.tokens", path)),
        hidden_size=given("embedding_length"),
        intermediate_size=given("feed_forward_length"),
        num_hidden_layers=given("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=given("attention.head_count_kv"),
        head_dim=given("rope.dimension_count"),
        max_position_embeddings=given("context_length"),
        rms_norm_eps=given("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": given("rope.freq_base")},
        bos_token_id=_given(reader, "tokenizer.ggml.bos_token_id", path),
        eos_token_id=_given(reader, "tokenizer.ggml.eos_token_id", path),
        pad_token_id=_given(reader, "tokenizer.ggml.padding_token_id", path),
    )


def read_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The byte-level BPE tokenizer of the file; it adds no tokens of its own to a text.

    Raises:
        AssetError: the file has a tokenizer of another kind.
    """
    reader = GGUFReader(path)
    kind, before = (_given(reader, f"tokenizer.ggml.{key}", path) for key in ("model", "pre"))
    if kind != "gpt2" or before not in PRE_TOKENIZERS:
        known = f"a tokenizer gpt2 with one of {', '.join(PRE_TOKENIZERS)}"
        raise AssetError(f"its tokenizer is {kind} with {before}", expected=known, where=path.name)
    tokens, types = (_given(reader, f"tokenizer.ggml.{key}", path) for key in ("tokens", "token_type"))
    merges = [tuple(pair.split(" ")) for pair in _given(reader, "tokenizer.ggml.merges", path)]
    backend = Tokenizer(BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(PRE_TOKENIZERS[before])
    backend.decoder = decoders.ByteLevel()
    for token, kind_of_token in zip(tokens, types, strict=True):
        if kind_of_token == CONTROL:
            backend.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif kind_of_token == USER_DEFINED:
            backend.add_tokens([AddedToken(token, normalized=False)])
    special = {
        f"{short}_token": tokens[_given(reader, f"tokenizer.ggml.{key}_token_id", path)]
        for short, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=_given(reader, "llama.context_length", path),
        chat_template=_given(reader, "tokenizer.chat_template", path),
        clean_up_tokenization_spaces=False,
        **special,
    )


def _given(reader: GGUFReader, key: str, path: Path) -> Any:
    field = reader.get_field(key)
    if field is None:
        raise AssetError(f"there is no {key} in it", where=path.name)
    return field.contents()
