/** The order of a task's images: always in sight, rearranged by dragging and by keys. */

import { moved, ranks } from "./ranking.js";

const SLACK = 5;

/**
 * Draws orders into `list` and `waitingList`. `arranged(order, image)` is called with a new order that the labeler has
 * dragged; `selected(image)` when an image was selected.
 */
export function makeOrder({ list, waitingList, arranged, selected }) {
  let shown = null; // what `show` was last given
  let drag = null;

  function thumb(image, place) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "thumb";
    button.dataset.image = image;
    button.tabIndex = shown.selected === image ? 0 : -1;
    if (shown.movable) button.classList.add("movable");
    button.append(shown.thumb(image));
    const conflict = shown.conflicts.some((pair) => pair.includes(image));
    if (conflict) {
      button.classList.add("conflict");
      const sign = document.createElement("span");
      sign.className = "sign";
      sign.textContent = "!";
      sign.setAttribute("aria-hidden", "true");
      button.append(sign);
    }
    if (shown.question?.includes(image)) button.classList.add("asked");
    button.setAttribute("aria-pressed", shown.selected === image);
    button.setAttribute("aria-label", [
      `Image ${shown.presentation.indexOf(image) + 1}`, place,
      shown.marks.get(image)?.join(", "), conflict ? "in a contradiction" : null,
    ].filter(Boolean).join(", "));
    return button;
  }

  function placeText(index) {
    const group = shown.order[index];
    return `place ${index + 1} of ${shown.order.length}` + (group.length > 1 ? `, equal with ${group.length - 1}` : "");
  }

  /**
   * Draws what `ranking.state` says: {presentation, order, waiting, question, conflicts, marks}, with `ties` and `movable`
   * for what dragging may do, `selected`, and `thumb(image)` for the element that shows an image.
   */
  function show(state, animate = false) {
    const before = animate ? boxes() : null;
    const focused = document.activeElement?.closest?.(".thumb")?.dataset.image;
    shown = state;
    list.replaceChildren(...state.order.map((group, index) => {
      const place = document.createElement("li");
      place.className = group.length > 1 ? "place equal" : "place";
      place.dataset.group = index;
      const rank = document.createElement("span");
      rank.className = "rank";
      rank.textContent = index + 1;
      rank.setAttribute("aria-hidden", "true");
      const images = document.createElement("span");
      images.className = "group";
      images.append(...group.map((image) => thumb(image, placeText(index))));
      place.append(rank, images);
      return place;
    }));
    waitingList.replaceChildren(...state.waiting.map((image) => {
      const item = document.createElement("li");
      item.append(thumb(image, "waiting"));
      return item;
    }));
    if (focused !== undefined) element(Number(focused))?.focus({ preventScroll: true });
    if (before) slide(before);
  }

  /** Selects an image. Nothing is drawn anew, since a finger's drag ends when what it began on is gone. */
  function select(image) {
    shown = { ...shown, selected: image };
    for (const button of thumbs()) {
      const on = Number(button.dataset.image) === image;
      button.setAttribute("aria-pressed", on);
      button.tabIndex = on ? 0 : -1;
    }
  }

  function thumbs() {
    return [...list.querySelectorAll(".thumb"), ...waitingList.querySelectorAll(".thumb")];
  }

  function element(image) {
    return thumbs().find((button) => Number(button.dataset.image) === image) ?? null;
  }

  function boxes() {
    return new Map(thumbs().map((button) => [button.dataset.image, button.getBoundingClientRect()]));
  }

  /** Thumbnails glide from where they were to where they are. */
  function slide(before) {
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
    for (const button of thumbs()) {
      const from = before.get(button.dataset.image), to = button.getBoundingClientRect();
      if (!from || !from.width || !to.width) continue;
      const dx = from.left - to.left, dy = from.top - to.top;
      if (Math.abs(dx) + Math.abs(dy) < 1) continue;
      button.animate([{ transform: `translate(${dx}px, ${dy}px)` }, { transform: "none" }], {
        duration: 160, easing: "ease-out",
      });
    }
  }

  /* ------------------------------------------------------------ dragging */

  function target(clientX, clientY) {
    const places = [...list.querySelectorAll(".place")];
    if (!places.length) return null;
    const distance = (box) => {
      const dx = Math.max(box.left - clientX, 0, clientX - box.right);
      const dy = Math.max(box.top - clientY, 0, clientY - box.bottom);
      return dx + 3 * dy; // the row first, then the place in it
    };
    const near = places.map((place) => [distance(place.getBoundingClientRect()), place]).sort((a, b) => a[0] - b[0])[0];
    if (near[0] > 200) return null;
    const place = near[1], box = place.getBoundingClientRect(), group = Number(place.dataset.group);
    const share = (clientX - box.left) / box.width;
    const alone = shown.order[group].length === 1 && shown.order[group][0] === drag.image;
    const edge = shown.ties && !alone ? 0.25 : 0.5;
    if (share < edge) return { place, side: "before", to: { group, join: false } };
    if (share > 1 - edge) return { place, side: "after", to: { group: group + 1, join: false } };
    return { place, side: "join", to: { group, join: true } };
  }

  function unmark() {
    for (const place of list.children) place.classList.remove("drop-before", "drop-after", "drop-join");
  }

  function follow(event) {
    drag.ghost.style.transform = `translate(${event.clientX - drag.dx}px, ${event.clientY - drag.dy}px)`;
    unmark();
    drag.target = target(event.clientX, event.clientY);
    drag.target?.place.classList.add(`drop-${drag.target.side}`);
  }

  function begin(event) {
    const box = drag.button.getBoundingClientRect();
    drag.ghost = drag.button.querySelector("img").cloneNode();
    drag.ghost.className = "ghost";
    drag.ghost.style.width = `${box.width}px`;
    drag.ghost.style.height = `${box.height}px`;
    drag.dx = drag.startX - box.left;
    drag.dy = drag.startY - box.top;
    drag.button.classList.add("dragged");
    document.body.append(drag.ghost);
    follow(event);
  }

  function end(drop) {
    if (!drag) return;
    const { ghost, button, target: found, image } = drag;
    drag = null;
    unmark();
    button.classList.remove("dragged");
    ghost?.remove();
    if (!ghost || !drop || !found) return;
    const order = moved(shown.order, image, found.to);
    if (JSON.stringify(order) !== JSON.stringify(shown.order)) arranged(order, image);
  }

  function pressed(event) {
    const button = event.target.closest(".thumb");
    if (!button || event.button > 0 || drag) return;
    const image = Number(button.dataset.image);
    select(image);
    selected(image);
    if (!shown.movable) return;
    drag = {
      image, button, ghost: null, target: null, id: event.pointerId,
      startX: event.clientX, startY: event.clientY,
    };
  }

  list.addEventListener("pointerdown", pressed);
  waitingList.addEventListener("pointerdown", pressed);
  window.addEventListener("pointermove", (event) => {
    if (!drag || event.pointerId !== drag.id) return;
    if (drag.ghost) follow(event);
    else if (Math.hypot(event.clientX - drag.startX, event.clientY - drag.startY) > SLACK) begin(event);
  });
  window.addEventListener("pointerup", (event) => {
    if (drag && event.pointerId === drag.id) end(true);
  });
  window.addEventListener("pointercancel", () => end(false));
  for (const area of [list, waitingList]) {
    area.addEventListener("focusin", (event) => {
      const image = Number(event.target.closest(".thumb")?.dataset.image);
      if (drag || !shown || Number.isNaN(image) || image === shown.selected) return;
      select(image);
      selected(image);
    });
  }

  return {
    show, select,
    cancel: () => end(false),
    focus: (image) => (element(image) ?? thumbs()[0])?.focus({ preventScroll: true }),
    /** All images as they are drawn: the order, then those that wait. */
    images: () => thumbs().map((button) => Number(button.dataset.image)),
    describe: (image) => {
      const rank = ranks(shown.order).get(image);
      return rank === undefined ? "waiting" : placeText(rank);
    },
    get dragging() {
      return drag?.ghost != null;
    },
  };
}
