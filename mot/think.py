"""Think N ways at once: K different continuations of one prompt from one prefill.

    mot = MixtureOfThoughts.from_pretrained("outputs/run")
    for t in mot.think("ROMEO:", num_thoughts=8, max_new_tokens=120, temperature=0.7, creativity=1.0, seed=0):
        print(t.index, t.probability, t.mean_logprob, t.text)
    mot.route("ROMEO:")             # tensor [N]: p(k | prompt)
    mot.nll("ROMEO:", " But soft")  # base, mixture, oracle NLL in nats per token

transformers' `generate` does the decoding. Ours are the thoughts, the one prefill, and randomness that belongs to a
thought: each draws from its own generator, so what a thought says does not depend on what else runs beside it.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mot.data import collate_rows, encode_prompts
from mot.model import load_model, prefill, score
from mot.thoughts import choose_thoughts
from mot.tokenizer import encode


@dataclass(frozen=True)
class Thought:
    """One continuation: its thought's index and router probability, its mean log-probability (nats per token), its text."""

    index: int
    probability: float
    mean_logprob: float
    text: str
    token_ids: tuple[int, ...]


class MixtureOfThoughts:
    """A trained mixture, ready to think. A model without thoughts is a mixture of one."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, thoughts: list[int]):
        self.model, self.tokenizer, self.thoughts = model, tokenizer, thoughts

    @classmethod
    def from_pretrained(cls, path: str) -> "MixtureOfThoughts":
        """Load from a directory. Raises ValueError where there is no model."""
        return cls(*load_model(path))

    @property
    def num_thoughts(self) -> int:
        return len(self.thoughts) or 1

    def think(
        self,
        prompt: str,
        num_thoughts: int | None = None,
        max_new_tokens: int = 120,
        temperature: float = 0.7,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        creativity: float = 1.0,
        seed: int = 0,
    ) -> list[Thought]:
        """K = `num_thoughts` continuations (default: every thought once), the most probable thought first.

        K < N: K different thoughts, picked with `creativity` (0 the most probable, 1 by the router, large any).
        K > N: every thought ceil(K/N) or floor(K/N) times, which needs temperature > 0.
        `temperature` >= 0 (0 is greedy), `top_p`, `top_k`, `min_p` act inside each thought, as in transformers; 0 turns
        top_k and min_p off. Raises ValueError for numbers outside these ranges.
        """
        return self.think_batch(
            [prompt], num_thoughts, max_new_tokens, temperature, top_p, top_k, min_p, creativity, seed
        )[0]

    @torch.no_grad()
    def think_batch(
        self,
        prompts: list[str],
        num_thoughts: int | None = None,
        max_new_tokens: int = 120,
        temperature: float = 0.7,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        creativity: float = 1.0,
        seed: int = 0,
    ) -> list[list[Thought]]:
        """`think` for several prompts in one batch: the same thoughts, texts and probabilities as one by one."""
        N, K = self.num_thoughts, num_thoughts or self.num_thoughts
        for name, value, inside, way_out in (
            ("num_thoughts", K, K >= 1, "give 1 or more"),
            (
                "num_thoughts",
                K,
                K <= N or temperature > 0,
                f"the model has {N} and greedy repeats are copies; give at most {N}, or temperature > 0",
            ),
            ("max_new_tokens", max_new_tokens, max_new_tokens >= 1, "give 1 or more"),
            ("temperature", temperature, 0 <= temperature < float("inf"), "give a finite number, 0 (greedy) or more"),
            ("top_p", top_p, 0 < top_p <= 1, "give more than 0 and at most 1"),
            ("top_k", top_k, top_k >= 0, "give 0 (off) or more"),
            ("min_p", min_p, 0 <= min_p <= 1, "give 0 (off) to 1"),
            ("creativity", creativity, creativity >= 0, "give 0 or more"),
        ):
            if not inside:
                raise ValueError(f"--{name} {value}: {way_out}")

        batch, router_BN, cache = self._prefill(prompts)
        probability_BN = router_BN.softmax(-1)
        chosen_BK, generators = [], []
        for b, prompt in enumerate(prompts):
            chosen = choose_thoughts(router_BN[b], K, creativity, generator_of(seed, prompt, "router")).tolist()
            chosen.sort(key=lambda k: -probability_BN[b, k].item())
            copies = [chosen[:i].count(k) for i, k in enumerate(chosen)]
            generators += [
                generator_of(seed, prompt, f"thought {k} copy {c}") for k, c in zip(chosen, copies, strict=True)
            ]
            chosen_BK.append(chosen)

        cache.batch_repeat_interleave(K)
        prompt_ids, mask = (batch[name].repeat_interleave(K, 0) for name in ("prompt", "prompt_mask"))
        if self.thoughts:
            column = torch.tensor(
                [[self.thoughts[k]] for chosen in chosen_BK for k in chosen], device=prompt_ids.device
            )
            prompt_ids, mask = torch.cat([prompt_ids, column], 1), torch.cat([mask, torch.ones_like(column)], 1)
        else:
            # generate wants a token that the cache lacks; without thoughts that is the prompt's own last one
            cache.crop(-1)
        record = _RecordLogprobs()
        warpers: list[LogitsProcessor] = [record]
        if temperature > 0:
            warpers.append(TemperatureLogitsWarper(float(temperature)))
            if top_k > 0:
                warpers.append(TopKLogitsWarper(top_k))
            if top_p < 1:
                warpers.append(TopPLogitsWarper(top_p))
            if min_p > 0:
                warpers.append(MinPLogitsWarper(min_p))
            warpers.append(Draw(generators))
        config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,  # the draw is ours: argmax after Draw
            suppress_tokens=self.thoughts or None,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id
            if self.tokenizer.pad_token_id is not None
            else self.tokenizer.eos_token_id,
        )
        out = self.model.generate(
            prompt_ids,
            attention_mask=mask,
            past_key_values=cache,
            generation_config=config,
            logits_processor=LogitsProcessorList(warpers),
        )
        new, logp = out[:, prompt_ids.shape[1] :].tolist(), record.finish(out).tolist()
        rows = [self._thought(i, new[i], logp[i], chosen_BK, probability_BN) for i in range(len(new))]
        return [rows[b * K : (b + 1) * K] for b in range(len(prompts))]

    def _thought(
        self, i: int, token_ids: list[int], logp: list[float], chosen_BK: list[list[int]], probability_BN: Tensor
    ) -> Thought:
        b, j = divmod(i, len(chosen_BK[0]))
        k = chosen_BK[b][j]
        end = self.tokenizer.eos_token_id
        length = token_ids.index(end) + 1 if end in token_ids else len(token_ids)
        said = token_ids[: length - (token_ids[length - 1] == end)]
        text = self.tokenizer.decode(said, skip_special_tokens=True)
        return Thought(k, probability_BN[b, k].item(), sum(logp[:length]) / length, text, tuple(said))

    @torch.no_grad()
    def route(self, prompt: str) -> Tensor:
        """p(k | prompt) [N], sums to 1: the next-token softmax at the last prompt position, restricted to thought tokens."""
        return self._prefill([prompt])[1][0].softmax(-1)

    def nll(self, prompt: str, completion: str) -> dict[str, float]:
        """{"base", "mixture", "oracle"}: nats per token of `completion`. Oracle is the best thought chosen afterwards."""
        (ids,) = encode(self.tokenizer, [completion], "completion")
        if not ids:
            raise ValueError("completion: is empty; give the text to score")
        batch = collate_rows([(*encode_prompts(self.tokenizer, [prompt]), ids)], pad=self._pad())
        scores = score(
            self.model, {name: t.to(self.model.device) for name, t in batch.items()}, self.thoughts, self._pad()
        )
        return {name: scores[f"{name}_nll"].item() for name in ("base", "mixture", "oracle")}

    def _pad(self) -> int:
        return self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id

    def _prefill(self, prompts: list[str]):
        """(batch, router logits [B, N], cache). One forward over the prompts, whatever K."""
        batch = collate_rows([(ids, []) for ids in encode_prompts(self.tokenizer, prompts)], pad=self._pad())
        batch = {name: t.to(self.model.device) for name, t in batch.items()}
        cache, router_BN = prefill(self.model, batch["prompt"], batch["prompt_mask"], self.thoughts)
        return batch, router_BN if self.thoughts else torch.zeros(len(prompts), 1), cache


def generator_of(seed: int, prompt: str, use: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}\0{use}\0{prompt}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class Draw(LogitsProcessor):
    """Add Gumbel noise from each row's own generator: the argmax is then a draw from the softmax (Gumbel-max trick)."""

    def __init__(self, generators: list[torch.Generator]):
        self.generators = generators

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        noise = torch.stack([torch.empty(scores.shape[1]).exponential_(generator=g) for g in self.generators])
        return scores - noise.log().to(scores.device)


class _RecordLogprobs(LogitsProcessor):
    """Keep log p of every token that was generated, before temperature and the like: [rows, T], without keeping [rows, T, V]."""

    def __init__(self):
        self.last, self.chosen = None, []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._take(input_ids)
        self.last = scores.log_softmax(-1)
        return scores

    def _take(self, ids: Tensor) -> None:
        if self.last is not None:
            self.chosen.append(self.last.gather(1, ids[:, -1:])[:, 0])

    def finish(self, ids: Tensor) -> Tensor:
        self._take(ids)
        return torch.stack(self.chosen, 1)
