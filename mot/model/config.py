"""What a checkpoint says about its thoughts, typed.

    mixture = MixtureConfig.of(model)             # or of its configuration; a plain model has one thought, no tokens
    mixture.thought_token_ids, mixture.thought_length
    config.mot = mixture.to_dict()                # stored under the key `mot` of config.json

An adapter has no config.json: the same dictionary is its mot.json, and `base` says which base it was made on.
"""

from dataclasses import asdict, dataclass, field


@dataclass
class BaseModel:
    """The base that an adapter was made on, so that another one in its place is recognised.

    `load_in` is none, 4bit or 8bit; `sha256` is `mot.model.adapters.fingerprint` of the base's weights.
    """

    vocab_size: int
    hidden_size: int
    load_in: str
    sha256: str | None


@dataclass
class MixtureConfig:
    """N thoughts, the ids of their tokens, how many tokens make one thought (L), and the base of an adapter."""

    num_thoughts: int = 1
    thought_token_ids: list[int] = field(default_factory=list)
    thought_length: int = 1
    base: BaseModel | None = None

    @classmethod
    def of(cls, model_or_config) -> "MixtureConfig":
        """Read it from a transformers model, a peft model or a configuration."""
        config = getattr(model_or_config, "config", model_or_config)
        return cls.from_dict(getattr(config, "mot", {}))

    @classmethod
    def from_dict(cls, stored: dict) -> "MixtureConfig":
        """Read what `to_dict` wrote. Raises KeyError or TypeError if `base` is there and incomplete."""
        base = stored.get("base")
        return cls(
            num_thoughts=stored.get("num_thoughts", 1),
            thought_token_ids=stored.get("thought_token_ids", []),
            thought_length=stored.get("thought_length", 1),
            base=base and BaseModel(**{name: base[name] for name in BaseModel.__dataclass_fields__}),
        )

    def to_dict(self) -> dict:
        """Return what is stored. A thought of one token and a model without a base do not say so."""
        stored = {"num_thoughts": self.num_thoughts, "thought_token_ids": self.thought_token_ids}
        if self.thought_length > 1:
            stored["thought_length"] = self.thought_length
        if self.base:
            stored["base"] = asdict(self.base)
        return stored
