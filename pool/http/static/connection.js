/** Keeps a stream of events open, and says how it stands. */

import { Problem } from "./api.js";
import { eventsOf } from "./stream.js";

/** Seconds without a byte after which the stream is given up; its heartbeat comes every 15. */
const SILENCE = 40;
/** Seconds before the first and at most before a later try; doubled in between. */
const FIRST = 0.5;
const LONGEST = 15;
/** Seconds for which a stream must have lived for the next wait to be the first one again. */
const LIVED = 5;

/** Seconds to wait before try number ``attempt``, of which the first is 1. */
export function backOff(attempt, random = Math.random) {
  return Math.min(LONGEST, FIRST * 2 ** (attempt - 1)) * (0.5 + random() / 2);
}

export class Connection {
  /**
   * ``onOpen`` is called when events begin to come, ``onEvent`` with each, and ``onState`` with
   * ``{name, problem, retryAt}``: ``connecting``, ``live``, ``waiting`` (until ``retryAt``, in
   * milliseconds) or ``unauthorized``.
   */
  constructor(api, path, { onOpen, onEvent, onState }) {
    Object.assign(this, { api, path, onOpen, onEvent, onState });
    this.lastId = "";
    this.attempts = 0;
    this.wake = () => {};
    this.aborter = new AbortController();
  }

  /** Never returns. */
  async run() {
    for (;;) {
      this.onState({ name: "connecting" });
      const began = Date.now();
      const problem = await this.stream();
      if (Date.now() - began > LIVED * 1000) this.attempts = 0;
      this.attempts += 1;
      await this.wait(problem);
    }
  }

  /** Try at once: a person asks for it, or the network is back. */
  hurry() {
    this.wake();
  }

  /** Begin anew: with another token, or from the newest event. */
  restart({ forget = false } = {}) {
    if (forget) this.lastId = "";
    this.attempts = 0;
    this.aborter.abort();
    this.wake();
  }

  async stream() {
    this.aborter = new AbortController();
    const { signal } = this.aborter;
    const watchdog = new Watchdog(SILENCE, () => this.aborter.abort());
    try {
      const headers = { Accept: "text/event-stream" };
      if (this.lastId) headers["Last-Event-ID"] = this.lastId;
      const response = await this.api.fetch(this.path, { headers, signal });
      this.onState({ name: "live" });
      this.onOpen();
      for await (const event of eventsOf(response.body)) {
        watchdog.feed();
        if (event?.id) this.lastId = event.id;
        if (event?.data) this.tell(event);
      }
      return new Problem({ title: "The daemon has closed the connection" });
    } catch (error) {
      if (error instanceof Problem) return error;
      return new Problem({ title: "The connection was lost" });
    } finally {
      watchdog.stop();
    }
  }

  tell(event) {
    try {
      this.onEvent(event);
    } catch (error) {
      // A fault of the page's: it is not to look like a lost connection.
      reportError(error);
    }
  }

  async wait(problem) {
    const woken = new Promise((resolve) => (this.wake = resolve));
    if (problem.status === 401) {
      this.onState({ name: "unauthorized", problem });
      await woken;
    } else {
      const seconds = backOff(this.attempts);
      this.onState({ name: "waiting", problem, retryAt: Date.now() + seconds * 1000 });
      await Promise.race([woken, new Promise((done) => setTimeout(done, seconds * 1000))]);
    }
    this.wake = () => {};
  }
}

class Watchdog {
  constructor(seconds, bark) {
    Object.assign(this, { seconds, bark });
    this.feed();
  }

  feed() {
    clearTimeout(this.timer);
    this.timer = setTimeout(this.bark, this.seconds * 1000);
  }

  stop() {
    clearTimeout(this.timer);
  }
}
