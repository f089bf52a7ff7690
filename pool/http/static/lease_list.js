/** Who holds which task, since when and until when. */

import { Action } from "./button.js";
import { confirmRelease } from "./dialogs.js";
import { arrange, attribute, byId, copy, link, partsOf, show, write, writeTime } from "./dom.js";
import { age, ago, count, plural, processName, seconds } from "./format.js";
import { Pager } from "./pager.js";

/** Leases of a page. */
const PAGE = 200;

export class LeaseList {
  constructor({ api, onChange }) {
    this.api = api;
    this.parts = partsOf(byId("leases"));
    const read = (cursor) => this.read(cursor);
    this.pager = new Pager({ read, onChange, parts: this.parts });
  }

  read(cursor) {
    const fields = new URLSearchParams({ limit: String(PAGE) });
    if (cursor !== null) fields.set("cursor", cursor);
    return this.api.get(`v1/leases?${fields}`);
  }

  /** ``usable`` says why nothing can be done now. */
  show(now, usable) {
    const { parts, pager } = this;
    const items = pager.items ?? [];
    arrange(parts.rows, items, {
      key: ({ id }) => id,
      make: () => this.row(),
      update: (row, item) => {
        row.item = item;
        showRow(row.parts, item, now);
        row.release.allow(usable.cvat);
      },
    });
    show(parts.table, items.length > 0);
    show(parts.empty, !items.length);
    write(parts.empty, pager.items ? "No caller holds a task or waits for one." : "Loading …");
    show(parts.pages, items.length > 0);
    const range = `Leases ${count(pager.before + 1)} to ${count(pager.before + items.length)}`;
    const only = pager.isFirst && pager.next === null;
    write(parts.count, only ? plural(items.length, "lease") : range);
    show(parts.newer, !pager.isFirst);
    show(parts.older, pager.next !== null);
  }

  row() {
    const row = copy("lease-row");
    const release = async () => {
      if (!(await confirmRelease(row.item))) return;
      await this.api.delete(`v1/leases/${encodeURIComponent(row.item.id)}`);
      await this.pager.now();
    };
    row.release = new Action(row.parts.release, release, this.parts.error);
    return row;
  }
}

function showRow(parts, item, now) {
  const waits = item.task_id === null;
  write(parts.task, waits ? "waits for a task" : `task ${item.task_id}`);
  link(parts.task, item.url);
  const outcome = item.outcome ? [item.outcome] : [];
  const tenant = item.tenant ? [item.tenant] : [];
  write(parts.more, [item.template, ...tenant, ...outcome].join(" · "));
  const through = item.owner ? `through ${processName(item.owner)}` : "";
  write(parts.holder, item.name || "no name");
  write(parts.owner, through);
  const since = seconds(item.created_at);
  // On a narrow screen that stands below the task.
  const narrow = [item.name, through, ago(now - since)];
  write(parts["holder-narrow"], narrow.filter(Boolean).join(", "));
  const until = seconds(item.expires_at);
  writeTime(parts.since, since, ago(now - since));
  writeTime(parts.until, until, untilWords(until, now));
  show(parts.release, !waits);
  attribute(parts.release, "aria-label", `Give back task ${item.task_id}`);
}

function untilWords(until, now) {
  if (until === null) return "";
  return until > now ? `in ${age(until - now)}` : "now";
}
