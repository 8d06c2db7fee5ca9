#!/bin/sh
# manallm-proxy, run from the virtual environment beside this file, wherever the two are. It writes no bytecode
# (the unit's file system is read-only; it was compiled at installation) and imports from nowhere else.
self=$(readlink -f "$0") || exit 1
unset PYTHONHOME PYTHONPATH
exec "${self%/*}/../lib/manallm-proxy/bin/python" -sPB -m manallm_proxy "$@"
