/** What the labelling page has in hand, which the files of the page share, and what follows from it. */

import { leftRight, live } from "./ranking.js";

export const byId = (id) => document.getElementById(id);
export const RECENT = 20; // earlier tasks that are fetched at once, and tasks that the pace is the mean of
const stacked = matchMedia("(max-width: 640px) and (orientation: portrait)");

export const page = {
  project: null, // as /api/me has it
  actions: [], // of keys.js
  own: {}, // the labeler's own keys
  bound: new Map(), // the key of each action
  progress: { done: 0, available: 0 },
  tasks: new Map(), // by id
  current: null, // the id of the task in hand
  queue: [], // ids of the tasks that come next
  past: [], // ids of the tasks that are done, oldest first
  pastEnded: false, // whether the server has no earlier ones
  reasked: null, // two images of the task in hand that are compared again
  flipped: null, // 0 or 1 while one of two images is shown at a time
  selected: null, // image in hand of best, rate and the order
  shownAt: Infinity, // when the images were painted
  paces: [], // milliseconds of the latest tasks
  exhausted: false, // whether the server has no further tasks
  offline: false, // whether it did not answer
  // The parts of the page, which label.js makes.
  outbox: null, stage: null, viewer: null, order: null, keys: null, instructions: null, history: null,
};

/** Whether two images stand one above the other. */
export const isStacked = () => stacked.matches;
export const onStacked = (changed) => stacked.addEventListener("change", changed);

/** The task in hand, or null. */
export function task() {
  return page.current === null ? null : page.tasks.get(page.current);
}

/** The last judgement of a kind that is in force, or null. */
export function liveOf(one, kind, fits = () => true) {
  return live(one.judgements).findLast((judgement) => judgement.kind === kind && fits(judgement)) ?? null;
}

/** What is shown of a task: "compare" (two images), "many", "review" (the order); without one a message. */
export function viewOf(one) {
  if (!one) return page.offline ? "offline" : page.exhausted ? "end" : "loading";
  if (!one.loaded) return "loading";
  if (page.project.mode === "best" || page.project.mode === "rate") return "many";
  return page.project.mode === "rank" && one.state.question === null && !page.reasked ? "review" : "compare";
}

/** The two images that are compared now, left and right; null where none are. */
export function pairOf(one) {
  if (!one || viewOf(one) !== "compare") return null;
  const pair = page.reasked ?? one.state.question;
  if (pair) return leftRight(pair, one.presentation, one.sides);
  const answer = liveOf(one, "compare");
  return answer ? [answer.left, answer.right] : null;
}

/** Whether the order of a task can be rearranged. */
export function movable(one) {
  return page.project.mode === "rank" && !one.state.skipped && (page.project.transitive || one.state.question === null);
}

/** The number by which people know an image of a task. */
export const number = (one, image) => one.presentation.indexOf(image) + 1;
export const sides = () => (isStacked() ? ["Top", "Bottom"] : ["Left", "Right"]);

export function nameOf(one, image) {
  const pair = pairOf(one);
  return pair?.includes(image) ? `${sides()[pair.indexOf(image)]} image` : `Image ${number(one, image)}`;
}

export const OUTCOME_WORDS = {
  left: "Left is better", right: "Right is better", tie: "Equal", both_bad: "Both are bad",
};

/** The answer to a task in a few words. */
export function summary(one) {
  const found = one.state;
  if (found.skipped) return "Skipped";
  if (!found.complete) return "Not finished";
  if (page.project.mode === "best") {
    return found.best === null ? "None is good" : `Image ${number(one, found.best)} is the best`;
  }
  if (page.project.mode === "rate") {
    const up = [...found.ratings.values()].filter((rating) => rating === "up").length;
    return found.ratings.size === 1 ? (up ? "Good" : "Not good") : `${up} of ${found.ratings.size} are good`;
  }
  if (page.project.mode === "rank") return `Order of ${one.presentation.length} images`;
  return OUTCOME_WORDS[liveOf(one, "compare").outcome];
}
