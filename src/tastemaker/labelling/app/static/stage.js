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

  function card(index) {
    const figure = make("figure", "card");
    const box = make("div", "box"), frame = make("div", "frame"), under = make("figcaption", "under");
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
    box.append(frame);
    figure.append(box, under);
    return { figure, frame, name, buttons, group, toggles, image: null };
  }

  /**
   * Shows `items`: {image, element, name, marks, selected, chosen, rating, failed}. All of it is changed within one
   * frame, so that no image is seen beside one of another task.
   */
  function show(items, aspect, flipped) {
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
      one.name.textContent = item.name;
      one.group.setAttribute("aria-label", `Marks, ${item.alt}`);
      one.toggles.forEach((button, at) => button.setAttribute("aria-pressed", item.marks.includes(marks[at])));
      one.figure.classList.toggle("selected", item.selected);
      one.figure.classList.toggle("chosen", item.chosen);
      one.figure.classList.toggle("behind", flipped !== null && flipped !== index);
      if (one.buttons.choose) {
        one.buttons.choose.textContent = `Choose ${index + 1}`;
        one.buttons.choose.setAttribute("aria-pressed", item.chosen);
      }
      for (const kind of ["up", "down"]) {
        const button = one.buttons[kind];
        if (!button) continue;
        button.setAttribute("aria-pressed", item.rating === kind);
        button.setAttribute("aria-label", `${button.textContent}, ${item.alt}`);
      }
    });
    if (mode === "best" || mode === "rate") fit(items.length, aspect);
  }

  /** As many columns as make the images largest. */
  function fit(count, aspect) {
    const { clientWidth: width, clientHeight: height } = stage;
    const under = cards[0].figure.lastChild.offsetHeight + 6;
    const size = (columns) => {
      const rows = Math.ceil(count / columns);
      const across = (width - GAP * (columns - 1)) / columns, down = (height - GAP * (rows - 1)) / rows - under;
      return Math.min(across, down * aspect);
    };
    let columns = 1;
    for (let more = 2; more <= count; more++) if (size(more) > size(columns)) columns = more;
    stage.style.setProperty("--columns", columns);
  }

  return {
    show,
    frameAt: (event) => event.target.closest?.(".frame") ?? null,
    pressed(index) {
      // A short sign of which one was taken, the same for both sides.
      cards[index]?.figure.animate?.([{ opacity: 0.55 }, { opacity: 1 }], { duration: 90 });
    },
    hints(hint) {
      cards.forEach((one) => one.toggles.forEach((button, at) => hint(button, one, at)));
    },
  };
}
