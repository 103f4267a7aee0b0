"""Open what training wrote: a whole model or an adapter.

model, tokenizer, thoughts = load_model("outputs/run")
model, tokenizer, thoughts = describe_model("outputs/run")    # without weights, for an engine that has its own
"""

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from mot.model.adapters import ADAPTER, open_adapter
from mot.model.config import MixtureConfig
from mot.model.packed import pack
from mot.model.tokenizer import open_tokenizer
from mot.runtime.flags import one_line


def load_model(path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[int]]:
    """Return (model, tokenizer, thought token ids) of a directory; no ids for a model without thoughts.

    The directory holds a whole model, or an adapter, and then its base is loaded too. The model is in eval mode, on the
    accelerator if there is one. It is for thinking: on a CPU a whole model is packed (mot/model/packed.py), and can be
    neither trained nor saved. Raises ValueError if there is no model or it is incomplete.
    """
    if not Path(path).exists():
        raise ValueError(
            f"--model {path}: no such directory; give the --output_dir of a finished training run, "
            "or fetch a model with `hf download`"
        )
    _require_readable(path)
    is_adapter = (Path(path) / ADAPTER).is_file()
    if is_adapter:
        adapted, tokenizer = open_adapter(path)
        model = adapted.get_base_model()  # the base itself, with the adapter inside
    else:
        model, tokenizer = _load_whole(path)
    tokenizer.padding_side = "left"
    if not getattr(model, "is_quantized", False):
        model = model.to(torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu")
    if not is_adapter:
        pack(model)
    return model.eval(), tokenizer, MixtureConfig.of(model).thought_token_ids


def describe_model(path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[int]]:
    """Return what `load_model` returns, without weights: the model is on the device "meta" and computes nothing.

    For an engine that loads the weights itself. Raises ValueError if there is no model, or an adapter, which such an
    engine cannot load.
    """
    if (Path(path) / ADAPTER).is_file():
        raise ValueError(f"--model {path}: is an adapter; make it whole with `mot export --model {path} --merge`")
    _require_config(path)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        if (Path(path) / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(path)
    except (OSError, ValueError) as e:
        raise ValueError(f"--model {path}: cannot be read ({one_line(e)})") from None
    tokenizer = open_tokenizer(path, f"--model {path}")
    return model, tokenizer, MixtureConfig.of(model).thought_token_ids


def _require_config(path: str) -> None:
    _require_readable(path)
    if not (Path(path) / "config.json").is_file():
        raise ValueError(
            f"--model {path}: holds no model (no config.json); give the --output_dir of a finished training run"
        )


def _require_readable(path: str) -> None:
    """transformers says "no such file" of a file that it may not read."""
    closed = [p for p in [Path(path), *Path(path).glob("*")] if not os.access(p, os.R_OK)]
    if closed and closed[0].exists():
        raise ValueError(f"--model {path}: {closed[0].name} may not be read by this user; chmod -R a+rX {path}")


def _load_whole(path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    _require_config(path)
    try:
        # Neither pickles (.bin) nor code in the directory (auto_map): loading a model must not run anything.
        model = AutoModelForCausalLM.from_pretrained(path, use_safetensors=True, trust_remote_code=False)
    except (OSError, ValueError, SafetensorError) as e:
        raise ValueError(f"--model {path}: cannot be loaded ({one_line(e)})") from None
    return model, open_tokenizer(path, f"--model {path}")
