/** Puts the page together: what the daemon tells goes into the pool, and from there is shown. */

import { Announcer } from "./announcer.js";
import { Api, Problem, templatePath } from "./api.js";
import { Connection } from "./connection.js";
import { cvatState } from "./cvat_state.js";
import { TokenDialog, askPrewarm, confirmDrain } from "./dialogs.js";
import { byId, show } from "./dom.js";
import { Head } from "./head.js";
import { LeaseList } from "./lease_list.js";
import { KEPT } from "./levels.js";
import { Overview } from "./overview.js";
import { Pool } from "./pool.js";
import { RequestDetail } from "./request_detail.js";
import { RequestList } from "./request_list.js";
import { RequestReader } from "./request_reader.js";
import { RequestTables } from "./request_tables.js";
import { Route } from "./route.js";
import { StreamList } from "./stream_list.js";
import { TemplateList } from "./template_list.js";

/** Milliseconds between two drawings of the page. */
const DRAW_EVERY = 250;
/** Seconds after which all is asked for anew, in case something was missed. */
const REREAD = 120;
/** What a bookmark of each view is called. */
const TITLES = {
  overview: "cvat-task-pool",
  requests: "Requests - cvat-task-pool",
  leases: "Leases - cvat-task-pool",
};

class Page {
  constructor() {
    this.api = new Api({ onUnauthorized: (token) => this.needToken(token) });
    this.pool = new Pool(() => this.api.now());
    this.state = { name: "connecting" };
    // What the token is for.
    this.token = { role: "operate" };
    // Why nothing comes, and why something could not be read.
    this.lost = null;
    this.problem = null;
    this.drawing = null;
    this.announcer = new Announcer(byId("announcer"));
    this.reader = new RequestReader({
      api: this.api,
      announcer: this.announcer,
      attempt: (action) => this.attempt(action),
    });
    this.route = new Route((before) => this.turnTo(before));
    this.makeViews();
    this.tokenDialog = new TokenDialog((token) => this.useToken(token));
    this.connection = new Connection(this.api, "v1/events", {
      onOpen: () => this.read(),
      onEvent: (event) => this.take(event),
      onState: (state) => this.takeState(state),
    });
  }

  makeViews() {
    const { api, route } = this;
    const onChange = () => this.draw();
    const onOpen = (id) => route.go({ id });
    const onCancel = (id) => this.cancel(id);
    this.head = new Head();
    this.overview = new Overview({ onTryNow: () => this.tryNow() });
    this.list = new TemplateList({
      actions: this.actions(),
      onChange,
      onPeriod: () => this.readLongerHistory(),
    });
    this.tables = new RequestTables({ wanted: (name) => this.list.wanted(name), onOpen });
    this.requests = new RequestList({
      api,
      onFilter: (filter, how) => route.go({ filter }, how),
      onOpen,
      onChange,
      onCancel,
      onFound: (words) => this.announcer.say(words),
    });
    this.detail = new RequestDetail({ api, onClose: () => route.go({ id: "" }), onCancel });
    this.leases = new LeaseList({ api, onChange });
    this.streams = new StreamList({ api, onChange });
  }

  start() {
    byId("connect-now").addEventListener("click", () => {
      if (this.state.name === "unauthorized") this.tokenDialog.ask(false);
      else this.connection.hurry();
    });
    byId("forget-token").addEventListener("click", () => this.useToken(""));
    addEventListener("online", () => this.connection.hurry());
    setInterval(() => this.tick(), 1000);
    setInterval(() => this.isLive && this.read(), REREAD * 1000);
    // Behind other pages a browser lets it sleep, so it has missed some time.
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden && this.isLive) this.read();
      this.draw();
    });
    this.turnTo({});
    this.connection.run();
  }

  get isLive() {
    return this.state.name === "live";
  }

  /** Show what the address says. */
  turnTo(before) {
    const { view, filter, id } = this.route.now;
    for (const each of document.querySelectorAll(".view")) show(each, each.id === `view-${view}`);
    this.head.showView(view);
    this.requests.useFilter(filter);
    if (before.view !== undefined && before.view !== view) scrollTo(0, 0);
    document.title = TITLES[view];
    this.readShown();
    this.detail.look(this.isLive ? id : "");
    this.draw();
  }

  /** Lists are read while they are seen. */
  readShown() {
    const { view } = this.route.now;
    this.requests.pager.show(this.isLive && view === "requests");
    this.leases.pager.show(this.isLive && view === "leases");
    this.streams.pager.show(this.isLive && (view === "leases" || this.hasSlots));
  }

  /** Whether some template has slots, so that it may have streams. */
  get hasSlots() {
    return Boolean(this.pool.status?.templates.some(({ carriers }) => carriers > 0));
  }

  // --- What comes ------------------------------------------------------------------------------

  takeState(state) {
    const { lost } = this;
    this.state = state;
    // While it is tried again, it is as lost as before.
    if (state.name === "live") this.lost = null;
    else if (state.problem) this.lost = state.problem;
    if (lost && !this.lost) this.announcer.say("Reconnected");
    if (!lost && this.lost) this.announcer.say("The connection to the daemon is lost");
    this.draw();
  }

  take({ event, data }) {
    const content = JSON.parse(data);
    if (event === "levels") {
      this.noticeOtherStore(content);
      this.takeStatus(content);
    } else if (event.startsWith("request.")) {
      this.pool.takeEvent(content);
      this.reader.complete(this.pool.requests);
      this.requests.pager.soon();
      this.streams.pager.soon();
    }
    if (content.lease_id) this.leases.pager.soon();
    this.detail.takeEvent(content);
    this.draw();
  }

  /** Another store has other numbers of events, so the last one of this one means nothing there. */
  noticeOtherStore({ store }) {
    const before = this.pool.status?.store;
    if (before === undefined || before === store) return;
    this.pool = new Pool(() => this.api.now());
    this.connection.restart({ forget: true });
  }

  /** All that events do not carry, and what happened before the first one. */
  async read() {
    const { pool } = this;
    this.problem = null;
    this.readShown();
    for (const { pager } of [this.requests, this.leases, this.streams]) pager.soon();
    this.detail.look(this.route.now.id);
    this.detail.soon();
    await Promise.all([
      this.attempt(async () => {
        this.token = await this.api.get("v1/token");
      }),
      this.attempt(async () => pool.takeHistory(await this.api.get("v1/history"))),
      this.readLongerHistory(),
      this.attempt(() => this.reader.read(pool.requests)),
      this.attempt(async () => {
        // An answer is older than what the stream has sent since, so it is only to begin with.
        const status = pool.status ?? (await this.api.get("v1/templates"));
        if (!pool.status) this.takeStatus(status);
      }),
    ]);
    this.draw();
  }

  /** Levels of more than the hour that is known anyway, when they are wanted. */
  async readLongerHistory() {
    const { pool } = this;
    const { period } = this.list;
    if (period <= KEPT || !this.isLive) return;
    await this.attempt(async () => {
      const history = await this.api.get(`v1/history?seconds=${period}`);
      if (period === this.list.period) pool.takeLongerHistory(history, period);
    });
  }

  takeStatus(status) {
    this.announcer.say(...this.pool.takeStatus(status));
    this.requests.takeTemplates(status.templates.map(({ name }) => name));
    if (this.isLive) this.readShown();
    byId("main").removeAttribute("aria-busy");
  }

  /** Do a thing, show what came of it, or why it cannot be done. */
  async attempt(action) {
    try {
      await action();
      this.draw();
    } catch (problem) {
      // Without a token, and without an answer, the connection's own state says so.
      if (problem.status && problem.status !== 401) this.problem = problem;
      else if (!(problem instanceof Problem)) throw problem;
    }
  }

  // --- The token -------------------------------------------------------------------------------

  needToken(used) {
    // An answer to a call with a token that is no longer the one says nothing about this one.
    if (used === this.api.token) {
      this.api.token = "";
      this.tokenDialog.ask(used !== "");
    }
  }

  useToken(token) {
    this.api.token = token;
    this.connection.restart();
  }

  // --- What people do --------------------------------------------------------------------------

  actions() {
    const post = async ({ name }, action, body) => {
      const { status } = this.pool;
      const row = await this.api.post(templatePath(name, action), body);
      // Unless the stream was quicker.
      if (this.pool.status === status) this.announcer.say(...this.pool.takeTemplate(row));
      this.draw();
    };
    return {
      pause: (row) => post(row, "pause"),
      resume: (row) => post(row, "resume"),
      drain: async (row) => {
        if (await confirmDrain(row)) await post(row, "drain");
      },
      prewarm: async (row) => {
        const wish = await askPrewarm(row);
        if (wish) await post(row, "prewarm", wish);
      },
    };
  }

  /** End all holds, so that CVAT is tried at once. */
  async tryNow() {
    const { status } = this.pool;
    const after = await this.api.post("v1/templates/resume");
    if (this.pool.status === status) this.takeStatus(after);
    this.draw();
  }

  async cancel(id) {
    try {
      await this.api.delete(`v1/requests/${encodeURIComponent(id)}`);
    } finally {
      this.requests.pager.soon();
      this.detail.soon();
    }
  }

  /**
   * Why nothing can be changed now, and why nothing that CVAT has to do; "" where it can. What
   * callers do needs a token with one of the ``roles``.
   */
  usable(cvat, roles) {
    const { role } = this.token;
    const allowed = roles.includes(role) ? "" : `A token with the role ${role} may not do this`;
    const daemon = this.isLive ? allowed : "There is no connection to the daemon";
    return { daemon, cvat: daemon || (cvat.name === "answers" ? "" : cvat.words) };
  }

  // --- What is shown ---------------------------------------------------------------------------

  /** Once a second: countdowns, ages, and levels that have stayed the same. */
  tick() {
    if (this.isLive) this.pool.sample();
    this.pool.forget();
    this.draw();
  }

  /** Draw soon; together with all else that comes until then. */
  draw() {
    if (this.drawing !== null || document.hidden) return;
    this.drawing = setTimeout(
      () => {
        this.drawing = null;
        this.drawNow();
      },
      Math.max(0, DRAW_EVERY - (performance.now() - (this.drawn ?? -DRAW_EVERY))),
    );
  }

  drawNow() {
    this.drawn = performance.now();
    const { pool, isLive } = this;
    const now = isLive || pool.seenAt === null ? this.api.now() : pool.seenAt;
    const cvat = cvatState(pool.status, { connected: isLive, now });
    const usable = this.usable(cvat, ["submit", "operate"]);
    const operable = this.usable(cvat, ["operate"]);
    this.head.showConnection(this.state, this.lost, Boolean(this.api.token));
    this.head.showCvat(cvat);
    const { lost, problem } = this;
    this.overview.showBanners(pool, { lost, problem, now: this.api.now(), usable: operable });
    this.detail.show(usable);
    if (!pool.status) return;
    this.head.showStatus(pool.status);
    const { view } = this.route.now;
    if (view === "overview") this.drawOverview(now, operable);
    if (view === "requests") this.requests.show(now, usable);
    if (view === "leases") {
      this.leases.show(now, usable);
      this.streams.show(now, usable, this.hasSlots);
    }
  }

  drawOverview(now, usable) {
    const { pool } = this;
    this.overview.showStatus(pool, now);
    this.overview.showTimes(pool);
    this.list.show(pool.status.templates, {
      now,
      usable,
      used: pool.status.places_used,
      holdOfAll: pool.status.hold_reason,
      streams: (name) => this.streams.of(name),
      timings: (name) => pool.template(name).timings,
    });
    for (const card of this.list.open) {
      const { timings } = pool.template(card.name);
      const { period } = this.list;
      const levels = pool.levels(card.name, period);
      card.showHistory({ levels, timings, period, now, current: this.isLive });
      card.showLastFailure(this.lastFailure(card.name), now);
    }
    // How many there are of the templates that are wanted is not known.
    const inFlight = this.list.filtered ? 0 : pool.status.in_flight;
    this.tables.show(pool.requests, { now, inFlight });
  }

  lastFailure(template) {
    const failures = [...this.pool.requests.failures.values()];
    return failures.find((each) => each.failed && each.template === template);
  }
}


new Page().start();
