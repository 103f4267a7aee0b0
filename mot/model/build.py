"""Build a fresh model: an ordinary Llama whose vocabulary has the thought tokens.

model = build_model(settings, tokenizer)
model.config.mot                              # mot/model/config.py: MixtureConfig as it is stored
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from mot.model.config import MixtureConfig
from mot.model.settings import ModelSettings, mlp_width
from mot.model.tokenizer import thought_ids

KEY_BIAS_STD = 3.0  # initial standard deviation of the keys' biases, see build_model
WAVELENGTHS = 4  # rotary base, in units of the training length: low, so that near places differ too, see build_model


def build_model(settings: ModelSettings, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """Return a Llama of the settings' shape with weights drawn from `settings.seed` and our settings in `config.mot`.

    Keys have a bias with a large initial deviation. q . R(distance) b is a preference for a *place*, and a thought can
    have it from the first step. Without it a thought can at first only prefer tokens, so that thoughts divide the
    tokens between them, and EM stays there: docs/results/log.md, "What makes thoughts divide places". For the same
    reason the rotary base is low, and input and output embeddings of a thought are not tied.
    """
    thoughts = thought_ids(tokenizer, settings.num_thoughts)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=mlp_width(settings.hidden_size),
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.heads(),
        max_position_embeddings=max(2048, settings.seq_length + settings.thought_length),
        rope_parameters={"rope_type": "default", "rope_theta": float(WAVELENGTHS * settings.seq_length)},
        attention_bias=True,
        attention_dropout=settings.dropout,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        mot=MixtureConfig(settings.num_thoughts, thoughts, settings.thought_length).to_dict(),
    )
    with torch.random.fork_rng(devices=[]):  # transformers initialises from the global generator
        torch.manual_seed(settings.seed)
        model = LlamaForCausalLM(config)
        for layer in model.model.layers:
            torch.nn.init.normal_(layer.self_attn.k_proj.bias, std=KEY_BIAS_STD)
    if thoughts:
        model.generation_config.suppress_tokens = thoughts  # no engine generates a thought token
    return model
