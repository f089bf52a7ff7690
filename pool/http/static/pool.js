/** All that the page knows of the pool; nothing of it is drawn here. */

import { seconds } from "./format.js";
import { KEPT, Levels } from "./levels.js";
import { Requests } from "./requests.js";
import { MOST, Timings } from "./timings.js";

export class Pool {
  /** ``now`` gives the daemon's time, in seconds since the epoch. */
  constructor(now) {
    this.now = now;
    this.status = null;
    // When the newest levels came, for what is shown after the connection was lost.
    this.seenAt = null;
    this.requests = new Requests();
    this.templates = new Map();
  }

  /** The series of one template. */
  template(name) {
    let template = this.templates.get(name);
    if (!template) {
      template = { levels: new Levels(), longer: null, timings: new Timings() };
      this.templates.set(name, template);
    }
    return template;
  }

  /** The levels of one template over so many seconds. */
  levels(name, period) {
    const { levels, longer } = this.template(name);
    return period > KEPT && longer ? longer.before(levels) : levels;
  }

  /** The status of the whole pool. Gives what is to be announced of it. */
  takeStatus(status) {
    const news = this.status ? changesBetween(this.status, status) : [];
    this.status = status;
    this.sample();
    const names = new Set(status.templates.map(({ name }) => name));
    for (const name of this.templates.keys()) if (!names.has(name)) this.templates.delete(name);
    return news;
  }

  /** The status of one template, as an action answers it. */
  takeTemplate(row) {
    if (!this.status) return [];
    const templates = this.status.templates.map((each) => (each.name === row.name ? row : each));
    return this.takeStatus({ ...this.status, templates });
  }

  /** Note what the levels are now, also when nothing has changed. */
  sample() {
    const at = this.now();
    this.seenAt = at;
    for (const row of this.status?.templates ?? []) this.template(row.name).levels.add(at, row);
  }

  takeHistory(history) {
    for (const [name, sampled] of Object.entries(history.templates)) {
      this.template(name).levels.takeHistory(history.at, sampled, history.interval);
    }
    const all = history.requests.length < MOST;
    const since = all ? -Infinity : Math.min(...history.requests.map(({ at }) => at));
    for (const each of history.requests) {
      const { timings } = this.template(each.template);
      timings.since = Math.max(timings.since, since);
      if (each.state === "ready") {
        timings.addReady(each.request_id, timesOf(each, each.at));
      } else if (each.state === "failed") {
        timings.addFailed(each.request_id, each);
      }
    }
  }

  /** Levels of more than the last hour, in steps of minutes. */
  takeLongerHistory(history, period) {
    for (const [name, sampled] of Object.entries(history.templates)) {
      const longer = new Levels(period);
      longer.takeHistory(history.at, sampled, history.interval);
      this.template(name).longer = longer;
    }
  }

  /** An event of a request. */
  takeEvent(event) {
    const row = this.requests.takeEvent(event);
    if (!row) return;
    const at = seconds(event.at);
    const { timings } = this.template(event.template);
    if (event.state === "failed") timings.addFailed(row.id, { ...event, at });
    if (event.state === "ready") {
      timings.addReady(row.id, timesOf(event, at));
    }
  }

  /** Let go of what is shown no more. */
  forget() {
    const now = this.now();
    this.requests.forget(now);
    for (const { timings } of this.templates.values()) timings.forget(now);
  }
}

function timesOf({ seconds, server_seconds: server, held_seconds: held, outcome }, at) {
  return { at, seconds, server, held, outcome };
}

/** What has changed between two statuses that is to be announced, in words. */
function changesBetween(before, after) {
  const news = [];
  if (after.hold_reason && !before.hold_reason) news.push(`The pool is held: ${after.hold_reason}`);
  if (!after.hold_reason && before.hold_reason) news.push("The pool is no longer held");
  if (!after.maintainer && before.maintainer) news.push("No daemon maintains the pool");
  const earlier = new Map(before.templates.map((row) => [row.name, row]));
  for (const row of after.templates) {
    const old = earlier.get(row.name);
    if (!old) news.push(`New template ${row.name}`);
    // What holds all of them is announced once.
    else news.push(...templateNews(own(old, before), own(row, after)));
  }
  return news;
}

/** A template's row without the hold of the server as a whole. */
function own(row, status) {
  return row.hold_reason === status.hold_reason ? { ...row, hold_reason: "" } : row;
}

function templateNews(old, row) {
  const news = [];
  if (row.paused_since && !old.paused_since) news.push(`${row.name} is paused`);
  if (!row.paused_since && old.paused_since) news.push(`${row.name} is no longer paused`);
  if (row.hold_reason && !old.hold_reason) news.push(`${row.name} is held: ${row.hold_reason}`);
  if (!row.hold_reason && old.hold_reason) news.push(`${row.name} is no longer held`);
  return news;
}
