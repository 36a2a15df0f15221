/* A plain driver for machines without libFuzzer: `loop SECONDS SEED_FILE...` mutates the seeds at random and prints how
 * many inputs it ran. The input under way is in the file `last-input`: after a crash, the one that caused it. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MOST = 1 << 16 };

struct input {
    size_t size;
    uint8_t data[MOST];
};

/* xorshift64*: the same inputs in every run. */
static uint64_t next_random(void)
{
    static uint64_t state = 88172645463325252ULL;

    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 2685821657736338717ULL;
}

static size_t below(size_t bound)
{
    return bound ? (size_t)(next_random() % bound) : 0;
}

static void read_file(const char *path, struct input *input)
{
    FILE *file = fopen(path, "rb");

    input->size = file ? fread(input->data, 1, MOST, file) : 0;
    if (file)
        fclose(file);
}

static void write_file(const char *path, const struct input *input)
{
    FILE *file = fopen(path, "wb");

    if (file) {
        fwrite(input->data, 1, input->size, file);
        fclose(file);
    }
}

/* Replaces a stretch of the input by as many other bytes as there are in `with`. */
static void splice(struct input *input, size_t at, size_t cut, const uint8_t *with, size_t count)
{
    if (input->size - cut + count > MOST)
        return;
    memmove(input->data + at + count, input->data + at + cut, input->size - at - cut);
    memcpy(input->data + at, with, count);
    input->size += count - cut;
}

static void mutate(struct input *input, const struct input *other)
{
    static const char *const words[] = {"{", "}", "[", "]", "\"", ":", ",", "null", "true", "-1", "1e999", "\\ud800", "\xff",
                                        "99999999999999999999", "\\u0000", "model_path", "wait", "port"};
    const char *word = words[below(sizeof words / sizeof *words)];
    size_t at = below(input->size + 1), left = input->size - at, start = below(other->size + 1);
    uint8_t byte = (uint8_t)next_random();

    switch (below(6)) {
    case 0:
        splice(input, at, left > 0, &byte, 1);
        break;
    case 1:
        splice(input, at, 0, &byte, 1);
        break;
    case 2:
        splice(input, at, below(left < 9 ? left + 1 : 9), &byte, 0);
        break;
    case 3:
        splice(input, at, 0, (const uint8_t *)word, strlen(word));
        break;
    case 4:
        splice(input, at, below(left + 1), other->data + start, below(other->size - start + 1));
        break;
    default:
        splice(input, input->size, 0, other->data, other->size);
    }
}

int main(int argc, char **argv)
{
    static struct input input, other;
    time_t end;
    long executions = 0;

    if (argc < 3)
        return 2;
    for (end = time(NULL) + atol(argv[1]); time(NULL) < end; executions++) {
        size_t seed = below((size_t)argc - 2);
        read_file(argv[2 + (executions < argc - 2 ? (size_t)executions : seed)], &input);
        read_file(argv[2 + below((size_t)argc - 2)], &other);
        for (size_t i = executions < argc - 2 ? 0 : 1 + below(6); i > 0; i--)
            mutate(&input, &other);
        write_file("last-input", &input);
        LLVMFuzzerTestOneInput(input.data, input.size);
    }
    printf("executions: %ld\n", executions);
    return 0;
}
