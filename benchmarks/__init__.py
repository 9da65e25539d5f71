"""What is claimed about speed and learning, and how to measure it again; runs from a clone, not installed."""
