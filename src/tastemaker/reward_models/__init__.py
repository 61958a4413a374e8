"""Training reward models on people's comparisons of images (docs/methods/reward-models.md)."""
