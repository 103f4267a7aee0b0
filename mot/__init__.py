"""Mixture of Thoughts: one prompt, one prefill, K continuations that are different and good."""

__version__ = "0.1.0"


def __getattr__(name: str):  # lazy: `mot --help` must answer without importing torch
    if name in ("MixtureOfThoughts", "Thought"):
        from mot.inference import think

        return getattr(think, name)
    if name == "SamplingParams":
        from mot.inference.settings import SamplingParams

        return SamplingParams
    raise AttributeError(f"module 'mot' has no attribute {name!r}")
