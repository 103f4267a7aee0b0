"""Faster linear maps for a model that only thinks, on a CPU: their weights in the layout that oneDNN's products read.

    pack(model)      # in place; the model can be neither trained nor saved after it

torch's float32 products are the BLAS library's, which is slow for few rows, and decoding 1 to 8 texts has few rows.
oneDNN reads weights in blocks. torch's compiler uses the same operators for frozen models. They are not public, so that
they are tried once against the plain product; if they are missing or differ, the model stays unchanged. Measured in
docs/results/speed.md.
"""

from functools import cache

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

ROWS = 8  # oneDNN chooses its blocks for this number of rows; any other is correct as well
SMALLEST = 2**17  # weights of a map: below this, the call of oneDNN costs more than it saves


class MkldnnLinear(nn.Module):
    """y = x W' + b of a linear map, with its weights in oneDNN's blocks."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.blocks = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)

    @property
    def weight(self) -> Tensor:
        """[out, in], computed anew, for code that reads the weights of a map instead of calling it."""
        return self.blocks.to_dense()

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():  # the operator has no derivative and raises no error
            raise RuntimeError("a packed model only thinks; to train it, open it with AutoModelForCausalLM")
        # In two dimensions: for a single row in three dimensions oneDNN reorders the weights in every call.
        rows = x.reshape(-1, self.in_features)
        y = torch.ops.mkldnn._linear_pointwise(rows, self.blocks, self.bias, "none", [], "")
        return y.view(*x.shape[:-1], self.out_features)


@cache
def available() -> bool:
    """Return whether this torch has oneDNN's operators, with the results of `nn.Linear`; tried on two rows."""
    if not torch.backends.mkldnn.is_available():
        return False
    g = torch.Generator().manual_seed(0)
    linear = nn.Linear(96, 64, device="meta").to_empty(device="cpu")  # draws nothing from the global generator
    x = torch.randn(2, 96, generator=g)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g))
        try:
            packed = MkldnnLinear(linear)
            return torch.allclose(packed(x), linear(x), rtol=1e-4, atol=1e-4) and torch.equal(
                packed.weight, linear.weight
            )
        except (AttributeError, RuntimeError, TypeError, NotImplementedError):
            return False


def pack(model: PreTrainedModel) -> None:
    """Pack large float32 maps of a model on a CPU, where oneDNN is `available`. Only maps that are exactly nn.Linear.

    Not for a model with adapters: they read the weights of the wrapped maps in every step.
    """
    if model.device.type != "cpu" or model.dtype != torch.float32 or not available():
        return
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if type(module) is nn.Linear and module.weight.numel() >= SMALLEST:
                setattr(parent, name, MkldnnLinear(module))
    model.requires_grad_(False)
