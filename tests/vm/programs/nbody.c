/* Floating point: bodies that attract each other, from a start of our own. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define BODIES 5

typedef struct {
    double at[3], speed[3], mass;
} Body;

static Body bodies[BODIES];

static double energy(void) {
    double sum = 0;
    for (int i = 0; i < BODIES; i++) {
        const Body *a = &bodies[i];
        sum += a->mass * (a->speed[0] * a->speed[0] + a->speed[1] * a->speed[1] + a->speed[2] * a->speed[2]) / 2;
        for (int j = i + 1; j < BODIES; j++) {
            double square = 0;
            for (int k = 0; k < 3; k++) square += (a->at[k] - bodies[j].at[k]) * (a->at[k] - bodies[j].at[k]);
            sum -= a->mass * bodies[j].mass / sqrt(square);
        }
    }
    return sum;
}

static void advance(double step) {
    for (int i = 0; i < BODIES; i++)
        for (int j = i + 1; j < BODIES; j++) {
            Body *a = &bodies[i], *b = &bodies[j];
            double away[3], square = 0;
            for (int k = 0; k < 3; k++) away[k] = a->at[k] - b->at[k], square += away[k] * away[k];
            double pull = step / (square * sqrt(square));
            for (int k = 0; k < 3; k++) a->speed[k] -= away[k] * b->mass * pull, b->speed[k] += away[k] * a->mass * pull;
        }
    for (int i = 0; i < BODIES; i++)
        for (int k = 0; k < 3; k++) bodies[i].at[k] += step * bodies[i].speed[k];
}

int main(int argc, char **argv) {
    int n = argc > 1 ? atoi(argv[1]) : 100;
    for (int i = 0; i < BODIES; i++) {
        double far = 3.0 * i, turn = 1.7 * i;
        bodies[i] = (Body){{far * cos(turn), far * sin(turn), 0.1 * i}, {-sin(turn) / (i + 1), cos(turn) / (i + 1), 0.01 * i}, i ? 0.02 / i : 40.0};
    }
    printf("%.12f\n", energy());
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < n / 4; i++) advance(0.001);
        printf("%.12f %a\n", energy(), bodies[1].at[0]);
    }
    return 0;
}
