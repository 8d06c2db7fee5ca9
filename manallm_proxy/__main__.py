"""``manallm-proxy``: reads arguments and runs one command.

Exit codes: 0 success, 1 failure, 2 wrong usage, 78 bad configuration (EX_CONFIG of sysexits.h).
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Final

from manallm_proxy import __version__

EX_CONFIG: Final = 78
WORKERS_LIMIT: Final = 256


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = argparse.ArgumentParser(
        prog="manallm-proxy", description="One OpenAI-shaped door in front of all your models."
    )
    top.add_argument("--version", action="version", version=f"manallm-proxy {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="run the proxy")
    _config(serve)
    serve.add_argument("--host", help="listen on this address instead of the configured one")
    serve.add_argument("--port", type=_port, help="listen on this port instead of the configured one")
    serve.add_argument("--workers", type=_workers, default=1, metavar="N", help="processes that share the port (1)")

    check = commands.add_parser("check", help="report all mistakes of the configuration")
    _config(check)
    check.add_argument("--live", action="store_true", help="ask every provider whether it has the models of the chains")

    models = commands.add_parser("models", help="list what a running proxy serves")
    models.add_argument("--url", default="http://127.0.0.1:3025", help="the proxy's address (%(default)s)")

    explain = commands.add_parser("explain", help="what would become of a request now, gate by gate, without a call")
    explain.add_argument("model", nargs="?", default="", help="an alias or provider/model; else the default alias")
    _asks(explain)

    requests = commands.add_parser("requests", help="the last requests, and who answered them")
    requests.add_argument("id", nargs="?", help="one request, with its attempts")
    for name in ("alias", "target", "outcome", "key"):
        requests.add_argument(f"--{name}", help=f"only those of this {name}")
    requests.add_argument("--limit", default="20", metavar="N", help="how many (%(default)s)")
    requests.add_argument("--follow", action="store_true", help="go on with those that come, until Ctrl+C")
    _asks(requests)

    hash_key = commands.add_parser("hash-key", help="make a client key, and its entry for the configuration")
    hash_key.add_argument("name", nargs="?", default="someone", help="who will have it (%(default)s)")
    return top


def _asks(command: argparse.ArgumentParser) -> None:
    command.add_argument("--url", default="http://127.0.0.1:3025", help="the proxy's address (%(default)s)")
    command.add_argument("--json", action="store_true", help="as JSON, for programs")


def _config(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--config",
        metavar="F",
        help="proxy.yaml; else $MANALLM_CONFIG, ./config/proxy.yaml, /etc/manallm/proxy.yaml, the first that exists",
    )


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"'{text[:20]}' is no port (0 to 65535)")
    return int(text)


def _workers(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= WORKERS_LIMIT:
        raise argparse.ArgumentTypeError(f"'{text[:20]}' is no number of workers (1 to {WORKERS_LIMIT})")
    return int(text)


def main(argv: list[str] | None = None) -> int:
    """Runs one command. Only that one is imported, because the start of `serve` must be quick."""
    arguments = parser().parse_args(argv)
    from manallm_proxy.config.structure import ConfigError

    try:
        match arguments.command:
            case "serve":
                from manallm_proxy.cli.serve import serve

                return serve(arguments.config, arguments.host, arguments.port, os.environ, arguments.workers)
            case "check":
                from manallm_proxy.cli.check import check

                return check(arguments.config, arguments.live, os.environ)
            case "explain":
                from manallm_proxy.cli.explain import explain

                return explain(arguments.url, arguments.model, arguments.json, os.environ)
            case "requests":
                from manallm_proxy.cli.requests import requests

                names = ("alias", "target", "outcome", "key", "limit")
                filters = {name: value for name in names if (value := getattr(arguments, name)) is not None}
                follows = arguments.follow
                return requests(arguments.url, arguments.id, filters, follows, arguments.json, os.environ)
            case "hash-key":
                from manallm_proxy.cli.hash_key import hash_key

                return hash_key(arguments.name)
            case _:
                from manallm_proxy.cli.models import models

                return models(arguments.url, os.environ)
    except ConfigError as error:
        for mistake in error.mistakes:
            print(mistake, file=sys.stderr)
        return EX_CONFIG


if __name__ == "__main__":
    sys.exit(main())
