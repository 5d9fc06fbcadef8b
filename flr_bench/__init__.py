"""flr-bench: a benchmark of latent reasoning for LLM-based sequential recommendation."""

__version__ = "0.1.0"
