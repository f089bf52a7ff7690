/** What holds for all templates: their sums, and what is wrong. */

import { Action } from "./button.js";
import { arrange, attribute, byId, copy, show, write } from "./dom.js";
import { age, count, duration, plural, rate, seconds, share, time } from "./format.js";
import { countdown } from "./template_card.js";
import { quantile } from "./timings.js";

export class Overview {
  /** ``onTryNow`` is called when people want an end of the hold of all templates. */
  constructor({ onTryNow }) {
    this.onTryNow = onTryNow;
    const { timeZone } = Intl.DateTimeFormat().resolvedOptions();
    write(byId("zone"), timeZone ? timeZone.replaceAll("_", " ") : "your time zone");
  }

  /** The sums of all templates. ``now`` is the daemon's time. */
  showStatus({ status }, now) {
    const sum = (name) => status.templates.reduce((all, row) => all + (row[name] ?? 0), 0);
    write(byId("tile-warm"), count(sum("warm")));
    const creating = sum("creating") ? `, ${count(sum("creating"))} in creation` : "";
    const above = sum("warm") > sum("target");
    write(byId("tile-warm-note"), `${above ? "target" : "of"} ${count(sum("target"))}${creating}`);
    write(byId("tile-flight"), count(status.in_flight));
    const waiting = sum("waiting") + sum("queued");
    const since = status.templates.map((row) => seconds(row.oldest_waiting_since ?? null));
    const oldest = Math.min(...since.filter((at) => at !== null));
    const longest = oldest < Infinity ? `, oldest ${age(now - oldest)}` : "";
    write(byId("tile-flight-note"), waiting ? `${count(waiting)} waiting${longest}` : "none waiting");
    const all = sum("hits") + sum("waits") + sum("colds");
    write(byId("tile-rate"), rate(sum("rate")));
    write(byId("tile-rate-note"), all ? `${count(all)} in all` : "no hand-out yet");
  }

  /** The times of all templates' requests. */
  showTimes(pool) {
    const timings = [...pool.templates.values()].map((each) => each.timings);
    const whole = timings.flatMap((each) => each.parts().whole).sort((a, b) => a - b);
    write(byId("tile-time"), duration(quantile(whole, 0.5)));
    const p99 = `p50; p99 ${duration(quantile(whole, 0.99))}`;
    write(byId("tile-time-note"), whole.length ? p99 : "no request yet");
    const served = timings.map((each) => each.hits());
    const hits = served.reduce((sum, each) => sum + each.hits, 0);
    const all = served.reduce((sum, each) => sum + each.all, 0);
    write(byId("tile-hits"), share(hits, all) || "–");
    write(byId("tile-hits-note"), all ? `of ${plural(all, "request")}` : "no request yet");
    const failed = timings.reduce((all, each) => all + each.failed.size, 0);
    const finished = whole.length + failed;
    write(byId("tile-failed"), count(failed));
    write(
      byId("tile-failed-note"),
      finished ? `of ${plural(finished, "request")}` : "no request yet",
    );
    attribute(byId("tile-failed").parentElement, "data-trouble", failed ? "failed" : null);
  }

  /**
   * What is wrong: ``lost`` is the connection's problem, ``problem`` another one; ``usable`` says
   * why nothing can be done now.
   */
  showBanners(pool, { lost, problem, now, usable }) {
    const { status } = pool;
    const banners = [];
    if (lost) {
      const asOf = pool.seenAt ? ` What is shown is as of ${time(pool.seenAt, PRECISE)}.` : "";
      banners.push({ kind: "lost", words: `${lost.message}.${asOf}` });
    }
    if (problem) banners.push({ kind: "problem", words: problem.message });
    if (status?.hold_reason) {
      const words = `All templates are held. ${status.hold_reason}`;
      banners.push({ kind: "held", words, countdown: countdown(status, now) });
    }
    if (status && !status.maintainer) {
      banners.push({ kind: "warning", words: "No daemon maintains the pool, so it is not refilled." });
    }
    if (status?.config_problems?.length) {
      const [first, ...others] = status.config_problems;
      const more = others.length ? ` And ${others.length} more: see cvat-pool check.` : "";
      const old = "The configuration is wrong, so the daemon goes on with the previous one.";
      banners.push({ kind: "config", words: `${old} ${first}.${more}` });
    }
    if (status?.config_restart?.length) {
      const keys = status.config_restart.join(", ");
      banners.push({ kind: "restart", words: `These changes need a restart of the daemon: ${keys}.` });
    }
    arrange(byId("banners"), banners, {
      key: ({ kind }) => kind,
      make: ({ kind }) => {
        const view = copy("banner");
        view.root.dataset.kind = kind;
        view.tryNow = new Action(view.parts["try-now"], this.onTryNow, view.parts.error);
        return view;
      },
      update: ({ parts, tryNow }, banner) => {
        show(parts["try-now"], banner.kind === "held");
        tryNow.allow(usable.daemon);
        write(parts.words, banner.words);
        write(parts.countdown, banner.countdown ?? "");
      },
    });
  }
}

const PRECISE = { precise: true };
