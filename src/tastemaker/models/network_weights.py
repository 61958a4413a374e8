"""What is trained of a diffusers network: adapters or all of it, the reference it is compared with, and its files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tastemaker.models import adapter_files, adapter_loading, lora
from tastemaker.models.per_image import per_image
from tastemaker.models.quantization import quantize
from tastemaker.models.tuning import Tuning
from tastemaker.models.weight_copy import WeightCopy


class NetworkWeights:
    """The weights of a network, which every family of models has in the same way."""

    def __init__(self, network: Any, name: str = "unet") -> None:
        self.network = network
        """A diffusers network, without the wrapper of several processes."""
        self.name = name
        """What its pipeline calls it, and the folder of a network that was trained in full."""
        self.tuning: Tuning | None = None
        """How it is trained; None before `tune`."""
        self.held: WeightCopy | None = None
        """The reference's weights, where they are not those without adapters (training/reference.py)."""

    def tune(self, tuning: Tuning, seed: int = 0) -> None:
        """Makes the network trainable, by adapters (drawn from `seed`, or as in a file) or in full.

        Raises ModelError where the file does not fit.
        """
        adapter_loading.merge(self.network, tuning.frozen)
        quantize(self.network, tuning.base_weights)
        if tuning.start_from is None:
            lora.tune(self.network, tuning, seed)
        else:
            adapter_loading.start(self.network, tuning, seed)
        self.tuning = tuning

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by name."""
        return {name: p for name, p in self.network.named_parameters() if p.requires_grad}

    def per_image(self, images: int) -> AbstractContextManager[dict[str, Tensor]]:
        """Inside it each of the images has its own copy of the trained adapters; gives them, [images,*shape] by name.

        The network is then given rows of these images alone, row i being one of image i modulo `images`. Raises
        ModelError where that cannot be (models/per_image.py).
        """
        return per_image(self.network, images)

    def reference(self) -> AbstractContextManager[None]:
        """Inside it the network has the weights that were held, or else its adapters off.

        Raises ModelError for a fully tuned network that holds none.
        """
        return self.held.swapped_in() if self.held is not None else lora.reference(self.network, self.tuning)

    def load(self, folder: Path) -> None:
        """Loads what `save` wrote: an adapter, or the whole network. Raises a TastemakerError where it does not fit."""
        adapter_loading.apply(self.network, folder)

    @contextmanager
    def loaded(self, folder: Path) -> Iterator[None]:
        """Inside it a network without adapters has the folder's adapter; afterwards it is the same bits as before."""
        before = adapter_loading.weights_under(self.network, folder)
        self.load(folder)
        try:
            yield
        finally:
            lora.remove(self.network)
            for weight, value in before:
                weight.data.copy_(value)

    def save(self, folder: Path) -> None:
        """Writes what was trained: an adapter, or the whole network into the folder `name`, for `from_pretrained`."""
        if self.full:
            self.network.save_pretrained(folder / self.name)
        else:
            adapter_files.save(self.network, folder, () if self.tuning is None else self.tuning.frozen)

    @property
    def full(self) -> bool:
        """Whether the whole network is trained."""
        return self.tuning is not None and self.tuning.mode == "full"
