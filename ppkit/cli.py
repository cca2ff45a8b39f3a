"""The `ppkit` command: one row of a table for each subcommand."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import ppkit
from ppkit.errors import PpkitError

__all__ = ["main"]

# Exit codes; argparse also ends with 2 for arguments it cannot read.
DONE, DIFFERS, FAILED = 0, 1, 2
INTERRUPTED = 130  # as a shell has it
NOT_READY = DIFFERS


@dataclass(frozen=True)
class Command:
    """One subcommand: how it is called, and the function that carries it out and returns the exit code."""

    name: str
    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def _build_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "root",
        nargs="?",
        type=Path,
        default=Path(),
        help="the folder that holds solutions/ and exercises/ (default: the current folder)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit with 1 and name the files if exercises/ is not what solutions/ gives",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="overwrite exercises in which somebody has already filled in an answer",
    )


def _build(arguments: argparse.Namespace) -> int:
    # nbgrader takes a second to import, and only this subcommand needs it.
    from ppkit.course.build import build, find_differences

    if not arguments.check:
        report = build(arguments.root, force=arguments.force)
        for line in report.lines():
            print(line)
        return DONE
    differences = find_differences(arguments.root)
    for difference in differences:
        print(difference)
    if differences:
        print(f"{len(differences)} of the exercise files differ from what solutions/ gives. Run: ppkit build")
        return DIFFERS
    print("exercises/ is what solutions/ gives.")
    return DONE


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the results as JSON, for other programs")


def _doctor(arguments: argparse.Namespace) -> int:
    from ppkit.doctor import as_json, examine, is_ready, verdict

    findings = []
    for finding in examine():
        findings.append(finding)
        if not arguments.json:
            print(finding, flush=True)  # a check that hangs must not hide those before it
    print(as_json(findings) if arguments.json else f"\n{verdict(findings)}")
    return DONE if is_ready(findings) else NOT_READY


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a notebook (.ipynb) or a script (.py)")
    parser.add_argument("--function", required=True, metavar="NAME", help="the function that every rank calls")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="the script (default: NAME_torchrun.py)")


def _export(arguments: argparse.Namespace) -> int:
    from ppkit.export import export

    for line in export(arguments.source, arguments.function, arguments.output).lines():
        print(line)
    return DONE


def _grade_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="PATH", help="a lab's notebook, or a folder of a class's notebooks")
    parser.add_argument("--lab", metavar="NAME", help="which lab it is, such as lab01 (default: found out)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="of a notebook: write the grade as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="of a notebook: write the grade as a page to read")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="of a folder: where to write (default: PATH/grades)"
    )
    parser.add_argument("--jobs", type=_at_least_1, metavar="N", help="of a folder: how many at a time")


def _at_least_1(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def _grade(arguments: argparse.Namespace) -> int:
    grade, others, why = _grade_notebook, ("output", "jobs"), "for a folder only, which it is not"
    if arguments.path.is_dir():
        grade, others, why = _grade_class, ("json", "html"), "for a notebook only, and it is a folder"
    if given := [f"--{name}" for name in others if getattr(arguments, name) is not None]:
        raise PpkitError(f"{arguments.path}: leave out {' and '.join(given)}, {why}")
    return grade(arguments)


def _grade_notebook(arguments: argparse.Namespace) -> int:
    from ppkit.grading.grade import grade
    from ppkit.grading.page import page

    for target in filter(None, (arguments.json, arguments.html)):
        if target.is_dir():
            raise PpkitError(f"{target} is a folder; name a file to write")
        if not target.absolute().parent.is_dir():
            raise PpkitError(f"there is no folder {target.absolute().parent} to write {target.name} into")
    show = _progress()
    result = grade(arguments.path, lab=arguments.lab, tell=lambda title: show(f"checking {title} …"))
    show("")
    if arguments.json:
        arguments.json.write_text(json.dumps(result.as_json(), indent=1) + "\n", encoding="utf-8")
    if arguments.html:
        arguments.html.write_text(page(result), encoding="utf-8")
    print("\n".join(result.lines()))
    return DONE if result.points == result.out_of else DIFFERS


def _grade_class(arguments: argparse.Namespace) -> int:
    from ppkit.grading.classroom import count_mistakes, find_submissions, grade_class, write_results

    submissions = find_submissions(arguments.path)
    folder = arguments.output or arguments.path / "grades"
    show = _progress()
    show(f"0 of {len(submissions)} graded")
    outcomes = grade_class(
        submissions,
        folder / "reports",
        lab=arguments.lab,
        jobs=arguments.jobs,
        tell=lambda n, newest: show(f"{n} of {len(submissions)} graded, the newest: {newest.learner}"),
    )
    show("")
    grades, mistakes = write_results(outcomes, folder)
    for one in outcomes:
        result = f"{one.grade['points']:g} of {one.grade['out_of']:g}" if one.grade else one.problem
        flagged = sum(bool(task["flags"]) for task in one.grade["tasks"]) if one.grade else 0
        print(f"{one.learner}: {result}" + (f", {flagged} to be looked at" if flagged else ""))
    for (lab, task, mistake), times in count_mistakes(outcomes).most_common(10):
        print(f"  {times:3} × {lab}, {task}: {mistake}")
    print(f"wrote {grades} and {mistakes}; a page for each that was graded in {folder / 'reports'}")
    return DONE if all(one.grade for one in outcomes) else FAILED


def _progress() -> Callable[[str], None]:
    """Return what shows a line in place of the one before, on a terminal only."""
    if not sys.stderr.isatty():
        return lambda _text: None
    return lambda text: print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


COMMANDS = (
    Command("build", "make exercises/ from solutions/", _build_arguments, _build),
    Command("doctor", "tell whether this machine is ready for the course", _doctor_arguments, _doctor),
    Command("grade", "grade a lab's notebook, or a class's", _grade_arguments, _grade),
    Command("export", "make a notebook's function a script for torchrun", _export_arguments, _export),
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ppkit", description="Tools of the ppkit course on training one model over many devices."
    )
    parser.add_argument("--version", action="version", version=f"ppkit {ppkit.__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="command", required=True)
    for command in COMMANDS:
        subparser = subparsers.add_parser(command.name, help=command.summary, description=command.summary)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one `ppkit` command.

    Args:
        argv: The arguments after the program's name; those of this process by default.

    Returns:
        The exit code: 0 done, 1 what was checked is not as it should be, 2 the command could not be carried out.
    """
    arguments = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        return run(arguments)
    except (PpkitError, OSError) as error:  # a file that cannot be written, say
        print(f"ppkit: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("ppkit: interrupted", file=sys.stderr)
        return INTERRUPTED
