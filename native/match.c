/* The lookup: one binary search for where the context would stand, two for the range of its longest match. */
#include "match.h"

#include <string.h>

#include "tokens.h"

#define MAX_STEPS 40 /* of a binary search among 2^32 */

typedef struct {
    const md_tokens *tokens;
    const uint32_t *prefixes;
    const int32_t *newest; /* the pattern: newest[0], newest[-1], ... */
    size_t length;
} search;

/* Compares prefix i with the pattern's first `length` tokens, of which it shares `*shared` already; updates that.
 * Negative: it stands before the pattern. 0: it begins with the pattern. */
static int compare(const search *s, size_t i, size_t length, size_t *shared) {
    const size_t position = s->prefixes[i];
    size_t depth = *shared;
    for (; depth < length; depth++) {
        const uint32_t key = md_before(s->tokens, position, depth), wanted = (uint32_t)s->newest[-(ptrdiff_t)depth];
        if (key == wanted) continue;
        *shared = depth;
        return key < wanted ? -1 : 1;
    }
    *shared = depth;
    return 0;
}

/* In [low, high]: the first prefix that begins with the pattern's first `length` tokens or stands after them; with
 * `after` the first that stands after all those. All prefixes in between share `shared` tokens with it. */
static size_t first(const search *s, size_t low, size_t high, size_t length, size_t shared, int after) {
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        size_t depth = shared;
        const int order = compare(s, middle, length, &depth);
        if (order < 0 || (after && order == 0)) low = middle + 1;
        else high = middle;
    }
    return low;
}

typedef struct {
    size_t at, shared;
} probe;

/* [low, high): the prefixes that share the most tokens with the pattern. Returns how many tokens those are. */
static size_t longest(const search *s, size_t m, size_t *low, size_t *high) {
    probe left[MAX_STEPS], right[MAX_STEPS]; /* ever nearer to where the pattern would stand, from each side */
    size_t n_left = 0, n_right = 0, begin = 0, end = m, most = 0;
    while (begin < end) {
        const size_t middle = begin + (end - begin) / 2;
        const size_t a = n_left ? left[n_left - 1].shared : 0, b = n_right ? right[n_right - 1].shared : 0;
        size_t shared = a < b ? a : b;
        const int order = compare(s, middle, s->length, &shared);
        probe *found = order < 0 ? &left[n_left++] : &right[n_right++];
        found->at = middle;
        found->shared = shared;
        if (shared > most) most = shared;
        if (order < 0) begin = middle + 1;
        else end = middle;
    }
    /* The range begins after the last probe from the left that shares less, at the first that shares as much. */
    size_t k = 0, outside = 0, inside = begin, shared = 0;
    for (; k < n_left && left[k].shared < most; k++) outside = left[k].at + 1, shared = left[k].shared;
    if (k < n_left) inside = left[k].at;
    *low = first(s, outside, inside, most, shared, 0);
    outside = m, inside = begin, shared = 0;
    for (k = 0; k < n_right && right[k].shared < most; k++) outside = right[k].at, shared = right[k].shared;
    if (k < n_right) inside = right[k].at + 1;
    *high = first(s, inside, outside, most, shared, 1);
    return most;
}

typedef struct {
    uint32_t id, position;
} occurrence;

/* By rising id, those of one id in the order in which they are; `spare` has room for as many. */
static void sort_by_id(occurrence *found, occurrence *spare, size_t n) {
    uint32_t largest = 0;
    if (n <= 24) {
        for (size_t i = 1; i < n; i++) {
            const occurrence moved = found[i];
            size_t j = i;
            for (; j > 0 && found[j - 1].id > moved.id; j--) found[j] = found[j - 1];
            found[j] = moved;
        }
        return;
    }
    for (size_t i = 0; i < n; i++) largest |= found[i].id;
    for (unsigned shift = 0; shift < 32 && largest >> shift; shift += 8) {
        size_t starts[257] = {0};
        for (size_t i = 0; i < n; i++) starts[((found[i].id >> shift) & 255) + 1]++;
        for (size_t b = 1; b < 256; b++) starts[b] += starts[b - 1];
        for (size_t i = 0; i < n; i++) spare[starts[(found[i].id >> shift) & 255]++] = found[i];
        memcpy(found, spare, n * sizeof *found);
    }
}

md_match md_longest_match(const md_tokens *tokens, const uint32_t *prefixes, size_t m, const int32_t *newest,
                          size_t length, int32_t *ids, float *probs) {
    occurrence found[MD_MOST], spare[MD_MOST];
    md_match match = {0, 0, 0};
    size_t known = 0, low, high, n = 0, best = 0;
    while (known < length && known < MD_LONGEST && (uint32_t)newest[-(ptrdiff_t)known] < tokens->n_vocab) known++;
    const search s = {tokens, prefixes, newest, known};
    const size_t shared = longest(&s, m, &low, &high);
    if (shared == 0 || high <= low) return match;
    const size_t all = high - low, counted = all < MD_MOST ? all : MD_MOST;
    for (size_t i = 0; i < counted; i++) /* all < 2^32 */
        found[i].position = prefixes[low + (all > MD_MOST ? (size_t)((uint64_t)i * all / MD_MOST) : i)];
    for (size_t i = 0; i < counted; i++) {
        const uint32_t position = found[i].position;
        const uint32_t id = position < tokens->n ? md_token(tokens, position) : UINT32_MAX;
        if (id >= tokens->n_vocab) continue; /* only in a damaged index */
        found[n].id = id;
        found[n++].position = position;
    }
    sort_by_id(found, spare, n);
    for (size_t i = 0; i < n;) {
        const size_t begin = i;
        uint32_t where = found[i].position;
        for (; i < n && found[i].id == found[begin].id; i++)
            if (found[i].position < where) where = found[i].position;
        if (i - begin > best) {
            best = i - begin;
            match.where = where;
        }
        ids[match.count] = (int32_t)found[begin].id;
        probs[match.count++] = (float)(i - begin) / (float)n;
    }
    match.length = match.count ? shared : 0;
    return match;
}
