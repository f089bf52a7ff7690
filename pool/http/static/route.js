/**
 * What is shown, in the address after its "#", so that it can be bookmarked and sent to others:
 * ``#overview``, ``#leases``, ``#requests?state=failed&template=streets&text=drive``.
 */

const VIEWS = ["overview", "requests", "leases"];
/** A filter that lets all requests pass. ``within``: accepted in so many seconds; 0: at any time. */
export const EVERYTHING = { states: [], template: "", text: "", within: 0 };

/** ``{view, filter, id}`` of an address; ``id`` is the request that is looked at, "" for none. */
export function parse(hash) {
  const [name, query = ""] = hash.replace(/^#/, "").split(/\?(.*)/s);
  const fields = new URLSearchParams(query);
  const within = Number(fields.get("within"));
  return {
    view: VIEWS.includes(name) ? name : VIEWS[0],
    filter: {
      states: fields.getAll("state"),
      template: fields.get("template") ?? "",
      text: fields.get("text") ?? "",
      within: within > 0 && Number.isFinite(within) ? within : 0,
    },
    id: fields.get("id") ?? "",
  };
}

export function format({ view, filter = EVERYTHING, id = "" }) {
  const fields = new URLSearchParams();
  for (const state of filter.states) fields.append("state", state);
  if (filter.template) fields.set("template", filter.template);
  if (filter.text) fields.set("text", filter.text);
  if (filter.within) fields.set("within", String(filter.within));
  if (id) fields.set("id", id);
  const query = fields.toString();
  return `#${view}${query && `?${query}`}`;
}

/** The address of this page, and who is to know when it becomes another. */
export class Route {
  constructor(onChange) {
    this.onChange = onChange;
    this.now = parse(location.hash);
    addEventListener("hashchange", () => this.take(parse(location.hash)));
  }

  /** Go to another view, or change what is shown; ``quietly``: without a step to go back. */
  go(change, { quietly = false } = {}) {
    const next = { ...this.now, ...change };
    const address = format(next);
    if (address === format(this.now)) return;
    history[quietly ? "replaceState" : "pushState"](null, "", address);
    this.take(next);
  }

  take(next) {
    const before = this.now;
    this.now = next;
    this.onChange(before);
  }
}
