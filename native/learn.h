/* The online weight: Soft-Bayes (Orseau, Lattimore and Legg 2017) over the models of a mixture, after each token
 *
 *   w_i <- (1 - share) w_i (1 - eta + eta p_i / p_mix) + share initial_i        p_mix = sum_i w_i p_i
 *
 * where p_i is what model i gave to the token. The sum of the weights stays 1; eta 1 and share 0 are Bayes' rule. Knows
 * nothing of Python and of llama.cpp.
 */
#ifndef MEMDEC_LEARN_H
#define MEMDEC_LEARN_H

#include <stddef.h>
#include <stdint.h>

#include "mix.h"

#define MD_LEAST_WEIGHT 1e-4 /* no weight falls below it */

typedef struct {
    double eta, share;           /* 0 .. 1; eta 0: the weights stay as they are */
    double initial[MD_MAX_ROWS]; /* sum to 1 */
} md_rule;

/* The first of the weights, the base's: what the others leave. */
double md_rest(const double *weights, size_t n_rows);

/* log_probs[n_rows] of `token` in the rows whose statistics are stats[n_rows]; -infinity where a row lacks it. */
void md_log_probs(const md_row *rows, const md_stats *stats, size_t n_rows, int32_t token, double *log_probs);

/* Returns log p_mix of a token that has log_probs[n_rows], none of them NaN or +infinity, and updates weights[n_rows].
 * A token that is impossible for all models returns -infinity and leaves the weights. */
double md_learn(double *weights, size_t n_rows, const md_rule *rule, const double *log_probs);

#endif
