/** The images of tasks, fetched and decoded ahead, so that they can be painted at once. */

/** The address of an image. */
export const url = (sha) => `/images/${sha}.png`;

/** Fetches and decodes the images of a task, and then calls `ready`; afterwards they can be painted at once. */
export function load(task, ready) {
  if (task.loading) return task.loading;
  task.elements = task.shas.map((sha) => picture(sha));
  task.thumbs = task.shas.map((sha) => picture(sha));
  task.loading = Promise.all(task.elements.map((element, position) => decoded(task, element, position))).then(() => {
    task.loaded = true;
    ready();
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

/** Decodes again the images of tasks that may be shown next, which the browser may have thrown away since. */
export function decodeAhead(tasks) {
  for (const element of tasks.flatMap((task) => task?.elements ?? [])) {
    if (!element.isConnected && element.complete) element.decode().catch(() => {});
  }
}
