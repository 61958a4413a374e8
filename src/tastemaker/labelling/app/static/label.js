/**
 * The labelling page. What the labeler does is a list of judgements for each task, as on the server; what is on the
 * screen follows from it (ranking.js) at once, and the judgements are sent behind (outbox.js).
 */

import { arrange } from "./answers.js";
import { cardAct, clicked, onKey, run } from "./controls.js";
import { actionsOf, bindings } from "./keys.js";
import { announce, closeNotice, drawSaved, notice } from "./messages.js";
import { makeOrder } from "./order.js";
import { HttpError, makeOutbox, request } from "./outbox.js";
import { byId, onStacked, page } from "./page.js";
import { makeKeys, makeSide } from "./panels.js";
import { drawMessage } from "./progress.js";
import { drawHints, drawPast, drawScale, render } from "./screen.js";
import { makeStage } from "./stage.js";
import { active, answered, earlier, fill, leave, open, release, renewInTime } from "./tasks.js";
import { makeViewer } from "./viewer.js";

let listening = false;

/** Begins to hear the labeler and the browser. */
function listen() {
  listening = true;
  document.addEventListener("keydown", onKey);
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    const name = button?.dataset.act;
    if (name) run(name, event);
    // The keys after a click are for the images, not for the button that was clicked.
    const outside = button && !button.closest("dialog, .side, .thumb");
    if (outside && event.detail > 0 && document.activeElement === button) button.blur();
  });
  document.addEventListener("pointerdown", active);
  byId("stage").addEventListener("wheel", () => requestAnimationFrame(drawScale), { passive: true });
  byId("leave").addEventListener("click", leave);
  byId("notice-close").addEventListener("click", closeNotice);
  byId("again").addEventListener("click", fill);
  byId("look-back").addEventListener("click", () => page.history.open());
  byId("history-list").addEventListener("click", (event) => {
    const chosen = event.target.closest("[data-id]");
    if (!chosen) return;
    open(Number(chosen.dataset.id));
    if (innerWidth < 900) page.history.close();
  });
  byId("history-more").addEventListener("click", async () => {
    await earlier().catch(() => notice("Earlier tasks cannot be fetched now."));
    drawPast();
  });
  window.addEventListener("online", () => {
    page.outbox.flush();
    fill();
  });
  window.addEventListener("focus", () => {
    if (page.outbox.size) page.outbox.flush();
    if (page.current === null) fill();
  });
  window.addEventListener("beforeunload", (event) => {
    if (page.outbox.size) event.preventDefault();
  });
  window.addEventListener("pagehide", release);
  window.addEventListener("pageshow", (event) => {
    if (event.persisted) location.reload();
  });
  window.addEventListener("resize", () => render());
  onStacked(() => render());
  setInterval(renewInTime, 5000);
}

/** Who labels what, once the server says so. */
async function introduce() {
  for (let wait = 500; ; wait = Math.min(2 * wait, 10_000)) {
    try {
      return await request("GET", "/api/me");
    } catch (error) {
      if (error instanceof HttpError && error.status === 401) location.assign("/login");
      page.offline = true;
      document.body.dataset.view = "offline";
      drawMessage("offline");
      await new Promise((resolve) => setTimeout(resolve, wait));
    }
  }
}

function setKeys(given) {
  page.own = given;
  page.bound = bindings(page.actions, page.own);
  drawHints();
}

async function start() {
  const me = await introduce();
  page.project = me.project;
  page.progress = me.progress;
  page.offline = false;
  page.actions = actionsOf(page.project);
  byId("title").textContent = document.title = page.project.title;
  const key = `tastemaker:${page.project.uuid}:${me.name}:`;
  page.outbox = makeOutbox({
    key: `${key}unsaved:`, storage: localStorage, received: answered,
    changed: (status) => {
      drawSaved(status);
      // Where all that the server gives out at a time was unsaved, there is room for further tasks now.
      if (listening && !status.unsaved && page.current === null) fill();
    },
  });
  const { marks, mode, instructions_html: html } = page.project;
  page.stage = makeStage({ stage: byId("stage"), marks, mode, chosen: clicked, act: cardAct });
  page.viewer = makeViewer(byId("stage"), page.stage.frameAt);
  page.order = makeOrder({
    list: byId("places"), waitingList: byId("waiting"), arranged: arrange,
    selected: (image) => {
      page.selected = image;
    },
  });
  page.keys = makeKeys({
    actions: page.actions, own: () => page.own,
    keep: (given) => {
      setKeys(given);
      render();
      announce("The keys are saved.");
    },
  });
  page.history = makeSide("history", { opened: drawPast });
  const read = `${key}instructions`;
  page.instructions = makeSide("instructions", { closed: () => localStorage.setItem(read, html) });
  byId("instructions-text").innerHTML = html; // rendered by the server, which escapes HTML in it
  document.querySelector('.bar [data-act="instructions"]').hidden = !html;
  setKeys(me.keys);
  await page.outbox.flush();
  drawSaved({ unsaved: page.outbox.size, failing: page.outbox.size > 0, loggedOut: false });
  await earlier().catch(() => {});
  listen();
  if (html && localStorage.getItem(read) !== html) page.instructions.open(false);
  new ResizeObserver(() => render()).observe(byId("stage"));
  await fill();
}

start();
