#include "dequantize.h"

/* Inlined with `bits` known, so that the compiler unrolls the loop over a byte. */
static inline __attribute__((always_inline)) void unpack(const uint8_t *packed, const float *scales,
                                                         const float *biases, size_t groups, int group_size,
                                                         int bits, float *weights)
{
    const int values = 8 / bits; /* in a byte */
    const int mask = (1 << bits) - 1;

    for (size_t group = 0; group < groups; group++) {
        float scale = scales[group], bias = biases[group];

        for (int byte = 0; byte < group_size / values; byte++) {
            for (int value = 0; value < values; value++)
                *weights++ = scale * (float)(*packed >> (value * bits) & mask) + bias;
            packed++;
        }
    }
}

int lib_mlx_dequantize(const uint8_t *packed, const float *scales, const float *biases, size_t groups,
                       int group_size, int bits, float *weights)
{
    switch (bits) {
    case 2: unpack(packed, scales, biases, groups, group_size, 2, weights); return 0;
    case 4: unpack(packed, scales, biases, groups, group_size, 4, weights); return 0;
    case 8: unpack(packed, scales, biases, groups, group_size, 8, weights); return 0;
    default: return -1;
    }
}
