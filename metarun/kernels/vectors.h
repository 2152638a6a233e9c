/* Vectors of numbers as the C files here use them. Maps are float32, or bfloat16 where `brief` says
   so; what is computed with them is float32. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef __AVX512F__
#error "without AVX-512 these are slower than what they take the place of"
#endif

#define LANES 16
#define INLINE static inline __attribute__((always_inline))

typedef float floats __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t ints __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t words __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2)));
typedef uint8_t bytes __attribute__((vector_size(LANES), aligned(1)));

#define NONE 4 /* in the place of 0 to 3, a position of the square: ReLU let none of them through */

INLINE ints either(ints mask, ints yes, ints no) { return (mask & yes) | (~mask & no); }

INLINE floats load(const void *map, int64_t at, int brief) {
    if (!brief) return *(const floats *)((const float *)map + at);
    words wide = __builtin_convertvector(*(const halves *)((const uint16_t *)map + at), words);
    return (floats)(wide << 16);
}

INLINE void store(void *map, int64_t at, int brief, floats value) {
    if (!brief) {
        *(floats *)((float *)map + at) = value;
        return;
    }
    words bits = (words)value; /* to the nearest, to even between two */
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    bits |= (words)(value != value) & 0x7fc0; /* what is no number may have been carried over */
    *(halves *)((uint16_t *)map + at) = __builtin_convertvector(bits, halves);
}
