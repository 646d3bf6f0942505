"""Draw the flow of files and events, and the rooms by their imports: ``python docs/draw_flow.py``."""

from __future__ import annotations

import ast
import html
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bqdispatch_provider"
STYLE = """<style>
  text { font: 14px system-ui, sans-serif; fill: #202124; }
  .note { font-size: 12px; fill: #5f6368; }
  .box { fill: #f1f3f4; stroke: #9aa0a6; }
  .ours { fill: #e8f0fe; stroke: #1a73e8; stroke-width: 2; }
  .line { fill: none; stroke: #5f6368; stroke-width: 1.5; marker-end: url(#head); }
  .head { fill: #5f6368; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e8eaed; } .note { fill: #bdc1c6; } .box { fill: #303134; stroke: #9aa0a6; }
    .ours { fill: #1f2f4d; stroke: #8ab4f8; } .line { stroke: #bdc1c6; } .head { fill: #bdc1c6; }
  }
</style>
<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">
  <path class="head" d="M0 0 8 4 0 8z"/></marker></defs>"""


def picture(width: float, height: float, parts: Iterable[str]) -> str:
    """Return an SVG document.

    :param width: of the picture, in pixels.
    :param height: of the picture, in pixels.
    :param parts: what is in it.
    """
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', STYLE, *parts, "</svg>", ""])


def box(x: float, y: float, width: float, lines: Iterable[str], kind: str = "box") -> Iterable[str]:
    """Draw a box with a title and smaller lines below it."""
    yield f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="66" rx="8"/>'
    for number, line in enumerate(lines):
        style = "" if number == 0 else ' class="note"'
        weight = ' font-weight="bold"' if number == 0 else ""
        yield f'<text{style}{weight} x="{x + 12:g}" y="{y + 22 + 18 * number:g}">{html.escape(line)}</text>'


def arrow(path: str, text: str, x: float, y: float) -> Iterable[str]:
    """Draw an arrow along a path, and say beside it what goes there."""
    yield f'<path class="line" d="{path}"/>'
    yield f'<text class="note" x="{x:g}" y="{y:g}" text-anchor="middle">{html.escape(text)}</text>'


def flow() -> str:
    """Draw how files become events, and where the dispatcher stands."""
    parts = [
        *box(570, 15, 200, ("BigQuery", "runs the jobs")),
        *box(20, 140, 170, ("Files", "in Cloud Storage")),
        *box(290, 140, 170, ("BqTail", "runs when it is woken up")),
        *box(570, 140, 200, ("Task folder", "a trace for each job,", "a window for each batch")),
        *box(20, 265, 170, ("Trigger bucket", "what is written here", "wakes BqTail up")),
        *box(290, 265, 170, ("Dispatcher", "this provider,", "in Airflow"), "ours"),
        *arrow("M190 173H286", "arrive", 238, 165),
        *arrow("M400 140 C430 80 480 55 566 48", "starts jobs", 420, 80),
        *arrow("M460 173H566", "leaves them", 513, 165),
        *arrow("M640 206 C620 250 560 285 464 290", "what is due", 560, 250),
        *arrow("M290 298H194", "moves it", 242, 290),
        *arrow("M120 265 C150 230 220 215 320 208", "wakes it up", 236, 236),
        *arrow("M460 312 C640 330 820 310 820 180 C820 90 810 50 774 48", "is the job done?", 640, 342),
    ]
    return picture(840, 350, parts)


FLOORS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("commands", ("commands",), "the command line, one module for each command"),
    ("Airflow's files", (), "what a DAG author imports: operators, sensors, triggers, hooks, …"),
    ("page", ("page", "plugin"), "the page in Airflow"),
    ("view", ("view",), "what people see: how dispatching goes, and why an event waits"),
    ("runs", ("runs", "journal"), "how the tasks of a DAG run work together, and how a run ends"),
    ("dispatcher", ("dispatcher",), "the only loop: observe, plan, act, report"),
    ("cycle", ("cycle",), "the steps of one cycle"),
    ("delivery", ("delivery",), "how one event gets across exactly once"),
    ("gcp", ("gcp",), "the only room that talks to Google"),
    ("core", ("core",), "pure decisions: the plan, the report, what a log says"),
    (
        "names, config",
        ("names", "config", "config_errors", "config_keys", "config_source", "compat"),
        "names of objects, the configuration, Airflow's versions",
    ),
)
"""Rooms from the top, with the modules or folders that are in them, and what they are for."""


def room_of(module: str) -> str:
    """Return the room of a module, by its path below the package; what is in no other is one of Airflow's files."""
    first = module.partition(".")[0]
    return next((room for room, members, _ in FLOORS if first in members), FLOORS[1][0])


def imports() -> dict[str, set[str]]:
    """Read which rooms each room imports from."""
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if module.startswith("testing"):
            continue
        room = room_of(module)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bqdispatch_provider."):
                other = room_of((node.module or "").removeprefix("bqdispatch_provider."))
                found.setdefault(room, set()).update({other} - {room})
    return found


def rooms() -> str:
    """Draw the rooms, one below the other, each with the rooms that it imports from."""
    found = imports()
    present = [(room, note) for room, members, note in FLOORS if not members or any(map(exists, members))]
    parts: list[str] = []
    for number, (room, note) in enumerate(present):
        uses = ", ".join(other for other, _ in present if other in found.get(room, ()))
        y = 20 + 92 * number
        lines = (room, note, f"imports from {uses}" if uses else "imports from no other room")
        parts += box(20, y, 620, lines, "ours" if room == "dispatcher" else "box")
        if number + 1 < len(present):
            parts.append(f'<path class="line" d="M330 {y + 66}V{y + 90}"/>')
    return picture(660, 92 * len(present) + 20, parts)


def exists(member: str) -> bool:
    """Tell whether a module or a folder of that name is in the package."""
    return (PACKAGE / member).is_dir() or (PACKAGE / f"{member}.py").exists()


def main() -> None:
    """Write the pictures."""
    (ROOT / "docs" / "flow.svg").write_text(flow())
    (ROOT / "docs" / "rooms.svg").write_text(rooms())


if __name__ == "__main__":
    main()
