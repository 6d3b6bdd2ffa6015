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

/* The largest weight takes what rounding and the floor leave: the sum stays 1. It is at least 1 / n_rows, so it bears
 * that. The base's weight comes last and from the others, since md_rest is how the next call knows it. */
static void settle(double *weights, size_t n_rows) {
    size_t largest = 0;
    double rest = 1.0;
    for (size_t k = 0; k < n_rows; k++) {
        if (weights[k] < MD_LEAST_WEIGHT) weights[k] = MD_LEAST_WEIGHT;
        if (weights[k] > weights[largest]) largest = k;
    }
    for (size_t k = 0; k < n_rows; k++)
        if (k != largest) rest -= weights[k];
    weights[largest] = rest;
    weights[0] = md_rest(weights, n_rows);
}

double md_learn(double *weights, size_t n_rows, const md_rule *rule, const double *log_probs) {
    double ratios[MD_MAX_ROWS], most = -INFINITY, sum = 0.0; /* ratios: p_i / exp(most) */
    for (size_t k = 0; k < n_rows; k++)
        if (weights[k] > 0.0 && log_probs[k] > most) most = log_probs[k];
    if (most == -INFINITY) return -INFINITY;
    for (size_t k = 0; k < n_rows; k++) {
        ratios[k] = weights[k] > 0.0 ? exp(log_probs[k] - most) : 0.0; /* without weight it may be infinite */
        sum += weights[k] * ratios[k];
    }
    if (rule->eta > 0.0) {
        for (size_t k = 0; k < n_rows; k++) {
            const double gained = weights[k] * (1.0 - rule->eta + rule->eta * ratios[k] / sum);
            weights[k] = (1.0 - rule->share) * gained + rule->share * rule->initial[k];
        }
        settle(weights, n_rows);
    }
    return most + log(sum);
}
