"""Small genuine language models with random weights, built on the spot: a DeBERTa, and a LLaVA that takes images."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPVisionConfig,
    DebertaConfig,
    DebertaModel,
    DebertaTokenizer,
    GPT2Tokenizer,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tastemaker.models.library_logging import quiet

BYTES = sorted(ByteLevel.alphabet())
CHAT = (
    "{% for message in messages %}USER: {% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


def deberta(path: Path, longest: int | None = 128) -> Path:
    """A DeBERTa of three layers whose tokens are bytes; `longest` None is a tokenizer that knows no limit."""
    torch.manual_seed(0)
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *BYTES]
    limit = {} if longest is None else {"model_max_length": longest}
    tokenizer = DebertaTokenizer(vocab={name: place for place, name in enumerate(names)}, merges=[], **limit)
    network = DebertaModel(
        DebertaConfig(
            vocab_size=len(names), hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
            max_position_embeddings=128, type_vocab_size=0, relative_attention=True, position_biased_input=False,
            pos_att_type=["c2p", "p2c"], pad_token_id=0, initializer_range=0.3,
        )
    )  # fmt: skip
    with quiet():
        network.save_pretrained(path)
        tokenizer.save_pretrained(path)
    return path


def llava(path: Path, template: str | None = CHAT) -> Path:
    """A LLaVA of two layers, whose tokens are bytes, and an image four of them."""
    torch.manual_seed(1)
    names = ["<pad>", "<s>", "</s>", "<image>", *BYTES]
    tokenizer = GPT2Tokenizer(
        vocab={name: place for place, name in enumerate(names)}, merges=[], bos_token="<s>", eos_token="</s>",
        pad_token="<pad>", unk_token="<pad>", extra_special_tokens={"image_token": "<image>"}, model_max_length=256,
    )  # fmt: skip
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = LlavaProcessor(
        image_processor=images, tokenizer=tokenizer, patch_size=8, vision_feature_select_strategy="default",
        chat_template=template, num_additional_image_tokens=1,
    )  # fmt: skip
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    network = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(image_size=16, patch_size=8, initializer_factor=20.0, **sizes),
            text_config=LlamaConfig(
                vocab_size=len(names), max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=0,
                initializer_range=0.4, **sizes,
            ),
            image_token_id=3, image_seq_length=4, vision_feature_layer=-1,
        )
    )  # fmt: skip
    with torch.no_grad():
        network.lm_head.weight[:4] = 0  # it says bytes, and no images
    with quiet():
        network.save_pretrained(path)
        processor.save_pretrained(path)
    return path
