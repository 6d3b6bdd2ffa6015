/* No instruction set in particular: 4 floats in a vector of the compiler (SSE2 on x86-64, NEON on arm64) where it has
 * such a thing, else one float. */
#include <stdint.h>
#include <string.h>

#include "kernels.h"

#define MD_TARGET
#define MD_NAME "portable"
#define MD_TABLE md_kernels_portable

#if defined(__GNUC__)
#define W 4
typedef float V __attribute__((vector_size(16)));
typedef uint32_t B __attribute__((vector_size(16)));
typedef double D __attribute__((vector_size(32)));
#define CONVERT(v, type) __builtin_convertvector(v, type)

static inline V v_set(float f) { return (V){f, f, f, f}; }

static inline V v_choose(B mask, V yes, V no) {
    const B bits = (mask & (B)yes) | (~mask & (B)no);
    return (V)bits;
}
#define v_max(a, b) v_choose((B)((a) > (b)), a, b)
#define v_min(a, b) v_choose((B)((a) < (b)), a, b)
#define v_keep(v, a, b) v_choose((B)((a) > (b)), v, v_set(0.0f))

static inline int v_any(V a, V b) {
    const B mask = (B)(a > b);
    uint64_t halves[2];
    memcpy(halves, &mask, sizeof halves);
    return (halves[0] | halves[1]) != 0;
}
#else
#define W 1
typedef float V;
typedef uint32_t B;
typedef double D;
#define CONVERT(v, type) ((type)(v))
#define v_set(f) (f)

static inline V v_max(V a, V b) { return a > b ? a : b; }
static inline V v_min(V a, V b) { return a < b ? a : b; }
#define v_keep(v, a, b) ((a) > (b) ? (v) : 0.0f)
#define v_any(a, b) ((a) > (b))
#endif

static inline V v_load(const float *p) {
    V v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void v_store(float *p, V v) { memcpy(p, &v, sizeof v); }

#define v_add(a, b) ((a) + (b))
#define v_sub(a, b) ((a) - (b))
#define v_mul(a, b) ((a) * (b))
#define v_fma(a, b, c) ((a) * (b) + (c))

/* A product of two floats is exact in double: no fused instruction is needed. */
static inline V v_fma_exact(V a, V b, V c) {
    return CONVERT(CONVERT(a, D) * CONVERT(b, D) + CONVERT(c, D), V);
}

static inline V v_ldexp(V p, V t) {
    B bits, n;
    memcpy(&bits, &p, sizeof bits);
    memcpy(&n, &t, sizeof n);
    bits += n << 23;
    memcpy(&p, &bits, sizeof p);
    return p;
}

#include "kernels_body.h"
