/** What the page shows of one template: a line, and below it, when it is open, all there is. */

import { Action } from "./button.js";
import { arrange, attribute, copy, show, write } from "./dom.js";
import { age, ago, count, duration, plural, rate, seconds, share, span, time } from "./format.js";
import { LevelChart } from "./level_chart.js";
import { SpreadChart } from "./spread_chart.js";
import { quantile } from "./timings.js";

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
  data: "their data, on a machine that is away",
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
    const button = (part, action) =>
      new Action(parts[part], () => action(this.row), parts.error);
    this.buttons = {
      pause: button("pause", (row) => actions[row.paused_since ? "resume" : "pause"](row)),
      drain: button("drain", (row) => actions.drain(row)),
      prewarm: button("prewarm", (row) => actions.prewarm(row)),
      tryNow: button("try-now", (row) => actions.resume(row)),
    };
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

  /**
   * What the template's status says. ``now`` is the daemon's time, ``used`` how many imports are
   * under way that requests may share, ``streams`` how many are open, ``holdOfAll`` why all
   * templates are held, which the page says once for all.
   */
  showStatus(row, { now, used = 0, streams = 0, holdOfAll = "" }) {
    this.row = row;
    const { parts } = this;
    write(parts.warm, count(row.warm));
    const target = count(row.target);
    write(parts["of-target"], row.warm > row.target ? ` warm, target ${target}` : ` of ${target} warm`);
    write(parts.rate, rate(row.rate));
    const full = Math.max(row.target, row.warm + row.creating, 1);
    parts["warm-bar"].style.width = `${(100 * row.warm) / full}%`;
    parts["creating-bar"].style.width = `${(100 * row.creating) / full}%`;
    attribute(this.root, "data-trouble", row.hold_reason ? "held" : null);
    this.showBadges(badgesOf(row, now));
    this.showHold(row, now, holdOfAll);
    if (!this.open) return;
    this.showHandOuts(row);
    this.showQueue(row, used);
    this.showSlots(row, streams);
    this.showGroups(row.group_sizes ?? []);
    for (const name of ["waiting", "queued", "leased", "importing", "deleting"]) {
      write(parts[name], count(row[name] ?? 0));
    }
    this.label("pause", row.paused_since ? "Resume" : "Pause");
    this.label("drain", "Drain");
    this.label("prewarm", "Prewarm");
    this.label("try-now", "Try now");
  }

  /** What requests were like in the last hour. */
  showTimes(timings) {
    const { hits, all } = timings.hits();
    write(this.parts["hit-rate"], share(hits, all) || "–");
    write(this.parts.p50, duration(quantile(timings.parts().whole, 0.5)));
  }

  /** Which buttons can be pressed; ``usable`` says why not. */
  allow({ daemon, cvat }) {
    this.buttons.pause.allow(daemon);
    this.buttons.tryNow.allow(daemon);
    this.buttons.drain.allow(cvat);
    this.buttons.prewarm.allow(cvat);
  }

  /** What was before now: levels and times. ``period`` is in seconds. */
  showHistory({ levels, timings, period, now, current }) {
    if (!this.open || !this.row) return;
    const [level, spread] = this.charts;
    level.show({ levels, row: this.row, from: now - period, to: now, current });
    const reach = timings.reach(now);
    const last = reach < 3600 ? span(reach) : "hour";
    spread.show(this.name, timings.parts(), `of the last ${last}`);
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

  showHold(row, now, holdOfAll) {
    const own = row.hold_reason !== "" && row.hold_reason !== holdOfAll;
    show(this.parts.hold, own);
    if (!own) return;
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
    const words = `${plural(all, "hand-out")}, now ${rate(row.rate)}.`;
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

  /** How full the tasks are whose jobs are slots. */
  showSlots({ carriers = 0, warm, leased, slots_filled: filled, slots_retired: retired }, streams) {
    show(this.parts.slots, carriers > 0 || streams > 0);
    const numbers = [
      [warm, "warm"],
      [leased, "leased"],
      [filled, "filled"],
      [retired, "retired"],
    ].filter(([number, name]) => number > 0 || name === "warm");
    const words = numbers.map(([number, name]) => `${count(number)} ${name}`).join(", ");
    write(this.parts["slots-words"], carriers ? `Slots of ${plural(carriers, "task")}: ${words}.` : "");
    show(this.parts.streams, streams > 0);
    write(this.parts.streams, plural(streams, "open stream"));
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
  const waiting = row.waiting + (row.queued ?? 0);
  if (waiting > 0) {
    const since = seconds(row.oldest_waiting_since);
    const oldest = since === null ? "" : `, oldest ${age(now - since)}`;
    badges.push(["waiting", `${count(waiting)} waiting${oldest}`]);
  }
  if (row.hooks === "silent") badges.push(["hooks", "webhook silent, polling"]);
  return badges;
}
