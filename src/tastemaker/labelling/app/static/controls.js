/** Keys, buttons and clicks on images: what each does. */

import { chooseBest, compare, confirm, mark, move, rate, skip, undo } from "./answers.js";
import { actionOf, keyOf } from "./keys.js";
import { announce } from "./messages.js";
import { number, page, pairOf, sides, task, viewOf } from "./page.js";
import { drawScale, drawStage, drawTools, render } from "./screen.js";
import { active, leave } from "./tasks.js";

/** Does an action of keys.js. */
export function run(name, event) {
  const action = page.actions.find((one) => one.name === name);
  const one = task(), view = viewOf(one);
  if (["left", "right", "tie", "both_bad"].includes(name)) return view === "compare" && compare(name, event);
  if (action?.mark) {
    const pair = pairOf(one);
    const image = pair ? { left: pair[0], right: pair[1] }[action.on] : page.selected;
    return mark(image ?? null, page.project.marks[action.mark - 1]);
  }
  if (action?.image) return view === "many" && chooseBest(one.presentation[action.image - 1], event);
  switch (name) {
    case "none": return view === "many" && chooseBest(null, event);
    case "up": case "down": return view === "many" && rate(page.selected, name, event);
    case "confirm": return confirm(event);
    case "skip": return skip(event);
    case "undo": return undo();
    case "previous": return selectNext(-1);
    case "next": return selectNext(1);
    case "arrange": return toOrder();
    case "better": return move(-1);
    case "worse": return move(1);
    case "flip":
      if (view === "compare") setFlip(page.flipped === 0 ? 1 : 0);
      return undefined;
    case "side_by_side": return setFlip(null);
    case "zoom_in": page.viewer.zoom(1); return drawScale();
    case "zoom_out": page.viewer.zoom(-1); return drawScale();
    case "zoom_reset": page.viewer.reset(); return drawScale();
    case "history": return page.history.toggle();
    case "instructions": return page.project.instructions_html && page.instructions.toggle();
    case "help": return page.keys.toggle();
    default: return undefined;
  }
}

function setFlip(to) {
  page.flipped = to;
  const one = task();
  if (viewOf(one) !== "compare") return;
  drawStage(one, "compare");
  drawTools(one, "compare");
  const button = document.querySelector('#tools [data-act="flip"]');
  button.setAttribute("aria-pressed", page.flipped !== null);
  if (page.flipped !== null) announce(`${sides()[page.flipped]} image.`);
}

function selectNext(step) {
  const one = task();
  if (!one || viewOf(one) !== "many") return;
  const at = one.presentation.indexOf(page.selected), count = one.presentation.length;
  page.selected = one.presentation[at < 0 ? (step > 0 ? 0 : count - 1) : (at + step + count) % count];
  drawStage(one, "many");
  announce(`Image ${number(one, page.selected)}.`);
}

function inOrder() {
  return document.activeElement?.closest?.(".thumb") != null;
}

function toOrder() {
  if (inOrder()) return document.activeElement.blur();
  const one = task();
  if (!one || page.project.mode !== "rank") return;
  page.selected ??= one.state.order[0]?.[0] ?? one.state.waiting[0];
  return page.order.focus(page.selected);
}

/** Keys within the order: arrows go through it, and move the image with Shift. */
function orderKey(key) {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[key.replace("Shift+", "")];
  const images = page.order.images();
  const at = images.indexOf(page.selected);
  if (key === "Home" || key === "End") page.selected = images.at(key === "Home" ? 0 : -1);
  else if (!step) return false;
  else if (key.startsWith("Shift+")) {
    move(step);
    return true;
  } else page.selected = images[Math.max(0, Math.min(images.length - 1, at + step))];
  page.order.select(page.selected);
  page.order.focus(page.selected);
  return true;
}

export function onKey(event) {
  active();
  if (page.keys.open) {
    // The overlay's own key closes it too.
    if (page.keys.help.open && keyOf(event) === page.bound.get("help")) {
      event.preventDefault();
      page.keys.toggle();
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
  if (one && page.project.mode === "rank" && (view === "review" || inOrder()) && orderKey(key)) {
    event.preventDefault();
    return;
  }
  const action = actionOf(page.actions, page.bound, key);
  if (!action) return;
  event.preventDefault();
  if (event.repeat && !action.repeats) return;
  run(action.name, event);
}

function escape(event) {
  if (page.order.dragging) return page.order.cancel();
  if (page.history.close() || page.instructions.close()) return event.preventDefault();
  if (page.reasked) {
    page.reasked = null;
    return render();
  }
  if (inOrder() && viewOf(task()) !== "review") return document.activeElement.blur();
  if (page.flipped !== null) return setFlip(null);
  return leave();
}

/** What a click on an image does. */
export function clicked(index, event) {
  const one = task();
  if (!one || page.viewer.dragged()) return;
  if (viewOf(one) === "compare") return compare(["left", "right"][page.flipped ?? index], event);
  const image = one.presentation[index];
  if (page.project.mode === "best") return chooseBest(image, event);
  page.selected = image;
  return drawStage(one, "many");
}

/** What the buttons below an image do. */
export function cardAct(kind, image, event, word) {
  page.selected = viewOf(task()) === "many" ? image : page.selected;
  if (kind === "choose") chooseBest(image, event);
  else if (kind === "mark") mark(image, word);
  else rate(image, kind, event);
}
