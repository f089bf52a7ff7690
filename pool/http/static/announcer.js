/** Tells people who do not see the page what has changed, in sentences and not too often. */

import { write } from "./dom.js";

/** Seconds between two announcements, and how many sentences one has at most. */
const APART = 4;
const MOST = 3;

export class Announcer {
  constructor(element) {
    this.element = element;
    this.waiting = [];
    this.timer = null;
  }

  say(...sentences) {
    for (const each of sentences) if (!this.waiting.includes(each)) this.waiting.push(each);
    if (this.waiting.length && this.timer === null) this.speak();
  }

  speak() {
    this.timer = null;
    if (!this.waiting.length) {
      // So that the same sentence is read again when it comes again.
      write(this.element, "");
      return;
    }
    const more = this.waiting.length - MOST;
    const said = this.waiting.slice(0, MOST);
    if (more > 0) said.push(`and ${more} more changes`);
    this.waiting = [];
    write(this.element, `${said.join(". ")}.`);
    this.timer = setTimeout(() => this.speak(), APART * 1000);
  }
}
