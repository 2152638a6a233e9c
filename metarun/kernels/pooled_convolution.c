/* The kernels of pooled_convolution.py, which says what they compute.

   Images are [images, channels, height, width], maps [images, height / 2, width / 2, filters], and
   weights [channels * 9 + 1, filters]: one row a tap, and the bias. Filters come
   in whole vectors. */

#include "vectors.h"

struct shape {
    int64_t tasks, images, channels, height, width, filters; /* of a task: `images` */
    int32_t brief, threads;
};

/* An image with the zeros that the convolution sees around it. */
static void surround(float *padded, const float *image, struct shape s) {
    int64_t wide = s.width + 2, area = (s.height + 2) * wide;
    memset(padded, 0, s.channels * area * sizeof(float));
    for (int64_t c = 0; c < s.channels; c++)
        for (int64_t y = 0; y < s.height; y++)
            memcpy(padded + c * area + (y + 1) * wide + 1,
                   image + (c * s.height + y) * s.width, s.width * sizeof(float));
}

static float *room_to_surround(struct shape s) {
    return malloc(s.channels * (s.height + 2) * (s.width + 2) * sizeof(float));
}

/* One row of the map for `vectors` vectors of filters. */
INLINE void
row_of_largest(const int vectors, const float *padded, const float *weight, int64_t row,
               int64_t first, void *map, uint8_t *chosen, struct shape s) {
    int64_t wide = s.width + 2, area = (s.height + 2) * wide, F = s.filters;
    for (int64_t column = 0; column < s.width / 2; column++) {
        floats sum[4][4] = {{{0}}};
        for (int64_t c = 0; c < s.channels; c++)
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
            *(bytes *)(chosen + out + LANES * v) = __builtin_convertvector(which, bytes);
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
        float *padded = room_to_surround(s);
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
    int64_t wide = s.width + 2, area = (s.height + 2) * wide;
    for (int64_t column = 0; column < s.width / 2; column++)
        for (int64_t c = 0; c < s.channels; c++)
            for (int y = 0; y < 4; y++)
                memcpy(windows + (column * s.channels + c) * LANES + 4 * y,
                       padded + c * area + (2 * row + y) * wide + 2 * column, 4 * sizeof(float));
}

INLINE ints corners(const uint8_t *chosen) { /* where in 4x4 pixels its 3x3 begin */
    ints which = __builtin_convertvector(*(const bytes *)chosen, ints);
    return (which >> 1) * 4 + (which & 1);
}

/* map = the numbers of conv2d(images, weight) + bias that were chosen, 0 where none was. */
INLINE void
row_of_chosen(const int channels, const float *windows, const float *weight, int64_t out,
              int64_t f, const uint8_t *chosen, void *map, struct shape s) {
    int64_t F = s.filters;
    floats w[9 * channels + 1];
    for (int tap = 0; tap <= 9 * channels; tap++) w[tap] = *(const floats *)(weight + tap * F + f);
    for (int64_t column = 0; column < s.width / 2; column++, out += F) {
        ints corner = corners(chosen + out);
        floats sum = w[9 * channels];
        for (int c = 0; c < channels; c++) {
            floats window = *(const floats *)(windows + (column * channels + c) * LANES);
            for (int tap = 0; tap < 9; tap++)
                sum += w[9 * c + tap] *
                       __builtin_shuffle(window, (corner + tap / 3 * 4 + tap % 3) & (LANES - 1));
        }
        ints none = __builtin_convertvector(*(const bytes *)(chosen + out), ints) == NONE;
        store(map, out, s.brief, (floats)(~none & (ints)sum));
    }
}

void chosen_ones(const float *images, const float *weights, const uint8_t *chosen, void *maps,
                 struct shape s) {
    int64_t count = s.tasks * s.images, pixels = s.channels * s.height * s.width;
    int64_t each = (s.height / 2) * (s.width / 2) * s.filters;
#pragma omp parallel num_threads(s.threads) firstprivate(s)
    {
        float *padded = room_to_surround(s);
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
    floats sum[9 * channels + 1];
    for (int tap = 0; tap <= 9 * channels; tap++) sum[tap] = *(floats *)(sums + tap * F + f);
    for (int64_t column = 0; column < s.width / 2; column++, out += F) {
        ints corner = corners(chosen + out);
        ints none = __builtin_convertvector(*(const bytes *)(chosen + out), ints) == NONE;
        floats g = (floats)(~none & (ints)load(map, out, s.brief));
        sum[9 * channels] += g;
        for (int c = 0; c < channels; c++) {
            floats window = *(const floats *)(windows + (column * channels + c) * LANES);
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
        float *padded = room_to_surround(s);
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

#define BESIDE 6 /* products at a time, so that none waits for the one before it */

/* moments[image] = the sum over its 3x3 patches p, with a 1 behind, of p p' [taps + 1, taps + 1] */
void moments(const float *images, double *all, struct shape s) {
    int64_t taps = 9 * s.channels, wide = s.width + 2, area = (s.height + 2) * wide;
    int64_t rows = 16384 / (taps * s.width) + 1; /* at a time: what the first cache holds */
    int64_t length = (rows * s.width + LANES - 1) / LANES * LANES;
#pragma omp parallel num_threads(s.threads) firstprivate(s)
    {
        float *padded = room_to_surround(s);
        float *patches = calloc(taps * length, sizeof(float));
#pragma omp for schedule(static)
        for (int64_t n = 0; n < s.tasks * s.images; n++) {
            double *own = all + n * (taps + 1) * (taps + 1);
            memset(own, 0, (taps + 1) * (taps + 1) * sizeof(double));
            surround(padded, images + n * s.channels * s.height * s.width, s);
            for (int64_t top = 0; top < s.height; top += rows) {
                if (top + rows > s.height) memset(patches, 0, taps * length * sizeof(float));
                for (int64_t k = 0; k < taps; k++)
                    for (int64_t y = top; y < top + rows && y < s.height; y++)
                        memcpy(patches + k * length + (y - top) * s.width,
                               padded + k / 9 * area + (y + k % 9 / 3) * wide + k % 3,
                               s.width * sizeof(float));
                for (int64_t k = 0; k < taps; k++) {
                    const float *a = patches + k * length;
                    floats total = {0};
                    for (int64_t i = 0; i < length; i += LANES) total += *(const floats *)(a + i);
                    for (int lane = 0; lane < LANES; lane++) own[k * (taps + 1) + taps] += total[lane];
                    for (int64_t l = k; l < taps; l += BESIDE) {
                        floats sum[BESIDE] = {{0}};
                        const float *b[BESIDE];
                        for (int j = 0; j < BESIDE; j++)
                            b[j] = patches + (l + j < taps ? l + j : k) * length;
                        for (int64_t i = 0; i < length; i += LANES)
                            for (int j = 0; j < BESIDE; j++)
                                sum[j] += *(const floats *)(a + i) * *(const floats *)(b[j] + i);
                        for (int j = 0; j < BESIDE && l + j < taps; j++)
                            for (int lane = 0; lane < LANES; lane++)
                                own[k * (taps + 1) + l + j] += sum[j][lane];
                    }
                }
            }
            for (int64_t k = 0; k <= taps; k++)
                for (int64_t l = 0; l < k; l++) own[k * (taps + 1) + l] = own[l * (taps + 1) + k];
            own[(taps + 1) * (taps + 1) - 1] = s.height * s.width;
        }
        free(patches);
        free(padded);
    }
}
