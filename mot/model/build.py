"""A trunk and its thoughts: build a model, lay out rows, and score continuations under every thought.

    model  = build_model(settings, tokenizer)
    layout = lay_out(batch, thought_token_BL, pad)                # [x][k][y], or [x][y] where there is no thought
    logp_BNT, router_BN, _ = thought_logprobs(model, batch, thoughts)  # one prompt computation for all N
    scores = score(model, batch, thoughts)                        # base, mixture and oracle NLL and what follows from them

Shapes: see mot/thoughts.py. A `batch` is what mot.data.datasets.branch returns.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Cache,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from mot.model.adapters import ADAPTER, open_adapter
from mot.model.packed import pack
from mot.model.settings import ModelSettings, mlp_width
from mot.model.tokenizer import thought_ids
from mot.thoughts import draw_sequences, mixture_nll, oracle_nll, specialisation

KEY_BIAS_STD = 3.0  # initial standard deviation of the keys' biases, see build_model
WAVELENGTHS = 4  # rotary base, in units of the training length: low, so that near places differ too, see build_model


def build_model(settings: ModelSettings, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """A fresh Llama of the settings' shape, weights drawn from `settings.seed`, our settings under `config.mot`.

    Keys have a bias, drawn wide: q . R(distance) b is a preference for a *place* that a thought can have from the first
    step. Without it a thought can at first only prefer words, and thoughts that divide the words between them are where
    EM then stays: docs/RESULTS.md, "What makes thoughts divide places". For the same reason the rotary base is low, and a
    thought's vector as it is read is not tied to its vector as the router scores it.
    """
    mot = {"num_thoughts": settings.num_thoughts, "thought_token_ids": thought_ids(tokenizer, settings.num_thoughts)}
    if settings.thought_length > 1:
        mot["thought_length"] = settings.thought_length
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
        mot=mot,
    )
    with torch.random.fork_rng(devices=[]):  # transformers initialises from the global generator
        torch.manual_seed(settings.seed)
        model = LlamaForCausalLM(config)
        for layer in model.model.layers:
            torch.nn.init.normal_(layer.self_attn.k_proj.bias, std=KEY_BIAS_STD)
    if thoughts := config.mot["thought_token_ids"]:
        model.generation_config.suppress_tokens = thoughts  # whoever generates, thought tokens are never generated
    return model


def lay_out(batch: dict[str, Tensor], token_BL: Tensor, pad: int) -> dict[str, Tensor]:
    """Rows [x][k_1 .. k_L][y] as model inputs and labels. `token_BL`: thought token ids, or -1 for a row that carries none.

    A row without a thought has y right behind x and L pads at its end; if no row has one, there are no columns for it.
    Labels (-100: no target) leave out pads, thought tokens, and each row's first token.
    """
    prompt, completion = batch["prompt"], batch["completion"]
    has_thought_B1 = token_BL[:, :1] >= 0
    ids, real = torch.cat([prompt, completion], 1), torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    labels = torch.where(real.bool(), ids, -100)
    if has_thought_B1.any():
        columns = torch.ones_like(token_BL, dtype=ids.dtype)

        def insert(plain: Tensor, thought: Tensor, end: int) -> Tensor:
            with_thought = torch.cat([plain[:, : prompt.shape[1]], thought, plain[:, prompt.shape[1] :]], 1)
            return torch.where(has_thought_B1, with_thought, torch.cat([plain, end * columns], 1))

        ids = insert(ids, token_BL.clamp_min(0), pad)
        real = insert(real, columns, 0)
        labels = insert(labels, -100 * columns, -100)
    before_is_pad = torch.cat([torch.zeros_like(real[:, :1]), real[:, :-1]], 1) == 0
    return {"input_ids": ids, **_positions(real, batch["prompt_mask"])} | {
        "labels": labels.masked_fill(before_is_pad, -100)
    }


def _positions(real: Tensor, prompt_mask: Tensor) -> dict[str, Tensor]:
    # Causal attention never looks right, so only pads on the left need a mask; without one attention takes the fast path.
    if prompt_mask.all():
        return {}
    return {"attention_mask": real, "position_ids": (real.cumsum(-1) - 1).clamp_min(0)}


def prefill(model: PreTrainedModel, prompt: Tensor, prompt_mask: Tensor, cache: Cache | None = None):
    """Compute prompts [B, P] once: (KV cache, an empty one given or the model's own; logits [B, V] at the last prompt position)."""
    positions = _positions(prompt_mask, prompt_mask)
    out = model(input_ids=prompt, past_key_values=cache, use_cache=True, logits_to_keep=1, **positions)
    return out.past_key_values, out.logits[:, -1].float()


def read_thought(model: PreTrainedModel, cache, prompt_mask: Tensor, begun: Tensor, thoughts: list[int]) -> Tensor:
    """Read the last of the thought tokens `begun` [R, 1 .. L-1]: router logits [R, N] of the next one.

    `cache` holds the R prompts and what was begun behind each; only that last token is still to come.
    """
    inputs = {"input_ids": begun[:, -1:], "position_ids": prompt_mask.sum(1, keepdim=True) + begun.shape[1] - 1}
    if not prompt_mask.all():
        inputs["attention_mask"] = torch.cat([prompt_mask, torch.ones_like(begun)], 1)
    return model(**inputs, past_key_values=cache, use_cache=True).logits[:, -1, thoughts].float()


def thought_logprobs(
    model: PreTrainedModel,
    batch: dict[str, Tensor],
    thoughts: list[int],
    tokens: int = 0,
    sequences_ML: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """log p(y_t | x, k, y_<t) [B, M, T], pads 0; router logits [B, N] at the branch point; log p(k | x) [B, M]. Nats.

    The M thoughts are sequences of L digits (see mot/thoughts.py); without `sequences_ML` they are the N thought tokens.
    The prompt is computed once and its cache shared by the M continuations. With `tokens` > 0 only the first so many
    tokens of each continuation are scored (T is then at most `tokens`).
    """
    B, _P = batch["prompt"].shape
    sequences_ML = torch.arange(len(thoughts))[:, None] if sequences_ML is None else sequences_ML
    M, L = sequences_ML.shape
    cache, logits_BV = prefill(model, batch["prompt"], batch["prompt_mask"])
    router_BN = logits_BV[:, thoughts]
    cache.batch_repeat_interleave(M)
    targets = batch["completion"][:, : tokens or None]
    mask = batch["completion_mask"][:, : tokens or None]
    T = targets.shape[1]
    sequences_ML = sequences_ML.to(targets.device)
    token_columns = torch.tensor(thoughts, device=targets.device)[sequences_ML].repeat(B, 1)
    targets, mask = targets.repeat_interleave(M, 0), mask.repeat_interleave(M, 0)
    ids = torch.cat([token_columns, targets[:, :-1]], 1)
    inputs = {"input_ids": ids, "past_key_values": cache, "use_cache": True}
    length_B = batch["prompt_mask"].sum(1).repeat_interleave(M)
    inputs["position_ids"] = length_B[:, None] + torch.arange(ids.shape[1], device=targets.device)
    if not batch["prompt_mask"].all():
        inputs["attention_mask"] = torch.cat([batch["prompt_mask"].repeat_interleave(M, 0), torch.ones_like(ids)], 1)
    logits = model(**inputs).logits
    of_y = logits[:, L - 1 :].flatten(0, 1).float()
    logp = -F.cross_entropy(of_y, targets.flatten(), reduction="none").view(B, M, T)
    sequence_logp_BM = router_BN.log_softmax(-1)[:, sequences_ML[:, 0]]
    if L > 1:
        later = logits[:, : L - 1, thoughts].float().log_softmax(-1).view(B, M, L - 1, len(thoughts))
        said = sequences_ML[:, 1:, None].expand(B, -1, -1, -1)
        sequence_logp_BM = sequence_logp_BM + later.gather(-1, said)[..., 0].sum(-1)
    return logp * mask.view(B, M, T), router_BN, sequence_logp_BM


def base_logprobs(model: PreTrainedModel, batch: dict[str, Tensor], pad: int) -> Tensor:
    """log p(y | x) of the trunk, without any thought, summed over y [B]. Nats."""
    layout = lay_out(batch, torch.full((len(batch["prompt"]), 1), -1, device=batch["prompt"].device), pad)
    labels = layout.pop("labels")
    P = batch["prompt"].shape[1]
    logits = model(**layout).logits[:, P - 1 : -1]
    return -F.cross_entropy(logits.transpose(1, 2).float(), labels[:, P:], reduction="none", ignore_index=-100).sum(1)


@torch.no_grad()
def require_branching(model: PreTrainedModel, thoughts: list[int], where: str) -> None:
    """Raise ValueError, beginning with `where`, if the model is none that thoughts can branch from.

    Tried on a few tokens: nothing may depend on later tokens, and continuations that share a prompt's cache, padded as in
    a batch, must score as whole rows do.
    """
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(min(thoughts, default=model.config.vocab_size), (2, 12), generator=g).to(model.device)
    batch = {"prompt": ids[:, :7], "completion": ids[:, 7:], "completion_mask": torch.ones_like(ids[:, 7:])}
    batch["prompt_mask"] = torch.ones_like(ids[:, :7])
    batch["prompt_mask"][1, :2] = 0
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.2
    what, two = f"{where}: a {type(model).__name__} cannot have thoughts", thoughts[:2]
    try:
        with evaluating(model):
            logits, shorter = (model(input_ids=part, use_cache=False).logits for part in (ids, ids[:, :9]))
            if (logits[:, :9] - shorter).abs().mean() > tolerance:
                raise ValueError(f"{what}: it reads later tokens, so it is not a causal language model; give another")
            if not thoughts:
                return
            shared_BM = thought_logprobs(model, batch, two)[0].sum(-1)
            for k, thought in enumerate(two):
                layout = lay_out(batch, torch.full((2, 1), thought, device=ids.device), thought)
                layout.pop("labels")
                logp_BTV = model(**layout, use_cache=False).logits[:, 7:-1].float().log_softmax(-1)
                whole_B = logp_BTV.gather(-1, batch["completion"][..., None]).sum((1, 2))
                if (shared_BM[:, k] - whole_B).abs().mean() > 5 * tolerance:
                    raise ValueError(
                        f"{what}: continuations that share a prompt's cache score otherwise than whole rows"
                    )
    except (TypeError, AttributeError, NotImplementedError, IndexError) as e:
        raise ValueError(f"{what}: it cannot share a prompt between them ({' '.join(str(e).split())[:120]})") from None


@torch.no_grad()
def score(
    model: PreTrainedModel, batch: dict[str, Tensor], thoughts: list[int], pad: int, thought_length: int = 1
) -> dict[str, Tensor]:
    """What a batch says of a mixture, each [B]: base, mixture and oracle NLL (nats per token), specialisation, `winner`.

    A model without thoughts is its own mixture. Words (L > 1) are too many to ask: M = N of the W = N ** L, the same ones in
    every evaluation, stand for all. Oracle, specialisation and `winner` (0 .. M-1) are those of the M; the mixture NLL is

        -log(W / M * sum over the M of p(w | x) p(y | x, w)) / length

    whose sum is right in expectation over the draw of sequences, so that its -log is never below the true NLL in expectation
    (Jensen): an upper bound on average, and the looser the less alike words are; the oracle of the M is no bound of it. Source:
    importance sampling as in Burda et al. 2016.
    """
    with evaluating(model):
        length_B = batch["completion_mask"].sum(1)
        base_B = base_logprobs(model, batch, pad)
        result = {"base_nll": -base_B / length_B, "tokens": length_B}
        if thoughts:
            M = N = len(thoughts)
            sequences_ML = draw_sequences(M, N, thought_length, torch.Generator().manual_seed(0))
            logp_BMT, _, sequence_logp_BM = thought_logprobs(model, batch, thoughts, sequences_ML=sequences_ML)
            logp_BM = logp_BMT.sum(-1)
            stands_for = thought_length * math.log(N) - math.log(M)  # log(W / M)
            result["mixture_nll"] = mixture_nll(sequence_logp_BM + stands_for, logp_BM, length_B)
            result["oracle_nll"] = oracle_nll(logp_BM, length_B)
            result["specialisation"] = specialisation(logp_BM)
            result["winner"] = logp_BM.argmax(-1)
        else:
            result["mixture_nll"] = result["oracle_nll"] = result["base_nll"]
    return result


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Dropout off inside, the mode as it was after."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def load_model(path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[int]]:
    """(model in eval mode, on the accelerator if there is one; tokenizer; thought token ids) of a directory.

    The directory holds a whole model, or an adapter whose base is then loaded, too. No ids for a model without thoughts. The
    model is for thinking: on a CPU a whole one is packed (mot/model/packed.py), and can be neither trained nor saved.

    Raises ValueError where there is no such model or it is half-written.
    """
    if not Path(path).exists():
        raise ValueError(
            f"--model {path}: no such directory; give the --output_dir of a finished training run, or fetch a model with `hf download`"
        )
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
    return model.eval(), tokenizer, _thoughts(model)


def describe_model(path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[int]]:
    """`load_model` without the weights, which another program has: the model is on the device "meta" and computes nothing.

    Raises ValueError where there is no such model, or an adapter, which that program could not load.
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
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as e:
        raise ValueError(f"--model {path}: cannot be read ({' '.join(str(e).split())[:160]})") from None
    return model, tokenizer, _thoughts(model)


def _thoughts(model: PreTrainedModel) -> list[int]:
    return getattr(model.config, "mot", {"thought_token_ids": []})["thought_token_ids"]


def _require_config(path: str) -> None:
    if not (Path(path) / "config.json").is_file():
        raise ValueError(
            f"--model {path}: holds no model (no config.json); give the --output_dir of a finished training run"
        )


def _load_whole(path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    _require_config(path)
    try:
        # Neither pickles (.bin) nor code that lies in the directory (auto_map): loading a model must not run anything.
        model = AutoModelForCausalLM.from_pretrained(path, use_safetensors=True, trust_remote_code=False)
        return model, AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, SafetensorError) as e:
        raise ValueError(f"--model {path}: cannot be loaded ({' '.join(str(e).split())[:160]})") from None
