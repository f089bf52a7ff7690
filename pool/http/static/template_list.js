/** The templates of the page: which are shown, and which of them are open. */

import { arrange, byId, show, write } from "./dom.js";
import { TemplateCard } from "./template_card.js";

/** Up to so many templates are all open at first, and from so many on there is a filter. */
const OPEN = 3;
const FILTER = 8;
const KEPT = "cvat-task-pool.open";
const KEPT_PERIOD = "cvat-task-pool.period";

export class TemplateList {
  /** ``onChange`` is called when others are to be shown, ``onPeriod`` with another period. */
  constructor({ actions, onChange, onPeriod }) {
    this.actions = actions;
    this.onChange = onChange;
    this.chosen = new Map(JSON.parse(sessionStorage.getItem(KEPT) ?? "[]"));
    this.cards = new Map();
    byId("filter").addEventListener("input", onChange);
    this.periods = [...document.querySelectorAll("input[name=period]")];
    const kept = sessionStorage.getItem(KEPT_PERIOD);
    for (const each of this.periods) {
      if (each.value === kept) each.checked = true;
      each.addEventListener("change", () => {
        sessionStorage.setItem(KEPT_PERIOD, each.value);
        onPeriod();
        onChange();
      });
    }
  }

  /** Seconds of which the levels are shown. */
  get period() {
    return Number(this.periods.find((each) => each.checked).value);
  }

  /** Whether only some templates are to be seen. */
  get filtered() {
    return byId("filter").value.trim() !== "";
  }

  /** Whether people want to see this template. */
  wanted(name) {
    return name.toLowerCase().includes(byId("filter").value.trim().toLowerCase());
  }

  /** ``view`` is what a card is shown with; ``streams(name)`` how many a template has open. */
  show(rows, { streams, usable, timings, ...view }) {
    show(byId("filter-box"), rows.length >= FILTER || this.filtered);
    const wanted = rows.filter(({ name }) => this.wanted(name));
    arrange(byId("template-list"), wanted, {
      key: ({ name }) => name,
      make: ({ name }) => this.card(name, rows.length),
      update: (card, row) => {
        card.showStatus(row, { ...view, streams: streams(row.name) });
        card.showTimes(timings(row.name));
        card.allow(usable);
      },
    });
    show(byId("templates-empty"), !wanted.length);
    const none = "No template is configured. Add a [templates.NAME] table to config.toml.";
    write(byId("templates-empty"), rows.length ? "No template matches the filter." : none);
  }

  /** The cards that are shown and open. */
  get open() {
    return [...this.cards.values()].filter((card) => card.open && card.root.isConnected);
  }

  card(name, howMany) {
    let card = this.cards.get(name);
    if (!card) {
      card = new TemplateCard(name, {
        actions: this.actions,
        onToggle: (open) => {
          card.open = open;
          this.chosen.set(name, open);
          sessionStorage.setItem(KEPT, JSON.stringify([...this.chosen]));
          this.onChange();
        },
      });
      card.open = this.chosen.get(name) ?? (howMany <= OPEN || this.cards.size === 0);
      this.cards.set(name, card);
    }
    return card;
  }
}
