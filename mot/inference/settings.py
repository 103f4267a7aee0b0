"""The settings of thinking and exporting. No torch here."""

from dataclasses import dataclass

from mot.runtime.flags import check_ranges, setting

SMALLEST_TEMPERATURE = 1e-5  # below it a text is greedy: logits divided by such a number may overflow


@dataclass(frozen=True)
class SamplingParams:
    """How K texts of one prompt are drawn: which thoughts, and how inside each of them. For Python and for flags."""

    num_thoughts: int | None = setting(
        None, "K; default: every thought of the model", group="thinking", low=1, high=1024
    )
    max_new_tokens: int = setting(120, "longest continuation", "tokens", "thinking", low=1)
    temperature: float = setting(
        0.7, "of the tokens inside each thought; 0, or below 1e-5, is greedy", group="thinking", low=0
    )
    top_p: float = setting(1.0, "nucleus sampling inside each thought", group="thinking", above=0, high=1)
    top_k: int = setting(0, "only the k most probable tokens inside each thought; 0: all", "tokens", "thinking", low=0)
    min_p: float = setting(
        0.0,
        "least probability of a token, relative to the most probable token; 0: off",
        group="thinking",
        low=0,
        high=1,
    )
    creativity: float = setting(
        1.0,
        "how K of more thoughts are chosen: 0 takes the most probable, 1 samples by the router, large is uniform",
        group="thinking",
        low=0,
        endless=True,
    )
    seed: int = setting(0, "the same seed gives the same texts", group="thinking", low=0)

    @property
    def greedy(self) -> bool:
        """Does every token have to be the most probable one?"""
        return self.temperature < SMALLEST_TEMPERATURE

    def check(self, different_thoughts: int) -> None:
        """Raise ValueError if a value is out of range, or K asks a model of W thoughts for greedy copies."""
        check_ranges(self)
        if (self.num_thoughts or 1) > different_thoughts and self.greedy:
            raise ValueError(
                f"--num_thoughts {self.num_thoughts}: the model has {different_thoughts} "
                f"and greedy repeats are copies; give at most {different_thoughts}, or temperature > 0"
            )


@dataclass(frozen=True)
class ThinkSettings(SamplingParams):
    """All settings of `mot think`."""

    model: str | None = setting(None, "a directory that train_mot.py wrote", group="thinking")
    prompt: str | None = setting(None, "the text to continue", group="thinking")
    chat: bool = setting(
        False, "the prompt is a user's turn; it is written in the model's chat template", group="thinking"
    )
    json: bool = setting(False, "print one JSON object per thought instead of columns", group="thinking")

    def validate(self) -> None:
        """Raise ValueError with one line that names the flag, the value and the remedy."""
        check_ranges(self)
        for name in ("model", "prompt"):
            if getattr(self, name) is None:
                raise ValueError(f"--{name}: missing; e.g. mot think --model outputs/run --prompt 'ROMEO:'")


GGUF_TYPES = ("f32", "f16", "bf16", "q8_0", "auto")


@dataclass
class ExportSettings:
    """All settings of `mot export`."""

    model: str | None = setting(None, "a directory that train_lora_mot.py or train_mot.py wrote", group="what")
    merge: bool = setting(
        False, "write a complete model: the base with the adapters merged into its weights", group="what"
    )
    gguf: bool = setting(False, "print the command that converts a complete model with llama.cpp", group="what")
    outtype: str = setting("f16", "with --gguf: f32, f16, bf16, q8_0 or auto", group="what")
    output_dir: str | None = setting(
        None, "with --merge: a new directory; with --gguf: the directory of the file, default the model's"
    )

    def validate(self) -> None:
        check_ranges(self)
        if self.model is None:
            raise ValueError(
                "--model: missing; e.g. mot export --model outputs/adapter --merge --output_dir outputs/merged"
            )
        if self.merge == self.gguf:
            raise ValueError(
                f"--merge or --gguf: {'both are' if self.merge else 'neither is'} given; "
                "give one of them, --merge first"
            )
        if self.merge and self.output_dir is None:
            raise ValueError("--output_dir: missing; --merge writes a complete model there")
        if self.outtype not in GGUF_TYPES:
            raise ValueError(f"--outtype {self.outtype}: unknown; there is {', '.join(GGUF_TYPES)}")
