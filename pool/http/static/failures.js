/** Failures that are alike, together: a server that is full fails all requests in the same words. */

/** What differs between failures of one kind: quoted names, ids, numbers. */
const OWN = /'[^']*'|"[^"]*"|\b[0-9a-f]{8,}\b|\d+/gi;

/**
 * Failures, newest first, as ``{newest, times}``: those of one template whose errors say the same
 * but for names and numbers count as one.
 */
export function grouped(failures) {
  const groups = new Map();
  for (const each of failures) {
    const detail = (each.detail ?? "").replace(OWN, "…");
    const key = JSON.stringify([each.template, each.code, each.title, detail]);
    const group = groups.get(key);
    if (group) group.times += 1;
    else groups.set(key, { newest: each, times: 1 });
  }
  return [...groups.values()];
}
