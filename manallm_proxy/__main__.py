"""``manallm-proxy``: reads arguments and runs one command.

Exit codes: 0 success, 1 failure, 2 wrong usage, 78 bad configuration (EX_CONFIG of sysexits.h), 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from typing import Final

from manallm_proxy import __version__
from manallm_proxy.cli import standard_streams

EX_CONFIG: Final = 78
INTERRUPTED: Final = 130
"""As shells have it: 128 and the number of SIGINT."""
WORKERS_LIMIT: Final = 256
MOST_REQUESTS: Final = 1000
"""As many as a proxy keeps (`observe.request_log.KEPT`, which is not imported for this)."""


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = argparse.ArgumentParser(
        prog="manallm-proxy", description="One OpenAI-shaped server in front of all your models."
    )
    version = f"manallm-proxy {__version__}"
    top.add_argument("--version", action="version", version=version)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, what: str) -> argparse.ArgumentParser:
        """Adds one. `what` it does stands in the list of all, and above its own options."""
        made = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}")
        made.add_argument("--version", action="version", version=version, help=argparse.SUPPRESS)
        return made

    serve = command("serve", "run the proxy")
    _config(serve)
    _listen(serve)
    serve.add_argument("--discover", action="store_true", help="add the model servers that answer on this machine")
    serve.add_argument("--workers", type=_workers, default=1, metavar="N", help="processes that share the port (1)")

    check = command("check", "report all mistakes of the configuration")
    _config(check)
    check.add_argument("--live", action="store_true", help="ask every provider whether it has the models of the chains")
    check.add_argument("--offline-ok", action="store_true", help="with --live: accept what cannot be reached")
    check.add_argument(
        "--credentials", metavar="DIR", help="read keys from files of this folder, as systemd passes them"
    )
    _listen(check)

    init = command("init", "write a configuration from what is found here")
    init.add_argument("folder", nargs="?", default="config", metavar="DIR", help="where to (%(default)s)")
    init.add_argument("--force", action="store_true", help="replace files that are there, and keep a copy of them")

    _chat(command("try", "one chat through a running proxy: does it work?"), "Hello")
    _chat(command("chat", "chat through a running proxy"), None)
    _client(command("models", "list what a running proxy serves"))
    status = command("status", "show the health of a running proxy's providers")
    status.add_argument("--watch", action="store_true", help="show it again every two seconds, until Ctrl-C")
    _client(status)

    explain = command("explain", "what would happen to a request now, target by target")
    explain.add_argument(
        "model", nargs="?", default="", help="an alias or provider/model; '*': each alias; left out: the default"
    )
    explain.add_argument(
        "--door", metavar="DOOR", help="of a request to this API, such as responses; else what the alias is for"
    )
    _client(explain)

    requests = command("requests", "the last requests, and who answered them")
    requests.add_argument("id", nargs="?", help="one request, with its attempts")
    requests.add_argument("--alias", help="only those of this alias")
    requests.add_argument("--target", help="only those of this target, provider/model")
    outcomes = ("ok", "error", "client_gone", "broken")
    requests.add_argument(
        "--outcome", choices=outcomes, metavar="OUTCOME", help=f"only with this outcome ({', '.join(outcomes)})"
    )
    requests.add_argument("--key", metavar="NAME", help="only those of the client key of this name")
    requests.add_argument("--limit", type=_limit, default="20", metavar="N", help="how many (%(default)s)")
    requests.add_argument("--follow", action="store_true", help="go on with those that come, until Ctrl-C")
    _client(requests)

    hash_key = command("hash-key", "make a client key, and its entry for the configuration")
    hash_key.add_argument("name", nargs="?", default="someone", help="who will have it (%(default)s)")

    completion = command("completion", "print what your shell needs to complete these commands")
    completion.add_argument("shell", choices=("bash", "zsh", "fish"), help="source <(manallm-proxy completion bash)")
    command("schema", "print a JSON schema of the configuration")
    return top


def _config(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--config",
        metavar="F",
        help="proxy.yaml; else $MANALLM_CONFIG, ./config/proxy.yaml, /etc/manallm/proxy.yaml, the first that exists",
    )


def _listen(command: argparse.ArgumentParser) -> None:
    """Adds the options of where it is to listen; a provider may be at any address but that."""
    command.add_argument("--host", type=_host, help="listen on this address instead of the configured one")
    command.add_argument("--port", type=_port, help="listen on this port instead of the configured one")


def _client(command: argparse.ArgumentParser) -> None:
    """Adds the options of commands that talk to a running proxy; its key is in ``$MANALLM_API_KEY``."""
    command.add_argument(
        "--url", help="the proxy's address, http://host:port or unix:/path (else that of the configuration)"
    )
    command.add_argument("--json", action="store_true", help="print one JSON value")
    command.epilog = "Its client key, if it wants one, is read from $MANALLM_API_KEY."


def _chat(command: argparse.ArgumentParser, text: str | None) -> None:
    what = (
        "standard input where it is -; left out: a conversation, on a terminal"
        if text is None
        else f"'{text}' where it is left out"
    )
    command.add_argument("text", nargs="?", default=text, metavar="TEXT", help=f"what to say; {what}")
    command.add_argument("-m", "--model", help="an alias or provider/model (else the default alias)")
    _client(command)


def _host(text: str) -> str:
    from manallm_proxy.config.values import InvalidValue, host

    try:
        return host(text)
    except InvalidValue as wrong:
        raise argparse.ArgumentTypeError(str(wrong)) from None


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"'{text[:20]}' is no port (0 to 65535)")
    return int(text)


def _workers(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= WORKERS_LIMIT:
        raise argparse.ArgumentTypeError(f"'{text[:20]}' is no number of workers (1 to {WORKERS_LIMIT})")
    return int(text)


def _limit(text: str) -> str:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= MOST_REQUESTS:
        raise argparse.ArgumentTypeError(f"'{text[:20]}' is no number of requests (1 to {MOST_REQUESTS})")
    return text


def main(argv: list[str] | None = None) -> int:
    """Runs one command. Only that one is imported, because the start of `serve` must be quick."""
    standard_streams.prepare()
    try:
        return _main(argv)
    except KeyboardInterrupt:
        return INTERRUPTED


def _main(argv: list[str] | None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.command == "serve":
        return _run(arguments)
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        standard_streams.discard_output()
        if error.errno == errno.ENOSPC:  # a closed pipe: the reader of our output has enough
            print(f"standard output cannot be written: {error.strerror}", file=sys.stderr)
        return 1


def _run(arguments: argparse.Namespace) -> int:
    from manallm_proxy.config.structure import ConfigError

    try:
        match arguments.command:
            case "serve":
                from manallm_proxy.cli.serve import serve

                return serve(
                    arguments.config,
                    arguments.host,
                    arguments.port,
                    os.environ,
                    arguments.workers,
                    arguments.discover,
                )
            case "check":
                from manallm_proxy.cli.check import check

                return check(
                    arguments.config,
                    arguments.live,
                    os.environ,
                    host=arguments.host,
                    port=arguments.port,
                    offline_ok=arguments.offline_ok,
                    credentials=arguments.credentials,
                )
            case "hash-key":
                from manallm_proxy.cli.hash_key import hash_key

                return hash_key(arguments.name)
            case "completion":
                from manallm_proxy.cli.completion import completion

                return completion(arguments.shell, parser())
            case "schema":
                from manallm_proxy.cli.schema import schema

                return schema()
            case "init":
                from manallm_proxy.cli.init import init

                return init(arguments.folder, arguments.force, os.environ)
            case _:
                return _ask(arguments)
    except ConfigError as error:
        for mistake in error.located:
            print(mistake, file=sys.stderr)
        return EX_CONFIG


def _ask(arguments: argparse.Namespace) -> int:
    """Runs a command that talks to a running proxy."""
    from manallm_proxy.cli.client import Failed

    try:
        match arguments.command:
            case "explain":
                from manallm_proxy.cli.explain import explain

                return explain(arguments.url, arguments.model, arguments.door, arguments.json, os.environ)
            case "requests":
                from manallm_proxy.cli.requests import requests

                names = ("alias", "target", "outcome", "key", "limit")
                filters = {name: value for name in names if (value := getattr(arguments, name)) is not None}
                follows = arguments.follow
                return requests(arguments.url, arguments.id, filters, follows, arguments.json, os.environ)
            case "models":
                from manallm_proxy.cli.models import models

                return models(arguments.url, arguments.json, os.environ)
            case "status":
                from manallm_proxy.cli.status import status

                return status(arguments.url, arguments.json, os.environ, arguments.watch)
            case _:
                from manallm_proxy.cli.chat import chat
                from manallm_proxy.cli.conversation import converse, is_wanted

                if is_wanted(arguments.text, arguments.json):
                    return converse(arguments.url, arguments.model, os.environ)
                return chat(arguments.url, arguments.model, arguments.text, arguments.json, os.environ)
    except Failed as failed:
        print(failed, file=sys.stderr)
        return failed.code


if __name__ == "__main__":
    sys.exit(main())
