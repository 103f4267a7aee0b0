"""A text ends where the model's context ends; a prompt that leaves no room is refused with the numbers."""

import pytest

from mot.inference.settings import SamplingParams
from mot.inference.think import MixtureOfThoughts


@pytest.fixture(scope="module")
def gpt2(made) -> MixtureOfThoughts:
    """A merged GPT-2 with 128 learned positions: a 129th is an index error."""
    return MixtureOfThoughts.from_pretrained(str(made("gpt2")[2]))


def prompt_of(mixture: MixtureOfThoughts, tokens: int) -> list[int]:
    ids = mixture.tokenizer("the quick brown fox " * 80, add_special_tokens=False)["input_ids"]
    return ids[:tokens]


def unending(mixture: MixtureOfThoughts, tokens: int, most: int) -> int:
    """The longest of the texts behind a prompt of `tokens` tokens."""
    found = mixture.think(prompt_of(mixture, tokens), max_new_tokens=most, temperature=5.0)
    return max(len(t.token_ids) for t in found)


@pytest.mark.parametrize("tokens", [80, 120, 126, 127])
def test_a_text_ends_at_the_last_position(tokens, gpt2):
    assert unending(gpt2, tokens, 60) <= min(60, 128 - tokens)
    assert gpt2.room(tokens) == 128 - tokens


@pytest.mark.parametrize("tokens", [128, 129, 200])
def test_a_prompt_without_room_is_refused_with_the_numbers(tokens, gpt2):
    with pytest.raises(ValueError, match=rf"prompt: has {tokens} tokens, with its thought {tokens + 1}, and .* 128"):
        gpt2.think(prompt_of(gpt2, tokens))
    with pytest.raises(ValueError, match="and the model reads 128"):
        gpt2.route(prompt_of(gpt2, tokens))


def test_a_long_prompt_does_not_shorten_the_texts_of_others(gpt2):
    short, long = prompt_of(gpt2, 5), prompt_of(gpt2, 120)
    params = SamplingParams(max_new_tokens=30, temperature=5.0)
    together = gpt2.think_batch([short, long], params)
    assert together[0] == gpt2.think_batch([short], params)[0]


def test_our_own_model_stops_where_it_was_trained_to(text_run):
    mixture = MixtureOfThoughts.from_pretrained(str(text_run))
    positions = mixture.model.config.max_position_embeddings
    with pytest.raises(ValueError, match=f"and the model reads {positions:,}"):
        mixture.think([5] * positions)
    found = mixture.think([5] * (positions - 3), max_new_tokens=30)
    assert max(len(t.token_ids) for t in found) <= 3
