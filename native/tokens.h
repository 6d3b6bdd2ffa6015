/* Reading the tokens of documents, whatever a position says; for match.c and order.c. */
#ifndef MEMDEC_TOKENS_H
#define MEMDEC_TOKENS_H

#include "match.h"

static inline uint32_t md_token(const md_tokens *tokens, size_t i) {
    return tokens->narrow ? ((const uint16_t *)tokens->ids)[i] : ((const uint32_t *)tokens->ids)[i];
}

/* The token `depth` tokens before the one that stands before a position; UINT32_MAX where a document ends, or the
 * position lies outside. */
static inline uint32_t md_before(const md_tokens *tokens, size_t position, size_t depth) {
    if (depth >= position || position > tokens->n) return UINT32_MAX;
    const uint32_t id = md_token(tokens, position - 1 - depth);
    return id < tokens->n_vocab ? id : UINT32_MAX;
}

#endif
