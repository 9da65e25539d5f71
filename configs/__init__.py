"""Hydra's YAML files: one folder per group, each file holding only what differs from the defaults in the code."""
