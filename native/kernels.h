/* Products with weights as a checkpoint stores them: dequantised in registers, added up in float32.
 *
 * kernels.c is compiled once for each level of instructions (build_ffi.py); standins.c picks one. */
#ifndef LM_KERNELS_H
#define LM_KERNELS_H

#include <stdint.h>

enum lm_format { LM_FLOAT32, LM_FLOAT16, LM_BFLOAT16, LM_2_BITS, LM_4_BITS, LM_8_BITS };

/* How an MLP bends its gate. */
enum lm_activation { LM_SILU, LM_GELU_TANH };

/* A matrix whose rows lie one after another. Packed values have their low bits first; a group of `group_size` of
 * them stands for scale * value + bias. The group size divides the columns and is a multiple of 32; of columns in 2
 * bits there is a multiple of 64. Scales, biases and group size are unused in the float formats. */
struct lm_matrix {
    int32_t rows, columns;
    int32_t format;       /* enum lm_format */
    int32_t scale_format; /* of scales and biases: a float format */
    int32_t group_size;
    const void *values, *scales, *biases;
};

/* All of them: any thread; x, y and weights are float32. */
struct lm_kernels {
    int few_rows; /* of x: up to so many, multiply() is faster than decode() and OpenBLAS's sgemm */

    /* The order of columns in which multiply() and decode() take a matrix, applied to `rows` rows of x. Each becomes
     * lm_width() long, filled up with zeros. */
    void (*arrange)(const struct lm_matrix *matrix, int rows, const float *x, int64_t ldx, float *arranged);

    /* y = x matrix', for few rows of x: the weights are read once for every four rows. `scratch` has room for
     * lm_scratch() floats. */
    void (*multiply)(const struct lm_matrix *matrix, int rows, const float *arranged, float *y, int64_t ldy,
                     float *scratch);

    /* The rows of the matrix from `begin` to `end`, each lm_width() long. */
    void (*decode)(const struct lm_matrix *matrix, int begin, int end, float *weights, float *scratch);

    /* y = x / sqrt(mean(x^2) + epsilon) * weight, of a row; y may be x. */
    void (*normalize)(int columns, float epsilon, const float *x, const float *weight, float *y);

    /* gate = activation(gate) * up */
    void (*activate)(enum lm_activation activation, int64_t count, float *gate, const float *up);
};

static inline int64_t lm_width(const struct lm_matrix *matrix)
{
    return (matrix->columns + 15) / 16 * 16;
}

/* Scales and biases of four rows. */
static inline int64_t lm_scratch(const struct lm_matrix *matrix)
{
    return matrix->group_size ? (int64_t)(matrix->columns / matrix->group_size) * 8 : 0;
}

extern const struct lm_kernels lm_kernels_baseline;
#if defined(__x86_64__)
extern const struct lm_kernels lm_kernels_avx2, lm_kernels_avx512;
#endif

#endif
