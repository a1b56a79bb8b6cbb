"""Encoder-decoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.zoo.architectures.row import Refusal, Row, ids, padded

T5 = {
    "vocab_size": 99,
    "d_model": 48,
    "d_kv": 10,
    "d_ff": 80,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "decoder_start_token_id": 0,
    "use_cache": False,
}
BART = {
    "vocab_size": 99,
    "max_position_embeddings": 40,
    "d_model": 48,
    "encoder_layers": 2,
    "encoder_ffn_dim": 80,
    "encoder_attention_heads": 4,
    "decoder_layers": 2,
    "decoder_ffn_dim": 72,
    "decoder_attention_heads": 4,
    "use_cache": False,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
}


def _row(name: str, architecture: str, settings: Mapping[str, Any], length: int = 9, **more: Any) -> Row:
    inputs = {
        "input_ids": ids(length),
        "attention_mask": padded(length),
        "decoder_input_ids": ids(7),
    }
    return Row(name, "encoder-decoder", architecture, settings, inputs, **more)


ROWS = (
    _row("t5", "T5ForConditionalGeneration", T5),
    _row(
        "t5-gated",
        "T5ForConditionalGeneration",
        {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    _row("umt5", "UMT5ForConditionalGeneration", T5),
    _row("longt5", "LongT5ForConditionalGeneration", {**T5, "local_radius": 3}),
    _row(
        "switch-transformers",
        "SwitchTransformersForConditionalGeneration",
        {**T5, "num_experts": 4, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
        refused=Refusal("TraceError", "self.classifier.to(self.dtype)"),
    ),
    _row("bart", "BartForConditionalGeneration", BART),
    _row("mbart", "MBartForConditionalGeneration", BART),
    _row("pegasus", "PegasusForConditionalGeneration", BART),
    _row("marian", "MarianMTModel", {**BART, "pad_token_id": 98}),
    _row("blenderbot", "BlenderbotForConditionalGeneration", BART),
    _row("m2m-100", "M2M100ForConditionalGeneration", BART),
    _row(
        "bigbird-pegasus",
        "BigBirdPegasusForConditionalGeneration",
        {**BART, "attention_type": "original_full"},
    ),
    _row(
        "led",
        "LEDForConditionalGeneration",
        {
            **{k: v for k, v in BART.items() if k != "max_position_embeddings"},
            "max_encoder_position_embeddings": 40,
            "max_decoder_position_embeddings": 32,
            "attention_window": 4,
        },
        8,
        refused=Refusal("TraceError", "if is_global_attn"),
    ),
    _row(
        "nllb-moe",
        "NllbMoeForConditionalGeneration",
        {**BART, "num_experts": 4, "encoder_sparse_step": 2, "decoder_sparse_step": 2},
        refused=Refusal("TraceError", "self.classifier.to(self.dtype)"),
    ),
    _row(
        "prophetnet",
        "ProphetNetForConditionalGeneration",
        {
            "vocab_size": 99,
            "hidden_size": 48,
            "encoder_ffn_dim": 80,
            "num_encoder_layers": 2,
            "num_encoder_attention_heads": 4,
            "decoder_ffn_dim": 72,
            "num_decoder_layers": 2,
            "num_decoder_attention_heads": 4,
            "max_position_embeddings": 40,
            "use_cache": False,
        },
    ),
)
