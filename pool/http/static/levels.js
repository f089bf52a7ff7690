/** The levels of one template over time. Times are seconds since the epoch. */

/** Seconds that are kept. */
export const KEPT = 3600;
/** Seconds between two samples after which it is not known what was in between. */
const GAP = 20;
/** Seconds that two levels are apart at least, and those that are the same. */
const APART = 0.5;
const APART_SAME = 10;

const NAMES = ["warm", "creating", "target"];
/** What is kept of each sample: beside its levels the least that was warm, and for how many seconds
 * it may hold. */
const FIELDS = [...NAMES, "least", "holds"];
/** Steps of a series after which a sample is missing. */
const STEPS = 2.5;

export class Levels {
  /** ``kept``: seconds for which levels are kept. */
  constructor(kept = KEPT) {
    this.kept = kept;
    this.at = [];
    for (const name of FIELDS) this[name] = [];
  }

  /**
   * Take what the daemon has sampled every ``step`` seconds, with nulls where the template was not
   * there; what is older or newer than that stays.
   */
  takeHistory(at, given, step = 0) {
    if (!at.length) return;
    const holds = at.map(() => Math.max(GAP, STEPS * step));
    const sampled = { least: given.warm, ...given, holds };
    const before = this.at.filter((each) => each < at[0]).length;
    const after = this.at.findIndex((each) => each > at.at(-1));
    const join = (own, theirs) => [
      ...own.slice(0, before),
      ...theirs,
      ...(after < 0 ? [] : own.slice(after)),
    ];
    for (const name of FIELDS) this[name] = join(this[name], sampled[name]);
    this.at = join(this.at, at);
    this.forget(this.at.at(-1) - this.kept);
  }

  /** These levels, and after them those of another series that are newer. */
  before(newer) {
    const all = new Levels(this.kept);
    const from = newer.at.findIndex((each) => each > (this.at.at(-1) ?? -Infinity));
    for (const name of ["at", ...FIELDS]) {
      all[name] = from < 0 ? this[name] : [...this[name], ...newer[name].slice(from)];
    }
    return all;
  }

  /** Take what the levels are at a time that is not before the last one. */
  add(at, level) {
    const last = this.at.length - 1;
    if (last >= 0 && at < this.at[last]) return;
    // Of the levels of one moment the last one is kept, and of those that stay the same the
    // first and the last.
    const equal = (i) => NAMES.every((name) => this[name][i] === level[name]);
    const apart = last > 0 && equal(last) && equal(last - 1) ? APART_SAME : APART;
    const where = last > 0 && at - this.at[last - 1] < apart ? last : last + 1;
    this.at[where] = at;
    for (const name of NAMES) this[name][where] = level[name];
    this.least[where] = level.warm;
    this.holds[where] = GAP;
    this.forget(at - this.kept);
  }

  forget(before) {
    const old = this.at.findIndex((each) => each >= before);
    if (old < 64) return; // not worth it for each single one
    for (const name of ["at", ...FIELDS]) this[name].splice(0, old);
  }

  /**
   * What a chart shows from one time to another: ``[at, warm + creating, warm, target,
   * least]``, with nulls where nothing is known. The last level holds until ``to`` when ``current``.
   */
  window(from, to, { current }) {
    const rows = [[], [], [], [], []];
    const push = (at, warm, creating, target, least) => {
      rows[0].push(at);
      rows[1].push(warm === null ? null : warm + creating);
      rows[2].push(warm);
      rows[3].push(target);
      rows[4].push(least);
    };
    let start = this.at.findIndex((each) => each >= from);
    if (start < 0) start = this.at.length;
    for (let i = Math.max(0, start - 1); i < this.at.length; i += 1) {
      if (i > 0 && rows[0].length && this.at[i] - this.at[i - 1] > this.holds[i - 1]) {
        push(this.at[i - 1] + 0.001, null, null, null, null);
      }
      push(this.at[i], this.warm[i], this.creating[i], this.target[i], this.least[i]);
    }
    const last = this.at.length - 1;
    if (last >= 0 && to > this.at[last] && (current || to - this.at[last] < this.holds[last])) {
      push(to, this.warm[last], this.creating[last], this.target[last], this.warm[last]);
    }
    return rows;
  }

  /** The lowest level from a time on, and for how many seconds nothing was warm. */
  lows(from, to) {
    let lowest = Infinity;
    let lowestAt = null;
    let dry = 0;
    for (let i = 0; i < this.at.length; i += 1) {
      const next = Math.min(this.at[i + 1] ?? to, to);
      // What came after that is not known.
      const until = Math.min(next, this.at[i] + this.holds[i]);
      const [least, since] = [this.least[i], Math.max(this.at[i], from)];
      if (until < from || least === null) continue;
      if (least < lowest) [lowest, lowestAt] = [least, since];
      const known = until === next;
      if (known && this.warm[i] === 0 && this.target[i] > 0) dry += Math.max(0, until - since);
    }
    return { lowest, lowestAt, dry };
  }
}
