"""BERTScore's recall: by hand, and against the package bert-score on a small genuine DeBERTa."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

import tiny_language
from tastemaker.errors import RewardError
from tastemaker.rewards.learned.bertscore import LAYERS, load_recall, recall

CANDIDATES = ["a blue star", "It shows a red fish on a plain white background.", "red", "The image contains a tree"]
REFERENCES = [f"The image contains {what}" for what in ("a red star", "a fish", "two big green hearts", "a tree")]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_language.deberta(tmp_path_factory.mktemp("text") / "deberta"))


def test_recall_by_hand():
    # Candidate (1, 0), (0, 2) and padding; reference (3, 4), (0, 1), (-1, 0), whose last token does not count.
    candidate = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]]])
    reference = torch.tensor([[[3.0, 4.0], [0.0, 1.0], [-1.0, 0.0]]])
    seen = torch.tensor([[True, True, False]])
    # Greatest cosines: 4/5 and 1.
    assert recall(candidate, seen, reference, torch.tensor([[1.0, 1.0, 0.0]])).item() == pytest.approx(0.9)
    # With the last one, which no token is like: max(-1, 0) = 0.
    assert recall(candidate, seen, reference, torch.ones(1, 3)).item() == pytest.approx(0.6)
    # Against (1, 0) alone its cosine is -1, and padding does not help.
    alone = torch.tensor([[True, False, False]])
    assert recall(candidate, alone, reference, torch.ones(1, 3)).item() == pytest.approx((0.6 + 0 - 1) / 3)


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_it_is_what_the_package_computes(model, layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bert_score = pytest.importorskip("bert_score")
        # As LLaVA-server's bertscore.py makes it, but for the model.
        scorer = bert_score.BERTScorer(model, num_layers=layer, use_fast_tokenizer=True)
        precision, theirs, _ = scorer.score(CANDIDATES, REFERENCES)
    ours = load_recall(model, layer)(CANDIDATES, REFERENCES)
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert ours[3].item() == pytest.approx(1.0, abs=1e-6)
    assert not torch.allclose(precision, theirs, atol=1e-2)


def test_the_layers_are_the_packages():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        utils = pytest.importorskip("bert_score.utils")
    known = {name: utils.model2layers[name.removeprefix("google-bert/")] for name in LAYERS}
    assert known == LAYERS
    assert LAYERS["microsoft/deberta-xlarge-mnli"] == 40


def test_a_tokenizer_without_a_longest_length(tmp_path):
    """DDPO's model has one, at which bert-score fails."""
    path = str(tiny_language.deberta(tmp_path / "deberta", longest=None))
    scores = load_recall(path, 2)(["a fish " * 100, "a fish"], ["a fish", "a fish " * 100])
    assert all(0 < score <= 1 + 1e-6 for score in scores.tolist())


def test_what_cannot_be_loaded(model, tmp_path):
    with pytest.raises(RewardError, match=r"give vlm.text_layer, or one of .*deberta-xlarge-mnli"):
        load_recall(model)
    with pytest.raises(RewardError, match=r"vlm.text_layer is 4, but .* has 3 layers"):
        load_recall(model, 4)
    with pytest.raises(RewardError, match="BERTScore cannot load its model"):
        load_recall(str(tmp_path / "none"), 2)


def test_special_tokens_of_the_reference_do_not_count(model):
    """The mean over the words alone, from the network's own hidden states."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, network = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).eval()
    states = []
    for text in ("a fish", "fish"):
        with torch.no_grad():
            out = network(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
        states.append(out.hidden_states[2][0])
    best = [
        max(torch.cosine_similarity(theirs, ours, dim=0).item() for ours in states[0]) for theirs in states[1][1:-1]
    ]
    assert len(best) == 4
    assert load_recall(model, 2)(["a fish"], ["fish"]).item() == pytest.approx(math.fsum(best) / 4, abs=1e-6)
