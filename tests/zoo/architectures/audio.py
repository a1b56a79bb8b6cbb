"""Audio and speech."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.zoo.architectures.row import Refusal, Row, ids, normal, padded

WAVES = {
    "vocab_size": 32,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "conv_dim": [20, 28, 36],
    "conv_kernel": [8, 3, 3],
    "conv_stride": [4, 2, 2],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "layerdrop": 0.0,
    "apply_spec_augment": False,
    "num_labels": 5,
    "classifier_proj_size": 24,
}
SPEECH = {
    "vocab_size": 99,
    "d_model": 48,
    "encoder_layers": 2,
    "encoder_ffn_dim": 80,
    "encoder_attention_heads": 4,
    "decoder_layers": 2,
    "decoder_ffn_dim": 72,
    "decoder_attention_heads": 4,
    "max_target_positions": 40,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}


def _wave(name: str, architecture: str, settings: Mapping[str, Any] = WAVES, samples: int = 400) -> Row:
    return Row(name, "audio", architecture, settings, {"input_values": normal(samples)})


ROWS = (
    _wave("wav2vec2", "Wav2Vec2ForSequenceClassification"),
    _wave(
        "wav2vec2-stable",
        "Wav2Vec2ForCTC",
        {**WAVES, "do_stable_layer_norm": True, "feat_extract_norm": "layer"},
    ),
    _wave(
        "wav2vec2-conformer",
        "Wav2Vec2ConformerForSequenceClassification",
        {
            **WAVES,
            "position_embeddings_type": "relative",
            "max_source_positions": 60,
            "conv_depthwise_kernel_size": 5,
        },
    ),
    _wave("hubert", "HubertForSequenceClassification"),
    _wave("wavlm", "WavLMForSequenceClassification", {**WAVES, "num_buckets": 16, "max_bucket_distance": 20}),
    _wave("unispeech", "UniSpeechForSequenceClassification"),
    _wave("unispeech-sat", "UniSpeechSatForSequenceClassification"),
    _wave(
        "data2vec-audio",
        "Data2VecAudioForSequenceClassification",
        {**WAVES, "num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 3},
    ),
    _wave("sew", "SEWForSequenceClassification"),
    _wave(
        "sew-d",
        "SEWDForSequenceClassification",
        {**WAVES, "max_position_embeddings": 64, "position_buckets": 16},
    ),
    Row(
        "ast",
        "audio",
        "ASTForAudioClassification",
        {
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 80,
            "patch_size": 8,
            "frequency_stride": 4,
            "time_stride": 4,
            "max_length": 40,
            "num_mel_bins": 16,
            "num_labels": 5,
        },
        {"input_values": normal(40, 16)},
    ),
    Row(
        "wav2vec2-bert",
        "audio",
        "Wav2Vec2BertForSequenceClassification",
        {
            **WAVES,
            "feature_projection_input_dim": 20,
            "left_max_position_embeddings": 6,
            "right_max_position_embeddings": 4,
            "conv_depthwise_kernel_size": 5,
        },
        {"input_features": normal(30, 20)},
    ),
    Row(
        "whisper",
        "audio",
        "WhisperForConditionalGeneration",
        {**SPEECH, "num_mel_bins": 20, "max_source_positions": 30},
        {"input_features": normal(20, 60), "decoder_input_ids": ids(7)},
    ),
    Row(
        "speech-to-text",
        "audio",
        "Speech2TextForConditionalGeneration",
        {**SPEECH, "max_source_positions": 40, "conv_channels": 36, "input_feat_per_channel": 20},
        {"input_features": normal(32, 20), "decoder_input_ids": ids(7)},
    ),
    Row(
        "moonshine",
        "audio",
        "MoonshineForConditionalGeneration",
        {
            "vocab_size": 99,
            "hidden_size": 48,
            "intermediate_size": 80,
            "encoder_num_hidden_layers": 2,
            "decoder_num_hidden_layers": 2,
            "encoder_num_attention_heads": 4,
            "decoder_num_attention_heads": 4,
            "encoder_num_key_value_heads": 4,
            "decoder_num_key_value_heads": 4,
            "max_position_embeddings": 40,
            "use_cache": False,
        },
        {"input_values": normal(2000), "decoder_input_ids": ids(7)},
    ),
    Row(
        "clap",
        "audio",
        "ClapModel",
        {
            "text_config": {
                "vocab_size": 99,
                "hidden_size": 40,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 72,
                "max_position_embeddings": 40,
                "projection_dim": 28,
            },
            "audio_config": {
                "window_size": 4,
                "num_mel_bins": 16,
                "spec_size": 64,
                "hidden_size": 48,
                "projection_dim": 28,
                "depths": [1, 1],
                "num_attention_heads": [2, 4],
                "patch_embeds_hidden_size": 24,
                "num_hidden_layers": 2,
            },
            "projection_dim": 28,
        },
        {"input_ids": ids(), "attention_mask": padded(), "input_features": normal(1, 256, 16)},
    ),
    Row(
        "encodec",
        "audio",
        "EncodecModel",
        {
            "hidden_size": 24,
            "num_filters": 6,
            "upsampling_ratios": [4, 2],
            "codebook_size": 16,
            "target_bandwidths": [24.0],
            "num_lstm_layers": 1,
            "sampling_rate": 24000,
        },
        {"input_values": normal(1, 320)},
        refused=Refusal("TraceError", "length <= max_pad"),
    ),
)
