/** The head of the page, what holds for all templates, and the connection's state. */

import { arrange, attribute, byId, copy, isWeb, show, write } from "./dom.js";
import { count, duration, lately, plural, share, span, time } from "./format.js";
import { countdown } from "./template_card.js";
import { quantile } from "./timings.js";

export class Overview {
  constructor() {
    const { timeZone } = Intl.DateTimeFormat().resolvedOptions();
    write(byId("zone"), timeZone ? timeZone.replaceAll("_", " ") : "your time zone");
  }

  /** Who is at work, and the sums of all templates. */
  showStatus(pool) {
    const { status } = pool;
    showServer(byId("server"), status.server);
    write(byId("maintainer"), status.maintainer ?? "nobody");
    const sum = (name) => status.templates.reduce((all, row) => all + (row[name] ?? 0), 0);
    write(byId("tile-warm"), count(sum("warm")));
    const creating = sum("creating") ? `, ${count(sum("creating"))} in creation` : "";
    write(byId("tile-warm-note"), `of ${count(sum("target"))}${creating}`);
    write(byId("tile-flight"), count(status.in_flight));
    const waiting = sum("waiting") + sum("queued");
    write(byId("tile-flight-note"), waiting ? `${count(waiting)} waiting` : "none waiting");
    const all = sum("hits") + sum("waits") + sum("colds");
    write(byId("tile-hits"), all ? share(sum("hits"), all) : "–");
    write(byId("tile-hits-note"), all ? `of ${count(all)}${lately(sum("rate"))}` : "no hand-out yet");
  }

  /** The times of all templates' requests. */
  showTimes(pool) {
    const timings = [...pool.templates.values()].map((each) => each.timings);
    const whole = timings.flatMap((each) => each.parts().whole).sort((a, b) => a - b);
    write(byId("tile-time"), duration(quantile(whole, 0.5)));
    const p99 = `p50; p99 ${duration(quantile(whole, 0.99))}`;
    write(byId("tile-time-note"), whole.length ? p99 : "no request yet");
    const failed = timings.reduce((all, each) => all + each.failed.size, 0);
    const finished = whole.length + failed;
    write(byId("tile-failed"), count(failed));
    write(
      byId("tile-failed-note"),
      finished ? `of ${plural(finished, "request")}` : "no request yet",
    );
    attribute(byId("tile-failed").parentElement, "data-trouble", failed ? "failed" : null);
  }

  /** What is wrong: ``lost`` is the connection's problem, ``problem`` another one. */
  showBanners(pool, lost, problem, now) {
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
        return view;
      },
      update: ({ parts }, banner) => {
        write(parts.words, banner.words);
        write(parts.countdown, banner.countdown ?? "");
      },
    });
  }

  showConnection(state, lost, hasToken) {
    const box = byId("connection");
    attribute(box, "data-state", state.name);
    write(byId("connection-words"), wordsOf(state));
    const noToken = state.name === "unauthorized";
    write(byId("connect-now"), noToken ? "Enter the token" : "Try now");
    // Stays where it is during a try, so that the focus does.
    show(byId("connect-now"), lost !== null && state.name !== "live");
    show(byId("forget-token"), hasToken);
    attribute(document.body, "data-stale", lost ? "" : null);
  }
}

const PRECISE = { precise: true };

function wordsOf({ name, retryAt }) {
  if (name === "live") return "Live";
  if (name === "connecting") return "Connecting …";
  if (name === "unauthorized") return "No token";
  const left = Math.ceil((retryAt - Date.now()) / 1000);
  return left >= 1 ? `Not connected, next try in ${span(left)}` : "Not connected, trying now";
}

/** The server's address: a link, if it is one that a browser opens. */
function showServer(box, address) {
  if (box.textContent === address) return;
  const element = document.createElement(isWeb(address) ? "a" : "span");
  element.textContent = address;
  if (isWeb(address)) {
    Object.assign(element, { href: address, target: "_blank", rel: "noopener noreferrer" });
  }
  box.replaceChildren(element);
}
