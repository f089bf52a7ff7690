/** The requests that are not finished, and those that failed last. */

import { seconds } from "./format.js";

export const UNFINISHED = ["queued", "uploading", "importing"];
/** Failures that are kept, and seconds for which a finished request is still shown. */
const FAILURES = 20;
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

  /** The newest requests, whatever their state: what events have told of gets its names. */
  takeNewest(items) {
    for (const item of items) {
      const row = this.rows.get(item.id);
      if (row) describe(row, item);
    }
    this.incomplete = false;
  }

  /** Failed requests. */
  takeFailures(items) {
    for (const item of items) {
      this.failures.set(item.id, {
        id: item.id,
        template: item.template,
        name: nameOf(item),
        taskId: item.task_id,
        url: item.url,
        at: seconds(item.finished_at ?? item.created_at),
        title: item.error?.title ?? "Failed",
        detail: item.error?.detail ?? "",
        code: item.error?.code ?? "",
      });
    }
    const newest = [...this.failures.values()].sort((a, b) => b.at - a.at).slice(0, FAILURES);
    this.failures = new Map(newest.map((each) => [each.id, each]));
    this.unexplained = false;
  }

  /** An event of a request. Gives its row. */
  takeEvent(event) {
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
      Object.assign(row, { taskId: null, url: null, created: null, ended: null, changed: 0 });
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
  row.created = seconds(item.created_at);
}

function nameOf({ name, files, id }) {
  return name || files[0] || shortName(id);
}

/** What a request is called that has no name: the end of its id, since the beginning is a time. */
export function shortName(id) {
  return `request …${id.slice(-8)}`;
}
