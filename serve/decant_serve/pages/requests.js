// The list of recent requests, kept fresh, and the waterfall of the one that is open.

import { get } from "/page/api.js";
import { byId, duration, element, rate, tokensPerSecond } from "/page/dom.js";
import { numbers, strip, waterfall } from "/page/waterfall.js";

const EVERY_MS = 1000;

let timer = null;
let live = true;
let rows = [];
let open = null;
let shown = null;

export function startRequests() {
  byId("filter").addEventListener("input", drawList);
  byId("live").addEventListener("click", () => {
    live = !live;
    byId("live").setAttribute("aria-pressed", String(live));
    if (live) refresh();
  });
  byId("list").addEventListener("keydown", moveBetweenRows);
  document.addEventListener("visibilitychange", () => !document.hidden && timer && refresh());
}

/** Shows the view, with one request open where `id` names one. */
export function enterRequests(id) {
  open = id;
  shown = null;
  showDetail();
  refresh();
  timer ??= setInterval(() => live && !document.hidden && refresh(), EVERY_MS);
}

export function leaveRequests() {
  clearInterval(timer);
  timer = null;
}

async function refresh() {
  try {
    rows = (await get("/v1/requests?limit=100")).data;
    drawList();
    if (open && (shown === null || shown.state === "running")) await showDetail();
  } catch (error) {
    rows = [];
    drawList(error.status === 401 ? "This list needs an API key." : `The list cannot be read: ${error.message}`);
  }
}

function drawList(fault = null) {
  const wanted = byId("filter").value.trim().toLowerCase();
  const text = (row) => `${row.request_id} ${row.model ?? ""} ${row.route} ${word(row)} ${row.key ?? ""}`.toLowerCase();
  const kept = rows.filter((row) => !wanted || text(row).includes(wanted));
  const longest = Math.max(...kept.map((row) => row.breakdown.total_s), 0);
  const focused = document.activeElement?.dataset?.request;
  byId("list").tBodies[0].replaceChildren(...kept.map((row) => listRow(row, longest)));
  if (focused) byId("list").querySelector(`[data-request="${CSS.escape(focused)}"]`)?.focus();
  byId("list").hidden = kept.length === 0;
  const empty = byId("list-empty");
  empty.hidden = kept.length > 0;
  empty.textContent = typeof fault === "string" ? fault
    : rows.length ? "No request matches the filter."
    : "No requests yet. Ask something in the playground, or point a client at /v1.";
  const going = kept.filter((row) => row.state === "running").length;
  byId("count").textContent = kept.length ? `${kept.length} shown${going ? `, ${going} in flight` : ""}` : "";
}

function listRow(row, longest) {
  const when = new Date(row.accepted_at);
  const link = element("a", { href: `#requests/${row.request_id}`, "data-request": row.request_id, title: row.request_id }, when.toLocaleTimeString());
  const tr = element("tr", { class: row.request_id === open ? "open" : null, "aria-selected": row.request_id === open ? "true" : null },
    element("td", {}, link),
    element("td", { class: "model" }, row.model ?? "–"),
    element("td", {}, element("span", { class: `status ${tone(row)}` }, word(row))),
    element("td", { class: "number more" }, row.completion_tokens === null ? "–" : `${row.prompt_tokens ?? "–"} + ${row.completion_tokens}`),
    element("td", { class: "number more" }, duration(row.queue_s)),
    element("td", { class: "number more" }, duration(row.ttft_s)),
    element("td", { class: "number" }, duration(row.breakdown.total_s)),
    element("td", { class: "shape" }, strip(row, longest)));
  tr.addEventListener("click", () => { location.hash = `requests/${row.request_id}`; });
  return tr;
}

function word(row) {
  if (row.state === "running") return "in flight";
  return row.error_kind ? `${row.status} ${row.error_kind.replaceAll("_", " ")}` : String(row.status);
}

function tone(row) {
  if (row.state === "running") return "going";
  if (!row.error_kind) return "good";
  return row.status >= 400 && row.status < 500 ? "theirs" : "bad";
}

function moveBetweenRows(event) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step) return;
  const links = [...byId("list").querySelectorAll("[data-request]")];
  const next = links[links.indexOf(document.activeElement) + step];
  if (next) {
    event.preventDefault();
    next.focus();
  }
}

async function showDetail() {
  const panel = byId("detail");
  byId("split").classList.toggle("opened", open !== null);
  if (open === null) {
    panel.replaceChildren();
    return;
  }
  const going = rows.find((row) => row.request_id === open && row.state === "running");
  try {
    shown = going ?? { ...(await get(`/v1/requests/${encodeURIComponent(open)}/timing`)), state: "ended" };
  } catch (error) {
    panel.replaceChildren(element("p", { class: "empty" }, error.status === 404 ? "This request is not known here, or it is too long ago." : error.message));
    return;
  }
  panel.replaceChildren(...detail(shown));
}

function detail(record) {
  const figures = [
    ["First token", duration(record.ttft_s)],
    ["Speed", rate(tokensPerSecond(record))],
    ["Total", duration(record.breakdown.total_s)],
    ["Tokens", record.completion_tokens === null ? "–" : `${record.prompt_tokens ?? "–"} in, ${record.completion_tokens} out`],
    ["Cached", record.cached_tokens === null ? "–" : String(record.cached_tokens)],
    ["Ended by", record.finish_reason ?? "–"],
  ];
  const raw = element("details", { class: "raw" }, element("summary", {}, "The whole record"), element("pre", {}, JSON.stringify(record, null, 2)));
  return [
    element("div", { class: "row" },
      element("h2", {}, record.model ?? "no model"),
      element("span", { class: `status ${tone(record)}` }, word(record)),
      element("span", { class: "spring" }),
      element("a", { href: "#requests", class: "quiet", "aria-label": "Close" }, "Close")),
    element("p", { class: "muted id" }, `${record.request_id} · ${record.route}${record.streamed ? ", streamed" : ""} · ${record.engine_name ?? "no engine"} · ${new Date(record.accepted_at).toLocaleString()}`),
    element("dl", { class: "figures" }, ...figures.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)))),
    element("div", { class: "picture" }, waterfall(record)),
    element("div", { class: "picture" }, numbers(record)),
    raw,
  ];
}
