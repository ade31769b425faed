// Causal attention within a window, forward and backward, head by head.
//
// Scores of 32 keys against 32 queries are formed at a time, and only where the window lets them be seen; probabilities
// are not kept for the backward pass, only each query's logarithm of their sum.
#include "products.h"

#include <algorithm>

#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>
#endif

static const int64_t BLOCK = 32;

struct Attention {
    int64_t n_row, seq_len, n_head, n_kv_head, head_dim, window;
    int64_t q_stride, k_stride, v_stride;  // from one token to the next, in numbers
    int64_t threads;
};

// x (width × n floats, rows n + APART apart) -> n × width, rows `stride` apart
template <class T> static void rows_of(const float *x, int64_t n, int64_t width, T *out, int64_t stride) {
    float block[16][16];
    for (int64_t i = 0; i < n; i += 16)
        for (int64_t j = 0; j < width; j += 16) {
            for (int64_t b = 0; b < 16; b++) std::memcpy(block[b], x + (j + b) * (n + APART) + i, 64);
            for (int64_t a = 0; a < 16; a++)
                for (int64_t b = 0; b < 16; b++) out[(i + a) * stride + j + b] = narrow<T>(block[b][a]);
        }
}

template <class T>
static void attend_head(const Attention &s, const T *q, const T *k, const T *v, T *y, float *log_sum) {
    using B = typename InB<T>::type;
    const int64_t in_b = InB<T>::rows;
    int64_t seq_len = s.seq_len, head_dim = s.head_dim, y_stride = s.n_head * head_dim, apart = seq_len + APART;
    B *keys = scratch<0, B>(head_dim / in_b * apart), *values = scratch<1, B>(seq_len / in_b * head_dim);
    float *scores = scratch<2, float>(BLOCK * apart), *sums = scratch<3, float>(BLOCK * head_dim);
    T *shares = scratch<4, T>(BLOCK * apart);
    float scale = 1 / std::sqrt(float(head_dim));
    b_of_columns(k, s.k_stride, seq_len, head_dim, keys);
    b_of_rows(v, s.v_stride, seq_len, head_dim, values);
    for (int64_t first = 0; first < seq_len; first += BLOCK) {
        int64_t begin = std::max<int64_t>(0, first - s.window) / BLOCK * BLOCK, n_key = first + BLOCK - begin;
        for (int64_t key = 0; key < n_key; key += BLOCK)
            product_32x32(q + first * s.q_stride, s.q_stride, keys + begin + key, apart, head_dim, scores + key, apart,
                          false);
        float inverse[BLOCK];
        for (int64_t i = 0; i < BLOCK; i++) {
            float *row = scores + i * apart, most = -INFINITY, total = 0;
            T *share = shares + i * apart;
            int64_t low = std::max<int64_t>(0, first + i - s.window - begin), high = first + i + 1 - begin;
#pragma omp simd reduction(max : most)
            for (int64_t j = low; j < high; j++) most = row[j] > most ? row[j] : most;
            most *= scale;
#pragma omp simd reduction(+ : total)
            for (int64_t j = low; j < high; j++) {
                row[j] = fast_exp(scale * row[j] - most);
                total += row[j];
            }
#pragma omp simd
            for (int64_t j = low; j < high; j++) share[j] = narrow<T>(row[j]);
            std::memset(share, 0, low * sizeof(T));
            std::memset(share + high, 0, (n_key - high) * sizeof(T));
            inverse[i] = 1 / total;
            log_sum[first + i] = most + std::log(total);
        }
        for (int64_t d = 0; d < head_dim; d += 32)
            product_32x32(shares, apart, values + begin / in_b * head_dim + d, head_dim, n_key, sums + d, head_dim, false);
        for (int64_t i = 0; i < BLOCK; i++) {
            T *row = y + (first + i) * y_stride;
#pragma omp simd
            for (int64_t j = 0; j < head_dim; j++) row[j] = narrow<T>(inverse[i] * sums[i * head_dim + j]);
        }
    }
}

template <class T> struct Gradients {
    const T *y, *dy;
    const float *log_sum;
    T *dq, *dk, *dv;  // dq in rows of n_head heads, dk and dv in rows of n_kv_head
};

// One key/value head with all the query heads that share it.
template <class T>
static void backward_head(const Attention &s, const T *q, const T *k, const T *v, const Gradients<T> &g) {
    using B = typename InB<T>::type;
    const int64_t in_b = InB<T>::rows;
    int64_t seq_len = s.seq_len, head_dim = s.head_dim, part = head_dim / in_b, group = s.n_head / s.n_kv_head;
    int64_t y_stride = s.n_head * head_dim, kv_stride = s.n_kv_head * head_dim, apart = seq_len + APART;
    B *queries = scratch<0, B>(part * apart), *query_rows = scratch<1, B>(part * seq_len);
    B *dys = scratch<5, B>(part * apart), *dy_rows = scratch<6, B>(part * seq_len);
    T *key_columns = scratch<7, T>(head_dim * apart);         // (D, T)
    float *dq_columns = scratch<8, float>(head_dim * apart);  // (D, T)
    float *dk_sum = scratch<9, float>(seq_len * head_dim), *dv_sum = scratch<10, float>(seq_len * head_dim);
    float *along = scratch<11, float>(seq_len), *scores = scratch<2, float>(2 * BLOCK * BLOCK);
    T *shares = scratch<4, T>(BLOCK * apart), *d_shares = scratch<12, T>(BLOCK * apart);
    B *d_share_rows = scratch<13, B>(BLOCK / in_b * BLOCK);
    float scale = 1 / std::sqrt(float(head_dim)), *d_scores = scores + BLOCK * BLOCK;
    columns(k, s.k_stride, seq_len, head_dim, key_columns, apart);
    std::memset(dk_sum, 0, seq_len * head_dim * 4);
    std::memset(dv_sum, 0, seq_len * head_dim * 4);
    for (int64_t member = 0; member < group; member++) {
        const T *own_q = q + member * head_dim, *own_dy = g.dy + member * head_dim, *own_y = g.y + member * head_dim;
        const float *log_sum = g.log_sum + member * seq_len;
        b_of_columns(own_q, s.q_stride, seq_len, head_dim, queries);
        b_of_rows(own_q, s.q_stride, seq_len, head_dim, query_rows);
        b_of_columns(own_dy, y_stride, seq_len, head_dim, dys);
        b_of_rows(own_dy, y_stride, seq_len, head_dim, dy_rows);
        for (int64_t i = 0; i < seq_len; i++) {
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t d = 0; d < head_dim; d++) sum += wide(own_y[i * y_stride + d]) * wide(own_dy[i * y_stride + d]);
            along[i] = sum;
        }
        std::memset(dq_columns, 0, apart * head_dim * 4);
        for (int64_t key = 0; key < seq_len; key += BLOCK) {
            int64_t end = std::min(seq_len, (key + BLOCK - 1 + s.window) / BLOCK * BLOCK + BLOCK), n_query = end - key;
            for (int64_t first = key; first < end; first += BLOCK) {
                product_32x32(k + key * s.k_stride, s.k_stride, queries + first, apart, head_dim, scores, BLOCK, false);
                product_32x32(v + key * s.v_stride, s.v_stride, dys + first, apart, head_dim, d_scores, BLOCK, false);
                bool whole = first >= key + BLOCK && first + BLOCK - 1 - key <= s.window;
                for (int64_t i = 0; i < BLOCK; i++) {
                    T *share = shares + i * apart + first - key, *d_share = d_shares + i * apart + first - key;
                    const float *score = scores + i * BLOCK, *d_score = d_scores + i * BLOCK;
                    float p[BLOCK], dp[BLOCK];
#pragma omp simd
                    for (int64_t j = 0; j < BLOCK; j++) p[j] = fast_exp(scale * score[j] - log_sum[first + j]);
#pragma omp simd
                    for (int64_t j = 0; j < BLOCK; j++) dp[j] = scale * p[j] * (d_score[j] - along[first + j]);
#pragma omp simd
                    for (int64_t j = 0; j < BLOCK; j++) share[j] = narrow<T>(p[j]);
#pragma omp simd
                    for (int64_t j = 0; j < BLOCK; j++) d_share[j] = narrow<T>(dp[j]);
                    if (whole) continue;
                    for (int64_t j = 0; j < BLOCK; j++) {
                        int64_t distance = first + j - key - i;
                        if (distance < 0 || distance > s.window) share[j] = d_share[j] = narrow<T>(0);
                    }
                }
                b_of_rows(d_shares + first - key, apart, BLOCK, BLOCK, d_share_rows);
                for (int64_t d = 0; d < head_dim; d += 32)
                    product_32x32(key_columns + d * apart + key, apart, d_share_rows, BLOCK, BLOCK,
                                  dq_columns + d * apart + first, apart, true);
            }
            for (int64_t d = 0; d < head_dim; d += 32) {
                product_32x32(shares, apart, dy_rows + key / in_b * head_dim + d, head_dim, n_query,
                              dv_sum + key * head_dim + d, head_dim, true);
                product_32x32(d_shares, apart, query_rows + key / in_b * head_dim + d, head_dim, n_query,
                              dk_sum + key * head_dim + d, head_dim, true);
            }
        }
        rows_of(dq_columns, seq_len, head_dim, g.dq + member * head_dim, y_stride);
    }
    for (int64_t i = 0; i < seq_len; i++) {
        T *to_k = g.dk + i * kv_stride, *to_v = g.dv + i * kv_stride;
#pragma omp simd
        for (int64_t d = 0; d < head_dim; d++) to_k[d] = narrow<T>(dk_sum[i * head_dim + d]);
#pragma omp simd
        for (int64_t d = 0; d < head_dim; d++) to_v[d] = narrow<T>(dv_sum[i * head_dim + d]);
    }
}

// y (B, T, H, D) and log_sum (B, H, T), both whole.
template <class T> static void attend(const Attention &s, const T *q, const T *k, const T *v, T *y, float *log_sum) {
#pragma omp parallel num_threads(s.threads)
    {
        begin_products<T>();
#pragma omp for schedule(static)
        for (int64_t one = 0; one < s.n_row * s.n_head; one++) {
            int64_t row = one / s.n_head, head = one % s.n_head, kv_head = head * s.n_kv_head / s.n_head;
            attend_head(s, q + row * s.seq_len * s.q_stride + head * s.head_dim,
                        k + row * s.seq_len * s.k_stride + kv_head * s.head_dim,
                        v + row * s.seq_len * s.v_stride + kv_head * s.head_dim,
                        y + (row * s.seq_len * s.n_head + head) * s.head_dim, log_sum + one * s.seq_len);
        }
        end_products<T>();
    }
}

// dq (B, T, H, D), dk and dv (B, T, K, D), all whole.
template <class T>
static void attend_backward(const Attention &s, const T *q, const T *k, const T *v, const Gradients<T> &g) {
#pragma omp parallel num_threads(s.threads)
    {
        begin_products<T>();
#pragma omp for schedule(static)
        for (int64_t one = 0; one < s.n_row * s.n_kv_head; one++) {
            int64_t row = one / s.n_kv_head, kv_head = one % s.n_kv_head, group = s.n_head / s.n_kv_head;
            int64_t head = kv_head * group, at = (row * s.seq_len * s.n_head + head) * s.head_dim;
            int64_t kv_at = (row * s.seq_len * s.n_kv_head + kv_head) * s.head_dim;
            backward_head(s, q + row * s.seq_len * s.q_stride + head * s.head_dim,
                          k + row * s.seq_len * s.k_stride + kv_head * s.head_dim,
                          v + row * s.seq_len * s.v_stride + kv_head * s.head_dim,
                          Gradients<T>{g.y + at, g.dy + at, g.log_sum + (row * s.n_head + head) * s.seq_len, g.dq + at,
                                       g.dk + kv_at, g.dv + kv_at});
        }
        end_products<T>();
    }
}

extern "C" {
// 2 for AMX, where the system lets this process have its tiles, 1 for AVX512-BF16, 0 for nothing that can be used.
int multiplied_by() {
#if defined(__AMX_BF16__)
    return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) ? 0 : 2;
#elif defined(HAS_PRODUCTS)
    return 1;
#else
    return 0;
#endif
}

void attend_f32(const Attention *s, const float *q, const float *k, const float *v, float *y, float *log_sum) {
    attend(*s, q, k, v, y, log_sum);
}
void attend_backward_f32(const Attention *s, const float *q, const float *k, const float *v, const float *y,
                         const float *dy, const float *log_sum, float *dq, float *dk, float *dv) {
    attend_backward(*s, q, k, v, Gradients<float>{y, dy, log_sum, dq, dk, dv});
}
#ifdef HAS_PRODUCTS
void attend_bf16(const Attention *s, const bf16 *q, const bf16 *k, const bf16 *v, bf16 *y, float *log_sum) {
    attend(*s, q, k, v, y, log_sum);
}
void attend_backward_bf16(const Attention *s, const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *y,
                          const bf16 *dy, const float *log_sum, bf16 *dq, bf16 *dk, bf16 *dv) {
    attend_backward(*s, q, k, v, Gradients<bf16>{y, dy, log_sum, dq, dk, dv});
}
#endif
}
