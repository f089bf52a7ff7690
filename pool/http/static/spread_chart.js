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
    this.writeTable([parts.whole, parts.server, parts.ours]);
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
    ctx.lineWidth = ratio;
    ctx.setLineDash([3 * ratio, 3 * ratio]);
    let free = -Infinity;
    this.marks.forEach((at, i) => {
      const x = Math.round(plot.valToPos(at, "x", true)) + 0.5;
      if (x > bbox.left + bbox.width) return;
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      const width = ctx.measureText(NAMES[i]).width;
      const left = x - width / 2;
      // A name that would lie on the one before is left out; the table has all of them.
      if (left > free) {
        ctx.fillText(NAMES[i], left, bbox.top - 4 * ratio);
        free = left + width + 4 * ratio;
      }
    });
    ctx.restore();
  }
}

/** A duration for an axis. */
function short(seconds) {
  if (seconds === 0) return "0";
  if (seconds < 0.9995) return `${Number((seconds * 1000).toPrecision(3))} ms`;
  return seconds < 120 ? `${Number(seconds.toPrecision(3))} s` : duration(seconds);
}
