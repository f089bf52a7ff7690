/** Calls to the daemon, with the token that it asks for. */

const KEPT = "cvat-task-pool.token";

/** What went wrong, in the words of the daemon's problem document. */
export class Problem extends Error {
  constructor({ status = 0, code = "", title = "", detail = "", errors = [] }) {
    const wrong = errors.map((each) => `${each.where}: ${each.what}`).join("; ");
    super([title || `The daemon answered ${status}`, detail || wrong].filter(Boolean).join(": "));
    this.status = status;
    this.code = code;
  }

  static async of(response) {
    let document = {};
    try {
      document = await response.json();
    } catch {
      // No document: its status has to do.
    }
    return new Problem({ ...document, status: response.status });
  }
}

export class Api {
  /** ``onUnauthorized`` is called with each answer of 401. */
  constructor({ onUnauthorized }) {
    this.onUnauthorized = onUnauthorized;
    // Seconds by which the daemon's clock is ahead of this machine's.
    this.ahead = 0;
  }

  get token() {
    return sessionStorage.getItem(KEPT) ?? "";
  }

  set token(token) {
    if (token) sessionStorage.setItem(KEPT, token);
    else sessionStorage.removeItem(KEPT);
  }

  /** Seconds since the epoch, by the daemon's clock. */
  now() {
    return Date.now() / 1000 + this.ahead;
  }

  async get(path) {
    return contentOf(await this.fetch(path));
  }

  async post(path, body) {
    const headers = body === undefined ? {} : { "Content-Type": "application/json" };
    const sent = body === undefined ? undefined : JSON.stringify(body);
    return contentOf(await this.fetch(path, { method: "POST", headers, body: sent }));
  }

  async delete(path) {
    await this.fetch(path, { method: "DELETE" });
  }

  /** A response that is fine. Throws Problem, or AbortError when it was given up. */
  async fetch(path, { headers = {}, ...options } = {}) {
    const token = this.token;
    const shown = token ? { ...headers, Authorization: `Bearer ${token}` } : headers;
    let response;
    try {
      response = await fetch(path, {
        ...options,
        headers: shown,
        cache: "no-store",
        credentials: "omit",
        redirect: "error",
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw unreachable();
    }
    this.compareClocks(response.headers.get("Date"));
    if (response.ok) return response;
    const problem = await Problem.of(response);
    if (problem.status === 401) this.onUnauthorized(token);
    throw problem;
  }

  compareClocks(date) {
    const apart = Date.parse(date ?? "") / 1000 - Date.now() / 1000;
    // The header has whole seconds, and was some time on its way.
    this.ahead = Math.abs(apart) > 2 ? apart : 0;
  }
}

function unreachable() {
  return new Problem({ title: "The daemon cannot be reached" });
}

async function contentOf(response) {
  try {
    return await response.json();
  } catch {
    // It was cut on its way.
    throw unreachable();
  }
}

/** The path of a template, whatever is in its name. */
export function templatePath(name, action) {
  return `v1/templates/${encodeURIComponent(name)}/${action}`;
}
