/** What the page shows of one template: a line, and below it, when it is open, all there is. */

import { arrange, attribute, copy, show, write } from "./dom.js";
import { ago, count, lately, plural, seconds, share, span, time } from "./format.js";
import { LevelChart } from "./level_chart.js";
import { SpreadChart } from "./spread_chart.js";

let made = 0;

/** Imports of which a bar is shown. */
const BARS = 40;

/** What queued requests wait for, in words. */
const WAITS_FOR = {
  hold: "CVAT, which is held",
  place: "a place among the imports",
  task: "a warm task",
  others: "others to share an import with",
  turn: "their turn",
  daemon: "their process, or a daemon",
};

export class TemplateCard {
  /** ``actions`` are called with the template's status: pause, resume, drain, prewarm. */
  constructor(name, { actions, onToggle }) {
    const { root, parts } = copy("template-card");
    Object.assign(this, { name, root, parts, actions, row: null, charts: null });
    const id = `template-${(made += 1)}`;
    parts.toggle.id = id;
    parts.body.id = `${id}-body`;
    root.setAttribute("aria-labelledby", id);
    parts.toggle.setAttribute("aria-controls", parts.body.id);
    parts.badges.setAttribute("aria-label", `State of ${name}`);
    write(parts.name, name);
    parts.toggle.addEventListener("click", () => onToggle(!this.open));
    this.button("pause", () => this.actions[this.row.paused_since ? "resume" : "pause"](this.row));
    this.button("drain", () => this.actions.drain(this.row));
    this.button("prewarm", () => this.actions.prewarm(this.row));
    this.button("try-now", () => this.actions.resume(this.row));
  }

  get open() {
    return !this.parts.body.hidden;
  }

  /** Charts are made when they are first seen, since there may be many templates. */
  set open(open) {
    show(this.parts.body, open);
    attribute(this.parts.toggle, "aria-expanded", String(open));
    if (open) this.charts ??= [new LevelChart(this.parts), new SpreadChart(this.parts)];
  }

  /** What the template's status says. ``now`` is the daemon's time, ``used`` how many imports are
   * under way that requests may share. */
  showStatus(row, now, used = 0) {
    this.row = row;
    const { parts } = this;
    write(parts.warm, count(row.warm));
    write(parts.target, count(row.target));
    const full = Math.max(row.target, row.warm + row.creating, 1);
    parts["warm-bar"].style.width = `${(100 * row.warm) / full}%`;
    parts["creating-bar"].style.width = `${(100 * row.creating) / full}%`;
    attribute(this.root, "data-trouble", row.hold_reason ? "held" : null);
    this.showBadges(badgesOf(row, now));
    this.showHold(row, now);
    if (!this.open) return;
    this.showHandOuts(row);
    this.showQueue(row, used);
    this.showGroups(row.group_sizes ?? []);
    for (const name of ["waiting", "queued", "leased", "importing", "deleting"]) {
      write(parts[name], count(row[name] ?? 0));
    }
    this.label("pause", row.paused_since ? "Resume" : "Pause");
    this.label("drain", "Drain");
    this.label("prewarm", "Prewarm");
    this.label("try-now", "Try now");
  }

  /** What was before now: levels and times. ``period`` is in seconds. */
  showHistory({ levels, timings, period, now, current }) {
    if (!this.open || !this.row) return;
    const [level, spread] = this.charts;
    level.show({ levels, row: this.row, from: now - period, to: now, current });
    spread.show(this.name, timings.parts(), "of the last hour");
  }

  showLastFailure(failure, now) {
    if (!this.open) return;
    const words = failure
      ? `Last failure ${ago(now - failure.at)}: ${[failure.title, failure.detail]
          .filter(Boolean)
          .join(": ")}`
      : "";
    write(this.parts["last-failure"], words);
  }

  showBadges(badges) {
    arrange(this.parts.badges, badges, {
      key: ([kind]) => kind,
      make: ([kind]) => {
        const root = document.createElement("li");
        root.dataset.kind = kind;
        return { root };
      },
      update: ({ root }, [, words]) => write(root, words),
    });
    show(this.parts.badges, badges.length > 0);
  }

  showHold(row, now) {
    show(this.parts.hold, Boolean(row.hold_reason));
    if (!row.hold_reason) return;
    write(this.parts["hold-reason"], row.hold_reason);
    write(this.parts["hold-countdown"], countdown(row, now));
  }

  showHandOuts(row) {
    const { parts } = this;
    const all = row.hits + row.waits + row.colds;
    for (const outcome of ["hit", "wait", "cold"]) {
      const number = row[`${outcome}s`];
      write(parts[`${outcome}s`], count(number));
      write(parts[`${outcome}s-share`], share(number, all));
      parts[`${outcome}-bar`].style.flexGrow = String(number);
      show(parts[`${outcome}-bar`], number > 0);
    }
    const words = `${plural(all, "hand-out")}${lately(row.rate)}.`;
    write(parts["hand-outs-words"], all ? words : "None so far.");
  }

  /** What the queued requests wait for, and of which priority they are. */
  showQueue(row, used) {
    const words = row.queued ? WAITS_FOR[row.waits_for] : undefined;
    show(this.parts["waits-for"], Boolean(words));
    if (!words) return;
    const places = row.waits_for === "place" ? `, ${count(used)} of ${count(row.places)} in use` : "";
    const marked = [
      [row.queued_interactive, "interactive"],
      [row.queued_bulk, "bulk"],
    ].filter(([number]) => number);
    const levels = marked.map(([number, name]) => `${count(number)} ${name}`).join(", ");
    const waits = row.queued === 1 ? "waits" : "wait";
    write(
      this.parts["waits-for"],
      `${plural(row.queued, "request")} ${waits} for ${words}${places}${levels && ` (${levels})`}.`,
    );
  }

  /** How many requests the latest imports had, a bar each, where any was shared. */
  showGroups(sizes) {
    const most = Math.max(0, ...sizes);
    show(this.parts.groups, most > 1);
    if (most <= 1) return;
    arrange(this.parts["group-bars"], sizes.slice(-BARS).map((size, place) => [place, size]), {
      key: ([place]) => String(place),
      make: () => ({ root: document.createElement("span") }),
      update: ({ root }, [, size]) => {
        root.style.height = `${(100 * size) / most}%`;
      },
    });
    const mean = sizes.reduce((all, size) => all + size, 0) / sizes.length;
    write(
      this.parts["groups-words"],
      `Requests an import: ${mean.toFixed(1)} on average, ${count(most)} at most, ` +
        `in ${plural(sizes.length, "import")} of the last 15 minutes.`,
    );
  }

  /** Run an action of a button, which cannot be pressed again meanwhile. */
  button(name, action) {
    const button = this.parts[name];
    button.addEventListener("click", async () => {
      if (button.getAttribute("aria-disabled") === "true") return;
      // Not ``disabled``: that would take the focus away from whoever pressed it.
      button.setAttribute("aria-disabled", "true");
      write(this.parts.error, "");
      try {
        await action();
      } catch (problem) {
        write(this.parts.error, problem.message);
      } finally {
        button.removeAttribute("aria-disabled");
      }
    });
  }

  /** A button's words, and for those who hear it alone what it is about. */
  label(part, words) {
    write(this.parts[part], words);
    attribute(this.parts[part], "aria-label", `${words} ${this.name}`);
  }
}

/** When a hold ends, in words. */
export function countdown({ held_since: since, held_until: until }, now) {
  const began = since ? ` Held since ${time(seconds(since), { now })}.` : "";
  if (!until) return `Next try after a resume.${began}`;
  const left = seconds(until) - now;
  return `${left >= 1 ? `Next try in ${span(left)}.` : "Trying again now."}${began}`;
}

function badgesOf(row, now) {
  const badges = [];
  const at = (text) => time(seconds(text), { now });
  if (row.hold_reason) {
    const left = row.held_until ? seconds(row.held_until) - now : 0;
    badges.push(["held", left >= 1 ? `held, next try in ${span(left)}` : "held"]);
  }
  if (row.paused_since) {
    const empty = row.warm + row.creating === 0;
    badges.push(["paused", `${empty ? "drained" : "paused"} since ${at(row.paused_since)}`]);
  }
  if (row.prewarm_until && seconds(row.prewarm_until) > now) {
    badges.push(["prewarm", `prewarm ${count(row.prewarm_size)} until ${at(row.prewarm_until)}`]);
  }
  if (row.waiting + (row.queued ?? 0) > 0) {
    badges.push(["waiting", `${count(row.waiting + (row.queued ?? 0))} waiting`]);
  }
  if (row.hooks === "silent") badges.push(["hooks", "webhook silent, polling"]);
  return badges;
}
