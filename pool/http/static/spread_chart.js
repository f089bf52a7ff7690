/** How the times from request to job ids of one template are spread. */

import { Chart } from "./chart.js";
import { show, write } from "./dom.js";
import { count, duration, plural } from "./format.js";
import { FONT, axis, colour, labels } from "./theme.js";
import { histogram, quantile } from "./timings.js";

const QUANTILES = [0.5, 0.9, 0.99];
const NAMES = ["p50", "p90", "p99"];

export class SpreadChart {
  constructor(parts) {
    this.parts = parts;
    this.bars = null;
    const { uPlot } = globalThis;
    this.chart = new Chart(
      parts["spread-chart"],
      {
        padding: [16, 12, 0, 0],
        scales: {
          x: { time: false, range: () => this.range() },
          y: { range: (_, __, high) => [0, Math.max(4, (high || 0) * 1.1)] },
        },
        axes: [
          axis({
            values: (_, all) => labels(this.range(), all, short),
            space: 60,
            size: 26,
            grid: { show: false },
          }),
          axis({ size: 40, space: 36, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000] }),
        ],
        series: [
          {},
          {
            paths: uPlot.paths.bars({ size: [1, Infinity], gap: 1, align: 1 }),
            stroke: () => colour("--spread"),
            fill: () => colour("--spread"),
            width: 0,
            points: { show: false },
          },
        ],
        cursor: { show: false },
        hooks: { draw: [(plot) => this.drawQuantiles(plot)] },
      },
      () => this.draw(),
    );
  }

  /** Show these times; see :meth:`Timings.parts`. */
  show(name, parts, since) {
    this.name = name;
    this.whole = parts.whole;
    show(this.parts["spread-empty"], !parts.whole.length);
    for (const part of ["spread-chart", "quantiles"])
      show(this.parts[part], parts.whole.length > 0);
    this.writeTable([parts.whole, parts.server, parts.ours, parts.held]);
    // Most servers have no outage in an hour.
    show(this.parts.quantiles.tBodies[0].rows[3], parts.held.at(-1) > 0);
    this.marks = QUANTILES.map((each) => quantile(parts.whole, each));
    this.describe(since);
    this.chart.refresh();
  }

  draw() {
    if (!this.whole?.length) return;
    this.bars = histogram(this.whole);
    this.chart.fit();
    this.chart.plot.setData([this.bars.starts, this.bars.counts]);
  }

  range() {
    if (!this.bars) return [0, 1];
    const { starts, step } = this.bars;
    return [Math.max(0, starts[0] - step), starts.at(-1) + 2 * step];
  }

  writeTable(rows) {
    const lines = this.parts.quantiles.tBodies[0].rows;
    rows.forEach((numbers, i) => {
      QUANTILES.forEach((each, j) => {
        write(lines[i].cells[j + 1], duration(quantile(numbers, each)));
      });
    });
  }

  describe(since) {
    const { whole } = this;
    if (!whole.length) return write(this.parts["spread-words"], "");
    const { beyond, starts, step } = histogram(whole);
    const far = beyond ? `; ${count(beyond)} took longer than ${short(starts.at(-1) + step)}` : "";
    write(this.parts["spread-words"], `${plural(whole.length, "request")} ${since}${far}.`);
    const said = this.marks.map((at, i) => `${NAMES[i]} ${duration(at)}`).join(", ");
    this.chart.box.setAttribute(
      "aria-label",
      `Histogram of the times from request to job ids of ${this.name}: ${said}.`,
    );
    return undefined;
  }

  drawQuantiles(plot) {
    if (!this.bars) return;
    const { ctx, bbox } = plot;
    const ratio = devicePixelRatio;
    ctx.save();
    ctx.font = FONT.replace("11px", `${11 * ratio}px`);
    ctx.strokeStyle = ctx.fillStyle = colour("--text");
    ctx.textAlign = "left";
    ctx.textBaseline = "alphabetic";
    ctx.lineWidth = ratio;
    ctx.setLineDash([3 * ratio, 3 * ratio]);
    const [left, right] = [bbox.left, bbox.left + bbox.width];
    const marks = this.marks.map((at, i) => {
      const x = Math.round(plot.valToPos(at, "x", true)) + 0.5;
      // One that is beyond the last bar is named at the edge.
      const name = x > right ? `${NAMES[i]} →` : NAMES[i];
      return { x: Math.min(x, right), beyond: x > right, name, width: ctx.measureText(name).width };
    });
    for (const { x, beyond } of marks) {
      if (beyond) continue;
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
    }
    placeLabels(marks, [left, right], 4 * ratio).forEach((at, i) => {
      ctx.fillText(marks[i].name, at, bbox.top - 4 * ratio);
    });
    ctx.restore();
  }
}

/**
 * Where labels begin that stand above their marks (``{x, width}``, from left to right): between the
 * edges, and ``gap`` apart, so that none lies on another one or on the axis.
 */
export function placeLabels(marks, [left, right], gap) {
  const places = [];
  let free = left;
  for (const { x, width } of marks) {
    places.push(Math.max(free, x - width / 2));
    free = places.at(-1) + width + gap;
  }
  let end = right;
  for (let i = marks.length - 1; i >= 0; i -= 1) {
    places[i] = Math.min(places[i], end - marks[i].width);
    end = places[i] - gap;
  }
  return places;
}

/** A duration for an axis. */
function short(seconds) {
  if (seconds === 0) return "0";
  if (seconds < 0.9995) return `${Number((seconds * 1000).toPrecision(3))} ms`;
  return seconds < 120 ? `${Number(seconds.toPrecision(3))} s` : duration(seconds);
}
