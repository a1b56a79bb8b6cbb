"""Vision transformers, for images and for videos."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.zoo.architectures.row import Row, images, normal

VIT = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
}
SWIN = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 24,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
    "mlp_ratio": 3.0,
    "num_labels": 5,
}
PYRAMID = {
    "image_size": 64,
    "num_encoder_blocks": 4,
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [12, 20, 40, 48],
    "num_attention_heads": [1, 2, 4, 4],
    "mlp_ratios": [2, 2, 2, 2],
    "num_labels": 5,
}


def _row(name: str, architecture: str, settings: Mapping[str, Any], size: int = 32) -> Row:
    return Row(name, "vision transformer", architecture, settings, {"pixel_values": images(size)})


def _video(name: str, architecture: str, settings: Mapping[str, Any]) -> Row:
    return Row(name, "video transformer", architecture, settings, {"pixel_values": normal(4, 3, 32, 32)})


ROWS = (
    _row("vit", "ViTForImageClassification", VIT),
    _row("deit", "DeiTForImageClassificationWithTeacher", VIT),
    _row("beit", "BeitForImageClassification", {**VIT, "use_relative_position_bias": True}),
    _row(
        "data2vec-vision",
        "Data2VecVisionForImageClassification",
        {**VIT, "use_shared_relative_position_bias": True},
    ),
    _row("vit-msn", "ViTMSNForImageClassification", VIT),
    _row("ijepa", "IJepaForImageClassification", VIT),
    _row("dinov2", "Dinov2ForImageClassification", VIT),
    _row("dinov2-swiglu", "Dinov2ForImageClassification", {**VIT, "use_swiglu_ffn": True}),
    _row("dinov2-with-registers", "Dinov2WithRegistersForImageClassification", VIT),
    _row("dinov3-vit", "DINOv3ViTModel", {**VIT, "num_register_tokens": 3, "use_gated_mlp": True}),
    Row(
        "vit-mae",
        "vision transformer",
        "ViTMAEForPreTraining",
        {
            **VIT,
            "decoder_hidden_size": 36,
            "decoder_num_attention_heads": 4,
            "decoder_num_hidden_layers": 1,
            "decoder_intermediate_size": 56,
        },
        {"pixel_values": images(), "noise": normal(16)},
    ),
    _row("swin", "SwinForImageClassification", SWIN),
    _row("swinv2", "Swinv2ForImageClassification", SWIN),
    _row(
        "swin2sr",
        "Swin2SRForImageSuperResolution",
        {"image_size": 16, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
        16,
    ),
    _row("donut-swin", "DonutSwinForImageClassification", SWIN),
    _row("pvt", "PvtForImageClassification", PYRAMID, 64),
    _row("pvt-v2", "PvtV2ForImageClassification", PYRAMID, 64),
    _row("pvt-v2-linear", "PvtV2ForImageClassification", {**PYRAMID, "linear_attention": True}, 224),
    _row(
        "hiera",
        "HieraForImageClassification",
        {
            "embed_dim": 12,
            "image_size": [64, 64],
            "depths": [1, 1, 2],
            "num_heads": [1, 2, 4],
            "num_query_pool": 2,
            "masked_unit_size": [4, 4],
            "masked_unit_attention": [True, False, False],
            "num_labels": 5,
        },
        64,
    ),
    _row(
        "focalnet",
        "FocalNetForImageClassification",
        {
            "image_size": 32,
            "patch_size": 4,
            "embed_dim": 24,
            "hidden_sizes": [24, 48],
            "depths": [1, 1],
            "focal_levels": [2, 2],
            "focal_windows": [3, 3],
            "num_labels": 5,
        },
    ),
    _video("timesformer", "TimesformerForVideoClassification", {**VIT, "num_frames": 4}),
    _video("vivit", "VivitForVideoClassification", {**VIT, "num_frames": 4, "tubelet_size": [2, 8, 8]}),
    _video("videomae", "VideoMAEForVideoClassification", {**VIT, "num_frames": 4, "tubelet_size": 2}),
)
