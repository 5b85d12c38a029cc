/* A command: arguments, output in pieces, input to its end, a status. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static int __attribute__((noinline)) fib(int n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }

int main(int argc, char **argv) {
    int n = argc > 1 ? atoi(argv[1]) : 0, sum = 0, got;
    printf("hello %d\n", n);
    for (int i = 0; i < n; i++) {
        printf("%d ", fib(i));
        fflush(stdout);
    }
    char buffer[16];
    while ((got = (int)read(0, buffer, sizeof buffer)) > 0) sum += got;
    printf("\nread %d\n", sum);
    fputs("bye\n", stdout);
    return 3;
}
