"""The two tiny random mixtures that the laws are checked on: thoughts of one token, and thought sequences."""

import pytest
from mixtures import DIGITS, LENGTH, N, tiny


@pytest.fixture(scope="session")
def mixture():
    """4 thoughts, each one token."""
    return tiny(N)


@pytest.fixture(scope="session")
def sequence_mixture():
    """27 thoughts, each a sequence of 3 of 3 thought tokens."""
    return tiny(DIGITS, LENGTH)
