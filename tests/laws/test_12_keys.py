"""Law 12. A key is scored by the E-step in place of the completion, and does nothing else.

A row whose key is its completion trains bit for bit as a row without a key.
"""

import torch
from trainers import json_row, step_of

from mot.data.datasets import Batches

MORE = {"thought_dropout": 0.3, "diversity_weight": 0.3, "seed": 3}


def test_a_key_that_is_the_completion_changes_no_bit(tmp_path):
    without, (plain,) = step_of(tmp_path / "a", num_thoughts=4, batch_size=32, source="rows", **MORE)
    with_keys, (keyed,) = step_of(tmp_path / "b", num_thoughts=4, batch_size=32, source="same keys", **MORE)
    assert set(keyed) - set(plain) == {"key", "key_mask"}
    assert all(torch.equal(plain[name], keyed[name]) for name in plain if name != "totals")
    assert plain["totals"] == keyed["totals"]
    losses = [trainer.compute_loss(trainer.model, dict(b)) for trainer, b in ((without, plain), (with_keys, keyed))]
    assert torch.equal(*losses)
    assert without.temperature() == with_keys.temperature()
    gradients = []
    for trainer, loss in zip((without, with_keys), losses, strict=True):
        loss.backward()
        gradients.append([p.grad for p in trainer.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_the_e_step_scores_the_key_and_the_m_step_never_sees_it(tmp_path):
    trainer, (b,) = step_of(tmp_path, num_thoughts=4, batch_size=32, source="keys", **MORE)
    ids, encode = trainer.thoughts, lambda text: trainer.data.tokenizer(text, add_special_tokens=False)["input_ids"]
    scores_RN, _ = trainer.score_thoughts([b], torch.ones(32, dtype=torch.bool), torch.arange(4)[:, None])
    for i in range(32):
        x = encode(json_row(i, "keys")["prompt"])
        key = [*encode(json_row(i, "keys")["key"]), trainer.data.tokenizer.eos_token_id]
        for k, thought in enumerate(ids):
            with torch.no_grad():
                logp = trainer.model(torch.tensor([[*x, thought, *key]])).logits[0, len(x) : -1].log_softmax(-1)
            expected = logp.gather(1, torch.tensor(key)[:, None]).mean()
            assert abs(scores_RN[i, k] - expected) < 1e-6
    other = dict(b) | {"key": torch.zeros_like(b["key"])}
    assert torch.equal(trainer.compute_loss(trainer.model, dict(b)), trainer.compute_loss(trainer.model, other))


def test_the_temperature_is_per_token_of_the_key(tmp_path):
    trainer, _ = step_of(tmp_path, num_thoughts=4, batch_size=32, source="keys", step=0, **MORE)
    lengths = [len(trainer.data.train[i][2]) for i in range(len(trainer.data.train))]
    assert abs(trainer.temperature() * sum(lengths) / len(lengths) - trainer.settings.estep_temperature) < 1e-9
    assert sum(lengths) != sum(len(trainer.data.train[i][1]) for i in range(len(lengths)))


def test_the_data_order_does_not_depend_on_keys(tmp_path):
    trainer, _ = step_of(tmp_path, num_thoughts=4, batch_size=32, source="keys", **MORE)
    order = next(iter(Batches(len(trainer.data.train), 32, 3, 1)))
    assert next(iter(trainer.get_train_dataloader()))["key"].tolist() == [
        *trainer.data.collate([trainer.data.train[i] for i in order])["key"].tolist()
    ]
