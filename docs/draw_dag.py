"""Draw the sample DAG as it is: ``python docs/draw_dag.py`` writes docs/dag.svg."""

from __future__ import annotations

import html
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 190, 62, 70, 24, 20


def svg(dag: Any) -> str:
    """Return the picture of a DAG: tasks in columns by their distance from the first, with operator and pool."""
    depth: dict[str, int] = {}
    for task in dag.topological_sort():
        depth[task.task_id] = max((depth[upstream] + 1 for upstream in task.upstream_task_ids), default=0)
    columns: dict[int, list[Any]] = {}
    for task in dag.topological_sort():
        columns.setdefault(depth[task.task_id], []).append(task)
    rows = max(map(len, columns.values()))
    height = rows * HEIGHT + (rows - 1) * GAP_Y + 2 * MARGIN
    width = len(columns) * WIDTH + (len(columns) - 1) * GAP_X + 2 * MARGIN
    at: dict[str, tuple[float, float]] = {}
    for column, tasks in columns.items():
        top = (height - len(tasks) * HEIGHT - (len(tasks) - 1) * GAP_Y) / 2
        for row, task in enumerate(tasks):
            at[task.task_id] = (MARGIN + column * (WIDTH + GAP_X), top + row * (HEIGHT + GAP_Y))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        '<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#5f6368"/></marker></defs>',
    ]
    for task in dag.topological_sort():
        for downstream in sorted(task.downstream_task_ids):
            x1, y1 = at[task.task_id][0] + WIDTH, at[task.task_id][1] + HEIGHT / 2
            x2, y2 = at[downstream][0], at[downstream][1] + HEIGHT / 2
            parts.append(
                f'<path d="M{x1:g} {y1:g}C{x1 + GAP_X / 2:g} {y1:g} {x2 - GAP_X / 2:g} {y2:g} {x2:g} {y2:g}" '
                'fill="none" stroke="#5f6368" marker-end="url(#head)"/>'
            )
    for task_id, (x, y) in at.items():
        task = dag.get_task(task_id)
        pool = "" if task.pool == "default_pool" else f"pool {task.pool}"
        box = f'x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="8"'
        parts.append(f'<rect {box} fill="{task.ui_color}" stroke="#5f6368"/>')
        for line, (text, style) in enumerate(
            [(task_id, 'font-weight="bold"'), (type(task).__name__, 'fill="#3c4043"'), (pool, 'fill="#3c4043"')]
        ):
            parts.append(f'<text x="{x + 12:g}" y="{y + 20 + 17 * line:g}" {style}>{html.escape(text)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    """Write the picture."""
    sys.path.insert(0, str(ROOT / "dags"))
    from bqdispatch import dag  # noqa: PLC0415  (a DAG file, found by the line above)

    (ROOT / "docs" / "dag.svg").write_text(svg(dag))


if __name__ == "__main__":
    main()
