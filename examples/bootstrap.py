"""What the demo maps over data files: 95 % confidence intervals of the mean of each numeric column, by bootstrap. CSV on stdin."""

import csv
import random
import sys

ROUNDS = 1500
ROWS = 400


def main() -> None:
    rows = list(csv.reader(sys.stdin))
    dice = random.Random(1)
    for number, name in enumerate(rows[0]):
        values = []
        for row in rows[1 : ROWS + 1]:
            try:
                values.append(float(row[number]))
            except (ValueError, IndexError):
                continue
        if len(values) < 3:
            continue
        means = sorted(sum(dice.choices(values, k=len(values))) / len(values) for _ in range(ROUNDS))
        low, high = means[int(ROUNDS * 0.025)], means[int(ROUNDS * 0.975)]
        print(
            f"{name}: mean {sum(values) / len(values):.6g}, 95 % between {low:.6g} and {high:.6g} ({len(values)} rows)"
        )


main()
