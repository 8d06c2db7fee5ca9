#!/usr/bin/env bash
# msgspec: the lines of decode_lines() need not be lines.
#
# msgspec 0.22.0 with Python 3.11, seen 2026-11-28.
# `msgspec.json.Decoder.decode_lines` reads newline-delimited JSON. Two values on one line are two
# items for it, with a blank between them or nothing at all, and a value may go on over many lines: it
# looks for the next value, not for the line break. A comma between them is an error. The library's
# own `decode` refuses the same line.
# To a proxy: that a batch of NDJSON was read does not show that it is NDJSON, nor that there are as
# many items as lines. Clients that split at line breaks fail on what was let through.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
{
  python3 -m venv "$work/venv" &&
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check msgspec==0.22.0
} >&2 || { echo "could not install" >&2; exit 2; }

cat >"$work/probe.py" <<'PY'
import json
import sys

import msgspec

CASES = {
    "two lines": b'{"a":1}\n{"b":2}\n',
    "two values on a line": b'{"a":1}{"b":2}\n',
    "two values and a blank": b'{"a":1} {"b":2}\n',
    "two values and a comma": b'{"a":1},{"b":2}\n',
    "one value over lines": b'{"a":\n1\n}\n',
}


def read(how, text):
    try:
        return how(text)
    except ValueError:
        return "error"


seen = {}
for name, text in CASES.items():
    seen[name] = (
        read(msgspec.json.Decoder().decode_lines, text),
        read(msgspec.json.decode, text),
        read(lambda text: [json.loads(line) for line in text.splitlines()], text),
    )
    print(f"{name}: decode_lines {seen[name][0]}, decode {seen[name][1]}, line by line {seen[name][2]}")

BOTH, ONE = [{"a": 1}, {"b": 2}], {"a": 1}
expected = {
    "two lines": (BOTH, "error", BOTH),
    "two values on a line": (BOTH, "error", "error"),
    "two values and a blank": (BOTH, "error", "error"),
    "two values and a comma": ("error", "error", "error"),
    "one value over lines": ([ONE], ONE, "error"),
}
if seen != expected:
    sys.exit("CHANGED: what counts as a line is no longer as stated")
PY

timeout 60 "$work/venv/bin/python" "$work/probe.py" 2>"$work/log" ||
  { cat "$work/log" >&2; echo "not as stated, or not done in time" >&2; exit 1; }
