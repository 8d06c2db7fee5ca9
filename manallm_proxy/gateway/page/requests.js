// The last requests, each opening to its attempts on a time line.
import {$, dollars, el, keep, seconds, word} from "./draw.js";
import {json} from "./feed.js";

const SHOWN = 60;
export const rows = new Map(); // by id, the latest last

let count = 0; // of what the feed said
export const mark = () => count;

// `list`: what the proxy keeps. It may be older than what the feed said since the mark, when it was asked for.
export function fill(list, since) {
  const late = [...rows.values()].filter((row) => row.heard > since);
  rows.clear();
  for (const row of list.slice().reverse()) rows.set(row.id, row);
  for (const row of late) if (!rows.get(row.id)?.outcome) rows.set(row.id, row);
}

export function heard(data) {
  const before = rows.get(data.id);
  if (before?.outcome && data.phase !== "ended") return; // reported once more after a break
  if (data.phase === "ended") rows.delete(data.id); // to the front
  rows.set(data.id, {time: new Date().toISOString(), ...before, ...data, heard: ++count});
  while (rows.size > 1000) rows.delete(rows.keys().next().value);
}

export function draw() {
  const outcome = $("f-outcome").value, text = $("f-text").value.trim().toLowerCase();
  const fits = (row) => (!outcome || row.outcome === outcome)
    && (!text || [row.model, row.alias, row.target, row.key].some((each) => each && each.toLowerCase().includes(text)));
  const found = [...rows.values()].reverse().filter(fits);
  keep($("requests"), found.slice(0, SHOWN).map((row) => [row.id, row]), shape);
  $("count").textContent = found.length > SHOWN ? `${SHOWN} of ${found.length}` : found.length ? String(found.length) : "";
  $("none").hidden = rows.size > 0;
}

function shape(row) {
  const over = Boolean(row.outcome);
  const asked = row.model || row.alias || "–"; // refused before its body was read
  const said = !over ? (row.phase === "committed" ? word("answering", "good") : word("asking")) : word(row.outcome === "error" ? `error ${row.status}` : row.outcome, {ok: "good", client_gone: "warn"}[row.outcome] || "bad");
  const cells = [
    el("span", {class: "clock"}, new Date(row.time).toLocaleTimeString([], {hour12: false})),
    el("span", {title: asked}, asked),
    el("span", {class: "to", title: row.target || ""}, row.target ? `→ ${row.target}` : over ? "→ nobody" : "…"),
    el("span", {}, said),
    el("span", {class: "num"}, over ? seconds(row.ms) : ""),
  ];
  if (!over) return el("li", {}, el("div", {class: "row"}, ...cells));
  const inside = el("div", {class: "open"});
  const details = el("details", {}, el("summary", {}, ...cells), inside);
  details.addEventListener("toggle", () => { if (details.open && !inside.firstChild) open(row, inside); });
  return el("li", {}, details);
}

async function open(row, inside) {
  inside.replaceChildren(el("p", {class: "quiet"}, "…"));
  try {
    const whole = await json(`/v1/requests/${encodeURIComponent(row.id)}`);
    inside.replaceChildren(...timeline(whole), facts(whole));
  } catch (error) {
    inside.replaceChildren(el("p", {class: "quiet"}, error.message));
  }
}

export function timeline(whole) {
  const total = Math.max(whole.ms, 1);
  if (!whole.attempts.length) return [el("p", {class: "quiet"}, "No target was asked.")];
  return whole.attempts.map((line) => {
    const track = el("div", {class: "track", "aria-hidden": "true"});
    const bar = (from, length, kind) => {
      const made = el("i", {class: kind});
      made.style.left = `${Math.min(99, 100 * from / total)}%`;
      made.style.width = `${Math.max(0, 100 * length / total)}%`;
      track.append(made);
    };
    const first = whole.first_byte_ms;
    if (line.ms === null) bar(line.at_ms, 0, "skip");
    else if (line.reason !== null) bar(line.at_ms, line.ms, "");
    else {
      bar(line.at_ms, line.ms, "wait");
      if (first !== null) bar(Math.max(first, line.at_ms), Math.max(0, line.at_ms + line.ms - Math.max(first, line.at_ms)), "good");
    }
    const fate = line.reason === null ? word("served", "good") : line.ms === null ? word(`skipped: ${line.reason}`, "warn") : word(line.reason, "bad");
    const what = [`at ${seconds(line.at_ms)}`, line.ms === null ? null : `for ${seconds(line.ms)}`, line.detail].filter(Boolean).join(", ");
    return el("div", {class: "line-of"}, el("span", {}, line.model, el("br"), el("span", {class: "quiet"}, what)), track, fate);
  });
}

function facts(whole) {
  const pairs = [["Request", whole.id], ["Door", whole.door], ["Key", whole.key], ["First byte", seconds(whole.first_byte_ms)], ["Total", seconds(whole.ms)],
    ["Tokens", whole.tokens.prompt === null && whole.tokens.completion === null ? null : `${whole.tokens.prompt ?? "?"} in, ${whole.tokens.completion ?? "?"} out`], ["Cost", whole.cost_usd ? dollars(whole.cost_usd) : null], ["Saved by staying local", whole.avoided_usd ? dollars(whole.avoided_usd) : null],
    ["Error", whole.error]];
  return el("dl", {}, ...pairs.filter((each) => each[1]).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {class: "mono"}, value)]));
}
