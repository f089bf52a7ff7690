/** The tables of requests: those in flight, and those that have failed. */

import { arrange, attribute, byId, copy, link, show, write } from "./dom.js";
import { ago, bytes, count, duration, plural, span, time } from "./format.js";
import { shortName } from "./requests.js";

/** Rows of a table. */
const MOST = 10;

export class RequestTables {
  /** ``wanted`` tells whether people want to see a template's requests. */
  constructor(wanted) {
    this.wanted = wanted;
  }

  /** ``now`` is the daemon's time; ``inFlight`` is how many there are at least. */
  show(requests, { now, inFlight }) {
    const rows = requests.shown(now).filter(({ template }) => this.wanted(template));
    arrange(byId("flight").tBodies[0], rows.slice(0, MOST), {
      key: ({ id }) => id,
      make: () => copy("flight-row"),
      update: ({ root, parts }, row) => showInFlight(root, parts, row, now),
    });
    show(byId("flight"), rows.length > 0);
    show(byId("flight-empty"), !rows.length);
    write(byId("flight-empty"), "Nothing is in flight.");
    const more = Math.max(rows.length, inFlight) - MOST;
    show(byId("flight-more"), rows.length > MOST && more > 0);
    write(byId("flight-more"), `and ${count(Math.max(more, 0))} more`);

    const failed = [...requests.failures.values()].filter(({ template }) => this.wanted(template));
    arrange(byId("failures").tBodies[0], failed.slice(0, MOST), {
      key: ({ id }) => id,
      make: () => copy("failure-row"),
      update: ({ parts }, row) => showFailure(parts, row, now),
    });
    show(byId("failures"), failed.length > 0);
    show(byId("failures-empty"), !failed.length);
    write(byId("failures-empty"), "No request has failed.");
  }
}

function showInFlight(root, parts, row, now) {
  write(parts.what, row.name ?? shortName(row.id));
  const files = row.files ? [plural(row.files, "file"), bytes(row.size)] : [];
  write(parts.more, [row.template, ...files].join(" · "));
  attribute(root, "data-state", row.state);
  write(parts.state, row.state);
  showTask(parts.task, row);
  const end = row.ended ?? now;
  const took = row.created === null ? null : Math.max(0, end - row.created);
  write(parts.time, row.ended === null && took !== null ? span(took) : duration(took));
}

function showFailure(parts, row, now) {
  write(parts.what, row.name);
  write(parts.more, row.template);
  attribute(parts.at, "datetime", new Date(row.at * 1000).toISOString());
  write(parts.at, `${time(row.at, { now })}, ${ago(now - row.at)}`);
  write(parts.title, row.title);
  write(parts.detail, row.detail);
  showTask(parts.task, row);
}

function showTask(anchor, { taskId, url }) {
  show(anchor, taskId !== null);
  link(anchor, url);
  write(anchor, `task ${taskId}`);
}
