/** The images that are judged now, all in boxes of one size. */

const GAP = 12;

/** An element with a class, text and attributes. */
export function make(tag, className = "", text = "", attributes = {}) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== "") element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

/**
 * Draws cards into `stage`. `marks` are the words that images may be marked with; `chosen(card index)` is called when an
 * image itself is clicked, and `act(name, image, value)` by the buttons below one.
 */
export function makeStage({ stage, marks, mode, chosen, act }) {
  const cards = [];
  let fitted = "";

  function card(index) {
    const figure = make("figure", "card");
    const frame = make("div", "frame"), under = make("figcaption", "under");
    const name = make("span", "name");
    under.append(name);
    const choices = make("span", "choices");
    const buttons = {};
    if (mode === "best") buttons.choose = make("button", "choose", "", { type: "button" });
    if (mode === "rate") {
      buttons.up = make("button", "rate up", "Good", { type: "button" });
      buttons.down = make("button", "rate down", "Not good", { type: "button" });
    }
    for (const [kind, button] of Object.entries(buttons)) {
      button.addEventListener("click", (event) => act(kind, cards[index].image, event));
      choices.append(button);
    }
    const group = make("span", "marks", "", { role: "group" });
    const toggles = marks.map((mark) => {
      const button = make("button", "mark", mark, { type: "button", "aria-pressed": "false" });
      button.addEventListener("click", (event) => act("mark", cards[index].image, event, mark));
      group.append(button);
      return button;
    });
    if (choices.childElementCount) under.append(choices);
    if (marks.length) under.append(group);
    frame.addEventListener("click", (event) => chosen(index, event));
    figure.append(frame, under);
    return { figure, frame, name, buttons, group, toggles, image: null };
  }

  /**
   * Shows `items`: {image, sha, element, name, alt, marks, selected, chosen, rating, failed}. All of it is changed within
   * one frame, so that no image is seen beside one of another task. `flipped` is the index of the one item to show.
   */
  function show(items, aspect, { flipped = null, columns = null }) {
    while (cards.length < items.length) cards.push(card(cards.length));
    if (stage.childElementCount !== items.length) {
      stage.replaceChildren(...cards.slice(0, items.length).map((one) => one.figure));
    }
    stage.style.setProperty("--aspect", aspect);
    stage.dataset.count = items.length;
    stage.classList.toggle("flipped", flipped !== null);
    items.forEach((item, index) => {
      const one = cards[index];
      one.image = item.image;
      one.figure.dataset.image = item.image;
      one.figure.dataset.sha = item.sha;
      if (one.frame.firstChild !== item.element) one.frame.replaceChildren(item.element);
      if (item.element.alt !== item.alt) item.element.alt = item.alt;
      one.frame.classList.toggle("failed", item.failed);
      one.name.textContent = mode === "best" ? "" : item.name;
      one.group.setAttribute("aria-label", `Marks, ${item.alt}`);
      one.toggles.forEach((button, at) => button.setAttribute("aria-pressed", item.marks.includes(marks[at])));
      one.figure.classList.toggle("selected", item.selected);
      one.figure.classList.toggle("chosen", item.chosen);
      one.figure.classList.toggle("behind", flipped !== null && flipped !== index);
      if (one.buttons.choose) {
        one.buttons.choose.textContent = `Choose ${item.name}`;
        one.buttons.choose.setAttribute("aria-pressed", item.chosen);
      }
      for (const kind of ["up", "down"]) {
        const button = one.buttons[kind];
        if (!button) continue;
        button.setAttribute("aria-pressed", item.rating === kind);
        button.setAttribute("aria-label", `${button.textContent}, ${item.alt}`);
      }
    });
    fit(flipped === null ? items.length : 1, aspect, columns);
  }

  /** As large as there is room for; with `columns` null in as many columns as make the images largest. */
  function fit(count, aspect, columns) {
    const { clientWidth: width, clientHeight: height } = stage;
    if (!width || !height) return;
    const what = [width, height, count, aspect, columns].join(" ");
    if (what === fitted) return;
    const under = () => Math.max(...cards.slice(0, count).map((one) => one.figure.lastChild.offsetHeight));
    const size = (across, below) => {
      const rows = Math.ceil(count / across);
      const wide = (width - GAP * (across - 1)) / across, high = (height - GAP * (rows - 1)) / rows - below;
      return Math.min(wide, high * aspect);
    };
    // What is below an image takes more lines where the image is narrow.
    for (let pass = 0, below = under(); pass < 3; pass++, below = under()) {
      let best = columns ?? 1;
      for (let more = 2; columns === null && more <= count; more++) if (size(more, below) > size(best, below)) best = more;
      const found = Math.max(48, Math.floor(size(best, below)));
      stage.style.setProperty("--columns", best);
      stage.style.setProperty("--width", `${found}px`);
      if (under() === below) break;
    }
    fitted = what;
  }

  return {
    show,
    frameAt: (event) => event.target.closest?.(".frame") ?? null,
    pressed(index) {
      // A short sign of which one was taken, the same for both sides.
      cards[index]?.figure.animate?.([{ opacity: 0.55 }, { opacity: 1 }], { duration: 90 });
    },
  };
}
