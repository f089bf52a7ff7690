/** The streams that are open: requests whose jobs follow each other in the same tasks. */

import { Action } from "./button.js";
import { confirmClose } from "./dialogs.js";
import { arrange, attribute, byId, copy, linkTask, partsOf, show, write, writeTime } from "./dom.js";
import { ago, count, seconds } from "./format.js";
import { Pager } from "./pager.js";

export class StreamList {
  constructor({ api, onChange }) {
    this.api = api;
    this.parts = partsOf(byId("streams"));
    const read = () => this.api.get("v1/streams");
    this.pager = new Pager({ read, onChange, parts: this.parts });
  }

  /** How many are open, of a template; 0 as long as that is not known. */
  of(template) {
    return (this.pager.items ?? []).filter((each) => each.template === template).length;
  }

  /** ``slots``: some template has slots, so that there may be streams. */
  show(now, usable, slots) {
    const { parts, pager } = this;
    const items = pager.items ?? [];
    show(byId("streams"), slots || items.length > 0);
    arrange(parts.rows, items, {
      key: ({ template, name, tenant }) => JSON.stringify([template, name, tenant]),
      make: () => this.row(),
      update: (row, item) => {
        row.item = item;
        showRow(row.parts, item, now);
        row.close.allow(usable.daemon);
      },
    });
    show(parts.table, items.length > 0);
    show(parts.empty, !items.length);
    write(parts.empty, pager.items ? "No stream is open." : "Loading …");
  }

  row() {
    const row = copy("stream-row");
    const close = async () => {
      const { template, name, tenant } = row.item;
      if (!(await confirmClose(row.item))) return;
      await this.api.delete(`v1/streams?${new URLSearchParams({ template, name, tenant })}`);
      await this.pager.now();
    };
    row.close = new Action(row.parts.close, close, this.parts.error);
    return row;
  }
}

function showRow(parts, item, now) {
  write(parts.name, item.name);
  write(parts.template, [item.template, item.tenant].filter(Boolean).join(" · "));
  for (const part of ["task", "task-narrow"]) {
    linkTask(parts[part], { taskId: item.task_id, url: item.url });
  }
  write(parts.filled, `${count(item.filled)} of ${count(item.slots)} slots`);
  const used = seconds(item.used_at);
  writeTime(parts.used, used, ago(now - used));
  attribute(parts.close, "aria-label", `Close the stream ${item.name}`);
}
