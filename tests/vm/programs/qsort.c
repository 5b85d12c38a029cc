/* Recursion, comparisons through a function pointer, a heap of some megabytes. */
#include <stdio.h>
#include <stdlib.h>

typedef int Order(const void *, const void *);

static int up(const void *a, const void *b) {
    int x = *(const int *)a, y = *(const int *)b;
    return (x > y) - (x < y);
}
static int down(const void *a, const void *b) { return up(b, a); }
static Order *volatile orders[] = {up, down};

static void sort(int *a, int left, int right, Order *order) {
    while (left < right) {
        int i = left, j = right, pivot = a[left + (right - left) / 2];
        while (i <= j) {
            while (order(&a[i], &pivot) < 0) i++;
            while (order(&a[j], &pivot) > 0) j--;
            if (i <= j) {
                int swap = a[i];
                a[i++] = a[j];
                a[j--] = swap;
            }
        }
        sort(a, left, j, order);
        left = i;
    }
}

int main(int argc, char **argv) {
    int n = argc > 1 ? atoi(argv[1]) : 1000;
    int *numbers = malloc((size_t)n * sizeof *numbers);
    unsigned state = 42;
    for (int which = 0; which < 2; which++) {
        for (int i = 0; i < n; i++) numbers[i] = (int)((state = state * 1664525 + 1013904223) >> 1);
        sort(numbers, 0, n - 1, orders[which]);
        unsigned sum = 0;
        for (int i = 0; i < n; i++) sum = sum * 31 + (unsigned)numbers[i];
        printf("%s %u, first %d, last %d\n", which ? "down" : "up", sum, numbers[0], numbers[n - 1]);
    }
    free(numbers);
    return 0;
}
