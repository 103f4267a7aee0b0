"""Tiny random mixtures, and the slow obvious version of what a mixture computes.

    mixture = tiny(4)                      # 4 thoughts, each one token
    mixture = tiny(DIGITS, LENGTH)         # 27 thoughts, each a sequence of 3 of 3 thought tokens
    greedy_alone(mixture, "the ", [2], 8)  # one full forward pass per token: no cache, no batch, no padding

Weights are random on purpose: a law holds for every weight, and random weights hide nothing behind training.
"""

import itertools

import torch

from mot.data.datasets import collate_rows
from mot.data.encode import encode_prompts
from mot.inference.think import MixtureOfThoughts
from mot.model.build import build_model
from mot.model.tokenizer import build_tokenizer, thought_ids
from mot.training.settings import TrainSettings

TEXT = "the quick brown fox jumps over the lazy dog. "
PROMPTS = ["the ", "lazy dog. the quick brown", "o", "jumps over"]
PAIRS = [("the quick ", "brown"), ("dog", " jumps over"), ("a lazy", "x")]  # (prompt, completion)

N = 4  # thoughts of the fixture `mixture`, each one token
DIGITS, LENGTH = 3, 3  # N and L of the fixture `sequence_mixture`
W = DIGITS**LENGTH  # its different thoughts
SEQUENCES = torch.tensor(list(itertools.product(range(DIGITS), repeat=LENGTH)))  # [W, L], in the order of their indices


def tiny(num_thoughts: int, thought_length: int = 1) -> MixtureOfThoughts:
    """A mixture of two narrow layers whose vocabulary is the letters of TEXT."""
    shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "seq_length": 64}
    thoughts = {"num_thoughts": num_thoughts, "thought_length": thought_length}
    tokenizer = build_tokenizer([TEXT], 100, num_thoughts)
    model = build_model(TrainSettings(task="forks", **shape, **thoughts), tokenizer).eval()
    with torch.no_grad():  # far from initialisation, where everything is nearly uniform and argmax a matter of luck
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    return MixtureOfThoughts(model, tokenizer, model.config.mot["thought_token_ids"], thought_length)


def untrained(texts: list[str], vocab_size: int, num_thoughts: int, thought_length: int = 1) -> MixtureOfThoughts:
    """A mixture of one layer at its initialisation, whose vocabulary is made from `texts`."""
    tokenizer = build_tokenizer(texts, vocab_size, num_thoughts)
    thoughts = {"num_thoughts": num_thoughts, "thought_length": thought_length}
    model = build_model(TrainSettings(hidden_size=32, num_layers=1, seed=5, **thoughts), tokenizer).eval()
    return MixtureOfThoughts(model, tokenizer, thought_ids(tokenizer, num_thoughts), thought_length)


def ids_of(mixture: MixtureOfThoughts, text: str) -> list[int]:
    return mixture.tokenizer(text, add_special_tokens=False)["input_ids"]


def tokens_of(mixture: MixtureOfThoughts, sequence) -> list[int]:
    """The thought token ids [L] of a sequence of digits."""
    return [mixture.thoughts[k] for k in sequence]


def rows(mixture: MixtureOfThoughts, *pairs: tuple[str, str]) -> dict[str, torch.Tensor]:
    """A batch of (prompt, completion) pairs, prompts padded on the left and completions on the right."""
    return collate_rows(
        [[ids_of(mixture, text) for text in pair] for pair in pairs], pad=mixture.tokenizer.pad_token_id
    )


@torch.no_grad()
def greedy_alone(mixture: MixtureOfThoughts, prompt: str, sequence, length: int) -> list[int]:
    """Up to `length` greedy tokens after prompt and thought, without the token that ends the text."""
    ids = [*encode_prompts(mixture.tokenizer, [prompt])[0], *tokens_of(mixture, sequence)]
    new = []
    while len(new) < length:
        logits = mixture.model(torch.tensor([ids + new]), use_cache=False).logits[0, -1]
        logits[mixture.thoughts] = -torch.inf
        if int(logits.argmax()) in mixture.ends:
            break
        new.append(int(logits.argmax()))
    return new


@torch.no_grad()
def sequence_logp(mixture: MixtureOfThoughts, prompt: str, sequence) -> float:
    """log p(sequence | prompt), nats, one full forward pass per token."""
    ids, total = ids_of(mixture, prompt), 0.0
    for k in sequence:
        total += mixture.model(torch.tensor([ids])).logits[0, -1, mixture.thoughts].log_softmax(-1)[k].item()
        ids = [*ids, mixture.thoughts[k]]
    return total


@torch.no_grad()
def completion_logp(mixture: MixtureOfThoughts, x: list[int], thought: list[int], y: list[int]) -> torch.Tensor:
    """log p(y_t | x, thought, y_<t) [len(y)], nats, in one full forward pass over one row."""
    logp = mixture.model(torch.tensor([[*x, *thought, *y]]), use_cache=False).logits[0].log_softmax(-1)
    first = len(x) + len(thought) - 1
    return torch.stack([logp[first + t, y[t]] for t in range(len(y))])
