// Views, the API key, the theme, and what the server says of itself.

import { get, key } from "/page/api.js";
import { offerModels, startPlayground } from "/page/chat.js";
import { byId } from "/page/dom.js";
import { enterRequests, leaveRequests, startRequests } from "/page/requests.js";

const HEALTH_EVERY_MS = 5000;
const THEMES = ["system", "light", "dark"];
const THEME = "decant-theme";

function showView() {
  const [view, ...rest] = location.hash.slice(1).split("/");
  const name = view === "requests" ? "requests" : "playground";
  for (const section of ["playground", "requests"]) byId(section).hidden = section !== name;
  for (const link of document.querySelectorAll("[data-view]")) {
    if (link.dataset.view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = name === "requests" ? "Requests · Decant" : "Decant";
  if (name === "requests") enterRequests(decodeURIComponent(rest.join("/")) || null);
  else leaveRequests();
}

async function readModels() {
  try {
    const listed = await get("/v1/models");
    offerModels(listed.data.map((model) => model.id));
    if (key.get()) byId("key-open").hidden = false;
    return true;
  } catch (error) {
    if (error.status !== 401) return false;
    byId("key-open").hidden = false;
    if (!byId("key-dialog").open) askForKey(key.get() ? error.message : null);
    return false;
  }
}

function askForKey(fault) {
  byId("key-fault").hidden = !fault;
  byId("key-fault").textContent = fault ?? "";
  byId("key").value = "";
  byId("key-dialog").showModal();
}

async function useKey(event) {
  event.preventDefault();
  key.set(byId("key").value.trim());
  byId("key-dialog").close();
  if (await readModels()) showView();
}

async function readHealth() {
  const pill = byId("health");
  try {
    const health = await get("/health");
    const states = Object.values(health.models).map((model) => model.state);
    const down = states.filter((state) => state !== "ready").length;
    const { running, waiting } = health.requests;
    const going = running + waiting ? `, ${running} running${waiting ? `, ${waiting} waiting` : ""}` : "";
    pill.textContent = (down ? `${down} of ${states.length} engines not ready` : `${states.length} model${states.length === 1 ? "" : "s"} ready`) + going;
    pill.className = down ? "pill bad" : "pill good";
  } catch {
    pill.textContent = "server not reachable";
    pill.className = "pill bad";
  }
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = `Theme: ${theme}`;
  localStorage.setItem(THEME, theme);
}

function start() {
  const theme = localStorage.getItem(THEME);
  setTheme(THEMES.includes(theme) ? theme : "system");
  byId("theme").addEventListener("click", () => {
    setTheme(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length]);
  });
  byId("key-open").addEventListener("click", () => askForKey(null));
  byId("key-form").addEventListener("submit", useKey);
  byId("key-forget").addEventListener("click", () => {
    key.forget();
    byId("key-dialog").close();
    location.reload();
  });
  startPlayground();
  startRequests();
  addEventListener("hashchange", showView);
  showView();
  readModels();
  readHealth();
  setInterval(() => !document.hidden && readHealth(), HEALTH_EVERY_MS);
}

start();
