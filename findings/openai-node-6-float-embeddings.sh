#!/usr/bin/env bash
# openai 6 for Node turns honest floats into a quarter as many zeros.
#
# npm openai 6.49.0 against 7.59.0, seen 2026-11-28 on Node 20.
# Without `encoding_format` the SDK asks for base64, which the caller never sees, and decodes whatever
# comes. A server that does not know base64 and answers with numbers, as many do, gets its list read
# as bytes: a vector of eight numbers arrives as two zeros. No error: the vectors are
# stored, and every distance is the same. openai 7 looks at what came; asking for "float" is safe in both.
# To a proxy: answer base64 exactly when it was asked for, also where the provider cannot.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
npm install --prefix "$work" --silent --no-audit --no-fund openai6@npm:openai@6.49.0 openai7@npm:openai@7.59.0 >&2 ||
  { echo "could not install" >&2; exit 2; }

cat >"$work/probe.mjs" <<'JS'
import http from 'node:http';
import OpenAI6 from 'openai6';
import OpenAI7 from 'openai7';

const vector = [0.1, -0.25, 0.5, -0.75, 0.3, 0.2, -0.6, 0.9];
let asked;
const server = http.createServer(async (request, response) => {
  let text = '';
  for await (const piece of request) text += piece;
  asked = JSON.parse(text).encoding_format;
  response.setHeader('content-type', 'application/json');
  response.end(JSON.stringify({
    object: 'list', model: 'm', data: [{ object: 'embedding', index: 0, embedding: vector }],
    usage: { prompt_tokens: 1, total_tokens: 1 },
  }));
});
await new Promise((ready) => server.listen(0, '127.0.0.1', ready));
const baseURL = `http://127.0.0.1:${server.address().port}/v1`;

const seen = [];
for (const [name, OpenAI] of [['6.49.0', OpenAI6], ['7.59.0', OpenAI7]]) {
  for (const format of [{}, { encoding_format: 'float' }]) {
    const client = new OpenAI({ baseURL, apiKey: 'none', maxRetries: 0 });
    const { data } = await client.embeddings.create({ model: 'm', input: 'hi', ...format });
    const got = Array.from(data[0].embedding);
    console.log(`openai ${name}, asked for ${asked}: ${JSON.stringify(vector)} came as ${JSON.stringify(got)}`);
    seen.push([asked, got]);
  }
}
const expected = [['base64', [0, 0]], ['float', vector], ['base64', vector], ['float', vector]];
if (JSON.stringify(seen) !== JSON.stringify(expected)) {
  console.error('CHANGED: the vectors above are no longer as stated');
  process.exit(1);
}
process.exit(0);
JS

timeout 60 node "$work/probe.mjs" || { echo "not as stated, or not done in time" >&2; exit 1; }
