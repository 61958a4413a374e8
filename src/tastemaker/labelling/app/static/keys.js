/** The keys of the labelling page: what can be done, with which key, and where two actions would share one. */

const ALL = ["pair", "rank", "best", "rate"];
const TWO = ["pair", "rank"];
const MANY = ["best", "rate"];
const digits = [1, 2, 3, 4, 5, 6, 7, 8, 9];

/**
 * What can be done by key: `name`, `title`, the usual `key`, other keys that always work (`also`), and the `modes` of
 * projects that have it. `repeats` may be held down.
 */
export const ACTIONS = [
  { group: "Answer", name: "left", title: "The left image is better", key: "ArrowLeft", modes: TWO },
  { group: "Answer", name: "right", title: "The right image is better", key: "ArrowRight", modes: TWO },
  { group: "Answer", name: "tie", title: "Both are equally good", key: "ArrowDown", modes: TWO, needs: "ties" },
  { group: "Answer", name: "both_bad", title: "Both are bad", key: "x", modes: TWO, needs: "both_bad" },
  { group: "Answer", name: "none", title: "None is good", key: "x", modes: ["best"], needs: "both_bad" },
  ...digits.map((n) => ({
    group: "Answer", name: `image_${n}`, title: `Image ${n} is the best`, key: `${n}`, modes: ["best"], image: n,
  })),
  { group: "Answer", name: "up", title: "Good", key: "ArrowUp", modes: ["rate"] },
  { group: "Answer", name: "down", title: "Not good", key: "ArrowDown", modes: ["rate"] },
  { group: "Answer", name: "confirm", title: "Confirm the order, or choose the selected image", key: "Enter",
    modes: ["rank", "best"] },
  { group: "Answer", name: "skip", title: "Skip the task", key: "s", modes: ALL, needs: "skip" },
  { group: "Answer", name: "undo", title: "Undo, back over earlier tasks", key: "z", also: ["Ctrl+z"], modes: ALL },
  { group: "Select", name: "previous", title: "Select the image before", key: "ArrowLeft", modes: MANY, repeats: true },
  { group: "Select", name: "next", title: "Select the image after", key: "ArrowRight", modes: MANY, repeats: true },
  { group: "Order", name: "arrange", title: "Go to the order, and back", key: "o", modes: ["rank"] },
  { group: "Order", name: "better", title: "Move the selected image towards the best", key: "[", also: ["Alt+ArrowUp"],
    modes: ["rank"], repeats: true },
  { group: "Order", name: "worse", title: "Move the selected image towards the worst", key: "]",
    also: ["Alt+ArrowDown"], modes: ["rank"], repeats: true },
  ...digits.map((n) => ({
    group: "Marks", name: `mark_left_${n}`, title: "left image", key: `${n}`, modes: TWO, mark: n, on: "left",
  })),
  ...digits.map((n) => ({
    group: "Marks", name: `mark_right_${n}`, title: "right image", key: `Shift+${n}`, modes: TWO, mark: n, on: "right",
  })),
  ...digits.map((n) => ({
    group: "Marks", name: `mark_${n}`, title: "selected image", key: `Shift+${n}`, modes: MANY, mark: n, on: "selected",
  })),
  { group: "View", name: "flip", title: "Show the two images in turn, in one place", key: " ", modes: TWO },
  { group: "View", name: "side_by_side", title: "Show them side by side", key: "v", modes: TWO },
  { group: "View", name: "zoom_in", title: "Zoom in on all images", key: "+", also: ["="], modes: ALL, repeats: true },
  { group: "View", name: "zoom_out", title: "Zoom out", key: "-", modes: ALL, repeats: true },
  { group: "View", name: "zoom_reset", title: "Whole images", key: "0", modes: ALL },
  { group: "Page", name: "history", title: "Earlier tasks", key: "h", modes: ALL },
  { group: "Page", name: "instructions", title: "Instructions", key: "i", modes: ALL },
  { group: "Page", name: "help", title: "Keys", key: "?", modes: ALL },
];

/** Keys that keep their meaning on every page. */
const FIXED = new Set(["Tab", "Shift+Tab", "Escape"]);

/** The actions of a project, with the marks' words in their titles. */
export function actionsOf(project) {
  return ACTIONS.filter(
    (action) =>
      action.modes.includes(project.mode) && (!action.needs || project[action.needs]) &&
      (!action.image || action.image <= project.images) && (!action.mark || action.mark <= project.marks.length),
  ).map((action) => (
    action.mark ? { ...action, title: `Mark the ${action.title}: ${project.marks[action.mark - 1]}` } : action
  ));
}

/** The key of each action: the user's own, and else the usual one. */
export function bindings(actions, own) {
  return new Map(actions.map((action) => [action.name, own[action.name] ?? action.key]));
}

/**
 * A key press as it is written in the settings: "z", "ArrowLeft", "Shift+1", "Ctrl+z"; null for a modifier alone.
 * Digits are those of the key, whatever the keyboard's layout writes with Shift; other characters are as written.
 */
export function keyOf(event) {
  if (["Shift", "Control", "Alt", "Meta", "AltGraph", "Dead", "Process", "Unidentified"].includes(event.key)) return null;
  const digit = /^(?:Digit|Numpad)([0-9])$/.exec(event.code);
  const letter = /^\p{L}$/u.test(event.key);
  const key = digit ? digit[1] : letter ? event.key.toLowerCase() : event.key;
  const written = [...key].length === 1 && !digit && !letter && key !== " ";
  const prefix = [
    (event.ctrlKey || event.metaKey) && "Ctrl", event.altKey && "Alt", event.shiftKey && !written && "Shift",
  ].filter(Boolean);
  // AltGr, with which many layouts write brackets, reports itself as Ctrl and Alt.
  if (written && event.getModifierState?.("AltGraph")) return key;
  return [...prefix, key].join("+");
}

/** The action for a key, or null. */
export function actionOf(actions, bound, key) {
  return actions.find((action) => bound.get(action.name) === key)
    ?? actions.find((action) => action.also?.includes(key)) ?? null;
}

/** Why a key cannot be an action's, as a sentence; null where it can. */
export function keyRefusal(actions, bound, name, key) {
  if (FIXED.has(key)) return `${shown(key)} keeps its meaning.`;
  const other = actions.find(
    (action) => action.name !== name && (bound.get(action.name) === key || action.also?.includes(key)),
  );
  return other ? `${shown(key)} is the key of “${other.title}”.` : null;
}

const WORDS = {
  ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", " ": "Space", "-": "−", Enter: "Enter ↵",
};

/** A key as people read it. */
export function shown(key) {
  const parts = key === "+" ? ["+"] : key.endsWith("++") ? [...key.slice(0, -2).split("+"), "+"] : key.split("+");
  const last = parts.pop();
  return [...parts, WORDS[last] ?? (last.length === 1 ? last.toUpperCase() : last)].join(" ");
}
