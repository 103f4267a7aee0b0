"""What a run takes: parameters, FLOPs, memory, hours and money. No torch, so that `mot cost` is fast.

    parameters(settings, entries)                  of the model that mot.model.build.build_model returns
    cost_of_a_row(settings, P, T, windows=True)    training FLOPs of a row, in forward passes of one token
    activations(settings, width, layers, ...)      bytes
    estimate(settings, GPUS["l4"])                 hours, dollars, does it fit

`train_mot.py --dry_run` and `mot cost` use the same functions: the first with the sizes of the data, the second with
--tokens. Prices are in prices.yaml beside this file.
"""

from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

from mot.model.settings import mlp_width
from mot.runtime.flags import check_ranges, setting
from mot.training.settings import (
    COLLIDING,
    COPIES,
    DIVERSITY_FROM,
    DIVERSITY_SHARE,
    DIVERSITY_THOUGHTS,
    ESTEP_FROM,
    SLOTS,
    RunSettings,
    TrainSettings,
)

LIBRARIES = 0.5 * 2**30  # bytes, resident once torch and transformers are imported
STATE = 16  # bytes per trained parameter: fp32 weight, gradient and two moments


def parameters(settings: TrainSettings, entries: int) -> int:
    """Return the parameters of a fresh model whose tokenizer has `entries` entries, thought tokens included."""
    d = settings.hidden_size
    layer = 4 * d * d + 4 * d + 3 * d * mlp_width(d) + 2 * d  # attention with biases, MLP, two norms
    return 2 * entries * d + settings.num_layers * layer + d


def cost_of_a_row(settings: RunSettings, P: float, T: float, windows: bool, matched: float = 0.0) -> float:
    """Return the training FLOPs of a row, in units of one token's forward pass; a backward pass is two of them.

        3 (P + L + T)  M-step   +   P + N (L + T_scored)  E-step   +   3 (M - 1) (P + L + T)  for a contrasted row

    and in the share `matched` of the steps, instead of the E-step, for each of the SLOTS rows of a prompt

        P + N (L + T)  greedy texts   +   2 P + N (L + T) + COPIES T + 2 N (L + T)  if thoughts collide

    P, T: mean lengths of prompt and continuation; L thought tokens in a thought. `windows`: plain text, of which the
    E-step scores only the first tokens. A key is taken to be as long as its completion.
    The higher cost of attention for late tokens is left out, for all models alike.
    """
    scored = min(settings.scored_tokens(windows) or T, T)
    N, L = settings.num_thoughts, settings.thought_length
    if N == 1:
        return 3 * (P + T)
    carries = 1 - settings.thought_dropout
    contrasted = (1 - DIVERSITY_FROM) * DIVERSITY_SHARE * carries * (settings.diversity_weight > 0)
    others = min(DIVERSITY_THOUGHTS, N) - 1
    scoring = ESTEP_FROM + (1 - ESTEP_FROM) * settings.estep_rows if not windows else 1.0
    estep = scoring * carries * (P + N * (L + scored)) + 3 * contrasted * others * (P + L + T)
    texts = P + N * (L + T) + COLLIDING * (2 * P + 3 * N * (L + T) + COPIES * T)
    return 3 * (P + carries * L + T) + (1 - matched) * estep + matched * texts / SLOTS


def activations(
    settings: RunSettings, width: int, layers: int, entries: int, length: float, half: bool
) -> tuple[float, float]:
    """Return the bytes that the M-step keeps for its backward pass, and those that the E-step needs.

    Rows have `length` tokens on average; `half`: activations have two bytes, not four.
    """
    thoughts = settings.num_thoughts if settings.num_thoughts > 1 else 0
    # For the backward pass a token keeps about 30 values per unit of width in every layer, and three times its logits.
    per_token = 30 * width * layers + 3 * entries
    rows = settings.batch_size * (1 + DIVERSITY_SHARE * (min(DIVERSITY_THOUGHTS, thoughts or 1) - 1))
    read = settings.thought_length - 1 + min(settings.scored_tokens(windows=True) or settings.seq_length, length)
    estep = settings.batch_size * thoughts * read * 2 * entries * 4  # logits and their softmax
    return rows * length * per_token * (2 if half else 4), estep


@cache
def prices() -> dict:
    """The content of prices.yaml."""
    import yaml

    return yaml.safe_load(files("mot.training").joinpath("prices.yaml").read_text(encoding="utf-8"))


def require_gpu(gpu: str, spot: bool) -> dict:
    """Return a GPU's entry of the price list. Raises ValueError if there is none, or none on these terms."""
    known = prices()
    if gpu in known["unsupported"]:
        raise ValueError(f"--gpu {gpu}: {known['unsupported'][gpu]}; give {', '.join(known['gpus'])}")
    if gpu not in known["gpus"]:
        raise ValueError(f"--gpu {gpu}: unknown; there is {', '.join(known['gpus'])}")
    about = known["gpus"][gpu]
    if about["on_demand"] is None and not spot:
        raise ValueError(f"--gpu {gpu}: {about['machine']} is sold as spot only; give --spot, or another GPU")
    return about


@dataclass
class CostSettings(TrainSettings):
    """The settings of `mot cost`: a training command, and a GPU. No data are read."""

    gpu: str | None = setting(None, "t4, l4, a100 or h100; default: a table of all", group="cost")
    spot: bool = setting(False, "a cheaper machine that the provider may take back at any moment", group="cost")
    tokens: float = setting(
        1e9, "to train on, over all epochs, in windows of --seq_length", "tokens", group="cost", above=0
    )
    utilisation: float = setting(
        0.25, "share of the GPU's peak that training reaches: an assumption", group="cost", above=0, high=1
    )
    # On by default, because float32 uses a tenth of a GPU.
    bf16: bool = setting(True, "mixed precision (on a T4 float16); --no-bf16: float32", group="cost")

    def validate(self) -> None:
        # A pasted training command may name its data or not, and --fp16 beside our --bf16 is no contradiction.
        training = TrainSettings(**{name: getattr(self, name) for name in TrainSettings.__dataclass_fields__})
        replace(training, train_file="data.txt", task=None, eval_file=None, bf16=False).validate()
        check_ranges(self)
        if self.gpu:
            require_gpu(self.gpu, self.spot)

    def entries(self) -> int:
        """Return the largest possible tokenizer: a text may have fewer characters or tokens than --vocab_size."""
        own = 3 if self.vocab_size < 257 else 2  # end, padding; of characters also unknown
        return self.vocab_size + own + (self.num_thoughts if self.num_thoughts > 1 else 0)


@dataclass
class Estimate:
    """What a run takes on one GPU."""

    hours: float
    dollars: float
    gib: float
    fits: bool


def work(settings: CostSettings) -> tuple[int, float, float]:
    """Return (parameters, training FLOPs of all tokens, their ratio to a plain model's)."""
    count, T = parameters(settings, settings.entries()), settings.seq_length / 2
    each = cost_of_a_row(settings, T, T, windows=True)
    plain = cost_of_a_row(replace(settings, num_thoughts=1), T, T, windows=True)
    # Two FLOPs per weight that multiplies, which the table of input vectors does not; and attention over half a window.
    forward = 2 * (count - settings.entries() * settings.hidden_size)
    forward += 2 * settings.num_layers * settings.hidden_size * settings.seq_length
    return count, settings.tokens / settings.seq_length * each * forward, each / plain


def price_of(about: dict, spot: bool) -> float | None:
    """Return dollars per hour of a price list's entry, or None if it is not sold on these terms."""
    return about["spot" if spot else "on_demand"]


def estimate(settings: CostSettings, about: dict) -> Estimate:
    """Return hours, dollars and memory on the GPU of a price list's entry."""
    count, flops, _ = work(settings)
    half = settings.bf16 or settings.fp16
    hours = flops / (about["tflops"]["half" if half else "single"] * 1e12 * settings.utilisation) / 3600
    needed = STATE * count + max(
        activations(settings, settings.hidden_size, settings.num_layers, settings.entries(), settings.seq_length, half)
    )
    return Estimate(
        hours, hours * (price_of(about, settings.spot) or 0), needed / 2**30, needed < 0.9 * about["memory_gib"] * 2**30
    )


def report(settings: CostSettings) -> list[str]:
    """Return the lines that `mot cost` prints."""
    known = prices()
    count, flops, ratio = work(settings)
    precision = "mixed precision" if settings.bf16 or settings.fp16 else "float32"
    lines = [
        f"model    {count:,} parameters: {settings.num_layers} layers of {settings.hidden_size}, "
        f"{settings.entries():,} entries",
        f"work     {settings.tokens:,.0f} tokens, {flops:.2e} FLOPs: {ratio:.2f} times a plain model's, "
        f"for {settings.num_thoughts} thoughts",
        f"speed    {settings.utilisation:.0%} of the GPU's {precision} peak, an assumption: --utilisation",
        f"prices   whole machine, {'spot' if settings.spot else 'on demand'}, {known['region']}, {known['date']}; "
        "boot disk and traffic apart",
        "",
        f"{'GPU':6}{'machine':17}{'$/hour':>8}{'hours':>10}{'dollars':>11}   memory",
    ]
    for gpu, about in known["gpus"].items():
        if settings.gpu not in (None, gpu):
            continue
        if about["on_demand"] is None and not settings.spot:
            lines.append(f"{gpu:6}{about['machine']:17}{'spot only':>8}")
            continue
        e, price = estimate(settings, about), price_of(about, settings.spot)
        room = f"about {e.gib:.1f} of {about['memory_gib']} GiB" + (
            "" if e.fits else ": too much; lower --batch_size, or --save_memory (not counted)"
        )
        lines.append(f"{gpu:6}{about['machine']:17}{price:8.3f}{e.hours:10,.2f}{e.dollars:11,.2f}   {room}")
    if not settings.gpu:
        lines += [f"{gpu:6}unsupported: {why}" for gpu, why in known["unsupported"].items()]
    if settings.spot:
        lines.append("A spot machine may be taken back: give training a gs:// --output_dir and --resume_from auto.")
    return lines
