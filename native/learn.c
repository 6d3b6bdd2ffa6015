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

size_t md_class(const md_sparse *matches, size_t n_sparse) {
    int32_t klass = 0;
    for (size_t k = 0; k < n_sparse; k++)
        if (matches[k].klass > klass) klass = matches[k].klass;
    return (size_t)klass;
}

size_t md_speak(const md_weights *weights, md_row *rows, size_t n_rows, md_sparse *matches, size_t n_sparse) {
    const size_t klass = md_class(matches, n_sparse);
    const double *vector = weights->of[klass];
    double silent = 0.0, sum = 0.0;
    for (size_t k = 0; k < n_rows; k++) sum += rows[k].weight = vector[k];
    for (size_t k = 0; k < n_sparse; k++) {
        const double weight = klass > 0 ? vector[n_rows + k] : 0.0;
        matches[k].weight = matches[k].klass > 0 ? weight : 0.0;
        (matches[k].klass > 0 ? (sum += weight) : (silent += weight));
    }
    if (silent > 0.0 && sum <= 0.0) rows[0].weight = 1.0;
    if (silent > 0.0 && sum > 0.0) {
        for (size_t k = 0; k < n_rows; k++) rows[k].weight /= sum;
        for (size_t k = 0; k < n_sparse; k++) matches[k].weight /= sum;
    }
    return klass;
}

void md_sparse_log_probs(const md_sparse *matches, size_t n_sparse, int32_t token, double *log_probs) {
    for (size_t k = 0; k < n_sparse; k++) {
        log_probs[k] = -INFINITY;
        for (size_t i = 0; i < matches[k].length; i++)
            if (matches[k].ids[i] == token) log_probs[k] = log(matches[k].probs[i]);
    }
}

double md_learn(double *weights, size_t n_voices, const md_rule *rule, size_t klass, const double *log_probs) {
    double spoken[MD_MAX_ROWS], parts[MD_MAX_ROWS], most = -INFINITY, sum = 0.0, awake = 0.0;
    int silent = 0; /* how many; they lend their weight, as md_speak does */
    for (size_t k = 0; k < n_voices; k++) {
        spoken[k] = isnan(log_probs[k]) ? 0.0 : weights[k];
        silent += isnan(log_probs[k]) != 0;
        awake += spoken[k];
    }
    if (silent > 0 && awake <= 0.0) spoken[0] = 1.0;
    if (silent > 0 && awake > 0.0)
        for (size_t k = 0; k < n_voices; k++) spoken[k] /= awake;
    for (size_t k = 0; k < n_voices; k++)
        if (spoken[k] > 0.0 && log_probs[k] > most) most = log_probs[k];
    if (most == -INFINITY) return -INFINITY;
    for (size_t k = 0; k < n_voices; k++) { /* w_i p_i / exp(most); without weight p_i may be infinite */
        parts[k] = spoken[k] > 0.0 ? spoken[k] * exp(log_probs[k] - most) : 0.0;
        sum += parts[k];
    }
    if (rule->eta > 0.0) {
        for (size_t k = 0; k < n_voices; k++) {
            double posterior = parts[k] / sum;
            if (silent > 0) posterior = isnan(log_probs[k]) ? weights[k] : posterior * awake;
            const double learned = (1.0 - rule->eta) * weights[k] + rule->eta * posterior;
            weights[k] = (1.0 - rule->share) * learned + rule->share * rule->initial.of[klass][k];
        }
        lift(weights, n_voices);
    }
    return most + log(sum);
}
