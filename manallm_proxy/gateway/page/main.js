// What is shown when: the first look, what the feed tells, and what must be asked again.
import {$, countdown, el, keep, median, seconds, word} from "./draw.js";
import {Refused, follow, getKey, json, setKey} from "./feed.js";
import * as charts from "./charts.js";
import * as requests from "./requests.js";
import * as tryout from "./tryout.js";

let health = null, aliases = [], explained = new Map(), stop = null, online = false, asking = false, again = false;

function state(text, tone) {
  $("said").textContent = text;
  $("lamp").className = `lamp ${tone}`;
}

function summarise() {
  if (!online) return;
  const names = Object.entries(health?.providers || {}).filter(([, each]) => each.status !== "unconfigured");
  const well = names.filter(([, each]) => each.status === "healthy").length;
  const tone = {healthy: "good", degraded: "warn", unhealthy: "bad"}[health?.status] || "";
  state(well === names.length ? `live · all ${names.length} providers well` : `live · ${well} of ${names.length} providers well`, tone);
}

// One round at a time; what changes meanwhile asks for another.
async function refresh(all = false) {
  if (asking) { again = again || all ? "all" : "some"; return; }
  asking = true;
  const since = requests.mark();
  try {
    const [newHealth, list, found, kept] = await Promise.all([json("/v1/health"), json("/v1/aliases"), json("/v1/explain?model=*"), all ? json("/v1/requests") : null]);
    if (kept) requests.fill(kept.requests, since);
    show({health: newHealth, ...list, ...found});
    drawRequests();
  } catch (error) {
    if (error instanceof Refused && (error.status === 401 || error.status === 403)) askForKey(error);
  } finally {
    asking = false;
    if (again) { const what = again; again = false; soon(what === "all"); }
  }
}
let timer = null, wholly = false;
function soon(all = false) {
  wholly = wholly || all;
  timer ??= setTimeout(() => { const what = wholly; timer = null; wholly = false; refresh(what); }, 150);
}

function show(now) {
  const read = Date.now();
  health = now.health;
  aliases = now.aliases;
  explained = new Map(now.models.map((each) => [each.model, {...each, chain: each.chain.map((row) => ({...row, until: row.again_in === null ? null : Math.round((read + row.again_in * 1000) / 1000) * 1000}))}]));
  $("all").hidden = false;
  $("door").hidden = true;
  drawAliases();
  drawProviders();
  tryout.choices(aliases.map((each) => each.name));
  summarise();
}
let frame = 0;
function drawRequests() {
  frame ||= setTimeout(() => { frame = 0; requests.draw(); charts.draw(requests.rows); }, 60);
}

function drawAliases() {
  const wanted = aliases.map((each) => [each.name, {...each, explained: explained.get(each.name) || null}]);
  keep($("aliases"), wanted, ({name, description, chain, explained: now}) => {
    const rows = now ? now.chain : chain.map((target) => ({target, usable: true, reason: null}));
    return el("li", {},
      el("div", {class: "top"}, el("h3", {}, name), now && now.serves === null ? word("nobody can serve", "bad") : null),
      description ? el("small", {}, description) : null,
      el("ol", {class: "chain"}, ...rows.map((row) => el("li", {}, target(row, now ? now.serves === row.target : false)))));
  });
}

function target(row, serves) {
  const note = el("span", {});
  if (serves) note.append(row.detail ? `serves now: ${row.detail}` : "serves now");
  else if (row.usable) note.append("ready");
  else if (row.until) note.append(`${row.reason}, `, countdown(row.until));
  else note.append(row.detail ? `${row.reason}: ${row.detail}` : row.reason);
  return el("div", {class: `target ${serves ? "serves" : row.usable ? "" : "off"}`, title: row.detail || null}, el("b", {}, row.target), note);
}

function pace(provider) {
  const theirs = [...requests.rows.values()].filter((row) => row.outcome === "ok" && row.target?.startsWith(`${provider}/`)).slice(-100);
  const rate = median(theirs.map((row) => row.stream && row.tokens?.completion > 1 && row.ms - row.first_byte_ms >= 10 ? row.tokens.completion / (row.ms - row.first_byte_ms) * 1000 : null));
  return {first: median(theirs.map((row) => row.first_byte_ms)), rate: rate === null ? null : Math.round(rate)};
}

function drawProviders() {
  const wanted = Object.entries(health?.providers || {}).map(([name, each]) => [name, {name, ...each, last_check: null, pace: pace(name)}]);
  keep($("providers"), wanted, (each) => {
    const until = each.unhealthy_until || each.cooling_until;
    const pairs = [["First byte", each.pace.first === null ? null : seconds(each.pace.first)], ["Tokens", each.pace.rate === null ? null : `${each.pace.rate}/s`],
      ["In flight", each.in_flight || null], ["Last error", each.status === "healthy" ? null : [each.last_error, each.detail].filter(Boolean).join(": ")], ["Why", each.reason]];
    const models = Object.entries(each.targets || {}).map(([model, one]) => {
      const ends = one.unhealthy_until || one.cooling_until;
      const extra = [one.loaded ? "loaded" : null, one.queue ? `${one.queue} wait` : null].filter(Boolean).join(", ");
      return el("li", {}, el("span", {}, model, extra ? el("small", {}, ` ${extra}`) : null), el("span", {}, word(one.status), ends ? el("small", {}, " ", countdown(Date.parse(ends))) : null));
    });
    return el("li", {}, el("div", {class: "top"}, el("h3", {}, each.name), word(each.status)),
      until ? el("p", {class: "quiet"}, countdown(Date.parse(until))) : null,
      el("dl", {}, ...pairs.filter((pair) => pair[1]).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
      models.length ? el("ul", {class: "plain models"}, ...models) : null);
  });
}

function askForKey(error) {
  online = false;
  stop?.();
  $("all").hidden = true;
  $("lost").hidden = true;
  $("door").hidden = error.status === 403 && error.message.includes("status_page");
  if (getKey() || $("door").hidden) $("why").textContent = error.message;
  state($("door").hidden ? error.message : "waiting for a key", "warn");
  setKey("");
  $("key").focus();
}

function begin() {
  stop?.();
  stop = follow({
    event(kind, data) {
      if (kind === "request") { requests.heard(data); tryout.heard(data); drawRequests(); }
      if (kind === "health" || kind === "load") soon();
      if (kind === "reload" || kind === "reset" || kind === "skipped") soon(true);
    },
    up() { online = true; $("lost").hidden = true; state("live", "good"); refresh(true); },
    down() {
      if (online || !$("since").textContent) $("since").textContent = new Date().toLocaleTimeString([], {hour12: false});
      online = false;
      $("lost").hidden = $("all").hidden;
      state("no connection, trying again …", "bad");
    },
    refused: askForKey,
  });
}

$("door").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey($("key").value.trim());
  $("key").value = "";
  state("connecting …", "");
  begin();
});
for (const id of ["f-outcome", "f-text"]) $(id).addEventListener("input", requests.draw);
setInterval(() => { if (online && !document.hidden) soon(); }, 5000);
setInterval(() => { if (!document.hidden) charts.draw(requests.rows); }, 10000);
document.addEventListener("visibilitychange", () => { if (online && !document.hidden) soon(true); });
const version = (who) => { $("version").textContent = who.version; };
state("connecting …", "");
const first = $("main").dataset.first; // what the page came with, where no key is asked for
if (first) {
  delete $("main").dataset.first;
  const now = JSON.parse(first);
  version(now);
  show(now);
} else fetch("/", {headers: {Accept: "application/json"}}).then((answer) => answer.json()).then(version).catch(() => {});
begin();
