/** What the labeler does with the task in hand: each act is a judgement, shown at once and sent behind. */

import { announce, notice } from "./messages.js";
import { uuid } from "./outbox.js";
import { liveOf, movable, nameOf, number, OUTCOME_WORDS, page, pairOf, task, viewOf } from "./page.js";
import { live, moved, refusal, state, stepped } from "./ranking.js";
import { render } from "./screen.js";
import { earlier, finish, leave, open } from "./tasks.js";

const KEY_BOUNCE = 50, DOUBLE_CLICK = 350; // ms after new images within which a key or a click is not an answer to them

/** Adds a judgement to a task, unless it does not fit, and sends it. */
function say(task, fields) {
  const judgement = { id: uuid(), ...fields };
  if (Number.isFinite(page.shownAt)) judgement.elapsed_ms = Math.round(performance.now() - page.shownAt);
  const refused = refusal(page.project, task.presentation, task.judgements, judgement);
  if (refused) {
    notice(`This is not possible: ${refused}.`);
    return false;
  }
  task.judgements.push(judgement);
  task.state = state(page.project, task.presentation, task.judgements);
  page.outbox.add(task.id, judgement);
  return true;
}

/** Whether an answer comes too soon after new images to be one to them: a bouncing key, the second of two clicks. */
function tooSoon(event) {
  const since = performance.now() - page.shownAt;
  return since < KEY_BOUNCE || (event?.detail > 1 && since < DOUBLE_CLICK);
}

/** Takes back what keeps a task from being answered again: a skip, or the confirmation of an order. */
function reopen(one) {
  const skip = liveOf(one, "skip");
  if (skip && !say(one, { kind: "undo", supersedes: skip.id })) return false;
  return true;
}

export function compare(outcome, event) {
  const one = task(), pair = pairOf(one);
  if (!pair || tooSoon(event)) return;
  const [left, right] = pair;
  const earlierAnswer = liveOf(one, "compare", (old) => [old.left, old.right].every((image) => pair.includes(image)));
  const again = page.reasked !== null || one.state.question === null;
  if (again && earlierAnswer?.outcome === outcome && earlierAnswer.left === left && !one.state.skipped) {
    announce("The answer is as it was.");
    page.reasked = null;
    if (one.state.complete) finish(one);
    else render();
    return;
  }
  if (!reopen(one)) return;
  const fields = { kind: "compare", left, right, outcome };
  if (again && earlierAnswer) fields.supersedes = earlierAnswer.id;
  const refused = refusal(page.project, one.presentation, one.judgements, { id: "", ...fields });
  if (refused?.startsWith("the task is complete")) {
    const confirmed = liveOf(one, "order", (old) => old.confirmed);
    if (confirmed) say(one, { kind: "undo", supersedes: confirmed.id });
  }
  if (!say(one, fields)) return;
  if (outcome === "left" || outcome === "right") page.stage.pressed(outcome === "left" ? 0 : 1);
  page.reasked = null;
  announce(`${OUTCOME_WORDS[outcome]}.`);
  after(one);
}

export function chooseBest(image, event) {
  const one = task();
  if (tooSoon(event)) return;
  const chosen = liveOf(one, "best");
  if (chosen && (chosen.image ?? null) === image && !one.state.skipped) return finish(one);
  if (!reopen(one)) return;
  const fields = { kind: "best" };
  if (image !== null) fields.image = image;
  if (chosen) fields.supersedes = chosen.id;
  if (!say(one, fields)) return;
  announce(image === null ? "None is good." : `Image ${number(one, image)} is the best.`);
  after(one);
}

export function rate(image, outcome, event) {
  const one = task();
  if (tooSoon(event) || image === null) return;
  const given = liveOf(one, "rate", (old) => old.image === image);
  if (given?.outcome === outcome && !one.state.skipped) {
    if (one.state.complete) finish(one);
    return;
  }
  if (!reopen(one)) return;
  const fields = { kind: "rate", image, outcome };
  if (given) fields.supersedes = given.id;
  if (!say(one, fields)) return;
  announce(`Image ${number(one, image)} is ${outcome === "up" ? "good" : "not good"}.`);
  page.selected = one.presentation.find((other) => !one.state.ratings.has(other)) ?? image;
  after(one);
}

export function mark(image, word) {
  const one = task();
  if (!one || image === null || word === undefined) return;
  const on = !(one.state.marks.get(image) ?? []).includes(word);
  if (!say(one, { kind: "mark", image, outcome: word, on })) return;
  announce(`${nameOf(one, image)}: ${word} ${on ? "marked" : "no longer marked"}.`);
  render();
}

export function skip(event) {
  const one = task();
  if (!one || tooSoon(event)) return;
  if (one.state.complete) return leave();
  if (!say(one, { kind: "skip" })) return;
  announce("Skipped.");
  after(one);
}

/** Takes over an order in which an image was moved. */
export function arrange(newOrder, image) {
  const one = task();
  // Where nothing may share a place, images that won equally often are set apart as they are shown.
  const arranged = page.project.ties ? newOrder : newOrder.flatMap((group) => group.map((other) => [other]));
  page.selected = image;
  if (say(one, { kind: "order", order: arranged, confirmed: false })) {
    render(true);
    announce(`Image ${number(one, image)}: ${page.order.describe(image)}.`);
  }
}

/** Moves the selected image by a step in the order. */
export function move(step) {
  const one = task();
  if (!one || !movable(one) || page.selected === null) return;
  const { order: now } = one.state;
  const placed = now.some((group) => group.includes(page.selected));
  const newOrder = placed
    ? stepped(now, page.selected, step, page.project.ties)
    : moved(now, page.selected, { group: now.length, join: false });
  if (newOrder !== now) arrange(newOrder, page.selected);
}

export function confirm(event) {
  const one = task();
  if (!one || tooSoon(event)) return;
  if (page.project.mode === "best") {
    if (page.selected !== null) chooseBest(page.selected, event);
    return;
  }
  if (viewOf(one) !== "review") return;
  if (!page.project.ties && one.state.order.some((group) => group.length > 1)) {
    notice("Images that share a place must be put in order first: your answers contradict each other there.");
    return;
  }
  const needed = page.project.confirm && !liveOf(one, "order")?.confirmed;
  if (needed && !say(one, { kind: "order", order: one.state.order, confirmed: true })) return;
  announce("The order is confirmed.");
  finish(one);
}

function after(one) {
  if (one.state.complete) finish(one);
  else render(true);
}

/** Takes back the last judgement of the task in hand, or else of the task before it. */
export async function undo() {
  const one = task();
  if (page.reasked) {
    page.reasked = null;
    return render();
  }
  const last = one && live(one.judgements).at(-1);
  if (last) return takeBack(one, last);
  const at = one ? page.past.indexOf(one.id) : -1;
  let before = at < 0 ? page.past.at(-1) : page.past[at - 1];
  try {
    while (before === undefined && (await earlier())) {
      before = page.past[(at < 0 ? page.past.length : page.past.indexOf(one.id)) - 1];
    }
  } catch {
    return announce("Earlier tasks cannot be fetched now.");
  }
  if (before === undefined) return announce("There is nothing to undo.");
  open(before);
  takeBack(task(), live(task().judgements).at(-1));
}

function takeBack(one, judgement) {
  if (!judgement || !say(one, { kind: "undo", supersedes: judgement.id })) return;
  if (!one.state.complete) page.past = page.past.filter((id) => id !== one.id);
  announce("Taken back.");
  if (page.project.mode === "rate" && judgement.image != null) page.selected = judgement.image;
  render(true);
}
