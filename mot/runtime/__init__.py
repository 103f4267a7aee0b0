"""Flags, files, remote paths and signals. No torch."""
