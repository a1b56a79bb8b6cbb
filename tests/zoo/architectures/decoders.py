"""Decoders, mixtures of experts and state-space models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.zoo.architectures.row import Refusal, Row, ids

GROUPED = {
    "vocab_size": 99,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 80,
    "max_position_embeddings": 40,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Query heads in groups; heads together are wider than the hidden state."""

NO_HEAD_DIM = {key: value for key, value in GROUPED.items() if key != "head_dim"}
PLAIN = {key: value for key, value in NO_HEAD_DIM.items() if key != "num_key_value_heads"}
GPT = {
    "vocab_size": 99,
    "n_positions": 40,
    "n_embd": 48,
    "n_layer": 2,
    "n_head": 4,
    "n_inner": 80,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 28}
LATENT = {
    "kv_lora_rank": 20,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 14,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
    "moe_intermediate_size": 28,
}
"""Multi-head latent attention, a dense and a sparse layer."""

SSM = {"mamba_d_state": 6, "mamba_d_conv": 4, "mamba_expand": 2}


def _row(
    family: str,
    name: str,
    architecture: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Any] | None = None,
    **more: Any,
) -> Row:
    return Row(name, family, architecture, settings, inputs or {"input_ids": ids()}, **more)


def _decoder(name: str, architecture: str, settings: Mapping[str, Any] = GROUPED, **more: Any) -> Row:
    return _row("decoder", name, architecture, settings, **more)


def _experts(name: str, architecture: str, settings: Mapping[str, Any], **more: Any) -> Row:
    return _row("mixture of experts", name, architecture, settings, **more)


def _state(name: str, architecture: str, settings: Mapping[str, Any], **more: Any) -> Row:
    return _row("state space", name, architecture, settings, **more)


DECODERS = (
    _decoder("gpt2", "GPT2LMHeadModel", GPT),
    _decoder("gpt-bigcode", "GPTBigCodeForCausalLM", GPT),
    _decoder("gptj", "GPTJForCausalLM", {**GPT, "rotary_dim": 8}),
    _decoder("codegen", "CodeGenForCausalLM", {**GPT, "rotary_dim": 8}),
    _decoder(
        "gpt-neo",
        "GPTNeoForCausalLM",
        {
            "vocab_size": 99,
            "max_position_embeddings": 40,
            "hidden_size": 48,
            "num_layers": 2,
            "num_heads": 4,
            "intermediate_size": 80,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 4,
            "use_cache": False,
        },
    ),
    _decoder("gpt-neox", "GPTNeoXForCausalLM", PLAIN),
    _decoder(
        "opt",
        "OPTForCausalLM",
        {
            "vocab_size": 99,
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 80,
            "max_position_embeddings": 40,
            "word_embed_proj_dim": 28,
            "use_cache": False,
        },
    ),
    _decoder(
        "bloom",
        "BloomForCausalLM",
        {"vocab_size": 99, "hidden_size": 48, "n_layer": 2, "n_head": 4, "use_cache": False},
    ),
    _decoder(
        "falcon-multi-query", "FalconForCausalLM", {**PLAIN, "multi_query": True, "ffn_hidden_size": 80}
    ),
    _decoder(
        "falcon-grouped",
        "FalconForCausalLM",
        {**PLAIN, "new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 80},
    ),
    _decoder(
        "mpt",
        "MptForCausalLM",
        {"vocab_size": 99, "d_model": 48, "n_heads": 4, "n_layers": 2, "max_seq_len": 40, "use_cache": False},
    ),
    _decoder("llama", "LlamaForCausalLM"),
    _decoder("llama-tied", "LlamaForCausalLM", {**GROUPED, "tie_word_embeddings": True}),
    _decoder("mistral", "MistralForCausalLM", {**GROUPED, "sliding_window": 5}),
    _decoder("qwen2", "Qwen2ForCausalLM", NO_HEAD_DIM),
    _decoder("qwen3", "Qwen3ForCausalLM"),
    _decoder("gemma", "GemmaForCausalLM"),
    _decoder("gemma2", "Gemma2ForCausalLM", {**GROUPED, "sliding_window": 5}),
    _decoder("gemma3", "Gemma3ForCausalLM", {**GROUPED, "sliding_window": 5}),
    _decoder("phi", "PhiForCausalLM", NO_HEAD_DIM),
    _decoder("phi3", "Phi3ForCausalLM", NO_HEAD_DIM),
    _decoder("cohere", "CohereForCausalLM", {**NO_HEAD_DIM, "use_qk_norm": True}),
    _decoder("olmo2", "Olmo2ForCausalLM", NO_HEAD_DIM),
    _decoder("starcoder2", "Starcoder2ForCausalLM", NO_HEAD_DIM),
    _decoder(
        "stablelm", "StableLmForCausalLM", {**NO_HEAD_DIM, "qk_layernorm": True, "partial_rotary_factor": 0.5}
    ),
    _decoder("biogpt", "BioGptForCausalLM", PLAIN),
    _decoder("glm4", "Glm4ForCausalLM"),
    _decoder("nemotron", "NemotronForCausalLM"),
    _decoder("persimmon", "PersimmonForCausalLM", PLAIN),
    _decoder("modernbert-decoder", "ModernBertDecoderForCausalLM", {**PLAIN, "local_attention": 4}),
    _decoder(
        "xglm",
        "XGLMForCausalLM",
        {
            "vocab_size": 99,
            "max_position_embeddings": 40,
            "d_model": 48,
            "ffn_dim": 80,
            "num_layers": 2,
            "attention_heads": 4,
            "use_cache": False,
        },
    ),
    _decoder(
        "ctrl",
        "CTRLLMHeadModel",
        {
            "vocab_size": 99,
            "n_positions": 40,
            "n_embd": 48,
            "dff": 80,
            "n_layer": 2,
            "n_head": 4,
            "use_cache": False,
        },
    ),
    _decoder("diffllama", "DiffLlamaForCausalLM", GROUPED),
)

EXPERT_MODELS = (
    _experts("mixtral", "MixtralForCausalLM", {**GROUPED, "num_local_experts": 4}),
    _experts(
        "qwen2-moe", "Qwen2MoeForCausalLM", {**NO_HEAD_DIM, **EXPERTS, "shared_expert_intermediate_size": 36}
    ),
    _experts("qwen3-moe", "Qwen3MoeForCausalLM", {**GROUPED, **EXPERTS}),
    _experts("olmoe", "OlmoeForCausalLM", {**NO_HEAD_DIM, "num_experts": 4, "num_experts_per_tok": 2}),
    _experts(
        "gpt-oss",
        "GptOssForCausalLM",
        {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 5},
    ),
    _experts("granite-moe", "GraniteMoeForCausalLM", {**NO_HEAD_DIM, "num_local_experts": 4}),
    _experts("phimoe", "PhimoeForCausalLM", {**NO_HEAD_DIM, "num_local_experts": 4}),
    _experts(
        "jetmoe",
        "JetMoeForCausalLM",
        {
            **PLAIN,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "kv_channels": 16,
            "num_local_experts": 4,
        },
        refused=Refusal("SelectionError", "the size of its input or output depends on data"),
    ),
    _experts("deepseek-v2", "DeepseekV2ForCausalLM", {**PLAIN, **LATENT, "num_key_value_heads": 4}),
    _experts("deepseek-v3", "DeepseekV3ForCausalLM", {**PLAIN, **LATENT, "num_key_value_heads": 4}),
    _experts(
        "dbrx",
        "DbrxForCausalLM",
        {
            "vocab_size": 99,
            "d_model": 48,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 40,
            "use_cache": False,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
            "ffn_config": {"ffn_hidden_size": 28, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 48},
        },
        refused=Refusal("TraceError", "for expert_idx in expert_hit"),
    ),
)

STATE_SPACE = (
    _state(
        "mamba",
        "MambaForCausalLM",
        {
            "vocab_size": 99,
            "hidden_size": 48,
            "state_size": 6,
            "num_hidden_layers": 2,
            "time_step_rank": 5,
            "use_cache": False,
        },
    ),
    _state(
        "falcon-mamba",
        "FalconMambaForCausalLM",
        {
            "vocab_size": 99,
            "hidden_size": 48,
            "state_size": 6,
            "num_hidden_layers": 2,
            "time_step_rank": 5,
            "use_cache": False,
        },
    ),
    _state(
        "mamba2",
        "Mamba2ForCausalLM",
        {
            "vocab_size": 99,
            "hidden_size": 48,
            "state_size": 6,
            "num_hidden_layers": 2,
            "num_heads": 8,
            "head_dim": 12,
            "n_groups": 2,
            "chunk_size": 4,
            "use_cache": False,
        },
    ),
    _state(
        "jamba",
        "JambaForCausalLM",
        {
            **NO_HEAD_DIM,
            **SSM,
            "mamba_dt_rank": 5,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "use_mamba_kernels": False,
        },
    ),
    _state(
        "recurrent-gemma",
        "RecurrentGemmaForCausalLM",
        {
            **PLAIN,
            "num_hidden_layers": 3,
            "num_key_value_heads": 2,
            "lru_width": 64,
            "attention_window_size": 16,
        },
    ),
    _state(
        "rwkv",
        "RwkvForCausalLM",
        {
            "vocab_size": 99,
            "hidden_size": 48,
            "attention_hidden_size": 64,
            "intermediate_size": 80,
            "num_hidden_layers": 2,
            "context_length": 40,
            "use_cache": False,
        },
    ),
    _state(
        "bamba",
        "BambaForCausalLM",
        {
            **NO_HEAD_DIM,
            **SSM,
            "attn_layer_indices": [1],
            "mamba_n_heads": 8,
            "mamba_n_groups": 2,
            "mamba_chunk_size": 4,
        },
    ),
    _state(
        "falcon-h1",
        "FalconH1ForCausalLM",
        {**GROUPED, **SSM, "mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_n_groups": 2, "mamba_chunk_size": 4},
    ),
    _state(
        "zamba2",
        "Zamba2ForCausalLM",
        {
            **PLAIN,
            **SSM,
            "num_hidden_layers": 3,
            "layers_block_type": ["mamba", "mamba", "hybrid"],
            "n_mamba_heads": 8,
            "mamba_ngroups": 2,
            "chunk_size": 4,
            "adapter_rank": 6,
            "use_mamba_kernels": False,
        },
    ),
    _state(
        "lfm2",
        "Lfm2ForCausalLM",
        {**NO_HEAD_DIM, "layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    ),
    _state(
        "qwen3-next",
        "Qwen3NextForCausalLM",
        {
            **GROUPED,
            **EXPERTS,
            "layer_types": ["linear_attention", "full_attention"],
            "shared_expert_intermediate_size": 36,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 10,
            "linear_value_head_dim": 14,
        },
    ),
    _state(
        "xlstm",
        "xLSTMForCausalLM",
        {
            "vocab_size": 99,
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_heads": 4,
            "ffn_round_up_to_multiple_of": 4,
            "chunk_size": 4,
            "use_cache": False,
        },
    ),
)
