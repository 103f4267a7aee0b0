"""From files to batches that branch."""
