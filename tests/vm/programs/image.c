/* Initialises itself, waits at the marker as `ipos.vm.image_runner` does, then becomes what it is told: prints it, its input, random bytes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static unsigned table[1 << 14];

int main(int argc, char **argv) {
    char byte, told[4096], line[256];
    if (argc > 1 && !strcmp(argv[1], "ends")) return 3;
    if (argc > 1 && !strcmp(argv[1], "prints")) puts("early");
    if (argc > 1 && !strcmp(argv[1], "holds")) fopen("/kept", "w");
    fflush(stdout);
    for (unsigned i = 0, x = 1; i < 1 << 14; i++) table[i] = x = x * 1664525 + 1013904223;
    pread(0, &byte, 1, 0);
    FILE *start = fopen("/.ipos-start", "r");
    if (!start) return 4;
    told[fread(told, 1, sizeof told - 1, start)] = 0;
    fclose(start);
    unlink("/.ipos-start");
    unsigned long long seed = 0;
    getentropy(&seed, sizeof seed);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    printf("%s %llx %d\n", told, seed, now.tv_sec == 1700000000);
    while (fgets(line, sizeof line, stdin)) {
        unsigned sum = 0;
        for (int n = 0; n < 20; n++)
            for (unsigned i = 0; i < 1 << 14; i++) sum = sum * 31 + (table[i] ^= sum);
        printf("%x %s", sum, line);
    }
    return 7;
}
