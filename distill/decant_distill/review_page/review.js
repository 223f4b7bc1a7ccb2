"use strict";
// Everything that labels say is put in as text, never as markup.
const PAGE = 100;
const NAMES = {
  accept: "accepted", edit: "edited", reject: "rejected", open: "taken back",
  done: "has an answer", failed: "has none",
};
const $ = (id) => document.getElementById(id);
const form = $("filters");
const state = { items: [], total: 0, line: null, look: null, editing: false, asked: 0, loading: false };

function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

async function ask(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body),
  };
  const response = await fetch(path, options).catch(() => {
    throw new Error("the review has ended; start decant review again");
  });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

let noticeTimer = 0;
function notice(error) {
  $("notice").textContent = error.message;
  $("notice").hidden = false;
  clearTimeout(noticeTimer);
  noticeTimer = setTimeout(() => { $("notice").hidden = true; }, 6000);
}

function guarded(action) {
  return (...given) => Promise.resolve(action(...given)).catch(notice);
}

function filters() {
  const chosen = new URLSearchParams();
  for (const [name, value] of new FormData(form)) if (value && name !== "below") chosen.set(name, value);
  if ($("text").value.trim()) chosen.set("text", $("text").value.trim());
  const below = Number(form.below.value);
  if (below <= 100) chosen.set("below", String(below / 100));
  return chosen;
}

function percent(part) {
  return `${Math.round(100 * part)} %`;
}

function showFilters() {
  const below = Number(form.below.value);
  $("below-value").textContent = below <= 100 ? `${below} %` : "any";
  for (const select of form.querySelectorAll("select")) select.classList.toggle("set", select.value !== "");
}

function fill(select, counts, names = {}) {
  const chosen = select.value;
  const options = Object.entries(counts).sort((one, other) => other[1] - one[1]);
  if (chosen && !(chosen in counts)) options.push([chosen, 0]);
  select.replaceChildren(
    el("option", { value: "" }, "any"),
    ...options.map(([name, count]) => el("option", { value: name }, `${names[name] || name} · ${count}`)),
  );
  select.value = chosen;
  select.disabled = options.length === 0;
}

async function summarize() {
  const { file, reviewer, facets } = await ask("api/summary");
  const all = Object.values(facets.state).reduce((sum, count) => sum + count, 0);
  const done = all - (facets.state.unreviewed || 0);
  $("file").textContent = `${file} · reviewed by ${reviewer}`;
  $("file").title = file;
  $("bar").style.width = `${all ? (100 * done) / all : 0}%`;
  const parts = ["accepted", "edited", "rejected"].map((name) => `${facets.state[name] || 0} ${name}`);
  $("progress").textContent = `${done} of ${all} decided: ${parts.join(", ")}`;
  for (const name of ["state", "rule", "error", "check"]) fill(form[name], facets[name]);
  fill(form.status, facets.status, NAMES);
  for (const count of form.querySelectorAll("[data-count]")) {
    const number = facets.other[count.dataset.count] || 0;
    count.textContent = `· ${number}`;
    count.parentElement.hidden = number === 0 && !form[count.dataset.count].checked;
  }
}

function row(item) {
  const said = item.answer === null ? (item.error_class || "no answer") : item.answer;
  return el("li", {
    "data-line": item.line, class: item.state, "aria-current": item.line === state.line ? "true" : null,
    onclick: guarded(() => open(item.line)),
  },
  el("span", { class: "dot", title: item.state }),
  el("span", { class: item.answer === null ? "said none" : "said" }, said),
  el("span", { class: "share" }, item.answer === null ? "" : percent(item.certainty)),
  el("span", { class: "id" }, `${item.id} · sample ${item.sample}${item.rule ? ` · ${item.rule}` : ""}`));
}

async function list({ keep = false } = {}) {
  const asked = ++state.asked;
  const query = filters();
  location.replace(`#${query}`);
  showFilters();
  query.set("count", PAGE);
  const page = await ask(`api/labels?${query}`);
  if (asked !== state.asked) return;
  state.items = page.items;
  state.total = page.total;
  drawList();
  if (keep && state.line !== null) return;
  if (state.items.length) await open(state.items[0].line);
  else empty();
}

async function more() {
  if (state.loading || state.items.length >= state.total) return;
  state.loading = true;
  const asked = state.asked;
  try {
    const query = filters();
    query.set("start", state.items.length);
    query.set("count", PAGE);
    const page = await ask(`api/labels?${query}`);
    if (asked !== state.asked) return;
    const known = new Set(state.items.map((item) => item.line));
    const fresh = page.items.filter((item) => !known.has(item.line));
    state.items.push(...fresh);
    if (!fresh.length) state.total = state.items.length;
    $("list").append(...fresh.map(row));
  } finally { state.loading = false; }
}

function drawList() {
  $("total").textContent = `${state.total} ${state.total === 1 ? "label" : "labels"}`;
  $("list").replaceChildren(...state.items.map(row));
}

function empty() {
  state.line = state.look = null;
  $("label").replaceChildren(el("p", { class: "empty" }, "No label fits these filters."));
}

async function open(line) {
  state.editing = false;
  state.line = line;
  const look = await ask(`api/labels/${line}`);
  if (state.line !== line) return;
  state.look = look;
  drawLabel();
  for (const other of $("list").children) {
    const here = Number(other.dataset.line) === line;
    if (here) other.setAttribute("aria-current", "true"); else other.removeAttribute("aria-current");
    if (here) other.scrollIntoView({ block: "nearest" });
  }
}

function chip(text, kind = "", title = null) {
  return el("span", { class: `chip ${kind}`, title }, text);
}

function chips(label, item) {
  const shown = [chip(item.state, item.state), el("span", { class: "soft" }, `line ${item.line} · ${label.id} · sample ${label.sample}`)];
  if (item.answer !== null) shown.push(chip(`${percent(item.share)} of the samples`, item.share < 0.5 ? "doubt" : ""));
  if (label.confidence !== undefined) shown.push(chip(`confidence ${percent(label.confidence)}`, label.confidence < 0.5 ? "doubt" : ""));
  if (label.judge !== undefined) shown.push(chip(`judge ${percent(label.judge)}`, label.judge < 0.5 ? "doubt" : ""));
  if (item.disagrees) shown.push(chip("samples disagree", "doubt"));
  if (item.hinted) shown.push(chip("hinted", "doubt", "the teacher was shown the answer and asked why"));
  if (label.error_class) shown.push(chip(label.error_class, "bad", label.error));
  for (const [name, passed] of Object.entries(label.checks || {})) {
    if (passed !== null) shown.push(chip(`${name} ${passed ? "passed" : "not passed"}`, passed ? "good" : "bad"));
  }
  if (item.rule) shown.push(chip(`dropped by ${item.rule}`, "bad", item.why));
  return el("div", { class: "chips" }, ...shown);
}

function prompt(messages) {
  const parts = (messages || []).flatMap((message) => [
    messages.length > 1 ? el("p", { class: "role" }, message.role) : null,
    el("pre", {}, message.content),
  ]);
  return el("section", { class: "prompt" }, el("h2", {}, "Prompt"), ...parts.filter(Boolean));
}

function reasons(label, item) {
  const notes = Object.entries(label.check_notes || {}).map(([name, why]) => `${name}: ${why}`);
  if (label.error) notes.push(label.error);
  if (item.why) notes.push(`${item.rule}: ${item.why}`);
  if (!notes.length) return null;
  return el("section", {}, el("h2", {}, "What speaks against it"),
    el("ul", { class: "why" }, ...notes.map((note) => el("li", {}, note))));
}

function texts(look) {
  const { label, now } = look;
  if (state.editing) {
    const rows = Math.min(24, Math.max(5, (now.reasoning || label.response || "").split("\n").length + 3));
    return [
      el("section", {}, el("h2", {}, "Reasoning"),
        el("textarea", { id: "edit-reasoning", rows, "aria-label": "Reasoning" }, now.reasoning || "")),
      el("section", {}, el("h2", {}, "Answer"),
        el("textarea", { id: "edit-answer", rows: 2, "aria-label": "Answer" }, now.answer || "")),
    ];
  }
  const was = label.answer && label.answer !== now.answer ? el("p", { class: "old" }, label.answer) : null;
  const gold = label.gold === undefined || label.gold === null ? null : el("p", { class: "soft" }, `gold: ${label.gold}`);
  const raw = now.answer === null && label.response
    ? el("section", {}, el("h2", {}, "Whole response"), el("pre", {}, label.response)) : null;
  return [
    now.reasoning && !raw ? el("section", {}, el("h2", {}, "Reasoning"), el("pre", {}, now.reasoning)) : null,
    raw,
    el("section", { class: "answer" }, el("h2", {}, "Answer"),
      now.answer === null ? el("p", { class: "soft" }, "none") : el("pre", {}, now.answer), was, gold),
  ];
}

function samples(look) {
  if (look.samples.length < 2) return null;
  const rows = look.samples.map((item) => el("tr", {
    class: item.line === state.line ? "here" : null, "data-line": item.line, onclick: guarded(() => open(item.line)),
  },
  el("td", {}, String(item.sample)), el("td", { class: "wide" }, item.answer === null ? (item.error_class || "none") : item.answer),
  el("td", {}, percent(item.share)), el("td", {}, item.state === "unreviewed" ? "" : item.state)));
  return el("section", {}, el("h2", {}, "Samples of this row"), el("table", {},
    el("thead", {}, el("tr", {}, ...["sample", "answer", "share", "decision"].map((name) => el("th", {}, name)))),
    el("tbody", {}, ...rows)));
}

function versions(look) {
  if (!look.versions.length) return null;
  const rows = look.versions.map((version) => el("tr", {},
    el("td", {}, String(version.version)), el("td", {}, NAMES[version.decision]),
    el("td", { class: "wide" }, [version.answer, version.note].filter(Boolean).join(" · ")),
    el("td", {}, version.by), el("td", {}, new Date(1000 * version.at).toLocaleString())));
  return el("section", {}, el("h2", {}, "Versions"), el("table", {}, el("tbody", {}, ...rows)));
}

function action(name, words, key, does, disabled = false) {
  return el("button", { type: "button", class: name, disabled, onclick: guarded(does) }, words, el("kbd", {}, key));
}

function noteField(disabled) {
  return el("input", { id: "note", placeholder: "Note   N", "aria-label": "Note", maxlength: 2000, disabled });
}

function actions(look) {
  if (state.editing) {
    return [action("accept", "Save", "Ctrl ⏎", save), action("plain", "Leave", "Esc", leave), noteField(false)];
  }
  const never = !look.label.key;
  return [
    action("accept", "Accept", "A", () => decide("accept"), never || look.label.status !== "done"),
    action("edit", "Edit", "E", edit, never),
    action("reject", "Reject", "R", () => decide("reject"), never),
    action("plain", "Take back", "U", () => decide("open"), look.item.state === "unreviewed"),
    noteField(never),
  ];
}

function drawLabel() {
  const { label, item } = state.look;
  $("label").replaceChildren(
    el("div", { class: "body" }, chips(label, item), prompt(label.prompt), ...texts(state.look).filter(Boolean),
      ...[reasons(label, item), samples(state.look), versions(state.look)].filter(Boolean)),
    el("div", { class: "actions" }, ...actions(state.look)));
  $("label").scrollTop = 0;
}

function edit() {
  if (!state.look || !state.look.label.key) return;
  const note = $("note").value;
  state.editing = true;
  drawLabel();
  $("note").value = note;
  $("edit-answer").focus();
}

function leave() {
  state.editing = false;
  drawLabel();
}

async function save() {
  await decide("edit", { reasoning: $("edit-reasoning").value, answer: $("edit-answer").value });
}

async function decide(decision, texts = {}) {
  if (!state.look) return;
  const line = state.line;
  const note = $("note") ? $("note").value : "";
  const version = state.look.versions.length + 1;
  try {
    const look = await ask(`api/labels/${line}`, { version, decision, note, ...texts });
    const at = state.items.findIndex((item) => item.line === line);
    if (at >= 0) {
      state.items[at] = look.item;
      $("list").children[at].replaceWith(row(look.item));
    }
    state.look = look;
    state.editing = false;
    drawLabel();
  } catch (error) {
    if (!state.editing) await open(line);
    throw error;
  }
  await summarize();
  if (decision !== "open") await step(1);
}

async function step(by) {
  const at = state.items.findIndex((item) => item.line === state.line);
  if (at + by >= state.items.length) await more();
  const next = state.items[at < 0 ? 0 : at + by];
  if (next) await open(next.line);
}

const KEYS = {
  j: () => step(1), ArrowDown: () => step(1), k: () => step(-1), ArrowUp: () => step(-1),
  a: () => press("accept"), r: () => press("reject"), e: edit, u: () => press("open"),
  n: () => $("note") && $("note").focus(), "/": () => $("text").focus(), "?": () => $("help").showModal(),
};

function press(decision) {
  const classes = { accept: "accept", reject: "reject", open: "plain" };
  const button = document.querySelector(`.actions .${classes[decision]}`);
  return button && !button.disabled ? decide(decision) : undefined;
}

document.addEventListener("keydown", (event) => {
  if ($("help").open) return;
  if (state.editing && event.key === "Escape") { leave(); return; }
  if (state.editing && event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    guarded(save)();
    return;
  }
  const typing = event.target.closest("input:not([type=range]):not([type=checkbox]), textarea, select");
  if (typing) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const does = KEYS[event.key];
  if (!does || state.editing || event.ctrlKey || event.metaKey || event.altKey || event.repeat && event.key.length === 1 && !"jk".includes(event.key)) return;
  event.preventDefault();
  guarded(does)();
});

function restore() {
  const chosen = new URLSearchParams(location.hash.slice(1));
  $("text").value = chosen.get("text") || "";
  for (const [name, value] of chosen) {
    const control = form[name];
    if (!control) continue;
    if (control.type === "checkbox") control.checked = value === "true";
    else if (name === "below") control.value = String(100 * Number(value));
    else {
      if (![...control.options].some((option) => option.value === value)) control.append(el("option", { value }, value));
      control.value = value;
    }
  }
}

let typed = 0;
$("text").addEventListener("input", () => {
  clearTimeout(typed);
  typed = setTimeout(guarded(() => list()), 250);
});
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("change", guarded(() => list()));
form.below.addEventListener("input", showFilters);
$("clear").addEventListener("click", () => { form.reset(); guarded(() => list())(); });
$("list").addEventListener("scroll", guarded(() => {
  const box = $("list");
  return box.scrollTop + box.clientHeight > box.scrollHeight - 400 ? more() : undefined;
}));
$("help-button").addEventListener("click", () => $("help").showModal());

guarded(async () => {
  restore();
  await summarize();
  await list();
})();
