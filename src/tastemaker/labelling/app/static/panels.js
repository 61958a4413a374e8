/** The panels beside the images: keys and their dialog, instructions, earlier tasks. */

import { bindings, keyOf, keyRefusal, shown } from "./keys.js";
import { request } from "./outbox.js";
import { make } from "./stage.js";

const byId = (id) => document.getElementById(id);

function groups(actions) {
  const found = new Map();
  for (const action of actions) found.set(action.group, [...(found.get(action.group) ?? []), action]);
  return found;
}

/** The overlay of keys, and the dialog that changes them. `keep(own)` is called with the user's own keys once stored. */
export function makeKeys({ actions, own, keep }) {
  const help = byId("help"), dialog = byId("keys"), status = byId("keys-status"), list = byId("keys-list");
  let draft = {}, waiting = null;

  for (const one of [help, dialog]) {
    one.querySelector("[data-close]").addEventListener("click", () => one.close());
    one.addEventListener("click", (event) => {
      if (event.target === one) one.close();
    });
  }

  function drawHelp() {
    const bound = bindings(actions, own());
    byId("help-list").replaceChildren(...[...groups(actions)].map(([name, members]) => {
      const section = make("section");
      const rows = make("dl");
      for (const action of members) {
        const row = make("div"), keys = make("dd");
        for (const key of [bound.get(action.name), ...(action.also ?? [])]) keys.append(make("kbd", "", shown(key)), " ");
        row.append(make("dt", "", action.title), keys);
        rows.append(row);
      }
      section.append(make("h3", "", name), rows);
      return section;
    }));
  }

  function drawKeys() {
    const bound = bindings(actions, draft);
    list.replaceChildren(...[...groups(actions)].map(([name, members]) => {
      const section = make("section");
      section.append(make("h3", "", name));
      for (const action of members) {
        const row = make("p", "row");
        const label = make("span", "", action.title, { id: `key-of-${action.name}` });
        const asked = waiting === action.name;
        const button = make("button", asked ? "asked" : "", asked ? "Press a key" : shown(bound.get(action.name)), {
          type: "button", id: `key-${action.name}`, "aria-labelledby": `key-of-${action.name} key-${action.name}`,
        });
        button.addEventListener("click", () => {
          waiting = action.name;
          status.textContent = `Press the key for “${action.title}”. Escape leaves it as it is.`;
          drawKeys();
          byId(`key-${action.name}`).focus();
        });
        row.append(label, button);
        section.append(row);
      }
      return section;
    }));
  }

  // Before the dialog itself and the buttons in it hear of the key.
  dialog.addEventListener("keydown", (event) => {
    if (waiting === null) return;
    event.preventDefault();
    event.stopPropagation();
    const key = keyOf(event);
    if (key === null || event.repeat) return;
    const name = waiting;
    if (key === "Escape") {
      waiting = null;
      status.textContent = "";
    } else {
      const refused = keyRefusal(actions, bindings(actions, draft), name, key);
      if (refused) {
        status.textContent = `${refused} Press another key.`;
        return;
      }
      draft = { ...draft, [name]: key };
      waiting = null;
      status.textContent = `${shown(key)} is chosen. Save to keep it.`;
    }
    drawKeys();
    byId(`key-${name}`).focus();
  }, true);
  dialog.addEventListener("cancel", (event) => {
    if (waiting !== null) event.preventDefault();
  });

  byId("change-keys").addEventListener("click", () => {
    help.close();
    draft = { ...own() };
    waiting = null;
    status.textContent = "";
    drawKeys();
    dialog.showModal();
  });
  byId("keys-usual").addEventListener("click", () => {
    // Those of other modes stay.
    const here = new Set(actions.map((action) => action.name));
    draft = Object.fromEntries(Object.entries(draft).filter(([name]) => !here.has(name)));
    waiting = null;
    status.textContent = "These are the usual keys. Save to keep them.";
    drawKeys();
  });
  byId("keys-save").addEventListener("click", async () => {
    const usual = new Map(actions.map((action) => [action.name, action.key]));
    const keys = Object.fromEntries(Object.entries(draft).filter(([name, key]) => usual.get(name) !== key));
    try {
      const answer = await request("PUT", "/api/keys", { keys });
      keep(answer.keys);
      dialog.close();
    } catch (error) {
      status.textContent = `The keys were not saved: ${error.message}.`;
    }
  });

  return {
    toggle() {
      if (help.open) return help.close();
      drawHelp();
      help.showModal();
    },
    get open() {
      return help.open || dialog.open;
    },
    help,
  };
}

/** A panel at the side that is opened and closed, and gives the focus back. */
export function makeSide(id, { opened = () => {}, closed = () => {} } = {}) {
  const panel = byId(id);
  let before = null;
  function close() {
    if (panel.hidden) return false;
    panel.hidden = true;
    if (panel.contains(document.activeElement) || document.activeElement === document.body) before?.focus?.();
    closed();
    return true;
  }
  function open(focus = true) {
    before = document.activeElement;
    panel.hidden = false;
    opened();
    if (focus) byId(`${id}-close`).focus();
  }
  byId(`${id}-close`).addEventListener("click", close);
  return {
    open, close,
    toggle: () => close() || open(),
    get shown() {
      return !panel.hidden;
    },
  };
}

/** The list of earlier tasks. Items are {id, prompt, images: [url], answer, current}. */
export function drawHistory(items, more) {
  byId("history-list").replaceChildren(...items.map((item) => {
    const line = make("li");
    const button = make("button", "past", "", { type: "button", "data-id": item.id });
    if (item.current) button.setAttribute("aria-current", "true");
    const images = make("span", "past-images");
    for (const { url, best } of item.images) {
      const img = make("img", best ? "best" : "", "", { alt: "", loading: "lazy", src: url });
      images.append(img);
    }
    const prompt = make("span", "past-prompt", item.prompt, { dir: "auto" });
    button.append(images, prompt, make("span", "past-answer quiet", item.answer));
    line.append(button);
    return line;
  }));
  if (!items.length) byId("history-list").append(make("li", "quiet", "There are none yet."));
  byId("history-more").hidden = !more;
}
