"""Demonstrations: file formats, what can be had by name, and the one reader that training draws from."""
