/* Orchestration of the mixture: statistics, constants in double, segments of equal membership, choice of variant. */
#include "mix.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernels.h"

#if MD_X86_64 && defined(_MSC_VER)
#include <immintrin.h>
#include <intrin.h>
#endif

/* --- variants ------------------------------------------------------------------------------------------------- */

#if MD_X86_64
static void cpu_features(int *avx2, int *avx512) {
#if defined(_MSC_VER)
    int leaf1[4], leaf7[4];
    __cpuid(leaf1, 0);
    const int leaves = leaf1[0];
    __cpuid(leaf1, 1);
    __cpuidex(leaf7, leaves >= 7 ? 7 : 0, 0);
    const int has_os = leaves >= 7 && (leaf1[2] & (1 << 27)) != 0; /* OSXSAVE: the kernel saves wide registers */
    const unsigned long long saved = has_os ? _xgetbv(0) : 0;
    *avx2 = (saved & 0x06) == 0x06 && (leaf1[2] & (1 << 12)) != 0 && (leaf7[1] & (1 << 5)) != 0;
    *avx512 = *avx2 && (saved & 0xe6) == 0xe6 && (leaf7[1] & (1 << 16)) != 0;
#else
    __builtin_cpu_init();
    *avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    *avx512 = *avx2 && __builtin_cpu_supports("avx512f");
#endif
}
#endif

static const md_kernels *variants[3];
static size_t n_variants, selected;

size_t md_variant_count(void) {
    if (n_variants == 0) {
#if MD_X86_64
        int avx2, avx512;
        cpu_features(&avx2, &avx512);
        if (avx512) variants[n_variants++] = &md_kernels_avx512;
        if (avx2) variants[n_variants++] = &md_kernels_avx2;
#endif
        variants[n_variants++] = &md_kernels_portable;
    }
    return n_variants;
}

const char *md_variant_name(size_t index) { return variants[index]->name; }
size_t md_variant_selected(void) { return selected; }
void md_variant_select(size_t index) { selected = index; }
const md_kernels *md_kernels_selected(void) { return variants[selected]; }

/* --- statistics ----------------------------------------------------------------------------------------------- */

md_status md_row_stats(const md_row *row, md_stats *stats) {
    md_sums sums;
    variants[selected]->sums(row->logits, row->length, (float)(1.0 / row->temperature), &sums);
    const double maximum = (double)sums.maximum / row->temperature;
    if (isnan(sums.weighted) || !(fabs(maximum) <= MD_LARGEST)) return MD_BAD_ROW;
    const double log_sum = log(sums.sum), entropy = log_sum - sums.weighted / sums.sum;
    stats->maximum = maximum;
    stats->logsumexp = maximum + log_sum;
    stats->entropy = entropy > 0.0 ? entropy : 0.0;
    return MD_OK;
}

/* --- mixture -------------------------------------------------------------------------------------------------- */

static void split(double value, float *high, float *low) {
    *high = (float)value;
    *low = (float)(value - (double)*high);
}

/* out[from .. end), where each of rows[n_rows] either ends at `from` or before, or goes on to `end`. */
static void mix_segment(const md_row *rows, const md_affine *affines, size_t n_rows, size_t from, size_t end,
                        float *out) {
    const size_t block = 2048; /* the L1 cache holds a block of `out` while the rows come in one after another */
    const md_kernels *kernels = variants[selected];
    for (size_t i = from; i < end; i += block) {
        const size_t count = end - i < block ? end - i : block;
        int empty = 1;
        for (size_t k = 0; k < n_rows; k++) {
            if (rows[k].weight <= 0.0 || rows[k].length <= i) continue;
            (empty ? kernels->set : kernels->add)(out + i, rows[k].logits + i, count, &affines[k]);
            empty = 0;
        }
        if (empty)
            for (size_t y = i; y < i + count; y++) out[y] = -INFINITY;
    }
}

/* log(exp(out[id]) + exp(shift) p) for the tokens of one sparse voice. */
static void patch(const md_sparse *voice, double shift, float *out) {
    for (size_t i = 0; i < voice->length; i++) {
        const double a = out[voice->ids[i]], b = log(voice->probs[i]) + shift;
        if (b == -INFINITY) continue;
        out[voice->ids[i]] = (float)(a > b ? a + log1p(exp(b - a)) : b + log1p(exp(a - b)));
    }
}

md_status md_mix(const md_row *given, size_t n_rows, const md_sparse *sparse, size_t n_sparse, float *out, size_t n,
                 md_stats *stats) {
    md_row rows[MD_MAX_ROWS];
    md_affine affines[MD_MAX_ROWS];
    double offset = 0.0, spoken = 0.0; /* spoken: weight of sparse voices */
    size_t active = 0, last = 0;       /* rows with weight, and the last of them */

    for (size_t k = 0; k < n_rows; k++) {
        rows[k] = given[k];
        if (rows[k].length > n) rows[k].length = n;
        const md_status status = md_row_stats(&rows[k], &stats[k]);
        if (status != MD_OK) return status;
        if (rows[k].weight <= 0.0) continue;
        offset += rows[k].weight * stats[k].logsumexp;
        active++;
        last = k;
    }

    for (size_t k = 0; k < n_sparse; k++) spoken += sparse[k].weight;
    if (spoken > 0.0) {
        offset += spoken * stats[0].logsumexp;
    } else if (active == 1 && rows[last].temperature == 1.0) { /* nothing to mix, so nothing may be rounded */
        memcpy(out, rows[last].logits, rows[last].length * sizeof *out);
        for (size_t y = rows[last].length; y < n; y++) out[y] = -INFINITY;
        return MD_OK;
    }

    for (size_t k = 0; k < n_rows; k++) {
        if (rows[k].weight <= 0.0) continue;
        split(1.0 / rows[k].temperature, &affines[k].scale, &affines[k].scale_low);
        split(log(rows[k].weight) - stats[k].logsumexp + offset, &affines[k].shift, &affines[k].shift_low);
    }
    for (size_t from = 0; from < n;) { /* a segment ends where the next row ends */
        size_t end = n;
        for (size_t k = 0; k < n_rows; k++)
            if (rows[k].length > from && rows[k].length < end) end = rows[k].length;
        mix_segment(rows, affines, n_rows, from, end, out);
        from = end;
    }
    for (size_t k = 0; k < n_sparse; k++)
        if (sparse[k].weight > 0.0) patch(&sparse[k], log(sparse[k].weight) + offset, out);
    return MD_OK;
}
