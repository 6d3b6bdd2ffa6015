/* The llama.cpp sampler: gather logits by token id, mix the contiguous row, scatter back. */
#include "sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#if defined(_MSC_VER)
#include <intrin.h>
#define COUNT(p, by) (_InterlockedExchangeAdd((volatile long *)(p), by) + (by))
#else
#define COUNT(p, by) __atomic_add_fetch(p, by, __ATOMIC_ACQ_REL)
#endif

struct md_sampler {
    long holders;
    md_sampler_init init;
    md_status status;
    size_t n_rows;
    md_row rows[MD_MAX_ROWS]; /* rows[0].logits is `gathered` */
    md_stats stats[MD_MAX_ROWS];
    md_rule rule;
    bool learns;
    bool mixed_rows;           /* rows and stats are those of the last apply, and the chain accepted no token since */
    float *gathered, *mixed;   /* [rows[0].length] each */
    float *owned[MD_MAX_ROWS]; /* a clone's copies of its memories' rows */
};

md_sampler *md_sampler_new(const md_row *rows, size_t n_rows, const md_rule *rule, md_sampler_init init) {
    md_sampler *state = calloc(1, sizeof *state);
    if (state == NULL) return NULL;
    state->holders = 1;
    state->init = init;
    state->n_rows = n_rows;
    memcpy(state->rows, rows, n_rows * sizeof *rows);
    state->learns = rule != NULL;
    if (rule != NULL) state->rule = *rule;
    state->gathered = calloc(rows[0].length, sizeof(float)); /* a clone copies it, mixed or not */
    state->mixed = malloc(rows[0].length * sizeof(float));
    if (state->gathered == NULL || state->mixed == NULL) {
        md_sampler_release(state);
        return NULL;
    }
    state->rows[0].logits = state->gathered;
    return state;
}

md_sampler *md_sampler_hold(md_sampler *state) {
    (void)COUNT(&state->holders, 1);
    return state;
}

void md_sampler_release(md_sampler *state) {
    if (COUNT(&state->holders, -1) > 0) return;
    for (size_t k = 1; k < state->n_rows; k++) free(state->owned[k]);
    free(state->gathered);
    free(state->mixed);
    free(state);
}

const md_row *md_sampler_rows(const md_sampler *state, size_t *n_rows) {
    *n_rows = state->n_rows;
    return state->rows;
}

void md_sampler_set_row(md_sampler *state, size_t index, const float *logits, size_t length) {
    state->rows[index].logits = logits;
    state->rows[index].length = length;
    state->mixed_rows = false;
    free(state->owned[index]);
    state->owned[index] = NULL;
}

void md_sampler_forget_rows(md_sampler *state) {
    state->mixed_rows = false;
    for (size_t k = 1; k < state->n_rows; k++)
        if (state->owned[k] == NULL) state->rows[k].logits = NULL;
}

md_status md_sampler_take_status(md_sampler *state) {
    const md_status status = state->status;
    state->status = MD_OK;
    return status;
}

const char *md_sampler_name(const llama_sampler *sampler) {
    (void)sampler;
    return "memdec-mixture";
}

/* A chain's first sampler gets all tokens in order of id, which is quick to gather. Any order and any part of the
 * vocabulary do, too: an absent token has no probability. Returns false for an id outside the vocabulary. */
static bool gather(float *row, size_t n, const llama_token_data_array *candidates) {
    const llama_token_data *data = candidates->data;
    size_t i = 0;
    if (candidates->size == n)
        for (; i < n && data[i].id == (int32_t)i; i++) row[i] = data[i].logit;
    if (i == n) return true;
    for (i = 0; i < n; i++) row[i] = -INFINITY;
    for (i = 0; i < candidates->size; i++) {
        if (data[i].id < 0 || (size_t)data[i].id >= n) return false;
        row[data[i].id] = data[i].logit;
    }
    return true;
}

void md_sampler_apply(llama_sampler *sampler, llama_token_data_array *candidates) {
    md_sampler *state = sampler->ctx;
    md_status status = MD_OK;
    state->mixed_rows = false;
    for (size_t k = 1; k < state->n_rows; k++)
        if (state->rows[k].logits == NULL) status = MD_NO_ROWS;
    if (status == MD_OK && !gather(state->gathered, state->rows[0].length, candidates)) status = MD_BAD_ROW;
    if (status == MD_OK)
        status = md_mix(state->rows, state->n_rows, NULL, 0, state->mixed, state->rows[0].length, state->stats);
    if (status != MD_OK) { /* a sampler cannot fail: the base's logits stay, md_sampler_take_status tells */
        if (state->status == MD_OK) state->status = status;
        return;
    }
    state->mixed_rows = true;
    for (size_t i = 0; i < candidates->size; i++) candidates->data[i].logit = state->mixed[candidates->data[i].id];
    candidates->sorted = false;
}

/* llama.cpp calls this for every sampler of a chain, and callers for tokens of a prompt, too: those met no mixture. */
void md_sampler_accept(llama_sampler *sampler, int32_t token) {
    md_sampler *state = sampler->ctx;
    double weights[MD_MAX_ROWS], log_probs[MD_MAX_ROWS];
    if (!state->learns || !state->mixed_rows) return;
    state->mixed_rows = false;
    if ((size_t)token >= state->rows[0].length) return; /* negative ones too: a longer memory's row has no say */
    for (size_t k = 0; k < state->n_rows; k++) weights[k] = state->rows[k].weight;
    md_log_probs(state->rows, state->stats, state->n_rows, token, log_probs);
    (void)md_learn(weights, state->n_rows, &state->rule, 0, log_probs);
    for (size_t k = 0; k < state->n_rows; k++) state->rows[k].weight = weights[k];
}

void md_sampler_reset(llama_sampler *sampler) {
    md_sampler *state = sampler->ctx;
    state->status = MD_OK;
    state->mixed_rows = false;
    if (!state->learns) return;
    for (size_t k = 0; k < state->n_rows; k++) state->rows[k].weight = state->rule.initial.of[0][k];
}

/* The clone gets copies of the rows: the caller frees its own when it sets the next ones, and knows of no clone. */
llama_sampler *md_sampler_clone(const llama_sampler *sampler) {
    const md_sampler *state = sampler->ctx;
    md_sampler *twin = md_sampler_new(state->rows, state->n_rows, state->learns ? &state->rule : NULL, state->init);
    if (twin == NULL) return NULL;
    memcpy(twin->stats, state->stats, sizeof state->stats);
    memcpy(twin->gathered, state->gathered, state->rows[0].length * sizeof(float));
    twin->mixed_rows = state->mixed_rows;
    for (size_t k = 1; k < twin->n_rows; k++) {
        if (state->rows[k].logits == NULL) continue;
        const size_t bytes = twin->rows[k].length * sizeof(float);
        twin->owned[k] = malloc(bytes);
        if (twin->owned[k] == NULL) {
            md_sampler_release(twin);
            return NULL;
        }
        memcpy(twin->owned[k], state->rows[k].logits, bytes);
        twin->rows[k].logits = twin->owned[k];
    }
    twin->status = state->status;
    return state->init(sampler->iface, twin);
}

void md_sampler_free(llama_sampler *sampler) { md_sampler_release(sampler->ctx); }
