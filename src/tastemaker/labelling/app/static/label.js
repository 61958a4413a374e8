/**
 * The labelling page. What the labeler does is a list of judgements for each task, as on the server; what is on the
 * screen follows from it (ranking.js) at once, and the judgements are sent behind (outbox.js).
 */

import { actionOf, actionsOf, bindings, keyOf, shown as shownKey } from "./keys.js";
import { makeOrder } from "./order.js";
import { HttpError, makeOutbox, passing, request, uuid } from "./outbox.js";
import { drawHistory, makeKeys, makeSide } from "./panels.js";
import { leftRight, live, moved, ranks, refusal, state, stepped, worstCase } from "./ranking.js";
import { make, makeStage } from "./stage.js";
import { makeViewer } from "./viewer.js";

const HELD = 5; // tasks that the page has: the one in hand, and those fetched and decoded ahead
const MOST_AT_ONCE = 20; // open tasks that the server gives out at a time
const KEY_BOUNCE = 50, DOUBLE_CLICK = 350; // ms after new images within which a key or a click is not an answer to them
const LOOK_AGAIN = 15_000, PAUSE = 60_000, RECENT = 20;

const byId = (id) => document.getElementById(id);
const body = document.body;
const stacked = matchMedia("(max-width: 640px) and (orientation: portrait)");

const tasks = new Map();
let project, actions, bound, own = {}, progress = { done: 0, available: 0 };
let outbox, stage, viewer, order, keys, instructions, history;
let current = null; // the id of the task in hand
let queue = []; // ids of the tasks that come next
let past = []; // ids of the tasks that are done, oldest first
let pastEnded = false; // whether the server has no earlier ones
let reasked = null; // two images of the task in hand that are compared again
let flipped = null; // 0 or 1 while one of two images is shown at a time
let selected = null; // image in hand of best, rate and the order
let shownAt = Infinity; // when the images were painted
let drawn = null; // what was on the screen then
let paces = [], lastDone = null;
let exhausted = false, filling = false, offline = false, listening = false, timer = null;
let lastActive = Date.now(), lastRenewed = Date.now();

/* ---------------------------------------------------------------- tasks */

function makeTask(assignment) {
  const { id, prompt, question, images, presentation, sides } = assignment;
  const task = { id, prompt, question, shas: images, presentation, sides, judgements: [], failed: new Set(), loaded: false };
  take(task, assignment);
  tasks.set(id, task);
  return task;
}

/** The judgements of a task as the server has them, and those on their way. */
function take(task, assignment) {
  const known = new Set(assignment.judgements.map((judgement) => judgement.id));
  task.judgements = [...assignment.judgements, ...outbox.of(task.id).filter((judgement) => !known.has(judgement.id))];
  task.state = state(project, task.presentation, task.judgements);
}

const url = (sha) => `/images/${sha}.png`;

/** Fetches and decodes the images of a task; afterwards they can be painted at once. */
function load(task) {
  if (task.loading) return task.loading;
  task.elements = task.shas.map((sha) => picture(sha));
  task.thumbs = task.shas.map((sha) => picture(sha));
  task.loading = Promise.all(task.elements.map((element, position) => decoded(task, element, position))).then(() => {
    task.loaded = true;
    if (task.id === current) render();
  });
  return task.loading;
}

function picture(sha) {
  const element = new Image();
  element.decoding = "sync";
  element.draggable = false;
  element.alt = "";
  element.src = url(sha);
  return element;
}

async function decoded(task, element, position) {
  for (let attempt = 0; attempt < 4; attempt++) {
    try {
      await element.decode();
      task.failed.delete(position);
      return;
    } catch {
      if (attempt === 3) break;
      await new Promise((resolve) => setTimeout(resolve, 400 * 2 ** attempt));
      element.src = `${url(task.shas[position])}?again=${attempt}`;
    }
  }
  task.failed.add(position);
}

/** Decodes again what may be shown next, which the browser may have thrown away since. */
function decodeAhead(task) {
  const next = tasks.get(queue[0]);
  const images = [...(task?.elements ?? []), ...(next?.elements ?? [])];
  for (const element of images) if (!element.isConnected && element.complete) element.decode().catch(() => {});
}

/* ---------------------------------------------------------------- talking to the server */

/** Sees to it that the page has its tasks. */
async function fill() {
  const held = [current, ...queue].filter((id) => id !== null && !tasks.get(id).state.complete);
  if (filling || held.length >= HELD) return;
  filling = true;
  clearTimeout(timer);
  try {
    // Those that are done here are open for the server; after a reload it is not known which are.
    const unsent = outbox.assignments().filter((id) => tasks.get(id)?.state.complete ?? true);
    const count = Math.min(MOST_AT_ONCE, HELD + unsent.length);
    const answer = await request("POST", "/api/assignments", { count });
    offline = false;
    lastRenewed = Date.now();
    received(answer, count);
  } catch (error) {
    if (error instanceof HttpError && error.status === 401) loggedOut();
    else if (!passing(error)) notice(`No tasks were given out: ${error.message}.`);
    offline = true;
    if (current === null) render();
    timer = setTimeout(fill, 3000);
  } finally {
    filling = false;
  }
}

function received({ assignments, progress: given }, asked) {
  let added = 0;
  for (const assignment of assignments) {
    const known = tasks.get(assignment.id);
    const task = known ?? makeTask(assignment);
    if (task.state.complete || task.id === current || queue.includes(task.id)) continue;
    queue.push(task.id);
    added++;
  }
  takeProgress(given);
  exhausted = added === 0 && assignments.length < asked;
  for (const id of queue) load(tasks.get(id));
  if (current === null && queue.length) next();
  else if (current === null) render();
  else drawProgress();
  if (current === null) timer = setTimeout(fill, LOOK_AGAIN);
}

function takeProgress(given) {
  progress = given;
  for (const task of tasks.values()) {
    const unsent = new Set(outbox.of(task.id));
    task.counted = state(project, task.presentation, task.judgements.filter((one) => !unsent.has(one))).complete;
  }
}

/** Earlier tasks, before those that are known. Returns whether there were any. */
async function earlier() {
  if (pastEnded) return false;
  const before = past.length ? `&before=${past[0]}` : current !== null ? `&before=${current}` : "";
  const { assignments } = await request("GET", `/api/history?count=${RECENT}${before}`);
  pastEnded = assignments.length < RECENT;
  const found = assignments.map((assignment) => tasks.get(assignment.id) ?? makeTask(assignment));
  const older = found.filter((task) => task.state.complete && !past.includes(task.id)).map((task) => task.id);
  past = [...older.reverse(), ...past];
  for (const task of tasks.values()) task.counted ??= task.state.complete;
  return older.length > 0 || !pastEnded;
}

/** A task as the server has it, after it has refused something. */
async function reload(id) {
  const task = tasks.get(id);
  if (!task) return;
  try {
    const { assignments: kept } = await request("POST", "/api/assignments/renew", { assignments: [id] });
    take(task, await request("GET", `/api/assignments/${id}`));
    if (!task.state.complete && !kept.includes(id)) drop(id);
    else if (!task.state.complete && id !== current && !queue.includes(id)) {
      past = past.filter((other) => other !== id);
      queue.unshift(id);
    } else if (task.state.complete && id === current && !past.includes(id)) finish(task);
    reasked = null;
    if (current === null && queue.length) next();
    else render();
  } catch (error) {
    if (error instanceof HttpError && error.status === 404) drop(id);
    else setTimeout(() => reload(id), 3000);
  }
}

/** Forgets a task that is no longer this labeler's. */
function drop(id) {
  tasks.delete(id);
  queue = queue.filter((other) => other !== id);
  past = past.filter((other) => other !== id);
  if (current === id) next();
}

function answered(entry, receipt) {
  if (receipt.status !== "refused") return;
  notice(`An answer was not saved: ${receipt.reason}. The task is shown as it is saved.`);
  reload(entry.assignment);
}

let toldFailing = false;
function drawSaved({ unsaved, failing, loggedOut: out }) {
  const element = byId("saved");
  element.dataset.state = failing ? "failing" : unsaved ? "saving" : "saved";
  byId("saved-text").textContent = failing ? `Unsaved ${unsaved}, trying again` : unsaved ? `Unsaved ${unsaved}` : "Saved";
  if (failing && out) loggedOut();
  if (failing !== toldFailing) {
    toldFailing = failing;
    byId("announce-saved").textContent = failing
      ? "The server does not answer. Your answers are kept here and sent when it does."
      : "All answers are saved.";
    // Only the notice of the log-out: a refused answer, whose notice came with the same response, stays in sight.
    if (!failing && !byId("notice-link").hidden) closeNotice();
  }
}

function loggedOut() {
  notice("You are logged out. Your answers are kept here and sent when you have logged in again.", true);
}

function notice(text, link = false) {
  byId("notice-text").textContent = text;
  byId("notice-link").hidden = !link;
  byId("notice").hidden = false;
}

function closeNotice() {
  byId("notice").hidden = true;
}

async function renew() {
  const held = [current, ...queue].filter((id) => id !== null && !tasks.get(id).state.complete);
  lastRenewed = Date.now();
  if (!held.length) return;
  try {
    const kept = new Set((await request("POST", "/api/assignments/renew", { assignments: held })).assignments);
    for (const id of held) {
      const task = tasks.get(id);
      if (kept.has(id) || !task || task.state.complete || live(task.judgements).length) continue;
      const shown = id === current;
      drop(id);
      if (shown) announce("The task is no longer yours: it was kept for too long, or it is no longer asked for.");
    }
    fill();
  } catch {
    // The judgements themselves, or the next renewal, will say.
  }
}

function active() {
  lastActive = Date.now();
  // Back after the tasks' time was over: they may still be free.
  if (Date.now() - lastRenewed > 0.9 * 60_000 * project.lease_minutes) renew();
}

/* ---------------------------------------------------------------- what the labeler does */

/** Adds a judgement to a task, unless it does not fit, and sends it. */
function say(task, fields) {
  const judgement = { id: uuid(), ...fields };
  if (Number.isFinite(shownAt)) judgement.elapsed_ms = Math.round(performance.now() - shownAt);
  const refused = refusal(project, task.presentation, task.judgements, judgement);
  if (refused) {
    notice(`This is not possible: ${refused}.`);
    return false;
  }
  task.judgements.push(judgement);
  task.state = state(project, task.presentation, task.judgements);
  outbox.add(task.id, judgement);
  return true;
}

/** Whether an answer comes too soon after new images to be one to them: a bouncing key, the second of two clicks. */
function tooSoon(event) {
  const since = performance.now() - shownAt;
  return since < KEY_BOUNCE || (event?.detail > 1 && since < DOUBLE_CLICK);
}

function task() {
  return current === null ? null : tasks.get(current);
}

function liveOf(one, kind, fits = () => true) {
  return live(one.judgements).findLast((judgement) => judgement.kind === kind && fits(judgement)) ?? null;
}

/** Takes back what keeps a task from being answered again: a skip, or the confirmation of an order. */
function reopen(one) {
  const skip = liveOf(one, "skip");
  if (skip && !say(one, { kind: "undo", supersedes: skip.id })) return false;
  return true;
}

const OUTCOME_WORDS = { left: "Left is better", right: "Right is better", tie: "Equal", both_bad: "Both are bad" };

function compare(outcome, event) {
  const one = task(), pair = pairOf(one);
  if (!pair || tooSoon(event)) return;
  const [left, right] = pair;
  const earlierAnswer = liveOf(one, "compare", (old) => [old.left, old.right].every((image) => pair.includes(image)));
  const again = reasked !== null || one.state.question === null;
  if (again && earlierAnswer?.outcome === outcome && earlierAnswer.left === left && !one.state.skipped) {
    announce("The answer is as it was.");
    reasked = null;
    if (one.state.complete) finish(one);
    else render();
    return;
  }
  if (!reopen(one)) return;
  const fields = { kind: "compare", left, right, outcome };
  if (again && earlierAnswer) fields.supersedes = earlierAnswer.id;
  if (refusal(project, one.presentation, one.judgements, { id: "", ...fields })?.startsWith("the task is complete")) {
    const confirmed = liveOf(one, "order", (old) => old.confirmed);
    if (confirmed) say(one, { kind: "undo", supersedes: confirmed.id });
  }
  if (!say(one, fields)) return;
  if (outcome === "left" || outcome === "right") stage.pressed(outcome === "left" ? 0 : 1);
  reasked = null;
  announce(`${OUTCOME_WORDS[outcome]}.`);
  after(one);
}

function chooseBest(image, event) {
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

function rate(image, outcome, event) {
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
  selected = one.presentation.find((other) => !one.state.ratings.has(other)) ?? image;
  after(one);
}

function mark(image, word) {
  const one = task();
  if (!one || image === null || word === undefined) return;
  const on = !(one.state.marks.get(image) ?? []).includes(word);
  if (!say(one, { kind: "mark", image, outcome: word, on })) return;
  announce(`${nameOf(one, image)}: ${word} ${on ? "marked" : "no longer marked"}.`);
  render();
}

function skip(event) {
  const one = task();
  if (!one || tooSoon(event)) return;
  if (one.state.complete) return leave();
  if (!say(one, { kind: "skip" })) return;
  announce("Skipped.");
  after(one);
}

function arrange(newOrder, image) {
  const one = task();
  // Where nothing may share a place, images that won equally often are set apart as they are shown.
  const arranged = project.ties ? newOrder : newOrder.flatMap((group) => group.map((other) => [other]));
  selected = image;
  if (say(one, { kind: "order", order: arranged, confirmed: false })) {
    render(true);
    announce(`Image ${number(one, image)}: ${order.describe(image)}.`);
  }
}

function move(step) {
  const one = task();
  if (!one || !movable(one) || selected === null) return;
  const { order: now } = one.state;
  const placed = now.some((group) => group.includes(selected));
  const newOrder = placed
    ? stepped(now, selected, step, project.ties)
    : moved(now, selected, { group: now.length, join: false });
  if (newOrder !== now) arrange(newOrder, selected);
}

function confirm(event) {
  const one = task();
  if (!one || tooSoon(event)) return;
  if (project.mode === "best") {
    if (selected !== null) chooseBest(selected, event);
    return;
  }
  if (viewOf(one) !== "review") return;
  if (!project.ties && one.state.order.some((group) => group.length > 1)) {
    notice("Images that share a place must be put in order first: your answers contradict each other there.");
    return;
  }
  const confirmed = liveOf(one, "order")?.confirmed;
  if (project.confirm && !confirmed && !say(one, { kind: "order", order: one.state.order, confirmed: true })) return;
  announce("The order is confirmed.");
  finish(one);
}

function after(one) {
  if (one.state.complete) finish(one);
  else render(true);
}

function finish(one) {
  if (!past.includes(one.id)) {
    past.push(one.id);
    const now = performance.now();
    if (lastDone !== null) paces = [...paces.slice(1 - RECENT), Math.min(now - lastDone, PAUSE)];
    lastDone = now;
  }
  next();
}

function next() {
  current = queue.shift() ?? null;
  begin();
  fill();
}

/** Shows the task in hand from its beginning. */
function begin() {
  reasked = null;
  if (flipped !== null) flipped = 0;
  const one = task();
  selected = project.mode === "rate" ? one?.presentation.find((image) => !one.state.ratings.has(image)) ?? null : null;
  viewer.reset();
  if (one) load(one);
  render();
}

/** Takes an earlier task in hand; the one that was comes after it. */
function open(id) {
  if (id === current) return;
  if (current !== null && !task().state.complete) queue = [current, ...queue];
  queue = queue.filter((other) => other !== id);
  current = id;
  begin();
}

/** Goes back from an earlier task to the one that was in hand. */
function leave() {
  const one = task();
  if (!one || !past.includes(one.id)) return false;
  current = queue.shift() ?? null;
  if (!one.state.complete) {
    past = past.filter((id) => id !== one.id);
    if (current === null) current = one.id;
    else queue.unshift(one.id);
  }
  begin();
  fill();
  return true;
}

async function undo() {
  const one = task();
  if (reasked) {
    reasked = null;
    return render();
  }
  const last = one && live(one.judgements).at(-1);
  if (last) return takeBack(one, last);
  const at = one ? past.indexOf(one.id) : -1;
  let before = at < 0 ? past.at(-1) : past[at - 1];
  try {
    while (before === undefined && (await earlier())) before = past[(at < 0 ? past.length : past.indexOf(one.id)) - 1];
  } catch {
    return announce("Earlier tasks cannot be fetched now.");
  }
  if (before === undefined) return announce("There is nothing to undo.");
  open(before);
  takeBack(task(), live(task().judgements).at(-1));
}

function takeBack(one, judgement) {
  if (!judgement || !say(one, { kind: "undo", supersedes: judgement.id })) return;
  if (!one.state.complete) past = past.filter((id) => id !== one.id);
  announce("Taken back.");
  if (project.mode === "rate" && judgement.image != null) selected = judgement.image;
  render(true);
}

/* ---------------------------------------------------------------- what is on the screen */

function viewOf(one) {
  if (!one) return offline ? "offline" : exhausted ? "end" : "loading";
  if (!one.loaded) return "loading";
  if (project.mode === "best" || project.mode === "rate") return "many";
  return project.mode === "rank" && one.state.question === null && !reasked ? "review" : "compare";
}

/** The two images that are compared now, left and right; null where none are. */
function pairOf(one) {
  if (!one || viewOf(one) !== "compare") return null;
  const pair = reasked ?? one.state.question;
  if (pair) return leftRight(pair, one.presentation, one.sides);
  const answer = liveOf(one, "compare");
  return answer ? [answer.left, answer.right] : null;
}

function movable(one) {
  return project.mode === "rank" && !one.state.skipped && (project.transitive || one.state.question === null);
}

const number = (one, image) => one.presentation.indexOf(image) + 1;
const sides = () => (stacked.matches ? ["Top", "Bottom"] : ["Left", "Right"]);

function nameOf(one, image) {
  const pair = pairOf(one);
  return pair?.includes(image) ? `${sides()[pair.indexOf(image)]} image` : `Image ${number(one, image)}`;
}

function render(animate = false) {
  const one = task(), view = viewOf(one);
  // Drawn again with nothing new, as in a window of another size, the time to the answer goes on.
  const now = one && `${view} ${one.id} ${one.judgements.length} ${reasked}`;
  if (now !== drawn) shownAt = Infinity;
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
    if (project.mode === "rank") drawOrder(one, view, animate);
    if (view !== "review") drawStage(one, view);
    drawTools(one, view);
    body.dataset.task = one.id;
    // Two frames on, the images have been painted.
    requestAnimationFrame(() => {
      if (shownAt === Infinity) shownAt = performance.now();
      const box = byId("prompt");
      // A prompt that is longer than its box can be scrolled by keys.
      if (box.scrollHeight > box.clientHeight + 1) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
      setTimeout(() => decodeAhead(one));
    });
  } else delete body.dataset.task;
  drawProgress();
  if (history.shown) drawPast();
}

function drawStage(one, view) {
  const images = view === "compare" ? pairOf(one) : one.presentation;
  const answer = view === "compare" && !one.state.skipped && (reasked || one.state.question === null)
    ? liveOf(one, "compare", (old) => [old.left, old.right].every((image) => images.includes(image))) : null;
  const words = sides();
  const items = images.map((image, index) => ({
    image, sha: one.shas[image], element: one.elements[image], failed: one.failed.has(image),
    name: view === "compare" ? words[index] : `${number(one, image)}`,
    alt: view === "compare" ? `${words[index]} image` : `Image ${number(one, image)}`,
    marks: one.state.marks.get(image) ?? [], selected: view === "many" && selected === image,
    chosen: view === "compare"
      ? answer?.outcome === (index === 0 ? "left" : "right")
      : one.state.best === image || one.state.ratings.get(image) === "up",
    rating: one.state.ratings.get(image) ?? null,
  }));
  const aspects = images.map((image) => one.elements[image]).map((img) => img.naturalWidth / img.naturalHeight || 1);
  const two = { flipped, columns: flipped !== null || stacked.matches ? 1 : 2 };
  stage.show(items, Math.max(...aspects), view === "compare" ? two : {});
}

function drawQuestion(one, view) {
  const { order: now, waiting, answers, question } = one.state;
  let text = one.question ?? project.question, step = "";
  if (view === "review") {
    text = "Is this the right order?";
    step = "drag an image, or move the selected one by keys";
  }
  else if (reasked) text = `${text} You have compared these two before.`;
  else if (project.mode === "rank" && question) {
    const count = answers.size + 1;
    const most = project.transitive ? worstCase(one.presentation.length) : worstCase(one.presentation.length, false);
    step = `comparison ${count} of ${project.transitive ? "at most " : ""}${Math.max(most, count)}`;
  } else if (project.mode === "rate" && one.presentation.length > 1) {
    step = `${one.state.ratings.size} of ${one.presentation.length} rated`;
  }
  byId("question").textContent = text;
  byId("step").textContent = step;
  const isEarlier = past.includes(one.id);
  byId("earlier").hidden = !isEarlier;
  if (isEarlier) byId("earlier-text").textContent = `${summary(one)}.`;
  byId("order-title").textContent = view === "review" ? "Your order" : waiting.length || now.length ? "Order so far" : "Order";
}

/** The answer to a task in a few words. */
function summary(one) {
  const found = one.state;
  if (found.skipped) return "Skipped";
  if (!found.complete) return "Not finished";
  if (project.mode === "best") return found.best === null ? "None is good" : `Image ${number(one, found.best)} is the best`;
  if (project.mode === "rate") {
    const up = [...found.ratings.values()].filter((rating) => rating === "up").length;
    return found.ratings.size === 1 ? (up ? "Good" : "Not good") : `${up} of ${found.ratings.size} are good`;
  }
  if (project.mode === "rank") return `Order of ${one.presentation.length} images`;
  return OUTCOME_WORDS[liveOf(one, "compare").outcome];
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
    compare: ["left", project.ties && "tie", project.both_bad && "both_bad", "right"],
    many: project.mode === "best" ? [project.both_bad && "none"] : [],
    review: ["better", "worse", "confirm"],
  }[view].filter(Boolean);
  const words = {
    left: `${sides()[0]} is better`, right: `${sides()[1]} is better`, tie: "Equal", both_bad: "Both are bad",
    none: "None is good", better: "Better", worse: "Worse",
    confirm: project.confirm && !liveOf(one, "order")?.confirmed ? "Confirm the order" : "Done",
  };
  const what = names.map((name) => `${name} ${words[name]} ${bound.get(name)}`).join("|");
  if (what === drawnAnswers) return;
  drawnAnswers = what;
  const focused = document.activeElement?.closest?.("#answers [data-act]")?.dataset.act;
  byId("answers").replaceChildren(...names.map((name) => answerButton(name, words[name], bound.get(name))));
  byId("answers").dataset.kind = view;
  byId("answers").hidden = !names.length;
  if (focused) byId("answers").querySelector(`[data-act="${focused}"]`)?.focus();
}

function drawOrder(one, view, animate) {
  const { order: now, waiting, question, conflicts, marks } = one.state;
  const all = [...now.flat(), ...waiting];
  if (view === "review" && (selected === null || !all.includes(selected))) selected = all[0];
  byId("order").hidden = false;
  byId("order").style.setProperty("--thumb", `${thumbSize(one, view)}px`);
  order.show({
    presentation: one.presentation, order: now, waiting, conflicts, marks, ties: project.ties, selected,
    question: view === "compare" ? reasked ?? question : null, movable: movable(one),
    thumb: (image) => one.thumbs[image],
  }, animate);
  if (view === "review" && !keys.open && !history.shown && !instructions.shown) {
    if (!document.activeElement || document.activeElement === body) order.focus(selected);
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
    const [a, b] = [better, worse].map((image) => {
      const small = make("img", "tiny", "", { src: url(one.shas[image]), alt: `image ${number(one, image)}` });
      return small;
    });
    const again = make("button", "", "Compare again", { type: "button" });
    again.addEventListener("click", () => {
      reasked = [better, worse];
      render();
      announce("Compare these two again.");
    });
    item.append("You said ", a, equal ? " and " : " is better than ", b, equal ? " are equal, but " : ", but ", apart, again);
    return item;
  }));
}

function drawTools(one, view) {
  const show = (name, on) => {
    for (const button of document.querySelectorAll(`#tools [data-act="${name}"]`)) button.hidden = !on;
  };
  show("skip", project.skip && !one.state.complete);
  show("flip", view === "compare");
  show("side_by_side", view === "compare" && flipped !== null);
  for (const name of ["zoom_in", "zoom_out", "zoom_reset"]) show(name, view !== "review");
  drawScale();
}

function drawScale() {
  byId("scale").textContent = `${Math.round(100 * viewer.scale)} %`;
}

function drawMessage(view) {
  const texts = {
    loading: ["Loading", outbox?.size ? "Your answers have to be saved before there are further tasks." : ""],
    offline: ["The server cannot be reached", "Your answers are kept here. The page tries again by itself."],
    end: ["Nothing is left to label", "Thank you. When there are new tasks, they appear here by themselves."],
  }[view];
  if (!texts) return;
  if (byId("message-title").textContent !== texts[0]) byId("message-title").textContent = texts[0];
  if (byId("message-text").textContent !== texts[1]) byId("message-text").textContent = texts[1];
  byId("again").hidden = view === "loading";
  byId("look-back").hidden = view !== "end" || past.length === 0;
  const done = Math.max(0, doneCount());
  byId("message-figures").textContent = view === "end" && done ? `You have done ${plural(done, "task")}.` : "";
}

const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

function doneCount() {
  let done = progress.done;
  for (const one of tasks.values()) done += Number(one.state.complete) - Number(one.counted ?? false);
  return done;
}

function drawProgress() {
  const done = doneCount(), all = Math.max(progress.available, done);
  byId("progress").max = Math.max(all, 1);
  byId("progress").value = done;
  byId("count").textContent = all ? `${done} of ${all}` : "";
  let text = "";
  if (paces.length >= 3) {
    const minutes = paces.reduce((sum, pace) => sum + pace, 0) / 60_000 / paces.length;
    const rate = 1 / minutes, left = (all - done) * minutes;
    text = `${rate < 10 ? rate.toFixed(1) : Math.round(rate)} a minute`;
    if (all > done) text += `, ${duration(left)} left`;
  }
  byId("pace").textContent = text;
}

function duration(minutes) {
  if (minutes < 1) return "under 1 min";
  if (minutes < 90) return `about ${Math.round(minutes)} min`;
  return `about ${(minutes / 60).toFixed(1)} h`;
}

let announced = 0;
function announce(text) {
  // The same words twice are read twice only where the text differs.
  byId("announce").textContent = text + (announced++ % 2 ? "\u00a0" : "");
}

function drawPast() {
  const ids = [...past].reverse();
  if (current !== null && !past.includes(current) && live(task().judgements).length) ids.unshift(current);
  drawHistory(ids.map((id) => {
    const one = tasks.get(id), found = one.state;
    const images = project.mode === "rank" && found.question === null ? found.order.flat()
      : project.mode === "pair" && liveOf(one, "compare")
        ? ["left", "right"].map((side) => liveOf(one, "compare")[side]) : one.presentation;
    const answer = liveOf(one, "compare");
    const best = (image) => (
      project.mode === "pair" ? answer && answer[answer.outcome] === image
        : project.mode === "best" ? found.best === image : found.ratings.get(image) === "up"
    );
    return {
      id, prompt: one.prompt, current: id === current, answer: summary(one),
      images: images.map((image) => ({ url: url(one.shas[image]), best: Boolean(best(image)) })),
    };
  }), !pastEnded, (id) => {
    open(id);
    if (innerWidth < 900) history.close();
  });
}

/* ---------------------------------------------------------------- keys, buttons, pointers */

function run(name, event) {
  const action = actions.find((one) => one.name === name);
  const one = task(), view = viewOf(one);
  if (["left", "right", "tie", "both_bad"].includes(name)) return view === "compare" && compare(name, event);
  if (action?.mark) {
    const pair = pairOf(one);
    const image = pair ? { left: pair[0], right: pair[1] }[action.on] : selected;
    return mark(image ?? null, project.marks[action.mark - 1]);
  }
  if (action?.image) return view === "many" && chooseBest(one.presentation[action.image - 1], event);
  switch (name) {
    case "none": return view === "many" && chooseBest(null, event);
    case "up": case "down": return view === "many" && rate(selected, name, event);
    case "confirm": return confirm(event);
    case "skip": return skip(event);
    case "undo": return undo();
    case "previous": return selectNext(-1);
    case "next": return selectNext(1);
    case "arrange": return toOrder();
    case "better": return move(-1);
    case "worse": return move(1);
    case "flip":
      if (view === "compare") setFlip(flipped === 0 ? 1 : 0);
      return undefined;
    case "side_by_side": return setFlip(null);
    case "zoom_in": viewer.zoom(1); return drawScale();
    case "zoom_out": viewer.zoom(-1); return drawScale();
    case "zoom_reset": viewer.reset(); return drawScale();
    case "history": return history.toggle();
    case "instructions": return project.instructions_html && instructions.toggle();
    case "help": return keys.toggle();
    default: return undefined;
  }
}

function setFlip(to) {
  flipped = to;
  const one = task();
  if (viewOf(one) !== "compare") return;
  drawStage(one, "compare");
  drawTools(one, "compare");
  const button = document.querySelector('#tools [data-act="flip"]');
  button.setAttribute("aria-pressed", flipped !== null);
  if (flipped !== null) announce(`${sides()[flipped]} image.`);
}

function selectNext(step) {
  const one = task();
  if (!one || viewOf(one) !== "many") return;
  const at = one.presentation.indexOf(selected), count = one.presentation.length;
  selected = one.presentation[at < 0 ? (step > 0 ? 0 : count - 1) : (at + step + count) % count];
  drawStage(one, "many");
  announce(`Image ${number(one, selected)}.`);
}

function inOrder() {
  return document.activeElement?.closest?.(".thumb") != null;
}

function toOrder() {
  if (inOrder()) return document.activeElement.blur();
  const one = task();
  if (!one || project.mode !== "rank") return;
  selected ??= one.state.order[0]?.[0] ?? one.state.waiting[0];
  return order.focus(selected);
}

/** Keys within the order: arrows go through it, and move the image with Shift. */
function orderKey(key) {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[key.replace("Shift+", "")];
  const images = order.images();
  const at = images.indexOf(selected);
  if (key === "Home" || key === "End") selected = images.at(key === "Home" ? 0 : -1);
  else if (!step) return false;
  else if (key.startsWith("Shift+")) {
    move(step);
    return true;
  } else selected = images[Math.max(0, Math.min(images.length - 1, at + step))];
  order.select(selected);
  order.focus(selected);
  return true;
}

function onKey(event) {
  active();
  if (keys.open) {
    // The overlay's own key closes it too.
    if (keys.help.open && keyOf(event) === bound.get("help")) {
      event.preventDefault();
      keys.toggle();
    }
    return;
  }
  const target = event.target;
  if (target.closest("input, textarea, select, [contenteditable]")) return;
  const key = keyOf(event);
  if (key === null) return;
  if (key === "Escape") return escape(event);
  const control = target.closest("button, a, summary");
  if (control && !control.classList.contains("thumb") && (key === "Enter" || key === " ")) {
    if (event.repeat) event.preventDefault(); // held down, it would press the button again and again
    return;
  }
  if (target.closest("#prompt[tabindex], .prose") && /^(Arrow|Page|Home|End| )/.test(key)) return;
  const one = task(), view = viewOf(one);
  if (one && project.mode === "rank" && (view === "review" || inOrder()) && orderKey(key)) {
    event.preventDefault();
    return;
  }
  const action = actionOf(actions, bound, key);
  if (!action) return;
  event.preventDefault();
  if (event.repeat && !action.repeats) return;
  run(action.name, event);
}

function escape(event) {
  if (order.dragging) return order.cancel();
  if (history.close() || instructions.close()) return event.preventDefault();
  if (reasked) {
    reasked = null;
    return render();
  }
  if (inOrder() && viewOf(task()) !== "review") return document.activeElement.blur();
  if (flipped !== null) return setFlip(null);
  return leave();
}

function clicked(index, event) {
  const one = task();
  if (!one || viewer.dragged()) return;
  if (viewOf(one) === "compare") return compare(flipped === null ? ["left", "right"][index] : ["left", "right"][flipped], event);
  const image = one.presentation[index];
  if (project.mode === "best") return chooseBest(image, event);
  selected = image;
  return drawStage(one, "many");
}

function cardAct(kind, image, event, word) {
  selected = viewOf(task()) === "many" ? image : selected;
  if (kind === "choose") chooseBest(image, event);
  else if (kind === "mark") mark(image, word);
  else rate(image, kind, event);
}

/** Titles of the buttons with the keys that do the same. */
function drawHints() {
  for (const button of document.querySelectorAll(".bar [data-act], .tools [data-act]")) {
    const action = actions.find((one) => one.name === button.dataset.act);
    if (!action) continue;
    const key = shownKey(bound.get(action.name));
    button.title = `${action.title} (${key})`;
    const hint = button.querySelector("kbd");
    if (hint) hint.textContent = key;
  }
  drawnAnswers = "";
}

function listen() {
  listening = true;
  document.addEventListener("keydown", onKey);
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    const name = button?.dataset.act;
    if (name) run(name, event);
    // The keys after a click are for the images, not for the button that was clicked.
    if (button && event.detail > 0 && !button.closest("dialog, .side, .thumb") && document.activeElement === button) button.blur();
  });
  document.addEventListener("pointerdown", active);
  byId("stage").addEventListener("wheel", () => requestAnimationFrame(drawScale), { passive: true });
  byId("leave").addEventListener("click", leave);
  byId("notice-close").addEventListener("click", closeNotice);
  byId("again").addEventListener("click", fill);
  byId("look-back").addEventListener("click", () => history.open());
  byId("history-more").addEventListener("click", async () => {
    await earlier().catch(() => notice("Earlier tasks cannot be fetched now."));
    drawPast();
  });
  window.addEventListener("online", () => {
    outbox.flush();
    fill();
  });
  window.addEventListener("focus", () => {
    if (outbox.size) outbox.flush();
    if (current === null) fill();
  });
  window.addEventListener("beforeunload", (event) => {
    if (outbox.size) event.preventDefault();
  });
  window.addEventListener("pagehide", release);
  window.addEventListener("pageshow", (event) => {
    if (event.persisted) location.reload();
  });
  window.addEventListener("resize", () => render());
  stacked.addEventListener("change", () => render());
  setInterval(() => {
    const lease = 60_000 * project.lease_minutes;
    if (lastActive > lastRenewed && Date.now() - lastRenewed > lease / 3) renew();
  }, 5000);
}

/** Gives back what was fetched ahead. What was begun stays this labeler's for the time of its lease. */
function release() {
  const untouched = [current, ...queue].filter((id) => id !== null && tasks.get(id).judgements.length === 0);
  if (!untouched.length) return;
  navigator.sendBeacon("/api/assignments/release", JSON.stringify({ assignments: untouched }));
}

/* ---------------------------------------------------------------- the beginning */

async function introduce() {
  for (let wait = 500; ; wait = Math.min(2 * wait, 10_000)) {
    try {
      return await request("GET", "/api/me");
    } catch (error) {
      if (error instanceof HttpError && error.status === 401) location.assign("/login");
      offline = true;
      body.dataset.view = "offline";
      drawMessage("offline");
      await new Promise((resolve) => setTimeout(resolve, wait));
    }
  }
}

function setKeys(given) {
  own = given;
  bound = bindings(actions, own);
  drawHints();
}

async function start() {
  const me = await introduce();
  project = me.project;
  progress = me.progress;
  offline = false;
  actions = actionsOf(project);
  byId("title").textContent = document.title = project.title;
  const key = `tastemaker:${project.uuid}:${me.name}:`;
  outbox = makeOutbox({
    key: `${key}unsaved:`, storage: localStorage, received: answered,
    changed: (status) => {
      drawSaved(status);
      if (listening && !status.unsaved && current === null) fill(); // what was full of unsaved tasks has room again
    },
  });
  stage = makeStage({ stage: byId("stage"), marks: project.marks, mode: project.mode, chosen: clicked, act: cardAct });
  viewer = makeViewer(byId("stage"), stage.frameAt);
  order = makeOrder({
    list: byId("places"), waitingList: byId("waiting"), arranged: arrange,
    selected: (image) => {
      selected = image;
    },
  });
  keys = makeKeys({
    actions, own: () => own,
    keep: (given) => {
      setKeys(given);
      render();
      announce("The keys are saved.");
    },
  });
  history = makeSide("history", { opened: drawPast });
  const read = `${key}instructions`;
  instructions = makeSide("instructions", { closed: () => localStorage.setItem(read, project.instructions_html) });
  byId("instructions-text").innerHTML = project.instructions_html; // rendered by the server, which escapes HTML in it
  document.querySelector('.bar [data-act="instructions"]').hidden = !project.instructions_html;
  setKeys(me.keys);
  await outbox.flush();
  drawSaved({ unsaved: outbox.size, failing: outbox.size > 0, loggedOut: false });
  await earlier().catch(() => {});
  listen();
  if (project.instructions_html && localStorage.getItem(read) !== project.instructions_html) instructions.open(false);
  new ResizeObserver(() => render()).observe(byId("stage"));
  await fill();
}

start();
