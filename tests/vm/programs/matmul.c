/* Loops in loops, vectors, big arrays; also 0/0, whose bits differ between processors. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv) {
    int n = argc > 1 ? atoi(argv[1]) : 20;
    double *a = malloc((size_t)(n * n) * sizeof *a), *b = malloc((size_t)(n * n) * sizeof *b), *c = calloc((size_t)(n * n), sizeof *c);
    unsigned state = 1;
    for (int i = 0; i < n * n; i++) {
        a[i] = ((state = state * 1103515245 + 12345) >> 16) / 65536.0;
        b[i] = ((state = state * 1103515245 + 12345) >> 16) / 65536.0;
    }
    for (int i = 0; i < n; i++) {
        for (int k = 0; k < n; k++)
            for (int j = 0; j < n; j++) c[i * n + j] += a[i * n + k] * b[k * n + j];
        if (i == n / 2) printf("half: %.9f\n", c[0]);
    }
    double trace = 0, sum = 0;
    for (int i = 0; i < n; i++) trace += c[i * n + i];
    for (int i = 0; i < n * n; i++) sum += c[i];
    volatile double zero = 0;
    double none = zero / zero;
    uint64_t bits;
    memcpy(&bits, &none, sizeof bits);
    printf("trace %.9f sum %a none %llx %f\n", trace, sum, (unsigned long long)bits, none);
    return 0;
}
