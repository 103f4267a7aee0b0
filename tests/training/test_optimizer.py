"""Muon and AdamW as one optimizer: each parameter belongs to one of them, and a schedule reaches both."""

import torch
from mixtures import tiny

from mot.training.optimizer import MuonAdamW


def made() -> tuple[torch.nn.Module, MuonAdamW]:
    model = tiny(4).model
    return model, MuonAdamW(model, learning_rate=2e-3, weight_decay=0.1, beta2=0.98)


def gradients(model, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=g)


def test_every_parameter_belongs_to_one_of_the_two_and_matrices_of_layers_to_muon():
    model, optimizer = made()
    groups = [[id(p) for group in part.param_groups for p in group["params"]] for part in optimizer.parts]
    names = {id(p): name for name, p in model.named_parameters()}
    assert sorted(groups[0] + groups[1]) == sorted(names)
    muon = {names[i] for i in groups[0]}
    assert muon == {n for n, p in model.named_parameters() if ".layers." in n and p.ndim == 2}
    decayed = {names[id(p)] for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {n for n, p in model.named_parameters() if p.ndim == 2}


def test_a_schedule_reaches_both_and_also_after_a_state_was_loaded():
    model, optimizer = made()
    gradients(model, 0)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    schedule.step()
    before = [p.clone() for p in model.parameters()]
    gradients(model, 1)
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_what_was_saved_goes_on_as_what_was_not():
    (one, first), (two, second) = made(), made()
    for model, optimizer in ((one, first), (two, second)):
        gradients(model, 0)
        optimizer.step()
    fresh = MuonAdamW(two, learning_rate=1.0, weight_decay=0.0, beta2=0.5)
    fresh.load_state_dict(second.state_dict())
    for model, optimizer in ((one, first), (two, fresh)):
        gradients(model, 1)
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))


def test_a_parameter_without_gradient_stays():
    model, optimizer = made()
    gradients(model, 0)
    kept = model.model.layers[0].mlp.up_proj.weight
    kept.grad = None
    before = kept.clone()
    optimizer.step()
    assert torch.equal(kept, before)
