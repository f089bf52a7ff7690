/** A list of the daemon's, a page at a time, read again when something may have changed in it. */

import { Action } from "./button.js";
import { write } from "./dom.js";

/** Milliseconds between an answer and the next question. */
const APART = 1000;
const FIRST = { cursor: null, before: 0 };

export class Pager {
  /**
   * ``read(cursor)`` gives a page of the list, ``{items, next_cursor}``; ``onChange`` is called
   * when there is one, or a problem. ``parts`` has the element that says the problem, and the
   * buttons that turn the pages, where there are some.
   */
  constructor({ read, onChange, parts: { error, older, newer } }) {
    Object.assign(this, { read, onChange, error, items: null, next: null, problem: null });
    this.shown = false;
    this.pages = [FIRST];
    this.timer = null;
    this.asked = 0;
    this.reading = false;
    if (older) {
      new Action(older, () => this.older(), error);
      new Action(newer, () => this.newer(), error);
    }
  }

  /** How many items come before those of this page. */
  get before() {
    return this.pages.at(-1).before;
  }

  /** Whether it is on the screen: only then it is read. */
  show(shown) {
    if (shown && !this.shown) this.now();
    this.shown = shown;
  }

  get isFirst() {
    return this.pages.length === 1;
  }

  /** From the newest on, by another filter. */
  restart() {
    Object.assign(this, { pages: [FIRST], items: null, next: null });
    if (this.shown) this.now();
  }

  /** Turn to the next page. Resolves when it is there, as the other way. */
  older() {
    this.pages.push({ cursor: this.next, before: this.before + this.items.length });
    return this.now();
  }

  newer() {
    this.pages.pop();
    return this.now();
  }

  /** Read it again, together with all else that changes until then, and after what is read now. */
  soon() {
    const again = () => {
      this.timer = null;
      if (this.reading) this.soon();
      else this.now();
    };
    if (this.shown) this.timer ??= setTimeout(again, APART);
  }

  async now() {
    clearTimeout(this.timer);
    this.timer = null;
    this.asked += 1;
    const { asked } = this;
    this.reading = true;
    const answer = await this.answer(this.pages.at(-1).cursor);
    // Else another page was asked for since.
    if (asked !== this.asked) return;
    this.reading = false;
    // Why an action failed stays to be read. A lost connection is shown by its own state.
    if (this.problem || answer.problem?.status) write(this.error, answer.problem?.message);
    Object.assign(this, answer);
    this.onChange();
  }

  async answer(cursor) {
    try {
      const page = await this.read(cursor);
      return { items: page.items, next: page.next_cursor ?? null, problem: null };
    } catch (problem) {
      return { problem };
    }
  }
}
