/* The kernels of pooled_normalisation.py, which says what they are for.

   Maps are [tasks, images, height, width, filters], pooled ones half as high and wide; x is always a
   map, `chosen` says which of each square was pooled, and numbers of a filter are [tasks, filters].
   Sums are taken over parts of a task's images, and those added up. Filters come in whole vectors. */

#include <math.h>

#include "vectors.h"

struct maps {
    int64_t tasks, images, height, width, filters, together; /* `together` images make a part */
    int32_t brief, threads;
};

#define PARALLEL _Pragma("omp parallel for schedule(static) num_threads(m.threads) firstprivate(m)")

struct part { /* which numbers it has */
    int64_t task, first, last; /* images, counted over all the tasks */
};

static int64_t parts_of(struct maps m) {
    return (m.images + m.together - 1) / m.together;
}

static struct part part_of(int64_t i, struct maps m) {
    int64_t task = i / parts_of(m), first = i % parts_of(m) * m.together;
    int64_t last = first + m.together < m.images ? first + m.together : m.images;
    return (struct part){task, task * m.images + first, task * m.images + last};
}

static int64_t numbers_of(struct part part, struct maps m) {
    return (part.last - part.first) * m.height * m.width;
}

INLINE floats at(const float *of_filters, int64_t f) { return *(const floats *)(of_filters + f); }

INLINE ints which(const uint8_t *chosen, int64_t at) {
    return load_bytes(chosen + at);
}

INLINE floats where(ints mask, floats value) { return (floats)(mask & (ints)value); }

/* The mean of each filter, and (its variance + eps)^-1/2. */
void mean_and_scale(const void *x, double eps, float *mean, float *r, struct maps m) {
    int64_t F = m.filters, pixels = m.height * m.width, parts = parts_of(m);
    float *means = malloc(m.tasks * parts * F * sizeof(float));
    float *squares = malloc(m.tasks * parts * F * sizeof(float)); /* about the part's own mean */
    PARALLEL
    for (int64_t i = 0; i < m.tasks * parts; i++) {
        struct part part = part_of(i, m);
        int64_t first = part.first * pixels, last = part.last * pixels;
        for (int64_t f = 0; f < F; f += LANES) {
            floats sum = {0}, sum_after = {0}, square = {0}, square_after = {0};
            for (int64_t n = first; n < last; n += 2) {
                sum += load(x, n * F + f, m.brief);
                if (n + 1 < last) sum_after += load(x, (n + 1) * F + f, m.brief);
            }
            floats own = (sum + sum_after) / (float)(last - first);
            for (int64_t n = first; n < last; n += 2) {
                floats c = load(x, n * F + f, m.brief) - own;
                square += c * c;
                if (n + 1 == last) break;
                c = load(x, (n + 1) * F + f, m.brief) - own;
                square_after += c * c;
            }
            *(floats *)(means + i * F + f) = own;
            *(floats *)(squares + i * F + f) = square + square_after;
        }
    }
    for (int64_t task = 0; task < m.tasks; task++)
        for (int64_t f = 0; f < F; f++) { /* Chan, Golub and LeVeque 1979, eq. 2.1 */
            double sum = 0, square = 0, numbers = m.images * pixels;
            for (int64_t i = task * parts; i < (task + 1) * parts; i++)
                sum += (double)means[i * F + f] * numbers_of(part_of(i, m), m);
            for (int64_t i = task * parts; i < (task + 1) * parts; i++) {
                double apart = means[i * F + f] - sum / numbers;
                square += squares[i * F + f] + apart * apart * numbers_of(part_of(i, m), m);
            }
            mean[task * F + f] = sum / numbers;
            r[task * F + f] = 1 / sqrt(square / numbers + eps);
        }
    free(squares);
    free(means);
}

/* The parts' sums [tasks, parts, filters] added up. */
static void add_up(const float *sums, float *out, struct maps m) {
    int64_t F = m.filters, parts = parts_of(m);
    for (int64_t task = 0; task < m.tasks; task++)
        for (int64_t f = 0; f < F; f++) {
            double sum = 0;
            for (int64_t i = task * parts; i < (task + 1) * parts; i++) sum += sums[i * F + f];
            out[task * F + f] = sum;
        }
}

static float *room_for_sums(struct maps m) {
    return malloc(m.tasks * parts_of(m) * m.filters * sizeof(float));
}

/* y = relu(max_pool2d(scale x + shift, 2)), and which number of each square it is. */
void pool_scaled(const void *x, const float *scale, const float *shift, void *y, uint8_t *chosen,
                 struct maps m) {
    int64_t F = m.filters, H = m.height / 2, W = m.width / 2, wide = m.width * F;
    PARALLEL
    for (int64_t row = 0; row < m.tasks * m.images * H; row++) {
        int64_t n = row / H, task = n / m.images;
        int64_t from = (n * m.height + row % H * 2) * wide, to = row * W * F;
        for (int64_t f = 0; f < F; f += LANES) {
            floats a = at(scale + task * F, f), b = at(shift + task * F, f);
            for (int64_t column = 0; column < W; column++) {
                int64_t square = from + 2 * column * F + f, out = to + column * F + f;
                floats largest = a * load(x, square, m.brief) + b;
                ints position = {0};
                for (int p = 1; p < 4; p++) {
                    floats value = a * load(x, square + p / 2 * wide + p % 2 * F, m.brief) + b;
                    ints larger = (value > largest) | (value != value);
                    largest = (floats)either(larger, (ints)value, (ints)largest);
                    position = either(larger, (ints){0} + p, position);
                }
                ints none = largest <= 0;
                store(y, out, m.brief, where(~none, largest));
                position = either(none, (ints){0} + NONE, position);
                store_bytes(chosen + out, position);
            }
        }
    }
}

/* The number of x that was pooled, or of any map, and 0 where none was. */
INLINE floats pooled(const void *x, int64_t square, int64_t wide, ints position,
                     struct maps m) {
    floats value = {0};
    for (int p = 0; p < 4; p++) {
        floats candidate = load(x, square + p / 2 * wide + p % 2 * m.filters, m.brief);
        value = (floats)either(position == p, (ints)candidate, (ints)value);
    }
    return value;
}

/* Of each filter Σ g and Σ g (x - mean), g a pooled map. */
void sums_of_pooled(const void *g, const void *x, const uint8_t *chosen, const float *mean,
                    float *of_g, float *of_gc, struct maps m) {
    int64_t F = m.filters, H = m.height / 2, W = m.width / 2, wide = m.width * F;
    float *gs = room_for_sums(m), *gcs = room_for_sums(m);
    PARALLEL
    for (int64_t i = 0; i < m.tasks * parts_of(m); i++) {
        struct part part = part_of(i, m);
        for (int64_t f = 0; f < F; f += LANES) {
            floats sum = {0}, product = {0}, centre = at(mean + part.task * F, f);
            for (int64_t row = part.first * H; row < part.last * H; row++) {
                int64_t from = (row / H * m.height + row % H * 2) * wide + f;
                for (int64_t column = 0; column < W; column++) {
                    int64_t to = (row * W + column) * F + f;
                    ints position = which(chosen, to);
                    floats value = where(position != NONE, load(g, to, m.brief));
                    floats c = pooled(x, from + 2 * column * F, wide, position, m) - centre;
                    sum += value;
                    product += value * c;
                }
            }
            *(floats *)(gs + i * F + f) = sum;
            *(floats *)(gcs + i * F + f) = product;
        }
    }
    add_up(gs, of_g, m);
    add_up(gcs, of_gc, m);
    free(gcs);
    free(gs);
}

/* Of each filter Σ w, Σ w (x - mean) and Σ w g, w a map and g a pooled one, which stands where it
   was pooled from. */
void sums_of_whole(const void *w, const void *x, const void *g, const uint8_t *chosen,
                   const float *mean, float *of_w, float *of_wc, float *of_wg, struct maps m) {
    int64_t F = m.filters, H = m.height / 2, W = m.width / 2, wide = m.width * F;
    float *ws = room_for_sums(m), *wcs = room_for_sums(m), *wgs = room_for_sums(m);
    PARALLEL
    for (int64_t i = 0; i < m.tasks * parts_of(m); i++) {
        struct part part = part_of(i, m);
        for (int64_t f = 0; f < F; f += LANES) {
            floats sum = {0}, product = {0}, where_pooled = {0};
            floats centre = at(mean + part.task * F, f);
            int64_t pixels = m.height * m.width;
            for (int64_t n = part.first * pixels; n < part.last * pixels; n++) {
                floats value = load(w, n * F + f, m.brief);
                sum += value;
                product += value * (load(x, n * F + f, m.brief) - centre);
            }
            for (int64_t row = part.first * H; row < part.last * H; row++) {
                int64_t from = (row / H * m.height + row % H * 2) * wide + f;
                for (int64_t column = 0; column < W; column++) {
                    int64_t to = (row * W + column) * F + f;
                    floats value = pooled(w, from + 2 * column * F, wide, which(chosen, to), m);
                    where_pooled += value * load(g, to, m.brief);
                }
            }
            *(floats *)(ws + i * F + f) = sum;
            *(floats *)(wcs + i * F + f) = product;
            *(floats *)(wgs + i * F + f) = where_pooled;
        }
    }
    add_up(ws, of_w, m);
    add_up(wcs, of_wc, m);
    add_up(wgs, of_wg, m);
    free(wgs);
    free(wcs);
    free(ws);
}

/* out = a + b (x - mean) + c g + d w as a map, g standing where it was pooled from; a, b, c and d
   are [4, tasks, filters]. Without w, null, the last is not there. */
void combine(const void *x, const float *mean, const float *abcd, const void *g,
             const uint8_t *chosen, const void *w, void *out, struct maps m) {
    int64_t F = m.filters, H = m.height / 2, W = m.width / 2, wide = m.width * F;
    int64_t rows = (m.height + 1) / 2; /* of squares, the last perhaps cut */
    PARALLEL
    for (int64_t row = 0; row < m.tasks * m.images * rows; row++) {
        int64_t n = row / rows, y = row % rows, task = n / m.images;
        const float *own = abcd + task * F;
        for (int64_t f = 0; f < F; f += LANES) {
            floats b = at(own + m.tasks * F, f), d = at(own + 3 * m.tasks * F, f);
            floats a = at(own, f) - b * at(mean + task * F, f);
            floats c = at(own + 2 * m.tasks * F, f);
            for (int64_t column = 0; column < (m.width + 1) / 2; column++) {
                int whole = y < H && column < W;
                int64_t to = (n * m.height + 2 * y) * wide + 2 * column * F + f;
                int64_t square = ((n * H + y) * W + column) * F + f;
                floats pooled = {0};
                ints position = {0};
                if (whole) {
                    pooled = c * load(g, square, m.brief);
                    position = which(chosen, square);
                }
                for (int p = 0; p < 4; p++) {
                    if (!whole && (2 * y + p / 2 == m.height || 2 * column + p % 2 == m.width))
                        continue;
                    int64_t pixel = to + p / 2 * wide + p % 2 * F;
                    floats value = a + b * load(x, pixel, m.brief);
                    if (w) value += d * load(w, pixel, m.brief);
                    store(out, pixel, m.brief, value + where(position == p, pooled));
                }
            }
        }
    }
}

/* out = a + b (x - mean) + d w where numbers were pooled, 0 where none was, as a pooled map. */
void combine_pooled(const void *x, const float *mean, const float *abd, const uint8_t *chosen,
                    const void *w, void *out, struct maps m) {
    int64_t F = m.filters, H = m.height / 2, W = m.width / 2, wide = m.width * F;
    PARALLEL
    for (int64_t row = 0; row < m.tasks * m.images * H; row++) {
        int64_t n = row / H, task = n / m.images;
        int64_t from = (n * m.height + row % H * 2) * wide;
        const float *own = abd + task * F;
        for (int64_t f = 0; f < F; f += LANES) {
            floats b = at(own + m.tasks * F, f), d = at(own + 2 * m.tasks * F, f);
            floats a = at(own, f) - b * at(mean + task * F, f);
            for (int64_t column = 0; column < W; column++) {
                int64_t to = (row * W + column) * F + f, square = from + 2 * column * F + f;
                ints position = which(chosen, to);
                floats value = a + b * pooled(x, square, wide, position, m) +
                               d * pooled(w, square, wide, position, m);
                store(out, to, m.brief, where(position != NONE, value));
            }
        }
    }
}
