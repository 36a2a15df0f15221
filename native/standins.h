/* Functions of our own inside MLX's graphs, disguised as products of matrices.
 *
 * A stand-in is an array of MLX's that nobody reads: its address says which function is meant. Where MLX multiplies x
 * with it, blas.c gives the product to lm_standin_multiply(), which computes the function of x instead. The stand-ins
 * of a model lie LM_STANDIN_STEP floats apart in one array, large enough for each of them to be read as the matrix that
 * it pretends to be.
 *
 * Part of _cpu.so, called with ctypes. A group of stand-ins and what its functions point to must live until
 * lib_mlx_standins_close() has returned; then no product uses them any more. Any thread, unless it says otherwise. */
#ifndef LM_STANDINS_H
#define LM_STANDINS_H

#include <stdint.h>

#include "kernels.h"

#define LM_STANDINS_API __attribute__((visibility("default")))

enum { LM_STANDIN_STEP = 16 };

struct lm_standins;

/* x matrix' + bias; the bias may be NULL. */
struct lm_linear {
    struct lm_matrix matrix;
    const float *bias;
};

/* The level of instructions: 0 is that of the compiler's target, then AVX2 with FMA and F16C, then AVX-512. Returns
 * the one that is used from now on: the one that is asked for or, where the processor does not have it, the best that
 * it has. At first it is the best. For tests; not while anything is multiplied. */
LM_STANDINS_API int lib_mlx_standins_set_level(int level);

/* How many products were given to functions. */
LM_STANDINS_API unsigned long lib_mlx_standins_calls(void);

/* Opens `count` stand-ins at `arena`, which mean nothing yet. NULL: no memory, or too many groups. */
LM_STANDINS_API struct lm_standins *lib_mlx_standins_open(const float *arena, int count);

/* Forgets them; waits for a product that uses one. */
LM_STANDINS_API void lib_mlx_standins_close(struct lm_standins *standins);

/* What stand-in `index` means. What the structures say is copied, not what they point to. No product may use it yet. */

/* Nothing: the product with it stays as it was allocated. */
LM_STANDINS_API void lib_mlx_standins_add_nothing(struct lm_standins *standins, int index, int rows, int columns);

LM_STANDINS_API void lib_mlx_standins_add_linear(struct lm_standins *standins, int index,
                                                 const struct lm_linear *linear);

/* x / sqrt(mean(x^2) + epsilon) * weight */
LM_STANDINS_API void lib_mlx_standins_add_norm(struct lm_standins *standins, int index, int columns, float epsilon,
                                               const float *weight);

/* down(activation(gate(x)) * up(x)) */
LM_STANDINS_API void lib_mlx_standins_add_mlp(struct lm_standins *standins, int index, const struct lm_linear *gate,
                                              const struct lm_linear *up, const struct lm_linear *down,
                                              enum lm_activation activation);

/* Rotary positions: of rows with `columns` columns, pair i of the first 2 * `pairs` is turned by position *
 * frequencies[i]. A pair is two neighbours if `neighbours`, else two that are `pairs` apart. A row's position is what
 * stands in the first column of what the product would be added to. */
LM_STANDINS_API void lib_mlx_standins_add_rotation(struct lm_standins *standins, int index, int columns, int pairs,
                                                   int neighbours, const float *frequencies);

/* cblas_sgemm() for what is row-major: c = alpha op(x) b' + beta c. 0: b is no stand-in, and nothing was done. */
int lm_standin_multiply(int transposed, int m, int n, int k, float alpha, const float *x, int64_t ldx, const float *b,
                        float beta, float *c, int64_t ldc);

#endif
