"""EM inside transformers' Trainer, and the life of a run."""
