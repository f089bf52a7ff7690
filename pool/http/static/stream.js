/** Server-sent events out of the body of a response, as the HTML standard has them. */

/**
 * Gives ``{id, event, data}`` for each event, and null for each comment (a heartbeat). ``id`` is
 * the last one that came, with this event or before; an event without data has only that.
 */
export async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  const parser = new Parser();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      yield* parser.feed(value);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

export class Parser {
  constructor() {
    this.rest = "";
    this.id = "";
    this.clear();
  }

  /** The events that are complete with these characters. */
  *feed(text) {
    const lines = (this.rest + text).split(/\r\n|\n|\r(?!$)/);
    this.rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        yield { id: this.id, event: this.event, data: this.data.join("\n") };
        this.clear();
      } else if (line.startsWith(":")) {
        yield null;
      } else {
        this.take(line);
      }
    }
  }

  take(line) {
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "event") this.event = value;
    else if (field === "id") this.id = value;
    else if (field === "data") this.data.push(value);
  }

  clear() {
    this.event = "message";
    this.data = [];
  }
}
