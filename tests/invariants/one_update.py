"""One round in float64, and the gradients of its first update."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file
from torch import Tensor

from tastemaker.config.schema import Config
from tastemaker.config.yaml_file import load_config
from tastemaker.models import load_model
from tastemaker.runs.checkpoint import State
from tastemaker.training import rounds, setup, single_pass, update
from tastemaker.training.distributed import process_group
from tastemaker.training.evaluations import evaluate_run
from tastemaker.types import Cond, Rows


def double(*arguments: Any) -> Any:
    """The model with its U-Net in float64, where sums in another order agree to more digits than the test asks for."""
    model = load_model(*arguments)
    model.pipeline.unet.double()

    def predict(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return model.network(x.double(), t, encoder_hidden_states=cond["text"].double(), return_dict=False)[0]

    model.predict = predict  # type: ignore[method-assign]
    return model


def first_gradients(config: Config, folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Gradients of the round's first update by parameter name, and the round's record.

    A value network's are among them, as `value.` and their names. The record also has `images`, the places of those
    in the update, of this process.
    """
    with mock.patch.object(setup, "load_model", double):
        session = setup.start(config, folder, State())
    session.display.interactive = False
    if "standardise" in config.reward:
        evaluate_run(session)  # which measures the scale
    # Adapters start with B = 0, where A has no gradient: give B values so that every gradient is tested.
    random = torch.Generator().manual_seed(7)
    for name, parameter in sorted(session.model.weights.trainable().items()):
        if "lora_B" in name:
            parameter.data.copy_(0.02 * torch.randn(parameter.shape, generator=random))
    captured: dict[str, Tensor] = {}
    accumulate = update.accumulate

    images: list[int] = []

    def capture(own: Any, rows: Rows, *arguments: Any) -> float:
        norm = accumulate(own, rows, *arguments)
        if not captured:
            captured.update({name: p.grad.clone() for name, p in session.model.weights.trainable().items()})
            if session.task.value is not None:
                value = session.accelerator.unwrap_model(session.task.value)
                own = {name: p.grad for name, p in value.named_parameters() if p.grad is not None}
                captured.update({f"value.{name}": grad.clone() for name, grad in own.items()})
            images.extend(rows.image.unique().tolist())
        return norm

    take_step = single_pass.take_step

    def capture_step(own: Any) -> None:
        captured.update({name: p.grad.clone() for name, p in session.model.weights.trainable().items()})
        take_step(own)

    with mock.patch.object(update, "accumulate", capture), mock.patch.object(single_pass, "take_step", capture_step):
        record = rounds.one_round(session)
    return captured, record | {"images": images}


def in_a_group(*files: str) -> None:
    """Saves the gradients and the record from the first of several processes, of each `config.yaml out`."""
    with process_group():
        for file, out in zip(files[::2], files[1::2], strict=True):
            gradients, metrics = first_gradients(load_config(Path(file), Config()), Path(out))
            if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
                save_file(gradients, f"{out}.safetensors")
                Path(f"{out}.json").write_text(json.dumps(metrics))
