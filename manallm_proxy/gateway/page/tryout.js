// One chat through an alias, and the walk as the feed tells it. What is said stays in this tab.
import {$, el, seconds} from "./draw.js";
import {headers, json} from "./feed.js";
import {timeline} from "./requests.js";

let mine = "";

export function choices(names) {
  const box = $("alias"), chosen = box.value;
  if ([...box.options].map((each) => each.value).join("\n") === names.join("\n")) return;
  box.replaceChildren(...names.map((name) => el("option", {value: name}, name)));
  if (names.includes(chosen)) box.value = chosen;
}

export function heard(data) {
  if (data.id !== mine) return;
  if (data.phase === "begun") say("Looking for a target …");
  if (data.phase === "committed") say(`${data.target} answers …`);
}

const say = (text) => $("walk").replaceChildren(text);

async function send(event) {
  event.preventDefault();
  mine = `page-${crypto.getRandomValues(new Uint32Array(3)).join("-")}`;
  const begun = performance.now();
  $("send").disabled = true;
  $("answer").textContent = "";
  say("Asking …");
  try {
    const body = {model: $("alias").value, stream: true, messages: [{role: "user", content: $("prompt").value}]};
    const response = await fetch("/v1/chat/completions", {method: "POST", body: JSON.stringify(body), headers: headers({"Content-Type": "application/json", "X-Request-Id": mine})});
    if (!response.ok) $("answer").textContent = (await response.json()).error.message;
    else await read(response);
  } catch (error) {
    $("answer").textContent = `The connection broke: ${error.message}`;
  }
  $("send").disabled = false;
  const whole = await ended(mine);
  if (whole) $("walk").replaceChildren(`${whole.target || "Nobody"} · first byte ${seconds(whole.first_byte_ms)} · ${seconds(whole.ms)}`, ...timeline(whole));
  else say(`Done after ${seconds(performance.now() - begun)}.`);
}

async function ended(id) {
  for (let pause = 100; pause < 2000; pause *= 2) {  // it ends a moment after its last byte, on a busy machine a longer one
    await new Promise((go) => setTimeout(go, pause));
    const whole = await json(`/v1/requests/${id}`).catch(() => null);
    if (whole) return whole;
  }
  return null;
}

async function read(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = "";;) {
    const {value, done} = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
      const part = JSON.parse(line.slice(6));
      if (part.error) $("answer").append(` [${part.error.message}]`);
      const said = part.choices?.[0]?.delta?.content;
      const blocks = Array.isArray(said) ? said : [{text: said}];  // some models say lists of thoughts and texts
      for (const {text} of blocks) if (typeof text === "string") $("answer").append(text);
    }
  }
}

$("try").addEventListener("submit", send);
