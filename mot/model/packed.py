"""A model that only thinks, on a CPU: its linear maps as oneDNN's products read them.

    pack(model)      # in place; from here on the model can be neither trained nor saved

torch's float32 products are the BLAS library's, which is slow where rows are few, as in the decoding of one text, or of eight.
oneDNN's read weights that lie in blocks: the operators that torch's compiler uses for frozen models on processors where it trusts
them. Measured in docs/RESULTS.md, "Fast: thinking".
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

ROWS = 8  # for which oneDNN chooses its blocks; any other number of rows may come
SMALLEST = 2**17  # weights of a map: below, calling oneDNN takes longer than it saves


class Packed(nn.Module):
    """y = x W' + b of a linear map whose weights it holds in blocks."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.blocks = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)

    @property
    def weight(self) -> Tensor:
        """[out, in], made anew: for code that asks a map for its weights instead of calling it."""
        return self.blocks.to_dense()

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():  # the operator has no derivative, and would not say so
            raise RuntimeError("a packed model only thinks; to train it, open it with AutoModelForCausalLM")
        # In two dimensions: for a single row in three of them oneDNN reorders the weights each time.
        rows = x.reshape(-1, self.in_features)
        y = torch.ops.mkldnn._linear_pointwise(rows, self.blocks, self.bias, "none", [], "")
        return y.view(*x.shape[:-1], self.out_features)


def pack(model: PreTrainedModel) -> None:
    """Where it helps: large maps in float32, on a CPU, in a torch that has oneDNN. Other maps than nn.Linear stay as they are.

    Not for a model with adapters, which read the weights of the maps they wrap at every step.
    """
    if model.device.type != "cpu" or model.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if type(module) is nn.Linear and module.weight.numel() >= SMALLEST:
                setattr(parent, name, Packed(module))
    model.requires_grad_(False)
