"""The KV cache while thinking: a prompt's keys and values kept once for all of its texts, and room to grow.

    cache = prompt_cache(model)                       # None: this model's attention cannot; it makes a cache of its own
    model(prompt, past_key_values=cache, ...)         # [B, P], as ever
    keep_once(cache)                                  # from here on the B prompts are held apart from their texts
    cache.batch_select_indices(rows)                  # B rows become B * K, those of a prompt side by side; no prompt is copied
    model(next_R1, past_key_values=cache, ...)        # attends to [prompt, own text], as with K copies

Attention over a prompt and a text is two attentions, joined by the logarithms of their normalisers:

    softmax([a, b]) [v, w] = s softmax(a) v + (1 - s) softmax(b) w,      s = sigmoid(logsumexp a - logsumexp b)

All K texts of a prompt put their queries to the same keys, so that these are read once a step, as one matrix product, not K
times: Hydragen (Juravsky et al. 2024, section 3.1). Shapes: R = B * K rows, H query heads, G key heads, Q new tokens, D per head.

Layers whose cache is not transformers' plain one (sliding windows, states), and models whose attention does not go through
transformers' interface, keep copies: asked of the model, then seen in the prefill, layer by layer.
"""

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ROOM = 64  # tokens by which a cache grows
NAME = "prompt_once"  # of `attend`, among transformers' attention functions


class Roomy(DynamicLayer):
    """transformers' own copies all keys and values for every token; this one leaves room for ROOM more when it does."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.keys, self.values, self.buffers = key_states[:, :, :0], value_states[:, :, :0], {}

    @classmethod
    def of(cls, layer: DynamicLayer) -> "Roomy":
        roomy = cls()
        roomy.lazy_initialization(layer.keys, layer.values)
        roomy.keys, roomy.values = layer.keys, layer.values
        return roomy

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys, self.values = self._grown("keys", key_states), self._grown("values", value_states)
        return self.keys, self.values

    def _grown(self, name: str, new: Tensor) -> Tensor:
        old, buffer = getattr(self, name), self.buffers.get(name)
        length, end = old.shape[-2], old.shape[-2] + new.shape[-2]
        if length == 0:
            return new.contiguous()  # a prompt may be all that there is: no room behind it yet
        # Whoever picks rows or pads replaces the tensor: then it is not our buffer's beginning any more.
        if buffer is None or buffer.data_ptr() != old.data_ptr() or len(buffer) != len(old) or end > buffer.shape[-2]:
            buffer = self.buffers[name] = old.new_empty(*old.shape[:2], end + ROOM, old.shape[3])
            buffer[:, :, :length] = old
        buffer[:, :, length:end] = new
        return buffer[:, :, :end]


class PromptOnce(Roomy):
    """`prompt_keys`, `prompt_values` [B, G, P, D] once, `keys`, `values` [R, G, T, D] of the texts. Before `keep_once`: no prompt."""

    def __init__(self):
        super().__init__()
        self.prompt_keys = self.prompt_values = None
        self.reached = False  # `attend` was given what `update` returned, so that it can find the prompt

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if self.prompt_keys is not None and not self.reached:
            raise RuntimeError(
                "attention went past the prompt; set the model's attention to `eager`, which keeps copies"
            )
        own, self.reached = super().update(key_states, value_states), False
        # The attention function is handed tensors, not the cache. A view, lest the layer hold what holds the layer: such a
        # ring would keep the memory until Python's collector comes by.
        keys, values = (t.view_as(t) for t in own)
        keys.layer = values.layer = self
        return keys, values

    def keep_once(self) -> None:
        self.prompt_keys, self.prompt_values = self.keys, self.values
        self.keys, self.values, self.buffers = self.keys[:, :, :0].clone(), self.values[:, :, :0].clone(), {}

    def get_seq_length(self) -> int:
        """P + T."""
        if not self.is_initialized:
            return 0
        return self.keys.shape[-2] + (0 if self.prompt_keys is None else self.prompt_keys.shape[-2])

    def batch_select_indices(self, indices: Tensor) -> None:
        """Pick rows; once a prompt is kept, equally many of every prompt, in the prompts' order. ValueError otherwise."""
        if self.prompt_keys is not None:
            B, R = len(self.prompt_keys), len(self.keys)
            each = torch.arange(B, device=indices.device).repeat_interleave(len(indices) // B)
            if not torch.equal(indices // (R // B), each):
                raise ValueError("a prompt that is kept once needs equally many rows of every prompt, side by side")
        super().batch_select_indices(indices)


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """transformers' `sdpa`, and behind a prompt that is kept once the same from the two parts.

    `query` [R, H, Q, D]; `key`, `value` [R, G, T, D] of the texts alone; `attention_mask` [R or 1, 1, Q, P + T], true where seen,
    or None. Returns [R, Q, H, D].
    """
    layer = getattr(key, "layer", None)
    if layer is not None and layer is getattr(value, "layer", None) and kwargs.get("position_bias") is None:
        layer.reached = key.shape[-1] == value.shape[-1]
    if layer is None or layer.prompt_keys is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    (R, H, Q, D), G, (B, _, P, _) = query.shape, key.shape[1], layer.prompt_keys.shape
    K, of_prompt, of_text = R // B, None, None
    if attention_mask is not None:
        seen = attention_mask if attention_mask.dtype != torch.bool else _additive(attention_mask, query.dtype)
        # Every query of a prompt's rows sees all of the prompt; only its pads are hidden, from all alike.
        of_prompt, of_text = seen[:: K if len(seen) == R else 1, :, -1:, :P], seen[..., P:].repeat(1, 1, H // G, 1)
    # The H / G query heads of a key head are queries like others; to a prompt, those of its K texts are, too.
    text_RGQD = query.reshape(R, G, H // G * Q, D)
    prompt_BGQD = text_RGQD.view(B, K, G, -1, D).transpose(1, 2).reshape(B, G, -1, D)
    said, said_lse = _attention(text_RGQD, key, value, of_text, scaling)
    read, read_lse = _attention(prompt_BGQD, layer.prompt_keys, layer.prompt_values, of_prompt, scaling)
    read = read.reshape(B, G, K, -1, D).transpose(1, 2).reshape(R, G, -1, D)
    read_lse = read_lse.reshape(B, G, K, -1).transpose(1, 2).reshape(R, G, -1)
    share = (read_lse - said_lse).sigmoid()[..., None].to(said.dtype)
    return torch.lerp(said, read, share).view(R, H, Q, D).transpose(1, 2).contiguous(), None


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> tuple[Tensor, Tensor]:
    """(softmax(q k' scale + mask) v, logsumexp of the same). What is behind torch's public function tells the second, too."""
    if q.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=mask, scale=scale)
    return by_products(q, k, v, mask, scale)


def by_products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> tuple[Tensor, Tensor]:
    """The same in matrix products, on any device; a score is stored for every query and key."""
    scores = (q @ k.mT).float() * (scale or q.shape[-1] ** -0.5)
    scores = scores if mask is None else scores + mask
    lse = scores.logsumexp(-1)
    return (scores - lse[..., None]).exp().to(v.dtype) @ v, lse


def prompt_cache(model: PreTrainedModel) -> Cache | None:
    """An empty cache that can keep prompts once, and the model's attention set to use it. None where it could not.

    `attend` is transformers' `sdpa` for whoever brings another cache, so the model may keep it.
    """
    if not model._supports_attention_backend or model.config._attn_implementation not in ("sdpa", NAME):
        return None
    if model.config._attn_implementation != NAME:
        model.set_attn_implementation(NAME)
    cache = DynamicCache(config=model.config)
    cache.layers = [PromptOnce() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def keep_once(cache: Cache) -> None:
    """From here on what `cache` holds is prompts, kept once; layers that cannot do so will be copied when rows are picked."""
    for layer in cache.layers:
        if type(layer) is PromptOnce and layer.reached:
            layer.keep_once()


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


# A batch whose rows join and leave: what a serving engine does with its cache. All of these change `cache` in place. --------


def preallocate(cache: Cache) -> None:
    """Give every plain layer room to grow, so that a new token does not copy the whole cache."""
    cache.layers = [Roomy.of(layer) if type(layer) is DynamicLayer else layer for layer in cache.layers]


def can_pad(cache: Cache) -> bool:
    """True if every layer is a preallocated one. Sliding windows and recurrent states have no left side to pad."""
    return all(type(layer) is Roomy for layer in cache.layers)


def pad_left(cache: Cache, length: int) -> None:
    """Put zeros before the keys and values of every row, up to `length` tokens. The attention mask must hide them."""
    for layer in cache.layers:
        missing = (0, 0, length - layer.keys.shape[-2], 0)
        layer.keys, layer.values = (torch.nn.functional.pad(t, missing) for t in (layer.keys, layer.values))


def trim_left(cache: Cache, count: int) -> None:
    """Drop the first `count` tokens of every row and free their memory."""
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[:, :, count:].clone(), layer.values[:, :, count:].clone()


def join(cache: Cache, other: Cache) -> None:
    """Append the rows of `other`; the shorter of the two caches is padded left."""
    length = max(cache.get_seq_length(), other.get_seq_length())
    pad_left(cache, length)
    pad_left(other, length)
    for layer, added in zip(cache.layers, other.layers, strict=True):
        layer.keys, layer.values = torch.cat([layer.keys, added.keys]), torch.cat([layer.values, added.values])


def select(cache: Cache, rows: list[int]) -> None:
    """Keep these rows, in this order."""
    cache.batch_select_indices(torch.tensor(rows, device=cache.layers[0].keys.device))
