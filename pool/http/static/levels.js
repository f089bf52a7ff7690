/** The levels of one template over the last hour. Times are seconds since the epoch. */

/** Seconds that are kept. */
export const KEPT = 3600;
/** Seconds between two samples after which nobody knows what was in between. */
const GAP = 20;
/** Seconds that two levels are apart at least, and those that are the same. */
const APART = 0.5;
const APART_SAME = 10;

const NAMES = ["warm", "creating", "target"];

export class Levels {
  constructor() {
    this.at = [];
    this.warm = [];
    this.creating = [];
    this.target = [];
  }

  /**
   * Take what the daemon has sampled, with nulls where the template was not there; what is older
   * or newer than that stays.
   */
  takeHistory(at, sampled) {
    if (!at.length) return;
    const before = this.at.filter((each) => each < at[0]).length;
    const after = this.at.findIndex((each) => each > at.at(-1));
    const join = (own, theirs) => [
      ...own.slice(0, before),
      ...theirs,
      ...(after < 0 ? [] : own.slice(after)),
    ];
    for (const name of NAMES) this[name] = join(this[name], sampled[name]);
    this.at = join(this.at, at);
    this.forget(this.at.at(-1) - KEPT);
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
    this.forget(at - KEPT);
  }

  forget(before) {
    const old = this.at.findIndex((each) => each >= before);
    if (old < 64) return; // not worth it for each single one
    for (const name of ["at", ...NAMES]) this[name].splice(0, old);
  }

  /**
   * What a chart shows from one time to another: ``[at, warm + creating, warm, target]``, with
   * nulls where nothing is known. The last level holds until ``to`` when ``current``.
   */
  window(from, to, { current }) {
    const rows = [[], [], [], []];
    const push = (at, warm, creating, target) => {
      rows[0].push(at);
      rows[1].push(warm === null ? null : warm + creating);
      rows[2].push(warm);
      rows[3].push(target);
    };
    let start = this.at.findIndex((each) => each >= from);
    if (start < 0) start = this.at.length;
    for (let i = Math.max(0, start - 1); i < this.at.length; i += 1) {
      if (i > 0 && rows[0].length && this.at[i] - this.at[i - 1] > GAP) {
        push(this.at[i - 1] + 0.001, null, null, null);
      }
      push(this.at[i], this.warm[i], this.creating[i], this.target[i]);
    }
    const last = this.at.length - 1;
    if (last >= 0 && to > this.at[last] && (current || to - this.at[last] < GAP)) {
      push(to, this.warm[last], this.creating[last], this.target[last]);
    }
    return rows;
  }

  /** The lowest level from a time on, and for how many seconds nothing was warm. */
  lows(from, to) {
    let lowest = Infinity;
    let lowestAt = null;
    let dry = 0;
    for (let i = 0; i < this.at.length; i += 1) {
      const until = Math.min(this.at[i + 1] ?? to, to);
      if (until < from || this.warm[i] === null) continue;
      if (this.warm[i] < lowest) [lowest, lowestAt] = [this.warm[i], Math.max(this.at[i], from)];
      const held = until - Math.max(this.at[i], from);
      if (this.warm[i] === 0 && this.target[i] > 0 && held <= GAP) dry += Math.max(0, held);
    }
    return { lowest, lowestAt, dry };
  }
}
