"""How much is measured, and on what: the options of `manage.py benchmark`."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from django.core.management.base import CommandError, CommandParser

LATENCIES_MS = [1, 10, 100, 1000]
IN_FLIGHT = [1, 2, 4, 8, 16, 32, 64]


@dataclass(frozen=True)
class Effort:
    """`scale` times the usual lines, each figure measured `rounds` times, and the other options."""

    scale: float = 1.0
    rounds: int = 3
    latency_ms: tuple[int, ...] = tuple(LATENCIES_MS)
    in_flight: tuple[int, ...] = ()  # empty: the usual ones of the scenario
    slots: tuple[int, ...] = (1, 4)
    parallel: int | None = None
    most_lines: int = 100_000
    load_s: float = 180.0
    load_clients: int = 200
    workers: tuple[int, ...] = ()  # empty: the usual ones
    database_url: str = ""
    run_batch: str = ""
    backend_url: str = ""
    model: str = ""
    price_in: float | None = None
    price_out: float | None = None
    tell: Callable[[str], object] = str  # takes progress

    @property
    def told(self) -> dict[str, str]:
        """What the batch server is told of the real model server; nothing, unless --parallel is given."""
        return {} if self.parallel is None else {"BACKEND_PARALLEL": str(self.parallel)}

    def lines(self, usual: int, *, least: int = 4) -> int:
        return max(least, round(usual * self.scale))

    @classmethod
    def chosen(cls, options: dict[str, Any], tell: Callable[[str], object]) -> "Effort":
        """From the options of the command. Raises CommandError if they do not go together."""
        if options["scale"] <= 0 or options["rounds"] < 1:
            raise CommandError("--scale has to be above 0, and --rounds 1 or more.")
        if options["load_s"] <= 0 or options["load_clients"] < 1:
            raise CommandError("--load-s has to be above 0, and --load-clients 1 or more.")
        if bool(options["backend_url"]) != bool(options["model"]):
            raise CommandError("--backend-url and --model belong together.")
        if min(options["slots"]) < 1:
            raise CommandError("--slots has to be 1 or more.")
        if options["run_batch"] and not options["backend_url"]:
            raise CommandError("--run-batch is compared with a server of yours: give --backend-url too.")
        if min(options["workers"] or [1]) < 1:
            raise CommandError("--workers has to be 1 or more.")
        if options["parallel"] is not None and options["parallel"] < 1:
            raise CommandError("--parallel has to be 1 or more.")
        if (options["price_in"] is None) != (options["price_out"] is None):
            raise CommandError("--price-in and --price-out belong together.")
        values = {name: options[name] for name in _names()}
        chosen: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        chosen["backend_url"] = chosen["backend_url"].rstrip("/")
        return cls(**chosen, tell=tell)

    def arguments(self) -> list[str]:
        """The command's options that are not at their defaults."""
        words = []
        usual = Effort()
        for name in _names():
            value = getattr(self, name)
            if value != getattr(usual, name):
                values = value if isinstance(value, tuple) else (value,)
                words += [f"--{name.replace('_', '-')}"]
                if name == "database_url":
                    words.append("…")  # it may hold a password
                    continue
                words += [f"{each:g}" if isinstance(each, float) else shlex.quote(str(each)) for each in values]
        return words


def _names() -> list[str]:
    return [each.name for each in fields(Effort) if each.name != "tell"]


def add_arguments(parser: CommandParser) -> None:
    add = parser.add_argument
    usual = Effort()
    add("--scale", type=float, default=usual.scale, help="times the usual number of lines (default: 1)")
    add("--rounds", type=int, default=usual.rounds, help="how often a figure is taken (default: 3)")
    add(
        "--latency-ms",
        type=int,
        nargs="+",
        choices=LATENCIES_MS,
        default=usual.latency_ms,
        help="overhead: latencies of the model server (default: all)",
    )
    add(
        "--in-flight",
        type=int,
        nargs="+",
        choices=IN_FLIGHT,
        default=usual.in_flight,
        help="throughput: calls at once (default: all); prefixes, money, person: calls of the bare client at once "
        "(default: as many as slots; 1; 1)",
    )
    add("--slots", type=int, nargs="+", default=usual.slots, help="prefixes: slots of the model (default: 1 4)")
    add(
        "--most-lines",
        type=int,
        default=usual.most_lines,
        help="scale: lines of the largest batch; 1000000 takes ten times as long (default: 100000)",
    )
    add("--load-s", type=float, default=usual.load_s, help="load: seconds for which the clients ask (default: 180)")
    add("--load-clients", type=int, default=usual.load_clients, help="load: clients at once (default: 200)")
    add(
        "--workers",
        type=int,
        nargs="+",
        default=usual.workers,
        help="machines: inference workers on four machines; the first number is what the others are compared with "
        "(default: 1 4 16)",
    )
    add(
        "--database-url",
        default="",
        help="drives, load: an empty Postgres to measure with after SQLite, such as postgres://user@host/name",
    )
    add(
        "--backend-url",
        default="",
        help="prefixes, money, person, throughput: measure on a model server of yours instead",
    )
    add("--model", default="", help="… and the model to ask for there")
    add("--parallel", type=int, help="… and what BACKEND_PARALLEL says of it (default: unset, so what the server says)")
    add(
        "--run-batch",
        default="",
        metavar="COMMAND",
        help="throughput, with --backend-url: a command that gets -i FILE -o FILE and does the same without a server, "
        "such as 'vllm run-batch --model …'",
    )
    add("--price-in", type=float, help="money: what a provider takes for 1,000,000 tokens of input, in any currency")
    add("--price-out", type=float, help="… and for 1,000,000 tokens of output")
