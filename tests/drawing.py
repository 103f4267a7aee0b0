"""Random tensors for property tests: the same for the same seed."""

import torch
from hypothesis import strategies as st

seeds = st.integers(0, 2**31)


def draw(seed: int, *shape: int, scale: float = 1.0) -> torch.Tensor:
    """Normal numbers in double precision, standard deviation `scale`."""
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
