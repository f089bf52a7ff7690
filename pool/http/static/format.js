/** How numbers, durations and times read. Durations are seconds, times seconds since the epoch. */

const whole = new Intl.NumberFormat("en");
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const percent = new Intl.NumberFormat("en", { style: "percent", maximumFractionDigits: 1 });
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const clockSeconds = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });
const clockExact = new Intl.DateTimeFormat("en-GB", {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  fractionalSecondDigits: 3,
});
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });

/** A count in full up to 999,999, then as "1.23M". */
export function count(number) {
  return number < 1e6 ? whole.format(number) : compact.format(number);
}

/** One thing, or several: ``plural(2, "task")`` is "2 tasks". */
export function plural(number, one, several = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : several}`;
}

/** A share of a whole, "" of nothing; 100 % only when it is all of it. */
export function share(part, all) {
  if (!all) return "";
  return percent.format(part < all ? Math.min(part / all, 0.999) : 1);
}

/** "264 ms", "1.24 s", "75 s", "12 min": three digits, as short as can be read. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || Number.isNaN(seconds)) return "–";
  if (seconds === 0) return "0 s";
  if (seconds < 0.0095) return `${(seconds * 1000).toFixed(1)} ms`;
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 9.995) return `${seconds.toFixed(2)} s`;
  if (seconds < 99.95) return `${seconds.toFixed(1)} s`;
  return span(seconds);
}

/** A longer time, in whole units: "8 s", "4 min 5 s", "2 h 10 min", "3 d 4 h". */
export function span(seconds) {
  const total = Math.max(0, Math.round(seconds));
  const units = [
    [86400, "d"],
    [3600, "h"],
    [60, "min"],
    [1, "s"],
  ];
  const first = units.findIndex(([size]) => total >= size);
  if (first < 0) return "0 s";
  const [size, name] = units[first];
  const words = `${Math.floor(total / size)} ${name}`;
  const next = units[first + 1];
  const rest = next && Math.floor((total % size) / next[0]);
  return rest ? `${words} ${rest} ${next[1]}` : words;
}

/** How long, in one unit: "8 s", "30 min", "3 d". */
export function age(seconds) {
  return span(seconds).split(" ", 2).join(" ");
}

/** How long ago, in one unit: "now", "8 s ago", "30 min ago". */
export function ago(seconds) {
  return seconds < 1 ? "now" : `${age(seconds)} ago`;
}

/** How many there are in a time, of a rate a second: "3.2/s", "24/min", "0/min". */
export function rate(perSecond) {
  if (perSecond >= 9.95) return `${count(Math.round(perSecond))}/s`;
  if (perSecond >= 1) return `${perSecond.toFixed(1)}/s`;
  return `${Math.round(perSecond * 60)}/min`;
}

/** The process of an owner such as "host:4711:7c0857": "host, process 4711". */
export function processName(owner) {
  const parts = /^(.+):(\d+):[0-9a-f]+$/.exec(owner);
  return parts ? `${parts[1]}, process ${parts[2]}` : owner;
}

const SIZES = ["B", "KiB", "MiB", "GiB", "TiB"];

/** Bytes, as "1.2 MiB". */
export function bytes(number) {
  let value = number;
  let unit = 0;
  while (value >= 1023.5 && unit < SIZES.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit && value < 10 ? value.toFixed(1) : Math.round(value)} ${SIZES[unit]}`;
}

/** The time of day, with the date when it was another day: to the minute, the second (``precise``)
 * or the millisecond (``exact``). */
export function time(seconds, { now = Date.now() / 1000, precise = false, exact = false } = {}) {
  const date = new Date(seconds * 1000);
  const format = precise ? clockSeconds : clock;
  const words = (exact ? clockExact : format).format(date);
  const sameDay = date.toDateString() === new Date(now * 1000).toDateString();
  return sameDay ? words : `${day.format(date)}, ${words}`;
}

/** The date alone: "24 Nov". */
export function date(seconds) {
  return day.format(new Date(seconds * 1000));
}

/** Seconds since the epoch of an RFC 3339 text; null of null. */
export function seconds(text) {
  return text ? Date.parse(text) / 1000 : null;
}
