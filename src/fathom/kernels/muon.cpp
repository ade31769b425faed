// Muon before and after its products: REFERENCE section 2.3, steps 1 to 4 and 6 to 8, matrix by matrix.
#include "numbers.h"

// momentum moves; x becomes the update before orthogonalisation, rows equilibrated, of norm just below 1.
template <class T>
static void muon_begin(const float *const *gradients, float *momentum, T *x, float mu, int64_t n, int64_t rows,
                       int64_t columns, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t one = 0; one < n; one++) {
        const float *g = gradients[one];
        float *m = momentum + one * rows * columns, *row_square = scratch<0, float>(rows), square = 0;
        T *y = x + one * rows * columns;
        for (int64_t row = 0; row < rows; row++) {
            float sum = 0;
            int64_t at = row * columns;
#pragma omp simd reduction(+ : sum)
            for (int64_t i = at; i < at + columns; i++) {
                m[i] += (1 - mu) * (g[i] - m[i]);
                float ahead = g[i] + mu * (m[i] - g[i]);
                y[i] = narrow<T>(ahead);
                sum += ahead * ahead;
            }
            row_square[row] = sum;
            square += sum;
        }
        float even = std::sqrt(square / rows), total = 0;
        for (int64_t row = 0; row < rows; row++) {
            float length = std::sqrt(row_square[row]), factor = even / (length > 1e-6f ? length : 1e-6f);
            row_square[row] = factor;
            total += factor * factor * length * length;
        }
        float shrink = 1 / (1.01f * std::sqrt(total) + 1e-6f);
        for (int64_t row = 0; row < rows; row++) {
            float factor = row_square[row] * shrink;
#pragma omp simd
            for (int64_t i = row * columns; i < (row + 1) * columns; i++) y[i] = narrow<T>(factor * wide(y[i]));
        }
    }
}

// The weights move along x, with the variance evened out over rows (or columns, where there are more of them).
template <class T>
static void muon_end(const T *x, float *const *weights, float *second, float beta2, float rate, float decay, int64_t n,
                     int64_t rows, int64_t columns, int64_t threads) {
    bool by_row = rows >= columns;
    int64_t few = by_row ? columns : rows, many = by_row ? rows : columns, size = few;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t one = 0; one < n; one++) {
        const T *y = x + one * rows * columns;
        float *w = weights[one], *s = second + one * many, *square = scratch<0, float>(2 * many), *scale = square + many;
        std::memset(square, 0, many * 4);
        float total = 0;
        for (int64_t row = 0; row < rows; row++) {
            const T *a = y + row * columns;
            float sum = 0;
            if (by_row) {
#pragma omp simd reduction(+ : sum)
                for (int64_t i = 0; i < columns; i++) sum += wide(a[i]) * wide(a[i]);
                square[row] = sum;
            } else {
#pragma omp simd
                for (int64_t i = 0; i < columns; i++) square[i] += wide(a[i]) * wide(a[i]);
            }
        }
        for (int64_t i = 0; i < many; i++) total += square[i];
        float length = std::sqrt(total), unit = std::sqrt(float(few)) / (length > 1e-6f ? length : 1e-6f);
        float before = 0, after = 0;
        for (int64_t i = 0; i < many; i++) {
            float mean = square[i] * unit * unit / size;
            s[i] += (1 - beta2) * (mean - s[i]);
            scale[i] = 1 / std::sqrt(s[i] > 1e-10f ? s[i] : 1e-10f);
            before += mean;
            after += mean * scale[i] * scale[i];
        }
        before = std::sqrt(size * before);
        after = std::sqrt(size * after);
        float all = unit * before / (after > 1e-10f ? after : 1e-10f);
        for (int64_t i = 0; i < many; i++) scale[i] *= all;
        for (int64_t row = 0; row < rows; row++) {
            const T *a = y + row * columns;
            float *to = w + row * columns, own = by_row ? scale[row] : 1;
#pragma omp simd
            for (int64_t i = 0; i < columns; i++) {
                float step = wide(a[i]) * (by_row ? own : scale[i]);
                float shrink = step * to[i] >= 0 ? decay * to[i] : 0;  // decay only where both agree
                to[i] -= rate * (step + shrink);
            }
        }
    }
}

#define DEFINE(T, name)                                                                                                \
    extern "C" void muon_begin_##name(const float *const *gradients, float *momentum, T *x, float mu, int64_t n,       \
                                      int64_t rows, int64_t columns, int64_t threads) {                                \
        muon_begin(gradients, momentum, x, mu, n, rows, columns, threads);                                             \
    }                                                                                                                  \
    extern "C" void muon_end_##name(const T *x, float *const *weights, float *second, float beta2, float rate,         \
                                    float decay, int64_t n, int64_t rows, int64_t columns, int64_t threads) {          \
        muon_end(x, weights, second, beta2, rate, decay, n, rows, columns, threads);                                   \
    }
DEFINE(float, f32)
DEFINE(bf16, bf16)
