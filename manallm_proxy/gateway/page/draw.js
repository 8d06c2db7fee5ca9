// Everything that is shown goes through here: names come from clients and providers, so they are text, never markup.

export const $ = (id) => document.getElementById(id);

export function el(tag, options = {}, ...inside) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...inside.filter((each) => each !== null && each !== undefined).map((each) => each.nodeType ? each : String(each)));
  return made;
}

const SVG = "http://www.w3.org/2000/svg";
export function svg(tag, options = {}, ...inside) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(options)) made.setAttribute(name, value);
  made.append(...inside);
  return made;
}

// Exchanges children only where what they show has changed, so that focus and open details stay.
export function keep(parent, wanted, shape) {
  const held = new Map([...parent.children].map((each) => [each.dataset.id, each]));
  let at = parent.firstElementChild;
  for (const [id, value] of wanted) {
    const print = JSON.stringify(value);
    let child = held.get(id);
    held.delete(id);
    if (!child || child.print !== print) {
      const fresh = shape(value, child);
      fresh.dataset.id = id;
      fresh.print = print;
      if (child) { if (child !== fresh) { if (at === child) at = fresh; child.replaceWith(fresh); } }
      child = fresh;
    }
    if (child === at) at = at.nextElementSibling;
    else parent.insertBefore(child, at);
  }
  for (const rest of held.values()) rest.remove();
}

export const seconds = (ms) => ms === null || ms === undefined ? "–"
  : ms < 1000 ? `${Math.round(ms)} ms` : ms < 60000 ? `${(ms / 1000).toFixed(1)} s` : `${Math.floor(ms / 60000)} min ${Math.round(ms / 1000) % 60} s`;

export const dollars = (usd) => `$${usd < 0.01 ? Number(usd.toPrecision(2)) : usd.toFixed(2)}`;

export function median(numbers) {
  const sorted = numbers.filter((each) => typeof each === "number").sort((a, b) => a - b);
  return sorted.length ? sorted[Math.floor(sorted.length / 2)] : null;
}

const TONES = {healthy: "good", ok: "good", ready: "good", degraded: "warn", degraded_cpu: "warn", cooling: "warn", saturated: "warn", client_gone: "warn", unhealthy: "bad", error: "bad", broken: "bad"};
export const word = (text, tone = TONES[text] || "") => el("span", {class: `word ${tone}`}, text.replaceAll("_", " "));

// A moment from which is counted down; one clock ticks for all of them.
export function countdown(until, before = "again in ") {
  const made = el("span", {class: "down", "data-until": until, "data-before": before});
  tick(made);
  return made;
}
function tick(each) {
  const left = Math.ceil((Number(each.dataset.until) - Date.now()) / 1000);
  const text = left > 0 ? each.dataset.before + (left >= 60 ? `${Math.floor(left / 60)} min ${left % 60} s` : `${left} s`) : "may be tried now";
  if (each.textContent !== text) each.textContent = text;
}
setInterval(() => document.querySelectorAll(".down").forEach(tick), 1000);
