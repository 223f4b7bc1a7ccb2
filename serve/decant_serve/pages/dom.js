// Building elements: text always goes in as text, so nothing a model says can become markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export function element(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

export function shape(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

export function byId(id) {
  return document.getElementById(id);
}

/** Seconds as people read them: three figures, and the unit that fits. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  const size = Math.abs(seconds);
  if (size === 0) return "0 ms";
  if (size < 0.001) return `${(seconds * 1e6).toFixed(0)} µs`;
  if (size < 0.1) return `${(seconds * 1000).toFixed(1)} ms`;
  if (size < 1) return `${(seconds * 1000).toFixed(0)} ms`;
  return size < 100 ? `${seconds.toFixed(2)} s` : `${seconds.toFixed(0)} s`;
}

/** Output tokens per second after the first; null where it cannot be known. */
export function tokensPerSecond(record) {
  const tokens = record.completion_tokens;
  const decoded = record.e2e_s !== null && record.ttft_s !== null ? record.e2e_s - record.ttft_s : null;
  return tokens > 1 && decoded > 0 ? (tokens - 1) / decoded : null;
}

export function rate(value) {
  if (value === null) return "–";
  return `${value >= 100 ? value.toFixed(0) : value.toFixed(1)} tok/s`;
}
