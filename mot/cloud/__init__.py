"""Exact commands for rented machines. No torch.

To add a cloud, write one file with a docstring, ACTIONS, `Settings` and `plan`, as in gce.py, and name it in CLOUDS.
"""

CLOUDS = ("gce", "vertex")
