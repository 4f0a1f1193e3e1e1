"""The ``longseq`` command: dispatch on the first words; nothing heavy is imported until a command
runs."""

from __future__ import annotations

import importlib
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence

from longseq.core import __version__, plugins, process
from longseq.core.domain import TASK_COMMANDS, import_object, list_domains, load_domain
from longseq.core.errors import (
    ConfigError,
    LongseqError,
    did_you_mean,
    is_out_of_memory,
    of_processes,
    plain,
)
from longseq.core.files import full_disk

_FIXED = {
    "doctor": "what is installed, which kernels are in use, and why not others",
    "demo": "every domain on packaged real data, with a report: longseq demo [domain]",
    "data": "real data sets to download: longseq data [name]",
    "generate": "text from a folder of a published language model: longseq generate FOLDER",
    "bench": "measurements: longseq bench kernels, models, recall, forecasting or chaos",
    "run": "a script written for mamba-ssm or causal-conv1d: longseq run script.py [arguments]",
}
_BENCHMARKS = {
    "kernels": "the operators' speed and memory against their peers and the machine's bounds",
    "models": "the same of blocks and whole models",
    "recall": "small models of every mixer on copying, induction and associative recall",
    "forecasting": "forecasters on many data sets against seasonal naive, as geometric means",
    "chaos": "model scale against domain knowledge on chaotic systems",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status.

    0 is success, 2 wrong usage, configuration or input (one line on stderr), 1 an unexpected
    failure (with a traceback), 128 + n an end by signal n (130 Ctrl-C, 143 SIGTERM), 141 an output
    that nobody reads any more.

    Args:
        argv: arguments without the program's name; those of the process if None.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        with process.heard_again():
            return _dispatch(args)
    except LongseqError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt as stop:
        return _told(stop)
    except SystemExit as stop:  # argparse, Lightning's answer to Ctrl-C, rich's to a closed pipe
        if isinstance(stop.__context__, process.ClosedOutput):
            return process.CLOSED
        if isinstance(stop.__context__, KeyboardInterrupt):
            return _told(stop.__context__)
        if stop.code is None or isinstance(stop.code, int):
            return int(stop.code or 0)
        print(stop.code, file=sys.stderr)  # as python does with sys.exit("reason")
        return 1
    except process.ClosedOutput:  # longseq ... | head
        return process.CLOSED
    except Exception as error:  # noqa: BLE001 - the last resort, whatever was not foreseen
        if is_out_of_memory(error):
            hint = "lower the batch size or the length, or the model's sizes"
            print(f"error: out of memory: {one_line(error)}; {hint}", file=sys.stderr)
            return 2
        if full := full_disk(error):  # in a log of Lightning's, a file that a library opened
            print(f"error: {one_line(full)}", file=sys.stderr)
            return 2
        if told := of_processes(error):
            print(f"error: {told}", file=sys.stderr)
            return 2
        traceback.print_exc()
        return 1


def _told(stop: KeyboardInterrupt) -> int:
    """Says which signal has ended the command, and returns the exit status."""
    name = f"by {stop}" if isinstance(stop, process.Told) else "by Ctrl-C"
    print(f"stopped {name}", file=sys.stderr)
    return process.status_of(stop)


def _dispatch(args: list[str]) -> int:
    if args[:1] == ["run"]:  # whose other arguments are the script's
        return int(import_object("longseq.core.shell.run:run", ":")(args[1:]))
    args, modules = plugins.take_imports(args)
    first = args[0] if args else "--help"
    if first in ("-V", "--version", "version"):
        print(f"longseq {__version__}")
        return 0
    plugins.import_named(modules)
    if first in ("-h", "--help", "help"):
        _print_help("longseq <domain> <command>", {"": ""}, "domains and commands")
        return 0
    if first.startswith("-"):
        raise ConfigError(f"no option {first!r} before the domain; longseq --help shows the usage")
    if first in ("doctor", "demo", "bench", "generate"):
        plugins.load_installed()
    if first == "doctor":
        return int(import_object("longseq.core.shell.doctor:run", ":")(args[1:]))
    if first == "data":
        return int(import_object("longseq.core.shell.data_sources:run", ":")(args[1:]))
    if first == "generate":
        return int(import_object("longseq.core.shell.generate:run", ":")(args[1:]))
    if first == "demo":
        return _demo(args[1:])
    if first == "bench":
        return _bench(args[1:])
    return _run_domain(first, args[1:])


def _run_domain(name: str, args: list[str]) -> int:
    domain = load_domain(name)
    commands = domain.all_commands()
    if not args or args[0] in ("-h", "--help", "help"):
        _print_help(f"longseq {name} <command>", commands, domain.help)
        return 0
    command, rest = args[0], args[1:]
    if command not in commands:
        raise ConfigError(
            f"longseq {name} has no command {command!r}; {did_you_mean(command, commands)}"
        )
    domain.check_requirements()
    domain.check_parts(command)
    own = domain.commands.get(command)
    help_of = importlib.import_module("longseq.core.shell.task_help")
    if help_of.asks_for_help(rest):
        return int(help_of.show(domain, command, rest))
    plugins.load_installed()
    if own is not None:
        return int(import_object(own.run, ":")(rest) or 0)
    if command == "models":
        return int(import_object("longseq.core.shell.models:run", ":")(domain, rest))
    if command == "compare":
        return int(import_object("longseq.core.shell.compare:run", ":")(domain, rest))
    if command == "demo":
        return int(import_object("longseq.core.shell.demo:run_demos", ":")(rest, [domain]))
    assert command in TASK_COMMANDS
    early = importlib.import_module("longseq.core.shell.early")
    early.check(domain, *early.resolve_configs(domain, rest))
    return int(import_object("longseq.core.shell.lightning_cli:run", ":")(domain, command, rest))


def _bench(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        _print_help(
            "longseq bench <name>",
            _BENCHMARKS,
            "Measurements that print a table and write figures.",
        )
        return 0
    if args[0] not in _BENCHMARKS:
        raise ConfigError(f"no benchmark named {args[0]!r}; {did_you_mean(args[0], _BENCHMARKS)}")
    help_of = importlib.import_module("longseq.core.shell.task_help")
    if help_of.asks_for_help(args[1:]):
        return int(help_of.show_bench(args[0]))
    return int(import_object(f"longseq.bench.{args[0]}:run", ":")(args[1:]))


def _demo(args: list[str]) -> int:
    if args and args[0] in ("-h", "--help"):
        usage = "usage: longseq demo [domain] [--out DIR] [--max_steps N]"
        print(f"{usage}\n\n{_FIXED['demo']}")
        return 0
    if args and not args[0].startswith("-"):
        return _run_domain(args[0], ["demo", *args[1:]])
    return int(import_object("longseq.core.shell.demo:run_demos", ":")(args))


def _print_help(usage: str, commands: Mapping[str, str], title: str) -> None:
    if "<domain>" in usage:
        commands = {name: load_domain(name).help for name in list_domains()} | _FIXED
        title = "Long-sequence models for science, on a laptop, a GPU or a cluster."
    width = max(map(len, commands), default=0)
    lines = [f"usage: {usage} [options]", "", title, ""]
    lines += [f"  {name:<{width}}  {text}" for name, text in commands.items()]
    if "<domain>" in usage and plugins.installed():
        listed = ", ".join(f"{one.name} ({one.package})" for one in plugins.installed())
        lines += ["", f"plug-ins: {listed}; longseq doctor says whether they load"]
    tail = "longseq <domain> --help lists a domain's commands; longseq --version the version."
    lines += [
        "",
        "--import my_module, on any command, imports a module of yours first: mixers, tasks, "
        "data, domains.",
    ]
    lines += ["", tail if "<domain>" in usage else f"{usage} --help shows a command's options."]
    print("\n".join(lines))


def one_line(error: BaseException) -> str:
    """Returns an error's message as one line; of an error in a data-loading worker, the original
    message."""
    # As it was raised: an error of ours shows line breaks as escapes.
    raised = [line.strip() for line in BaseException.__str__(error).splitlines() if line.strip()]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if any(line.startswith("Original Traceback") for line in raised):
        lines = raised
        kind, _, message = lines[-1].partition(": ")
        return plain(message or kind)
    return plain(" ".join(lines)) or type(error).__name__


def attended() -> int:
    """Runs the process's command line and returns the exit status; signals and standard streams are
    taken care of, but for a script of ``longseq run``, whose own they are."""
    if sys.argv[1:2] == ["run"]:
        return main()
    process.own_streams()
    threading.excepthook = _of_a_thread
    return signalled()


def _of_a_thread(found: threading.ExceptHookArgs) -> None:
    """Tells in one line that a thread (of the event files' writer) found the disk full; the command
    itself ends by that when it next writes there."""
    if (full := full_disk(found.exc_value)) is None:
        threading.__excepthook__(found)
    else:
        print(f"error: {one_line(full)}", file=sys.stderr)


def signalled(argv: Sequence[str] | None = None) -> int:
    """Runs the command line, ended in order by any signal that asks for its end.

    Args:
        argv: as of ``main``.

    Returns:
        The exit status.
    """
    try:
        with process.ended_by_signals():
            return main(argv)
    except KeyboardInterrupt as stop:  # another one, while the first was being told
        return process.status_of(stop)


if __name__ == "__main__":
    sys.exit(attended() or process.flush())
