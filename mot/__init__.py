"""Mixture of Thoughts: one prompt, one prefill, K continuations that are different and good."""

__version__ = "0.1.0"


def __getattr__(name: str):  # torch is loaded by whoever uses it, not by whoever imports us
    if name in ("MixtureOfThoughts", "Thought"):
        from mot.inference import think

        return getattr(think, name)
    raise AttributeError(f"module 'mot' has no attribute {name!r}")
