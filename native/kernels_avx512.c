/* AVX-512 F: 16 floats. */
#include "kernels.h"

#if MD_X86_64
#include <immintrin.h>

#if defined(__GNUC__)
#define MD_TARGET __attribute__((target("avx512f")))
#else
#define MD_TARGET
#endif
#define MD_NAME "avx512"
#define MD_TABLE md_kernels_avx512
#define W 16

typedef __m512 V;
#define v_set(f) _mm512_set1_ps(f)
#define v_load(p) _mm512_loadu_ps(p)
#define v_store(p, v) _mm512_storeu_ps(p, v)
#define v_add(a, b) _mm512_add_ps(a, b)
#define v_sub(a, b) _mm512_sub_ps(a, b)
#define v_mul(a, b) _mm512_mul_ps(a, b)
#define v_min(a, b) _mm512_min_ps(a, b)
#define v_max(a, b) _mm512_max_ps(a, b)
#define v_keep(v, a, b) _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), v)
#define v_any(a, b) (_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0)
#define v_fma(a, b, c) _mm512_fmadd_ps(a, b, c)
#define v_fma_exact(a, b, c) _mm512_fmadd_ps(a, b, c)
#define v_ldexp(p, t) \
    _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32(_mm512_castps_si512(t), 23)))

#include "kernels_body.h"
#else
typedef int md_no_avx512; /* ISO C wants a declaration */
#endif
