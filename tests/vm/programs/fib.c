/* Calls and nothing else. */
#include <stdio.h>
#include <stdlib.h>

static int __attribute__((noinline)) fib(int n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }

int main(int argc, char **argv) {
    int n = argc > 1 ? atoi(argv[1]) : 20;
    for (int i = n > 3 ? n - 3 : 0; i <= n; i++) printf("fib %d = %d\n", i, fib(i));
    return 0;
}
