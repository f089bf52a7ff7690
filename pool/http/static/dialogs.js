/** The dialogs of the page. A browser gives the focus back to where it was when one closes. */

import { byId, partsOf, write } from "./dom.js";
import { plural } from "./format.js";

/** Ask for the token. */
export class TokenDialog {
  /** ``onToken`` is called with what was entered. */
  constructor(onToken) {
    this.dialog = byId("token-dialog");
    const field = byId("token");
    byId("token-cancel").addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("close", () => (field.value = ""));
    byId("token-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const token = field.value.trim();
      if (!/^[\x21-\x7e]+$/.test(token)) {
        this.complain("A token has letters, digits and signs, and no spaces.");
        return;
      }
      this.dialog.close();
      onToken(token);
    });
  }

  /** ``refused``: there was one, and it was not accepted. */
  ask(refused) {
    if (this.dialog.open) return;
    this.complain(refused ? "The daemon does not accept that token." : "");
    this.dialog.showModal();
    byId("token").focus();
  }

  complain(words) {
    write(byId("token-error"), words);
    byId("token").setAttribute("aria-invalid", String(Boolean(words)));
  }
}

/** Resolves to whether people confirm to drain the template. */
export function confirmDrain({ name, warm }) {
  const tasks = warm === 1 ? "Its 1 warm task is" : `Its ${plural(warm, "warm task")} are`;
  const retired = warm ? `${tasks} deleted on the server` : "It has no warm task to delete";
  const what = `${retired}, and none is created until you resume it. What was handed out stays.`;
  return confirm({ heading: `Drain ${name}?`, what, yes: "Drain" });
}

/** Resolves to whether people confirm to cancel a request. */
export function confirmCancel(name) {
  const what = "No job is made of it, and the pool forgets its data. Its caller gets an error.";
  return confirm({ heading: `Cancel ${name}?`, what, yes: "Cancel the request", no: "Keep it" });
}

/** Resolves to whether people confirm to take a lease's task back. */
export function confirmRelease({ task_id: task, name }) {
  const what =
    `${name ? `"${name}"` : "A caller"} holds it, and cannot upload into it after that. ` +
    "A task that has data already stays with its caller.";
  return confirm({ heading: `Give back task ${task}?`, what, yes: "Give back" });
}

/** Resolves to whether people confirm to close a stream. */
export function confirmClose({ name, filled, slots }) {
  const left = plural(Math.max(0, slots - filled), "slot");
  const what =
    `The ${left} left in its task are filled no more. ` +
    "A later request of that name opens another stream.";
  return confirm({ heading: `Close the stream ${name}?`, what, yes: "Close the stream" });
}

async function confirm({ heading, what, yes, no = "Cancel" }) {
  const dialog = byId("confirm-dialog");
  const parts = partsOf(dialog);
  write(parts.heading, heading);
  write(parts.what, what);
  write(parts.yes, yes);
  write(parts.no, no);
  return (await answerOf(dialog)) === "yes";
}

/** Resolves to ``{count, seconds}``, or to null when it was given up. */
export async function askPrewarm({ name, target }) {
  const dialog = byId("prewarm-dialog");
  const parts = partsOf(dialog);
  const field = byId("prewarm-count");
  write(parts.name, name);
  field.value = String(Math.max(1, target * 2));
  parts.cancel.onclick = () => dialog.close("cancel");
  const answer = answerOf(dialog);
  field.select();
  if ((await answer) !== "yes") return null;
  return { count: Number(field.value), seconds: Number(byId("prewarm-seconds").value) };
}

function answerOf(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true });
  });
}
