#include "blas.h"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lm_build.h"
#include "paths.h"
#include "standins.h"

#if defined(__x86_64__)
enum { JUMP_SLOT = R_X86_64_JUMP_SLOT, GLOB_DAT = R_X86_64_GLOB_DAT };
#elif defined(__aarch64__)
enum { JUMP_SLOT = R_AARCH64_JUMP_SLOT, GLOB_DAT = R_AARCH64_GLOB_DAT };
#else
#error "only x86-64 and aarch64"
#endif

enum { ROW_MAJOR = 101, NO_TRANS = 111, TRANS = 112 };

/* From 8 rows on, sgemm is as fast (SmolLM2's sizes, one thread with AVX-512). A block stays in the second-level
 * cache. */
enum { FEW_ROWS = 6, BLOCK_BYTES = 256 << 10 };

/* The build is up to date if this is found in the file; see build_ffi.py. */
__attribute__((used)) static const char fingerprint[] = LM_FINGERPRINT;

/* ---- the OpenBLAS ---- */

static struct {
    void (*sgemm)(int, int, int, int64_t, int64_t, int64_t, float, const float *, int64_t, const float *, int64_t,
                  float, float *, int64_t);
    void (*dgemm)(int, int, int, int64_t, int64_t, int64_t, double, const double *, int64_t, const double *,
                  int64_t, double, double *, int64_t);
    void (*cgemm)(int, int, int, int64_t, int64_t, int64_t, const void *, const void *, int64_t, const void *,
                  int64_t, const void *, void *, int64_t);
    void (*sgemv)(int, int, int64_t, int64_t, float, const float *, int64_t, const float *, int64_t, float, float *,
                  int64_t);
    void (*set_num_threads)(int);
    int (*get_num_threads)(void);
} openblas;

static int threads = 1;
static unsigned long gemm_calls, gemv_calls;

/* dlsym() gives object pointers, which ISO C cannot cast to function pointers; copying works by POSIX. */
static int look_up(void *library, const char *name, void *pointer)
{
    void *symbol = dlsym(library, name);

    memcpy(pointer, &symbol, sizeof symbol);
    return symbol != NULL;
}

static int open_openblas(const char *path)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);

    return library && look_up(library, "scipy_cblas_sgemm64_", &openblas.sgemm) &&
           look_up(library, "scipy_cblas_dgemm64_", &openblas.dgemm) &&
           look_up(library, "scipy_cblas_cgemm64_", &openblas.cgemm) &&
           look_up(library, "scipy_cblas_sgemv64_", &openblas.sgemv) &&
           look_up(library, "scipy_openblas_set_num_threads64_", &openblas.set_num_threads) &&
           look_up(library, "scipy_openblas_get_num_threads64_", &openblas.get_num_threads);
}

/* OpenBLAS knows one number of threads per process. Ours is set around each product; the host's comes back
 * afterwards, unless the host has set another meanwhile. */
static int begin_product(void)
{
    int previous = openblas.get_num_threads();

    if (previous != threads)
        openblas.set_num_threads(threads);
    return previous;
}

static void end_product(int previous)
{
    if (previous != threads && openblas.get_num_threads() == threads)
        openblas.set_num_threads(previous);
}

/* ---- what stands in for libmlx's imports ---- */

/* c = alpha a b' + beta c, one block of b at a time, which is read from memory for the first row only. sgemm copies
 * all of b, which takes longer than so few products. */
static void multiply_few_rows(int m, int n, int k, float alpha, const float *a, int lda, const float *b, int ldb,
                              float beta, float *c, int ldc)
{
    int block = BLOCK_BYTES / (int)sizeof *b / k + 1; /* rows of b, columns of c */

    for (int begin = 0; begin < n; begin += block) {
        int count = n - begin < block ? n - begin : block;

        for (int row = 0; row < m; row++)
            openblas.sgemv(ROW_MAJOR, NO_TRANS, count, k, alpha, b + (int64_t)begin * ldb, ldb,
                           a + (int64_t)row * lda, 1, beta, c + (int64_t)row * ldc + begin, 1);
    }
}

void lib_mlx_blas_sgemm(int order, int trans_a, int trans_b, int m, int n, int k, float alpha, const float *a,
                        int lda, const float *b, int ldb, float beta, float *c, int ldc)
{
    int previous;

    if (order == ROW_MAJOR && trans_b != NO_TRANS &&
        lm_standin_multiply(trans_a != NO_TRANS, m, n, k, alpha, a, lda, b, beta, c, ldc))
        return;
    previous = begin_product();
    if (order == ROW_MAJOR && m == 1 && n > 0 && k > 0) { /* c' = op(b)' a' */
        int flipped = trans_b == NO_TRANS;

        __atomic_add_fetch(&gemv_calls, 1, __ATOMIC_RELAXED);
        openblas.sgemv(ROW_MAJOR, flipped ? TRANS : NO_TRANS, flipped ? k : n, flipped ? n : k, alpha, b, ldb, a,
                       trans_a == NO_TRANS ? 1 : lda, beta, c, 1);
    } else if (order == ROW_MAJOR && m <= FEW_ROWS && trans_a == NO_TRANS && trans_b != NO_TRANS && n > 0 && k > 0) {
        __atomic_add_fetch(&gemv_calls, 1, __ATOMIC_RELAXED);
        multiply_few_rows(m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
    } else {
        __atomic_add_fetch(&gemm_calls, 1, __ATOMIC_RELAXED);
        openblas.sgemm(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
    }
    end_product(previous);
}

void lm_blas_multiply(int m, int n, int k, const float *a, const float *b, float *c, int64_t ldc)
{
    int previous = begin_product();

    openblas.sgemm(ROW_MAJOR, NO_TRANS, TRANS, m, n, k, 1, a, k, b, k, 0, c, ldc);
    end_product(previous);
}

static void dgemm(int order, int trans_a, int trans_b, int m, int n, int k, double alpha, const double *a, int lda,
                  const double *b, int ldb, double beta, double *c, int ldc)
{
    int previous = begin_product();

    __atomic_add_fetch(&gemm_calls, 1, __ATOMIC_RELAXED);
    openblas.dgemm(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
    end_product(previous);
}

static void cgemm(int order, int trans_a, int trans_b, int m, int n, int k, const void *alpha, const void *a,
                  int lda, const void *b, int ldb, const void *beta, void *c, int ldc)
{
    int previous = begin_product();

    __atomic_add_fetch(&gemm_calls, 1, __ATOMIC_RELAXED);
    openblas.cgemm(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
    end_product(previous);
}

/* ---- libmlx's table of imports ---- */

enum { SLOTS = 3 };

/* A pointer that libmlx calls through. */
static struct slot {
    const char *symbol;
    uintptr_t replacement;
    uintptr_t *place;    /* NULL: not found */
    uintptr_t original;
    int protected;       /* it lies where the loader has taken the right to write away (RELRO) */
} slots[SLOTS] = {{"cblas_sgemm", 0, 0, 0, 0}, {"cblas_dgemm", 0, 0, 0, 0}, {"cblas_cgemm", 0, 0, 0, 0}};

static int redirected;

struct relocations {
    const ElfW(Rela) *entries;
    size_t bytes;
};

struct imports {
    const ElfW(Sym) *symbols;
    const char *names;
    struct relocations plt, other;
};

static struct imports read_imports(const ElfW(Dyn) *entry)
{
    struct imports found = {NULL, NULL, {NULL, 0}, {NULL, 0}};

    for (; entry->d_tag != DT_NULL; entry++) {
        switch (entry->d_tag) {
        case DT_SYMTAB: found.symbols = (const void *)entry->d_un.d_ptr; break;
        case DT_STRTAB: found.names = (const void *)entry->d_un.d_ptr; break;
        case DT_JMPREL: found.plt.entries = (const void *)entry->d_un.d_ptr; break;
        case DT_PLTRELSZ: found.plt.bytes = entry->d_un.d_val; break;
        case DT_RELA: found.other.entries = (const void *)entry->d_un.d_ptr; break;
        case DT_RELASZ: found.other.bytes = entry->d_un.d_val; break;
        }
    }
    return found;
}

static int is_within(const ElfW(Phdr) *segment, ElfW(Addr) address)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);

    /* As the loader rounds a RELRO segment. */
    return address >= segment->p_vaddr / page * page &&
           address < (segment->p_vaddr + segment->p_memsz) / page * page;
}

static void find_slots(const struct dl_phdr_info *library, const struct imports *imports,
                       const struct relocations *relocations, const ElfW(Phdr) *relro)
{
    size_t count = relocations->bytes / sizeof *relocations->entries;

    for (size_t i = 0; i < count; i++) {
        const ElfW(Rela) *entry = &relocations->entries[i];
        const char *name = imports->names + imports->symbols[ELF64_R_SYM(entry->r_info)].st_name;
        int type = (int)ELF64_R_TYPE(entry->r_info);

        if (type != JUMP_SLOT && type != GLOB_DAT)
            continue;
        for (struct slot *slot = slots; slot < slots + SLOTS; slot++) {
            if (strcmp(name, slot->symbol))
                continue;
            slot->place = (uintptr_t *)(library->dlpi_addr + entry->r_offset);
            slot->protected = relro && is_within(relro, entry->r_offset);
        }
    }
}

/* For dl_iterate_phdr(); non-zero ends the search. */
static int search(struct dl_phdr_info *library, size_t size, void *libmlx)
{
    const ElfW(Dyn) *dynamic = NULL;
    const ElfW(Phdr) *relro = NULL;
    struct imports imports;

    (void)size;
    if (!library->dlpi_name || !lm_same_file(library->dlpi_name, libmlx))
        return 0;
    for (int i = 0; i < library->dlpi_phnum; i++) {
        const ElfW(Phdr) *segment = &library->dlpi_phdr[i];

        if (segment->p_type == PT_DYNAMIC)
            dynamic = (const void *)(library->dlpi_addr + segment->p_vaddr);
        if (segment->p_type == PT_GNU_RELRO)
            relro = segment;
    }
    if (dynamic) {
        imports = read_imports(dynamic);
        find_slots(library, &imports, &imports.plt, relro);
        find_slots(library, &imports, &imports.other, relro);
    }
    return 1;
}

static int write_slot(const struct slot *slot, uintptr_t value)
{
    uintptr_t size = (uintptr_t)sysconf(_SC_PAGESIZE);
    void *page = (void *)((uintptr_t)slot->place / size * size);

    if (slot->protected && mprotect(page, size, PROT_READ | PROT_WRITE))
        return -1;
    __atomic_store_n(slot->place, value, __ATOMIC_RELEASE);
    if (slot->protected)
        mprotect(page, size, PROT_READ);
    return 0;
}

int lib_mlx_blas_redirect(const char *libmlx, const char *openblas_path)
{
    if (redirected)
        return 0;
    if (!open_openblas(openblas_path))
        return -1;
    slots[0].replacement = (uintptr_t)lib_mlx_blas_sgemm;
    slots[1].replacement = (uintptr_t)dgemm;
    slots[2].replacement = (uintptr_t)cgemm;
    dl_iterate_phdr(search, (void *)libmlx);
    for (struct slot *slot = slots; slot < slots + SLOTS; slot++) {
        if (!slot->place)
            return -1;
        slot->original = *slot->place;
    }
    redirected = 1;
    for (struct slot *slot = slots; slot < slots + SLOTS; slot++) {
        if (write_slot(slot, slot->replacement)) {
            lib_mlx_blas_restore();
            return -1;
        }
    }
    return 0;
}

void lib_mlx_blas_restore(void)
{
    if (!redirected)
        return;
    for (struct slot *slot = slots; slot < slots + SLOTS; slot++)
        write_slot(slot, slot->original);
    redirected = 0;
}

void lib_mlx_blas_set_threads(int count)
{
    threads = count;
}

void lib_mlx_blas_counts(unsigned long *gemm, unsigned long *gemv)
{
    *gemm = __atomic_load_n(&gemm_calls, __ATOMIC_RELAXED);
    *gemv = __atomic_load_n(&gemv_calls, __ATOMIC_RELAXED);
}
