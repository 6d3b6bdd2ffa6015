/* The longest match of a context in documents, and the order of their positions that finds it by binary search.
 *
 * Documents are tokens one after another; an id of n_vocab or more ends a document. A prefix is a position: it stands
 * for the tokens before it, the nearest first, up to the document's beginning. Prefixes are ordered by their nearest
 * MD_LONGEST tokens, an end after all ids, and equal ones by position. Nothing here trusts the arrays to be so. */
#ifndef MEMDEC_MATCH_H
#define MEMDEC_MATCH_H

#include <stddef.h>
#include <stdint.h>

#define MD_LONGEST 48 /* tokens of a match; LONGEST and MOST of memdec_edge/mixture/rows.py */
#define MD_MOST 1024  /* occurrences that are counted */

typedef struct {
    const void *ids; /* uint16_t or uint32_t [n] */
    size_t n;
    int narrow; /* uint16_t */
    uint32_t n_vocab;
} md_tokens;

typedef struct {
    size_t length; /* tokens that matched; 0: none */
    size_t count;  /* distinct tokens that follow */
    size_t where;  /* position of the likeliest, the first of those counted; it means nothing without a match */
} md_match;

/* prefixes[m] sorted. newest[0], newest[-1], ... newest[1 - length] is the context, newest token first. Writes the
 * tokens that follow, rising, and their shares to ids[MD_MOST], probs[MD_MOST]. */
md_match md_longest_match(const md_tokens *tokens, const uint32_t *prefixes, size_t m, const int32_t *newest,
                          size_t length, int32_t *ids, float *probs);

/* Positions with a token before them in the same document into prefixes[m], by that token and then by position;
 * ends[n_vocab] says where those after each token end. Returns how many there are; none is written where there are more
 * than m. */
size_t md_group_prefixes(const md_tokens *tokens, uint32_t *prefixes, size_t m, uint64_t *ends);

/* Sorts prefixes[m] whose nearest `shared` tokens are the same, in place. */
void md_sort_prefixes(const md_tokens *tokens, uint32_t *prefixes, size_t m, size_t shared);

#endif
