/* The kernels of pooled_convolution.py, which says what they compute.

   Images are [images, channels, height, width], maps [images, height / 2, width / 2, filters], and
   weights [channels * 9 + 1, filters]: one row a tap, and the bias. Filters come
   in whole vectors. */

#include "vectors.h"

#define MOST_TAPS 27

struct shape {
    int64_t tasks, images, channels, height, width, filters; /* of a task: `images` */
    int32_t brief, threads;
};

#define BLOCK (16 * LANES)

/* Numbers of a channel with the zeros that the convolution sees around it, in whole blocks. */
static int64_t area_of(struct shape s) {
    return ((s.height + 2) * (s.width + 2) + BLOCK - 1) / BLOCK * BLOCK;
}

/* Room for an image with zeros around it, and as many behind as taps may look ahead. */
static float *zeros(struct shape s) {
    return calloc(s.channels * area_of(s) + 3 * (s.width + 2) + LANES, sizeof(float));
}

/* Put an image there. */
static void surround(float *padded, const float *image, struct shape s) {
    for (int64_t c = 0; c < s.channels; c++)
        for (int64_t y = 0; y < s.height; y++)
            memcpy(padded + c * area_of(s) + (y + 1) * (s.width + 2) + 1,
                   image + (c * s.height + y) * s.width, s.width * sizeof(float));
}

/* One row of the map for `vectors` vectors of filters. */
INLINE void
row_of_largest(const int vectors, const float *padded, const float *weight, int64_t row,
               int64_t first, void *map, uint8_t *chosen, struct shape s) {
    int64_t wide = s.width + 2, area = area_of(s), F = s.filters;
    for (int64_t column = 0; column < s.width / 2; column++) {
        floats sum[4][4] = {{{0}}};
        for (int64_t c = 0; c < s.channels; c++)
#pragma GCC unroll 9
            for (int tap = 0; tap < 9; tap++) {
                const float *at = padded + c * area + (2 * row + tap / 3) * wide + 2 * column + tap % 3;
                const float *taps = weight + (9 * c + tap) * F + first;
                for (int v = 0; v < vectors; v++) {
                    floats w = *(const floats *)(taps + LANES * v);
                    sum[0][v] += at[0] * w;
                    sum[1][v] += at[1] * w;
                    sum[2][v] += at[wide] * w;
                    sum[3][v] += at[wide + 1] * w;
                }
            }
        int64_t out = (row * (s.width / 2) + column) * F + first;
        for (int v = 0; v < vectors; v++) {
            floats largest = sum[0][v];
            ints which = {0};
            for (int p = 1; p < 4; p++) {
                ints larger = (sum[p][v] > largest) | (sum[p][v] != sum[p][v]);
                largest = (floats)either(larger, (ints)sum[p][v], (ints)largest);
                which = either(larger, (ints){0} + p, which);
            }
            largest += *(const floats *)(weight + 9 * s.channels * F + first + LANES * v);
            ints none = largest <= 0;
            store(map, out + LANES * v, s.brief, (floats)(~none & (ints)largest));
            which = either(none, (ints){0} + NONE, which);
            store_bytes(chosen + out + LANES * v, which);
        }
    }
}

/* map = relu(max_pool2d(conv2d(images, weight) + bias, 2)), and which of each square it is. */
void largest(const float *images, const float *weights, void *maps, uint8_t *chosen,
             struct shape s) {
    int64_t count = s.tasks * s.images, pixels = s.channels * s.height * s.width;
    int64_t each = (s.height / 2) * (s.width / 2) * s.filters;
#pragma omp parallel num_threads(s.threads) firstprivate(s)
    {
        float *padded = zeros(s);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < count; n++) {
            const float *weight = weights + n / s.images * (9 * s.channels + 1) * s.filters;
            void *map = (char *)maps + n * each * (s.brief ? 2 : 4);
            surround(padded, images + n * pixels, s);
            for (int64_t row = 0; row < s.height / 2; row++)
                for (int64_t f = 0; f < s.filters;) {
                    int64_t left = s.filters - f;
                    int vectors = left >= 4 * LANES ? 4 : left >= 2 * LANES ? 2 : 1;
                    uint8_t *which = chosen + n * each;
                    if (vectors == 4) row_of_largest(4, padded, weight, row, f, map, which, s);
                    else if (vectors == 2) row_of_largest(2, padded, weight, row, f, map, which, s);
                    else row_of_largest(1, padded, weight, row, f, map, which, s);
                    f += vectors * LANES;
                }
        }
        free(padded);
    }
}

/* What the squares of a row see: [width / 2, channels], 4x4 pixels each. */
static void see(float *windows, const float *padded, int64_t row, struct shape s) {
    int64_t wide = s.width + 2, area = area_of(s);
    for (int64_t column = 0; column < s.width / 2; column++)
        for (int64_t c = 0; c < s.channels; c++)
            for (int y = 0; y < 4; y++)
                memcpy(windows + (column * s.channels + c) * LANES + 4 * y,
                       padded + c * area + (2 * row + y) * wide + 2 * column, 4 * sizeof(float));
}

INLINE ints corners(const uint8_t *chosen) { /* where in 4x4 pixels its 3x3 begin */
    ints which = load_bytes(chosen);
    return (which >> 1) * 4 + (which & 1);
}

/* map = the numbers of conv2d(images, weight) + bias that were chosen, 0 where none was. */
INLINE void
row_of_chosen(const int channels, const float *windows, const float *weight, int64_t out,
              int64_t f, const uint8_t *chosen, void *map, struct shape s) {
    int64_t F = s.filters;
    floats w[MOST_TAPS + 1];
    for (int tap = 0; tap <= 9 * channels; tap++) w[tap] = *(const floats *)(weight + tap * F + f);
    for (int64_t column = 0; column < s.width / 2; column++, out += F) {
        ints corner = corners(chosen + out);
        floats sum = w[9 * channels];
#pragma GCC unroll 3
        for (int c = 0; c < channels; c++) {
            floats window = *(const floats *)(windows + (column * channels + c) * LANES);
#pragma GCC unroll 9
            for (int tap = 0; tap < 9; tap++)
                sum += w[9 * c + tap] *
                       __builtin_shuffle(window, (corner + tap / 3 * 4 + tap % 3) & (LANES - 1));
        }
        ints none = load_bytes(chosen + out) == NONE;
        store(map, out, s.brief, (floats)(~none & (ints)sum));
    }
}

void chosen_ones(const float *images, const float *weights, const uint8_t *chosen, void *maps,
                 struct shape s) {
    int64_t count = s.tasks * s.images, pixels = s.channels * s.height * s.width;
    int64_t each = (s.height / 2) * (s.width / 2) * s.filters;
#pragma omp parallel num_threads(s.threads) firstprivate(s)
    {
        float *padded = zeros(s);
        float *windows = malloc(s.width / 2 * s.channels * LANES * sizeof(float));
#pragma omp for schedule(static)
        for (int64_t n = 0; n < count; n++) {
            const float *weight = weights + n / s.images * (9 * s.channels + 1) * s.filters;
            surround(padded, images + n * pixels, s);
            for (int64_t row = 0; row < s.height / 2; row++) {
                int64_t out = n * each + row * (s.width / 2) * s.filters;
                see(windows, padded, row, s);
                for (int64_t f = 0; f < s.filters; f += LANES)
                    if (s.channels == 1)
                        row_of_chosen(1, windows, weight, out + f, f, chosen, maps, s);
                    else
                        row_of_chosen(3, windows, weight, out + f, f, chosen, maps, s);
            }
        }
        free(windows);
        free(padded);
    }
}

INLINE void
gradient_of_row(const int channels, const float *windows, float *sums, int64_t out, int64_t f,
                const uint8_t *chosen, const void *map, struct shape s) {
    int64_t F = s.filters;
    floats sum[MOST_TAPS + 1];
    for (int tap = 0; tap <= 9 * channels; tap++) sum[tap] = *(floats *)(sums + tap * F + f);
    for (int64_t column = 0; column < s.width / 2; column++, out += F) {
        ints corner = corners(chosen + out);
        ints none = load_bytes(chosen + out) == NONE;
        floats g = (floats)(~none & (ints)load(map, out, s.brief));
        sum[9 * channels] += g;
#pragma GCC unroll 3
        for (int c = 0; c < channels; c++) {
            floats window = *(const floats *)(windows + (column * channels + c) * LANES);
#pragma GCC unroll 9
            for (int tap = 0; tap < 9; tap++)
                sum[9 * c + tap] +=
                    g * __builtin_shuffle(window, (corner + tap / 3 * 4 + tap % 3) & (LANES - 1));
        }
    }
    for (int tap = 0; tap <= 9 * channels; tap++) *(floats *)(sums + tap * F + f) = sum[tap];
}

/* sums[task, part] += the gradient by weight and bias of a part of its images, `together` each. */
void gradient(const float *images, const uint8_t *chosen, const void *maps, float *sums,
              int64_t together, struct shape s) {
    int64_t parts = (s.images + together - 1) / together;
    int64_t pixels = s.channels * s.height * s.width;
    int64_t each = (s.height / 2) * (s.width / 2) * s.filters;
#pragma omp parallel num_threads(s.threads) firstprivate(s)
    {
        float *padded = zeros(s);
        float *windows = malloc(s.width / 2 * s.channels * LANES * sizeof(float));
#pragma omp for schedule(static)
        for (int64_t part = 0; part < s.tasks * parts; part++) {
            float *own = sums + part * (9 * s.channels + 1) * s.filters;
            int64_t first = part % parts * together, last = first + together;
            if (last > s.images) last = s.images;
            for (int64_t i = first; i < last; i++) {
                int64_t n = part / parts * s.images + i;
                surround(padded, images + n * pixels, s);
                for (int64_t row = 0; row < s.height / 2; row++) {
                    int64_t out = n * each + row * (s.width / 2) * s.filters;
                    see(windows, padded, row, s);
                    for (int64_t f = 0; f < s.filters; f += LANES)
                        if (s.channels == 1)
                            gradient_of_row(1, windows, own, out + f, f, chosen, maps, s);
                        else
                            gradient_of_row(3, windows, own, out + f, f, chosen, maps, s);
                }
            }
        }
        free(windows);
        free(padded);
    }
}

/* Σ a b over a channel: in float32 by blocks, whose sums are added up in float64. */
static double product(const float *a, const float *b, int64_t area) {
    double total = 0;
    for (int64_t start = 0; start < area; start += BLOCK) {
        floats sum[4] = {{0}};
        for (int64_t i = start; i < start + BLOCK; i += 4 * LANES)
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++)
                sum[v] += *(const floats *)(a + i + LANES * v) * *(const floats *)(b + i + LANES * v);
        floats lanes = (sum[0] + sum[1]) + (sum[2] + sum[3]);
        for (int lane = 0; lane < LANES; lane++) total += lanes[lane];
    }
    return total;
}

/* Σ a b over numbers that lie `apart`. */
static double line(const float *a, const float *b, int64_t count, int64_t apart) {
    double total = 0;
    for (int64_t i = 0; i < count; i++) total += (double)a[i * apart] * b[i * apart];
    return total;
}

/* What a tap of `a` sees of the products with b, which is `whole` in all: not the row and the column
   that are given, where there are some. */
static double seen(double whole, const float *a, const float *b, const int64_t *row,
                   const int64_t *column, int64_t wide, int64_t high) {
    if (row) whole -= line(a + *row * wide, b + *row * wide, wide, 1);
    if (column) whole -= line(a + *column, b + *column, high, wide);
    if (row && column) whole += (double)a[*row * wide + *column] * b[*row * wide + *column];
    return whole;
}

/* The sum over an image's 3x3 patches p, with a 1 behind, of p p' [taps + 1, taps + 1].

   Taps (i, j) of channel c and (k, l) of d see pixels that are (k - i, l - j) apart, and the product
   of those over the whole image depends on that alone. Of it the first tap of three does not see the
   last row, and the last tap not the first, where the other tap has a pixel; and so for columns. */
static void moments_of(const float *image, const float *ones, double *out, struct shape s) {
    int64_t C = s.channels, wide = s.width + 2, high = s.height + 2, area = area_of(s);
    int64_t side = 9 * C + 1, rows[] = {s.height, 0, 1}, columns[] = {s.width, 0, 1};
    const int64_t *row[] = {rows, NULL, rows + 2}, *column[] = {columns, NULL, columns + 2};
    for (int64_t c = 0; c < C; c++) {
        const float *a = image + c * area;
        double sum = product(a, ones, area);
        for (int i = 0; i < 3; i++)
            for (int j = 0; j < 3; j++) {
                int64_t tap = 9 * c + 3 * i + j;
                double value = seen(sum, a, ones, row[i], column[j], wide, high);
                out[tap * side + side - 1] = out[(side - 1) * side + tap] = value;
            }
        for (int64_t d = 0; d < C; d++)
            for (int dy = 0; dy < 3; dy++)
                for (int dx = dy ? -2 : d < c; dx < 3; dx++) {
                    const float *b = image + d * area + dy * wide + dx;
                    double whole = product(a, b, area);
                    for (int i = 0; i + dy < 3; i++)
                        for (int j = dx < 0 ? -dx : 0; j < 3 && j + dx < 3; j++) {
                            int64_t first = 9 * c + 3 * i + j, second = 9 * d + 3 * (i + dy) + j + dx;
                            double value = seen(whole, a, b, dy ? NULL : row[i],
                                                dx ? NULL : column[j], wide, high);
                            out[first * side + second] = out[second * side + first] = value;
                        }
                }
    }
    out[side * side - 1] = s.height * s.width;
}

void moments(const float *images, double *out, struct shape s) {
    int64_t side = 9 * s.channels + 1;
#pragma omp parallel num_threads(s.threads) firstprivate(s)
    {
        float *padded = zeros(s), *ones = zeros(s);
        for (int64_t i = 0; i < area_of(s); i++) ones[i] = 1;
#pragma omp for schedule(static)
        for (int64_t n = 0; n < s.tasks * s.images; n++) {
            surround(padded, images + n * s.channels * s.height * s.width, s);
            moments_of(padded, ones, out + n * side * side, s);
        }
        free(ones);
        free(padded);
    }
}
