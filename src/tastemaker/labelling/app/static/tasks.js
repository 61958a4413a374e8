/** The tasks of the page: fetched ahead, taken in hand one after the other, kept for the labeler, and given back. */

import { announce, loggedOut, notice } from "./messages.js";
import { HttpError, passing, request } from "./outbox.js";
import { page, RECENT, task } from "./page.js";
import { load } from "./pictures.js";
import { drawProgress } from "./progress.js";
import { live, state } from "./ranking.js";
import { render } from "./screen.js";

const HELD = 5; // tasks that the page has: the one in hand, and those fetched and decoded ahead
const MOST_AT_ONCE = 20; // open tasks that the server gives out at a time
const LOOK_AGAIN = 15_000, PAUSE = 60_000;

let filling = false, timer = null, lastActive = Date.now(), lastRenewed = Date.now();
let lastDone = null; // when a task was last finished

function makeTask(assignment) {
  const { id, prompt, question, images, presentation, sides } = assignment;
  const task = {
    id, prompt, question, shas: images, presentation, sides, judgements: [], failed: new Set(), loaded: false,
  };
  take(task, assignment);
  page.tasks.set(id, task);
  return task;
}

/** The judgements of a task as the server has them, and those on their way. */
function take(task, assignment) {
  const known = new Set(assignment.judgements.map((judgement) => judgement.id));
  const unsent = page.outbox.of(task.id).filter((judgement) => !known.has(judgement.id));
  task.judgements = [...assignment.judgements, ...unsent];
  task.state = state(page.project, task.presentation, task.judgements);
}

/** Fetches the images of a task, which is drawn when they are there, if it is in hand then. */
function fetchImages(one) {
  load(one, () => {
    if (one.id === page.current) render();
  });
}

/** Sees to it that the page has its tasks. */
export async function fill() {
  const held = [page.current, ...page.queue].filter((id) => id !== null && !page.tasks.get(id).state.complete);
  if (filling || held.length >= HELD) return;
  filling = true;
  clearTimeout(timer);
  try {
    // Those that are done here are open for the server; after a reload it is not known which are.
    const unsent = page.outbox.assignments().filter((id) => page.tasks.get(id)?.state.complete ?? true);
    const count = Math.min(MOST_AT_ONCE, HELD + unsent.length);
    const answer = await request("POST", "/api/assignments", { count });
    page.offline = false;
    lastRenewed = Date.now();
    received(answer, count);
  } catch (error) {
    if (error instanceof HttpError && error.status === 401) loggedOut();
    else if (!passing(error)) notice(`No tasks were given out: ${error.message}.`);
    page.offline = true;
    if (page.current === null) render();
    timer = setTimeout(fill, 3000);
  } finally {
    filling = false;
  }
}

function received({ assignments, progress: given }, asked) {
  let added = 0;
  for (const assignment of assignments) {
    const known = page.tasks.get(assignment.id);
    const task = known ?? makeTask(assignment);
    if (task.state.complete || task.id === page.current || page.queue.includes(task.id)) continue;
    page.queue.push(task.id);
    added++;
  }
  takeProgress(given);
  page.exhausted = added === 0 && assignments.length < asked;
  for (const id of page.queue) fetchImages(page.tasks.get(id));
  if (page.current === null && page.queue.length) next();
  else if (page.current === null) render();
  else drawProgress();
  if (page.current === null) timer = setTimeout(fill, LOOK_AGAIN);
}

function takeProgress(given) {
  page.progress = given;
  for (const task of page.tasks.values()) {
    const unsent = new Set(page.outbox.of(task.id));
    task.counted = state(page.project, task.presentation, task.judgements.filter((one) => !unsent.has(one))).complete;
  }
}

/** Earlier tasks, before those that are known. Returns whether there were any. */
export async function earlier() {
  if (page.pastEnded) return false;
  const first = page.past[0] ?? page.current;
  const before = first === null ? "" : `&before=${first}`;
  const { assignments } = await request("GET", `/api/history?count=${RECENT}${before}`);
  page.pastEnded = assignments.length < RECENT;
  const found = assignments.map((assignment) => page.tasks.get(assignment.id) ?? makeTask(assignment));
  const older = found.filter((task) => task.state.complete && !page.past.includes(task.id)).map((task) => task.id);
  page.past = [...older.reverse(), ...page.past];
  for (const task of page.tasks.values()) task.counted ??= task.state.complete;
  return older.length > 0 || !page.pastEnded;
}

/** To be called with what the server said of each judgement. */
export function answered(entry, receipt) {
  if (receipt.status !== "refused") return;
  notice(`An answer was not saved: ${receipt.reason}. The task is shown as it is saved.`);
  reload(entry.assignment);
}

/** A task as the server has it, after it has refused something. */
async function reload(id) {
  const task = page.tasks.get(id);
  if (!task) return;
  try {
    const { assignments: kept } = await request("POST", "/api/assignments/renew", { assignments: [id] });
    take(task, await request("GET", `/api/assignments/${id}`));
    if (!task.state.complete && !kept.includes(id)) drop(id);
    else if (!task.state.complete && id !== page.current && !page.queue.includes(id)) {
      page.past = page.past.filter((other) => other !== id);
      page.queue.unshift(id);
    } else if (task.state.complete && id === page.current && !page.past.includes(id)) finish(task);
    page.reasked = null;
    if (page.current === null && page.queue.length) next();
    else render();
  } catch (error) {
    if (error instanceof HttpError && error.status === 404) drop(id);
    else setTimeout(() => reload(id), 3000);
  }
}

/** Forgets a task that is no longer this labeler's. */
function drop(id) {
  page.tasks.delete(id);
  page.queue = page.queue.filter((other) => other !== id);
  page.past = page.past.filter((other) => other !== id);
  if (page.current === id) next();
}

/* ---------------------------------------------------------------- one after the other */

/** Goes on to the next task. */
export function finish(one) {
  if (!page.past.includes(one.id)) {
    page.past.push(one.id);
    const now = performance.now();
    if (lastDone !== null) page.paces = [...page.paces.slice(1 - RECENT), Math.min(now - lastDone, PAUSE)];
    lastDone = now;
  }
  next();
}

function next() {
  page.current = page.queue.shift() ?? null;
  begin();
  fill();
}

/** Shows the task in hand from its beginning. */
function begin() {
  page.reasked = null;
  if (page.flipped !== null) page.flipped = 0;
  const one = task();
  const toRate = page.project.mode === "rate" ? one?.presentation ?? [] : [];
  page.selected = toRate.find((image) => !one.state.ratings.has(image)) ?? null;
  page.viewer.reset();
  if (one) fetchImages(one);
  render();
}

/** Takes an earlier task in hand; the one that was comes after it. */
export function open(id) {
  if (id === page.current) return;
  if (page.current !== null && !task().state.complete) page.queue = [page.current, ...page.queue];
  page.queue = page.queue.filter((other) => other !== id);
  page.current = id;
  begin();
}

/** Goes back from an earlier task to the one that was in hand. */
export function leave() {
  const one = task();
  if (!one || !page.past.includes(one.id)) return false;
  page.current = page.queue.shift() ?? null;
  if (!one.state.complete) {
    page.past = page.past.filter((id) => id !== one.id);
    if (page.current === null) page.current = one.id;
    else page.queue.unshift(one.id);
  }
  begin();
  fill();
  return true;
}

/* ---------------------------------------------------------------- kept for the labeler */

/** Begins the leases of the page's tasks anew, and forgets those that are no longer this labeler's. */
async function renew() {
  const held = [page.current, ...page.queue].filter((id) => id !== null && !page.tasks.get(id).state.complete);
  lastRenewed = Date.now();
  if (!held.length) return;
  try {
    const kept = new Set((await request("POST", "/api/assignments/renew", { assignments: held })).assignments);
    for (const id of held) {
      const task = page.tasks.get(id);
      if (kept.has(id) || !task || task.state.complete || live(task.judgements).length) continue;
      const shown = id === page.current;
      drop(id);
      if (shown) announce("The task is no longer yours: it was kept for too long, or it is no longer asked for.");
    }
    fill();
  } catch {
    // The judgements themselves, or the next renewal, will say.
  }
}

/** To be called for whatever the labeler does. */
export function active() {
  lastActive = Date.now();
  // Back after the tasks' time was over: they may still be free.
  if (Date.now() - lastRenewed > 0.9 * 60_000 * page.project.lease_minutes) renew();
}

/** To be called from time to time: renews the leases of a labeler who is there. */
export function renewInTime() {
  const lease = 60_000 * page.project.lease_minutes;
  if (lastActive > lastRenewed && Date.now() - lastRenewed > lease / 3) renew();
}

/** Gives back what was fetched ahead. What was begun stays this labeler's for the time of its lease. */
export function release() {
  const held = [page.current, ...page.queue].filter((id) => id !== null);
  const untouched = held.filter((id) => page.tasks.get(id).judgements.length === 0);
  if (!untouched.length) return;
  navigator.sendBeacon("/api/assignments/release", JSON.stringify({ assignments: untouched }));
}
