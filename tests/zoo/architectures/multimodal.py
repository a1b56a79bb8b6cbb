"""Several modalities at once."""

from __future__ import annotations

from tests.zoo.architectures.decoders import GROUPED
from tests.zoo.architectures.row import Fixed, Refusal, Row, ids, images, normal, ones, padded
from tests.zoo.architectures.text_encoders import TEXT
from tests.zoo.architectures.vision import VIT

WORDS = {
    "vocab_size": 99,
    "hidden_size": 40,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 12,
}
PICTURES = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
BOTH = {"input_ids": ids(), "pixel_values": images(), "attention_mask": padded()}
SIXTEEN_IMAGE_TOKENS = Fixed((5, *[98] * 16, 7, 8, 9))

PALIGEMMA = {
    "vision_config": {"model_type": "siglip_vision_model", **PICTURES, "vision_use_head": False},
    "text_config": {"model_type": "gemma", **GROUPED, "hidden_size": 56},
    "image_token_index": 98,
    "projection_dim": 56,
}
IMAGE_IN_TEXT = {"input_ids": SIXTEEN_IMAGE_TOKENS, "pixel_values": images(), "attention_mask": ones(20)}

ROWS = (
    Row(
        "clip",
        "multimodal",
        "CLIPModel",
        {"text_config": {**WORDS, "eos_token_id": 98}, "vision_config": PICTURES, "projection_dim": 28},
        BOTH,
    ),
    Row(
        "siglip",
        "multimodal",
        "SiglipModel",
        {"text_config": {**WORDS, "projection_size": 48}, "vision_config": PICTURES},
        BOTH,
    ),
    Row(
        "chinese-clip",
        "multimodal",
        "ChineseCLIPModel",
        {"text_config": WORDS, "vision_config": PICTURES, "projection_dim": 28},
        BOTH,
    ),
    Row(
        "blip",
        "multimodal",
        "BlipModel",
        {
            "text_config": {**WORDS, "encoder_hidden_size": 48, "projection_dim": 40},
            "vision_config": PICTURES,
            "projection_dim": 28,
        },
        BOTH,
    ),
    Row(
        "blip-retrieval",
        "multimodal",
        "BlipForImageTextRetrieval",
        {
            "text_config": {**WORDS, "encoder_hidden_size": 48},
            "vision_config": PICTURES,
            "image_text_hidden_size": 28,
        },
        BOTH,
    ),
    Row(
        "blip-2",
        "multimodal",
        "Blip2ForConditionalGeneration",
        {
            "vision_config": PICTURES,
            "qformer_config": {
                "vocab_size": 99,
                "hidden_size": 36,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 60,
                "encoder_hidden_size": 48,
            },
            "text_config": {
                "model_type": "opt",
                "vocab_size": 99,
                "hidden_size": 40,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "ffn_dim": 72,
                "max_position_embeddings": 40,
                "word_embed_proj_dim": 40,
                "use_cache": False,
            },
            "num_query_tokens": 5,
            "image_token_index": 98,
        },
        {
            "input_ids": Fixed((98, 98, 98, 98, 98, 5, 6, 7, 8)),
            "pixel_values": images(),
            "attention_mask": ones(9),
        },
    ),
    Row(
        "vilt",
        "multimodal",
        "ViltForQuestionAnswering",
        {**TEXT, **VIT},
        {**BOTH, "pixel_mask": ones(32, 32)},
        refused=Refusal("TraceError", "nn.functional.interpolate"),
    ),
    Row(
        "flava",
        "multimodal",
        "FlavaModel",
        {
            "image_config": {**VIT},
            "text_config": {**TEXT},
            "multimodal_config": {
                "hidden_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 72,
            },
            "hidden_size": 48,
            "projection_dim": 28,
            "init_codebook": False,
        },
        BOTH,
    ),
    Row(
        "align",
        "multimodal",
        "AlignModel",
        {
            "text_config": {**TEXT},
            "vision_config": {
                "image_size": 64,
                "width_coefficient": 1.0,
                "depth_coefficient": 1.0,
                "kernel_sizes": [3, 5],
                "in_channels": [32, 24],
                "out_channels": [24, 40],
                "strides": [1, 2],
                "num_block_repeats": [1, 2],
                "expand_ratios": [1, 4],
                "hidden_dim": 40,
            },
            "projection_dim": 40,
        },
        {**BOTH, "pixel_values": images(64)},
    ),
    Row(
        "groupvit",
        "multimodal",
        "GroupViTModel",
        {
            "text_config": {**WORDS, "eos_token_id": 98},
            "vision_config": {
                **PICTURES,
                "depths": [1, 1],
                "num_group_tokens": [6, 0],
                "num_output_groups": [6, 4],
            },
            "projection_dim": 28,
            "projection_intermediate_dim": 36,
        },
        BOTH,
    ),
    Row(
        "x-clip",
        "multimodal",
        "XCLIPModel",
        {
            "text_config": {**WORDS, "eos_token_id": 98},
            "vision_config": {
                **PICTURES,
                "mit_hidden_size": 28,
                "mit_intermediate_size": 36,
                "mit_num_attention_heads": 4,
                "num_frames": 3,
            },
            "projection_dim": 28,
            "prompt_layers": 1,
            "prompt_num_attention_heads": 4,
        },
        {**BOTH, "pixel_values": normal(3, 3, 32, 32)},
    ),
    Row(
        "llava",
        "multimodal",
        "LlavaForConditionalGeneration",
        {
            "vision_config": {"model_type": "clip_vision_model", **PICTURES},
            "text_config": {"model_type": "llama", **GROUPED},
            "image_token_index": 98,
            "image_seq_length": 16,
            "vision_feature_layer": -1,
        },
        IMAGE_IN_TEXT,
    ),
    Row(
        "paligemma",
        "multimodal",
        "PaliGemmaForConditionalGeneration",
        PALIGEMMA,
        {**IMAGE_IN_TEXT, "token_type_ids": Fixed((0,) * 20)},
    ),
    Row(
        "paligemma-untyped",
        "multimodal",
        "PaliGemmaForConditionalGeneration",
        PALIGEMMA,
        IMAGE_IN_TEXT,
        # Without token types another mask is made while tracing than in a call; the outputs are 10 % apart.
        refused=Refusal("ProofError", "does not compute what its traced graph computes"),
    ),
    Row(
        "git",
        "multimodal",
        "GitForCausalLM",
        {**TEXT, "vision_config": PICTURES, "use_cache": False},
        {"input_ids": ids(), "pixel_values": images(), "attention_mask": ones(9)},
    ),
    Row(
        "lxmert",
        "multimodal",
        "LxmertModel",
        {
            **{key: value for key, value in TEXT.items() if key != "num_hidden_layers"},
            "l_layers": 1,
            "x_layers": 1,
            "r_layers": 1,
            "visual_feat_dim": 20,
        },
        {
            "input_ids": ids(),
            "attention_mask": padded(),
            "visual_feats": normal(6, 20),
            "visual_pos": normal(6, 4),
        },
    ),
    Row(
        "visual-bert",
        "multimodal",
        "VisualBertForQuestionAnswering",
        {**TEXT, "visual_embedding_dim": 20},
        {
            "input_ids": ids(),
            "attention_mask": ones(9),
            "visual_embeds": normal(6, 20),
            "visual_attention_mask": ones(6),
        },
    ),
    Row(
        "bridgetower",
        "multimodal",
        "BridgeTowerModel",
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "text_config": {**TEXT, "hidden_size": 64},
            "vision_config": {"hidden_size": 64, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8},
        },
        BOTH,
    ),
)
