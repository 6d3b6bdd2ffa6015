/* The seeded sample of the next token, one rule for drafting and for verification.
 *
 *   sample = argmax over the kept tokens of  logit / T + g(seed, position, token)      g: Gumbel noise, -log(-log(u))
 *
 * which draws from softmax(logits / T) of the kept tokens (the Gumbel-max trick). T = 0: the largest logit. The lowest
 * id wins a tie. Kept is what llama.cpp's samplers leave, in its order top-k, top-p, min-p, temperature: each a prefix
 * of the list by falling logit (equal logits by rising id). Seed and position are all the state of the noise, so draft
 * and verification meet the same. Knows nothing of Python and of llama.cpp.
 */
#ifndef MEMDEC_SAMPLE_H
#define MEMDEC_SAMPLE_H

#include <stddef.h>
#include <stdint.h>

#include "learn.h"
#include "mix.h"

#define MD_GREEDY 1e-30 /* logit / T stays finite */

typedef struct {
    size_t top_k;       /* 0: off */
    double top_p;       /* >= 1: off; at least one token stays */
    double min_p;       /* <= 0: off; at least one token stays */
    double temperature; /* below MD_GREEDY: 0 */
    uint32_t seed;
    const int32_t *suppressed; /* [n_suppressed], a few: count as -infinity; ids beyond the row do nothing */
    size_t n_suppressed;
} md_choice;

#define MD_SCRATCH(n_vocab) (2 * (n_vocab)) /* floats */

/* row[n], n >= 1; scratch[MD_SCRATCH(n)]. *token is -1 where no token is possible. -infinity and NaN are never sampled;
 * a +infinity or, where top-p needs all of the row, a NaN is MD_BAD_ROW. */
md_status md_sample(const float *row, size_t n, const md_choice *choice, uint64_t position, float *scratch,
                  int32_t *token);

#define MD_MAX_VERIFIED 17 /* positions: a draft of 16 tokens and the one after it */

typedef struct {
    int32_t token;                 /* -1: none is possible */
    double log_prob;               /* of the mixture, nats: neither the chain nor `suppressed` changes it */
    double log_probs[MD_MAX_ROWS]; /* of each row, then of each index, in the same manner */
    double weights[MD_MAX_ROWS];   /* of the same in this mixture */
} md_sampled;

/* Mix and sample position after position, until a sample differs from the draft or positions end.
 * rows[n_rows]: logits [n_positions, length] each; afterwards at the last mixed position. matches[n_positions, n_sparse]:
 * of each index at each position; their weights are set. weights: of each class, afterwards those that follow from the
 * last token. rule: how they learn from each token; NULL: they do not. draft[n_draft]; out[n_vocab]: the last mixed row,
 * stats[n_rows]: its rows'; sampled[n_positions]: the first *n_sampled hold samples. */
md_status md_verify(md_row *rows, size_t n_rows, md_sparse *matches, size_t n_sparse, size_t n_positions,
                    md_weights *weights, const md_rule *rule, const int32_t *draft, size_t n_draft,
                    const md_choice *choice, uint64_t position, float *out, size_t n_vocab, float *scratch,
                    md_stats *stats, md_sampled *sampled, size_t *n_sampled);

#endif
