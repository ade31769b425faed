// The gradient of a matrix in bf16: gradient (n_out × n_in floats) += dyᵀ · x over n tokens.
#include "products.h"

#include <algorithm>

extern "C" {
#ifdef HAS_PRODUCTS
// n, n_out and n_in are multiples of 32.
void weight_gradient_bf16(const bf16 *dy, int64_t dy_stride, const bf16 *x, int64_t x_stride, float *gradient, int64_t n,
                          int64_t n_out, int64_t n_in, int64_t threads) {
    const int64_t most = 512;  // tokens at a time: what both sides of the product fit a cache with
    int64_t apart = most + APART;
    uint32_t *rows = scratch<0, uint32_t>(most / 2 * n_in);
    bf16 *turned = scratch<1, bf16>(n_out * apart);
#pragma omp parallel num_threads(threads)
    {
        begin_products<bf16>();
        for (int64_t first = 0; first < n; first += most) {
            int64_t count = std::min(most, n - first);
#pragma omp for schedule(static) nowait
            for (int64_t i = 0; i < count; i += 32)
                b_of_rows(x + (first + i) * x_stride, x_stride, 32, n_in, rows + i / 2 * n_in);
#pragma omp for schedule(static)
            for (int64_t o = 0; o < n_out; o += 32)
                columns(dy + first * dy_stride + o, dy_stride, count, 32, turned + o * apart, apart);
#pragma omp for schedule(static)
            for (int64_t o = 0; o < n_out; o += 32)
                for (int64_t i = 0; i < n_in; i += 32)
                    product_32x32(turned + o * apart, apart, rows + i, n_in, count, gradient + o * n_in + i, n_in, true);
        }
        end_products<bf16>();
    }
}
#endif
}
