"""Robots that are driven through a policy server."""
