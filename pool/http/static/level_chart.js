/** The level of one template against its target, over time. */

import { Chart } from "./chart.js";
import { show, write } from "./dom.js";
import { count, date, plural, span, time } from "./format.js";
import { axis, colour, labels } from "./theme.js";

export class LevelChart {
  constructor(parts) {
    this.parts = parts;
    this.shown = null;
    const { stepped } = globalThis.uPlot.paths;
    const steps = stepped({ align: 1 });
    const area = (name) => ({
      paths: steps,
      stroke: () => colour(`--${name}`),
      fill: () => colour(`--${name}-area`),
      width: 1.5,
      points: { show: false },
    });
    const line = { paths: steps, points: { show: false } };
    const target = { ...line, stroke: () => colour("--target"), width: 1.5, dash: [5, 4] };
    // Of a step of the store the area is the mean, and this the lowest level.
    const least = { ...line, stroke: () => colour("--least"), width: 1 };
    this.chart = new Chart(
      parts["level-chart"],
      {
        padding: [8, 12, 0, 0],
        scales: { x: { range: () => this.range() }, y: { range: (_, __, high) => [0, top(high)] } },
        axes: [
          axis({ values: (_, at) => this.labels(at), space: 64, size: 26 }),
          axis({ size: 40, space: 28, incrs: WHOLE, values: (_, all) => all.map(count) }),
        ],
        series: [{}, area("creating"), area("warm"), target, least],
        // What is being created lies on top of what is warm.
        bands: [{ series: [1, 2], fill: () => colour("--creating-area") }],
        cursor: { y: false, points: { size: 6 }, drag: { setScale: false, x: false } },
        hooks: { setCursor: [(plot) => this.readOut(plot.cursor.idx)] },
      },
      () => this.draw(),
    );
  }

  /** Show one template's levels; all times in seconds since the epoch. */
  show(view) {
    this.shown = view;
    this.readOut(this.chart.plot.cursor.idx);
    this.describe(view);
    this.chart.refresh();
  }

  draw() {
    if (!this.shown) return;
    const { levels, from, to, current } = this.shown;
    this.rows = levels.window(from, to, { current });
    const [, , warm, , least] = this.rows;
    show(this.parts.least, least.some((level, i) => level !== warm[i]));
    this.chart.plot.setData(this.rows);
    this.readOut(this.chart.plot.cursor.idx);
  }

  range() {
    const now = Date.now() / 1000;
    return this.shown ? [this.shown.from, this.shown.to] : [now - 60, now];
  }

  labels(places) {
    const [from, to] = this.range();
    if (to - from > 2 * DAY) {
      return labels([from, to], places, (at) => (isMidnight(at) ? date(at) : ""));
    }
    return labels([from, to], places, (at) => time(at, { now: at, precise: to - from < 600 }));
  }

  /** The legend's numbers: those under the pointer, else those of now. */
  readOut(index) {
    const { parts, shown } = this;
    if (!shown) return;
    let { warm, creating, target } = shown.row;
    let least = warm;
    const pointed = index !== null && index !== undefined && this.rows?.[2][index] != null;
    if (pointed) {
      const [, all, level, aim, lowest] = this.rows;
      [warm, creating, target] = [level[index], all[index] - level[index], aim[index]];
      least = lowest[index];
    }
    write(parts["key-warm"], count(warm));
    write(parts["key-least"], count(least));
    write(parts["key-creating"], count(creating));
    write(parts["key-target"], count(target));
    write(parts["key-when"], pointed ? this.timeOf(this.rows[0][index]) : "");
  }

  timeOf(at) {
    const { from, to } = this.shown;
    return time(at, { now: to, precise: to - from <= 3600 });
  }

  describe({ levels, row, from, to }) {
    const { lowest, lowestAt, dry } = levels.lows(from, to);
    const words = [];
    if (lowestAt !== null) {
      words.push(`Lowest in ${span(to - from)}: ${plural(lowest, "warm task")}`);
      if (lowest < row.warm) words.push(` at ${time(lowestAt, { now: to })}`);
      words.push(dry >= 1 ? `; none for ${span(dry)} in total.` : ".");
    }
    write(this.parts["level-words"], words.join(""));
    this.chart.box.setAttribute(
      "aria-label",
      `Chart of the level of ${row.name}. Now ${plural(row.warm, "warm task")}, ` +
        `${count(row.creating)} in creation, target ${count(row.target)}.`,
    );
  }
}

const DAY = 86400;
const isMidnight = (at) => new Date(at * 1000).getHours() === 0;

const WHOLE = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 50000, 100000];

/** Where the axis ends: a little above what is shown. */
function top(high) {
  return Math.max(4, Math.ceil((high || 0) * 1.12));
}
