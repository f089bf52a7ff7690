/** The page's colours, for what is drawn on a canvas: those of the style sheet, dark or light. */

const dark = matchMedia("(prefers-color-scheme: dark)");
const contrast = matchMedia("(prefers-contrast: more)");

/** A colour by the name of its custom property, such as ``--warm``. */
export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** Call back when the colours are others. */
export function onThemeChange(callback) {
  for (const query of [dark, contrast]) query.addEventListener("change", callback);
}

export const FONT = "11px system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";

/** Those of a label's places that leave it room before the end of the axis; else "". */
export function labels([from, to], places, write) {
  return places.map((at) => ((to - at) / (to - from) < 0.06 ? "" : write(at)));
}

/** An axis of a chart in the page's colours. */
export function axis(options) {
  return {
    font: FONT,
    stroke: () => colour("--muted"),
    grid: { stroke: () => colour("--grid"), width: 1 },
    ticks: { show: false },
    gap: 6,
    ...options,
  };
}
