/* The sample: a heap where top-k is on, else a race of blocks that reads the row a few times and sorts nothing. */
#include "sample.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "kernels.h"

typedef struct {
    float logit;
    int32_t id;
} entry;

static int precedes(entry a, entry b) { return a.logit > b.logit || (a.logit == b.logit && a.id < b.id); }

/* --- noise ---------------------------------------------------------------------------------------------------- */

/* The finaliser of splitmix64 (Steele, Lea and Flood 2014); its increment keeps 0 from being mixed to 0. */
static uint64_t mix64(uint64_t x) {
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

static md_keys keys_of(uint32_t seed, uint64_t position) {
    const uint64_t key = mix64(mix64(seed + UINT64_C(0x9e3779b97f4a7c15)) ^ position);
    const uint64_t mixed = mix64(key + UINT64_C(0x9e3779b97f4a7c15));
    const md_keys keys = {(uint32_t)(mixed >> 32), (uint32_t)mixed};
    return keys;
}

#define MOST_NOISE 23.0 /* above -log(-log(1 - 2^-33)), the largest Gumbel that 32 bits give */

static double gumbel(uint32_t id, md_keys keys) { return -log(-log((md_noise(id, keys) + 0.5) / 4294967296.0)); }

/* Bits below this give less noise than `least`. Rounded down: a token let in needlessly is then compared exactly. */
static uint32_t bits_for(double least) {
    const double bits = 4294967296.0 * exp(-exp(-least)) - 2.0;
    return bits > 0.0 ? (uint32_t)bits : 0; /* 0 for NaN, too */
}

/* --- with top-k ----------------------------------------------------------------------------------------------- */

static int is_suppressed(const md_choice *choice, int32_t id) {
    for (size_t i = 0; i < choice->n_suppressed; i++)
        if (choice->suppressed[i] == id) return 1;
    return 0;
}

/* heap[0] comes last in the order of all; `item` sinks from `hole` to its place. */
static void sink(entry *heap, size_t n, size_t hole, entry item) {
    for (size_t child; (child = 2 * hole + 1) < n; hole = child) {
        if (child + 1 < n && precedes(heap[child], heap[child + 1])) child++;
        if (!precedes(item, heap[child])) break;
        heap[hole] = heap[child];
    }
    heap[hole] = item;
}

static void make_heap(entry *heap, size_t n) {
    for (size_t i = n / 2; i-- > 0;) sink(heap, n, i, heap[i]);
}

/* The first k of the row in order; how many there are. One comparison with the last of the k rejects most
 * tokens; among equal logits the later id is the later in order. */
static size_t first(const float *row, size_t n, size_t k, const md_choice *choice, entry *list) {
    const md_kernels *kernels = md_kernels_selected();
    size_t count = 0;
    for (size_t i = 0;; i++) {
        i += kernels->above(row + i, n - i, count == k ? list[0].logit : -INFINITY);
        if (i == n) break;
        const entry item = {row[i], (int32_t)i};
        if (is_suppressed(choice, item.id)) continue;
        if (count == k) {
            sink(list, k, 0, item);
        } else {
            list[count++] = item;
            if (count == k) make_heap(list, k);
        }
    }
    if (count < k) make_heap(list, count);
    for (size_t end = count; end > 1; end--) {
        const entry last = list[0];
        sink(list, end - 1, 0, list[end - 1]);
        list[end - 1] = last;
    }
    return count;
}

/* How many of list[count] top-p and min-p keep. */
static size_t prefix(const entry *list, size_t count, const md_choice *choice) {
    const double high = list[0].logit;
    if (choice->top_p < 1.0) {
        double total = 0.0, sum = 0.0;
        for (size_t i = 0; i < count; i++) total += exp(list[i].logit - high);
        const double wanted = choice->top_p * total;
        for (size_t i = 0; i < count; i++) {
            sum += exp(list[i].logit - high);
            if (sum >= wanted) count = i + 1;
        }
    }
    if (choice->min_p > 0.0) {
        const double floor = high + log(choice->min_p);
        while (count > 1 && list[count - 1].logit < floor) count--;
    }
    return count;
}

static int32_t best_of(const entry *list, size_t count, double temperature, md_keys keys) {
    double best = -INFINITY;
    int32_t id = -1;
    for (size_t i = 0; i < count; i++) {
        const double score = list[i].logit / temperature + gumbel((uint32_t)list[i].id, keys);
        if (score > best || (score == best && list[i].id < id)) {
            best = score;
            id = list[i].id;
        }
    }
    return id;
}

/* --- without top-k -------------------------------------------------------------------------------------------- */

#define RACE_BLOCK 512

typedef struct {
    const float *row; /* [n] */
    const float *maxima; /* of each RACE_BLOCK of it */
    size_t n, first_block; /* the block with the row's maximum runs first: most others are then hopeless */
    double temperature, floor;
    md_keys keys;
} race;

/* The best token that reaches the floor and precedes `bound`, -1 if there is none. In a block whose maximum is m
 * only tokens with noise above best - m / T can win; that is a bound on their bits. */
static entry run(const race *r, entry bound) {
    const md_kernels *kernels = md_kernels_selected();
    const size_t n_blocks = (r->n + RACE_BLOCK - 1) / RACE_BLOCK;
    double best = -INFINITY;
    entry winner = {-INFINITY, -1};
    for (size_t b = 0; b < n_blocks; b++) {
        const size_t block = b == 0 ? r->first_block : b <= r->first_block ? b - 1 : b;
        const size_t from = block * RACE_BLOCK, end = r->n - from < RACE_BLOCK ? r->n : from + RACE_BLOCK;
        const float high = r->maxima[block];
        const double lead = best - 2.0 * DBL_EPSILON * fabs(best) - high / r->temperature;
        if (high < r->floor || high < bound.logit || high == -INFINITY || lead > MOST_NOISE) continue;
        uint32_t bits = bits_for(lead);
        for (size_t i = from;; i++) {
            i += kernels->noisy((uint32_t)i, end - i, r->keys, bits);
            if (i == end) break;
            const entry item = {r->row[i], (int32_t)i};
            if (!(item.logit >= r->floor) || !precedes(item, bound)) continue;
            const double score = item.logit / r->temperature + gumbel((uint32_t)i, r->keys);
            if (score > best || (score == best && item.id < winner.id)) {
                best = score;
                winner = item;
                bits = bits_for(best - 2.0 * DBL_EPSILON * fabs(best) - high / r->temperature);
            }
        }
    }
    return winner;
}

/* What precedes `item` in order, as a sum of exp(logit - maximum). */
static double mass_before(const float *row, size_t n, float maximum, entry item) {
    const md_kernels *kernels = md_kernels_selected();
    const size_t id = (size_t)item.id;
    return kernels->mass(row, id, maximum, nextafterf(item.logit, -INFINITY)) +
           kernels->mass(row + id, n - id, maximum, item.logit);
}

/* A token that wins among more tokens and is kept wins among the kept ones; its own place in the order tells whether it
 * is kept. If not, only tokens that precede it can be. */
static md_status sample_from_all(const float *row, size_t n, const md_choice *choice, md_keys keys, float *maxima,
                               int32_t *token) {
    const md_kernels *kernels = md_kernels_selected();
    race r = {row, maxima, n, 0, choice->temperature, -INFINITY, keys};
    entry winner = {-INFINITY, INT32_MAX}; /* every possible token precedes it */
    float maximum = -INFINITY;
    md_sums sums = {0.0f, 0.0, 0.0};
    for (size_t from = 0, block = 0; from < n; from += RACE_BLOCK, block++) {
        maxima[block] = kernels->maximum(row + from, n - from < RACE_BLOCK ? n - from : RACE_BLOCK);
        if (maxima[block] > maximum) {
            maximum = maxima[block];
            r.first_block = block;
        }
    }
    *token = -1;
    if (maximum > MD_LARGEST) return MD_BAD_ROW;
    if (maximum == -INFINITY) return MD_OK;
    if (choice->min_p > 0.0) r.floor = maximum + log(choice->min_p);
    if (choice->top_p < 1.0) { /* n tokens below such a floor have less than 1 - p of the mass */
        kernels->sums(row, n, 1.0f, &sums);
        if (isnan(sums.weighted)) return MD_BAD_ROW;
        const double floor = maximum + log((1.0 - choice->top_p) * sums.sum / (double)n) - 1e-3;
        if (floor > r.floor) r.floor = floor;
    }
    do winner = run(&r, winner);
    while (winner.id >= 0 && choice->top_p < 1.0 && mass_before(row, n, maximum, winner) >= choice->top_p * sums.sum);
    *token = winner.id;
    return MD_OK;
}

/* --- sample and verify ------------------------------------------------------------------------------------------ */

/* The row, or a copy of it without the suppressed tokens. */
static const float *allowed(const float *row, size_t n, const md_choice *choice, float *copy) {
    if (choice->n_suppressed == 0) return row;
    memcpy(copy, row, n * sizeof *row);
    for (size_t i = 0; i < choice->n_suppressed; i++)
        if (choice->suppressed[i] >= 0 && (size_t)choice->suppressed[i] < n) copy[choice->suppressed[i]] = -INFINITY;
    return copy;
}

md_status md_sample(const float *row, size_t n, const md_choice *choice, uint64_t position, float *scratch,
                  int32_t *token) {
    const md_keys keys = keys_of(choice->seed, position);
    const int one = choice->temperature < MD_GREEDY || choice->top_p <= 0.0 || choice->min_p > 1.0;
    /* scratch: n entries, or n floats of a copy and the maxima of blocks */
    if (!one && (choice->top_k == 0 || choice->top_k >= n))
        return sample_from_all(allowed(row, n, choice, scratch), n, choice, keys, scratch + n, token);
    entry *list = (entry *)(void *)scratch;
    const size_t count = first(row, n, one ? 1 : choice->top_k, choice, list);
    *token = -1;
    if (count == 0) return MD_OK;
    if (list[0].logit > MD_LARGEST) return MD_BAD_ROW;
    *token = one ? list[0].id : best_of(list, prefix(list, count, choice), choice->temperature, keys);
    return MD_OK;
}

/* What the token teaches the weights of its class; a silent index is passed as NaN. */
static void learn(md_weights *weights, size_t n_rows, const md_sparse *matches, size_t n_sparse, const md_rule *rule,
                  size_t klass, const md_sampled *sampled) {
    double heard[MD_MAX_ROWS];
    memcpy(heard, sampled->log_probs, sizeof heard);
    for (size_t k = 0; k < n_sparse; k++)
        if (matches[k].klass == 0) heard[n_rows + k] = NAN;
    (void)md_learn(weights->of[klass], klass > 0 ? n_rows + n_sparse : n_rows, rule, klass, heard);
}

md_status md_verify(md_row *rows, size_t n_rows, md_sparse *matches, size_t n_sparse, size_t n_positions,
                    md_weights *weights, const md_rule *rule, const int32_t *draft, size_t n_draft,
                    const md_choice *choice, uint64_t position, float *out, size_t n_vocab, float *scratch,
                    md_stats *stats, md_sampled *sampled, size_t *n_sampled) {
    for (size_t j = 0;; j++, matches += n_sparse) {
        md_sampled *s = &sampled[j];
        const size_t klass = md_speak(weights, rows, n_rows, matches, n_sparse);
        md_status status = md_mix(rows, n_rows, matches, n_sparse, out, n_vocab, stats);
        if (status == MD_OK) status = md_sample(out, n_vocab, choice, position + j, scratch, &s->token);
        if (status != MD_OK) return status;
        double offset = 0.0;
        for (size_t k = 0; k < n_rows; k++) {
            s->weights[k] = rows[k].weight;
            if (rows[k].weight > 0.0) offset += rows[k].weight * stats[k].logsumexp;
        }
        for (size_t k = 0; k < n_sparse; k++) {
            s->weights[n_rows + k] = matches[k].weight;
            offset += matches[k].weight * stats[0].logsumexp;
        }
        s->log_prob = s->token < 0 ? -INFINITY : out[s->token] - offset;
        md_log_probs(rows, stats, n_rows, s->token, s->log_probs);
        md_sparse_log_probs(matches, n_sparse, s->token, s->log_probs + n_rows);
        if (rule != NULL) learn(weights, n_rows, matches, n_sparse, rule, klass, s);
        *n_sampled = j + 1;
        if (j + 1 == n_positions || j >= n_draft || s->token < 0 || s->token != draft[j]) return MD_OK;
        for (size_t k = 0; k < n_rows; k++) rows[k].logits += rows[k].length;
    }
}
