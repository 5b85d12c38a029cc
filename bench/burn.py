"""A task that only computes: how many primes below the number on standard input."""

import sys


def primes(limit: int) -> int:
    return sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(2, limit))


if __name__ == "__main__":
    print(primes(int(sys.stdin.read())))
