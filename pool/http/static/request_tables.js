/** The tables of requests: those in flight, and those that have failed. */

import { arrange, attribute, byId, copy, linkTask, show, write } from "./dom.js";
import { grouped } from "./failures.js";
import { ago, bytes, count, duration, plural, span, time } from "./format.js";
import { shortName } from "./requests.js";

/** Rows of a table. */
const MOST = 10;

export class RequestTables {
  /**
   * ``wanted`` tells whether people want to see a template's requests; ``onOpen(id)`` is called
   * when they look at one.
   */
  constructor({ wanted, onOpen }) {
    Object.assign(this, { wanted, onOpen });
  }

  /** ``now`` is the daemon's time; ``inFlight`` is how many there are at least. */
  show(requests, { now, inFlight }) {
    const rows = requests.shown(now).filter(({ template }) => this.wanted(template));
    arrange(byId("flight").tBodies[0], rows.slice(0, MOST), {
      key: ({ id }) => id,
      make: () => this.row("flight-row"),
      update: (view, row) => {
        view.id = row.id;
        showInFlight(view.parts, row, now);
      },
    });
    show(byId("flight"), rows.length > 0);
    show(byId("flight-empty"), !rows.length);
    write(byId("flight-empty"), "Nothing is in flight.");
    const more = Math.max(rows.length, inFlight) - MOST;
    show(byId("flight-more"), rows.length > MOST && more > 0);
    write(byId("flight-more"), `and ${count(Math.max(more, 0))} more`);

    const failed = [...requests.failures.values()].filter(({ template }) => this.wanted(template));
    arrange(byId("failures").tBodies[0], grouped(failed).slice(0, MOST), {
      key: ({ newest }) => newest.id,
      make: () => this.row("failure-row"),
      update: (view, group) => {
        view.id = group.newest.id;
        showFailure(view.parts, group, now);
      },
    });
    show(byId("failures"), failed.length > 0);
    show(byId("failures-empty"), !failed.length);
    write(byId("failures-empty"), "No request has failed.");
  }

  /** A row whose first cell opens its request. */
  row(template) {
    const view = copy(template);
    view.parts.open.addEventListener("click", () => this.onOpen(view.id));
    return view;
  }
}

function showInFlight(parts, row, now) {
  write(parts.open, row.name ?? shortName(row.id));
  const files = row.files ? [plural(row.files, "file"), bytes(row.size)] : [];
  write(parts.more, [row.template, ...files].join(" · "));
  write(parts.state, row.state);
  attribute(parts.state, "data-state", row.state);
  linkTask(parts.task, row);
  const end = row.ended ?? now;
  const took = row.created === null ? null : Math.max(0, end - row.created);
  write(parts.time, row.ended === null && took !== null ? span(took) : duration(took));
}

function showFailure(parts, { newest: row, times }, now) {
  write(parts.open, row.name);
  write(parts.more, row.template);
  attribute(parts.at, "datetime", new Date(row.at * 1000).toISOString());
  const last = `${time(row.at, { now })}, ${ago(now - row.at)}`;
  write(parts.at, times > 1 ? `${count(times)} times, the last ${ago(now - row.at)}` : last);
  write(parts.title, row.title);
  write(parts.detail, row.detail);
  linkTask(parts.task, row);
}
