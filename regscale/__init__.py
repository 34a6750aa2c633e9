"""Train diffusion transformers by Representation Entanglement for Generation (arXiv 2507.01467)."""

__version__ = "0.1.0"
