// The conversation: typed, streamed, stopped; reasoning, tool calls, and which tokens were drafted.

import { chat } from "./api.js";
import { byId, count, el, figure, write } from "./dom.js";
import { Trail } from "./tokens.js";

const log = byId("log");
const message = byId("message");
const history = [];
/** Stops the answer that is being written. */
let running = null;

/** One answer as it grows. */
class Answer {
  constructor(sources) {
    this.trail = sources ? new Trail() : null;
    this.content = "";
    this.reasoning = "";
    this.calls = [];
    this.body = el("div");
    this.foot = el("p", { class: "foot" });
    this.turn = el("article", { class: "turn assistant", "aria-busy": "true" }, el("h3", {}, "Model"), this.body, this.foot);
  }

  /** Adds text to a place, each run of tokens of one kind in an element of its own. */
  write(place, piece) {
    const runs = this.trail ? this.trail.cut(piece) : [[piece, false]];
    for (const [text, drafted] of runs) {
      const last = place.lastElementChild;
      if (last && last.classList.contains("drafted") === drafted) last.append(text);
      else place.append(el("span", drafted ? { class: "drafted" } : {}, text));
    }
  }

  place(kind) {
    if (kind === "reasoning") {
      if (!this.thought) {
        this.thought = el("div", { class: "said" });
        this.body.prepend(el("details", { class: "reasoning", open: true }, el("summary", {}, "Reasoning"), this.thought));
      }
      return this.thought;
    }
    if (!this.said) {
      this.said = el("div", { class: "said", "data-part": "content" });
      this.body.append(this.said);
    }
    return this.said;
  }

  call({ index, id, function: part }) {
    if (!this.calls[index]) {
      this.calls[index] = { id, name: part.name, arguments: "" };
      const shown = el("pre", { tabindex: "0", "aria-label": `Arguments of ${part.name}` });
      this.calls[index].shown = shown;
      this.calls[index].box = el("div", { class: "call" }, el("strong", {}, `calls ${part.name}`), shown);
      this.body.append(this.calls[index].box);
    }
    const call = this.calls[index];
    call.arguments += part.arguments ?? "";
    call.shown.append(part.arguments ?? "");
  }

  take(chunk) {
    const choice = chunk.choices[0];
    if (chunk.usage) this.usage = chunk.usage;
    if (!choice) return;
    if (choice.logprobs && this.trail) this.trail.add(choice.logprobs.content);
    const { delta } = choice;
    if (delta.reasoning_content) {
      this.reasoning += delta.reasoning_content;
      this.write(this.place("reasoning"), delta.reasoning_content);
    }
    if (delta.content) {
      this.content += delta.content;
      this.write(this.place("content"), delta.content);
    }
    (delta.tool_calls ?? []).forEach((call) => this.call(call));
    if (choice.finish_reason) this.reason = choice.finish_reason;
    const now = performance.now();
    this.first ??= now;
    this.last = now;
  }

  end(problem) {
    this.turn.setAttribute("aria-busy", "false");
    this.turn.dataset.finish = problem ? "error" : (this.reason ?? "stopped");
    const parts = [];
    if (this.usage) {
      const { prompt_tokens: prompt, completion_tokens: tokens, prompt_tokens_details: details } = this.usage;
      parts.push(`${count(tokens)} tokens after a prompt of ${count(prompt)} (${count(details.cached_tokens)} known)`);
      const took = (this.last - this.first) / 1000;
      if (took > 0 && tokens > 1) parts.push(`${figure((tokens - 1) / took)} a second`);
    }
    if (this.trail?.tokens) parts.push(`${count(this.trail.drafted)} of ${count(this.trail.tokens)} shown tokens drafted`);
    if (this.reason === "length") parts.push("cut at the length");
    if (!this.reason && !problem) parts.push("stopped");
    write(this.foot, parts.join(" · "));
    if (problem) this.turn.append(el("p", { class: "error", role: "alert" }, problem));
  }

  /** What the conversation remembers of it. */
  remember() {
    const past = { role: "assistant", content: this.content };
    if (this.reasoning) past.reasoning_content = this.reasoning;
    if (this.calls.length) {
      past.tool_calls = this.calls.map(({ id, name, arguments: text }) => ({ id, type: "function", function: { name, arguments: text } }));
    }
    return past;
  }
}

/** What the settings ask for, or nothing if the tools are no JSON. */
function settings() {
  const body = { logprobs: byId("sources").checked, mach_token_sources: byId("sources").checked };
  const most = Number(byId("max-tokens").value);
  if (most > 0) body.max_completion_tokens = most;
  if (byId("temperature").value !== "") body.temperature = Number(byId("temperature").value);
  if (!byId("thinking").checked) body.chat_template_kwargs = { enable_thinking: false };
  const tools = byId("tools").value.trim();
  write(byId("tools-error"), "");
  if (tools) {
    try {
      body.tools = JSON.parse(tools);
    } catch (error) {
      write(byId("tools-error"), `The tools are no JSON: ${error.message}`);
      return null;
    }
  }
  return body;
}

function add(turn) {
  log.append(turn);
  log.scrollTop = log.scrollHeight;
}

/** Has the model answer what was said so far. */
async function generate(body) {
  const answer = new Answer(body.logprobs);
  add(answer.turn);
  running = new AbortController();
  byId("send").disabled = true;
  byId("stop").disabled = false;
  const system = byId("system").value.trim();
  const messages = system ? [{ role: "system", content: system }, ...history] : [...history];
  let problem = null;
  try {
    await chat({ ...body, messages }, running.signal, (chunk) => {
      const low = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
      answer.take(chunk);
      if (low) log.scrollTop = log.scrollHeight;
    });
  } catch (error) {
    if (error.name !== "AbortError") problem = error.message;
    if (error.status === 401) document.dispatchEvent(new CustomEvent("mach-key", { detail: error.message }));
  }
  running = null;
  byId("send").disabled = false;
  byId("stop").disabled = true;
  answer.end(problem);
  if (!problem || answer.content) history.push(answer.remember());
  if (!problem && answer.calls.length) results(answer);
}

/** Asks for what the called tools say. */
function results(answer) {
  const field = (call, i) => {
    const id = `result-${history.length}-${i}`;
    call.result = el("textarea", { id, rows: "2", class: "code" });
    return [el("label", { for: id }, `Result of ${call.name}`), call.result];
  };
  const send = (event) => {
    event.preventDefault();
    const body = running ? null : settings();
    if (!body) return;
    form.querySelectorAll("textarea, button").forEach((control) => { control.disabled = true; });
    for (const { id, result } of answer.calls) history.push({ role: "tool", tool_call_id: id, content: result.value });
    void generate(body);
  };
  const form = el("form", { class: "results", onsubmit: send }, ...answer.calls.flatMap(field),
    el("div", { class: "actions" }, el("button", { type: "submit" }, "Send results")));
  answer.turn.append(form);
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = message.value;
  const body = running || !text.trim() ? null : settings();
  if (!body) return;
  message.value = "";
  history.push({ role: "user", content: text });
  add(el("article", { class: "turn user" }, el("h3", {}, "You"), el("div", { class: "said" }, text)));
  void generate(body);
});
message.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  byId("ask").requestSubmit();
});
byId("stop").addEventListener("click", () => running?.abort());
byId("clear").addEventListener("click", () => {
  running?.abort();
  history.length = 0;
  log.replaceChildren();
  message.focus();
});
