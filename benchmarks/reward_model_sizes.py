"""What reward models of kinds unet and transformer are made of, for published models on PyTorch's meta device.

    python benchmarks/reward_model_sizes.py

Prints, for each model of `family_configs.py`, the parameters of its network and of the first part that a reward model
keeps, the features of an image, and the parameters of the attention pool (docs/results/reward-models.md).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from family_configs import MODELS, write
from torch import nn

from tastemaker.models import load_meta_model
from tastemaker.models.attention_pool import AttentionPool
from tastemaker.models.flow_transformer import FlowTransformer
from tastemaker.models.transformer_blocks import TransformerEncoder
from tastemaker.models.unet_encoder import UNetEncoder


def count(*modules: nn.Module) -> int:
    """The parameters of all modules together."""
    return sum(weight.numel() for module in modules for weight in module.parameters())


def main() -> None:
    """Prints the table."""
    print("| model | blocks | network, billions | of these kept | text encoders and VAE | features | pool, millions |")
    print("|---|---|---|---|---|---|---|")
    for published in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            model = load_meta_model(str(write(published, Path(folder) / "model")))
        whole, transformer = count(model.network), isinstance(model, FlowTransformer)
        encoder = TransformerEncoder(model, published.name) if transformer else UNetEncoder(model, published.name)
        blocks = str(encoder.blocks) if isinstance(encoder, TransformerEncoder) else "bottleneck"
        text = model.encode([""], 1.0).states["text"].shape[-1]
        pool = AttentionPool(encoder.channels, text, side=encoder.side)
        print(
            f"| {published.name} | {blocks} | {whole / 1e9:.2f} | {count(model.network) / 1e9:.2f} "
            f"| {count(*model.components.values()) / 1e9:.2f} | {encoder.channels} x {encoder.side} x {encoder.side} "
            f"| {count(pool) / 1e6:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
