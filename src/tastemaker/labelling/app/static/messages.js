/** What the page tells the labeler: notices, words for screen readers, and whether the answers are saved. */

import { byId } from "./page.js";

/** A message that stays until it is closed; with `link` it has one to the page for logging in. */
export function notice(text, link = false) {
  byId("notice-text").textContent = text;
  byId("notice-link").hidden = !link;
  byId("notice").hidden = false;
}

export function closeNotice() {
  byId("notice").hidden = true;
}

let announced = 0;

/** A message for screen readers. */
export function announce(text) {
  // The same words twice are read twice only where the text differs.
  byId("announce").textContent = text + (announced++ % 2 ? "\u00a0" : "");
}

export function loggedOut() {
  notice("You are logged out. Your answers are kept here and sent when you have logged in again.", true);
}

let toldFailing = false;

/** Whether all answers are saved, as outbox.js has it. */
export function drawSaved({ unsaved, failing, loggedOut: out }) {
  const element = byId("saved");
  element.dataset.state = failing ? "failing" : unsaved ? "saving" : "saved";
  byId("saved-text").textContent = unsaved === 0 && !failing ? "Saved"
    : `Unsaved ${unsaved}${failing ? ", trying again" : ""}`;
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
