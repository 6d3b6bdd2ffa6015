/* What one instruction-set variant offers, and the table of each. */
#ifndef MEMDEC_KERNELS_H
#define MEMDEC_KERNELS_H

#include <stddef.h>

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

/* x -> (scale + scale_low) * x + (shift + shift_low): each number in two floats, since logits of 1e4 may meet a shift
 * of -1e4 and what is left must still be right. */
typedef struct {
    float scale, scale_low, shift, shift_low;
} md_affine;

typedef struct {
    const char *name;
    /* x[n] -> sums; x is read once from memory */
    void (*sums)(const float *x, size_t n, float scale, md_sums *sums);
    /* out[n] = affine(x[n]) */
    void (*set)(float *out, const float *x, size_t n, const md_affine *affine);
    /* out[n] = log(exp(out[n]) + exp(affine(x[n]))) */
    void (*add)(float *out, const float *x, size_t n, const md_affine *affine);
} md_kernels;

extern const md_kernels md_kernels_portable;
#if MD_X86_64
extern const md_kernels md_kernels_avx2, md_kernels_avx512;
#endif

#endif
