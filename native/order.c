/* Ordering prefixes: a counting sort by the nearest token, then multikey quicksort (Bentley and Sedgewick 1997). */
#include "match.h"
#include "tokens.h"

#define FEW 12 /* prefixes that are sorted by insertion */

/* What orders prefixes at a depth. After the last token that counts it is the position. */
static inline uint32_t key_at(const md_tokens *tokens, uint32_t position, size_t depth) {
    return depth < MD_LONGEST ? md_before(tokens, position, depth) : position;
}

/* Whether a stands before b; they share `depth` tokens. */
static int is_before(const md_tokens *tokens, uint32_t a, uint32_t b, size_t depth) {
    for (; depth < MD_LONGEST; depth++) {
        const uint32_t x = md_before(tokens, a, depth), y = md_before(tokens, b, depth);
        if (x != y) return x < y;
        if (x == UINT32_MAX) break; /* both documents begin here */
    }
    return a < b;
}

static void insert(const md_tokens *tokens, uint32_t *prefixes, size_t m, size_t depth) {
    for (size_t i = 1; i < m; i++) {
        const uint32_t moved = prefixes[i];
        size_t j = i;
        for (; j > 0 && is_before(tokens, moved, prefixes[j - 1], depth); j--) prefixes[j] = prefixes[j - 1];
        prefixes[j] = moved;
    }
}

static uint32_t middle_of(uint32_t a, uint32_t b, uint32_t c) {
    if (a < b) return b < c ? b : a < c ? c : a;
    return a < c ? a : b < c ? c : b;
}

/* The middle of three keys at places that no text can foresee: a few passes a depth, whatever the text. */
static uint32_t pivot_of(const md_tokens *tokens, const uint32_t *prefixes, size_t m, size_t depth, uint64_t *random) {
    uint32_t keys[3];
    for (int i = 0; i < 3; i++) {
        *random = *random * 6364136223846793005u + 1442695040888963407u; /* Knuth's MMIX */
        keys[i] = key_at(tokens, prefixes[(*random >> 33) % m], depth);
    }
    return middle_of(keys[0], keys[1], keys[2]);
}

static void sort(const md_tokens *tokens, uint32_t *prefixes, size_t m, size_t depth, uint64_t *random) {
    while (m > FEW) {
        const uint32_t pivot = pivot_of(tokens, prefixes, m, depth, random);
        size_t less = 0, more = m; /* prefixes[0, less) before the pivot, [more, m) after it */
        for (size_t i = 0; i < more;) {
            const uint32_t moved = prefixes[i], key = key_at(tokens, moved, depth);
            if (key < pivot) {
                prefixes[i++] = prefixes[less];
                prefixes[less++] = moved;
            } else if (key > pivot) {
                prefixes[i] = prefixes[--more];
                prefixes[more] = moved;
            } else {
                i++;
            }
        }
        /* Of three parts the longest goes on here: the others have at most half, so the stack stays small. */
        const size_t deeper = depth >= MD_LONGEST ? depth : pivot == UINT32_MAX ? MD_LONGEST : depth + 1;
        const size_t same = depth >= MD_LONGEST ? 0 : more - less; /* positions differ */
        const size_t after = m - more;
        if (same >= less && same >= after) {
            sort(tokens, prefixes, less, depth, random);
            sort(tokens, prefixes + more, after, depth, random);
            prefixes += less, m = same, depth = deeper;
        } else if (less >= after) {
            sort(tokens, prefixes + less, same, deeper, random);
            sort(tokens, prefixes + more, after, depth, random);
            m = less;
        } else {
            sort(tokens, prefixes, less, depth, random);
            sort(tokens, prefixes + less, same, deeper, random);
            prefixes += more, m = after;
        }
    }
    insert(tokens, prefixes, m, depth);
}

void md_sort_prefixes(const md_tokens *tokens, uint32_t *prefixes, size_t m, size_t shared) {
    uint64_t random = m;
    sort(tokens, prefixes, m, shared, &random);
}

size_t md_group_prefixes(const md_tokens *tokens, uint32_t *prefixes, size_t m, uint64_t *ends) {
    uint64_t total = 0;
    for (uint32_t id = 0; id < tokens->n_vocab; id++) ends[id] = 0;
    for (size_t i = 1; i < tokens->n; i++) {
        const uint32_t before = md_before(tokens, i, 0);
        if (before != UINT32_MAX && md_token(tokens, i) < tokens->n_vocab) ends[before]++, total++;
    }
    if (total > m) return (size_t)total;
    for (uint64_t sum = 0, id = 0; id < tokens->n_vocab; id++) {
        const uint64_t count = ends[id];
        ends[id] = sum;
        sum += count;
    }
    for (size_t i = 1; i < tokens->n; i++) {
        const uint32_t before = md_before(tokens, i, 0);
        if (before != UINT32_MAX && md_token(tokens, i) < tokens->n_vocab) prefixes[ends[before]++] = (uint32_t)i;
    }
    return (size_t)total;
}
