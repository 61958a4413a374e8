/**
 * What a labeler's judgements of one task say, and what is to be asked next: `ranking.py` in JavaScript, so that the
 * page shows the next images without asking the server. A test compares the two on random judgements.
 *
 * Judgements and settings are as the server's JSON has them; images are positions in the task, 0 to K - 1.
 */

const OUTCOMES = { compare: ["left", "right", "tie", "both_bad"], rate: ["up", "down"] };

/** The judgements that are in force: without those that a later one supersedes, and without undos. */
export function live(judgements) {
  const gone = new Set(judgements.map((judgement) => judgement.supersedes).filter((id) => id != null));
  return judgements.filter((judgement) => !gone.has(judgement.id) && judgement.kind !== "undo");
}

/**
 * What judgements of a task, oldest first, say together. `presentation` lists the task's images in the order in which
 * they are shown and inserted. `answers` maps "first,second" (first < second) to the answer.
 */
export function state(settings, presentation, judgements) {
  const found = live(judgements);
  const result = {
    order: [], waiting: [], question: null, conflicts: [], answers: new Map(), best: null, ratings: new Map(),
    marks: marksOf(found), skipped: found.some((judgement) => judgement.kind === "skip"), complete: false,
  };
  if (settings.mode === "best") {
    const chosen = found.filter((judgement) => judgement.kind === "best");
    if (chosen.length) result.best = chosen.at(-1).image ?? null;
    result.complete = result.skipped || chosen.length > 0;
    return result;
  }
  if (settings.mode === "rate") {
    for (const judgement of found) {
      if (judgement.kind === "rate" && judgement.image != null) result.ratings.set(judgement.image, judgement.outcome);
    }
    result.complete = result.skipped || result.ratings.size === presentation.length;
    return result;
  }
  const answers = answersOf(found);
  const given = found.findLast((judgement) => judgement.kind === "order") ?? null;
  const arrange = settings.transitive ? inserted : allPairs;
  const { order, waiting, question } = arrange(presentation, answers, given ? given.order : null);
  const reviewed = settings.mode === "rank" && settings.confirm;
  const confirmed = given !== null && given.confirmed === true;
  Object.assign(result, { order, waiting, question, answers, conflicts: conflictsOf(order, answers) });
  result.complete = result.skipped || (question === null && (confirmed || !reviewed));
  return result;
}

/**
 * Which of two images is shown on the left, and which on the right. `sides` has a character for each two places i < j
 * of the presentation, by j and then by i: "0" shows the earlier image on the left, "1" on the right.
 */
export function leftRight(pair, presentation, sides) {
  const [i, j] = pair.map((image) => presentation.indexOf(image)).sort((a, b) => a - b);
  const earlier = presentation[i], later = presentation[j];
  return sides[(j * (j - 1)) / 2 + i] === "0" ? [earlier, later] : [later, earlier];
}

/** The most comparisons that ranking `count` images takes: sum_{k=2}^{count} ceil(log2 k), or all pairs. */
export function worstCase(count, transitive = true) {
  if (!transitive) return (count * (count - 1)) / 2;
  let sum = 0;
  for (let k = 2; k <= count; k++) sum += 32 - Math.clz32(k - 1);
  return sum;
}

/** Why a judgement is none of this task as it stands, as a sentence; null where it is in order. */
export function refusal(settings, presentation, judgements, judgement) {
  const images = new Set(presentation);
  const known = new Map(live(judgements).map((old) => [old.id, old]));
  let replaced = null;
  if (judgement.supersedes != null) {
    replaced = known.get(judgement.supersedes) ?? null;
    if (replaced === null) return "it supersedes a judgement that is not in force";
  }
  if (judgement.kind === "undo") {
    return replaced !== null ? null : "an undo must name the judgement that it takes back";
  }
  if (replaced !== null && replaced.kind !== judgement.kind) {
    return `a judgement of kind ${judgement.kind} cannot supersede one of kind ${replaced.kind}`;
  }
  if (judgement.kind === "mark") return markRefusal(settings, images, judgement);
  const now = state(settings, presentation, judgements.filter((old) => old.id !== judgement.supersedes));
  if (now.complete && judgement.kind !== "order") return "the task is complete: undo the last judgement first";
  if (judgement.kind === "skip") return settings.skip ? null : "tasks of this project cannot be skipped";
  if (judgement.kind === "best") return bestRefusal(settings, images, judgement);
  if (judgement.kind === "rate") return rateRefusal(settings, images, now, judgement);
  if (settings.mode !== "pair" && settings.mode !== "rank") return notPossible(settings, judgement);
  if (judgement.kind === "order") return orderRefusal(settings, images, now, judgement);
  return compareRefusal(settings, images, now, judgement, replaced);
}

/* ---------------------------------------------------------------- the order as it is arranged by hand */

/**
 * The order after an image was moved. `to` is {group, join}: into the group at that index of the order, or, where
 * `join` is false, to a place of its own before it. Indices are those of the order before the move; the image may be
 * one that has no place yet.
 */
export function moved(order, image, to) {
  const groups = order.map((group) => group.filter((other) => other !== image));
  if (to.join && groups[to.group]?.length) groups[to.group].push(image);
  else groups.splice(to.group, 0, [image]);
  return groups.filter((group) => group.length > 0);
}

/**
 * The order after one step of an image towards the best (step -1) or the worst (step 1): out of a place that it shares,
 * or into the next place, or past the next image where there are no ties. The same order where it is at the end.
 */
export function stepped(order, image, step, ties) {
  const at = order.findIndex((group) => group.includes(image));
  if (at < 0) return order;
  if (order[at].length > 1) return moved(order, image, { group: step < 0 ? at : at + 1, join: false });
  const next = at + step;
  if (next < 0 || next >= order.length) return order;
  if (ties) return moved(order, image, { group: next, join: true });
  return moved(order, image, { group: step < 0 ? next : next + 1, join: false });
}

/* ---------------------------------------------------------------- what judgements say */

function marksOf(found) {
  const given = new Map();
  for (const judgement of found) {
    if (judgement.kind !== "mark" || judgement.image == null) continue;
    if (!given.has(judgement.image)) given.set(judgement.image, new Map());
    given.get(judgement.image).set(judgement.outcome, judgement.on !== false);
  }
  const marks = new Map();
  for (const [image, named] of given) {
    const set = [...named].filter(([, on]) => on).map(([mark]) => mark);
    if (set.length) marks.set(image, set);
  }
  return marks;
}

/** The last answer on each two images. */
function answersOf(found) {
  const answers = new Map();
  for (const { kind, left, right, outcome } of found) {
    if (kind !== "compare" || left == null || right == null) continue;
    const first = Math.min(left, right), second = Math.max(left, right);
    const better = outcome === "left" ? left : right;
    const decided = outcome === "left" || outcome === "right";
    answers.set(`${first},${second}`, decided ? (better === first ? "first" : "second") : outcome);
  }
  return answers;
}

/** 1 where a is better than b, -1 where it is worse, 0 where they are equal; null where nobody has said. */
function compared(a, b, answers) {
  const first = Math.min(a, b);
  const outcome = answers.get(`${first},${Math.max(a, b)}`);
  if (outcome === undefined) return null;
  if (outcome !== "first" && outcome !== "second") return 0;
  return (outcome === "first") === (a === first) ? 1 : -1;
}

/** Binary insertion: the order, the images that have no place in it yet, and the next two images to compare. */
function inserted(presentation, answers, given) {
  const order = (given ?? []).map((group) => [...group]);
  const placed = new Set(order.flat());
  const waiting = presentation.filter((image) => !placed.has(image));
  if (!order.length && waiting.length) order.push([waiting.shift()]);
  while (waiting.length) {
    const image = waiting[0];
    let low = 0, high = order.length, equal = null;
    while (low < high) {
      const middle = Math.floor((low + high) / 2);
      // Any image of the place stands for it: one that was compared, and else the first.
      const probe = order[middle].find((other) => compared(image, other, answers) !== null) ?? order[middle][0];
      const answer = compared(image, probe, answers);
      if (answer === null) return { order, waiting, question: [image, probe] };
      if (answer === 0) {
        equal = middle;
        break;
      }
      if (answer > 0) high = middle;
      else low = middle + 1;
    }
    if (equal === null) order.splice(low, 0, [image]);
    else order[equal].push(image);
    waiting.shift();
  }
  return { order, waiting: [], question: null };
}

/** All pairs: the order by won comparisons, a tie counting half of one, and the next two images to compare. */
function allPairs(presentation, answers, given) {
  const pairs = presentation.flatMap((b, index) => presentation.slice(0, index).map((a) => [b, a]));
  const question = pairs.find(([b, a]) => compared(b, a, answers) === null) ?? null;
  if (given !== null && question === null) return { order: given, waiting: [], question: null };
  const points = new Map(presentation.map((image) => [image, 0]));
  const seen = new Set();
  for (const [b, a] of pairs) {
    const answer = compared(b, a, answers);
    if (answer === null) continue;
    points.set(b, points.get(b) + 1 + answer);
    points.set(a, points.get(a) + 1 - answer);
    seen.add(a).add(b);
  }
  const shown = presentation.filter((image) => seen.has(image));
  const levels = [...new Set(shown.map((image) => points.get(image)))].sort((a, b) => b - a);
  const order = levels.map((level) => shown.filter((image) => points.get(image) === level));
  return { order, waiting: presentation.filter((image) => !seen.has(image)), question };
}

/** Compared images (better, worse by the comparison) that stand otherwise in the order. */
function conflictsOf(order, answers) {
  const rank = ranks(order);
  const found = [];
  for (const [key, outcome] of answers) {
    const [first, second] = key.split(",").map(Number);
    if (!rank.has(first) || !rank.has(second)) continue;
    const [better, worse] = outcome === "second" ? [second, first] : [first, second];
    const equal = outcome !== "first" && outcome !== "second";
    const stands = equal ? rank.get(better) === rank.get(worse) : rank.get(better) < rank.get(worse);
    if (!stands) found.push([better, worse]);
  }
  return found.sort((one, other) => one[0] - other[0] || one[1] - other[1]);
}

/** The place of each image of an order, from 0. */
export function ranks(order) {
  return new Map(order.flatMap((group, index) => group.map((image) => [image, index])));
}

/* ---------------------------------------------------------------- what is refused */

function notPossible(settings, judgement) {
  return `a judgement of kind ${judgement.kind} is not possible in a project of mode ${settings.mode}`;
}

function markRefusal(settings, images, judgement) {
  if (!images.has(judgement.image)) return `the task has no image ${judgement.image}`;
  if (settings.marks.includes(judgement.outcome)) return null;
  const marks = settings.marks.join(", ") || "it has none";
  return `the mark '${judgement.outcome}' is not one of this project (${marks})`;
}

function bestRefusal(settings, images, judgement) {
  if (settings.mode !== "best") return notPossible(settings, judgement);
  if (judgement.image == null) return settings.both_bad ? null : "an image must be chosen in this project";
  return images.has(judgement.image) ? null : `the task has no image ${judgement.image}`;
}

function rateRefusal(settings, images, now, judgement) {
  if (settings.mode !== "rate") return notPossible(settings, judgement);
  if (!images.has(judgement.image)) return `the task has no image ${judgement.image}`;
  if (!OUTCOMES.rate.includes(judgement.outcome)) {
    return `the outcome '${judgement.outcome}' is none of ${OUTCOMES.rate.join(", ")}`;
  }
  return now.ratings.has(judgement.image) ? "the image is already rated: supersede the earlier judgement" : null;
}

function orderRefusal(settings, images, now, judgement) {
  if (settings.mode !== "rank") return notPossible(settings, judgement);
  if (now.skipped) return "the task is skipped: undo that first";
  if (judgement.order == null) return "a judgement of kind order needs an order";
  const listed = judgement.order.flat(), given = new Set(listed);
  const empty = judgement.order.some((group) => group.length === 0);
  if (empty || given.size !== listed.length || !listed.every((image) => images.has(image))) {
    return "the order must list images of the task, each once, and no empty place";
  }
  if (!settings.ties && listed.length !== judgement.order.length) return "images cannot be equal in this project";
  const missing = now.order.flat().filter((image) => !given.has(image)).sort((a, b) => a - b);
  if (missing.length) return `the order lacks ${missing.join(", ")}, which had a place already`;
  if (!settings.transitive && now.question !== null) {
    return "the order can be arranged when all pairs have been compared";
  }
  if (judgement.confirmed && listed.length !== images.size) return "an order is confirmed when all images have a place";
  return null;
}

function compareRefusal(settings, images, now, judgement, replaced) {
  const { left, right, outcome } = judgement;
  if (left === right || !images.has(left) || !images.has(right)) {
    return `the task has no two images ${left} and ${right}`;
  }
  if (!OUTCOMES.compare.includes(outcome)) return `the outcome '${outcome}' is none of ${OUTCOMES.compare.join(", ")}`;
  if ((outcome === "tie" && !settings.ties) || (outcome === "both_bad" && !settings.both_bad)) {
    return `the outcome ${outcome} is not possible in this project`;
  }
  const same = (pair) => pair.includes(left) && pair.includes(right);
  if (replaced !== null) {
    return same([replaced.left, replaced.right])
      ? null : "a comparison can only supersede one of the same two images";
  }
  if (now.question === null || !same(now.question)) return "these two images are not the ones to compare now";
  return null;
}
