"""Small random models of further families, which `test_families` compares with the models themselves.

`model_zoo` has the families that each test of parity runs on. Each family here adds something that could go wrong:
other layers of caches, masks, positions, biases or experts. The sizes suit no kernel.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf
from model_zoo import Family, byte_level, decoder_only, nllb, seq2seq, t5, unigram
from tokenizers import AddedToken

_WINDOW = 5
# Layers with and without a window, in families that say so layer by layer.
_MIXED: dict[str, Any] = {
    "sliding_window": _WINDOW,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
# Multi-head latent attention: values are narrower than keys.
_LATENT: dict[str, Any] = {
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "head_dim": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_LINEAR: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}


def _causal(
    name: str,
    *,
    seed: int = 0,
    sharpness: float = 1.0,
    captures_rows: bool = True,
    in_slots: bool = True,
    is_gated: bool = False,
    **options: Any,
) -> Family:
    """A decoder-only family, by the beginning of the names of its classes."""
    text = next(text for text in ("Text", "") if hasattr(tf, f"{name}{text}Config"))
    make = decoder_only(getattr(tf, f"{name}{text}Config"), getattr(tf, f"{name}ForCausalLM"), **options)
    return Family(
        make,
        is_encoder_decoder=False,
        inseq=False,
        captures_rows=captures_rows,
        in_slots=in_slots,
        is_gated=is_gated,
        seed=seed,
        sharpness=sharpness,
    )


def _sequence_to_sequence(name: str, template: str, start: int, *, seed: int = 0, **options: Any) -> Family:
    """A family like BART, by the beginning of the names of its classes."""
    config, model = getattr(tf, f"{name}Config"), getattr(tf, f"{name}ForConditionalGeneration")
    make = lambda: seq2seq(config, model, byte_level(template), decoder_start_token_id=start, **options)  # noqa: E731
    return Family(make, inseq=False, seed=seed)


def _nllb_moe() -> tuple[Any, Any]:
    _, tokenizer = nllb()
    options = {"num_experts": 4, "encoder_sparse_step": 2, "decoder_sparse_step": 2, "vocab_size": len(tokenizer)}
    start = tokenizer.eos_token_id
    return seq2seq(
        tf.NllbMoeConfig, tf.NllbMoeForConditionalGeneration, tokenizer, decoder_start_token_id=start, **options
    )


def _madlad() -> tuple[Any, Any]:
    """MADLAD-400: T5 v1.1 with untied embeddings, and the target's language as the first token of the source."""
    tokenizer = unigram("$A </s>")
    tokenizer.add_tokens([AddedToken(code, normalized=False) for code in ("<2de>", "<2en>")])
    options = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "vocab_size": len(tokenizer)}
    model, _ = t5(tf.T5Config, tf.T5ForConditionalGeneration, **options)()
    return model, tokenizer


def _t5gemma() -> tuple[Any, Any]:
    tokenizer = byte_level("$A </s>")
    part: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 2.0,
        "max_position_embeddings": 128,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **_MIXED,
    }
    shorter = {"num_hidden_layers": 2, "layer_types": _MIXED["layer_types"][:2]}
    config = tf.T5GemmaConfig(
        encoder=tf.T5GemmaModuleConfig(**part),
        decoder=tf.T5GemmaModuleConfig(**part | shorter),
        vocab_size=len(tokenizer),
        decoder_start_token_id=tokenizer.bos_token_id,
        tie_word_embeddings=False,
    )
    return tf.T5GemmaForConditionalGeneration(config).eval(), tokenizer


def _gemma4() -> tuple[Any, Any]:
    """Gemma 4, which divides queries and keys by their norms: their scale is a weight of its own."""
    model, tokenizer = decoder_only(tf.Gemma4TextConfig, tf.Gemma4ForCausalLM, **_MIXED)()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                weight.fill_(0.7)
    return model, tokenizer


FURTHER_FAMILIES: dict[str, Family] = {
    # ---- encoder-decoders ----
    "madlad": Family(_madlad, target_language="de", inseq=False),
    "nllb-moe": Family(
        _nllb_moe,
        source_language="eng_Latn",
        target_language="deu_Latn",
        inseq=False,
        captures_rows=False,
        in_slots=False,
    ),
    "blenderbot": _sequence_to_sequence("Blenderbot", "$A </s>", 0),
    "blenderbot-small": _sequence_to_sequence("BlenderbotSmall", "$A </s>", 0),
    "plbart": _sequence_to_sequence("PLBart", "$A </s>", 1),
    "mvp": Family(
        _sequence_to_sequence("Mvp", "<s> $A </s>", 1).make, inseq=False, captures_rows=False, in_slots=False
    ),
    "t5gemma": Family(_t5gemma, inseq=False),
    # ---- decoders: rotary positions, grouped heads ----
    "qwen2": _causal("Qwen2"),
    "mistral": _causal("Mistral", sliding_window=_WINDOW),
    "phi3": _causal("Phi3", sliding_window=_WINDOW),
    "smollm3": _causal("SmolLM3"),
    "starcoder2": _causal("Starcoder2", sliding_window=_WINDOW),
    "granite": _causal("Granite", attention_multiplier=0.2, logits_scaling=2.0),
    "ministral": _causal("Ministral", sliding_window=_WINDOW),
    "glm4": _causal("Glm4"),
    "olmo": _causal("Olmo", clip_qkv=1.0),
    "olmo2": _causal("Olmo2"),
    "olmo3": _causal("Olmo3", **_MIXED),
    "gemma": _causal("Gemma"),
    "gemma4_text": Family(_gemma4, is_encoder_decoder=False, inseq=False, sharpness=0.5),
    "exaone4": _causal("Exaone4", **_MIXED),
    "ernie4_5": _causal("Ernie4_5"),
    "nemotron": _causal("Nemotron"),
    # ---- decoders: attention and feed-forward layers side by side, rotary positions for a part of each head ----
    "phi": _causal("Phi", partial_rotary_factor=0.5),
    "gpt_neox": _causal("GPTNeoX", rotary_pct=0.5),
    "stablelm": _causal("StableLm", use_parallel_residual=True),
    "cohere": _causal("Cohere"),
    "cohere2": _causal("Cohere2", **_MIXED),
    # ---- decoders: learned positions, one head of keys ----
    "opt": _causal("OPT", ffn_dim=64, word_embed_proj_dim=32),
    "biogpt": _causal("BioGpt"),
    "gpt_bigcode": _causal("GPTBigCode", n_embd=32, n_layer=3, n_head=4, n_positions=256),
    # ---- decoders: experts ----
    "qwen2_moe": _causal("Qwen2Moe", shared_expert_intermediate_size=24, **_EXPERTS),
    "qwen3_moe": _causal("Qwen3Moe", **_EXPERTS),
    "mixtral": _causal("Mixtral", num_local_experts=4),
    "phimoe": _causal("Phimoe", num_local_experts=4, num_experts_per_tok=2),
    "olmoe": _causal("Olmoe", num_experts=4, num_experts_per_tok=2),
    "granitemoe": _causal("GraniteMoe", num_local_experts=4, num_experts_per_tok=2, attention_multiplier=0.2),
    "deepseek_v2": _causal("DeepseekV2", seed=10, sharpness=0.02, q_lora_rank=None, **_LATENT),
    "deepseek_v3": _causal("DeepseekV3", q_lora_rank=16, **_LATENT),
    # ---- decoders: rows, but one by one ----
    "gemma3n_text": _causal(
        "Gemma3n",
        in_slots=tf.__version__.startswith("5.17."),  # later versions share keys between layers in another way
        vocab_size_per_layer_input=400,
        hidden_size_per_layer_input=8,
        laurel_rank=4,
        num_kv_shared_layers=1,
        altup_num_inputs=2,
        activation_sparsity_pattern=[0.0, 0.0, 0.0],
        sliding_window=_WINDOW,
        layer_types=["sliding_attention", "full_attention", "full_attention"],
    ),
    "llama4_text": _causal(
        "Llama4", in_slots=False, num_local_experts=4, intermediate_size_mlp=64, attention_chunk_size=8
    ),
    "lfm2": _causal("Lfm2", in_slots=False, layer_types=["conv", "full_attention", "conv"]),
    "qwen3_next": _causal(
        "Qwen3Next", in_slots=False, is_gated=True, shared_expert_intermediate_size=24, **_EXPERTS, **_LINEAR
    ),
    # ---- decoders: attention that does not call transformers' interface ----
    "bloom": _causal("Bloom", n_layer=3, n_head=4),
    "mpt": _causal("Mpt", d_model=32, n_heads=4, n_layers=3),
    "falcon": _causal("Falcon", head_dim=None, alibi=False),
    "falcon-alibi": _causal("Falcon", head_dim=None, alibi=True, multi_query=False, parallel_attn=False),
    "falcon-grouped": _causal("Falcon", head_dim=None, alibi=False, new_decoder_architecture=True, num_kv_heads=2),
    "gptj": _causal("GPTJ", n_embd=32, n_layer=3, n_head=4, rotary_dim=4, n_positions=256),
    # ---- decoders: whole matrices ----
    "gpt_oss": _causal(
        "GptOss", captures_rows=False, in_slots=False, num_local_experts=4, num_experts_per_tok=2, **_MIXED
    ),
    "xglm": _causal(
        "XGLM",
        seed=1,
        captures_rows=False,
        in_slots=False,
        d_model=32,
        ffn_dim=64,
        num_layers=3,
        attention_heads=4,
    ),
}
