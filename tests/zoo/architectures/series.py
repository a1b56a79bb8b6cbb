"""Time series and decisions."""

from __future__ import annotations

from tests.zoo.architectures.row import Draw, Row, normal, ones

PATCHES = {
    "num_input_channels": 3,
    "context_length": 32,
    "patch_length": 8,
    "patch_stride": 8,
    "num_hidden_layers": 2,
    "d_model": 48,
    "num_attention_heads": 4,
    "ffn_dim": 80,
    "prediction_length": 6,
    "loss": "mse",
}
FORECAST = {
    "prediction_length": 5,
    "context_length": 12,
    "lags_sequence": [1, 2, 3],
    "num_time_features": 2,
    "d_model": 48,
    "encoder_ffn_dim": 80,
    "decoder_ffn_dim": 72,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
    "use_cache": False,
}
PAST_AND_FUTURE = {
    "past_values": normal(15),
    "past_time_features": normal(15, 2),
    "past_observed_mask": ones(15),
    "future_values": normal(5),
    "future_time_features": normal(5, 2),
}

ROWS = (
    Row("patchtst", "time series", "PatchTSTForPrediction", PATCHES, {"past_values": normal(32, 3)}),
    Row(
        "patchtsmixer",
        "time series",
        "PatchTSMixerForPrediction",
        {
            **{
                key: value
                for key, value in PATCHES.items()
                if key not in ("num_hidden_layers", "num_attention_heads", "ffn_dim")
            },
            "num_layers": 2,
        },
        {"past_values": normal(32, 3)},
    ),
    Row("time-series-transformer", "time series", "TimeSeriesTransformerModel", FORECAST, PAST_AND_FUTURE),
    Row(
        "informer",
        "time series",
        "InformerModel",
        {**FORECAST, "attention_type": "full", "distil": False},
        PAST_AND_FUTURE,
    ),
    Row(
        "autoformer",
        "time series",
        "AutoformerModel",
        {**FORECAST, "label_length": 7, "moving_average": 5},
        PAST_AND_FUTURE,
    ),
    Row(
        "decision-transformer",
        "decisions",
        "DecisionTransformerModel",
        {
            "state_dim": 11,
            "act_dim": 6,
            "hidden_size": 48,
            "max_ep_len": 30,
            "n_layer": 2,
            "n_head": 4,
            "n_inner": 80,
            "n_positions": 40,
            "use_cache": False,
        },
        {
            "states": normal(5, 11),
            "actions": normal(5, 6),
            "rewards": normal(5, 1),
            "returns_to_go": normal(5, 1),
            "timesteps": Draw("ids", (2, 5), 0, 30),
            "attention_mask": ones(5),
        },
    ),
)
