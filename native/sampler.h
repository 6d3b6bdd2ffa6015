/* The mixture as a llama.cpp sampler: put it first in a chain and the chain samples from base and memories.
 *
 * llama.cpp is not linked. Its four structs are declared here as llama.h of llama-cpp-python 0.3.36 has them, and the
 * Python side compares them with the ones it runs with. Knows nothing of Python.
 */
#ifndef MEMDEC_SAMPLER_H
#define MEMDEC_SAMPLER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "learn.h"
#include "mix.h"

struct llama_sampler;

typedef struct llama_token_data {
    int32_t id;
    float logit;
    float p;
} llama_token_data;

typedef struct llama_token_data_array {
    llama_token_data *data;
    size_t size;
    int64_t selected;
    bool sorted;
} llama_token_data_array;

/* The last six stay null: they only give the struct its size. */
typedef struct llama_sampler_i {
    const char *(*name)(const struct llama_sampler *);
    void (*accept)(struct llama_sampler *, int32_t);
    void (*apply)(struct llama_sampler *, llama_token_data_array *);
    void (*reset)(struct llama_sampler *);
    struct llama_sampler *(*clone)(const struct llama_sampler *);
    void (*free)(struct llama_sampler *);
    void (*backend_init)(void);
    void (*backend_accept)(void);
    void (*backend_apply)(void);
    void (*backend_set_input)(void);
    void (*backend_reset)(void);
    void (*copy_state)(void);
} llama_sampler_i;

typedef struct llama_sampler {
    const llama_sampler_i *iface;
    void *ctx;
} llama_sampler;

typedef llama_sampler *(*md_sampler_init)(const llama_sampler_i *iface, void *ctx); /* llama_sampler_init */

/* What ctx points to. Counted: the chain and Python each hold it, and either may let go first. */
typedef struct md_sampler md_sampler;

/* `rows` gives n_rows weights and temperatures; of lengths only that of row 0, the base. rule: how the weights learn
 * from accepted tokens; NULL: they do not. Returns NULL where the machine has no memory left. */
md_sampler *md_sampler_new(const md_row *rows, size_t n_rows, const md_rule *rule, md_sampler_init init);
md_sampler *md_sampler_hold(md_sampler *state);
void md_sampler_release(md_sampler *state);
const md_row *md_sampler_rows(const md_sampler *state, size_t *n_rows);

/* Row `index` (>= 1) is from now on read from `logits` [length], which stays the caller's: in apply and, where the
 * weights learn, in the accept that follows it. */
void md_sampler_set_row(md_sampler *state, size_t index, const float *logits, size_t length);

/* The caller is about to free its rows. */
void md_sampler_forget_rows(md_sampler *state);

/* The first failure since the last call, MD_OK if there was none. */
md_status md_sampler_take_status(md_sampler *state);

/* Members of llama_sampler_i. */
const char *md_sampler_name(const llama_sampler *sampler);
void md_sampler_accept(llama_sampler *sampler, int32_t token);
void md_sampler_apply(llama_sampler *sampler, llama_token_data_array *candidates);
void md_sampler_reset(llama_sampler *sampler);
llama_sampler *md_sampler_clone(const llama_sampler *sampler);
void md_sampler_free(llama_sampler *sampler);

#endif
