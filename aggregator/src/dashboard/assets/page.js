// Keeps the page live: listens for changes, fetches the same page anew, and puts in what differs. All words and numbers
// come from the server; without this script the page is the same, and reloads itself every ten seconds.

const REFRESH_MS = 250; // the least time between two fetches
const SILENCE_MS = 25_000; // two and a half heartbeats: the connection is dead, whatever the browser thinks
const ANNOUNCE_MS = 5_000; // the least time between two announcements
const $ = (id) => document.getElementById(id);

document.documentElement.classList.add("js");

// ---- Time

/** The server's clock minus ours, in milliseconds. */
let skew = 0;
let shownAt = Date.now();

function readClock(body) {
  const now = Date.parse(body.dataset.now ?? "");
  if (!Number.isNaN(now)) skew = now - Date.now();
}

function age(seconds) {
  const [m, h, d] = [60, 3600, 86400].map((unit) => Math.floor(seconds / unit));
  if (m === 0) return `${seconds}s`;
  if (h === 0) return `${m}m ${seconds % 60}s`;
  if (d === 0) return `${h}h ${m % 60}m`;
  return `${d}d ${h % 24}h`;
}

function tick() {
  const now = Date.now() + skew;
  for (const time of document.querySelectorAll("time[data-age]")) {
    const text = age(Math.max(0, Math.floor((now - Date.parse(time.dateTime)) / 1000)));
    if (time.textContent !== text) time.textContent = text;
  }
}

/** Times of day in the reader's own zone. */
function localize(root) {
  const today = new Date().toDateString();
  for (const time of root.querySelectorAll("time[data-clock]")) {
    const at = new Date(time.dateTime);
    const text =
      at.toDateString() === today
        ? at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false })
        : at.toLocaleString([], { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", hour12: false });
    if (time.textContent !== text) time.textContent = text;
  }
  for (const button of root.querySelectorAll("button[data-copy], button[data-run]")) button.hidden = false;
}

// ---- Putting in what differs

const keyOf = (node) => (node.nodeType === Node.ELEMENT_NODE ? node.dataset.key || node.id || null : null);

/** Makes `old` look like `fresh`, keeping what is the same: focus, scroll positions, what is unfolded. */
function become(old, fresh) {
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE || old.isEqualNode(fresh)) return;
  if (old.hasAttribute("data-result")) return; // ours
  for (const { name } of [...old.attributes]) {
    const isOurs = name === "open" || name === "hidden";
    if (!isOurs && !fresh.hasAttribute(name)) old.removeAttribute(name);
  }
  for (const { name, value } of [...fresh.attributes]) {
    if (name !== "hidden" && old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  if (old.tagName === "INPUT") {
    if (old !== document.activeElement) old.value = fresh.value;
    return;
  }
  children(old, fresh);
}

function children(old, fresh) {
  const kept = new Map();
  for (const child of old.children) {
    const key = keyOf(child);
    if (key) kept.set(key, child);
  }
  let place = old.firstChild;
  for (const wanted of [...fresh.childNodes]) {
    const key = keyOf(wanted);
    let found = key ? kept.get(key) : place;
    while (!key && found && keyOf(found)) found = found.nextSibling;
    const fits = found && found.nodeType === wanted.nodeType && found.nodeName === wanted.nodeName;
    if (!fits) {
      const added = document.importNode(wanted, true);
      if (key && added.classList) added.classList.add("changed");
      old.insertBefore(added, place);
      continue;
    }
    if (found === place) place = place.nextSibling;
    else old.insertBefore(found, place);
    become(found, wanted);
  }
  while (place) {
    const next = place.nextSibling;
    place.remove();
    place = next;
  }
}

// ---- Fetching

let isFetching = false;
let isWanted = false;
let lastFetch = 0;

function refresh() {
  isWanted = true;
  if (isFetching || document.hidden) return;
  const wait = Math.max(0, lastFetch + REFRESH_MS - Date.now());
  isFetching = true;
  setTimeout(load, wait);
}

async function load() {
  isWanted = false;
  lastFetch = Date.now();
  try {
    const answer = await fetch(location.href, { headers: { accept: "text/html" }, cache: "no-store" });
    if (answer.redirected && new URL(answer.url).pathname === "/login") return location.assign(answer.url);
    if (answer.ok) show(new DOMParser().parseFromString(await answer.text(), "text/html"));
  } catch {
    // The stream of events notices too, and says so.
  } finally {
    isFetching = false;
    if (isWanted) refresh();
  }
}

function show(page) {
  readClock(page.body);
  for (const fresh of page.querySelectorAll("[data-live]")) {
    const old = $(fresh.id);
    localize(fresh);
    if (old) become(old, fresh);
  }
  tick();
  shownAt = Date.now();
  const { title, icon, summary } = $("main").dataset;
  document.title = `${title} · HealthScope`;
  if ($("icon").getAttribute("href") !== icon) $("icon").setAttribute("href", icon);
  announce(summary);
}

// ---- Saying it

let said = $("main").dataset.summary;
let saidAt = 0;
let saying = 0;

/** Reads the newest summary out, at most once in a while; what came between is not read. */
function announce(summary) {
  if (summary === said && !saying) return;
  clearTimeout(saying);
  saying = setTimeout(
    () => {
      saying = 0;
      saidAt = Date.now();
      const newest = $("main").dataset.summary;
      if (newest !== said) $("announcer").textContent = said = newest;
    },
    Math.max(0, saidAt + ANNOUNCE_MS - Date.now()),
  );
}

// ---- Listening

let stream = null;
let watchdog = 0;

function alive() {
  clearTimeout(watchdog);
  watchdog = setTimeout(lose, SILENCE_MS);
  if (!document.body.classList.contains("live")) {
    document.body.classList.add("live");
    if (document.body.classList.replace("stale", "live")) $("announcer").textContent = "Connected again";
    $("lost").hidden = true;
    $("pulse-text").textContent = "live";
  }
}

function lose() {
  if (!document.body.classList.contains("stale")) {
    document.body.classList.remove("live");
    document.body.classList.add("stale");
    $("lost-since").textContent = new Date(shownAt).toLocaleTimeString([], { hour12: false });
    $("lost").hidden = false;
    $("pulse-text").textContent = "stale";
    $("announcer").textContent = "Connection lost, what is shown may be out of date";
  }
  clearTimeout(watchdog);
  watchdog = setTimeout(listen, 5_000);
}

function listen() {
  stream?.close();
  stream = new EventSource("/api/v1/stream?events=snapshot,totals,transition&level=scope,component");
  stream.addEventListener("heartbeat", alive);
  for (const name of ["snapshot", "totals", "transition"]) {
    stream.addEventListener(name, () => {
      alive();
      refresh();
    });
  }
  stream.addEventListener("error", lose);
}

// ---- What people do

let typing = 0;

document.addEventListener("input", (event) => {
  if (event.target.id !== "q") return;
  clearTimeout(typing);
  typing = setTimeout(() => {
    const address = new URL(location.href);
    const words = event.target.value.trim();
    if (words) address.searchParams.set("q", words);
    else address.searchParams.delete("q");
    address.searchParams.delete("page");
    history.replaceState(null, "", address);
    refresh();
  }, 150);
});

document.addEventListener("keydown", (event) => {
  const isTyping = event.target.matches?.("input, textarea");
  if (event.key === "/" && !isTyping && !event.ctrlKey && !event.metaKey && $("q")) {
    event.preventDefault();
    $("q").focus();
    $("q").select();
  }
});

document.addEventListener("click", (event) => {
  const button = event.target.closest?.("button[data-copy], button[data-run]");
  if (!button) return;
  if (button.dataset.copy) copy(button);
  else run(button);
});

async function copy(button) {
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not allowed";
  }
  setTimeout(() => (button.textContent = "Copy"), 1_500);
}

async function run(button) {
  const result = document.querySelector(`[data-result="${CSS.escape(button.dataset.for)}"]`);
  button.disabled = true;
  button.textContent = "Running…";
  result.hidden = false;
  result.textContent = "";
  try {
    const answer = await fetch(button.dataset.run, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: "{}",
    });
    const found = await answer.json();
    if (!answer.ok) throw new Error(found.detail ?? answer.statusText);
    for (const one of found.runs) result.append(...describe(one));
  } catch (error) {
    result.textContent = `Not run: ${error.message}`;
  } finally {
    button.disabled = false;
    button.textContent = "Run now";
    $("announcer").textContent = result.textContent;
  }
}

/** What one run found, as text: nothing a check printed is ever taken for markup. */
function describe({ result, reason, message, output, latencyUs }) {
  const line = document.createElement("p");
  const took = latencyUs >= 1000 ? `${Math.round(latencyUs / 1000)} ms` : `${latencyUs} µs`;
  const why = [reason, message].filter(Boolean).join(" · ");
  line.textContent = `Just now: ${result ?? "not run"} in ${took}${why ? ` · ${why}` : ""}`;
  if (!output) return [line];
  const printed = document.createElement("pre");
  printed.className = "output";
  printed.textContent = output;
  return [line, printed];
}

// ---- Beginning

readClock(document.body);
localize(document);
tick();
setInterval(tick, 1_000);
document.addEventListener("visibilitychange", () => isWanted && refresh());
listen();
