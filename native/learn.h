/* The online weight: Soft-Bayes (Orseau, Lattimore and Legg 2017) over the models of a mixture, after each token
 *
 *   w_i <- (1 - share) w_i (1 - eta + eta p_i / p_mix) + share initial_i        p_mix = sum_i w_i p_i
 *
 * where p_i is what voice i gave to the token. The sum of the weights stays 1; eta 1 and share 0 are Bayes' rule.
 *
 * Indexes have a vector of weights for each class of match length. A token meets, and changes, the vector of the longest
 * match before it. An index without a match there is silent: the others share its weight, and it keeps it (a sleeping
 * expert of Freund, Schapire, Singer and Warmuth 1997). Knows nothing of Python and of llama.cpp.
 */
#ifndef MEMDEC_LEARN_H
#define MEMDEC_LEARN_H

#include <stddef.h>
#include <stdint.h>

#include "mix.h"

#define MD_LEAST_WEIGHT 1e-4 /* no weight falls below it */

/* One vector for each class, each sums to 1: of the base, memories and indexes; of class 0 without the indexes. */
typedef struct {
    double of[MD_CLASSES][MD_MAX_ROWS];
} md_weights;

typedef struct {
    double eta, share;  /* 0 .. 1; eta 0: the weights stay as they are */
    md_weights initial; /* for each class */
} md_rule;

/* The first of the weights, the base's: what the others leave. */
double md_rest(const double *weights, size_t n_rows);

/* The class of a position: that of the longest of its matches[n_sparse]. */
size_t md_class(const md_sparse *matches, size_t n_sparse);

/* Set the weights of rows and matches at a position: what speaks has its weight, and shares that of the silent. Where
 * nothing else has weight, the first row gets it. Returns the class. */
size_t md_speak(const md_weights *weights, md_row *rows, size_t n_rows, md_sparse *matches, size_t n_sparse);

/* log_probs[n_sparse] of `token` after the matches; -infinity where one lacks it or is silent. */
void md_sparse_log_probs(const md_sparse *matches, size_t n_sparse, int32_t token, double *log_probs);

/* log_probs[n_rows] of `token` in the rows whose statistics are stats[n_rows]; -infinity where a row lacks it. */
void md_log_probs(const md_row *rows, const md_stats *stats, size_t n_rows, int32_t token, double *log_probs);

/* Returns log p_mix of a token that has log_probs[n_voices], none of them +infinity, and updates weights[n_voices], those
 * of `klass`. NaN stands for a silent index. A token that is impossible for all voices returns -infinity and leaves the
 * weights. */
double md_learn(double *weights, size_t n_voices, const md_rule *rule, size_t klass, const double *log_probs);

#endif
