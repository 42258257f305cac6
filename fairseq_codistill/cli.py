"""The ``codistill`` command.

Each subcommand imports what it needs when it runs: asking for help loads neither torch nor
fairseq.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from fairseq_codistill import __version__, statuses
from fairseq_codistill.errors import UserError
from fairseq_codistill.records import printable

# Those of a process that the signal has ended.
BROKEN_PIPE_STATUS = 128 + signal.SIGPIPE
INTERRUPTED_STATUS = 128 + signal.SIGINT

# What a write to the standard output fails with, where no file has a name.
OUTPUT_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}

# Characters of an error; what others wrote may be quoted in it.
LONGEST_ERROR = 2000


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``codistill`` with ``argv`` (by default the process's own) and return its exit status."""
    arguments, command = _split(sys.argv[1:] if argv is None else list(argv))
    if arguments[:1] == ["launch"]:
        # Its groups outlive whoever reads its output.
        return _run(arguments, command)
    try:
        # Terminals and files that cannot hold a character get an escape sequence in its place.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            return _run(arguments, command)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output has enough.
        _discard_output()
        return BROKEN_PIPE_STATUS
    except OSError as error:
        if error.filename is not None or error.errno not in OUTPUT_ERRORS:
            raise
        _discard_output()
        print(
            f"codistill: error: the standard output cannot be written ({error.strerror}); see to "
            "where it goes",
            file=sys.stderr,
        )
        return statuses.CONFIG
    except KeyboardInterrupt:
        return INTERRUPTED_STATUS


def _run(arguments: list[str], command: list[str]) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if command and options.run is not _launch:
        parser.error(f"only launch takes a command after `--`, not {options.subcommand}")
    options.command = command
    try:
        status: int = options.run(options)
    except UserError as error:
        print(f"codistill: error: {printable(error, LONGEST_ERROR)}", file=sys.stderr)
        return statuses.CONFIG
    return status


def _discard_output() -> None:
    """Send what is left of the standard output nowhere: Python tries to write it at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split at the first ``--``: what follows belongs to the command to launch, whatever it is."""
    if "--" not in arguments:
        return arguments, []
    position = arguments.index("--")
    return arguments[:position], arguments[position + 1 :]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="codistill",
        description="Codistillation for fairseq: run groups, look after them, export models.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"codistill {__version__}")
    subcommands = parser.add_subparsers(dest="subcommand", required=True, metavar="COMMAND")
    _add_launch(subcommands)
    _add_status(subcommands)
    _add_report(subcommands)

    _add_export(subcommands)

    user_dir = subcommands.add_parser(
        "user-dir", help="print the folder to hand to fairseq's --user-dir"
    )
    user_dir.set_defaults(run=_user_dir)

    doctor = subcommands.add_parser(
        "doctor", help="tell what is installed, what will not work and what to do"
    )
    doctor.set_defaults(run=_doctor)
    return parser


def _add_launch(subcommands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subcommands.add_parser(
        "launch",
        help="run all groups of a training run on this machine",
        usage="codistill launch --groups N --out OUT [options] -- COMMAND ...",
        description=(
            "Run N groups on this machine, its GPUs divided evenly, or on CPU. COMMAND is a "
            "line of fairseq-train, of fairseq-hydra-train or, for images, of python -m "
            "fairseq_codistill.vision; launch appends what differs from group to group. Run again "
            "on the same OUT, it goes on where it was."
        ),
        allow_abbrev=False,
    )
    parser.add_argument("--groups", type=_positive, required=True, metavar="N", help="groups")
    parser.add_argument(
        "--workers-per-group",
        type=_positive,
        metavar="M",
        help="workers of each group (default: as many as it has GPUs, one on CPU)",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for checkpoints, logs and the exchange"
    )
    parser.add_argument(
        "--max-restarts",
        type=_not_negative,
        default=3,
        metavar="K",
        help="restarts of each group that died (default: %(default)s)",
    )
    parser.add_argument(
        "--hang-timeout",
        type=_timeout,
        default=3600.0,
        metavar="SECONDS",
        help=(
            "take a group for dead that has made no update and logged nothing for so long, end it "
            "and start it again; 0 for never (default: 3600). Give more than the longest update, "
            "validation or saving takes, and than --codistill-timeout in lockstep; the update is "
            "read every 5 s from an exchange that is a folder, otherwise the log alone counts. "
            "After a start a group has 10 minutes at least"
        ),
    )
    parser.add_argument(
        "--group",
        action="append",
        default=[],
        metavar="'I: FLAGS'",
        help="flags (hydra: overrides) for group I alone; may be given again",
    )
    parser.add_argument(
        "--allow-changed",
        action="append",
        default=[],
        metavar="NAME",
        help=(
            "go on with another value of this setting than the run in OUT has had so far; NAME is "
            "a flag without its dashes, a hydra key or, for what COMMAND has without a flag, data; "
            "may be given again. What decides only length, logging, saving and validation, or how "
            "the work is done, may change without it"
        ),
    )
    parser.add_argument(
        "--print",
        action="store_true",
        dest="show",
        help="print the command of each worker; start nothing, write nothing",
    )
    parser.set_defaults(run=_launch)


def _add_status(subcommands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from fairseq_codistill.status import KEYS

    parser = subcommands.add_parser(
        "status",
        help="show how far the groups of a run are, and whether they are alive",
        description=(
            "Show the groups of each run in an exchange: update, epoch, restarts, the staleness\n"
            "of the peers in use (own update minus the peer snapshot's), the newest snapshot.\n"
            "It reads and never writes; an object store is reached with fsspec's own settings."
        ),
        epilog=KEYS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "place", metavar="OUT_OR_EXCHANGE", help="a launch's --out, or an exchange: a path or URI"
    )
    parser.add_argument(
        "--watch",
        type=_seconds,
        nargs="?",
        const=5.0,
        metavar="SECONDS",
        help="look again every so many seconds, until Ctrl-C (default: 5)",
    )
    parser.add_argument(
        "--json", action="store_true", dest="as_json", help="a JSON document; --watch: one a line"
    )
    parser.set_defaults(run=_status)


def _add_report(subcommands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from fairseq_codistill.report import KEYS

    parser = subcommands.add_parser(
        "report",
        help="make tables and plots of the logs of any number of runs",
        usage="codistill report RUN... [--as LABEL RUN...]... [options]",
        description=(
            "Write report.md, with a table and plots, on runs with fairseq's log format json or\n"
            "simple. A RUN is a launch's --out, the folder of a plain run with a log in it, or a\n"
            "log. Runs that differ in their seed only share one line of the table and the plots,\n"
            "a mean with a band over seeds and groups. Without matplotlib there are no plots."
        ),
        epilog=KEYS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="a folder or a log")
    parser.add_argument(
        "--as",
        action="append",
        nargs="+",
        default=[],
        dest="labelled",
        metavar=("LABEL", "RUN"),
        help="put these runs into one line of that name, as in --as all_reduce runs/ar-seed*",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("report"),
        metavar="DIR",
        help="where to write (default: ./report)",
    )
    parser.add_argument("--html", action="store_true", help="report.html too, one page by itself")
    parser.add_argument(
        "--json", action="store_true", dest="as_json", help="report.json too, the raw numbers"
    )
    parser.set_defaults(run=_report)


def _add_export(subcommands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from fairseq_codistill.export import FORMATS

    parser = subcommands.add_parser(
        "export",
        help="turn a codistilled checkpoint into one that stock fairseq, or CTranslate2, reads",
        description=(
            "Write the model of a codistilled checkpoint in a form that needs no plugin. It is "
            "loaded by fairseq without the plugin, or by CTranslate2, and its outputs are compared "
            "with those of the trained model, before the command succeeds."
        ),
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a codistilled one")
    parser.add_argument("new", type=Path, metavar="NEW", help="where to write the new one")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="fairseq",
        help=(
            "fairseq: a checkpoint of its task translation; ctranslate2: a model directory, by "
            "CTranslate2's own converter (default: %(default)s)"
        ),
    )
    parser.add_argument(
        "--user-dir",
        type=Path,
        metavar="DIR",
        help=(
            "the directory that registers the architecture, if fairseq does not: sizes of your own "
            "of a model of fairseq's. Its code is run"
        ),
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DATA_BIN",
        help="ctranslate2: the directory with the dictionaries, dict.<language>.txt",
    )
    for short, side in (("-s", "source"), ("-t", "target")):
        parser.add_argument(
            short,
            f"--{side}-lang",
            metavar=side.upper(),
            help=f"ctranslate2: the {side} language (default: as in training, or in DATA_BIN)",
        )
    parser.set_defaults(run=_export)


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of seconds; what to look at comes before --watch"
        ) from None
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} seconds cannot be; give more than 0")
    return number


def _timeout(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds; give 0 for never")
    return number


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is too few; give 1 or more")
    return number


def _not_negative(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is negative; give 0 or more")
    return number


def _launch(options: argparse.Namespace) -> int:
    from fairseq_codistill.launch import run

    launch_options = run.Options(
        groups=options.groups,
        workers_per_group=options.workers_per_group,
        out=options.out,
        max_restarts=options.max_restarts,
        hang_timeout=options.hang_timeout,
        group_flags=options.group,
        command=options.command,
        allow_changed=options.allow_changed,
    )
    return run.show(launch_options) if options.show else run.launch(launch_options)


def _status(options: argparse.Namespace) -> int:
    from fairseq_codistill.status.show import status

    return status(options.place, options.watch, options.as_json)


def _report(options: argparse.Namespace) -> int:
    from fairseq_codistill.report.show import report

    return report(options.runs, options.labelled, options.out, options.html, options.as_json)


def _export(options: argparse.Namespace) -> int:
    from fairseq_codistill.export import Options, export

    said = export(
        Options(
            options.checkpoint,
            options.new,
            options.format,
            options.user_dir,
            options.data,
            options.source_lang,
            options.target_lang,
        )
    )
    print(printable(said, LONGEST_ERROR))
    return 0


def _user_dir(options: argparse.Namespace) -> int:
    from fairseq_codistill.installed import package_folder

    print(package_folder())
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from fairseq_codistill.doctor import doctor

    return doctor()
