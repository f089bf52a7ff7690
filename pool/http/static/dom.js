/** What the page does to its document: only text, never markup, since names come from people. */

import { time } from "./format.js";

export const byId = (id) => document.getElementById(id);

/** A copy of a ``<template>``'s element, and its parts by their ``data-part``. */
export function copy(id) {
  const root = byId(id).content.firstElementChild.cloneNode(true);
  return { root, parts: partsOf(root) };
}

export function partsOf(root) {
  const named = root.querySelectorAll("[data-part]");
  return Object.fromEntries([...named].map((each) => [each.dataset.part, each]));
}

/** Set a text. One that stays the same is not touched: a reader would read it again. */
export function write(element, text) {
  const words = String(text ?? "");
  if (element.textContent !== words) element.textContent = words;
}

/** Show or hide. */
export function show(element, visible) {
  if (element.hidden === visible) element.hidden = !visible;
}

export function attribute(element, name, value) {
  if (value === null) element.removeAttribute(name);
  else if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

/** Have a link lead to an address of the web, and to nothing else (``javascript:`` …). */
export function link(anchor, address) {
  attribute(anchor, "href", isWeb(address) ? address : null);
}

/** A link to a task on the server, but for one that the pool has deleted. */
export function linkTask(anchor, { taskId, url, deleted = false }) {
  show(anchor, taskId !== null);
  link(anchor, deleted ? null : url);
  write(anchor, deleted ? `task ${taskId}, deleted` : `task ${taskId}`);
}

/** Set the element of a time to words that say it otherwise. */
export function writeTime(element, at, words) {
  attribute(element, "datetime", at === null ? null : new Date(at * 1000).toISOString());
  attribute(element, "title", at === null ? null : time(at, { precise: true }));
  write(element, words);
}

export function isWeb(address) {
  try {
    return ["http:", "https:"].includes(new URL(address).protocol);
  } catch {
    return false;
  }
}

/**
 * Make the children of ``parent`` those of ``items``, in that order. An item's element is kept
 * as long as its key is there, so that focus and selection stay.
 */
export function arrange(parent, items, { key, make, update }) {
  const kept = (parent.arranged ??= new Map());
  const wanted = new Set(items.map(key));
  for (const [name, view] of kept) {
    if (!wanted.has(name)) {
      view.root.remove();
      kept.delete(name);
    }
  }
  let before = parent.firstElementChild;
  for (const item of items) {
    const name = key(item);
    let view = kept.get(name);
    if (!view) kept.set(name, (view = make(item)));
    if (view.root === before) before = before.nextElementSibling;
    else parent.insertBefore(view.root, before);
    update(view, item);
  }
}
