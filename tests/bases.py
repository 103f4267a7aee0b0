"""Tiny, randomly initialised models of several architectures, stored like any pretrained model.

make("gemma3", directory)            # config.json, model.safetensors, tokenizer
make("llama", directory, bos=True)   # its tokenizer begins every text with a beginning-of-text token
"""

from pathlib import Path

import torch
from tokenizers import processors
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, models

from mot.model.tokenizer import build_tokenizer

TEXT = "the quick brown fox jumps over the lazy dog. n = 0 1 2 3 4 5 6 7 8 9 is not what it was, said the king.\n"
TEMPLATE = (
    "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
KV = {"num_key_value_heads": 2, "head_dim": 8}
WINDOW = 8  # tokens that a sliding window sees: fewer than any prompt of the tests has


def configs() -> dict:
    """The configuration of each architecture, with what is special about it."""
    return {
        "llama": models.llama.LlamaConfig(**SMALL, **KV, tie_word_embeddings=False),
        "qwen3": models.qwen3.Qwen3Config(**SMALL, **KV, tie_word_embeddings=True),
        "gemma3": models.gemma3.Gemma3TextConfig(  # scaled, tied embeddings; windows in one layer and not in the other
            **SMALL, **KV, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"]
        ),
        "gpt2": models.gpt2.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128),  # Conv1D, learned positions
        "mistral": models.mistral.MistralConfig(**SMALL, **KV, sliding_window=WINDOW),
        "phi3": models.phi3.Phi3Config(**SMALL, num_key_value_heads=2),  # fused projections
        "neox": models.gpt_neox.GPTNeoXConfig(**SMALL, max_position_embeddings=128),  # parallel blocks, embed_out
    }


ARCHITECTURES = ("llama", "qwen3", "gemma3", "gpt2", "mistral", "phi3", "neox")


def tokenizer(bos: bool = False, chat: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE with an end-of-text token and without thought tokens."""
    ours = build_tokenizer([TEXT] * 4, 300, 1)
    theirs = PreTrainedTokenizerFast(tokenizer_object=ours.backend_tokenizer, eos_token="<|endoftext|>")
    if bos:
        theirs.add_special_tokens({"bos_token": "<s>"})
        theirs.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", theirs.bos_token_id)]
        )
    if chat:
        theirs.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|end|>"]})
        theirs.chat_template = TEMPLATE
    return theirs


def make(architecture: str, directory: Path, bos: bool = False, chat: bool = False, spare: int = 0, **changes) -> Path:
    """Write a random model and its tokenizer. Its embeddings have `spare` more rows than the tokenizer needs."""
    config, encoder = configs()[architecture], tokenizer(bos, chat)
    config.vocab_size = len(encoder) + spare
    config.eos_token_id, config.pad_token_id, config.bos_token_id = encoder.eos_token_id, None, encoder.bos_token_id
    for name, value in changes.items():
        setattr(config, name, value)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():  # far from initialisation, where everything is nearly uniform
            for p in model.parameters():
                p.add_(0.1 * torch.randn(p.shape))
    model.save_pretrained(directory)
    encoder.save_pretrained(directory)
    return directory
