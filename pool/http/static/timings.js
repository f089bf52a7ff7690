/** How long requests took from being made to their job ids, in the last hour. In seconds. */

const KEPT = 3600;
export const MOST = 1000;
const MOST_FAILED = 10_000;
/** Bars of a distribution, about. */
const BARS = 24;

export class Timings {
  constructor() {
    // By the requests' ids, so that one that comes twice counts once.
    this.ready = new Map();
    this.failed = new Map();
    this.sorted = null;
    // Only what ended later is known.
    this.since = -Infinity;
  }

  /** ``server`` is CVAT's part, null when it is not known; ``held`` that of outages. */
  addReady(id, { at, seconds, server, held = 0, outcome = null }) {
    if (this.ready.has(id) || !(seconds >= 0)) return;
    this.ready.set(id, { at, seconds, server, held: held ?? 0, outcome });
    this.sorted = null;
    if (this.ready.size > MOST) {
      const [oldest, { at: ended }] = this.ready.entries().next().value;
      this.ready.delete(oldest);
      this.since = Math.max(this.since, ended);
    }
  }

  addFailed(id, { at, outcome = null }) {
    this.failed.set(id, { at, outcome });
    if (this.failed.size > MOST_FAILED) this.failed.delete(this.failed.keys().next().value);
  }

  forget(now) {
    for (const each of [this.ready, this.failed]) {
      for (const [id, { at }] of each) {
        if (at < now - KEPT) {
          each.delete(id);
          this.sorted = null;
        }
      }
    }
  }

  /** Seconds that are known: an hour, or less where there were too many requests. */
  reach(now) {
    return Math.min(KEPT, now - this.since);
  }

  /** How many requests were served at once, and of how many that is known. */
  hits() {
    const ended = [...this.ready.values(), ...this.failed.values()];
    const outcomes = ended.filter(({ outcome }) => outcome !== null);
    return { hits: outcomes.filter(({ outcome }) => outcome === "hit").length, all: outcomes.length };
  }

  /** Sorted: of all requests the whole time, and of those where they are known its parts. */
  parts() {
    this.sorted ??= this.sort();
    return this.sorted;
  }

  sort() {
    const all = [...this.ready.values()];
    const split = all.filter(({ server }) => server !== null);
    return {
      whole: sorted(all.map(({ seconds }) => seconds)),
      server: sorted(split.map(({ server }) => server)),
      ours: sorted(split.map((each) => Math.max(0, each.seconds - each.server - each.held))),
      held: sorted(split.map(({ held }) => held)),
    };
  }
}

const sorted = (numbers) => numbers.sort((a, b) => a - b);

/** A quantile of sorted numbers: the smallest that ``part`` of them do not exceed. NaN of none. */
export function quantile(numbers, part) {
  if (!numbers.length) return NaN;
  return numbers[Math.max(0, Math.ceil(part * numbers.length) - 1)];
}

/**
 * A histogram of sorted numbers: ``{step, starts, counts, beyond}``. Its bars have one width, a
 * round one; what is far beyond the rest is counted in ``beyond``, so that it does not press the
 * rest together.
 */
export function histogram(numbers) {
  const low = numbers[0];
  const most = Math.min(quantile(numbers, 0.99), 2.5 * quantile(numbers, 0.9));
  const high = Math.max(most, low * 1.2, 0.001);
  const step = roundStep((high - low) / BARS);
  const first = Math.floor(low / step);
  const bars = Math.floor(high / step) - first + 1;
  const counts = new Array(bars).fill(0);
  let beyond = 0;
  for (const number of numbers) {
    const bar = Math.floor(number / step) - first;
    if (bar < bars) counts[bar] += 1;
    else beyond += 1;
  }
  return { step, starts: counts.map((_, i) => (first + i) * step), counts, beyond };
}

/** The next 1, 2 or 5 times a power of ten. */
function roundStep(atLeast) {
  const power = 10 ** Math.floor(Math.log10(atLeast));
  return power * [1, 2, 5, 10].find((each) => each * power >= atLeast * 0.999);
}
