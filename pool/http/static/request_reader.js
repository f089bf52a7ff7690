/** Asks for what events do not carry: the names of requests, and why they failed. */

import { plural } from "./format.js";
import { FAILURES, UNFINISHED } from "./requests.js";

/** Milliseconds in which what is to be asked for gathers. */
const APART = 500;
const FAILED = `state=failed&limit=${FAILURES}`;

export class RequestReader {
  /** ``attempt`` runs an action, and shows what came of it. */
  constructor({ api, announcer, attempt }) {
    Object.assign(this, { api, announcer, attempt, timer: null });
  }

  /** All that is unfinished, and what failed or was warned last. */
  async read(requests) {
    const mark = requests.mark();
    const [newest, failed, ...unfinished] = await Promise.all(
      ["", FAILED, ...UNFINISHED.map((state) => `state=${state}`)].map((query) => this.list(query)),
    );
    requests.takeWarned(newest);
    requests.takeUnfinished(unfinished.flat(), mark);
    requests.takeFailures(failed);
  }

  /** Ask soon for what is missing after an event, if something is. */
  complete(requests) {
    const { incomplete, unexplained, warned } = requests;
    if (!incomplete && !unexplained && !warned.size) return;
    this.timer ??= setTimeout(async () => {
      await this.attempt(() => this.ask(requests));
      this.timer = null;
      // What has come meanwhile.
      this.complete(requests);
    }, APART);
  }

  async ask(requests) {
    const { incomplete, unexplained } = requests;
    // Before the answers come, which are older than what events say from here on.
    Object.assign(requests, { incomplete: false, unexplained: false });
    if (incomplete) requests.takeNewest(await this.list("limit=50"));
    for (const id of requests.takeWarnedIds()) {
      requests.takeWarned([await this.api.get(`v1/requests/${id}`)]);
    }
    if (unexplained) {
      const before = new Set(requests.failures.keys());
      requests.takeFailures(await this.list(FAILED));
      const now = [...requests.failures.values()];
      this.announce(now.filter(({ id, failed }) => failed && !before.has(id)));
    }
  }

  async list(query) {
    return (await this.api.get(`v1/requests?${query}`)).items;
  }

  announce(failures) {
    if (failures.length > 1) this.announcer.say(`${plural(failures.length, "request")} failed`);
    for (const { name, template, title } of failures.length === 1 ? failures : []) {
      this.announcer.say(`${name} of ${template} failed: ${title}`);
    }
  }
}
