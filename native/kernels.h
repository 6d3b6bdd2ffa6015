/* The kernels that each instruction-set variant offers. */
#ifndef MEMDEC_KERNELS_H
#define MEMDEC_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__) || defined(_M_X64)
#define MD_X86_64 1
#else
#define MD_X86_64 0
#endif

/* sum = sum of e, weighted = sum of e * d, with d = (logit - maximum) * scale and e = exp(d).
 * A row with NaN has weighted NaN; then, and where the maximum is infinite, the rest means nothing. */
typedef struct {
    float maximum;
    double sum, weighted;
} md_sums;

/* x -> (scale + scale_low) * x + (shift + shift_low). Each number takes two floats: logits of 1e4 may meet a shift of
 * -1e4, and their sum must keep its digits. */
typedef struct {
    float scale, scale_low, shift, shift_low;
} md_affine;

/* What seed and position make of md_noise: one generator for each pair. */
typedef struct {
    uint32_t first, second;
} md_keys;

/* 32 random bits of a token: two rounds of xor-shift and multiply, a key in front of each. Multiplications of 32 bits
 * only, so that compilers vectorise it. Constants and shifts: of 3,000 random ones those whose output bits flip most
 * evenly when an input bit does. */
static inline uint32_t md_noise(uint32_t id, md_keys keys) {
    uint32_t x = id ^ keys.first;
    x = (x ^ x >> 15) * UINT32_C(0x5fef8aed);
    x = (x ^ x >> 14 ^ keys.second) * UINT32_C(0xfe999e65);
    return x ^ x >> 16;
}

typedef struct {
    const char *name;
    /* x[n] -> sums; x is read once from memory */
    void (*sums)(const float *x, size_t n, float scale, md_sums *sums);
    /* out[n] = affine(x[n]) */
    void (*set)(float *out, const float *x, size_t n, const md_affine *affine);
    /* out[n] = log(exp(out[n]) + exp(affine(x[n]))) */
    void (*add)(float *out, const float *x, size_t n, const md_affine *affine);
    /* the largest of x[n], which ignores NaN; -infinity where it finds nothing else */
    float (*maximum)(const float *x, size_t n);
    /* the first i with x[i] > bound, n where there is none */
    size_t (*above)(const float *x, size_t n, float bound);
    /* sum of exp(x[i] - maximum) over x[i] > bound, for x <= maximum */
    double (*mass)(const float *x, size_t n, float maximum, float bound);
    /* the first i with md_noise(id + i, keys) >= bound, n where there is none */
    size_t (*noisy)(uint32_t id, size_t n, md_keys keys, uint32_t bound);
} md_kernels;

extern const md_kernels md_kernels_portable;
#if MD_X86_64
extern const md_kernels md_kernels_avx2, md_kernels_avx512;
#endif

const md_kernels *md_kernels_selected(void); /* mix.c chooses */

#endif
