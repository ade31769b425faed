// Soft cap and cross-entropy over rows of raw logits, which become their gradient in place.
#include "numbers.h"

template <class T>
static void loss_rows(T *raw, const int64_t *targets, const float *scales, float *losses, int64_t n, int64_t n_vocab,
                      float cap, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < n; row++) {
        T *at = raw + row * n_vocab;
        float scale = scales[row];
        if (scale == 0) {
            std::memset(at, 0, n_vocab * sizeof(T));
            losses[row] = 0;
            continue;
        }
        float *weight = scratch<0, float>(2 * n_vocab), *squashed = weight + n_vocab;
        float total = 0, slope = 2 / cap;
#pragma omp simd reduction(+ : total)
        for (int64_t i = 0; i < n_vocab; i++) {
            float t = 1 - 2 / (1 + fast_exp(slope * wide(at[i])));  // tanh(x / cap)
            float w = fast_exp(cap * t);  // |cap · t| <= cap: no maximum has to be taken off first
            squashed[i] = t;
            weight[i] = w;
            total += w;
        }
        int64_t target = targets[row];
        float t = squashed[target], w = weight[target], each = scale / total;
        losses[row] = (std::log(total) - cap * t) * scale;
#pragma omp simd
        for (int64_t i = 0; i < n_vocab; i++) at[i] = narrow<T>(weight[i] * each * (1 - squashed[i] * squashed[i]));
        at[target] = narrow<T>((w * each - scale) * (1 - t * t));
    }
}

extern "C" {
void loss_rows_f32(float *raw, const int64_t *targets, const float *scales, float *losses, int64_t n, int64_t n_vocab,
                   float cap, int64_t threads) {
    loss_rows(raw, targets, scales, losses, n, n_vocab, cap, threads);
}
void loss_rows_bf16(bf16 *raw, const int64_t *targets, const float *scales, float *losses, int64_t n, int64_t n_vocab,
                    float cap, int64_t threads) {
    loss_rows(raw, targets, scales, losses, n, n_vocab, cap, threads);
}
}
