"""Plain networks: they know shapes, and nothing of noise processes or learning rules."""
