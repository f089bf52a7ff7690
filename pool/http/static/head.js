/** The head of the page: which server it is, and how the connections to it and the daemon stand. */

import { attribute, byId, isWeb, show, write } from "./dom.js";
import { processName, span } from "./format.js";

export class Head {
  /** Mark the view that is shown. */
  showView(view) {
    for (const each of document.querySelectorAll("[data-view]")) {
      attribute(each, "aria-current", each.dataset.view === view ? "page" : null);
    }
  }

  /** Which server, and which process maintains the pool. */
  showStatus({ server, maintainer, daemons }) {
    showServer(byId("server"), server);
    const others = daemons.length > 1 ? `, one of ${daemons.length} daemons` : "";
    write(byId("maintainer"), maintainer ? processName(maintainer) + others : "none");
  }

  /** How CVAT stands; see :func:`cvatState`. */
  showCvat({ name, words }) {
    attribute(byId("cvat"), "data-state", name);
    write(byId("cvat-words"), words);
  }

  /** ``lost`` is why there is no connection; null when there is one. */
  showConnection(state, lost, hasToken) {
    attribute(byId("connection"), "data-state", state.name);
    write(byId("connection-words"), wordsOf(state));
    const noToken = state.name === "unauthorized";
    write(byId("connect-now"), noToken ? "Enter the token" : "Try now");
    // Stays where it is during a try, so that the focus does.
    show(byId("connect-now"), lost !== null && state.name !== "live");
    show(byId("forget-token"), hasToken);
    attribute(document.body, "data-stale", lost ? "" : null);
  }
}

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
