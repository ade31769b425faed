// Attention of single queries over pages of keys and values, read where they lie. A query's numbers are its own: what
// is computed beside it changes none of them.
#include "numbers.h"

#include <algorithm>

struct Pages {
    int64_t n_row, page, n_head, n_kv_head, head_dim, window, threads;
};

// q and y (n_row, H, D), keys and values (pages, page, K, D), table (P, n_row) from the first page that a row sees.
template <class T>
static void attend_pages(const Pages &s, const T *q, const T *keys, const T *values, const int64_t *table,
                         const int64_t *position, T *y) {
    int64_t group = s.n_head / s.n_kv_head, dim = s.head_dim;
    float scale = 1 / std::sqrt(float(dim));
#pragma omp parallel for num_threads(s.threads) schedule(dynamic)
    for (int64_t one = 0; one < s.n_row * s.n_kv_head; one++) {
        int64_t row = one / s.n_kv_head, kv_head = one % s.n_kv_head, at = position[row];
        int64_t begin = std::max<int64_t>(0, at / s.page * s.page - s.window) / s.page * s.page;
        int64_t low = std::max<int64_t>(0, at - s.window), n = at + 1 - low;
        auto place = [&](int64_t key) {
            int64_t page = table[(key - begin) / s.page * s.n_row + row];
            return ((page * s.page + key % s.page) * s.n_kv_head + kv_head) * dim;
        };
        float *scores = scratch<0, float>(group * n), *sums = scratch<1, float>(dim);
        for (int64_t i = 0; i < n; i++) {
            const T *k = keys + place(low + i);
            for (int64_t member = 0; member < group; member++) {
                const T *query = q + (row * s.n_head + kv_head * group + member) * dim;
                float sum = 0;
#pragma omp simd reduction(+ : sum)
                for (int64_t d = 0; d < dim; d++) sum += wide(query[d]) * wide(k[d]);
                scores[member * n + i] = scale * sum;
            }
        }
        for (int64_t member = 0; member < group; member++) {
            float *score = scores + member * n, most = -INFINITY, total = 0;
#pragma omp simd reduction(max : most)
            for (int64_t i = 0; i < n; i++) most = score[i] > most ? score[i] : most;
#pragma omp simd reduction(+ : total)
            for (int64_t i = 0; i < n; i++) {
                score[i] = fast_exp(score[i] - most);
                total += score[i];
            }
            std::fill(sums, sums + dim, 0.0f);
            for (int64_t i = 0; i < n; i++) {
                const T *v = values + place(low + i);
#pragma omp simd
                for (int64_t d = 0; d < dim; d++) sums[d] += score[i] * wide(v[d]);
            }
            T *out = y + (row * s.n_head + kv_head * group + member) * dim;
#pragma omp simd
            for (int64_t d = 0; d < dim; d++) out[d] = narrow<T>(sums[d] / total);
        }
    }
}

#define DEFINE(T, name)                                                                                           \
    extern "C" void attend_pages_##name(const Pages *s, const T *q, const T *keys, const T *values,               \
                                        const int64_t *table, const int64_t *position, T *y) {                    \
        attend_pages(*s, q, keys, values, table, position, y);                                                    \
    }
DEFINE(float, f32)
DEFINE(bf16, bf16)
