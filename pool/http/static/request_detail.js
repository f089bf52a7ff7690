/** All there is to know of one request: what became of it, when, and what took the time. */

import { Action } from "./button.js";
import { confirmCancel } from "./dialogs.js";
import { arrange, attribute, byId, linkTask, partsOf, show, write } from "./dom.js";
import { bytes, count, duration, plural, seconds, time } from "./format.js";
import { showJobs } from "./job_links.js";
import { nameOf } from "./requests.js";

/** Milliseconds between two questions for a request that changes, and files that are named. */
const APART = 300;
const FILES = 5;

/** What a request has gone through, and the field with the time of it. */
const STEPS = [
  ["accepted", "created_at"],
  ["handed out", "handed_out_at"],
  ["sent", "uploaded_at"],
  ["ended", "finished_at"],
  ["shown", "shown_at"],
];
const PLACED = { slot: "a slot", group: "a shared task", task: "a task of its own" };

export class RequestDetail {
  /** ``onClose`` is called when people close it, ``onCancel(id)`` when they cancel the request. */
  constructor({ api, onClose, onCancel }) {
    Object.assign(this, { api, id: "", request: null, events: [], timer: null });
    this.dialog = byId("request-dialog");
    this.parts = partsOf(this.dialog);
    this.parts.close.addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("close", () => {
      this.id = "";
      onClose();
    });
    const cancel = async () => {
      const { id, request } = this;
      if (await confirmCancel(nameOf(request))) await onCancel(id);
    };
    this.cancel = new Action(this.parts.cancel, cancel, this.parts.problem);
  }

  /** Show a request; "" for none. */
  look(id) {
    if (id === this.id) return;
    Object.assign(this, { id, request: null, events: [] });
    if (!id) {
      this.dialog.close();
      return;
    }
    write(this.parts.name, "Loading …");
    write(this.parts.problem, "");
    show(this.parts.state, false);
    show(this.parts.body, false);
    if (!this.dialog.open) this.dialog.showModal();
    this.read();
  }

  /** Something has happened to a request. */
  takeEvent({ request_id: id }) {
    if (id && id === this.id) this.soon();
  }

  soon() {
    this.timer ??= setTimeout(() => this.read(), APART);
  }

  async read() {
    clearTimeout(this.timer);
    this.timer = null;
    const { id } = this;
    if (!id) return;
    const path = `v1/requests/${encodeURIComponent(id)}`;
    try {
      const [request, events] = await Promise.all([
        this.api.get(path),
        this.api.get(`${path}/events`),
      ]);
      if (id !== this.id) return;
      Object.assign(this, { request, events: events.items });
    } catch (problem) {
      if (id !== this.id) return;
      write(this.parts.problem, problem.message);
      if (!this.request) write(this.parts.name, "Request");
    }
    this.show();
  }

  /** Draw it; ``usable`` says why nothing can be done now. */
  show(usable = this.usable) {
    this.usable = usable;
    const { parts, request } = this;
    const why = request ? whyNotCancelled(request) : "";
    show(parts.cancel, Boolean(request) && !why);
    write(parts["why-not"], why);
    this.cancel.allow(usable?.daemon ?? "");
    if (!request) return;
    show(parts.body, true);
    show(parts.state, true);
    write(parts.name, nameOf(request));
    write(parts.state, request.state);
    attribute(parts.state, "data-state", request.state);
    this.showTrouble(request);
    showParts(parts, this.events);
    showSteps(parts.steps, request);
    showAbout(parts.about, request);
    show(parts["jobs-section"], Boolean(request.jobs?.length));
    showJobs(parts.jobs, request, Infinity);
    showEvents(parts, this.events);
  }

  showTrouble({ error, warnings }) {
    show(this.parts.failure, Boolean(error));
    write(this.parts["failure-title"], error?.title);
    write(this.parts["failure-detail"], error?.detail);
    arrange(this.parts.warnings, warnings, {
      key: ({ code, text }) => `${code} ${text}`,
      make: () => ({ root: document.createElement("li") }),
      update: ({ root }, { text }) => write(root, text),
    });
    show(this.parts.warnings, warnings.length > 0);
  }
}

/** Why a request cannot be cancelled; "" when it can. */
function whyNotCancelled({ state }) {
  if (state === "queued") return "";
  if (state === "uploading") return "It cannot be cancelled: its data is being sent to CVAT.";
  if (state === "importing") return "It cannot be cancelled: CVAT imports its data already.";
  return "It has ended, so there is nothing to cancel.";
}

/** What took the time: CVAT, an outage, or the pool. Known once it has ended. */
function showParts(parts, events) {
  const end = events.findLast(({ kind, seconds }) => kind.startsWith("request.") && seconds !== null);
  const { seconds: whole = null, server_seconds: server = null, held_seconds: held } = end ?? {};
  const known = whole !== null && server !== null;
  const outage = held ?? 0;
  const rows = known
    ? [
        ["pool", "the pool’s part", Math.max(0, whole - server - outage)],
        ["cvat", "CVAT’s part", server],
        ["outage", "outage", outage],
      ].filter(([name, , took]) => name !== "outage" || took > 0)
    : [];
  arrange(parts.share, rows, {
    key: ([name]) => name,
    make: ([name]) => {
      const root = document.createElement("span");
      root.className = name;
      return { root };
    },
    update: ({ root }, [, , took]) => {
      root.style.flexGrow = String(1000 * took);
    },
  });
  show(parts.share, known);
  describe(parts.parts, rows.map(([name, words, took]) => [words, duration(took), name]));
}

function showSteps(body, request) {
  const created = seconds(request.created_at);
  const rows = STEPS.map(([name, field]) => [name, seconds(request[field])]).filter(([, at]) => at);
  arrange(body, rows, {
    key: ([name]) => name,
    make: () => rowOf(3),
    update: ({ cells }, [name, at]) => {
      const outcome = name === "handed out" && request.outcome ? ` (${request.outcome})` : "";
      write(cells[0], name === "ended" ? request.state : `${name}${outcome}`);
      write(cells[1], time(at, { exact: true }));
      write(cells[2], name === "accepted" ? "" : duration(Math.max(0, at - created)));
    },
  });
}

function showAbout(list, request) {
  const files = request.files.slice(0, FILES).join(", ");
  const more = request.files.length - FILES;
  describe(list, [
    ["Id", request.id],
    ["Template", request.template],
    ["Tenant", request.tenant],
    ["Task", request],
    ["Went into", PLACED[request.placed]],
    ["No slot, since", request.no_slot],
    ["Stream", request.stream],
    ["Assignee", request.assignee],
    ["Priority", request.priority === "normal" ? null : request.priority],
    [plural(request.files.length, "file"), more > 0 ? `${files} and ${count(more)} more` : files],
    ["Size", bytes(request.size)],
    ["Frames hidden", request.hidden],
  ]);
}

function showEvents(parts, events) {
  arrange(parts.events, events, {
    key: ({ id }) => String(id),
    make: () => rowOf(2),
    update: ({ cells }, { kind, at, code }) => {
      write(cells[0], code ? `${kind} (${code})` : kind);
      write(cells[1], time(seconds(at), { exact: true }));
    },
  });
  show(parts["events-table"], events.length > 0);
  show(parts["events-empty"], !events.length);
}

/** Fill a list of terms with ``[term, words, key colour]``; those without words are left out. */
function describe(list, rows) {
  const known = rows.filter(([, words]) => words !== null && words !== undefined && words !== "");
  arrange(list, known, {
    key: ([term]) => term,
    make: ([, , colour]) => {
      const root = document.createElement("div");
      const term = document.createElement("dt");
      const value = document.createElement("dd");
      if (colour) {
        const key = document.createElement("i");
        key.className = `key ${colour}`;
        term.append(key);
      }
      const name = document.createElement("span");
      term.append(name);
      root.append(term, value);
      return { root, name, value };
    },
    update: ({ root, name, value }, [term, words]) => {
      write(name, term);
      if (typeof words === "object") showTask(root, value, words);
      else write(value, words);
    },
  });
}

function showTask(root, value, { task_id: taskId, url, task_deleted: deleted }) {
  show(root, taskId !== null);
  const anchor = value.firstElementChild ?? document.createElement("a");
  Object.assign(anchor, { target: "_blank", rel: "noopener noreferrer" });
  if (!anchor.isConnected) value.append(anchor);
  linkTask(anchor, { taskId, url, deleted });
}

function rowOf(number) {
  const root = document.createElement("tr");
  const cells = Array.from({ length: number }, () => root.insertCell());
  for (const cell of cells.slice(1)) cell.className = "number";
  return { root, cells };
}
