"""The KV cache while thinking: a prompt's keys and values kept once for all of its texts, with room to grow.

    cache = prompt_cache(model)                       # None: this model cannot share; it makes its own cache
    model(prompt, past_key_values=cache, ...)         # [B, P], as usual
    share_prompt(cache)                               # after this the B prompts are held apart from their texts
    cache.batch_select_indices(rows)                  # B rows become B * K, a prompt's adjacent; no copies
    model(next_R1, past_key_values=cache, ...)        # attends to [prompt, own text], as with K copies

Attention over a prompt and a text is two attentions, joined by the logarithms of their normalisers:

    softmax([a, b]) [v, w] = s softmax(a) v + (1 - s) softmax(b) w,      s = sigmoid(logsumexp a - logsumexp b)

The queries of all K texts of a prompt meet the same keys, so that the keys are read once a step, as one matrix product
instead of K: Hydragen (Juravsky et al. 2024, section 3.1). Shapes: R = B * K rows, H query heads, G key heads, Q new
tokens, D values per head.

A layer whose cache is not transformers' plain one (sliding windows, states) keeps copies, and so does a model whose
attention does not go through transformers' interface. Which one applies is seen in the prefill, layer by layer.
"""

import functools

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ROOM = 64  # tokens by which a cache grows
NAME = "prompt_once"  # of `attend`, among transformers' attention functions


class PreallocatedLayer(DynamicLayer):
    """transformers' layer copies all keys and values for every token; this one has room for ROOM more after a copy."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.keys, self.values, self.buffers = key_states[:, :, :0], value_states[:, :, :0], {}

    @classmethod
    def of(cls, layer: DynamicLayer) -> "PreallocatedLayer":
        """Return a layer with the keys and values of `layer`, which it does not copy."""
        preallocated = cls()
        preallocated.lazy_initialization(layer.keys, layer.values)
        preallocated.keys, preallocated.values = layer.keys, layer.values
        return preallocated

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Append keys and values [R, G, Q, D]. Return all of them; arguments as in transformers."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys, self.values = self._appended("keys", key_states), self._appended("values", value_states)
        return self.keys, self.values

    def _appended(self, name: str, new: Tensor) -> Tensor:
        old, buffer = getattr(self, name), self.buffers.get(name)
        length, end = old.shape[-2], old.shape[-2] + new.shape[-2]
        if length == 0:
            return new.contiguous()  # perhaps only a prompt is ever stored: no room after it yet
        # Row selection and padding replace the tensor, so that it no longer begins in the buffer.
        replaced = buffer is None or buffer.data_ptr() != old.data_ptr() or len(buffer) != len(old)
        if replaced or end > buffer.shape[-2]:
            buffer = self.buffers[name] = old.new_empty(*old.shape[:2], end + ROOM, old.shape[3])
            buffer[:, :, :length] = old
        buffer[:, :, length:end] = new
        return buffer[:, :, :end]


class SharedPromptLayer(PreallocatedLayer):
    """`prompt_keys`, `prompt_values` [B, G, P, D] once, and `keys`, `values` [R, G, T, D] of the texts.

    Before `share_prompt` there is no prompt, and all keys and values are in `keys`, `values`.
    """

    def __init__(self):
        super().__init__()
        self.prompt_keys = self.prompt_values = None
        self.reached = False  # `attend` received what `update` returned, so that it can find the prompt

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Append as `PreallocatedLayer` does. Raises RuntimeError if attention ignored a shared prompt."""
        if self.prompt_keys is not None and not self.reached:
            raise RuntimeError(
                "attention went past the prompt; set the model's attention to `eager`, which keeps copies"
            )
        own, self.reached = super().update(key_states, value_states), False
        # The attention function receives tensors, not the cache. The attribute is set on views, because a layer that
        # holds a tensor that holds the layer would keep the memory until Python's collector runs.
        keys, values = (t.view_as(t) for t in own)
        keys.layer = values.layer = self
        return keys, values

    def share_prompt(self) -> None:
        """Make all keys and values so far the prompt."""
        self.prompt_keys, self.prompt_values = self.keys, self.values
        self.keys, self.values, self.buffers = self.keys[:, :, :0].clone(), self.values[:, :, :0].clone(), {}

    def get_seq_length(self) -> int:
        """P + T."""
        if not self.is_initialized:
            return 0
        return self.keys.shape[-2] + (0 if self.prompt_keys is None else self.prompt_keys.shape[-2])

    def batch_select_indices(self, indices: Tensor) -> None:
        """Select rows; of a shared prompt, equally many of every prompt, in the prompts' order. Raises ValueError."""
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
    """Compute transformers' `sdpa`, and after a shared prompt the same from its two parts.

    `query` [R, H, Q, D]; `key`, `value` [R, G, T, D] of the texts alone; `attention_mask` [R or 1, 1, Q, P + T], true
    where a key is visible, or None. Returns [R, Q, H, D]. transformers fixes the signature.
    """
    layer = getattr(key, "layer", None)
    if layer is not None and layer is getattr(value, "layer", None) and kwargs.get("position_bias") is None:
        layer.reached = key.shape[-1] == value.shape[-1]
    if layer is None or layer.prompt_keys is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    (R, H, Q, D), G, (B, _, P, _) = query.shape, key.shape[1], layer.prompt_keys.shape
    K, prompt_mask, text_mask = R // B, None, None
    if attention_mask is not None:
        visible = attention_mask if attention_mask.dtype != torch.bool else _additive(attention_mask, query.dtype)
        # Every query of a prompt's rows sees the whole prompt; its pads are hidden from all of them alike.
        prompt_mask = visible[:: K if len(visible) == R else 1, :, -1:, :P]
        text_mask = visible[..., P:].repeat(1, 1, H // G, 1)
    # The H / G query heads of a key head are queries like others; for a prompt, those of its K texts are, too.
    text_RGQD = query.reshape(R, G, H // G * Q, D)
    prompt_BGQD = text_RGQD.view(B, K, G, -1, D).transpose(1, 2).reshape(B, G, -1, D)
    of_text, text_lse = attention(text_RGQD, key, value, text_mask, scaling)
    of_prompt, prompt_lse = attention(prompt_BGQD, layer.prompt_keys, layer.prompt_values, prompt_mask, scaling)
    of_prompt = of_prompt.reshape(B, G, K, -1, D).transpose(1, 2).reshape(R, G, -1, D)
    prompt_lse = prompt_lse.reshape(B, G, K, -1).transpose(1, 2).reshape(R, G, -1)
    share = (prompt_lse - text_lse).sigmoid()[..., None].to(of_text.dtype)
    return torch.lerp(of_text, of_prompt, share).view(R, H, Q, D).transpose(1, 2).contiguous(), None


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> tuple[Tensor, Tensor]:
    """Return (softmax(q k' scale + mask) v, logsumexp of the same), on a CPU from torch's fused operator."""
    if q.device.type == "cpu" and fused_available():
        return _fused(q, k, v, mask, scale)
    return by_products(q, k, v, mask, scale)


def by_products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> tuple[Tensor, Tensor]:
    """The same in matrix products, on any device; a score is stored for every query and key."""
    scores = (q @ k.mT).float() * (scale or q.shape[-1] ** -0.5)
    scores = scores if mask is None else scores + mask
    lse = scores.logsumexp(-1)
    return (scores - lse[..., None]).exp().to(v.dtype) @ v, lse


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> tuple[Tensor, Tensor]:
    # torch's public scaled_dot_product_attention calls this operator and drops the logsumexp.
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=mask, scale=scale)


@functools.cache
def fused_available() -> bool:
    """Return whether this torch has the fused operator, with the results of `by_products`; tried on two rows."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, n, 8, generator=g) for n in (3, 5, 5))
    mask = torch.zeros(2, 1, 1, 5)
    mask[1, ..., :2] = -torch.inf
    try:
        fused, plain = _fused(q, k, v, mask, 0.3), by_products(q, k, v, mask, 0.3)
        return all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(fused, plain, strict=True))
    except (AttributeError, RuntimeError, TypeError, NotImplementedError, ValueError):
        return False


def prompt_cache(model: PreTrainedModel) -> Cache | None:
    """Return an empty cache that can share prompts, and set the model's attention to use it. None if that cannot be.

    With any other cache `attend` is transformers' `sdpa`, so the model may keep it.
    """
    if not model.is_backend_compatible() or attention_name(model) not in ("sdpa", NAME):
        return None
    if attention_name(model) != NAME:
        model.set_attn_implementation(NAME)
    cache = DynamicCache(config=model.config)
    cache.layers = [SharedPromptLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def attention_name(model: PreTrainedModel) -> str | None:
    """Return the name of the model's attention function, or None if this transformers does not tell: then copies."""
    # transformers has a public way to set it and none to read it.
    return getattr(model.config, "_attn_implementation", None)


def share_prompt(cache: Cache) -> None:
    """Declare what `cache` holds the prompts, kept once; layers that cannot share copy them when rows are selected."""
    for layer in cache.layers:
        if type(layer) is SharedPromptLayer and layer.reached:
            layer.share_prompt()


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


# What a serving engine does with its cache when rows join and leave. All of these change `cache` in place. -----------


def preallocate(cache: Cache) -> None:
    """Give every plain layer room to grow, so that a new token does not copy the whole cache."""
    cache.layers = [PreallocatedLayer.of(layer) if type(layer) is DynamicLayer else layer for layer in cache.layers]


def can_pad(cache: Cache) -> bool:
    """True if every layer is a preallocated one. Sliding windows and recurrent states have no left side to pad."""
    return all(type(layer) is PreallocatedLayer for layer in cache.layers)


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
