/* AVX2 and FMA: 8 floats. */
#include "kernels.h"

#if MD_X86_64
#include <immintrin.h>

#if defined(__GNUC__)
#define MD_TARGET __attribute__((target("avx2,fma")))
#else
#define MD_TARGET
#endif
#define MD_NAME "avx2"
#define MD_TABLE md_kernels_avx2
#define W 8

typedef __m256 V;
#define v_set(f) _mm256_set1_ps(f)
#define v_load(p) _mm256_loadu_ps(p)
#define v_store(p, v) _mm256_storeu_ps(p, v)
#define v_add(a, b) _mm256_add_ps(a, b)
#define v_sub(a, b) _mm256_sub_ps(a, b)
#define v_mul(a, b) _mm256_mul_ps(a, b)
#define v_min(a, b) _mm256_min_ps(a, b)
#define v_max(a, b) _mm256_max_ps(a, b)
#define v_keep(v, a, b) _mm256_and_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ), v)
#define v_any(a, b) (_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0)
#define v_fma(a, b, c) _mm256_fmadd_ps(a, b, c)
#define v_fma_exact(a, b, c) _mm256_fmadd_ps(a, b, c)
#define v_ldexp(p, t) \
    _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_castps_si256(t), 23)))

#include "kernels_body.h"
#else
typedef int md_no_avx2; /* ISO C wants a declaration */
#endif
