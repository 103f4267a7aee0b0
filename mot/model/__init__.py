"""Build, load and score models with thoughts."""
