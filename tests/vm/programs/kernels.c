/* Small programs that between them use what compilers emit: recursion, indirect calls, loops in loops, switches, floats, vectors, memory. */
#define E(name) __attribute__((export_name(#name)))
typedef unsigned char u8;
typedef unsigned u32;
typedef unsigned long long u64;

E(fib) int fib(int n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }

static int odd(int n);
static int __attribute__((noinline)) even(int n) { return n == 0 ? 1 : odd(n - 1); }
static int __attribute__((noinline)) odd(int n) { return n == 0 ? 0 : even(n - 1); }
E(parity) int parity(int n) { return even(n); }

E(ackermann) int ackermann(int m, int n) { return m == 0 ? n + 1 : n == 0 ? ackermann(m - 1, 1) : ackermann(m - 1, ackermann(m, n - 1)); }

static u32 seed;
static u32 next(void) { return seed = seed * 1103515245u + 12345u; }

static int up(int a, int b) { return a < b ? -1 : a > b; }
static int down(int a, int b) { return a > b ? -1 : a < b; }
static int (*const orders[])(int, int) = {up, down};
static void quick(int *a, int n, int (*order)(int, int)) {
    while (n > 1) {
        int pivot = a[n / 2], i = 0, j = n - 1;
        while (i <= j) {
            while (order(a[i], pivot) < 0) i++;
            while (order(a[j], pivot) > 0) j--;
            if (i <= j) {
                int t = a[i];
                a[i++] = a[j], a[j--] = t;
            }
        }
        quick(a, j + 1, order);
        a += i, n -= i;
    }
}
static int numbers[4096];
E(sort) u32 sort(int n, int which) {
    seed = (u32)n;
    for (int i = 0; i < n; i++) numbers[i] = (int)(next() >> 8);
    quick(numbers, n, orders[which & 1]);
    u32 sum = 0;
    for (int i = 0; i < n; i++) sum = sum * 31 + (u32)numbers[i];
    return sum;
}

E(automaton) u32 automaton(u32 n) {
    u32 state = 0, count[6] = {0};
    seed = n;
    for (u32 i = 0; i < n; i++) {
        switch (state) {
        case 0: state = next() >> 28 & 3; break;
        case 1: state = next() >> 30 ? 4 : 2; break;
        case 2: for (u32 k = 0; k < (i & 7); k++) count[k % 6] += k; state = 3; break;
        case 3: if (i % 5 == 0) { state = 5; break; } /* fall through */
        case 4: state = 0; count[1]++; break;
        default: state = (u32)fib((int)(i % 6)) % 5;
        }
        count[state]++;
    }
    return count[0] + 7 * count[1] + 49 * count[2] + 343 * count[3] + 2401 * count[4] + 16807 * count[5];
}

E(floats) double floats(int n) {
    double x = 1.0, sum = 0;
    float f = 0.5f;
    for (int i = 1; i <= n; i++) {
        x = x * 1.0000001 + 1.0 / i;
        f = f * 1.5f - (float)i / 3;
        sum += x * __builtin_sqrt((double)i) - (double)f;
        if (f < -1e30f) f = 1;
    }
    return sum;
}

/* A NaN's bits must not depend on where the program stopped. */
static volatile double cell;
E(nans) u64 nans(int n) {
    u64 hash = 0;
    volatile double zero = 0;
    for (int i = 0; i < n; i++) {
        double x = zero / zero, y = -x;
        if (i & 1) x = __builtin_copysign(x, -1.0);
        cell = i % 3 ? x : y;
        u64 bits;
        double back = cell + fib(3);
        __builtin_memcpy(&bits, &back, 8);
        hash = hash * 31 + bits;
        u64 other = 0x7ff4000000000123ull + (u64)i; /* a NaN that came from memory keeps its payload */
        __builtin_memcpy(&back, &other, 8);
        cell = back;
        fib(2);
        __builtin_memcpy(&bits, (void *)&cell, 8);
        hash = hash * 31 + bits;
    }
    return hash;
}

typedef int v4 __attribute__((vector_size(16)));
typedef float f4 __attribute__((vector_size(16)));
E(vectors) u32 vectors(int n) {
    v4 a = {1, 2, 3, 4}, b = {n, n + 1, n + 2, n + 3};
    f4 f = {0.5f, 1.5f, 2.5f, 3.5f};
    for (int i = 0; i < n; i++) {
        a = a * b + (v4){i, i, i, i};
        b = b ^ (a >> 3);
        f = f * (f4){0.99f, 0.98f, 1.01f, 1.0f} + (f4){1, 2, 3, 4};
        if (i % 7 == 0) a[i & 3] += fib(4);
    }
    return (u32)(a[0] ^ a[1] ^ a[2] ^ a[3]) + (u32)(f[0] + f[1] + f[2] + f[3]);
}

static u8 area[3 << 20];
E(bulk) u32 bulk(u32 n) {
    u32 sum = 0;
    seed = n;
    for (u32 i = 0; i < n; i++) {
        u32 size = i % 3 ? next() >> 20 : 700000 + (next() >> 12), from = next() >> 12, to = next() >> 12;
        __builtin_memset(area + from, (int)i, size);
        __builtin_memmove(area + to, area + from / 2, size);
        area[to] = (u8)i;
        sum = sum * 31 + area[from + size / 2] + area[to + size - 1] * 256;
    }
    return sum;
}

E(grow) int grow(int n) {
    int sum = 0;
    for (int i = 0; i < n; i++) {
        int before = (int)__builtin_wasm_memory_grow(0, 1);
        if (before < 0) return -i;
        ((u8 *)(before * 65536))[i] = (u8)(i + 1);
        sum += ((u8 *)(before * 65536))[i] * fib(3);
    }
    return sum;
}

E(endless) int endless(int n) { return n + endless(n + 1) * 2; }
