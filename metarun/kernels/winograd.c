/* 3x3 convolutions by the way of Winograd; see winograd.py.

   Maps are [tasks, images, height, width, depth], of float32 or, if `brief`, bfloat16, cut into tiles of
   2x2 pixels; beyond the edges zeros are read, and what is computed there is thrown away. Transformed,
   the 4x4 pixels that a tile's convolution sees are 16 numbers of each channel, and so are the taps: 16
   products in the place of 36. Weights are [tasks, filters, 9 taps, channels], of float32. */

#include "vectors.h"

#define TOGETHER 48 /* tiles go through a core's cache together: a multiple of 24 */

struct maps {
    int64_t tasks, images, height, width, channels, filters;
    int32_t brief, threads;
};

/* What is multiplied lies in words of 32 bits: a float32 number, or two of bfloat16, whose products are
   added up together. Room is left between the 16 numbers, not to meet in the same ways of a cache. */
enum form { WHOLE, NEXT, FIRST, SECOND }; /* and in bfloat16: beside the next lane, or half of a word */

INLINE int64_t words_of(int64_t number, int brief) { return brief ? (number + 1) / 2 : number; }

INLINE int64_t apart(int64_t depth, int brief) { return words_of(TOGETHER * depth, brief) + LANES; }

INLINE void put(uint32_t *out, int64_t at, const enum form form, floats value) {
    if (form == WHOLE || form == NEXT) {
        store(out, at, form == NEXT, value);
        return;
    }
    words half = widened(shortened(value));
    words *to = (words *)(out + at);
    *to = form == FIRST ? half : *to | half << 16;
}

/* Where the pixels of a square are that begins `before` pixels up and left of a tile; for those outside
   the map it is `outside`. Told without a branch, which would often go another way at the next tile. */
INLINE void square(const int size, const int before, const char *at[], const char *map, const char *outside,
                   int64_t tile, int64_t depth, const int brief, struct maps m) {
    uint32_t wide = (m.width + 1) / 2, high = (m.height + 1) / 2, row = (uint32_t)tile / wide;
    int64_t top = 2 * (int64_t)(row % high) - before, left = 2 * (int64_t)((uint32_t)tile % wide) - before;
    int64_t pixel = depth * (brief ? sizeof(uint16_t) : sizeof(float));
    const char *first = map + ((row / high * m.height + top) * m.width + left) * pixel;
#pragma GCC unroll 4
    for (int y = 0; y < size; y++)
#pragma GCC unroll 4
        for (int x = 0; x < size; x++) {
            int inside = ((uint64_t)(top + y) < (uint64_t)m.height) &
                         ((uint64_t)(left + x) < (uint64_t)m.width);
            uintptr_t here = (uintptr_t)first + (y * m.width + x) * pixel, there = (uintptr_t)outside;
            at[y * size + x] = (const char *)(there ^ ((there ^ here) & -(uintptr_t)inside));
        }
}

/* The 4x4 pixels that a tile's convolution sees, transformed: Bt d B. */
INLINE void transform_seen(uint32_t *out, const enum form form, const char *map, const char *zeros,
                           int64_t tile, int64_t depth, const int brief, struct maps m) {
    const char *at[16];
    int64_t far = apart(depth, brief) * (form == NEXT ? 2 : 1);
    square(4, 1, at, map, zeros, tile, depth, brief, m);
    for (int64_t c = 0; c < depth; c += LANES) {
        floats d[16];
#pragma GCC unroll 4
        for (int x = 0; x < 4; x++) {
            floats a0 = load(at[x], c, brief), a1 = load(at[4 + x], c, brief);
            floats a2 = load(at[8 + x], c, brief), a3 = load(at[12 + x], c, brief);
            d[x] = a0 - a2, d[4 + x] = a1 + a2, d[8 + x] = a2 - a1, d[12 + x] = a1 - a3;
        }
#pragma GCC unroll 4
        for (int y = 0; y < 16; y += 4) {
            put(out, y * far + c, form, d[y] - d[y + 2]);
            put(out, (y + 1) * far + c, form, d[y + 1] + d[y + 2]);
            put(out, (y + 2) * far + c, form, d[y + 2] - d[y + 1]);
            put(out, (y + 3) * far + c, form, d[y + 1] - d[y + 3]);
        }
    }
}

/* A tile's own 2x2 pixels, transformed as what is multiplied with the above: A g At. */
INLINE void transform_own(uint32_t *out, const enum form form, const char *map, const char *zeros,
                          int64_t tile, int64_t depth, const int brief, struct maps m) {
    const char *at[4];
    int64_t far = apart(depth, brief);
    square(2, 0, at, map, zeros, tile, depth, brief, m);
    for (int64_t c = 0; c < depth; c += LANES) {
        floats g[8];
#pragma GCC unroll 2
        for (int x = 0; x < 2; x++) {
            floats a0 = load(at[x], c, brief), a1 = load(at[2 + x], c, brief);
            g[x] = a0, g[2 + x] = a0 + a1, g[4 + x] = a0 - a1, g[6 + x] = -a1;
        }
#pragma GCC unroll 4
        for (int y = 0; y < 4; y++) {
            put(out, 4 * y * far + c, form, g[2 * y]);
            put(out, (4 * y + 1) * far + c, form, g[2 * y] + g[2 * y + 1]);
            put(out, (4 * y + 2) * far + c, form, g[2 * y] - g[2 * y + 1]);
            put(out, (4 * y + 3) * far + c, form, -g[2 * y + 1]);
        }
    }
}

/* A tile of the map from its 16 sums of products: At m A, and the bias. */
INLINE void transform_back(char *map, char *outside, const float *sums, const float *bias, int64_t tile,
                           int64_t depth, const int brief, struct maps m) {
    const char *at[4];
    int64_t far = apart(depth, 0);
    square(2, 0, at, map, outside, tile, depth, brief, m);
    for (int64_t f = 0; f < depth; f += LANES) {
        floats s[8], b = {0};
#pragma GCC unroll 4
        for (int x = 0; x < 4; x++) {
            const float *from = sums + x * far + f;
            floats a0 = load(from, 0, 0), a1 = load(from, 4 * far, 0);
            floats a2 = load(from, 8 * far, 0), a3 = load(from, 12 * far, 0);
            s[x] = a0 + a1 + a2, s[4 + x] = a1 - a2 - a3;
        }
        if (bias) b = load(bias, f, 0);
#pragma GCC unroll 2
        for (int y = 0; y < 2; y++) {
            floats *a = s + 4 * y;
            store((char *)at[2 * y], f, brief, a[0] + a[1] + a[2] + b);
            store((char *)at[2 * y + 1], f, brief, a[1] - a[2] - a[3] + b);
        }
    }
}

#ifdef __AVX512BF16__
const int multiplies_bfloat16 = 1;
#endif

/* sum + a b, of bfloat16 numbers both products. */
INLINE floats add_product(floats sum, uint32_t a, words b, const int brief) {
#ifdef __AVX512BF16__
    if (brief)
        return (floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(a), (__m512bh)b);
#endif
    float number;
    memcpy(&number, &a, sizeof number);
    return sum + number * (floats)b;
}

/* Σ over k of a[row, k] b[k, column], `rows` by `vectors` of it: added to `out`, or in the place of it. */
INLINE void product(const int rows, const int vectors, const uint32_t *a, int64_t a_row, int64_t a_k,
                    const uint32_t *b, int64_t columns, int64_t number, float *out, const int add,
                    const int brief) {
    floats sum[24] = {{0}};
    for (int64_t k = 0; k < number; k++, a += a_k, b += columns) {
        words row_of_b[4];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            row_of_b[v] = *(const words *)(b + LANES * v);
            __asm__("" : "+v"(row_of_b[v])); /* kept in a register, not loaded again for each row */
        }
#pragma GCC unroll 24
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++)
                sum[r * vectors + v] = add_product(sum[r * vectors + v], a[r * a_row], row_of_b[v], brief);
    }
#pragma GCC unroll 24
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            float *to = out + r * columns + LANES * v;
            store(to, 0, 0, add ? load(to, 0, 0) + sum[r * vectors + v] : sum[r * vectors + v]);
        }
}

/* The same of all columns, a multiple of 16. `sums`, 16 or 24, is how many vectors are added up together;
   `a` and `out` have room for rows up to the next multiple of it. */
INLINE void products(const int sums, int64_t rows, int64_t columns, const uint32_t *a, int64_t a_row,
                     int64_t a_k, const uint32_t *b, int64_t number, float *out, const int add, const int brief) {
    const int vectors = columns % 64 == 0 ? 4 : columns % 32 == 0 ? 2 : 1, tall = sums / vectors;
    for (int64_t v = 0; v < columns; v += LANES * vectors)
        for (int64_t r = 0; r < rows; r += tall) {
            const uint32_t *of_a = a + r * a_row, *of_b = b + v;
            float *to = out + r * columns + v;
            if (vectors == 4) product(sums / 4, 4, of_a, a_row, a_k, of_b, columns, number, to, add, brief);
            if (vectors == 2) product(sums / 2, 2, of_a, a_row, a_k, of_b, columns, number, to, add, brief);
            if (vectors == 1) product(sums, 1, of_a, a_row, a_k, of_b, columns, number, to, add, brief);
        }
}

/* Of 16 filters the taps, transformed, G w Gt: [16, channels, filters], or, to go back from what a
   convolution gives to what it sees, of the taps in reverse [16, filters, channels]. */
INLINE void transform_weight(uint32_t *out, const float *weight, int64_t first, const int back, const int brief,
                             struct maps m) {
    int64_t C = m.channels, F = m.filters, far = words_of(C * F, brief);
    for (int64_t c = 0; c < C; c += LANES) {
        float taps[9][LANES][LANES];
        for (int tap = 0; tap < 9; tap++)
            for (int f = 0; f < LANES; f++) {
                const float *from = weight + ((first + f) * 9 + (back ? 8 - tap : tap)) * C + c;
                if (back)
                    store(taps[tap][f], 0, 0, load(from, 0, 0));
                else
                    for (int i = 0; i < LANES; i++) taps[tap][i][f] = from[i];
            }
#pragma GCC unroll 2
        for (int row = 0; row < LANES; row++) {
            int64_t k = back ? first + row : c + row;
            const enum form form = brief ? row % 2 ? SECOND : FIRST : WHOLE;
            uint32_t *to = out + (brief ? k / 2 : k) * (back ? C : F) + (back ? c : first);
            floats w[12];
#pragma GCC unroll 3
            for (int x = 0; x < 3; x++) {
                floats a0 = load(taps[x][row], 0, 0), a1 = load(taps[3 + x][row], 0, 0);
                floats a2 = load(taps[6 + x][row], 0, 0), both = a0 + a2;
                w[x] = a0, w[3 + x] = 0.5f * (both + a1), w[6 + x] = 0.5f * (both - a1), w[9 + x] = a2;
            }
#pragma GCC unroll 4
            for (int y = 0; y < 4; y++, to += 4 * far) {
                floats both = w[3 * y] + w[3 * y + 2];
                put(to, 0, form, w[3 * y]);
                put(to, far, form, 0.5f * (both + w[3 * y + 1]));
                put(to, 2 * far, form, 0.5f * (both - w[3 * y + 1]));
                put(to, 3 * far, form, w[3 * y + 2]);
            }
        }
    }
}

/* So many tiles of a task's map `to` from those of `from`. */
INLINE void convolve_tiles(const char *from, const uint32_t *weights, const float *bias, char *to,
                           int64_t first, int64_t number, int64_t in, int64_t out, uint32_t *seen,
                           float *sums, char *outside, const char *zeros, const int brief, struct maps m) {
    for (int64_t tile = 0; tile < number; tile++)
        transform_seen(seen + words_of(tile * in, brief), brief ? NEXT : WHOLE, from, zeros, first + tile, in,
                       brief, m);
    for (int k = 0; k < 16; k++)
        products(24, number, out, seen + k * apart(in, brief), words_of(in, brief), 1,
                 weights + k * words_of(in, brief) * out, words_of(in, brief), sums + k * apart(out, 0), 0,
                 brief);
    for (int64_t tile = 0; tile < number; tile++)
        transform_back(to, outside, sums + tile * out, bias, first + tile, out, brief, m);
}

INLINE int64_t tiles_of(struct maps m) { return m.images * ((m.height + 1) / 2) * ((m.width + 1) / 2); }

/* `to` = the convolution of maps [channels] by the weight, plus the bias; or `back`: of maps [filters], as
   if each product went back to the pixel that it came from. */
void convolve(const char *from, const float *weight, const float *bias, char *to, int64_t back, struct maps m) {
    int64_t C = m.channels, F = m.filters, in = back ? F : C, out = back ? C : F;
    int64_t tiles = tiles_of(m), blocks = (tiles + TOGETHER - 1) / TOGETHER;
    int64_t task_words = 16 * words_of(C * F, m.brief), pixels = m.images * m.height * m.width;
    int64_t size = m.brief ? sizeof(uint16_t) : sizeof(float);
    uint32_t *weights = malloc(m.tasks * task_words * sizeof(uint32_t));
#pragma omp parallel num_threads(m.threads) firstprivate(m)
    {
        uint32_t *seen = calloc(16 * apart(in, m.brief), sizeof(uint32_t));
        float *sums = malloc(16 * apart(out, 0) * sizeof(float));
        char *zeros = calloc(in, sizeof(float)), *outside = malloc(out * sizeof(float));
#pragma omp for schedule(static)
        for (int64_t i = 0; i < m.tasks * F / LANES; i++) {
            int64_t task = i / (F / LANES), first = i % (F / LANES) * LANES;
            uint32_t *its = weights + task * task_words;
            const float *of_task = weight + task * 9 * C * F;
            if (back && m.brief) transform_weight(its, of_task, first, 1, 1, m);
            else if (back) transform_weight(its, of_task, first, 1, 0, m);
            else if (m.brief) transform_weight(its, of_task, first, 0, 1, m);
            else transform_weight(its, of_task, first, 0, 0, m);
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < m.tasks * blocks; i++) {
            int64_t task = i / blocks, first = i % blocks * TOGETHER;
            int64_t number = tiles - first < TOGETHER ? tiles - first : TOGETHER;
            const char *seen_by = from + task * pixels * in * size;
            char *its = to + task * pixels * out * size;
            const float *its_bias = bias ? bias + task * out : NULL;
            const uint32_t *its_weights = weights + task * task_words;
            if (m.brief)
                convolve_tiles(seen_by, its_weights, its_bias, its, first, number, in, out, seen, sums,
                               outside, zeros, 1, m);
            else
                convolve_tiles(seen_by, its_weights, its_bias, its, first, number, in, out, seen, sums,
                               outside, zeros, 0, m);
        }
        free(seen);
        free(sums);
        free(zeros);
        free(outside);
    }
    free(weights);
}

/* sums[16, filter, channel] += the products of so many tiles. */
INLINE void add_tiles(const char *x, const char *g, const char *zeros, int64_t first, int64_t number,
                      uint32_t *seen, uint32_t *own, float *sums, const int brief, struct maps m) {
    int64_t C = m.channels, F = m.filters;
    for (int64_t tile = 0; tile < number; tile++) {
        int64_t row = brief ? tile / 2 : tile;
        if (brief && tile % 2) {
            transform_seen(seen + row * C, SECOND, x, zeros, first + tile, C, brief, m);
            transform_own(own + row * F, SECOND, g, zeros, first + tile, F, brief, m);
        } else {
            transform_seen(seen + row * C, brief ? FIRST : WHOLE, x, zeros, first + tile, C, brief, m);
            transform_own(own + row * F, brief ? FIRST : WHOLE, g, zeros, first + tile, F, brief, m);
        }
    }
    for (int k = 0; k < 16; k++)
        products(16, F, C, own + k * apart(F, brief), 1, F, seen + k * apart(C, brief), words_of(number, brief),
                 sums + k * C * F, 1, brief);
}

/* [filters, 9, channels] from the 16 sums of products: Gt m G. */
static void transform_gradient(float *weight, const float *sums, struct maps m) {
    int64_t C = m.channels, far = C * m.filters;
    for (int64_t f = 0; f < m.filters; f++)
        for (int64_t c = 0; c < C; c += LANES) {
            floats w[12];
#pragma GCC unroll 4
            for (int x = 0; x < 4; x++) {
                const float *from = sums + x * far + f * C + c;
                floats a0 = load(from, 0, 0), a1 = load(from, 4 * far, 0);
                floats a2 = load(from, 8 * far, 0), a3 = load(from, 12 * far, 0);
                w[x] = a0 + 0.5f * (a1 + a2), w[4 + x] = 0.5f * (a1 - a2), w[8 + x] = 0.5f * (a1 + a2) + a3;
            }
#pragma GCC unroll 3
            for (int y = 0; y < 3; y++) {
                floats *a = w + 4 * y;
                float *to = weight + (f * 9 + 3 * y) * C + c;
                store(to, 0, 0, a[0] + 0.5f * (a[1] + a[2]));
                store(to, C, 0, 0.5f * (a[1] - a[2]));
                store(to, 2 * C, 0, 0.5f * (a[1] + a[2]) + a[3]);
            }
        }
}

/* The gradient by the weight, of each part of a task's tiles: [tasks, parts, filters, 9, channels]. */
void by_weight(const char *x, const char *g, float *weight, int64_t parts, struct maps m) {
    int64_t C = m.channels, F = m.filters, pixels = m.images * m.height * m.width;
    int64_t tiles = tiles_of(m), blocks = (tiles + TOGETHER - 1) / TOGETHER;
    int64_t size = m.brief ? sizeof(uint16_t) : sizeof(float);
#pragma omp parallel num_threads(m.threads) firstprivate(m)
    {
        uint32_t *seen = malloc(16 * apart(C, m.brief) * sizeof(uint32_t));
        uint32_t *own = malloc(16 * apart(F, m.brief) * sizeof(uint32_t));
        float *sums = malloc(16 * C * F * sizeof(float));
        char *zeros = calloc(C > F ? C : F, sizeof(float));
#pragma omp for schedule(static)
        for (int64_t i = 0; i < m.tasks * parts; i++) {
            int64_t task = i / parts, part = i % parts;
            const char *its_x = x + task * pixels * C * size, *its_g = g + task * pixels * F * size;
            memset(sums, 0, 16 * C * F * sizeof(float));
            for (int64_t block = part * blocks / parts; block < (part + 1) * blocks / parts; block++) {
                int64_t first = block * TOGETHER;
                int64_t number = tiles - first < TOGETHER ? tiles - first : TOGETHER;
                if (m.brief)
                    add_tiles(its_x, its_g, zeros, first, number, seen, own, sums, 1, m);
                else
                    add_tiles(its_x, its_g, zeros, first, number, seen, own, sums, 0, m);
            }
            transform_gradient(weight + i * 9 * C * F, sums, m);
        }
        free(seen);
        free(own);
        free(sums);
        free(zeros);
    }
}
