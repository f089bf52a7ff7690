/** One uPlot chart in a box of the page: as large as the box, drawn while it is seen. */

import { onThemeChange } from "./theme.js";

/** Call back before the page is printed. */
function onPrint(callback) {
  addEventListener("beforeprint", callback);
  matchMedia("print").addEventListener("change", ({ matches }) => matches && callback());
}

export class Chart {
  /** ``draw`` is called when what is shown should be made anew. */
  constructor(box, options, draw) {
    this.box = box;
    this.draw = draw;
    this.seen = false;
    this.plot = new globalThis.uPlot(
      { width: 300, height: 168, legend: { show: false }, ...options },
      options.series.map(() => []),
      box,
    );
    this.sizes = new ResizeObserver(() => this.fit());
    this.sizes.observe(box);
    this.sight = new IntersectionObserver(([entry]) => this.see(entry.isIntersecting), {
      rootMargin: "200px",
    });
    this.sight.observe(box);
    onThemeChange(() => this.plot.redraw(false, true));
    // On paper all of the page is seen.
    onPrint(() => this.see(true));
  }

  /** Draw while it is on the screen; else as soon as it comes there. */
  refresh() {
    if (this.seen) this.draw();
  }

  fit() {
    const { clientWidth: width, clientHeight: height } = this.box;
    const { plot } = this;
    if (width && (width !== plot.width || height !== plot.height)) plot.setSize({ width, height });
  }

  see(seen) {
    this.seen = seen;
    this.fit();
    this.refresh();
  }
}
