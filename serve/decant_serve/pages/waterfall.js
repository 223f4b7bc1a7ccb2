// One request's time as a picture: stages in the order in which they happened, on one scale.

import { duration, element, shape } from "/page/dom.js";

const LEFT = 104;
const WIDTH = 580;
const RIGHT = 66;
const ROW = 26;
const BAR = 14;
const RANK_PARTS = [["compute_s", "compute"], ["wait_s", "wait"], ["comm_s", "communication"]];

// The ledger over engine steps, where the ranks are timed; the ranks begin with the first of the two phases.
const LEDGER = [
  ["gateway_s", "gateway", "read", "It is read, checked, and waits in the gateway's queue."],
  ["frontend_s", "front end", "engine", "On its way to the engine's first step: the prompt is rendered and tokenized."],
  ["engine_queue_s", "engine queue", "engine-queue", "It waits in the engine."],
  ["prefill_s", "prefill", "prefill", "The engine reads the prompt."],
  ["decode_s", "decode", "decode", "The engine writes the answer."],
  ["others_s", "others' steps", "queue", "Steps for other requests alone, between its own; drawn after them."],
  ["gaps_s", "between steps", "engine", "The scheduler and the sampling, between its steps; drawn after them."],
  ["output_s", "output", "send", "From the last step to the last byte."],
  ["residual_s", "unexplained", "residual", "Beside engine steps that are not on record."],
];

/** Where each stage begins and how long it took: [{name, about, start, length, kind}]. */
export function stagesOf(record) {
  return record.shards ? ledgerStages(record.shards.latency) : gatewayStages(record.breakdown);
}

function ledgerStages(ledger) {
  const rows = [];
  let at = 0;
  for (const [field, name, kind, about] of LEDGER) {
    const length = Math.max(ledger[field] ?? 0, 0);
    if (ledger[field] !== null) rows.push({ name, kind, start: at, length, about });
    at += length;
  }
  const engineStart = rows.find((row) => row.kind === "prefill").start;
  return { rows, engineStart, total: ledger.total_s };
}

function gatewayStages(parts) {
  const rows = [];
  let at = 0;
  const add = (name, kind, length, about) => {
    if (length === null || length === undefined) return;
    rows.push({ name, kind, start: at, length: Math.max(length, 0), about });
    at += Math.max(length, 0);
  };
  add("read", "read", parts.read_s, "The body arrives and is checked.");
  add("queue", "queue", parts.queue_s, "It waits in the gateway's queue.");
  const engineStart = at;
  if (parts.residual_s === null) {
    add("engine", "engine", parts.engine_s, "In the engine, which says nothing of its own.");
  } else {
    add("engine queue", "engine-queue", parts.engine_queue_s, "It waits in the engine.");
    add("prefill", "prefill", parts.prefill_s, "The engine reads the prompt.");
    add("decode", "decode", parts.decode_s, "The engine writes the answer.");
    add("residual", "residual", parts.residual_s, "Time in the engine's stage that nobody explains; where in it is not known.");
    at = engineStart + (parts.engine_s ?? 0);
  }
  add("send", "send", parts.send_s, "What was left is passed on.");
  return { rows, engineStart, total: parts.total_s };
}

/** The bar of a list row: every stage in one line, scaled to `longest` seconds. */
export function strip(record, longest) {
  const { rows } = stagesOf(record);
  const svg = shape("svg", { class: "strip", viewBox: "0 0 160 12", preserveAspectRatio: "none", "aria-hidden": "true" });
  const scale = longest > 0 ? 160 / longest : 0;
  for (const row of rows) {
    const width = row.length * scale;
    if (width > 0) svg.append(shape("rect", { class: `part ${row.kind}`, x: row.start * scale, y: 1, width: Math.max(width, 0.4), height: 10 }));
  }
  return svg;
}

export function waterfall(record) {
  const { rows, engineStart, total } = stagesOf(record);
  const ranks = record.ranks ?? [];
  const longest = Math.max(total, ...ranks.map((rank) => engineStart + sum(rank)), 1e-9);
  const scale = (WIDTH - LEFT - RIGHT) / longest;
  const ticks = record.chunk_times_s ?? [];
  const height = (rows.length + ranks.length + (ticks.length ? 1 : 0)) * ROW + (ranks.length ? ROW : 0) + 26;
  const svg = shape("svg", { class: "waterfall", viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": spoken(rows, ranks) });
  axis(svg, longest, scale, height);
  let y = 22;
  for (const row of rows) {
    line(svg, y, row.name, [{ start: row.start, length: row.length, kind: row.kind }], { scale, about: row.about, shown: duration(row.length) });
    y += ROW;
  }
  if (ticks.length) {
    chunks(svg, y, ticks, scale);
    y += ROW;
  }
  if (ranks.length) {
    svg.append(shape("text", { class: "group", x: 0, y: y + 17 }, "Ranks, summed over this request's steps"));
    y += ROW;
    for (const rank of ranks) {
      line(svg, y, `rank ${rank.rank}`, rankParts(rank, engineStart), { scale, about: rankWords(rank), shown: duration(sum(rank)) });
      y += ROW;
    }
  }
  return svg;
}

/** The same numbers as text, for those who read rather than look. */
export function numbers(record) {
  const { rows } = stagesOf(record);
  const table = element("table", { class: "numbers" });
  for (const row of rows) {
    table.append(element("tr", {},
      element("th", { scope: "row" }, element("span", { class: `key ${row.kind}` }), row.name),
      element("td", { class: "number" }, duration(row.length)),
      element("td", { class: "muted" }, row.about)));
  }
  for (const rank of record.ranks ?? []) {
    table.append(element("tr", {},
      element("th", { scope: "row" }, `rank ${rank.rank}`),
      element("td", { class: "number" }, duration(sum(rank))),
      element("td", { class: "muted" }, rankWords(rank))));
  }
  return table;
}

function axis(svg, longest, scale, height) {
  const step = niceStep(longest / 5);
  for (let at = 0; at <= longest; at += step) {
    const x = LEFT + at * scale;
    svg.append(shape("line", { class: "grid", x1: x, x2: x, y1: 18, y2: height - 4 }));
    svg.append(shape("text", { class: "tick", x, y: 11, "text-anchor": at === 0 ? "start" : "middle" }, at === 0 ? "0" : duration(at)));
  }
}

function niceStep(rough) {
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= rough);
}

function line(svg, y, name, parts, { scale, about, shown }) {
  const group = shape("g", {}, shape("title", {}, `${name}: ${shown}. ${about}`));
  group.append(shape("text", { class: "name", x: LEFT - 10, y: y + 13, "text-anchor": "end" }, name));
  for (const part of parts) {
    group.append(shape("rect", {
      class: `part ${part.kind}`, x: LEFT + part.start * scale, y: y + 2,
      width: Math.max(part.length * scale, part.length > 0 ? 1.5 : 0), height: BAR, rx: 2,
    }));
  }
  const last = parts[parts.length - 1];
  const end = LEFT + (last.start + last.length) * scale;
  group.append(shape("text", { class: "value", x: end + 6, y: y + 13 }, shown));
  svg.append(group);
}

function chunks(svg, y, times, scale) {
  const group = shape("g", {}, shape("title", {}, `${times.length} pieces of the answer, each at its arrival`));
  group.append(shape("text", { class: "name", x: LEFT - 10, y: y + 13, "text-anchor": "end" }, "pieces"));
  const path = times.map((at) => `M${(LEFT + at * scale).toFixed(2)} ${y + 3}v12`).join("");
  group.append(shape("path", { class: "pieces", d: path }));
  group.append(shape("text", { class: "value", x: LEFT + times[times.length - 1] * scale + 6, y: y + 13 }, String(times.length)));
  svg.append(group);
}

function rankParts(rank, start) {
  let at = start;
  return RANK_PARTS.map(([field, kind]) => {
    const part = { start: at, length: rank[field] ?? 0, kind };
    at += part.length;
    return part;
  });
}

function rankWords(rank) {
  return RANK_PARTS.map(([field, kind]) => `${kind} ${duration(rank[field])}`).join(", ");
}

function sum(rank) {
  return RANK_PARTS.reduce((total, [field]) => total + (rank[field] ?? 0), 0);
}

function spoken(rows, ranks) {
  const stages = rows.map((row) => `${row.name} ${duration(row.length)}`);
  return [...stages, ...ranks.map((rank) => `rank ${rank.rank}: ${rankWords(rank)}`)].join("; ");
}
