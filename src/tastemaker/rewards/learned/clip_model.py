"""A CLIP as rewards use it: features of images, with a gradient, and of prompts.

Loaded from the package, a folder, the Hugging Face hub, or a file of open_clip's; torchvision is never needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tastemaker.errors import RewardError
from tastemaker.rewards.learned.open_clip import Heads, clip_from_open_clip
from tastemaker.rewards.learned.preprocess import OPENAI_MEAN, OPENAI_STD, Preprocess, preprocess_of
from tastemaker.rewards.learned.weights import downloaded, missing, read_weights

if TYPE_CHECKING:
    from transformers import CLIPModel

BUNDLED = Path(__file__).parents[2] / "assets/clip"
VOCABULARY = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
"""Source of the tokenizer for weights without one: all CLIPs of OpenAI and LAION have the same."""
_WEIGHTS = (".pt", ".pth", ".bin", ".safetensors")
_OPEN_CLIP = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
_REPOSITORY = re.compile(r"^[\w-][\w.-]*(/[\w-][\w.-]*)?$")
_PROCESSOR = {
    "size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "resample": 3,
    "image_mean": OPENAI_MEAN, "image_std": OPENAI_STD,
}  # fmt: skip
"""The defaults of transformers' CLIP image processor."""


@dataclass(frozen=True)
class Clip:
    """A CLIPModel in evaluation mode, whose parameters do not learn, and what makes its input of images and prompts.

    The model goes to the device of the images that it is given.
    """

    model: CLIPModel
    tokenizer: Any
    preprocess: Preprocess

    def images(self, x: Tensor) -> Tensor:
        """Features [B,D] of length 1 of images [B,3,H,W] in [0,1], with a gradient."""
        nn.Module.to(self.model, x.device)
        pooled = self.model.vision_model(pixel_values=self.preprocess(x.float())).pooler_output
        return F.normalize(self.model.visual_projection(pooled), dim=-1)

    @torch.no_grad()
    def texts(self, prompts: Sequence[str], device: torch.device | str = "cpu") -> Tensor:
        """Features [B,D] of length 1. What is longer than the model's text is cut off at its end."""
        return F.normalize(self.model.text_projection(self.pooled_texts(prompts, device)), dim=-1)

    @torch.no_grad()
    def pooled_texts(self, prompts: Sequence[str], device: torch.device | str = "cpu") -> Tensor:
        """What the text tower makes of prompts before it is projected, [B,C]."""
        nn.Module.to(self.model, device)
        length = min(self.tokenizer.model_max_length, _config(self.model).text_config.max_position_embeddings)
        # All of one length, so that a prompt's neighbours do not change its feature.
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).to(device)
        return self.model.text_model(**tokens).pooler_output

    def cosine(self, x: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosine [B] in [-1,1] of each image's feature and its prompt's, with a gradient in the image."""
        return (self.images(x) * self.texts(prompts, x.device)).sum(dim=-1)


def load_clip(source: str, name: str, file: str | None = None, processor: str = VOCABULARY) -> Clip:
    """The CLIP at `source`: `bundled`, a folder or hub name of a transformers CLIP, or a file of open_clip's names.

    `name` is the reward's, for messages. With `file`, a folder or hub name may also hold a file of that name in
    open_clip's form; `processor` is where tokens and image sizes are from where they do not lie beside the weights.
    Raises RewardError where anything is missing, cannot be downloaded, or is of another kind.
    """
    if source == "bundled":
        if not (BUNDLED / "config.json").is_file():
            raise RewardError(
                f"the reward {name} needs the bundled CLIP, which is missing at {BUNDLED}: install tastemaker again, "
                "or build it with `python scripts/bundled/clip.py train`"
            )
        source = str(BUNDLED)
    path = Path(source).expanduser()
    if path.is_file():
        return _from_file(path, name, processor)
    if path.is_dir():
        return _from_folder(path, name, file, processor)
    if not _REPOSITORY.match(source) or path.suffix in _WEIGHTS:
        raise RewardError(f"the reward {name} has no weights: there is no file or folder {source}")
    if file:
        return _from_file(downloaded(source, file, name), name, processor)
    return _from_transformers(source, name, processor)


def _from_folder(folder: Path, name: str, file: str | None, processor: str) -> Clip:
    if (folder / "config.json").is_file():
        return _from_transformers(str(folder), name, processor)
    names = [file, *_OPEN_CLIP] if file else [*_OPEN_CLIP]
    for candidate in names:
        if (folder / candidate).is_file():
            return _from_file(folder / candidate, name, processor)
    raise RewardError(
        f"the reward {name} finds no CLIP in {folder}: expected config.json of a transformers CLIPModel, or "
        f"{' or '.join(names)}"
    )


def _from_transformers(source: str, name: str, processor: str) -> Clip:
    from transformers import AutoConfig, CLIPModel

    from tastemaker.models.library_logging import quiet

    with quiet():
        try:
            config = AutoConfig.from_pretrained(source)
            if config.model_type != "clip":
                raise RewardError(
                    f"the reward {name} needs a CLIP, but {source} is a model of the type {config.model_type!r}"
                )
            # The same weights in float32 everywhere: half precision would make a reward's steps coarse.
            model = CLIPModel.from_pretrained(source, dtype=torch.float32)
        except (OSError, ValueError, RuntimeError) as error:
            raise missing(name, source, f"hf download {source}", error) from error
    beside = _has(source, "preprocessor_config.json", "processor_config.json")
    preprocess = _preprocess(source if beside else processor, name)
    tokenizer = _tokenizer(source if _has(source, "tokenizer.json", "vocab.json") else processor, name)
    return _fitting(Clip(model.eval().requires_grad_(False), tokenizer, preprocess), source, name)


def _from_file(path: Path, name: str, processor: str) -> Clip:
    here = str(path.parent)
    tokenizer = _tokenizer(here if _has(here, "tokenizer.json", "vocab.json") else processor, name)
    settings = path.parent / "open_clip_config.json"
    config = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    model = clip_from_open_clip(read_weights(path, name), tokenizer.eos_token_id, _heads(config.get("model_cfg", {})))
    side, normal = _config(model).vision_config.image_size, config.get("preprocess_cfg", {})
    preprocess = Preprocess(
        (side, side), side, mean=tuple(normal.get("mean", OPENAI_MEAN)), std=tuple(normal.get("std", OPENAI_STD))
    )
    return _fitting(Clip(model, tokenizer, preprocess), str(path), name)


def _heads(config: dict[str, Any]) -> Heads:
    """The settings of an open_clip_config.json that the weights do not determine."""
    vision, text = config.get("vision_cfg", {}), config.get("text_cfg", {})
    wide = vision.get("head_width")
    return Heads(vision["width"] // wide if wide else None, text.get("heads"), bool(config.get("quick_gelu")))


def _config(model: CLIPModel) -> Any:
    """Its settings, whose parts transformers annotates as what they may be before the model is made."""
    return model.config


def _fitting(clip: Clip, source: str, name: str) -> Clip:
    """The same, once its parts are known to be of one model."""
    config = _config(clip.model)
    tokens, side = config.text_config.vocab_size, config.vision_config.image_size
    if len(clip.tokenizer) > tokens:
        raise RewardError(
            f"the reward {name} has {len(clip.tokenizer)} tokens, but {source} knows {tokens}: put the model's own "
            "tokenizer.json beside its weights"
        )
    if clip.preprocess.size != (side, side):
        return replace(clip, preprocess=replace(clip.preprocess, size=(side, side), shortest=side))
    return clip


def _has(source: str, *files: str) -> bool:
    """Whether one of the files lies in a folder, or in a repository of the hub's, as far as can be known from here."""
    if Path(source).is_dir():
        return any((Path(source) / file).is_file() for file in files)
    from huggingface_hub import file_exists, try_to_load_from_cache

    if any(isinstance(try_to_load_from_cache(source, file), str) for file in files):
        return True
    try:
        return any(file_exists(source, file) for file in files)
    except Exception:  # without a network, what is not in the cache is not there
        return False


def _preprocess(source: str, name: str) -> Preprocess:
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        config, _ = ImageProcessingMixin.get_image_processor_dict(source)
    except (OSError, ValueError) as error:
        raise missing(name, f"{source}/preprocessor_config.json", f"hf download {source}", error) from error
    return preprocess_of(_PROCESSOR | config)


def _tokenizer(source: str, name: str) -> Any:
    from transformers import CLIPTokenizer

    from tastemaker.models.library_logging import quiet

    with quiet():
        try:
            return CLIPTokenizer.from_pretrained(source)
        except (OSError, ValueError, TypeError) as error:
            raise missing(name, f"{source}/tokenizer.json", f"hf download {source} tokenizer.json", error) from error
