#!/usr/bin/env bash
# The AI SDK does not send the model's last answer back: it sends the server's id for it.
#
# npm ai 7.0.173 with @ai-sdk/openai 4.0.118, seen 2026-11-28 on Node 20.
# `openai("model")` speaks the Responses API, with any base URL, and does not say `store`, whose
# default is true. From the second turn on, each assistant message in the history whose answer had an
# id goes out as `{"type": "item_reference", "id": ...}`: the text that the caller's code plainly hands
# over is not in the request. With `store: false` the text is.
# To a proxy that translates Responses without a store: to drop the item loses the conversation
# without a word, to refuse it breaks every second turn. It has to remember its items, or say so.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
npm install --prefix "$work" --silent --no-audit --no-fund ai@7.0.173 @ai-sdk/openai@4.0.118 >&2 ||
  { echo "could not install" >&2; exit 2; }

cat >"$work/probe.mjs" <<'JS'
import http from 'node:http';
import { createOpenAI } from '@ai-sdk/openai';
import { generateText } from 'ai';

const requests = [];
const server = http.createServer(async (request, response) => {
  let text = '';
  for await (const piece of request) text += piece;
  requests.push({ path: request.url, ...JSON.parse(text) });
  const id = requests.length;
  const content = [{ type: 'output_text', text: 'My name is Ada.', annotations: [] }];
  response.setHeader('content-type', 'application/json');
  response.end(JSON.stringify({
    id: `resp_${id}`, object: 'response', created_at: 1, status: 'completed', model: 'm',
    output: [{ type: 'message', id: `msg_${id}`, status: 'completed', role: 'assistant', content }],
    usage: { input_tokens: 1, output_tokens: 1 },
  }));
});
await new Promise((ready) => server.listen(0, '127.0.0.1', ready));
const openai = createOpenAI({ baseURL: `http://127.0.0.1:${server.address().port}/v1`, apiKey: 'none' });

async function talk(providerOptions) {
  const messages = [{ role: 'user', content: 'Who are you?' }];
  const first = await generateText({ model: openai('m'), messages, providerOptions });
  messages.push(...first.response.messages, { role: 'user', content: 'Say it again.' });
  await generateText({ model: openai('m'), messages, providerOptions });
  const { path, store, input } = requests.at(-1);
  console.log(`${path}, store ${store}: ${JSON.stringify(input)}`);
  const told = JSON.stringify(input).includes('Ada');
  return { path, store, kinds: input.map((item) => item.type ?? item.role), told };
}

const seen = [await talk(undefined), await talk({ openai: { store: false } })];
server.close();
const expected = [
  { path: '/v1/responses', store: undefined, kinds: ['user', 'item_reference', 'user'], told: false },
  { path: '/v1/responses', store: false, kinds: ['user', 'assistant', 'user'], told: true },
];
if (JSON.stringify(seen) !== JSON.stringify(expected)) {
  console.error('CHANGED: the second turns above are no longer as stated');
  process.exit(1);
}
process.exit(0);
JS

timeout 60 node "$work/probe.mjs" || { echo "not as stated, or not done in time" >&2; exit 1; }
