"""The labelling page when something goes wrong or is unusual: a stopped server, lost and refused answers, keys that are
held down or changed, corrected tasks, odd prompts, contradicting answers."""

from __future__ import annotations

import json
import time

import pytest
import sqlalchemy as sa
from label_window import Window, opened, press, rows_of, settle, stored, until, until_saved, vote, window
from PIL import Image
from playwright.sync_api import Page, Route
from tests.label_projects import claimed, image, judged

from tastemaker.labelling.assignments import Assigned
from tastemaker.labelling.judgements import read_judgements
from tastemaker.labelling.project import NewImage, NewTask, Project
from tastemaker.labelling.ranking import State, state
from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.tables import Assignment, User

PAIR = Labelling(mode="pair")
REFUSED, LOST = "net::ERR_CONNECTION_REFUSED", "net::ERR_FAILED"
JUDGEMENTS = "**/api/judgements"


def sent(route: Route) -> list[dict]:
    """The judgements of a request to save some."""
    return json.loads(route.request.post_data or "")["judgements"]


def said(found: Window, assignment: int) -> State:
    """What the stored judgements of an assignment say."""
    with found.app.project.database.read() as session:
        row = session.get(Assignment, assignment)
        assert row is not None
        return state(found.app.project.settings, row.presentation, read_judgements(session, row.id))


def label(project: Project, user: int, count: int) -> list[Assigned]:
    """Tasks that a user has finished."""
    tasks = claimed(project, user, count, time.time())
    for task in tasks:
        judged(project, user, task, time.time())
    return tasks


def task_of(page: Page) -> int:
    """The task that the page shows, or will show once it has fetched it."""
    page.wait_for_selector("body[data-task]")
    return int(page.get_attribute("body", "data-task") or "")


# ---------------------------------------------------------------- answers on their way


def test_answers_while_the_server_is_down_are_saved_once_it_is_back(browser, tmp_path):
    with opened(browser, tmp_path / "p", PAIR, 6, allowed=(REFUSED,)) as found:
        page = found.page
        vote(page, "ArrowLeft")
        stored(found.app, 1)
        found.server.stop()
        for key in ("ArrowRight", "ArrowDown", "ArrowRight"):
            vote(page, key)
        assert "Unsaved 3" in page.text_content("#saved-text")
        until(page, "document.getElementById('saved').dataset.state === 'failing'")
        found.server.start()
        until_saved(page)
        rows = stored(found.app, 4)
        assert [row.outcome for row in rows] == ["left", "right", "tie", "right"]
        assert len({row.assignment_id for row in rows}) == 4
        vote(page, "ArrowLeft")
        stored(found.app, 5)


@pytest.mark.parametrize(
    "arrives",
    [pytest.param(False, id="never sent"), pytest.param(True, id="receipts lost", marks=pytest.mark.slow)],
)
def test_a_reload_with_unsaved_answers(browser, tmp_path, arrives):
    """The server has got the answers or not: in either case each is stored once."""
    with opened(browser, tmp_path / "p", PAIR, allowed=(LOST,)) as found:
        page, dialogs = found.page, []

        def lose(route: Route) -> None:
            if arrives:
                route.fetch()
            route.abort()

        page.route(JUDGEMENTS, lose)
        page.on("dialog", lambda dialog: (dialogs.append(dialog.type), dialog.accept()))
        vote(page, "ArrowLeft")
        vote(page, "ArrowRight")
        third = task_of(page)
        page.reload()
        assert dialogs == ["beforeunload"]
        page.wait_for_selector(f"body[data-task='{third}']")
        assert "Unsaved 2" in page.text_content("#saved-text")
        page.unroute(JUDGEMENTS)
        until_saved(page)
        assert [row.outcome for row in stored(found.app, 2)] == ["left", "right"]
        vote(page, "ArrowLeft")
        stored(found.app, 3)


def test_a_reload_with_more_unsaved_tasks_than_are_fetched_at_once(browser, tmp_path):
    with opened(browser, tmp_path / "p", PAIR, 9, allowed=(LOST,)) as found:
        page = found.page
        page.route(JUDGEMENTS, lambda route: route.abort())
        for _ in range(6):
            vote(page, "ArrowLeft")
        seventh = task_of(page)
        page.reload()
        page.wait_for_selector("body:not([data-view='loading'])")
        assert task_of(page) == seventh  # and not the message that nothing is left
        assert "Unsaved 6" in page.text_content("#saved-text")


@pytest.mark.slow
def test_more_unsaved_tasks_than_the_server_gives_out(browser, tmp_path):
    """The page does not say that nothing is left, and goes on as soon as there is room."""
    with opened(browser, tmp_path / "p", PAIR, 22, allowed=(LOST,)) as found:
        page = found.page
        page.route(JUDGEMENTS, lambda route: route.abort())
        for _ in range(20):
            vote(page, "ArrowLeft")
        until(page, "document.body.dataset.view === 'loading'")
        assert "have to be saved before" in page.text_content("#message")
        page.unroute(JUDGEMENTS)
        page.evaluate("window.dispatchEvent(new Event('online'))")  # does not wait for the next attempt
        page.wait_for_selector("body[data-task]")
        stored(found.app, 20)


def test_a_refused_answer_does_not_hold_up_the_others(browser, tmp_path):
    """The first of three answers that come in one request is refused."""
    with opened(browser, tmp_path / "p", PAIR, allowed=(LOST, "422")) as found:
        page, down, refused = found.page, [True], []

        def answer(route: Route) -> None:
            ids = [one["id"] for one in sent(route)]
            if down[0]:
                refused[:] = refused or ids[:1]
                route.abort()
            elif refused[0] in ids:
                route.fulfill(status=422, json={"detail": "it cannot be read"})
            else:
                route.continue_()

        page.route(JUDGEMENTS, answer)
        first = task_of(page)
        for key in ("ArrowLeft", "ArrowRight", "ArrowDown"):
            vote(page, key)
        assert rows_of(found.app) == []
        down[0] = False
        until_saved(page)
        assert [row.outcome for row in stored(found.app, 2)] == ["right", "tie"]
        notice = page.locator("#notice")
        assert notice.is_visible()
        assert "An answer was not saved: it cannot be read." in notice.text_content()
        # The refused task is asked again.
        vote(page, "ArrowRight")
        until(page, f"document.body.dataset.task === '{first}'")
        vote(page, "ArrowRight")
        until_saved(page)  # `answer` runs only while the browser is waited for
        rows = stored(found.app, 4)
        assert [row.outcome for row in rows if row.assignment_id == first] == ["right"]
        assert notice.is_visible()
        page.click("#notice-close")
        assert not notice.is_visible()


# ---------------------------------------------------------------- keys


def test_a_key_that_is_held_down_answers_once(browser, tmp_path):
    with opened(browser, tmp_path / "p", PAIR) as found:
        page = found.page

        def hold(key: str) -> None:
            settle(page)
            for _ in range(6):
                page.keyboard.down(key)
                page.wait_for_timeout(60)
            page.keyboard.up(key)

        hold("ArrowLeft")
        stored(found.app, 1)
        page.focus("#answers [data-act='right']")
        hold("Enter")
        assert [row.outcome for row in stored(found.app, 2)] == ["left", "right"]


def test_changed_keys_act_also_after_a_reload(browser, tmp_path):
    with opened(browser, tmp_path / "p", PAIR) as found:
        page = found.page
        press(page, "?")
        page.click("#change-keys")
        page.click("#key-left")
        press(page, "z")
        assert "Z is the key of “Undo, back over earlier tasks”" in page.text_content("#keys-status")
        press(page, "a")
        assert page.text_content("#key-left") == "A"
        page.click("#keys-save")
        page.wait_for_selector("#keys", state="hidden")
        assert page.text_content("#answers [data-act='left'] kbd") == "A"
        vote(page, "a")
        page.reload()
        page.wait_for_selector("body[data-task]")
        press(page, "ArrowLeft")  # no longer a key
        vote(page, "a")
        assert [row.outcome for row in stored(found.app, 2)] == ["left", "left"]
        with found.app.project.database.read() as session:
            assert session.scalars(sa.select(User.keys)).all() == [{"left": "a"}]


def test_a_key_that_is_refused_says_so_in_sight(browser, tmp_path):
    """Also where the list of keys is longer than the window, and the action is at its end."""
    with opened(browser, tmp_path / "p", PAIR, viewport={"width": 390, "height": 600}) as found:
        page = found.page
        press(page, "?")
        page.click("#change-keys")
        page.click("#key-help")
        press(page, "z")
        assert "Z is the key of" in page.text_content("#keys-status")
        for part in ("#keys-status", "#keys-save"):
            box = page.locator(part).bounding_box()
            middle = [box["x"] + box["width"] / 2, box["y"] + box["height"] / 2]
            assert page.evaluate(f"([x, y]) => Boolean(document.elementFromPoint(x, y)?.closest('{part}'))", middle)


# ---------------------------------------------------------------- earlier tasks


def test_an_earlier_task_is_changed_by_a_superseding_row(browser, tmp_path):
    with opened(browser, tmp_path / "p", PAIR) as found:
        page = found.page
        first = task_of(page)
        vote(page, "ArrowLeft")
        vote(page, "ArrowLeft")
        third = task_of(page)
        press(page, "h")
        page.click(f"#history-list [data-id='{first}']")
        assert page.text_content("#earlier-text") == "Left is better."
        vote(page, "ArrowRight")
        assert task_of(page) == third
        old, other, new = stored(found.app, 3)
        assert (old.assignment_id, old.outcome, old.supersedes) == (first, "left", None)
        assert other.assignment_id != first
        assert (new.assignment_id, new.outcome, new.supersedes) == (first, "right", old.client_id)
        pair = tuple(sorted((new.left_image, new.right_image)))
        assert said(found, first).answers[pair] == ("second" if new.left_image < new.right_image else "first")
        assert "Right is better" in page.text_content(f"#history-list [data-id='{first}']")


@pytest.mark.slow
def test_a_refused_correction_of_a_task_long_ago(browser, tmp_path):
    """The task is shown as it is saved, and stays among the earlier ones, also where it is not one of the latest."""
    with window(browser, tmp_path / "p", PAIR, 24, allowed=("422",)) as found:
        page, project, ann = found.page, found.app.project, found.app.user("ann")
        earlier = [one for _ in range(2) for one in label(project, ann, 11)]
        found.open_label()
        now = task_of(page)
        page.route(JUDGEMENTS, lambda route: route.fulfill(status=422, json={"detail": "it cannot be read"}))
        press(page, "h")
        page.click("#history-more")
        line = f"#history-list [data-id='{earlier[0].id}']"
        page.click(line)
        answer = page.text_content("#earlier-text")
        vote(page, "ArrowRight" if answer == "Left is better." else "ArrowLeft")
        page.wait_for_selector("#notice:not([hidden])")
        until(page, f"""document.querySelector("{line}").textContent.includes("{answer[:-1]}")""")
        page.unroute(JUDGEMENTS)
        assert task_of(page) == now
        vote(page, "ArrowLeft")
        assert len(stored(found.app, 23)) == 23
        with project.database.read() as session:
            assert session.scalar(sa.select(sa.func.count()).where(Assignment.finished_at.is_not(None))) == 23


# ---------------------------------------------------------------- prompts


PROMPTS = {
    "html": "<img src=x onerror=\"document.title='run'\"><b>bold</b> &amp; {{ 7 * 7 }} <script>alert(1)</script>",
    "emoji": "👩‍👩‍👧‍👦 a family 🦄🏳️‍🌈 under a 🌈, e\u0301clair, \u202eright to left\u202c",
    "right to left": "קשת בענן מעל הים, مع قطة صغيرة",
    "long words": "word " * 400,
    "long line": "W" * 2000,
    "lines": "one\ntwo\n\n" * 200,
}


def test_odd_prompts_on_a_phone(browser, tmp_path):
    tasks = [
        NewTask(text, [NewImage(image(2 * n + i), "model") for i in range(2)])
        for n, text in enumerate(PROMPTS.values())
    ]
    size = {"width": 390, "height": 844}
    with opened(browser, tmp_path / "p", PAIR, tasks, viewport=size, is_mobile=True, has_touch=True) as found:
        page = found.page
        for kind, text in PROMPTS.items():
            shown = page.evaluate("document.getElementById('prompt').textContent")
            assert shown == text, kind
            assert page.locator("#prompt *").count() == 0, kind
            assert page.title() == PAIR.title, kind
            direction = page.evaluate("getComputedStyle(document.getElementById('prompt')).direction")
            assert direction == ("rtl" if kind == "right to left" else "ltr"), kind
            assert page.evaluate("document.scrollingElement.scrollWidth") <= 390, kind
            for name in ("main", "prompt"):
                assert page.evaluate(f"(e => e.scrollWidth - e.clientWidth)(document.getElementById('{name}'))") <= 0, (
                    kind
                )
            for button in page.locator(
                "#answers button, .frame, #tools button:visible, .bar button:visible, .bar a"
            ).all():
                box = button.bounding_box()
                assert box["x"] >= 0, (kind, box)
                assert box["x"] + box["width"] <= 390, (kind, box)
                assert box["y"] + box["height"] <= 844, (kind, box)
            vote(page, "ArrowLeft")


# ---------------------------------------------------------------- contradictions


def answer_in_a_circle(page: Page) -> None:
    """Three comparisons of three images: 0 is better than 1, 1 than 2, and 2 than 0."""
    for _ in range(3):
        left, right = (int(figure.get_attribute("data-image")) for figure in page.query_selector_all("#stage figure"))
        press(page, "ArrowLeft" if (left + 1) % 3 == right else "ArrowRight")
        page.wait_for_timeout(40)


def order_of(page: Page) -> list[list[int]]:
    return [
        [int(thumb.get_attribute("data-image")) for thumb in place.query_selector_all(".thumb")]
        for place in page.query_selector_all("#places .place")
    ]


@pytest.mark.parametrize("ties", [True, False])
def test_a_circle_of_answers_is_shown_and_resolved_by_keys(browser, tmp_path, ties):
    settings = Labelling(mode="rank", images=3, transitive=False, ties=ties)
    with opened(browser, tmp_path / "p", settings) as found:
        page = found.page
        first = task_of(page)
        answer_in_a_circle(page)
        until(page, "document.body.dataset.view === 'review'")
        # Each image has won once, so that they share a place; all three answers say otherwise.
        assert [sorted(group) for group in order_of(page)] == [[0, 1, 2]]
        assert page.text_content("#conflicts-title") == "3 contradictions"
        assert page.locator("#conflicts-list li").count() == 3
        assert page.locator("#places .thumb.conflict").count() == 3
        if not ties:
            press(page, "Enter")
            assert "must be put in order first" in page.text_content("#notice")
            assert task_of(page) == first
        # By keys: 0 before 1 before 2, which contradicts one answer only.
        page.focus("#places .thumb[data-image='0']")
        press(page, "[")
        page.focus("#places .thumb[data-image='2']")
        for _ in range(2):
            if order_of(page) != [[0], [1], [2]]:
                press(page, "]")
        assert order_of(page) == [[0], [1], [2]]
        assert page.text_content("#conflicts-title") == "1 contradiction"
        vote(page, "Enter")
        until_saved(page)
        rows = [row for row in rows_of(found.app) if row.assignment_id == first]
        assert [row.kind for row in rows[:3]] == ["compare"] * 3
        assert (rows[-1].order_of_images, rows[-1].confirmed) == ([[0], [1], [2]], True)
        end = said(found, first)
        assert end.complete
        assert end.order == ((0,), (1,), (2,))
        assert end.conflicts == ((2, 0),)


def test_a_contradicting_answer_is_given_again_by_keys(browser, tmp_path):
    settings = Labelling(mode="rank", images=3, transitive=False)
    with opened(browser, tmp_path / "p", settings) as found:
        page = found.page
        first = task_of(page)
        answer_in_a_circle(page)
        until(page, "document.body.dataset.view === 'review'")
        again = "#conflicts-list li:has([alt='image {}']):has([alt='image {}']) button"
        presentation = said(found, first)
        with found.app.project.database.read() as session:
            shown = session.get(Assignment, first).presentation
        assert len(presentation.conflicts) == 3
        page.focus(again.format(shown.index(0) + 1, shown.index(2) + 1))
        press(page, "Enter")
        assert page.get_attribute("body", "data-view") == "compare"
        left = page.get_attribute("#stage figure:first-child", "data-image")
        press(page, "ArrowLeft" if left == "0" else "ArrowRight")
        until(page, "document.body.dataset.view === 'review'")
        assert order_of(page) == [[0], [1], [2]]
        assert not page.locator("#conflicts").is_visible()
        vote(page, "Enter")
        until_saved(page)
        end = said(found, first)
        assert end.complete
        assert end.conflicts == ()


# ---------------------------------------------------------------- flip


def test_flipped_images_are_in_one_place(browser, tmp_path):
    """Also images of different sizes."""
    task = NewTask("a prompt", [NewImage(Image.new("RGB", size, colour), "model")
                                for size, colour in (((64, 64), "red"), ((96, 32), "blue"))])  # fmt: skip
    with opened(browser, tmp_path / "p", PAIR, [task]) as found:
        page = found.page

        def shown() -> tuple[str, dict, dict]:
            figure = page.locator("#stage figure:not(.behind)")
            assert figure.count() == 1
            return (figure.get_attribute("data-image"), figure.locator(".frame").bounding_box(),
                    figure.locator("img").bounding_box())  # fmt: skip

        press(page, " ")
        one, frame, img = shown()
        press(page, " ")
        other, other_frame, other_img = shown()
        assert {one, other} == {"0", "1"}
        assert other_frame == frame
        assert other_img == img
        press(page, " ")
        assert shown() == (one, frame, img)
        press(page, "v")
        assert page.locator("#stage figure:visible").count() == 2
