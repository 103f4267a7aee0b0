"""The two kinds of run: a model from nothing, and adapters for a base. All that differs between them is here.

    recipe = recipe_of(settings)               # FromScratch or Adapting, with the same attributes and methods
    recipe.require()
    model = recipe.model(data.tokenizer)
    recipe.save(model, directory)

No torch is imported until a method needs it: the model card reads the attributes alone.
"""

from dataclasses import dataclass
from pathlib import Path

from mot.training.settings import AdaptSettings, RunSettings, TrainSettings


@dataclass
class Size:
    """What --dry_run needs to know of a model: parameters, and bytes of those that are not trained."""

    parameters: int
    trained: int
    hidden_size: int
    layers: int
    frozen_bytes: float

    def text(self) -> str:
        """Return a sentence for people."""
        share = f", of which {self.trained:,} are trained ({self.trained / self.parameters:.2%})"
        return f"{self.parameters:,}" + (share if self.trained < self.parameters else "")


class FromScratch:
    """A fresh Llama, all of which is trained."""

    door, library, tags, opens_with = "train_mot.py", "transformers", (), "transformers.AutoModelForCausalLM"
    made, licences = "trained from nothing", ""
    evaluates_first = False
    general_file = hub_base = None

    def __init__(self, settings: TrainSettings):
        self.settings = settings

    def require(self) -> None:
        """Nothing beyond the base installation."""

    def tokenizer(self) -> None:
        """None: the data makes its own."""

    def model(self, tokenizer):
        """Return the model to train."""
        from mot.model.build import build_model

        model = build_model(self.settings, tokenizer)
        _prefer_eager(self.settings, model)
        return model

    def optimizer(self, model, beta2: float):
        """Return the optimizer of --optimizer, None for AdamW."""
        if self.settings.optimizer == "adamw":
            return None
        from mot.training.optimizer import MuonAdamW

        return MuonAdamW(model, self.settings.peak_learning_rate(), self.settings.weight_decay, beta2)

    def facts(self, model) -> dict:
        """Return what a resumed run must share with the checkpoint, beside the settings."""
        return {"num_heads": self.settings.heads()}

    def save(self, model, directory: str, state_dict: dict | None = None) -> None:
        """Write the whole model."""
        model.save_pretrained(directory, state_dict=state_dict)

    def size(self, tokenizer) -> Size:
        """Count without building."""
        from mot.training.costs import parameters

        count = parameters(self.settings, len(tokenizer))
        return Size(count, count, self.settings.hidden_size, self.settings.num_layers, 0)

    def less_memory(self) -> list[str]:
        """Return what makes a run smaller, as flags."""
        s = self.settings
        return [f"a smaller model (--hidden_size {s.hidden_size} --num_layers {s.num_layers} now)"]

    def notes(self, output_dir: str, metrics: dict[str, float]) -> list[str]:
        """Return lines for the end of a run: none."""
        return []

    def shown(self, name: str) -> str:
        """Return a setting as the card's command has it."""
        return str(getattr(self.settings, name))


class Adapting:
    """LoRA adapters and thought vectors for a pretrained base, which is frozen."""

    door, library, tags, opens_with = "train_lora_mot.py", "peft", ("lora",), "peft.AutoPeftModelForCausalLM"
    licences = " and of the base model"
    evaluates_first = True  # what the base can do before it is trained

    def __init__(self, settings: AdaptSettings):
        self.settings, self.general_file = settings, settings.general_file
        local = Path(settings.base_model or "").exists()  # the hub knows no local paths
        self.hub_base = None if local else settings.base_model
        self.base_name = self.hub_base or Path(settings.base_model or "").resolve().name
        self.made = f"adapters (LoRA) and thought vectors for {self.base_name}"

    def require(self) -> None:
        """Raise ValueError if a package, a GPU or the base is missing."""
        from mot.model import adapters

        adapters.require(self.settings, machine=not self.settings.dry_run)

    def tokenizer(self):
        """Return the base's tokenizer with the thought tokens."""
        from mot.model import adapters

        return adapters.base_tokenizer(self.settings)

    def model(self, tokenizer):
        """Return the model to train. Raises ValueError if thoughts cannot branch from the base."""
        import torch

        from mot.model import adapters
        from mot.model.config import MixtureConfig
        from mot.model.score import require_branching

        model = adapters.adapt(self.settings, tokenizer)
        inside = model.get_base_model()
        require_branching(
            inside, MixtureConfig.of(inside).thought_token_ids, f"--base_model {self.settings.base_model}"
        )
        if self.settings.bf16 and inside.dtype == torch.float16 and not torch.accelerator.is_available():
            raise ValueError(
                f"--bf16: --base_model {self.settings.base_model} is stored in float16, which a CPU cannot mix with "
                "bfloat16; leave --bf16 out"
            )
        _prefer_eager(self.settings, inside)
        return model

    def optimizer(self, model, beta2: float) -> None:
        """None: AdamW."""

    def facts(self, model) -> dict:
        """Return what a resumed run must share with the checkpoint, beside the settings: the base's weights."""
        from mot.model.config import MixtureConfig

        return {"base": MixtureConfig.of(model.get_base_model()).base.sha256}

    def save(self, model, directory: str, state_dict: dict | None = None) -> None:
        """Write the adapters alone."""
        from mot.model import adapters

        adapters.save(model, directory, state_dict)

    def size(self, tokenizer) -> Size:
        """Count on the device "meta": shapes without weights."""
        import torch

        from mot.model import adapters

        with torch.device("meta"):
            model = adapters.adapt(self.settings, tokenizer, empty=True)
        count, trained = model.num_parameters(), model.num_parameters(only_trainable=True)
        config = model.get_base_model().config.get_text_config()
        bytes_each = {"4bit": 0.6, "8bit": 1.1}.get(self.settings.load_in, model.dtype.itemsize)
        return Size(count, trained, config.hidden_size, config.num_hidden_layers, bytes_each * (count - trained))

    def less_memory(self) -> list[str]:
        """Return what makes a run smaller, as flags."""
        import torch

        if self.settings.load_in == "none" and torch.cuda.is_available():
            return ["--load_in 4bit", "a smaller --base_model"]
        return ["a smaller --base_model"]

    def notes(self, output_dir: str, metrics: dict[str, float]) -> list[str]:
        """Return what adapting did to the trunk: the base NLL at step 0, where it is the base model's, and now."""
        from mot.training.run_log import METRICS, read_metrics

        lines = read_metrics(Path(output_dir) / METRICS)
        first = next((m for m in lines if m["step"] == 0 and "eval_base_nll" in m), {})
        return [
            f"without a thought, on {text}: {first[name]:.4f} nats per token before, "
            f"{metrics[name]:.4f} after ({metrics[name] - first[name]:+.4f})"
            for name, text in (("eval_base_nll", "held-out data"), ("eval_general_nll", "other text"))
            if name in first and name in metrics
        ]

    def shown(self, name: str) -> str:
        """Return a setting as the card's command has it: of a local base the name, not the path."""
        return self.base_name if name == "base_model" else str(getattr(self.settings, name))


def recipe_of(settings: RunSettings) -> FromScratch | Adapting:
    """Choose the recipe. No other place asks which settings these are."""
    return Adapting(settings) if isinstance(settings, AdaptSettings) else FromScratch(settings)


def _prefer_eager(settings: RunSettings, model) -> None:
    """On a CPU, the backward pass of SDPA in bfloat16 takes as long as the rest of the step together."""
    import torch

    if settings.bf16 and not torch.accelerator.is_available():
        model.set_attn_implementation("eager")
