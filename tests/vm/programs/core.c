/* What CoreMark does, in our own words: a list that is sorted both ways, an integer matrix, a state machine over text, a checksum of all. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define NODES 300
#define SIDE 16

typedef struct Node {
    struct Node *next;
    int value, place;
} Node;

static Node nodes[NODES];
static int16_t left[SIDE][SIDE], right[SIDE][SIDE];
static const char *const texts[] = {"5012", "-874", "+122", "35.54400", ".1234500", "-110.700", "5.500e+3", "-.123e-2", "-87e+832", "T0.3e-1F", "1T3.4e4z", "34.0e-T^"};
enum { START, SIGN, WHOLE, FRACTION, EXPONENT, POWER, DIGITS, WRONG, STATES };

static uint16_t checked(uint16_t sum, unsigned value) {
    for (int bit = 0; bit < 16; bit++, value >>= 1) sum = (uint16_t)((sum ^ value) & 1 ? (sum >> 1) ^ 0xa001 : sum >> 1);
    return sum;
}

static int by_value(const Node *a, const Node *b) { return a->value - b->value; }
static int by_place(const Node *a, const Node *b) { return a->place - b->place; }

static Node *merged(Node *a, Node *b, int (*order)(const Node *, const Node *)) {
    Node head, *last = &head;
    while (a && b) {
        Node **less = order(a, b) <= 0 ? &a : &b;
        last = last->next = *less;
        *less = (*less)->next;
    }
    last->next = a ? a : b;
    return head.next;
}

static Node *sorted(Node *list, int (*order)(const Node *, const Node *)) {
    if (!list || !list->next) return list;
    Node *slow = list, *fast = list->next;
    while (fast && fast->next) slow = slow->next, fast = fast->next->next;
    Node *half = slow->next;
    slow->next = 0;
    return merged(sorted(list, order), sorted(half, order), order);
}

static uint16_t lists(int round) {
    for (int i = 0; i < NODES; i++) nodes[i] = (Node){i + 1 < NODES ? &nodes[i + 1] : 0, i * round * 7919 & 0x7fff, i};
    uint16_t sum = 0;
    Node *list = sorted(nodes, by_value);
    for (Node *node = list; node; node = node->next) sum = checked(sum, (unsigned)node->value);
    list = sorted(list, by_place);
    for (Node *node = list; node; node = node->next) sum = checked(sum, (unsigned)node->place);
    return sum;
}

static uint16_t matrices(int round) {
    uint16_t sum = 0;
    for (int i = 0; i < SIDE * SIDE; i++) left[i / SIDE][i % SIDE] = (int16_t)(i * round), right[i / SIDE][i % SIDE] = (int16_t)(i + round);
    for (int i = 0; i < SIDE; i++)
        for (int j = 0; j < SIDE; j++) {
            int whole = 0, bits = 0;
            for (int k = 0; k < SIDE; k++) {
                int product = left[i][k] * right[k][j];
                whole += product;
                bits += (product >> 2 & 15) * (product >> 5 & 127);
            }
            sum = checked(sum, (unsigned)(whole + bits));
        }
    return sum;
}

static int follows(int state, char c) {
    int digit = c >= '0' && c <= '9', sign = c == '+' || c == '-';
    switch (state) {
    case START: return digit ? WHOLE : sign ? SIGN : c == '.' ? FRACTION : WRONG;
    case SIGN: return digit ? WHOLE : c == '.' ? FRACTION : WRONG;
    case WHOLE: return digit ? WHOLE : c == '.' ? FRACTION : c == 'e' ? EXPONENT : WRONG;
    case FRACTION: return digit ? FRACTION : c == 'e' ? EXPONENT : WRONG;
    case EXPONENT: return sign ? POWER : digit ? DIGITS : WRONG;
    case POWER:
    case DIGITS: return digit ? DIGITS : WRONG;
    default: return WRONG;
    }
}

static uint16_t words(int round) {
    unsigned count[STATES] = {0};
    for (int i = 0; i < 60; i++) {
        int state = START;
        for (const char *c = texts[i * round % 12]; *c; c++) count[state = follows(state, *c)]++;
    }
    uint16_t sum = 0;
    for (int i = 0; i < STATES; i++) sum = checked(sum, count[i]);
    return sum;
}

int main(int argc, char **argv) {
    int n = argc > 1 ? atoi(argv[1]) : 10;
    uint16_t sum = 0;
    for (int round = 1; round <= n; round++) {
        sum = checked(checked(checked(sum, lists(round)), matrices(round)), words(round));
        if (round % (n / 4 + 1) == 0) printf("%d: %04x\n", round, sum);
    }
    printf("%04x\n", sum);
    return sum & 63;
}
