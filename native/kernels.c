#include "kernels.h"

#include <math.h>
#include <string.h>

#include "lanes.h"

/* ---- rows of a matrix ----
 *
 * A block is LANES bytes of packed values, or LANES float values. It is decoded to first every byte's lowest value,
 * then its next, and so on; x is arranged likewise. */

INLINE int is_float(int format)
{
    return format == LM_FLOAT32 || format == LM_FLOAT16 || format == LM_BFLOAT16;
}

INLINE int values_per_byte(int format)
{
    return format == LM_2_BITS ? 4 : format == LM_4_BITS ? 2 : 1;
}

/* How the columns of a row are cut: into parts of one scale each, those into blocks. */
struct cut {
    int parts, blocks, block_size, halved; /* halved: of two groups' scales, half of the lanes each */
};

INLINE struct cut cut_row(const struct lm_matrix *matrix, int format)
{
    int size = LANES * values_per_byte(format);

    if (is_float(format))
        return (struct cut){1, matrix->columns / LANES, LANES, 0};
    if (matrix->group_size < size)
        return (struct cut){matrix->columns / size, 1, size, 1};
    return (struct cut){matrix->columns / matrix->group_size, matrix->group_size / size, size, 0};
}

INLINE int64_t row_bytes(const struct lm_matrix *matrix, int format)
{
    return is_float(format) ? (int64_t)matrix->columns * bytes_of(format)
                            : matrix->columns / values_per_byte(format);
}

INLINE int count_groups(const struct lm_matrix *matrix, int format)
{
    return is_float(format) ? 0 : matrix->columns / matrix->group_size;
}

/* Scales, then biases, of some rows. */
INLINE void widen_scales(const struct lm_matrix *matrix, int groups, int row, int rows, float *scratch)
{
    if (!groups)
        return;
    widen(matrix->scale_format, matrix->scales, (int64_t)row * groups, rows * groups, scratch);
    widen(matrix->scale_format, matrix->biases, (int64_t)row * groups, rows * groups, scratch + rows * groups);
}

INLINE floats part_scale(const float *scales, struct cut cut, int part)
{
    if (!cut.halved)
        return splat(scales[part]);

    floats value = splat(scales[2 * part]);

    for (int lane = LANES / 2; lane < LANES; lane++)
        value[lane] = scales[2 * part + 1];
    return value;
}

INLINE void decode_block(int format, const uint8_t *place, floats scale, floats bias, floats *weights)
{
    if (is_float(format)) {
        weights[0] = load_as(format, place, 0);
        return;
    }
    int values = values_per_byte(format), bits = 8 / values;
    ints packed = load_bytes(place);

#if defined(__AVX512F__)
    if (format == LM_4_BITS) { /* A register holds all the weights of a group; an index is four bits. */
        const ints numbers = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        floats table = to_floats(numbers) * scale + bias;

        weights[0] = (floats)_mm512_permutexvar_ps((__m512i)packed, (__m512)table);
        weights[1] = (floats)_mm512_permutexvar_ps((__m512i)(packed >> 4), (__m512)table);
        return;
    }
#endif
    for (int value = 0; value < values; value++) {
        ints number = packed >> value * bits;

        weights[value] = to_floats(value == values - 1 ? number : number & ((1 << bits) - 1)) * scale + bias;
    }
}

INLINE void add_products(int outputs, int inputs, int values, floats (*weights)[4], const float *x, int64_t width,
                         floats (*sums)[4])
{
    for (int input = 0; input < inputs; input++)
        for (int value = 0; value < values; value++) {
            floats factor = load(x + input * width + value * LANES);

            for (int output = 0; output < outputs; output++)
                sums[output][input] += weights[output][value] * factor;
        }
}

/* Products of `outputs` rows of the matrix with `inputs` rows of x. Both are known where this is inlined, so that the
 * arrays become registers. */
INLINE void multiply_rows(const struct lm_matrix *matrix, int format, int row, int outputs, int inputs,
                          const float *x, float *y, int64_t ldy, float *scratch)
{
    const struct cut cut = cut_row(matrix, format);
    const int groups = count_groups(matrix, format), values = values_per_byte(format);
    const int rest = is_float(format) ? matrix->columns % LANES : 0;
    const int64_t bytes = row_bytes(matrix, format), width = lm_width(matrix);
    const int64_t block_bytes = is_float(format) ? LANES * bytes_of(format) : LANES;
    const uint8_t *place = (const uint8_t *)matrix->values + row * bytes;
    const uint8_t *ahead = place + AHEAD * outputs * bytes;
    floats sums[4][4] = {{{0}}}, weights[4][4], scale[4] = {{0}}, bias[4] = {{0}};

    widen_scales(matrix, groups, row, outputs, scratch);
    for (int part = 0; part < cut.parts; part++) {
        for (int output = 0; output < outputs && groups; output++) {
            scale[output] = part_scale(scratch + output * groups, cut, part);
            bias[output] = part_scale(scratch + (outputs + output) * groups, cut, part);
        }
        for (int block = 0; block < cut.blocks; block++) {
            for (int line = 0; line < outputs * block_bytes; line += LINE)
                __builtin_prefetch(ahead + line);
            ahead += outputs * block_bytes;
            for (int output = 0; output < outputs; output++)
                decode_block(format, place + output * bytes, scale[output], bias[output], weights[output]);
            add_products(outputs, inputs, values, weights, x, width, sums);
            place += block_bytes;
            x += cut.block_size;
        }
    }
    if (rest) {
        for (int output = 0; output < outputs; output++)
            weights[output][0] = load_tail(format, place + output * bytes, 0, rest);
        add_products(outputs, inputs, 1, weights, x, width, sums);
    }
    for (int input = 0; input < inputs; input++)
        for (int output = 0; output < outputs; output++)
            y[input * ldy + row + output] = sum(sums[output][input]);
}

/* More rows of the matrix at a time read x less often, as long as their sums stay in registers. */
INLINE void multiply_inputs(const struct lm_matrix *matrix, int format, int inputs, const float *x, float *y,
                            int64_t ldy, float *scratch)
{
    const int outputs = inputs <= 2 || REGISTERS == 32 ? 4 : 2;
    int row = 0;

    for (; row + outputs <= matrix->rows; row += outputs)
        multiply_rows(matrix, format, row, outputs, inputs, x, y, ldy, scratch);
    for (; row < matrix->rows; row++)
        multiply_rows(matrix, format, row, 1, inputs, x, y, ldy, scratch);
}

INLINE void multiply_format(const struct lm_matrix *matrix, int format, int rows, const float *x, float *y,
                            int64_t ldy, float *scratch)
{
    const int64_t width = lm_width(matrix);

    for (; rows >= 4; rows -= 4, x += 4 * width, y += 4 * ldy)
        multiply_inputs(matrix, format, 4, x, y, ldy, scratch);
    switch (rows) {
    case 3: multiply_inputs(matrix, format, 3, x, y, ldy, scratch); break;
    case 2: multiply_inputs(matrix, format, 2, x, y, ldy, scratch); break;
    case 1: multiply_inputs(matrix, format, 1, x, y, ldy, scratch); break;
    }
}

/* One function each: the compiler does better on small ones. */
#define MULTIPLY(name, format)                                                                                         \
    static __attribute__((noinline)) void name(const struct lm_matrix *matrix, int rows, const float *x, float *y,     \
                                               int64_t ldy, float *scratch)                                            \
    {                                                                                                                  \
        multiply_format(matrix, format, rows, x, y, ldy, scratch);                                                     \
    }
MULTIPLY(multiply_float32, LM_FLOAT32)
MULTIPLY(multiply_float16, LM_FLOAT16)
MULTIPLY(multiply_bfloat16, LM_BFLOAT16)
MULTIPLY(multiply_2_bits, LM_2_BITS)
MULTIPLY(multiply_4_bits, LM_4_BITS)
MULTIPLY(multiply_8_bits, LM_8_BITS)

static void multiply(const struct lm_matrix *matrix, int rows, const float *x, float *y, int64_t ldy,
                     float *scratch)
{
    static void (*const by_format[])(const struct lm_matrix *, int, const float *, float *, int64_t, float *) = {
        [LM_FLOAT32] = multiply_float32, [LM_FLOAT16] = multiply_float16, [LM_BFLOAT16] = multiply_bfloat16,
        [LM_2_BITS] = multiply_2_bits,   [LM_4_BITS] = multiply_4_bits,   [LM_8_BITS] = multiply_8_bits};

    by_format[matrix->format](matrix, rows, x, y, ldy, scratch);
}

INLINE void decode_row(const struct lm_matrix *matrix, int format, int row, float *weights, float *scratch)
{
    const struct cut cut = cut_row(matrix, format);
    const int groups = count_groups(matrix, format), values = values_per_byte(format);
    const uint8_t *place = (const uint8_t *)matrix->values + row * row_bytes(matrix, format);
    floats decoded[4], scale = {0}, bias = {0};

    widen_scales(matrix, groups, row, 1, scratch);
    for (int part = 0; part < cut.parts; part++) {
        if (groups) {
            scale = part_scale(scratch, cut, part);
            bias = part_scale(scratch + groups, cut, part);
        }
        for (int block = 0; block < cut.blocks; block++) {
            decode_block(format, place, scale, bias, decoded);
            for (int value = 0; value < values; value++)
                store(weights + value * LANES, decoded[value]);
            place += LANES;
            weights += cut.block_size;
        }
    }
}

static void decode(const struct lm_matrix *matrix, int begin, int end, float *weights, float *scratch)
{
    const int64_t width = lm_width(matrix);

    for (int row = begin; row < end; row++, weights += width) {
        switch (matrix->format) {
        case LM_2_BITS: decode_row(matrix, LM_2_BITS, row, weights, scratch); break;
        case LM_4_BITS: decode_row(matrix, LM_4_BITS, row, weights, scratch); break;
        case LM_8_BITS: decode_row(matrix, LM_8_BITS, row, weights, scratch); break;
        default:
            memset(weights + matrix->columns, 0, (size_t)(width - matrix->columns) * sizeof *weights);
            widen(matrix->format, matrix->values, (int64_t)row * matrix->columns, matrix->columns, weights);
        }
    }
}

static void arrange(const struct lm_matrix *matrix, int rows, const float *x, int64_t ldx, float *arranged)
{
    const int64_t width = lm_width(matrix);
    const int values = values_per_byte(matrix->format), size = values * LANES;

    for (int row = 0; row < rows; row++, x += ldx, arranged += width) {
        if (is_float(matrix->format) || values == 1) {
            memcpy(arranged, x, (size_t)matrix->columns * sizeof *x);
            memset(arranged + matrix->columns, 0, (size_t)(width - matrix->columns) * sizeof *x);
            continue;
        }
        for (int block = 0; block < matrix->columns; block += size)
            for (int value = 0; value < values; value++)
                for (int lane = 0; lane < LANES; lane++)
                    arranged[block + value * LANES + lane] = x[block + lane * values + value];
    }
}

/* ---- what lies between the products ---- */

static void normalize(int columns, float epsilon, const float *x, const float *weight, float *y)
{
    floats squares = {0};
    float total = 0, factor;
    int i = 0;

    for (; i + LANES <= columns; i += LANES)
        squares += load(x + i) * load(x + i);
    for (; i < columns; i++)
        total += x[i] * x[i];
    factor = 1 / sqrtf((total + sum(squares)) / (float)columns + epsilon);
    for (i = 0; i < columns; i++)
        y[i] = x[i] * factor * weight[i];
}

/* Within 2 units in the last place; beyond what float32 can hold, the largest or smallest it can. */
INLINE floats exponential(floats x)
{
    const floats most = splat(88.3f), least = splat(-87.3f), magic = splat(0x1.8p23f);
    floats whole, part, series;

    x = (floats)(((ints)most & (x > most)) | ((ints)x & ~(x > most)));
    x = (floats)(((ints)least & (x < least)) | ((ints)x & ~(x < least)));
    whole = x * 1.44269504f + magic; /* the sum has no room for a fraction */
    whole = whole - magic;
    part = x - whole * 0x1.62e4p-1f - whole * 0x1.7f7d1cp-20f; /* ln 2 in two pieces */
    series = splat(1.9875691500e-4f);
    series = series * part + 1.3981999507e-3f;
    series = series * part + 8.3334519073e-3f;
    series = series * part + 4.1665795894e-2f;
    series = series * part + 1.6666665459e-1f;
    series = series * part + 5.0000001201e-1f;
    series = series * part * part + part + 1;
    return series * (floats)((__builtin_convertvector(whole, ints) + 127) << 23);
}

INLINE floats bend(enum lm_activation activation, floats x)
{
    floats exponent = activation == LM_SILU ? x : 1.59576912f * (x + 0.044715f * x * x * x);

    return x / (1 + exponential(-exponent));
}

static void activate(enum lm_activation activation, int64_t count, float *gate, const float *up)
{
    int64_t i = 0;

    for (; i + LANES <= count; i += LANES)
        store(gate + i, bend(activation, load(gate + i)) * load(up + i));
    if (i < count) {
        float last[LANES] = {0};

        memcpy(last, gate + i, (size_t)(count - i) * sizeof *last);
        store(last, bend(activation, load(last)));
        for (int lane = 0; i < count; i++, lane++)
            gate[i] = last[lane] * up[i];
    }
}

const struct lm_kernels KERNELS = {FEW_ROWS, arrange, multiply, decode, normalize, activate};
