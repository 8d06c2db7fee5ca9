#!/usr/bin/env bash
# google-genai: the same list of three texts is three vectors for one model and one for another.
#
# google-genai 3.6.1 (aiohttp 3.14.5), seen 2026-11-28.
# `embed_content(model=..., contents=["a", "b", "c"])` sends three requests in one batch for
# gemini-embedding-001 and for ids without "gemini". For every other "gemini..." id it takes the list
# for one multimodal content with three parts, sends one request, and one vector comes back: no error,
# no warning, and what was one text a row is a mixture. `Content` objects, one a text, give three.
# To a proxy: /v1/embeddings with N inputs would answer with one row, or pair texts with wrong vectors.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
{
  python3 -m venv "$work/venv" &&
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check google-genai==3.6.1 aiohttp==3.14.5
} >&2 || { echo "could not install" >&2; exit 2; }

cat >"$work/probe.py" <<'PY'
import asyncio
import sys

from aiohttp import web
from google import genai
from google.genai import types

TEXTS = ["a", "b", "c"]
AS_CONTENTS = [types.Content(parts=[types.Part(text=text)]) for text in TEXTS]


async def main():
    parts = []

    async def embed(request):
        """A vector for each request of the batch, as Google's API does."""
        batch = (await request.json())["requests"]
        parts[:] = [len(one["content"]["parts"]) for one in batch]
        return web.json_response({"embeddings": [{"values": [0.5]} for _ in batch]})

    app = web.Application()
    app.router.add_post("/{path:.*:batchEmbedContents}", embed)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    client = genai.Client(api_key="none", http_options=types.HttpOptions(base_url=url)).aio
    seen = []
    for model in ("gemini-embedding-001", "text-embedding-005", "gemini-embedding-2"):
        for how, contents in (("str", TEXTS), ("Content", AS_CONTENTS)):
            answer = await client.models.embed_content(model=model, contents=contents)
            seen.append((model, how, list(parts), len(answer.embeddings)))
            print(f"{model}, three {how}: parts sent by request {parts}, vectors back {len(answer.embeddings)}")
    await client.aclose()
    await runner.cleanup()
    return seen


three = ([1, 1, 1], 3)
expected = [
    ("gemini-embedding-001", "str", *three),
    ("gemini-embedding-001", "Content", *three),
    ("text-embedding-005", "str", *three),
    ("text-embedding-005", "Content", *three),
    ("gemini-embedding-2", "str", [3], 1),
    ("gemini-embedding-2", "Content", *three),
]
if asyncio.run(main()) != expected:
    sys.exit("CHANGED: the numbers above are no longer as stated")
PY

timeout 60 "$work/venv/bin/python" "$work/probe.py" ||
  { echo "not as stated, or not done in time" >&2; exit 1; }
