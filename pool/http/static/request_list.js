/** The list of requests: a filter, and a page of those that pass it. */

import { Action } from "./button.js";
import { confirmCancel } from "./dialogs.js";
import { arrange, attribute, byId, copy, partsOf, show, write, writeTime } from "./dom.js";
import { age, bytes, count, duration, plural, seconds, span } from "./format.js";
import { showJobs } from "./job_links.js";
import { Pager } from "./pager.js";
import { nameOf } from "./requests.js";
import { EVERYTHING } from "./route.js";

/** Requests of a page. */
const PAGE = 200;
/** Questions at most for a page of a search. */
const SEARCHES = 10;
/** Milliseconds without a key after which the text is searched for. */
const TYPED = 300;

export class RequestList {
  /**
   * ``onFilter(filter, {quietly})`` is called when people change the filter, ``onOpen(id)`` when
   * they look at a request, ``onChange`` when there is something else to be shown, and
   * ``onFound(words)`` with what a filter has found.
   */
  constructor({ api, onFilter, onOpen, onChange, onCancel, onFound }) {
    Object.assign(this, { api, onFilter, onOpen, onCancel, onFound, filter: EVERYTHING });
    // Whether what the filter has found is still to be announced.
    this.searching = false;
    this.parts = partsOf(byId("requests"));
    const read = (cursor) => this.read(cursor);
    this.pager = new Pager({ read, onChange, parts: this.parts });
    this.listen();
  }

  listen() {
    this.text = byId("request-text");
    this.template = byId("request-template");
    this.age = byId("request-age");
    this.states = [...byId("request-states").querySelectorAll("input")];
    byId("request-filter").addEventListener("submit", (event) => {
      event.preventDefault();
      this.changed({ quietly: true });
    });
    this.text.addEventListener("input", () => {
      clearTimeout(this.typing);
      this.typing = setTimeout(() => this.changed({ quietly: true }), TYPED);
    });
    for (const each of [this.template, this.age, ...this.states]) {
      each.addEventListener("change", () => this.changed());
    }
  }

  changed(how = {}) {
    clearTimeout(this.typing);
    this.onFilter(
      {
        states: this.states.filter(({ checked }) => checked).map(({ value }) => value),
        template: this.template.value,
        text: this.text.value.trim(),
        within: Number(this.age.value),
      },
      how,
    );
  }

  /** The filter that the address has. */
  useFilter(filter) {
    const same = JSON.stringify(filter) === JSON.stringify(this.filter);
    this.filter = filter;
    if (this.text.value.trim() !== filter.text) this.text.value = filter.text;
    for (const each of this.states) each.checked = filter.states.includes(each.value);
    this.choose(this.age, String(filter.within || ""), span(filter.within));
    this.choose(this.template, filter.template, filter.template);
    if (same) return;
    this.searching = true;
    this.pager.restart();
  }

  /** Select a value, which becomes an option where it is none. */
  choose(select, value, words) {
    if (![...select.options].some((option) => option.value === value)) {
      select.add(new Option(words, value));
    }
    select.value = value;
  }

  takeTemplates(names) {
    const known = new Set([...this.template.options].map(({ value }) => value));
    for (const name of names) if (!known.has(name)) this.template.add(new Option(name, name));
  }

  /** A page. The daemon searches for a text in so many requests at a time, so it goes on there. */
  async read(cursor) {
    let page = { items: [], next_cursor: cursor };
    for (let i = 0; i < SEARCHES && page.items.length < PAGE; i += 1) {
      const more = await this.ask(page.next_cursor);
      page = { items: [...page.items, ...more.items], next_cursor: more.next_cursor };
      if (page.next_cursor === null) break;
    }
    return page;
  }

  ask(cursor) {
    const { states, template, text, within } = this.filter;
    const fields = new URLSearchParams({ limit: String(PAGE) });
    for (const state of states) fields.append("state", state);
    if (template) fields.set("template", template);
    if (text) fields.set("text", text);
    if (within) fields.set("since", new Date((this.api.now() - within) * 1000).toISOString());
    if (cursor !== null) fields.set("cursor", cursor);
    return this.api.get(`v1/requests?${fields}`);
  }

  /** ``usable`` says why nothing can be done now. */
  show(now, usable) {
    const { parts, pager } = this;
    const items = pager.items ?? [];
    arrange(parts.rows, items, {
      key: ({ id }) => id,
      make: (item) => this.row(item),
      update: (row, item) => {
        row.item = item;
        showRow(row.parts, item, now);
        row.cancel.allow(usable.daemon);
      },
    });
    show(parts.table, items.length > 0);
    show(parts.empty, !items.length);
    write(parts.empty, this.emptyWords());
    if (this.searching && pager.items !== null) {
      this.searching = false;
      this.onFound(items.length ? countWords(items.length, pager) : "No request found");
    }
    show(parts.pages, items.length > 0 || pager.next !== null || !pager.isFirst);
    write(parts.count, countWords(items.length, pager));
    show(parts.newer, !pager.isFirst);
    show(parts.older, pager.next !== null);
  }

  emptyWords() {
    if (this.pager.items === null) return this.pager.problem ? "" : "Loading …";
    const filtered = JSON.stringify(this.filter) !== JSON.stringify(EVERYTHING);
    return filtered ? "No request matches the filter." : "No request so far.";
  }

  row(item) {
    const row = copy("request-row");
    row.item = item;
    row.parts.open.addEventListener("click", () => this.onOpen(row.item.id));
    const cancel = async () => {
      if (await confirmCancel(nameOf(row.item))) await this.onCancel(row.item.id);
    };
    row.cancel = new Action(row.parts.cancel, cancel, this.parts.error);
    return row;
  }
}

function countWords(number, { before, isFirst, next }) {
  if (!number) return "None found among these";
  if (!isFirst) return `Requests ${count(before + 1)} to ${count(before + number)}`;
  return next === null ? plural(number, "request") : `The newest ${plural(number, "request")}`;
}

function showRow(parts, item, now) {
  const name = nameOf(item);
  write(parts.open, name);
  const stream = item.stream ? [`stream ${item.stream}`] : [];
  const files = [plural(item.files.length, "file"), bytes(item.size)];
  const unbroken = files.map((words) => words.replaceAll(" ", "\u00a0"));
  const tenant = item.tenant ? [item.tenant] : [];
  write(parts.more, [item.template, ...tenant, ...stream, ...unbroken].join(" · "));
  write(parts.state, item.state);
  attribute(parts.state, "data-state", item.state);
  // On a narrow screen they stand below the name.
  for (const box of [parts.why, parts["why-narrow"]]) write(box, whyOf(item));
  for (const box of [parts.jobs, parts["jobs-narrow"]]) showJobs(box, item);
  const created = seconds(item.created_at);
  const ended = seconds(item.finished_at);
  write(parts.took, ended === null ? "" : duration(ended - created));
  writeTime(parts.age, created, age(now - created));
  show(parts.cancel, item.state === "queued");
  attribute(parts.cancel, "aria-label", `Cancel ${name}`);
}

/** Why it failed, or what it has to do without. */
function whyOf({ error, warnings }) {
  if (error) return [error.title, error.detail].filter(Boolean).join(": ");
  return warnings.map(({ text }) => text).join("; ");
}
