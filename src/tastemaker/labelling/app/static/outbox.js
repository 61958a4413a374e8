/**
 * Judgements on their way to the server. They are kept in the browser's storage until the server says that they are on
 * its disk, so that neither a reload nor a dead server loses one; sent twice, they are stored once, by their id.
 */

const BATCH = 50;
const FIRST_WAIT = 500, LONGEST_WAIT = 15_000, TIMEOUT = 20_000;

/** An answer of the server that is none of success. */
export class HttpError extends Error {
  constructor(status, detail) {
    super(detail || `the server answered ${status}`);
    this.status = status;
  }
}

/** JSON from the server. Throws HttpError for its refusals, and TypeError or DOMException where it does not answer. */
export async function request(method, path, body, options = {}) {
  const response = await fetch(path, {
    method, credentials: "same-origin", redirect: "error", signal: AbortSignal.timeout(TIMEOUT), ...options,
    headers: body === undefined ? {} : { "content-type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const content = await response.json().catch(() => null);
  if (!response.ok) {
    const detail = content?.detail;
    throw new HttpError(response.status, typeof detail === "string" ? detail : detail?.[0]?.msg);
  }
  if (content === null) throw new TypeError("the answer is no JSON");
  return content;
}

/** Whether trying again may help. */
export function passing(error) {
  return !(error instanceof HttpError) || error.status >= 500 || [401, 408, 425, 429].includes(error.status);
}

/**
 * A queue of judgements. `changed(status)` is called with {unsaved, failing, loggedOut} whenever they change, and
 * `received(entry, receipt)` for each judgement that the server has saved or refused. `key` begins the names in
 * `storage`, one for each judgement, so that two tabs do not write over each other's.
 */
export function makeOutbox({ key, storage, changed, received }) {
  let entries = stored();
  let sending = false, failing = false, loggedOut = false, wait = FIRST_WAIT, timer = null, last = 0;

  function stored() {
    const found = [];
    try {
      for (let index = 0; index < storage.length; index++) {
        const name = storage.key(index);
        if (name.startsWith(key)) found.push(JSON.parse(storage.getItem(name)));
      }
    } catch {
      // No storage, as in some private windows: the queue then lives as long as the page.
    }
    return found.sort((one, other) => one.at - other.at);
  }

  function tell() {
    changed({ unsaved: entries.length, failing, loggedOut });
  }

  function add(assignment, judgement) {
    // Later than the one before, even where the clock stands still or goes back.
    last = Math.max(last + 1, Date.now(), (entries.at(-1)?.at ?? 0) + 1);
    const entry = { at: last, assignment, judgement };
    entries.push(entry);
    try {
      storage.setItem(key + judgement.id, JSON.stringify(entry));
    } catch {
      // See `stored`.
    }
    tell();
    if (!failing) flush();
  }

  function remove(entry) {
    entries = entries.filter((other) => other !== entry);
    try {
      storage.removeItem(key + entry.judgement.id);
    } catch {
      // See `stored`.
    }
  }

  async function post(batch) {
    const judgements = batch.map(({ assignment, judgement }) => ({ assignment, ...judgement }));
    const { receipts } = await request("POST", "/api/judgements", { judgements }, { keepalive: true });
    const found = new Map(receipts.map((receipt) => [receipt.id, receipt]));
    if (!batch.some((entry) => found.has(entry.judgement.id))) throw new TypeError("the answer has no receipts");
    for (const entry of batch) {
      const receipt = found.get(entry.judgement.id);
      if (!receipt) continue;
      remove(entry);
      received(entry, receipt);
    }
  }

  /** Sends what there is, in order; resolves when nothing is left or the server does not answer. */
  async function flush() {
    if (sending) return;
    sending = true;
    clearTimeout(timer);
    let single = false;
    try {
      while (entries.length) {
        const batch = entries.slice(0, single ? 1 : BATCH);
        try {
          await post(batch);
        } catch (error) {
          if (passing(error)) throw error;
          // One of them is at fault: one at a time, so that the others are saved.
          if (batch.length === 1) {
            remove(batch[0]);
            received(batch[0], { id: batch[0].judgement.id, status: "refused", reason: error.message });
          }
          single = true;
        }
        failing = loggedOut = false;
        wait = FIRST_WAIT;
        tell();
      }
    } catch (error) {
      failing = true;
      loggedOut = error instanceof HttpError && error.status === 401;
      timer = setTimeout(flush, wait * (0.75 + Math.random() / 2));
      wait = Math.min(2 * wait, LONGEST_WAIT);
      tell();
    } finally {
      sending = false;
    }
    // What was added between the last look and here.
    if (entries.length && !failing) flush();
  }

  return {
    add, flush,
    /** The judgements of an assignment that are not known to be saved, oldest first. */
    of: (assignment) => entries.filter((entry) => entry.assignment === assignment).map((entry) => entry.judgement),
    /** The assignments that have such judgements. */
    assignments: () => [...new Set(entries.map((entry) => entry.assignment))],
    get size() {
      return entries.length;
    },
  };
}

/** A UUID, also where the page came over plain HTTP from another machine, which has no crypto.randomUUID. */
export function uuid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}
