"""Convolutional networks and their hybrids with attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.zoo.architectures.row import Row, images
from tests.zoo.architectures.vision import VIT

STAGES = {"embedding_size": 12, "hidden_sizes": [24, 40, 56, 72], "depths": [1, 2, 1, 1], "num_labels": 5}


def _network(name: str, architecture: str, settings: Mapping[str, Any], size: int = 64) -> Row:
    return Row(name, "convolutional", architecture, settings, {"pixel_values": images(size)})


def _hybrid(name: str, architecture: str, settings: Mapping[str, Any], size: int = 64) -> Row:
    return Row(name, "hybrid", architecture, settings, {"pixel_values": images(size)})


ROWS = (
    _network("resnet", "ResNetForImageClassification", STAGES),
    _network("resnet-basic", "ResNetForImageClassification", {**STAGES, "layer_type": "basic"}),
    _network("regnet-x", "RegNetForImageClassification", {**STAGES, "groups_width": 8, "layer_type": "x"}),
    _network("regnet-y", "RegNetForImageClassification", {**STAGES, "groups_width": 8, "layer_type": "y"}),
    _network(
        "mobilenet-v1",
        "MobileNetV1ForImageClassification",
        {"depth_multiplier": 0.25, "min_depth": 4, "num_labels": 5},
    ),
    _network(
        "mobilenet-v2",
        "MobileNetV2ForImageClassification",
        {"depth_multiplier": 0.25, "depth_divisible_by": 4, "min_depth": 4, "num_labels": 5},
    ),
    _network(
        "mobilenet-v2-deeplab",
        "MobileNetV2ForSemanticSegmentation",
        {"depth_multiplier": 0.25, "depth_divisible_by": 4, "min_depth": 4, "num_labels": 5},
    ),
    _network(
        "efficientnet",
        "EfficientNetForImageClassification",
        {
            "image_size": 64,
            "width_coefficient": 0.25,
            "depth_divisor": 4,
            "depth_coefficient": 1.0,
            "kernel_sizes": [3, 5, 3],
            "in_channels": [32, 64, 96],
            "out_channels": [64, 96, 160],
            "strides": [1, 2, 2],
            "num_block_repeats": [1, 2, 1],
            "expand_ratios": [1, 4, 4],
            "hidden_dim": 320,
            "num_labels": 5,
        },
    ),
    _network(
        "convnext",
        "ConvNextForImageClassification",
        {"hidden_sizes": [12, 24, 40, 56], "depths": [1, 1, 2, 1], "num_labels": 5},
    ),
    _network(
        "convnext-v2",
        "ConvNextV2ForImageClassification",
        {"hidden_sizes": [12, 24, 40, 56], "depths": [1, 1, 2, 1], "num_labels": 5},
    ),
    _network(
        "bit",
        "BitForImageClassification",
        {**STAGES, "embedding_size": 16, "hidden_sizes": [24, 40, 56, 80], "num_groups": 2},
    ),
    _network(
        "hgnet-v2",
        "HGNetV2ForImageClassification",
        {
            "stem_channels": [3, 12, 16],
            "stage_in_channels": [16, 28, 40],
            "stage_mid_channels": [8, 12, 20],
            "stage_out_channels": [28, 40, 56],
            "stage_num_blocks": [1, 2, 1],
            "stage_downsample": [False, True, True],
            "stage_downsample_strides": [2, 2, 2],
            "stage_light_block": [False, True, True],
            "stage_kernel_size": [3, 3, 5],
            "stage_numb_of_layers": [2, 2, 2],
            "hidden_sizes": [28, 40, 56],
            "depths": [1, 2, 1],
            "num_labels": 5,
        },
    ),
    _network(
        "textnet",
        "TextNetForImageClassification",
        {
            "stem_out_channels": 12,
            "image_size": [64, 64],
            "hidden_sizes": [12, 20, 28, 36, 44],
            "conv_layer_kernel_sizes": [[[3, 3]], [[3, 3], [1, 3]], [[3, 3], [3, 1]], [[3, 3]]],
            "conv_layer_strides": [[2], [2, 1], [2, 1], [2]],
            "num_labels": 5,
        },
    ),
    _network(
        "pp-lcnet", "PPLCNetForImageClassification", {"scale": 0.25, "class_expand": 72, "num_labels": 5}
    ),
    _network(
        "dinov3-convnext", "DINOv3ConvNextModel", {"hidden_sizes": [12, 24, 40, 56], "depths": [1, 1, 2, 1]}
    ),
    _hybrid(
        "mobilevit",
        "MobileViTForImageClassification",
        {
            "image_size": 64,
            "hidden_sizes": [24, 36, 48],
            "neck_hidden_sizes": [8, 12, 16, 20, 28, 40, 72],
            "num_labels": 5,
        },
    ),
    _hybrid(
        "mobilevit-v2",
        "MobileViTV2ForImageClassification",
        {"image_size": 64, "width_multiplier": 0.25, "n_attn_blocks": [1, 1, 1], "num_labels": 5},
    ),
    _hybrid(
        "levit",
        "LevitForImageClassification",
        {
            "image_size": 64,
            "hidden_sizes": [24, 32, 48],
            "num_attention_heads": [2, 3, 4],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
            "num_labels": 5,
        },
    ),
    _hybrid(
        "cvt",
        "CvtForImageClassification",
        {
            "embed_dim": [12, 24, 48],
            "num_heads": [1, 2, 4],
            "depth": [1, 2, 3],
            "mlp_ratio": [2.0, 2.0, 2.0],
            "num_labels": 5,
        },
    ),
    _hybrid(
        "poolformer",
        "PoolFormerForImageClassification",
        {"hidden_sizes": [12, 24, 40, 56], "depths": [1, 1, 2, 1], "num_labels": 5},
    ),
    _hybrid(
        "swiftformer",
        "SwiftFormerForImageClassification",
        {"depths": [1, 1, 1, 1], "embed_dims": [12, 24, 40, 56], "num_labels": 5},
    ),
    _hybrid(
        "dpt",
        "DPTForDepthEstimation",
        {
            **VIT,
            "backbone_out_indices": [0, 1, 2, 3],
            "num_hidden_layers": 4,
            "neck_hidden_sizes": [12, 20, 28, 36],
            "fusion_hidden_size": 24,
        },
        32,
    ),
    _hybrid(
        "glpn",
        "GLPNForDepthEstimation",
        {
            "depths": [1, 1, 1, 1],
            "hidden_sizes": [12, 20, 40, 48],
            "num_attention_heads": [1, 2, 4, 4],
            "mlp_ratios": [2, 2, 2, 2],
            "decoder_hidden_size": 16,
        },
    ),
    _hybrid(
        "depth-anything",
        "DepthAnythingForDepthEstimation",
        {
            "backbone_config": {
                "model_type": "dinov2",
                **{key: value for key, value in VIT.items() if key != "intermediate_size"},
                "out_indices": [1, 2],
                "apply_layernorm": True,
                "reshape_hidden_states": False,
            },
            "patch_size": 8,
            "reassemble_hidden_size": 48,
            "reassemble_factors": [2, 1],
            "neck_hidden_sizes": [12, 20],
            "fusion_hidden_size": 16,
            "head_hidden_size": 10,
        },
        32,
    ),
)
