/** How far the labeler is, and what is shown where there is no task. */

import { byId, page } from "./page.js";

export function drawMessage(view) {
  const texts = {
    loading: ["Loading", page.outbox?.size ? "Your answers have to be saved before there are further tasks." : ""],
    offline: ["The server cannot be reached", "Your answers are kept here. The page tries again by itself."],
    end: ["Nothing is left to label", "Thank you. When there are new tasks, they appear here by themselves."],
  }[view];
  if (!texts) return;
  if (byId("message-title").textContent !== texts[0]) byId("message-title").textContent = texts[0];
  if (byId("message-text").textContent !== texts[1]) byId("message-text").textContent = texts[1];
  byId("again").hidden = view === "loading";
  byId("look-back").hidden = view !== "end" || page.past.length === 0;
  const done = Math.max(0, doneCount());
  byId("message-figures").textContent = view === "end" && done ? `You have done ${plural(done, "task")}.` : "";
}

const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

function doneCount() {
  let done = page.progress.done;
  for (const one of page.tasks.values()) done += Number(one.state.complete) - Number(one.counted ?? false);
  return done;
}

export function drawProgress() {
  const done = doneCount(), all = Math.max(page.progress.available, done);
  byId("progress").max = Math.max(all, 1);
  byId("progress").value = done;
  byId("count").textContent = all ? `${done} of ${all}` : "";
  let text = "";
  if (page.paces.length >= 3) {
    const minutes = page.paces.reduce((sum, pace) => sum + pace, 0) / 60_000 / page.paces.length;
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
