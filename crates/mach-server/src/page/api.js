// What is asked of the server, with the key of this tab.

const STORED = "mach-api-key";

export const key = () => sessionStorage.getItem(STORED) ?? "";

export function useKey(text) {
  if (text) sessionStorage.setItem(STORED, text);
  else sessionStorage.removeItem(STORED);
}

/** The server said no: the status, and its words. */
export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const headers = (more = {}) => (key() ? { ...more, Authorization: `Bearer ${key()}` } : more);

async function refusal(response) {
  let message = `status ${response.status}`;
  try {
    message = (await response.json()).error?.message ?? message;
  } catch {
    // No JSON: the status says enough.
  }
  return new Refusal(response.status, message);
}

/** The JSON of a GET. */
export async function get(path) {
  const response = await fetch(path, { headers: headers({ Accept: "application/json" }), cache: "no-store" });
  if (!response.ok && path !== "/health") throw await refusal(response);
  return response.json();
}

/** Streams a chat: hands each chunk over as it comes. */
export async function chat(body, signal, chunk) {
  const response = await fetch("/v1/chat/completions", {
    method: "POST",
    headers: headers({ "Content-Type": "application/json" }),
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  if (!response.ok) throw await refusal(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (text + value).split("\n\n");
    text = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ")) continue;
      const data = event.slice(6);
      if (data === "[DONE]") return;
      const parsed = JSON.parse(data);
      if (parsed.error) throw new Refusal(500, parsed.error.message);
      chunk(parsed);
    }
  }
}
