/** The requests that are not finished, and those that failed or were warned last. */

import { seconds } from "./format.js";

export const UNFINISHED = ["queued", "uploading", "importing"];
/** The event of a warning: it changes no state. */
const WARNED = "request.warned";
/** Failures that are kept, warnings that are asked for at once, and seconds for which a finished
 * request is still shown. */
export const FAILURES = 200;
const WARNINGS = 20;
const LINGER = 4;
/** Finished requests whose ids are kept, so that an older answer does not bring them back. */
const REMEMBERED = 5000;

export class Requests {
  constructor() {
    this.rows = new Map();
    this.failures = new Map();
    this.finished = new Set();
    this.changes = 0;
    // Whether a row's names, or a failure's reason, are still to be asked for.
    this.incomplete = false;
    this.unexplained = false;
    // Ids of requests whose warnings are still to be asked for.
    this.warned = new Set();
  }

  /** To be taken before the daemon is asked, and given to :meth:`takeUnfinished`. */
  mark() {
    return this.changes;
  }

  /** All that is unfinished, newest first, as it was at some time after ``mark``. */
  takeUnfinished(items, mark) {
    for (const item of items) {
      if (this.finished.has(item.id)) continue;
      const row = this.row(item);
      describe(row, item);
      if (row.changed <= mark) Object.assign(row, { state: item.state, taskId: item.task_id });
    }
    const known = new Set(items.map((item) => item.id));
    for (const [id, row] of this.rows) {
      if (!known.has(id) && row.changed <= mark && row.ended === null) this.rows.delete(id);
    }
  }

  /** The newest requests, whatever their state: what is known by events gets its names. */
  takeNewest(items) {
    for (const item of items) {
      const row = this.rows.get(item.id);
      if (row) describe(row, item);
    }
    this.takeWarned(items);
  }

  /** Failed requests. */
  takeFailures(items) {
    this.takeTroubles(items);
  }

  /** The ids of the requests that were warned since, as many as can be shown. */
  takeWarnedIds() {
    const ids = [...this.warned].slice(-WARNINGS);
    this.warned.clear();
    return ids;
  }

  /** Requests of which some have warnings. */
  takeWarned(items) {
    this.takeTroubles(items.filter(({ warnings }) => warnings.length));
  }

  /** Requests that failed, or that have warnings. */
  takeTroubles(items) {
    for (const item of items) {
      const { title, detail, code } = item.error ?? warningOf(item);
      this.failures.set(item.id, {
        id: item.id,
        template: item.template,
        name: nameOf(item),
        taskId: item.task_id,
        url: item.url,
        deleted: item.task_deleted ?? false,
        failed: item.state === "failed",
        at: seconds(item.finished_at ?? item.created_at),
        title,
        detail,
        code,
      });
    }
    const newest = [...this.failures.values()].sort((a, b) => b.at - a.at).slice(0, FAILURES);
    this.failures = new Map(newest.map((each) => [each.id, each]));
  }

  /** An event of a request. Gives its row; null for one that changes no state. */
  takeEvent(event) {
    if (event.kind === WARNED) {
      this.warned.add(event.request_id);
      return null;
    }
    this.changes += 1;
    const row = this.row({ id: event.request_id, template: event.template });
    const at = seconds(event.at);
    row.changed = this.changes;
    row.state = event.state;
    row.taskId = event.task_id ?? row.taskId;
    row.outcome = event.outcome ?? row.outcome;
    // The first that is heard of it; when it really was made is asked for with its name.
    row.created ??= at;
    if (UNFINISHED.includes(event.state)) {
      if (row.name === null) this.incomplete = true;
    } else {
      this.end(row, at);
      if (event.state === "failed") this.unexplained = true;
    }
    return row;
  }

  /** What is shown at a time, newest first: the unfinished, and the just finished a little more. */
  shown(now) {
    this.forget(now);
    return [...this.rows.values()].sort((a, b) => (b.created ?? now) - (a.created ?? now));
  }

  /** Let go of what has been finished for a while. */
  forget(now) {
    for (const [id, { ended }] of this.rows) {
      if (ended !== null && now - ended > LINGER) this.rows.delete(id);
    }
  }

  end(row, at) {
    row.ended = at;
    this.finished.add(row.id);
    if (this.finished.size > REMEMBERED) {
      this.finished.delete(this.finished.values().next().value);
    }
  }

  row({ id, template }) {
    let row = this.rows.get(id);
    if (!row) {
      row = { id, template, name: null, files: 0, size: 0, state: "queued", outcome: null };
      Object.assign(row, { taskId: null, url: null, deleted: false, created: null, ended: null, changed: 0 });
      this.rows.set(id, row);
    }
    return row;
  }
}

function describe(row, item) {
  row.name = nameOf(item);
  row.files = item.files.length;
  row.size = item.size;
  row.url = item.url;
  row.deleted = item.task_deleted ?? false;
  row.created = seconds(item.created_at);
}

/** What stands in place of an error where there are only warnings. */
function warningOf({ warnings }) {
  if (!warnings.length) return { title: "Failed", detail: "", code: "" };
  const detail = warnings.map(({ text }) => text).join("; ");
  return { title: "Ready, with a warning", detail, code: warnings.at(-1).code };
}

/** What people call a request: its name, else that of its first file. */
export function nameOf({ name, files, id }) {
  return name || files[0] || shortName(id);
}

/** What a request is called that has no name: the end of its id, since the beginning is a time. */
export function shortName(id) {
  return `request …${id.slice(-8)}`;
}
