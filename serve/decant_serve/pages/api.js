// The gateway's public routes, as any client would ask them.

const KEY = "decant-api-key";

export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

function headers(more = {}) {
  return key.get() ? { ...more, Authorization: `Bearer ${key.get()}` } : more;
}

async function refusal(response) {
  let message = `the server answered ${response.status}`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // Not an error object: the status has to do.
  }
  return new Refusal(response.status, message);
}

export async function get(path) {
  const response = await fetch(path, { headers: headers() });
  // A server that is not ready says so with a 503 and a body worth reading; /health never does.
  if (!response.ok) throw await refusal(response);
  return response.json();
}

/** Streams one chat: `onEvent` gets every parsed event; resolves with the request's id. */
export async function chat(body, { signal, onStart, onEvent }) {
  const response = await fetch("/v1/chat/completions", {
    method: "POST",
    headers: headers({ "Content-Type": "application/json", "X-Decant-Timing": "1" }),
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  if (!response.ok) throw await refusal(response);
  onStart(response.headers.get("x-request-id"));
  for await (const text of eventsOf(response.body)) {
    if (text === "[DONE]") return;
    const event = JSON.parse(text);
    if (event.error) throw new Refusal(response.status, event.error.message);
    onEvent(event);
  }
}

async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split(/\r?\n\r?\n/);
    rest = parts.pop();
    for (const part of parts) {
      const lines = part.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
    }
  }
}
