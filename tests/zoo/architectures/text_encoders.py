"""Text encoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.zoo.architectures.row import Draw, Refusal, Row, ids, padded

TEXT = {
    "vocab_size": 99,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 40,
    "num_labels": 5,
}


def _row(
    name: str, architecture: str, settings: Mapping[str, Any] | None = None, *, length: int = 9, **more: Any
) -> Row:
    inputs = {"input_ids": ids(length), "attention_mask": padded(length)}
    return Row(name, "text encoder", architecture, TEXT if settings is None else settings, inputs, **more)


ROWS = (
    _row("bert", "BertForSequenceClassification"),
    _row("roberta", "RobertaForMaskedLM"),
    _row("camembert", "CamembertForTokenClassification"),
    _row("xlm-roberta-xl", "XLMRobertaXLForSequenceClassification"),
    _row(
        "distilbert",
        "DistilBertForSequenceClassification",
        {
            "vocab_size": 99,
            "max_position_embeddings": 40,
            "n_layers": 2,
            "n_heads": 4,
            "dim": 48,
            "hidden_dim": 80,
            "num_labels": 5,
        },
    ),
    _row("albert", "AlbertForMaskedLM", {**TEXT, "embedding_size": 28}),
    _row("electra", "ElectraForTokenClassification", {**TEXT, "embedding_size": 28}),
    _row(
        "deberta",
        "DebertaForSequenceClassification",
        {**TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    ),
    _row(
        "deberta-v2",
        "DebertaV2ForSequenceClassification",
        {
            **TEXT,
            "relative_attention": True,
            "pos_att_type": ["c2p", "p2c"],
            "position_buckets": 8,
            "share_att_key": True,
        },
    ),
    _row("mpnet", "MPNetForSequenceClassification"),
    _row("squeezebert", "SqueezeBertForSequenceClassification", {**TEXT, "embedding_size": 48}),
    _row(
        "convbert", "ConvBertForSequenceClassification", {**TEXT, "embedding_size": 28, "conv_kernel_size": 3}
    ),
    _row("roformer", "RoFormerForSequenceClassification", {**TEXT, "embedding_size": 28}),
    _row(
        "esm",
        "EsmForSequenceClassification",
        {**TEXT, "pad_token_id": 1, "mask_token_id": 2, "position_embedding_type": "rotary"},
    ),
    _row(
        "mobilebert",
        "MobileBertForSequenceClassification",
        {**TEXT, "embedding_size": 28, "intra_bottleneck_size": 36, "num_feedforward_networks": 2},
    ),
    _row(
        "modernbert", "ModernBertForSequenceClassification", {**TEXT, "pad_token_id": 0, "local_attention": 4}
    ),
    _row("nomic-bert", "NomicBertForSequenceClassification"),
    _row(
        "rembert",
        "RemBertForSequenceClassification",
        {**TEXT, "input_embedding_size": 28, "output_embedding_size": 36},
    ),
    _row("ibert", "IBertForSequenceClassification"),
    _row("megatron-bert", "MegatronBertForSequenceClassification"),
    _row("layoutlm", "LayoutLMForSequenceClassification"),
    Row(
        "canine",
        "text encoder",
        "CanineForSequenceClassification",
        {
            **TEXT,
            "local_transformer_stride": 8,
            "num_hash_buckets": 50,
            "num_hash_functions": 4,
            "max_position_embeddings": 64,
        },
        {"input_ids": ids(16), "attention_mask": padded(16)},
    ),
    _row(
        "xlm",
        "XLMForSequenceClassification",
        {
            "vocab_size": 99,
            "emb_dim": 48,
            "n_layers": 2,
            "n_heads": 4,
            "max_position_embeddings": 40,
            "num_labels": 5,
        },
    ),
    Row(
        "xlnet",
        "text encoder",
        "XLNetForSequenceClassification",
        {
            "vocab_size": 99,
            "d_model": 48,
            "n_layer": 2,
            "n_head": 4,
            "d_inner": 80,
            "num_labels": 5,
            "mem_len": None,
        },
        {"input_ids": ids(), "attention_mask": padded(), "use_mems": False},
    ),
    Row(
        "luke",
        "text encoder",
        "LukeModel",
        {**TEXT, "entity_vocab_size": 17, "entity_emb_size": 20},
        {
            "input_ids": ids(),
            "attention_mask": padded(),
            "entity_ids": ids(2, low=1, high=17),
            "entity_attention_mask": Draw("ones", (2, 2)),
            "entity_position_ids": Draw("ids", (2, 2, 3), 0, 9),
        },
    ),
    Row("fnet", "text mixing", "FNetForSequenceClassification", TEXT, {"input_ids": ids()}),
    Row(
        "funnel",
        "text mixing",
        "FunnelForSequenceClassification",
        {
            "vocab_size": 99,
            "block_sizes": [1, 1],
            "d_model": 48,
            "n_head": 4,
            "d_head": 10,
            "d_inner": 80,
            "num_decoder_layers": 1,
            "num_labels": 5,
        },
        {"input_ids": ids(), "attention_mask": padded()},
    ),
    Row(
        "nystromformer",
        "text mixing",
        "NystromformerForSequenceClassification",
        {**TEXT, "segment_means_seq_len": 8, "num_landmarks": 4, "conv_kernel_size": 3},
        {"input_ids": ids(8)},
        refused=Refusal("TraceError", "attention_scores + attention_mask"),
    ),
    Row(
        "yoso",
        "text mixing",
        "YosoForSequenceClassification",
        TEXT,
        {"input_ids": ids(), "attention_mask": padded()},
    ),
    Row(
        "longformer",
        "text mixing",
        "LongformerForSequenceClassification",
        {**TEXT, "attention_window": 4},
        {"input_ids": ids(8), "attention_mask": padded(8)},
        refused=Refusal("TraceError", "if is_global_attn"),
    ),
    Row(
        "big-bird",
        "text mixing",
        "BigBirdForSequenceClassification",
        {
            **TEXT,
            "attention_type": "block_sparse",
            "block_size": 4,
            "num_random_blocks": 1,
            "max_position_embeddings": 64,
        },
        {"input_ids": ids(48), "attention_mask": padded(48)},
    ),
    Row(
        "big-bird-full",
        "text mixing",
        "BigBirdForSequenceClassification",
        {**TEXT, "attention_type": "original_full"},
        {"input_ids": ids(), "attention_mask": padded()},
    ),
    Row(
        "reformer",
        "text mixing",
        "ReformerForSequenceClassification",
        {
            "vocab_size": 99,
            "hidden_size": 48,
            "num_attention_heads": 4,
            "attention_head_size": 10,
            "feed_forward_size": 80,
            "attn_layers": ["local", "lsh"],
            "local_attn_chunk_length": 4,
            "lsh_attn_chunk_length": 4,
            "num_buckets": 4,
            "hash_seed": 0,
            "axial_pos_shape": [4, 4],
            "axial_pos_embds_dim": [20, 28],
            "max_position_embeddings": 16,
            "num_labels": 5,
        },
        {"input_ids": ids(16)},
    ),
    Row(
        "mra",
        "text mixing",
        "MraForSequenceClassification",
        {**TEXT, "max_position_embeddings": 64},
        {"input_ids": ids(64), "attention_mask": padded(64)},
    ),
    Row(
        "perceiver",
        "text mixing",
        "PerceiverForMaskedLM",
        {
            "vocab_size": 99,
            "max_position_embeddings": 9,
            "num_latents": 7,
            "d_latents": 56,
            "d_model": 48,
            "num_blocks": 1,
            "num_self_attends_per_block": 2,
            "num_self_attention_heads": 4,
            "num_cross_attention_heads": 4,
        },
        {"inputs": ids(), "attention_mask": padded()},
    ),
)
