"""A vision-language model in the process: a small genuine LLaVA against a greedy loop of its own."""

from __future__ import annotations

import base64

import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer, LlavaForConditionalGeneration

import tiny_language
from speaking import image
from tastemaker.errors import RewardError
from tastemaker.rewards.check import check_reward, images
from tastemaker.rewards.jpeg import jpeg_files
from tastemaker.rewards.registry import load_reward
from tastemaker.rewards.vlm.answers import Query
from tastemaker.rewards.vlm.local import LocalModel
from tastemaker.rewards.vlm.settings import Vlm

X = images(4, 24)
TOKENS = 5


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vlm")
    return str(tiny_language.llava(folder / "llava")), str(tiny_language.deberta(folder / "deberta"))


def by_hand(path, file, question):
    """Greedy, the whole text through the network for each token: ids, and the logarithms of the chances."""
    tokenizer, network = AutoTokenizer.from_pretrained(path), LlavaForConditionalGeneration.from_pretrained(path).eval()
    # 16 pixels a side, in patches of 8: four tokens.
    text = f"USER: {'<image>' * 4}\n{question} ASSISTANT:"
    images = AutoProcessor.from_pretrained(path, backend="pil").image_processor
    shown = image("data:image/jpeg;base64," + base64.b64encode(file).decode())
    pixels = images((shown[0] * 255).round().to(torch.uint8), return_tensors="pt").pixel_values
    ids, found, chances = tokenizer(text, return_tensors="pt").input_ids, [], []
    for _ in range(TOKENS):
        with torch.no_grad():
            logits = network(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels).logits[0, -1]
        found.append(int(logits.argmax()))
        chances.append(logits.log_softmax(0))
        ids = torch.cat([ids, torch.tensor([found[-1:]])], dim=1)
    return tokenizer.decode(found, skip_special_tokens=True), found, chances


def test_answers_are_greedy_and_their_chances_the_networks(models):
    ask = LocalModel("vlm", models[0], Vlm(tokens=TOKENS), logprobs=True)
    files, questions = jpeg_files(X, 80), ["what?", "a longer question", "what?", "which colour is it?"]
    answers = ask([Query(*pair) for pair in zip(files, questions, strict=True)], lambda answer: answer)
    assert len({answer.text for answer in answers}) > 1
    for file, question, answer in zip(files, questions, answers, strict=True):
        text, ids, chances = by_hand(models[0], file, question)
        assert answer.text == text
        assert len(answer.tokens) == TOKENS
        for found, token, logits in zip(answer.tokens, ids, chances, strict=True):
            best = logits.topk(20)
            assert found.text == found.logprobs[0][0]
            assert [chance for _, chance in found.logprobs] == pytest.approx(best.values.tolist(), abs=1e-4)
            assert int(best.indices[0]) == token
    # Images at once are padded on the left, which changes nothing here.
    assert [answer.text for answer in answers] == LocalModel("vlm", models[0], Vlm(tokens=TOKENS, batch=3))(
        [Query(*pair) for pair in zip(files, questions, strict=True)], lambda answer: answer.text
    )


def test_bertscore_of_a_model_in_the_process_keeps_the_contract(models):
    settings = Vlm(tokens=TOKENS, text_model=models[1], text_layer=2)
    reward = load_reward(f"vlm-bertscore:{models[0]}", vlm=settings)
    findings = check_reward(reward, ["a red star", "two fish", "a tree"], size=24)
    assert [finding.state for finding in findings].count("failed") == 0, findings
    assert len(findings) == 7


def test_an_answer_that_is_no_number_is_an_error(models):
    reward = load_reward(f"vlm-yes-no:{models[0]}", vlm=Vlm(tokens=TOKENS))
    with pytest.raises(RewardError, match=r"vlm-yes-no.* gave no answer: expected an answer that begins with"):
        reward(X, ["a red star"] * 4)


def test_models_that_cannot_be_used(models, tmp_path):
    with pytest.raises(RewardError, match=r"cannot load the vision-language model .*give MODEL@http"):
        load_reward(f"vlm-rating:{tmp_path}/none")
    with pytest.raises(RewardError, match="cannot load the vision-language model"):
        load_reward(f"vlm-rating:{models[1]}")
    mute = tiny_language.llava(tmp_path / "mute", template=None)
    with pytest.raises(RewardError, match="it has no chat template"):
        load_reward(f"vlm-rating:{mute}")
    with pytest.raises(RewardError, match=r"give `vlm-rating:MODEL@URL`"):
        load_reward("vlm-rating")
