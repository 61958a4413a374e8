"""Fine-tune text-to-image diffusion models to a reward or to human taste."""

__version__ = "0.1.0"
