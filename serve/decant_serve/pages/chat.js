// The playground: one conversation with one model, or the same question to two.

import { chat, get } from "/page/api.js";
import { byId, duration, element, rate, tokensPerSecond } from "/page/dom.js";
import { strip } from "/page/waterfall.js";

const panes = [];
let models = [];
let running = null;

class Pane {
  constructor(index) {
    this.messages = [];
    this.select = element("select", { id: `model-${index}`, "aria-label": `Model ${index + 1}` });
    this.select.addEventListener("change", () => this.clear());
    this.log = element("div", { class: "log", role: "log", "aria-label": `Conversation ${index + 1}`, tabindex: "0" });
    this.root = element("section", { class: "pane" }, element("div", { class: "pane-head" }, this.select), this.log);
    this.clear();
  }

  offer(ids) {
    const chosen = this.select.value;
    this.select.replaceChildren(...ids.map((id) => element("option", { value: id }, id)));
    this.select.value = ids.includes(chosen) ? chosen : ids[Math.min(panes.indexOf(this), ids.length - 1)] ?? "";
  }

  clear() {
    this.messages = [];
    this.log.replaceChildren(element("p", { class: "empty" }, "Answers appear here, each with where its time went."));
  }

  async ask(question, options, signal) {
    if (this.messages.length === 0) this.log.replaceChildren();
    this.log.append(element("div", { class: "said user" }, question));
    const answer = new Answer(this.log);
    const system = options.system ? [{ role: "system", content: options.system }] : [];
    const messages = [...system, ...this.messages, { role: "user", content: question }];
    try {
      await chat({ model: this.select.value, messages, ...options.sampling }, {
        signal,
        onStart: (id) => answer.begin(id),
        onEvent: (event) => answer.take(event),
      });
      answer.end();
      this.messages.push({ role: "user", content: question }, { role: "assistant", content: answer.text });
    } catch (error) {
      await answer.fail(error, signal.aborted);
    }
  }
}

class Answer {
  constructor(log) {
    this.log = log;
    this.text = "";
    this.requestId = null;
    this.timing = null;
    this.finish = null;
    this.body = element("div", { class: "text" });
    this.thinking = element("div", { class: "text" });
    this.thought = element("details", { class: "thought", hidden: true }, element("summary", {}, "Reasoning"), this.thinking);
    this.foot = element("div", { class: "foot" }, element("span", { class: "waiting" }, "waiting for the first token"));
    this.log.append(element("div", { class: "said assistant" }, this.thought, this.body, this.foot));
    this.follow();
  }

  begin(id) {
    this.requestId = id;
  }

  take(event) {
    this.timing = event.decant_timing ?? this.timing;
    const choice = event.choices?.[0];
    if (!choice) return;
    const delta = choice.delta ?? {};
    const reasoning = delta.reasoning_content ?? delta.reasoning ?? "";
    if (reasoning) {
      this.thought.hidden = false;
      this.thinking.append(reasoning);
    }
    if (delta.content) {
      this.text += delta.content;
      this.body.append(delta.content);
    }
    if (delta.tool_calls) this.body.append(JSON.stringify(delta.tool_calls));
    this.finish = choice.finish_reason ?? this.finish;
    if (delta.content || reasoning) this.foot.replaceChildren(element("span", { class: "waiting" }, "answering"));
    this.follow();
  }

  end() {
    if (!this.text && !this.thinking.textContent) this.body.append(element("span", { class: "muted" }, "The answer is empty."));
    this.showTiming();
  }

  async fail(error, stopped) {
    if (!stopped) {
      this.foot.replaceChildren(element("p", { class: "fault", role: "alert" }, error.message));
      this.follow();
      return;
    }
    this.foot.replaceChildren(element("span", { class: "muted" }, "stopped"));
    if (!this.requestId) return;
    try {
      this.timing = await get(`/v1/requests/${this.requestId}/timing`);
      this.showTiming("stopped");
    } catch {
      // It has not been recorded yet, and the list of requests will have it.
    }
  }

  showTiming(word = null) {
    const timing = this.timing;
    if (!timing) {
      this.foot.replaceChildren(element("span", { class: "muted" }, "no timing came with this answer"));
      return;
    }
    const figures = [
      ["queue", duration(timing.queue_s)],
      ["first token", duration(timing.ttft_s)],
      ["speed", rate(tokensPerSecond(timing))],
      ["total", duration(timing.e2e_s ?? timing.breakdown.total_s)],
      ["tokens", `${timing.prompt_tokens ?? "–"} in, ${timing.completion_tokens ?? "–"} out`],
    ];
    const ended = word ?? (this.finish === "length" ? "cut at the token limit" : null);
    this.foot.replaceChildren(
      element("dl", { class: "figures" }, ...figures.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)))),
      strip(timing, timing.breakdown.total_s),
      element("div", { class: "row small" },
        ended ? element("span", { class: "muted" }, ended) : null,
        element("span", { class: "spring" }),
        element("a", { href: `#requests/${timing.request_id}` }, "Open waterfall")),
    );
    this.follow();
  }

  follow() {
    this.log.scrollTop = this.log.scrollHeight;
  }
}

function readOptions() {
  const number = (id) => (byId(id).value === "" ? undefined : Number(byId(id).value));
  const sampling = { temperature: number("temperature"), top_p: number("top-p"), max_tokens: number("max-tokens"), seed: number("seed") };
  return { system: byId("system").value.trim(), sampling };
}

function showOptionCount() {
  const { system, sampling } = readOptions();
  const set = Object.values(sampling).filter((value) => value !== undefined).length + (system ? 1 : 0);
  byId("options-set").textContent = set ? ` (${set} set)` : "";
}

async function send(event) {
  event.preventDefault();
  const question = byId("question").value.trim();
  if (!question || running) return;
  if (models.length === 0) {
    for (const pane of panes) pane.log.replaceChildren(element("p", { class: "empty fault", role: "alert" }, "The server has named no model yet. It may need an API key."));
    return;
  }
  byId("question").value = "";
  running = new AbortController();
  setBusy(true);
  const options = readOptions();
  await Promise.all(panes.map((pane) => pane.ask(question, options, running.signal)));
  running = null;
  setBusy(false);
  byId("question").focus();
}

function setBusy(busy) {
  byId("send").hidden = busy;
  byId("stop").hidden = !busy;
  byId("clear").disabled = busy;
  byId("compare").disabled = busy;
  for (const pane of panes) pane.select.disabled = busy;
}

function arrange(count) {
  while (panes.length < count) panes.push(new Pane(panes.length));
  panes.length = count;
  byId("panes").replaceChildren(...panes.map((pane) => pane.root));
  byId("panes").classList.toggle("two", count === 2);
  for (const pane of panes) pane.offer(models);
}

/** Offers the models that the server lists. */
export function offerModels(ids) {
  if (ids.join("\n") === models.join("\n")) return;
  models = ids;
  for (const pane of panes) pane.offer(models);
}

export function startPlayground() {
  arrange(1);
  byId("ask").addEventListener("submit", send);
  byId("ask").addEventListener("input", showOptionCount);
  byId("stop").addEventListener("click", () => running?.abort());
  byId("clear").addEventListener("click", () => panes.forEach((pane) => pane.clear()));
  byId("compare").addEventListener("change", (event) => arrange(event.target.checked ? 2 : 1));
  byId("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
  });
  showOptionCount();
}
