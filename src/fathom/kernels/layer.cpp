// What a layer does between its matrix products, forward and backward, one pass over memory each.
//
// Rows are tokens. norm(x) = x / sqrt(mean(x²) + eps); its gradient by x is (g - y · mean(g·y)) / sqrt(…), y = norm(x).
#include "numbers.h"

static const float EPS = 1.1920929e-07f;  // 2^-23

template <class T> static inline float norm_into(const T *x, T *y, int64_t n, float gain) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += wide(x[i]) * wide(x[i]);
    float inverse = 1 / std::sqrt(sum / n + EPS);
#pragma omp simd
    for (int64_t i = 0; i < n; i++) y[i] = narrow<T>(gain * inverse * wide(x[i]));
    return inverse;
}

// mixed = keep · x + add · first, y = norm(mixed)
template <class T>
static void mix_norm(const T *x, const T *first, float keep, float add, T *mixed, T *y, float *inverse, int64_t n,
                     int64_t width, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < n; row++) {
        const T *a = x + row * width, *b = first + row * width;
        T *m = mixed + row * width;
#pragma omp simd
        for (int64_t i = 0; i < width; i++) m[i] = narrow<T>(keep * wide(a[i]) + add * wide(b[i]));
        inverse[row] = norm_into(m, y + row * width, width, 1.0f);
    }
}

// d_mixed holds what comes to `mixed` by itself, dy what comes to its norm; parts[row] = (d keep, d add).
template <class T>
static void mix_norm_backward(const T *x, const T *first, float keep, float add, const T *y, const float *inverse,
                              const T *d_mixed, const T *dy, T *dx, T *d_first, float *parts, int64_t n, int64_t width,
                              int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < n; row++) {
        int64_t at = row * width;
        float along = 0, to_keep = 0, to_add = 0, r = inverse[row];
#pragma omp simd reduction(+ : along)
        for (int64_t i = at; i < at + width; i++) along += wide(dy[i]) * wide(y[i]);
        along /= width;
#pragma omp simd reduction(+ : to_keep, to_add)
        for (int64_t i = at; i < at + width; i++) {
            float g = wide(d_mixed[i]) + r * (wide(dy[i]) - wide(y[i]) * along);
            to_keep += g * wide(x[i]);
            to_add += g * wide(first[i]);
            dx[i] = narrow<T>(keep * g);
            d_first[i] = narrow<T>(add * g);
        }
        parts[2 * row] = to_keep;
        parts[2 * row + 1] = to_add;
    }
}

// sum = x + branch (into branch), y = norm(sum)
template <class T>
static void add_norm(const T *x, T *branch, T *y, float *inverse, int64_t n, int64_t width, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < n; row++) {
        int64_t at = row * width;
#pragma omp simd
        for (int64_t i = at; i < at + width; i++) branch[i] = narrow<T>(wide(x[i]) + wide(branch[i]));
        inverse[row] = norm_into(branch + at, y + at, width, 1.0f);
    }
}

// dy becomes d_sum + the norm's gradient: what comes to both addends.
template <class T>
static void add_norm_backward(const T *y, const float *inverse, const T *d_sum, T *dy, int64_t n, int64_t width,
                              int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < n; row++) {
        int64_t at = row * width;
        float along = 0, r = inverse[row];
#pragma omp simd reduction(+ : along)
        for (int64_t i = at; i < at + width; i++) along += wide(dy[i]) * wide(y[i]);
        along /= width;
#pragma omp simd
        for (int64_t i = at; i < at + width; i++)
            dy[i] = narrow<T>(wide(d_sum[i]) + r * (wide(dy[i]) - wide(y[i]) * along));
    }
}

template <class T> static void squared_relu(const T *x, T *y, int64_t n, int64_t threads) {
#pragma omp parallel for simd num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; i++) {
        float a = wide(x[i]);
        a = a < 0 ? 0 : a;  // a NaN stays one
        y[i] = narrow<T>(a * a);
    }
}

template <class T> static void squared_relu_backward(const T *x, const T *dy, T *dx, int64_t n, int64_t threads) {
#pragma omp parallel for simd num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; i++) {
        float a = wide(x[i]);
        a = a < 0 ? 0 : a;
        dx[i] = narrow<T>(2 * a * wide(dy[i]));
    }
}

struct Heads {
    int64_t n, seq_len, n_head, n_kv_head, head_dim, gate_channels;
    float gain;
    int64_t threads;
};

// In place on rows of (q heads, k heads, v heads): rotary embedding, norm and gain for q and k, and for v the gated
// value embedding `extra` (NULL for none). cos and sin (T, D/2) float; gates (n, K), inverse (n, H + K) are for later.
template <class T>
static void heads(const Heads &s, T *qkv, const float *cos, const float *sin, const T *h, int64_t h_width,
                  const T *extra, const T *gate_weight, float *gates, float *inverse) {
    int64_t rotated = s.n_head + s.n_kv_head, width = (rotated + s.n_kv_head) * s.head_dim, half = s.head_dim / 2;
#pragma omp parallel for num_threads(s.threads) schedule(static)
    for (int64_t row = 0; row < s.n; row++) {
        const float *c = cos + (row % s.seq_len) * half, *d = sin + (row % s.seq_len) * half;
        for (int64_t head = 0; head < rotated; head++) {
            T *a = qkv + row * width + head * s.head_dim, *b = a + half;
            float sum = 0, *turned = scratch<1, float>(s.head_dim);
#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < half; i++) {
                float x = wide(a[i]), y = wide(b[i]);
                float u = x * c[i] + y * d[i], w = y * c[i] - x * d[i];
                turned[i] = u;
                turned[half + i] = w;
                sum += u * u + w * w;
            }
            float r = 1 / std::sqrt(sum / s.head_dim + EPS);
            inverse[row * rotated + head] = r;
#pragma omp simd
            for (int64_t i = 0; i < s.head_dim; i++) a[i] = narrow<T>(s.gain * r * turned[i]);
        }
        if (!extra) continue;
        for (int64_t head = 0; head < s.n_kv_head; head++) {
            float before = 0;
            for (int64_t i = 0; i < s.gate_channels; i++)
                before += wide(h[row * h_width + i]) * wide(gate_weight[head * s.gate_channels + i]);
            float gate = 3 / (1 + fast_exp(-before));
            gates[row * s.n_kv_head + head] = gate;
            T *v = qkv + row * width + (rotated + head) * s.head_dim;
            const T *e = extra + (row * s.n_kv_head + head) * s.head_dim;
#pragma omp simd
            for (int64_t i = 0; i < s.head_dim; i++) v[i] = narrow<T>(wide(v[i]) + gate * wide(e[i]));
        }
    }
}

// Gradients by q, k, v, each with its own row stride -> d_qkv; d_before (n, K) is the gradient before the gate's sigmoid.
template <class T>
static void heads_backward(const Heads &s, const T *qkv, const float *cos, const float *sin, const float *inverse,
                           const T *dq, int64_t q_stride, const T *dk, int64_t k_stride, const T *dv, int64_t v_stride,
                           const T *extra, const float *gates, T *d_qkv, T *d_extra, float *d_before) {
    int64_t rotated = s.n_head + s.n_kv_head, width = (rotated + s.n_kv_head) * s.head_dim, half = s.head_dim / 2;
#pragma omp parallel for num_threads(s.threads) schedule(static)
    for (int64_t row = 0; row < s.n; row++) {
        const float *c = cos + (row % s.seq_len) * half, *d = sin + (row % s.seq_len) * half;
        for (int64_t head = 0; head < rotated; head++) {
            const T *y = qkv + row * width + head * s.head_dim;
            const T *g = head < s.n_head ? dq + row * q_stride + head * s.head_dim
                                         : dk + row * k_stride + (head - s.n_head) * s.head_dim;
            T *out = d_qkv + row * width + head * s.head_dim;
            float along = 0, r = inverse[row * rotated + head] * s.gain, by_gain = 1 / (s.gain * s.gain);
#pragma omp simd reduction(+ : along)
            for (int64_t i = 0; i < s.head_dim; i++) along += wide(g[i]) * wide(y[i]);
            along *= by_gain / s.head_dim;
#pragma omp simd
            for (int64_t i = 0; i < half; i++) {
                float u = r * (wide(g[i]) - wide(y[i]) * along);
                float w = r * (wide(g[half + i]) - wide(y[half + i]) * along);
                out[i] = narrow<T>(u * c[i] - w * d[i]);
                out[half + i] = narrow<T>(u * d[i] + w * c[i]);
            }
        }
        for (int64_t head = 0; head < s.n_kv_head; head++) {
            const T *g = dv + row * v_stride + head * s.head_dim;
            T *out = d_qkv + row * width + (rotated + head) * s.head_dim;
            std::memcpy(out, g, s.head_dim * sizeof(T));
            if (!extra) continue;
            int64_t at = (row * s.n_kv_head + head) * s.head_dim;
            float gate = gates[row * s.n_kv_head + head], to_gate = 0;
#pragma omp simd reduction(+ : to_gate)
            for (int64_t i = 0; i < s.head_dim; i++) {
                to_gate += wide(g[i]) * wide(extra[at + i]);
                d_extra[at + i] = narrow<T>(gate * wide(g[i]));
            }
            d_before[row * s.n_kv_head + head] = to_gate * gate * (1 - gate / 3);
        }
    }
}

#define FOR_EACH_TYPE(DEFINE) DEFINE(float, f32) DEFINE(bf16, bf16)
#define DEFINE(T, name)                                                                                                \
    extern "C" void mix_norm_##name(const T *x, const T *first, float keep, float add, T *mixed, T *y, float *inverse, \
                                    int64_t n, int64_t width, int64_t threads) {                                           \
        mix_norm(x, first, keep, add, mixed, y, inverse, n, width, threads);                                           \
    }                                                                                                                  \
    extern "C" void mix_norm_backward_##name(const T *x, const T *first, float keep, float add, const T *y,            \
                                             const float *inverse, const T *d_mixed, const T *dy, T *dx, T *d_first,   \
                                             float *parts, int64_t n, int64_t width, int64_t threads) {                    \
        mix_norm_backward(x, first, keep, add, y, inverse, d_mixed, dy, dx, d_first, parts, n, width, threads);        \
    }                                                                                                                  \
    extern "C" void add_norm_##name(const T *x, T *branch, T *y, float *inverse, int64_t n, int64_t width,             \
                                    int64_t threads) {                                                                     \
        add_norm(x, branch, y, inverse, n, width, threads);                                                            \
    }                                                                                                                  \
    extern "C" void add_norm_backward_##name(const T *y, const float *inverse, const T *d_sum, T *dy, int64_t n,       \
                                             int64_t width, int64_t threads) {                                             \
        add_norm_backward(y, inverse, d_sum, dy, n, width, threads);                                                   \
    }                                                                                                                  \
    extern "C" void squared_relu_##name(const T *x, T *y, int64_t n, int64_t threads) { squared_relu(x, y, n, threads); }  \
    extern "C" void squared_relu_backward_##name(const T *x, const T *dy, T *dx, int64_t n, int64_t threads) {          \
        squared_relu_backward(x, dy, dx, n, threads);                                                                      \
    }                                                                                                                  \
    extern "C" void heads_##name(const Heads *s, T *qkv, const float *cos, const float *sin, const T *h,               \
                                 int64_t h_width, const T *extra, const T *gate_weight, float *gates,                  \
                                 float *inverse) {                                                                     \
        heads(*s, qkv, cos, sin, h, h_width, extra, gate_weight, gates, inverse);                                      \
    }                                                                                                                  \
    extern "C" void heads_backward_##name(const Heads *s, const T *qkv, const float *cos, const float *sin,            \
                                          const float *inverse, const T *dq, int64_t q_stride, const T *dk,            \
                                          int64_t k_stride, const T *dv, int64_t v_stride, const T *extra,             \
                                          const float *gates, T *d_qkv, T *d_extra, float *d_before) {                 \
        heads_backward(*s, qkv, cos, sin, inverse, dq, q_stride, dk, k_stride, dv, v_stride, extra, gates, d_qkv,      \
                       d_extra, d_before);                                                                             \
    }
FOR_EACH_TYPE(DEFINE)
