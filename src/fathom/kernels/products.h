// Products of blocks, summed in float32: of floats by the compiler's vectors, of bf16 on AMX tiles where the CPU has
// them, else by AVX512-BF16.
//
// C (32×32) = A · B. A lies in rows. For floats so does B; for bf16 two rows of B are interleaved, as pairs, since that
// is what the instructions take: a tile product adds 16 rows of 32 numbers times 32 rows of 16 columns, a vector product
// one pair of a row of A times 16 columns.
#pragma once
#include "numbers.h"

static const int64_t APART = 32;  // added to long rows: a power of two between them would crowd a few lines of the cache

template <class T> struct InB;
template <> struct InB<float> {
    using type = float;
    static const int64_t rows = 1;  // of B in one of these
};
template <> struct InB<bf16> {
    using type = uint32_t;
    static const int64_t rows = 2;
};

#ifdef __AVX512F__
typedef float Vector __attribute__((vector_size(64), aligned(4), may_alias));
static const int64_t ROWS = 8;  // at a time: their sums, two vectors each, and two vectors of B fit the registers
#else
typedef float Vector __attribute__((vector_size(32), aligned(4), may_alias));
static const int64_t ROWS = 4;
#endif

template <class T> inline void begin_products() {}
template <class T> inline void end_products() {}

// C (32×32 floats, or added to what is there) = A (32×depth) · B (depth×32, its rows `b_width` apart)
inline void product_32x32(const float *a, int64_t a_width, const float *b, int64_t b_width, int64_t depth, float *c,
                          int64_t c_width, bool add) {
    const int64_t wide = sizeof(Vector) / 4;
    for (int64_t column = 0; column < 32; column += 2 * wide)
        for (int64_t first = 0; first < 32; first += ROWS) {
            Vector left[ROWS] = {}, right[ROWS] = {};
            const float *own = a + first * a_width;
            float *out = c + first * c_width + column;
            if (add)
                for (int64_t i = 0; i < ROWS; i++) {
                    left[i] = *(const Vector *)(out + i * c_width);
                    right[i] = *(const Vector *)(out + i * c_width + wide);
                }
            for (int64_t k = 0; k < depth; k++) {
                Vector b_left = *(const Vector *)(b + k * b_width + column);
                Vector b_right = *(const Vector *)(b + k * b_width + column + wide);
#pragma GCC unroll 8
                for (int64_t i = 0; i < ROWS; i++) {
                    left[i] += own[i * a_width + k] * b_left;
                    right[i] += own[i * a_width + k] * b_right;
                }
            }
            for (int64_t i = 0; i < ROWS; i++) {
                *(Vector *)(out + i * c_width) = left[i];
                *(Vector *)(out + i * c_width + wide) = right[i];
            }
        }
}

// x (n × width, rows `stride` apart) -> B of n rows and `width` columns
inline void b_of_rows(const float *x, int64_t stride, int64_t n, int64_t width, float *out) {
    for (int64_t i = 0; i < n; i++) std::memcpy(out + i * width, x + i * stride, width * 4);
}

// x (n × width, rows `stride` apart) -> width × n, rows `apart` apart; n and width are multiples of 16
inline void columns(const float *x, int64_t stride, int64_t n, int64_t width, float *out, int64_t apart) {
    for (int64_t i = 0; i < n; i += 16)
        for (int64_t j = 0; j < width; j += 16) {
            float block[16][16];
            for (int64_t a = 0; a < 16; a++) std::memcpy(block[a], x + (i + a) * stride + j, 64);
            for (int64_t b = 0; b < 16; b++)
                for (int64_t a = 0; a < 16; a++) out[(j + b) * apart + i + a] = block[a][b];
        }
}

// x (n × width, rows `stride` apart) -> B of `width` rows and n columns, its rows n + APART apart
inline void b_of_columns(const float *x, int64_t stride, int64_t n, int64_t width, float *out) {
    columns(x, stride, n, width, out, n + APART);
}

#ifdef __AVX512BF16__
#define HAS_PRODUCTS
#include <immintrin.h>

#ifdef __AMX_BF16__
template <> inline void begin_products<bf16>() {
    struct {
        uint8_t palette = 1, start = 0, reserved[14] = {};
        uint16_t width[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t height[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    _tile_loadconfig(&config);
}
template <> inline void end_products<bf16>() { _tile_release(); }

inline void product_32x32(const bf16 *a, int64_t a_width, const uint32_t *b, int64_t b_width, int64_t depth, float *c,
                          int64_t c_width, bool add) {
    if (add) {
        _tile_loadd(0, c, c_width * 4);
        _tile_loadd(1, c + 16, c_width * 4);
        _tile_loadd(2, c + 16 * c_width, c_width * 4);
        _tile_loadd(3, c + 16 * c_width + 16, c_width * 4);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t k = 0; k < depth; k += 32) {
        _tile_loadd(4, a + k, a_width * 2);
        _tile_loadd(5, a + 16 * a_width + k, a_width * 2);
        _tile_loadd(6, b + k / 2 * b_width, b_width * 4);
        _tile_loadd(7, b + k / 2 * b_width + 16, b_width * 4);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, c_width * 4);
    _tile_stored(1, c + 16, c_width * 4);
    _tile_stored(2, c + 16 * c_width, c_width * 4);
    _tile_stored(3, c + 16 * c_width + 16, c_width * 4);
}
#else
inline __m512bh pair_of(const bf16 *at) {
    int32_t both;
    std::memcpy(&both, at, 4);
    return (__m512bh)_mm512_set1_epi32(both);
}

inline void product_32x32(const bf16 *a, int64_t a_width, const uint32_t *b, int64_t b_width, int64_t depth, float *c,
                          int64_t c_width, bool add) {
    for (int64_t first = 0; first < 32; first += ROWS) {
        __m512 left[ROWS], right[ROWS];
        const bf16 *own = a + first * a_width;
        float *out = c + first * c_width;
        for (int64_t i = 0; i < ROWS; i++) {
            left[i] = add ? _mm512_loadu_ps(out + i * c_width) : _mm512_setzero_ps();
            right[i] = add ? _mm512_loadu_ps(out + i * c_width + 16) : _mm512_setzero_ps();
        }
        for (int64_t k = 0; k < depth; k += 2) {
            __m512bh b_left = (__m512bh)_mm512_loadu_si512(b + k / 2 * b_width);
            __m512bh b_right = (__m512bh)_mm512_loadu_si512(b + k / 2 * b_width + 16);
#pragma GCC unroll 8
            for (int64_t i = 0; i < ROWS; i++) {
                __m512bh pair = pair_of(own + i * a_width + k);
                left[i] = _mm512_dpbf16_ps(left[i], pair, b_left);
                right[i] = _mm512_dpbf16_ps(right[i], pair, b_right);
            }
        }
        for (int64_t i = 0; i < ROWS; i++) {
            _mm512_storeu_ps(out + i * c_width, left[i]);
            _mm512_storeu_ps(out + i * c_width + 16, right[i]);
        }
    }
}
#endif

inline void transpose_16x16(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int j = 0; j < 4; j++) {
        __m512i a = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x44), b = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xee);
        __m512i c = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x44), d = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xee);
        t[j] = _mm512_shuffle_i32x4(a, c, 0x88);
        t[4 + j] = _mm512_shuffle_i32x4(a, c, 0xdd);
        t[8 + j] = _mm512_shuffle_i32x4(b, d, 0x88);
        t[12 + j] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
    for (int i = 0; i < 16; i++) r[i] = t[i];
}

// Two rows of 16 numbers -> 16 pairs
inline __m512i pairs_of(const bf16 *even, const bf16 *odd) {
    __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)even));
    __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)odd));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

inline void b_of_rows(const bf16 *x, int64_t stride, int64_t n, int64_t width, uint32_t *out) {
    for (int64_t i = 0; i < n; i += 2)
        for (int64_t j = 0; j < width; j += 16)
            _mm512_storeu_si512(out + i / 2 * width + j, pairs_of(x + i * stride + j, x + (i + 1) * stride + j));
}

inline void b_of_columns(const bf16 *x, int64_t stride, int64_t n, int64_t width, uint32_t *out) {
    __m512i block[16];
    for (int64_t i = 0; i < n; i += 16)
        for (int64_t j = 0; j < width; j += 32) {
            for (int64_t a = 0; a < 16; a++) block[a] = _mm512_loadu_si512(x + (i + a) * stride + j);
            transpose_16x16(block);
            for (int64_t b = 0; b < 16; b++) _mm512_storeu_si512(out + (j / 2 + b) * (n + APART) + i, block[b]);
        }
}

// n is a multiple of 32
inline void columns(const bf16 *x, int64_t stride, int64_t n, int64_t width, bf16 *out, int64_t apart) {
    __m512i block[16];
    for (int64_t i = 0; i < n; i += 32)
        for (int64_t j = 0; j < width; j += 16) {
            for (int64_t a = 0; a < 16; a++)
                block[a] = pairs_of(x + (i + 2 * a) * stride + j, x + (i + 2 * a + 1) * stride + j);
            transpose_16x16(block);
            for (int64_t b = 0; b < 16; b++) _mm512_storeu_si512(out + (j + b) * apart + i, block[b]);
        }
}
#endif
