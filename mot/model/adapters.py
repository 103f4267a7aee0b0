"""Thoughts for a model that is there already: its weights stay as they are, adapters and N new vectors learn.

    tokenizer = base_tokenizer(settings)       # the base's own and N thought tokens
    model = adapt(settings, tokenizer)         # a PeftModel that says what the base says, until it is trained
    save(model, "outputs/run")                 # a standard PEFT directory, and mot.json beside it
    model, tokenizer = open_adapter("outputs/run")

peft carries it: LoRA on the linear maps, and of the embeddings the rows of the thoughts alone. Where input and output
embeddings are not tied, both have such rows: the ones that are read, and the ones that the router scores.
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
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D
from transformers.utils import cached_file

from mot.model.chat import chat_texts, encode_chat, ends_turn
from mot.model.settings import AdapterSettings
from mot.model.tokenizer import add_thoughts, thought_ids

ADAPTER, OURS = "adapter_config.json", "mot.json"
NOISE = 0.1  # of a thought's first vectors, in standard deviations of the base's: see make_room
HEAD = 4096  # bytes of every tensor of a base that its fingerprint is made of
LOADING = (OSError, ValueError, KeyError, ImportError, SafetensorError)


# The base -----------------------------------------------------------------------------------------------------------


def require(settings: AdapterSettings) -> None:
    """Raise ValueError, naming the way out, if adapting needs what is not here: a package, a GPU, a causal language model."""
    _require_peft()
    if settings.load_in != "none":
        flag = f"--load_in {settings.load_in}"
        if not torch.cuda.is_available():
            raise ValueError(f"{flag}: needs a GPU and there is none; leave it out")
        if find_spec("bitsandbytes") is None:
            raise ValueError(f"{flag}: needs bitsandbytes; pip install bitsandbytes, or leave it out")
    name = settings.base_model
    where = f"--base_model {name}"
    if Path(name, ADAPTER).is_file():
        raise ValueError(
            f"{where}: is an adapter; go on with its run by --resume_from, or mot export --merge it and give a model without thoughts"
        )
    if Path(name).is_dir() and not Path(name, "config.json").is_file():
        raise ValueError(f"{where}: holds no model (no config.json); give a Hugging Face model's directory")
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except LOADING as e:
        raise ValueError(
            f"{where}: no such directory, and no such model to be had ({_short(e)}); give a directory or a hub id"
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
    if thoughts := getattr(config, "mot", {}).get("thought_token_ids"):
        raise ValueError(
            f"{where}: has {len(thoughts)} thoughts already; go on with the run that made it (its own command and --resume_from), "
            "or give a model without thoughts"
        )
    longest = getattr(config, "max_position_embeddings", None)
    row = settings.seq_length + settings.thought_length * (settings.num_thoughts > 1)
    if longest and row > longest:
        raise ValueError(
            f"--seq_length {settings.seq_length}: with its thought a row has {row} tokens and {name} reads {longest}; give less"
        )


def _require_peft() -> None:
    if find_spec("peft") is None:
        raise ValueError("adapters need peft, which is not here; pip install 'mixture-of-thoughts[lora]'")


def base_tokenizer(settings: AdapterSettings) -> PreTrainedTokenizerBase:
    """The base's tokenizer with the thought tokens. Raises ValueError if it cannot be loaded or has no room for them."""
    where = f"--base_model {settings.base_model}"
    try:
        tokenizer = AutoTokenizer.from_pretrained(settings.base_model, trust_remote_code=False)
    except LOADING as e:
        raise ValueError(f"{where}: its tokenizer cannot be loaded ({_short(e)})") from None
    if not tokenizer.is_fast:
        raise ValueError(f"{where}: its tokenizer has no tokenizer.json; convert it to a fast one and save it there")
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
    """A causal language model in the precision it is stored in, or quantised. Raises ValueError beginning with `where`."""
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
        # Neither pickles (.bin) nor code that lies with the model (auto_map): loading it must not run anything.
        return AutoModelForCausalLM.from_pretrained(name, use_safetensors=True, trust_remote_code=False, **quantised)
    except LOADING as e:
        raise ValueError(f"{where}: cannot be loaded ({_short(e)})") from None


def fingerprint(name: str) -> str:
    """sha256 that tells one set of weights from another: of every stored tensor its name, type, shape and first 4 KiB."""
    folder = Path(name) if Path(name).is_dir() else Path(cached_file(name, "config.json")).parent
    tensors = {}
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            for tensor, about in json.loads(file.read(length)).items():
                if tensor != "__metadata__":
                    first, stop = about["data_offsets"]
                    file.seek(8 + length + first)
                    head = hashlib.sha256(file.read(min(HEAD, stop - first))).hexdigest()
                    tensors[tensor] = [about["dtype"], about["shape"], head]
    return hashlib.sha256(json.dumps(tensors, sort_keys=True).encode()).hexdigest()


# Adapting -----------------------------------------------------------------------------------------------------------


def adapt(settings: AdapterSettings, tokenizer: PreTrainedTokenizerBase, empty: bool = False):
    """A PeftModel of the base: adapters of `settings.seed`, vectors for the thoughts, our settings under `config.mot`.

    Nothing is said differently yet: an adapter's second matrix begins as zeros. `empty`: no weights, for counting.
    Raises ValueError for a base or targets that will not do.
    """
    from peft import LoraConfig, get_peft_model

    name, where = settings.base_model, f"--base_model {settings.base_model}"
    if empty:
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(name), trust_remote_code=False)
    else:
        model = load_base(name, settings.load_in, where)
    read, scored = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(read, nn.Embedding) or not isinstance(scored, nn.Linear):
        raise ValueError(f"{where}: a {type(model).__name__} has no embeddings that thoughts could be added to")
    if scored.bias is not None:  # peft's trainable rows compute x W^T alone
        raise ValueError(f"{where}: the output layer of a {type(model).__name__} has a bias, which peft would lose")
    thoughts = thought_ids(tokenizer, settings.num_thoughts)
    vocabulary = len(read.weight)
    make_room(model, len(tokenizer), thoughts, settings.seed)
    read, scored = model.get_input_embeddings(), model.get_output_embeddings()
    tied = scored.weight is read.weight
    model.config.tie_word_embeddings = tied  # peft asks the configuration, which need not say so
    names = {id(module): its_name for its_name, module in model.named_modules()}
    rows = thoughts if tied else {names[id(read)]: thoughts, names[id(scored)]: thoughts}
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=targets(model, settings.lora_targets),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        trainable_token_indices=rows if thoughts else None,
    )
    with torch.random.fork_rng(devices=[]), _quietly():  # peft initialises from the global generator
        torch.manual_seed(settings.seed)
        try:
            adapted = get_peft_model(model, config)
        except ValueError as e:
            raise ValueError(f"{where}: peft cannot adapt a {type(model).__name__} ({_short(e)})") from None
    config.base_model_name_or_path = str(Path(name).resolve()) if Path(name).is_dir() else name
    model.config.mot = {"num_thoughts": settings.num_thoughts, "thought_token_ids": thoughts}
    if settings.thought_length > 1:
        model.config.mot["thought_length"] = settings.thought_length
    model.config.mot["base"] = {
        "vocab_size": vocabulary,
        "hidden_size": read.embedding_dim,
        "load_in": settings.load_in,
        "sha256": None if empty else fingerprint(name),
    }
    ends = model.generation_config.eos_token_id
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    model.generation_config.eos_token_id = list(
        dict.fromkeys([*ends, tokenizer.eos_token_id, *_end_of_turn(tokenizer)])
    )
    model.generation_config.suppress_tokens = thoughts or None
    for its in (model.config, model.generation_config):
        its.pad_token_id = tokenizer.pad_token_id
    return adapted


def make_room(model: PreTrainedModel, entries: int, thoughts: list[int], seed: int) -> None:
    """Give the embeddings a row for every entry of the tokenizer, and the thoughts' rows a place to begin from.

    A thought begins at the mean of the base's rows, with a little noise from `seed`. Scored at the mean, a token has at
    most 1/V of the probability (Jensen), so N new ones cost ordinary text no more than about N/V nats per token. The noise
    is what the first E-step has to tell thoughts apart by: without it they would say the same, and rounding would
    decide. How much there is does not matter: on `forks` 0.1 and 1 standard deviations end alike (docs/adapting.md).
    """
    before = len(model.get_input_embeddings().weight)
    if entries > before:
        model.resize_token_embeddings(entries, mean_resizing=False)  # else from the global generator
    known = min([before, *thoughts])
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weights: dict[int, Tensor] = {
            id(m.weight): m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings())
        }
        for weight in weights.values():
            rows = weight[:known].float()
            mean, deviation = rows.mean(0), rows.std(0)
            weight[before:] = mean.to(weight.dtype)  # spare rows of the base's own stay as they are
            noise = torch.randn(len(thoughts), len(mean), generator=g, device="cpu").to(weight.device)
            weight[thoughts] = (mean + NOISE * deviation * noise).to(weight.dtype)


def targets(model: PreTrainedModel, asked: str) -> list[str] | str:
    """What `--lora_targets` means for this model. Raises ValueError for a name that nothing has, listing what there is."""
    output = model.get_output_embeddings()
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not output
    ]
    # Attention and MLP are what the numbered blocks are made of.
    there_are = sorted({name.rpartition(".")[2] for name in linear if re.search(r"\.\d+\.", name)})
    if asked == "all-linear" or (asked == "auto" and not there_are):
        return "all-linear"
    if asked == "auto":
        return there_are
    names = [name.strip() for name in asked.split(",")]
    for name in names:
        if not any(l == name or l.endswith(f".{name}") for l in linear):
            raise ValueError(f"--lora_targets {name}: the base has no such linear map; there is {', '.join(there_are)}")
    return names


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token that a chat model's template ends an answer with, or nothing: there generation has to stop, too."""
    if not tokenizer.chat_template:
        return []
    try:
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]
        said = encode_chat(tokenizer, chat_texts(tokenizer, messages)[1])
    except ValueError:  # a template of its own kind; chat data will say so
        return []
    return said[-1:] if ends_turn(tokenizer, said[-1]) else []


# Files --------------------------------------------------------------------------------------------------------------


def save(model, directory: str, state_dict: dict | None = None) -> None:
    """Write what `PeftModel.from_pretrained` reads, how to generate, and our settings. Nothing of the base."""
    base = model.get_base_model()
    model.save_pretrained(directory, save_embedding_layers=False, state_dict=state_dict)
    Path(directory, "README.md").unlink(missing_ok=True)  # peft's form for a model card: nothing is filled in
    base.generation_config.save_pretrained(directory)
    Path(directory, OURS).write_text(json.dumps(base.config.mot, indent=1) + "\n")


def open_adapter(path: str, quantised: bool = True):
    """(PeftModel in eval mode, tokenizer) of a directory that `save` wrote, on the base that it was made on.

    A base that was quantised for training is so again if there is a GPU, unless `quantised` is False.
    Raises ValueError if the base is not there, or another one lies in its place.
    """
    from_peft, where = Path(path), f"--model {path}"
    _require_peft()
    from peft import PeftModel

    if not (from_peft / OURS).is_file():
        raise ValueError(f"{where}: is an adapter of something else (no {OURS}); give one that train_lora_mot.py wrote")
    try:
        mot = json.loads((from_peft / OURS).read_text())
        name = json.loads((from_peft / ADAPTER).read_text())["base_model_name_or_path"]
        made_on, load_in = mot.pop("base"), "none"
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except LOADING as e:
        raise ValueError(f"{where}: cannot be loaded ({_short(e)})") from None
    way_out = f"put it back, or its place into base_model_name_or_path of {path}/{ADAPTER}"
    if Path(name).is_absolute() and not Path(name).is_dir():
        raise ValueError(f"{where}: its base model {name} is not there; {way_out}")
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        its_sha256 = fingerprint(name)
    except (*LOADING, TypeError) as e:
        raise ValueError(f"{where}: its base model {name} cannot be loaded ({_short(e)}); {way_out}") from None
    for measure in ("vocab_size", "hidden_size"):
        if (found := getattr(config, measure)) != made_on[measure]:
            raise ValueError(
                f"{where}: does not match its base model {name}: {measure} {found:,}, not {made_on[measure]:,}; {way_out}"
            )
    if its_sha256 != made_on["sha256"]:
        raise ValueError(f"{where}: its base model {name} has other weights than the adapter was made on; {way_out}")
    if quantised and torch.cuda.is_available():
        load_in = made_on["load_in"]
    model = load_base(name, load_in, where)
    make_room(model, len(tokenizer), mot["thought_token_ids"], 0)
    try:
        with _quietly():
            adapted = PeftModel.from_pretrained(model, path)
        model.generation_config = GenerationConfig.from_pretrained(path)
    except (*LOADING, RuntimeError) as e:
        raise ValueError(f"{where}: cannot be loaded ({_short(e)})") from None
    model.config.mot = mot
    tokenizer.padding_side = "left"
    return adapted.eval(), tokenizer


@contextmanager
def _quietly() -> Iterator[None]:
    """peft asks transformers by old names, of which transformers warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _short(e: Exception) -> str:
    return " ".join(str(e).split())[:160]
