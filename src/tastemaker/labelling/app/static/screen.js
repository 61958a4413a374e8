/** What is on the screen, drawn from what the page has in hand. */

import { shown as shownKey } from "./keys.js";
import { announce } from "./messages.js";
import {
  byId, isStacked, liveOf, movable, number, page, pairOf, sides, summary, task, viewOf,
} from "./page.js";
import { drawHistory } from "./panels.js";
import { decodeAhead, url } from "./pictures.js";
import { drawMessage, drawProgress } from "./progress.js";
import { live, ranks, worstCase } from "./ranking.js";
import { make } from "./stage.js";

const body = document.body;
let drawn = null; // what was on the screen when the images were painted

/** Draws everything; with `animate` the thumbnails of the order glide to their places. */
export function render(animate = false) {
  const one = task(), view = viewOf(one);
  // Drawn again with nothing new, as in a window of another size, the time to the answer goes on.
  const now = one && `${view} ${one.id} ${one.judgements.length} ${page.reasked}`;
  if (now !== drawn) page.shownAt = Infinity;
  drawn = now;
  body.dataset.view = view;
  drawMessage(view);
  if (one && view !== "loading") {
    if (byId("prompt").textContent !== one.prompt) {
      byId("prompt").textContent = one.prompt;
      byId("prompt").scrollTop = 0;
    }
    drawQuestion(one, view);
    drawAnswers(one, view);
    if (page.project.mode === "rank") drawOrder(one, view, animate);
    if (view !== "review") drawStage(one, view);
    drawTools(one, view);
    body.dataset.task = one.id;
    // Two frames on, the images have been painted.
    requestAnimationFrame(() => {
      if (page.shownAt === Infinity) page.shownAt = performance.now();
      const box = byId("prompt");
      // A prompt that is longer than its box can be scrolled by keys.
      if (box.scrollHeight > box.clientHeight + 1) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
      setTimeout(() => decodeAhead([one, page.tasks.get(page.queue[0])]));
    });
  } else delete body.dataset.task;
  drawProgress();
  if (page.history.shown) drawPast();
}

/** The images that are judged now. */
export function drawStage(one, view) {
  const images = view === "compare" ? pairOf(one) : one.presentation;
  const answer = view === "compare" && !one.state.skipped && (page.reasked || one.state.question === null)
    ? liveOf(one, "compare", (old) => [old.left, old.right].every((image) => images.includes(image))) : null;
  const words = sides();
  const items = images.map((image, index) => ({
    image, sha: one.shas[image], element: one.elements[image], failed: one.failed.has(image),
    name: view === "compare" ? words[index] : `${number(one, image)}`,
    alt: view === "compare" ? `${words[index]} image` : `Image ${number(one, image)}`,
    marks: one.state.marks.get(image) ?? [], selected: view === "many" && page.selected === image,
    chosen: view === "compare"
      ? answer?.outcome === (index === 0 ? "left" : "right")
      : one.state.best === image || one.state.ratings.get(image) === "up",
    rating: one.state.ratings.get(image) ?? null,
  }));
  const aspects = images.map((image) => one.elements[image]).map((img) => img.naturalWidth / img.naturalHeight || 1);
  const two = { flipped: page.flipped, columns: page.flipped !== null || isStacked() ? 1 : 2 };
  page.stage.show(items, Math.max(...aspects), view === "compare" ? two : {});
}

function drawQuestion(one, view) {
  const { order: now, waiting, answers, question } = one.state;
  let text = one.question ?? page.project.question, step = "";
  if (view === "review") {
    text = "Is this the right order?";
    step = "drag an image, or move the selected one by keys";
  }
  else if (page.reasked) text = `${text} You have compared these two before.`;
  else if (page.project.mode === "rank" && question) {
    const count = answers.size + 1;
    const most = worstCase(one.presentation.length, page.project.transitive);
    step = `comparison ${count} of ${page.project.transitive ? "at most " : ""}${Math.max(most, count)}`;
  } else if (page.project.mode === "rate" && one.presentation.length > 1) {
    step = `${one.state.ratings.size} of ${one.presentation.length} rated`;
  }
  byId("question").textContent = text;
  byId("step").textContent = step;
  const isEarlier = page.past.includes(one.id);
  byId("earlier").hidden = !isEarlier;
  if (isEarlier) byId("earlier-text").textContent = `${summary(one)}.`;
  const begun = waiting.length || now.length;
  byId("order-title").textContent = view === "review" ? "Your order" : begun ? "Order so far" : "Order";
}

function answerButton(name, text, key) {
  const button = make("button", "", "", { type: "button", "data-act": name });
  button.append(make("span", "", text));
  if (key) button.append(make("kbd", "", shownKey(key), { "aria-hidden": "true" }));
  return button;
}

let drawnAnswers = "";

function drawAnswers(one, view) {
  const names = {
    compare: ["left", page.project.ties && "tie", page.project.both_bad && "both_bad", "right"],
    many: page.project.mode === "best" ? [page.project.both_bad && "none"] : [],
    review: ["better", "worse", "confirm"],
  }[view].filter(Boolean);
  const words = {
    left: `${sides()[0]} is better`, right: `${sides()[1]} is better`, tie: "Equal", both_bad: "Both are bad",
    none: "None is good", better: "Better", worse: "Worse",
    confirm: page.project.confirm && !liveOf(one, "order")?.confirmed ? "Confirm the order" : "Done",
  };
  const what = names.map((name) => `${name} ${words[name]} ${page.bound.get(name)}`).join("|");
  if (what === drawnAnswers) return;
  drawnAnswers = what;
  const focused = document.activeElement?.closest?.("#answers [data-act]")?.dataset.act;
  byId("answers").replaceChildren(...names.map((name) => answerButton(name, words[name], page.bound.get(name))));
  byId("answers").dataset.kind = view;
  byId("answers").hidden = !names.length;
  if (focused) byId("answers").querySelector(`[data-act="${focused}"]`)?.focus();
}

/** Titles of the buttons with the keys that do the same. */
export function drawHints() {
  for (const button of document.querySelectorAll(".bar [data-act], .tools [data-act]")) {
    const action = page.actions.find((one) => one.name === button.dataset.act);
    if (!action) continue;
    const key = shownKey(page.bound.get(action.name));
    button.title = `${action.title} (${key})`;
    const hint = button.querySelector("kbd");
    if (hint) hint.textContent = key;
  }
  drawnAnswers = "";
}

function drawOrder(one, view, animate) {
  const { order: now, waiting, question, conflicts, marks } = one.state;
  const all = [...now.flat(), ...waiting];
  if (view === "review" && (page.selected === null || !all.includes(page.selected))) page.selected = all[0];
  byId("order").hidden = false;
  byId("order").style.setProperty("--thumb", `${thumbSize(one, view)}px`);
  page.order.show({
    presentation: one.presentation, order: now, waiting, conflicts, marks, ties: page.project.ties,
    selected: page.selected,
    question: view === "compare" ? page.reasked ?? question : null, movable: movable(one),
    thumb: (image) => one.thumbs[image],
  }, animate);
  if (view === "review" && !page.keys.open && !page.history.shown && !page.instructions.shown) {
    if (!document.activeElement || document.activeElement === body) page.order.focus(page.selected);
  }
  drawConflicts(one, view);
}

/** The largest thumbnails with which all of the order is in sight. */
function thumbSize(one, view) {
  const count = one.presentation.length;
  const width = byId("order").clientWidth || innerWidth;
  if (view !== "review") return Math.max(24, Math.min(72, (width - 40) / count - 18));
  const height = Math.max(120, byId("main").clientHeight - 330);
  let best = 40;
  for (let columns = 1; columns <= count; columns++) {
    const across = width / columns - 26, down = height / Math.ceil(count / columns) - 40;
    best = Math.max(best, Math.min(across, down, 360));
  }
  return Math.floor(best);
}

function drawConflicts(one, view) {
  const { conflicts, answers } = one.state;
  const box = byId("conflicts");
  box.hidden = conflicts.length === 0;
  if (!conflicts.length) return;
  const words = conflicts.length === 1 ? "1 contradiction" : `${conflicts.length} contradictions`;
  byId("conflicts-title").textContent = words;
  if (view === "review" && box.dataset.task !== String(one.id)) box.open = true;
  box.dataset.task = view === "review" ? one.id : "";
  byId("conflicts-list").replaceChildren(...conflicts.map(([better, worse]) => {
    const item = make("li");
    const outcome = answers.get(`${Math.min(better, worse)},${Math.max(better, worse)}`);
    const equal = outcome !== "first" && outcome !== "second";
    const apart = equal ? "they are apart in the order. "
      : ranks(one.state.order).get(better) === ranks(one.state.order).get(worse) ? "they share a place. "
        : "it stands behind in the order. ";
    const [a, b] = [better, worse].map((image) => (
      make("img", "tiny", "", { src: url(one.shas[image]), alt: `image ${number(one, image)}` })
    ));
    const again = make("button", "", "Compare again", { type: "button" });
    again.addEventListener("click", () => {
      page.reasked = [better, worse];
      render();
      announce("Compare these two again.");
    });
    const said = equal ? [a, " and ", b, " are equal, but "] : [a, " is better than ", b, ", but "];
    item.append("You said ", ...said, apart, again);
    return item;
  }));
}

/** Which tools there are for what is shown. */
export function drawTools(one, view) {
  const show = (name, on) => {
    for (const button of document.querySelectorAll(`#tools [data-act="${name}"]`)) button.hidden = !on;
  };
  show("skip", page.project.skip && !one.state.complete);
  show("flip", view === "compare");
  show("side_by_side", view === "compare" && page.flipped !== null);
  for (const name of ["zoom_in", "zoom_out", "zoom_reset"]) show(name, view !== "review");
  drawScale();
}

export function drawScale() {
  byId("scale").textContent = `${Math.round(100 * page.viewer.scale)} %`;
}

/** The list of earlier tasks, the latest first. */
export function drawPast() {
  const ids = [...page.past].reverse();
  const begun = page.current !== null && !page.past.includes(page.current) && live(task().judgements).length;
  if (begun) ids.unshift(page.current);
  drawHistory(ids.map((id) => {
    const one = page.tasks.get(id), found = one.state;
    const images = page.project.mode === "rank" && found.question === null ? found.order.flat()
      : page.project.mode === "pair" && liveOf(one, "compare")
        ? ["left", "right"].map((side) => liveOf(one, "compare")[side]) : one.presentation;
    const answer = liveOf(one, "compare");
    const best = (image) => (
      page.project.mode === "pair" ? answer && answer[answer.outcome] === image
        : page.project.mode === "best" ? found.best === image : found.ratings.get(image) === "up"
    );
    return {
      id, prompt: one.prompt, current: id === page.current, answer: summary(one),
      images: images.map((image) => ({ url: url(one.shas[image]), best: Boolean(best(image)) })),
    };
  }), !page.pastEnded);
}
