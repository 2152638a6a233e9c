/* Vectors of numbers as the C files here use them. Maps are float32, or bfloat16 where `brief` says
   so; what is computed with them is float32, but for products of bfloat16 numbers. */

#include <immintrin.h>
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

#define NONE 4 /* in the place of 0 to 3, a position of the square: ReLU let none of them through */

INLINE ints either(ints mask, ints yes, ints no) { return (mask & yes) | (~mask & no); }

/* Said to the processor: of what the language has for it GCC 12 makes four instructions. */
INLINE words widened(halves value) { return (words)_mm512_cvtepu16_epi32((__m256i)value); }

INLINE ints load_bytes(const uint8_t *at) { return (ints)_mm512_cvtepu8_epi32(*(const __m128i_u *)at); }

INLINE void store_bytes(uint8_t *at, ints value) { *(__m128i_u *)at = _mm512_cvtepi32_epi8((__m512i)value); }

INLINE floats load(const void *map, int64_t at, int brief) {
    if (!brief) return *(const floats *)((const float *)map + at);
    return (floats)(widened(*(const halves *)((const uint16_t *)map + at)) << 16);
}

/* The nearest bfloat16 numbers; halfway between two, that with an even last bit. */
INLINE halves shortened(floats value) {
#ifdef __AVX512BF16__
    return (halves)_mm512_cvtneps_pbh((__m512)value);
#else
    words bits = (words)value;
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    bits |= (words)(value != value) & 0x7fc0; /* what is no number may have been carried over */
    return (halves)_mm512_cvtepi32_epi16((__m512i)bits);
#endif
}

INLINE void store(void *map, int64_t at, int brief, floats value) {
    if (brief)
        *(halves *)((uint16_t *)map + at) = shortened(value);
    else
        *(floats *)((float *)map + at) = value;
}
