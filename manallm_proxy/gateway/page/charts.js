// Small charts of what the last requests show. No library: thirty bars each.
import {$, dollars, el, keep, median, seconds, svg} from "./draw.js";

const SPAN = 15 * 60000, BARS = 30, WIDTH = 300, HEIGHT = 64;

export function draw(rows) {
  const now = Date.now(), from = now - SPAN;
  const recent = [...rows.values()].filter((row) => row.outcome && Date.parse(row.time) > from);
  const buckets = Array.from({length: BARS}, () => []);
  for (const row of recent) buckets[Math.min(BARS - 1, Math.max(0, Math.floor((Date.parse(row.time) - from) / SPAN * BARS)))].push(row);
  const failed = (list) => list.filter((row) => row.outcome === "error" || row.outcome === "broken").length;
  const passed = (list) => list.filter((row) => row.passed > 0 && row.outcome === "ok").length;
  const first = (list) => median(list.map((row) => row.outcome === "ok" ? row.first_byte_ms : null));
  const saved = (list) => list.reduce((sum, row) => sum + (row.avoided_usd || 0), 0);
  const bad = failed(recent);
  const charts = [
    ["Requests", String(recent.length), bad ? `${bad} failed` : "none failed", buckets.map((b) => [[b.length - failed(b), ""], [failed(b), "bad"]])],
    ["Time to first byte", seconds(first(recent)), "median", buckets.map((b) => [[first(b) || 0, ""]])],
    ["Fallbacks", String(passed(recent)), "served by a later target", buckets.map((b) => [[passed(b), "warn"]])],
  ];
  if (saved(recent)) charts.push(["Saved", dollars(saved(recent)), "by staying local", buckets.map((b) => [[saved(b), ""]])]);
  keep($("charts"), charts.map((each) => [each[0], each]), shape);
}

function shape([name, figure, note, bars]) {
  const sums = bars.map((parts) => parts.reduce((sum, part) => sum + part[0], 0));
  const most = figure.startsWith("$") ? Math.max(...sums) : Math.max(1, ...sums); // a fraction of a dollar fills its chart
  const width = WIDTH / BARS;
  const picture = svg("svg", {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true"});
  bars.forEach((parts, at) => {
    picture.append(svg("rect", {class: "ground", x: at * width + 1, y: HEIGHT - 2, width: width - 2, height: 2}));
    let y = HEIGHT;
    for (const [value, kind] of parts) {
      const height = value ? Math.max(3, value / most * HEIGHT) : 0;
      y -= height;
      if (height) picture.append(svg("rect", {class: `bar ${kind}`, x: at * width + 1, y: Math.max(0, y), width: width - 2, height}));
    }
  });
  return el("div", {class: "chart"}, el("h3", {}, name), el("div", {}, el("span", {class: "figure"}, figure), " ", el("small", {}, note)), picture);
}
