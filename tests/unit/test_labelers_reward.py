"""People as a reward: what a run asks of a labelling app, and what it makes of its answers and failures."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from unittest import mock

import pytest
import torch

from label_app import KEY, PROJECT, LabelApp, send
from scoring import total
from tastemaker.cli.main import main
from tastemaker.config.schema import Config
from tastemaker.errors import ConfigError, RewardError, RewardUnavailable
from tastemaker.evaluation.scoring import background_scorer
from tastemaker.rewards.base import as_reward, score_all
from tastemaker.rewards.expression import labels, without_addresses
from tastemaker.rewards.labelers.reward import LabelersReward
from tastemaker.rewards.labelers.settings import Labelers, place, task_sizes
from tastemaker.rewards.registry import load_reward
from tastemaker.rewards.serving import retry
from tastemaker.training.labelers import require_labelers_fit

X = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
PROMPTS = list("abcd")
ANSWER = pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
QUICK = Labelers(wait=5, server_wait=0.3, poll=0.01)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setenv("TASTEMAKER_LABEL_TOKEN", "s3cret")
    monkeypatch.setattr(retry, "backoff", lambda tries: 0.01)


def people(app, settings=QUICK, **more):
    return load_reward(f"label:{app.url}", labelers=replace(settings, **more))


def refuse(status, detail="no"):
    return lambda handler: send(handler, {"detail": detail}, status)


def state(**content):
    return lambda handler: send(handler, {"key": KEY, "state": "finished", "tasks": 4, "labelled": 4} | content)


# ---------------------------------------------------------------- names


def test_the_place_of_a_project():
    assert place("label:labels/animals") == "labels/animals"
    assert place("label:http://box:8001/") == "http://box:8001"
    for name, said in [
        ("label:", "names no labelling project: give label:FOLDER or label:http://HOST:PORT"),
        ("label:http://a:1,http://b:2", "names 2 labelling apps"),
        ("label:http://me:pw@box:1", "must not hold a name or password"),
    ]:
        with pytest.raises(RewardError, match=said):
            place(name)


def test_addresses_are_in_no_fingerprint_and_no_label():
    """The app, and the folder, may be elsewhere when a run is resumed."""
    assert without_addresses("label:http://box:8001") == "label"
    assert without_addresses("0.5*label:/home/me/labels + judge-score") == "((0.5 * label) + judge-score)"
    assert labels(["label:http://box:8001", "label:labels/animals"]) == ["label", "label-2"]


# ---------------------------------------------------------------- asking


def test_all_images_are_sent_at_once_and_waited_for(capsys):
    with LabelApp(lambda n: n) as app:
        assert total(people(app), X, PROMPTS).tolist() == ANSWER
        assert app.asked == [("GET", "/api/batches"), ("POST", "/api/batches")] + [("GET", f"/api/batches/{KEY}")] * 4
        (sent,) = app.sent
        assert sent.prompts == PROMPTS
        # As they are shown to people, in 256 levels.
        assert torch.equal(sent.x, (X * 255).round() / 255)
        assert {seen["Authorization"] for seen in app.seen} == {"Bearer s3cret"}
        shown = capsys.readouterr().err.splitlines()
        assert shown == [
            f"waiting for labelers at {app.url}: 0 of 4 tasks are labelled", "the labelers have labelled all 4 tasks",
        ]  # fmt: skip


def test_what_is_labelled_already_is_not_waited_for(capsys):
    with LabelApp() as app:
        assert total(people(app, wait=0.0), X, PROMPTS).tolist() == ANSWER
        assert len(app.asked) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("reply", "error", "said"),
    [
        (refuse(401), RewardError, r"refuses the token in \$TASTEMAKER_LABEL_TOKEN: status 401: no"),
        (refuse(403, "s3cret?"), RewardError, r"status 403: \*\*\*\?"),
        (refuse(400, "3 images of one prompt"), RewardError, "refuses: status 400: 3 images of one prompt"),
        (refuse(404), RewardError, "refuses: status 404"),
        (refuse(500), RewardUnavailable, "gave no numbers after 4 tries .* status 500: no"),
        (refuse(503), RewardUnavailable, "`labelers.server_wait` is how long to wait for it"),
        (lambda handler: send(handler, b"[]"), RewardError, "sent an invalid response: expected a JSON object"),
        (lambda handler: send(handler, b"{"), RewardError, "sent an invalid response"),
        (state(state="asleep"), RewardError, "is not that of a batch"),
        (state(labelled="all"), RewardError, "is not that of a batch"),
        (state(state="withdrawn"), RewardError, "were withdrawn from the labelers .* resume the run to ask again"),
        (state(rewards=None), RewardError, "its `rewards` are not a list of numbers"),
        (state(rewards=[0.5] * 3), RewardError, "it has 3 rewards for 4 images"),
        (state(rewards=[0.5, 1, 1, True]), RewardError, "not a list of numbers"),
        (state(rewards=[0.5, 1, 1, float("nan")]), RewardError, "is nan, which is not finite"),
    ],
)
@pytest.mark.parametrize("when", [0, 2])
def test_whatever_goes_wrong_is_an_error_and_no_number(reply, error, said, when):
    with LabelApp(lambda n: 0 if n < when else reply) as app, pytest.raises(RewardError, match=said) as raised:
        total(people(app), X, PROMPTS)
    assert type(raised.value) is error
    assert "s3cret" not in str(raised.value)


def test_labelers_who_do_not_come(capsys):
    with LabelApp(lambda n: 1) as app, pytest.raises(RewardUnavailable, match="labelled 1 of 4 tasks in 0 s") as error:
        total(people(app, wait=0.2), X, PROMPTS)
    assert error.value.exit_code == 69


def test_an_app_that_is_down_for_a_while():
    with LabelApp(lambda n: refuse(503) if n in (1, 2, 4) else n) as app:
        assert total(people(app, server_wait=20), X, PROMPTS).tolist() == ANSWER
        assert app.looks == 6


def test_nobody_is_there():
    began = time.monotonic()
    reward = load_reward("label:http://127.0.0.1:9", labelers=QUICK)
    with pytest.raises(RewardUnavailable, match="ConnectError"):
        total(reward, X, PROMPTS)
    assert time.monotonic() - began < 30


def test_the_token_is_asked_for_at_the_start(monkeypatch):
    monkeypatch.delenv("TASTEMAKER_LABEL_TOKEN")
    with pytest.raises(RewardError, match="TASTEMAKER_LABEL_TOKEN, which should have the labelling app's admin token"):
        load_reward("label:http://127.0.0.1:9")


def test_another_project_is_another_reward():
    answer = dict(PROJECT)
    with LabelApp(project=answer) as app:
        reward = people(app)
        assert reward.identity() == "labelling project 1234, mode rate"
        total(reward, X, PROMPTS)
        answer["project"] = "5678"
        with pytest.raises(RewardError, match="1234, mode rate before: rewards of several projects cannot be mixed"):
            total(reward, X, PROMPTS)
    with LabelApp(project={"mode": "rank", "images": 5}) as app:
        assert people(app).identity() == "labelling project 1234, mode rank of 5 images"
    with LabelApp(project={"protocol": 2}) as app, pytest.raises(RewardError, match="version 2 of the protocol"):
        people(app).identity()


def test_a_call_can_be_ended_from_another_thread():
    waiting = threading.Event()

    def says(number):
        if number > 2:
            waiting.set()
        return 0

    with LabelApp(says) as app:
        reward, raised = people(app, wait=1000.0), []

        def call():
            try:
                total(reward, X, PROMPTS)
            except RewardError as error:
                raised.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        assert waiting.wait(20)
        reward.cancel()
        thread.join(20)
    (error,) = raised
    assert "was cancelled" in str(error)


# ---------------------------------------------------------------- folders


def served(folder, url, token="from-the-folder"):
    folder.mkdir(exist_ok=True)
    (folder / "project.json").write_text("{}")
    (folder / "admin-token").write_text(token + "\n")
    (folder / "server.json").write_text(json.dumps({"url": url, "pid": 1}))


def test_a_projects_folder_has_address_and_token(tmp_path):
    folder = tmp_path / "labels"
    with LabelApp() as app:
        served(folder, app.url)
        reward = load_reward(f"label:{folder}", labelers=QUICK)
        assert total(reward, X, PROMPTS).tolist() == ANSWER
        assert {seen["Authorization"] for seen in app.seen} == {"Bearer from-the-folder"}
    # Started again, the app is at another port.
    with LabelApp() as app:
        served(folder, app.url)
        assert total(reward, X, PROMPTS).tolist() == ANSWER


def test_a_folder_that_is_not_served(tmp_path):
    with pytest.raises(RewardError, match=r"is no labelling project \(`tastemaker label create` makes one\)"):
        total(load_reward(f"label:{tmp_path}", labelers=QUICK), X, PROMPTS)
    (tmp_path / "project.json").write_text("{}")
    with pytest.raises(RewardUnavailable, match="app is not running; start it with `tastemaker label serve"):
        total(load_reward(f"label:{tmp_path}", labelers=QUICK), X, PROMPTS)
    (tmp_path / "server.json").write_text("[")
    with pytest.raises(RewardError, match=r"address or the token of the labelling app of .* cannot be read"):
        total(load_reward(f"label:{tmp_path}", labelers=QUICK), X, PROMPTS)


# ---------------------------------------------------------------- combined, and in a run


def test_a_combination_calls_people_once_for_all_batches():
    """Other rewards are called batch by batch, while the next images are sampled."""
    calls = []

    def brightness(x, prompts):
        calls.append(len(prompts))
        return x.mean(dim=(1, 2, 3))

    with LabelApp() as app:
        mine = people(app)
        rewards = {"people": mine, "brightness": as_reward(brightness)}
        with background_scorer(rewards) as scorer:
            for start in (0, 2):
                scorer.submit(X[start : start + 2], PROMPTS[start : start + 2], X[start : start + 2])
            found = scorer.finish(lambda: None)
        assert calls == [2, 2]
        assert [sent.prompts for sent in app.sent] == [PROMPTS]
        assert found["people"].tolist() == ANSWER
        assert torch.equal(found["brightness"], X.mean(dim=(1, 2, 3)))
        both = load_reward(f"2*label:{app.url} + colourfulness", labelers=QUICK)
        alone = load_reward("colourfulness")
        expected = 2 * torch.tensor([1, 1 / 2, 1 / 3, 1 / 4]) + total(alone, X, PROMPTS)
        torch.testing.assert_close(score_all({"both": both}, X, PROMPTS)["both"].total, expected)
        assert both.identity() == "((2 * 'labelling project 1234, mode rate') + colourfulness)"


@pytest.mark.parametrize(
    ("project", "per_prompt", "evaluated", "said"),
    [
        ({}, 1, 1, None),
        ({"mode": "pair", "images": 2}, 2, 4, None),
        ({"mode": "pair", "images": 2}, 1, 4, "sampling.per_prompt is 1, which does not suit the reward label:.* pair"),
        ({"mode": "pair", "images": 2}, 2, 3, "evaluation.per_prompt is 3, which does not suit .* give 2, 4, 6"),
        ({"mode": "best", "images": 4}, 1, 4, "sampling.per_prompt is 1, .* 2 to 4 images: give 4"),
        ({"mode": "best", "images": 4}, 5, 5, None),
    ],
)  # fmt: skip
def test_images_of_a_prompt_must_suit_the_project(project, per_prompt, evaluated, said):
    with LabelApp(project=project) as app:
        config = Config()
        config = replace(
            config, sampling=replace(config.sampling, samples=20 * per_prompt, per_prompt=per_prompt),
            evaluation=replace(config.evaluation, per_prompt=evaluated),
        )  # fmt: skip
        if said is None:
            require_labelers_fit(config, people(app), {}, 1)
        else:
            with pytest.raises(RewardError, match=said):
                require_labelers_fit(config, people(app), {}, 1)
        # Held-out rewards, which score evaluations, need not suit the rounds.
        if said is None or said.startswith("sampling"):
            require_labelers_fit(config, as_reward(lambda x, p: x), {"other": people(app)}, 1)
        assert app.sent == []


def test_several_processes_have_no_prompt_together():
    config = Config()
    config = replace(config, sampling=replace(config.sampling, per_prompt=2))
    with (
        LabelApp(project={"mode": "pair", "images": 2}) as app,
        pytest.raises(ConfigError, match="2 processes each have a part of them: use one process"),
    ):
        require_labelers_fit(config, people(app), {}, 2)
    with LabelApp() as app:
        require_labelers_fit(config, people(app), {}, 2)


def test_a_dry_run_asks_for_the_project_and_no_labeler(checkpoint, capsys):
    words = ["train", "ddpo-compressibility", "--model", str(checkpoint), "--prompts", "ddpo-animals", "--dry-run"]
    with LabelApp(project={"mode": "pair", "images": 2}) as app:
        fits = [*words, "--reward", f"label:{app.url}", "sampling.per_prompt=2", "evaluation.per_prompt=2"]
        assert main(fits) == 0
        assert main([*fits, "evaluation.per_prompt=1"]) == 2
        assert "evaluation.per_prompt is 1" in capsys.readouterr().err
        assert app.sent == []
    assert main([*words, "--reward", "label:http://127.0.0.1:9", "labelers.server_wait=0"]) == 69


def test_doctor_says_what_project_it_is(capsys):
    with LabelApp(project={"mode": "rank", "images": 5, "overlap": 3}) as app:
        assert main(["doctor", "--reward", f"2*label:{app.url}"]) == 0
        assert app.sent == []
    said = capsys.readouterr().out
    assert "answers: 'Images', labelling project 1234, mode rank of 5 images, 3 labelers for each task" in said
    assert "needs 2 to 5 images of each prompt in a task" in said
    assert main(["doctor", "--reward", "label:http://127.0.0.1:9", "labelers.server_wait=0"]) == 69


def test_it_is_served_by_its_own_app_alone(capsys):
    assert main(["reward", "serve", "label:http://127.0.0.1:9"]) == 2
    assert "is already on a server, the labelling app" in capsys.readouterr().err


def test_sizes_of_tasks_are_nearly_equal():
    """Of all counts up to 100: sizes differ by one at most, and none is above K."""
    for most in range(2, 17):
        for count in range(2, 101):
            if most == 2 and count % 2:
                with pytest.raises(RewardError):
                    task_sizes("best", most, count)
                continue
            sizes = task_sizes("best", most, count)
            assert sum(sizes) == count
            assert max(sizes) <= most
            assert max(sizes) - min(sizes) <= 1
            assert min(sizes) >= 2


def test_whole_is_a_flag():
    mine = lambda x, p: x  # noqa: E731
    mine.whole = "yes"
    with pytest.raises(RewardError, match="has whole = 'yes', but it must be True or False"):
        as_reward(mine)
    assert as_reward(LabelersReward("label:folder")).whole


def test_a_slow_app_is_asked_again():
    def late(handler):
        time.sleep(1)

    with LabelApp(lambda n: 4 if n else late) as app, mock.patch.object(retry, "AVOID", 0):
        assert total(people(app, timeout=0.3, server_wait=20), X, PROMPTS).tolist() == ANSWER
