#!/usr/bin/env bash
# langchain and pydantic-ai add totals up: a stream that counts as it goes costs many times its tokens.
#
# langchain-openai 1.7.4 (langchain-core 1.8.3), pydantic-ai-slim 2.68.0, openai 3.57.0 for Python, npm
# @langchain/openai 1.5.8 with @langchain/core 1.4.0 on Node 20, seen 2026-11-28.
# Some servers put `usage` into each chunk, with the totals so far (vLLM, asked for
# `continuous_usage_stats`). Of a stream that says 1, 2, ... 10 tokens, each time with a prompt of 100,
# langchain for Python and pydantic-ai report 55 tokens and a prompt of 1,000, without a warning. The
# longer the answer, the worse: by its square. langchain for Node, and whoever takes openai's last number,
# report 10 and 100. With `usage` at the end only, all of them agree.
# To a proxy: it is told that its bill is wrong, and whether that is so depends on the client's language.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
{
  python3 -m venv "$work/venv" &&
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check openai==3.57.0 langchain-openai==1.7.4 \
      langchain-core==1.8.3 "pydantic-ai-slim[openai]==2.68.0" &&
    npm install --prefix "$work" --silent --no-audit --no-fund @langchain/openai@1.5.8 @langchain/core@1.4.0
} >&2 || { echo "could not install" >&2; exit 2; }

cat >"$work/ask.mjs" <<'JS'
import { ChatOpenAI } from '@langchain/openai';
const configuration = { baseURL: process.argv[2] };
const model = new ChatOpenAI({ model: 'm', apiKey: 'none', maxRetries: 0, configuration });
let answer;
for await (const chunk of await model.stream('hi')) answer = answer ? answer.concat(chunk) : chunk;
const { input_tokens: prompt, output_tokens: completion } = answer.usage_metadata;
console.log(JSON.stringify([prompt, completion]));
process.exit(0);
JS

cat >"$work/probe.py" <<'PY'
import asyncio
import http.server
import json
import subprocess
import sys
import threading

from langchain_openai import ChatOpenAI
from openai import OpenAI
from pydantic_ai.direct import model_request_stream
from pydantic_ai.messages import ModelRequest
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

WORDS, PROMPT = 10, 100


def events(each):
    """A chunk for each word; each one has the usage so far, or the last one alone."""
    for n in range(1, WORDS + 1):
        delta = {"role": "assistant", "content": "word "}
        choice = {"index": 0, "delta": delta, "finish_reason": "stop" if n == WORDS else None}
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
        if each or n == WORDS:
            chunk["usage"] = {"prompt_tokens": PROMPT, "completion_tokens": n, "total_tokens": PROMPT + n}
        yield f"data: {json.dumps(chunk)}\n\n"
    yield "data: [DONE]\n\n"


class Server(http.server.BaseHTTPRequestHandler):
    each = False

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        body = "".join(events(self.each)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def last_of_openai(url):
    client = OpenAI(base_url=url, api_key="none", max_retries=0)
    chunks = client.chat.completions.create(model="m", messages=[], stream=True)
    last = [chunk.usage for chunk in chunks if chunk.usage][-1]
    return last.prompt_tokens, last.completion_tokens


def langchain(url):
    model = ChatOpenAI(model="m", base_url=url, api_key="none", max_retries=0)
    first, *rest = model.stream("hi")
    usage = sum(rest, first).usage_metadata
    return usage["input_tokens"], usage["output_tokens"]


def pydantic_ai(url):
    async def ask():
        model = OpenAIChatModel("m", provider=OpenAIProvider(base_url=url, api_key="none"))
        async with model_request_stream(model, [ModelRequest.user_text_prompt("hi")]) as stream:
            async for _ in stream:
                pass
            return stream.get().usage

    usage = asyncio.run(ask())
    return usage.input_tokens, usage.output_tokens


def langchain_node(url):
    command = ["node", sys.argv[1], url]
    return tuple(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=120).stdout))


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/v1"
seen = {}
for Server.each in (False, True):
    for ask in (last_of_openai, langchain, pydantic_ai, langchain_node):
        seen[Server.each, ask.__name__] = prompt, completion = ask(url)
        where = "in each chunk" if Server.each else "at the end"
        print(f"usage {where}, {ask.__name__}: {prompt} + {completion} tokens")
SUMS = (WORDS * PROMPT, sum(range(WORDS + 1)))
expected = {key: SUMS if key[0] and key[1] in ("langchain", "pydantic_ai") else (PROMPT, WORDS) for key in seen}
if seen != expected:
    sys.exit("CHANGED: what was counted is no longer as stated")
PY

timeout 300 "$work/venv/bin/python" "$work/probe.py" "$work/ask.mjs" 2>"$work/log" ||
  { cat "$work/log" >&2; echo "not as stated, or not done in time" >&2; exit 1; }
