"""What the demo maps over data files: 95 % confidence intervals of the mean of each numeric column, by bootstrap. CSV on stdin; the one argument, if
there is any, is how many times to draw."""

import csv
import math
import random
import sys

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 1500
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
        means = sorted(math.fsum(dice.choices(values, k=len(values))) / len(values) for _ in range(ROUNDS))
        low, high = means[int(ROUNDS * 0.025)], means[int(ROUNDS * 0.975)]
        print(
            f"{name}: mean {math.fsum(values) / len(values):.6g}, 95 % between {low:.6g} and {high:.6g} ({len(values)} rows)"
        )


main()
