"""An OpenAI-compatible API and a playground."""
