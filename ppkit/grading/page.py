"""A grade as a page to read: it needs neither a network nor a notebook."""

from __future__ import annotations

from html import escape

from ppkit.grading.grade import Grade, TaskGrade

__all__ = ["card", "page"]

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { text-align: left; padding: .25rem 1rem .25rem 0; border-bottom: 1px solid #ddd; }
td.points { text-align: right; font-variant-numeric: tabular-nums; }
section { margin: 2rem 0; }
svg { max-width: 100%; height: auto; }
pre { background: #f6f6f6; padding: .5rem; overflow-x: auto; }
summary { cursor: pointer; }
"""


def page(grade: Grade) -> str:
    """Return the page, HTML of one file.

    Args:
        grade: of a submission.
    """
    title = f"{grade.lab.folder}: {grade.points:g} of {grade.out_of:g} points"
    rows = "".join(
        f'<tr><td>{escape(task.task.title)}</td><td class="points">{task.points:g} of {task.task.points:g}</td>'
        f"<td>{escape(task.state)}</td></tr>"
        for task in grade.tasks
    )
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{escape(title)}</h1><p>{escape(grade.path.name)}, graded in {grade.seconds:.0f} s</p>",
            f"<table><tr><th>task</th><th>points</th><th>state</th></tr>{rows}</table>",
            *(_task(task) for task in grade.tasks),
            _cells(grade),
            "</body></html>\n",
        ]
    )


def card(task: TaskGrade) -> str:
    """Return the report's card, and below it what a person should look at."""
    flags = "".join(f"<li>{escape(flag)}</li>" for flag in task.flags)
    note = f"<p><b>No points before a person has looked at this:</b></p><ul>{flags}</ul>" if flags else ""
    return task.report._repr_html_() + note


def _task(task: TaskGrade) -> str:
    timeline = task.report.timeline
    return "".join(
        [
            f"<section><h2>{escape(task.task.title)}</h2>",
            card(task),
            f"<details><summary>What the ranks did</summary>{timeline.to_svg()}</details>" if timeline else "",
            "</section>",
        ]
    )


def _cells(grade: Grade) -> str:
    if not grade.cells:
        return ""
    items = "".join(
        f"<li>cell {number}: <code>{escape(text)}</code></li>" for number, text in sorted(grade.cells.items())
    )
    return f"<section><h2>Cells that did not run to their end</h2><ul>{items}</ul></section>"
