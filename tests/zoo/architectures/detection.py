"""Detection and segmentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.zoo.architectures.row import Draw, Refusal, Row, ids, images, normal, padded
from tests.zoo.architectures.vision import SWIN, VIT

BACKBONE = {
    "model_type": "resnet",
    "embedding_size": 12,
    "hidden_sizes": [16, 24, 40, 56],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}
DETR = {
    "backbone_config": {**BACKBONE, "out_features": ["stage4"]},
    "num_queries": 7,
    "d_model": 48,
    "encoder_layers": 1,
    "encoder_ffn_dim": 80,
    "encoder_attention_heads": 4,
    "decoder_layers": 2,
    "decoder_ffn_dim": 72,
    "decoder_attention_heads": 4,
    "num_labels": 5,
}
LEVELS = {
    "encoder_hidden_dim": 48,
    "encoder_in_channels": [24, 40, 56],
    "encoder_ffn_dim": 80,
    "encoder_attention_heads": 4,
    "d_model": 48,
    "decoder_in_channels": [48, 48, 48],
    "decoder_ffn_dim": 72,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "num_queries": 7,
    "num_denoising": 0,
    "num_labels": 5,
}
SWIN_BACKBONE = {
    "model_type": "swin",
    **SWIN,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 2, 2, 4],
    "embed_dim": 12,
}
FOUR = ["stage1", "stage2", "stage3", "stage4"]
MASKS = {
    "num_queries": 7,
    "hidden_dim": 96,
    "encoder_feedforward_dim": 72,
    "dim_feedforward": 80,
    "num_attention_heads": 4,
    "encoder_layers": 1,
    "num_labels": 5,
}


def _detector(
    name: str, architecture: str, settings: Mapping[str, Any], size: int = 64, **inputs: Any
) -> Row:
    return Row(name, "detection", architecture, settings, {"pixel_values": images(size), **inputs})


def _segmenter(
    name: str,
    architecture: str,
    settings: Mapping[str, Any],
    size: int = 64,
    refused: Refusal | None = None,
    **inputs: Any,
) -> Row:
    return Row(
        name, "segmentation", architecture, settings, {"pixel_values": images(size), **inputs}, refused
    )


DETECTION = (
    _detector("detr", "DetrForObjectDetection", DETR),
    _detector("conditional-detr", "ConditionalDetrForObjectDetection", DETR),
    _detector("table-transformer", "TableTransformerForObjectDetection", DETR),
    _detector(
        "dab-detr",
        "DabDetrForObjectDetection",
        {**{key: value for key, value in DETR.items() if key != "d_model"}, "hidden_size": 48},
    ),
    _detector(
        "deformable-detr",
        "DeformableDetrForObjectDetection",
        {
            **DETR,
            "d_model": 64,
            "backbone_config": {**BACKBONE, "out_features": ["stage2", "stage3", "stage4"]},
            "num_feature_levels": 3,
            "encoder_n_points": 2,
            "decoder_n_points": 2,
        },
    ),
    _detector(
        "rt-detr",
        "RTDetrForObjectDetection",
        {
            **LEVELS,
            "backbone_config": {
                **BACKBONE,
                "model_type": "rt_detr_resnet",
                "layer_type": "bottleneck",
                "out_features": ["stage2", "stage3", "stage4"],
            },
        },
    ),
    _detector(
        "rt-detr-v2",
        "RTDetrV2ForObjectDetection",
        {
            **LEVELS,
            "backbone_config": {
                **BACKBONE,
                "model_type": "rt_detr_resnet",
                "layer_type": "bottleneck",
                "out_features": ["stage2", "stage3", "stage4"],
            },
        },
    ),
    _detector(
        "yolos", "YolosForObjectDetection", {**VIT, "image_size": [32, 32], "num_detection_tokens": 6}, 32
    ),
    Row(
        "owlvit",
        "detection",
        "OwlViTForObjectDetection",
        {
            "text_config": {
                "vocab_size": 99,
                "hidden_size": 40,
                "intermediate_size": 72,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "max_position_embeddings": 9,
            },
            "vision_config": {
                "hidden_size": 48,
                "intermediate_size": 80,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "image_size": 32,
                "patch_size": 8,
            },
            "projection_dim": 40,
        },
        {"input_ids": ids(), "pixel_values": images(), "attention_mask": padded()},
    ),
)

SEGMENTATION = (
    _segmenter(
        "segformer",
        "SegformerForSemanticSegmentation",
        {
            "depths": [1, 1, 1, 1],
            "hidden_sizes": [12, 20, 40, 48],
            "num_attention_heads": [1, 2, 4, 4],
            "mlp_ratios": [2, 2, 2, 2],
            "decoder_hidden_size": 28,
            "num_labels": 5,
        },
    ),
    _segmenter(
        "upernet",
        "UperNetForSemanticSegmentation",
        {
            "backbone_config": {**BACKBONE, "out_features": FOUR},
            "hidden_size": 28,
            "auxiliary_channels": 20,
            "auxiliary_in_channels": 40,
            "num_labels": 5,
            "pool_scales": [1, 2],
        },
    ),
    _segmenter(
        "upernet-convnext",
        "UperNetForSemanticSegmentation",
        {
            "backbone_config": {
                "model_type": "convnext",
                "hidden_sizes": [12, 24, 40, 56],
                "depths": [1, 1, 1, 1],
                "out_features": FOUR,
            },
            "hidden_size": 28,
            "auxiliary_channels": 20,
            "auxiliary_in_channels": 40,
            "num_labels": 5,
        },
    ),
    _segmenter(
        "beit-segmentation",
        "BeitForSemanticSegmentation",
        {
            **VIT,
            "num_hidden_layers": 4,
            "out_indices": [1, 2, 3, 4],
            "use_relative_position_bias": True,
            "auxiliary_channels": 20,
            "pool_scales": [1, 2],
        },
        32,
    ),
    _segmenter(
        "maskformer",
        "MaskFormerForInstanceSegmentation",
        {
            "fpn_feature_size": 64,
            "mask_feature_size": 20,
            "backbone_config": {**SWIN_BACKBONE, "out_features": FOUR, "image_size": 64},
            "decoder_config": {
                "model_type": "detr",
                "d_model": 48,
                "encoder_layers": 1,
                "decoder_layers": 1,
                "encoder_ffn_dim": 80,
                "decoder_ffn_dim": 72,
                "encoder_attention_heads": 4,
                "decoder_attention_heads": 4,
                "num_queries": 7,
            },
            "num_labels": 5,
        },
    ),
    _segmenter(
        "mask2former",
        "Mask2FormerForUniversalSegmentation",
        {
            **MASKS,
            "backbone_config": {**SWIN_BACKBONE, "out_features": FOUR, "image_size": 64},
            "feature_size": 96,
            "mask_feature_size": 96,
            "decoder_layers": 2,
        },
    ),
    _segmenter(
        "oneformer",
        "OneFormerForUniversalSegmentation",
        {
            **MASKS,
            "backbone_config": {**SWIN_BACKBONE, "out_features": FOUR, "image_size": 64},
            "conv_dim": 96,
            "mask_dim": 96,
            "decoder_layers": 2,
            "query_dec_layers": 1,
            "task_seq_len": 9,
            "text_encoder_width": 48,
            "text_encoder_context_length": 9,
            "text_encoder_num_layers": 1,
            "text_encoder_vocab_size": 99,
            "text_encoder_n_ctx": 3,
        },
        task_inputs=Draw("ids", (2, 9), 0, 9),
    ),
    _segmenter(
        "eomt",
        "EomtForUniversalSegmentation",
        {**VIT, "num_hidden_layers": 3, "num_blocks": 1, "num_queries": 7, "num_upscale_blocks": 1},
        32,
        refused=Refusal("TraceError", "self.attn_mask_probs"),
    ),
    Row(
        "clipseg",
        "segmentation",
        "CLIPSegForImageSegmentation",
        {
            "text_config": {
                "vocab_size": 99,
                "hidden_size": 40,
                "intermediate_size": 72,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "max_position_embeddings": 12,
                "eos_token_id": 98,
            },
            "vision_config": {
                "hidden_size": 48,
                "intermediate_size": 80,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "image_size": 32,
                "patch_size": 8,
            },
            "projection_dim": 28,
            "reduce_dim": 20,
            "extract_layers": [0, 1],
            "decoder_intermediate_size": 36,
        },
        {"input_ids": ids(), "pixel_values": images(), "attention_mask": padded()},
    ),
    Row(
        "sam",
        "segmentation",
        "SamModel",
        {
            "vision_config": {
                "hidden_size": 48,
                "output_channels": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "image_size": 64,
                "patch_size": 8,
                "window_size": 3,
                "global_attn_indexes": [1],
                "mlp_dim": 80,
                "num_pos_feats": 12,
            },
            "prompt_encoder_config": {
                "hidden_size": 24,
                "image_size": 64,
                "patch_size": 8,
                "mask_input_channels": 8,
            },
            "mask_decoder_config": {
                "hidden_size": 24,
                "mlp_dim": 56,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "iou_head_hidden_dim": 20,
                "attention_downsample_rate": 2,
            },
        },
        {"pixel_values": images(64), "input_points": normal(1, 3, 2)},
    ),
)
