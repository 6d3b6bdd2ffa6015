/* The mixture of next-token distributions (arXiv 2508.09874, section 3.3), on the scale of logits.
 *
 *   out[y] = log(sum_i w_i p_i(y)) + sum_i w_i logsumexp_i        p_i = softmax(logits_i / T_i)
 *
 * A row's softmax leaves out ids beyond the end of `out`. Ids that a row lacks have p_i = 0. The second term keeps the
 * sign and size of raw logits, which llama.cpp's repeat penalty looks at. A sparse voice has probabilities of a few
 * tokens and no logits: its logsumexp counts as the first row's. Knows nothing of Python and of llama.cpp.
 */
#ifndef MEMDEC_MIX_H
#define MEMDEC_MIX_H

#include <stddef.h>
#include <stdint.h>

#define MD_MAX_ROWS 17 /* the base, memories and indexes, 16 together: lets the constants live on the stack */

typedef enum {
    MD_OK = 0,
    MD_BAD_ROW = 1, /* a NaN, a +infinity, nothing but -infinity, or a maximum beyond MD_LARGEST */
    MD_NO_ROWS = 2  /* sampler only: the caller set no rows of memories */
} md_status;

#define MD_LARGEST 1e30 /* of |maximum / T|: keeps float arithmetic on shifted logits finite */

typedef struct {
    const float *logits; /* [length], caller-owned, 4-byte aligned */
    size_t length;       /* >= 1 */
    double weight;       /* 0 .. 1; all of a mixture sum to 1 */
    double temperature;  /* 1e-4 .. 1e4: what float arithmetic on logits / T bears */
} md_row;

typedef struct {
    double maximum;   /* of logits / T */
    double logsumexp; /* log of the sum of exp(logits / T) */
    double entropy;   /* of softmax(logits / T), nats */
} md_stats;

/* What an index says of the next token after a match. */
typedef struct {
    const int32_t *ids; /* [length], below the end of `out` */
    const float *probs; /* [length], they sum to 1 */
    size_t length;      /* 0: it has no match, and is silent */
    double weight;      /* as of a row; 0 where it is silent */
    int32_t klass;      /* of the match's length, below MD_CLASSES; 0: no match */
} md_sparse;

#define MD_CLASSES 9

/* Statistics of one row: stats[1]. */
md_status md_row_stats(const md_row *row, md_stats *stats);

/* rows[n_rows], sparse[n_sparse] (NULL for none), out[n] overlapping no row, stats[n_rows]. A failure leaves `out` as it
 * was. One row with weight 1 at T = 1, all others 0: that row bit for bit, -infinity beyond its end. */
md_status md_mix(const md_row *rows, size_t n_rows, const md_sparse *sparse, size_t n_sparse, float *out, size_t n,
                 md_stats *stats);

/* The instruction-set variants that this machine runs, best first; index < md_variant_count(). */
size_t md_variant_count(void);
const char *md_variant_name(size_t index);
size_t md_variant_selected(void);
void md_variant_select(size_t index);

#endif
