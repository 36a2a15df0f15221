/* What the levels of instructions differ in: how many floats a register holds, and how they are loaded. For kernels.c,
 * which is compiled once for each level. */
#ifndef LM_LANES_H
#define LM_LANES_H

#include <stdint.h>
#include <string.h>

#include "kernels.h"

#if defined(__AVX512F__)
#include <immintrin.h>
enum { LANES = 16, REGISTERS = 32, FEW_ROWS = 256 };
#define KERNELS lm_kernels_avx512
#elif defined(__AVX2__)
#include <immintrin.h>
enum { LANES = 8, REGISTERS = 16, FEW_ROWS = 16 };
#define KERNELS lm_kernels_avx2
#else
#if defined(__aarch64__)
enum { REGISTERS = 32 };
#else
enum { REGISTERS = 16 };
#endif
enum { LANES = 4, FEW_ROWS = 6 };
#define KERNELS lm_kernels_baseline
#endif

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));

/* The hardware does not fetch ahead as far as it takes: rows are short. */
enum { AHEAD = 4, LINE = 64 };

#define INLINE static inline __attribute__((always_inline))

/* ---- loads ---- */

INLINE floats load(const float *place)
{
    floats value;

    memcpy(&value, place, sizeof value);
    return value;
}

INLINE void store(float *place, floats value)
{
    memcpy(place, &value, sizeof value);
}

INLINE floats splat(float value)
{
    return value - (floats){0};
}

INLINE floats to_floats(ints value)
{
    return __builtin_convertvector(value, floats);
}

INLINE ints load_bytes(const uint8_t *place)
{
#if defined(__AVX512F__)
    return (ints)_mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)place));
#elif defined(__AVX2__)
    return (ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)place));
#else
    return (ints){place[0], place[1], place[2], place[3]};
#endif
}

INLINE ints load_shorts(const uint16_t *place)
{
#if defined(__AVX512F__)
    return (ints)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)place));
#elif defined(__AVX2__)
    return (ints)_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)place));
#else
    return (ints){place[0], place[1], place[2], place[3]};
#endif
}

INLINE floats load_float16(const uint16_t *place)
{
#if defined(__AVX512F__)
    return (floats)_mm512_cvtph_ps(_mm256_loadu_si256((const void *)place));
#elif defined(__AVX2__)
    return (floats)_mm256_cvtph_ps(_mm_loadu_si128((const void *)place));
#else
    ints half = load_shorts(place);

    /* The exponent's bias is 112 larger in float32; multiplying corrects subnormal numbers, too. */
    return (floats)((half & 0x7fff) << 13) * 0x1p112f * (1 - to_floats(half >> 15) * 2);
#endif
}

INLINE floats load_as(int format, const void *place, int64_t index)
{
    switch (format) {
    case LM_FLOAT16: return load_float16((const uint16_t *)place + index);
    case LM_BFLOAT16: return (floats)(load_shorts((const uint16_t *)place + index) << 16);
    default: return load((const float *)place + index);
    }
}

INLINE int bytes_of(int format)
{
    return format == LM_FLOAT32 ? 4 : 2;
}

/* The last `count` values of a row. */
INLINE floats load_tail(int format, const void *place, int64_t index, int count)
{
    int size = bytes_of(format);
    uint32_t tail[LANES] = {0};

    memcpy(tail, (const uint8_t *)place + index * size, (size_t)(count * size));
    return load_as(format, tail, 0);
}

INLINE void widen(int format, const void *from, int64_t begin, int count, float *to)
{
    int i = 0;

    for (; i + LANES <= count; i += LANES) {
        __builtin_prefetch((const uint8_t *)from + (begin + i + AHEAD * count) * bytes_of(format));
        store(to + i, load_as(format, from, begin + i));
    }
    if (i < count && i) {
        store(to + count - LANES, load_as(format, from, begin + count - LANES)); /* some of them once more */
    } else if (i < count) {
        floats tail = load_tail(format, from, begin + i, count - i);

        memcpy(to + i, &tail, (size_t)(count - i) * sizeof *to);
    }
}

INLINE float sum(floats value)
{
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)value);
#elif defined(__AVX2__)
    __m128 half = _mm_add_ps(_mm256_castps256_ps128((__m256)value), _mm256_extractf128_ps((__m256)value, 1));

    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
#else
    return value[0] + value[1] + (value[2] + value[3]);
#endif
}

#endif
