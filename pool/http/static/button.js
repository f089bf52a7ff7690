/** A button that has something done by the daemon: not twice at once, and not while it cannot be. */

import { attribute, write } from "./dom.js";

export class Action {
  /** ``error`` is the element that says why it was not done. */
  constructor(button, action, error) {
    Object.assign(this, { button, error, why: "", busy: false });
    button.addEventListener("click", () => this.press(action));
  }

  /** ``why`` it cannot be done now; "" when it can. */
  allow(why) {
    this.why = why;
    this.show();
  }

  async press(action) {
    if (this.busy || this.why) return;
    this.busy = true;
    this.show();
    write(this.error, "");
    try {
      await action();
    } catch (problem) {
      write(this.error, problem.message);
    } finally {
      this.busy = false;
      this.show();
    }
  }

  show() {
    // Not ``disabled``: that would take the focus away, and could not be asked why.
    attribute(this.button, "aria-disabled", this.busy || this.why ? "true" : null);
    attribute(this.button, "aria-busy", this.busy ? "true" : null);
    attribute(this.button, "title", this.why || null);
  }
}
