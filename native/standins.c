#include "standins.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "blas.h"

/* A block of decoded weights stays in the second-level cache. */
enum { BLOCK_FLOATS = (512 << 10) / 4, GROUPS = 64, ANGLES = 64 };

enum meaning { UNKNOWN, NOTHING, LINEAR, NORM, MLP, ROTATION };

struct standin {
    enum meaning meaning;
    int rows, columns; /* of the matrix that it pretends to be */
    union {
        struct lm_linear linear;
        struct {
            float epsilon;
            const float *weight;
        } norm;
        struct {
            struct lm_linear gate, up, down;
            enum lm_activation activation;
        } mlp;
        struct {
            int pairs, neighbours;
            const float *frequencies;
            float *angles; /* for some positions: the position, cosines, sines */
        } rotation;
    } as;
};

struct lm_standins {
    uintptr_t begin, end;
    struct standin each[];
};

static struct lm_standins *groups[GROUPS];
static pthread_rwlock_t lock = PTHREAD_RWLOCK_INITIALIZER; /* of the groups; held while one is used */
static unsigned long calls;

/* ---- the level ---- */

static const struct lm_kernels *kernels = &lm_kernels_baseline;

__attribute__((constructor)) static void choose_level(void)
{
    lib_mlx_standins_set_level(2);
}

int lib_mlx_standins_set_level(int level)
{
    kernels = &lm_kernels_baseline;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (level >= 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("f16c")) {
        kernels = &lm_kernels_avx2;
        if (level >= 2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
            kernels = &lm_kernels_avx512;
            return 2;
        }
        return 1;
    }
#endif
    (void)level;
    return 0;
}

/* ---- the functions ---- */

/* Without memory there is no answer, and a product cannot fail. */
static float *allocate(int64_t floats)
{
    float *place = malloc((size_t)floats * sizeof *place);

    if (!place)
        abort();
    return place;
}

static void multiply_many_rows(const struct lm_matrix *matrix, int m, const float *arranged, float *y, int64_t ldy,
                               float *scratch)
{
    const int64_t width = lm_width(matrix);
    const int block = (int)(BLOCK_FLOATS / width) + 1;
    float *weights = allocate(block * width);

    for (int begin = 0; begin < matrix->rows; begin += block) {
        int end = begin + block < matrix->rows ? begin + block : matrix->rows;

        kernels->decode(matrix, begin, end, weights, scratch);
        lm_blas_multiply(m, end - begin, (int)width, arranged, weights, y + begin, ldy);
    }
    free(weights);
}

static void run_linear(const struct lm_linear *linear, int m, const float *x, int64_t ldx, float *y, int64_t ldy)
{
    const struct lm_matrix *matrix = &linear->matrix;
    float *arranged = allocate(m * lm_width(matrix) + lm_scratch(matrix)), *scratch = arranged + m * lm_width(matrix);

    kernels->arrange(matrix, m, x, ldx, arranged);
    (m <= kernels->few_rows ? kernels->multiply : multiply_many_rows)(matrix, m, arranged, y, ldy, scratch);
    free(arranged);
    for (int row = 0; linear->bias && row < m; row++)
        for (int column = 0; column < matrix->rows; column++)
            y[row * ldy + column] += linear->bias[column];
}

static void run_mlp(const struct standin *standin, int m, const float *x, int64_t ldx, float *y, int64_t ldy)
{
    const int64_t hidden = standin->as.mlp.gate.matrix.rows;
    float *gate = allocate(2 * m * hidden), *up = gate + m * hidden;

    run_linear(&standin->as.mlp.gate, m, x, ldx, gate, hidden);
    run_linear(&standin->as.mlp.up, m, x, ldx, up, hidden);
    kernels->activate(standin->as.mlp.activation, m * hidden, gate, up);
    run_linear(&standin->as.mlp.down, m, gate, hidden, y, ldy);
    free(gate);
}

/* Layers ask for the same positions again and again. */
static const float *find_angles(const struct standin *standin, float position)
{
    const int pairs = standin->as.rotation.pairs;
    float *entry = standin->as.rotation.angles + (int64_t)((uint32_t)(int)position % ANGLES) * (2 * pairs + 1);

    if (entry[0] != position) { /* not a number, at first */
        entry[0] = position;
        for (int pair = 0; pair < pairs; pair++) {
            float angle = position * standin->as.rotation.frequencies[pair];

            entry[1 + pair] = cosf(angle);
            entry[1 + pairs + pair] = sinf(angle);
        }
    }
    return entry + 1;
}

static void run_rotation(const struct standin *standin, const float *x, float *y)
{
    const int pairs = standin->as.rotation.pairs, neighbours = standin->as.rotation.neighbours;
    const float *cosines = find_angles(standin, y[0]), *sines = cosines + pairs;

    for (int pair = 0; pair < pairs; pair++) {
        int first = neighbours ? 2 * pair : pair, second = neighbours ? first + 1 : pair + pairs;

        y[first] = x[first] * cosines[pair] - x[second] * sines[pair];
        y[second] = x[first] * sines[pair] + x[second] * cosines[pair];
    }
    memcpy(y + 2 * pairs, x + 2 * pairs, (size_t)(standin->columns - 2 * pairs) * sizeof *y);
}

static void run(const struct standin *standin, int m, const float *x, int64_t ldx, float *y, int64_t ldy)
{
    switch (standin->meaning) {
    case LINEAR: run_linear(&standin->as.linear, m, x, ldx, y, ldy); break;
    case MLP: run_mlp(standin, m, x, ldx, y, ldy); break;
    case NORM:
        for (int row = 0; row < m; row++)
            kernels->normalize(standin->columns, standin->as.norm.epsilon, x + row * ldx, standin->as.norm.weight,
                               y + row * ldy);
        break;
    case ROTATION:
        for (int row = 0; row < m; row++)
            run_rotation(standin, x + row * ldx, y + row * ldy);
        break;
    default: break;
    }
}

/* ---- products ---- */

static const struct standin *find(const float *b)
{
    for (int group = 0; group < GROUPS; group++) {
        const struct lm_standins *standins = groups[group];

        if (standins && (uintptr_t)b >= standins->begin && (uintptr_t)b < standins->end)
            return &standins->each[((uintptr_t)b - standins->begin) / (LM_STANDIN_STEP * sizeof *b)];
    }
    return NULL;
}

static float *transpose(int m, int k, const float *x, int64_t ldx)
{
    float *copy = allocate((int64_t)m * k);

    for (int row = 0; row < m; row++)
        for (int column = 0; column < k; column++)
            copy[(int64_t)row * k + column] = x[column * ldx + row];
    return copy;
}

static void run_and_add(const struct standin *standin, int m, float alpha, const float *x, int64_t ldx, float beta,
                        float *c, int64_t ldc)
{
    float *y = allocate((int64_t)m * standin->rows);

    run(standin, m, x, ldx, y, standin->rows);
    for (int row = 0; row < m; row++)
        for (int column = 0; column < standin->rows; column++)
            c[row * ldc + column] = (beta == 0 ? 0 : beta * c[row * ldc + column]) +
                                    alpha * y[(int64_t)row * standin->rows + column];
    free(y);
}

int lm_standin_multiply(int transposed, int m, int n, int k, float alpha, const float *x, int64_t ldx, const float *b,
                        float beta, float *c, int64_t ldc)
{
    const struct standin *standin;
    float *copy = NULL;

    pthread_rwlock_rdlock(&lock);
    standin = find(b);
    if (!standin || standin->meaning == UNKNOWN || standin->rows != n || standin->columns != k ||
        (standin->meaning == ROTATION && beta == 0)) {
        pthread_rwlock_unlock(&lock);
        return 0;
    }
    __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED);
    if (transposed) {
        x = copy = transpose(m, k, x, ldx);
        ldx = k;
    }
    if ((alpha != 1 || beta != 0) && standin->meaning != ROTATION)
        run_and_add(standin, m, alpha, x, ldx, beta, c, ldc);
    else
        run(standin, m, x, ldx, c, ldc);
    free(copy);
    pthread_rwlock_unlock(&lock);
    return 1;
}

unsigned long lib_mlx_standins_calls(void)
{
    return __atomic_load_n(&calls, __ATOMIC_RELAXED);
}

/* ---- groups ---- */

struct lm_standins *lib_mlx_standins_open(const float *arena, int count)
{
    struct lm_standins *standins = calloc(1, sizeof *standins + (size_t)count * sizeof *standins->each);
    int group = 0;

    if (!standins)
        return NULL;
    standins->begin = (uintptr_t)arena;
    standins->end = (uintptr_t)(arena + (int64_t)count * LM_STANDIN_STEP);
    pthread_rwlock_wrlock(&lock);
    while (group < GROUPS && groups[group])
        group++;
    if (group < GROUPS)
        groups[group] = standins;
    pthread_rwlock_unlock(&lock);
    if (group < GROUPS)
        return standins;
    free(standins);
    return NULL;
}

void lib_mlx_standins_close(struct lm_standins *standins)
{
    pthread_rwlock_wrlock(&lock);
    for (int group = 0; group < GROUPS; group++)
        if (groups[group] == standins)
            groups[group] = NULL;
    pthread_rwlock_unlock(&lock);
    for (uintptr_t i = 0; i < (standins->end - standins->begin) / (LM_STANDIN_STEP * sizeof(float)); i++)
        if (standins->each[i].meaning == ROTATION)
            free(standins->each[i].as.rotation.angles);
    free(standins);
}

void lib_mlx_standins_add_nothing(struct lm_standins *standins, int index, int rows, int columns)
{
    standins->each[index] = (struct standin){.meaning = NOTHING, .rows = rows, .columns = columns};
}

void lib_mlx_standins_add_linear(struct lm_standins *standins, int index, const struct lm_linear *linear)
{
    standins->each[index] = (struct standin){
        .meaning = LINEAR, .rows = linear->matrix.rows, .columns = linear->matrix.columns, .as.linear = *linear};
}

void lib_mlx_standins_add_norm(struct lm_standins *standins, int index, int columns, float epsilon,
                               const float *weight)
{
    standins->each[index] =
        (struct standin){.meaning = NORM, .rows = columns, .columns = columns, .as.norm = {epsilon, weight}};
}

void lib_mlx_standins_add_mlp(struct lm_standins *standins, int index, const struct lm_linear *gate,
                              const struct lm_linear *up, const struct lm_linear *down,
                              enum lm_activation activation)
{
    standins->each[index] = (struct standin){.meaning = MLP,
                                             .rows = down->matrix.rows,
                                             .columns = gate->matrix.columns,
                                             .as.mlp = {*gate, *up, *down, activation}};
}

void lib_mlx_standins_add_rotation(struct lm_standins *standins, int index, int columns, int pairs, int neighbours,
                                   const float *frequencies)
{
    int64_t count = ANGLES * (1 + 2 * (int64_t)pairs);
    float *angles = allocate(count);

    for (int64_t i = 0; i < count; i++)
        angles[i] = NAN; /* no position */
    standins->each[index] = (struct standin){.meaning = ROTATION,
                                             .rows = columns,
                                             .columns = columns,
                                             .as.rotation = {pairs, neighbours, frequencies, angles}};
}
