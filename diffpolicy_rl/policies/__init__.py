"""Generative policies: noise processes, samplers with likelihoods, normalisation."""
