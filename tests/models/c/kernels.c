/* The kernels of every level against plain C, on memory of exactly the size that they may touch. Prints what is wrong. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

static uint32_t seed = 1;

/* Between -1 and 1. */
static double random_number(void)
{
    seed = seed * 1664525 + 1013904223;
    return (double)seed / 0x80000000 - 1;
}

static void *allocate(size_t size)
{
    void *place = malloc(size ? size : 1);

    if (!place)
        abort();
    return place;
}

/* The bits of a float format, cut off, and its value. */
static uint32_t to_bits(int format, float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof bits);
    if (format == LM_BFLOAT16)
        return bits >> 16;
    if (format == LM_FLOAT16) {
        float scaled = fabsf(value) * 0x1p-112f; /* subnormal numbers, too */

        memcpy(&bits, &scaled, sizeof bits);
        return bits >> 13 | (value < 0 ? 0x8000 : 0);
    }
    return bits;
}

static float to_value(int format, uint32_t bits)
{
    uint32_t wide = format == LM_BFLOAT16 ? bits << 16 : format == LM_FLOAT16 ? (bits & 0x7fff) << 13 : bits;
    float value;

    memcpy(&value, &wide, sizeof value);
    return format == LM_FLOAT16 ? value * 0x1p112f * (bits & 0x8000 ? -1 : 1) : value;
}

/* `count` random numbers in a float format, and their values. */
static void *make_floats(int format, size_t count, double scale, float *values)
{
    uint8_t *stored = allocate(count * 4);
    size_t size = format == LM_FLOAT32 ? 4 : 2;
    uint8_t *exact;

    for (size_t i = 0; i < count; i++) {
        uint32_t bits = to_bits(format, (float)(random_number() * scale * (i % 5 ? 1 : 1e-6)));

        memcpy(stored + i * size, &bits, size);
        values[i] = to_value(format, bits);
    }
    exact = allocate(count * size);
    memcpy(exact, stored, count * size);
    free(stored);
    return exact;
}

/* A matrix and its weights. */
static struct lm_matrix make_matrix(int format, int scale_format, int group_size, int rows, int columns,
                                    float *weights)
{
    struct lm_matrix matrix = {rows, columns, format, scale_format, group_size, NULL, NULL, NULL};
    int bits = format == LM_2_BITS ? 2 : format == LM_4_BITS ? 4 : 8;
    size_t count = (size_t)rows * (size_t)columns;

    if (!group_size) {
        matrix.values = make_floats(format, count, 1, weights);
        return matrix;
    }
    size_t groups = count / (size_t)group_size;
    float *scales = allocate(groups * 4), *biases = allocate(groups * 4);
    uint8_t *packed = allocate(count * (size_t)bits / 8);

    matrix.scales = make_floats(scale_format, groups, 1.0 / (1 << bits), scales);
    matrix.biases = make_floats(scale_format, groups, 0.5, biases);
    for (size_t i = 0; i < count * (size_t)bits / 8; i++)
        packed[i] = (uint8_t)(random_number() * 127 + 128);
    for (size_t i = 0; i < count; i++) {
        int number = packed[i * (size_t)bits / 8] >> (i * (size_t)bits % 8) & ((1 << bits) - 1);

        weights[i] = scales[i / (size_t)group_size] * (float)number + biases[i / (size_t)group_size];
    }
    matrix.values = packed;
    free(scales);
    free(biases);
    return matrix;
}

static int is_near(float found, double expected, double size)
{
    return fabs(found - expected) <= 1e-5 * size + 1e-6;
}

static int check_products(const struct lm_kernels *kernels, const struct lm_matrix *matrix, const float *weights, int m)
{
    const int n = matrix->rows, k = matrix->columns, ldx = k + 3, ldy = n + 1;
    const int64_t width = lm_width(matrix);
    float *x = allocate((size_t)m * (size_t)ldx * 4), *arranged = allocate((size_t)m * (size_t)width * 4);
    float *y = allocate((size_t)m * (size_t)ldy * 4), *scratch = allocate((size_t)lm_scratch(matrix) * 4);
    float *decoded = allocate((size_t)n * (size_t)width * 4);
    int wrong = 0;

    for (int i = 0; i < m * ldx; i++)
        x[i] = (float)random_number();
    kernels->arrange(matrix, m, x, ldx, arranged);
    kernels->multiply(matrix, m, arranged, y, ldy, scratch);
    kernels->decode(matrix, 0, n, decoded, scratch);
    for (int row = 0; row < m; row++)
        for (int column = 0; column < n; column++) {
            double expected = 0, size = 0, product = 0;

            for (int i = 0; i < k; i++) {
                expected += (double)x[row * ldx + i] * weights[column * k + i];
                size += fabs((double)x[row * ldx + i] * weights[column * k + i]);
            }
            for (int64_t i = 0; i < width; i++)
                product += (double)arranged[row * width + i] * decoded[column * width + i];
            wrong += !is_near(y[row * ldy + column], expected, size) || !is_near((float)product, expected, size);
        }
    free(x), free(arranged), free(y), free(scratch), free(decoded);
    return wrong;
}

static int check_matrix(const struct lm_kernels *kernels, int format, int scale_format, int group_size, int rows,
                        int columns)
{
    float *weights = allocate((size_t)rows * (size_t)columns * 4);
    struct lm_matrix matrix = make_matrix(format, scale_format, group_size, rows, columns, weights);
    int wrong = 0;

    for (int m = 1; m <= 9; m++)
        wrong += check_products(kernels, &matrix, weights, m);
    free(weights), free((void *)matrix.values), free((void *)matrix.scales), free((void *)matrix.biases);
    return wrong;
}

static int check_matrices(const struct lm_kernels *kernels)
{
    static const int rows[] = {1, 2, 3, 4, 5, 9}, columns[] = {1, 7, 16, 33, 100}, scales[] = {0, 1, 2};
    int wrong = 0;

    for (int size = 0; size < 6; size++) {
        for (int format = LM_FLOAT32; format <= LM_BFLOAT16; format++)
            for (int width = 0; width < 5; width++)
                wrong += check_matrix(kernels, format, 0, 0, rows[size], columns[width]);
        for (int format = LM_2_BITS; format <= LM_8_BITS; format++)
            for (int group_size = 32; group_size <= 128; group_size *= 2) {
                int step = format == LM_2_BITS && group_size < 64 ? 64 : group_size;

                wrong += check_matrix(kernels, format, scales[size % 3], group_size, rows[size], step);
                wrong += check_matrix(kernels, format, scales[size % 3], group_size, rows[size], step * 3);
            }
    }
    return wrong;
}

static double activation(int kind, double x)
{
    return kind == LM_SILU ? x / (1 + exp(-x)) : x / 2 * (1 + tanh(sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x)));
}

static int check_rows(const struct lm_kernels *kernels, int count)
{
    float *x = allocate((size_t)count * 4), *weight = allocate((size_t)count * 4), *y = allocate((size_t)count * 4);
    double squares = 0;
    int wrong = 0;

    for (int i = 0; i < count; i++) {
        x[i] = (float)random_number(), weight[i] = (float)random_number();
        squares += (double)x[i] * x[i];
    }
    kernels->normalize(count, 1e-5f, x, weight, y);
    for (int i = 0; i < count; i++)
        wrong += !is_near(y[i], x[i] / sqrt(squares / count + 1e-5) * weight[i], 1);
    for (int kind = LM_SILU; kind <= LM_GELU_TANH; kind++) {
        for (int i = 0; i < count; i++)
            y[i] = x[i] * (float)pow(10, i % 4 - 1);
        kernels->activate(kind, count, y, weight);
        for (int i = 0; i < count; i++) {
            double gate = (double)(x[i] * (float)pow(10, i % 4 - 1));

            wrong += !is_near(y[i], activation(kind, gate) * weight[i], 1 + fabs(gate));
        }
    }
    free(x), free(weight), free(y);
    return wrong;
}

static void check(const char *name, const struct lm_kernels *kernels)
{
    int wrong = check_matrices(kernels);

    for (int count = 1; count < 40; count++)
        wrong += check_rows(kernels, count);
    if (wrong)
        printf("%s: %d numbers are wrong\n", name, wrong);
}

int main(void)
{
    check("baseline", &lm_kernels_baseline);
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
        check("avx2", &lm_kernels_avx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        check("avx512", &lm_kernels_avx512);
#endif
    return 0;
}
