/* A faster BLAS for MLX's Linux CPU wheel, which calls netlib's reference BLAS: libmlx's three imports of cblas
 * are redirected to an OpenBLAS that is installed already. Nothing else in the process is changed: the OpenBLAS
 * is opened locally, and only entries of libmlx's own table of imports are written.
 *
 * Part of a library of its own (_cpu.so), loaded with ctypes; Linux on x86-64 and aarch64 only. */
#ifndef LM_BLAS_H
#define LM_BLAS_H

#include <stdint.h>

#define LM_BLAS_API __attribute__((visibility("default")))

/* Opens the OpenBLAS at `openblas` (one built as numpy's wheels have it: 64-bit integers, symbols
 * scipy_cblas_*64_) and redirects cblas_sgemm, cblas_dgemm and cblas_cgemm of the loaded library `libmlx` (its
 * path). All three or none. 0, or -1: nothing was changed. A second call changes nothing. Not thread-safe;
 * MLX must not be multiplying meanwhile. */
LM_BLAS_API int lib_mlx_blas_redirect(const char *libmlx, const char *openblas);

/* Undoes it. */
LM_BLAS_API void lib_mlx_blas_restore(void);

/* The threads that MLX's products may use; 1 at first. The OpenBLAS may be shared with the host's numpy: its own
 * setting is changed for the length of a product only. */
LM_BLAS_API void lib_mlx_blas_set_threads(int count);

/* How often MLX has called, by what it was answered with. */
LM_BLAS_API void lib_mlx_blas_counts(unsigned long *gemm, unsigned long *gemv);

/* What stands in for cblas_sgemm, for tests. Products of one or a few rows go to sgemv, which does not copy the
 * matrix. */
LM_BLAS_API void lib_mlx_blas_sgemm(int order, int trans_a, int trans_b, int m, int n, int k, float alpha,
                                    const float *a, int lda, const float *b, int ldb, float beta, float *c,
                                    int ldc);

/* c = a b', all row-major; rows of a and b lie k apart. OpenBLAS's sgemm, once it is opened. */
void lm_blas_multiply(int m, int n, int k, const float *a, const float *b, float *c, int64_t ldc);

#endif
