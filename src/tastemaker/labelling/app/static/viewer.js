/** Zoom and pan, the same for all images on the stage, by wheel, drag, pinch and keys. */

const LARGEST = 16, STEP = 1.25, SLACK = 4;

/**
 * Makes the frames within `stage` zoom together. `frameAt(event)` gives the frame that an event is over, or null.
 * Returns {zoom(factor), reset(), dragged()}; `dragged()` says whether the pointer that was just released had moved.
 */
export function makeViewer(stage, frameAt) {
  let scale = 1, x = 0, y = 0, moved = false, pinch = null;
  const pointers = new Map();

  function show() {
    scale = Math.min(LARGEST, Math.max(1, scale));
    // x and y are the shift in units of the frame; no side of the image comes within the frame.
    const most = (scale - 1) / 2;
    x = Math.min(most, Math.max(-most, x));
    y = Math.min(most, Math.max(-most, y));
    stage.style.setProperty("--scale", scale);
    stage.style.setProperty("--x", `${100 * x}%`);
    stage.style.setProperty("--y", `${100 * y}%`);
    stage.classList.toggle("zoomed", scale > 1);
  }

  /** Zooms by a factor so that the point (px, py), in units of the frame from its middle, stays where it is. */
  function zoom(factor, px = 0, py = 0) {
    const next = Math.min(LARGEST, Math.max(1, scale * factor));
    x = px - ((px - x) * next) / scale;
    y = py - ((py - y) * next) / scale;
    scale = next;
    show();
  }

  function place(frame, clientX, clientY) {
    const box = frame.getBoundingClientRect();
    return [(clientX - box.left) / box.width - 0.5, (clientY - box.top) / box.height - 0.5, box];
  }

  stage.addEventListener("wheel", (event) => {
    const frame = frameAt(event);
    if (!frame) return;
    event.preventDefault();
    const [px, py] = place(frame, event.clientX, event.clientY);
    zoom(Math.exp(-event.deltaY * (event.deltaMode === 1 ? 0.05 : 0.002)), px, py);
  }, { passive: false });

  stage.addEventListener("pointerdown", (event) => {
    const frame = frameAt(event);
    if (!frame || event.button > 0) return;
    if (pointers.size === 0) moved = false;
    pointers.set(event.pointerId, { frame, x: event.clientX, y: event.clientY, startX: event.clientX, startY: event.clientY });
    pinch = null;
  });

  window.addEventListener("pointermove", (event) => {
    const pointer = pointers.get(event.pointerId);
    if (!pointer) return;
    const dx = event.clientX - pointer.x, dy = event.clientY - pointer.y;
    pointer.x = event.clientX;
    pointer.y = event.clientY;
    if (Math.hypot(pointer.x - pointer.startX, pointer.y - pointer.startY) > SLACK) moved = true;
    const box = pointer.frame.getBoundingClientRect();
    if (pointers.size === 2) {
      const [one, other] = [...pointers.values()];
      const distance = Math.hypot(one.x - other.x, one.y - other.y);
      const [px, py] = place(pointer.frame, (one.x + other.x) / 2, (one.y + other.y) / 2);
      if (pinch !== null && distance > 0) zoom(distance / pinch, px, py);
      pinch = distance;
      moved = true;
    } else if (moved && scale > 1) {
      x += dx / box.width;
      y += dy / box.height;
      show();
    }
  });

  for (const kind of ["pointerup", "pointercancel"]) {
    window.addEventListener(kind, (event) => {
      pointers.delete(event.pointerId);
      pinch = null;
    });
  }

  show();
  return {
    zoom: (direction) => zoom(direction > 0 ? STEP : 1 / STEP),
    reset() {
      scale = 1;
      show();
    },
    dragged: () => moved,
    get scale() {
      return scale;
    },
  };
}
