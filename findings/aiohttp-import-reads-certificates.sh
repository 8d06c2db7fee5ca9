#!/usr/bin/env bash
# aiohttp: to import it reads all certificates of the system, twice, whether or not TLS is ever used.
#
# aiohttp 3.14.5 with Python 3.11 and its ssl, seen 2026-11-28.
# The import makes two TLS contexts for its client, one of them for `ssl=False`, and each loads the
# system's certificates, also the one that checks none: some tens of milliseconds and two MiB before a
# line of one's own has run. A server that only imports `aiohttp.web` pays for them too, since the
# package imports its client, and a client whose sessions all have a context of their own pays for
# two that nobody uses.
# To a proxy: that is a tenth of its start, and it cannot be spared by how aiohttp is used.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
{
  python3 -m venv "$work/venv" &&
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check aiohttp==3.14.5
} >&2 || { echo "could not install" >&2; exit 2; }

cat >"$work/probe.py" <<'PY'
import ssl
import sys

reads = []
real = ssl.SSLContext.set_default_verify_paths


def counted(self):
    reads.append(self)
    return real(self)


ssl.SSLContext.set_default_verify_paths = counted

import aiohttp.web  # noqa: E402

checks = sorted(each.verify_mode.name for each in reads)
print("contexts that the import of aiohttp.web read all certificates for:", checks)
if checks != ["CERT_NONE", "CERT_REQUIRED"]:
    sys.exit("CHANGED: the import no longer reads them as stated")
PY

timeout 60 "$work/venv/bin/python" "$work/probe.py" 2>"$work/log" ||
  { cat "$work/log" >&2; echo "not as stated, or not done in time" >&2; exit 1; }
