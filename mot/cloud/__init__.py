"""Exact commands for rented machines. No torch."""
