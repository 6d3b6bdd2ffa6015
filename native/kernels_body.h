/* The kernels, written once over a vector type; included by each kernels_*.c, which defines before:
 *
 *   MD_NAME        "avx2"                       MD_TABLE       md_kernels_avx2
 *   MD_TARGET      attribute of each function   V, W           the vector type and its number of floats
 *   v_set(f) v_load(p) v_store(p, v) v_add v_sub v_mul v_min
 *   v_fma(a, b, c)       a * b + c, rounded once or twice
 *   v_fma_exact(a, b, c) a * b + c, the product not rounded
 *   v_max(a, b)          a > b ? a : b, so b where either is NaN
 *   v_keep(v, a, b)      a > b ? v : 0
 *   v_any(a, b)          whether any a > b
 *   v_ldexp(p, t)        p * 2^n, where t = 1.5 * 2^23 + n
 *
 * No header guard: several files include it, once each.
 */
#include <math.h>

#include "kernels.h"

#define BLOCK 2048 /* floats: two rows of it stay in the L1 cache between the passes over them */
#define GROUP 64   /* tokens whose noise one comparison covers */
#define ROUND 12582912.0f /* 1.5 * 2^23: adding it leaves the nearest integer in the low bits of a float */
#define LOWEST (-126.0f)  /* 2^LOWEST is the smallest normal float, which is nothing beside a sum >= 1 */
#define LOG2_E 1.44269504f
#define LOG_2 0.693147180559945309

/* 2^d for LOWEST <= d <= 0, relative error 6e-7: 2^n * 2^r with |r| <= 1/2 and our own minimax fit of 2^r. 2^0 is
 * exactly 1. */
MD_TARGET static inline V v_exp2(V d) {
    const V t = v_add(d, v_set(ROUND));
    const V r = v_sub(d, v_sub(t, v_set(ROUND)));
    V q = v_fma(v_set(0.001112576302f), r, v_set(0.00966725072017f));
    q = v_fma(q, r, v_set(0.0555754198722f));
    q = v_fma(q, r, v_set(0.240223384849f));
    q = v_fma(q, r, v_set(0.693142653718f));
    return v_ldexp(v_fma(q, r, v_set(1.0f)), t);
}

/* log(1 + t) for 0 <= t <= 1, absolute error 3e-7; our own minimax fit. */
MD_TARGET static inline V v_log1p(V t) {
    V q = v_fma(v_set(0.0107645047061f), t, v_set(-0.0551451583015f));
    q = v_fma(q, t, v_set(0.134674463694f));
    q = v_fma(q, t, v_set(-0.225897952864f));
    q = v_fma(q, t, v_set(0.328242177168f));
    q = v_fma(q, t, v_set(-0.499471779066f));
    q = v_fma(q, t, v_set(0.99998113779f));
    return v_mul(q, t);
}

/* The first `count` < W floats of x, then -infinity: a row's tail never reads beyond the row. */
MD_TARGET static inline V v_load_tail(const float *x, size_t count) {
    float lanes[W];
    for (size_t i = 0; i < W; i++) lanes[i] = i < count ? x[i] : -INFINITY;
    return v_load(lanes);
}

MD_TARGET static inline void v_store_tail(float *out, size_t count, V v) {
    float lanes[W];
    v_store(lanes, v);
    for (size_t i = 0; i < count; i++) out[i] = lanes[i];
}

MD_TARGET static inline double v_total(V v) {
    float lanes[W];
    double total = 0.0;
    v_store(lanes, v);
    for (size_t i = 0; i < W; i++) total += lanes[i];
    return total;
}

/* Ignores NaN. */
MD_TARGET static float highest(const float *x, size_t n) {
    V high = v_set(-INFINITY), high2 = high;
    size_t i = 0;
    for (; i + 2 * W <= n; i += 2 * W) {
        high = v_max(v_load(x + i), high);
        high2 = v_max(v_load(x + i + W), high2);
    }
    for (; i < n; i += W) high = v_max(n - i >= W ? v_load(x + i) : v_load_tail(x + i, n - i), high);
    float lanes[W];
    v_store(lanes, v_max(high, high2));
    float maximum = lanes[0];
    for (size_t k = 1; k < W; k++) maximum = lanes[k] > maximum ? lanes[k] : maximum;
    return maximum;
}

/* Distances from the maximum are in units of log(2) here: `scale` is log2(e) / T. A NaN in x makes `weighted` NaN. */
MD_TARGET static void block_sums(const float *x, size_t n, float maximum, float scale, double *sum, double *weighted) {
    const V high = v_set(maximum), factor = v_set(scale), lowest = v_set(LOWEST);
    V s = v_set(0.0f), s2 = s, w = s, w2 = s;
    size_t i = 0;
    for (; i + 2 * W <= n; i += 2 * W) {
        const V d = v_max(lowest, v_mul(v_sub(v_load(x + i), high), factor));
        const V d2 = v_max(lowest, v_mul(v_sub(v_load(x + i + W), high), factor));
        const V e = v_exp2(d), e2 = v_exp2(d2);
        s = v_add(s, e);
        s2 = v_add(s2, e2);
        w = v_fma(e, d, w);
        w2 = v_fma(e2, d2, w2);
    }
    for (; i < n; i += W) {
        const V a = n - i >= W ? v_load(x + i) : v_load_tail(x + i, n - i);
        const V d = v_max(lowest, v_mul(v_sub(a, high), factor));
        const V e = v_exp2(d);
        s = v_add(s, e);
        w = v_fma(e, d, w);
    }
    *sum += v_total(s) + v_total(s2);
    *weighted += LOG_2 * (v_total(w) + v_total(w2));
}

MD_TARGET static void sums(const float *x, size_t n, float scale, md_sums *result) {
    float maximum = -INFINITY;
    double sum = 0.0, weighted = 0.0;
    for (size_t i = 0; i < n && weighted == weighted; i += BLOCK) {
        const size_t count = n - i < BLOCK ? n - i : BLOCK;
        const float high = highest(x + i, count);
        if (high > maximum) { /* the sums so far are relative to a lower maximum */
            const double d = ((double)maximum - (double)high) * (double)scale, factor = exp(d);
            weighted = factor > 0.0 ? factor * (weighted + d * sum) : 0.0;
            sum *= factor;
            maximum = high;
        }
        /* Before the first finite logit the sums mean nothing, but find a NaN. */
        const float reference = maximum > -INFINITY ? maximum : 0.0f;
        block_sums(x + i, count, reference, scale * LOG2_E, &sum, &weighted);
    }
    result->maximum = maximum;
    result->sum = sum;
    result->weighted = weighted;
}

/* -infinity stays -infinity. The low parts get a finite x, for 0 * infinity is NaN. */
MD_TARGET static inline V v_affine(V x, const md_affine *a) {
    const V low = v_fma(v_max(x, v_set(-1e30f)), v_set(a->scale_low), v_set(a->shift_low));
    return v_add(v_fma_exact(x, v_set(a->scale), v_set(a->shift)), low);
}

/* log(exp(a) + exp(b)), right however small both are. Two -infinities give -infinity: v_max turns the NaN of their
 * difference into LOWEST. */
MD_TARGET static inline V v_log_add(V a, V b) {
    const V high = v_max(a, b);
    const V d = v_max(v_mul(v_sub(v_min(a, b), high), v_set(LOG2_E)), v_set(LOWEST));
    return v_add(high, v_log1p(v_exp2(d)));
}

MD_TARGET static void set(float *out, const float *x, size_t n, const md_affine *affine) {
    const md_affine a = *affine; /* a copy: `out` might alias the argument for all that the compiler knows */
    size_t i = 0;
    for (; i + W <= n; i += W) v_store(out + i, v_affine(v_load(x + i), &a));
    if (i < n) v_store_tail(out + i, n - i, v_affine(v_load_tail(x + i, n - i), &a));
}

MD_TARGET static void add(float *out, const float *x, size_t n, const md_affine *affine) {
    const md_affine a = *affine;
    size_t i = 0;
    for (; i + W <= n; i += W) v_store(out + i, v_log_add(v_load(out + i), v_affine(v_load(x + i), &a)));
    if (i < n) {
        const V mixed = v_log_add(v_load_tail(out + i, n - i), v_affine(v_load_tail(x + i, n - i), &a));
        v_store_tail(out + i, n - i, mixed);
    }
}

MD_TARGET static size_t above(const float *x, size_t n, float bound) {
    const V low = v_set(bound);
    size_t i = 0;
    for (; n - i >= 4 * W; i += 4 * W) {
        const V high = v_max(v_load(x + i + W), v_max(v_load(x + i), low)); /* v_max drops a NaN on its left */
        const V high2 = v_max(v_load(x + i + 3 * W), v_max(v_load(x + i + 2 * W), low));
        if (v_any(v_max(high, high2), low)) break;
    }
    while (i < n && !(x[i] > bound)) i++;
    return i;
}

MD_TARGET static double mass(const float *x, size_t n, float maximum, float bound) {
    const V high = v_set(maximum), factor = v_set(LOG2_E), lowest = v_set(LOWEST), low = v_set(bound);
    double total = 0.0;
    for (size_t from = 0; from < n; from += BLOCK) {
        const size_t end = n - from < BLOCK ? n : from + BLOCK;
        V s = v_set(0.0f);
        for (size_t i = from; i < end; i += W) {
            const V a = end - i >= W ? v_load(x + i) : v_load_tail(x + i, end - i);
            s = v_add(s, v_keep(v_exp2(v_max(lowest, v_mul(v_sub(a, high), factor))), a, low));
        }
        total += v_total(s);
    }
    return total;
}

/* Integers only: the compiler makes vectors of the inner loop. */
MD_TARGET static size_t noisy(uint32_t id, size_t n, md_keys keys, uint32_t bound) {
    size_t i = 0;
    for (; n - i >= GROUP; i += GROUP) {
        uint32_t most = 0;
        for (uint32_t k = 0; k < GROUP; k++) {
            const uint32_t bits = md_noise(id + (uint32_t)i + k, keys);
            most = bits > most ? bits : most;
        }
        if (most >= bound) break;
    }
    while (i < n && md_noise(id + (uint32_t)i, keys) < bound) i++;
    return i;
}

const md_kernels MD_TABLE = {MD_NAME, sums, set, add, highest, above, mass, noisy};
