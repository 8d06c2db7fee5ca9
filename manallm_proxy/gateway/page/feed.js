// The connection: the key of this tab, JSON, and the live feed, which comes back by itself.

const KEY = "manallm.key";
export const getKey = () => sessionStorage.getItem(KEY) || "";
export const setKey = (key) => key ? sessionStorage.setItem(KEY, key) : sessionStorage.removeItem(KEY);

export const headers = (more = {}) => getKey() ? {...more, Authorization: `Bearer ${getKey()}`} : more;

export class Refused extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

export async function json(path) {
  const response = await fetch(path, {headers: headers(), cache: "no-store", signal: AbortSignal.timeout(8000)});
  const body = await response.json();
  // a request that failed has an `error` of its own, and the health of a proxy that no provider serves is a 503
  if (!response.ok && body.error) throw new Refused(response.status, String(body.error.message || response.status));
  return body;
}

const SILENCE = 40000; // the proxy says something every 15 s

export function follow({event, up, down, refused}) {
  let last = "", pause = 300, controller = null;
  async function once() {
    controller = new AbortController();
    let guard = setTimeout(() => controller.abort(), 8000);
    const alive = () => { clearTimeout(guard); guard = setTimeout(() => controller.abort(), SILENCE); };
    try {
      const response = await fetch("/v1/events", {headers: headers(last ? {"Last-Event-ID": last} : {}), cache: "no-store", signal: controller.signal});
      if (response.status === 401 || response.status === 403) {
        const body = await response.json().catch(() => ({}));
        throw new Refused(response.status, String(body.error?.message || "refused"));
      }
      if (!response.ok) throw new Error(`status ${response.status}`);
      pause = 300;
      up();
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let rest = "";;) {
        const {value, done} = await reader.read();
        if (done) return;
        alive();
        const blocks = (rest + value).split(/\r?\n\r?\n/);
        rest = blocks.pop();
        for (const block of blocks) {
          const fields = Object.fromEntries(block.split(/\r?\n/).map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]));
          if (!fields.id) continue; // a comment
          last = fields.id;
          event(fields.event, JSON.parse(fields.data));
        }
      }
    } finally { clearTimeout(guard); }
  }
  let stopped = false;
  (async () => {
    while (!stopped) {
      try { await once(); } catch (error) {
        if (error instanceof Refused) { stopped = true; refused(error); return; }
      }
      if (stopped) return;
      down();
      await new Promise((go) => setTimeout(go, pause));
      pause = Math.min(pause * 2, 3000);
    }
  })();
  return () => { stopped = true; controller?.abort(); };
}
