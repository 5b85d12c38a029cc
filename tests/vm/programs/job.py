"""CPython at work: big numbers, dictionaries, sorting, text, a file, dice, what comes in."""

import random
import re
import sys

total = 0
for line in sys.stdin:
    n = int(line)
    table = {str(i * i % 997): [i] * 3 for i in range(2000)}
    words = sorted(table, key=lambda word: (table[word][0] * 7919 % 1009, word))
    digits = str(3 ** (400 + 13 * n))
    found = re.findall(r"(\d)\1", digits)
    dice = [random.random() for _ in range(500)]
    total += len(found) + sum(len(word) for word in words)
    with open("kept.txt", "a") as file:
        print(n, digits[:20], words[:3], f"{sum(dice):.12f}", file=file)
    print(n, digits[:30], len(found), words[n], f"{sum(dice):.15f}", hash("word"))
with open("kept.txt") as file:
    print(file.read(), total, file=sys.stderr)
sys.exit(9)
