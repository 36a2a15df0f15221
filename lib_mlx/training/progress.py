"""The course of a training, as a table and a picture."""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from lib_mlx.models.disk import staged_file

if TYPE_CHECKING:
    from pathlib import Path

LOSSES = "loss.csv"
_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 640, 360, 56, 34, 16, 34


@dataclass(frozen=True)
class Row:
    """One step."""

    step: int
    loss: float
    learning_rate: float
    tokens_per_second: float
    memory_bytes: int


class History:
    """`loss.csv`, `validation.csv` and `loss.svg` in a directory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.rows: list[Row] = []
        self._validations: list[tuple[int, float]] = []

    def add(self, row: Row) -> None:
        """Take a step in."""
        self.rows.append(row)

    def validated(self, step: int, loss: float) -> None:
        """Take a validation in."""
        self._validations.append((step, loss))

    @property
    def last_loss(self) -> float:
        """Of the last step; NaN before the first."""
        return self.rows[-1].loss if self.rows else float("nan")

    @property
    def last_validation(self) -> float | None:
        """The last one's loss."""
        return self._validations[-1][1] if self._validations else None

    def load(self, step: int) -> None:
        """Read what was saved, up to `step`."""
        with (self._folder / LOSSES).open(encoding="utf-8", newline="") as file:
            found = [
                Row(int(step), float(loss), float(rate), float(speed), int(memory))
                for step, loss, rate, speed, memory in list(csv.reader(file))[1:]
            ]
        self.rows = [row for row in found if row.step <= step]
        with (self._folder / "validation.csv").open(encoding="utf-8", newline="") as file:
            pairs = [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]
        self._validations = [pair for pair in pairs if pair[0] <= step]

    def save(self) -> None:
        """Write the tables and the picture."""
        for name, names, rows in (
            (LOSSES, [field.name for field in fields(Row)], [asdict(row) for row in self.rows]),
            ("validation.csv", ["step", "loss"], [{"step": s, "loss": loss} for s, loss in self._validations]),
        ):
            with staged_file(self._folder / name) as staged, staged.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, names)
                writer.writeheader()
                writer.writerows(rows)
        with staged_file(self._folder / "loss.svg") as staged:
            staged.write_text(picture([(row.step, row.loss) for row in self.rows], self._validations))


def picture(losses: list[tuple[int, float]], validations: list[tuple[int, float]]) -> str:
    """Return the losses over the steps as SVG: a line, and dots for the validations."""
    points = [*losses, *validations]
    if not points:
        return '<svg xmlns="http://www.w3.org/2000/svg"/>\n'
    last, highest = max(step for step, _ in points) or 1, max(loss for _, loss in points) or 1.0

    def place(step: int, loss: float) -> tuple[float, float]:
        x = _LEFT + step / last * (_WIDTH - _LEFT - _RIGHT)
        return round(x, 1), round(_HEIGHT - _BOTTOM - loss / highest * (_HEIGHT - _TOP - _BOTTOM), 1)

    grid = []
    for part in range(5):
        x, y = place(0, highest * part / 4)
        grid.append(f'<line x1="{x}" y1="{y}" x2="{_WIDTH - _RIGHT}" y2="{y}" stroke="#ddd"/>')
        grid.append(f'<text x="{x - 6}" y="{y + 4}" text-anchor="end">{highest * part / 4:.3g}</text>')
    line = " ".join(f"{x},{y}" for x, y in (place(*point) for point in losses))
    dots = "".join(f'<circle cx="{x}" cy="{y}" r="3.5"/>' for x, y in (place(*point) for point in validations))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>{"".join(grid)}'
        f'<polyline points="{line}" fill="none" stroke="#1f6f64" stroke-width="1.5"/><g fill="#b3541e">{dots}</g>'
        f'<text x="{_LEFT}" y="20" fill="#1f6f64">loss</text><text x="{_LEFT + 40}" y="20" fill="#b3541e">validation'
        f'</text><text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 10}" text-anchor="end">step {last}</text></svg>\n'
    )
