/* The online weight. All of it in double: a handful of numbers for each token. */
#include "learn.h"

#include <math.h>

double md_rest(const double *weights, size_t n_rows) {
    double sum = 0.0;
    for (size_t k = 1; k < n_rows; k++) sum += weights[k];
    return sum < 1.0 ? 1.0 - sum : 0.0;
}

void md_log_probs(const md_row *rows, const md_stats *stats, size_t n_rows, int32_t token, double *log_probs) {
    for (size_t k = 0; k < n_rows; k++) {
        const int known = token >= 0 && (size_t)token < rows[k].length;
        log_probs[k] = known ? rows[k].logits[token] / rows[k].temperature - stats[k].logsumexp : -INFINITY;
    }
}

/* Scales what exceeds the floor so that the sum is 1 again; where no weight was below, that only mends rounding. The
 * base gets what the others leave, since the next call knows its weight from md_rest. */
static void lift(double *weights, size_t n_rows) {
    double excess = 0.0;
    for (size_t k = 0; k < n_rows; k++) excess += fmax(weights[k] - MD_LEAST_WEIGHT, 0.0);
    const double factor = (1.0 - MD_LEAST_WEIGHT * (double)n_rows) / excess;
    for (size_t k = 1; k < n_rows; k++)
        weights[k] = MD_LEAST_WEIGHT + factor * fmax(weights[k] - MD_LEAST_WEIGHT, 0.0);
    weights[0] = md_rest(weights, n_rows);
}

double md_learn(double *weights, size_t n_rows, const md_rule *rule, const double *log_probs) {
    double parts[MD_MAX_ROWS], most = -INFINITY, sum = 0.0; /* parts: w_i p_i / exp(most) */
    for (size_t k = 0; k < n_rows; k++)
        if (weights[k] > 0.0 && log_probs[k] > most) most = log_probs[k];
    if (most == -INFINITY) return -INFINITY;
    for (size_t k = 0; k < n_rows; k++) {
        parts[k] = weights[k] > 0.0 ? weights[k] * exp(log_probs[k] - most) : 0.0; /* without weight: maybe infinite */
        sum += parts[k];
    }
    if (rule->eta > 0.0) {
        for (size_t k = 0; k < n_rows; k++) {
            const double learned = (1.0 - rule->eta) * weights[k] + rule->eta * (parts[k] / sum);
            weights[k] = (1.0 - rule->share) * learned + rule->share * rule->initial[k];
        }
        lift(weights, n_rows);
    }
    return most + log(sum);
}
