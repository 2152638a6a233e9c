/* The gradient of a 3x3 convolution by its weight, of bfloat16 maps; see weight_gradient.py.

   Two images go through together, as the processor multiplies bfloat16 numbers in pairs and adds up
   both products. Maps are [images, height, width, channels]. */

#include "vectors.h"

#ifdef __AVX512BF16__
#include <immintrin.h>

struct convolution {
    int64_t images, height, width, channels, filters, parts, rows; /* `rows` of a map at a time */
    int32_t threads;
};

/* Rows of two images as pairs of numbers; those above, below and beside the map are zeros. */
static void pair(uint32_t *out, const uint16_t *first, const uint16_t *second, int64_t top,
                 int64_t rows, int64_t beside, int64_t height, int64_t width, int64_t depth) {
    int64_t wide = (width + 2 * beside) * depth;
    for (int64_t y = 0; y < rows; y++, out += wide) {
        memset(out, 0, wide * sizeof(uint32_t));
        if (top + y < 0 || top + y >= height) continue;
        const uint16_t *a = first + (top + y) * width * depth;
        const uint16_t *b = second ? second + (top + y) * width * depth : NULL;
        uint32_t *to = out + beside * depth;
        for (int64_t i = 0; i < width * depth; i += LANES) {
            words low = __builtin_convertvector(*(const halves *)(a + i), words), high = {0};
            if (b) high = __builtin_convertvector(*(const halves *)(b + i), words);
            *(words *)(to + i) = low | high << 16;
        }
    }
}

/* sums[channel, filter] += Σ x g over the rows, for `deep` channels and `vectors` of filters. */
INLINE void add_products(const int deep, const int vectors, const uint32_t *x, const uint32_t *g,
                         float *sums, int64_t rows, struct convolution m) {
    __m512 sum[8][4];
#pragma GCC unroll 8
    for (int c = 0; c < deep; c++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) sum[c][v] = _mm512_loadu_ps(sums + c * m.filters + LANES * v);
    for (int64_t y = 0; y < rows; y++) {
        const uint32_t *beside = x + y * (m.width + 2) * m.channels;
        for (int64_t i = 0; i < m.width; i++, beside += m.channels, g += m.filters) {
            __m512bh of_filters[4];
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++)
                of_filters[v] = (__m512bh)_mm512_loadu_si512(g + LANES * v);
#pragma GCC unroll 8
            for (int c = 0; c < deep; c++) {
                __m512bh of_channel = (__m512bh)_mm512_set1_epi32(beside[c]);
#pragma GCC unroll 8
                for (int v = 0; v < vectors; v++)
                    sum[c][v] = _mm512_dpbf16_ps(sum[c][v], of_channel, of_filters[v]);
            }
        }
    }
#pragma GCC unroll 8
    for (int c = 0; c < deep; c++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) _mm512_storeu_ps(sums + c * m.filters + LANES * v, sum[c][v]);
}

/* sums[filter] += Σ g over so many pixels. */
INLINE void add_both(const uint32_t *g, float *sums, int64_t pixels, struct convolution m) {
    for (int64_t f = 0; f < m.filters; f += LANES) {
        floats sum = *(floats *)(sums + f);
        for (int64_t i = 0; i < pixels; i++) {
            words both = *(const words *)(g + i * m.filters + f);
            sum += (floats)(both << 16) + (floats)(both & 0xffff0000);
        }
        *(floats *)(sums + f) = sum;
    }
}

/* sums[part] += the gradient of a part of the images by the weight [tap, channel, filter] and by the
   bias behind it; x and g are maps. */
void weight_gradient(const uint16_t *x, const uint16_t *g, float *sums, struct convolution m) {
    int64_t pairs = (m.images + 1) / 2, C = m.channels, F = m.filters;
#pragma omp parallel num_threads(m.threads) firstprivate(m)
    {
        uint32_t *xs = malloc((m.rows + 2) * (m.width + 2) * C * sizeof(uint32_t));
        uint32_t *gs = malloc(m.rows * m.width * F * sizeof(uint32_t));
#pragma omp for schedule(static)
        for (int64_t part = 0; part < m.parts; part++)
            for (int64_t n = part * pairs / m.parts; n < (part + 1) * pairs / m.parts; n++)
                for (int64_t top = 0; top < m.height; top += m.rows) {
                    int64_t rows = m.height - top < m.rows ? m.height - top : m.rows;
                    int64_t image = m.height * m.width;
                    const uint16_t *x1 = x + 2 * n * image * C, *g1 = g + 2 * n * image * F;
                    int both = 2 * n + 1 < m.images;
                    pair(xs, x1, both ? x1 + image * C : NULL, top - 1, rows + 2, 1, m.height,
                         m.width, C);
                    pair(gs, g1, both ? g1 + image * F : NULL, top, rows, 0, m.height, m.width, F);
                    float *of_part = sums + part * (9 * C + 1) * F;
                    add_both(gs, of_part + 9 * C * F, rows * m.width, m);
                    for (int tap = 0; tap < 9; tap++) {
                        const uint32_t *from = xs + (tap / 3 * (m.width + 2) + tap % 3) * C;
                        float *own = of_part + tap * C * F;
                        if (F % (4 * LANES) == 0)
                            for (int64_t f = 0; f < F; f += 4 * LANES)
                                for (int64_t c = 0; c < C; c += 4)
                                    add_products(4, 4, from + c, gs + f, own + c * F + f, rows, m);
                        else
                            for (int64_t f = 0; f < F; f += 2 * LANES)
                                for (int64_t c = 0; c < C; c += 8)
                                    add_products(8, 2, from + c, gs + f, own + c * F + f, rows, m);
                    }
                }
        free(gs);
        free(xs);
    }
}
#endif
