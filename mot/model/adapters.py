"""Thoughts for a pretrained model: its weights are frozen, adapters and N new vectors are trained.

    tokenizer = base_tokenizer(settings)       # the base's own, with N thought tokens
    model = adapt(settings, tokenizer)         # a PeftModel that computes what the base computes, until it is trained
    save(model, "outputs/run")                 # a standard PEFT directory with mot.json in it
    model, tokenizer = open_adapter("outputs/run")

peft does the work: LoRA on the linear maps, and trainable rows of the embeddings for the thoughts alone. If input and
output embeddings are not tied, both have such rows: the inputs, and the ones that the router scores.
"""

import hashlib
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from mot.model.chat import chat_row, ends_turn
from mot.model.config import BaseModel, MixtureConfig
from mot.model.settings import AdapterSettings
from mot.model.tokenizer import add_thoughts, open_tokenizer, thought_ids
from mot.runtime.flags import one_line

ADAPTER, OURS = "adapter_config.json", "mot.json"
NOISE = 0.1  # of a thought's initial vectors, in standard deviations of the base's: see make_room
HEAD = 4096  # bytes: the fingerprint of a base reads the first HEAD bytes of every tensor
LOADING = (OSError, ValueError, KeyError, ImportError, SafetensorError)


# The base -----------------------------------------------------------------------------------------------------------


def require(settings: AdapterSettings, machine: bool = True) -> None:
    """Raise ValueError with a remedy if a requirement is missing: a package, a GPU, a causal language model.

    `machine` False: a GPU and its packages are not needed, because nothing will be computed.
    """
    _require_peft()
    if settings.load_in != "none" and machine:
        flag = f"--load_in {settings.load_in}"
        if not torch.cuda.is_available():
            raise ValueError(f"{flag}: needs a GPU and there is none; leave it out")
        if find_spec("bitsandbytes") is None:
            raise ValueError(f"{flag}: needs bitsandbytes; pip install bitsandbytes, or leave it out")
    name = settings.base_model
    where = f"--base_model {name}"
    if Path(name, ADAPTER).is_file():
        raise ValueError(
            f"{where}: is an adapter; resume its run with --resume_from, or mot export --merge it and give a model "
            "without thoughts"
        )
    if Path(name).is_dir() and not Path(name, "config.json").is_file():
        raise ValueError(f"{where}: holds no model (no config.json); give a Hugging Face model's directory")
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except LOADING as e:
        raise ValueError(
            f"{where}: no such directory, and no such model on the hub ({one_line(e)}); give a directory or a hub id"
        ) from None
    architecture = (config.architectures or [type(config).__name__])[0]
    if (
        not architecture.endswith(("ForCausalLM", "LMHeadModel"))
        or config.is_encoder_decoder
        or hasattr(config, "vision_config")
    ):
        raise ValueError(
            f"{where}: is a {architecture}, not a causal language model of text; give one, e.g. a Llama, Qwen or GPT-2"
        )
    if thoughts := MixtureConfig.of(config).thought_token_ids:
        raise ValueError(
            f"{where}: has {len(thoughts)} thoughts already; resume the run that made it (its own command and "
            "--resume_from), or give a model without thoughts"
        )
    longest = getattr(config, "max_position_embeddings", None)
    row = settings.seq_length + settings.thought_length * (settings.num_thoughts > 1)
    if longest and row > longest:
        raise ValueError(
            f"--seq_length {settings.seq_length}: with its thought a row has {row} tokens and {name} reads {longest}; "
            "give less"
        )


def _require_peft() -> None:
    if find_spec("peft") is None:
        raise ValueError("adapters need peft, which is not installed; pip install 'mixture-of-thoughts[lora]'")


def base_tokenizer(settings: AdapterSettings) -> PreTrainedTokenizerBase:
    """Return the base's tokenizer with the thought tokens. Raises ValueError if it cannot be loaded or has no room."""
    where = f"--base_model {settings.base_model}"
    tokenizer = open_tokenizer(settings.base_model, where)
    if tokenizer.eos_token is None:
        raise ValueError(
            f"{where}: its tokenizer has no end-of-text token; name one as eos_token in tokenizer_config.json"
        )
    if tokenizer.pad_token is None:  # never read, so no new token is needed for it
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    before = set(tokenizer.get_vocab().values())
    ids = thought_ids(add_thoughts(tokenizer, settings.num_thoughts), settings.num_thoughts)
    if before & set(ids) or len(set(ids)) < len(ids):
        raise ValueError(
            f"{where}: its tokenizer has no room for {len(ids)} thought tokens, or has some already; give another model"
        )
    return tokenizer


def load_base(name: str, load_in: str, where: str) -> PreTrainedModel:
    """Load a causal language model in its stored precision, or quantised. Raises ValueError beginning with `where`."""
    quantised = {}
    if load_in != "none":
        from transformers import BitsAndBytesConfig

        how = (
            BitsAndBytesConfig(load_in_8bit=True)
            if load_in == "8bit"
            else BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
        )
        quantised = {"quantization_config": how, "device_map": {"": torch.cuda.current_device()}}
    try:
        # Neither pickles (.bin) nor code beside the model (auto_map): loading it must not run anything.
        return AutoModelForCausalLM.from_pretrained(name, use_safetensors=True, trust_remote_code=False, **quantised)
    except LOADING as e:
        raise ValueError(f"{where}: cannot be loaded ({one_line(e)})") from None


def fingerprint(name: str) -> str:
    """Return a sha256 that identifies a set of weights: name, type, shape and first 4 KiB of every stored tensor.

    `name`: a directory or a hub id. Only the pages that it hashes are read from the disk.
    """
    folder = Path(name) if Path(name).is_dir() else Path(hf_hub_download(name, "config.json")).parent
    tensors = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for tensor in file.keys():  # noqa: SIM118  (it is no dictionary)
                about, values = file.get_slice(tensor), file.get_tensor(tensor).flatten()
                head = values[: HEAD // values.itemsize].view(torch.uint8).numpy().tobytes()
                tensors[tensor] = [about.get_dtype(), about.get_shape(), hashlib.sha256(head).hexdigest()]
    return hashlib.sha256(json.dumps(tensors, sort_keys=True).encode()).hexdigest()


# Adapting -----------------------------------------------------------------------------------------------------------


def adapt(settings: AdapterSettings, tokenizer: PreTrainedTokenizerBase, empty: bool = False):
    """Return a PeftModel of the base: adapters drawn from `settings.seed`, thought vectors, and `config.mot`.

    It computes what the base computes, because an adapter's second matrix starts as zeros. `empty`: no weights are
    loaded, for counting. Raises ValueError for a base or targets that cannot be adapted.
    """
    from peft import LoraConfig, get_peft_model

    name, where = settings.base_model, f"--base_model {settings.base_model}"
    if empty:
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(name), trust_remote_code=False)
    else:
        model = load_base(name, settings.load_in, where)
    read, scored = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(read, nn.Embedding) or not isinstance(scored, nn.Linear):
        raise ValueError(f"{where}: a {type(model).__name__} has no embeddings that thoughts can be added to")
    if scored.bias is not None:  # peft's trainable rows compute x W^T alone
        raise ValueError(f"{where}: the output layer of a {type(model).__name__} has a bias, which peft would lose")
    thoughts = thought_ids(tokenizer, settings.num_thoughts)
    vocabulary = len(read.weight)
    make_room(model, len(tokenizer), thoughts, settings.seed)
    read, scored = model.get_input_embeddings(), model.get_output_embeddings()
    tied = scored.weight is read.weight
    model.config.tie_word_embeddings = tied  # peft reads the configuration, which may not say so
    names = {id(module): name_of for name_of, module in model.named_modules()}
    rows = thoughts if tied else {names[id(read)]: thoughts, names[id(scored)]: thoughts}
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=targets(model, settings.lora_targets),
        fan_in_fan_out=any(_is_conv1d(module) for module in model.modules()),
        trainable_token_indices=rows if thoughts else None,
    )
    with torch.random.fork_rng(devices=[]), _quietly():  # peft initialises from the global generator
        torch.manual_seed(settings.seed)
        try:
            adapted = get_peft_model(model, config)
        except ValueError as e:
            raise ValueError(f"{where}: peft cannot adapt a {type(model).__name__} ({one_line(e)})") from None
    config.base_model_name_or_path = str(Path(name).resolve()) if Path(name).is_dir() else name
    base = BaseModel(vocabulary, read.embedding_dim, settings.load_in, None if empty else fingerprint(name))
    mixture = MixtureConfig(settings.num_thoughts, thoughts, settings.thought_length, base)
    model.config.mot = mixture.to_dict()
    ends = model.generation_config.eos_token_id
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    model.generation_config.eos_token_id = list(
        dict.fromkeys([*ends, tokenizer.eos_token_id, *_end_of_turn(tokenizer)])
    )
    model.generation_config.suppress_tokens = thoughts or None
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    return adapted


def make_room(model: PreTrainedModel, entries: int, thoughts: list[int], seed: int) -> None:
    """Give the embeddings a row for every entry of the tokenizer, and initialise the thoughts' rows.

    A thought starts at the mean of the base's rows, with a little noise from `seed`. A token that is scored at the mean
    has at most 1/V of the probability (Jensen), so N new ones cost ordinary text at most about N/V nats per token. The
    noise is what the first E-step distinguishes thoughts by: without it rounding errors decide. Its size does not
    matter: on `forks` 0.1 and 1 standard deviations end alike (docs/adapting.md).
    """
    before = len(model.get_input_embeddings().weight)
    if entries > before:
        model.resize_token_embeddings(entries, mean_resizing=False)  # True draws from the global generator
    known = min([before, *thoughts])
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weights: dict[int, Tensor] = {
            id(m.weight): m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings())
        }
        for weight in weights.values():
            rows = weight[:known].float()
            mean, deviation = rows.mean(0), rows.std(0)
            weight[before:] = mean.to(weight.dtype)  # the base's own spare rows stay as they are
            noise = torch.randn(len(thoughts), len(mean), generator=g, device="cpu").to(weight.device)
            weight[thoughts] = (mean + NOISE * deviation * noise).to(weight.dtype)


def targets(model: PreTrainedModel, asked: str) -> list[str] | str:
    """Return the modules that `--lora_targets` names. Raises ValueError for an unknown name, listing the known."""
    output = model.get_output_embeddings()
    linear = [
        name
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) or _is_conv1d(module)) and module is not output
    ]
    # The numbered blocks consist of attention and MLP.
    in_blocks = sorted({name.rpartition(".")[2] for name in linear if re.search(r"\.\d+\.", name)})
    if asked == "all-linear" or (asked == "auto" and not in_blocks):
        return "all-linear"
    if asked == "auto":
        return in_blocks
    names = [name.strip() for name in asked.split(",")]
    for name in names:
        if not any(l == name or l.endswith(f".{name}") for l in linear):
            raise ValueError(f"--lora_targets {name}: the base has no such linear map; there is {', '.join(in_blocks)}")
    return names


def _is_conv1d(module: nn.Module) -> bool:
    """GPT-2's linear map, whose weight is [in, out]. By name: transformers has moved the class before."""
    return type(module).__name__ == "Conv1D"


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token with which a chat template ends an answer, or none. Generation also stops there."""
    if not tokenizer.chat_template:
        return []
    try:
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]
        _, answer = chat_row(tokenizer, messages)
    except ValueError:  # an unusual template; reading chat data raises the error with a remedy
        return []
    return answer[-1:] if ends_turn(tokenizer, answer[-1]) else []


# Files --------------------------------------------------------------------------------------------------------------


def save(model, directory: str, state_dict: dict | None = None) -> None:
    """Write what `PeftModel.from_pretrained` reads, the generation settings, and our settings; nothing of the base."""
    base = model.get_base_model()
    model.save_pretrained(directory, save_embedding_layers=False, state_dict=state_dict)
    Path(directory, "README.md").unlink(missing_ok=True)  # peft's empty template of a model card
    base.generation_config.save_pretrained(directory)
    Path(directory, OURS).write_text(json.dumps(base.config.mot, indent=1) + "\n")


def open_adapter(path: str, quantised: bool = True):
    """Return (PeftModel in eval mode, tokenizer) of a directory that `save` wrote, on the base that it was made on.

    A base that was quantised for training is quantised again if there is a GPU, unless `quantised` is False.
    Raises ValueError if the base is missing, or another one is in its place.
    """
    from_peft, where = Path(path), f"--model {path}"
    _require_peft()
    from peft import PeftModel

    if not (from_peft / OURS).is_file():
        raise ValueError(f"{where}: is an adapter of something else (no {OURS}); give one that train_lora_mot.py wrote")
    try:
        mixture = MixtureConfig.from_dict(json.loads((from_peft / OURS).read_text()))
        name = json.loads((from_peft / ADAPTER).read_text())["base_model_name_or_path"]
        if mixture.base is None:
            raise KeyError("base")
    except (*LOADING, TypeError) as e:
        raise ValueError(f"{where}: cannot be loaded ({one_line(e)})") from None
    tokenizer = open_tokenizer(path, where)
    made_on, mixture.base = mixture.base, None  # a property of the adapter, not of the model that it makes
    way_out = f"put it back, or write its place into base_model_name_or_path of {path}/{ADAPTER}"
    if Path(name).is_absolute() and not Path(name).is_dir():
        raise ValueError(f"{where}: its base model {name} is not there; {way_out}")
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        sha256 = fingerprint(name)
    except (*LOADING, TypeError) as e:
        raise ValueError(f"{where}: its base model {name} cannot be loaded ({one_line(e)}); {way_out}") from None
    for measure in ("vocab_size", "hidden_size"):
        found, expected = getattr(config, measure), getattr(made_on, measure)
        if found != expected:
            raise ValueError(
                f"{where}: does not match its base model {name}: {measure} {found:,}, not {expected:,}; {way_out}"
            )
    if sha256 != made_on.sha256:
        raise ValueError(f"{where}: its base model {name} has other weights than the adapter was made on; {way_out}")
    model = load_base(name, made_on.load_in if quantised and torch.cuda.is_available() else "none", where)
    make_room(model, len(tokenizer), mixture.thought_token_ids, 0)
    try:
        with _quietly():
            adapted = PeftModel.from_pretrained(model, path)
        model.generation_config = GenerationConfig.from_pretrained(path)
    except (*LOADING, RuntimeError) as e:
        raise ValueError(f"{where}: cannot be loaded ({one_line(e)})") from None
    model.config.mot = mixture.to_dict()
    tokenizer.padding_side = "left"
    return adapted.eval(), tokenizer


@contextmanager
def _quietly() -> Iterator[None]:
    """Suppress transformers' warnings about old names that peft uses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
