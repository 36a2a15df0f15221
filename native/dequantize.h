/* MLX's quantised weights as float32, on the CPU: MLX's own function takes seconds where this takes tenths.
 *
 * Part of _cpu.so, loaded with ctypes. */
#ifndef LM_DEQUANTIZE_H
#define LM_DEQUANTIZE_H

#include <stddef.h>
#include <stdint.h>

/* Writes `groups` times `group_size` weights: of each group, scale * value + bias. The values are packed with the
 * low bits first, `bits` of them each: 2, 4 or 8. 0, or -1 for another number. Any thread. */
__attribute__((visibility("default"))) int lib_mlx_dequantize(const uint8_t *packed, const float *scales,
                                                              const float *biases, size_t groups, int group_size,
                                                              int bits, float *weights);

#endif
