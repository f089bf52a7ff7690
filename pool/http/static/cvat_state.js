/** How CVAT stands, of all that the status says of it. */

import { seconds, span, time } from "./format.js";

/** Codes of holds of a server that does not answer, and of one that refuses. */
const SILENT = ["cvat-unreachable", "cvat-ambiguous"];
const INVALID = "cvat-unauthorized";
const FORBIDDEN = "cvat-forbidden";
/** Seconds up to which the next try is counted down. */
const SOON = 120;

/**
 * ``{name, words}``; the name is "answers", "held", "refuses" or "unknown". ``connected``: the
 * status is of now; ``now`` is the daemon's time.
 */
export function cvatState(status, { connected, now }) {
  if (!status || !connected) return { name: "unknown", words: "CVAT: not known" };
  const hold = holdOfAll(status);
  if (!hold) return { name: "answers", words: "CVAT answers" };
  const next = nextTry(hold, now);
  const refuses = [INVALID, FORBIDDEN].includes(hold.code);
  if (refuses) return { name: "refuses", words: `CVAT refuses the token${next}` };
  if (SILENT.includes(hold.code)) return { name: "held", words: `CVAT does not answer${next}` };
  const until = hold.until === null ? "" : ` until ${time(hold.until, { now })}`;
  return { name: "held", words: hold.until - now <= SOON ? `CVAT held${next}` : `CVAT held${until}` };
}

/** The hold of the server, or that of the token; null: none. */
function holdOfAll({ hold_reason: reason, hold_code: code, held_until: until, templates }) {
  if (reason) return { code: code ?? "", until: seconds(until) };
  // A token that is invalid is so for all templates, whichever has tried it. One that may not do
  // something for a template may serve the others.
  const forbidden = templates.filter((row) => row.hold_code === FORBIDDEN);
  const refused =
    templates.find((row) => row.hold_code === INVALID) ??
    (forbidden.length === templates.length ? forbidden[0] : undefined);
  return refused ? { code: refused.hold_code, until: seconds(refused.held_until) } : null;
}

function nextTry({ until }, now) {
  if (until === null) return "";
  const left = Math.ceil(until - now);
  if (left < 1) return ", trying now";
  return left <= SOON ? `, next try in ${span(left)}` : `, next try at ${time(until, { now })}`;
}
