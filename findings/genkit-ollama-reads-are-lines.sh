#!/usr/bin/env bash
# Genkit's Ollama plugin takes each read for one line: two lines that arrive together fail the answer.
#
# npm genkit 1.42.0 with genkitx-ollama 1.42.0, seen 2026-11-29 on Node 20 (undici 6).
# Ollama streams JSON, one object a line, each line as an HTTP chunk of its own. The plugin parses
# whatever one read of the body returns. That goes well while the model is slow. Node's fetch however
# joins chunks that have arrived together, so where two lines come at once, such as a last word and the
# end, the whole answer fails: "Unexpected non-whitespace character after JSON". node:http, on the same
# bytes, hands on one chunk at a time.
# To a proxy: lines that it sends in one go are one line too many, and chunks of their own help clients
# on node:http, not those on fetch.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
npm install --prefix "$work" --silent --no-audit --no-fund genkit@1.42.0 genkitx-ollama@1.42.0 >&2 ||
  { echo "could not install" >&2; exit 2; }

cat >"$work/probe.mjs" <<'JS'
import http from 'node:http';
import net from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { genkit } from 'genkit';
import { ollama } from 'genkitx-ollama';

const line = (content, done) =>
  JSON.stringify({ model: 'm', created_at: '2026-01-01T00:00:00Z', message: { role: 'assistant', content }, done }) + '\n';
const LINES = [line('one', false), line(' two', false), line('', true)];
const chunk = (text) => `${text.length.toString(16)}\r\n${text}\r\n`;
const HEAD = 'HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n' +
  'Connection: close\r\n\r\n';
let apart = true;
const server = net.createServer((socket) => {
  socket.on('error', () => {});
  socket.once('data', async () => {
    if (apart) {
      socket.write(HEAD);
      for (const each of LINES) {
        socket.write(chunk(each));
        await sleep(100);
      }
      socket.end('0\r\n\r\n');
    } else {
      socket.end(HEAD + LINES.map(chunk).join('') + '0\r\n\r\n');
    }
  });
});
await new Promise((ready) => server.listen(0, '127.0.0.1', ready));
const url = `http://127.0.0.1:${server.address().port}`;
const ai = genkit({ plugins: [ollama({ serverAddress: url, models: [{ name: 'm', type: 'chat' }] })] });

async function said() {
  const words = [];
  try {
    const { stream, response } = ai.generateStream({ model: 'ollama/m', prompt: 'hi' });
    for await (const piece of stream) words.push(piece.text);
    await response;
  } catch (error) {
    words.push(`error: ${error.message.slice(0, 44)}`);
  }
  return words;
}

const slowly = await said();
console.log('a line at a time:', JSON.stringify(slowly));
apart = false;
const atOnce = await said();
console.log('all at once, each line a chunk:', JSON.stringify(atOnce));
const plain = await new Promise((ended) => {
  const pieces = [];
  http.get(url, (response) => {
    response.on('data', (piece) => pieces.push(String(piece)));
    response.on('end', () => ended(pieces));
  });
});
console.log('node:http, all at once:', plain.length, 'pieces');
server.close();
const asStated = slowly.join('') === 'one two' && atOnce.at(-1)?.startsWith('error: Unexpected non-whitespace') &&
  plain.length === 3;
if (!asStated) console.log('CHANGED: reads and lines are no longer as stated');
process.exit(asStated ? 0 : 1);
JS

timeout 100 node "$work/probe.mjs" 2>"$work/log" ||
  { cat "$work/log" >&2; echo "not as stated, or not done in time" >&2; exit 1; }
