"""Factorized Latent Reasoning, the method of arXiv 2604.26760 as far as it is published."""
