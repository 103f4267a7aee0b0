"""The settings of a model: number of thoughts, shape, adapters. No torch here."""

from dataclasses import dataclass

from mot.runtime.flags import check_ranges, setting


def mlp_width(hidden_size: int) -> int:
    """Inner width of a layer's MLP: 8/3 of hidden_size, rounded up to a multiple of 32."""
    return -(-hidden_size * 8 // 3 // 32) * 32


@dataclass
class MixtureSettings:
    """What model, data and training have in common."""

    seq_length: int = setting(256, "length of a text window; longest row", "tokens", "data", low=2)
    num_thoughts: int = setting(8, "N; 1 is a plain language model", group="model", low=1, high=1024)
    thought_length: int = setting(
        1,
        "L, thought tokens in one thought sequence; there are N ** L different sequences",
        group="model",
        low=1,
        high=8,
    )
    seed: int = setting(
        42, "of initial weights, data order, branch points and random choices of the E-step", low=0, high=2**32 - 1
    )

    def validate(self) -> None:
        """Raise ValueError with one line that names the flag, the value and the remedy."""
        check_ranges(self)
        if self.thought_length > 1 and self.num_thoughts == 1:
            raise ValueError(
                f"--thought_length {self.thought_length}: --num_thoughts 1 is a plain language model without thoughts; "
                "give --num_thoughts 2 or more, or leave --thought_length out"
            )


@dataclass
class ModelSettings(MixtureSettings):
    """The shape of a model that is trained from scratch."""

    hidden_size: int = setting(768, "width of the model", group="model", low=2, high=2**20)
    num_layers: int = setting(12, "number of layers", group="model", low=1)
    num_heads: int | None = setting(
        None, "attention heads; default: heads of width 64, or 32 if hidden_size < 128", group="model", low=1
    )
    dropout: float = setting(0.0, "dropout of attention weights, in the M-step", group="training", low=0, high=0.9)

    def validate(self) -> None:
        super().validate()
        if self.hidden_size % self.heads():
            raise ValueError(
                f"--hidden_size {self.hidden_size}: not divisible by --num_heads {self.heads()}; change one of them"
            )
        if self.hidden_size // self.heads() % 2:
            raise ValueError(
                f"--hidden_size {self.hidden_size}: {self.heads()} heads of {self.hidden_size // self.heads()} "
                "have an odd size, rotary positions need an even one; change --hidden_size or --num_heads"
            )

    def heads(self) -> int:
        """Attention heads: --num_heads, else as many as are at least 64 wide (32 if hidden_size < 128)."""
        if self.num_heads is not None:
            return self.num_heads
        target = 64 if self.hidden_size >= 128 else 32
        fitting = [
            h
            for h in range(1, self.hidden_size + 1)
            if self.hidden_size % h == 0 and self.hidden_size // h >= min(target, self.hidden_size)
        ]
        return max(fitting)


QUANTISED = ("none", "4bit", "8bit")


@dataclass
class AdapterSettings(MixtureSettings):
    """A pretrained base and its adapters."""

    base_model: str | None = setting(
        None, "the causal language model to adapt: a directory or a hub id; it is not changed", group="model"
    )
    lora_rank: int = setting(16, "rank of the adapters", group="model", low=1)
    lora_alpha: float = setting(
        32, "scale of the adapters; their output is multiplied by alpha / rank", group="model", above=0
    )
    lora_dropout: float = setting(
        0.0, "dropout of the adapters' input, in the M-step", group="training", low=0, high=0.9
    )
    lora_targets: str = setting(
        "auto",
        "modules that get adapters; auto: linear layers of attention and MLP; all-linear: all but the output layer; "
        "or names, separated by commas",
        group="model",
    )
    load_in: str = setting(
        "none", "4bit or 8bit: quantise the base's weights by bitsandbytes (GPU), for less memory", group="model"
    )

    def validate(self) -> None:
        super().validate()
        if self.base_model is None:
            raise ValueError("--base_model: missing; give a directory or a hub id, e.g. --base_model Qwen/Qwen3-0.6B")
        if self.load_in not in QUANTISED:
            raise ValueError(f"--load_in {self.load_in}: unknown; there is {', '.join(QUANTISED)}")
        if not all(name.strip() for name in self.lora_targets.split(",")):
            raise ValueError(
                f"--lora_targets {self.lora_targets}: has an empty name; "
                "give auto, all-linear or names like q_proj,v_proj"
            )
